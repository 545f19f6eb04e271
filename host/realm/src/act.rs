//! What a message means, and why one does not count: `act.capnp`, with words for people.

use std::fmt;

use agora_capnp::act_capnp;
use serde::{Deserialize, Serialize};

/// The speech act: what is meant by a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Act {
    /// States something.
    Inform,
    /// Asks for something; as the root of a thread it may name an owner and a deadline.
    Request,
    /// Offers something for others to agree to or refuse.
    Propose,
    /// Agrees.
    Agree,
    /// Declines.
    Refuse,
    /// Settles a thread; closes it when the thread's owner says it.
    Decide,
}

impl Act {
    /// Every act, in the order of its value.
    pub const EVERY: [Act; 6] = [
        Act::Inform,
        Act::Request,
        Act::Propose,
        Act::Agree,
        Act::Refuse,
        Act::Decide,
    ];

    /// The word for it, as in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Act::Inform => "inform",
            Act::Request => "request",
            Act::Propose => "propose",
            Act::Agree => "agree",
            Act::Refuse => "refuse",
            Act::Decide => "decide",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<act_capnp::Act> for Act {
    fn from(act: act_capnp::Act) -> Self {
        match act {
            act_capnp::Act::Inform => Act::Inform,
            act_capnp::Act::Request => Act::Request,
            act_capnp::Act::Propose => Act::Propose,
            act_capnp::Act::Agree => Act::Agree,
            act_capnp::Act::Refuse => Act::Refuse,
            act_capnp::Act::Decide => Act::Decide,
        }
    }
}

impl From<Act> for act_capnp::Act {
    fn from(act: Act) -> Self {
        match act {
            Act::Inform => act_capnp::Act::Inform,
            Act::Request => act_capnp::Act::Request,
            Act::Propose => act_capnp::Act::Propose,
            Act::Agree => act_capnp::Act::Agree,
            Act::Refuse => act_capnp::Act::Refuse,
            Act::Decide => act_capnp::Act::Decide,
        }
    }
}

macro_rules! refusals {
    ($($name:ident $text:literal)*) => {
        /// Why a draft was refused at the door, or a message or entry in the log is void. `Display` says what
        /// happened and what to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Refusal {
            $(#[doc = $text] $name,)*
        }

        impl Refusal {
            /// Every refusal, in the order of its value.
            pub const EVERY: &'static [Refusal] = &[$(Refusal::$name),*];
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Refusal::$name => $text,)* })
            }
        }

        impl From<act_capnp::Refusal> for Refusal {
            fn from(refusal: act_capnp::Refusal) -> Self {
                match refusal { $(act_capnp::Refusal::$name => Refusal::$name,)* }
            }
        }

        impl From<Refusal> for act_capnp::Refusal {
            fn from(refusal: Refusal) -> Self {
                match refusal { $(Refusal::$name => act_capnp::Refusal::$name,)* }
            }
        }
    };
}

refusals! {
    Unknown "refused for a reason that only a newer host knows; upgrade this reader"
    NoRight "the terms lack the right that this needs; ask for it in the grant (read, write, initiate, attenuate)"
    ActNotAllowed "the terms do not allow this act; ask for it in the grant, or say it otherwise"
    HopsSpent "the message answered has no hops left; nobody may answer it"
    BreakerOpen "the thread has had all its reactions; start another thread, or leave it to the operator"
    ThreadClosed "the thread was decided or has lapsed; start another"
    ParentUnknown "no such message counts, is recent enough and may be read under this grant; answer another, or none"
    ParentOwn "a message can't answer its own author; answer another's, or start a thread"
    ParentFenced "the message answered is from before the fence, and the channel does not carry; start another thread"
    TooLarge "the payload is over the grant's or the host's bound; send less"
    CountSpent "the grant, or one above it, has spent its count; ask for another grant"
    Expired "the grant's time is over; ask for another grant"
    KeyExpired "the key is not above the highest used, and its receipt is no longer remembered; use a higher key"
    Malformed "the draft or entry breaks the format; this is the sender's mistake"
    NotOwner "only the thread's owner may decide it"
    RateLimited "over the grant's rate; wait, then try again"
    LogUnavailable "the log can't take it now (disk full, or server away); try again later"
    Overloaded "a bound of the host was met; try again when there is less of it"
    StaleEpoch "the epoch ended first; graft again"
    Revoked "the grant, key, agent or host was revoked; graft again, or ask the operator"
    BehindCursor "the turn answers what was answered or passed by before; go on from the cursor"
    BadSignature "the signature does not verify; the entry was altered, or never signed by its signer"
    WrongKey "signed by a key that is not its author's now; sign with the author's current key"
    UnknownChannel "no such channel in this realm; declare it first"
    UnknownGrant "no such grant, or it is another's or for another object; name the grant that this is spoken under"
    UnknownPersona "no such persona in this realm; introduce its key first"
    WrongRealm "the entry belongs to another realm; check which log the host was given"
    NotAuthorised "this host or persona may not write such an entry"
    Repeated "the same stands earlier in the log; nothing is left to do"
    BadHops "more hops than the message answered, the channel and the terms leave; stamp fewer"
    NotDue "no open and overdue thread of this host; wait for the deadline"
    PeerAway "the peer is out of reach; it is in the outbox and will be said once when the peer is back (repeat it for its outcome)"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_and_act_keeps_its_value_through_the_schema() {
        for (value, refusal) in Refusal::EVERY.iter().enumerate() {
            let wire = act_capnp::Refusal::from(*refusal);
            assert_eq!(wire as usize, value);
            assert_eq!(Refusal::from(wire), *refusal);
            assert_eq!(*refusal as usize, value);
        }
        assert!(
            act_capnp::Refusal::try_from(Refusal::EVERY.len() as u16).is_err(),
            "a refusal is missing"
        );
        for (value, act) in Act::EVERY.iter().enumerate() {
            assert_eq!(act_capnp::Act::from(*act) as usize, value);
            assert_eq!(Act::from(act_capnp::Act::from(*act)), *act);
        }
        assert!(
            act_capnp::Act::try_from(Act::EVERY.len() as u16).is_err(),
            "an act is missing"
        );
    }
}
