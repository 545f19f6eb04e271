//! Which connection carries a lane: what greetings and their answers decide, and what the end of a connection does.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use libp2p::{
    PeerId,
    swarm::{ConnectionId, NotifyHandler, ToSwarm},
};
use tokio::time::Instant;

use super::{
    Links,
    link::{Held, at},
    ms,
};
use crate::{
    Lane, Standing, Why,
    greeting::{Incarnation, Verdict},
    handler::Say,
    limits,
};

impl Links {
    /// The connection carries its lane from now on.
    pub(super) fn hold(&mut self, id: ConnectionId, lane: Lane, from: Incarnation, guest: bool) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.deadline = guest.then(|| {
            (
                Instant::now() + ms(self.setup.timing.guest_time_ms),
                Why::GuestTimeOver,
            )
        });
        conn.lane = Some(lane);
        let (peer, dialed, standing, meters) =
            (conn.peer, conn.dialed, conn.standing, conn.meters.clone());
        if !self.links.contains_key(&peer) {
            let mut link = self.new_link(standing);
            link.slots
                .iter_mut()
                .zip(meters)
                .for_each(|(slot, meter)| slot.meter = meter);
            self.links.insert(peer, link);
        }
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.standing = standing;
        let slot = link.slot(lane);
        if slot.dialing == Some(id) {
            slot.dialing = None;
            slot.greeting = false;
        }
        slot.seeks = false;
        slot.due = None;
        slot.why = None;
        let read = slot.meter.bytes_in.load(Ordering::Relaxed);
        let held = Held {
            id,
            dialed,
            since: Instant::now(),
            from,
            guest,
            round_trips: VecDeque::new(),
            read,
        };
        let old = slot.held.replace(held);
        if lane == Lane::Control && !guest {
            let bulk = link.slot(Lane::Vat);
            if bulk.held.is_none() && bulk.dialing.is_none() {
                let wait = if dialed {
                    Duration::ZERO
                } else {
                    ms(limits::LANE_GRACE_MS)
                };
                bulk.due = Some(Instant::now() + wait);
            }
        }
        if let Some(old) = old.filter(|old| old.id != id) {
            self.end(old.id, Why::Replaced);
        }
        self.changed = true;
        tracing::debug!(%peer, ?lane, dialed, guest, "connected");
    }

    /// The peer dialed, and says for which lane.
    pub(super) fn greeted(&mut self, id: ConnectionId, lane: Lane, from: Incarnation) {
        let own_is_lesser = |own: &PeerId, peer: &PeerId| own.to_bytes() < peer.to_bytes();
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.lane = Some(lane);
        let (peer, standing, direct) = (conn.peer, conn.standing, !conn.relayed);
        let verdict = match standing {
            Standing::Refused => Verdict::Refused,
            Standing::Guest => Verdict::Guest,
            Standing::Known => {
                let lesser = own_is_lesser(&self.setup.own, &peer);
                let slot = self.links.get(&peer).map(|link| &link.slots[at(lane)]);
                let through_relay =
                    |id: &ConnectionId| self.conns.get(id).is_some_and(|held| held.relayed);
                let crossing = slot.is_some_and(|slot| match &slot.held {
                    // A direct connection is better, whichever side made it.
                    Some(held) if direct && through_relay(&held.id) => {
                        slot.dialing.is_some() && slot.greeting
                    }
                    // Sent before the peer heard of the connection that we dialed; or by a peer that has lost it, which
                    // is told from that by its incarnation or, later, by time.
                    Some(held) => {
                        held.dialed
                            && held.from == from
                            && held.since.elapsed() < ms(limits::CROSSING_MS)
                    }
                    None => slot.dialing.is_some() && slot.greeting,
                });
                // The relayed one was overtaken by the direct one that was made from it.
                let overtaken = !direct
                    && slot
                        .and_then(|slot| slot.held.as_ref())
                        .is_some_and(|held| {
                            held.from == from
                                && !through_relay(&held.id)
                                && held.since.elapsed() < ms(limits::CROSSING_MS)
                        });
                if overtaken || (lesser && crossing) {
                    Verdict::Duplicate
                } else {
                    Verdict::Welcome
                }
            }
        };
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(id),
            event: Say::Answer(verdict),
        });
        let linger = Instant::now() + ms(limits::LINGER_MS);
        match verdict {
            Verdict::Welcome => self.hold(id, lane, from, false),
            Verdict::Guest if lane == Lane::Control => self.hold(id, lane, from, true),
            Verdict::Guest | Verdict::Duplicate => self.deadline(id, linger, Why::Replaced),
            Verdict::Refused => {
                self.turn_away(peer, Why::RefusedHere);
                self.deadline(id, linger, Why::RefusedHere);
            }
        }
    }

    pub(super) fn deadline(&mut self, id: ConnectionId, when: Instant, why: Why) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.deadline = Some((when, why));
        }
    }

    /// We dialed, and this is what the peer makes of it.
    pub(super) fn judged(&mut self, id: ConnectionId, verdict: Verdict, from: Incarnation) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        if conn.errand {
            return self.judged_for_errands(id, verdict);
        }
        let Some(lane) = conn.lane else { return };
        match verdict {
            Verdict::Welcome => self.hold(id, lane, from, conn.standing == Standing::Guest),
            Verdict::Guest if lane == Lane::Control => self.hold(id, lane, from, true),
            Verdict::Guest | Verdict::Duplicate => self.end(id, Why::Replaced),
            Verdict::Refused => self.end(id, Why::RefusedThere),
        }
    }

    pub(super) fn gone(&mut self, id: ConnectionId, cause: Option<Why>) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        self.changed = true;
        let why = conn.why.or(cause);
        if conn.errand {
            self.errand_gone(id, &conn.peer, why);
            self.drop_if_idle(&conn.peer);
            return;
        }
        let Some(lane) = conn.lane else {
            if let Some(why @ (Why::NoCommonProtocol { .. } | Why::Flooded | Why::TimedOut)) = why {
                self.turn_away(conn.peer, why.clone());
                // A configured peer that dialed us and can't be talked to: say so where people look.
                if let Some(link) = self.links.get_mut(&conn.peer)
                    && link.control().is_none()
                    && why.is_refusal()
                {
                    link.slots[0].why = Some(why);
                }
            }
            self.drop_if_idle(&conn.peer);
            return;
        };
        let mut ended = false;
        if let Some(link) = self.links.get_mut(&conn.peer) {
            let slot = link.slot(lane);
            if slot.dialing == Some(id) {
                slot.dialing = None;
                slot.greeting = false;
                slot.failed += 1;
                ended = true;
            }
            if slot.held.as_ref().is_some_and(|held| held.id == id) {
                let held = slot.held.take();
                if held.is_some_and(|held| {
                    !held.guest && held.since.elapsed() >= ms(limits::SETTLED_MS)
                }) {
                    slot.backoff.reset();
                }
                ended = true;
            }
        }
        if why == Some(Why::Flooded) {
            self.turn_away(conn.peer, Why::Flooded);
        }
        if ended {
            self.again(conn.peer, lane, why.filter(|why| *why != Why::Replaced));
        }
        self.drop_if_idle(&conn.peer);
    }
}
