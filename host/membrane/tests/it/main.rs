//! What the membrane promises, as facts. `node.rs` is the object every test is played with, `worlds.rs` the places in
//! which a membrane may stand.
#![allow(missing_docs, clippy::unwrap_used)]

#[allow(clippy::all, clippy::unimplemented, clippy::unwrap_used, unreachable_pub, missing_docs)]
#[rustfmt::skip]
mod node_capnp;

mod crossings;
mod exchange;
mod expiry;
mod facts;
mod node;
mod walk;
mod worlds;
