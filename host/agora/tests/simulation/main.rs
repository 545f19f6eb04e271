//! A deterministic simulation of a realm: hosts on one log, and everything that can happen between them.
//!
//! A run is two to four hosts, a broker, and links that delay, reorder, double, lose acknowledgements, are cut and heal; hosts crash and
//! begin again from what they kept; agents speak and answer; operators bump (two at once, too), kill, start, grant and revoke; somebody
//! copies entries into the log, whole or altered; and rarely the broker loses its end. All that is drawn from one seed, and so is the
//! clock.
//!
//! What is real and what is modelled is said in `site` (hosts) and `network` (the log). Real are judging, signing, verifying, the record,
//! the speakers and their receipts, the gate, the lease and the snapshot. Signatures are random and thread pools sign them, so ids and
//! the order of threads differ from run to run; no choice depends on either, and each step waits until they have done.
//!
//! What must hold, besides that nothing panics and nothing waits for ever:
//! - All hosts judge alike: each verdict, and the digest of the state, are those of the log judged by itself.
//! - Nothing of an epoch counts behind its fence, nothing under a cut grant, nothing of a killed agent, nothing twice (`oracle`).
//! - No receipt is given for what is void, nor before it came back.
//! - What a receipt was given for is there at every host at the end; unless the log lost it, and then every host that runs and had been
//!   told of it has diverged and says so.
//! - Nothing that acts outside the log is let through at any host later than a lease after a fence stood.
//! - When all is healed every stop is in, every gate is open, every lease is fresh.
//!
//! `AGORA_SEED=n` repeats one run and tells its steps; `AGORA_SEEDS` says how many are tried.
#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod bed;
mod chance;
mod network;
mod oracle;
mod site;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bed::Bed;
use world::Report;

const SEEDS: u64 = 10_000;

#[test]
fn whatever_happens_between_hosts_what_was_promised_holds() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    if let Some(seed) = number("AGORA_SEED") {
        let report = world::run(&Bed::new(), seed, true);
        eprintln!("{report:?}");
        return;
    }
    let seeds = number("AGORA_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Report::default());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(4) {
            scope.spawn(|| {
                let bed = Bed::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let run = catch_unwind(AssertUnwindSafe(|| world::run(&bed, seed, false)));
                    match run {
                        Ok(report) => *sum.lock().unwrap() += report,
                        Err(failed) => {
                            eprintln!(
                                "\n*** seed {seed} fails: AGORA_SEED={seed} repeats it ***\n"
                            );
                            next.store(seeds, Ordering::Relaxed);
                            std::panic::resume_unwind(failed);
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    eprintln!("{seeds} seeds: {sum:?}");
    assert!(
        seeds < SEEDS || sum.is_full(),
        "some of it never happened: {sum:?}"
    );
}
