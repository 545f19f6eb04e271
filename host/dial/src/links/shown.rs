//! How every peer is, for those who look.

use std::{sync::Arc, time::Duration};

use super::{
    Links,
    link::{Link, Slot},
};
use crate::{Lane, LaneStatus, PeerState, PeerStatus, Snapshot, WaypointStatus};

impl Links {
    pub(super) fn state(&self, link: &Link) -> PeerState {
        let [control, bulk] = &link.slots;
        let (up, bulk_up) = (control.held.as_ref(), bulk.held.is_some());
        if up.is_some_and(|control| control.guest) {
            return PeerState::Guest;
        }
        if up.is_some() && bulk_up {
            return PeerState::Connected;
        }
        if up.is_some() || bulk_up {
            return PeerState::Partly;
        }
        if control.dialing.is_some() {
            return PeerState::Dialing;
        }
        match (&control.why, control.due) {
            (Some(why), until) if why.is_refusal() => PeerState::Refused {
                until,
                why: why.clone(),
            },
            (why, Some(until)) => PeerState::BackingOff {
                until,
                why: why.clone(),
            },
            _ => PeerState::Waiting,
        }
    }

    pub(crate) fn publish(&mut self) {
        self.changed = false;
        let lane_status = |lane: Lane, slot: &Slot| {
            let held = slot.held.as_ref();
            let mut sorted: Vec<Duration> = held
                .map(|held| held.round_trips.iter().copied().collect())
                .unwrap_or_default();
            sorted.sort();
            LaneStatus {
                lane,
                connected: held.is_some(),
                dialed: held.is_some_and(|held| held.dialed),
                address: held
                    .and_then(|held| self.conns.get(&held.id))
                    .and_then(|conn| conn.address.clone()),
                round_trip_last: held.and_then(|held| held.round_trips.back().copied()),
                round_trip_p50: sorted.get(sorted.len() / 2).copied(),
                failures: slot.backoff.failures(),
                dials_failed: slot.failed,
                relayed: held
                    .and_then(|held| self.conns.get(&held.id))
                    .is_some_and(|conn| conn.relayed),
                meter: slot.meter.clone(),
            }
        };
        let peers = self
            .links
            .iter()
            .map(|(peer, link)| {
                let status = PeerStatus {
                    peer: *peer,
                    standing: link.standing,
                    configured: link.configured,
                    state: self.state(link),
                    lanes: [
                        lane_status(Lane::Control, &link.slots[0]),
                        lane_status(Lane::Vat, &link.slots[1]),
                    ],
                    connections: self
                        .conns
                        .values()
                        .filter(|conn| conn.peer == *peer && !conn.errand)
                        .count(),
                    protocols: link.protocols.clone(),
                    learned: link.learned.clone(),
                    found: link
                        .found
                        .iter()
                        .map(|found| (found.address.clone(), found.finder()))
                        .collect(),
                };
                (*peer, status)
            })
            .collect();
        let snapshot = Snapshot {
            peers,
            turned_away: self.turned_away.iter().cloned().collect(),
            waypoints: self
                .waypoints
                .iter()
                .map(|(peer, waypoint)| {
                    let status = WaypointStatus {
                        connected: waypoint.up,
                        listening: waypoint.listening.clone(),
                        why: waypoint.why.clone(),
                    };
                    (*peer, status)
                })
                .collect(),
            connections: self.conns.values().filter(|conn| conn.established).count(),
            pending_in: self.pending_in.len(),
        };
        self.setup.watch.send_replace(Arc::new(snapshot));
    }
}
