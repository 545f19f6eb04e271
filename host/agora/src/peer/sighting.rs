//! How a peer is now, for people.

use std::time::Duration;

use agora_capnp::operator_capnp::peer_status;
use agora_dial::{Finder, Lane, PeerState};
use agora_realm::{Epoch, Terms};
use tokio::time::Instant;

use super::borrowed::LinkState;
use super::peers::{Peer, Peers};
use super::told::Known;

/// How a peer is at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sighting {
    /// In a word; see `PeerStatus.state` in operator.capnp.
    pub state: &'static str,
    /// Why, and until when.
    pub detail: String,
    /// Where it is connected, or would be dialed first.
    pub address: String,
    /// Where it may be, each with who says so.
    pub addresses: Vec<(String, &'static str)>,
    /// Of the last ping on the control lane.
    pub round_trip: Option<Duration>,
    /// Bytes that came, over both lanes.
    pub bytes_in: u64,
    /// Bytes that went.
    pub bytes_out: u64,
    /// Who its host has proved to be.
    pub known: Option<Known>,
    /// Its epoch, as last heard.
    pub epoch: Epoch,
    /// What it grants us, by the names there.
    pub lends: Vec<(String, Terms)>,
}

impl Sighting {
    /// Writes it down, but for what only this host knows. `name` is the peer's.
    pub fn write(&self, name: &str, mut to: peer_status::Builder<'_>) {
        to.set_state(self.state);
        to.set_detail(self.detail.as_str());
        to.set_address(self.address.as_str());
        let micros = self.round_trip.map_or(0, |took| took.as_micros().max(1));
        to.set_round_trip_us(u64::try_from(micros).unwrap_or(u64::MAX));
        to.set_bytes_in(self.bytes_in);
        to.set_bytes_out(self.bytes_out);
        if let Some(known) = &self.known {
            to.set_realm(&known.realm.0);
            to.set_host(&known.host.0);
            to.set_key(&known.key.0);
            to.set_calls_us(known.calls_us.as_str());
        }
        to.set_epoch(self.epoch.0);
        let mut list = to.reborrow().init_addresses(self.addresses.len() as u32);
        for (i, (address, from)) in self.addresses.iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_address(address.as_str());
            to.set_from(from);
        }
        let mut list = to.init_lends(self.lends.len() as u32);
        for (i, (channel, terms)) in self.lends.iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_channel(format!("{name}/{channel}").as_str());
            terms.write(to.init_terms());
        }
    }
}

fn in_time(until: Instant) -> String {
    let left = until.saturating_duration_since(Instant::now());
    format!("again in {:.1} s", left.as_secs_f32())
}

/// Where a peer may be, in the order in which it is tried, each with who says so; see `PeerStatus.addresses` in operator.capnp.
fn addresses(peers: &Peers, peer: &Peer) -> Vec<(String, &'static str)> {
    let spec = &peer.spec;
    let dialed = peer.dialed();
    let mut all: Vec<(&agora_dial::Multiaddr, &'static str)> = Vec::new();
    all.extend(dialed.iter().map(|address| (address, "dial")));
    all.extend(spec.given.iter().map(|address| (address, "command line")));
    all.extend(spec.addresses.iter().map(|address| (address, "manifest")));
    let connection = peers.connection(peer);
    if let Some(connection) = &connection {
        let learned = connection.learned.iter();
        all.extend(learned.map(|address| (address, "identify")));
        all.extend(connection.found.iter().map(|(address, finder)| {
            let from = match finder {
                Finder::Mdns => "mDNS",
                Finder::Kademlia => "Kademlia",
            };
            (address, from)
        }));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|(address, _)| seen.insert(*address));
    all.into_iter()
        .map(|(address, from)| (address.to_string(), from))
        .collect()
}

/// How this peer is.
pub fn sighting(peers: &Peers, peer: &Peer) -> Sighting {
    let addresses = addresses(peers, peer);
    let first = addresses.first();
    let mut seen = Sighting {
        state: "waiting",
        address: first.map(|(first, _)| first.clone()).unwrap_or_default(),
        addresses,
        ..Sighting::default()
    };
    let link = peer.link.borrow().clone();
    seen.known = peer.known();
    match &link {
        LinkState::Up {
            known,
            epoch,
            grants,
            round_trip,
            ..
        } => {
            seen.known = Some(known.clone());
            seen.epoch = *epoch;
            seen.lends = grants.clone();
            seen.round_trip = *round_trip;
        }
        LinkState::Lapsed { known, epoch, .. } => {
            seen.known = Some(known.clone());
            seen.epoch = *epoch;
        }
        LinkState::Down { .. } => {}
    }
    let connection = peers.connection(peer);
    if let Some(connection) = &connection {
        let (control, vat) = (connection.lane(Lane::Control), connection.lane(Lane::Vat));
        if let Some(address) = control.address.as_ref().or(vat.address.as_ref()) {
            seen.address = address.to_string();
        }
        seen.round_trip = seen.round_trip.or(control.round_trip_last);
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
            Some(PeerState::Connected) => match &link {
                LinkState::Up { .. } => shown("connected", String::new()),
                LinkState::Lapsed { since, .. } => shown(
                    "lapsed",
                    format!("not heard for {:.1} s", since.elapsed().as_secs_f32()),
                ),
                // What it lends; it may use what we lend all the same.
                LinkState::Down { why, .. } => shown("partly", why.to_string()),
            },
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
