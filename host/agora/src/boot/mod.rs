//! From an image and a data folder to a running host, and back to nothing lost.

pub mod address;
pub mod build;
pub mod data;
pub mod host;
pub mod image;
pub mod manifest;
pub mod own;
pub mod quiet;
