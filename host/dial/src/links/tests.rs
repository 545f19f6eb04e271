//! What is decided, moment by moment, without a network: who yields when dials cross, what is believed, who is let in.

use std::{collections::VecDeque, sync::Arc};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify,
    identity::Keypair,
    swarm::{ConnectionId, NetworkBehaviour, ToSwarm},
};
use tokio::sync::{mpsc, watch};

use super::{Links, Services, Setup, link::at, plausible};
use crate::{
    Finder, Incoming, KnownPeer, Lane, Snapshot, Standing, Timing,
    backoff::Jitter,
    errands::Errands,
    greeting::{Incarnation, Verdict},
    handler::Say,
    limits,
};

struct Bench {
    links: Links,
    own: PeerId,
    _inbound: mpsc::Receiver<Incoming>,
}

fn id(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32])
        .expect("a seed")
        .public()
        .to_peer_id()
}

/// The lesser and the greater of two peers.
fn two() -> (PeerId, PeerId) {
    let (one, other) = (id(1), id(2));
    if one.to_bytes() < other.to_bytes() {
        (one, other)
    } else {
        (other, one)
    }
}

fn address(port: u16) -> Multiaddr {
    format!("/ip4/127.0.0.1/tcp/{port}")
        .parse()
        .expect("an address")
}

fn bench(own: PeerId, standing: Standing) -> Bench {
    let (inbound, receiver) = mpsc::channel(8);
    let (watch, _) = watch::channel(Arc::new(Snapshot::default()));
    let links = Links::new(Setup {
        own,
        incarnation: Incarnation([1; 8]),
        policy: Arc::new(move |_: &PeerId| standing),
        timing: Timing::default(),
        jitter: Jitter::new(1),
        inbound,
        watch,
        errands: Errands::default(),
        services: Services::default(),
    });
    Bench {
        links,
        own,
        _inbound: receiver,
    }
}

impl Bench {
    /// Dials the peer's control lane, up to the moment at which our greeting is under way.
    fn dial(&mut self, peer: PeerId) -> ConnectionId {
        assert!(self.links.set_peer(KnownPeer {
            peer,
            addresses: vec![address(1)]
        }));
        self.links.due(tokio::time::Instant::now());
        let dialed = self
            .links
            .actions
            .drain(..)
            .find_map(|action| match action {
                ToSwarm::Dial { opts } => Some(opts.connection_id()),
                _ => None,
            });
        let id = dialed.expect("it is dialed");
        assert!(self.connects(id, peer));
        self.established(id);
        id
    }

    /// A dial has found its peer. Whether it is still wanted.
    fn connects(&mut self, id: ConnectionId, peer: PeerId) -> bool {
        let made = self.links.handle_established_outbound_connection(
            id,
            peer,
            &address(1),
            Endpoint::Dialer,
            PortUse::New,
        );
        made.is_ok()
    }

    /// The peer dialed us.
    fn dialed_by(&mut self, peer: PeerId, connection: usize) -> ConnectionId {
        let id = ConnectionId::new_unchecked(connection);
        let made =
            self.links
                .handle_established_inbound_connection(id, peer, &address(2), &address(3));
        assert!(made.is_ok());
        self.established(id);
        id
    }

    fn established(&mut self, id: ConnectionId) {
        self.links
            .conns
            .get_mut(&id)
            .expect("it counts")
            .established = true;
    }

    /// The peer's greeting on a connection, and what is answered.
    fn greeted(&mut self, id: ConnectionId, lane: Lane, from: u8) -> Verdict {
        self.links.actions.clear();
        self.links.greeted(id, lane, Incarnation([from; 8]));
        let answered = self.links.actions.iter().find_map(|action| match action {
            ToSwarm::NotifyHandler {
                event: Say::Answer(verdict),
                ..
            } => Some(*verdict),
            _ => None,
        });
        answered.expect("it is answered")
    }

    fn closed(&self) -> VecDeque<ConnectionId> {
        let close = |action: &super::Action| match action {
            ToSwarm::CloseConnection {
                connection: libp2p::swarm::CloseConnection::One(id),
                ..
            } => Some(*id),
            _ => None,
        };
        self.links.actions.iter().filter_map(close).collect()
    }

    fn held(&self, peer: PeerId, lane: Lane) -> Option<ConnectionId> {
        self.links.links.get(&peer)?.slots[at(lane)]
            .held
            .as_ref()
            .map(|held| held.id)
    }
}

#[tokio::test]
async fn when_greetings_cross_the_lesser_says_duplicate_and_the_greater_welcome() {
    let (lesser, greater) = two();
    let (mut one, mut other) = (
        bench(lesser, Standing::Known),
        bench(greater, Standing::Known),
    );
    let (ours, theirs) = (one.dial(other.own), other.dial(one.own));
    let at_other = other.dialed_by(one.own, 1 << 40);
    let at_one = one.dialed_by(other.own, 1 << 41);
    assert_eq!(one.greeted(at_one, Lane::Control, 2), Verdict::Duplicate);
    assert_eq!(other.greeted(at_other, Lane::Control, 1), Verdict::Welcome);
    // Each hears the other's answer.
    one.links
        .judged(ours, Verdict::Welcome, Incarnation([2; 8]));
    other.links.actions.clear();
    other
        .links
        .judged(theirs, Verdict::Duplicate, Incarnation([1; 8]));
    assert_eq!(one.held(greater, Lane::Control), Some(ours));
    assert_eq!(other.held(lesser, Lane::Control), Some(at_other));
    assert_eq!(other.closed(), [theirs]);
}

#[tokio::test]
async fn a_greeting_that_comes_late_is_a_duplicate_unless_the_peer_was_started_anew() {
    let (lesser, greater) = two();
    let mut one = bench(lesser, Standing::Known);
    let ours = one.dial(greater);
    one.links
        .judged(ours, Verdict::Welcome, Incarnation([2; 8]));
    let late = one.dialed_by(greater, 1 << 40);
    assert_eq!(one.greeted(late, Lane::Control, 2), Verdict::Duplicate);
    assert_eq!(one.held(greater, Lane::Control), Some(ours));
    let anew = one.dialed_by(greater, 1 << 41);
    assert_eq!(one.greeted(anew, Lane::Control, 3), Verdict::Welcome);
    assert_eq!(one.held(greater, Lane::Control), Some(anew));
    assert_eq!(one.closed(), [ours]);
}

#[tokio::test]
async fn a_peer_that_greets_again_has_lost_its_connection() {
    let (lesser, greater) = two();
    for (own, peer) in [(lesser, greater), (greater, lesser)] {
        let mut one = bench(own, Standing::Known);
        let old = one.dialed_by(peer, 1 << 40);
        assert_eq!(one.greeted(old, Lane::Vat, 2), Verdict::Welcome);
        let new = one.dialed_by(peer, 1 << 41);
        assert_eq!(one.greeted(new, Lane::Vat, 2), Verdict::Welcome);
        assert_eq!(
            (one.held(peer, Lane::Vat), one.closed()),
            (Some(new), [old].into())
        );
    }
}

/// The dial that was begun, up to its greeting; none: it isn't wanted.
fn sought(one: &mut Bench, peer: PeerId) -> Option<ConnectionId> {
    one.links.actions.clear();
    one.links.unheard(&peer, true);
    let id = one.links.actions.iter().find_map(|action| match action {
        ToSwarm::Dial { opts } => Some(opts.connection_id()),
        _ => None,
    });
    let id = id?;
    assert!(one.connects(id, peer));
    one.established(id);
    Some(id)
}

#[tokio::test]
async fn a_peer_that_isnt_heard_is_dialed_beside_what_is_held_which_goes_only_for_one_that_is_welcome()
 {
    let (lesser, greater) = two();
    for (own, peer) in [(lesser, greater), (greater, lesser)] {
        let mut one = bench(own, Standing::Known);
        let old = one.dial(peer);
        one.links.judged(old, Verdict::Welcome, Incarnation([2; 8]));
        // What comes of it fails, and the old one is kept.
        let failed = sought(&mut one, peer).expect("it is dialed");
        one.links.gone(failed, None);
        assert_eq!(one.held(peer, Lane::Control), Some(old));
        let link = &one.links.links[&peer];
        assert!(link.slots[0].due.is_none(), "nobody dials unasked");
        // It is heard again before it has come to a greeting.
        one.links.unheard(&peer, true);
        let late = one.links.links[&peer].slots[0].dialing.expect("once more");
        one.links.unheard(&peer, false);
        assert!(!one.connects(late, peer));
        one.links.gone(late, None);
        // It is welcome, and takes its place.
        let new = sought(&mut one, peer).expect("it is dialed");
        one.links.actions.clear();
        one.links.judged(new, Verdict::Welcome, Incarnation([2; 8]));
        assert_eq!(one.held(peer, Lane::Control), Some(new));
        assert_eq!(one.closed(), [old]);
        // What the peer dialed is the peer's to dial anew.
        let theirs = one.dialed_by(peer, 1 << 42);
        assert_eq!(one.greeted(theirs, Lane::Control, 3), Verdict::Welcome);
        assert_eq!(sought(&mut one, peer), None);
    }
}

#[tokio::test]
async fn a_dial_that_isnt_needed_any_more_is_never_greeted_on() {
    let (lesser, greater) = two();
    for (own, peer) in [(lesser, greater), (greater, lesser)] {
        let mut one = bench(own, Standing::Known);
        assert!(one.links.set_peer(KnownPeer {
            peer,
            addresses: vec![address(1)]
        }));
        one.links.due(tokio::time::Instant::now());
        let dialed = one.links.links[&peer].slots[0]
            .dialing
            .expect("it is dialed");
        let theirs = one.dialed_by(peer, 1 << 40);
        assert_eq!(
            one.greeted(theirs, Lane::Control, 2),
            Verdict::Welcome,
            "ours hasn't greeted"
        );
        let made = one.links.handle_established_outbound_connection(
            dialed,
            peer,
            &address(1),
            Endpoint::Dialer,
            PortUse::New,
        );
        assert!(made.is_err());
    }
}

#[tokio::test]
async fn standing_decides_what_a_greeting_gets() {
    let (own, peer) = two();
    for (standing, lane, verdict, held) in [
        (Standing::Refused, Lane::Control, Verdict::Refused, false),
        (Standing::Guest, Lane::Control, Verdict::Guest, true),
        (Standing::Guest, Lane::Vat, Verdict::Guest, false),
        (Standing::Known, Lane::Vat, Verdict::Welcome, true),
    ] {
        let mut one = bench(own, standing);
        let id = one.dialed_by(peer, 1 << 40);
        assert_eq!(one.greeted(id, lane, 2), verdict);
        assert_eq!(one.held(peer, lane).is_some(), held);
        // None but a known peer's connection may stay for good.
        assert_eq!(
            one.links.conns[&id].deadline.is_none(),
            standing == Standing::Known
        );
    }
}

#[tokio::test]
async fn of_what_identify_tells_little_is_believed_and_nothing_configured_is_lost() {
    let (own, peer) = two();
    let mut one = bench(own, Standing::Known);
    let id = one.dial(peer);
    let keypair = Keypair::ed25519_from_bytes([1; 32]).expect("a seed");
    let elsewhere = (1..200).map(|last| {
        format!("/ip4/10.0.0.{last}/tcp/1")
            .parse()
            .expect("an address")
    });
    let relayed = format!("/ip4/127.0.0.1/tcp/9/p2p/{own}/p2p-circuit")
        .parse()
        .expect("an address");
    let info = identify::Info {
        public_key: keypair.public(),
        protocol_version: String::new(),
        agent_version: String::new(),
        listen_addrs: elsewhere
            .chain([relayed])
            .chain((1..50).map(address))
            .collect(),
        protocols: Vec::new(),
        observed_addr: Multiaddr::empty(),
        signed_peer_record: None,
    };
    one.links.identified(id, &info);
    let targets = one.links.links.get_mut(&peer).expect("a link").targets();
    assert_eq!(targets.len(), 1 + limits::LEARNED_ADDRESSES_MAX);
    assert_eq!(targets[..3], [address(1), address(2), address(3)]);
}

#[tokio::test]
async fn a_known_peer_has_so_many_connections_and_no_more() {
    let (own, peer) = two();
    let mut one = bench(own, Standing::Known);
    for connection in 0..limits::PEER_CONNECTIONS_MAX {
        one.dialed_by(peer, (1 << 40) + connection);
    }
    let id = ConnectionId::new_unchecked(1 << 41);
    assert!(
        one.links
            .handle_established_inbound_connection(id, peer, &address(2), &address(3))
            .is_err()
    );
    assert_eq!(one.links.conns.len(), limits::PEER_CONNECTIONS_MAX);
}

#[tokio::test]
async fn of_what_is_found_little_is_kept_and_it_is_tried_last() {
    let (own, peer) = two();
    let mut one = bench(own, Standing::Known);
    one.dial(peer);
    for n in 0..10_000u32 {
        let there = format!("/ip4/10.1.{}.{}/tcp/1", n / 250, n % 250 + 1);
        let there = there.parse().expect("an address");
        one.links.found(&peer, &there, Finder::Mdns);
        one.links.found(&id(7), &there, Finder::Mdns);
    }
    let targets = one.links.links.get_mut(&peer).expect("a link").targets();
    assert_eq!(targets.len(), 1 + limits::FOUND_ADDRESSES_MAX);
    assert_eq!(targets[0], address(1));
    // Whom nobody configured is nobody.
    assert!(!one.links.links.contains_key(&id(7)));
}

#[tokio::test]
async fn what_kademlia_found_is_forgotten_and_what_mdns_found_when_it_says_so() {
    let (own, peer) = two();
    let mut one = bench(own, Standing::Known);
    one.dial(peer);
    one.links.found(&peer, &address(5), Finder::Kademlia);
    one.links.found(&peer, &address(6), Finder::Mdns);
    let now = tokio::time::Instant::now();
    one.links
        .expire_found(now + super::ms(limits::FOUND_MS + 1_000));
    let link = one.links.links.get_mut(&peer).expect("a link");
    assert_eq!(link.targets(), [address(1), address(6)]);
    one.links.lost(&peer, &address(6));
    let link = one.links.links.get_mut(&peer).expect("a link");
    assert_eq!(link.targets(), [address(1)]);
}

#[test]
fn only_plain_addresses_are_believed_on_someones_word() {
    for (text, believed) in [
        ("/ip4/10.0.0.1/tcp/1", true),
        ("/ip6/fd00::1/udp/1/quic-v1", true),
        ("/ip4/0.0.0.0/tcp/1", false),
        ("/ip4/224.0.0.1/udp/1/quic-v1", false),
        ("/ip4/10.0.0.1/tcp/0", false),
        ("/ip4/10.0.0.1/udp/1", false),
        ("/ip4/10.0.0.1/tcp/1/ws", false),
        ("/dns4/example.org/tcp/1", false),
        ("/ip4/10.0.0.1", false),
    ] {
        let address: Multiaddr = text.parse().expect("an address");
        assert_eq!(plausible(&address).is_some(), believed, "{text}");
        let circuit = format!("{text}/p2p/{}/p2p-circuit", id(9));
        assert_eq!(plausible(&circuit.parse().expect("an address")), None);
    }
}

#[tokio::test]
async fn a_direct_connection_replaces_a_relayed_one_and_never_the_other_way_round() {
    let (lesser, greater) = two();
    let relay: Multiaddr = format!("/ip4/127.0.0.1/tcp/9/p2p/{}/p2p-circuit", id(9))
        .parse()
        .expect("an address");
    for (own, peer) in [(lesser, greater), (greater, lesser)] {
        let mut one = bench(own, Standing::Known);
        let relayed = |one: &mut Bench, connection: usize| {
            let id = ConnectionId::new_unchecked(connection);
            let made =
                one.links
                    .handle_established_inbound_connection(id, peer, &relay, &address(3));
            assert!(made.is_ok());
            one.established(id);
            id
        };
        let first = relayed(&mut one, 1 << 40);
        assert_eq!(one.greeted(first, Lane::Vat, 2), Verdict::Welcome);
        let direct = one.dialed_by(peer, 1 << 41);
        assert_eq!(one.greeted(direct, Lane::Vat, 2), Verdict::Welcome);
        assert_eq!(one.closed(), [first]);
        let late = relayed(&mut one, 1 << 42);
        assert_eq!(one.greeted(late, Lane::Vat, 2), Verdict::Duplicate);
        assert_eq!(one.held(peer, Lane::Vat), Some(direct));
    }
}
