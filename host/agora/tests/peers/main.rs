//! Hosts of different realms, in one process, that lend each other channels: real connections on loopback, real logs, and puppets for agents.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod bed;
mod chain;
mod copies;
mod cuts;
mod dialing;
mod lending;
mod partition;
mod proxy;
mod quiet;
mod reading;
mod revoking;
mod rough;
mod speaking;
mod told;
mod weather;
