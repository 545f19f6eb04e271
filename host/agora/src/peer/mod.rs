//! Other hosts, of other realms: a door for those who come, a link to those we use.
//!
//! - [`spec`]: what the manifest says of a peer.
//! - [`peers`]: all of them, as the rest of the host knows them.
//! - [`thread`]: the thread they live on, and who is let in there.
//! - [`book`]: what operators told of peers beyond the manifest; [`dialing`]: a dial because one says so.
//! - [`vat`]: one Cap'n Proto connection over a stream.
//! - [`door`]: what a peer finds here: its graft, its channels.
//! - [`outflow`]: what is delivered to it on the channels that it follows.
//! - [`terminal`]: where those who aren't known by their id log in.
//! - [`link`]: what a peer lent us, for as long as that lasts.
//! - [`borrowed`], [`remote`]: that, as this host's other rooms see it; what was said for it is forwarded from its outbox,
//!   unless it is [`withheld`].
//! - [`subscription`]: brings a peer's channel to one sink.
//! - [`sighting`]: how a peer is now, for people.
//! - [`told`]: the control lane: what a peer is told at once.
//! - [`exchange`]: checkpoints, asked and given; [`past`]: what is held of a peer's log.
//! - [`mirror`]: a copy of a peer's channel, with proofs; [`mirroring`] keeps it up.

pub mod book;
pub mod borrowed;
pub mod dialing;
pub mod door;
pub mod exchange;
pub mod link;
pub mod mirror;
pub mod mirroring;
mod outbox;
pub mod outflow;
pub mod past;
pub mod peers;
pub mod remote;
pub mod sighting;
pub mod spec;
pub mod subscription;
pub mod terminal;
pub mod thread;
pub mod told;
pub mod vat;
pub(crate) mod withheld;
