//! Whether a record is what correct hosts wrote.
//!
//! In: what stands at each place of a log, from the first on; checkpoints of it. Promise: everything in the [`Report`] follows from
//! the bytes alone, by the same [`judge`](crate::judge()) that hosts go by; any bytes are taken. A record that correct hosts wrote has no
//! finding; in any other, what signatures, rules or a checkpoint speak against is found.
//! Failure: none; what is wrong is a [`Finding`], and the first of them comes first.
//!
//! A checkpoint says that something among the places up to its size differs, and not what. Where the hashes of all leaves were kept
//! too ([`Audit::hold_leaves`]), and a checkpoint held elsewhere vouches for them, the place is named exactly.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::act::Refusal;
use crate::causes::{Cause, cause};
use crate::checkpoint::{Cosignature, Signed};
use crate::entry::{Body, Entry, Junk, KeySubject, Sealed};
use crate::ids::{ChannelName, Epoch, HostId, Ordinal, PersonaName, PublicKey, RealmId};
use crate::judge::{Change, Judged, MessageVerdict, judge};
use crate::key::Verifier;
use crate::limits::FINDINGS_MAX;
use crate::merkle::{self, Frontier, Hash};
use crate::state::State;

/// What stands at a place, opened. Everything that takes long is done, and can be done on any thread.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Where.
    pub seq: u64,
    /// The hash of it.
    pub leaf: Hash,
    /// The entry, its signature verified; or why it is none.
    pub entry: Result<Sealed, Junk>,
    /// It is what was kept of a place that was pruned.
    pub is_pruned: bool,
}

impl Stored {
    /// Opens what stands at a place.
    pub fn open(seq: u64, stored: Bytes, verifier: &mut Verifier) -> Self {
        Self {
            seq,
            leaf: merkle::leaf(&stored),
            entry: Sealed::open_with(stored, verifier),
            is_pruned: false,
        }
    }

    /// Opens what was kept of a place that was pruned. What its entry says rests on the word of whoever kept it; that it stood there, on the
    /// tree.
    pub fn pruned(seq: u64, leaf: Hash, stub: Bytes) -> Self {
        Self {
            seq,
            leaf,
            entry: Sealed::from_stub(leaf, stub),
            is_pruned: true,
        }
    }
}

/// A checkpoint, and where it comes from.
#[derive(Debug, Clone)]
pub struct Held {
    /// It.
    pub signed: Signed,
    /// Where it comes from, for people.
    pub whence: String,
    /// It was kept elsewhere than the record itself, so that who keeps the record couldn't change it.
    pub elsewhere: bool,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The place. Where only a checkpoint speaks, the last of the places that it may be.
    pub seq: u64,
    /// The first of the places that it may be: `seq` itself, unless only a checkpoint speaks.
    pub since: u64,
    /// What it is.
    pub wrong: Wrong,
}

/// What is wrong at a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Places are missing before this one.
    #[error("places {expected} to {} are missing", .found - 1)]
    Missing {
        /// The first that is missing.
        expected: u64,
        /// The place that stands there instead.
        found: u64,
    },
    /// It is no entry, or not signed by its signer.
    #[error("{0}")]
    Junk(Junk),
    /// It is void, as nothing is that a correct host writes.
    #[error("void, as no correct host's: {refusal} [{why}]")]
    Void {
        /// Why it is void.
        refusal: Refusal,
        /// Which message of the entry; None for the entry itself.
        message: Option<usize>,
        /// Why that doesn't happen to correct hosts.
        why: &'static str,
    },
    /// The record doesn't begin with a realm's first entry.
    #[error("the record doesn't begin with the first entry of a realm")]
    NoGenesis,
    /// It is another realm's record.
    #[error("the record is of realm {found}, not of {expected}")]
    OtherRealm {
        /// What the first entry says.
        found: RealmId,
        /// What was asked for.
        expected: RealmId,
    },
    /// It isn't what stood there when the leaves were kept that a checkpoint vouches for.
    #[error("it is not what stood there: its hash is not the one that {whence} holds")]
    OtherLeaf {
        /// What was kept, and where.
        whence: String,
    },
    /// The tree of these places isn't the checkpoint's.
    #[error("the first {size} places are not those of {whence}")]
    OtherTree {
        /// How many places it covers.
        size: u64,
        /// Which checkpoint.
        whence: String,
    },
    /// The record ends before a checkpoint does.
    #[error("the record ends at {end}, but {whence} holds {size} places")]
    Short {
        /// Where it ends.
        end: u64,
        /// How many places there were.
        size: u64,
        /// What was kept, and where.
        whence: String,
    },
    /// What was said there is gone, and no note of a host's lets it go.
    #[error(
        "what was said here is gone, and nothing on the record lets message {ordinal} of '{channel}' go (should a host be pruning just now, verify again)"
    )]
    NotPruned {
        /// Of which channel.
        channel: ChannelName,
        /// The last message that is gone.
        ordinal: Ordinal,
    },
    /// A checkpoint of another realm.
    #[error("{whence} is of realm {found}")]
    OtherCheckpoint {
        /// Which checkpoint.
        whence: String,
        /// Which realm.
        found: RealmId,
    },
    /// A checkpoint that no host of the realm signed.
    #[error("{whence} is signed by no host of this realm")]
    Unsigned {
        /// Which checkpoint.
        whence: String,
    },
}

/// How much there is of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Places.
    pub entries: u64,
    /// Messages that count.
    pub messages: u64,
    /// Void entries, by reason.
    pub void_entries: BTreeMap<Refusal, u64>,
    /// Void messages of entries that stand, by reason.
    pub void_messages: BTreeMap<Refusal, u64>,
    /// Gaps that an operator accepted.
    pub gaps: u64,
    /// Places that were pruned: what was said there is gone, and what is kept of it isn't signed.
    pub pruned: u64,
}

/// What became of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// How many places it covers.
    pub size: u64,
    /// Where it comes from.
    pub whence: String,
    /// It was kept elsewhere than the record.
    pub elsewhere: bool,
    /// The record agrees with it.
    pub agrees: bool,
    /// The hosts that signed it, by the keys they signed with.
    pub hosts: Vec<(HostId, PublicKey)>,
    /// The witnesses that signed it too, one signature of each. Whose keys these are is for the auditor to know.
    pub witnesses: Vec<Cosignature>,
    /// Those whose signature is of the form that was before, which counts for nothing.
    pub outdated: Vec<PublicKey>,
}

/// What an audit came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// The realm, if there is one.
    pub realm: Option<RealmId>,
    /// How much there is of what.
    pub totals: Totals,
    /// The state that the record folds to.
    pub state: State,
    /// The hash over all places.
    pub root: Hash,
    /// The checkpoints, by size.
    pub checkpoints: Vec<Compared>,
    /// What is wrong, first things first; not more than [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many findings there are in all.
    pub found: u64,
    /// The first of those that hosts don't meet with in a log and pass over, be it told or not: whatever isn't an entry that is void, or no
    /// entry, where nothing was pruned.
    pub gravest: Option<Finding>,
    /// Every key that was ever a host's of this realm.
    pub host_keys: BTreeSet<PublicKey>,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_well(&self) -> bool {
        self.found == 0
    }
}

/// Who an entry's key is of.
type Signer = (HostId, Option<PersonaName>);

/// An audit under way.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    state: State,
    tree: Frontier,
    expected: Option<RealmId>,
    held: BTreeMap<u64, Vec<Held>>,
    compared: Vec<(Compared, RealmId, Vec<PublicKey>)>,
    /// Single leaves as they were seen, and by whom.
    seen: BTreeMap<u64, (Hash, String)>,
    /// A checkpoint's tree was another one.
    differs: bool,
    /// The tree up to here is a checkpoint's.
    agreed: u64,
    leaves: Vec<Hash>,
    /// How many of them a checkpoint vouches for, and which one.
    vouched: Option<(usize, String)>,
    /// Every key that was ever somebody's.
    keys: BTreeMap<Signer, BTreeSet<PublicKey>>,
    /// Channels whose settings were changed.
    changed: BTreeSet<ChannelName>,
    /// By channel, the latest message of a turn that was pruned, and where it stood.
    gone: BTreeMap<ChannelName, (Ordinal, u64)>,
    totals: Totals,
    findings: Vec<Finding>,
    found: u64,
    gravest: Option<Finding>,
    /// What is taken now was pruned.
    at_pruned: bool,
}

impl Audit {
    /// An audit of a record that may be of any realm.
    pub fn new() -> Self {
        Self::default()
    }

    /// The record must be this realm's.
    pub fn expect_realm(&mut self, realm: RealmId) {
        self.expected = Some(realm);
    }

    /// The record must agree with this checkpoint. To be said before the place that it ends at is taken.
    pub fn hold(&mut self, held: Held) {
        let size = held.signed.checkpoint().size;
        self.held.entry(size).or_default().push(held);
    }

    /// This leaf was seen at a place by whoever kept it.
    pub fn hold_leaf(&mut self, seq: u64, leaf: Hash, whence: String) {
        self.seen.insert(seq, (leaf, whence));
    }

    /// The hashes of all leaves as they were kept, from the first place on: what names the first bad place exactly, as far as a
    /// checkpoint held elsewhere vouches for them. To be said after the checkpoints.
    pub fn hold_leaves(&mut self, leaves: Vec<Hash>) {
        let mut tree = Frontier::new();
        self.vouched = None;
        for (size, leaf) in (1..).zip(&leaves) {
            tree.push(*leaf);
            let held = self.held.get(&size).into_iter().flatten();
            for held in held.filter(|held| held.elsewhere) {
                if held.signed.checkpoint().root == tree.root() {
                    self.vouched = usize::try_from(size)
                        .ok()
                        .map(|size| (size, held.whence.clone()));
                }
            }
        }
        self.leaves = leaves;
    }

    /// The state so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How much there is of what, so far.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Every key that was a host's so far.
    pub fn host_keys(&self) -> BTreeSet<PublicKey> {
        let hosts = self.keys.iter().filter(|((_, name), _)| name.is_none());
        hosts.flat_map(|(_, keys)| keys).copied().collect()
    }

    /// How many findings there are so far.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Takes what stands at the next place, and says what judge says of it.
    pub fn take(&mut self, stored: &Stored) -> Judged {
        let (seq, entry) = (stored.seq, stored.entry.as_ref());
        let expected = self.state.last_seq().unwrap_or(0) + 1;
        if seq > expected {
            let missing = Wrong::Missing {
                expected,
                found: seq,
            };
            self.find(seq, expected, missing);
        }
        let judged = judge(&mut self.state, seq, entry);
        self.at_pruned = stored.is_pruned;
        self.totals.entries += 1;
        self.totals.pruned += u64::from(entry.is_ok_and(Sealed::is_purged));
        if self.totals.entries == 1 {
            self.begins(seq);
        }
        match (entry, judged.verdict) {
            (Err(junk), _) => {
                *self.totals.void_entries.entry(junk.refusal()).or_default() += 1;
                self.find(seq, seq, Wrong::Junk(junk.clone()));
            }
            (Ok(sealed), Err(refusal)) => {
                *self.totals.void_entries.entry(refusal).or_default() += 1;
                self.voided(seq, sealed, refusal, None);
            }
            (Ok(sealed), Ok(())) => self.stands(seq, sealed, &judged),
        }
        self.compare(stored);
        judged
    }

    fn find(&mut self, seq: u64, since: u64, wrong: Wrong) {
        self.found += 1;
        let finding = Finding { seq, since, wrong };
        let is_met = matches!(finding.wrong, Wrong::Junk(_) | Wrong::Void { .. });
        if self.gravest.is_none() && (self.at_pruned || !is_met) {
            self.gravest = Some(finding.clone());
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn begins(&mut self, seq: u64) {
        match (self.state.realm(), self.expected) {
            (None, _) => self.find(seq, seq, Wrong::NoGenesis),
            (Some(found), Some(expected)) if found != expected => {
                self.find(seq, seq, Wrong::OtherRealm { found, expected });
            }
            _ => {}
        }
    }

    fn stands(&mut self, seq: u64, sealed: &Sealed, judged: &Judged) {
        for (index, verdict) in judged.messages.iter().enumerate() {
            let refusal = match verdict {
                MessageVerdict::Counts(placed) => {
                    self.totals.messages += 1;
                    if sealed.is_purged() {
                        let gone = (placed.ordinal, seq);
                        self.gone.insert(placed.channel.clone(), gone);
                    }
                    continue;
                }
                MessageVerdict::Void(refusal) => *refusal,
                MessageVerdict::Repeat(_) => Refusal::Repeated,
            };
            *self.totals.void_messages.entry(refusal).or_default() += 1;
            self.voided(seq, sealed, refusal, Some(index));
        }
        for change in &judged.changes {
            match change {
                Change::HostKeyed { host, key, .. } => {
                    self.keys.entry((*host, None)).or_default().insert(*key);
                }
                Change::PersonaKeyed { persona, key, .. } => {
                    let signer = (persona.host, Some(persona.name.clone()));
                    self.keys.entry(signer).or_default().insert(*key);
                }
                Change::ChannelSet {
                    channel,
                    declared: false,
                    ..
                } => {
                    self.changed.insert(channel.clone());
                }
                Change::GapAccepted { .. } => self.totals.gaps += 1,
                _ => {}
            }
        }
    }

    /// Something is void: a finding, unless correct hosts can bring it about.
    fn voided(&mut self, seq: u64, sealed: &Sealed, refusal: Refusal, message: Option<usize>) {
        let (cause, why) = cause(refusal);
        let innocent = match cause {
            Cause::Race => true,
            Cause::Wrong => false,
            Cause::Depends => self.is_race(sealed, refusal, message),
        };
        if !innocent {
            let wrong = Wrong::Void {
                refusal,
                message,
                why,
            };
            self.find(seq, seq, wrong);
        }
    }

    /// What the table leaves open.
    fn is_race(&self, sealed: &Sealed, refusal: Refusal, message: Option<usize>) -> bool {
        let entry: &Entry = sealed.entry();
        match (refusal, &entry.body) {
            (Refusal::StaleEpoch, _) => entry.epoch > Epoch(0) && entry.epoch < self.state.epoch(),
            (Refusal::WrongKey, _) => {
                let signer = (entry.host, entry.author.clone());
                let had = self.keys.get(&signer);
                had.is_some_and(|keys| keys.contains(&entry.signer))
            }
            (Refusal::NotAuthorised, Body::Key(key)) => {
                key.subject == KeySubject::Host(HostId::from(key.public_key))
                    && entry.author.is_none()
                    && self.state.host(&entry.host).is_some()
            }
            (Refusal::NoRight, Body::Turn(_)) => message.is_none(),
            (Refusal::UnknownGrant | Refusal::UnknownPersona, Body::Revoke(_)) => true,
            (Refusal::UnknownGrant, Body::Turn(turn)) => {
                // Its own grant stands, so it is the one to read where it answers.
                let own = entry.grant.and_then(|id| self.state.grant(&id));
                turn.origin.is_some()
                    && own.is_some_and(|grant| {
                        grant.persona.host == entry.host
                            && Some(&grant.persona.name) == entry.author.as_ref()
                    })
            }
            (Refusal::Repeated, Body::Key(key)) if key.genesis.is_some() => {
                self.state.realm() == Some(RealmId::from(sealed.id()))
            }
            (Refusal::Repeated, _) => true,
            (Refusal::BadHops, Body::Turn(turn)) => {
                // On a remote channel the terms alone bound them.
                !turn.channel.is_remote() && self.changed.contains(&turn.channel)
            }
            _ => false,
        }
    }

    fn compare(&mut self, stored: &Stored) {
        self.tree.push(stored.leaf);
        let size = self.tree.size();
        let vouched = self.vouched.as_ref().and_then(|(vouched, _)| {
            let at = usize::try_from(size - 1).ok()?;
            (at < *vouched).then(|| self.leaves[at] == stored.leaf)
        });
        match (vouched, &self.vouched) {
            (Some(true), _) => self.agreed = size,
            (Some(false), Some((_, whence))) => {
                let whence = format!("the list of leaves, for which {whence} vouches,");
                // All that follow may differ too, and one is enough.
                self.vouched = None;
                self.find(stored.seq, stored.seq, Wrong::OtherLeaf { whence });
            }
            _ => {}
        }
        if let Some((leaf, whence)) = self.seen.remove(&size)
            && leaf != stored.leaf
        {
            self.find(stored.seq, self.agreed + 1, Wrong::OtherLeaf { whence });
        }
        let Some(held) = self.held.remove(&size) else {
            return;
        };
        let root = self.tree.root();
        let mut agreed = self.agreed;
        for held in held {
            let agrees = held.signed.checkpoint().root == root;
            if agrees {
                agreed = size;
            } else if held.elsewhere || !self.differs {
                self.differs = true;
                // Those of larger trees differ too, and one is enough; but none of those held elsewhere is passed over.
                let wrong = Wrong::OtherTree {
                    size,
                    whence: held.whence.clone(),
                };
                self.find(stored.seq, self.agreed + 1, wrong);
            }
            self.compared.push(compared(&held, agrees));
        }
        self.agreed = agreed;
    }

    /// The record could not be read further: what came before, and nothing said of how it ends.
    pub fn broken_off(mut self) -> Report {
        self.held.clear();
        self.seen.clear();
        self.gone.clear();
        self.end()
    }

    /// All places were taken.
    pub fn end(mut self) -> Report {
        let end = self.tree.size();
        // One says that the record is short, and best one that was held elsewhere.
        let mut short = None;
        for (seq, (_, whence)) in std::mem::take(&mut self.seen) {
            short = short.max(Some((false, seq, whence)));
        }
        for (size, held) in std::mem::take(&mut self.held) {
            for held in held {
                // A checkpoint of nothing holds for every record.
                let agrees = size == 0 && held.signed.checkpoint().root == merkle::empty_root();
                if !agrees {
                    short = short.max(Some((held.elsewhere, size, held.whence.clone())));
                }
                self.compared.push(compared(&held, agrees));
            }
        }
        if let Some((_, size, whence)) = short {
            let wrong = Wrong::Short { end, size, whence };
            self.find(end + 1, self.agreed + 1, wrong);
        }
        self.unpruned();
        self.whose();
        Report {
            host_keys: self.host_keys(),
            gravest: self.gravest,
            realm: self.state.realm(),
            totals: self.totals,
            root: self.tree.root(),
            state: self.state,
            checkpoints: self
                .compared
                .into_iter()
                .map(|(compared, ..)| compared)
                .collect(),
            findings: self.findings,
            found: self.found,
        }
    }

    /// What is gone, and that no note on the record lets go.
    fn unpruned(&mut self) {
        for (channel, (ordinal, seq)) in std::mem::take(&mut self.gone) {
            let pruned = self.state.channel(&channel).map(|view| view.pruned);
            if pruned.is_none_or(|through| through < ordinal) {
                self.find(seq, seq, Wrong::NotPruned { channel, ordinal });
            }
        }
    }

    /// Which hosts signed the checkpoints, now that all their keys are known.
    fn whose(&mut self) {
        let mut findings = Vec::new();
        for (compared, realm, keys) in &mut self.compared {
            let owner = |key: &PublicKey| {
                let mut hosts = self.keys.iter().filter(|((_, name), _)| name.is_none());
                let found = hosts.find(|(_, keys)| keys.contains(key));
                found.map(|((host, _), _)| (*host, *key))
            };
            compared.hosts = keys.iter().filter_map(owner).collect();
            let Some(own) = self.state.realm() else {
                continue;
            };
            let whence = compared.whence.clone();
            if own != *realm {
                let found = *realm;
                findings.push(Wrong::OtherCheckpoint { whence, found });
            } else if compared.hosts.is_empty() {
                findings.push(Wrong::Unsigned { whence });
            }
        }
        let end = self.tree.size();
        for wrong in findings {
            self.find(end, 1, wrong);
        }
    }
}

fn compared(held: &Held, agrees: bool) -> (Compared, RealmId, Vec<PublicKey>) {
    let checkpoint = held.signed.checkpoint();
    let compared = Compared {
        size: checkpoint.size,
        whence: held.whence.clone(),
        elsewhere: held.elsewhere,
        agrees,
        hosts: Vec::new(),
        witnesses: held.signed.witnesses(),
        outdated: held.signed.outdated(),
    };
    (compared, checkpoint.realm, held.signed.hosts())
}
