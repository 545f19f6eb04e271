//! Every bound of the log, beside the relations they must keep.

use crate::{
    LogError,
    embedded::format::{ENTRY_BYTES_LIMIT, SEGMENT_BYTES_LIMIT},
};

/// Largest entry by default, bytes.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Most entries that one read returns.
pub const READ_ENTRIES_MAX: usize = 4096;
/// Most bytes that one read returns, except for a single entry larger than that.
pub const READ_BYTES_MAX: usize = 4 << 20;
/// Entries that a tail reads ahead.
pub const TAIL_AHEAD_ENTRIES: usize = 512;
/// Bytes that a tail reads ahead, except for a single entry larger than that.
pub const TAIL_AHEAD_BYTES: usize = 512 << 10;
/// What an entry counts for in a queue besides its own bytes; bounds how many small ones wait.
pub const QUEUE_ENTRY_BYTES: usize = 512;
/// Reads that may wait for a reading thread before callers wait.
pub const READS_WAITING_MAX: usize = 64;
/// Threads that read behind the recent entries.
pub const READERS: usize = 2;
/// How often the log tries, when idle, to make up a missing reserve.
pub const RESERVE_RETRY_MS: u64 = 250;
/// How long another holder of the folder's lock is waited for before it is refused, in milliseconds.
pub const LOCK_PATIENCE_MS: u64 = 400;

/// The embedded log's settings. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Largest entry.
    pub entry_bytes_max: usize,
    /// Size of a segment file, which is allocated whole before it is written; at least
    /// `reserve_bytes` + `batch_bytes` + `entry_bytes_max`, with room to spare.
    pub segment_bytes: u64,
    /// Room that only control entries may use; at least one entry.
    pub reserve_bytes: u64,
    /// Ordinary entries that may wait before writers do; at least one entry.
    pub queue_bytes: usize,
    /// Control entries that may wait before their writers do; at least one entry.
    pub control_queue_bytes: usize,
    /// What one sync covers at most, and so what a control entry waits for at most. A larger entry goes alone.
    pub batch_bytes: usize,
    /// Latest entries kept in memory, so that who keeps up reads no file.
    pub recent_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            entry_bytes_max: ENTRY_BYTES_MAX,
            segment_bytes: 16 << 20,
            reserve_bytes: 4 << 20,
            queue_bytes: 16 << 20,
            control_queue_bytes: 4 << 20,
            batch_bytes: 1 << 20,
            recent_bytes: 4 << 20,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), LogError> {
        let entry = self.entry_bytes_max as u64 + 4096;
        let relations = [
            (
                self.entry_bytes_max >= 1 && self.entry_bytes_max as u64 <= ENTRY_BYTES_LIMIT,
                "entry_bytes_max must be from 1 byte to 64 MiB",
            ),
            (
                self.segment_bytes <= SEGMENT_BYTES_LIMIT,
                "segment_bytes must be at most 1 GiB",
            ),
            (
                self.reserve_bytes >= entry,
                "reserve_bytes must hold one entry and 4 KiB",
            ),
            (
                self.segment_bytes
                    >= self
                        .reserve_bytes
                        .saturating_add(self.batch_bytes as u64)
                        .saturating_add(entry),
                "segment_bytes must hold reserve_bytes, batch_bytes, one entry and 4 KiB",
            ),
            (
                self.queue_bytes as u64 >= entry && self.control_queue_bytes as u64 >= entry,
                "queue_bytes and control_queue_bytes must each hold one entry and 4 KiB",
            ),
            (
                self.queue_bytes <= 1 << 30 && self.control_queue_bytes <= 1 << 30,
                "queue_bytes and control_queue_bytes must be at most 1 GiB",
            ),
            (self.batch_bytes >= 1, "batch_bytes must not be 0"),
        ];
        match relations.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, why)) => Err(LogError::Options { why: why.into() }),
        }
    }
}
