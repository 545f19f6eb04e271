//! A guest that means harm meets a host. What it does is in `agora::testbed::hostile`, what must hold in `agora::testbed::ground`.

#![no_main]

use agora::testbed::ground::Ground;
use libfuzzer_sys::fuzz_target;

#[path = "../../host/agora/tests/hostile_guest/meter.rs"]
mod meter;

#[global_allocator]
static ALLOCATOR: meter::Counted = meter::Counted;

thread_local! {
    /// One host for all guests of a process. Its folder is left to whoever said where temporary ones go.
    static GROUND: Ground = {
        let data = tempfile::tempdir().expect("a folder can be made").keep();
        Ground::open(&data, meter::live)
    };
}

fuzz_target!(|input: &[u8]| {
    GROUND.with(|ground| drop(ground.meet(input)));
});
