//! What one peer's calls wait because of another that means harm.
//!
//! An honest peer asks `info`, one call after the other with a moment between them, while another process attacks, and while that process only
//! turns in a circle, in turns. That is the floor: what a busy neighbour costs on this machine, whatever it does. A thread of the other process
//! turns in its circle during attacks, too: where it sleeps instead, as when it reads no answer and can't ask on, the cores of a virtual
//! machine that has nothing to do sleep with it, and each call waits until they are woken, twice as long as beside a busy neighbour. In both
//! the other process has the lowest priority there is, since what is measured is what the host does with what it sends, and not who gets the
//! two cores. The honest peer is a thread of this process with a dialer of its own.
//!
//! Rows end in the ratio of the two p99, over all rounds. With `AGORA_STRICT` none may be above 2. It means something in a release only, and
//! where the host and the honest peer have the cores before all else and the other process what they leave: otherwise the rows tell how
//! the system divides two cores among three that are busy. `cargo xtask bench` sees to that where it may start real-time threads, and by
//! hand the test's program is run by `AGORA_STRICT=1 AGORA_ATTACKER_BY='chrt --rr 1' chrt --rr 2 PROGRAM --ignored fairness`. Threads of
//! the host don't interrupt each other then. `AGORA_ATTACK` names the only attack to run.

use std::time::Duration;

use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Channel, Draft};

use crate::bed::{Bed, Caller, known, on_bed, peering, within};
use crate::hostile::{ALPHA, Attacker, MALLORY, alone, round_trip};

const ATTACKS: [&str; 11] = [
    "questions",
    "unfinished",
    "unread",
    "large",
    "malformed",
    "dripped",
    "introductions",
    "followings",
    "pings",
    "waits",
    "streams",
];
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(1);

/// The honest peer's round trips while the other process is at it.
async fn beside(attack: &str, bed: &Bed, channel: &Channel, trips: &mut Vec<Duration>) {
    let mut other = Attacker::start(attack, bed, ROUND);
    while !other.is_done() {
        trips.push(round_trip(channel).await);
        tokio::time::sleep(PAUSE).await;
    }
}

fn at(trips: &mut [Duration], hundredths: usize) -> f64 {
    trips.sort_unstable();
    let index = (trips.len() * hundredths / 100).min(trips.len() - 1);
    trips[index].as_secs_f64()
}

#[test]
#[ignore = "a measurement: in a release, on a machine that has nothing else to do"]
fn what_another_peer_waits_under_attack() {
    let _alone = alone()
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let only = std::env::var("AGORA_ATTACK").ok();
    let mut unfair = Vec::new();
    for attack in ATTACKS {
        if only.as_ref().is_some_and(|only| only != attack) {
            continue;
        }
        let keeper = Puppet::new();
        let peers = [
            ("alpha", known(ALPHA, vec![all_of("release")])),
            ("mallory", known(MALLORY, vec![all_of("release")])),
        ];
        let plan = Plan::new()
            .channel("release")
            .agent("keeper", keeper.native(), vec![all_of("release")])
            .peering(peering(peers));
        on_bed(plan, async |bed: &Bed| {
            keeper.until_life(1).await;
            within("a graft", keeper.graft()).await.unwrap().unwrap();
            for _ in 0..64 {
                let said = keeper.speak("release", vec![Draft::inform(vec![b'x'; 3800])]);
                within("speech", said).await.unwrap().unwrap();
            }
            // On this thread: the host's own are the host's.
            let caller = Caller::start(ALPHA, bed.dialer().peer_id(), bed.address()).await;
            let alpha = caller.graft().await;
            let synth = alpha.speaker("release", "synth").await.unwrap();
            for _ in 0..1000 {
                round_trip(&synth).await;
            }
            let (mut floor, mut under) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                beside("none", bed, &synth, &mut floor).await;
                beside(attack, bed, &synth, &mut under).await;
            }
            let median = at(&mut under, 50) / at(&mut floor, 50);
            let (slow, slow_floor) = (at(&mut under, 99), at(&mut floor, 99));
            let ratio = slow / slow_floor;
            println!(
                "  p50 {median:.2}; p99 {:.0} and {:.0} us, of {} and {} calls",
                slow * 1e6,
                slow_floor * 1e6,
                under.len(),
                floor.len()
            );
            println!(
                "another peer's call, p99, under attack ({attack}) and without: agora / floor = {ratio:.2}"
            );
            if ratio > 2.0 {
                unfair.push(attack);
            }
        });
    }
    if std::env::var_os("AGORA_STRICT").is_some() {
        assert!(unfair.is_empty(), "more than doubled: {unfair:?}");
    }
}
