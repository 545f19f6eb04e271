//! The tip: how far this host has seen the log, so that one that went back is noticed.
//!
//! A place and the hash of what stands there. The log is dense and append-only, so one that holds the tip is taken to hold all before it.

use agora_log::{Log, Seq};

use super::pruned::Pruned;
use super::record::RecordError;

/// The newest entry that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its place.
    pub seq: u64,
    /// The hash of what is stored there.
    pub leaf: [u8; 32],
}

impl Tip {
    /// What the log has in its place, when that is something else.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn missing_in(
        &self,
        log: &dyn Log,
        pruned: &Pruned,
    ) -> Result<Option<String>, RecordError> {
        let end = log.end().0;
        if end < self.seq {
            return Ok(Some(format!("the log ends at {end}")));
        }
        let stored = log.read(Seq(self.seq), 1, usize::MAX).await?;
        let Some((_, bytes)) = stored.into_iter().find(|(seq, _)| seq.0 == self.seq) else {
            return Ok(Some("nothing stands there".to_owned()));
        };
        let place = pruned.place_in(log, self.seq, bytes).await;
        let found = place.map_err(|source| pruned.error(source))?.leaf();
        Ok((found != self.leaf).then(|| format!("{} stands there", short(&found))))
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
