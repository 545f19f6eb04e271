use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agora_dial::{Lane, OpenError, PeerId, PeerState, Standing, Why};
use futures::AsyncReadExt;

use crate::hosts::{QUIC, TCP, echoes, host, id, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_peer_is_told_and_so_is_the_operator_here() {
    for transport in [TCP, QUIC] {
        let b = host(2)
            .listening(transport)
            .policy(|_: &PeerId| Standing::Refused)
            .start()
            .await;
        let a = host(1).dialing(2, &[b.address()]).start().await;
        let status = a
            .until(2, |status| {
                matches!(status.state, PeerState::Refused { .. })
            })
            .await;
        assert!(matches!(
            status.state,
            PeerState::Refused {
                why: Why::RefusedThere,
                until: Some(_)
            }
        ));
        let mut watch = b.dialer.watch();
        let turned_away =
            |peer| move |(who, why): &(PeerId, Why)| *who == peer && *why == Why::RefusedHere;
        within(watch.wait_for(|now| now.turned_away.iter().any(turned_away(id(1)))))
            .await
            .expect("b runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_our_policy_refuses_isnt_dialed() {
    let b = host(2).listening(TCP).start().await;
    let a = host(1)
        .dialing(2, &[b.address()])
        .policy(|_: &PeerId| Standing::Refused)
        .start()
        .await;
    let status = a
        .until(2, |status| {
            matches!(status.state, PeerState::Refused { .. })
        })
        .await;
    assert!(matches!(
        status.state,
        PeerState::Refused {
            why: Why::RefusedHere,
            until: None
        }
    ));
    assert_eq!(b.dialer.peers().connections, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_gets_one_login_and_once_it_is_known_both_lanes() {
    let known = Arc::new(AtomicBool::new(false));
    let says = known.clone();
    let policy = move |_: &PeerId| match says.load(Ordering::SeqCst) {
        true => Standing::Known,
        false => Standing::Guest,
    };
    let mut b = host(2).listening(TCP).policy(policy).start().await;
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.until(2, |status| status.state == PeerState::Guest).await;
    for lane in [Lane::Control, Lane::Vat] {
        let refused = within(a.dialer.open(id(2), lane))
            .await
            .expect_err("a guest");
        assert_eq!(refused, OpenError::Guest { peer: id(2) });
    }
    let mut login = a.open(2, Lane::Login).await;
    futures::AsyncWriteExt::write_all(&mut login, b"x")
        .await
        .expect("written");
    futures::AsyncWriteExt::flush(&mut login)
        .await
        .expect("sent");
    let incoming = b.next().await;
    assert_eq!(
        (incoming.lane, incoming.standing, incoming.peer),
        (Lane::Login, Standing::Guest, id(1))
    );
    // A second one is reset.
    let mut second = a.open(2, Lane::Login).await;
    assert!(!matches!(within(second.read(&mut [0])).await, Ok(1..)));

    known.store(true, Ordering::SeqCst);
    b.dialer.reconsider(id(1)).await;
    a.settled(2).await;
    let _b = b.echoing();
    echoes(&mut a.open(2, Lane::Vat).await, b"known").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_time_is_short() {
    let b = host(2)
        .listening(TCP)
        .policy(|_: &PeerId| Standing::Guest)
        .timing(|timing| timing.guest_time_ms = 300);
    let b = b.start().await;
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.until(2, |status| status.state == PeerState::Guest).await;
    let mut login = a.open(2, Lane::Login).await;
    assert!(!matches!(within(login.read(&mut [0])).await, Ok(1..)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_peer_that_was_cut_off_is_let_go_at_once() {
    let known = Arc::new(AtomicBool::new(true));
    let says = known.clone();
    let policy = move |_: &PeerId| match says.load(Ordering::SeqCst) {
        true => Standing::Known,
        false => Standing::Refused,
    };
    let b = host(2).listening(QUIC).policy(policy).start().await;
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.settled(2).await;
    let mut stream = a.open(2, Lane::Vat).await;
    known.store(false, Ordering::SeqCst);
    b.dialer.reconsider(id(1)).await;
    assert!(!matches!(within(stream.read(&mut [0])).await, Ok(1..)));
    a.until(2, |status| {
        matches!(
            status.state,
            PeerState::Refused {
                why: Why::RefusedThere,
                ..
            }
        )
    })
    .await;
}
