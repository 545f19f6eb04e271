//! Keeps this host connected to its peers, over lanes that don't delay each other, and hands out streams.
//!
//! A stream's way: [`Dialer::open`] -> the connection that carries the lane -> one negotiation -> [`Stream`] here, and in the
//! peer's [`Inbound`] queue there. What the streams carry is nobody's business here.
//!
//! - [`Dialer`]: dials, listens, opens streams, tells how each peer is.
//! - [`Options`], [`Policy`]: what it starts with, and who is let in as what.
//! - [`Lane`]: what a stream is for. Control and bulk are connections of their own.
//! - [`Stream`], [`HangUp`]: bytes both ways, and the end of them from elsewhere.
//! - [`PeerStatus`], [`Why`]: how a peer is, and why it isn't connected.
//! - [`limits`]: every bound.

mod backoff;
mod bucket;
mod counted;
mod dialer;
mod errands;
mod error;
mod greeting;
mod handler;
mod kad;
mod lan;
mod lane;
pub mod limits;
mod links;
mod muxer;
mod names;
mod options;
mod relay;
mod status;
mod stream;
mod transport;

pub use dialer::{Dialer, Inbound};
pub use error::{OpenError, StartError, Why};
pub use lane::Lane;
pub use libp2p::{Multiaddr, PeerId};
pub use options::{
    Discovery, Kademlia, KnownPeer, Options, Policy, Relay, RelayBounds, Standing, Timing,
};
pub use status::{Finder, LaneStatus, PeerState, PeerStatus, Snapshot, Traffic, WaypointStatus};
pub use stream::{HangUp, Incoming, Stream};
