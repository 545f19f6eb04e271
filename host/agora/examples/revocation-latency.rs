//! Prints how long a bump takes to reach a thousand agents. Run by `cargo xtask bench`.
//!
//! The agents are functions of this process on the host's own vat threads, each with a call in flight on a capability of its graft (a
//! sleep of an hour) and one on its session (`ended`). A round is one bump: timed from the call of it to the moment that the last of the
//! calls is rejected, and to the one that the last of the agents is told. Then all graft again. The floor, in the same round: a message
//! to each agent over a channel of this process, until the last of them has it.
//!
//! Rows end in: agora, its floor, their ratio; microseconds, but for the first, which counts the entries that a bump appends. `--bumps` and `--agents` say how many.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agora::boot::manifest::GrantSpec;
use agora::persona::instance::End;
use agora::testbed::{Native, Plan};
use agora_capnp::membrane_capnp::membrane;
use agora_guest::{Error, Graft, wire};
use clap::Parser;
use tokio::sync::{Notify, mpsc};

#[derive(Parser)]
struct Args {
    /// How many bumps.
    #[arg(long, default_value_t = 50)]
    bumps: usize,
    /// How many agents.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// How many vat threads; 0: as many as a host has that is not told.
    #[arg(long, default_value_t = 0)]
    workers: usize,
}

/// Waits until all agents have come by, and knows when the last one did.
struct Mark {
    agents: usize,
    origin: Instant,
    passed: AtomicUsize,
    last: AtomicU64,
    all: Notify,
}

impl Mark {
    fn new(agents: usize, origin: Instant) -> Self {
        Self {
            agents,
            origin,
            passed: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            all: Notify::new(),
        }
    }

    fn pass(&self) {
        let now = self.origin.elapsed().as_nanos() as u64;
        self.last.fetch_max(now, Ordering::SeqCst);
        if self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.agents {
            self.all.notify_one();
        }
    }

    /// When the last one came by. Forgets all of them.
    async fn wait(&self) -> Duration {
        let patience = Duration::from_secs(120);
        let waited = tokio::time::timeout(patience, self.all.notified()).await;
        let passed = self.passed.swap(0, Ordering::SeqCst);
        assert!(waited.is_ok(), "{passed} of {} came by", self.agents);
        Duration::from_nanos(self.last.swap(0, Ordering::SeqCst))
    }
}

struct Marks {
    in_flight: Mark,
    rejected: Mark,
    told: Mark,
    reached: Mark,
}

/// Grafts, has calls in flight until they are rejected, and grafts again.
async fn live(end: wire::End, marks: Arc<Marks>, mut messages: mpsc::UnboundedReceiver<()>) -> End {
    let mut system = wire::Rpc::new(wire::Network::new(end), None);
    let door: membrane::Client = system.bootstrap();
    let living = async {
        loop {
            let graft = Graft::arrive(&door).await?;
            let timer = graft.timer()?;
            let told = async {
                let reason = graft.ended().await;
                assert!(reason.is_stale(), "{reason}");
                marks.told.pass();
            };
            let sleeping = async {
                let error = timer.sleep(Duration::from_secs(3600)).await.unwrap_err();
                assert!(error.is_stale(), "{error}");
                marks.rejected.pass();
            };
            // Answered after the others have arrived: a wire keeps its order.
            let in_flight = async {
                timer.now_ms().await?;
                marks.in_flight.pass();
                Ok::<_, Error>(())
            };
            let ((), (), arrived) = futures::join!(told, sleeping, in_flight);
            arrived?;
        }
    };
    let reached = async {
        while messages.recv().await.is_some() {
            marks.reached.pass();
        }
        std::future::pending::<()>().await;
    };
    let failed: Result<(), Error> = tokio::select! {
        failed = living => failed,
        () = reached => unreachable!("it waits on"),
        _ = &mut system => Err(Error::failed("the host closed the wire")),
    };
    End::Failed(failed.unwrap_err().to_string())
}

/// Microseconds: the middle one, the one that 1 of 100 is above, and the longest.
fn spread(mut times: Vec<Duration>) -> [(&'static str, f64); 3] {
    times.sort();
    let at = |part: f64| {
        let index = (times.len() as f64 * part).ceil() as usize;
        times[index.saturating_sub(1)].as_secs_f64() * 1e6
    };
    [("p50", at(0.5)), ("p99", at(0.99)), ("max", at(1.0))]
}

#[tokio::main]
async fn main() {
    let Args {
        bumps,
        agents,
        workers,
    } = Args::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match workers {
        0 => (cores - 1).clamp(1, 16),
        workers => workers,
    };
    let origin = Instant::now();
    let mark = || Mark::new(agents, origin);
    let marks = Arc::new(Marks {
        in_flight: mark(),
        rejected: mark(),
        told: mark(),
        reached: mark(),
    });
    let mut plan = Plan::new().workers(workers);
    let mut lines = Vec::new();
    for n in 0..agents {
        let (line, messages) = mpsc::unbounded_channel();
        lines.push(line);
        let messages = Mutex::new(Some(messages));
        let marks = marks.clone();
        let native = Native::new(move |end| {
            let messages = messages.lock().unwrap().take().expect("it has one life");
            live(end, marks.clone(), messages)
        });
        plan = plan.agent(&format!("agent-{n}"), native, vec![GrantSpec::Timer]);
    }
    let data = tempfile::tempdir().unwrap();
    let host = plan.open(data.path()).await.unwrap();
    let (mut rejected, mut told, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let log = host.control.record().log().clone();
    let mut appended = Vec::new();
    for round in 0..=bumps {
        marks.in_flight.wait().await;
        let began = origin.elapsed();
        for line in &lines {
            line.send(()).unwrap();
        }
        let reached = marks.reached.wait().await - began;
        let end = log.end();
        let began = origin.elapsed();
        let bumping = host.control.bump("", false, "a measurement");
        let (bumped, last_rejected, last_told) =
            tokio::join!(bumping, marks.rejected.wait(), marks.told.wait());
        assert_eq!(bumped.0.pending, None);
        appended.push(log.end().0 - end.0);
        // The first round warms up.
        if round > 0 {
            floor.push(reached);
            rejected.push(last_rejected - began);
            told.push(last_told - began);
        }
    }
    let floor = spread(floor);
    let most = appended.iter().max().copied().unwrap_or_default() as f64;
    println!("bump, entries appended at most / one, {agents} agents {most:.1} 1.0 {most:.3}");
    for (what, times) in [("call rejected", rejected), ("agent told", told)] {
        for ((part, agora), (_, floor)) in spread(times).into_iter().zip(floor) {
            println!(
                "bump to last {what} / channel sends, {agents} agents, {part} {agora:.1} {floor:.1} {:.3}",
                agora / floor
            );
        }
    }
    host.close().await;
}
