//! agora-membrane
