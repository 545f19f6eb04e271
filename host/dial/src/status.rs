//! How each peer is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::{Lane, Standing, Why};

/// What has gone over one lane, counted where it happens.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) streams_in: AtomicUsize,
    pub(crate) streams_out: AtomicUsize,
    pub(crate) streams_refused: AtomicU64,
}

/// What has gone over one lane with a peer since its first connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read from streams.
    pub bytes_in: u64,
    /// Bytes written to streams.
    pub bytes_out: u64,
    /// Streams that the peer has open with us.
    pub streams_in: usize,
    /// Streams that we have open with the peer.
    pub streams_out: usize,
    /// Streams of the peer that were refused: too many, too fast, or not of the connection's lane.
    pub streams_refused: u64,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerState {
    /// Both lanes are up.
    Connected,
    /// One of the lanes is up.
    Partly,
    /// We are a guest there, and may open a login; or the peer is one here.
    Guest,
    /// A dial, or a greeting, is under way.
    Dialing,
    /// The last dial failed, or the connection was lost; the next dial is at `until`.
    BackingOff {
        /// When it is dialed again.
        until: Instant,
        /// What happened.
        why: Option<Why>,
    },
    /// It was refused, by it or by us; the next try is at `until`, if there is one.
    Refused {
        /// When it is dialed again.
        until: Option<Instant>,
        /// For what reason.
        why: Why,
    },
    /// There is no address to dial: it is waited for.
    Waiting,
}

/// Who found an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finder {
    /// mDNS, on a network that this machine is on.
    Mdns,
    /// Kademlia.
    Kademlia,
}

/// One lane with a peer.
#[derive(Debug, Clone)]
pub struct LaneStatus {
    /// Which.
    pub lane: Lane,
    /// Whether it has a connection.
    pub connected: bool,
    /// Whether we dialed that connection.
    pub dialed: bool,
    /// The peer's address on it.
    pub address: Option<Multiaddr>,
    /// The last ping's round trip.
    pub round_trip_last: Option<Duration>,
    /// The median round trip of recent pings.
    pub round_trip_p50: Option<Duration>,
    /// Failures in a row.
    pub failures: u32,
    /// Dials that came to nothing, since the peer is known. One that [`crate::Dialer::set_peer`] made pointless isn't counted.
    pub dials_failed: u64,
    pub(crate) relayed: bool,
    pub(crate) meter: Arc<Meter>,
}

impl LaneStatus {
    /// Whether its connection goes through a relay.
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }

    /// What has gone over it until now.
    pub fn traffic(&self) -> Traffic {
        let meter = &self.meter;
        Traffic {
            bytes_in: meter.bytes_in.load(Ordering::Relaxed),
            bytes_out: meter.bytes_out.load(Ordering::Relaxed),
            streams_in: meter.streams_in.load(Ordering::Relaxed),
            streams_out: meter.streams_out.load(Ordering::Relaxed),
            streams_refused: meter.streams_refused.load(Ordering::Relaxed),
        }
    }
}

/// How a peer is.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub peer: PeerId,
    /// What it is here.
    pub standing: Standing,
    /// Whether it is kept dialed.
    pub configured: bool,
    /// How it is.
    pub state: PeerState,
    /// Control, then bulk.
    pub lanes: [LaneStatus; 2],
    /// Connections with it, of either lane, those being made and those being replaced too.
    pub connections: usize,
    /// What it says it speaks.
    pub protocols: Vec<String>,
    /// Addresses that it told by identify, which are tried after the configured ones.
    pub learned: Vec<Multiaddr>,
    /// Addresses that mDNS and Kademlia found, which are tried after those.
    pub found: Vec<(Multiaddr, Finder)>,
}

/// A host that is kept connected for an errand: a relay, or one whom Kademlia asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaypointStatus {
    /// Whether it is connected.
    pub connected: bool,
    /// Where this host listens through it.
    pub listening: Vec<Multiaddr>,
    /// Why it isn't connected, or why nothing is listened on there.
    pub why: Option<Why>,
}

impl PeerStatus {
    /// The lane that carries this one's streams.
    pub fn lane(&self, lane: Lane) -> &LaneStatus {
        match lane.carrier() {
            Lane::Vat => &self.lanes[1],
            _ => &self.lanes[0],
        }
    }
}

/// How all peers are, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Each configured peer, and each that is connected.
    pub peers: BTreeMap<PeerId, PeerStatus>,
    /// The last that were turned away, the newest last.
    pub turned_away: Vec<(PeerId, Why)>,
    /// Relays, and hosts that Kademlia asks.
    pub waypoints: BTreeMap<PeerId, WaypointStatus>,
    /// Connections with all peers.
    pub connections: usize,
    /// Inbound connections whose peer hasn't proved who it is.
    pub pending_in: usize,
}
