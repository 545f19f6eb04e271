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

/// Largest place of an export, bytes: more than any entry, or what is kept in its stead.
pub const EXPORT_FRAME_BYTES_MAX: usize = ENTRY_BYTES_LIMIT as usize + 4096;

/// Size that a new stream is limited to by default, bytes; its servers set that much aside.
pub const STREAM_BYTES_MAX: u64 = 4 << 30;
/// Room below a stream's limit that only control entries may use by default, bytes. Covers what all hosts together send
/// between two looks at the stream's size.
pub const STREAM_RESERVE_BYTES: u64 = 64 << 20;
/// Largest entry that a stream can be asked to take, bytes; a server's own bound is 1 MiB unless it is told otherwise.
pub const STREAM_ENTRY_BYTES_LIMIT: usize = 8 << 20;
/// What a message counts for, to a server, besides its entry and its subject: headers and framing, bytes. At most.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// Ordinary entries that wait to be sent, or for their acknowledgement, before writers wait; bytes. More than any window.
pub const ORDINARY_QUEUE_BYTES: usize = 16 << 20;
/// The same of control entries.
pub const CONTROL_QUEUE_BYTES: usize = 16 << 20;
/// Ordinary entries that may be sent and not yet acknowledged. A control entry waits behind these at most.
pub const WINDOW_ENTRIES: usize = 512;
/// The same in bytes, except for a single entry larger than that.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Control entries that may be sent and not yet acknowledged.
pub const WINDOW_CONTROL_ENTRIES: usize = 256;
/// The same in bytes, except for a single entry larger than that.
pub const WINDOW_CONTROL_BYTES: usize = 4 << 20;
/// How long a connection may take to be made, in milliseconds.
pub const CONNECT_PATIENCE_MS: u64 = 3_000;
/// How long the server may take for a request, in milliseconds.
pub const REQUEST_PATIENCE_MS: u64 = 1_500;
/// How long opening waits for a cluster that has no leader yet, in milliseconds: electing one takes seconds.
pub const LEADER_PATIENCE_MS: u64 = 15_000;
/// The pause before it is asked again, in milliseconds.
pub const LEADER_AGAIN_MS: u64 = 200;
/// How often a quiet connection is tried, in milliseconds; it is lost after a few tries without an answer.
pub const PING_EVERY_MS: u64 = 2_000;
/// How long an acknowledgement may be overdue, while none comes or later ones do, before the connection is thrown away;
/// in milliseconds.
pub const ACK_PATIENCE_MS: u64 = 3_000;
/// How long an entry waits to be sent by default while none is acknowledged, in milliseconds.
pub const WAITING_PATIENCE_MS: u64 = 5_000;
/// How long a sent entry's acknowledgement is sought by default, in milliseconds; several times `ACK_PATIENCE_MS`.
pub const SENT_PATIENCE_MS: u64 = 30_000;
/// How long a stream must know an entry's id, in milliseconds; an entry is sent again for half as long at most.
pub const DUPLICATE_WINDOW_MS: u64 = 120_000;
/// How often entries are looked over that wait too long, in milliseconds.
pub const EXPIRE_EVERY_MS: u64 = 100;
/// The shortest pause before a connection is made again, in milliseconds; doubled with each failure.
pub const RECONNECT_PAUSE_MS: u64 = 20;
/// The longest.
pub const RECONNECT_PAUSE_MS_MAX: u64 = 2_000;
/// How often the stream is asked for its end and size, in milliseconds.
pub const INFO_EVERY_MS: u64 = 1_000;
/// The pause after that, however urgent the next is; in milliseconds.
pub const INFO_PAUSE_MS: u64 = 50;
/// The stream is asked for its size after so many bytes were sent, too; well below the reserve.
pub const ASK_SIZE_EVERY_BYTES: u64 = 8 << 20;
/// How long a replicated stream may end before what was seen until it is taken to be diverged, in milliseconds: longer
/// than a leader that was cut off from the others goes on answering.
pub const BEHIND_PATIENCE_MS: u64 = 15_000;
/// Requests of a tail that the server holds at once. What they ask for together is what a tail reads ahead.
pub const TAIL_REQUESTS: usize = 2;
/// Entries that one asks for.
pub const TAIL_REQUEST_ENTRIES: usize = 512;
/// Bytes that one asks for, as the server counts them; a single entry larger than that is asked for by itself.
pub const TAIL_REQUEST_BYTES: usize = 512 << 10;
/// How long the server holds such a request, in milliseconds; several heartbeats.
pub const TAIL_REQUEST_MS: u64 = 30_000;
/// How often a tail reads directly while the servers make no consumer for it, in milliseconds.
pub const DIRECT_EVERY_MS: u64 = 100;
/// How often the server says that it has nothing for a tail, in milliseconds. A tail whose server is gone notices after
/// two and a half of these.
pub const HEARTBEAT_MS: u64 = 500;
/// How long the server keeps a tail's place that is not asked for; it is made again if needed. In milliseconds.
pub const CONSUMER_UNUSED_MS: u64 = 60_000;
/// How often a missing entry is fetched again before the stream's leader is asked whether it has it.
pub const GAP_TRIES: u32 = 3;
/// The same when reading, which may meet replicas that are behind.
pub const READ_TRIES: u32 = 7;
/// How long a tail of a closed log tries in vain to give the rest, in milliseconds.
pub const TAIL_CLOSED_PATIENCE_MS: u64 = 5_000;

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
