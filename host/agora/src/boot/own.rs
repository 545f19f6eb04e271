//! What this host would have to say again if the log lost it: its own keys, channels, grants and revocations, and others' stops that it
//! heeded.
//!
//! In: those entries, once they stand. Out: the same bytes, in their order.
//! Promise: what was answered as decided is here, synced where the log is elsewhere. Kept short by who knows what still means something.
//! Failure: a record that a crash tore ends the file there; it was never answered.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::data::{DataError, io, replace};
use crate::limits;

const HEAD: usize = 8;

/// The file of own entries.
pub struct Own {
    path: PathBuf,
    kept: Mutex<Kept>,
}

struct Kept {
    file: File,
    count: usize,
    /// When there are more, what means nothing any more is to be dropped.
    roomy: usize,
}

fn record(stored: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + stored.len());
    bytes.extend_from_slice(&(stored.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(stored).to_le_bytes());
    bytes.extend_from_slice(stored);
    bytes
}

/// The entries in a file's bytes, and how many bytes hold them.
fn records(bytes: &Bytes) -> (Vec<Bytes>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(head) = bytes.get(at..at + HEAD) {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let end = (at + HEAD).saturating_add(word(0) as usize);
        match bytes.get(at + HEAD..end) {
            Some(stored) if crc32c::crc32c(stored) == word(4) => {
                found.push(bytes.slice(at + HEAD..end));
            }
            _ => break,
        }
        at = end;
    }
    (found, at)
}

impl Own {
    /// Opens the file, making it when there is none.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(io(path))?;
        let bytes = Bytes::from(std::fs::read(path).map_err(io(path))?);
        let (found, whole) = records(&bytes);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io(path))?;
        }
        let kept = Kept {
            file,
            count: found.len(),
            roomy: limits::OWN_ENTRIES_MAX,
        };
        Ok(Self {
            path: path.to_owned(),
            kept: Mutex::new(kept),
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one more; synced when `is_synced`.
    ///
    /// # Errors
    /// The write failed.
    pub fn keep(&self, stored: &[u8], is_synced: bool) -> Result<(), DataError> {
        let mut kept = self.kept();
        let written = kept.file.write_all(&record(stored));
        let written = written.and_then(|()| match is_synced {
            true => kept.file.sync_data(),
            false => Ok(()),
        });
        if written.is_err() {
            // What was half written must not stand before what comes next.
            let bytes = Bytes::from(std::fs::read(&self.path).map_err(io(&self.path))?);
            let (found, whole) = records(&bytes);
            kept.file.set_len(whole as u64).map_err(io(&self.path))?;
            kept.count = found.len();
        } else {
            kept.count += 1;
        }
        written.map_err(io(&self.path))
    }

    /// All of them.
    ///
    /// # Errors
    /// They can't be read.
    pub fn all(&self) -> Result<Vec<Bytes>, DataError> {
        let _one = self.kept();
        let bytes = std::fs::read(&self.path).map_err(io(&self.path))?;
        Ok(records(&bytes.into()).0)
    }

    /// Whether there are so many that it is time to drop some.
    pub fn is_crowded(&self) -> bool {
        let kept = self.kept();
        kept.count > kept.roomy
    }

    /// Keeps only what `still` picks of all of them.
    ///
    /// # Errors
    /// It can't be written; all are still there.
    pub fn shorten(&self, still: impl FnOnce(Vec<Bytes>) -> Vec<Bytes>) -> Result<(), DataError> {
        let mut kept = self.kept();
        let bytes = std::fs::read(&self.path).map_err(io(&self.path))?;
        let left = still(records(&bytes.into()).0);
        let bytes: Vec<u8> = left.iter().flat_map(|stored| record(stored)).collect();
        replace(&self.path, &bytes)?;
        kept.file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(io(&self.path))?;
        kept.count = left.len();
        kept.roomy = limits::OWN_ENTRIES_MAX.max(2 * left.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_a_torn_end_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own");
        let own = Own::open(&path).unwrap();
        own.keep(b"one", true).unwrap();
        own.keep(b"two", false).unwrap();
        drop(own);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&record(b"three")[..10]).unwrap();
        let own = Own::open(&path).unwrap();
        own.keep(b"four", true).unwrap();
        assert_eq!(own.all().unwrap(), ["one", "two", "four"]);
    }

    #[test]
    fn shortening_drops_what_is_not_picked_and_goes_on_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own");
        let own = Own::open(&path).unwrap();
        for entry in ["one", "two", "three"] {
            own.keep(entry.as_bytes(), false).unwrap();
        }
        own.shorten(|mut all| all.split_off(1)).unwrap();
        own.keep(b"four", true).unwrap();
        assert_eq!(own.all().unwrap(), ["two", "three", "four"]);
        assert_eq!(
            Own::open(&path).unwrap().all().unwrap(),
            ["two", "three", "four"]
        );
    }
}
