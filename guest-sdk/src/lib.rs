//! agora-guest
