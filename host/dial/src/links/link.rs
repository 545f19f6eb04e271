//! What is known of a peer, of its lanes and of a connection.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::found::Found;
use crate::{Lane, Standing, Why, backoff::Backoff, greeting::Incarnation, status::Meter};

/// The connection that carries a lane.
pub(super) struct Held {
    pub(super) id: ConnectionId,
    pub(super) dialed: bool,
    pub(super) since: Instant,
    pub(super) from: Incarnation,
    /// We are no more than a guest there, or the peer no more than one here.
    pub(super) guest: bool,
    pub(super) round_trips: VecDeque<Duration>,
    /// What had been read when a ping last came back, or was forgiven.
    pub(super) read: u64,
}

/// One lane with one peer.
pub(super) struct Slot {
    pub(super) held: Option<Held>,
    /// The dial under way, greeting included.
    pub(super) dialing: Option<ConnectionId>,
    /// Whether that dial has got as far as its greeting.
    pub(super) greeting: bool,
    /// The peer isn't heard over what is held, so that this is dialed beside it.
    pub(super) seeks: bool,
    pub(super) backoff: Backoff,
    pub(super) due: Option<Instant>,
    pub(super) why: Option<Why>,
    /// Dials that came to nothing.
    pub(super) failed: u64,
    pub(super) meter: Arc<Meter>,
}

pub(super) struct Link {
    pub(super) configured: bool,
    pub(super) standing: Standing,
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) learned: Vec<Multiaddr>,
    /// What mDNS and Kademlia found, the newest last.
    pub(super) found: Vec<Found>,
    /// Addresses where someone else was; left out until there is no other.
    pub(super) wrong: HashSet<Multiaddr>,
    pub(super) slots: [Slot; 2],
    pub(super) protocols: Vec<String>,
}

impl Link {
    pub(super) fn slot(&mut self, lane: Lane) -> &mut Slot {
        &mut self.slots[at(lane)]
    }

    pub(super) fn control(&self) -> Option<&Held> {
        self.slots[0].held.as_ref()
    }

    /// Where to dial: what is configured, then what it told, then what was found; not where someone else was, unless there
    /// is no other.
    pub(super) fn targets(&mut self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.addresses.clone();
        let found = self.found.iter().map(|found| &found.address);
        for address in self.learned.iter().chain(found) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
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

pub(super) fn at(lane: Lane) -> usize {
    usize::from(lane.carrier() == Lane::Vat)
}

/// One connection, from the moment that it counts.
pub(super) struct Conn {
    pub(super) peer: PeerId,
    /// The lane that it was dialed for, or says that it is for.
    pub(super) lane: Option<Lane>,
    pub(super) dialed: bool,
    /// It carries no lane, but what Kademlia and relays do.
    pub(super) errand: bool,
    /// Through a relay.
    pub(super) relayed: bool,
    pub(super) established: bool,
    pub(super) address: Option<Multiaddr>,
    pub(super) standing: Standing,
    pub(super) meters: [Arc<Meter>; 2],
    /// When it is ended if nothing changes that.
    pub(super) deadline: Option<(Instant, Why)>,
    /// Why it is ended, once it is.
    pub(super) why: Option<Why>,
}
