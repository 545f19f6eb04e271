//! agora-realm
