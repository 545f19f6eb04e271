//! Prints what a host costs on a JetStream log beside the client library alone. Run by `cargo xtask bench`, which brings a server.
//!
//! Publishing: messages of 256 bytes, signed, appended, acknowledged, come back on the tail, judged. The floor publishes the same
//! messages over async-nats, as many on their way, and does nothing else. Delivering: a host that has not seen the record follows
//! its tail, verifies, judges, and reads each message as a subscription does. The floor is an ordered consumer of a stream of the
//! same messages.
//!
//! Rows end in the ratio of the rates, higher is better: the median of rounds that take turns, against one server without sync.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

#[path = "../../log/tests/nats/mod.rs"]
mod nats;

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agora::boot::data::{Cursors, DataFolder};
use agora::channel::rates::Rates;
use agora::channel::speak::{Draft, Outcome, Speakers, Speech, Stage, Standing};
use agora::delivery::cursors::SilentCursors;
use agora::delivery::record::{Derived, Record, Seen};
use agora::door::gate::Gate;
use agora::limits;
use agora::persona::keys::Keys;
use agora::persona::secret::Secret;
use agora_log::{Appended, Class, Durability, Log, LogError, Seq};
use agora_realm::{
    Act, Body, ChannelBody, ChannelName, Entry, Epoch, Genesis, GrantBody, GrantId, HostId,
    KeyBody, KeySubject, Message, MessageVerdict, Object, Ordinal, PersonaId, PersonaName,
    REALM_FORMAT, RealmId, Sealed, SigningKey, Terms, TurnBody, unsigned,
};
use async_nats::jetstream::{self, consumer, message::PublishMessage};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};

const PAYLOAD_BYTES: usize = 256;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(400);
const BUSY: usize = 256;
const DELIVERED: u64 = 40_000;

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
    runtime.block_on(async {
        publishing(&server).await;
        for (number, messages) in [(1, 16), (2, 1)] {
            delivering(&server, number, messages).await;
        }
    });
}

fn row(what: &str, mut ratios: Vec<f64>) {
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| ratios[ratios.len() * part / 4];
    let (median, lowest, highest) = (at(2), at(1), at(3));
    println!("{what}: agora / floor = {median:.2} (middle half {lowest:.2} to {highest:.2})");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn payload() -> Bytes {
    vec![7; PAYLOAD_BYTES].into()
}

// -- A host, as far as it has to do with the log

struct Scene {
    keys: Arc<Keys>,
    record: Arc<Record>,
    realm: RealmId,
    persona: PersonaId,
    own: SigningKey,
    standing: Standing,
    key: u64,
    following: tokio::task::JoinHandle<()>,
    _folder: DataFolder,
    _dir: tempfile::TempDir,
}

async fn record(dir: &Path, log: Arc<dyn Log>, host: HostId) -> Arc<Record> {
    let index = dir.join("index");
    std::fs::create_dir_all(&index).unwrap();
    let derived = Derived {
        index,
        snapshot: dir.join("state"),
        tree: dir.join("tree"),
        pruned: dir.join("pruned"),
    };
    let seen = Seen {
        tip: None,
        accepts_loss: false,
        host,
    };
    Record::open(log, derived, seen, true, |_, _| {})
        .await
        .unwrap()
}

impl Scene {
    /// A realm with one persona that may speak on one channel.
    async fn new(log: Arc<dyn Log>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let keys = Arc::new(Keys::new(
            Secret::open_or_make(&folder.join("secret")).unwrap(),
        ));
        let record = record(dir.path(), log, keys.host_id()).await;
        let following = tokio::spawn(record.clone().follow());
        let name = PersonaName::new("bencher").unwrap();
        let own = keys.secret().persona_key(&name, None, 1);
        let persona = PersonaId::new(keys.host_id(), name.clone());
        let channel = ChannelName::new("work").unwrap();
        let decide = async |realm, body| {
            let entry = Entry {
                realm,
                host: keys.host_id(),
                author: None,
                signer: keys.host().public(),
                epoch: Epoch(1),
                time_ms: 0,
                grant: None,
                body,
            };
            let sealed = keys.seal(entry, &keys.host()).unwrap();
            let committed = record.commit(sealed, Class::Ordinary).await.unwrap();
            committed.settled.judged.verdict.unwrap();
            committed.settled.judged.id.unwrap()
        };
        let key = |subject, public_key, genesis| {
            Body::Key(KeyBody {
                subject,
                public_key,
                component: None,
                started: false,
                genesis,
                origin: None,
            })
        };
        let genesis = Genesis {
            format: REALM_FORMAT,
            nonce: [7; 32],
            fencers: Vec::new(),
        };
        let of_host = KeySubject::Host(keys.host_id());
        let first = decide(None, key(of_host, keys.host().public(), Some(genesis))).await;
        let realm = RealmId::from(first);
        let spec = Body::Channel(ChannelBody {
            name: channel.clone(),
            hops: 3,
            reactions: 256,
            carry: false,
        });
        decide(Some(realm), spec).await;
        decide(
            Some(realm),
            key(KeySubject::Persona(name), own.public(), None),
        )
        .await;
        let granted = Body::Grant(GrantBody {
            persona: persona.clone(),
            object: Object::Channel(channel.clone()),
            terms: Terms::ALL,
            parent: None,
            lasting: false,
        });
        let grant = GrantId::from(decide(Some(realm), granted).await);
        let standing = Standing {
            channel,
            grant: Some(grant),
            epoch: Epoch(1),
            peer_epoch: Epoch(0),
        };
        Self {
            keys,
            record,
            realm,
            persona,
            own,
            standing,
            key: 0,
            following,
            _folder: folder,
            _dir: dir,
        }
    }

    fn speakers(&self) -> Speakers {
        let hearing = self.record.hearing().clone();
        Speakers::new(Stage {
            record: self.record.clone(),
            keys: self.keys.clone(),
            gate: Arc::new(Gate::new(Epoch(1), false, hearing)),
            rates: Arc::new(Rates::default()),
            silent: Arc::new(SilentCursors::new(Cursors::default())),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// The next entry, with so many messages.
    fn turn(&mut self, messages: u64) -> Sealed {
        let message = |key| Message {
            act: Act::Inform,
            parent: None,
            hops: 3,
            key,
            content_type: String::new(),
            payload: payload(),
            time_ms: 0,
            owner: None,
            deadline_ms: 0,
        };
        let first = self.key + 1;
        self.key += messages;
        let entry = Entry {
            realm: Some(self.realm),
            host: self.persona.host,
            author: Some(self.persona.name.clone()),
            signer: self.own.public(),
            epoch: Epoch(1),
            time_ms: 0,
            grant: self.standing.grant,
            body: Body::Turn(TurnBody {
                channel: self.standing.channel.clone(),
                through: Ordinal(0),
                origin: None,
                messages: (first..=self.key).map(message).collect(),
                peer_epoch: Epoch(0),
            }),
        };
        self.keys.seal(entry, &self.own).unwrap()
    }

    /// Messages per second, one an entry, with so many on their way.
    async fn publish(&mut self, window: usize) -> f64 {
        let (begin, mut done) = (Instant::now(), 0_u64);
        let mut waiting = VecDeque::new();
        loop {
            while waiting.len() < window && begin.elapsed() < ROUND {
                let sealed = self.turn(1);
                waiting.push_back(self.record.commit(sealed, Class::Ordinary));
            }
            let Some(oldest) = waiting.pop_front() else {
                return done as f64 / begin.elapsed().as_secs_f64();
            };
            let committed = oldest.await.unwrap();
            let verdict = &committed.settled.judged.messages[0];
            assert!(matches!(verdict, MessageVerdict::Counts(_)), "{verdict:?}");
            done += 1;
        }
    }

    /// Messages per second of a persona that has so many to say at once, each a call; and messages an entry.
    async fn speak(&self, speakers: &Speakers, window: usize) -> (f64, f64) {
        let first = self.record.log().end().0;
        let (begin, mut done) = (Instant::now(), 0_u64);
        let mut waiting = FuturesUnordered::new();
        let elapsed = loop {
            while waiting.len() < window && begin.elapsed() < ROUND {
                let draft = Draft {
                    act: Act::Inform,
                    parent: None,
                    content_type: String::new(),
                    payload: payload(),
                    key: 0,
                    hops_max: u16::MAX,
                    owner: None,
                    deadline_ms: 0,
                };
                let speech = Speech {
                    standing: self.standing.clone(),
                    drafts: vec![draft],
                    elsewhere: Vec::new(),
                    through: Ordinal(0),
                    graft: 0,
                };
                waiting.push(speakers.speak(&self.persona, speech));
            }
            let Some(spoken) = waiting.next().await else {
                break begin.elapsed();
            };
            let (outcomes, _) = spoken.unwrap();
            assert!(matches!(outcomes[..], [Outcome::Receipt { .. }]));
            done += 1;
        };
        let entries = self.record.log().end().0 - first;
        (
            done as f64 / elapsed.as_secs_f64(),
            done as f64 / entries as f64,
        )
    }
}

// -- Publishing

async fn publishing(server: &nats::Server) {
    let mut options = nats::options(server.url(), 0);
    options.stream_bytes_max = 8 << 30;
    let log: Arc<dyn Log> = Arc::new(nats::open(&options).await);
    let mut scene = Scene::new(log.clone()).await;
    let mut floor = Floor::new(server, "floor").await;
    for window in [1, 64, 256] {
        for off in [true, false] {
            unsigned::set_signing_off(off);
            let (mut same, mut plain, mut rates) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let rate = scene.publish(window).await;
                same.push(rate / floor.publish(window, true).await);
                plain.push(rate / floor.publish(window, false).await);
                rates.push(rate);
            }
            let signing = if off { "off" } else { "on" };
            let what = format!("publish entry by entry, {window} at once, signing {signing}");
            row(&format!("{what} ({:.0} per second)", median(rates)), same);
            row(&format!("{what}, floor without message ids"), plain);
        }
    }
    let speakers = scene.speakers();
    for off in [true, false] {
        unsigned::set_signing_off(off);
        let (mut same, mut plain) = (Vec::new(), Vec::new());
        let (mut rates, mut folded) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (rate, an_entry) = scene.speak(&speakers, BUSY).await;
            same.push(rate / floor.publish(BUSY, true).await);
            plain.push(rate / floor.publish(BUSY, false).await);
            rates.push(rate);
            folded.push(an_entry);
        }
        let signing = if off { "off" } else { "on" };
        let what = format!("publish folded, {BUSY} drafts at once, signing {signing}");
        let (rate, an_entry) = (median(rates), median(folded));
        row(
            &format!("{what} ({rate:.0} per second, {an_entry:.1} messages an entry)"),
            same,
        );
        row(&format!("{what}, floor without message ids"), plain);
    }
    unsigned::set_signing_off(false);
    drop(speakers);
    log.close().await.unwrap();
    scene.following.await.unwrap();
}

// -- Delivering

async fn delivering(server: &nats::Server, number: u64, messages: u64) {
    let mut options = nats::options(server.url(), number);
    options.stream_bytes_max = 1 << 30;
    let log: Arc<dyn Log> = Arc::new(nats::open(&options).await);
    let mut scene = Scene::new(log.clone()).await;
    let mut waiting = VecDeque::new();
    for _ in 0..DELIVERED / messages {
        let sealed = scene.turn(messages);
        waiting.push_back(scene.record.commit(sealed, Class::Ordinary));
        while waiting.len() >= 256 {
            waiting.pop_front().unwrap().await.unwrap();
        }
    }
    for committing in waiting {
        committing.await.unwrap();
    }
    let mut floor = Floor::new(server, &format!("floor-{number}")).await;
    floor.fill(DELIVERED).await;
    for off in [true, false] {
        unsigned::set_verifying_off(off);
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let rate = deliver(&log, &scene).await;
            ratios.push(rate / floor.replay(DELIVERED).await);
            rates.push(rate);
        }
        let verifying = if off { "off" } else { "on" };
        let rate = median(rates);
        row(
            &format!(
                "delivered, {messages} an entry, verifying {verifying} ({rate:.0} messages per second)"
            ),
            ratios,
        );
    }
    unsigned::set_verifying_off(false);
    log.close().await.unwrap();
    scene.following.await.unwrap();
}

/// Messages per second, from the first to the last, to a host that has seen none of them.
async fn deliver(log: &Arc<dyn Log>, scene: &Scene) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let unseen = Arc::new(Unseen(log.clone()));
    let record = record(dir.path(), unseen, scene.persona.host).await;
    let channel = &scene.standing.channel;
    let mut latest = record.latest(channel);
    let begin = Instant::now();
    let following = tokio::spawn(record.clone().follow());
    let mut next = 1;
    while next <= DELIVERED {
        latest.wait_for(|latest| *latest >= next).await.unwrap();
        let (most, bytes) = (limits::BATCH_MESSAGES_MAX, limits::BATCH_BYTES_MAX);
        let found = record.messages(channel, Ordinal(next), most, bytes).await;
        for kept in found.unwrap() {
            assert_eq!(kept.ordinal.0, next);
            black_box(kept.message().payload.clone());
            next += 1;
        }
    }
    let rate = DELIVERED as f64 / begin.elapsed().as_secs_f64();
    following.abort();
    rate
}

/// A log that shows what it has on its tail only.
struct Unseen(Arc<dyn Log>);

impl Log for Unseen {
    fn append(
        &self,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        self.0.append(id, bytes, class)
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        self.0.read(from, entries, bytes_max)
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        self.0.tail(from)
    }

    fn durability(&self) -> Durability {
        self.0.durability()
    }

    fn end(&self) -> Seq {
        Seq(0)
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        async { Ok(()) }.boxed()
    }
}

// -- The client library alone

struct Floor {
    context: jetstream::Context,
    stream: String,
    subject: String,
    id: u64,
}

impl Floor {
    async fn new(server: &nats::Server, stream: &str) -> Self {
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = jetstream::new(client);
        let config = jetstream::stream::Config {
            name: stream.to_owned(),
            subjects: vec![format!("{stream}.>")],
            discard: jetstream::stream::DiscardPolicy::New,
            max_bytes: 8 << 30,
            duplicate_window: Duration::from_secs(120),
            allow_direct: true,
            deny_delete: true,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        Self {
            context,
            stream: stream.to_owned(),
            subject: format!("{stream}.host"),
            id: 0,
        }
    }

    async fn send(&mut self, with_id: bool) -> jetstream::context::PublishAckFuture {
        let mut message = PublishMessage::build().payload(payload());
        if with_id {
            self.id += 1;
            message = message.message_id(format!("{:064x}", self.id));
        }
        let publishing = self.context.send_publish(self.subject.clone(), message);
        publishing.await.unwrap()
    }

    /// Messages per second, with so many on their way.
    async fn publish(&mut self, window: usize, with_ids: bool) -> f64 {
        let (begin, mut done) = (Instant::now(), 0_u64);
        let mut waiting = VecDeque::new();
        loop {
            while waiting.len() < window && begin.elapsed() < ROUND {
                waiting.push_back(self.send(with_ids).await.into_future());
            }
            let Some(oldest) = waiting.pop_front() else {
                return done as f64 / begin.elapsed().as_secs_f64();
            };
            black_box(oldest.await.unwrap());
            done += 1;
        }
    }

    async fn fill(&mut self, messages: u64) {
        let mut waiting = VecDeque::new();
        for _ in 0..messages {
            waiting.push_back(self.send(false).await.into_future());
            if waiting.len() >= 256 {
                waiting.pop_front().unwrap().await.unwrap();
            }
        }
        for sent in waiting {
            sent.await.unwrap();
        }
    }

    /// Messages per second, from the first to the last.
    async fn replay(&self, messages: u64) -> f64 {
        let begin = Instant::now();
        let stream = self.context.get_stream(&self.stream).await.unwrap();
        let config = consumer::push::OrderedConfig {
            deliver_subject: self.context.client().new_inbox(),
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut found = consumer.messages().await.unwrap();
        for _ in 0..messages {
            black_box(found.next().await.unwrap().unwrap());
        }
        messages as f64 / begin.elapsed().as_secs_f64()
    }
}
