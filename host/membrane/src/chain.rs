//! How far a chain of promises, or of wrappers, goes.
//!
//! In: a step along a chain, which may lead to further steps from within.
//! Promise: a promise that was made to resolve to itself, by whoever could choose what it resolves to, costs a bounded
//! number of steps and a bounded depth of stack. So does a capability that strangers pass round and round, so that it never comes home.
//! Failure: past the bound a promise counts as unresolved, a call as failed, and a capability is not let across.

use capnp::Error;
use std::cell::Cell;

/// Steps taken to find what a promise has resolved to, over all its wrappers.
const STEPS_MAX: u32 = 100;

/// Calls handed on from promise to promise, each polled from within the one before.
const DEPTH_MAX: u32 = 100;

/// Walls about one capability, each of another membrane: a call asks all of them, and one that waits, or is dropped, does so at each
/// from within the one before.
pub(crate) const WALLS_MAX: u32 = 64;

thread_local! {
    static STEPS: Cell<Option<u32>> = const { Cell::new(None) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// One look for the end of a chain; looks from within it are part of it.
pub(crate) struct Search {
    outermost: bool,
}

impl Search {
    pub(crate) fn begin() -> Search {
        let outermost = STEPS.get().is_none();
        if outermost {
            STEPS.set(Some(0));
        }
        Search { outermost }
    }

    /// Whether one more step may be taken.
    pub(crate) fn step(&self) -> bool {
        let steps = STEPS.get().unwrap_or(0);
        STEPS.set(Some(steps + 1));
        steps < STEPS_MAX
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        if self.outermost {
            STEPS.set(None);
        }
    }
}

/// A call, or a promise that is held back, being polled; polls from within it are deeper.
pub(crate) struct Depth;

impl Depth {
    pub(crate) fn enter() -> Result<Depth, Error> {
        if DEPTH.get() >= DEPTH_MAX {
            return Err(Error::failed(format!(
                "the call was handed on {DEPTH_MAX} times: does a promise resolve to itself?"
            )));
        }
        DEPTH.set(DEPTH.get() + 1);
        Ok(Depth)
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
