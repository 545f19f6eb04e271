//! The gate: which epoch is open.
//!
//! Promise: closing it is one store, seen by every wall on every thread at its next call; that is the kill's first act, and it waits for
//! nothing. It opens again only when every fence that closed it is in the log, and this host hears the log.
//! Failure: a host that doesn't hear the log is refused by the clock, before anybody got round to closing anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agora_realm::Epoch;
use tokio::sync::watch;

use crate::delivery::hearing::Hearing;

/// What the gate shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The epoch that is open, or the last that was.
    pub epoch: Epoch,
    /// No fence is pending, and the log is heard.
    pub open: bool,
    /// How many fences are.
    fences: usize,
    /// The log is not heard.
    pub lapsed: bool,
    /// Nothing is granted until the next fence.
    pub held: bool,
}

/// The gate of a host.
pub struct Gate {
    /// The open epoch; 0 while none is.
    open: AtomicU64,
    hearing: Arc<Hearing>,
    shown: watch::Sender<Shown>,
    /// Why it never opens again.
    shut: OnceLock<String>,
}

impl Gate {
    /// A gate that shows this.
    pub fn new(epoch: Epoch, held: bool, hearing: Arc<Hearing>) -> Self {
        Self {
            open: AtomicU64::new(epoch.0),
            hearing,
            shown: watch::channel(Shown {
                epoch,
                open: true,
                fences: 0,
                lapsed: false,
                held,
            })
            .0,
            shut: OnceLock::new(),
        }
    }

    /// Whether this epoch is open. A load or two, and a look at the clock where the host acts under a lease.
    pub fn is_open(&self, epoch: Epoch) -> bool {
        self.open.load(Ordering::Acquire) == epoch.0 && self.hearing.is_fresh()
    }

    /// Why nothing is admitted in any epoch, when that is so.
    pub fn unheard(&self) -> Option<String> {
        if let Some(why) = self.shut.get() {
            return Some(why.clone());
        }
        let lapsed = self.shown.borrow().lapsed || !self.hearing.is_fresh();
        lapsed.then(|| {
            "this host has lapsed: it does not hear the log, and admits nothing until it does"
                .to_owned()
        })
    }

    /// Waits a while until the log is heard.
    ///
    /// # Errors
    /// Why nothing is admitted.
    pub async fn heard(&self, patience: Duration) -> Result<(), String> {
        let mut shown = self.shown.subscribe();
        let heard = shown.wait_for(|shown| !shown.lapsed || self.shut.get().is_some());
        let _ = tokio::time::timeout(patience, heard).await;
        match self.unheard() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    fn close_with(&self, change: impl FnOnce(&mut Shown)) {
        self.open.store(0, Ordering::Release);
        self.shown.send_modify(|shown| {
            change(shown);
            shown.open = false;
            // Another fence may have opened it in between.
            self.open.store(0, Ordering::Release);
        });
    }

    fn open_with(&self, change: impl FnOnce(&mut Shown), now: impl FnOnce() -> (Epoch, bool)) {
        self.shown.send_modify(|shown| {
            change(shown);
            if shown.fences == 0 {
                (shown.epoch, shown.held) = now();
                if !shown.lapsed && self.shut.get().is_none() {
                    shown.open = true;
                    self.open.store(shown.epoch.0, Ordering::Release);
                }
            }
        });
    }

    /// Closes it for a fence: from here on, no wall lets anything pass.
    pub fn close(&self) {
        self.close_with(|shown| shown.fences += 1);
    }

    /// A fence that closed it is in the log. The last of them opens it, for what the log says then: the epoch, and whether it is held.
    pub fn open(&self, now: impl FnOnce() -> (Epoch, bool)) {
        self.open_with(|shown| shown.fences = shown.fences.saturating_sub(1), now);
    }

    /// Closes it because the log is not heard.
    pub fn lapse(&self) {
        self.close_with(|shown| shown.lapsed = true);
    }

    /// The log is heard again.
    pub fn hear(&self, now: impl FnOnce() -> (Epoch, bool)) {
        self.open_with(|shown| shown.lapsed = false, now);
    }

    /// Closes it for good.
    pub fn shut(&self, why: &str) {
        let _ = self.shut.set(why.to_owned());
        self.close();
    }

    /// What it shows.
    pub fn shown(&self) -> Shown {
        *self.shown.borrow()
    }

    /// Waits until something may be granted, and says in which epoch.
    pub async fn passage(&self) -> Epoch {
        let mut shown = self.shown.subscribe();
        let found = shown.wait_for(|shown| shown.open && !shown.held).await;
        match found {
            Ok(shown) => shown.epoch,
            // The gate is gone with its host; whoever waits is about to be too.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(lease: Duration) -> (Gate, Arc<Hearing>) {
        let hearing = Arc::new(Hearing::new(lease));
        (Gate::new(Epoch(1), false, hearing.clone()), hearing)
    }

    #[test]
    fn only_the_last_of_several_fences_opens_it() {
        let (gate, _) = gate(Duration::ZERO);
        gate.close();
        gate.close();
        gate.open(|| (Epoch(2), false));
        assert!(
            !gate.shown().open && !gate.is_open(Epoch(2)),
            "one is still pending"
        );
        gate.open(|| (Epoch(3), true));
        assert!(gate.is_open(Epoch(3)) && gate.shown().held);
    }

    #[test]
    fn a_fence_does_not_open_what_is_closed_for_want_of_hearing_nor_the_other_way_round() {
        let (gate, _) = gate(Duration::ZERO);
        gate.lapse();
        gate.close();
        gate.open(|| (Epoch(2), false));
        assert!(!gate.is_open(Epoch(2)) && gate.unheard().is_some());
        assert_eq!(gate.shown().epoch, Epoch(2));
        gate.close();
        gate.hear(|| (Epoch(2), false));
        assert!(!gate.is_open(Epoch(2)) && gate.unheard().is_none());
        gate.open(|| (Epoch(3), false));
        assert!(gate.is_open(Epoch(3)));
    }

    #[test]
    fn it_is_closed_by_the_clock_alone() {
        let (gate, hearing) = gate(Duration::ZERO);
        assert!(gate.is_open(Epoch(1)));
        hearing.need(true);
        hearing.seen(hearing.sent());
        assert!(gate.shown().open && !gate.is_open(Epoch(1)));
        assert!(gate.unheard().is_some());
    }

    #[test]
    fn once_shut_it_stays_so() {
        let (gate, _) = gate(Duration::ZERO);
        gate.shut("the log has diverged");
        gate.open(|| (Epoch(2), false));
        gate.lapse();
        gate.hear(|| (Epoch(2), false));
        assert!(!gate.is_open(Epoch(2)) && !gate.shown().open);
        assert_eq!(gate.unheard().as_deref(), Some("the log has diverged"));
    }
}
