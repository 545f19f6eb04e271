//! The dialer: a task that drives libp2p, and the handle that others hold.
//!
//! In: options, then commands. Promise: configured peers are kept dialed until [`Dialer::shutdown`], or until the last
//! handle is dropped; then every connection and stream ends. Failure: a stream that can't be opened says why at once.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, dcutr, identify, mdns,
    multiaddr::Protocol,
    ping,
    relay::{self as circuit},
    swarm::{NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    Incoming, KnownPeer, Lane, OpenError, Options, PeerStatus, Snapshot, Standing, StartError,
    Stream,
    backoff::Jitter,
    errands::{Errands, OnErrands, Way},
    greeting::Incarnation,
    handler::OpenReply,
    kad::{self, Kad},
    lan::{self, Lan},
    limits,
    links::{Links, Services, Setup, parted, root},
    relay, transport,
};

#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "Event")]
struct Behaviour {
    links: Links,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    lan: Lan,
    kad: Toggle<OnErrands<Kad>>,
    relay: Toggle<OnErrands<circuit::Behaviour>>,
    through: OnErrands<circuit::client::Behaviour>,
    punch: Toggle<dcutr::Behaviour>,
}

#[derive(Debug)]
enum Event {
    Identify(Box<identify::Event>),
    Ping(ping::Event),
    Lan(mdns::Event),
    Kad(Box<libp2p::kad::Event>),
    Relay(Box<circuit::Event>),
    Through(circuit::client::Event),
    Punch(dcutr::Event),
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

impl From<mdns::Event> for Event {
    fn from(event: mdns::Event) -> Self {
        Event::Lan(event)
    }
}

impl From<libp2p::kad::Event> for Event {
    fn from(event: libp2p::kad::Event) -> Self {
        Event::Kad(Box::new(event))
    }
}

impl From<circuit::Event> for Event {
    fn from(event: circuit::Event) -> Self {
        Event::Relay(Box::new(event))
    }
}

impl From<circuit::client::Event> for Event {
    fn from(event: circuit::client::Event) -> Self {
        Event::Through(event)
    }
}

impl From<dcutr::Event> for Event {
    fn from(event: dcutr::Event) -> Self {
        Event::Punch(event)
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
    Unheard {
        peer: PeerId,
        is_unheard: bool,
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
        let kademlia = options.discovery.kademlia.as_ref();
        let bootstrap = kademlia.map_or(&[][..], |kademlia| &kademlia.bootstrap);
        let via = &options.relay.via;
        let waypoints = bootstrap.len() + via.len();
        if waypoints > limits::WAYPOINTS_MAX {
            let what = "relays and hosts that Kademlia asks";
            return Err(too_many(what, waypoints, limits::WAYPOINTS_MAX));
        }
        let to_waypoint = |address: &Multiaddr, what| {
            parted(address).ok_or_else(|| {
                StartError::Transport(format!(
                    "{what} {address} doesn't end with /p2p/ and the host's peer id"
                ))
            })
        };
        let bootstrap: Vec<_> = bootstrap
            .iter()
            .map(|address| to_waypoint(address, "the host that Kademlia asks"))
            .collect::<Result<_, _>>()?;
        let via: Vec<_> = via
            .iter()
            .map(|address| to_waypoint(address, "the relay"))
            .collect::<Result<_, _>>()?;
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|cause| StartError::Transport(format!("no randomness: {cause}")))?;
        let (mut incarnation, mut seed) = ([0; 8], [0; 8]);
        incarnation.copy_from_slice(&random[..8]);
        seed.copy_from_slice(&random[8..]);

        let (inbound, queue) = mpsc::channel(limits::INBOUND_QUEUE);
        let (watch_in, watch) = watch::channel(Arc::new(Snapshot::default()));
        let errands = Errands::default();
        let mut links = Links::new(Setup {
            own,
            incarnation: Incarnation(incarnation),
            policy: options.policy.clone(),
            timing: options.timing,
            jitter: Jitter::new(options.jitter_seed.unwrap_or(u64::from_le_bytes(seed))),
            inbound,
            watch: watch_in,
            errands: errands.clone(),
            services: Services {
                kademlia: kademlia.is_some(),
                kademlia_serves: kademlia.is_some_and(|kademlia| kademlia.serve),
                relays: options.relay.serve.is_some(),
                punches: options.relay.punch,
            },
        });
        let identify = identify::Config::new("/agora/1".into(), keypair.public())
            .with_agent_version("agora".into())
            .with_cache_size(0);
        let ping = ping::Config::new()
            .with_interval(Duration::from_millis(options.timing.ping_every_ms))
            .with_timeout(Duration::from_millis(options.timing.ping_patience_ms));
        for (peer, address) in &bootstrap {
            links.keep_waypoint(*peer, address.clone(), false);
        }
        for (peer, address) in via {
            links.keep_waypoint(peer, address, true);
        }
        let policy = options.policy.clone();
        let asks = kademlia.map(|kademlia| {
            let mut kad = kad::build(own, kademlia);
            for (peer, address) in bootstrap {
                kad.add_address(&peer, address);
            }
            let serve = kademlia.serve;
            OnErrands::new(kad, errands.clone(), move |peer, way| match way {
                Way::In => serve && policy.standing(peer) != Standing::Refused,
                Way::Out => true,
            })
        });
        let ask_every = kademlia.map(|kademlia| {
            Duration::from_millis(kademlia.ask_every_ms.max(limits::KAD_ASK_MIN_MS))
        });
        let policy = options.policy.clone();
        let relays = options.relay.serve.map(|bounds| {
            OnErrands::new(
                relay::build(own, bounds),
                errands.clone(),
                move |peer, way| way == Way::In && policy.standing(peer) == Standing::Known,
            )
        });
        let (circuits, through) = circuit::client::new(own);
        let punch = options.relay.punch.then(|| dcutr::Behaviour::new(own));
        let lan = lan::build(own, options.discovery.mdns)
            .map_err(|cause| StartError::Transport(format!("no mDNS: {cause}")))?;
        let behaviour = Behaviour {
            lan,
            kad: asks.into(),
            relay: relays.into(),
            through: OnErrands::new(through, errands, |_, way| way == Way::Out),
            punch: punch.into(),
            links,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
        };
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_max_negotiating_inbound_streams(limits::NEGOTIATING_IN_MAX);
        let mut swarm = Swarm::new(
            transport::build(&keypair, circuits)?,
            behaviour,
            own,
            config,
        );

        let listening = listen(&mut swarm, &options.listen).await?;
        for known in options.peers {
            swarm.behaviour_mut().links.set_peer(known);
        }
        let (commands, orders) = mpsc::channel(limits::COMMANDS_QUEUE);
        tokio::spawn(drive(swarm, orders, ask_every));
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

    /// Keeps this peer dialed, at these addresses from now on; it is dialed at once unless it is connected, whatever the wait was
    /// and whatever is being tried. `false` if there is no room for one more. Addresses beyond [`limits::ADDRESSES_MAX`] are
    /// left out. [`Self::peers`] shows it when this answers.
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

    /// Says that the peer isn't heard over the connections that there are, or is again. While it isn't, those that were dialed from here are
    /// dialed anew beside what there is, once each time that this is said; one that is welcome takes the place of the old one, and one that
    /// fails changes nothing.
    pub async fn unheard(&self, peer: PeerId, is_unheard: bool) {
        let unheard = Command::Unheard { peer, is_unheard };
        let _ = self.commands.send(unheard).await;
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
                listens(swarm, &address);
                if !is_circuit(&address) {
                    found.push(address);
                }
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

fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// A relay tells those who listen through it where it is itself.
fn listens(swarm: &mut Swarm<Behaviour>, address: &Multiaddr) {
    if swarm.behaviour().relay.is_enabled() && !is_circuit(address) {
        swarm.add_external_address(address.clone());
    }
}

fn heard(swarm: &mut Swarm<Behaviour>, event: SwarmEvent<Event>) {
    let own = *swarm.local_peer_id();
    let listening: Vec<Multiaddr> = match &event {
        SwarmEvent::Behaviour(Event::Lan(_)) => swarm.listeners().cloned().collect(),
        _ => Vec::new(),
    };
    if let SwarmEvent::NewListenAddr { address, .. } = &event {
        listens(swarm, address);
    }
    let Behaviour {
        links, kad, lan, ..
    } = swarm.behaviour_mut();
    match event {
        SwarmEvent::Behaviour(Event::Lan(event)) => lan::heard(lan, links, own, &listening, event),
        SwarmEvent::Behaviour(Event::Kad(event)) => tracing::trace!(?event, "kademlia"),
        SwarmEvent::Behaviour(Event::Relay(event)) => tracing::debug!(?event, "relaying"),
        SwarmEvent::Behaviour(Event::Through(event)) => tracing::debug!(?event, "through a relay"),
        SwarmEvent::Behaviour(Event::Punch(event)) => tracing::debug!(?event, "hole punching"),
        other => heard_of_links(links, kad, other),
    }
}

fn heard_of_links(links: &mut Links, kad: &mut Toggle<OnErrands<Kad>>, event: SwarmEvent<Event>) {
    match event {
        SwarmEvent::Behaviour(Event::Ping(ping)) => links.pinged(ping.connection, ping.result),
        SwarmEvent::Behaviour(Event::Identify(event)) => {
            if let identify::Event::Received {
                connection_id,
                peer_id,
                info,
            } = *event
            {
                if let (Some(kad), Some(from)) = (kad.as_mut(), links.place(connection_id)) {
                    kad::learn(&mut kad.inner, peer_id, from, &info);
                }
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

/// The next time to ask; never, if nobody is asked.
async fn tick(asking: &mut Option<tokio::time::Interval>) {
    match asking {
        Some(asking) => {
            asking.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn drive(
    mut swarm: Swarm<Behaviour>,
    mut orders: mpsc::Receiver<Command>,
    ask_every: Option<Duration>,
) {
    let mut asking = ask_every.map(tokio::time::interval);
    if let Some(asking) = &mut asking {
        asking.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    let done = loop {
        tokio::select! {
            order = orders.recv() => {
                let links = &mut swarm.behaviour_mut().links;
                match order {
                    Some(Command::Open { peer, lane, reply }) => links.open(peer, lane, reply),
                    Some(Command::SetPeer { known, done }) => {
                        let has_room = links.set_peer(known);
                        links.publish();
                        let _ = done.send(has_room);
                    }
                    Some(Command::Forget { peer }) => links.forget(&peer),
                    Some(Command::Reconsider { peer }) => links.reconsider(&peer),
                    Some(Command::Unheard { peer, is_unheard }) => links.unheard(&peer, is_unheard),
                    Some(Command::ShutDown { done }) => break Some(done),
                    None => break None,
                }
            }
            () = tick(&mut asking) => {
                let Behaviour { links, kad, .. } = swarm.behaviour_mut();
                if let Some(kad) = kad.as_mut() {
                    links.sought().into_iter().for_each(|peer| kad::ask(&mut kad.inner, peer));
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
