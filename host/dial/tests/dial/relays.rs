//! Hosts that can't be reached but through a third.

use agora_dial::{Lane, LaneStatus, Multiaddr, PeerId, RelayBounds, Standing, Why};
use futures::StreamExt;
use libp2p::{
    Swarm, Transport,
    core::{muxing::StreamMuxerBox, transport::OrTransport, upgrade::Version},
    identity::Keypair,
    multiaddr::Protocol,
    noise, relay,
    swarm::SwarmEvent,
    tcp, yamux,
};

use crate::hosts::{Host, Making, QUIC, TCP, echoes, host, id, lane, within};

/// Where a host is that listens through a relay.
fn through(relay: &Host, seed: u8) -> Multiaddr {
    relay
        .full_address()
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(id(seed)))
}

/// Starts a host that listens through the relay, once it does.
async fn behind(relay: &Host, making: Making) -> Host {
    let host = making.via(relay.full_address()).start().await;
    host.until_all(|now| {
        now.waypoints
            .values()
            .any(|waypoint| !waypoint.listening.is_empty())
    })
    .await;
    host
}

async fn both_lanes_work(a: &Host, mut b: Host, relayed: bool) {
    let status = a.settled(2).await;
    for each in [Lane::Control, Lane::Vat] {
        assert_eq!(lane(&status, each).is_relayed(), relayed, "{each:?}");
        let mut stream = a.open(2, each).await;
        futures::AsyncWriteExt::write_all(&mut stream, b"x")
            .await
            .expect("written");
        futures::AsyncWriteExt::flush(&mut stream)
            .await
            .expect("sent");
        let incoming = b.next().await;
        assert_eq!((incoming.peer, incoming.lane), (id(1), each));
    }
    let _b = b.echoing();
    echoes(&mut a.open(2, Lane::Control).await, b"a fence").await;
    echoes(&mut a.open(2, Lane::Vat).await, &[7; 100_000]).await;
}

async fn only_through_a_relay(transport: &str) {
    let relay = host(9)
        .listening(transport)
        .relaying(RelayBounds::default())
        .start()
        .await;
    let b = behind(&relay, host(2).not_punching()).await;
    assert!(b.dialer.listening().is_empty());
    let a = host(1)
        .dialing(2, &[through(&relay, 2)])
        .not_punching()
        .start()
        .await;
    both_lanes_work(&a, b, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lanes_work_through_a_relay_over_tcp() {
    only_through_a_relay(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lanes_work_through_a_relay_over_quic() {
    only_through_a_relay(QUIC).await;
}

/// The relay may be a peer as well: its lanes carry nothing of what it relays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_a_peer_has_its_lanes_beside_what_it_relays() {
    let relay = host(9)
        .listening(QUIC)
        .relaying(RelayBounds::default())
        .start()
        .await;
    let b = host(2).dialing(9, &[relay.address()]).not_punching();
    let b = behind(&relay, b).await;
    b.settled(9).await;
    let a = host(1)
        .dialing(9, &[relay.address()])
        .dialing(2, &[through(&relay, 2)])
        .not_punching()
        .start()
        .await;
    a.settled(9).await;
    both_lanes_work(&a, b, true).await;
    let status = a.until(9, |_| true).await;
    assert!(!lane(&status, Lane::Control).is_relayed());
    assert_eq!(lane(&status, Lane::Control).traffic().bytes_in, 0);
}

/// On one machine each reaches the other, so what hole punching is for isn't there; what it does is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_lanes_become_direct_ones() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    let relay = host(9)
        .listening(QUIC)
        .relaying(RelayBounds::default())
        .start()
        .await;
    let b = behind(&relay, host(2).listening(QUIC)).await;
    // Nobody told where it listens.
    let a = host(1)
        .listening(QUIC)
        .dialing(2, &[through(&relay, 2)])
        .start()
        .await;
    let direct = |status: &LaneStatus| status.connected && !status.is_relayed();
    a.until(2, |status| {
        status.lanes.iter().all(direct) && status.connections == 2
    })
    .await;
    b.until(1, |status| {
        status.lanes.iter().all(direct) && status.connections == 2
    })
    .await;
    both_lanes_work(&a, b, false).await;
}

/// A circuit ends at its bound, and the next begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_ends_at_its_bound_and_is_dialed_again() {
    let bounds = RelayBounds {
        circuit_bytes: 256 << 10,
        ..RelayBounds::default()
    };
    let relay = host(9).listening(TCP).relaying(bounds).start().await;
    let b = behind(&relay, host(2).not_punching()).await;
    let _b = b.echoing();
    let a = host(1)
        .dialing(2, &[through(&relay, 2)])
        .not_punching()
        .start()
        .await;
    a.settled(2).await;
    let mut stream = a.open(2, Lane::Vat).await;
    let all = within(async {
        let bytes = vec![7; 1 << 20];
        futures::AsyncWriteExt::write_all(&mut stream, &bytes).await?;
        futures::AsyncWriteExt::flush(&mut stream).await?;
        let mut back = vec![0; bytes.len()];
        futures::AsyncReadExt::read_exact(&mut stream, &mut back).await
    });
    all.await
        .expect_err("the relay doesn't carry that much at once");
    drop(stream);
    let failed = a
        .until(2, |status| {
            let bulk = lane(status, Lane::Vat);
            bulk.connected && bulk.failures > 0
        })
        .await;
    assert!(lane(&failed, Lane::Vat).is_relayed());
    echoes(&mut a.open(2, Lane::Vat).await, b"again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_beyond_the_bound_is_refused() {
    let bounds = RelayBounds {
        reservations: 1,
        ..RelayBounds::default()
    };
    let relay = host(9).listening(TCP).relaying(bounds).start().await;
    let _b = behind(&relay, host(2)).await;
    let c = host(3).via(relay.full_address()).start().await;
    c.until_all(|now| {
        now.waypoints.values().any(|waypoint| {
            assert!(waypoint.listening.is_empty());
            matches!(waypoint.why, Some(Why::Unreachable(_)))
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_relays_nothing_says_so() {
    let idle = host(9).listening(TCP).start().await;
    let b = host(2).via(idle.full_address()).start().await;
    b.until_all(|now| {
        now.waypoints.values().any(|waypoint| {
            assert!(waypoint.listening.is_empty());
            waypoint.why == Some(Why::RefusedThere)
        })
    })
    .await;
}

/// One that keeps to no greeting, and asks a relay as libp2p does.
async fn stranger_is_refused(relaying: bool) {
    let relay = host(9)
        .listening(TCP)
        .policy(|peer: &PeerId| match *peer == id(2) {
            true => Standing::Known,
            false => Standing::Guest,
        });
    let (relay, known) = if relaying {
        let relay = relay.relaying(RelayBounds::default()).start().await;
        let known = behind(&relay, host(2)).await;
        (relay, Some(known))
    } else {
        (relay.start().await, None)
    };
    let keypair = Keypair::ed25519_from_bytes([66; 32]).expect("a seed");
    let own = keypair.public().to_peer_id();
    let (circuits, client) = relay::client::new(own);
    let transport = OrTransport::new(circuits, tcp::tokio::Transport::default())
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(&keypair).expect("noise"))
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let config = libp2p::swarm::Config::with_tokio_executor();
    let mut stranger = Swarm::new(transport, client, own, config);
    // A place to be reached at, and a way to the one who has a place.
    let listener = stranger
        .listen_on(relay.full_address().with(Protocol::P2pCircuit))
        .expect("an address");
    within(async {
        loop {
            match stranger.select_next_some().await {
                SwarmEvent::ListenerClosed { listener_id, .. } if listener_id == listener => break,
                SwarmEvent::NewListenAddr { address, .. } => panic!("it listens at {address}"),
                _ => {}
            }
        }
    })
    .await;
    stranger.dial(through(&relay, 2)).expect("an address");
    within(async {
        loop {
            match stranger.select_next_some().await {
                SwarmEvent::OutgoingConnectionError { peer_id, .. } if peer_id == Some(id(2)) => {
                    break;
                }
                SwarmEvent::ConnectionEstablished { peer_id, .. } => assert_ne!(peer_id, id(2)),
                _ => {}
            }
        }
    })
    .await;
    if let Some(known) = known {
        assert!(!known.dialer.peers().peers.contains_key(&own));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing_of_a_host_that_relays_nothing() {
    stranger_is_refused(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing_of_a_relay_for_known_peers() {
    stranger_is_refused(true).await;
}
