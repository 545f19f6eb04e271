//! Whether this host hears the log: its [lease](super::lease) by the clock.
//!
//! In: from the record, when own entries are handed to the log and that they came back. Out: for the gate, before each call, whether the
//! host is fresh; for who keeps the lease, when a marker is due.
//! Promise: asking is a load where no lease is needed, and a load and a look at the clock where one is. What the answer says was true
//! when it was asked for, whichever thread has had its turn or not, also in a process that was stopped for a while.
//! Failure: none. A host that needs a lease and has heard nothing is not fresh.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::lease::{Freshness, Lease};

/// No lease is needed.
const ALWAYS: u64 = u64::MAX;

/// Whether this host hears the log. Shared by all of a host.
pub struct Hearing {
    kept: Mutex<Kept>,
    /// Until when the host is fresh, in nanoseconds of the monotonic clock.
    until: AtomicU64,
    /// Told when a lease is needed, or no more.
    needed: watch::Sender<bool>,
}

struct Kept {
    lease: Lease,
    is_needed: bool,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).map_or(ALWAYS - 1, |nanos| nanos.min(ALWAYS - 1))
}

impl Hearing {
    /// Of a host that needs no lease yet, which will be so long.
    pub fn new(length: Duration) -> Self {
        Self {
            kept: Mutex::new(Kept {
                lease: Lease::new(length),
                is_needed: false,
            }),
            until: AtomicU64::new(ALWAYS),
            needed: watch::channel(false).0,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, kept: &Kept) {
        let until = match (kept.is_needed, kept.lease.fresh_until()) {
            (false, _) => ALWAYS,
            (true, None) => 0,
            (true, Some(until)) => nanos(until),
        };
        self.until.store(until, Ordering::Release);
    }

    /// Other hosts share the log, so this one needs its lease; or no more.
    pub fn need(&self, is_needed: bool) {
        let mut kept = self.kept();
        kept.is_needed = is_needed;
        self.publish(&kept);
        drop(kept);
        self.needed.send_if_modified(|needed| {
            let changes = *needed != is_needed;
            *needed = is_needed;
            changes
        });
    }

    /// Whether it needs one.
    pub fn needed(&self) -> watch::Receiver<bool> {
        self.needed.subscribe()
    }

    /// Whether it needs one now.
    pub fn is_needed(&self) -> bool {
        *self.needed.borrow()
    }

    /// How long the lease is.
    pub fn length(&self) -> Duration {
        self.kept().lease.length()
    }

    /// An own entry is about to be handed to the log, for the first time. Answers when that was.
    pub fn sent(&self) -> Duration {
        let mut kept = self.kept();
        let now = crate::monotonic();
        kept.lease.sent(now);
        now
    }

    /// What was handed over then has come back and was judged.
    pub fn seen(&self, sent: Duration) {
        let mut kept = self.kept();
        kept.lease.seen(sent);
        self.publish(&kept);
    }

    /// Whether the host may act.
    pub fn is_fresh(&self) -> bool {
        match self.until.load(Ordering::Acquire) {
            ALWAYS => true,
            until => nanos(crate::monotonic()) < until,
        }
    }

    /// The same, with until when or since when; as if a lease were needed.
    pub fn state(&self) -> Freshness {
        self.kept().lease.state(crate::monotonic())
    }

    /// How long until a marker is due.
    pub fn marker_due(&self) -> Duration {
        let due = self.kept().lease.marker_due();
        due.saturating_sub(crate::monotonic())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_need_a_host_is_fresh_and_with_it_only_after_hearing_itself() {
        let hearing = Hearing::new(Duration::from_secs(3600));
        assert!(hearing.is_fresh());
        hearing.need(true);
        assert!(!hearing.is_fresh());
        let sent = hearing.sent();
        assert!(!hearing.is_fresh());
        hearing.seen(sent);
        assert!(hearing.is_fresh());
        assert!(hearing.marker_due() > Duration::from_secs(60));
        hearing.need(false);
        assert!(hearing.is_fresh());
    }

    #[test]
    fn a_lease_that_is_over_ends_by_itself() {
        let hearing = Hearing::new(Duration::ZERO);
        hearing.need(true);
        hearing.seen(hearing.sent());
        assert!(!hearing.is_fresh());
        assert!(matches!(
            hearing.state(),
            Freshness::Lapsed { since: Some(_) }
        ));
    }
}
