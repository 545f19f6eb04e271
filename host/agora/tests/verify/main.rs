//! Records that real hosts wrote: accepted as they are, and found out when anything in them was changed.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod command;
mod forged;
mod imported;
mod mutations;
mod parsing;
mod witnessed;
mod written;
