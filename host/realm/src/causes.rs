//! Who can bring a refusal about: what tells a race between correct hosts from an entry that none of them wrote.
//!
//! A correct host asks [`State::admit`](crate::State::admit) before it signs, so that what it writes is void only if something came
//! in between. What nothing that comes in between can bring about is a finding of an [`Audit`](crate::Audit).

use crate::act::Refusal;

/// Who can bring a refusal about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Correct hosts: two that act at once, or one whose entry was on its way when another came first.
    Race,
    /// No correct host. Somebody else put it there, or the host that signed it isn't correct.
    Wrong,
    /// It depends on what stands there; the text says on what.
    Depends,
}

/// Every refusal, who can bring it about in a log, and why.
pub const CAUSES: &[(Refusal, Cause, &str)] = &[
    (Refusal::Unknown, Cause::Wrong, "judge says no such thing"),
    (
        Refusal::NoRight,
        Cause::Depends,
        "the terms of a grant never change, so no message of a correct host lacks a right, and no grant; but the grant to read may be \
         cut while a turn under another one is on its way",
    ),
    (
        Refusal::ActNotAllowed,
        Cause::Wrong,
        "the terms of a grant never change",
    ),
    (
        Refusal::HopsSpent,
        Cause::Wrong,
        "the hops of the message answered never change",
    ),
    (
        Refusal::BreakerOpen,
        Cause::Race,
        "another answer was the last that the thread took",
    ),
    (
        Refusal::ThreadClosed,
        Cause::Race,
        "the thread was decided or lapsed while the answer was on its way",
    ),
    (
        Refusal::ParentUnknown,
        Cause::Race,
        "the message answered left the channel's window while the answer was on its way",
    ),
    (
        Refusal::ParentOwn,
        Cause::Wrong,
        "the author of the message answered never changes",
    ),
    (
        Refusal::ParentFenced,
        Cause::Race,
        "the epoch ended between the draft and the entry",
    ),
    (
        Refusal::TooLarge,
        Cause::Wrong,
        "neither the payload nor the terms of a grant ever change",
    ),
    (
        Refusal::CountSpent,
        Cause::Race,
        "others under the same grant spent the count first",
    ),
    (
        Refusal::Expired,
        Cause::Wrong,
        "judge knows no clock, and says no such thing",
    ),
    (
        Refusal::KeyExpired,
        Cause::Race,
        "a later key of the same author came first",
    ),
    (
        Refusal::Malformed,
        Cause::Wrong,
        "what breaks the format is not signed",
    ),
    (
        Refusal::NotOwner,
        Cause::Wrong,
        "the owner of a thread never changes",
    ),
    (
        Refusal::RateLimited,
        Cause::Wrong,
        "judge knows no clock, and says no such thing",
    ),
    (
        Refusal::LogUnavailable,
        Cause::Wrong,
        "what a log doesn't take isn't in it",
    ),
    (
        Refusal::Overloaded,
        Cause::Race,
        "others met the bound first",
    ),
    (
        Refusal::StaleEpoch,
        Cause::Depends,
        "the epoch ended while the entry was on its way; but no entry is of an epoch that hasn't begun",
    ),
    (
        Refusal::Revoked,
        Cause::Race,
        "what it needs was revoked while it was on its way",
    ),
    (
        Refusal::BehindCursor,
        Cause::Race,
        "another turn of the same persona, or a fence, moved the cursor first",
    ),
    (
        Refusal::BadSignature,
        Cause::Wrong,
        "it was altered, or never signed by its signer",
    ),
    (
        Refusal::WrongKey,
        Cause::Depends,
        "the key was renewed while the entry was on its way; but nobody signs with a key that its author never had",
    ),
    (
        Refusal::UnknownChannel,
        Cause::Wrong,
        "channels are declared before they are used, and stay",
    ),
    (
        Refusal::UnknownGrant,
        Cause::Depends,
        "a stop may come for a grant that never stood, and the grant to read another channel may be cut while the turn that answers it is \
         on its way; but nothing is said or granted under a grant that isn't its author's",
    ),
    (
        Refusal::UnknownPersona,
        Cause::Depends,
        "a stop may come for a persona that was never introduced; but none acts before it is, and all stay",
    ),
    (
        Refusal::WrongRealm,
        Cause::Wrong,
        "an entry is of the realm it was signed for, and of no other",
    ),
    (
        Refusal::NotAuthorised,
        Cause::Depends,
        "two hosts may let the same one in at once; but no host writes what it may not",
    ),
    (
        Refusal::Repeated,
        Cause::Depends,
        "what is not known to have arrived is sent again, and two hosts may stop the same thing; but a realm begins once",
    ),
    (
        Refusal::BadHops,
        Cause::Depends,
        "a channel's settings may have changed while the message was on its way; the hops of the message answered and the terms never do",
    ),
    (
        Refusal::NotDue,
        Cause::Race,
        "the thread was decided, or another host closed it, first",
    ),
    (Refusal::PeerAway, Cause::Wrong, "judge says no such thing"),
];

/// What the table says of a refusal.
pub fn cause(refusal: Refusal) -> (Cause, &'static str) {
    CAUSES
        .iter()
        .find(|(known, _, _)| *known == refusal)
        .map_or(
            (Cause::Wrong, "judge says no such thing"),
            |(_, cause, why)| (*cause, *why),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_line() {
        let known: Vec<_> = CAUSES.iter().map(|(refusal, _, _)| *refusal).collect();
        assert_eq!(known, Refusal::EVERY);
        assert_eq!(cause(Refusal::BadSignature).0, Cause::Wrong);
    }
}
