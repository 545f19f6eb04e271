//! Signing and verifying, turned off in this process, to measure what they cost. Only with feature `bench`, and only by who calls
//! this: nothing that a host reads turns them off.
//!
//! What is signed then has a signature of zeros, and any signature verifies.

use std::sync::atomic::{AtomicBool, Ordering};

static SIGNING_OFF: AtomicBool = AtomicBool::new(false);
static VERIFYING_OFF: AtomicBool = AtomicBool::new(false);

/// Whether nothing is signed from now on.
pub fn set_signing_off(off: bool) {
    SIGNING_OFF.store(off, Ordering::SeqCst);
}

/// Whether everything verifies from now on.
pub fn set_verifying_off(off: bool) {
    VERIFYING_OFF.store(off, Ordering::SeqCst);
}

pub(crate) fn is_signing_off() -> bool {
    SIGNING_OFF.load(Ordering::Relaxed)
}

pub(crate) fn is_verifying_off() -> bool {
    VERIFYING_OFF.load(Ordering::Relaxed)
}
