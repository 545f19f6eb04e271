use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agora_dial::{Lane, OpenError, Stream, limits};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::hosts::{QUIC, TCP, echoes, id, lane, pair, within};

/// Writes until it is told to stop, then ends the stream; says how much it was.
fn flood(mut stream: Stream, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let bytes = vec![7; 64 << 10];
        let mut written = 0;
        while !stop.load(Ordering::SeqCst) {
            written += stream.write(&bytes).await.expect("it is written") as u64;
        }
        stream.close().await.expect("it is closed");
        written
    })
}

async fn stalled_bulk(transport: &str) {
    let (a, mut b) = pair(transport).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = flood(a.open(2, Lane::Vat).await, stop.clone());
    let stalled = b.next().await;
    assert_eq!((stalled.lane, stalled.peer), (Lane::Vat, id(1)));
    let _b = b.echoing();
    let mut control = a.open(2, Lane::Control).await;
    // Nobody reads bulk, so it fills up: it is full once many round trips of control see it stand still.
    let sent = || {
        lane(&a.dialer.peers().peers[&id(2)], Lane::Vat)
            .traffic()
            .bytes_out
    };
    let (mut before, mut still) = (0, 0);
    while still < 20 {
        for _ in 0..10 {
            echoes(&mut control, b"a fence").await;
        }
        still = if before == sent() && before > 0 {
            still + 1
        } else {
            0
        };
        before = sent();
    }
    // Another stream of bulk works beside it, too.
    echoes(&mut a.open(2, Lane::Vat).await, b"beside it").await;
    // Once someone reads, it goes on, and nothing is lost.
    stop.store(true, Ordering::SeqCst);
    let mut reader = stalled.stream;
    let read = within(async move {
        let (mut read, mut bytes) = (0u64, vec![0; 64 << 10]);
        loop {
            match reader.read(&mut bytes).await.expect("it is read") {
                0 => return read,
                count => {
                    assert!(bytes[..count].iter().all(|byte| *byte == 7));
                    read += count as u64;
                }
            }
        }
    });
    assert_eq!(read.await, within(writer).await.expect("it wrote"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_bulk_doesnt_delay_control_over_tcp() {
    stalled_bulk(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_bulk_doesnt_delay_control_over_quic() {
    stalled_bulk(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_too_many_is_refused_here_and_a_closed_one_gives_its_place_back() {
    let (a, b) = pair(TCP).await;
    let _b = b.echoing();
    let mut open = Vec::new();
    for _ in 0..limits::LANE_STREAMS_OUT_MAX {
        open.push(a.open(2, Lane::Vat).await);
    }
    let refused = within(a.dialer.open(id(2), Lane::Vat))
        .await
        .expect_err("too many");
    assert!(matches!(refused, OpenError::TooMany { .. }));
    // The other lane has its own places.
    echoes(&mut a.open(2, Lane::Control).await, b"x").await;
    drop(open.pop());
    echoes(&mut a.open(2, Lane::Vat).await, b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_ends_a_stream_that_is_being_read_at_both_ends() {
    for transport in [TCP, QUIC] {
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
        let hang_up = stream.hang_up();
        let reading = tokio::spawn(async move {
            let mut byte = [0];
            stream.read(&mut byte).await
        });
        hang_up.cut();
        let error = within(reading).await.expect("it ran").expect_err("cut");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        // The other side sees an end: a reset, or no more bytes.
        assert!(!matches!(within(there.read(&mut byte)).await, Ok(1..)));
        let status = a.until(2, |_| true).await;
        assert_eq!(lane(&status, Lane::Vat).traffic().streams_out, 0);
    }
}
