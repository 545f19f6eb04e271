//! What a facet allows: a lattice, of which grants only ever walk down.
//!
//! In: the terms of a grant and of those above it. Promise: [`Terms::meet`] is commutative, associative and idempotent,
//! and allows nothing that either side does not.

use std::ops::{BitAnd, BitOr};

use agora_capnp::terms_capnp;
use serde::{Deserialize, Serialize};

use crate::act::Act;

/// A set of rights. Unknown bits are kept and mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rights(pub u16);

impl Rights {
    /// No right.
    pub const NONE: Rights = Rights(0);
    /// May read the channel, and so answer what is on it.
    pub const READ: Rights = Rights(1);
    /// May speak.
    pub const WRITE: Rights = Rights(2);
    /// May speak without answering: start a thread.
    pub const INITIATE: Rights = Rights(4);
    /// May hand on a narrower facet.
    pub const ATTENUATE: Rights = Rights(8);
    /// Every right, also those not yet invented.
    pub const ALL: Rights = Rights(0xffff);

    /// Whether all of `these` are in the set.
    pub fn has(self, these: Rights) -> bool {
        self.0 & these.0 == these.0
    }
}

impl BitOr for Rights {
    type Output = Rights;

    fn bitor(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

impl BitAnd for Rights {
    type Output = Rights;

    fn bitand(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }
}

/// A set of acts: bit n stands for the act of value n. Unknown bits are kept and mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ActSet(pub u16);

impl ActSet {
    /// Every act, also those not yet invented.
    pub const ALL: ActSet = ActSet(0xffff);

    /// Whether the act is in the set.
    pub fn has(self, act: Act) -> bool {
        self.0 & (1 << act as u16) != 0
    }
}

impl FromIterator<Act> for ActSet {
    fn from_iter<I: IntoIterator<Item = Act>>(acts: I) -> Self {
        ActSet(acts.into_iter().fold(0, |set, act| set | 1 << act as u16))
    }
}

impl BitAnd for ActSet {
    type Output = ActSet;

    fn bitand(self, other: ActSet) -> ActSet {
        ActSet(self.0 & other.0)
    }
}

/// A token bucket: it holds `burst` messages and gains one every `gap`.
///
/// The gap is kept in units of 2^-32 ms rather than as a fraction, so that the slower of two gaps and the smaller of
/// two bursts make a rate again, exactly: a meet that had to round would not be associative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    burst: u32,
    gap: u64,
}

impl Rate {
    /// `messages` per `per_ms` milliseconds, refilled evenly, holding at most `messages`. None, no limit, when either
    /// is zero.
    pub fn new(messages: u32, per_ms: u32) -> Option<Rate> {
        (messages != 0 && per_ms != 0).then(|| Rate {
            burst: messages,
            gap: (u64::from(per_ms) << 32).div_ceil(u64::from(messages)),
        })
    }

    /// How many messages the bucket holds.
    pub fn messages(&self) -> u32 {
        self.burst
    }

    /// How long an empty bucket takes to fill, in milliseconds. For a rate from [`Rate::new`] what was given there;
    /// for a meet rounded down, and at least 1.
    pub fn per_ms(&self) -> u32 {
        let full = (u128::from(self.burst) * u128::from(self.gap)) >> 32;
        u32::try_from(full).unwrap_or(u32::MAX).max(1)
    }

    /// How long the bucket takes to gain one message, in units of 2^-32 ms. What admission counts by.
    pub fn gap(&self) -> u64 {
        self.gap
    }

    /// The slower gap with the smaller burst.
    pub fn meet(&self, other: &Rate) -> Rate {
        Rate {
            burst: self.burst.min(other.burst),
            gap: self.gap.max(other.gap),
        }
    }
}

/// What a facet allows. The effective terms of a grant are the meet of its own and those of every grant above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// What may be done at all.
    pub rights: Rights,
    /// The acts that may be spoken.
    pub acts: ActSet,
    /// The most hops that a message may carry.
    pub hops: u16,
    /// The largest payload, in bytes.
    pub bytes_max: u32,
    /// How many messages may count in all, drawn together with every grant above.
    pub count: u64,
    /// How fast; None: no limit. Checked where the message is admitted, not judged again.
    pub rate: Option<Rate>,
    /// Not after this moment, in milliseconds since 1970-01-01 UTC. Checked where the message is admitted.
    pub until_ms: i64,
    /// How many messages from before the grant may be read.
    pub history: u64,
}

impl Terms {
    /// Everything allowed: the top of the lattice, and what a default-constructed `Terms` of the schema means.
    pub const ALL: Terms = Terms {
        rights: Rights::ALL,
        acts: ActSet::ALL,
        hops: u16::MAX,
        bytes_max: u32::MAX,
        count: u64::MAX,
        rate: None,
        until_ms: i64::MAX,
        history: u64::MAX,
    };

    /// What both allow.
    pub fn meet(&self, other: &Terms) -> Terms {
        Terms {
            rights: self.rights & other.rights,
            acts: self.acts & other.acts,
            hops: self.hops.min(other.hops),
            bytes_max: self.bytes_max.min(other.bytes_max),
            count: self.count.min(other.count),
            rate: match (&self.rate, &other.rate) {
                (Some(a), Some(b)) => Some(a.meet(b)),
                (a, b) => a.or(*b),
            },
            until_ms: self.until_ms.min(other.until_ms),
            history: self.history.min(other.history),
        }
    }

    /// Whether these allow nothing that `of` does not.
    pub fn narrows(&self, of: &Terms) -> bool {
        self.meet(of) == *self
    }

    /// Reads the schema's struct.
    ///
    /// # Errors
    /// When the rate can't be read.
    pub fn read(from: terms_capnp::terms::Reader<'_>) -> capnp::Result<Terms> {
        let rate = from.get_rate()?;
        Ok(Terms {
            rights: Rights(from.get_rights()),
            acts: ActSet(from.get_acts()),
            hops: from.get_hops(),
            bytes_max: from.get_bytes_max(),
            count: from.get_count(),
            rate: Rate::new(rate.get_messages(), rate.get_per_ms()),
            until_ms: from.get_until_ms(),
            history: from.get_history(),
        })
    }

    /// Writes the schema's struct.
    pub fn write(&self, mut to: terms_capnp::terms::Builder<'_>) {
        to.set_rights(self.rights.0);
        to.set_acts(self.acts.0);
        to.set_hops(self.hops);
        to.set_bytes_max(self.bytes_max);
        to.set_count(self.count);
        to.set_until_ms(self.until_ms);
        to.set_history(self.history);
        if let Some(rate) = &self.rate {
            let mut to = to.init_rate();
            to.set_messages(rate.messages());
            to.set_per_ms(rate.per_ms());
        }
    }
}
