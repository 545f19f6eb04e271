//! Addresses that mDNS and Kademlia found: believed for configured peers only, few, and not for long.
//!
//! Dialing asks for the peer's key, so a false one costs a dial that fails. They bring a dial forward only where nothing else
//! was there to be dialed; otherwise the waits between dials stand, whatever anyone says and how often.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tokio::time::Instant;

use super::{Links, bare, ms};
use crate::{Finder, Standing, limits};

/// One address, and until when it is believed; by mDNS until it says otherwise.
pub(super) struct Found {
    pub(super) address: Multiaddr,
    until: Option<Instant>,
}

impl Found {
    pub(super) fn finder(&self) -> Finder {
        match self.until {
            Some(_) => Finder::Kademlia,
            None => Finder::Mdns,
        }
    }
}

/// The address without a peer id, if it is one that may be dialed on someone's word: an IP address with TCP or QUIC and nothing
/// else.
pub(crate) fn plausible(address: &Multiaddr) -> Option<Multiaddr> {
    let address = bare(address.clone());
    let mut parts = address.iter();
    let somewhere = match parts.next()? {
        Protocol::Ip4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Protocol::Ip6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        _ => false,
    };
    let transport = match (parts.next()?, parts.next(), parts.next()) {
        (Protocol::Tcp(port), None, None) => port != 0,
        (Protocol::Udp(port), Some(Protocol::QuicV1), None) => port != 0,
        _ => false,
    };
    (somewhere && transport).then_some(address)
}

impl Links {
    /// An address of a peer was found.
    pub(crate) fn found(&mut self, peer: &PeerId, address: &Multiaddr, finder: Finder) {
        let Some(link) = self.links.get_mut(peer) else {
            return;
        };
        let Some(address) = plausible(address) else {
            return;
        };
        if !link.configured || link.standing != Standing::Known {
            return;
        }
        let until = (finder == Finder::Kademlia).then(|| Instant::now() + ms(limits::FOUND_MS));
        link.found.retain(|found| found.address != address);
        if link.found.len() >= limits::FOUND_ADDRESSES_MAX {
            link.found.remove(0);
        }
        link.found.push(Found { address, until });
        let slot = &mut link.slots[0];
        if slot.held.is_none() && slot.dialing.is_none() && slot.due.is_none() {
            slot.due = Some(Instant::now() + slot.backoff.next());
        }
        self.changed = true;
    }

    /// An address is no longer announced.
    pub(crate) fn lost(&mut self, peer: &PeerId, address: &Multiaddr) {
        if let Some(link) = self.links.get_mut(peer) {
            let address = bare(address.clone());
            link.found.retain(|found| found.address != address);
            self.changed = true;
        }
    }

    /// mDNS began anew: what it found is to be found again.
    pub(crate) fn lost_mdns(&mut self) {
        for link in self.links.values_mut() {
            link.found.retain(|found| found.until.is_some());
        }
        self.changed = true;
    }

    /// Known peers that are to be connected, and aren't.
    pub(crate) fn sought(&self) -> Vec<PeerId> {
        self.links
            .iter()
            .filter(|(_, link)| link.configured && link.standing == Standing::Known)
            .filter(|(_, link)| link.control().is_none())
            .map(|(peer, _)| *peer)
            .collect()
    }

    /// Forgets what is too old; says when the next is.
    pub(super) fn expire_found(&mut self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for link in self.links.values_mut() {
            let before = link.found.len();
            link.found
                .retain(|found| found.until.is_none_or(|until| until > now));
            self.changed |= link.found.len() != before;
            let first = link.found.iter().filter_map(|found| found.until).min();
            next = next.into_iter().chain(first).min();
        }
        next.map(|next| next + Duration::from_millis(1))
    }
}
