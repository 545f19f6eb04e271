//! agora-capnp
