//! Connections that others of this host's behaviours make: Kademlia on its walks, and hole punching, which turns a lane's
//! relayed connection into a direct one.
//!
//! A direct connection that hole punching made greets a lane that is relayed, and so replaces it, as any new connection of a
//! lane does. Where both sides make one, the greeting decides, as for any dials that cross. What ran over the relayed one ends then, and is begun anew by whoever began it.

use libp2p::{
    Multiaddr, PeerId,
    core::Endpoint,
    multiaddr::Protocol,
    swarm::{ConnectionDenied, ConnectionId},
};
use tokio::time::Instant;

use super::{
    Links,
    admission::full,
    bare,
    link::{Conn, at},
    ms, relayed,
};
use crate::{Finder, Lane, Standing, Why, handler::Handler, lane::CARRIERS, limits};

impl Links {
    /// A lane with this peer that goes through a relay, or is about to, and isn't being replaced.
    fn relayed_lane(&self, peer: &PeerId) -> Option<Lane> {
        let link = self.links.get(peer)?;
        if !self.setup.services.punches || self.setup.policy.standing(peer) != Standing::Known {
            return None;
        }
        let through_relay = |id: &ConnectionId| {
            let conn = self.conns.get(id);
            conn.is_some_and(|conn| conn.relayed && conn.established)
        };
        CARRIERS.into_iter().find(|lane| {
            let slot = &link.slots[at(*lane)];
            match (&slot.held, &slot.dialing) {
                (Some(held), None) => through_relay(&held.id),
                (None, Some(dialing)) => through_relay(dialing),
                _ => false,
            }
        })
    }

    /// Whether a dial that isn't ours may be made.
    pub(super) fn may_walk(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        role: Endpoint,
    ) -> Result<(), ConnectionDenied> {
        let made = self
            .conns
            .values()
            .filter(|conn| conn.dialed && conn.errand && conn.deadline.is_some())
            .count();
        if self.closing || self.walks.len() + made >= limits::WALKS_MAX {
            return full("too many connections for errands");
        }
        let Some(peer) = peer else {
            return full("nobody is dialed without an id");
        };
        let punches = self.relayed_lane(&peer).is_some();
        let walks = self.setup.services.kademlia
            && role == Endpoint::Dialer
            && self.setup.policy.standing(&peer) != Standing::Refused;
        if !punches && !walks {
            return full("not dialed from here");
        }
        self.walks.insert(id);
        Ok(())
    }

    /// Such a dial succeeded.
    pub(super) fn walked(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
    ) -> Result<Handler, ConnectionDenied> {
        // Over QUIC both sides of hole punching dial, whatever their roles: what comes of it is up to the greeting.
        let quic = address.iter().any(|part| part == Protocol::QuicV1);
        let greets = role == Endpoint::Dialer || quic;
        let lane = self.relayed_lane(&peer);
        if self.closing || relayed(address) || (lane.is_none() && !self.setup.services.kademlia) {
            return full("no longer wanted");
        }
        let errand = lane.is_none();
        let meters = match self.links.get_mut(&peer) {
            Some(link) => {
                if let Some(lane) = lane.filter(|_| greets) {
                    let slot = link.slot(lane);
                    slot.dialing = Some(id);
                    slot.greeting = true;
                }
                [link.slots[0].meter.clone(), link.slots[1].meter.clone()]
            }
            None => Default::default(),
        };
        let (patience, why) = match errand {
            true => (limits::ERRAND_MS, Why::GuestTimeOver),
            false => (self.setup.timing.greeting_patience_ms, Why::TimedOut),
        };
        let conn = Conn {
            peer,
            lane: lane.filter(|_| greets),
            dialed: greets,
            errand,
            relayed: false,
            established: false,
            address: Some(bare(address.clone())),
            standing: self.setup.policy.standing(&peer),
            meters,
            deadline: Some((Instant::now() + ms(patience), why)),
            why: None,
        };
        let handler = Handler::new(self.begin(&conn));
        self.conns.insert(id, conn);
        if errand {
            self.setup.errands.add(id);
            // It has proved its key there.
            self.found(&peer, address, Finder::Kademlia);
        }
        Ok(handler)
    }
}
