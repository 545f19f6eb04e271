use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use agora_dial::{Dialer, Lane, Multiaddr, PeerId, PeerState, Standing, Why, limits};
use futures::StreamExt;
use libp2p::{
    Swarm, Transport,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    },
    identify,
    identity::Keypair,
    noise, ping,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, OneShotHandler,
        SubstreamProtocol, SwarmEvent, THandlerOutEvent, ToSwarm, behaviour::toggle::Toggle,
    },
    tcp, yamux,
};
use tokio::net::TcpListener;

use crate::{
    hosts::{Host, QUIC, TCP, echoes, host, id, within},
    raw::{Frames, Hostile, choose, connect},
};

const ELSEWHERE: &str = "127.0.0.2";

/// A host that listens, and one that is honest and connected to it.
async fn honest(transport: &str) -> (Host, Host) {
    let b = host(2).listening(transport).start().await;
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.settled(2).await;
    b.settled(1).await;
    (a, b)
}

async fn gone(dialer: &Dialer, peer: u8) {
    let mut watch = dialer.watch();
    within(watch.wait_for(|now| !now.peers.contains_key(&id(peer)) && now.connections == 2))
        .await
        .expect("it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_that_never_negotiate_disturb_nobody() {
    let (a, b) = honest(TCP).await;
    let (address, b) = (b.address(), b.echoing());
    let mut frames = Frames::connect(9, ELSEWHERE, &address).await;
    let mut control = a.open(2, Lane::Control).await;
    for _ in 0..100 {
        for _ in 0..100 {
            if !frames.open(&[]).await {
                break;
            }
        }
        echoes(&mut control, b"still here").await;
    }
    // It never greets, and is let go for that.
    gone(&b, 9).await;
    echoes(&mut control, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_end_over_quic_are_handed_out_up_to_the_bound_and_disturb_nobody() {
    let (a, b) = honest(QUIC).await;
    let address = b.address();
    let Host {
        dialer,
        mut inbound,
    } = b;
    let (connections, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (connections.clone(), opened.clone());
    let opener = tokio::spawn(async move {
        loop {
            let mut hostile = Hostile::connect(9, &address).await;
            counts.0.fetch_add(1, Ordering::SeqCst);
            let mut open = hostile.greet(2).await;
            while open {
                open = hostile.open(&choose("/agora/vat/1")).await;
                counts.1.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    // What the hostile one opens is held, what the honest one opens is answered.
    let held = Arc::new(AtomicUsize::new(0));
    let count = held.clone();
    let taker = tokio::spawn(async move {
        let mut hostile = Vec::new();
        while let Some(incoming) = inbound.next().await {
            if incoming.peer == id(9) {
                hostile.push(incoming);
                count.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            tokio::spawn(async move {
                let (reader, mut writer) = futures::AsyncReadExt::split(incoming.stream);
                let _ = futures::io::copy(reader, &mut writer).await;
            });
        }
    });
    let mut control = a.open(2, Lane::Control).await;
    within(async {
        while opened.load(Ordering::SeqCst) < 200 {
            echoes(&mut control, b"still here").await;
        }
    })
    .await;
    opener.abort();
    echoes(&mut control, b"still here").await;
    let most = limits::LANE_STREAMS_IN_MAX * connections.load(Ordering::SeqCst);
    assert!(held.load(Ordering::SeqCst) <= most);
    assert!(dialer.peers().connections <= 2 + limits::PEER_CONNECTIONS_MAX);
    taker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_end_from_a_known_peer_end_its_connection() {
    let (a, mut b) = honest(TCP).await;
    let address = b.address();
    let mut control = a.open(2, Lane::Control).await;
    futures::AsyncWriteExt::write_all(&mut control, b"x")
        .await
        .expect("written");
    futures::AsyncWriteExt::flush(&mut control)
        .await
        .expect("sent");

    // It answers no ping either, and connects again whenever it is let go.
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let opener = tokio::spawn(async move {
        loop {
            let mut hostile = Hostile::connect(9, &address).await;
            count.fetch_add(1, Ordering::SeqCst);
            let mut open = hostile.greet(2).await;
            while open {
                open = hostile.open(&choose("/agora/vat/1")).await;
            }
        }
    });
    // Whoever takes streams holds what was handed out, and it is never more than the bound.
    let (mut held, mut honest) = (Vec::new(), None);
    let mut watch = b.dialer.watch();
    let flooded = |(peer, why): &(PeerId, Why)| *peer == id(9) && *why == Why::Flooded;
    within(async {
        loop {
            tokio::select! {
                incoming = b.inbound.next() => match incoming {
                    Some(incoming) if incoming.peer == id(9) => held.push(incoming),
                    Some(incoming) => honest = Some(incoming),
                    None => panic!("b runs"),
                },
                done = watch.wait_for(|now| now.turned_away.iter().any(flooded)) => {
                    done.expect("b runs");
                    break;
                }
            }
        }
    })
    .await;
    opener.abort();
    let most = limits::LANE_STREAMS_IN_MAX * connections.load(Ordering::SeqCst);
    assert!(
        held.len() <= most,
        "{} streams were handed out, of {most}",
        held.len()
    );
    gone(&b.dialer, 9).await;
    // The honest one got through, and goes on.
    let mut there = match honest {
        Some(incoming) => incoming.stream,
        None => {
            within(async {
                loop {
                    let incoming = b.next().await;
                    if incoming.peer == id(1) {
                        return incoming.stream;
                    }
                }
            })
            .await
        }
    };
    let mut byte = [0];
    within(futures::AsyncReadExt::read_exact(&mut there, &mut byte))
        .await
        .expect("it came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_the_other_lane_is_refused() {
    let mut b = host(2).listening(TCP).start().await;
    let mut frames = Hostile::connect(9, &b.address()).await;
    assert!(frames.greet(1).await);
    b.until(9, |status| status.lane(Lane::Control).connected)
        .await;
    assert!(frames.open(&choose("/agora/vat/1")).await);
    assert!(frames.open(&choose("/agora/control/1")).await);
    // Streams of one connection may negotiate in any order; what is handed out is of the lane.
    assert_eq!(b.next().await.lane, Lane::Control);
    let refused = within(async {
        loop {
            let refused = b.dialer.peers().peers[&id(9)]
                .lane(Lane::Control)
                .traffic()
                .streams_refused;
            if refused > 0 {
                return refused;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(refused.await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_leave_room_for_peers() {
    let b = host(2).listening(TCP).start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(connect(ELSEWHERE, &b.address()).await);
    }
    let mut watch = b.dialer.watch();
    let pending = within(watch.wait_for(|now| now.pending_in > 0))
        .await
        .expect("b runs")
        .pending_in;
    assert!(pending <= limits::PENDING_IN_ADDRESS_MAX);
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.settled(2).await;
    assert!(b.dialer.peers().pending_in <= limits::PENDING_IN_STRANGERS_MAX);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_are_few_and_known_peers_come_in_beside_them() {
    let policy = |peer: &PeerId| {
        if *peer == id(1) {
            Standing::Known
        } else {
            Standing::Guest
        }
    };
    let b = host(2).listening(TCP).policy(policy).start().await;
    let mut guests = Vec::new();
    for seed in 100..140 {
        guests.push(Frames::connect(seed, ELSEWHERE, &b.address()).await);
    }
    let mut watch = b.dialer.watch();
    within(watch.wait_for(|now| !now.turned_away.is_empty()))
        .await
        .expect("b runs");
    assert!(b.dialer.peers().connections <= limits::GUEST_ADDRESS_CONNECTIONS_MAX);
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.settled(2).await;
}

/// Hears greetings, and never answers one.
#[derive(Default)]
struct Mute {
    heard: Vec<libp2p::Stream>,
}

#[derive(Debug)]
enum Never {
    Heard(libp2p::Stream),
    Sent,
}

impl From<libp2p::Stream> for Never {
    fn from(stream: libp2p::Stream) -> Self {
        Never::Heard(stream)
    }
}

impl From<()> for Never {
    fn from((): ()) -> Self {
        Never::Sent
    }
}

#[derive(Debug, Clone)]
struct Greeting;

impl UpgradeInfo for Greeting {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/agora/greeting/1")
    }
}

impl InboundUpgrade<libp2p::Stream> for Greeting {
    type Output = libp2p::Stream;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, _: Self::Info) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

impl OutboundUpgrade<libp2p::Stream> for Greeting {
    type Output = ();
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, _: libp2p::Stream, _: Self::Info) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

impl NetworkBehaviour for Mute {
    type ConnectionHandler = OneShotHandler<Greeting, Greeting, Never>;
    type ToSwarm = ();

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        Ok(OneShotHandler::new(
            SubstreamProtocol::new(Greeting, ()),
            Default::default(),
        ))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        Ok(OneShotHandler::new(
            SubstreamProtocol::new(Greeting, ()),
            Default::default(),
        ))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        if let Ok(Never::Heard(stream)) = event {
            self.heard.push(stream);
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<(), Greeting>> {
        Poll::Pending
    }
}

#[derive(NetworkBehaviour)]
struct Other {
    mute: Toggle<Mute>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// A libp2p peer that isn't a host, and speaks none of our protocols; or hears greetings and is mute.
async fn other(seed: u8, mute: bool) -> (Swarm<Other>, Multiaddr) {
    let keypair = Keypair::ed25519_from_bytes([seed; 32]).expect("a seed");
    let transport = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(libp2p::core::upgrade::Version::V1)
        .authenticate(noise::Config::new(&keypair).expect("noise"))
        .multiplex(yamux::Config::default())
        .boxed();
    let behaviour = Other {
        mute: mute.then(Mute::default).into(),
        identify: identify::Behaviour::new(identify::Config::new(
            "/other/1".into(),
            keypair.public(),
        )),
        ping: ping::Behaviour::default(),
    };
    let config = libp2p::swarm::Config::with_tokio_executor();
    let mut swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config);
    swarm
        .listen_on(TCP.parse().expect("an address"))
        .expect("it listens");
    let address = within(async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    })
    .await;
    (swarm, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_version_is_refused_naming_what_it_speaks() {
    let (mut swarm, address) = other(9, false).await;
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    let a = host(1).dialing(9, &[address]).start().await;
    let status = a
        .until(9, |status| {
            matches!(status.state, PeerState::Refused { .. })
        })
        .await;
    let PeerState::Refused {
        why: Why::NoCommonProtocol { theirs },
        ..
    } = status.state
    else {
        panic!("{:?}", status.state)
    };
    assert!(
        theirs.iter().any(|name| name == "/ipfs/ping/1.0.0"),
        "{theirs:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_version_that_dials_us_is_refused_naming_what_it_speaks() {
    let a = host(1).listening(TCP).start().await;
    let (mut swarm, _) = other(9, false).await;
    swarm.dial(a.address()).expect("it dials");
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    let named = |(peer, why): &(PeerId, Why)| {
        *peer == id(9)
            && matches!(why, Why::NoCommonProtocol { theirs } if theirs.iter().any(|name| name == "/ipfs/ping/1.0.0"))
    };
    let mut watch = a.dialer.watch();
    within(watch.wait_for(|now| now.turned_away.iter().any(named)))
        .await
        .expect("a runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lies_about_addresses_has_us_dial_nobody_else() {
    let victim = TcpListener::bind((ELSEWHERE, 0)).await.expect("a port");
    let beside = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (mut swarm, address) = other(9, true).await;
    // Lies, and one address where it may well be.
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    swarm.add_external_address(
        format!("/ip4/127.0.0.1/tcp/{}", port(&beside))
            .parse()
            .expect("an address"),
    );
    swarm.add_external_address(
        format!("/ip4/{ELSEWHERE}/tcp/{}", port(&victim))
            .parse()
            .expect("an address"),
    );
    for last in 1..15 {
        swarm.add_external_address(
            format!("/ip4/10.0.0.{last}/tcp/{}", port(&victim))
                .parse()
                .expect("an address"),
        );
    }
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    let a = host(1)
        .dialing(9, &[address])
        .timing(|timing| timing.greeting_patience_ms = 1_000)
        .start()
        .await;
    // What lies where it is connected from is dialed too, so what it said was heard.
    within(beside.accept()).await.expect("it is dialed");
    a.until(9, |status| status.lanes[0].failures >= 3).await;
    let dialed = tokio::time::timeout(Duration::ZERO, victim.accept()).await;
    assert!(dialed.is_err(), "someone else was dialed");
}

/// Streams that are opened and reset, and never say what they are for, are counted all the same.
async fn streams_that_say_nothing(transport: &str) {
    let (a, b) = honest(transport).await;
    let (address, b) = (b.address(), b.echoing());
    let mut hostile = Hostile::connect(9, &address).await;
    assert!(hostile.greet(1).await);
    within(async { while hostile.open(&[0]).await {} }).await;
    gone(&b, 9).await;
    echoes(&mut a.open(2, Lane::Control).await, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_opens_streams_for_nothing_loses_its_connection_over_tcp() {
    streams_that_say_nothing(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_opens_streams_for_nothing_loses_its_connection_over_quic() {
    streams_that_say_nothing(QUIC).await;
}
