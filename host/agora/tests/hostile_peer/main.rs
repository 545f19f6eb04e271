//! A sample of what `fuzz/` does for longer: peers that mean harm, at the door and as lenders, from a seed. `AGORA_SEED` repeats a run,
//! `AGORA_GUESTS` says how many.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

#[path = "../hostile_guest/meter.rs"]
mod meter;

use agora::peer::remote::RemoteMessage;
use agora::testbed::border::{Border, Report};
use agora_capnp::channel_capnp::{channel, draft, message};
use capnp::any_pointer;
use capnp::traits::{Imbue, ImbueMut};

#[global_allocator]
static ALLOCATOR: meter::Counted = meter::Counted;

/// The most bytes that a peer goes by.
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
fn whatever_a_peer_sends_its_host_goes_on() {
    let seed = from_env("AGORA_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    let peers = from_env("AGORA_GUESTS").unwrap_or(300);
    println!("AGORA_SEED={seed}");
    let data = tempfile::tempdir().unwrap();
    let border = Border::open(data.path(), meter::live);
    let mut random = Random(seed);
    let mut all = Report::default();
    let (mut lent, mut linked, mut logged_in, mut arrived) = (0, 0, 0, 0);
    for _ in 0..peers {
        let len = random.next() % BYTES_MAX;
        let bytes: Vec<u8> = (0..len).map(|_| (random.next() >> 32) as u8).collect();
        let report = border.meet(&bytes);
        all.connections += report.connections;
        all.sent += report.sent;
        all.received += report.received;
        all.said += report.said;
        all.entries += report.entries;
        all.ended += report.ended;
        lent += u64::from(report.lent);
        linked += u64::from(report.linked);
        logged_in += u64::from(report.logged_in);
        arrived += u64::from(!report.lent && report.capabilities > 2);
    }
    println!(
        "{peers} peers, {arrived} grafted, {logged_in} logged in, {lent} lent, {linked} linked: {all:?}"
    );
    for (why, times) in border.ends() {
        println!("  {times} links ended: {why}");
    }
    // One that gets nowhere tests nothing.
    assert!(arrived > (peers - lent) / 4, "{arrived} got a graft");
    assert!(linked > lent / 8, "{linked} of {lent} were used");
    assert!(all.said > 0 && all.ended > 0 && logged_in > 0, "{all:?}");
}

#[test]
fn a_message_that_holds_a_capability_is_refused() {
    let mut built = capnp::message::Builder::new_default();
    let mut caps = Vec::new();
    {
        let mut root: any_pointer::Builder<'_> = built.init_root();
        root.imbue_mut(&mut caps);
        // Where a message has its content type, a draft has a channel.
        let mut draft: draft::Builder<'_> = root.init_as();
        let channel: channel::Client = capnp_rpc::new_client(Deaf);
        draft.set_to(channel);
    }
    let mut root: any_pointer::Reader<'_> = built.get_root_as_reader().unwrap();
    root.imbue(&caps);
    let told: message::Reader<'_> = root.get_as().unwrap();
    assert!(RemoteMessage::copy(told).is_err());
}

struct Deaf;

impl channel::Server for Deaf {}
