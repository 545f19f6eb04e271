//! Being a relay for known peers, within bounds.

use std::time::Duration;

use libp2p::{
    PeerId,
    relay::{Behaviour, Config, Status},
};

use crate::{RelayBounds, limits};

pub(crate) fn build(own: PeerId, bounds: RelayBounds) -> Behaviour {
    let config = Config {
        max_reservations: bounds.reservations.min(limits::RELAY_RESERVATIONS_MAX),
        max_reservations_per_peer: 1,
        reservation_duration: Duration::from_millis(limits::RELAY_RESERVATION_MS),
        max_circuits: bounds.circuits.min(limits::RELAY_CIRCUITS_MAX),
        max_circuits_per_peer: limits::RELAY_PEER_CIRCUITS_MAX,
        max_circuit_duration: Duration::from_millis(
            bounds.circuit_ms.min(limits::RELAY_CIRCUIT_MS_MAX),
        ),
        // Nothing would mean everything.
        max_circuit_bytes: bounds
            .circuit_bytes
            .clamp(1, limits::RELAY_CIRCUIT_BYTES_MAX),
        // How often one peer and one network address may ask is bounded there by default.
        ..Config::default()
    };
    let mut relay = Behaviour::new(own, config);
    relay.set_status(Some(Status::Enable));
    relay
}
