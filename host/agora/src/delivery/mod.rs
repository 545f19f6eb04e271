//! How what counts gets out.

pub mod auditing;
pub mod checkpoints;
pub mod cursors;
pub mod feed;
pub mod forks;
pub mod gathering;
pub mod hearing;
pub mod index;
pub mod lease;
pub(crate) mod lots;
pub mod message;
pub mod proofs;
pub mod pruned;
pub mod record;
pub mod subscription;
pub mod tip;
pub mod tree;
