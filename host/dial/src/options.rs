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
