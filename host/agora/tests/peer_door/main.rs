//! What another realm's host finds at this one: the honest ways first, then the others. The host is real; who calls is made by hand, of
//! a dialer and Cap'n Proto.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

mod bed;
mod fairness;
mod granted;
mod hostile;
mod login;
