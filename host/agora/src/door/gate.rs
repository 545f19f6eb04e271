//! The gate: which epoch is open.
//!
//! Promise: closing it is one store, seen by every wall on every thread at its next call; that is the kill's first act, and it waits for
//! nothing. It opens again only when every fence that closed it is in the log.

use std::sync::atomic::{AtomicU64, Ordering};

use agora_realm::Epoch;
use tokio::sync::watch;

/// What the gate shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The epoch that is open, or the last that was.
    pub epoch: Epoch,
    /// No fence is pending.
    pub open: bool,
    /// How many fences are.
    fences: usize,
    /// Nothing is granted until the next fence.
    pub held: bool,
}

/// The gate of a host.
pub struct Gate {
    /// The open epoch; 0 while a fence is pending.
    open: AtomicU64,
    shown: watch::Sender<Shown>,
}

impl Gate {
    /// A gate that shows this.
    pub fn new(epoch: Epoch, held: bool) -> Self {
        Self {
            open: AtomicU64::new(epoch.0),
            shown: watch::channel(Shown {
                epoch,
                open: true,
                fences: 0,
                held,
            })
            .0,
        }
    }

    /// Whether this epoch is open. One load.
    pub fn is_open(&self, epoch: Epoch) -> bool {
        self.open.load(Ordering::Acquire) == epoch.0
    }

    /// Closes it for a fence: from here on, no wall lets anything pass.
    pub fn close(&self) {
        self.open.store(0, Ordering::Release);
        self.shown.send_modify(|shown| {
            shown.fences += 1;
            shown.open = false;
            // Another fence may have opened it in between.
            self.open.store(0, Ordering::Release);
        });
    }

    /// A fence that closed it is in the log. The last of them opens it, for what the log says then: the epoch, and whether it is held.
    pub fn open(&self, now: impl FnOnce() -> (Epoch, bool)) {
        self.shown.send_modify(|shown| {
            shown.fences = shown.fences.saturating_sub(1);
            if shown.fences == 0 {
                (shown.epoch, shown.held) = now();
                shown.open = true;
                self.open.store(shown.epoch.0, Ordering::Release);
            }
        });
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

    #[test]
    fn only_the_last_of_several_fences_opens_it() {
        let gate = Gate::new(Epoch(1), false);
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
}
