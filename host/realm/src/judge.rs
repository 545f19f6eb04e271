//! What of the log counts: the one pure function that every host, receipt, delivery and verification goes by.
//!
//! In: the entries of one realm's log, each with its seq, in order. Promise: the verdicts and the state follow from
//! them alone, on every host alike; a void entry or message changes nothing that another verdict depends on, save that
//! an authority entry is spent with its first hearing, and that a standing turn moves its cursor whatever becomes
//! of its messages. Failure: none; bytes that are no entry are void like anything else.
//!
//! An entry is judged by realm, author and key, revocation, epoch, and then by its kind. A stop (the revocation of a
//! grant, a persona or a host) stands in whatever epoch it was stamped; all else stands in the current one.

use std::collections::BTreeSet;

use crate::act::{Act, Refusal};
use crate::channel::{Channel, Outcomes, PersonaNo, Receipt, Record, Settings};
use crate::entry::{
    Body, ChannelBody, Entry, GrantBody, Junk, KeyBody, KeySubject, LapseBody, Message, NoteBody,
    Object, REALM_FORMAT, RevokeBody, Revoked, Sealed, TurnBody,
};
use crate::ids::{
    ChannelName, ComponentHash, EntryId, Epoch, GrantId, HostId, MessageId, Ordinal, PersonaId,
    PublicKey, RealmId,
};
use crate::limits::{AUTHORITY_ENTRIES_PER_EPOCH_MAX, CHANNELS_MAX, HOSTS_MAX, PERSONAS_MAX};
use crate::rules::{Hops, Offer, Speaking};
use crate::state::{Grant, Host, Persona, State, placed};
use crate::terms::Rights;

/// What judge says of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Where it stands.
    pub seq: u64,
    /// Which it is; None when it is junk.
    pub id: Option<EntryId>,
    /// Whether it stands, or why it is void.
    pub verdict: Result<(), Refusal>,
    /// What became of each of its messages, when it is a turn. In a void turn that is no repeat, each is void for the
    /// turn's reason.
    pub messages: Vec<MessageVerdict>,
    /// What a host must act on, in order.
    pub changes: Vec<Change>,
}

/// What judge says of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageVerdict {
    /// It counts, and has this place.
    Counts(Placed),
    /// It does not count.
    Void(Refusal),
    /// Its key or turn counted before: the first receipt.
    Repeat(Placed),
}

/// A counting message's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its id.
    pub id: MessageId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its place among the channel's counting messages.
    pub ordinal: Ordinal,
    /// Its thread's root: its own id when it is one.
    pub thread: MessageId,
    /// The epoch it counts in.
    pub epoch: Epoch,
    /// The hops it has left.
    pub hops: u16,
    /// Where its entry stands in the log.
    pub seq: u64,
    /// Its place in the entry.
    pub index: u16,
    /// Who said it.
    pub author: PersonaId,
    /// What was meant.
    pub act: Act,
}

/// What a host must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The realm began.
    Genesis {
        /// Which realm.
        realm: RealmId,
    },
    /// A host has this key from here on.
    HostKeyed {
        /// Which.
        host: HostId,
        /// Its key.
        key: PublicKey,
        /// It is new to the realm.
        joined: bool,
    },
    /// A persona has this key and component from here on, and is not killed.
    PersonaKeyed {
        /// Which.
        persona: PersonaId,
        /// Its key.
        key: PublicKey,
        /// Its component.
        component: Option<ComponentHash>,
        /// It is new to the realm.
        joined: bool,
        /// It had been killed, and was started again.
        revived: bool,
    },
    /// A channel has these settings from here on.
    ChannelSet {
        /// Which.
        channel: ChannelName,
        /// Its settings.
        settings: Settings,
        /// It is new to the realm.
        declared: bool,
    },
    /// A grant stands from here on.
    Granted {
        /// Its id.
        id: GrantId,
        /// Its number.
        number: u64,
        /// To whom.
        persona: PersonaId,
        /// To what.
        object: Object,
        /// The grant it narrows.
        parent: Option<GrantId>,
    },
    /// Grants are cut.
    GrantRevoked {
        /// All of them, those below the one named included, by number.
        ids: Vec<GrantId>,
    },
    /// A persona is killed. What it was lent, and what it lent, follows as [`Change::GrantRevoked`] unless it was to last.
    PersonaKilled {
        /// Which.
        persona: PersonaId,
    },
    /// A host is revoked, and all its personas with it. Their grants follow as [`Change::GrantRevoked`].
    HostRevoked {
        /// Which.
        host: HostId,
    },
    /// An epoch ended. Grants and threads that it ends follow.
    Fenced {
        /// The epoch that ended.
        ended: Epoch,
        /// The epoch that began.
        began: Epoch,
        /// Nothing is handed out in it.
        hold: bool,
    },
    /// A persona answered through this ordinal.
    CursorMoved {
        /// Which.
        persona: PersonaId,
        /// On which channel.
        channel: ChannelName,
        /// Through which ordinal.
        through: Ordinal,
    },
    /// A thread waits for its owner's decision.
    ThreadOpened {
        /// Its root.
        root: MessageId,
        /// Who decides.
        owner: PersonaId,
        /// When it lapses, in milliseconds since 1970-01-01 UTC; 0: never.
        deadline_ms: i64,
        /// Its channel.
        channel: ChannelName,
        /// The host that admitted the root, and writes the lapse.
        host: HostId,
    },
    /// A thread was decided by its owner.
    Decided {
        /// Its root.
        root: MessageId,
        /// The deciding message.
        by: MessageId,
        /// Its channel.
        channel: ChannelName,
    },
    /// A thread was closed undecided, by its lapse or by a fence.
    Lapsed {
        /// Its root.
        root: MessageId,
        /// Its channel.
        channel: ChannelName,
    },
    /// A thread has had all its reactions.
    BreakerOpened {
        /// Its root.
        thread: MessageId,
        /// Its channel.
        channel: ChannelName,
    },
    /// Messages may be purged.
    Pruned {
        /// Of which channel.
        channel: ChannelName,
        /// Up to which ordinal.
        through: Ordinal,
    },
    /// The operator of a host accepted a loss.
    GapAccepted {
        /// Which host.
        host: HostId,
        /// First seq lost.
        first_seq: u64,
        /// Last seq lost.
        last_seq: u64,
    },
    /// Agents were ended.
    Incident {
        /// Which persona.
        persona: PersonaId,
        /// Why.
        reason: String,
        /// How many times.
        count: u32,
    },
}

/// Judges what stands at `seq`, and folds it into the state. `seq` must rise from call to call; one that does not is
/// void as [`Refusal::Repeated`] and leaves the state alone, because it was judged before.
pub fn judge(state: &mut State, seq: u64, stored: Result<&Sealed, &Junk>) -> Judged {
    let id = stored.ok().map(Sealed::id);
    let mut judged = Judged {
        seq,
        id,
        verdict: Ok(()),
        messages: Vec::new(),
        changes: Vec::new(),
    };
    let fresh = state.last_seq.is_none_or(|last| seq > last);
    judged.verdict = match stored {
        _ if !fresh => Err(Refusal::Repeated),
        Err(junk) => {
            state.tally.junk += 1;
            Err(junk.refusal())
        }
        Ok(sealed) => Judging {
            state,
            seq,
            sealed,
            entry: sealed.entry(),
            to: &mut judged,
        }
        .entry(),
    };
    if fresh {
        state.last_seq = Some(seq);
        state.tally.entries += 1;
        state.tally.void += u64::from(judged.verdict.is_err());
    }
    if let (Err(refusal), Ok(sealed)) = (judged.verdict, stored)
        && let Body::Turn(turn) = &sealed.entry().body
        && judged.messages.is_empty()
    {
        judged.messages = vec![MessageVerdict::Void(refusal); turn.messages.len()];
    }
    judged
}

struct Judging<'a> {
    state: &'a mut State,
    seq: u64,
    sealed: &'a Sealed,
    entry: &'a Entry,
    to: &'a mut Judged,
}

impl Judging<'_> {
    fn entry(&mut self) -> Result<(), Refusal> {
        let entry = self.entry;
        let Some(realm) = entry.realm else {
            return self.genesis();
        };
        if self.state.realm != Some(realm) {
            return Err(Refusal::WrongRealm);
        }
        self.standing()?;
        if entry.grant.is_some() && !matches!(entry.body, Body::Turn(_)) {
            return Err(Refusal::Malformed);
        }
        if !matches!(entry.body, Body::Revoke(_)) && entry.epoch != self.state.epoch {
            return Err(Refusal::StaleEpoch);
        }
        match &entry.body {
            Body::Key(body) => self.once(|this| this.key(body)),
            Body::Channel(body) => self.once(|this| this.channel(body)),
            Body::Grant(body) => self.once(|this| this.grant(body)),
            Body::Revoke(body) => self.revoke(body),
            Body::Turn(body) => self.turn(body),
            Body::Lapse(body) => self.lapse(body),
            Body::Note(body) => self.note(body),
        }
    }

    fn change(&mut self, change: Change) {
        self.to.changes.push(change);
    }

    /// The author may speak at all, and the signer is its current key.
    fn standing(&self) -> Result<(), Refusal> {
        let entry = self.entry;
        let host = self
            .state
            .hosts
            .get(&entry.host)
            .ok_or(Refusal::NotAuthorised)?;
        let (key, revoked) = match (&entry.author, &entry.body) {
            (Some(name), Body::Turn(_)) => {
                let id = PersonaId::new(entry.host, name.clone());
                let persona = self
                    .state
                    .personas
                    .get(&id)
                    .ok_or(Refusal::UnknownPersona)?;
                (persona.key, persona.killed)
            }
            (None, Body::Turn(_)) | (Some(_), _) => return Err(Refusal::NotAuthorised),
            (None, _) => (host.key, false),
        };
        if key != entry.signer {
            return Err(Refusal::WrongKey);
        }
        if revoked || host.revoked {
            return Err(Refusal::Revoked);
        }
        Ok(())
    }

    /// An entry that confers something is heard once: a copy of it, put into the log again by whoever can, must not
    /// bring back a key that was renewed, a persona that was killed, or a grant that was cut. Copies in later epochs
    /// are void as stale, so that the ids need not be kept for longer than the epoch.
    fn once(&mut self, hear: impl FnOnce(&mut Self) -> Result<(), Refusal>) -> Result<(), Refusal> {
        if self.state.seen.contains(&self.sealed.id()) {
            return Err(Refusal::Repeated);
        }
        if self.state.seen.len() >= AUTHORITY_ENTRIES_PER_EPOCH_MAX {
            return Err(Refusal::Overloaded);
        }
        let verdict = hear(self);
        // What met a bound may be tried again, and must not fill the memory that bounds are for.
        if verdict != Err(Refusal::Overloaded) {
            self.state.seen.insert(self.sealed.id());
        }
        verdict
    }

    fn genesis(&mut self) -> Result<(), Refusal> {
        let entry = self.entry;
        let Body::Key(KeyBody {
            subject,
            public_key,
            component: None,
            started: false,
            genesis: Some(genesis),
            origin: None,
        }) = &entry.body
        else {
            return Err(Refusal::WrongRealm);
        };
        if self.state.realm.is_some() {
            return Err(Refusal::Repeated);
        }
        let host = HostId::from(entry.signer);
        if entry.author.is_some()
            || entry.grant.is_some()
            || entry.host != host
            || *subject != KeySubject::Host(host)
            || *public_key != entry.signer
            || entry.epoch != Epoch(1)
            || genesis.format != REALM_FORMAT
        {
            return Err(Refusal::Malformed);
        }
        let realm = RealmId::from(self.sealed.id());
        self.state.realm = Some(realm);
        self.state.epoch = Epoch(1);
        self.state.fencers = genesis.fencers.iter().copied().collect();
        self.state.hosts.insert(
            host,
            Host {
                key: *public_key,
                revoked: false,
                keys: 1,
            },
        );
        self.change(Change::Genesis { realm });
        self.change(Change::HostKeyed {
            host,
            key: *public_key,
            joined: true,
        });
        Ok(())
    }

    fn key(&mut self, body: &KeyBody) -> Result<(), Refusal> {
        if body.genesis.is_some() {
            return Err(Refusal::Malformed);
        }
        match &body.subject {
            KeySubject::Host(_)
                if body.started || body.component.is_some() || body.origin.is_some() =>
            {
                Err(Refusal::Malformed)
            }
            KeySubject::Host(host) => self.host_key(*host, body.public_key),
            KeySubject::Persona(name) => {
                let origin = body.origin.as_deref();
                let at_home = origin.map(|origin| origin.persona.is_none());
                let expected = if name.is_peer() {
                    Some(true)
                } else {
                    name.is_guest().then_some(false)
                };
                if at_home != expected {
                    return Err(Refusal::Malformed);
                }
                self.persona_key(PersonaId::new(self.entry.host, name.clone()), body)
            }
        }
    }

    fn host_key(&mut self, host: HostId, key: PublicKey) -> Result<(), Refusal> {
        let before = match self.state.hosts.get(&host) {
            Some(known) if known.revoked => return Err(Refusal::Revoked),
            Some(_) if host != self.entry.host => return Err(Refusal::NotAuthorised),
            Some(known) if known.key == key => return Ok(()),
            Some(known) => known.keys,
            None if HostId::from(key) != host => return Err(Refusal::Malformed),
            None if self.state.hosts.len() >= HOSTS_MAX => return Err(Refusal::Overloaded),
            None => 0,
        };
        self.state.hosts.insert(
            host,
            Host {
                key,
                revoked: false,
                keys: before + 1,
            },
        );
        let joined = before == 0;
        self.change(Change::HostKeyed { host, key, joined });
        Ok(())
    }

    fn persona_key(&mut self, id: PersonaId, body: &KeyBody) -> Result<(), Refusal> {
        let peer = self.state.admit_guest(&id)?;
        let (joined, revived) = match self.state.personas.get_mut(&id) {
            Some(known) => {
                if known.killed && !body.started {
                    return Err(Refusal::Revoked);
                }
                if !known.killed
                    && known.key == body.public_key
                    && known.component == body.component
                    && known.origin == body.origin
                {
                    return Ok(());
                }
                let revived = known.killed;
                known.killed = false;
                known.keys += 1;
                known.key = body.public_key;
                known.component = body.component;
                known.origin = body.origin.clone();
                (false, revived)
            }
            None => {
                let no = self.state.roster.len();
                if no >= PERSONAS_MAX {
                    return Err(Refusal::Overloaded);
                }
                let persona = Persona {
                    key: body.public_key,
                    component: body.component,
                    killed: false,
                    lent: 0,
                    keys: 1,
                    decided: Default::default(),
                    no: PersonaNo::try_from(no).map_err(|_| Refusal::Overloaded)?,
                    grants: Default::default(),
                    origin: body.origin.clone(),
                    guests: 0,
                };
                if let Some(peer) = peer.and_then(|peer| self.state.personas.get_mut(&peer)) {
                    peer.guests += 1;
                }
                self.state.roster.push(id.clone());
                self.state.personas.insert(id.clone(), persona);
                (true, false)
            }
        };
        self.change(Change::PersonaKeyed {
            persona: id,
            key: body.public_key,
            component: body.component,
            joined,
            revived,
        });
        Ok(())
    }

    fn channel(&mut self, body: &ChannelBody) -> Result<(), Refusal> {
        let settings = Settings {
            hops: body.hops,
            reactions: body.reactions,
            carry: body.carry,
        };
        let full = self.state.channels.len() >= CHANNELS_MAX;
        let declared = match self.state.channels.get_mut(&body.name) {
            Some(channel) if channel.settings == settings => return Ok(()),
            Some(channel) => {
                channel.settings = settings;
                false
            }
            None if full => return Err(Refusal::Overloaded),
            None => {
                self.state
                    .channels
                    .insert(body.name.clone(), Channel::new(settings));
                true
            }
        };
        self.change(Change::ChannelSet {
            channel: body.name.clone(),
            settings,
            declared,
        });
        Ok(())
    }

    fn grant(&mut self, body: &GrantBody) -> Result<(), Refusal> {
        let effective = self.state.admit_grant(&self.entry.host, body)?;
        let state = &mut *self.state;
        let id = GrantId::from(self.sealed.id());
        // A guest is put on the record when it first speaks, and may answer what its peer could read and pass on to it by then.
        let brought_by = body.persona.brought_by();
        let brought = body
            .parent
            .and_then(|id| state.grants.get(&id))
            .filter(|parent| brought_by.as_ref() == Some(&parent.persona))
            .map(|parent| parent.first.0);
        let first = match &body.object {
            Object::Channel(name) => brought
                .or_else(|| state.channels.get(name).map(|c| c.window.latest()))
                .unwrap_or_default(),
            Object::Timer | Object::Service(_) | Object::Signer(_) => 0,
        };
        state.grant_numbers += 1;
        let number = state.grant_numbers;
        let persona = state
            .personas
            .get_mut(&body.persona)
            .ok_or(Refusal::UnknownPersona)?;
        persona.grants.insert(number, id);
        if body.parent.is_none() {
            persona.decided.insert(body.object.clone());
        }
        let no = persona.no;
        if let Object::Channel(name) = &body.object
            && effective.rights.has(Rights::READ)
            && let Some(channel) = state.channels.get_mut(name)
        {
            channel
                .speakers
                .entry(no)
                .or_default()
                .readers
                .insert((first, number));
        }
        let mut depth = 1;
        if let Some(parent) = body.parent.as_ref().and_then(|id| state.grants.get_mut(id)) {
            parent.children.insert(id);
            depth += parent.depth;
            if let Some(lender) = state.personas.get_mut(&parent.persona) {
                lender.lent += 1;
            }
        }
        let grant = Grant {
            number,
            persona: body.persona.clone(),
            object: body.object.clone(),
            terms: body.terms,
            effective,
            parent: body.parent,
            lasting: body.lasting,
            epoch: state.epoch,
            first: Ordinal(first),
            used: 0,
            depth,
            children: BTreeSet::new(),
        };
        state.grants.insert(id, grant);
        self.change(Change::Granted {
            id,
            number,
            persona: body.persona.clone(),
            object: body.object.clone(),
            parent: body.parent,
        });
        Ok(())
    }

    fn revoke(&mut self, body: &RevokeBody) -> Result<(), Refusal> {
        // A copy of a kill must not kill again what was started since, even if the kill itself came too late to do
        // anything. Unlike what confers, a stop is never void for want of room, so past the bound, and in later
        // epochs, a copy is another stop.
        if self.state.seen.contains(&self.sealed.id()) {
            return Err(Refusal::Repeated);
        }
        let verdict = self.stop(body);
        let heard = matches!(verdict, Ok(()) | Err(Refusal::Repeated));
        if heard && self.state.seen.len() < AUTHORITY_ENTRIES_PER_EPOCH_MAX {
            self.state.seen.insert(self.sealed.id());
        }
        verdict
    }

    fn stop(&mut self, body: &RevokeBody) -> Result<(), Refusal> {
        match &body.what {
            Revoked::Grant(grant) if self.state.cut.contains(grant) => {
                return Err(Refusal::Repeated);
            }
            Revoked::Grant(grant) if !self.state.grants.contains_key(grant) => {
                return Err(Refusal::UnknownGrant);
            }
            Revoked::Grant(grant) => self.cut([*grant]),
            Revoked::Persona(id) => {
                let persona = self
                    .state
                    .personas
                    .get_mut(id)
                    .ok_or(Refusal::UnknownPersona)?;
                if persona.killed {
                    return Err(Refusal::Repeated);
                }
                persona.killed = true;
                let mut held: Vec<GrantId> = persona.grants.values().copied().collect();
                if id.name.is_peer() {
                    // Its guests are nothing without it.
                    let guests = self.state.personas.iter();
                    let guests =
                        guests.filter(|(guest, _)| guest.brought_by().as_ref() == Some(id));
                    held.extend(guests.flat_map(|(_, guest)| guest.grants.values()));
                }
                self.change(Change::PersonaKilled {
                    persona: id.clone(),
                });
                self.cut_passed_on(&held);
            }
            Revoked::Host(id) => {
                let host = self.state.hosts.get_mut(id).ok_or(Refusal::NotAuthorised)?;
                if host.revoked {
                    return Err(Refusal::Repeated);
                }
                host.revoked = true;
                self.change(Change::HostRevoked { host: *id });
                let personas = self
                    .state
                    .personas
                    .iter()
                    .filter(|(persona, _)| persona.host == *id);
                let grants: Vec<GrantId> = personas
                    .flat_map(|(_, persona)| persona.grants.values().copied())
                    .collect();
                self.cut(grants);
            }
            Revoked::Fence { ends, hold } => return self.fence(*ends, *hold),
        }
        Ok(())
    }

    /// Of the grants that a killed persona held, cuts what it was lent, and what it attenuated and lent. What was to last stays, and is
    /// suspended with it.
    fn cut_passed_on(&mut self, held: &[GrantId]) {
        let grants = &self.state.grants;
        let passed_on = |id: &&GrantId| {
            grants
                .get(id)
                .is_some_and(|grant| grant.parent.is_some() && !grant.lasting)
        };
        let below = held
            .iter()
            .filter_map(|id| grants.get(id))
            .flat_map(|grant| &grant.children);
        let dying: BTreeSet<GrantId> = held
            .iter()
            .chain(below)
            .filter(passed_on)
            .copied()
            .collect();
        self.cut(dying);
    }

    fn cut(&mut self, grants: impl IntoIterator<Item = GrantId>) {
        let mut cut: Vec<(u64, GrantId)> = Vec::new();
        for grant in grants {
            cut.extend(self.state.cut(grant));
        }
        if !cut.is_empty() {
            cut.sort_unstable();
            self.change(Change::GrantRevoked {
                ids: cut.into_iter().map(|(_, id)| id).collect(),
            });
        }
    }

    fn fence(&mut self, ends: Epoch, hold: bool) -> Result<(), Refusal> {
        if !self.state.may_fence(&self.entry.host) {
            return Err(Refusal::NotAuthorised);
        }
        if ends < self.state.epoch {
            return Err(Refusal::Repeated);
        }
        if ends > self.state.epoch {
            return Err(Refusal::Malformed);
        }
        let began = Epoch(ends.0 + 1);
        self.state.epoch = began;
        self.state.held = hold;
        self.state.seen.clear();
        self.state
            .personas
            .values_mut()
            .for_each(|persona| persona.lent = 0);
        self.change(Change::Fenced {
            ended: ends,
            began,
            hold,
        });
        let lent = self
            .state
            .grants
            .iter()
            .filter(|(_, grant)| grant.parent.is_some() && !grant.lasting);
        let lent: Vec<GrantId> = lent.map(|(id, _)| *id).collect();
        self.cut(lent);
        for (name, channel) in &mut self.state.channels {
            for root in channel.fence() {
                self.to.changes.push(Change::Lapsed {
                    root,
                    channel: name.clone(),
                });
            }
        }
        Ok(())
    }

    fn turn(&mut self, body: &TurnBody) -> Result<(), Refusal> {
        let name = self.entry.author.clone().ok_or(Refusal::NotAuthorised)?;
        let persona = PersonaId::new(self.entry.host, name);
        let speaking = self
            .state
            .speaking(&persona, self.entry.grant.as_ref(), &body.channel)?;
        if body.channel.is_remote() != (body.peer_epoch > Epoch(0)) {
            return Err(Refusal::Malformed);
        }
        let in_turn = body.through.0 > 0;
        if !in_turn && body.messages.is_empty() {
            return Err(Refusal::Malformed);
        }
        let answers = self
            .state
            .answers(&speaking, body.origin.as_ref(), body.through);
        if answers == Err(Refusal::Repeated) {
            let first =
                self.state
                    .turn_repeat(&persona, &body.channel, body.origin.as_ref(), body.through);
            self.to.messages = first.unwrap_or_default();
            self.to
                .messages
                .resize(body.messages.len(), MessageVerdict::Void(Refusal::Repeated));
        }
        answers?;
        let mut outcomes = Outcomes::new();
        for (index, message) in body.messages.iter().enumerate() {
            let outcome = self.message(&speaking, index, message, in_turn);
            let verdict = match &outcome {
                Ok(receipt) => MessageVerdict::Counts(placed(&persona, &body.channel, receipt)),
                Err(Refusal::Repeated) => {
                    match self.state.key_repeat(&persona, &body.channel, message.key) {
                        Some(first) => MessageVerdict::Repeat(first),
                        None => MessageVerdict::Void(Refusal::Repeated),
                    }
                }
                Err(refusal) => MessageVerdict::Void(*refusal),
            };
            self.to.messages.push(verdict);
            outcomes.push(outcome);
        }
        if in_turn {
            if let Some(channel) = self.state.channels.get_mut(&body.channel) {
                let speaker = channel.speakers.entry(speaking.no).or_default();
                speaker
                    .turns
                    .entry(body.origin.clone())
                    .or_default()
                    .keep(body.through.0, outcomes);
            }
            if body.origin.is_none() {
                let channel = body.channel.clone();
                self.change(Change::CursorMoved {
                    persona,
                    channel,
                    through: body.through,
                });
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        speaking: &Speaking,
        index: usize,
        message: &Message,
        in_turn: bool,
    ) -> Result<Receipt, Refusal> {
        let offer = Offer {
            act: message.act,
            parent: message.parent.as_ref(),
            hops: Hops::Stamped(message.hops),
            key: message.key,
            bytes: self.sealed.payload_bytes(index),
            owner: message.owner.as_ref(),
            deadline_ms: message.deadline_ms,
            in_turn,
        };
        let fit = self.state.fit(speaking, &offer)?;
        let drawn: Vec<GrantId> = self.state.chain(speaking.grant).map(|(id, _)| id).collect();
        for id in drawn {
            if let Some(grant) = self.state.grants.get_mut(&id) {
                grant.used += 1;
            }
        }
        let record = Record {
            id: self.sealed.message_id(index),
            root: 0,
            author: speaking.no,
            act: message.act,
            hops: fit.hops,
            epoch: self.state.epoch.0,
            seq: self.seq,
            index: u16::try_from(index).map_err(|_| Refusal::Malformed)?,
        };
        let channel = self
            .state
            .channels
            .get_mut(&speaking.channel)
            .ok_or(Refusal::UnknownChannel)?;
        let (receipt, opened) = channel.place(record, fit.root, fit.owner, message.deadline_ms);
        if !in_turn {
            channel
                .speakers
                .entry(speaking.no)
                .or_default()
                .keys
                .keep(message.key, receipt);
        }
        let name = &speaking.channel;
        if let (true, Some(root)) = (fit.decides, fit.root) {
            channel.close(root);
            self.change(Change::Decided {
                root: receipt.thread,
                by: receipt.id,
                channel: name.clone(),
            });
        }
        if let Some(owner) = &message.owner {
            self.change(Change::ThreadOpened {
                root: receipt.id,
                owner: owner.clone(),
                deadline_ms: message.deadline_ms,
                channel: name.clone(),
                host: self.entry.host,
            });
        }
        // What answers what on a remote channel is the peer's to say, and so are its breakers.
        if opened && !name.is_remote() {
            self.change(Change::BreakerOpened {
                thread: receipt.thread,
                channel: name.clone(),
            });
        }
        Ok(receipt)
    }

    fn lapse(&mut self, body: &LapseBody) -> Result<(), Refusal> {
        let channel = self
            .state
            .channels
            .get(&body.channel)
            .ok_or(Refusal::UnknownChannel)?;
        let thread = channel.open_thread(&body.thread).ok_or(Refusal::NotDue)?;
        let host = self
            .state
            .named(thread.starter)
            .ok_or(Refusal::NotDue)?
            .host;
        // The threads of a revoked host would never end otherwise.
        let orphaned = self.state.hosts.get(&host).is_some_and(|host| host.revoked);
        if (host != self.entry.host && !orphaned)
            || thread.deadline_ms == 0
            || self.entry.time_ms < thread.deadline_ms
        {
            return Err(Refusal::NotDue);
        }
        if let Some(channel) = self.state.channels.get_mut(&body.channel) {
            channel.close_open(&body.thread);
        }
        self.change(Change::Lapsed {
            root: body.thread,
            channel: body.channel.clone(),
        });
        Ok(())
    }

    fn note(&mut self, body: &NoteBody) -> Result<(), Refusal> {
        match body {
            // Of what stands before it, and of something. Whether that is so is for each reader to compare with what it has.
            NoteBody::Tree { size, .. } => {
                if *size == 0 || *size >= self.seq {
                    return Err(Refusal::Malformed);
                }
            }
            NoteBody::Prune {
                channel: name,
                through,
            } => {
                let channel = self
                    .state
                    .channels
                    .get_mut(name)
                    .ok_or(Refusal::UnknownChannel)?;
                if through.0 <= channel.pruned {
                    return Err(Refusal::Repeated);
                }
                if through.0 > channel.window.latest() {
                    return Err(Refusal::Malformed);
                }
                channel.pruned = through.0;
                self.change(Change::Pruned {
                    channel: name.clone(),
                    through: *through,
                });
            }
            NoteBody::Gap {
                first_seq,
                last_seq,
                ..
            } => {
                if first_seq > last_seq {
                    return Err(Refusal::Malformed);
                }
                let host = self.entry.host;
                self.change(Change::GapAccepted {
                    host,
                    first_seq: *first_seq,
                    last_seq: *last_seq,
                });
            }
            NoteBody::Incident {
                persona,
                reason,
                count,
            } => {
                let persona = PersonaId::new(self.entry.host, persona.clone());
                self.change(Change::Incident {
                    persona,
                    reason: reason.clone(),
                    count: *count,
                });
            }
            // Of turns that stand before it. Whether that is what they were rests on the host that says so.
            NoteBody::Stubs { channel, stubs } => {
                if !self.state.channels.contains_key(channel) {
                    return Err(Refusal::UnknownChannel);
                }
                let mut last = 0;
                for stub in stubs {
                    if stub.seq <= last || stub.seq >= self.seq {
                        return Err(Refusal::Malformed);
                    }
                    last = stub.seq;
                }
            }
            NoteBody::Marker { .. } => {}
        }
        Ok(())
    }
}
