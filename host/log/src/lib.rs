//! Orders opaque bytes and keeps them: what stands at a place in the log stands there for good.
//!
//! An entry's way: [`Log::append`] -> the queue (control entries first) -> one batch per sync -> the segment files ->
//! the answer with its [`Seq`] -> [`Log::tail`] and [`Log::read`]. What the bytes mean is nobody's business here.
//!
//! - [`Log`]: what any log promises, and the words it uses.
//! - [`LogError`]: how it fails, and what to do then.
//! - [`limits`]: every bound, beside the relations between them.
//! - [`Embedded`]: the log of one machine, in a folder, with no set-up.
//! - [`Whole`]: every byte of such a folder, for who verifies it.
//! - [`JetStream`]: the log of a team, in a stream on NATS servers.
//! - [`export`]: a whole log in one file, to keep or to move it.
#![cfg_attr(
    feature = "conformance",
    doc = "- [`conformance`]: what every log is held to, as one suite."
)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod contract;
mod embedded;
mod error;
pub mod export;
mod jetstream;
pub mod limits;

pub use contract::{Appended, Class, Durability, Lane, Log, Missing, Seq};
pub use embedded::{Embedded, Opened, ReadOnly, Stood, TornTail, Whole};
pub use error::LogError;
pub use jetstream::{ConnectionState, JetStream, JetStreamOptions, StreamReader};
pub use limits::Options;
