//! The segments in order, and reading from them.
//!
//! A segment's entries count from its own first to before the next one's first: what stands behind that was never
//! acknowledged, and was given up when the next segment began.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::Bytes;

use super::{
    files::Files,
    format::{Chunks, HEADER_BYTES, Header, record_bytes},
};
use crate::{LogError, Seq, limits};

/// Bytes between two places that are kept in memory per segment.
const PLACES_APART_BYTES: u64 = 64 << 10;

pub(super) struct Segment {
    pub(super) header: Header,
    pub(super) path: PathBuf,
    /// Some seqs and where they stand, both rising.
    places: Mutex<Vec<(u64, u64)>>,
}

impl Segment {
    pub(super) fn new(header: Header, path: PathBuf) -> Arc<Self> {
        let places = Mutex::new(vec![(header.first, HEADER_BYTES)]);
        Arc::new(Segment {
            header,
            path,
            places,
        })
    }

    fn places(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that `seq` stands at `at`, if that is far enough from what is known.
    pub(super) fn note(&self, seq: u64, at: u64) {
        let mut places = self.places();
        if places
            .last()
            .is_none_or(|&(last_seq, last_at)| seq > last_seq && at >= last_at + PLACES_APART_BYTES)
        {
            places.push((seq, at));
        }
    }

    /// What is known of places may be of a file that this segment's was put in the place of. Says whether anything was.
    pub(super) fn forget_places(&self) -> bool {
        let mut places = self.places();
        let knew = places.len() > 1;
        places.truncate(1);
        knew
    }

    fn nearest(&self, seq: u64) -> (u64, u64) {
        let places = self.places();
        let after = places.partition_point(|&(known, _)| known <= seq);
        places[after.saturating_sub(1)]
    }
}

pub(super) struct Chain {
    pub(super) files: Arc<dyn Files>,
    segments: RwLock<Vec<Arc<Segment>>>,
}

impl Chain {
    pub(super) fn new(files: Arc<dyn Files>, segments: Vec<Arc<Segment>>) -> Arc<Self> {
        Arc::new(Chain {
            files,
            segments: RwLock::new(segments),
        })
    }

    pub(super) fn push(&self, segment: Arc<Segment>) {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        segments.push(segment);
    }

    /// The segment that holds `seq`, and the last seq it may hold.
    fn holding(&self, seq: u64) -> Option<(Arc<Segment>, u64)> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let after = segments.partition_point(|segment| segment.header.first <= seq);
        let segment = segments.get(after.checked_sub(1)?)?;
        let last = segments
            .get(after)
            .map_or(u64::MAX, |next| next.header.first - 1);
        Some((segment.clone(), last))
    }

    /// As [`Log::read`](crate::Log::read), up to `end`; blocks on files.
    pub(super) fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
        end: Seq,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        let entries = entries.min(limits::READ_ENTRIES_MAX);
        let bytes_max = bytes_max.min(limits::READ_BYTES_MAX);
        let mut out = Vec::new();
        let (mut next, mut left) = (from.0.max(1), bytes_max);
        while next <= end.0 && out.len() < entries {
            let Some((segment, last)) = self.holding(next) else {
                return Err(missing(&self.first_path(), next, "no segment holds it"));
            };
            let before = next;
            match self.walk(
                &segment,
                &mut next,
                last.min(end.0),
                entries,
                &mut left,
                &mut out,
            ) {
                Ok(true) => return Ok(out),
                Ok(false) => {}
                Err(_) if !out.is_empty() => return Ok(out),
                Err(error) => return Err(error),
            }
            if next == before {
                break;
            }
        }
        Ok(out)
    }

    /// Collects from one segment; says whether `left` is spent. A purge may have put another file in the place of the one that
    /// offsets are known of: then it is walked from its beginning.
    fn walk(
        &self,
        segment: &Segment,
        next: &mut u64,
        last: u64,
        entries: usize,
        left: &mut usize,
        out: &mut Vec<(Seq, Bytes)>,
    ) -> Result<bool, LogError> {
        match self.walk_once(segment, next, last, entries, left, out) {
            Err(LogError::Corrupt { .. }) if segment.forget_places() => {
                self.walk_once(segment, next, last, entries, left, out)
            }
            walked => walked,
        }
    }

    fn walk_once(
        &self,
        segment: &Segment,
        next: &mut u64,
        last: u64,
        entries: usize,
        left: &mut usize,
        out: &mut Vec<(Seq, Bytes)>,
    ) -> Result<bool, LogError> {
        let io = |error| LogError::io("read", &segment.path)(error);
        let file = self.files.open(&segment.path, false).map_err(io)?;
        let mut chunks = Chunks::new(&*file).map_err(io)?;
        let (mut seq, mut at) = segment.nearest(*next);
        let mut noted = at;
        while seq <= last && out.len() < entries {
            let found = chunks.record(segment.header.salt, seq, at).map_err(io)?;
            let Some(record) = found else {
                return Err(LogError::Corrupt {
                    seq: Seq(seq),
                    file: segment.path.clone(),
                    offset: at,
                    why: "no sound record stands there".into(),
                });
            };
            if at >= noted + PLACES_APART_BYTES {
                segment.note(seq, at);
                noted = at;
            }
            if seq >= *next {
                if record.entry.len() > *left && !out.is_empty() {
                    return Ok(true);
                }
                *left = left.saturating_sub(record.entry.len());
                out.push((Seq(seq), Bytes::copy_from_slice(record.entry)));
                *next = seq + 1;
            }
            at += record_bytes(record.entry.len());
            seq += 1;
        }
        Ok(false)
    }

    /// Whether the entry was purged.
    pub(super) fn is_purged(&self, seq: Seq) -> Result<bool, LogError> {
        let Some((segment, _)) = self.holding(seq.0) else {
            return Ok(false);
        };
        let io = |error| LogError::io("read", &segment.path)(error);
        let file = self.files.open(&segment.path, false).map_err(io)?;
        let mut chunks = Chunks::new(&*file).map_err(io)?;
        // From the beginning, whatever is known of places: it is asked for rarely.
        let mut at = HEADER_BYTES;
        for found in segment.header.first..=seq.0 {
            let Some(record) = chunks.record(segment.header.salt, found, at).map_err(io)? else {
                return Ok(false);
            };
            if found == seq.0 {
                return Ok(record.purged);
            }
            at += record_bytes(record.entry.len());
        }
        Ok(false)
    }

    /// The segments that nothing is written to any more, each with the last seq it holds and how long its file must stay.
    pub(super) fn sealed(&self) -> Vec<(Arc<Segment>, u64, u64)> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .windows(2)
            .map(|pair| {
                let next = &pair[1].header;
                (pair[0].clone(), next.first - 1, next.before_bytes)
            })
            .collect()
    }

    /// The first seq of the segment that is written to.
    pub(super) fn open_from(&self) -> u64 {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.last().map_or(1, |segment| segment.header.first)
    }

    fn first_path(&self) -> PathBuf {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .first()
            .map_or_else(PathBuf::new, |segment| segment.path.clone())
    }
}

pub(super) fn missing(file: &Path, seq: u64, why: &str) -> LogError {
    LogError::Corrupt {
        seq: Seq(seq),
        file: file.into(),
        offset: 0,
        why: why.into(),
    }
}
