//! What can go wrong for an agent, sorted by what to do next.

use agora_membrane::error::Kind as Marked;

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The capability is of another time (epoch ended, grant or facet revoked): let it go. The SDK grafts again.
    Stale,
    /// Not allowed, or no such thing: ask differently.
    Denied,
    /// A bound was met: wait, then repeat.
    Busy,
    /// The host is gone: the agent ends.
    Disconnected,
    /// It failed, and repeating won't help.
    Failed,
}

/// An error: what happened, and what to do about it.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    text: String,
}

impl Error {
    /// An agent's own failure.
    pub fn failed(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            text: text.into(),
        }
    }

    pub(crate) fn denied(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Denied,
            text: text.into(),
        }
    }

    pub(crate) fn stale(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Stale,
            text: text.into(),
        }
    }

    pub(crate) fn disconnected(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Disconnected,
            text: text.into(),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the capability is of another time.
    pub fn is_stale(&self) -> bool {
        self.kind == Kind::Stale
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<capnp::Error> for Error {
    fn from(error: capnp::Error) -> Self {
        let kind = match agora_membrane::error::classify(&error) {
            Marked::Stale => Kind::Stale,
            Marked::Denied => Kind::Denied,
            Marked::Busy => Kind::Busy,
            _ => Kind::Failed,
        };
        Self {
            kind,
            text: agora_membrane::error::reason(&error).to_owned(),
        }
    }
}

impl From<capnp::NotInSchema> for Error {
    fn from(error: capnp::NotInSchema) -> Self {
        capnp::Error::from(error).into()
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(error: std::str::Utf8Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<crate::Refused> for Error {
    fn from(refused: crate::Refused) -> Self {
        Self {
            kind: match refused.reason.class() {
                crate::message::RefusalClass::Stop => Kind::Denied,
                crate::message::RefusalClass::Wait => Kind::Busy,
                crate::message::RefusalClass::Regraft => Kind::Stale,
            },
            text: refused.to_string(),
        }
    }
}
