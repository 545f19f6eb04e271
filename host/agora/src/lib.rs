//! A host for untrusted agents.
//!
//! The way of a message, and the map of this crate:
//!
//! - [`boot`] reads an image, opens a data folder and wires everything; only it knows everyone.
//! - [`persona`] is who speaks: keys, compiled components, the lives of agents.
//! - [`door`] is where calls come in: an agent's graft behind its wall, the operator's socket, and the controls that stop.
//! - [`peer`] is other hosts: a door for those who come, a link to those we use.
//! - [`channel`] is what a permitted call does: facets, terms, turning drafts into signed entries.
//! - [`delivery`] is how what counts gets out: the judged record, subscriptions, the feed.
//! - [`cli`] is the `agora` command, a client of all this.
//! - [`limits`] holds every bound.
//!
//! Doors lead to channel, channel to delivery. The membrane, the realm and the log are crates of their own and don't know each other.

pub mod boot;
pub mod channel;
pub mod cli;
pub mod delivery;
pub mod door;
pub mod limits;
pub mod peer;
pub mod persona;
#[cfg(feature = "testbed")]
#[doc(hidden)]
pub mod testbed;

/// Milliseconds since 1970-01-01 UTC, by this host's clock.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// Time that never goes back, since some moment of this process.
pub(crate) fn monotonic() -> std::time::Duration {
    static BEGAN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BEGAN.get_or_init(std::time::Instant::now).elapsed()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// At most `bytes` of a text, cut between characters.
pub(crate) fn cut_text(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[..end].to_owned()
}
