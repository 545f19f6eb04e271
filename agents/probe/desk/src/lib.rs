//! What probes and tests serve to each other. `desk.capnp` is the documentation.

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::unimplemented,
    reason = "generated; the schema carries the documentation"
)]
#[rustfmt::skip]
pub mod desk_capnp;
