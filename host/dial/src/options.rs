//! What a dialer starts with, and who is let in as what.

use std::sync::Arc;

use libp2p::{Multiaddr, PeerId};
use zeroize::Zeroizing;

use crate::limits;

/// What a peer is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It may open streams on both lanes.
    Known,
    /// It may open one login stream, for a short time.
    Guest,
    /// It is told so, and let go.
    Refused,
}

/// Says what each peer is. Asked on the driver's task at every connection, so it must answer at once.
pub trait Policy: Send + Sync + 'static {
    /// What this peer is now. When the answer changes, call [`crate::Dialer::reconsider`].
    fn standing(&self, peer: &PeerId) -> Standing;
}

impl<F: Fn(&PeerId) -> Standing + Send + Sync + 'static> Policy for F {
    fn standing(&self, peer: &PeerId) -> Standing {
        self(peer)
    }
}

/// A peer that is kept dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPeer {
    /// Who must answer.
    pub peer: PeerId,
    /// Where it may be. With none, it is waited for.
    pub addresses: Vec<Multiaddr>,
}

/// How patient the dialer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The wait after the first failure, at most; in milliseconds.
    pub backoff_min_ms: u64,
    /// The longest wait, in milliseconds.
    pub backoff_max_ms: u64,
    /// How often a connection is pinged, in milliseconds.
    pub ping_every_ms: u64,
    /// How long a ping may take, in milliseconds. Two in a row that fail end a connection.
    pub ping_patience_ms: u64,
    /// How long the greeting may take, either side, in milliseconds.
    pub greeting_patience_ms: u64,
    /// How long a guest may stay, in milliseconds.
    pub guest_time_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_min_ms: 500,
            backoff_max_ms: 60_000,
            ping_every_ms: 5_000,
            ping_patience_ms: 5_000,
            greeting_patience_ms: limits::GREETING_PATIENCE_MS,
            guest_time_ms: 30_000,
        }
    }
}

/// Where a known peer's addresses are looked for, beside those that are configured. Off unless asked for. What is found is
/// believed for configured peers only, tried after what is configured, and forgotten after a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// By mDNS, on the networks that this machine is on. It tells everyone there our peer id and addresses.
    pub mdns: bool,
    /// By Kademlia.
    pub kademlia: Option<Kademlia>,
}

/// Finds known peers by asking hosts that speak `/agora/kad/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kademlia {
    /// Whom to ask first; each address ends with `/p2p/` and the host's peer id.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to answer others, guests too. Only hosts that do can be found.
    pub serve: bool,
    /// How often peers that aren't connected are asked for, in milliseconds. At least [`limits::KAD_ASK_MIN_MS`].
    pub ask_every_ms: u64,
}

impl Kademlia {
    /// Asks these every minute, and doesn't answer others.
    pub fn new(bootstrap: Vec<Multiaddr>) -> Self {
        Self {
            bootstrap,
            serve: false,
            ask_every_ms: 60_000,
        }
    }
}

/// Being reached, and helping others be reached, behind networks that let nobody in. Off unless asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Relays for known peers, if given.
    pub serve: Option<RelayBounds>,
    /// Listens through these relays too; each address ends with `/p2p/` and the relay's peer id.
    pub via: Vec<Multiaddr>,
    /// Whether a relayed connection is used to get a direct one (DCUtR).
    pub punch: bool,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            serve: None,
            via: Vec::new(),
            punch: true,
        }
    }
}

/// What a relay gives. Each is held to its bound in [`limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayBounds {
    /// Peers that may listen through it.
    pub reservations: usize,
    /// Relayed connections, together.
    pub circuits: usize,
    /// Bytes of one relayed connection, both ways together; then it ends.
    pub circuit_bytes: u64,
    /// How long one may last, in milliseconds.
    pub circuit_ms: u64,
}

impl Default for RelayBounds {
    fn default() -> Self {
        Self {
            reservations: 16,
            circuits: 16,
            circuit_bytes: 8 << 20,
            circuit_ms: 10 * 60_000,
        }
    }
}

/// What a dialer starts with.
pub struct Options {
    /// The ed25519 seed that this host's peer id comes from.
    pub seed: Zeroizing<[u8; 32]>,
    /// Where to listen; nowhere if empty.
    pub listen: Vec<Multiaddr>,
    /// Who is kept dialed.
    pub peers: Vec<KnownPeer>,
    /// Who is let in.
    pub policy: Arc<dyn Policy>,
    /// How patient to be.
    pub timing: Timing,
    /// Where peers' addresses are looked for.
    pub discovery: Discovery,
    /// Relays: to be one, and to listen through others.
    pub relay: Relay,
    /// Where jitter comes from; from the system's randomness if not given.
    pub jitter_seed: Option<u64>,
}

impl Options {
    /// Listens nowhere, dials nobody and lets nobody in but the peers that are added.
    pub fn new(seed: [u8; 32], policy: impl Policy) -> Self {
        Self {
            seed: Zeroizing::new(seed),
            listen: Vec::new(),
            peers: Vec::new(),
            policy: Arc::new(policy),
            timing: Timing::default(),
            discovery: Discovery::default(),
            relay: Relay::default(),
            jitter_seed: None,
        }
    }

    /// The peer id that a seed gives.
    pub fn peer_id(&self) -> PeerId {
        self.keypair().public().to_peer_id()
    }

    pub(crate) fn keypair(&self) -> libp2p::identity::Keypair {
        let mut seed = Zeroizing::new(*self.seed);
        libp2p::identity::Keypair::ed25519_from_bytes(&mut seed[..])
            .expect("any 32 bytes are an ed25519 seed")
    }
}
