//! How the transport fails, and what to do then.

use libp2p::{Multiaddr, PeerId};

use crate::Lane;

/// Why the dialer didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error(
        "can't listen on {address}: {cause} (an address is like /ip4/0.0.0.0/udp/4001/quic-v1 or /ip4/0.0.0.0/tcp/4001)"
    )]
    Listen {
        /// What was to be listened on.
        address: Multiaddr,
        /// What the system, or the transport, says.
        cause: String,
    },
    /// More peers, or more addresses of one, than `limits` allow.
    #[error("{count} {what} are more than the {max} that are allowed")]
    TooMany {
        /// Peers, or addresses.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// The transport couldn't be set up.
    #[error("the transport can't be set up: {0}")]
    Transport(String),
}

/// Why no stream was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection for this lane now. It is being dialed if the peer is configured.
    #[error("not connected to {peer} for {}", lane.protocol())]
    NotConnected {
        /// Whom.
        peer: PeerId,
        /// For what.
        lane: Lane,
    },
    /// We are a guest there: only the login may be opened.
    #[error("a guest at {peer}: only {} may be opened before it knows us", Lane::Login.protocol())]
    Guest {
        /// Where.
        peer: PeerId,
    },
    /// Too many streams of ours are open there.
    #[error("{open} streams are open with {peer} for {}, which is all that are allowed: close one", lane.protocol())]
    TooMany {
        /// With whom.
        peer: PeerId,
        /// For what.
        lane: Lane,
        /// How many are.
        open: usize,
    },
    /// The peer doesn't speak this version.
    #[error("{peer} doesn't speak {}; it speaks {}", lane.protocol(), theirs.join(", "))]
    NoCommonProtocol {
        /// Who.
        peer: PeerId,
        /// For what.
        lane: Lane,
        /// What it says it speaks; empty if it hasn't said.
        theirs: Vec<String>,
    },
    /// The peer took too long.
    #[error("{peer} didn't answer in time")]
    TimedOut {
        /// Who.
        peer: PeerId,
    },
    /// The connection ended while the stream was opened.
    #[error("the connection with {peer} ended")]
    Disconnected {
        /// With whom.
        peer: PeerId,
    },
    /// The dialer has been shut down.
    #[error("the dialer is shut down")]
    ShutDown,
}

/// Why a peer isn't connected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// No address answered.
    #[error("can't be reached: {0}")]
    Unreachable(String),
    /// Someone else is at the address.
    #[error("{found} is at {address}, and not this peer: check its address and its id")]
    WrongPeer {
        /// Where.
        address: Multiaddr,
        /// Who is there.
        found: PeerId,
    },
    /// We are at the address ourselves.
    #[error("{address} is our own address")]
    Ourselves {
        /// Where.
        address: Multiaddr,
    },
    /// No version is spoken by both.
    #[error("no common protocol: it speaks {}", if theirs.is_empty() { "nothing that it names".into() } else { theirs.join(", ") })]
    NoCommonProtocol {
        /// What it says it speaks; empty if it hasn't said.
        theirs: Vec<String>,
    },
    /// The peer's policy refuses us.
    #[error("it refuses us: its operator must allow our id")]
    RefusedThere,
    /// Our policy refuses the peer.
    #[error("our policy refuses it")]
    RefusedHere,
    /// The peer ended the connection before it greeted.
    #[error(
        "it hung up before its greeting: it is full, or hasn't room for peers that it doesn't know"
    )]
    HungUp,
    /// The peer didn't answer the greeting, or no ping came back.
    #[error("no answer in time")]
    TimedOut,
    /// A crossing connection was kept instead.
    #[error("another connection of the same lane was kept")]
    Replaced,
    /// The connection was lost.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The peer opened more streams than it may, again and again.
    #[error("it opened more streams than it may")]
    Flooded,
    /// A guest's time is over.
    #[error("a guest's time was over")]
    GuestTimeOver,
    /// Its standing with our policy changed, or it was forgotten.
    #[error("its standing here has changed")]
    Reconsidered,
}

impl Why {
    /// Whether trying again is of no use until someone changes something.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Why::WrongPeer { .. }
                | Why::Ourselves { .. }
                | Why::NoCommonProtocol { .. }
                | Why::RefusedThere
                | Why::RefusedHere
        )
    }
}
