//! What the membrane costs, beside the same work without it, in one run.
//!
//! Prints a row for each measure: its name, with the membrane, without it, and the ratio. The unit is microseconds per
//! call, or milliseconds for a revocation. `MEMBRANE_ROUNDS` sets how many rounds the medians are taken of.
//!
//! ```text
//! cargo run --release -p agora-membrane --example membrane-ratios
//! ```
#![allow(missing_docs)]

#[allow(clippy::all, clippy::unimplemented, clippy::unwrap_used, unreachable_pub, missing_docs)]
#[path = "../tests/it/node_capnp.rs"]
#[rustfmt::skip]
mod node_capnp;

use agora_membrane::{CallInfo, Membrane, Revoker, Verdict};
use capnp::Error;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use node_capnp::node;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

const CALLS: u32 = 2_000;
const WRAPPERS: usize = 100_000;
const IN_FLIGHT: usize = 10_000;
const LARGE: usize = 64 << 10;

#[derive(Default)]
struct Echo {
    other: Option<node::Client>,
    dropped: Rc<Cell<usize>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.dropped.set(self.dropped.get() + 1);
    }
}

impl node::Server for Echo {
    async fn ping(
        self: Rc<Self>,
        params: node::PingParams,
        mut results: node::PingResults,
    ) -> Result<(), Error> {
        results.get().set_n(params.get()?.get_n() + 1);
        Ok(())
    }

    async fn give(
        self: Rc<Self>,
        params: node::GiveParams,
        _: node::GiveResults,
    ) -> Result<(), Error> {
        let payload = params.get()?.get_payload()?;
        if payload.has_plain() {
            payload.get_plain()?;
        }
        payload.get_data().map(drop)
    }

    async fn next(
        self: Rc<Self>,
        _: node::NextParams,
        mut results: node::NextResults,
    ) -> Result<(), Error> {
        if let Some(other) = &self.other {
            results.get().set_node(other.clone());
        }
        Ok(())
    }

    async fn hang(
        self: Rc<Self>,
        _params: node::HangParams,
        _: node::HangResults,
    ) -> Result<(), Error> {
        std::future::pending().await
    }
}

fn plain() -> node::Client {
    capnp_rpc::new_client(Echo::default())
}

fn allow(_: &CallInfo) -> Verdict {
    Verdict::Allow
}

async fn ping(node: &node::Client) -> Result<(), Error> {
    let mut request = node.ping_request();
    request.get().set_n(1);
    request.send().promise.await?.get().map(drop)
}

async fn give(node: &node::Client, cap: &node::Client) -> Result<(), Error> {
    let mut request = node.give_request();
    request.get().init_payload().set_plain(cap.clone());
    request.send().promise.await.map(drop)
}

async fn large(node: &node::Client, data: &[u8]) -> Result<(), Error> {
    let mut request = node.give_request();
    request.get().init_payload().set_data(data);
    request.send().promise.await.map(drop)
}

async fn next(node: &node::Client) -> Result<(), Error> {
    request_next(node).await?.client.hook.get_ptr();
    Ok(())
}

async fn request_next(node: &node::Client) -> Result<node::Client, Error> {
    node.next_request().send().promise.await?.get()?.get_node()
}

async fn pipelined(node: &node::Client) -> Result<(), Error> {
    let sent = node.next_request().send();
    ping(&sent.pipeline.get_node()).await
}

/// What a call of `call` takes, on each of `subjects`, in microseconds: medians of rounds that take turns.
async fn time<const N: usize>(
    rounds: usize,
    subjects: [&node::Client; N],
    call: impl AsyncFn(&node::Client) -> Result<(), Error>,
) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (subject, times) in subjects.iter().zip(&mut times) {
            let started = Instant::now();
            for _ in 0..CALLS {
                call(subject).await.expect("nothing is revoked");
            }
            // The first round warms up.
            if round > 0 {
                times.push(started.elapsed());
            }
        }
    }
    times.map(|mut times| median(&mut times).as_secs_f64() * 1e6 / f64::from(CALLS))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn row(name: &str, agora: f64, floor: f64) {
    println!(
        "{name:<32} {agora:>9.3} {floor:>9.3} {:>6.2}",
        agora / floor
    );
}

fn connect(bootstrap: node::Client) -> node::Client {
    let (here, there) = tokio::io::duplex(1 << 20);
    let end = |stream: tokio::io::DuplexStream, side| {
        let (read, write) = tokio::io::split(stream);
        Box::new(twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            side,
            Default::default(),
        ))
    };
    let server = RpcSystem::new(
        end(here, rpc_twoparty_capnp::Side::Server),
        Some(bootstrap.client),
    );
    let mut dialler = RpcSystem::new(end(there, rpc_twoparty_capnp::Side::Client), None);
    let remote = dialler.bootstrap(rpc_twoparty_capnp::Side::Server);
    tokio::task::spawn_local(server);
    tokio::task::spawn_local(dialler);
    remote
}

/// Very many capabilities, some with a call in flight; what it takes to be rid of them all.
async fn crowd(membrane: Option<&(Membrane, Revoker)>) -> Duration {
    let dropped = Rc::new(Cell::new(0));
    let mut held = Vec::new();
    let mut calls = Vec::new();
    for at in 0..WRAPPERS {
        let naked: node::Client = capnp_rpc::new_client(Echo {
            other: None,
            dropped: dropped.clone(),
        });
        let client = match membrane {
            Some((membrane, _)) => membrane.export(naked),
            None => naked,
        };
        if at < IN_FLIGHT {
            let mut promise = client.hang_request().send().promise;
            let waiting = futures::poll!(&mut promise);
            assert!(waiting.is_pending());
            calls.push(promise);
        }
        held.push(client);
    }
    let started = Instant::now();
    match membrane {
        Some((_, revoker)) => revoker.revoke("measured"),
        None => {
            drop(std::mem::take(&mut calls));
            drop(std::mem::take(&mut held));
        }
    }
    let took = started.elapsed();
    assert_eq!(dropped.get(), WRAPPERS, "everything inside is gone");
    took
}

async fn measure(rounds: usize) {
    println!(
        "{:<32} {:>9} {:>9} {:>6}",
        "name", "agora", "floor", "ratio"
    );
    let inside: node::Client = capnp_rpc::new_client(Echo {
        other: Some(plain()),
        dropped: Rc::default(),
    });
    let (membrane, _revoker) = Membrane::new(allow);
    let (second, _second_revoker) = Membrane::new(allow);
    let once = membrane.export(inside.clone());
    let twice = second.export(once.clone());
    let cap = plain();
    let bytes = vec![7; LARGE];

    let [floor, agora, nested] = time(rounds, [&inside, &once, &twice], async |node| {
        ping(node).await
    })
    .await;
    row("local ping", agora, floor);
    row("nested ping, over one membrane", nested, agora);
    let [floor, agora, nested] = time(rounds, [&inside, &once, &twice], async |node| {
        give(node, &cap).await
    })
    .await;
    row("local cap in params", agora, floor);
    row("nested cap in params, over one", nested, agora);
    let [floor, agora, nested] = time(rounds, [&inside, &once, &twice], async |node| {
        next(node).await
    })
    .await;
    row("local cap in results", agora, floor);
    row("nested cap in results, over one", nested, agora);
    let [floor, agora] = time(rounds, [&inside, &once], async |node| pipelined(node).await).await;
    row("local pipelined", agora, floor);
    let [floor, agora] = time(rounds, [&inside, &once], async |node| {
        large(node, &bytes).await
    })
    .await;
    row("local 64 KiB", agora, floor);

    let naked = connect(inside.clone());
    let served = connect(once.clone());
    let dialled = membrane.export(connect(inside.clone()));
    for remote in [&naked, &served, &dialled] {
        ping(remote).await.expect("connected");
    }
    let subjects = [&naked, &served, &dialled];
    let [floor, server, client] = time(rounds, subjects, async |node| ping(node).await).await;
    row("duplex ping, server side", server, floor);
    row("duplex ping, client side", client, floor);
    let [floor, server, client] = time(rounds, subjects, async |node| give(node, &cap).await).await;
    row("duplex cap in params, server side", server, floor);
    row("duplex cap in params, client side", client, floor);
    let [floor, server, client] = time(rounds, subjects, async |node| next(node).await).await;
    row("duplex cap in results, server side", server, floor);
    row("duplex cap in results, client side", client, floor);

    let mut revoked = Vec::new();
    let mut dropped = Vec::new();
    for _ in 0..rounds.min(5) {
        let pair = Membrane::new(allow);
        revoked.push(crowd(Some(&pair)).await);
        dropped.push(crowd(None).await);
    }
    row(
        "revoke 100,000 with 10,000 calls",
        median(&mut revoked).as_secs_f64() * 1e3,
        median(&mut dropped).as_secs_f64() * 1e3,
    );
}

fn main() {
    let rounds = std::env::var("MEMBRANE_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(15);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, measure(rounds));
}
