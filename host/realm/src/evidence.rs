//! A proof of one entry that stands by itself: who said it, by what authority, in which epoch, and that it stands in a log of which a
//! host signed a checkpoint.
//!
//! In, to make one: a whole record as it is judged, and a checkpoint of it. In, to check one: the proof alone. Out: [`Shown`]: exactly what
//! the proof shows. Promise: the entries of a proof are judged by the same [`judge`](crate::judge()) as a log, as a log of which
//! the rest is hidden; checking takes any proof, in time in proportion to it.
//! Failure: [`Refuted`] for what is no proof; [`NoProof`] for what can't be proved.
//!
//! What such a proof can't show is what is not in it: that nothing between took back what it rests on. So it never says that a message
//! counts, only that nothing in the proof makes it void. Who wants to know more verifies the record.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::act::Refusal;
use crate::audit::Stored;
use crate::checkpoint::{Cosignature, Signed};
use crate::entry::{
    Body, Entry, Junk, KeyBody, KeySubject, Message, RevokeBody, Revoked, Sealed, TurnBody,
};
use crate::ids::{Epoch, GrantId, HostId, MessageId, PersonaId, PublicKey, RealmId};
use crate::judge::{Change, Judged, judge};
use crate::key::Verifier;
use crate::limits::{PAYLOAD_BYTES_MAX, PROOF_ENTRIES_MAX};
use crate::merkle::{self, BadProof, Hash, Tree};
use crate::state::State;
use crate::terms::{Rights, Terms};

/// One entry of a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhibit {
    /// Its place in the log.
    pub seq: u64,
    /// What is stored there.
    pub stored: Bytes,
    /// The way from it to the checkpoint's root.
    pub path: Vec<Hash>,
}

/// A proof of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The place of the entry that is proved.
    pub subject: u64,
    /// Which message of it; None for all that it says.
    pub message: Option<usize>,
    /// What the log was.
    pub checkpoint: Signed,
    /// The entry, those it rests on, and the fences around it, by place.
    pub exhibits: Vec<Exhibit>,
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refuted {
    /// More than any proof has.
    #[error("the proof has {0} entries, {PROOF_ENTRIES_MAX} are allowed")]
    TooLarge(usize),
    /// The entries are not in order.
    #[error("entry {0} does not stand behind the one before it in the proof")]
    Disordered(u64),
    /// The entry is not in the checkpoint's tree.
    #[error("entry {seq} is not in the log of this checkpoint: {why}")]
    NotIncluded {
        /// Which.
        seq: u64,
        /// Why.
        why: BadProof,
    },
    /// It is no entry.
    #[error("entry {seq}: {junk}")]
    Junk {
        /// Which.
        seq: u64,
        /// Why.
        junk: Junk,
    },
    /// It is of another realm than was asked for, or than the checkpoint.
    #[error("the proof is of realm {found}, not of {expected}")]
    OtherRealm {
        /// What it is of.
        found: RealmId,
        /// What it should be of.
        expected: RealmId,
    },
    /// It doesn't begin with the realm's first entry.
    #[error("the proof doesn't begin with the first entry of a realm")]
    NoGenesis,
    /// Something that the proof rests on is void.
    #[error("entry {seq}, on which the proof rests, is void: {refusal}")]
    Void {
        /// Which.
        seq: u64,
        /// Why.
        refusal: Refusal,
    },
    /// What is to be proved isn't there.
    #[error("entry {0}, which is to be proved, is not in the proof")]
    NoSubject(u64),
    /// There is no such message.
    #[error("entry {seq} has no message {index}")]
    NoMessage {
        /// Which entry.
        seq: u64,
        /// Which message.
        index: usize,
    },
    /// The checkpoint is nobody's.
    #[error("the checkpoint is signed by no host whose key the proof shows")]
    Unsigned,
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProof {
    /// It isn't in the record.
    #[error("the record holds no such entry or message")]
    NoSubject,
    /// What stands there is no entry.
    #[error("what stands at place {seq} is no entry: {junk}")]
    Junk {
        /// Where.
        seq: u64,
        /// Why.
        junk: Junk,
    },
    /// What was said there is gone.
    #[error("what was said in entry {0} was pruned, so that nobody can show it any more")]
    Pruned(u64),
    /// The checkpoint is older.
    #[error(
        "the checkpoint covers {size} places, and the entry stands at {seq} (take a newer one)"
    )]
    NotCovered {
        /// How many it covers.
        size: u64,
        /// Where the entry stands.
        seq: u64,
    },
    /// The checkpoint is another log's.
    #[error("the record is not that of the checkpoint, or ends before it (agora verify says more)")]
    OtherTree,
    /// The proof would not hold.
    #[error("the proof would not hold: {0}")]
    WouldNotHold(#[from] Refuted),
}

/// What a proof shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The realm.
    pub realm: RealmId,
    /// How many places the checkpoint covers.
    pub size: u64,
    /// Who signed the checkpoint.
    pub hosts: Vec<(HostId, PublicKey)>,
    /// The witnesses that signed it too, one signature of each. Whose keys these are is for the auditor to know.
    pub witnesses: Vec<Cosignature>,
    /// Every key of a host of the realm that the proof shows.
    pub host_keys: BTreeSet<PublicKey>,
    /// Where the entry stands.
    pub seq: u64,
    /// The entry.
    pub sealed: Sealed,
    /// Which of its messages is meant; None: all of them.
    pub message: Option<usize>,
    /// Why it is void, if what is shown makes it so.
    pub verdict: Result<(), Refusal>,
    /// Where its author's key was introduced.
    pub keyed: Option<u64>,
    /// Where each host's keys were introduced.
    pub hosts_keyed: Vec<(HostId, u64)>,
    /// The grants it is spoken under, from its own up, and where each was issued.
    pub grants: Vec<(GrantId, u64, PersonaId)>,
    /// What they allow together.
    pub terms: Option<Terms>,
    /// The fence that began its epoch.
    pub began: Option<u64>,
    /// The fence that ended it, if the proof has it.
    pub ended: Option<u64>,
}

impl Proof {
    /// Checks it, and says what it shows. `realm`: what it must be of, if that is known.
    ///
    /// # Errors
    /// It proves nothing.
    pub fn check(&self, realm: Option<RealmId>) -> Result<Shown, Refuted> {
        if self.exhibits.len() > PROOF_ENTRIES_MAX {
            return Err(Refuted::TooLarge(self.exhibits.len()));
        }
        let checkpoint = self.checkpoint.checkpoint();
        if let Some(expected) = realm
            && expected != checkpoint.realm
        {
            let found = checkpoint.realm;
            return Err(Refuted::OtherRealm { found, expected });
        }
        let mut checking = Checking::default();
        let mut verifier = Verifier::new();
        let mut last = 0;
        for exhibit in &self.exhibits {
            let seq = exhibit.seq;
            if seq <= last {
                return Err(Refuted::Disordered(seq));
            }
            let stored = Stored::open(seq, exhibit.stored.clone(), &mut verifier);
            let index = seq - 1;
            let (size, root) = (checkpoint.size, &checkpoint.root);
            merkle::check_inclusion(&stored.leaf, index, size, root, &exhibit.path)
                .map_err(|why| Refuted::NotIncluded { seq, why })?;
            let sealed = stored.entry.map_err(|junk| Refuted::Junk { seq, junk })?;
            if last == 0 {
                checking.begins(seq, &sealed, checkpoint.realm)?;
                if seq == self.subject {
                    checking.subject = Some((seq, sealed, Ok(())));
                }
            } else if seq == self.subject {
                checking.subject(seq, sealed);
            } else {
                checking.rests_on(seq, &sealed)?;
            }
            last = seq;
        }
        checking.shown(self)
    }
}

/// A proof being checked: its entries, judged as a log of which the rest is hidden.
#[derive(Default)]
struct Checking {
    state: State,
    /// The entry that is proved, and whether what comes before it makes it void.
    subject: Option<(u64, Sealed, Result<(), Refusal>)>,
    hosts: BTreeMap<PublicKey, HostId>,
    hosts_keyed: Vec<(HostId, u64)>,
    personas_keyed: BTreeMap<PersonaId, u64>,
    granted: BTreeMap<GrantId, u64>,
    /// By the epoch that began.
    fences: BTreeMap<Epoch, u64>,
    /// What the subject is spoken under, as it stood.
    grants: Vec<(GrantId, u64, PersonaId)>,
    terms: Option<Terms>,
}

impl Checking {
    fn begins(&mut self, seq: u64, sealed: &Sealed, realm: RealmId) -> Result<(), Refuted> {
        let found = RealmId::from(sealed.id());
        if seq != 1 || sealed.entry().realm.is_some() {
            return Err(Refuted::NoGenesis);
        }
        if found != realm {
            let expected = realm;
            return Err(Refuted::OtherRealm { found, expected });
        }
        self.rests_on(seq, sealed)
    }

    /// Something that the proof rests on must stand, as far as the proof shows.
    fn rests_on(&mut self, seq: u64, sealed: &Sealed) -> Result<(), Refuted> {
        let judged = judge(&mut self.state, seq, Ok(sealed));
        judged
            .verdict
            .map_err(|refusal| Refuted::Void { seq, refusal })?;
        self.learn(seq, &judged);
        Ok(())
    }

    fn learn(&mut self, seq: u64, judged: &Judged) {
        for change in &judged.changes {
            match change {
                Change::HostKeyed { host, key, .. } => {
                    self.hosts.insert(*key, *host);
                    self.hosts_keyed.push((*host, seq));
                }
                Change::PersonaKeyed { persona, .. } => {
                    self.personas_keyed.insert(persona.clone(), seq);
                }
                Change::Granted { id, .. } => {
                    self.granted.insert(*id, seq);
                }
                Change::Fenced { began, .. } => {
                    self.fences.insert(*began, seq);
                }
                _ => {}
            }
        }
    }

    fn subject(&mut self, seq: u64, sealed: Sealed) {
        let verdict = match &sealed.entry().body {
            // What a turn answers, and what its channel holds, is hidden: only what doesn't depend on that is asked.
            Body::Turn(turn) => {
                self.spoken_under(sealed.entry().grant);
                may_say(&self.state, sealed.entry(), turn)
            }
            _ => {
                let judged = judge(&mut self.state, seq, Ok(&sealed));
                self.learn(seq, &judged);
                judged.verdict
            }
        };
        self.subject = Some((seq, sealed, verdict));
    }

    fn spoken_under(&mut self, grant: Option<GrantId>) {
        let mut next = grant;
        while let Some((id, grant)) = next.and_then(|id| Some((id, self.state.grant(&id)?))) {
            let seq = self.granted.get(&id).copied().unwrap_or_default();
            self.terms.get_or_insert(grant.effective);
            self.grants.push((id, seq, grant.persona.clone()));
            next = grant.parent;
        }
    }

    fn shown(self, proof: &Proof) -> Result<Shown, Refuted> {
        let checkpoint = proof.checkpoint.checkpoint();
        let Some((seq, sealed, verdict)) = self.subject else {
            return Err(Refuted::NoSubject(proof.subject));
        };
        if let Some(index) = proof.message {
            let there =
                matches!(&sealed.entry().body, Body::Turn(turn) if index < turn.messages.len());
            if !there {
                return Err(Refuted::NoMessage { seq, index });
            }
        }
        let signed = proof.checkpoint.hosts();
        let hosts: Vec<_> = signed
            .iter()
            .filter_map(|key| Some((*self.hosts.get(key)?, *key)))
            .collect();
        if hosts.is_empty() {
            return Err(Refuted::Unsigned);
        }
        let entry = sealed.entry();
        let keyed = match &entry.author {
            Some(name) => {
                let persona = PersonaId::new(entry.host, name.clone());
                self.personas_keyed.get(&persona).copied()
            }
            None => None,
        };
        let epoch = entry.epoch;
        Ok(Shown {
            realm: checkpoint.realm,
            size: checkpoint.size,
            hosts,
            witnesses: proof.checkpoint.witnesses(),
            host_keys: self.hosts.into_keys().collect(),
            seq,
            message: proof.message,
            verdict,
            keyed,
            hosts_keyed: self.hosts_keyed,
            grants: self.grants,
            terms: self.terms,
            began: self.fences.get(&epoch).copied(),
            ended: self.fences.get(&Epoch(epoch.0.saturating_add(1))).copied(),
            sealed,
        })
    }
}

/// Whether this turn may be said, as far as that doesn't depend on what else its channel holds.
fn may_say(state: &State, entry: &Entry, turn: &TurnBody) -> Result<(), Refusal> {
    if entry.realm != state.realm() {
        return Err(Refusal::WrongRealm);
    }
    let name = entry.author.clone().ok_or(Refusal::NotAuthorised)?;
    let persona = PersonaId::new(entry.host, name);
    let known = state.persona(&persona).ok_or(Refusal::UnknownPersona)?;
    if known.key != entry.signer {
        return Err(Refusal::WrongKey);
    }
    let speaking = state.speaking(&persona, entry.grant.as_ref(), &turn.channel)?;
    if entry.epoch != state.epoch() {
        return Err(Refusal::StaleEpoch);
    }
    let terms = match speaking.grant.and_then(|id| state.grant(&id)) {
        Some(grant) => grant.effective,
        None => Terms::ALL,
    };
    let channel = state
        .channel(&turn.channel)
        .ok_or(Refusal::UnknownChannel)?;
    if turn.channel.is_remote() != (turn.peer_epoch > Epoch(0)) {
        return Err(Refusal::Malformed);
    }
    let hops = match turn.channel.is_remote() {
        true => terms.hops,
        false => channel.settings.hops.min(terms.hops),
    };
    let owned = |message: &Message| message.owner.is_some() || message.deadline_ms != 0;
    if turn.channel.is_remote() && turn.messages.iter().any(owned) {
        return Err(Refusal::Malformed);
    }
    turn.messages
        .iter()
        .try_for_each(|message| fits(message, &terms, hops))
}

/// What a message needs of the terms alone.
fn fits(message: &Message, terms: &Terms, hops: u16) -> Result<(), Refusal> {
    let needed = match message.parent {
        Some(_) => Rights::READ,
        None => Rights::INITIATE,
    };
    if !terms.rights.has(Rights::WRITE) || !terms.rights.has(needed) {
        return Err(Refusal::NoRight);
    }
    if !terms.acts.has(message.act) {
        return Err(Refusal::ActNotAllowed);
    }
    let bytes = message.payload.len();
    if bytes > PAYLOAD_BYTES_MAX || bytes as u64 > u64::from(terms.bytes_max) {
        return Err(Refusal::TooLarge);
    }
    if message.hops > hops {
        return Err(Refusal::BadHops);
    }
    Ok(())
}

/// What is to be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that stands at a place.
    Place(u64),
    /// One message.
    Message(MessageId),
}

/// Gathers what a proof needs while a record is judged.
#[derive(Debug)]
pub struct Gathering {
    wanted: Wanted,
    tree: Tree,
    /// Everything that gives or takes authority, and stands.
    authority: BTreeMap<u64, Sealed>,
    subject: Option<(u64, Option<usize>, Result<Sealed, Junk>)>,
    /// The first fence behind the subject.
    after: Option<u64>,
}

impl Gathering {
    /// Nothing gathered yet.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            tree: Tree::new(),
            authority: BTreeMap::new(),
            subject: None,
            after: None,
        }
    }

    /// Takes what stands at the next place, and what judge said of it.
    pub fn take(&mut self, stored: &Stored, judged: &Judged) {
        self.tree.push(stored.leaf);
        let seq = stored.seq;
        if self.subject.is_none()
            && let Some(message) = self.is_wanted(stored)
        {
            self.subject = Some((seq, message, stored.entry.clone()));
        }
        if let (Ok(sealed), Ok(())) = (&stored.entry, judged.verdict) {
            match &sealed.entry().body {
                Body::Key(_) | Body::Channel(_) | Body::Grant(_) | Body::Revoke(_) => {
                    self.authority.insert(seq, sealed.clone());
                }
                _ => {}
            }
            let fenced = judged
                .changes
                .iter()
                .any(|change| matches!(change, Change::Fenced { .. }));
            let behind = self.subject.as_ref().is_some_and(|(at, ..)| *at < seq);
            if fenced && behind && self.after.is_none() {
                self.after = Some(seq);
            }
        }
    }

    /// Whether this is it; and which message of it, if one is wanted.
    fn is_wanted(&self, stored: &Stored) -> Option<Option<usize>> {
        match self.wanted {
            Wanted::Place(seq) => (seq == stored.seq).then_some(None),
            Wanted::Message(id) => {
                let sealed = stored.entry.as_ref().ok()?;
                let Body::Turn(turn) = &sealed.entry().body else {
                    return None;
                };
                let found = (0..turn.messages.len()).find(|at| sealed.message_id(*at) == id)?;
                Some(Some(found))
            }
        }
    }

    /// Where what is wanted stands, if it has come by.
    pub fn place(&self) -> Option<u64> {
        self.subject.as_ref().map(|(seq, ..)| *seq)
    }

    /// The proof, in the log of this checkpoint. It is checked before it is given.
    ///
    /// # Errors
    /// There is none.
    pub fn prove(&self, checkpoint: Signed) -> Result<Proof, NoProof> {
        let (subject, message, entry) = self.subject.as_ref().ok_or(NoProof::NoSubject)?;
        let (seq, size) = (*subject, checkpoint.checkpoint().size);
        let sealed = entry.as_ref().map_err(|junk| NoProof::Junk {
            seq,
            junk: junk.clone(),
        })?;
        if sealed.is_purged() {
            return Err(NoProof::Pruned(seq));
        }
        if seq > size {
            return Err(NoProof::NotCovered { size, seq });
        }
        if self.tree.root(size) != Some(checkpoint.checkpoint().root) {
            return Err(NoProof::OtherTree);
        }
        let mut places = BTreeSet::from([1, seq]);
        self.entry(seq, sealed, &mut places);
        let ends = |sealed: &Sealed| {
            matches!(
                &sealed.entry().body,
                Body::Revoke(RevokeBody {
                    what: Revoked::Fence { .. },
                    ..
                })
            )
        };
        let fences = self.authority.range(..seq).filter(|(_, fence)| ends(fence));
        let after = self
            .after
            .iter()
            .filter_map(|at| self.authority.get_key_value(at));
        for (at, fence) in fences.chain(after).filter(|(at, _)| **at <= size) {
            places.insert(*at);
            self.host(fence.entry().host, *at, &mut places);
        }
        for key in checkpoint.hosts() {
            let keyed = self.authority.range(..=size).find(|(_, sealed)| {
                matches!(&sealed.entry().body, Body::Key(KeyBody { subject: KeySubject::Host(_), public_key, .. }) if *public_key == key)
            });
            if let Some((at, sealed)) = keyed
                && let Body::Key(KeyBody {
                    subject: KeySubject::Host(host),
                    ..
                }) = &sealed.entry().body
            {
                self.host(*host, at + 1, &mut places);
            }
        }
        let exhibit = |at: u64| {
            let stored = match at == seq {
                true => sealed.stored(),
                false => self.authority.get(&at)?.stored(),
            };
            Some(Exhibit {
                seq: at,
                stored: stored.clone(),
                path: self.tree.inclusion(at - 1, size)?,
            })
        };
        let proof = Proof {
            subject: seq,
            message: *message,
            checkpoint,
            exhibits: places.into_iter().filter_map(exhibit).collect(),
        };
        proof.check(None)?;
        Ok(proof)
    }

    /// What an entry at a place rests on.
    fn entry(&self, at: u64, sealed: &Sealed, places: &mut BTreeSet<u64>) {
        let entry = sealed.entry();
        self.host(entry.host, at, places);
        if let Some(name) = &entry.author {
            self.persona(&PersonaId::new(entry.host, name.clone()), at, places);
        }
        if let Some(grant) = entry.grant {
            self.grant(grant, at, places);
        }
        match &entry.body {
            Body::Turn(turn) => {
                let declared = self.authority.range(..at).rev().find(
                    |(_, sealed)| matches!(&sealed.entry().body, Body::Channel(body) if body.name == turn.channel),
                );
                self.rest(declared, places);
            }
            Body::Grant(body) => {
                self.persona(&body.persona, at, places);
                if let crate::entry::Object::Channel(name) = &body.object {
                    let declared = self.authority.range(..at).rev().find(
                        |(_, sealed)| matches!(&sealed.entry().body, Body::Channel(body) if body.name == *name),
                    );
                    self.rest(declared, places);
                }
                if let Some(parent) = body.parent {
                    self.grant(parent, at, places);
                }
            }
            Body::Key(KeyBody {
                subject: KeySubject::Persona(name),
                ..
            }) => {
                // A guest comes after its peer.
                if let Some(peer) = PersonaId::new(entry.host, name.clone()).brought_by() {
                    self.persona(&peer, at, places);
                }
            }
            Body::Revoke(body) => match &body.what {
                Revoked::Grant(grant) => self.grant(*grant, at, places),
                Revoked::Persona(persona) => self.persona(persona, at, places),
                Revoked::Host(host) => self.host(*host, at, places),
                Revoked::Fence { .. } => {}
            },
            _ => {}
        }
    }

    /// Takes an entry up, with what it rests on.
    fn rest(&self, found: Option<(&u64, &Sealed)>, places: &mut BTreeSet<u64>) {
        if let Some((at, sealed)) = found
            && places.insert(*at)
        {
            self.entry(*at, sealed, places);
        }
    }

    /// All keys of a host before a place, and its revocation.
    fn host(&self, host: HostId, before: u64, places: &mut BTreeSet<u64>) {
        let about =
            self.authority
                .range(..before)
                .filter(|(_, sealed)| match &sealed.entry().body {
                    Body::Key(KeyBody {
                        subject: KeySubject::Host(keyed),
                        ..
                    }) => *keyed == host,
                    Body::Revoke(RevokeBody {
                        what: Revoked::Host(revoked),
                        ..
                    }) => *revoked == host,
                    _ => false,
                });
        about.for_each(|found| self.rest(Some(found), places));
    }

    /// The latest key of a persona before a place, and its kill.
    fn persona(&self, persona: &PersonaId, before: u64, places: &mut BTreeSet<u64>) {
        if let Some(peer) = persona.brought_by() {
            self.persona(&peer, before, places);
        }
        let is_key = |sealed: &Sealed| match &sealed.entry().body {
            Body::Key(KeyBody {
                subject: KeySubject::Persona(name),
                ..
            }) => sealed.entry().host == persona.host && *name == persona.name,
            _ => false,
        };
        let Some((keyed, sealed)) = self
            .authority
            .range(..before)
            .rev()
            .find(|(_, s)| is_key(s))
        else {
            return;
        };
        self.rest(Some((keyed, sealed)), places);
        let killed = self.authority.range(keyed + 1..before).find(|(_, sealed)| {
            matches!(&sealed.entry().body, Body::Revoke(RevokeBody { what: Revoked::Persona(killed), .. }) if killed == persona)
        });
        self.rest(killed, places);
    }

    /// A grant, those above it, and what cut it before a place.
    fn grant(&self, grant: GrantId, before: u64, places: &mut BTreeSet<u64>) {
        let granted = self
            .authority
            .range(..before)
            .find(|(_, sealed)| GrantId::from(sealed.id()) == grant);
        let Some((at, _)) = granted else { return };
        self.rest(granted, places);
        let cut = self.authority.range(at + 1..before).find(|(_, sealed)| {
            matches!(&sealed.entry().body, Body::Revoke(RevokeBody { what: Revoked::Grant(cut), .. }) if *cut == grant)
        });
        self.rest(cut, places);
    }
}
