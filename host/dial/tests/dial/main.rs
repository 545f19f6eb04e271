//! Hosts that dial each other on loopback, some of them hostile.

mod connecting;
mod ending;
mod finding;
mod hostile;
mod hosts;
mod lanes;
mod liar;
mod names;
mod raw;
mod relays;
mod standing;
