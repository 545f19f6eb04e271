//! Doors: where calls come in, and what they may reach.

pub mod bridge;
pub mod control;
pub mod gate;
pub mod graft;
mod heed;
pub mod introduction;
pub mod operator;
pub mod prune;
pub mod service;
pub mod trees;
pub mod wall;
pub mod worker;
