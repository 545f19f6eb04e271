//! Where libp2p asks: which connections may be made, and what became of them.

use std::{
    collections::HashSet,
    convert::Infallible,
    task::{Context, Poll},
};

use futures::FutureExt;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, ToSwarm,
    },
};
use tokio::time::Instant;

use super::{Links, bare, ip, link::Conn, ms, relayed, root};
use crate::{
    Standing, Why,
    greeting::Carries,
    handler::{Begin, Handler, Heard},
    limits,
};

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Full(&'static str);

pub(super) fn full<T>(what: &'static str) -> Result<T, ConnectionDenied> {
    Err(ConnectionDenied::new(Full(what)))
}

impl Links {
    pub(super) fn begin(&self, conn: &Conn) -> Begin {
        Begin {
            peer: conn.peer,
            standing: conn.standing,
            dialed_for: match (conn.dialed, conn.errand) {
                (false, _) => None,
                (true, true) => Some(Carries::Errands),
                (true, false) => conn.lane.map(Carries::Lane),
            },
            own: self.setup.incarnation,
            patience: ms(self.setup.timing.greeting_patience_ms),
            inbound: self.setup.inbound.clone(),
            meters: conn.meters.clone(),
        }
    }
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
        let configured = from.is_some()
            && self
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

    /// Only for dials that aren't ours: those are counted here, and let on.
    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if !self.conns.contains_key(&id) {
            self.may_walk(id, peer, role)?;
        }
        Ok(Vec::new())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.pending_in.remove(&id);
        let standing = self.setup.policy.standing(&peer);
        let with_peer = self
            .conns
            .values()
            .filter(|conn| conn.peer == peer && !conn.errand)
            .count();
        if self.closing {
            return full("the host is going down");
        }
        if standing == Standing::Known {
            let known: HashSet<PeerId> = self
                .conns
                .values()
                .filter(|conn| conn.standing == Standing::Known && !conn.errand)
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
            errand: false,
            relayed: relayed(local) || relayed(remote),
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
        role: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        if self.walks.remove(&id) {
            return self.walked(id, peer, address, role);
        }
        let Some(conn) = self.conns.get_mut(&id) else {
            return full("not dialed from here");
        };
        if conn.why.is_some() || self.closing {
            return full("no longer wanted");
        }
        conn.address = Some(bare(address.clone()));
        conn.relayed = relayed(address);
        if let Some(lane) = conn.lane
            && let Some(link) = self.links.get_mut(&peer)
        {
            let slot = link.slot(lane);
            // The peer's own dial was welcomed meanwhile, or it is heard again: this one isn't needed, and is never greeted on.
            if slot.held.is_some() && !slot.seeks {
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
            FromSwarm::DialFailure(failed) => {
                self.walks.remove(&failed.connection_id);
                self.dial_failed(failed.connection_id, failed.error);
            }
            FromSwarm::NewListenAddr(new) => self.listens(new.listener_id, new.addr),
            FromSwarm::ExpiredListenAddr(old) => self.listens_no_more(old.listener_id, old.addr),
            FromSwarm::ListenerClosed(closed) => {
                let why = match closed.reason {
                    Ok(()) => "the relay ended it".into(),
                    Err(cause) => root(cause),
                };
                self.listener_closed(closed.listener_id, why);
            }
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
            Heard::Greeting {
                carries: Carries::Lane(lane),
                from,
            } => self.greeted(id, lane, from),
            Heard::Greeting { .. } => self.greeted_for_errands(id),
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
