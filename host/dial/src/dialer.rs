//! The dialer: a task that drives libp2p, and the handle that others hold.
//!
//! In: options, then commands. Promise: configured peers are kept dialed until [`Dialer::shutdown`], or until the last
//! handle is dropped; then every connection and stream ends. Failure: a stream that can't be opened says why at once.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, identify, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    Incoming, KnownPeer, Lane, OpenError, Options, PeerStatus, Snapshot, StartError, Stream,
    backoff::Jitter,
    greeting::Incarnation,
    handler::OpenReply,
    limits,
    links::{Links, Setup, root},
    transport,
};

#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "Event")]
struct Behaviour {
    links: Links,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

#[derive(Debug)]
enum Event {
    Identify(Box<identify::Event>),
    Ping(ping::Event),
}

impl From<std::convert::Infallible> for Event {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<identify::Event> for Event {
    fn from(event: identify::Event) -> Self {
        Event::Identify(Box::new(event))
    }
}

impl From<ping::Event> for Event {
    fn from(event: ping::Event) -> Self {
        Event::Ping(event)
    }
}

enum Command {
    Open {
        peer: PeerId,
        lane: Lane,
        reply: OpenReply,
    },
    SetPeer {
        known: KnownPeer,
        done: oneshot::Sender<bool>,
    },
    Forget {
        peer: PeerId,
    },
    Reconsider {
        peer: PeerId,
    },
    ShutDown {
        done: oneshot::Sender<()>,
    },
}

/// Streams that peers opened, in the order in which they negotiated.
#[derive(Debug)]
pub struct Inbound {
    queue: mpsc::Receiver<Incoming>,
}

impl Inbound {
    /// The next; nothing once the dialer is shut down. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.queue.recv().await
    }
}

/// Keeps peers connected and opens streams. Cheap to clone; when the last clone is dropped, everything ends.
#[derive(Debug, Clone)]
pub struct Dialer {
    own: PeerId,
    listening: Arc<[Multiaddr]>,
    commands: mpsc::Sender<Command>,
    watch: watch::Receiver<Arc<Snapshot>>,
}

impl Dialer {
    /// Listens, and begins to dial. Needs tokio's runtime, with its timers and I/O.
    pub async fn start(options: Options) -> Result<(Dialer, Inbound), StartError> {
        let keypair = options.keypair();
        let own = keypair.public().to_peer_id();
        let too_many = |what, count, max| StartError::TooMany { what, count, max };
        if options.peers.len() > limits::PEERS_MAX {
            return Err(too_many("peers", options.peers.len(), limits::PEERS_MAX));
        }
        if let Some(known) = options
            .peers
            .iter()
            .find(|known| known.addresses.len() > limits::ADDRESSES_MAX)
        {
            return Err(too_many(
                "addresses of a peer",
                known.addresses.len(),
                limits::ADDRESSES_MAX,
            ));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|cause| StartError::Transport(format!("no randomness: {cause}")))?;
        let (mut incarnation, mut seed) = ([0; 8], [0; 8]);
        incarnation.copy_from_slice(&random[..8]);
        seed.copy_from_slice(&random[8..]);

        let (inbound, queue) = mpsc::channel(limits::INBOUND_QUEUE);
        let (watch_in, watch) = watch::channel(Arc::new(Snapshot::default()));
        let links = Links::new(Setup {
            own,
            incarnation: Incarnation(incarnation),
            policy: options.policy.clone(),
            timing: options.timing,
            jitter: Jitter::new(options.jitter_seed.unwrap_or(u64::from_le_bytes(seed))),
            inbound,
            watch: watch_in,
        });
        let identify = identify::Config::new("/agora/1".into(), keypair.public())
            .with_agent_version("agora".into())
            .with_cache_size(0);
        let ping = ping::Config::new()
            .with_interval(Duration::from_millis(options.timing.ping_every_ms))
            .with_timeout(Duration::from_millis(options.timing.ping_patience_ms));
        let behaviour = Behaviour {
            links,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
        };
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_max_negotiating_inbound_streams(limits::NEGOTIATING_IN_MAX);
        let mut swarm = Swarm::new(transport::build(&keypair)?, behaviour, own, config);

        let listening = listen(&mut swarm, &options.listen).await?;
        for known in options.peers {
            swarm.behaviour_mut().links.set_peer(known);
        }
        let (commands, orders) = mpsc::channel(limits::COMMANDS_QUEUE);
        tokio::spawn(drive(swarm, orders));
        Ok((
            Dialer {
                own,
                listening: listening.into(),
                commands,
                watch,
            },
            Inbound { queue },
        ))
    }

    /// This host's peer id.
    pub fn peer_id(&self) -> PeerId {
        self.own
    }

    /// Where it listens, as it was at the start.
    pub fn listening(&self) -> &[Multiaddr] {
        &self.listening
    }

    /// Opens a stream. Never waits for a connection: without one it fails at once.
    pub async fn open(&self, peer: PeerId, lane: Lane) -> Result<Stream, OpenError> {
        let (reply, opened) = oneshot::channel();
        self.commands
            .send(Command::Open { peer, lane, reply })
            .await
            .map_err(|_| OpenError::ShutDown)?;
        match opened.await {
            Ok(opened) => opened,
            Err(_) if self.commands.is_closed() => Err(OpenError::ShutDown),
            Err(_) => Err(OpenError::Disconnected { peer }),
        }
    }

    /// How every peer is now.
    pub fn peers(&self) -> Arc<Snapshot> {
        self.watch.borrow().clone()
    }

    /// The same, and every change of it. Traffic isn't a change; it is counted where it happens.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.watch.clone()
    }

    /// Waits until a peer is as wanted; fails if the dialer is shut down before.
    pub async fn until(
        &self,
        peer: PeerId,
        mut wanted: impl FnMut(&PeerStatus) -> bool,
    ) -> Result<PeerStatus, OpenError> {
        let mut watch = self.watch();
        let snapshot = watch
            .wait_for(|now| now.peers.get(&peer).is_some_and(&mut wanted))
            .await;
        let snapshot = snapshot.map_err(|_| OpenError::ShutDown)?;
        snapshot
            .peers
            .get(&peer)
            .cloned()
            .ok_or(OpenError::ShutDown)
    }

    /// Keeps this peer dialed, at these addresses from now on; it is dialed at once unless it is connected. `false` if
    /// there is no room for one more. Addresses beyond [`limits::ADDRESSES_MAX`] are left out.
    pub async fn set_peer(&self, known: KnownPeer) -> bool {
        let (done, set) = oneshot::channel();
        let _ = self.commands.send(Command::SetPeer { known, done }).await;
        set.await.unwrap_or(false)
    }

    /// Dials this peer no more, and ends what there is with it.
    pub async fn forget(&self, peer: PeerId) {
        let _ = self.commands.send(Command::Forget { peer }).await;
    }

    /// Asks the policy about this peer anew: connections of another standing end, and a configured one is dialed at once.
    pub async fn reconsider(&self, peer: PeerId) {
        let _ = self.commands.send(Command::Reconsider { peer }).await;
    }

    /// Ends every stream and connection and stops listening; returns when that is done. A UDP port is free a moment later,
    /// once QUIC has seen its connections off.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::ShutDown { done }).await.is_ok() {
            let _ = ended.await;
        }
    }
}

async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> Result<Vec<Multiaddr>, StartError> {
    let refused = |address: &Multiaddr, cause: String| StartError::Listen {
        address: address.clone(),
        cause,
    };
    let mut asked = Vec::new();
    for address in addresses {
        let id = swarm
            .listen_on(address.clone())
            .map_err(|error| refused(address, root(&error)))?;
        asked.push((id, address));
    }
    let deadline = Instant::now() + Duration::from_millis(limits::LISTEN_PATIENCE_MS);
    let mut found = Vec::new();
    while let Some((_, address)) = asked.first() {
        let Ok(event) = tokio::time::timeout_at(deadline, swarm.select_next_some()).await else {
            return Err(refused(address, "no address came up in time".into()));
        };
        match event {
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                asked.retain(|(id, _)| *id != listener_id);
                found.push(address);
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => {
                if let Some((_, address)) = asked.iter().find(|(id, _)| *id == listener_id) {
                    return Err(refused(
                        address,
                        reason
                            .err()
                            .map_or("closed".into(), |cause| cause.to_string()),
                    ));
                }
            }
            other => heard(swarm, other),
        }
    }
    Ok(found)
}

fn heard(swarm: &mut Swarm<Behaviour>, event: SwarmEvent<Event>) {
    let links = &mut swarm.behaviour_mut().links;
    match event {
        SwarmEvent::Behaviour(Event::Ping(ping)) => links.pinged(ping.connection, ping.result),
        SwarmEvent::Behaviour(Event::Identify(event)) => {
            if let identify::Event::Received {
                connection_id,
                info,
                ..
            } = *event
            {
                links.identified(connection_id, &info);
            }
        }
        SwarmEvent::ListenerError { error, .. } => {
            tracing::warn!(%error, "a listener failed, and goes on")
        }
        SwarmEvent::ListenerClosed {
            addresses,
            reason: Err(error),
            ..
        } => {
            tracing::error!(?addresses, %error, "no longer listening");
        }
        _ => {}
    }
}

async fn drive(mut swarm: Swarm<Behaviour>, mut orders: mpsc::Receiver<Command>) {
    let done = loop {
        tokio::select! {
            order = orders.recv() => {
                let links = &mut swarm.behaviour_mut().links;
                match order {
                    Some(Command::Open { peer, lane, reply }) => links.open(peer, lane, reply),
                    Some(Command::SetPeer { known, done }) => {
                        let _ = done.send(links.set_peer(known));
                    }
                    Some(Command::Forget { peer }) => links.forget(&peer),
                    Some(Command::Reconsider { peer }) => links.reconsider(&peer),
                    Some(Command::ShutDown { done }) => break Some(done),
                    None => break None,
                }
            }
            event = swarm.select_next_some() => heard(&mut swarm, event),
        }
    };
    orders.close();
    swarm.behaviour_mut().links.close();
    let deadline = Instant::now() + Duration::from_millis(limits::SHUTDOWN_PATIENCE_MS);
    while !swarm.behaviour().links.is_closed() {
        match tokio::time::timeout_at(deadline, swarm.select_next_some()).await {
            Ok(event) => heard(&mut swarm, event),
            Err(_) => break,
        }
    }
    drop(swarm);
    // Commands that still waited are dropped with their replies, which their callers see as the end.
    drop(orders);
    if let Some(done) = done {
        let _ = done.send(());
    }
}
