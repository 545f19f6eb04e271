//! What counts and what does not, by example, by property and against a model.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod audit;
mod before;
mod bytes;
mod evidence;
mod facts;
mod keys;
mod model;
mod peers;
mod support;
mod terms;
