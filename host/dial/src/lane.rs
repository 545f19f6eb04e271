//! What a stream is for, and the names that are negotiated.

use libp2p::StreamProtocol;

pub(crate) const GREETING: StreamProtocol = StreamProtocol::new("/agora/greeting/1");
pub(crate) const VAT: StreamProtocol = StreamProtocol::new("/agora/vat/1");
pub(crate) const CONTROL: StreamProtocol = StreamProtocol::new("/agora/control/1");
pub(crate) const LOGIN: StreamProtocol = StreamProtocol::new("/agora/login/1");

/// What a stream is for. Control and bulk each have a connection of their own, so that neither waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Kills, fences, revocations: small, and never behind bulk.
    Control,
    /// Bulk: vats, and all that they carry.
    Vat,
    /// What a guest gets: one stream, for a short time. It has no connection of its own; it runs on that of control.
    Login,
}

impl Lane {
    /// The protocol that is negotiated for a stream of this lane.
    pub fn protocol(self) -> &'static str {
        match self {
            Lane::Control => "/agora/control/1",
            Lane::Vat => "/agora/vat/1",
            Lane::Login => "/agora/login/1",
        }
    }

    pub(crate) fn name(self) -> StreamProtocol {
        match self {
            Lane::Control => CONTROL,
            Lane::Vat => VAT,
            Lane::Login => LOGIN,
        }
    }

    pub(crate) fn of(name: &StreamProtocol) -> Option<Lane> {
        [Lane::Control, Lane::Vat, Lane::Login]
            .into_iter()
            .find(|lane| lane.name() == *name)
    }

    /// The lane whose connection carries the stream.
    pub(crate) fn carrier(self) -> Lane {
        match self {
            Lane::Login => Lane::Control,
            lane => lane,
        }
    }
}

/// The lanes that have connections, in the order in which they are made.
pub(crate) const CARRIERS: [Lane; 2] = [Lane::Control, Lane::Vat];
