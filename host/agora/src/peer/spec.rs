//! What the manifest says of a peer, and the command line of how peers are reached.

use std::collections::{BTreeMap, BTreeSet};

use agora_dial::{Discovery, Multiaddr, PeerId, Relay};
use agora_realm::{ChannelName, PublicKey};

use crate::boot::manifest::GrantSpec;

/// One peer.
#[derive(Debug, Clone, Default)]
pub struct PeerSpec {
    /// Its libp2p id. None: it is let in by its key only, after a login.
    pub id: Option<PeerId>,
    /// Its host's key. What it says on its own behalf must verify with it.
    pub key: Option<PublicKey>,
    /// Where it may be; none: it is waited for.
    pub addresses: Vec<Multiaddr>,
    /// Where it may be, too, as the command line says.
    pub given: Vec<Multiaddr>,
    /// What it is granted here.
    pub grants: Vec<GrantSpec>,
    /// Of its channels, as they are called there: those of which a copy is kept here.
    pub mirror: BTreeSet<ChannelName>,
    /// It may keep copies of channels that it may read here, with proofs, which tell more than the channels do.
    pub may_mirror: bool,
    /// Its checkpoints are signed here as a witness's.
    pub witness: bool,
}

/// How a host deals with other realms' hosts.
#[derive(Debug, Clone, Default)]
pub struct Peering {
    /// Where it listens for them; nowhere if empty.
    pub listen: Vec<Multiaddr>,
    /// The peers, by the names they have here.
    pub peers: BTreeMap<String, PeerSpec>,
    /// Where their addresses are looked for, beside those that are given.
    pub discovery: Discovery,
    /// Relays: to be one, and to listen through others.
    pub relay: Relay,
    /// Keep no connections although there are peers (`--offline`, and tests).
    pub offline: bool,
}

impl Peering {
    /// Whether there is anything to connect or wait for.
    pub fn is_on(&self) -> bool {
        let relays = self.relay.serve.is_some() || !self.relay.via.is_empty();
        let knows = self.peers.values().any(|peer| peer.id.is_some());
        !self.offline && (!self.listen.is_empty() || relays || knows)
    }
}
