//! Hosts that dial each other on loopback, some of them hostile.

mod connecting;
mod ending;
mod hostile;
mod hosts;
mod lanes;
mod raw;
mod standing;
