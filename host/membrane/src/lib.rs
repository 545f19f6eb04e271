//! A transitive, two-way, revocable membrane for Cap'n Proto capabilities.

mod call;
pub mod error;
mod flight;
mod membrane;
mod message;
mod pending;
mod policy;
mod relay;
mod request;
mod results;
mod route;
mod served;
mod wall;
mod wrapper;

pub use membrane::{Membrane, Revoker};
pub use policy::{CallInfo, Policy, Side, Verdict};
