//! The rules of speaking, read-only. `judge` applies them to what stands in the log, admission to what is about to:
//! the same checks, so that what is admitted is void only if something came in between.

use crate::act::{Act, Refusal};
use crate::channel::PersonaNo;
use crate::entry::{GrantBody, Object};
use crate::ids::{ChannelName, GrantId, HostId, MessageId, Ordinal, PersonaId};
use crate::limits::{
    AUTHORITY_ENTRIES_LENT_MAX, GRANT_DEPTH_MAX, GUESTS_PER_PEER_MAX, LENT_PER_EPOCH_MAX,
    LENT_TO_ONE_MAX, OPEN_DECISIONS_MAX, PAYLOAD_BYTES_MAX, PEER_LENT_PER_EPOCH_MAX,
    PERSONA_GRANTS_MAX, PERSONA_GRANTS_RESERVED, PERSONA_OBJECTS_MAX,
};
use crate::state::State;
use crate::terms::{Rights, Terms};

/// What a persona would say, as admission sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What is meant.
    pub act: Act,
    /// The message it answers; None for a root.
    pub parent: Option<MessageId>,
    /// The most hops that the author wants it to carry.
    pub hops_wish: u16,
    /// The payload's size.
    pub bytes: usize,
    /// The author's number for it. The host numbers it when the author did not. Ignored in a turn.
    pub key: u64,
    /// Root requests only: who decides.
    pub owner: Option<PersonaId>,
    /// Root requests with an owner only: when the thread lapses, in milliseconds since 1970-01-01 UTC; 0: never.
    pub deadline_ms: i64,
    /// It is part of an answering turn.
    pub in_turn: bool,
}

/// What the host stamps on an admitted draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its hops.
    pub hops: u16,
}

/// Who speaks where, under what.
#[derive(Debug, Clone)]
pub(crate) struct Speaking {
    pub(crate) no: PersonaNo,
    pub(crate) operator: bool,
    pub(crate) channel: ChannelName,
    pub(crate) grant: Option<GrantId>,
    terms: Terms,
    reach: u64,
}

pub(crate) enum Hops {
    /// As many as there are, but no more than these.
    AtMost(u16),
    /// These, or it is void.
    Stamped(u16),
}

/// A message, as far as the rules look at it.
pub(crate) struct Offer<'a> {
    pub(crate) act: Act,
    pub(crate) parent: Option<&'a MessageId>,
    pub(crate) hops: Hops,
    pub(crate) key: u64,
    pub(crate) bytes: usize,
    pub(crate) owner: Option<&'a PersonaId>,
    pub(crate) deadline_ms: i64,
    pub(crate) in_turn: bool,
}

/// How a message that counts fits in.
pub(crate) struct Fit {
    pub(crate) hops: u16,
    /// The ordinal of its thread's root; None when it is one.
    pub(crate) root: Option<u64>,
    pub(crate) owner: Option<PersonaNo>,
    /// It decides its thread.
    pub(crate) decides: bool,
}

impl State {
    /// Whether this draft would count if it were the next in the log, and with how many hops. What needs a clock
    /// (rate, until) is for the caller to check, with the [effective terms](crate::Grant::effective) of the grant. A
    /// draft that is part of an answering turn needs [`State::admit_turn`] besides.
    ///
    /// # Errors
    /// What judge would say. [`Refusal::Repeated`] when the key's first receipt is remembered:
    /// [`State::key_repeat`] has it.
    pub fn admit(
        &self,
        persona: &PersonaId,
        grant: Option<&GrantId>,
        channel: &ChannelName,
        draft: &Draft,
    ) -> Result<Admitted, Refusal> {
        let speaking = self.speaking(persona, grant, channel)?;
        let fit = self.fit(
            &speaking,
            &Offer {
                act: draft.act,
                parent: draft.parent.as_ref(),
                hops: Hops::AtMost(draft.hops_wish),
                key: if draft.in_turn { 0 } else { draft.key },
                bytes: draft.bytes,
                owner: draft.owner.as_ref(),
                deadline_ms: draft.deadline_ms,
                in_turn: draft.in_turn,
            },
        )?;
        Ok(Admitted { hops: fit.hops })
    }

    /// Whether a turn on `channel` that answers through this ordinal of `origin` (None: of `channel` itself) would
    /// stand if it were the next in the log. Its messages need [`State::admit`], each.
    ///
    /// # Errors
    /// What judge would say. [`Refusal::Repeated`] when the turn is remembered: [`State::turn_repeat`] has it.
    pub fn admit_turn(
        &self,
        persona: &PersonaId,
        grant: Option<&GrantId>,
        channel: &ChannelName,
        origin: Option<&ChannelName>,
        through: Ordinal,
    ) -> Result<(), Refusal> {
        let speaking = self.speaking(persona, grant, channel)?;
        self.answers(&speaking, origin, through)
    }

    /// Whether this host's grant would stand if it were the next in the log, and what it would allow: the meet of its
    /// terms and those of all above it.
    ///
    /// # Errors
    /// What judge would say.
    pub fn admit_grant(&self, host: &HostId, body: &GrantBody) -> Result<Terms, Refusal> {
        if body.persona.host != *host {
            return Err(Refusal::NotAuthorised);
        }
        let persona = self
            .personas
            .get(&body.persona)
            .ok_or(Refusal::UnknownPersona)?;
        if let Object::Channel(name) = &body.object
            && !self.channels.contains_key(name)
        {
            return Err(Refusal::UnknownChannel);
        }
        if matches!(body.object, Object::Signer(_)) && body.parent.is_some() {
            // Whoever signs in a domain was granted that by its host, and by nobody else.
            return Err(Refusal::NoRight);
        }
        let mut effective = body.terms;
        if let Some(parent) = &body.parent {
            if self.cut.contains(parent) {
                return Err(Refusal::Revoked);
            }
            let parent = self.grants.get(parent).ok_or(Refusal::UnknownGrant)?;
            if parent.object != body.object {
                return Err(Refusal::UnknownGrant);
            }
            if parent.persona.host != *host {
                return Err(Refusal::NotAuthorised);
            }
            let lender = self
                .personas
                .get(&parent.persona)
                .ok_or(Refusal::UnknownPersona)?;
            if lender.killed || self.is_cut_off(&parent.persona) || self.is_suspended(parent) {
                return Err(Refusal::Revoked);
            }
            // A peer speaks for its personas as it is: that they speak under grants of their own is so that each can be told apart.
            let brought = body.persona.brought_by().as_ref() == Some(&parent.persona);
            if !brought && !self.held_by(parent).effective.rights.has(Rights::ATTENUATE) {
                return Err(Refusal::NoRight);
            }
            let lent_max = match parent.persona.name.is_peer() {
                true => PEER_LENT_PER_EPOCH_MAX,
                false => LENT_PER_EPOCH_MAX,
            };
            if parent.depth >= GRANT_DEPTH_MAX
                || lender.lent >= lent_max
                || self.seen.len() >= AUTHORITY_ENTRIES_LENT_MAX
            {
                return Err(Refusal::Overloaded);
            }
            if parent.persona != body.persona && self.lent_between(&parent.persona, persona) {
                return Err(Refusal::Overloaded);
            }
            effective = effective.meet(&parent.effective);
        }
        let decided = &persona.decided;
        let objects_full = decided.len() >= PERSONA_OBJECTS_MAX && !decided.contains(&body.object);
        let room = match body.parent {
            None => PERSONA_GRANTS_MAX,
            Some(_) => PERSONA_GRANTS_MAX - PERSONA_GRANTS_RESERVED,
        };
        if persona.grants.len() >= room || (body.parent.is_none() && objects_full) {
            return Err(Refusal::Overloaded);
        }
        Ok(effective)
    }

    /// Whether a guest's key would count, for all that hangs on its peer: a guest comes with its peer. Answers the peer, when the guest is new
    /// and there is room for it; nobody, when it is known, or no guest.
    ///
    /// # Errors
    /// Why the key would be void.
    pub fn admit_guest(&self, guest: &PersonaId) -> Result<Option<PersonaId>, Refusal> {
        let Some(id) = guest.brought_by() else {
            return Ok(None);
        };
        let peer = self.personas.get(&id).ok_or(Refusal::UnknownPersona)?;
        if peer.killed {
            return Err(Refusal::Revoked);
        }
        if self.personas.contains_key(guest) {
            return Ok(None);
        }
        if peer.guests >= GUESTS_PER_PEER_MAX {
            return Err(Refusal::Overloaded);
        }
        Ok(Some(id))
    }

    /// Whether the lender has lent this persona as much as one may.
    fn lent_between(&self, lender: &PersonaId, to: &crate::state::Persona) -> bool {
        let lent = to.grants.values().filter(|id| {
            let parent = self.grants.get(id).and_then(|grant| grant.parent);
            parent
                .and_then(|parent| self.grants.get(&parent))
                .is_some_and(|parent| parent.persona == *lender)
        });
        lent.count() >= LENT_TO_ONE_MAX
    }

    /// The persona stands, the channel exists, and the grant is the persona's for it.
    pub(crate) fn speaking(
        &self,
        id: &PersonaId,
        grant: Option<&GrantId>,
        channel: &ChannelName,
    ) -> Result<Speaking, Refusal> {
        let persona = self.personas.get(id).ok_or(Refusal::UnknownPersona)?;
        let host_revoked = self.hosts.get(&id.host).is_none_or(|host| host.revoked);
        if persona.killed || host_revoked || self.is_cut_off(id) {
            return Err(Refusal::Revoked);
        }
        if !self.channels.contains_key(channel) {
            return Err(Refusal::UnknownChannel);
        }
        let operator = id.name.is_operator();
        let (terms, reach) = match grant {
            None if operator => (Terms::ALL, 0),
            None => return Err(Refusal::UnknownGrant),
            Some(grant) if self.cut.contains(grant) => return Err(Refusal::Revoked),
            Some(grant) => {
                let grant = self.grants.get(grant).ok_or(Refusal::UnknownGrant)?;
                if grant.persona != *id
                    || !matches!(&grant.object, Object::Channel(name) if name == channel)
                {
                    return Err(Refusal::UnknownGrant);
                }
                if self.is_suspended(grant) {
                    return Err(Refusal::Revoked);
                }
                (grant.effective, grant.reach().0)
            }
        };
        Ok(Speaking {
            no: persona.no,
            operator,
            channel: channel.clone(),
            grant: grant.copied(),
            terms,
            reach,
        })
    }

    /// A turn may answer through this ordinal. Zero answers nothing, which is always well.
    pub(crate) fn answers(
        &self,
        speaking: &Speaking,
        origin: Option<&ChannelName>,
        through: Ordinal,
    ) -> Result<(), Refusal> {
        let through = through.0;
        if through == 0 {
            return if origin.is_none() {
                Ok(())
            } else {
                Err(Refusal::Malformed)
            };
        }
        let channel = self
            .channels
            .get(&speaking.channel)
            .ok_or(Refusal::UnknownChannel)?;
        let answered = match origin {
            None => channel,
            Some(origin) if *origin == speaking.channel => return Err(Refusal::Malformed),
            Some(origin) => self.channels.get(origin).ok_or(Refusal::UnknownChannel)?,
        };
        let is_remote = origin.unwrap_or(&speaking.channel).is_remote();
        let turns = channel
            .speaker(speaking.no)
            .and_then(|speaker| speaker.turns.get(&origin.cloned()));
        if turns.is_some_and(|turns| turns.first_outcomes(through).is_some()) {
            return Err(Refusal::Repeated);
        }
        let reads = answered
            .speaker(speaking.no)
            .is_some_and(|speaker| !speaker.readers.is_empty());
        if !speaking.operator && !reads {
            return Err(if origin.is_none() {
                Refusal::NoRight
            } else {
                Refusal::UnknownGrant
            });
        }
        // How far a peer's channel has come is not known here.
        if !is_remote && through > answered.window.latest() {
            return Err(Refusal::Malformed);
        }
        let cursor = match is_remote {
            true => channel.answered(speaking.no),
            false => channel.cursor(speaking.no),
        };
        match origin {
            None if through <= cursor => Err(Refusal::BehindCursor),
            Some(_) if turns.is_some_and(|turns| through <= turns.highest) => {
                Err(Refusal::KeyExpired)
            }
            _ => Ok(()),
        }
    }

    /// The message counts, if it is the next.
    pub(crate) fn fit(&self, speaking: &Speaking, offer: &Offer<'_>) -> Result<Fit, Refusal> {
        let channel = self
            .channels
            .get(&speaking.channel)
            .ok_or(Refusal::UnknownChannel)?;
        let terms = &speaking.terms;
        let is_remote = speaking.channel.is_remote();
        if offer.in_turn != (offer.key == 0) {
            return Err(Refusal::Malformed);
        }
        if is_remote && (offer.owner.is_some() || offer.deadline_ms != 0) {
            // Who decides is a persona of this realm, and the thread is of another.
            return Err(Refusal::Malformed);
        }
        let root_request = offer.parent.is_none() && offer.act == Act::Request;
        if offer.deadline_ms < 0
            || (offer.owner.is_some() && !root_request)
            || (offer.deadline_ms > 0 && offer.owner.is_none())
        {
            return Err(Refusal::Malformed);
        }
        if !offer.in_turn
            && let Some(speaker) = channel.speaker(speaking.no)
            && offer.key <= speaker.keys.highest
        {
            let remembered = speaker.keys.first_receipt(offer.key).is_some();
            return Err(if remembered {
                Refusal::Repeated
            } else {
                Refusal::KeyExpired
            });
        }
        if !terms.rights.has(Rights::WRITE) {
            return Err(Refusal::NoRight);
        }
        if !terms.acts.has(offer.act) {
            return Err(Refusal::ActNotAllowed);
        }
        if offer.bytes > PAYLOAD_BYTES_MAX || offer.bytes as u64 > u64::from(terms.bytes_max) {
            return Err(Refusal::TooLarge);
        }
        let mut cap = match is_remote {
            true => terms.hops,
            false => channel.settings.hops.min(terms.hops),
        };
        let mut root = None;
        let mut decides = false;
        if offer.parent.is_some() && !terms.rights.has(Rights::READ) {
            return Err(Refusal::NoRight);
        }
        if let (Some(parent), false) = (offer.parent, is_remote) {
            let (ordinal, parent) = channel.window.find(parent).ok_or(Refusal::ParentUnknown)?;
            if ordinal <= speaking.reach {
                return Err(Refusal::ParentUnknown);
            }
            if parent.author == speaking.no {
                return Err(Refusal::ParentOwn);
            }
            if ordinal <= channel.fenced {
                return Err(Refusal::ParentFenced);
            }
            let thread = channel.thread(parent.root).ok_or(Refusal::ParentUnknown)?;
            if thread.closed {
                return Err(Refusal::ThreadClosed);
            }
            cap = cap.min(parent.hops.checked_sub(1).ok_or(Refusal::HopsSpent)?);
            if let (Act::Decide, Some(owner)) = (offer.act, thread.owner) {
                if owner != speaking.no {
                    return Err(Refusal::NotOwner);
                }
                decides = true;
            }
            if !speaking.operator && thread.reactions >= channel.settings.reactions {
                return Err(Refusal::BreakerOpen);
            }
            root = Some(parent.root);
        } else if offer.parent.is_none() && !terms.rights.has(Rights::INITIATE) {
            return Err(Refusal::NoRight);
        }
        let hops = match offer.hops {
            Hops::AtMost(wish) => wish.min(cap),
            Hops::Stamped(hops) if hops > cap => return Err(Refusal::BadHops),
            Hops::Stamped(hops) => hops,
        };
        let owner = match offer.owner {
            None => None,
            Some(_) if channel.open_count() >= OPEN_DECISIONS_MAX => {
                return Err(Refusal::Overloaded);
            }
            Some(owner) => Some(self.personas.get(owner).ok_or(Refusal::UnknownPersona)?.no),
        };
        if self
            .chain(speaking.grant)
            .any(|(_, grant)| grant.used >= grant.terms.count)
        {
            return Err(Refusal::CountSpent);
        }
        Ok(Fit {
            hops,
            root,
            owner,
            decides,
        })
    }

    /// Whether a persona that this grant came through is killed, or a guest of a killed peer: nothing counts under it until that persona
    /// is started again.
    pub fn is_suspended(&self, grant: &crate::state::Grant) -> bool {
        self.chain(grant.parent).any(|(_, above)| {
            self.personas
                .get(&above.persona)
                .is_none_or(|lender| lender.killed || self.is_cut_off(&above.persona))
        })
    }

    /// By which grant its persona came to hold what this grant allows: the uppermost of those that it attenuated itself. Whether it
    /// may attenuate and lend is said there, so that what it narrows to pass on need not be passed on further.
    fn held_by<'a>(&'a self, grant: &'a crate::state::Grant) -> &'a crate::state::Grant {
        self.chain(grant.parent)
            .map(|(_, above)| above)
            .take_while(|above| above.persona == grant.persona)
            .last()
            .unwrap_or(grant)
    }

    /// A grant and those above it, from the bottom.
    pub(crate) fn chain(
        &self,
        bottom: Option<GrantId>,
    ) -> impl Iterator<Item = (GrantId, &crate::state::Grant)> {
        let step = |id: GrantId| self.grants.get(&id).map(|grant| (id, grant));
        std::iter::successors(bottom.and_then(step), move |(_, grant)| {
            grant.parent.and_then(step)
        })
    }
}
