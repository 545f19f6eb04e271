//! agora
fn main() {}
