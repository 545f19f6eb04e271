//! Hosts that are connected for an errand: the relays that we listen or dial through, and those whom Kademlia asks first.
//!
//! Such a connection carries no lane and no stream of ours. It is greeted like the others, so that a host that relays nothing
//! and answers nothing says so, and it is dialed again when it is lost.

use libp2p::{
    Multiaddr, PeerId,
    core::transport::ListenerId,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, ListenOpts, NotifyHandler, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::Instant;

use super::{Links, bare, link::Conn, ms, relayed};
use crate::{
    Finder, Standing, Why,
    backoff::{Backoff, Jitter},
    greeting::Verdict,
    handler::Say,
    limits,
};

pub(super) struct Waypoint {
    addresses: Vec<Multiaddr>,
    /// Configured; otherwise it is there because a peer's address names it.
    kept: bool,
    /// Whether we listen through it.
    listen: bool,
    conn: Option<ConnectionId>,
    since: Option<Instant>,
    /// It has answered the greeting.
    welcome: bool,
    /// It has said where it sees us, which hole punching begins with.
    identified: bool,
    /// Both: it may be used.
    pub(super) up: bool,
    listener: Option<ListenerId>,
    pub(super) listening: Vec<Multiaddr>,
    backoff: Backoff,
    due: Option<Instant>,
    pub(super) why: Option<Why>,
}

/// An address that ends with a peer id, in two.
pub(crate) fn parted(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some((peer, bare(address.clone()))),
        _ => None,
    }
}

/// The relay that an address goes through, and where that is.
fn relay_of(circuit: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let to_relay: Multiaddr = circuit
        .iter()
        .take_while(|part| !matches!(part, Protocol::P2pCircuit))
        .collect();
    parted(&to_relay)
}

impl Links {
    /// Keeps this host connected; listens through it if it is to be a relay for us.
    pub(crate) fn keep_waypoint(&mut self, peer: PeerId, address: Multiaddr, listen: bool) {
        if let Some(waypoint) = self.waypoint(peer, address) {
            waypoint.kept = true;
            waypoint.listen |= listen;
        }
    }

    fn waypoint(&mut self, peer: PeerId, address: Multiaddr) -> Option<&mut Waypoint> {
        if peer == self.setup.own
            || (!self.waypoints.contains_key(&peer)
                && self.waypoints.len() >= limits::WAYPOINTS_MAX)
        {
            return None;
        }
        let timing = self.setup.timing;
        let jitter = Jitter::new(self.setup.jitter.next());
        let waypoint = self.waypoints.entry(peer).or_insert_with(|| Waypoint {
            addresses: Vec::new(),
            kept: false,
            listen: false,
            conn: None,
            since: None,
            welcome: false,
            identified: false,
            up: false,
            listener: None,
            listening: Vec::new(),
            backoff: Backoff::new(timing.backoff_min_ms, timing.backoff_max_ms, jitter),
            due: Some(Instant::now()),
            why: None,
        });
        if !waypoint.addresses.contains(&address)
            && waypoint.addresses.len() < limits::WAYPOINT_ADDRESSES_MAX
        {
            waypoint.addresses.push(address);
        }
        self.changed = true;
        Some(waypoint)
    }

    /// Those of the addresses whose relay is connected. The others are being connected, and bring the dial forward then.
    pub(super) fn through_relays(&mut self, circuits: Vec<Multiaddr>) -> Vec<Multiaddr> {
        circuits
            .into_iter()
            .filter(|circuit| {
                relay_of(circuit)
                    .and_then(|(relay, address)| self.waypoint(relay, address))
                    .is_some_and(|waypoint| waypoint.up)
            })
            .collect()
    }

    /// Lets go of hosts that no address names any more.
    pub(super) fn forget_waypoints(&mut self) {
        let named: Vec<PeerId> = self
            .links
            .values()
            .filter(|link| link.configured)
            .flat_map(|link| link.addresses.iter())
            .filter_map(relay_of)
            .map(|(relay, _)| relay)
            .collect();
        let unnamed: Vec<PeerId> = self
            .waypoints
            .iter()
            .filter(|(peer, waypoint)| !waypoint.kept && !named.contains(peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in unnamed {
            if let Some(Waypoint { conn: Some(id), .. }) = self.waypoints.remove(&peer) {
                self.end(id, Why::Reconsidered);
            }
        }
    }

    /// Dials those that are due; says when the next one is.
    pub(super) fn dial_waypoints(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<PeerId> = self
            .waypoints
            .iter()
            .filter(|(_, waypoint)| waypoint.due.is_some_and(|due| due <= now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            let standing = self.setup.policy.standing(&peer);
            let Some(waypoint) = self.waypoints.get_mut(&peer) else {
                continue;
            };
            waypoint.due = None;
            if waypoint.conn.is_some() || self.closing {
                continue;
            }
            // From the port that is listened on, so that the relay sees where hole punching can come through.
            let opts = DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(waypoint.addresses.clone())
                .build();
            let id = opts.connection_id();
            waypoint.conn = Some(id);
            let conn = Conn {
                peer,
                lane: None,
                dialed: true,
                errand: true,
                relayed: false,
                established: false,
                address: None,
                standing,
                meters: Default::default(),
                deadline: None,
                why: None,
            };
            self.conns.insert(id, conn);
            self.setup.errands.add(id);
            self.actions.push_back(ToSwarm::Dial { opts });
        }
        self.waypoints
            .values()
            .filter_map(|waypoint| waypoint.due)
            .min()
    }

    /// A host dialed us for errands.
    pub(super) fn greeted_for_errands(&mut self, id: ConnectionId) {
        let services = self.setup.services;
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (peer, standing) = (conn.peer, conn.standing);
        let others = || {
            self.conns
                .values()
                .filter(|other| other.errand && !other.dialed)
        };
        let same = others().filter(|other| other.peer == peer).count();
        let room = others().count() < limits::ERRANDS_IN_MAX && same < limits::ERRANDS_PEER_IN_MAX;
        let served = match standing {
            Standing::Known => services.relays || services.kademlia_serves,
            Standing::Guest => services.kademlia_serves,
            Standing::Refused => false,
        };
        let verdict = match served && room && !conn.relayed {
            true => Verdict::Welcome,
            false => Verdict::Refused,
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.errand = true;
            conn.deadline = match (verdict, standing) {
                (Verdict::Welcome, Standing::Known) => None,
                (Verdict::Welcome, _) => {
                    Some((Instant::now() + ms(limits::ERRAND_MS), Why::GuestTimeOver))
                }
                _ => Some((Instant::now() + ms(limits::LINGER_MS), Why::RefusedHere)),
            };
        }
        if verdict == Verdict::Welcome {
            self.setup.errands.add(id);
        }
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(id),
            event: Say::Answer(verdict),
        });
        self.changed = true;
    }

    /// We dialed for errands, and this is what the host makes of it.
    pub(super) fn judged_for_errands(&mut self, id: ConnectionId, verdict: Verdict) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let peer = conn.peer;
        if verdict != Verdict::Welcome {
            return self.end(id, Why::RefusedThere);
        }
        let Some(waypoint) = self
            .waypoints
            .get_mut(&peer)
            .filter(|waypoint| waypoint.conn == Some(id))
        else {
            return;
        };
        waypoint.welcome = true;
        waypoint.since = Some(Instant::now());
        self.ready(peer);
    }

    /// It has said where it sees us.
    pub(super) fn waypoint_identified(&mut self, id: ConnectionId, peer: PeerId) {
        if let Some(waypoint) = self.waypoints.get_mut(&peer)
            && waypoint.conn == Some(id)
        {
            waypoint.identified = true;
            self.ready(peer);
        }
    }

    /// Once both have happened, what waited for it goes on.
    fn ready(&mut self, peer: PeerId) {
        let Some(waypoint) = self.waypoints.get_mut(&peer) else {
            return;
        };
        if waypoint.up || !waypoint.welcome || !waypoint.identified {
            return;
        }
        let address = waypoint
            .conn
            .and_then(|id| self.conns.get(&id))
            .and_then(|conn| conn.address.clone());
        waypoint.up = true;
        waypoint.why = None;
        if waypoint.listen
            && let Some(address) = waypoint.addresses.first()
        {
            let through = address
                .clone()
                .with(Protocol::P2p(peer))
                .with(Protocol::P2pCircuit);
            let opts = ListenOpts::new(through);
            waypoint.listener = Some(opts.listener_id());
            self.actions.push_back(ToSwarm::ListenOn { opts });
        }
        for link in self.links.values_mut() {
            let through = |address: &Multiaddr| relay_of(address).is_some_and(|of| of.0 == peer);
            if link.configured && link.addresses.iter().any(through) {
                let waiting = |slot: &&mut super::Slot| {
                    slot.held.is_none() && slot.dialing.is_none() && slot.due.is_some()
                };
                for slot in link.slots.iter_mut().filter(waiting) {
                    slot.due = Some(Instant::now());
                }
            }
        }
        self.changed = true;
        // A peer as well, it has proved its key there.
        if let Some(address) = address {
            self.found(&peer, &address, Finder::Kademlia);
        }
        tracing::debug!(%peer, "connected for errands");
    }

    pub(super) fn errand_gone(&mut self, id: ConnectionId, peer: &PeerId, why: Option<Why>) {
        self.setup.errands.remove(id);
        let Some(waypoint) = self
            .waypoints
            .get_mut(peer)
            .filter(|waypoint| waypoint.conn == Some(id))
        else {
            return;
        };
        if waypoint
            .since
            .take()
            .is_some_and(|since| since.elapsed() >= ms(limits::SETTLED_MS))
        {
            waypoint.backoff.reset();
        }
        tracing::debug!(%peer, ?why, "not connected for errands");
        waypoint.conn = None;
        (waypoint.welcome, waypoint.identified, waypoint.up) = (false, false, false);
        waypoint.listening.clear();
        let listener = waypoint.listener.take();
        waypoint.why = why;
        waypoint.due = Some(Instant::now() + waypoint.backoff.next());
        if let Some(id) = listener {
            self.actions.push_back(ToSwarm::RemoveListener { id });
        }
        self.changed = true;
    }

    fn listener(&mut self, listener: ListenerId) -> Option<&mut Waypoint> {
        self.waypoints
            .values_mut()
            .find(|waypoint| waypoint.listener == Some(listener))
    }

    pub(super) fn listens(&mut self, listener: ListenerId, address: &Multiaddr) {
        if let Some(waypoint) = self.listener(listener)
            && relayed(address)
            && waypoint.listening.len() < limits::WAYPOINT_ADDRESSES_MAX
        {
            waypoint.listening.push(address.clone());
            self.changed = true;
        }
    }

    pub(super) fn listens_no_more(&mut self, listener: ListenerId, address: &Multiaddr) {
        if let Some(waypoint) = self.listener(listener) {
            waypoint.listening.retain(|other| other != address);
            self.changed = true;
        }
    }

    /// The relay listens for us no more, or never did: begins anew after a while.
    pub(super) fn listener_closed(&mut self, listener: ListenerId, cause: String) {
        let Some(waypoint) = self.listener(listener) else {
            return;
        };
        waypoint.listener = None;
        if let Some(id) = waypoint.conn {
            self.end(id, Why::Unreachable(cause));
        }
    }
}
