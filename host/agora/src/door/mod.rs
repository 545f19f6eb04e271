//! Doors: where calls come in, and what they may reach.

pub mod bridge;
pub mod condition;
pub mod control;
pub mod foreign;
mod fresh;
pub mod gate;
pub mod graft;
mod heed;
pub mod introduction;
mod loss;
pub mod operator;
pub mod prune;
mod prune_shared;
pub mod service;
pub mod trees;
pub mod wall;
pub mod worker;
