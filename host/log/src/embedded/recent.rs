//! The latest durable entries, in memory, so that who keeps up reads no file.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use crate::{Seq, limits};

pub(super) struct Recent {
    kept: Mutex<Kept>,
    bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    first: u64,
    entries: VecDeque<Bytes>,
    bytes: usize,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Recent {
            kept: Mutex::default(),
            bytes_max,
        }
    }

    /// Adds durable entries that follow on the last ones.
    pub(super) fn push(&self, first: Seq, entries: &[Bytes]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.entries.is_empty() {
            kept.first = first.0;
        }
        for entry in entries {
            kept.bytes += cost(entry);
            kept.entries.push_back(entry.clone());
        }
        while kept.bytes > self.bytes_max {
            let Some(oldest) = kept.entries.pop_front() else {
                break;
            };
            kept.bytes -= cost(&oldest);
            kept.first += 1;
        }
    }

    /// These read as empty from now on.
    pub(super) fn purge(&self, places: &[u64]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            let at = place.checked_sub(kept.first);
            let at = at.and_then(|at| usize::try_from(at).ok());
            let entry = at.and_then(|at| kept.entries.get_mut(at));
            if let Some(bytes) = entry.map(|entry| std::mem::take(entry).len()) {
                kept.bytes -= bytes;
            }
        }
    }

    /// As [`Log::read`](crate::Log::read), if `from` is among them.
    pub(super) fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> Option<Vec<(Seq, Bytes)>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from(from.0.checked_sub(kept.first)?).ok()?;
        if skip >= kept.entries.len() {
            return None;
        }
        let mut left = bytes_max.min(limits::READ_BYTES_MAX);
        let mut out = Vec::new();
        for (seq, entry) in (from.0..).zip(kept.entries.range(skip..)) {
            if out.len() >= entries.min(limits::READ_ENTRIES_MAX)
                || (entry.len() > left && !out.is_empty())
            {
                break;
            }
            left = left.saturating_sub(entry.len());
            out.push((Seq(seq), entry.clone()));
        }
        Some(out)
    }
}

fn cost(entry: &Bytes) -> usize {
    entry.len() + limits::QUEUE_ENTRY_BYTES
}
