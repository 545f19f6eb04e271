//! Whole journeys: the real `agora`, real components, what an operator sees. One file a journey.

mod bump;
mod crash;
mod decisions;
mod delegation;
mod dialing;
mod ending;
mod fakes;
mod grants;
mod harness;
mod hostile;
mod kill;
mod moving;
#[path = "../../../log/tests/nats/mod.rs"]
mod nats;
mod network;
mod peer_chain;
mod peer_loss;
mod peer_realm;
mod peers;
mod proofs;
#[path = "../peers/proxy.rs"]
mod proxy;
mod quiet;
mod reactors;
mod realm;
mod scaffold;
mod services;
mod signing;
mod strangers;
