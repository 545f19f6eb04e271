//! Every peer and every connection: who is dialed when, which connection carries which lane, who is let in.
//!
//! Control is dialed first; bulk follows once control is welcome, by the side that dialed control. When two hosts dial each
//! other at once, the greeting decides alike on both: the host with the lesser peer id says *duplicate* while its own
//! greeting is under way, the greater one never does. So a connection that was welcomed is not dropped for a crossing one.
//! A peer that greets anew on a lane that it already has has lost the old connection, which is then replaced.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify,
    multiaddr::Protocol,
    ping,
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour,
        NotifyHandler, THandlerInEvent, ToSwarm, dial_opts::DialOpts, dial_opts::PeerCondition,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep},
};

use crate::{
    Incoming, KnownPeer, Lane, LaneStatus, OpenError, PeerState, PeerStatus, Policy, Snapshot,
    Standing, Timing, Why,
    backoff::{Backoff, Jitter},
    greeting::{Incarnation, Verdict},
    handler::{Begin, Handler, Heard, OpenReply, Say},
    lane::CARRIERS,
    limits,
    status::Meter,
};

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

/// The address without a peer id at its end.
fn bare(mut address: Multiaddr) -> Multiaddr {
    if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Full(&'static str);

fn full<T>(what: &'static str) -> Result<T, ConnectionDenied> {
    Err(ConnectionDenied::new(Full(what)))
}

/// The connection that carries a lane.
struct Held {
    id: ConnectionId,
    dialed: bool,
    since: Instant,
    from: Incarnation,
    /// We are no more than a guest there, or the peer no more than one here.
    guest: bool,
    round_trips: VecDeque<Duration>,
    /// What had been read when a ping last came back, or was forgiven.
    read: u64,
}

/// One lane with one peer.
struct Slot {
    held: Option<Held>,
    /// The dial under way, greeting included.
    dialing: Option<ConnectionId>,
    /// Whether that dial has got as far as its greeting.
    greeting: bool,
    backoff: Backoff,
    due: Option<Instant>,
    why: Option<Why>,
    meter: Arc<Meter>,
}

struct Link {
    configured: bool,
    standing: Standing,
    addresses: Vec<Multiaddr>,
    learned: Vec<Multiaddr>,
    /// Addresses where someone else was; left out until there is no other.
    wrong: HashSet<Multiaddr>,
    slots: [Slot; 2],
    protocols: Vec<String>,
}

impl Link {
    fn slot(&mut self, lane: Lane) -> &mut Slot {
        &mut self.slots[at(lane)]
    }

    fn control(&self) -> Option<&Held> {
        self.slots[0].held.as_ref()
    }

    /// Where to dial: what is configured, then what was learned; not where someone else was, unless there is no other.
    fn targets(&mut self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.addresses.clone();
        all.extend(
            self.learned
                .iter()
                .filter(|address| !self.addresses.contains(address))
                .cloned(),
        );
        let right: Vec<Multiaddr> = all
            .iter()
            .filter(|address| !self.wrong.contains(address))
            .cloned()
            .collect();
        if right.is_empty() {
            self.wrong.clear();
            return all;
        }
        right
    }
}

fn at(lane: Lane) -> usize {
    usize::from(lane.carrier() == Lane::Vat)
}

/// One connection, from the moment that it counts.
struct Conn {
    peer: PeerId,
    /// The lane that it was dialed for, or says that it is for.
    lane: Option<Lane>,
    dialed: bool,
    established: bool,
    address: Option<Multiaddr>,
    standing: Standing,
    meters: [Arc<Meter>; 2],
    /// When it is ended if nothing changes that.
    deadline: Option<(Instant, Why)>,
    /// Why it is ended, once it is.
    why: Option<Why>,
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
}

type Action = ToSwarm<Infallible, Say>;

pub(crate) struct Links {
    setup: Setup,
    links: HashMap<PeerId, Link>,
    conns: HashMap<ConnectionId, Conn>,
    pending_in: HashMap<ConnectionId, Option<IpAddr>>,
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
            backoff: Backoff::new(
                backoff_min_ms,
                backoff_max_ms,
                Jitter::new(self.setup.jitter.next()),
            ),
            due: None,
            why: None,
            meter: Arc::default(),
        };
        let slots = [slot(), slot()];
        Link {
            configured: false,
            standing,
            addresses: Vec::new(),
            learned: Vec::new(),
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
        self.changed = true;
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
    }

    /// Asks the policy about the peer anew, and acts on the answer.
    pub(crate) fn reconsider(&mut self, peer: &PeerId) {
        let standing = self.setup.policy.standing(peer);
        let changed: Vec<ConnectionId> = self
            .conns
            .iter()
            .filter(|(_, c)| c.peer == *peer && c.standing != standing)
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

    /// A ping came back, or didn't.
    pub(crate) fn pinged(&mut self, id: ConnectionId, result: Result<Duration, ping::Failure>) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (peer, lane) = (conn.peer, conn.lane);
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

    /// A known peer says where it listens. Only addresses at the place that it is connected from are believed, so that
    /// nobody can have us dial others; and dialing asks for its key anyway.
    pub(crate) fn identified(&mut self, id: ConnectionId, info: &identify::Info) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let Some(from) = conn.address.as_ref().and_then(ip) else {
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
            let direct = !address
                .iter()
                .any(|part| matches!(part, Protocol::P2pCircuit));
            if ip(&address) == Some(from)
                && direct
                && !known
                && learned.len() < limits::LEARNED_ADDRESSES_MAX
            {
                learned.push(address);
            }
        }
        link.learned = learned;
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
            .filter(|(_, c)| c.peer == *peer)
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

    fn dial(&mut self, peer: PeerId, lane: Lane, now: Instant) {
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
        if slot.held.is_some() || slot.dialing.is_some() || !link.configured || self.closing {
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
        let targets = link.targets();
        if targets.is_empty() {
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
    fn again(&mut self, peer: PeerId, lane: Lane, why: Option<Why>) {
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

    /// The connection carries its lane from now on.
    fn hold(&mut self, id: ConnectionId, lane: Lane, from: Incarnation, guest: bool) {
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
    fn greeted(&mut self, id: ConnectionId, lane: Lane, from: Incarnation) {
        let own_is_lesser = |own: &PeerId, peer: &PeerId| own.to_bytes() < peer.to_bytes();
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.lane = Some(lane);
        let (peer, standing) = (conn.peer, conn.standing);
        let verdict = match standing {
            Standing::Refused => Verdict::Refused,
            Standing::Guest => Verdict::Guest,
            Standing::Known => {
                let lesser = own_is_lesser(&self.setup.own, &peer);
                let slot = self.links.get(&peer).map(|link| &link.slots[at(lane)]);
                let crossing = slot.is_some_and(|slot| match &slot.held {
                    // Sent before the peer heard of the connection that we dialed; or by a peer that has lost it, which
                    // is told from that by its incarnation or, later, by time.
                    Some(held) => {
                        held.dialed
                            && held.from == from
                            && held.since.elapsed() < ms(limits::CROSSING_MS)
                    }
                    None => slot.dialing.is_some() && slot.greeting,
                });
                if lesser && crossing {
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

    fn deadline(&mut self, id: ConnectionId, when: Instant, why: Why) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.deadline = Some((when, why));
        }
    }

    /// We dialed, and this is what the peer makes of it.
    fn judged(&mut self, id: ConnectionId, verdict: Verdict, from: Incarnation) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let Some(lane) = conn.lane else { return };
        match verdict {
            Verdict::Welcome => self.hold(id, lane, from, conn.standing == Standing::Guest),
            Verdict::Guest if lane == Lane::Control => self.hold(id, lane, from, true),
            Verdict::Guest | Verdict::Duplicate => self.end(id, Why::Replaced),
            Verdict::Refused => self.end(id, Why::RefusedThere),
        }
    }

    fn gone(&mut self, id: ConnectionId, cause: Option<Why>) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        self.changed = true;
        let why = conn.why.or(cause);
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

    /// Acts on what is due; says when the next thing is.
    fn due(&mut self, now: Instant) -> Option<Instant> {
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
        let deadlines = self
            .conns
            .values()
            .filter_map(|conn| conn.deadline.as_ref().map(|(when, _)| *when));
        let dials = self
            .links
            .values()
            .flat_map(|link| link.slots.iter().filter_map(|slot| slot.due));
        deadlines.chain(dials).min()
    }

    fn state(&self, link: &Link) -> PeerState {
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

    fn publish(&mut self) {
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
                        .filter(|conn| conn.peer == *peer)
                        .count(),
                    protocols: link.protocols.clone(),
                };
                (*peer, status)
            })
            .collect();
        let snapshot = Snapshot {
            peers,
            turned_away: self.turned_away.iter().cloned().collect(),
            connections: self.conns.values().filter(|conn| conn.established).count(),
            pending_in: self.pending_in.len(),
        };
        self.setup.watch.send_replace(Arc::new(snapshot));
    }

    fn begin(&self, conn: &Conn) -> Begin {
        Begin {
            peer: conn.peer,
            standing: conn.standing,
            dialed_for: conn.lane.filter(|_| conn.dialed),
            own: self.setup.incarnation,
            patience: ms(self.setup.timing.greeting_patience_ms),
            inbound: self.setup.inbound.clone(),
            meters: conn.meters.clone(),
        }
    }

    fn dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        let why = match error {
            DialError::WrongPeerId { obtained, address } => Why::WrongPeer {
                address: bare(address.clone()),
                found: *obtained,
            },
            DialError::LocalPeerId { address } => Why::Ourselves {
                address: bare(address.clone()),
            },
            DialError::Denied { .. } => Why::Replaced,
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
}

/// The innermost of an error's causes: what the system said.
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

impl NetworkBehaviour for Links {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let from = ip(remote);
        let configured = self
            .links
            .values()
            .any(|link| link.addresses.iter().any(|address| ip(address) == from));
        let same = self
            .pending_in
            .values()
            .filter(|other| **other == from)
            .count();
        if self.closing || self.pending_in.len() >= limits::PENDING_IN_MAX {
            return full("too many connections are being made");
        }
        if !configured
            && (self.pending_in.len() >= limits::PENDING_IN_STRANGERS_MAX
                || same >= limits::PENDING_IN_ADDRESS_MAX)
        {
            return full("too many connections are being made from there");
        }
        self.pending_in.insert(id, from);
        self.changed = true;
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.pending_in.remove(&id);
        let standing = self.setup.policy.standing(&peer);
        let with_peer = self.conns.values().filter(|conn| conn.peer == peer).count();
        if self.closing {
            return full("the host is going down");
        }
        if standing == Standing::Known {
            let known: HashSet<PeerId> = self
                .conns
                .values()
                .filter(|conn| conn.standing == Standing::Known)
                .map(|conn| conn.peer)
                .chain(
                    self.links
                        .iter()
                        .filter(|(_, link)| link.configured)
                        .map(|(peer, _)| *peer),
                )
                .collect();
            if with_peer >= limits::PEER_CONNECTIONS_MAX {
                return full("the peer has too many connections");
            }
            if !known.contains(&peer) && known.len() >= limits::PEERS_MAX {
                return full("there are too many peers");
            }
        } else {
            let from = ip(remote);
            let guests = || {
                self.conns
                    .values()
                    .filter(|conn| !conn.dialed && conn.standing != Standing::Known)
            };
            let same = guests()
                .filter(|conn| conn.address.as_ref().and_then(ip) == from)
                .count();
            if guests().count() >= limits::GUEST_CONNECTIONS_MAX
                || same >= limits::GUEST_ADDRESS_CONNECTIONS_MAX
                || with_peer >= limits::GUEST_PEER_CONNECTIONS_MAX
            {
                self.turn_away(peer, Why::HungUp);
                return full("there are too many guests");
            }
        }
        let meters = match self.links.get(&peer) {
            Some(link) => [link.slots[0].meter.clone(), link.slots[1].meter.clone()],
            None => Default::default(),
        };
        let conn = Conn {
            peer,
            lane: None,
            dialed: false,
            established: false,
            address: Some(remote.clone()),
            standing,
            meters,
            deadline: Some((
                Instant::now() + ms(limits::GREETING_PATIENCE_MS),
                Why::TimedOut,
            )),
            why: None,
        };
        let handler = Handler::new(self.begin(&conn));
        self.conns.insert(id, conn);
        Ok(handler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        let Some(conn) = self.conns.get_mut(&id) else {
            return full("not dialed from here");
        };
        let Some(lane) = conn.lane else {
            return full("not dialed from here");
        };
        if conn.why.is_some() || self.closing {
            return full("no longer wanted");
        }
        conn.address = Some(bare(address.clone()));
        if let Some(link) = self.links.get_mut(&peer) {
            let slot = link.slot(lane);
            // The peer's own dial was welcomed meanwhile: this one isn't needed, and is never greeted on.
            if slot.held.is_some() {
                return full("the lane has a connection");
            }
            slot.greeting = true;
        }
        let conn = &self.conns[&id];
        Ok(Handler::new(self.begin(conn)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) => {
                if let Some(conn) = self.conns.get_mut(&made.connection_id) {
                    conn.established = true;
                    let ended = conn.why.clone();
                    if let Some(why) = ended {
                        self.end(made.connection_id, why);
                    }
                }
                self.changed = true;
            }
            FromSwarm::ConnectionClosed(closed) => {
                let lost = match closed.cause {
                    Some(cause) => Why::Lost(root(cause)),
                    None => Why::Lost("closed".into()),
                };
                self.gone(closed.connection_id, Some(lost));
            }
            FromSwarm::AddressChange(change) => {
                if let Some(conn) = self.conns.get_mut(&change.connection_id) {
                    conn.address = Some(change.new.get_remote_address().clone());
                    self.changed = true;
                }
            }
            FromSwarm::DialFailure(failed) => self.dial_failed(failed.connection_id, failed.error),
            FromSwarm::ListenFailure(failed) => {
                self.pending_in.remove(&failed.connection_id);
                self.changed = true;
                self.gone(failed.connection_id, None);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, heard: Heard) {
        match heard {
            Heard::Greeting { lane, from } => self.greeted(id, lane, from),
            Heard::Verdict { verdict, from } => self.judged(id, verdict, from),
            Heard::Failed(why) => self.end(id, why),
            Heard::Speaks(names) => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.protocols = names;
                    self.changed = true;
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        loop {
            let next = self.due(Instant::now());
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if self.changed {
                self.publish();
            }
            let Some(next) = next else {
                self.timer = None;
                return Poll::Pending;
            };
            if self.timer.as_ref().is_none_or(|(when, _)| *when != next) {
                self.timer = Some((next, Box::pin(tokio::time::sleep_until(next))));
            }
            let ready = self
                .timer
                .as_mut()
                .is_some_and(|(_, sleep)| sleep.poll_unpin(cx).is_ready());
            if !ready {
                return Poll::Pending;
            }
            self.timer = None;
        }
    }
}

#[cfg(test)]
mod tests;
