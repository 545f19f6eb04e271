//! The realm as folded from its log so far, and what may be asked of it.
//!
//! Only [`judge`](crate::judge()) changes a state. Everything in it follows from the log alone, in an order that does not
//! depend on the machine, so that equal logs give equal [digests](State::digest) on every host, and a snapshot
//! (serde, in any compact format) taken anywhere and folded further equals a straight fold.
//!
//! A state is bounded: hosts, personas, channels and live grants by [`limits`](crate::limits), each channel by its
//! window and its open decisions, each persona on each channel by the receipts remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::channel::{Channel, PersonaNo, Receipt, Record, Settings};
use crate::entry::{Object, Origin};
use crate::ids::{
    ChannelName, ComponentHash, EntryId, Epoch, GrantId, HostId, MessageId, Ordinal, PersonaId,
    PublicKey, RealmId,
};
use crate::judge::{MessageVerdict, Placed};
use crate::limits::CUT_GRANTS_REMEMBERED;
use crate::terms::Terms;

/// A host of the realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its current key.
    pub key: PublicKey,
    /// Revoked, for good: nothing it writes counts any more.
    pub revoked: bool,
    /// How many keys it has had.
    pub keys: u64,
}

/// A persona of the realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persona {
    /// Its current key.
    pub key: PublicKey,
    /// Its current component; None for operators.
    pub component: Option<ComponentHash>,
    /// Killed, and not started again: its turns are void.
    pub killed: bool,
    /// Grants that were issued under this persona's in this epoch.
    pub(crate) lent: u32,
    /// How many keys it has had.
    pub keys: u64,
    /// What it was ever granted by its host, cut since or not: a manifest proposes only what is not in here.
    pub decided: BTreeSet<Object>,
    pub(crate) no: PersonaNo,
    /// Its live grants by number.
    pub(crate) grants: BTreeMap<u64, GrantId>,
    /// Who a peer or a guest is where it comes from.
    pub origin: Option<Box<Origin>>,
    /// Of a peer: how many guests it ever brought.
    pub(crate) guests: u32,
}

/// A live grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Shown as g1, g2 ...: its place among all grants of the realm.
    pub number: u64,
    /// To whom.
    pub persona: PersonaId,
    /// To what.
    pub object: Object,
    /// What it allows itself.
    pub terms: Terms,
    /// What it allows together with every grant above it.
    pub effective: Terms,
    /// The grant it narrows and dies with.
    pub parent: Option<GrantId>,
    /// Outlives the fence, although it has a parent, and the lender's being killed, until that is started again.
    pub lasting: bool,
    /// The epoch it was issued in.
    pub epoch: Epoch,
    /// The channel's latest ordinal when it was issued, or its peer's grant was that brought a guest this one; 0 when it is not for a channel.
    pub first: Ordinal,
    /// How many messages have counted under it and the grants below it.
    pub used: u64,
    /// Its place in its chain: 1 for a grant without parent.
    pub depth: u8,
    pub(crate) children: BTreeSet<GrantId>,
}

impl Grant {
    /// Only messages after this ordinal may be read and answered under the grant.
    pub fn reach(&self) -> Ordinal {
        Ordinal(self.first.0.saturating_sub(self.effective.history))
    }
}

/// A channel, as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelView {
    /// Its settings.
    pub settings: Settings,
    /// The ordinal of its newest message; 0 when it has none.
    pub latest: Ordinal,
    /// Messages up to here became history at a fence; 0 when none did.
    pub fenced: Ordinal,
    /// Messages up to here may have been purged.
    pub pruned: Ordinal,
}

/// A thread, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadView {
    /// Its channel.
    pub channel: ChannelName,
    /// Its root.
    pub root: MessageId,
    /// Who started it; that persona's host writes its lapse.
    pub starter: PersonaId,
    /// Who decides it.
    pub owner: Option<PersonaId>,
    /// When it lapses, in milliseconds since 1970-01-01 UTC; 0: never.
    pub deadline_ms: i64,
    /// Counting messages besides the root.
    pub reactions: u32,
    /// Decided, lapsed or fenced: later messages of it are void.
    pub closed: bool,
}

/// How many entries were judged.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// All of them.
    pub entries: u64,
    /// Those that were void, junk included.
    pub void: u64,
    /// Those that were no entries.
    pub junk: u64,
}

/// The realm as folded from its log so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    pub(crate) last_seq: Option<u64>,
    pub(crate) tally: Tally,
    pub(crate) realm: Option<RealmId>,
    pub(crate) fencers: BTreeSet<HostId>,
    pub(crate) epoch: Epoch,
    pub(crate) held: bool,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) personas: BTreeMap<PersonaId, Persona>,
    pub(crate) roster: Vec<PersonaId>,
    pub(crate) channels: BTreeMap<ChannelName, Channel>,
    pub(crate) grants: BTreeMap<GrantId, Grant>,
    pub(crate) grant_numbers: u64,
    pub(crate) cut: BTreeSet<GrantId>,
    pub(crate) cut_order: VecDeque<GrantId>,
    /// Authority entries of this epoch, so that none takes effect twice.
    pub(crate) seen: BTreeSet<EntryId>,
}

impl State {
    /// The state before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// SHA-256 over the whole state: equal on all hosts that judged the same log.
    pub fn digest(&self) -> [u8; 32] {
        struct Hashing(Sha256);
        impl std::io::Write for Hashing {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let hashing = postcard::to_io(self, Hashing(Sha256::new()))
            .expect("a state is plain data with sized collections, and hashing takes every byte");
        hashing.0.finalize().into()
    }

    /// The seq judged last.
    pub fn last_seq(&self) -> Option<u64> {
        self.last_seq
    }

    /// How many entries were judged.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The realm; None before its genesis.
    pub fn realm(&self) -> Option<RealmId> {
        self.realm
    }

    /// The current epoch; 0 before the genesis.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the epoch was begun with hold: nothing is handed out until the next begins.
    pub fn held(&self) -> bool {
        self.held
    }

    /// Whether this host may end an epoch.
    pub fn may_fence(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|h| !h.revoked)
            && (self.fencers.is_empty() || self.fencers.contains(host))
    }

    /// A host.
    pub fn host(&self, host: &HostId) -> Option<&Host> {
        self.hosts.get(host)
    }

    /// All hosts, revoked ones included.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter()
    }

    /// A persona.
    pub fn persona(&self, persona: &PersonaId) -> Option<&Persona> {
        self.personas.get(persona)
    }

    /// All personas, killed ones included.
    pub fn personas(&self) -> impl Iterator<Item = (&PersonaId, &Persona)> {
        self.personas.iter()
    }

    /// A channel.
    pub fn channel(&self, channel: &ChannelName) -> Option<ChannelView> {
        self.channels.get(channel).map(Self::view)
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = (&ChannelName, ChannelView)> {
        self.channels
            .iter()
            .map(|(name, channel)| (name, Self::view(channel)))
    }

    fn view(channel: &Channel) -> ChannelView {
        ChannelView {
            settings: channel.settings,
            latest: Ordinal(channel.window.latest()),
            fenced: Ordinal(channel.fenced),
            pruned: Ordinal(channel.pruned),
        }
    }

    /// A live grant.
    pub fn grant(&self, grant: &GrantId) -> Option<&Grant> {
        self.grants.get(grant)
    }

    /// Whether the grant was cut, as far as is remembered.
    pub fn was_cut(&self, grant: &GrantId) -> bool {
        self.cut.contains(grant)
    }

    /// All live grants.
    pub fn grants(&self) -> impl Iterator<Item = (&GrantId, &Grant)> {
        self.grants.iter()
    }

    /// A persona's live grants, oldest first.
    pub fn grants_of(&self, persona: &PersonaId) -> impl Iterator<Item = (&GrantId, &Grant)> {
        let ids = self
            .personas
            .get(persona)
            .into_iter()
            .flat_map(|persona| persona.grants.values());
        ids.filter_map(|id| self.grants.get_key_value(id))
    }

    /// The grant under `parent` by which the whole of it was lent to this persona, if there is one.
    pub fn lent(&self, parent: &GrantId, persona: &PersonaId, lasting: bool) -> Option<GrantId> {
        let children = &self.grants.get(parent)?.children;
        let lent = children.iter().find(|id| {
            self.grants.get(id).is_some_and(|grant| {
                grant.persona == *persona && grant.lasting == lasting && grant.terms == Terms::ALL
            })
        });
        lent.copied()
    }

    /// Where the persona's deliveries go on from: the latest of its first live grant to read the channel, the last
    /// ordinal it answered through, and, unless the channel carried over it, the fence. On a remote channel only what it answered
    /// through, which is an ordinal of the peer's channel: where the peer's deliveries begin is for the peer to say.
    pub fn cursor(&self, persona: &PersonaId, channel: &ChannelName) -> Ordinal {
        let Some((name, channel)) = self.channels.get_key_value(channel) else {
            return Ordinal(0);
        };
        let persona = self.personas.get(persona);
        Ordinal(if name.is_remote() {
            persona.map_or(0, |persona| channel.answered(persona.no))
        } else {
            persona.map_or(channel.fenced, |persona| channel.cursor(persona.no))
        })
    }

    /// Whether this is a guest whose peer is killed, or unknown: it may do nothing, whatever it was granted.
    pub fn is_cut_off(&self, persona: &PersonaId) -> bool {
        let peer = persona.brought_by();
        peer.is_some_and(|peer| self.personas.get(&peer).is_none_or(|peer| peer.killed))
    }

    /// The lowest key that a new message of the persona may carry there.
    pub fn next_key(&self, persona: &PersonaId, channel: &ChannelName) -> u64 {
        let speaker = self
            .channels
            .get(channel)
            .zip(self.personas.get(persona))
            .and_then(|(channel, persona)| channel.speaker(persona.no));
        speaker.map_or(1, |speaker| speaker.keys.highest.saturating_add(1))
    }

    /// The first counting receipt of this key, as far as is remembered.
    pub fn key_repeat(
        &self,
        persona: &PersonaId,
        channel: &ChannelName,
        key: u64,
    ) -> Option<Placed> {
        let speaker = self
            .channels
            .get(channel)?
            .speaker(self.personas.get(persona)?.no)?;
        Some(placed(persona, channel, speaker.keys.first_receipt(key)?))
    }

    /// What became of the messages that the persona said on `channel` when it first answered through this ordinal of
    /// `origin` (None: of `channel` itself), as far as is remembered: a repeat, or why each was void.
    pub fn turn_repeat(
        &self,
        persona: &PersonaId,
        channel: &ChannelName,
        origin: Option<&ChannelName>,
        through: Ordinal,
    ) -> Option<Vec<MessageVerdict>> {
        let speaker = self
            .channels
            .get(channel)?
            .speaker(self.personas.get(persona)?.no)?;
        let outcomes = speaker
            .turns
            .get(&origin.cloned())?
            .first_outcomes(through.0)?;
        let verdict = |outcome: &Result<Receipt, _>| match outcome {
            Ok(receipt) => MessageVerdict::Repeat(placed(persona, channel, receipt)),
            Err(refusal) => MessageVerdict::Void(*refusal),
        };
        Some(outcomes.iter().map(verdict).collect())
    }

    /// A message of the channel's window (its last 65,536), by id.
    pub fn message(&self, channel: &ChannelName, id: &MessageId) -> Option<Placed> {
        let (name, channel) = self.channels.get_key_value(channel)?;
        let (ordinal, record) = channel.window.find(id)?;
        self.recorded(name, channel, ordinal, record)
    }

    /// A message of the channel's window, by ordinal.
    pub fn message_at(&self, channel: &ChannelName, ordinal: Ordinal) -> Option<Placed> {
        let (name, channel) = self.channels.get_key_value(channel)?;
        self.recorded(name, channel, ordinal.0, channel.window.at(ordinal.0)?)
    }

    fn recorded(
        &self,
        name: &ChannelName,
        channel: &Channel,
        ordinal: u64,
        record: &Record,
    ) -> Option<Placed> {
        Some(Placed {
            id: record.id,
            channel: name.clone(),
            ordinal: Ordinal(ordinal),
            thread: channel.thread(record.root)?.root,
            epoch: Epoch(record.epoch),
            hops: record.hops,
            seq: record.seq,
            index: record.index,
            author: self.named(record.author)?.clone(),
            act: record.act,
        })
    }

    /// The thread that a message of the channel's window belongs to.
    pub fn thread_of(&self, channel: &ChannelName, id: &MessageId) -> Option<ThreadView> {
        let (name, channel) = self.channels.get_key_value(channel)?;
        let (_, record) = channel.window.find(id)?;
        self.thread_view(name, channel.thread(record.root)?)
    }

    /// Undecided threads with an owner, of all channels.
    pub fn open_threads(&self) -> impl Iterator<Item = ThreadView> {
        self.channels.iter().flat_map(move |(name, channel)| {
            channel
                .open_threads()
                .filter_map(move |thread| self.thread_view(name, thread))
        })
    }

    fn thread_view(
        &self,
        channel: &ChannelName,
        thread: &crate::channel::Thread,
    ) -> Option<ThreadView> {
        let owner = match thread.owner {
            Some(no) => Some(self.named(no)?.clone()),
            None => None,
        };
        Some(ThreadView {
            channel: channel.clone(),
            root: thread.root,
            starter: self.named(thread.starter)?.clone(),
            owner,
            deadline_ms: thread.deadline_ms,
            reactions: thread.reactions,
            closed: thread.closed,
        })
    }

    pub(crate) fn named(&self, no: PersonaNo) -> Option<&PersonaId> {
        self.roster.get(no as usize)
    }

    /// Cuts a grant and all below it. Answers their numbers and ids, in no particular order.
    pub(crate) fn cut(&mut self, grant: GrantId) -> Vec<(u64, GrantId)> {
        let mut cut = Vec::new();
        let mut below = vec![grant];
        while let Some(id) = below.pop() {
            let Some(grant) = self.grants.remove(&id) else {
                continue;
            };
            below.extend(&grant.children);
            if let Some(parent) = grant.parent.and_then(|parent| self.grants.get_mut(&parent)) {
                parent.children.remove(&id);
            }
            if let Some(persona) = self.personas.get_mut(&grant.persona) {
                persona.grants.remove(&grant.number);
                if let Object::Channel(name) = &grant.object
                    && let Some(channel) = self.channels.get_mut(name)
                    && let Some(speaker) = channel.speakers.get_mut(&persona.no)
                {
                    speaker.readers.remove(&(grant.first.0, grant.number));
                }
            }
            self.cut.insert(id);
            self.cut_order.push_back(id);
            if self.cut_order.len() > CUT_GRANTS_REMEMBERED
                && let Some(oldest) = self.cut_order.pop_front()
            {
                self.cut.remove(&oldest);
            }
            cut.push((grant.number, id));
        }
        cut
    }
}

pub(crate) fn placed(author: &PersonaId, channel: &ChannelName, receipt: &Receipt) -> Placed {
    Placed {
        id: receipt.id,
        channel: channel.clone(),
        ordinal: Ordinal(receipt.ordinal),
        thread: receipt.thread,
        epoch: Epoch(receipt.epoch),
        hops: receipt.hops,
        seq: receipt.seq,
        index: receipt.index,
        author: author.clone(),
        act: receipt.act,
    }
}
