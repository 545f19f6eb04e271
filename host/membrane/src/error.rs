//! The one place where errors get, and are known by, what the caller should do next.
//!
//! In: an error, made here or received from any number of connections away.
//! Promise: what [`stale`], [`denied`] and [`busy`] made, [`classify`] recognises after any number of hops. RPC puts
//! `remote exception: ` before the text at each hop and keeps the rest, so the text carries a marker.
//! Failure: anything unmarked is judged by Cap'n Proto's own error kind, and what that does not settle is `Failed`.
//!
//! A marker is advice, not proof: whoever answers a call chooses its error's text. Don't let authority hang on it.

use capnp::{Error, ErrorKind};

/// What the caller should do next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Connect again, or ask again for the capability: this one is dead for good.
    Stale,
    /// Ask for something else: this will be refused again.
    Denied,
    /// Wait, then try again.
    Busy,
    /// Stop: trying again is not known to help.
    Failed,
}

const MARKERS: [(&str, Kind); 3] = [
    ("[stale] ", Kind::Stale),
    ("[denied] ", Kind::Denied),
    ("[busy] ", Kind::Busy),
];

fn marked(kind: Kind, reason: &str) -> String {
    let marker = MARKERS.iter().find(|(_, k)| *k == kind).map_or("", |(m, _)| m);
    format!("{marker}{reason}")
}

/// The capability is dead because of `reason`: connect again, or ask for it again.
#[must_use]
pub fn stale(reason: &str) -> Error {
    Error::disconnected(marked(Kind::Stale, reason))
}

/// The call is not allowed because of `reason`: ask for something else.
#[must_use]
pub fn denied(reason: &str) -> Error {
    Error::failed(marked(Kind::Denied, reason))
}

/// The callee cannot take the call now because of `reason`: wait, then try again.
#[must_use]
pub fn busy(reason: &str) -> Error {
    Error::overloaded(marked(Kind::Busy, reason))
}

/// The call failed because of `reason` and trying again is not known to help.
#[must_use]
pub fn failed(reason: &str) -> Error {
    Error::failed(reason.to_owned())
}

/// What the caller should do about `error`, however many hops away it was made.
///
/// The first marker in the text decides; without one, a lost connection is [`Kind::Stale`], an overloaded callee
/// [`Kind::Busy`], and the rest [`Kind::Failed`].
#[must_use]
pub fn classify(error: &Error) -> Kind {
    let text = &error.extra;
    let marker = MARKERS
        .iter()
        .filter_map(|(marker, kind)| text.find(marker).map(|at| (at, *kind)))
        .min_by_key(|(at, _)| *at);
    match (marker, error.kind) {
        (Some((_, kind)), _) => kind,
        (None, ErrorKind::Disconnected) => Kind::Stale,
        (None, ErrorKind::Overloaded) => Kind::Busy,
        (None, _) => Kind::Failed,
    }
}

/// The text of `error` without the hops' prefixes and without the marker: what to show to people.
#[must_use]
pub fn reason(error: &Error) -> &str {
    let text = error.extra.as_str();
    MARKERS
        .iter()
        .filter_map(|(marker, _)| text.find(marker).map(|at| (at, at + marker.len())))
        .min_by_key(|(at, _)| *at)
        .map_or(text, |(_, end)| &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_survives_the_prefixes_of_many_hops() {
        for (make, kind) in [
            (stale as fn(&str) -> Error, Kind::Stale),
            (denied, Kind::Denied),
            (busy, Kind::Busy),
            (failed, Kind::Failed),
        ] {
            let mut error = make("the epoch ended");
            for _ in 0..3 {
                error = Error::failed(format!("remote exception: {}", error.extra));
            }
            assert_eq!(classify(&error), kind);
            assert!(error.extra.ends_with("the epoch ended"));
        }
        assert_eq!(reason(&stale("the epoch ended")), "the epoch ended");
    }

    #[test]
    fn the_first_marker_decides() {
        let error = denied(&stale("inner").extra);
        assert_eq!(classify(&error), Kind::Denied);
        assert_eq!(reason(&error), "[stale] inner");
    }

    #[test]
    fn an_unmarked_error_is_judged_by_its_kind() {
        assert_eq!(classify(&Error::disconnected("gone".into())), Kind::Stale);
        assert_eq!(classify(&Error::overloaded("full".into())), Kind::Busy);
        assert_eq!(classify(&Error::unimplemented("what?".into())), Kind::Failed);
    }
}
