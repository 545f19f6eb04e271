//! What things are called. Ids are newtypes that only compare with their like; names are checked once, when made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_BYTES_MAX, NAME_SEGMENTS_MAX, PATH_BYTES_MAX};

/// Text that is not the id it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 hexadecimal digits")]
pub struct NotAnId;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first 8 hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }

            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = NotAnId;

            fn try_from(bytes: &[u8]) -> Result<Self, NotAnId> {
                bytes.try_into().map(Self).map_err(|_| NotAnId)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                from_hex(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A host: the first public key it ever had.
    HostId
    /// A realm: the id of its genesis.
    RealmId
    /// An entry: the tagged hash of its canonical bytes, which is also what its signature is over.
    EntryId
    /// A message: the tagged hash of its entry's id and its place in the entry.
    MessageId
    /// A grant: the id of the entry that issued it.
    GrantId
    /// A public key, x-only as in BIP-340. Not every value is a point on the curve; no signature verifies by one that is not.
    PublicKey
    /// SHA-256 of a persona's component.
    ComponentHash
}

fn from_hex(text: &str) -> Result<[u8; 32], NotAnId> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(NotAnId);
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NotAnId)?;
    }
    Ok(bytes)
}

impl From<EntryId> for GrantId {
    fn from(id: EntryId) -> Self {
        Self(id.0)
    }
}

impl From<EntryId> for RealmId {
    fn from(id: EntryId) -> Self {
        Self(id.0)
    }
}

impl From<PublicKey> for HostId {
    fn from(key: PublicKey) -> Self {
        Self(key.0)
    }
}

/// Text that can't be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a name: it must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and start with a letter or digit"
)]
pub struct NotAName(pub String);

fn plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes[0] != b'.'
        && bytes[0] != b'_'
        && bytes[0] != b'-'
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

const OPERATOR: &str = "operator:";
const PEER: &str = "peer:";
/// What stands between a peer's name and what it calls something.
const BETWEEN: char = '/';

/// A plain name, or several with `/` between: the first is a peer's, and the rest is what is meant there.
fn path(text: &str) -> bool {
    text.len() <= PATH_BYTES_MAX
        && text.split(BETWEEN).count() <= NAME_SEGMENTS_MAX
        && text.split(BETWEEN).all(plain)
}

/// None that could be taken for a tag of the host's own.
fn domain(text: &str) -> bool {
    plain(text) && !text.starts_with("agora")
}

fn persona(text: &str) -> bool {
    match text.strip_prefix(OPERATOR) {
        Some(uid) => uid.parse::<u32>().is_ok_and(|n| n.to_string() == uid),
        None => text.strip_prefix(PEER).map_or_else(|| path(text), plain),
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident by $valid:path;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Arc<str>", into = "Arc<str>")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// [`NotAName`], with the text, when it does not fit.
            pub fn new(text: &str) -> Result<Self, NotAName> {
                if $valid(text) { Ok(Self(text.into())) } else { Err(NotAName(text.to_owned())) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<Arc<str>> for $name {
            type Error = NotAName;

            fn try_from(text: Arc<str>) -> Result<Self, NotAName> {
                if $valid(&text) { Ok(Self(text)) } else { Err(NotAName(text.to_string())) }
            }
        }

        impl From<$name> for Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl FromStr for $name {
            type Err = NotAName;

            fn from_str(text: &str) -> Result<Self, NotAName> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    )*};
}

names! {
    /// A persona's name at its host: a plain one; or `operator:<uid>`; or `peer:NAME`, another host as it speaks here; or `NAME/REST`, a
    /// guest, which is what the peer NAME calls REST. Cheap to clone.
    PersonaName by persona;
    /// A channel's name in its realm: a plain one; or `PEER/REST`, a remote one, which is what that peer calls REST. Cheap to clone.
    ChannelName by path;
    /// The name of a service that a host offers its personas. Cheap to clone.
    ServiceName by plain;
    /// What signatures that an agent makes are for. Names that begin with `agora` are the host's own. Cheap to clone.
    DomainName by domain;
}

/// The peer's name, and what it calls it.
fn remote(text: &str) -> Option<(&str, &str)> {
    text.split_once(BETWEEN)
}

fn checked_plain(text: &str) -> Result<Arc<str>, NotAName> {
    if plain(text) {
        Ok(text.into())
    } else {
        Err(NotAName(text.to_owned()))
    }
}

impl ChannelName {
    /// A channel of the realm's own: what a manifest may declare.
    ///
    /// # Errors
    /// [`NotAName`] when it is no plain name.
    pub fn plain(text: &str) -> Result<Self, NotAName> {
        checked_plain(text).map(Self)
    }

    /// Whether what counts on it is what is said for a channel of a peer's.
    pub fn is_remote(&self) -> bool {
        self.peer().is_some()
    }

    /// Whose it is, when it is remote.
    pub fn peer(&self) -> Option<&str> {
        remote(&self.0).map(|(peer, _)| peer)
    }

    /// What it is called there, when it is remote.
    pub fn at_peer(&self) -> Option<Self> {
        remote(&self.0).map(|(_, rest)| Self(rest.into()))
    }

    /// The name for its file: no other channel's, and of no folder.
    pub fn file_name(&self) -> String {
        self.0.replace(BETWEEN, "+")
    }
}

impl PersonaName {
    /// A persona that lives at its host: what a manifest may call an agent.
    ///
    /// # Errors
    /// [`NotAName`] when it is no plain name.
    pub fn plain(text: &str) -> Result<Self, NotAName> {
        checked_plain(text).map(Self)
    }

    /// The persona that the peer of this name speaks as.
    ///
    /// # Errors
    /// [`NotAName`] when it is no plain name.
    pub fn peer(name: &str) -> Result<Self, NotAName> {
        checked_plain(name).map(|name| Self(format!("{PEER}{name}").into()))
    }

    /// The guest that the peer of this name calls `rest`.
    ///
    /// # Errors
    /// [`NotAName`] when either is none, or both together are too long.
    pub fn guest(peer: &str, rest: &str) -> Result<Self, NotAName> {
        Self::new(&format!("{}{BETWEEN}{rest}", checked_plain(peer)?))
    }

    /// Whether it lives at its host, as an agent does.
    pub fn is_plain(&self) -> bool {
        plain(&self.0)
    }

    /// Whether this is another host.
    pub fn is_peer(&self) -> bool {
        self.0.starts_with(PEER)
    }

    /// What another host is called here.
    pub fn peer_name(&self) -> Option<&str> {
        self.0.strip_prefix(PEER)
    }

    /// Whether this is a persona of a peer's.
    pub fn is_guest(&self) -> bool {
        self.host_peer().is_some()
    }

    /// The name of the peer whose guest this is.
    pub fn host_peer(&self) -> Option<&str> {
        remote(&self.0).map(|(peer, _)| peer)
    }

    /// What its peer calls a guest.
    pub fn at_peer(&self) -> Option<Self> {
        remote(&self.0).map(|(_, rest)| Self(rest.into()))
    }

    /// The persona of the peer whose guest this is.
    pub fn brought_by(&self) -> Option<Self> {
        self.host_peer()
            .map(|peer| Self(format!("{PEER}{peer}").into()))
    }

    /// The persona of the operator with this user id.
    pub fn operator(uid: u32) -> Self {
        Self(format!("{OPERATOR}{uid}").into())
    }

    /// Whether this is an operator, who needs no grant.
    pub fn is_operator(&self) -> bool {
        self.0.starts_with(OPERATOR)
    }
}

/// Who speaks: a name at a host. Shown as `planner@1a2b3c4d`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PersonaId {
    /// The host it lives at.
    pub host: HostId,
    /// Its name there.
    pub name: PersonaName,
}

impl PersonaId {
    /// The peer whose guest it is, at the same host.
    pub fn brought_by(&self) -> Option<Self> {
        let name = self.name.brought_by()?;
        Some(Self::new(self.host, name))
    }

    /// The persona of this name at this host.
    pub fn new(host: HostId, name: PersonaName) -> Self {
        Self { host, name }
    }
}

impl fmt::Display for PersonaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.host.short())
    }
}

/// A message's place among its channel's counting messages, from 1. Zero stands for none, before the first.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ordinal(pub u64);

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The span between two fences. A realm begins in epoch 1; 0 is the time before its genesis.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain_or_an_operator() {
        for good in [
            "a",
            "0",
            "build-coord",
            "a.b_c-9",
            "operator:0",
            "operator:4294967295",
            "peer:alpha",
            "peer:0",
            "alpha/synth",
            "alpha/charlie/delta/x",
            &"x".repeat(64),
            &format!("peer:{}", "x".repeat(64)),
            &format!("{0}/{0}", "x".repeat(64)),
        ] {
            assert!(PersonaName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "_a",
            "A",
            "a b",
            "é",
            "operator:",
            "operator:01",
            "operator:-1",
            "operator:4294967296",
            "peer:",
            "peer:alpha/x",
            "peer:peer:x",
            "peer:operator:0",
            "peer:-a",
            "/",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            "a/.b",
            "a/B",
            "a/peer:b",
            "a/operator:0",
            "a/b/c/d/e",
            &format!("{0}/{0}/{0}", "x".repeat(64)),
        ] {
            assert!(PersonaName::new(bad).is_err(), "{bad}");
        }
        assert!(PersonaName::new(&"x".repeat(65)).is_err());
        assert!(ChannelName::new("operator:0").is_err());
        assert!(ChannelName::new("peer:a").is_err());
        assert!(ServiceName::new("a/b").is_err());
        assert!(PersonaName::operator(7).is_operator());
        assert!(!PersonaName::new("operator").unwrap().is_operator());
    }

    #[test]
    fn a_peer_its_guests_and_its_channels_are_told_apart() {
        let alpha = PersonaName::peer("alpha").unwrap();
        assert_eq!(
            (alpha.as_str(), alpha.peer_name()),
            ("peer:alpha", Some("alpha"))
        );
        assert!(alpha.is_peer() && !alpha.is_guest() && !alpha.is_operator());
        assert_eq!(alpha.host_peer(), None);
        let guest = PersonaName::guest("alpha", "charlie/x").unwrap();
        assert!(guest.is_guest() && !guest.is_peer());
        assert_eq!(guest.host_peer(), Some("alpha"));
        assert_eq!(guest.at_peer().unwrap().as_str(), "charlie/x");
        assert_eq!(guest.brought_by(), Some(alpha));
        assert!(PersonaName::guest("alpha/charlie", "x").is_err());
        assert!(PersonaName::guest("alpha", "").is_err());
        assert!(PersonaName::guest("alpha", "operator:0").is_err());
        assert!(PersonaName::peer("alpha/x").is_err());

        let remote = ChannelName::new("bravo/charlie/x").unwrap();
        assert_eq!((remote.is_remote(), remote.peer()), (true, Some("bravo")));
        let there = remote.at_peer().unwrap();
        assert_eq!((there.as_str(), there.is_remote()), ("charlie/x", true));
        assert_eq!(there.at_peer().unwrap().at_peer(), None);

        for other in ["a/b", "peer:a", "operator:0"] {
            assert!(PersonaName::plain(other).is_err(), "{other}");
            assert!(ChannelName::plain(other).is_err(), "{other}");
        }
        assert!(PersonaName::plain("a.b").is_ok() && ChannelName::plain("a.b").is_ok());
    }

    #[test]
    fn a_channels_file_is_its_own_and_in_its_folder() {
        let file = |name: &str| ChannelName::new(name).unwrap().file_name();
        assert_eq!(file("release"), "release");
        assert_eq!(file("bravo/release"), "bravo+release");
        assert!(ChannelName::new("bravo+release").is_err());
        let longest = format!("{0}/{0}/{1}", "x".repeat(64), "x".repeat(62));
        assert_eq!(file(&longest).len(), PATH_BYTES_MAX);
    }

    #[test]
    fn a_domain_is_none_of_the_hosts_own() {
        for good in ["release", "example.org-builds", "0", "an-agora"] {
            assert!(DomainName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "agora",
            "agora-entry",
            "agora.x",
            "Release",
            "a/b",
            "",
            "-a",
        ] {
            assert!(DomainName::new(bad).is_err(), "{bad}");
        }
        assert!(DomainName::new(&"x".repeat(65)).is_err());
    }

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = HostId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "00070e15");
        assert!("é".repeat(32).parse::<HostId>().is_err());
        assert!(id.to_string()[1..].parse::<HostId>().is_err());
        assert_eq!(
            PersonaId::new(id, PersonaName::new("planner").unwrap()).to_string(),
            "planner@00070e15"
        );
    }

    #[test]
    fn a_snapshot_cannot_smuggle_in_a_bad_name() {
        let bytes = postcard::to_stdvec("Not A Name").unwrap();
        assert!(postcard::from_bytes::<ChannelName>(&bytes).is_err());
    }
}
