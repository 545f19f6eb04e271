//! Who speaks: keys, components, and the lives of agents.

pub mod agent;
pub mod engine;
pub mod identity;
pub mod instance;
pub mod keys;
pub mod output;
pub mod secret;
