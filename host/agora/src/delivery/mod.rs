//! How what counts gets out.

pub mod cursors;
pub mod feed;
pub mod index;
pub mod message;
pub mod pruned;
pub mod record;
pub mod subscription;
