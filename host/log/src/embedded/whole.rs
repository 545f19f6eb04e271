//! Every byte of a log's folder, from the first segment's header to the end of what was written.
//!
//! In: a folder, in use or not.
//! Promise: entries come in order, each with the file and offset it stands at; no byte of what was written is passed over:
//! headers, records, the padding between them, and how each segment's end fits the header of the next. Nothing is changed.
//! Failure: [`LogError::Corrupt`] names the first entry that is not as it was written, with file and offset.
//!
//! What lies behind the end of the last segment is either zeros or [`TornTail`]; behind the end of an older one may lie what a
//! failed write left, which the segment after it gave up.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    TornTail,
    chain::Segment,
    check_format,
    files::{Disk, Files},
    folder,
    format::{Chunks, HEADER_BYTES, record_bytes},
};
use crate::{LogError, Seq};

/// One entry, and where its record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stood {
    /// Its place in the log.
    pub seq: Seq,
    /// The segment file.
    pub file: Arc<PathBuf>,
    /// Where in the file its record begins.
    pub offset: u64,
    /// The entry.
    pub entry: Bytes,
    /// It was purged, and is empty here.
    pub purged: bool,
}

/// A folder that is read whole, see the module.
pub struct Whole {
    files: Arc<dyn Files>,
    segments: Vec<Arc<Segment>>,
    end: u64,
    cut: Option<TornTail>,
    segment: usize,
    seq: u64,
    at: u64,
    /// Something of the segment at hand was purged: its records end earlier than they did, and zeros follow.
    purged: bool,
}

impl Whole {
    /// Opens the log in `dir`; sees what stood in it then. Blocks on files.
    ///
    /// # Errors
    /// [`LogError::Missing`], [`LogError::Format`], [`LogError::Corrupt`], [`LogError::Io`].
    pub fn open(dir: &Path) -> Result<Whole, LogError> {
        check_format(dir, false)?;
        Self::open_on(Arc::new(Disk), dir)
    }

    pub(super) fn open_on(files: Arc<dyn Files>, dir: &Path) -> Result<Whole, LogError> {
        let recovered = folder::recover(&*files, dir, None)?;
        Ok(Whole {
            files,
            segments: recovered.segments,
            end: recovered.end.0,
            cut: recovered.cut,
            segment: 0,
            seq: 1,
            at: HEADER_BYTES,
            purged: false,
        })
    }

    /// The last entry.
    pub fn end(&self) -> Seq {
        Seq(self.end)
    }

    /// What lies behind it, and was never acknowledged if a crash left it.
    pub fn torn(&self) -> Option<&TornTail> {
        self.cut.as_ref()
    }

    /// The next entries, at most so many and so many bytes, but at least one; none when all were given. Blocks on files.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for the first entry that is not as it was written, once those before it were given;
    /// [`LogError::Io`].
    pub fn read(&mut self, entries: usize, bytes_max: usize) -> Result<Vec<Stood>, LogError> {
        let mut out: Vec<Stood> = Vec::new();
        let mut left = bytes_max;
        while let Some(segment) = self.segments.get(self.segment).cloned() {
            match self.walk(&segment, entries, &mut left, &mut out) {
                Ok(true) => break,
                Ok(false) => {
                    self.segment += 1;
                    self.at = HEADER_BYTES;
                    self.purged = false;
                }
                // It is met again, and told, with nothing before it.
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    /// Collects from one segment; says whether enough was collected before its end.
    fn walk(
        &mut self,
        segment: &Segment,
        entries: usize,
        left: &mut usize,
        out: &mut Vec<Stood>,
    ) -> Result<bool, LogError> {
        let io = |error| LogError::io("read", &segment.path)(error);
        let corrupt = |seq, offset, why: String| LogError::Corrupt {
            seq: Seq(seq),
            file: segment.path.clone(),
            offset,
            why,
        };
        let next = self.segments.get(self.segment + 1).map(|s| s.header);
        let last = next.map_or(self.end, |next| next.first - 1);
        let file = self.files.open(&segment.path, false).map_err(io)?;
        let mut chunks = Chunks::new(&*file).map_err(io)?;
        let path = Arc::new(segment.path.clone());
        while self.seq <= last {
            if out.len() >= entries {
                return Ok(true);
            }
            let (seq, at) = (self.seq, self.at);
            let found = chunks.record(segment.header.salt, seq, at).map_err(io)?;
            let Some(record) = found else {
                return Err(corrupt(seq, at, "no sound record stands there".into()));
            };
            if record.entry.len() > *left && !out.is_empty() {
                return Ok(true);
            }
            let (entry, purged) = (Bytes::copy_from_slice(record.entry), record.purged);
            self.purged |= purged;
            let bytes = record_bytes(entry.len());
            let padding = at + bytes - Chunks::padding_bytes(entry.len());
            if !chunks.is_zero(padding, at + bytes).map_err(io)? {
                return Err(corrupt(
                    seq,
                    padding,
                    "the bytes that pad its record are not zero".into(),
                ));
            }
            *left = left.saturating_sub(entry.len());
            out.push(Stood {
                seq: Seq(seq),
                file: path.clone(),
                offset: at,
                entry,
                purged,
            });
            self.at += bytes;
            self.seq += 1;
        }
        if let Some(next) = next
            && next.before_bytes != self.at
            && !(self.purged
                && chunks
                    .is_blank_from(self.at, next.before_bytes)
                    .map_err(io)?)
        {
            return Err(corrupt(
                next.first,
                self.at,
                format!(
                    "its entries end there, but segment {} says that they end at byte {}",
                    next.number, next.before_bytes
                ),
            ));
        }
        Ok(false)
    }
}
