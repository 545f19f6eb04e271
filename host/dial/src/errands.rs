//! Keeps what others do on connections apart from the lanes: a behaviour within [`OnErrands`] sees connections for errands only.
//!
//! A connection that we dialed is one from the start or never; one that a host dialed becomes one when it greets so. Until then
//! its handler is there, and what it says is kept.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        derive_prelude::Either,
        dummy,
    },
};

use crate::{limits, links::plausible};

/// Which connections are for errands. The links decide it, and the others look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Errands(Arc<Mutex<HashSet<ConnectionId>>>);

impl Errands {
    fn ids(&self) -> MutexGuard<'_, HashSet<ConnectionId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, id: ConnectionId) {
        self.ids().insert(id);
    }

    pub(crate) fn remove(&self, id: ConnectionId) {
        self.ids().remove(&id);
    }

    fn contains(&self, id: ConnectionId) -> bool {
        self.ids().contains(&id)
    }
}

/// Who dialed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

type Admits = Box<dyn Fn(&PeerId, Way) -> bool + Send>;

/// A connection that a host dialed and that hasn't said what it is for.
struct Unsaid<E> {
    peer: PeerId,
    endpoint: ConnectedPoint,
    events: Vec<E>,
}

/// A behaviour that sees connections for errands only, and of those the ones that it is to.
pub(crate) struct OnErrands<B: NetworkBehaviour> {
    pub(crate) inner: B,
    errands: Errands,
    admits: Admits,
    /// Its own dials.
    dials: HashSet<ConnectionId>,
    /// Connections with its handler that aren't established.
    made: HashSet<ConnectionId>,
    unsaid: HashMap<ConnectionId, Unsaid<THandlerOutEvent<B>>>,
    seen: HashMap<ConnectionId, PeerId>,
}

impl<B: NetworkBehaviour> OnErrands<B> {
    pub(crate) fn new(
        inner: B,
        errands: Errands,
        admits: impl Fn(&PeerId, Way) -> bool + Send + 'static,
    ) -> Self {
        Self {
            inner,
            errands,
            admits: Box::new(admits),
            dials: HashSet::new(),
            made: HashSet::new(),
            unsaid: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    fn with(&self, peer: &PeerId) -> usize {
        self.seen.values().filter(|other| *other == peer).count()
    }

    fn show(&mut self, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint) {
        let other_established = self.with(&peer);
        self.seen.insert(id, peer);
        self.inner
            .on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id: id,
                endpoint,
                failed_addresses: &[],
                other_established,
            }));
    }

    fn show_said(&mut self) {
        let said: Vec<ConnectionId> = self
            .unsaid
            .keys()
            .filter(|id| self.errands.contains(**id))
            .copied()
            .collect();
        for id in said {
            if let Some(unsaid) = self.unsaid.remove(&id) {
                self.show(id, unsaid.peer, &unsaid.endpoint);
                for event in unsaid.events {
                    self.inner
                        .on_connection_handler_event(unsaid.peer, id, event);
                }
            }
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for OnErrands<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if !self.dials.contains(&id) {
            return Ok(Vec::new());
        }
        let mut more: Vec<Multiaddr> = self
            .inner
            .handle_pending_outbound_connection(id, peer, addresses, role)?
            .iter()
            .filter_map(plausible)
            .collect();
        more.truncate(limits::KAD_ADDRESSES_MAX);
        Ok(more)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !(self.admits)(&peer, Way::In) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        let handler = self
            .inner
            .handle_established_inbound_connection(id, peer, local, remote)?;
        self.made.insert(id);
        Ok(Either::Left(handler))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dials.remove(&id);
        if !self.errands.contains(id) || !(self.admits)(&peer, Way::Out) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        let handler = self
            .inner
            .handle_established_outbound_connection(id, peer, address, role, port_use)?;
        self.made.insert(id);
        Ok(Either::Left(handler))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) => {
                let id = made.connection_id;
                if !self.made.remove(&id) {
                } else if made.endpoint.is_dialer() {
                    self.show(id, made.peer_id, made.endpoint);
                } else {
                    let unsaid = Unsaid {
                        peer: made.peer_id,
                        endpoint: made.endpoint.clone(),
                        events: Vec::new(),
                    };
                    self.unsaid.insert(id, unsaid);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.unsaid.remove(&closed.connection_id);
                if self.seen.remove(&closed.connection_id).is_some() {
                    let remaining_established = self.with(&closed.peer_id);
                    self.inner
                        .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                            remaining_established,
                            ..closed
                        }));
                }
            }
            FromSwarm::AddressChange(change) => {
                if self.seen.contains_key(&change.connection_id) {
                    self.inner.on_swarm_event(event);
                }
            }
            FromSwarm::DialFailure(failed) => {
                self.made.remove(&failed.connection_id);
                if self.dials.remove(&failed.connection_id) {
                    self.inner.on_swarm_event(event);
                }
            }
            FromSwarm::ListenFailure(failed) => {
                self.made.remove(&failed.connection_id);
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let Either::Left(event) = event;
        self.show_said();
        if let Some(unsaid) = self.unsaid.get_mut(&id) {
            if unsaid.events.len() < limits::ERRAND_EVENTS_MAX {
                unsaid.events.push(event);
            }
        } else if self.seen.contains_key(&id) {
            self.inner.on_connection_handler_event(peer, id, event);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.show_said();
        loop {
            let action = match self.inner.poll(cx) {
                Poll::Ready(action) => action,
                Poll::Pending => return Poll::Pending,
            };
            return Poll::Ready(match action {
                ToSwarm::Dial { opts } => {
                    self.dials.insert(opts.connection_id());
                    ToSwarm::Dial { opts }
                }
                ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                } => {
                    // "Any" is any of those that it sees.
                    let id = match handler {
                        NotifyHandler::One(id) => self.seen.contains_key(&id).then_some(id),
                        NotifyHandler::Any => self
                            .seen
                            .iter()
                            .find(|(_, peer)| **peer == peer_id)
                            .map(|(id, _)| *id),
                    };
                    let Some(id) = id else { continue };
                    ToSwarm::NotifyHandler {
                        peer_id,
                        handler: NotifyHandler::One(id),
                        event: Either::Left(event),
                    }
                }
                other => other.map_in(Either::Left),
            });
        }
    }
}
