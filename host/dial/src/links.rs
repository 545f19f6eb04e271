//! Every peer and every connection: who is dialed when, which connection carries which lane, who is let in.
//!
//! Control is dialed first; bulk follows once control is welcome, by the side that dialed control. When two hosts dial each
//! other at once, the greeting decides alike on both: the host with the lesser peer id says *duplicate* while its own
//! greeting is under way, the greater one never does. So a connection that was welcomed is not dropped for a crossing one.
//! A peer that greets anew on a lane that it already has has lost the old connection, which is then replaced.

mod admission;
mod found;
mod greetings;
mod link;
mod shown;
#[cfg(test)]
mod tests;
mod upgrade;
mod upkeep;
mod waypoints;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{CloseConnection, ConnectionId, NotifyHandler, ToSwarm},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep},
};

use self::{
    link::{Conn, Held, Link, Slot, at},
    waypoints::Waypoint,
};
use crate::{
    Incoming, KnownPeer, Lane, OpenError, Policy, Snapshot, Standing, Timing, Why,
    backoff::{Backoff, Jitter},
    errands::Errands,
    greeting::Incarnation,
    handler::{OpenReply, Say},
    lane::CARRIERS,
    limits,
};

pub(crate) use self::{found::plausible, waypoints::parted};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The network address of a multiaddress.
fn ip(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

/// Whether an address goes through a relay.
fn relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The address without a peer id at its end.
fn bare(mut address: Multiaddr) -> Multiaddr {
    if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

/// What the links are made of.
pub(crate) struct Setup {
    pub(crate) own: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) timing: Timing,
    pub(crate) jitter: Jitter,
    pub(crate) inbound: mpsc::Sender<Incoming>,
    pub(crate) watch: watch::Sender<Arc<Snapshot>>,
    /// Which connections are for errands.
    pub(crate) errands: Errands,
    /// What is done for others, and by whom connections are made beside ours.
    pub(crate) services: Services,
}

/// What is switched on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Services {
    /// Kademlia may connect to others.
    pub(crate) kademlia: bool,
    /// Others may ask Kademlia here.
    pub(crate) kademlia_serves: bool,
    /// Known peers may be relayed here.
    pub(crate) relays: bool,
    /// Direct connections may be made from relayed ones.
    pub(crate) punches: bool,
}

type Action = ToSwarm<Infallible, Say>;

pub(crate) struct Links {
    setup: Setup,
    links: HashMap<PeerId, Link>,
    conns: HashMap<ConnectionId, Conn>,
    pending_in: HashMap<ConnectionId, Option<IpAddr>>,
    waypoints: HashMap<PeerId, Waypoint>,
    /// Dials of Kademlia and of hole punching that are under way.
    walks: HashSet<ConnectionId>,
    turned_away: VecDeque<(PeerId, Why)>,
    actions: VecDeque<Action>,
    timer: Option<(Instant, std::pin::Pin<Box<Sleep>>)>,
    changed: bool,
    closing: bool,
}

impl Links {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            links: HashMap::new(),
            conns: HashMap::new(),
            pending_in: HashMap::new(),
            waypoints: HashMap::new(),
            walks: HashSet::new(),
            turned_away: VecDeque::new(),
            actions: VecDeque::new(),
            timer: None,
            changed: true,
            closing: false,
        }
    }

    fn new_link(&mut self, standing: Standing) -> Link {
        let Timing {
            backoff_min_ms,
            backoff_max_ms,
            ..
        } = self.setup.timing;
        let mut slot = || Slot {
            held: None,
            dialing: None,
            greeting: false,
            seeks: false,
            backoff: Backoff::new(
                backoff_min_ms,
                backoff_max_ms,
                Jitter::new(self.setup.jitter.next()),
            ),
            due: None,
            why: None,
            failed: 0,
            meter: Arc::default(),
        };
        let slots = [slot(), slot()];
        Link {
            configured: false,
            standing,
            addresses: Vec::new(),
            learned: Vec::new(),
            found: Vec::new(),
            wrong: HashSet::new(),
            slots,
            protocols: Vec::new(),
        }
    }

    /// Keeps the peer dialed, at these addresses from now on. Whether there is room for it.
    pub(crate) fn set_peer(&mut self, known: KnownPeer) -> bool {
        let KnownPeer { peer, addresses } = known;
        let configured = self.links.values().filter(|link| link.configured).count();
        if !self.links.get(&peer).is_some_and(|link| link.configured)
            && configured >= limits::PEERS_MAX
        {
            return false;
        }
        let standing = self.setup.policy.standing(&peer);
        let fresh = self.new_link(standing);
        let link = self.links.entry(peer).or_insert(fresh);
        link.configured = true;
        link.standing = standing;
        link.addresses = addresses
            .into_iter()
            .map(bare)
            .take(limits::ADDRESSES_MAX)
            .collect();
        link.wrong.clear();
        let slot = &mut link.slots[0];
        slot.backoff.reset();
        slot.due = slot.held.is_none().then(Instant::now);
        // One that is under way knows nothing of these addresses, and may take long to fail.
        let stale = slot.dialing.take_if(|_| !slot.greeting);
        self.changed = true;
        if let Some(stale) = stale {
            self.end(stale, Why::Replaced);
        }
        self.forget_waypoints();
        true
    }

    /// Dials the peer no more, and ends what there is with it.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        if let Some(link) = self.links.get_mut(peer) {
            link.configured = false;
            link.slots.iter_mut().for_each(|slot| slot.due = None);
        }
        self.end_peer(peer, Why::Reconsidered);
        self.drop_if_idle(peer);
        self.forget_waypoints();
    }

    /// Asks the policy about the peer anew, and acts on the answer.
    pub(crate) fn reconsider(&mut self, peer: &PeerId) {
        let standing = self.setup.policy.standing(peer);
        let changed: Vec<ConnectionId> = self
            .conns
            .iter()
            .filter(|(_, c)| c.peer == *peer && c.standing != standing && !(c.errand && c.dialed))
            .map(|(id, _)| *id)
            .collect();
        for id in changed {
            self.end(id, Why::Reconsidered);
        }
        if let Some(link) = self.links.get_mut(peer) {
            link.standing = standing;
            let slot = &mut link.slots[0];
            slot.backoff.reset();
            if link.configured && slot.held.is_none() && slot.dialing.is_none() {
                slot.due = Some(Instant::now());
            }
        }
        self.changed = true;
    }

    /// The peer isn't heard, or is again. Its connections may be fine, and the network away; or they may be what is lost, as when a router
    /// on the way forgot them: so those that we dialed are dialed anew, beside what is held, and what comes of that takes its place. Only
    /// ours: it is the address of who dialed that changes, and dials of one side don't cross.
    pub(crate) fn unheard(&mut self, peer: &PeerId, is_unheard: bool) {
        for lane in CARRIERS {
            let Some(link) = self.links.get_mut(peer) else {
                return;
            };
            let slot = link.slot(lane);
            let is_ours = |held: &Held| held.dialed && !held.guest;
            slot.seeks = is_unheard && slot.held.as_ref().is_some_and(is_ours);
            if slot.seeks {
                self.dial(*peer, lane, Instant::now());
            }
        }
    }

    pub(crate) fn open(&mut self, peer: PeerId, lane: Lane, reply: OpenReply) {
        let held = self
            .links
            .get(&peer)
            .and_then(|link| link.slots[at(lane)].held.as_ref());
        match held {
            Some(held) => self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(held.id),
                event: Say::Open { lane, reply },
            }),
            None => {
                let guest = self
                    .links
                    .get(&peer)
                    .and_then(Link::control)
                    .is_some_and(|control| control.guest);
                let _ = reply.send(Err(match guest {
                    true => OpenError::Guest { peer },
                    false => OpenError::NotConnected { peer, lane },
                }));
            }
        }
    }

    /// Ends everything, and dials and lets in no more.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        let all: Vec<ConnectionId> = self.conns.keys().copied().collect();
        for id in all {
            self.end(id, Why::Reconsidered);
        }
    }

    /// Whether no connection is left.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing && self.conns.values().all(|conn| !conn.established)
    }

    fn end(&mut self, id: ConnectionId, why: Why) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.deadline = None;
        if conn.why.is_none() {
            conn.why = Some(why);
        }
        if conn.established {
            let peer_id = conn.peer;
            self.actions.push_back(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(id),
            });
        }
    }

    fn end_peer(&mut self, peer: &PeerId, why: Why) {
        let ids: Vec<ConnectionId> = self
            .conns
            .iter()
            .filter(|(_, c)| c.peer == *peer && !(c.errand && c.dialed))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.end(id, why.clone());
        }
    }

    fn drop_if_idle(&mut self, peer: &PeerId) {
        if self.links.get(peer).is_some_and(|link| !link.configured)
            && !self.conns.values().any(|c| c.peer == *peer)
        {
            self.links.remove(peer);
            self.changed = true;
        }
    }

    fn turn_away(&mut self, peer: PeerId, why: Why) {
        tracing::info!(%peer, %why, "turned away");
        self.turned_away.push_back((peer, why));
        if self.turned_away.len() > limits::TURNED_AWAY_MAX {
            self.turned_away.pop_front();
        }
        self.changed = true;
    }
}

/// The innermost of an error's causes: what the system said.
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
