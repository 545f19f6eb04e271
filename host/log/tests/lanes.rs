//! Lanes of a log on a real server: what is taken out of one reads as empty, and all else stays what it was.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

mod nats;

use std::time::{Duration, Instant};

use agora_log::{Class, JetStream, JetStreamOptions, Lane, Log, LogError, Seq, StreamReader};
use bytes::Bytes;
use futures::StreamExt;

const PATIENCE: Duration = Duration::from_secs(60);
const ONE: Lane = Lane::Of(*b"one\0\0\0\0\0");
const TWO: Lane = Lane::Of(*b"two\0\0\0\0\0");

fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

fn entry(number: u64) -> Bytes {
    format!("entry {number}").into()
}

async fn append(log: &dyn Log, lane: Lane, number: u64) {
    let appending = log.append_in(lane, id(number), entry(number), Class::Ordinary);
    let appended = tokio::time::timeout(PATIENCE, appending).await.unwrap();
    assert_eq!(appended.unwrap().seq, Seq(number));
}

/// What a tail gives from a place on.
async fn heard(log: &JetStream, from: u64, count: usize) -> Vec<(Seq, Bytes)> {
    let tail = log.tail(Seq(from)).take(count);
    let heard = tail.map(Result::unwrap).collect();
    tokio::time::timeout(PATIENCE, heard).await.unwrap()
}

async fn read_all(log: &JetStream) -> Vec<(Seq, Bytes)> {
    let mut all = Vec::new();
    loop {
        let next = Seq(all.len() as u64 + 1);
        // Few at a time, so that holes begin and end within what is read, and at its ends.
        let read = log.read(next, 7, 1 << 20).await.unwrap();
        if read.is_empty() {
            return all;
        }
        all.extend(read);
    }
}

fn is_gone(number: u64) -> bool {
    number > 1 && number <= 600 && !number.is_multiple_of(3)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_out_of_a_lane_reads_as_empty_and_all_else_stays() {
    if let Some(program) = nats::program() {
        is_taken_out(&program).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_out_of_a_lane_reads_as_empty_on_the_oldest_server_too() {
    if let Some(program) = nats::oldest() {
        is_taken_out(&program).await;
    }
}

async fn is_taken_out(program: &std::path::Path) {
    let server = nats::Server::start(program);
    let options = nats::options(server.url(), 0);
    let log = nats::open(&options).await;
    append(&log, Lane::Main, 1).await;
    for number in 2..=700_u64 {
        let lane = if number.is_multiple_of(3) { TWO } else { ONE };
        append(&log, lane, number).await;
    }
    append(&log, Lane::Main, 701).await;
    let read = log.read_lane(ONE, Seq(1), 3, 1 << 20).await.unwrap();
    let seqs: Vec<_> = read.iter().map(|(seq, _)| seq.0).collect();
    assert_eq!(seqs, [2, 4, 5]);
    let main = log
        .read_lane(Lane::Main, Seq(1), 10, 1 << 20)
        .await
        .unwrap();
    let seqs: Vec<_> = main.iter().map(|(seq, _)| seq.0).collect();
    assert_eq!(seqs, [1, 701]);

    // Asking whether it may be done takes nothing out.
    log.purge_lane(ONE, Seq(1)).await.unwrap();
    log.purge_lane(ONE, Seq(0)).await.unwrap();
    assert_eq!(read_all(&log).await.len(), 701);
    assert!(read_all(&log).await.iter().all(|(_, b)| !b.is_empty()));

    let mut behind = log.tail(Seq(1));
    assert_eq!(behind.next().await.unwrap().unwrap().0, Seq(1));
    log.purge_lane(ONE, Seq(600)).await.unwrap();
    let expected: Vec<_> = (1..=701)
        .map(|number| match is_gone(number) {
            true => (Seq(number), Bytes::new()),
            false => (Seq(number), entry(number)),
        })
        .collect();
    assert_eq!(read_all(&log).await, expected);
    assert_eq!(heard(&log, 1, 701).await, expected);
    assert_eq!(heard(&log, 5, 100).await, expected[4..104]);
    assert!(log.is_purged(Seq(4)).await.unwrap());
    // A tail that was under way goes on, with what it had read ahead, or without.
    for expected in &expected[1..] {
        let heard = tokio::time::timeout(PATIENCE, behind.next()).await.unwrap();
        let (seq, bytes) = heard.unwrap().unwrap();
        assert_eq!(seq, expected.0);
        assert!(bytes == expected.1 || bytes == entry(seq.0));
    }
    append(&log, ONE, 702).await;
    let gone = (1..=701).filter(|number| is_gone(*number)).count() as u64;
    let began = Instant::now();
    while log.missing().count != gone || log.missing().end < Seq(702) {
        assert!(began.elapsed() < PATIENCE, "{:?}", log.missing());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log.close().await.unwrap();

    let log = nats::open(&options).await;
    assert_eq!(log.missing().count, gone);
    assert_eq!(read_all(&log).await[..701], expected);
    let (reader, _) = StreamReader::open(options.clone()).await.unwrap();
    assert_eq!(
        reader.read(Seq(1), 701, 1 << 20).await.unwrap(),
        expected[..701]
    );
    assert!(reader.is_purged(Seq(2)).await.unwrap());
    // What is empty of itself was not taken out.
    let empty = log.append_in(ONE, id(703), Bytes::new(), Class::Ordinary);
    assert_eq!(empty.await.unwrap().seq, Seq(703));
    assert!(!log.is_purged(Seq(703)).await.unwrap());
    // The last entries can't go: nothing behind them tells that they were there.
    log.purge_lane(ONE, Seq(703)).await.unwrap();
    let read = log.read(Seq(702), 10, 1 << 20).await;
    assert!(matches!(read, Err(LogError::Diverged { .. })), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_from_before_there_were_lanes_goes_on_under_its_one_subject() {
    let Some(program) = nats::program() else {
        return;
    };
    let rest = r#"
        authorization { users: [
            { user: maker, password: maker }
            { user: old, password: old, permissions {
                publish: [ "agora.0.host", "$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.*", "$JS.API.STREAM.MSG.GET.*",
                    "$JS.API.CONSUMER.CREATE.*", "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.CONSUMER.DELETE.*.*" ]
                subscribe: ["_INBOX.>"]
            } }
        ] }"#;
    let port = nats::free_port();
    let mut server = nats::Server::new(&program, port, "sync_interval: always", rest);
    server.run();
    let url = |user: &str| format!("nats://{user}:{user}@127.0.0.1:{port}");
    let maker = nats::open(&nats::options(url("maker"), 0)).await;
    append(&maker, ONE, 1).await;
    let old = JetStreamOptions {
        create: false,
        ..nats::options(url("old"), 0)
    };
    let old = nats::open(&old).await;
    for number in 2..=20_u64 {
        let lane = if number.is_multiple_of(2) {
            ONE
        } else {
            Lane::Main
        };
        append(&old, lane, number).await;
    }
    let read = read_all(&old).await;
    let expected: Vec<_> = (1..=20).map(|n| (Seq(n), entry(n))).collect();
    assert_eq!(read, expected);
    let main = maker.read_lane(Lane::Main, Seq(1), 100, 1 << 20);
    assert_eq!(main.await.unwrap(), expected[1..]);
    // Nor may it take anything out.
    let refused = old.purge_lane(ONE, Seq(1)).await;
    assert!(
        matches!(refused, Err(LogError::Unavailable { .. })),
        "{refused:?}"
    );
}
