//! The realm: what stands in the log, and what of it counts.
mod act;
mod codec;
mod entry;
mod ids;
mod key;
pub mod limits;
mod terms;
pub use act::*;
pub use entry::*;
pub use ids::*;
pub use key::*;
pub use terms::*;
