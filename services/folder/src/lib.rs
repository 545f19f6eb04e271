//! A tool that answers questions about a folder it was given: an example of a service for agents.
//!
//! - [`folder_capnp`] is generated from `folder.capnp`, which is the documentation.
//! - [`folder`] answers, and never leaves the folder.
//! - `main.rs` listens on a unix socket and serves every connection.
//!
//! `python/` holds the same service in another language.

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
pub mod folder_capnp;

#[cfg(feature = "server")]
pub mod folder;
