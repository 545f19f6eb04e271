//! A peer that means harm meets a host, at its door or as one that lends. What it does is in `agora::testbed::hostile::peer`, what must hold
//! in `agora::testbed::border`.

#![no_main]

use std::cell::RefCell;
use std::mem::ManuallyDrop;

use agora::testbed::border::Border;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

#[path = "../../host/agora/tests/hostile_guest/meter.rs"]
mod meter;

#[global_allocator]
static ALLOCATOR: meter::Counted = meter::Counted;

/// Peers that one host meets. What they may have written is theirs once, and comes back slowly.
const PEERS: u32 = 4096;

/// A host, its folder, and how many peers it is still to meet.
type Met = (Border, TempDir, u32);

thread_local! {
    /// Not closed when the process ends: a thread that is over can't.
    static BORDER: RefCell<ManuallyDrop<Option<Met>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

fuzz_target!(|input: &[u8]| {
    BORDER.with_borrow_mut(|border| {
        let (met, _, left) = border.get_or_insert_with(|| {
            let data = tempfile::tempdir().expect("a folder can be made");
            (Border::open(data.path(), meter::live), data, PEERS)
        });
        met.meet(input);
        *left -= 1;
        if *left == 0 {
            **border = None;
        }
    });
});
