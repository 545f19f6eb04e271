//! Grants, attenuation, delegation and revocation: a model of them beside the real thing.
//!
//! The property: no sequence of steps gives an agent a call that the model denies; and what the model allows it has, speaking as itself,
//! and as often as the grants above allow.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod host;
mod model;
mod sequences;
mod small;

use std::hash::{BuildHasher, RandomState};

/// What chooses among sequences and paths: `PROPTEST_RNG_SEED`, or another in each run. Whoever uses it prints it.
fn seed() -> u64 {
    let asked = std::env::var("PROPTEST_RNG_SEED").ok();
    let asked = asked.and_then(|asked| asked.parse().ok());
    asked.unwrap_or_else(|| RandomState::new().hash_one("a seed"))
}

fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap()
}
