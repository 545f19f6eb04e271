//! What keeps peers connected: dials, waits, pings, deadlines, and the addresses that are believed.

use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

use libp2p::{
    Multiaddr, PeerId, identify, ping,
    swarm::{
        ConnectionId, DialError, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::Instant;

use super::{
    Links, bare, ip,
    link::{Conn, at},
    ms, relayed, root,
};
use crate::{Lane, Standing, Why, lane::CARRIERS, limits};

impl Links {
    pub(super) fn dial(&mut self, peer: PeerId, lane: Lane, now: Instant) {
        let under_way = self
            .conns
            .values()
            .filter(|conn| conn.dialed && !conn.established)
            .count();
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let slot = link.slot(lane);
        slot.due = None;
        let wanted = slot.held.is_none() || slot.seeks;
        if !wanted || slot.dialing.is_some() || !link.configured || self.closing {
            return;
        }
        link.standing = self.setup.policy.standing(&peer);
        self.changed = true;
        if link.standing == Standing::Refused {
            link.slot(lane).why = Some(Why::RefusedHere);
            return;
        }
        // Bulk follows control, and isn't for guests.
        if lane == Lane::Vat && link.control().is_none_or(|control| control.guest) {
            return;
        }
        let (circuits, mut targets): (Vec<Multiaddr>, Vec<Multiaddr>) =
            link.targets().into_iter().partition(relayed);
        if circuits.is_empty() && targets.is_empty() {
            return;
        }
        // Relays are for when nothing else helps.
        if targets.is_empty() || link.slot(lane).backoff.failures() > 0 {
            targets.extend(self.through_relays(circuits));
        }
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let is_held = link.slot(lane).held.is_some();
        if is_held && (targets.is_empty() || under_way >= limits::PENDING_OUT_MAX) {
            // Whoever seeks it asks again.
            return;
        }
        if targets.is_empty() {
            // Brought forward once a relay is connected.
            let slot = link.slot(lane);
            slot.due = Some(now + slot.backoff.next());
            return;
        }
        if under_way >= limits::PENDING_OUT_MAX {
            let slot = link.slot(lane);
            slot.due = Some(now + slot.backoff.next());
            return;
        }
        // A port of its own: two connections between the same two ports are one too many.
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(targets)
            .allocate_new_port()
            .build();
        let id = opts.connection_id();
        let conn = Conn {
            peer,
            lane: Some(lane),
            dialed: true,
            errand: false,
            relayed: false,
            established: false,
            address: None,
            standing: link.standing,
            meters: [link.slots[0].meter.clone(), link.slots[1].meter.clone()],
            deadline: None,
            why: None,
        };
        link.slot(lane).dialing = Some(id);
        self.conns.insert(id, conn);
        self.actions.push_back(ToSwarm::Dial { opts });
    }

    /// The dial, or the connection, of a lane came to an end: tries again later.
    pub(super) fn again(&mut self, peer: PeerId, lane: Lane, why: Option<Why>) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        self.changed = true;
        if let Some(Why::WrongPeer { address, .. } | Why::Ourselves { address }) = &why {
            link.wrong.insert(bare(address.clone()));
        }
        let configured = link.configured;
        let slot = link.slot(lane);
        if slot.held.is_some() || slot.dialing.is_some() {
            return;
        }
        if let Some(why) = &why {
            tracing::debug!(%peer, ?lane, %why, "not connected");
        }
        slot.why = why;
        slot.due = configured.then(|| Instant::now() + slot.backoff.next());
    }

    /// Acts on what is due; says when the next thing is.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        let over: Vec<(ConnectionId, Why)> = self
            .conns
            .iter()
            .filter_map(|(id, conn)| conn.deadline.as_ref().map(|deadline| (*id, deadline)))
            .filter(|(_, (when, _))| *when <= now)
            .map(|(id, (_, why))| (id, why.clone()))
            .collect();
        for (id, why) in over {
            self.end(id, why);
        }
        let dials: Vec<(PeerId, Lane)> = self
            .links
            .iter()
            .flat_map(|(peer, link)| CARRIERS.map(|lane| (*peer, lane, link.slots[at(lane)].due)))
            .filter(|(_, _, due)| due.is_some_and(|due| due <= now))
            .map(|(peer, lane, _)| (peer, lane))
            .collect();
        for (peer, lane) in dials {
            self.dial(peer, lane, now);
        }
        let expiring = self.expire_found(now);
        let waypoints = self.dial_waypoints(now);
        let deadlines = self
            .conns
            .values()
            .filter_map(|conn| conn.deadline.as_ref().map(|(when, _)| *when));
        let dials = self
            .links
            .values()
            .flat_map(|link| link.slots.iter().filter_map(|slot| slot.due));
        deadlines
            .chain(dials)
            .chain(expiring)
            .chain(waypoints)
            .min()
    }

    pub(super) fn dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        let why = match error {
            DialError::WrongPeerId { obtained, address } => Why::WrongPeer {
                address: bare(address.clone()),
                found: *obtained,
            },
            DialError::LocalPeerId { address } => Why::Ourselves {
                address: bare(address.clone()),
            },
            DialError::Denied { .. } => Why::Replaced,
            // There are some, and none that this host doesn't listen at itself.
            DialError::NoAddresses => Why::Unreachable("its addresses are our own".into()),
            DialError::Transport(tried) => {
                let tried: Vec<String> = tried
                    .iter()
                    .map(|(address, error)| format!("{}: {}", bare(address.clone()), root(error)))
                    .collect();
                Why::Unreachable(tried.join("; "))
            }
            other => Why::Unreachable(other.to_string()),
        };
        self.gone(id, Some(why));
    }

    /// A ping came back, or didn't.
    pub(crate) fn pinged(&mut self, id: ConnectionId, result: Result<Duration, ping::Failure>) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (peer, lane) = (conn.peer, conn.lane);
        if conn.errand && matches!(result, Err(ping::Failure::Timeout)) {
            return self.end(id, Why::TimedOut);
        }
        let Some(lane) = lane else { return };
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let slot = link.slot(lane);
        let read = slot.meter.bytes_in.load(Ordering::Relaxed);
        let Some(held) = slot.held.as_mut().filter(|held| held.id == id) else {
            return;
        };
        match result {
            Ok(round_trip) => {
                held.round_trips.push_back(round_trip);
                if held.round_trips.len() > limits::ROUND_TRIPS_KEPT {
                    held.round_trips.pop_front();
                }
                held.read = read;
                if held.since.elapsed() >= ms(limits::SETTLED_MS) {
                    slot.backoff.reset();
                }
                self.changed = true;
            }
            // Bulk can hold a ping up; as long as bytes come in, the peer is there.
            Err(ping::Failure::Timeout | ping::Failure::Other { .. })
                if lane == Lane::Vat && std::mem::replace(&mut held.read, read) != read => {}
            Err(ping::Failure::Unsupported) => {
                let theirs = link.protocols.clone();
                self.end(id, Why::NoCommonProtocol { theirs });
            }
            Err(_) => self.end(id, Why::TimedOut),
        }
    }

    /// The network address that a connection is with; of a relayed one nothing is known.
    pub(crate) fn place(&self, id: ConnectionId) -> Option<IpAddr> {
        let conn = self.conns.get(&id)?;
        conn.address.as_ref().filter(|_| !conn.relayed).and_then(ip)
    }

    /// A known peer says where it listens. Only addresses at the place that it is connected from are believed, so that
    /// nobody can have us dial others; and dialing asks for its key anyway.
    pub(crate) fn identified(&mut self, id: ConnectionId, info: &identify::Info) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        if conn.errand {
            return self.waypoint_identified(id, conn.peer);
        }
        let Some(from) = self.place(id) else {
            return;
        };
        let Some(link) = self.links.get_mut(&conn.peer) else {
            return;
        };
        if !link.configured || link.standing != Standing::Known {
            return;
        }
        let mut learned: Vec<Multiaddr> = Vec::new();
        for address in info.listen_addrs.iter().cloned().map(bare) {
            let known = link.addresses.contains(&address) || learned.contains(&address);
            if ip(&address) == Some(from)
                && !relayed(&address)
                && !known
                && learned.len() < limits::LEARNED_ADDRESSES_MAX
            {
                learned.push(address);
            }
        }
        if link.learned != learned {
            link.learned = learned;
            self.changed = true;
        }
    }
}
