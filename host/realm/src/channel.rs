//! What the fold keeps of one channel: its latest messages, their threads, and what each persona said and heard.
//!
//! Promise: memory is bounded by the window, by the open decisions, and by what is remembered of each speaker; nothing
//! here costs more than a lookup in a tree. All of it follows from the log; none of it holds a payload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::act::{Act, Refusal};
use crate::ids::{ChannelName, MessageId};
use crate::limits::{KEYS_REMEMBERED, TURN_OUTCOMES_REMEMBERED, TURNS_REMEMBERED, WINDOW};

/// A persona's place in the state's roster.
pub(crate) type PersonaNo = u32;

/// A channel's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What a message without parent may carry at most; an answer has one less than its parent.
    pub hops: u16,
    /// How many messages besides the root a thread may have before its breaker opens.
    pub reactions: u32,
    /// Whether messages from before a fence stay to be delivered and answered.
    pub carry: bool,
}

/// What is remembered of one counting message of the window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: MessageId,
    /// The ordinal of its thread's root.
    pub(crate) root: u64,
    pub(crate) author: PersonaNo,
    pub(crate) act: Act,
    pub(crate) hops: u16,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) index: u16,
}

/// The channel's latest messages, by ordinal and by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// The ordinal of the newest; 0 when there is none.
    latest: u64,
    records: VecDeque<Record>,
    ordinals: BTreeMap<MessageId, u64>,
}

impl Window {
    pub(crate) fn latest(&self) -> u64 {
        self.latest
    }

    pub(crate) fn at(&self, ordinal: u64) -> Option<&Record> {
        let back = self.latest.checked_sub(ordinal)?;
        let at = (self.records.len() as u64).checked_sub(back + 1)?;
        self.records.get(usize::try_from(at).ok()?)
    }

    pub(crate) fn find(&self, id: &MessageId) -> Option<(u64, &Record)> {
        let ordinal = *self.ordinals.get(id)?;
        Some((ordinal, self.at(ordinal)?))
    }

    /// Adds the record under the next ordinal; gives back the one that falls out of the window.
    fn push(&mut self, record: Record) -> Option<Record> {
        self.latest += 1;
        self.ordinals.insert(record.id, self.latest);
        self.records.push_back(record);
        if self.records.len() as u64 <= WINDOW {
            return None;
        }
        let oldest = self.records.pop_front()?;
        self.ordinals.remove(&oldest.id);
        Some(oldest)
    }
}

// The index by id follows from the records, so a snapshot leaves it out.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.latest, &self.records).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (latest, records): (u64, VecDeque<Record>) = Deserialize::deserialize(from)?;
        let first = latest.checked_sub(records.len() as u64).ok_or_else(|| {
            serde::de::Error::custom("a window of more messages than the channel has")
        })?;
        let ordinals = records
            .iter()
            .zip(first + 1..)
            .map(|(record, ordinal)| (record.id, ordinal))
            .collect();
        Ok(Window {
            latest,
            records,
            ordinals,
        })
    }
}

/// A root message and all that descends from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Thread {
    pub(crate) root: MessageId,
    /// Who wrote the root: its host admitted it.
    pub(crate) starter: PersonaNo,
    pub(crate) owner: Option<PersonaNo>,
    pub(crate) deadline_ms: i64,
    /// Counting messages besides the root.
    pub(crate) reactions: u32,
    /// The breaker's opening was told.
    pub(crate) breaker: bool,
    /// Decided, lapsed or fenced.
    pub(crate) closed: bool,
    in_window: u32,
}

/// What is remembered of a counting message for whoever repeats it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) id: MessageId,
    pub(crate) ordinal: u64,
    pub(crate) thread: MessageId,
    pub(crate) epoch: u64,
    pub(crate) hops: u16,
    pub(crate) seq: u64,
    pub(crate) index: u16,
    pub(crate) act: Act,
}

/// The keys of one persona's messages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// The highest that counts.
    pub(crate) highest: u64,
    kept: BTreeMap<u64, Receipt>,
}

impl Keys {
    pub(crate) fn first_receipt(&self, key: u64) -> Option<&Receipt> {
        self.kept.get(&key)
    }

    pub(crate) fn keep(&mut self, key: u64, receipt: Receipt) {
        self.highest = key;
        self.kept.insert(key, receipt);
        while self.kept.len() > KEYS_REMEMBERED {
            self.kept.pop_first();
        }
    }
}

/// What became of each message of a turn.
pub(crate) type Outcomes = Vec<Result<Receipt, Refusal>>;

/// One persona's answering turns that answer through ordinals of one channel.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Turns {
    /// The highest ordinal answered through: on the channel itself, the cursor.
    pub(crate) highest: u64,
    kept: BTreeMap<u64, Outcomes>,
    outcomes: usize,
}

impl Turns {
    pub(crate) fn first_outcomes(&self, through: u64) -> Option<&Outcomes> {
        self.kept.get(&through)
    }

    pub(crate) fn keep(&mut self, through: u64, outcomes: Outcomes) {
        self.highest = through;
        self.outcomes += outcomes.len();
        self.kept.insert(through, outcomes);
        while self.kept.len() > TURNS_REMEMBERED || self.outcomes > TURN_OUTCOMES_REMEMBERED {
            let Some((_, oldest)) = self.kept.pop_first() else {
                break;
            };
            self.outcomes -= oldest.len();
        }
    }
}

/// What the fold knows of one persona on one channel.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Speaker {
    /// Its live grants with the read right: the channel's latest when each was issued, and the grant's number.
    pub(crate) readers: BTreeSet<(u64, u64)>,
    pub(crate) keys: Keys,
    /// By origin; None is the channel itself.
    pub(crate) turns: BTreeMap<Option<ChannelName>, Turns>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Channel {
    pub(crate) settings: Settings,
    pub(crate) window: Window,
    /// Messages up to here are from before a fence that they were not carried over.
    pub(crate) fenced: u64,
    pub(crate) pruned: u64,
    /// By the root's ordinal.
    threads: BTreeMap<u64, Thread>,
    /// Undecided threads with an owner, by root: the root's ordinal.
    open: BTreeMap<MessageId, u64>,
    pub(crate) speakers: BTreeMap<PersonaNo, Speaker>,
}

impl Channel {
    pub(crate) fn new(settings: Settings) -> Self {
        Channel {
            settings,
            window: Window::default(),
            fenced: 0,
            pruned: 0,
            threads: BTreeMap::new(),
            open: BTreeMap::new(),
            speakers: BTreeMap::new(),
        }
    }

    pub(crate) fn thread(&self, root: u64) -> Option<&Thread> {
        self.threads.get(&root)
    }

    pub(crate) fn open_threads(&self) -> impl Iterator<Item = &Thread> {
        self.open.values().filter_map(|root| self.threads.get(root))
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn open_thread(&self, root: &MessageId) -> Option<&Thread> {
        self.threads.get(self.open.get(root)?)
    }

    pub(crate) fn speaker(&self, no: PersonaNo) -> Option<&Speaker> {
        self.speakers.get(&no)
    }

    /// The persona's effective cursor: the latest of its first live grant to read, its own answers, and the fence.
    pub(crate) fn cursor(&self, no: PersonaNo) -> u64 {
        let Some(speaker) = self.speaker(no) else {
            return self.fenced;
        };
        let granted = speaker.readers.first().map_or(0, |(first, _)| *first);
        granted.max(self.answered(no)).max(self.fenced)
    }

    /// The ordinal that the persona answered through, and no more. All that is known of its place on a remote channel: grants and fences
    /// here count what is said for the peer, not what is said there.
    pub(crate) fn answered(&self, no: PersonaNo) -> u64 {
        let turns = self
            .speaker(no)
            .and_then(|speaker| speaker.turns.get(&None));
        turns.map_or(0, |turns| turns.highest)
    }

    /// Gives a counting message its ordinal. `root` is the ordinal of its thread's root, None when it is the root;
    /// `record.root` is set here. Answers whether the thread's breaker opened with it.
    pub(crate) fn place(
        &mut self,
        mut record: Record,
        root: Option<u64>,
        owner: Option<PersonaNo>,
        deadline_ms: i64,
    ) -> (Receipt, bool) {
        let ordinal = self.window.latest + 1;
        record.root = root.unwrap_or(ordinal);
        let thread = self.threads.entry(record.root).or_insert(Thread {
            root: record.id,
            starter: record.author,
            owner,
            deadline_ms,
            reactions: 0,
            breaker: false,
            closed: false,
            in_window: 0,
        });
        thread.in_window += 1;
        if root.is_some() {
            thread.reactions = thread.reactions.saturating_add(1);
        } else if owner.is_some() {
            self.open.insert(record.id, ordinal);
        }
        let opened = !thread.breaker && thread.reactions >= self.settings.reactions;
        thread.breaker |= opened;
        let receipt = Receipt {
            id: record.id,
            ordinal,
            thread: thread.root,
            epoch: record.epoch,
            hops: record.hops,
            seq: record.seq,
            index: record.index,
            act: record.act,
        };
        if let Some(oldest) = self.window.push(record) {
            if let Some(thread) = self.threads.get_mut(&oldest.root) {
                thread.in_window -= 1;
            }
            self.forget(oldest.root);
        }
        (receipt, opened)
    }

    /// Closes a thread; later messages of it are void.
    pub(crate) fn close(&mut self, root: u64) {
        if let Some(thread) = self.threads.get_mut(&root) {
            thread.closed = true;
            self.open.remove(&thread.root);
        }
        self.forget(root);
    }

    /// As [`Channel::close`], by the root's id.
    pub(crate) fn close_open(&mut self, root: &MessageId) {
        if let Some(root) = self.open.get(root).copied() {
            self.close(root);
        }
    }

    /// Ends the epoch: without `carry` all that was said becomes history, and its open threads are closed. Answers
    /// their roots, in order.
    pub(crate) fn fence(&mut self) -> Vec<MessageId> {
        if self.settings.carry {
            return Vec::new();
        }
        self.fenced = self.window.latest;
        let mut open: Vec<u64> = self.open.values().copied().collect();
        open.sort_unstable();
        let roots = open
            .iter()
            .filter_map(|root| self.threads.get(root))
            .map(|thread| thread.root)
            .collect();
        open.into_iter().for_each(|root| self.close(root));
        roots
    }

    /// Drops a thread that nothing can refer to any more: no message of it may be answered, and no deadline is open.
    /// One that waits for its owner without a deadline is dropped too: the owner could answer nothing in it.
    fn forget(&mut self, root: u64) {
        let Some(thread) = self.threads.get(&root) else {
            return;
        };
        if thread.in_window > 0 || (self.open.contains_key(&thread.root) && thread.deadline_ms > 0)
        {
            return;
        }
        self.open.remove(&thread.root);
        self.threads.remove(&root);
    }
}
