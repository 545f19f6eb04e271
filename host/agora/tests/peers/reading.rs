//! What is read of a peer's channel.
