//! agora-log
