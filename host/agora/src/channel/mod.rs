//! What a permitted call does.

pub mod allowance;
pub mod facet;
pub mod leash;
pub mod rates;
mod repeats;
pub mod signer;
pub mod speak;
pub mod timer;
