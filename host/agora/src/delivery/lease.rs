//! The lease: how long this host may act without hearing from the log.
//!
//! In: when this host's own entries were handed to the log, and that they came back through its tail. Out: whether it is *fresh*, or has
//! *lapsed*, and when its next marker is due.
//! Promise: whatever stood in the log at a time has been seen by a host that is fresh one lease later. For an entry that came back stands
//! behind all that stood in the log when it was handed over, and the tail is in order; so a fence that is not seen was not in the log yet
//! then. A host that hears nothing back has lapsed one lease after it handed over the last entry that came back, at the latest.
//! Failure: none. It has no clock, no entries and no threads; times are given, since any one moment, and never go back.

use std::time::Duration;

/// Whether a host may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It has seen what the log held less than one lease ago.
    Fresh {
        /// When that ends, unless more comes back.
        until: Duration,
    },
    /// It has not, and admits nothing.
    Lapsed {
        /// Since when; none: nothing has come back yet.
        since: Option<Duration>,
    },
}

/// One host's lease.
#[derive(Debug, Clone)]
pub struct Lease {
    length: Duration,
    /// When the newest own entry was handed over that came back.
    proven: Option<Duration>,
    /// When the newest own entry was handed over.
    sent: Option<Duration>,
}

impl Lease {
    /// One so long, of a host that has heard nothing yet.
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            proven: None,
            sent: None,
        }
    }

    /// How long it is.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// An entry of this host's is handed to the log at this time: for the first time, and not before it was signed.
    pub fn sent(&mut self, at: Duration) {
        self.sent = self.sent.max(Some(at));
    }

    /// An entry that was handed over at that time has come back through the tail, and all before it was taken note of.
    pub fn seen(&mut self, sent: Duration) {
        self.proven = self.proven.max(Some(sent));
    }

    /// Until when the host is fresh, or was; none: nothing has come back yet.
    pub fn fresh_until(&self) -> Option<Duration> {
        Some(self.proven?.saturating_add(self.length))
    }

    /// Whether the host may act now.
    pub fn state(&self, now: Duration) -> Freshness {
        match self.fresh_until() {
            Some(until) if now < until => Freshness::Fresh { until },
            since => Freshness::Lapsed { since },
        }
    }

    /// When a marker is due, if nothing else is handed over before: a quarter of the lease after the last entry.
    pub fn marker_due(&self) -> Duration {
        match self.sent {
            Some(sent) => sent.saturating_add(self.length / 4),
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_host_that_has_heard_nothing_has_lapsed() {
        let mut lease = Lease::new(LEASE);
        assert_eq!(lease.state(ms(0)), Freshness::Lapsed { since: None });
        lease.sent(ms(10));
        assert_eq!(lease.state(ms(11)), Freshness::Lapsed { since: None });
    }

    #[test]
    fn what_comes_back_counts_from_when_it_was_handed_over() {
        let mut lease = Lease::new(LEASE);
        lease.sent(ms(100));
        // However late it is seen.
        lease.seen(ms(100));
        let until = ms(2100);
        assert_eq!(lease.state(ms(2099)), Freshness::Fresh { until });
        let since = Some(until);
        assert_eq!(lease.state(ms(2100)), Freshness::Lapsed { since });
    }

    #[test]
    fn an_older_entry_that_comes_back_later_takes_nothing_away() {
        let mut lease = Lease::new(LEASE);
        lease.seen(ms(500));
        lease.seen(ms(100));
        assert_eq!(lease.fresh_until(), Some(ms(2500)));
    }

    #[test]
    fn a_marker_is_due_at_once_and_then_a_quarter_after_the_last_entry() {
        let mut lease = Lease::new(LEASE);
        assert_eq!(lease.marker_due(), ms(0));
        lease.sent(ms(300));
        assert_eq!(lease.marker_due(), ms(800));
        lease.sent(ms(700));
        assert_eq!(lease.marker_due(), ms(1200));
    }

    proptest! {
        /// A host hands over entries; the log orders them with others' fences; they come back in order, after any delay, and from some
        /// moment on not at all. Whenever the host is fresh, it has seen every fence that stood a lease ago.
        #[test]
        fn a_fresh_host_has_seen_every_fence_older_than_the_lease(
            steps in prop::collection::vec((0_u64..700, 0_u64..400, 0_u64..3000, prop::bool::ANY), 1..60),
            cut in 0_usize..60,
        ) {
            // (when it stands in the log, when it is seen here, when it was handed over if it is an own one)
            let (mut log, mut now, mut stood, mut seen) = (Vec::new(), 0, 0, 0);
            for (at, (pause, ordering, delay, own)) in steps.into_iter().enumerate() {
                now += pause;
                stood = stood.max(now + ordering);
                // In order: nothing is seen before what stands before it.
                seen = if at < cut { seen.max(stood + delay) } else { u64::MAX };
                log.push((stood, seen, own.then_some(now)));
            }
            let mut lease = Lease::new(LEASE);
            let mut moments: Vec<u64> = log.iter().flat_map(|(stood, seen, _)| {
                [*stood, stood + 2000, stood + 2001, *seen, seen.saturating_add(1999)]
            }).filter(|moment| *moment < u64::MAX / 2).collect();
            moments.sort_unstable();
            for now in moments {
                for (_, _, sent) in log.iter().filter(|(_, seen, _)| *seen <= now) {
                    if let Some(sent) = sent {
                        lease.seen(ms(*sent));
                    }
                }
                if let Freshness::Fresh { .. } = lease.state(ms(now)) {
                    for (stood, seen, sent) in &log {
                        let is_old_fence = sent.is_none() && stood + 2000 <= now;
                        prop_assert!(!is_old_fence || *seen <= now, "a fence of {stood} is unseen at {now}");
                    }
                }
            }
        }
    }
}
