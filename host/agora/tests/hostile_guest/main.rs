//! A sample of what `fuzz/` does for longer: guests that mean harm, from a seed. `AGORA_SEED` repeats a run, `AGORA_GUESTS` says how many.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod forgetful;
mod meter;

use std::sync::{Mutex, MutexGuard, PoisonError};

use agora::testbed::ground::{Ground, Report};

#[global_allocator]
static ALLOCATOR: meter::Counted = meter::Counted;

/// What is counted is of the whole process, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes that a guest goes by.
const BYTES_MAX: u64 = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_a_guest_sends_its_host_goes_on() {
    let _alone = alone();
    let seed = from_env("AGORA_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    let guests = from_env("AGORA_GUESTS").unwrap_or(300);
    println!("AGORA_SEED={seed}");
    let data = tempfile::tempdir().unwrap();
    let ground = Ground::open(data.path(), meter::live);
    let mut random = Random(seed);
    let mut all = Report::default();
    let (mut ended, mut arrived) = (0, 0);
    for _ in 0..guests {
        let len = random.next() % BYTES_MAX;
        let bytes: Vec<u8> = (0..len).map(|_| (random.next() >> 32) as u8).collect();
        let report = ground.meet(&bytes);
        all.sent += report.sent;
        all.received += report.received;
        all.said += report.said;
        all.cancelled += report.cancelled;
        ended += u64::from(report.ended);
        arrived += u64::from(report.capabilities > 2);
    }
    println!("{guests} guests, {arrived} grafted, {ended} ended: {all:?}");
    // A guest that gets nowhere tests nothing.
    assert!(arrived > guests / 2, "{arrived} of {guests} got a graft");
    assert!(all.said > 0 && ended > 0 && all.cancelled > 0, "{all:?}");
}
