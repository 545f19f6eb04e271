use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agora_dial::{KnownPeer, Lane, Multiaddr, PeerState, Why};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::hosts::{Host, QUIC, TCP, echoes, host, id, lane, pair, within};

async fn both_lanes_work(transport: &str) {
    let (a, b) = pair(transport).await;
    let b = b.echoing();
    for wanted in [Lane::Control, Lane::Vat] {
        let mut stream = a.open(2, wanted).await;
        echoes(&mut stream, b"hello").await;
        let status = a.dialer.peers().peers[&id(2)].clone();
        let traffic = lane(&status, wanted).traffic();
        assert_eq!(
            (traffic.bytes_in, traffic.bytes_out, traffic.streams_out),
            (5, 5, 1)
        );
    }
    let status = a
        .until(2, |status| {
            status
                .lanes
                .iter()
                .all(|lane| lane.round_trip_p50.is_some())
        })
        .await;
    assert!(
        status
            .lanes
            .iter()
            .all(|lane| lane.dialed && lane.address.is_some())
    );
    assert_eq!(status.connections, 2);
    assert_eq!(b.peers().connections, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lanes_come_up_over_quic() {
    both_lanes_work(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lanes_come_up_over_tcp() {
    both_lanes_work(TCP).await;
}

async fn comes_back(transport: &str) {
    let (a, b) = pair(transport).await;
    let address = b.address();
    b.dialer.shutdown().await;
    drop(b);
    a.until(2, |status| {
        matches!(
            status.state,
            PeerState::BackingOff { .. } | PeerState::Dialing
        )
    })
    .await;
    let b = host(2).listening(&address.to_string()).start_again().await;
    a.settled(2).await;
    b.settled(1).await;
    let _b = b.echoing();
    echoes(&mut a.open(2, Lane::Vat).await, b"again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_away_is_connected_again_over_quic() {
    comes_back(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_away_is_connected_again_over_tcp() {
    comes_back(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_moved_is_found_at_its_new_address() {
    let (a, b) = pair(TCP).await;
    b.dialer.shutdown().await;
    drop(b);
    let b = host(2).listening(QUIC).start().await;
    assert!(
        a.dialer
            .set_peer(KnownPeer {
                peer: id(2),
                addresses: vec![b.address()]
            })
            .await
    );
    a.settled(2).await;
}

async fn crossing(transport: &str) {
    for _ in 0..8 {
        let a = host(1).listening(transport).start().await;
        let b = host(2).listening(transport).start().await;
        let to_a = KnownPeer {
            peer: id(1),
            addresses: vec![a.address()],
        };
        let to_b = KnownPeer {
            peer: id(2),
            addresses: vec![b.address()],
        };
        tokio::join!(a.dialer.set_peer(to_b), b.dialer.set_peer(to_a));
        // Both are settled at the same time, and agree on who dialed each lane.
        let mut seen_by_a = a.dialer.watch();
        within(async {
            loop {
                let (of_b, of_a) = (a.settled(2).await, b.settled(1).await);
                let agreed = of_b
                    .lanes
                    .iter()
                    .zip(&of_a.lanes)
                    .all(|(one, other)| one.dialed != other.dialed);
                if agreed {
                    break;
                }
                seen_by_a.changed().await.expect("a runs");
            }
        })
        .await;
        let (a, b) = (a, b.echoing());
        for wanted in [Lane::Control, Lane::Vat] {
            echoes(&mut a.open(2, wanted).await, b"one survived").await;
        }
        drop(b);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_crossing_dials_one_survives_on_each_lane_over_tcp() {
    crossing(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_crossing_dials_one_survives_on_each_lane_over_quic() {
    crossing(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn someone_else_at_the_address_is_said() {
    let stranger = host(3).listening(TCP).start().await;
    let a = host(1).dialing(2, &[stranger.address()]).start().await;
    let status = a
        .until(2, |status| {
            matches!(status.state, PeerState::Refused { .. })
        })
        .await;
    let PeerState::Refused {
        why: Why::WrongPeer { address, found },
        until,
    } = status.state
    else {
        panic!("{:?}", status.state)
    };
    assert_eq!((address, found), (stranger.address(), id(3)));
    assert!(until.is_some(), "it is tried again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn someone_else_at_one_address_doesnt_hide_the_other() {
    let stranger = host(3).listening(TCP).start().await;
    let b = host(2).listening(QUIC).start().await;
    let a = host(1)
        .dialing(2, &[stranger.address(), b.address()])
        .start()
        .await;
    a.settled(2).await;
}

/// Passes bytes on, until it is told to swallow those of the connections that there are.
async fn proxy(to: &Host) -> (Multiaddr, Arc<AtomicBool>) {
    let port = to.address().iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let to = ("127.0.0.1", port.expect("a TCP address"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let silent = Arc::new(AtomicBool::new(false));
    let told = silent.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else {
                continue;
            };
            // A connection made while the proxy is silent works.
            let swallows = (!told.load(Ordering::SeqCst)).then(|| told.clone());
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.into_split(), far.into_split());
            let other = swallows.clone();
            tokio::spawn(async move { pass(&mut near_in, &mut far_out, swallows).await });
            tokio::spawn(async move { pass(&mut far_in, &mut near_out, other).await });
        }
    });
    (
        format!("/ip4/127.0.0.1/tcp/{port}")
            .parse()
            .expect("an address"),
        silent,
    )
}

async fn pass(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    swallows: Option<Arc<AtomicBool>>,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if swallows
            .as_ref()
            .is_some_and(|silent| silent.load(Ordering::SeqCst))
        {
            continue;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // Held open: the other side isn't told.
    if swallows.is_some_and(|silent| silent.load(Ordering::SeqCst)) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_noticed_and_replaced() {
    let b = host(2).listening(TCP).start().await;
    let (address, silent) = proxy(&b).await;
    let a = host(1).dialing(2, &[address]).timing(|timing| {
        timing.ping_every_ms = 200;
        timing.ping_patience_ms = 2_000;
    });
    let a = a.start().await;
    a.settled(2).await;
    let mut old = a.open(2, Lane::Control).await;
    silent.store(true, Ordering::SeqCst);
    // The connection goes, and the stream on it with it; then there is another.
    let mut byte = [0];
    let read = within(futures::AsyncReadExt::read(&mut old, &mut byte)).await;
    assert!(read.is_err(), "{read:?}");
    let _b = b.echoing();
    within(async {
        while !says(&a, Lane::Control).await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Whether one byte comes back.
async fn says(host: &Host, lane: Lane) -> bool {
    let Ok(mut stream) = host.dialer.open(id(2), lane).await else {
        return false;
    };
    let mut byte = [7];
    let written = futures::AsyncWriteExt::write_all(&mut stream, &byte)
        .await
        .is_ok()
        && futures::AsyncWriteExt::flush(&mut stream).await.is_ok();
    written
        && futures::AsyncReadExt::read_exact(&mut stream, &mut byte)
            .await
            .is_ok()
}
