use agora_dial::{Lane, OpenError, PeerState};
use futures::AsyncReadExt;

use crate::hosts::{QUIC, TCP, host, id, pair, within};

async fn ends(transport: &str) {
    let (a, mut b) = pair(transport).await;
    let mut stream = a.open(2, Lane::Vat).await;
    futures::AsyncWriteExt::write_all(&mut stream, b"x")
        .await
        .expect("written");
    futures::AsyncWriteExt::flush(&mut stream)
        .await
        .expect("sent");
    let mut there = b.next().await.stream;
    let mut byte = [0];
    within(there.read_exact(&mut byte)).await.expect("it came");

    within(b.dialer.shutdown()).await;
    // Here and there streams fail, and neither hangs.
    assert!(within(there.read(&mut byte)).await.is_err());
    assert!(!matches!(within(stream.read(&mut byte)).await, Ok(1..)));
    assert!(within(b.inbound.next()).await.is_none());
    assert_eq!(
        within(b.dialer.open(id(1), Lane::Vat))
            .await
            .expect_err("over"),
        OpenError::ShutDown
    );
    a.until(2, |status| {
        matches!(status.state, PeerState::BackingOff { .. })
    })
    .await;
    let refused = within(a.dialer.open(id(2), Lane::Vat))
        .await
        .expect_err("not connected");
    assert!(matches!(refused, OpenError::NotConnected { .. }));
    // Its port is free.
    host(2)
        .listening(&b.address().to_string())
        .start_again()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_ends_everything_over_tcp() {
    ends(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_ends_everything_over_quic() {
    ends(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_handle_ends_everything() {
    let (a, b) = pair(TCP).await;
    let mut stream = a.open(2, Lane::Vat).await;
    drop(b);
    let mut byte = [0];
    assert!(!matches!(within(stream.read(&mut byte)).await, Ok(1..)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_forgotten_is_let_go_and_not_dialed() {
    let (a, b) = pair(TCP).await;
    a.dialer.forget(id(2)).await;
    let mut watch = a.dialer.watch();
    within(watch.wait_for(|now| now.peers.is_empty()))
        .await
        .expect("a runs");
    let mut watch = b.dialer.watch();
    within(watch.wait_for(|now| now.peers.is_empty()))
        .await
        .expect("b runs");
}
