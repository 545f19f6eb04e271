//! What the JetStream log costs over the client library it uses: `cargo run --release -p agora-log --example jetstream-ratios`.
//!
//! Rows are `agora / floor = ratio`, higher is better, each the median of rounds that take turns against one server. The
//! floor publishes the same messages with as many on their way, or reads the same stream with an ordered consumer, and
//! does nothing else: no queue, no classes, no order kept across connections, nothing looked for when one is lost.

#![allow(clippy::unwrap_used, reason = "a measurement that fails is to stop")]

#[path = "../tests/nats/mod.rs"]
mod nats;

use std::{
    collections::VecDeque,
    hint::black_box,
    time::{Duration, Instant},
};

use agora_log::{Class, JetStream, Log, Seq};
use async_nats::jetstream::{self, consumer, message::PublishMessage};
use bytes::Bytes;
use futures::StreamExt;

const ENTRY_BYTES: usize = 256;
const ROUNDS: usize = 21;
const ROUND: Duration = Duration::from_millis(250);
const REPLAYED: u64 = 100_000;

fn main() {
    let Some(program) = nats::program() else {
        return;
    };
    // As fast as it goes: a server that syncs before it acknowledges is what takes the time then, on both sides.
    let server = nats::Server::start_with(&program, "sync_interval: 2m");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    println!("entries of {ENTRY_BYTES} bytes, one server without sync; median of {ROUNDS} rounds");
    runtime.block_on(measure(&server));
}

async fn measure(server: &nats::Server) {
    let mut options = nats::options(server.url(), 0);
    options.stream_bytes_max = 4 << 30;
    let log = nats::open(&options).await;
    let mut floor = Floor::new(server).await;
    let mut ids = Ids(0);
    for window in [1, 64, 256] {
        let (mut same, mut plain, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let rate = append(&log, window, &mut ids).await;
            same.push(rate / floor.publish(window, Some(&mut ids)).await);
            plain.push(rate / floor.publish(window, None).await);
            rates.push(rate);
        }
        let rate = median(&mut rates);
        row(
            &format!("append, {window} at once ({rate:.0} per second)"),
            &mut same,
        );
        row(
            &format!("append, {window} at once, floor without message ids"),
            &mut plain,
        );
    }
    while log.end() < Seq(REPLAYED) {
        append(&log, 256, &mut ids).await;
    }
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let rate = tail(&log).await;
        ratios.push(rate / floor.replay(&options.stream).await);
        rates.push(rate);
    }
    let rate = median(&mut rates);
    row(
        &format!("tail of {REPLAYED} entries ({rate:.0} per second)"),
        &mut ratios,
    );
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        ratios.push(read(&log).await / floor.replay(&options.stream).await);
    }
    row(
        &format!("read of {REPLAYED} entries, over an ordered consumer"),
        &mut ratios,
    );
    log.close().await.unwrap();
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, ratios: &mut [f64]) {
    let median = median(ratios);
    let (lowest, highest) = (ratios[ratios.len() / 4], ratios[ratios.len() * 3 / 4]);
    println!("{what}: agora / floor = {median:.2} (middle half {lowest:.2} to {highest:.2})");
}

/// No id twice, or the server would keep the first entry only.
struct Ids(u64);

impl Ids {
    fn next(&mut self) -> [u8; 32] {
        self.0 += 1;
        let mut id = [0x5a; 32];
        id[..8].copy_from_slice(&self.0.to_le_bytes());
        id
    }
}

/// Entries per second, with so many on their way.
async fn append(log: &JetStream, window: usize, ids: &mut Ids) -> f64 {
    let entry = Bytes::from(vec![7; ENTRY_BYTES]);
    let (begin, mut done) = (Instant::now(), 0_u64);
    let mut waiting = VecDeque::new();
    loop {
        while waiting.len() < window && begin.elapsed() < ROUND {
            waiting.push_back(log.append(ids.next(), entry.clone(), Class::Ordinary));
        }
        let Some(oldest) = waiting.pop_front() else {
            return done as f64 / begin.elapsed().as_secs_f64();
        };
        black_box(oldest.await.unwrap());
        done += 1;
    }
}

/// Entries per second, from the first to the last.
async fn tail(log: &JetStream) -> f64 {
    let begin = Instant::now();
    let mut tail = log.tail(Seq::FIRST);
    for _ in 0..REPLAYED {
        black_box(tail.next().await.unwrap().unwrap());
    }
    REPLAYED as f64 / begin.elapsed().as_secs_f64()
}

/// The same in parts.
async fn read(log: &JetStream) -> f64 {
    let begin = Instant::now();
    let mut next = Seq::FIRST;
    while next <= Seq(REPLAYED) {
        let found = log.read(next, usize::MAX, usize::MAX).await.unwrap();
        next = found.last().unwrap().0.next();
        black_box(found);
    }
    (next.0 - 1) as f64 / begin.elapsed().as_secs_f64()
}

/// The client library alone, with a stream like the log's.
struct Floor {
    context: jetstream::Context,
}

impl Floor {
    async fn new(server: &nats::Server) -> Self {
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = jetstream::new(client);
        let config = jetstream::stream::Config {
            name: "floor".into(),
            subjects: vec!["floor.>".into()],
            discard: jetstream::stream::DiscardPolicy::New,
            max_bytes: 4 << 30,
            duplicate_window: Duration::from_secs(120),
            allow_direct: true,
            deny_delete: true,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        Floor { context }
    }

    async fn publish(&mut self, window: usize, mut ids: Option<&mut Ids>) -> f64 {
        let entry = Bytes::from(vec![7; ENTRY_BYTES]);
        let (begin, mut done) = (Instant::now(), 0_u64);
        let mut waiting = VecDeque::new();
        loop {
            while waiting.len() < window && begin.elapsed() < ROUND {
                let mut message = PublishMessage::build().payload(entry.clone());
                if let Some(ids) = &mut ids {
                    message = message.message_id(hex(&ids.next()));
                }
                let publishing = self.context.send_publish("floor.host", message);
                waiting.push_back(publishing.await.unwrap().into_future());
            }
            let Some(oldest) = waiting.pop_front() else {
                return done as f64 / begin.elapsed().as_secs_f64();
            };
            black_box(oldest.await.unwrap());
            done += 1;
        }
    }

    async fn replay(&self, stream: &str) -> f64 {
        let begin = Instant::now();
        let stream = self.context.get_stream(stream).await.unwrap();
        let config = consumer::push::OrderedConfig {
            deliver_subject: self.context.client().new_inbox(),
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        for _ in 0..REPLAYED {
            black_box(messages.next().await.unwrap().unwrap());
        }
        REPLAYED as f64 / begin.elapsed().as_secs_f64()
    }
}

fn hex(id: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    let digits = |byte: &u8| [digit(byte >> 4), digit(byte & 15)];
    id.iter().flat_map(digits).collect()
}
