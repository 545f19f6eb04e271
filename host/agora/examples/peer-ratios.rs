//! Prints what a peer's capabilities cost beside bare Cap'n Proto, and bare bytes, over the same streams. Run by `cargo xtask bench`.
//!
//! Two processes on loopback. The other one runs a host with a channel that it grants to this one, and, beside it, two floors on dialers
//! of their own: a bare capnp-rpc connection over the same kind of stream, which answers the same call, and a stream that only sends.
//!
//! This process runs a host, too, which uses what the other one lends it.
//!
//! - A call: `info` of the granted channel, through the peer's wall and facet, beside one that answers the same struct and does nothing.
//! - Bulk: messages of 64 KiB that are followed, until all have arrived, beside as many bytes of a stream.
//!
//! - Publishing: 256 messages of 256 bytes at once, by an agent of this process on the other's channel, beside one of its own host's.
//! - Revocation: from the other host's bump until this host's agent is told, and the same while the agent reads 64 KiB messages of the
//!   other's as fast as it can. The floor is a round trip on the control lane in the same state.
//!
//! Arguments choose rows: `tcp`, `quic`, `calls`, `bulk`, `publish`, `idle`, `saturated`. Without, all are measured. `RUST_LOG`, as
//! `agora=debug`, has both processes say what they do, on standard error.
//!
//! Rows end in the ratio, of times for calls (lower is better) and of rates for bulk (higher is better): the median of rounds that take turns.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use agora::limits;
use agora::peer::spec::{PeerSpec, Peering};
use agora::peer::vat::Vat;
use agora::testbed::{Plan, Puppet, all_of, peer_id};
use agora_capnp::channel_capnp::{channel, sink};
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::peer_channel;
use agora_dial::{
    Dialer, Inbound, KnownPeer, Lane, Multiaddr, Options, PeerId, PeerState, Standing, Stream,
};
use agora_guest::{Act, Draft};
use capnp::capability::FromClientHook;
use capnp_rpc::twoparty::VatNetwork;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use futures::stream::FuturesUnordered;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const LISTEN: [(&str, &str); 2] = [
    ("tcp", "/ip4/127.0.0.1/tcp/0"),
    ("quic", "/ip4/127.0.0.1/udp/0/quic-v1"),
];
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);
/// Of one life of the host: a peer that ends grafts on end is asked later and later.
const BUMPS: usize = 5;
const LIVES: u64 = 12;
const BULK_MESSAGES: usize = 512;
const BULK_BYTES: usize = 64 << 10;
/// Of the process that measures, and of the floors.
const OWN: u8 = 1;
const CALLS: u8 = 2;
const BYTES: u8 = 3;

fn options(seed: u8) -> Options {
    Options::new([seed; 32], |_: &PeerId| Standing::Known)
}

fn id_of(seed: u8) -> PeerId {
    options(seed).peer_id()
}

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let Ok(targets) = std::env::var("RUST_LOG") {
        let targets: tracing_subscriber::filter::Targets = targets.parse().unwrap();
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        tracing_subscriber::registry()
            .with(lines)
            .with(targets)
            .init();
    }
    match &arguments[1..] {
        [serve, transport, home] if serve == "serve" => {
            serving(transport, home.parse().unwrap()).await;
        }
        chosen => {
            let rows = Rows(chosen.to_vec());
            for (name, address) in LISTEN {
                if rows.any(&["tcp", "quic"], name) {
                    measure(name, address, &rows).await;
                }
            }
        }
    }
}

/// Which rows are measured.
struct Rows(Vec<String>);

impl Rows {
    /// Whether this one of some is: when it is named, or none of them.
    fn any(&self, all: &[&str], one: &str) -> bool {
        let mut named = self.0.iter().filter(|row| all.contains(&row.as_str()));
        let first = named.next();
        first.is_none_or(|row| row == one) || named.any(|row| row == one)
    }

    fn has(&self, row: &str) -> bool {
        self.any(&["calls", "bulk", "publish", "idle", "saturated"], row)
    }
}

// -- The other process

struct Constant;

impl channel::Server for Constant {
    async fn info(
        self: Rc<Self>,
        _params: channel::InfoParams,
        mut results: channel::InfoResults,
    ) -> Result<(), capnp::Error> {
        let mut info = results.get().init_info();
        info.set_name("work");
        info.set_hops(3);
        info.set_reactions(256);
        info.set_latest(1);
        info.set_next_key(1);
        agora_realm::Terms::ALL.write(info.init_terms());
        Ok(())
    }
}

async fn floor(seed: u8, address: &str) -> (Dialer, Inbound) {
    let mut options = options(seed);
    options.listen = vec![address.parse().unwrap()];
    Dialer::start(options).await.unwrap()
}

async fn send_bytes(mut inbound: Inbound) {
    while let Some(incoming) = inbound.next().await {
        let mut stream = incoming.stream;
        tokio::spawn(async move {
            let chunk = vec![7; BULK_BYTES];
            let mut order = [0];
            while stream.read_exact(&mut order).await.is_ok() {
                for _ in 0..BULK_MESSAGES {
                    if stream.write_all(&chunk).await.is_err() {
                        return;
                    }
                }
                let _ = stream.flush().await;
            }
        });
    }
}

async fn answer_calls(mut inbound: Inbound) {
    while let Some(incoming) = inbound.next().await {
        let (from, to) = incoming.stream.split();
        let network = VatNetwork::new(from, to, Side::Server, Default::default());
        let client: channel::Client = capnp_rpc::new_client(Constant);
        let system = RpcSystem::new(Box::new(network), Some(client.client));
        tokio::task::spawn_local(system);
    }
}

async fn serving(address: &str, home: PeerId) {
    let data = tempfile::tempdir().unwrap();
    let mut peering = Peering {
        listen: vec![address.parse().unwrap()],
        ..Peering::default()
    };
    let granted = PeerSpec {
        id: Some(id_of(OWN)),
        grants: vec![all_of("work"), all_of("bulk")],
        ..PeerSpec::default()
    };
    let at_home = PeerSpec {
        id: Some(home),
        ..granted.clone()
    };
    peering.peers.insert("alpha".into(), granted);
    peering.peers.insert("home".into(), at_home);
    let filler = Puppet::new();
    let plan = Plan::new()
        .channel("work")
        .channel("bulk")
        .agent("filler", filler.native(), vec![all_of("bulk")])
        .peering(peering);
    let host = plan.open(data.path()).await.unwrap();
    let own = peer_id(data.path());
    filler.until_life(1).await;
    filler.graft().await.unwrap().unwrap();
    for _ in 0..BULK_MESSAGES {
        let draft = Draft::new(Act::Inform, vec![7; BULK_BYTES]);
        filler.speak("bulk", vec![draft]).await.unwrap().unwrap();
    }
    let (calls, asked) = floor(CALLS, address).await;
    let (bytes, wanted) = floor(BYTES, address).await;
    let listening = host.control.peers().dialer().unwrap().listening()[0].clone();
    let mut out = std::io::stdout();
    writeln!(out, "{own} {listening}").unwrap();
    writeln!(out, "{} {}", calls.peer_id(), calls.listening()[0]).unwrap();
    writeln!(out, "{} {}", bytes.peer_id(), bytes.listening()[0]).unwrap();
    out.flush().unwrap();
    let sending = tokio::spawn(send_bytes(wanted));
    let answering = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, answer_calls(asked));
    });
    // Until whoever measures has gone; each line until then asks for a bump.
    while tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await
        .unwrap()
        .is_ok_and(|bytes| bytes > 0)
    {
        let began = nanos();
        let (decided, _) = host.control.bump("", false, "a measurement").await;
        assert_eq!(decided.pending, None);
        writeln!(out, "{began}").unwrap();
        out.flush().unwrap();
    }
    calls.shutdown().await;
    sending.abort();
    drop(answering);
    host.close().await;
}

/// A clock that both processes read.
fn nanos() -> u128 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

// -- This process

fn row(what: &str, mut ratios: Vec<f64>) {
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| ratios[ratios.len() * part / 4];
    let (median, lowest, highest) = (at(2), at(1), at(3));
    println!("{what}: agora / floor = {median:.2} (middle half {lowest:.2} to {highest:.2})");
}

async fn connect(dialer: &Dialer, line: &str) -> Stream {
    let (id, address) = line.trim().split_once(' ').unwrap();
    let (peer, address): (PeerId, Multiaddr) = (id.parse().unwrap(), address.parse().unwrap());
    let addresses = vec![address];
    assert!(dialer.set_peer(KnownPeer { peer, addresses }).await);
    let connected = dialer.until(peer, |now| matches!(now.state, PeerState::Connected));
    tokio::time::timeout(Duration::from_secs(60), connected)
        .await
        .unwrap()
        .unwrap();
    dialer.open(peer, Lane::Vat).await.unwrap()
}

/// Seconds a call takes, with so many on their way.
async fn calls(channel: &channel::Client, window: usize) -> f64 {
    let (began, mut done) = (Instant::now(), 0_u32);
    let mut waiting = FuturesUnordered::new();
    loop {
        while waiting.len() < window && began.elapsed() < ROUND {
            waiting.push(channel.info_request().send().promise);
        }
        match waiting.next().await {
            Some(answered) => {
                let answered = answered.unwrap();
                assert_eq!(answered.get().unwrap().get_info().unwrap().get_hops(), 3);
                done += 1;
            }
            None => return began.elapsed().as_secs_f64() / f64::from(done),
        }
    }
}

/// Counts what is delivered.
struct Counting {
    bytes: Rc<Cell<usize>>,
    all: Rc<tokio::sync::Notify>,
}

impl sink::Server for Counting {
    async fn deliver(self: Rc<Self>, params: sink::DeliverParams) -> Result<(), capnp::Error> {
        let params = params.get()?;
        for message in params.get_messages()?.iter() {
            self.bytes
                .set(self.bytes.get() + message.get_payload()?.len());
        }
        if self.bytes.get() >= BULK_MESSAGES * BULK_BYTES {
            self.all.notify_one();
        }
        Ok(())
    }
}

/// Seconds until all of the bulk has been followed.
async fn followed(channel: &peer_channel::Client) -> f64 {
    let (bytes, all) = (
        Rc::<Cell<usize>>::default(),
        Rc::<tokio::sync::Notify>::default(),
    );
    let began = Instant::now();
    let mut request = channel.follow_request();
    request.get().set_from(1);
    request.get().set_sink(capnp_rpc::new_client(Counting {
        bytes,
        all: all.clone(),
    }));
    let _following = request.send().promise.await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), all.notified())
        .await
        .unwrap();
    began.elapsed().as_secs_f64()
}

async fn sent(stream: &mut Stream) -> f64 {
    let began = Instant::now();
    stream.write_all(&[1]).await.unwrap();
    stream.flush().await.unwrap();
    let mut chunk = vec![0; BULK_BYTES];
    for _ in 0..BULK_MESSAGES {
        stream.read_exact(&mut chunk).await.unwrap();
    }
    began.elapsed().as_secs_f64()
}

async fn measure(name: &str, address: &str, rows: &Rows) {
    let data = tempfile::tempdir().unwrap();
    let home = peer_id(data.path()).to_string();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["serve", address, &home])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let told: Vec<String> = (0..3).map(|_| lines.next().unwrap().unwrap()).collect();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (dialer, _inbound) = Dialer::start(options(OWN)).await.unwrap();
            let (door, vat): (membrane::Client, _) =
                Vat::connect(connect(&dialer, &told[0]).await, limits::LENDER_WIRE);
            let graft = door.graft_request().send().promise.await.unwrap();
            let graft = graft.get().unwrap();
            let granted = |name: &str| {
                let mut grants = graft.get_grants().unwrap().iter();
                let found = grants.find(|g| g.get_name().unwrap() == name).unwrap();
                found
                    .get_capability()
                    .get_as_capability::<peer_channel::Client>()
                    .unwrap()
            };
            let (work, bulk) = (granted("work"), granted("bulk"));
            let work: channel::Client = work.cast_to();
            let (from, to) = connect(&dialer, &told[1]).await.split();
            let network = VatNetwork::new(from, to, Side::Client, Default::default());
            let mut system = RpcSystem::new(Box::new(network), None);
            let bare: channel::Client = system.bootstrap(Side::Server);
            tokio::task::spawn_local(system);
            for window in [1, 64].into_iter().filter(|_| rows.has("calls")) {
                let mut ratios = Vec::new();
                for _ in 0..ROUNDS {
                    ratios.push(calls(&work, window).await / calls(&bare, window).await);
                }
                row(
                    &format!("a peer's capability called, {window} at once, {name}"),
                    ratios,
                );
            }
            if rows.has("bulk") {
                let mut stream = connect(&dialer, &told[2]).await;
                let mut ratios = Vec::new();
                for _ in 0..ROUNDS {
                    let floor = sent(&mut stream).await;
                    ratios.push(floor / followed(&bulk).await);
                }
                row(&format!("messages of 64 KiB followed, {name}"), ratios);
            }
            drop(vat);
            dialer.shutdown().await;
        })
        .await;
    let mut orders = other.stdin.take().unwrap();
    let bump = move || {
        writeln!(orders, "bump").unwrap();
        orders.flush().unwrap();
        lines.next().unwrap().unwrap().parse::<u128>().unwrap()
    };
    at_home(name, data.path(), &told[0], rows, bump).await;
    other.wait().unwrap();
}

/// A host of this process, with an agent that uses what the other host lends.
async fn at_home(
    name: &str,
    data: &Path,
    other: &str,
    rows: &Rows,
    mut bump: impl FnMut() -> u128 + Send + 'static,
) {
    let (id, address) = other.trim().split_once(' ').unwrap();
    let lender = PeerSpec {
        id: Some(id.parse().unwrap()),
        addresses: vec![address.parse().unwrap()],
        ..PeerSpec::default()
    };
    let mut peering = Peering::default();
    peering.peers.insert("b".into(), lender);
    let agent = Puppet::new();
    let grants = vec![all_of("b/work"), all_of("b/bulk"), all_of("own")];
    let plan = Plan::new()
        .channel("own")
        .agent("agent", agent.native(), grants)
        .peering(peering);
    let host = plan.open(data).await.unwrap();
    agent.until_life(1).await;
    lent(&agent).await;
    if rows.has("publish") {
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            ratios.push(published(&agent, "b/work").await / published(&agent, "own").await);
        }
        row(
            &format!("published on a peer's channel, 256 at once, beside one's own, {name}"),
            ratios,
        );
    }
    host.close().await;
    let mut life = 1;
    for (state, saturated) in [("idle", false), ("saturated", true)] {
        if !rows.has(state) {
            continue;
        }
        let (mut times, mut trips) = (Vec::new(), Vec::new());
        for _ in 0..LIVES {
            let host = plan.open(data).await.unwrap();
            life += 1;
            agent.until_life(life).await;
            let peers = host.control.peers().clone();
            for _ in 0..BUMPS {
                lent(&agent).await;
                let reading = saturated.then(|| tokio::spawn(read_on(agent.clone())));
                tokio::time::sleep(Duration::from_millis(50)).await;
                let trip = peers.ping(peers.named("b").unwrap()).await.unwrap();
                trips.push(trip.as_secs_f64());
                let told = agent.run(|stage| async move {
                    let graft = stage.graft.borrow_mut().take().unwrap();
                    let reason = graft.ended().await;
                    assert!(reason.is_stale(), "{reason}");
                    nanos()
                });
                let bumping;
                (bump, bumping) = tokio::task::spawn_blocking(move || {
                    let began = bump();
                    (bump, began)
                })
                .await
                .unwrap();
                let told = tokio::time::timeout(Duration::from_secs(60), told).await;
                times.push((told.unwrap().unwrap() - bumping) as f64 / 1e9);
                if let Some(reading) = reading {
                    reading.abort();
                }
            }
            host.close().await;
        }
        for (what, part) in [("p50", 0.5), ("p99", 0.99)] {
            let at = |values: &mut Vec<f64>| {
                values.sort_by(f64::total_cmp);
                let index = (values.len() as f64 * part).ceil() as usize;
                values[index.saturating_sub(1)]
            };
            let (agora, floor) = (at(&mut times) * 1e6, at(&mut trips) * 1e6);
            println!(
                "bump until a peer's agent is told, {what}, {state}, {name} {agora:.0} {floor:.0} {:.2}",
                agora / floor
            );
        }
    }
    drop(bump);
}

/// Reads large messages of the other host's, as fast as they come.
async fn read_on(agent: Puppet) {
    loop {
        let reads = (0..8).map(|_| agent.history("b/bulk", 1, 64));
        futures::future::join_all(reads).await;
    }
}

/// Grafts until what the other host lends can be used.
async fn lent(agent: &Puppet) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let lent = match agent.graft().await.unwrap() {
            Ok(_) => agent.info("b/work").await.unwrap().map(drop),
            Err(error) => Err(error),
        };
        let Err(error) = lent else {
            return;
        };
        assert!(
            Instant::now() < patience,
            "the channel is not lent: {error}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Messages a second.
async fn published(agent: &Puppet, channel: &str) -> f64 {
    let (began, mut done) = (Instant::now(), 0_u32);
    let mut waiting = FuturesUnordered::new();
    loop {
        while waiting.len() < 256 && began.elapsed() < ROUND {
            waiting.push(agent.speak(channel, vec![Draft::new(Act::Inform, vec![7; 256])]));
        }
        match waiting.next().await {
            Some(outcomes) => {
                let outcomes = outcomes.unwrap().unwrap();
                assert!(outcomes[0].is_ok(), "{outcomes:?}");
                done += 1;
            }
            None => return f64::from(done) / began.elapsed().as_secs_f64(),
        }
    }
}
