//! The tip: how far this host has seen the log, so that one that went back is noticed.
//!
//! A place and the hash of what stands there. The log is dense and append-only, so one that holds the tip is taken to hold all before it.

use agora_log::{Log, LogError, Seq};
use sha2::{Digest, Sha256};

/// The newest entry that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its place.
    pub seq: u64,
    /// The hash of what is stored there.
    pub leaf: [u8; 32],
}

/// The hash of what is stored at a seq (RFC 6962 leaf).
pub fn leaf(stored: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update([0])
        .chain_update(stored)
        .finalize()
        .into()
}

impl Tip {
    /// The tip of a host that has seen this last.
    pub fn of(seq: u64, stored: &[u8]) -> Self {
        Self {
            seq,
            leaf: leaf(stored),
        }
    }

    /// What the log has in its place, when that is something else.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn missing_in(&self, log: &dyn Log) -> Result<Option<String>, LogError> {
        let end = log.end().0;
        if end < self.seq {
            return Ok(Some(format!("the log ends at {end}")));
        }
        let stored = log.read(Seq(self.seq), 1, usize::MAX).await?;
        Ok(match stored.first() {
            Some((seq, bytes)) if seq.0 == self.seq => {
                let found = leaf(bytes);
                (found != self.leaf).then(|| format!("{} stands there", short(&found)))
            }
            _ => Some("nothing stands there".to_owned()),
        })
    }
}

/// The first digits of a hash.
pub fn short(leaf: &[u8; 32]) -> String {
    crate::hex(&leaf[..4])
}

impl std::fmt::Display for Tip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "entry {} as {}", self.seq, short(&self.leaf))
    }
}
