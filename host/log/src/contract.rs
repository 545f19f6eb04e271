//! What any log promises.
//!
//! In: opaque entries from any number of writers.
//! Promise: one total order, dense from 1; an entry is answered, read and tailed only once it is durable, and is then
//! never lost, moved or doubled.
//! Failure: an error says whether the entry may still turn up ([`LogError::is_outcome_known`]).

use std::fmt;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::LogError;

/// A place in the log: 1-based and dense. `Seq(0)` is the place before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The place of the first entry.
    pub const FIRST: Seq = Seq(1);

    /// The place after this one.
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A part of a log. Places are the whole log's; a log on servers can also be read by lane, and let go of a lane's older entries.
/// What belongs in which is the caller's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lane {
    /// What belongs in none.
    #[default]
    Main,
    /// The lane of this name.
    Of([u8; 8]),
}

/// How much of a log was taken out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Where the log ended then.
    pub end: Seq,
    /// How many of the places up to there have nothing any more.
    pub count: u64,
}

/// Which entries go first, and which may use the reserved room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Stops while there is still room for control entries.
    Ordinary,
    /// Fences, kills and revocations: overtakes waiting ordinary entries, never waits for their queue, and may use the
    /// room that is kept back from them.
    Control,
}

/// What a receipt may claim of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// On stable storage before it was acknowledged, as far as the operating system can tell.
    Fsync,
    /// Acknowledged by a broker whose sync setting can't be seen from here.
    Acknowledged,
    /// Acknowledged by a broker of which the operator asserts that it syncs first.
    Asserted,
}

/// An entry's place, and what its receipt may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Appended {
    /// Where the entry stands.
    pub seq: Seq,
    /// How safe it is there.
    pub durability: Durability,
}

/// One totally ordered log of opaque entries.
pub trait Log: Send + Sync + 'static {
    /// Appends one entry; resolves once it is durable. `id` is the entry's 32-byte hash: a log that can, keeps an entry
    /// sent again under the same id once.
    ///
    /// The entry is on its way when this returns if the queue has room for it, otherwise once the future was polled and
    /// got room (waiting is the backpressure). Dropping the future after that does not undo the append. Entries of one
    /// class stand in the order in which they got room; control entries overtake.
    ///
    /// # Errors
    /// [`LogError::TooLarge`]; [`LogError::Unavailable`] and [`LogError::Closed`]: the entry is not in the log and
    /// never will be, and so with [`LogError::Diverged`]; [`LogError::Unknown`]: it may turn up later.
    fn append(
        &self,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>>;

    /// The same, in a lane. A log that has none takes it as any other.
    ///
    /// # Errors
    /// The same.
    fn append_in(
        &self,
        lane: Lane,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let _ = lane;
        self.append(id, bytes, class)
    }

    /// The durable entries from `from` on, in order, at most `entries` of them and `bytes_max` bytes, but at least one
    /// if there is one (and `entries` is not 0). Both are cut to [`limits`](crate::limits). `Seq(0)` reads as `Seq(1)`.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] or [`LogError::Diverged`] if the entry at `from` can't be read; entries before such a one
    /// are returned first. [`LogError::Unavailable`]: not now.
    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>>;

    /// Every entry from `from` on, in order: catches up, then follows. Never a gap, never a repeat, nothing that is not
    /// durable. Holds at most one read ahead, and a slow reader delays only itself. Ends when the log is closed and
    /// all is read, or after the first error.
    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>>;

    /// What a lane has from `from` on, in order, within bounds as [`Log::read`] has them. Where anything is given, nothing that stands in
    /// the lane before it is left out; less than all may be given. A log without lanes has nothing in any.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]: not now.
    fn read_lane(
        &self,
        lane: Lane,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let _ = (lane, from, entries, bytes_max);
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Takes all that a lane has up to a place out of the log: it reads as empty from then on. Nothing of it can be had again, so
    /// whoever asks has seen each of them.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]: this log can't, or not now. Some, or all, may have gone.
    fn purge_lane(&self, lane: Lane, through: Seq) -> BoxFuture<'static, Result<(), LogError>> {
        let _ = (lane, through);
        Box::pin(std::future::ready(Err(cannot_purge())))
    }

    /// How much was taken out of the log, where that is known: at most a second ago.
    fn missing(&self) -> Missing {
        Missing::default()
    }

    /// Takes the entries at these places out of the log: each reads as empty from then on. Answers how many bytes of them went.
    /// After a crash midway some may have gone; purging the same again does the rest.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]: this log can't, or not now.
    fn purge(&self, places: Vec<Seq>) -> BoxFuture<'static, Result<u64, LogError>> {
        let _ = places;
        Box::pin(std::future::ready(Err(cannot_purge())))
    }

    /// Whether an entry that reads as empty was purged, rather than appended so.
    ///
    /// # Errors
    /// It can't be told now.
    fn is_purged(&self, seq: Seq) -> BoxFuture<'static, Result<bool, LogError>> {
        let _ = seq;
        Box::pin(std::future::ready(Ok(false)))
    }

    /// The last durable entry; `Seq(0)` when the log is empty.
    fn end(&self) -> Seq;

    /// What this log's acknowledgement means: what a receipt may claim of an entry that is known to stand in it.
    fn durability(&self) -> Durability;

    /// Takes no more entries, waits until those taken are answered, and lets go of what the log holds (the folder and
    /// its lock, the connection). Closing twice is fine; reads may fail with [`LogError::Closed`] from then on.
    ///
    /// # Errors
    /// What kept the log from ending cleanly. Entries already answered are safe in any case.
    fn close(&self) -> BoxFuture<'static, Result<(), LogError>>;
}

fn cannot_purge() -> LogError {
    LogError::Unavailable {
        place: "here".into(),
        why: "entries can't be taken out of it so".into(),
        mend: "an embedded log goes by places, one on servers by lanes".into(),
    }
}
