//! Proofs of one entry, as JSON.
//!
//! In: a [`Proof`], or text. Out: the other. Promise: reading is strict and bounded; nothing in the text but what is checked.
//! Failure: [`NotAProof`].
//!
//! ```json
//! {"agora_proof": 1, "subject": 57, "message": 0, "checkpoint": "agora/...", "entries": [{"seq": 1, "stored": "...", "path": ["..."]}]}
//! ```
//!
//! `stored` (the signature and the entry, as in the log) and `path` (hashes, from the leaf up) are hexadecimal; `message` may be missing.

use agora_realm::checkpoint::Signed;
use agora_realm::evidence::{Exhibit, Proof};
use agora_realm::limits::{ENTRY_BYTES_MAX, PROOF_ENTRIES_MAX};
use agora_realm::merkle::PROOF_HASHES_MAX;
use serde::{Deserialize, Serialize};

use crate::limits;

/// Text that is no proof.
#[derive(Debug, thiserror::Error)]
pub enum NotAProof {
    /// Larger than any.
    #[error("{0} bytes; a proof takes at most {max}", max = limits::PROOF_FILE_BYTES_MAX)]
    TooLarge(usize),
    /// Not of this form.
    #[error("this is no proof: {0}")]
    Form(#[from] serde_json::Error),
    /// Of another version.
    #[error("a proof of version {0} is not known here; upgrade")]
    Version(u64),
    /// Something in it.
    #[error("this is no proof: {0} is not what it should be")]
    Field(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    agora_proof: u64,
    subject: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<usize>,
    checkpoint: String,
    entries: Vec<TextEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextEntry {
    seq: u64,
    stored: String,
    path: Vec<String>,
}

/// Writes a proof.
pub fn write(proof: &Proof) -> String {
    let entry = |exhibit: &Exhibit| TextEntry {
        seq: exhibit.seq,
        stored: crate::hex(&exhibit.stored),
        path: exhibit.path.iter().map(|hash| crate::hex(hash)).collect(),
    };
    let text = Text {
        agora_proof: 1,
        subject: proof.subject,
        message: proof.message,
        checkpoint: proof.checkpoint.to_string(),
        entries: proof.exhibits.iter().map(entry).collect(),
    };
    serde_json::to_string_pretty(&text).expect("plain data has a text")
}

/// Reads a proof. Whether it proves anything is [`Proof::check`]'s to say.
///
/// # Errors
/// It is none.
pub fn read(text: &[u8]) -> Result<Proof, NotAProof> {
    if text.len() > limits::PROOF_FILE_BYTES_MAX {
        return Err(NotAProof::TooLarge(text.len()));
    }
    let text: Text = serde_json::from_slice(text)?;
    if text.agora_proof != 1 {
        return Err(NotAProof::Version(text.agora_proof));
    }
    if text.entries.len() > PROOF_ENTRIES_MAX {
        return Err(NotAProof::Field("entries"));
    }
    let checkpoint: Signed = text
        .checkpoint
        .parse()
        .map_err(|_| NotAProof::Field("checkpoint"))?;
    let exhibit = |entry: &TextEntry| {
        let stored = unhex(&entry.stored).filter(|bytes| bytes.len() <= ENTRY_BYTES_MAX);
        if entry.path.len() > PROOF_HASHES_MAX {
            return Err(NotAProof::Field("path"));
        }
        let hash = |text: &String| unhex(text).and_then(|bytes| bytes.try_into().ok());
        let path: Option<Vec<_>> = entry.path.iter().map(hash).collect();
        Ok(Exhibit {
            seq: entry.seq,
            stored: stored.ok_or(NotAProof::Field("stored"))?.into(),
            path: path.ok_or(NotAProof::Field("path"))?,
        })
    };
    Ok(Proof {
        subject: text.subject,
        message: text.message,
        checkpoint,
        exhibits: text.entries.iter().map(exhibit).collect::<Result<_, _>>()?,
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_taken_without_harm() {
        let whole = r#"{"agora_proof":1,"subject":1,"checkpoint":"x","entries":[{"seq":1,"stored":"00","path":["00"]}]}"#;
        for end in 0..=whole.len() {
            assert!(read(&whole.as_bytes()[..end]).is_err());
        }
        assert!(matches!(
            read(b"{\"agora_proof\":2,\"subject\":1,\"checkpoint\":\"\",\"entries\":[]}"),
            Err(NotAProof::Version(2))
        ));
        assert!(read(&vec![b'['; 100_000]).is_err());
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        assert_eq!(
            (unhex("0"), unhex("0g"), unhex("0F"), unhex("é")),
            (None, None, None, None)
        );
    }
}
