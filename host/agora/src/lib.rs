//! agora
