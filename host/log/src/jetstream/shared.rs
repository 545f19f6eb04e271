//! What the log's parts know in common: how far it is, how full the stream is, and whether it is still the same log.
//!
//! Promise: what this process has seen stays so. A stream that ends before it, or has something else in its place, is
//! diverged from then on: nothing is appended, tails end with the reason.
//! Failure: a replica may be behind for a while; only where that can't be, or lasts, the log is taken to be diverged.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::Client;
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::{
    ConnectionState,
    api::{self, ApiError, StreamInfo},
    options::JetStreamOptions,
    queue::Queue,
};
use crate::{LogError, Missing, Seq, limits};

pub(super) struct Shared {
    pub(super) options: JetStreamOptions,
    pub(super) place: String,
    pub(super) entry_bytes_max: usize,
    pub(super) queue: Queue,
    /// For all but publishing. It connects again by itself.
    pub(super) reader: Client,
    pub(super) links: std::sync::Arc<Links>,
    pub(super) budget: Budget,
    /// Set once nothing is being appended any more, which is after the last answer.
    pub(super) closed: watch::Sender<bool>,
    end: AtomicU64,
    /// The last entry that was seen, and its place.
    tip: Mutex<(Seq, Bytes)>,
    created: String,
    behind_since: Mutex<Option<Instant>>,
    missing: Mutex<Missing>,
    /// Places in a row that have nothing any more, and the one behind them: those that were met last.
    hole: Mutex<(Seq, Seq)>,
    /// The login may publish under the host's one subject only.
    pub(super) has_no_lanes: AtomicBool,
    diverged: OnceLock<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        options: JetStreamOptions,
        reader: Client,
        links: std::sync::Arc<Links>,
        info: &StreamInfo,
        entry_bytes_max: usize,
    ) -> Self {
        let budget = Budget::new(info, options.reserve_bytes);
        Shared {
            place: options.place(),
            options,
            entry_bytes_max,
            queue: Queue::new(),
            reader,
            links,
            budget,
            closed: watch::channel(false).0,
            end: AtomicU64::new(info.state.last_seq),
            tip: Mutex::default(),
            created: info.created.clone(),
            behind_since: Mutex::default(),
            missing: Mutex::new(missing_in(info)),
            hole: Mutex::default(),
            has_no_lanes: AtomicBool::new(false),
            diverged: OnceLock::new(),
        }
    }

    pub(super) fn end(&self) -> Seq {
        Seq(self.end.load(Ordering::Acquire))
    }

    /// Some entry is known to stand there.
    pub(super) fn saw_end(&self, seq: Seq) {
        self.end.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// This entry is known to stand there.
    pub(super) fn saw(&self, seq: Seq, bytes: &Bytes) {
        self.end.fetch_max(seq.0, Ordering::AcqRel);
        let mut tip = lock(&self.tip);
        if seq > tip.0 {
            *tip = (seq, bytes.clone());
        }
    }

    /// Ends all appending and tailing, for good.
    pub(super) fn diverge(&self, why: impl Into<String>) -> LogError {
        let why = self.diverged.get_or_init(|| why.into()).clone();
        tracing::error!(log = %self.place, "the log has diverged: {why}");
        self.links.diverge(&why);
        self.queue.close();
        self.diverged_error(why)
    }

    pub(super) fn check_diverged(&self) -> Result<(), LogError> {
        match self.diverged.get() {
            None => Ok(()),
            Some(why) => Err(self.diverged_error(why.clone())),
        }
    }

    fn diverged_error(&self, why: String) -> LogError {
        LogError::Diverged {
            place: self.place.clone(),
            why,
            mend: "stop the host; restore the stream from a copy that has what it had".into(),
        }
    }

    /// Whether the stream still has what was seen of it; learns its end and its size on the way.
    ///
    /// # Errors
    /// [`LogError::Diverged`]; [`LogError::Unavailable`]: it can't be told now.
    pub(super) async fn verify(&self, client: &Client) -> Result<StreamInfo, LogError> {
        self.check_diverged()?;
        let (end, acked) = (self.end(), self.budget.acked());
        let (tip, expected) = lock(&self.tip).clone();
        let info = api::stream_info(client, &self.options.stream).await;
        let info = info.map_err(|error| match error {
            ApiError::Refused { err_code, .. } if err_code == api::code::STREAM_NOT_FOUND => {
                self.diverge("the stream is gone")
            }
            error => self.unavailable(&error),
        })?;
        let last = Seq(info.state.last_seq);
        if info.created != self.created {
            return Err(self.diverge("the stream was made anew"));
        }
        if last < end {
            let since = *lock(&self.behind_since).get_or_insert_with(Instant::now);
            let patience = Duration::from_millis(limits::BEHIND_PATIENCE_MS);
            if !info.is_replicated() || since.elapsed() >= patience {
                let why = format!("it ends at {last}, and {end} was seen");
                return Err(self.diverge(why));
            }
            return Err(self.unavailable(&format!("it is at {last} of {end}")));
        }
        *lock(&self.behind_since) = None;
        // What is taken out of a lane is for whoever knows the lanes to judge. The first place is in none.
        let (left, first) = (info.state.messages, info.state.first_seq);
        if last > Seq(0) && (left == 0 || first != 1) {
            return Err(self.diverge(format!(
                "entries were deleted: {left} of {last} are left, the first at {first}"
            )));
        }
        *lock(&self.missing) = missing_in(&info);
        if tip > Seq(0) {
            let stream = &self.options.stream;
            let stored = api::get_batch(client, stream, tip, 1, limits::READ_BYTES_MAX).await;
            let stored = stored.map_err(|error| self.unavailable(&error))?;
            if let Some(stored) = stored.first()
                && stored.seq == tip
                && stored.bytes != expected
            {
                return Err(self.diverge(format!("entry {tip} is not the one that was seen")));
            }
        }
        self.end.fetch_max(last.0, Ordering::AcqRel);
        self.budget.refresh(info.state.bytes, acked);
        Ok(info)
    }

    /// How much was taken out of the stream.
    pub(super) fn missing(&self) -> Missing {
        *lock(&self.missing)
    }

    /// Nothing stands at `from` and from there on, before `until`.
    pub(super) fn saw_hole(&self, from: Seq, until: Seq) {
        *lock(&self.hole) = (from, until);
    }

    /// The first place behind this one that has something, where this one is known to have nothing.
    pub(super) fn hole_at(&self, seq: Seq) -> Option<Seq> {
        let (from, until) = *lock(&self.hole);
        (from <= seq && seq < until).then_some(until)
    }

    pub(super) fn unavailable(&self, why: &dyn ToString) -> LogError {
        LogError::Unavailable {
            place: self.place.clone(),
            why: why.to_string(),
            mend: "see that the server runs and can be reached; what waits goes on by itself"
                .into(),
        }
    }

    pub(super) fn unknown(&self, why: &dyn ToString) -> LogError {
        LogError::Unknown {
            place: self.place.clone(),
            why: why.to_string(),
            mend: "look whether it stands in the log, or append it again under the same id".into(),
        }
    }
}

fn missing_in(info: &StreamInfo) -> Missing {
    Missing {
        end: Seq(info.state.last_seq),
        count: info.state.last_seq.saturating_sub(info.state.messages),
    }
}

/// How much of the stream's room is taken, from its own account and from what was sent since.
pub(super) struct Budget {
    ordinary_bytes_max: u64,
    /// The stream's account, less what was acknowledged when it was asked for. May be below zero, so it wraps.
    base: AtomicU64,
    /// All that was ever sent, less what was refused.
    sent: AtomicU64,
    /// All that was ever acknowledged.
    acked: AtomicU64,
    /// Told when the stream's account should be asked for.
    pub(super) stale: Notify,
    asked_at_sent: AtomicU64,
}

impl Budget {
    fn new(info: &StreamInfo, reserve_bytes: u64) -> Self {
        let bytes_max = info.config["max_bytes"].as_u64().unwrap_or(0);
        Budget {
            ordinary_bytes_max: bytes_max.saturating_sub(reserve_bytes),
            base: AtomicU64::new(info.state.bytes),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            stale: Notify::new(),
            asked_at_sent: AtomicU64::new(0),
        }
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// `acked`: what was acknowledged before the stream was asked, and so is contained in `bytes`.
    fn refresh(&self, bytes: u64, acked: u64) {
        self.base
            .store(bytes.wrapping_sub(acked), Ordering::Release);
        self.asked_at_sent
            .store(self.sent.load(Ordering::Acquire), Ordering::Release);
    }

    fn used(&self) -> u64 {
        let sent = self.sent.load(Ordering::Acquire);
        self.base.load(Ordering::Acquire).wrapping_add(sent)
    }

    /// Why an ordinary entry of this size has no room, if so.
    pub(super) fn refuses(&self, bytes: u64) -> Option<String> {
        let used = self.used();
        if used.saturating_add(bytes) <= self.ordinary_bytes_max {
            return None;
        }
        self.stale.notify_one();
        let most = self.ordinary_bytes_max;
        Some(format!(
            "the stream holds {used} bytes of the {most} that ordinary entries may fill"
        ))
    }

    pub(super) fn sent(&self, bytes: u64) {
        let sent = self.sent.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if sent.wrapping_sub(self.asked_at_sent.load(Ordering::Acquire))
            > limits::ASK_SIZE_EVERY_BYTES
        {
            self.asked_at_sent.store(sent, Ordering::Release);
            self.stale.notify_one();
        }
    }

    pub(super) fn was_acked(&self, bytes: u64) {
        self.acked.fetch_add(bytes, Ordering::AcqRel);
    }

    /// It does not count: refused, or kept before.
    pub(super) fn was_not_kept(&self, bytes: u64) {
        self.sent.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Whether the log's two connections stand.
pub(super) struct Links {
    state: watch::Sender<ConnectionState>,
    /// Counts the reader's connections.
    pub(super) readers: watch::Sender<u64>,
    up: Mutex<Up>,
}

#[derive(Clone, Copy)]
struct Up {
    reader: bool,
    publisher: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Link {
    Reader,
    Publisher,
}

impl Links {
    pub(super) fn new() -> Self {
        Links {
            state: watch::channel(ConnectionState::Reconnecting {
                since: Instant::now(),
            })
            .0,
            readers: watch::channel(0).0,
            up: Mutex::new(Up {
                reader: false,
                publisher: false,
            }),
        }
    }

    pub(super) fn set(&self, link: Link, is_up: bool) {
        let mut up = lock(&self.up);
        match link {
            Link::Reader => up.reader = is_up,
            Link::Publisher => up.publisher = is_up,
        }
        if matches!(link, Link::Reader) && is_up {
            self.readers.send_modify(|count| *count += 1);
        }
        let all = up.reader && up.publisher;
        self.state.send_if_modified(|state| match (&*state, all) {
            (ConnectionState::Reconnecting { .. }, true) => {
                *state = ConnectionState::Connected;
                true
            }
            (ConnectionState::Connected, false) => {
                let since = Instant::now();
                *state = ConnectionState::Reconnecting { since };
                true
            }
            _ => false,
        });
    }

    fn diverge(&self, why: &str) {
        self.state.send_if_modified(|state| {
            let first = !matches!(
                state,
                ConnectionState::Diverged { .. } | ConnectionState::Closed
            );
            if first {
                *state = ConnectionState::Diverged { why: why.into() };
            }
            first
        });
    }

    pub(super) fn close(&self) {
        self.state.send_if_modified(|state| {
            let first = !matches!(
                state,
                ConnectionState::Diverged { .. } | ConnectionState::Closed
            );
            if first {
                *state = ConnectionState::Closed;
            }
            first
        });
    }

    pub(super) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }
}
