//! How a peer is now, for people.

use std::time::Duration;

use agora_capnp::operator_capnp::peer_status;
use agora_dial::{Lane, PeerState};
use tokio::time::Instant;

use super::peers::{Peer, Peers};

/// How a peer is at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sighting {
    /// In a word; see `PeerStatus.state` in operator.capnp.
    pub state: &'static str,
    /// Why, and until when.
    pub detail: String,
    /// Where it is connected, or would be dialed first.
    pub address: String,
    /// Of the last ping on the control lane.
    pub round_trip: Option<Duration>,
    /// Bytes that came, over both lanes.
    pub bytes_in: u64,
    /// Bytes that went.
    pub bytes_out: u64,
}

impl Sighting {
    /// Writes it down.
    pub fn write(&self, mut to: peer_status::Builder<'_>) {
        to.set_state(self.state);
        to.set_detail(self.detail.as_str());
        to.set_address(self.address.as_str());
        let micros = self.round_trip.map_or(0, |took| took.as_micros().max(1));
        to.set_round_trip_us(u64::try_from(micros).unwrap_or(u64::MAX));
        to.set_bytes_in(self.bytes_in);
        to.set_bytes_out(self.bytes_out);
    }
}

fn in_time(until: Instant) -> String {
    let left = until.saturating_duration_since(Instant::now());
    format!("again in {:.1} s", left.as_secs_f32())
}

/// How this peer is.
pub fn sighting(peers: &Peers, peer: &Peer) -> Sighting {
    let first = peer.spec.addresses.first();
    let mut seen = Sighting {
        state: "waiting",
        address: first.map(ToString::to_string).unwrap_or_default(),
        ..Sighting::default()
    };
    let connection = peers.connection(peer);
    if let Some(connection) = &connection {
        let (control, vat) = (connection.lane(Lane::Control), connection.lane(Lane::Vat));
        if let Some(address) = control.address.as_ref().or(vat.address.as_ref()) {
            seen.address = address.to_string();
        }
        seen.round_trip = control.round_trip_last;
        for traffic in [control.traffic(), vat.traffic()] {
            seen.bytes_in += traffic.bytes_in;
            seen.bytes_out += traffic.bytes_out;
        }
    }
    let shown = |state, detail: String| (state, detail);
    (seen.state, seen.detail) = if peer.is_refused() {
        let told = format!("until `agora start {}`", peer.persona);
        shown("revoked", told)
    } else if peers.dialer().is_none() {
        let why = match peers.peering().offline {
            true => "this host keeps no connections to peers (--offline)",
            false => "this host listens nowhere, and no peer has an id",
        };
        shown("offline", why.to_owned())
    } else {
        match connection.map(|connection| connection.state) {
            Some(PeerState::Connected) => shown("connected", String::new()),
            Some(PeerState::Partly) => shown("partly", "one of its two connections is up".into()),
            Some(PeerState::Guest) => {
                shown("guest", "it is logging in, or this host is there".into())
            }
            Some(PeerState::Dialing) => shown("dialing", String::new()),
            Some(PeerState::BackingOff { until, why }) => {
                let why = why.map(|why| format!("{why}; ")).unwrap_or_default();
                shown("backoff", format!("{why}{}", in_time(until)))
            }
            Some(PeerState::Refused { until, why }) => {
                let again = until.map(|until| format!("; {}", in_time(until)));
                shown("refused", format!("{why}{}", again.unwrap_or_default()))
            }
            Some(PeerState::Waiting) | None => match (peer.id(), &peer.spec.key) {
                (Some(_), _) => shown("waiting", "no address is known, so it must come".into()),
                (None, Some(_)) => shown("waiting", "it must come, and log in with its key".into()),
                (None, None) => shown("waiting", "it has neither id nor key".into()),
            },
        }
    };
    seen
}
