//! Prints what the host costs beside the raw libraries doing the same work. Run by `cargo xtask bench`, which builds the agents first.
//!
//! Rows end in: agora, its floor, their ratio; medians of rounds that alternate between the two, in microseconds.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agora::boot::host::{Host, Setup, open};
use agora::boot::image::Image;
use agora::door::control::Said;
use agora::persona::engine::Workshop;
use agora::persona::instance::{Fittings, Parking, run_agent};
use agora::persona::output::Output;
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::timer_capnp::timer;
use agora_guest::wire;
use agora_log::{Class, Embedded, Log, Options, Seq};
use agora_membrane::{CallInfo, Membrane, Verdict};
use agora_realm::{Act, ChannelName, PersonaName};
use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;
use futures::StreamExt;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

const ROUNDS: usize = 7;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, agora: f64, floor: f64) {
    println!("{name} {agora:.3} {floor:.3} {:.3}", agora / floor);
}

fn component() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    target.join("wasm32-wasip2/release/bencher.wasm")
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let single = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    local.block_on(&single, calls());
    starts(dir.path());
    runtime.block_on(publishing(dir.path()));
}

// -- A call from guest to host

/// Notes when each batch begins, and counts the calls.
#[derive(Default)]
struct Clock {
    began: RefCell<Vec<Instant>>,
    calls: Cell<u32>,
    enough: tokio::sync::Notify,
}

impl timer::Server for Clock {
    async fn now(
        self: Rc<Self>,
        _: timer::NowParams,
        mut results: timer::NowResults,
    ) -> Result<(), capnp::Error> {
        self.calls.set(self.calls.get() + 1);
        results.get().set_unix_ms(1);
        Ok(())
    }

    async fn sleep(
        self: Rc<Self>,
        _: timer::SleepParams,
        _: timer::SleepResults,
    ) -> Result<(), capnp::Error> {
        self.began.borrow_mut().push(Instant::now());
        if self.began.borrow().len() > ROUNDS * 4 {
            self.enough.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

struct Door(Rc<Clock>);

impl membrane::Server for Door {
    async fn graft(
        self: Rc<Self>,
        _: membrane::GraftParams,
        mut results: membrane::GraftResults,
    ) -> Result<(), capnp::Error> {
        let (wall, _revoker) = Membrane::new(|_: &CallInfo| Verdict::Allow);
        let mut grants = results.get().init_grants(1);
        let mut grant = grants.reborrow().get(0);
        grant.set_name("timer");
        grant.set_interface_id(timer::Client::TYPE_ID);
        let clock: timer::Client = capnp_rpc::new_client_from_rc(self.0.clone());
        grant
            .init_capability()
            .set_as_capability(wall.export(clock).into_client_hook());
        let session: session::Client = capnp_rpc::new_client(Forever);
        results.get().set_session(wall.export(session));
        Ok(())
    }
}

struct Forever;

impl session::Server for Forever {
    async fn ended(
        self: Rc<Self>,
        _: session::EndedParams,
        _: session::EndedResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }
}

async fn calls() {
    let workshop = Workshop::new(None).unwrap();
    let prepared = workshop.prepare(&component()).unwrap();
    let clock = Rc::new(Clock::default());
    let (host, guest) = wire::pair(wire::Limits::HOST);
    let bootstrap: membrane::Client = capnp_rpc::new_client(Door(clock.clone()));
    let network = Box::new(wire::Network::new(host));
    let system = capnp_rpc::RpcSystem::new(network, Some(bootstrap.client));
    let fittings = Fittings {
        memory_max: 64 << 20,
        memory: Arc::default(),
        seed: 1,
        output: Output::new(PersonaName::new("bencher").unwrap()),
        parked: Parking::default(),
    };
    tokio::select! {
        end = run_agent(&workshop, &prepared, fittings, guest) => panic!("it ended: {end:?}"),
        end = system => panic!("its vat ended: {end:?}"),
        () = clock.enough.notified() => {}
    }
    let began = clock.began.take();
    // The first batches warm up. The sleep that marks a batch is one call more.
    let calls = f64::from(clock.calls.get()) / (began.len() - 1) as f64 + 1.0;
    let batches = began.windows(2).skip(2);
    let agora = median(
        batches
            .map(|w| (w[1] - w[0]).as_secs_f64() * 1e6 / calls)
            .collect(),
    );

    let (here, there) = tokio::io::duplex(64 << 10);
    let side = |stream: tokio::io::DuplexStream, side| {
        let (read, write) = tokio::io::split(stream);
        Box::new(capnp_rpc::twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            side,
            Default::default(),
        ))
    };
    use capnp_rpc::rpc_twoparty_capnp::Side;
    let naked: timer::Client = capnp_rpc::new_client(Clock::default());
    let server = capnp_rpc::RpcSystem::new(side(here, Side::Server), Some(naked.client));
    let mut dialler = capnp_rpc::RpcSystem::new(side(there, Side::Client), None);
    let remote: timer::Client = dialler.bootstrap(Side::Server);
    let (server, dialler) = (
        tokio::task::spawn_local(server),
        tokio::task::spawn_local(dialler),
    );
    let mut times = Vec::new();
    for _ in 0..ROUNDS * 4 {
        let began = Instant::now();
        for _ in 0..500 {
            remote.now_request().send().promise.await.unwrap();
        }
        times.push(began.elapsed().as_secs_f64() * 1e6 / 500.0);
    }
    server.abort();
    dialler.abort();
    row(
        "guest-to-host call / host-to-host call over a duplex",
        agora,
        median(times),
    );
}

// -- Starting an agent

fn starts(dir: &Path) {
    let bytes = std::fs::read(component()).unwrap();
    let (mut agora_cold, mut floor_cold, mut agora_warm, mut floor_warm) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        let cache = dir.join(format!("cache-{round}"));
        std::fs::create_dir_all(&cache).unwrap();
        let workshop = Workshop::new(Some(cache.clone())).unwrap();
        let began = Instant::now();
        workshop.prepare(&component()).unwrap();
        workshop.keep(&cache);
        agora_cold.push(began.elapsed().as_secs_f64() * 1e6);
        let began = Instant::now();
        let compiled =
            wasmtime::component::Component::from_binary(workshop.engine_ref(), &bytes).unwrap();
        floor_cold.push(began.elapsed().as_secs_f64() * 1e6);
        let compiled = compiled.serialize().unwrap();
        for _ in 0..5 {
            let began = Instant::now();
            workshop.prepare(&component()).unwrap();
            agora_warm.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            // SAFETY: the bytes were serialised a few lines above.
            #[expect(unsafe_code, reason = "the floor is wasmtime's own way to load")]
            let loaded = unsafe {
                wasmtime::component::Component::deserialize(workshop.engine_ref(), &compiled)
            };
            loaded.unwrap();
            floor_warm.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    row(
        "preparing an agent, cold / wasmtime compiling it",
        median(agora_cold),
        median(floor_cold),
    );
    row(
        "preparing an agent, warm / wasmtime loading it",
        median(agora_warm),
        median(floor_warm),
    );
}

// -- From publishing to delivery

const MANIFEST: &str = r#"
[channels.start]
[channels.work]
[agents.publisher]
component = "COMPONENT"
[[agents.publisher.grants]]
channel = "start"
rights = ["read"]
[[agents.publisher.grants]]
channel = "work"
rights = ["write", "initiate"]
[agents.listener]
component = "COMPONENT"
[[agents.listener.grants]]
channel = "work"
rights = ["read"]
"#;

async fn publishing(dir: &Path) {
    let image = dir.join("image");
    std::fs::create_dir_all(&image).unwrap();
    let manifest = MANIFEST.replace("COMPONENT", component().to_str().unwrap());
    std::fs::write(image.join("agora.toml"), manifest).unwrap();
    let setup = Setup {
        log: agora::boot::host::LogChoice::Own,
        image: Image::read(&image).unwrap(),
        data: dir.join("data"),
        identity: agora::persona::identity::Identity::in_folder(),
        workers: 1,
    };
    let host = open(setup, &mut |_| {}).await.unwrap();
    let host = host.start().await.unwrap();
    let log: Arc<dyn Log> = Arc::new(
        Embedded::open(&dir.join("floor"), Options::default())
            .unwrap()
            .0,
    );
    for (name, count, window) in [
        (
            "publish to delivered, one at a time / append and channel send",
            200,
            1,
        ),
        (
            "publish to delivered, 64 at a time / append and channel send",
            4000,
            64,
        ),
    ] {
        let (mut agora, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            agora.push(publish(&host, count, window).await);
            floor.push(append(&log, count, window).await);
        }
        row(name, median(agora), median(floor));
    }
    host.close().await;
}

fn delivered(host: &Host) -> u64 {
    let listener = host.control.agent("listener").unwrap();
    let work = ChannelName::new("work").unwrap();
    let progress = listener.shared.progress(&work);
    progress.map_or(0, |progress| progress.delivered.load(Ordering::Relaxed))
}

/// Microseconds a message, from the word to begin until the last one is delivered.
async fn publish(host: &Host, count: usize, window: usize) -> f64 {
    let before = delivered(host);
    let said = Said {
        channel: "start".into(),
        act: Act::Inform,
        text: format!("{count} {window} 256"),
        parent: None,
        owner: String::new(),
        deadline_ms: 0,
    };
    let began = Instant::now();
    host.control.say(0, said).await.unwrap();
    while delivered(host) < before + count as u64 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "delivery stands still at {} of {}",
            delivered(host) - before,
            count
        );
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    began.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// The same bytes appended to the same kind of log, tailed, and sent through a channel.
async fn append(log: &Arc<dyn Log>, count: usize, window: usize) -> f64 {
    // A turn of one message of 256 bytes takes about as much.
    let entry = bytes::Bytes::from(vec![7; 720]);
    let mut tail = log.tail(Seq(log.end().0 + 1));
    let (send, mut receive) = tokio::sync::mpsc::channel(1024);
    let began = Instant::now();
    let tailing = tokio::spawn(async move {
        for _ in 0..count {
            let next = tail.next().await.unwrap().unwrap();
            send.send(next).await.unwrap();
        }
    });
    let appending = {
        let log = log.clone();
        tokio::spawn(async move {
            futures::stream::iter(0..count)
                .map(|i| {
                    let mut id = [0; 32];
                    id[..8].copy_from_slice(&i.to_le_bytes());
                    log.append(id, entry.clone(), Class::Ordinary)
                })
                .buffer_unordered(window)
                .for_each(|appended| async move { _ = appended.unwrap() })
                .await;
        })
    };
    for _ in 0..count {
        receive.recv().await.unwrap();
    }
    tailing.await.unwrap();
    appending.await.unwrap();
    began.elapsed().as_secs_f64() * 1e6 / count as f64
}
