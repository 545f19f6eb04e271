//! Keeps this host within its lease.
//!
//! In: the clock; what the record hears. Out: markers into the log; the gate closed and walls felled when nothing comes back.
//! Promise: while this host shares its log with others, what acts outside the log (services, timers, agents of each other) is cut when the
//! lease runs out, calls in flight with it, so that a fence that another host put in the log is in effect here a lease later, heard or
//! not. It opens again behind all that the log held meanwhile.
//! Failure: markers that the log doesn't take are not repeated; the next is due soon.

use std::sync::Arc;
use std::time::Duration;

use agora_log::Class;
use agora_realm::{Body, Epoch, HostId, NoteBody};

use super::control::{Control, Decided};
use crate::channel::speak::Counted;
use crate::delivery::lease::Freshness;
use crate::limits;

impl Control {
    /// Keeps the lease for as long as the host runs.
    pub async fn keep_lease(self: Arc<Self>) {
        let mut needed = self.record().hearing().needed();
        loop {
            let wait = match *needed.borrow_and_update() {
                true => self.tend_lease(),
                false => Duration::from_secs(3600),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = needed.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Does what is due, and says when to look again.
    fn tend_lease(self: &Arc<Self>) -> Duration {
        let hearing = self.record().hearing();
        let mut wait = hearing.marker_due();
        if wait.is_zero() {
            let markers = Arc::strong_count(self.markers()).saturating_sub(1);
            if markers < limits::MARKERS_IN_FLIGHT_MAX {
                self.send_marker();
            }
            wait = hearing.length() / 4;
        }
        match hearing.state() {
            Freshness::Fresh { until } => wait.min(until.saturating_sub(crate::monotonic())),
            Freshness::Lapsed { .. } => {
                self.lapse();
                wait
            }
        }
        .max(Duration::from_millis(1))
    }

    /// Cuts what acts outside the log.
    pub(crate) fn lapse(self: &Arc<Self>) {
        if self.gate().shown().lapsed {
            return;
        }
        self.gate().lapse();
        tracing::warn!(
            "this host does not hear the log: nothing is admitted, and what agents hold is cut, until it does"
        );
        let control = self.clone();
        self.runtime().spawn(async move {
            control
                .fell_walls("the log is out of reach; graft again")
                .await;
        });
    }

    /// Opens the gate when an entry that came by proves that the log is heard. Called with what came before it heeded.
    pub(super) fn hear_again(&self) {
        if self.gate().shown().lapsed && self.record().hearing().is_fresh() {
            tracing::info!("this host hears the log again");
            self.show_on_gate(true);
        }
    }

    /// Sends a marker in the epoch that the gate shows, without waiting for it.
    pub(super) fn send_marker(self: &Arc<Self>) {
        let control = self.clone();
        let counted = self.markers().clone();
        self.runtime().spawn(async move {
            let _counted = counted;
            let epoch = control.gate().shown().epoch;
            let judged = control.record().state().last_seq().unwrap_or(0);
            let body = Body::Note(NoteBody::Marker { judged });
            let sent = match control.seal(body, epoch).await {
                Ok(sealed) => control.record().commit(sealed, Class::Ordinary).await,
                Err(error) => return tracing::warn!("no marker: {error}"),
            };
            if let Err(error) = sent {
                tracing::debug!("a marker: {error}");
            }
        });
    }

    // -- Who confirmed

    /// The other hosts of the realm.
    fn others(&self) -> Vec<HostId> {
        let state = self.record().state();
        let others = state.hosts().filter(|(_, host)| !host.revoked);
        let others = others.map(|(id, _)| *id);
        others.filter(|id| *id != self.host_id()).collect()
    }

    /// Adds to the answer of a bump which other hosts confirmed that this epoch began for them too. Waits a little for them; with `all`,
    /// until all have, or every lease that began before the fence was in the log must have run out. Call it when the fence is in.
    pub async fn confirm(self: &Arc<Self>, decided: &mut Decided, epoch: Epoch, all: bool) {
        if decided.pending.is_some() {
            return;
        }
        let others = self.others();
        if others.is_empty() {
            return;
        }
        let _busy: Counted = self.busy();
        let is_leased = self.record().hearing().is_needed();
        let patience = match all {
            true => self.record().hearing().length() + limits::LEASE_MARGIN,
            false => limits::CONFIRM_WAIT,
        };
        let mut confirmed = self.record().confirmed();
        let has = |hosts: &std::collections::BTreeMap<HostId, Epoch>, id: &HostId| {
            hosts.get(id).is_some_and(|heeded| *heeded >= epoch)
        };
        let waiting = confirmed.wait_for(|hosts| others.iter().all(|id| has(hosts, id)));
        let outlasted = tokio::time::timeout(patience, waiting).await.is_err();
        let hosts = confirmed.borrow().clone();
        (decided.confirmed, decided.unconfirmed) =
            others.into_iter().partition(|id| has(&hosts, id));
        decided.outlasted = all && outlasted && is_leased && !decided.unconfirmed.is_empty();
    }
}
