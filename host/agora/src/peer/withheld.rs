//! What stands in an outbox, and is not said any more.
//!
//! In: kills and revocations, as they act here and as the log has them. Out: of each message that a peer has not settled, whether it may
//! still be sent.
//! Promise: what was said by who is stopped, or under a grant that is revoked, is not sent from then on. That follows from the log and the
//! stops that wait for it, so that it is the same after a restart, whatever was kept of the peer. What is on its way already is what the peer
//! answers; where it doesn't, that is said.
//! Failure: an outbox that can't be read is looked at again when it is forwarded, message by message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agora_realm::{Entry, GrantId, Object, PersonaId};

use crate::door::control::Control;

/// However many revocations ask that outboxes be looked through, one does it and one waits for it.
#[derive(Default)]
pub(super) struct Withholding {
    is_due: AtomicBool,
    turn: tokio::sync::Mutex<()>,
}

/// Why, where it is for the author.
pub(crate) const STOPPED: &str = "its author was stopped before the peer had settled it";
const REVOKED: &str = "its grant was revoked before the peer had settled it";

impl Control {
    /// Why a message that waits for a peer is not said any more; none: it may be, or it is of another epoch.
    pub(crate) fn withheld(&self, entry: &Entry) -> Option<&'static str> {
        let author = PersonaId::new(entry.host, entry.author.clone()?);
        let is_stopped = {
            let state = self.record().state();
            state.persona(&author).is_none_or(|known| known.killed) || state.is_cut_off(&author)
        };
        let why = if is_stopped || self.is_killed(&author) {
            STOPPED
        } else if self.is_over(&entry.grant?) {
            REVOKED
        } else {
            return None;
        };
        // A fence takes what was lent back, too, and what it ends is told as stale.
        (self.record().state().epoch() == entry.epoch).then_some(why)
    }

    /// Whether nothing may be said under a grant any more, also where its lender's stop only suspends it.
    fn is_over(&self, grant: &GrantId) -> bool {
        if self.is_cut(grant) {
            return true;
        }
        let state = self.record().state();
        let known = state.grant(grant);
        known.is_none_or(|grant| state.is_suspended(grant))
    }

    /// Whether something that was said under this grant, or one below it, waits in an outbox: when the grant goes, that is never said.
    pub(crate) fn is_owed_under(&self, grant: &GrantId) -> bool {
        let channel = match self.record().state().grant(grant).map(|g| &g.object) {
            Some(Object::Channel(channel)) if channel.is_remote() => channel.clone(),
            _ => return false,
        };
        let remote = self.peers().remote(&channel);
        remote.is_some_and(|remote| remote.is_owed_under(&self.record().state(), grant))
    }

    /// Has what is not said any more told so, without waiting for that.
    pub(crate) fn withhold_soon(self: &Arc<Self>) {
        // Who comes before it has begun is meant by it, too.
        if self.peers().withholding.is_due.swap(true, Ordering::SeqCst) {
            return;
        }
        let (control, busy) = (self.clone(), self.busy());
        self.runtime().spawn(async move {
            let _busy = busy;
            let _one = control.peers().withholding.turn.lock().await;
            control
                .peers()
                .withholding
                .is_due
                .store(false, Ordering::SeqCst);
            control.peers().withhold(&control).await;
        });
    }
}
