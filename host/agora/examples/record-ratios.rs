//! Prints what signing costs agents that publish: on the embedded log, synced, 64 messages on their way at once over 8 personas.
//! The floor is the same with signing off. Run by `cargo xtask bench`.
//!
//! The agents are functions of this process on the host's own vat threads; what they say crosses wire, wall, speaker, log and
//! judge as a component's does.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

use std::time::{Duration, Instant};

use agora::boot::host::Host;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Act, Draft};
use agora_realm::unsigned;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

const PERSONAS: usize = 8;
const EACH: usize = 8;
const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_secs(1);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let puppets: Vec<_> = (0..PERSONAS).map(|_| Puppet::new()).collect();
    let mut plan = Plan::new().workers(1).channel("work");
    for (n, puppet) in puppets.iter().enumerate() {
        plan = plan.agent(&format!("agent-{n}"), puppet.native(), vec![all_of("work")]);
    }
    let data = tempfile::tempdir().unwrap();
    let host = plan.open(data.path()).await.unwrap();
    for puppet in &puppets {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
    }
    let mut ratios = Vec::new();
    let (mut signed, mut not_signed, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        unsigned::set_signing_off(false);
        let (on, an_entry) = publish(&host, &puppets).await;
        signed.push(an_entry);
        rates.push(on);
        unsigned::set_signing_off(true);
        let (off, an_entry) = publish(&host, &puppets).await;
        not_signed.push(an_entry);
        ratios.push(on / off);
    }
    unsigned::set_signing_off(false);
    let (ratio, rate) = (median(&mut ratios), median(&mut rates));
    println!(
        "agents publishing signed / unsigned, embedded log, {} at once over {PERSONAS} personas ({rate:.0} per second, \
         {:.1} messages an entry, {:.1} unsigned): agora / floor = {ratio:.2} (middle half {:.2} to {:.2})",
        PERSONAS * EACH,
        median(&mut signed),
        median(&mut not_signed),
        ratios[ROUNDS / 4],
        ratios[ROUNDS * 3 / 4],
    );
    host.close().await;
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Messages per second of all agents together, and messages an entry.
async fn publish(host: &Host, puppets: &[Puppet]) -> (f64, f64) {
    let first = host.control.record().log().end().0;
    let began = Instant::now();
    let speaking = puppets.iter().map(|puppet| {
        puppet.run(move |stage| async move {
            let facet = stage.facet("work").unwrap();
            let say = || facet.speak(vec![Draft::new(Act::Inform, vec![7; 256])]);
            let mut waiting: FuturesUnordered<_> = (0..EACH).map(|_| say()).collect();
            let mut done = 0_u64;
            while let Some(outcomes) = waiting.next().await {
                let outcomes = outcomes.unwrap();
                assert!(matches!(outcomes[..], [Ok(_)]), "{outcomes:?}");
                done += 1;
                if began.elapsed() < ROUND {
                    waiting.push(say());
                }
            }
            done
        })
    });
    let done = futures::future::join_all(speaking).await;
    let elapsed = began.elapsed().as_secs_f64();
    let messages: u64 = done.into_iter().map(Result::unwrap).sum();
    let entries = host.control.record().log().end().0 - first;
    (messages as f64 / elapsed, messages as f64 / entries as f64)
}
