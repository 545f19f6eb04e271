//! One of a peer's channels, as this host knows it: what was heard of it, and what became of what was said for it.
//!
//! In: from the link, deliveries and outcomes; from facets on any thread, questions. Out: messages as the peer has them, and outcomes as the
//! peer gave them.
//! Promise: what is read is what the peer said, in its order; an outcome is the peer's own, or says why the message was never sent. What is
//! asked while the peer is out of reach fails as busy, and says so: at once, where it has been so for a while.
//! Failure: what is not remembered is asked of the peer again (messages), or is said to be forgotten (outcomes).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agora_capnp::act_capnp;
use agora_capnp::channel_capnp::{self, message};
use agora_log::Durability;
use agora_membrane::error::{self, Kind};
use agora_realm::{
    ChannelName, Entry, Epoch, GrantId, HostId, MessageId, Ordinal, PersonaId, PersonaName,
    Refusal, State, Terms,
};
use capnp::Word;
use capnp::message::{ReaderOptions, SegmentArray};
use capnp::traits::ImbueMut;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::told::Known;
use crate::channel::speak::Outcome;
use crate::delivery::cursors::SilentCursors;
use crate::delivery::record::Record;
use crate::limits;

/// No channel has more messages than this; what a peer says beyond it is not true.
pub(super) const ORDINAL_MAX: u64 = 1 << 62;

/// A message of the peer's channel, as the peer delivered it.
pub struct RemoteMessage {
    /// Its place on the peer's channel.
    pub ordinal: u64,
    /// Who wrote it, as the peer says.
    pub author: String,
    words: Vec<Word>,
}

impl RemoteMessage {
    /// A copy.
    ///
    /// # Errors
    /// It can't be read, or holds a capability, in a place that the schema has something else for or nothing.
    pub fn copy(from: message::Reader<'_>) -> capnp::Result<Arc<Self>> {
        let mut built = capnp::message::Builder::new_default();
        let mut caps = Vec::new();
        let mut root: capnp::any_pointer::Builder<'_> = built.init_root();
        // Without a table for them, capnp panics at the first.
        root.imbue_mut(&mut caps);
        root.set_as(from)?;
        if !caps.is_empty() {
            return Err(error::failed("a message holds no capabilities"));
        }
        Ok(Arc::new(Self {
            ordinal: from.get_ordinal(),
            author: from.get_author()?.to_string()?,
            words: built.into_reader().canonicalize()?,
        }))
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        8 * self.words.len() + self.author.len() + 64
    }

    /// Reads it.
    ///
    /// # Errors
    /// What `read` answers, or that it is malformed.
    pub fn read<R>(
        &self,
        read: impl FnOnce(message::Reader<'_>) -> capnp::Result<R>,
    ) -> capnp::Result<R> {
        let segments = [Word::words_to_bytes(&self.words)];
        let segments = SegmentArray::new(&segments);
        let reader = capnp::message::Reader::new(segments, ReaderOptions::new());
        read(reader.get_root()?)
    }
}

/// Messages of the peer's channel, and where to go on.
#[derive(Default)]
pub struct Page {
    /// In order.
    pub messages: Vec<Arc<RemoteMessage>>,
    /// The ordinal to go on from.
    pub next: u64,
    /// What the peer pruned: nobody can read up to there.
    pub pruned: u64,
}

/// What became of a message at the peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It counts there.
    Counts {
        /// Its id there.
        id: [u8; 32],
        /// Its place there.
        ordinal: u64,
        /// The peer's epoch.
        epoch: u64,
        /// What hops it has left.
        hops: u16,
        /// As in the schema.
        durability: u16,
        /// The peer had it before.
        repeated: bool,
    },
    /// It does not.
    Refused {
        /// As in the schema.
        reason: u16,
        /// For people.
        text: String,
    },
}

impl Fate {
    /// It does not count, and why.
    pub fn refused(reason: Refusal, text: &str) -> Self {
        Self::Refused {
            reason: act_capnp::Refusal::from(reason) as u16,
            text: crate::cut_text(text, limits::FATE_TEXT_BYTES_MAX),
        }
    }

    /// As the peer says it.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(from: channel_capnp::outcome::Reader<'_>) -> capnp::Result<Self> {
        match from.which()? {
            channel_capnp::outcome::Receipt(receipt) => {
                let receipt = receipt?;
                let id = receipt.get_id()?.try_into();
                Ok(Self::Counts {
                    id: id.map_err(|_| error::failed("the peer gave a receipt without an id"))?,
                    ordinal: receipt.get_ordinal(),
                    epoch: receipt.get_epoch(),
                    hops: receipt.get_hops(),
                    durability: receipt
                        .get_durability()
                        .unwrap_or(channel_capnp::Durability::Unknown)
                        as u16,
                    repeated: receipt.get_repeated(),
                })
            }
            channel_capnp::outcome::Refused(refused) => {
                let reason = refused.get_reason().unwrap_or(act_capnp::Refusal::Unknown);
                let text = refused.get_text()?.to_str().unwrap_or_default();
                Ok(Self::refused(reason.into(), text))
            }
        }
    }

    /// Why it was refused, where it was.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Counts { .. } => None,
            Self::Refused { reason, .. } => {
                let reason = act_capnp::Refusal::try_from(*reason);
                Some(reason.unwrap_or(act_capnp::Refusal::Unknown).into())
            }
        }
    }

    /// As whoever said it is told, who knows the channel by our name. `said` is its receipt from here.
    fn told(self, said: Outcome) -> Outcome {
        let Outcome::Receipt {
            mut placed,
            repeated: again,
            ..
        } = said
        else {
            return said;
        };
        let refusal = self.refusal();
        match self {
            Self::Counts {
                id,
                ordinal,
                epoch,
                hops,
                durability,
                repeated,
            } => {
                placed.id = MessageId(id);
                placed.thread = MessageId(id);
                placed.ordinal = Ordinal(ordinal);
                placed.epoch = Epoch(epoch);
                placed.hops = hops;
                let durability = channel_capnp::Durability::try_from(durability);
                Outcome::Receipt {
                    placed,
                    durability: match durability {
                        Ok(channel_capnp::Durability::Fsync) => Durability::Fsync,
                        Ok(channel_capnp::Durability::Asserted) => Durability::Asserted,
                        _ => Durability::Acknowledged,
                    },
                    repeated: repeated || again,
                }
            }
            Self::Refused { text, .. } => {
                Outcome::Refused(refusal.unwrap_or(Refusal::Unknown), text)
            }
        }
    }
}

/// What the peer grants on it, while the link is up.
pub struct Granted {
    /// Effective there.
    pub terms: Terms,
    /// What a message without a parent carries there.
    pub hops: u16,
    /// A thread's reaction budget there.
    pub reactions: u32,
    /// Whether messages outlive a fence there.
    pub carry: bool,
    /// Takes requests for history.
    pub requests: mpsc::Sender<History>,
}

/// A request for history.
pub struct History {
    /// From which ordinal.
    pub from: u64,
    /// How many at most.
    pub count: u32,
    /// What the peer answers.
    pub answer: oneshot::Sender<Result<Page, capnp::Error>>,
}

/// Why there is no answer to what was asked of the peer.
pub enum Missed {
    /// It is out of reach, or what it lent is over; both may be so for a moment only.
    Away(capnp::Error),
    /// It can't be asked this, or answered so.
    Failed(capnp::Error),
}

impl From<Missed> for capnp::Error {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Away(error) | Missed::Failed(error) => error,
        }
    }
}

/// Whether it can be used now.
#[derive(Clone)]
pub enum Standing {
    /// The peer is out of reach, for this reason.
    Away(Arc<str>),
    /// The peer is there, and grants nothing on it.
    NotGranted,
    /// It can.
    Up(Arc<Granted>),
}

/// What is known of how far the peer's channel has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// The ordinal of its newest message.
    pub latest: u64,
    /// What the peer pruned.
    pub pruned: u64,
    /// The peer has told, since this host started.
    pub is_known: bool,
}

/// How this host's personas are called there.
#[derive(Debug, Clone)]
struct Naming {
    calls_us: String,
    host: String,
}

/// What is kept of a channel in the data folder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeptChannel {
    settled: u64,
    fates: Vec<(u64, Fate)>,
    heard_in: Option<(u64, u64)>,
    floor: u64,
    carry: bool,
}

#[derive(Default)]
struct Inner {
    recent: VecDeque<Arc<RemoteMessage>>,
    recent_bytes: usize,
    /// `recent` has all that there is from this ordinal on; 0: nothing was delivered yet.
    begins: u64,
    /// All messages of the outbox up to here are settled.
    settled: u64,
    /// Those behind that are, too.
    ahead: BTreeSet<u64>,
    fates: BTreeMap<u64, Fate>,
    /// Those that are not settled and were sent in this run.
    sent: BTreeSet<u64>,
    waiters: HashMap<u64, Vec<oneshot::Sender<Fate>>>,
    said: Said,
    /// Those on their way to the peer now; and why they would not be sent any more, where that is so by now.
    flying: BTreeMap<u64, Option<&'static str>>,
    /// Being said, by whom, and so not in the outbox yet: how many, and their bytes.
    places: HashMap<PersonaName, (usize, usize)>,
    /// In which of this realm's epochs the peer was heard of first, and how far its channel had come then.
    heard_in: Option<(u64, u64)>,
    /// The same, as the data folder has it for sure. Where they differ nobody here is told where reading begins.
    heard_kept: Option<(u64, u64)>,
    /// What stands up to there is history, says the peer.
    floor: u64,
    carry: bool,
    changed: bool,
}

/// Those that this run said and that are not settled.
#[derive(Default)]
struct Said {
    notes: BTreeMap<u64, Noted>,
    /// How many of them are whose, and their bytes.
    tallies: HashMap<PersonaName, (usize, usize)>,
    bytes: usize,
}

/// What this run knows of a message that it said.
struct Noted {
    whose: PersonaName,
    bytes: usize,
    under: GrantId,
}

impl Said {
    /// A repeat is what was said first.
    fn note(&mut self, ordinal: u64, noted: Noted) {
        if let btree_map::Entry::Vacant(place) = self.notes.entry(ordinal) {
            let tally = self.tallies.entry(noted.whose.clone()).or_default();
            *tally = (tally.0 + 1, tally.1 + noted.bytes);
            self.bytes += noted.bytes;
            place.insert(noted);
        }
    }

    fn forget(&mut self, ordinal: u64) {
        let Some(noted) = self.notes.remove(&ordinal) else {
            return;
        };
        self.bytes -= noted.bytes;
        if let Some(tally) = self.tallies.get_mut(&noted.whose) {
            *tally = (tally.0 - 1, tally.1 - noted.bytes);
            if tally.0 == 0 {
                self.tallies.remove(&noted.whose);
            }
        }
    }

    /// What the fence ended is not sent any more.
    fn fenced(&mut self, through: u64) {
        while let Some((oldest, _)) = self.notes.first_key_value()
            && *oldest <= through
        {
            let oldest = *oldest;
            self.forget(oldest);
        }
    }

    /// How many are this one's, and their bytes.
    fn of(&self, whose: &PersonaName) -> (usize, usize) {
        self.tallies.get(whose).copied().unwrap_or_default()
    }
}

/// One of a peer's channels. Shared by all threads.
pub struct Remote {
    name: ChannelName,
    there: ChannelName,
    record: Arc<Record>,
    /// How far the outbox had come when this run began.
    begun: u64,
    /// The peer's epoch, as far as it is known; 0: it is not.
    epoch: Arc<AtomicU64>,
    /// Told when it is to be kept at once.
    urgent: Arc<Notify>,
    inner: Mutex<Inner>,
    heard: watch::Sender<Heard>,
    standing: watch::Sender<Standing>,
    /// When the peer got out of reach, the last time that it did.
    away_since: Mutex<Instant>,
    naming: Mutex<Option<Naming>>,
}

/// Room in the outbox for what is being said.
pub struct Place {
    remote: Arc<Remote>,
    whose: PersonaName,
    count: usize,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.remote.inner();
        if let Some((count, bytes)) = inner.places.get_mut(&self.whose) {
            *count -= self.count;
            *bytes -= self.bytes;
            if *count == 0 {
                inner.places.remove(&self.whose);
            }
        }
    }
}

/// Messages on their way to the peer: what becomes of them is for the peer to say, as long as this is kept.
pub(super) struct Flight {
    remote: Arc<Remote>,
    ordinals: Vec<u64>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        for ordinal in &self.ordinals {
            let over = self.remote.inner().flying.remove(ordinal).flatten();
            if let Some(why) = over {
                // The peer did not say what became of it; where it did, that stays.
                self.remote.withdraw(*ordinal, why);
            }
        }
    }
}

/// Whose share of an outbox a persona's messages take: its own, or for all its guests that of the peer that brought it.
fn sharer(persona: &PersonaName) -> PersonaName {
    persona.brought_by().unwrap_or_else(|| persona.clone())
}

/// What fails since the peer is out of reach.
pub fn disconnected(text: &str) -> capnp::Error {
    error::busy(&format!("disconnected: {text}"))
}

impl Remote {
    /// The channel that is called so here; nothing is known of it but what was kept. None: it is no peer's.
    pub fn new(
        name: ChannelName,
        record: Arc<Record>,
        epoch: Arc<AtomicU64>,
        urgent: Arc<Notify>,
        kept: KeptChannel,
    ) -> Option<Arc<Self>> {
        let there = name.at_peer()?;
        // Of a log that lost its end, the places are given out anew.
        let latest = record
            .state()
            .channel(&name)
            .map_or(0, |view| view.latest.0);
        let kept = KeptChannel {
            settled: kept.settled.min(latest),
            fates: kept
                .fates
                .into_iter()
                .filter(|(ordinal, _)| *ordinal <= latest)
                .collect(),
            ..kept
        };
        let inner = Inner {
            settled: kept.settled,
            ahead: kept
                .fates
                .iter()
                .map(|(ordinal, _)| *ordinal)
                .filter(|ordinal| *ordinal > kept.settled)
                .collect(),
            fates: kept.fates.into_iter().collect(),
            heard_in: kept.heard_in,
            heard_kept: kept.heard_in,
            floor: kept.floor,
            carry: kept.carry,
            ..Inner::default()
        };
        Some(Arc::new(Self {
            name,
            there,
            record,
            begun: latest,
            epoch,
            urgent,
            inner: Mutex::new(inner),
            heard: watch::channel(Heard::default()).0,
            standing: watch::channel(Standing::Away("there is no link yet".into())).0,
            away_since: Mutex::new(Instant::now()),
            naming: Mutex::default(),
        }))
    }

    /// What is to be kept of it, and whether that changed since this was asked last.
    pub fn keep(&self) -> (KeptChannel, bool) {
        let mut inner = self.inner();
        let changed = std::mem::take(&mut inner.changed);
        let kept = KeptChannel {
            settled: inner.settled,
            fates: inner.fates.iter().map(|(o, f)| (*o, f.clone())).collect(),
            heard_in: inner.heard_in,
            floor: inner.floor,
            carry: inner.carry,
        };
        (kept, changed)
    }

    /// The data folder has this of it now.
    pub(super) fn was_kept(&self, kept: &KeptChannel) {
        {
            let mut inner = self.inner();
            if inner.heard_kept == kept.heard_in {
                return;
            }
            inner.heard_kept = kept.heard_in;
        }
        // Whoever waits to begin looks again.
        self.heard.send_modify(|_| {});
    }

    /// The peer is heard in this epoch of ours. Where reading begins follows from that, and is kept before anybody goes by it.
    fn hear(&self, inner: &mut Inner, epoch: Epoch, latest: u64) {
        inner.hear(epoch, latest);
        if inner.heard_in != inner.heard_kept {
            self.urgent.notify_one();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is called here.
    pub fn name(&self) -> &ChannelName {
        &self.name
    }

    /// What it is called at the peer.
    pub fn there(&self) -> &ChannelName {
        &self.there
    }

    fn peer(&self) -> &str {
        self.name.peer().unwrap_or_default()
    }

    /// The peer's epoch, as far as it is known.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.epoch.load(Ordering::SeqCst) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    // -- Whether it can be used

    /// Whether the peer is out of reach.
    pub fn is_away(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Away(_))
    }

    /// Whether it can be used now.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    pub(super) fn set_standing(&self, standing: Standing) {
        if matches!(standing, Standing::Away(_)) && !self.is_away() {
            *self.away_since() = Instant::now();
        }
        self.standing.send_replace(standing);
    }

    fn away_since(&self) -> MutexGuard<'_, Instant> {
        let since = self.away_since.lock();
        since.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a peer that has just got out of reach, as it does for a moment whenever its epoch or its grants change. Answers whether it
    /// can be asked again; not, at once, where it has been out of reach for [`REMOTE_BACK`](limits::REMOTE_BACK) already.
    async fn is_back(&self) -> bool {
        let since = match self.is_away() {
            true => *self.away_since(),
            // The link has let go of it, and is about to say so.
            false => Instant::now(),
        };
        let mut standing = self.standing.subscribe();
        let back = standing.wait_for(|standing| match standing {
            Standing::Away(_) => false,
            Standing::NotGranted => true,
            Standing::Up(granted) => !granted.requests.is_closed() && self.epoch().is_some(),
        });
        let back = tokio::time::timeout_at(since + limits::REMOTE_BACK, back).await;
        back.is_ok_and(|standing| standing.is_ok())
    }

    /// What the peer grants, when a peer that has just got out of reach is back.
    ///
    /// # Errors
    /// As for [`Remote::granted`].
    pub async fn granted_soon(&self) -> Result<Arc<Granted>, capnp::Error> {
        let last = Instant::now() + limits::REMOTE_PATIENCE;
        loop {
            let granted = self.granted();
            let is_settled = granted.is_ok() || self.is_not_granted();
            if is_settled || Instant::now() > last || !self.is_back().await {
                return granted;
            }
        }
    }

    /// What the peer grants.
    ///
    /// # Errors
    /// Busy while it is out of reach; denied when it grants nothing.
    pub fn granted(&self) -> Result<Arc<Granted>, capnp::Error> {
        match &*self.standing.borrow() {
            // What was granted is over, and those who hold it are being told. Who comes now is to have what there is next.
            Standing::Up(_) if self.epoch().is_none() => Err(disconnected(&format!(
                "what {} lent is over; try again",
                self.peer()
            ))),
            Standing::Up(granted) => Ok(granted.clone()),
            Standing::Away(why) => Err(disconnected(&format!(
                "{} is out of reach ({why}); try again",
                self.peer()
            ))),
            Standing::NotGranted => Err(self.not_granted()),
        }
    }

    fn is_not_granted(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::NotGranted)
    }

    fn not_granted(&self) -> capnp::Error {
        error::denied(&self.not_granted_text())
    }

    pub(super) fn not_granted_text(&self) -> String {
        format!(
            "{} grants this host no channel '{}' (its operator may: agora grant)",
            self.peer(),
            self.there
        )
    }

    // -- What is heard

    pub(super) fn set_naming(&self, known: &Known) {
        let naming = Naming {
            calls_us: known.calls_us.clone(),
            host: known.host.short(),
        };
        *self.naming.lock().unwrap_or_else(PoisonError::into_inner) = Some(naming);
    }

    /// As whom a persona of this host speaks there, as its messages' author: at the peer itself. For a channel that is a further peer's,
    /// the end of the name.
    pub fn echo(&self, persona: &PersonaId) -> Echo {
        let naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(naming) = &*naming else {
            return Echo::Unknown;
        };
        let own = match persona.name.is_plain() || persona.name.is_guest() {
            true => format!("{}/{}", naming.calls_us, persona.name),
            false => format!("peer:{}", naming.calls_us),
        };
        match self.there.is_remote() {
            false => Echo::Whole(format!("{own}@{}", naming.host)),
            true => {
                let hops = self.there.as_str().matches('/').count();
                Echo::End(hops, own)
            }
        }
    }

    /// How far the peer's channel has come.
    pub fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// Which ordinal to follow from.
    pub(super) fn follow_from(&self, latest: u64) -> u64 {
        let inner = self.inner();
        match inner.begins {
            0 => latest + 1,
            _ => self.heard.borrow().latest.min(latest) + 1,
        }
    }

    /// The peer has told where it stands. Deliveries follow from `from` on.
    pub(super) fn begins(&self, epoch: Epoch, from: u64, latest: u64, floor: u64, carry: bool) {
        {
            let mut inner = self.inner();
            if inner.begins == 0 || from < inner.begins {
                inner.recent.clear();
                inner.recent_bytes = 0;
                inner.begins = from;
            }
            inner.floor = floor;
            inner.carry = carry;
            inner.changed = true;
            self.hear(&mut inner, epoch, latest);
        }
        self.heard.send_modify(|heard| {
            // What is between comes with the deliveries.
            heard.latest = from.saturating_sub(1);
            heard.is_known = true;
        });
    }

    /// Messages came, in order.
    pub(super) fn came(&self, epoch: Epoch, mut messages: Vec<Arc<RemoteMessage>>) {
        // The order is the peer's to keep, and nobody here depends on that.
        let mut next = self.heard.borrow().latest;
        messages.retain(|message| {
            let rises = message.ordinal > next && message.ordinal <= ORDINAL_MAX;
            next = if rises { message.ordinal } else { next };
            rises
        });
        let Some(last) = messages.last().map(|message| message.ordinal) else {
            return;
        };
        {
            let mut inner = self.inner();
            let before = self.heard.borrow().latest;
            self.hear(&mut inner, epoch, before);
            for message in messages {
                inner.recent_bytes += message.bytes();
                inner.recent.push_back(message);
            }
            while inner.recent.len() > limits::REMOTE_RECENT_MAX
                || inner.recent_bytes > limits::REMOTE_RECENT_BYTES_MAX
            {
                let Some(oldest) = inner.recent.pop_front() else {
                    break;
                };
                inner.recent_bytes -= oldest.bytes();
                inner.begins = oldest.ordinal + 1;
            }
        }
        self.heard
            .send_modify(|heard| heard.latest = heard.latest.max(last));
    }

    pub(super) fn pruned(&self, through: u64) {
        let through = through.min(ORDINAL_MAX);
        self.heard.send_modify(|heard| {
            heard.pruned = heard.pruned.max(through);
            heard.latest = heard.latest.max(through);
        });
    }

    /// What stands up to there is history for everybody here. None: the peer has not told yet.
    pub fn floor(&self, epoch: Epoch) -> Option<u64> {
        let heard = *self.heard.borrow();
        if !heard.is_known {
            return None;
        }
        let mut inner = self.inner();
        self.hear(&mut inner, epoch, heard.latest);
        let first = inner.heard_in.map_or(0, |(_, latest)| latest);
        Some(match inner.carry {
            true => inner.floor,
            false => inner.floor.max(first),
        })
    }

    /// The same, once the data folder has it: after a crash it is not another, and nothing that was unread is history. None: not yet.
    pub fn kept_floor(&self, epoch: Epoch) -> Option<u64> {
        let floor = self.floor(epoch)?;
        let inner = self.inner();
        (inner.heard_in == inner.heard_kept).then_some(floor)
    }

    /// The persona's place: what it answered, silence, and the floor.
    pub fn cursor(&self, silent: &SilentCursors, state: &State, persona: &PersonaId) -> Ordinal {
        let floor = self.kept_floor(state.epoch()).unwrap_or(0);
        silent
            .effective(state, persona, &self.name)
            .max(Ordinal(floor))
    }

    /// Messages from an ordinal on: what is remembered, or what the peer answers.
    ///
    /// # Errors
    /// Busy while the peer is out of reach, or too much is asked of it.
    pub async fn messages(&self, from: u64, count: usize) -> Result<Page, capnp::Error> {
        {
            let inner = self.inner();
            if inner.begins != 0 && from >= inner.begins {
                let at = inner.recent.partition_point(|m| m.ordinal < from);
                let mut page = Page {
                    next: from,
                    pruned: self.heard.borrow().pruned,
                    ..Page::default()
                };
                let mut bytes = 0;
                for message in inner.recent.range(at..).take(count) {
                    bytes += message.bytes();
                    if bytes > limits::BATCH_BYTES_MAX && !page.messages.is_empty() {
                        break;
                    }
                    page.next = message.ordinal + 1;
                    page.messages.push(message.clone());
                }
                return Ok(page);
            }
        }
        Ok(self.history(from, count as u32).await?)
    }

    /// Messages from the peer, when a peer that has just got out of reach is back; `from` says from which ordinal on, once it is.
    ///
    /// # Errors
    /// As for [`Remote::messages`], and those of `from`.
    pub async fn history_soon(
        &self,
        from: impl Fn() -> Result<u64, capnp::Error>,
        count: u32,
    ) -> Result<Page, capnp::Error> {
        let last = Instant::now() + limits::REMOTE_PATIENCE;
        loop {
            self.granted_soon().await?;
            match self.history(from()?, count).await {
                Ok(page) => return Ok(page),
                Err(Missed::Away(_)) if Instant::now() < last && self.is_back().await => {
                    // What ends in between is seen by the link soon.
                    tokio::time::sleep(limits::REMOTE_BACK_AGAIN).await;
                }
                Err(missed) => return Err(missed.into()),
            }
        }
    }

    /// Messages from an ordinal on, from the peer.
    ///
    /// # Errors
    /// As for [`Remote::messages`].
    pub async fn history(&self, from: u64, count: u32) -> Result<Page, Missed> {
        let granted = self
            .granted()
            .map_err(|error| match self.is_not_granted() {
                true => Missed::Failed(error),
                false => Missed::Away(error),
            })?;
        let (answer, answered) = oneshot::channel();
        let request = History {
            from,
            count,
            answer,
        };
        let lost = || {
            let text = format!("the link to {} was lost; try again", self.peer());
            Missed::Away(disconnected(&text))
        };
        granted
            .requests
            .try_send(request)
            .map_err(|why| match why {
                TrySendError::Full(_) => {
                    Missed::Failed(error::busy("too much is asked of the peer; wait"))
                }
                TrySendError::Closed(_) => lost(),
            })?;
        let answer = answered.await.map_err(|_| lost())?;
        let mut page = answer.map_err(|error| match error::classify(&error) {
            // What it lent is over, or the connection. Who holds it here is about to be told, where that is an end for them too.
            Kind::Stale => lost(),
            _ => Missed::Failed(error),
        })?;
        let mut next = from;
        page.messages.retain(|message| {
            let rises = message.ordinal >= next && message.ordinal <= ORDINAL_MAX;
            next = if rises { message.ordinal + 1 } else { next };
            rises
        });
        page.next = match page.messages.is_empty() {
            true => page
                .next
                .clamp(from, from.max(self.heard.borrow().latest + 1)),
            false => next,
        };
        page.pruned = page.pruned.min(self.heard.borrow().latest);
        if page.pruned > 0 {
            self.heard
                .send_modify(|heard| heard.pruned = heard.pruned.max(page.pruned));
        }
        Ok(page)
    }

    // -- What is said for it

    /// How far the outbox has come, and up to where its messages will not be sent any more: settled, or of an earlier epoch.
    fn span(&self) -> (u64, u64) {
        let state = self.record.state();
        let view = state.channel(&self.name);
        view.map_or((0, 0), |view| (view.latest.0, view.fenced.0))
    }

    /// How many messages the peer has not settled that may yet be sent.
    pub fn waiting(&self) -> u64 {
        let (latest, fenced) = self.span();
        self.inner().waiting(latest, fenced)
    }

    /// Takes room for what is about to be said: at most half of what others leave, so that nobody takes it all.
    ///
    /// # Errors
    /// Overloaded when too much waits; no right when the peer grants nothing on it.
    pub fn reserve(
        self: &Arc<Self>,
        by: &PersonaName,
        count: usize,
        bytes: usize,
    ) -> Result<Place, (Refusal, String)> {
        if matches!(*self.standing.borrow(), Standing::NotGranted) {
            return Err((Refusal::NoRight, self.not_granted_text()));
        }
        let whose = sharer(by);
        let (latest, fenced) = self.span();
        let mut inner = self.inner();
        let waiting = inner.waiting(latest, fenced) as usize;
        let ((own, own_bytes), (placed, all_bytes)) = inner.taken(&whose, fenced);
        let share = |max: usize, others: usize| max.saturating_sub(others) / 2;
        let others = (waiting + placed).saturating_sub(own);
        if count > 0
            && (own + count > share(limits::OUTBOX_WAITING_MAX, others)
                || own_bytes + bytes
                    > share(limits::OUTBOX_WAITING_BYTES_MAX, all_bytes - own_bytes)
                || inner.ahead.len() > limits::OUTBOX_SETTLED_MAX)
        {
            let text = format!(
                "overloaded: {own} messages of {whose} and {others} of others wait to be sent to {}; say it again when there are fewer",
                self.peer()
            );
            return Err((Refusal::Overloaded, text));
        }
        let place = inner.places.entry(whose.clone()).or_default();
        place.0 += count;
        place.1 += bytes;
        drop(inner);
        Ok(Place {
            remote: self.clone(),
            whose,
            count,
            bytes,
        })
    }

    /// These stand in the outbox now, or what is told of them says otherwise.
    pub fn note(&self, by: &PersonaName, under: GrantId, said: &[Outcome], sizes: &[usize]) {
        let whose = sharer(by);
        let mut inner = self.inner();
        for (outcome, bytes) in said.iter().zip(sizes) {
            if let Outcome::Receipt { placed, .. } = outcome
                && !inner.is_settled(placed.ordinal.0)
            {
                let noted = Noted {
                    whose: whose.clone(),
                    bytes: *bytes,
                    under,
                };
                inner.said.note(placed.ordinal.0, noted);
            }
        }
    }

    /// Whether something that this run said under this grant, or one below it, is still to be said there.
    pub fn is_owed_under(&self, state: &State, grant: &GrantId) -> bool {
        let below = |mut id: GrantId| loop {
            if id == *grant {
                return true;
            }
            match state.grant(&id).and_then(|grant| grant.parent) {
                Some(parent) => id = parent,
                None => return false,
            }
        };
        let inner = self.inner();
        inner.said.notes.values().any(|said| below(said.under))
    }

    /// What became of these at the peer, as whoever said them is told; they stand in the outbox. Where the peer is out of reach, or doesn't
    /// take them in [`OUTBOX_PATIENCE`](limits::OUTBOX_PATIENCE), they are said when it is back.
    pub async fn settle(&self, said: Vec<Outcome>) -> Vec<Outcome> {
        let until = tokio::time::Instant::now() + limits::OUTBOX_PATIENCE;
        let mut told = Vec::with_capacity(said.len());
        for outcome in said {
            let ordinal = match &outcome {
                Outcome::Receipt { placed, .. } => placed.ordinal.0,
                Outcome::Refused(..) => {
                    told.push(outcome);
                    continue;
                }
            };
            told.push(self.fate(ordinal, until).await.told(outcome));
        }
        told
    }

    async fn fate(&self, ordinal: u64, until: tokio::time::Instant) -> Fate {
        let (_, fenced) = self.span();
        let settled = {
            let mut inner = self.inner();
            if let Some(fate) = inner.fates.get(&ordinal) {
                return fate.clone();
            }
            if inner.is_settled(ordinal) {
                let refusal = match ordinal <= fenced {
                    true => Refusal::StaleEpoch,
                    false => Refusal::KeyExpired,
                };
                return Fate::refused(refusal, &refusal.to_string());
            }
            let (told, settled) = oneshot::channel();
            let waiters = inner.waiters.entry(ordinal).or_default();
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.push(told);
            settled
        };
        let mut standing = self.standing.subscribe();
        let away = standing.wait_for(|standing| matches!(standing, Standing::Away(_)));
        let why = tokio::select! {
            biased;
            fate = settled => match fate {
                Ok(fate) => return fate,
                Err(_) => "is out of reach (the host is ending)".to_owned(),
            },
            away = away => match away.as_deref() {
                Ok(Standing::Away(why)) => format!("is out of reach ({why})"),
                _ => "is out of reach (the host is ending)".to_owned(),
            },
            () = tokio::time::sleep_until(until) => {
                format!("has not taken it in {:?}", limits::OUTBOX_PATIENCE)
            }
        };
        let text = format!("{} {why}; {}", self.peer(), Refusal::PeerAway);
        Fate::refused(Refusal::PeerAway, &text)
    }

    /// The first message that is not settled.
    pub(super) fn unsettled(&self) -> u64 {
        self.inner().settled + 1
    }

    pub(super) fn is_settled(&self, ordinal: u64) -> bool {
        self.inner().is_settled(ordinal)
    }

    /// It is about to be sent. Answers whether it may have been before.
    pub(super) fn sends(&self, ordinal: u64) -> bool {
        !self.inner().sent.insert(ordinal) || ordinal <= self.begun
    }

    /// These are about to be sent.
    pub(super) fn fly(self: &Arc<Self>, ordinals: Vec<u64>) -> Flight {
        let flying = ordinals.iter().map(|ordinal| (*ordinal, None));
        self.inner().flying.extend(flying);
        Flight {
            remote: self.clone(),
            ordinals,
        }
    }

    /// What is told of a message that is not sent any more.
    pub(super) fn withdrawn(&self, ordinal: u64, why: &str) -> Fate {
        let may_be_there = ordinal <= self.begun || self.inner().sent.contains(&ordinal);
        let rest = match may_be_there {
            true => "; whether it got there before is not known",
            false => "; it never will be said",
        };
        Fate::refused(Refusal::Revoked, &format!("{why}{rest}"))
    }

    /// A message is not sent any more. One that is on its way now is the peer's to settle, if it does.
    fn withdraw(&self, ordinal: u64, why: &'static str) {
        if let Some(over) = self.inner().flying.get_mut(&ordinal) {
            *over = Some(why);
            return;
        }
        let fate = self.withdrawn(ordinal, why);
        self.settled(ordinal, Some(fate));
    }

    /// What this host's personas said, the peer has not settled, and `over` says is not to be said any more, is never sent. Answers whether
    /// there was any.
    pub(super) async fn withhold(
        &self,
        host: HostId,
        over: &(dyn Fn(&Entry) -> Option<&'static str> + Sync),
    ) -> bool {
        let mut any = false;
        let latest = self.record.state().channel(&self.name);
        let latest = latest.map_or(0, |view| view.latest.0);
        let mut next = self.unsettled();
        while next <= latest {
            let (from, bytes) = (Ordinal(next), limits::BATCH_BYTES_MAX);
            let batch = self
                .record
                .messages(&self.name, from, limits::OUTBOX_AHEAD_MAX, bytes);
            let batch = match batch.await {
                Ok(batch) if !batch.is_empty() => batch,
                Ok(_) => return any,
                Err(error) => {
                    tracing::warn!(
                        "'{}' can't be read for what is not to be said: {error}",
                        self.name
                    );
                    return any;
                }
            };
            for kept in batch {
                next = kept.ordinal.0 + 1;
                let entry = kept.sealed.entry();
                if entry.host == host
                    && !self.is_settled(kept.ordinal.0)
                    && let Some(why) = over(entry)
                {
                    self.withdraw(kept.ordinal.0, why);
                    any = true;
                }
            }
        }
        any
    }

    /// A message is settled; with no fate where nobody here asks for it.
    pub(super) fn settled(&self, ordinal: u64, fate: Option<Fate>) {
        let mut inner = self.inner();
        if ordinal <= inner.settled || !inner.ahead.insert(ordinal) {
            return;
        }
        loop {
            let next = inner.settled + 1;
            if !inner.ahead.remove(&next) {
                break;
            }
            inner.settled = next;
        }
        inner.changed = true;
        inner.said.forget(ordinal);
        inner.sent.remove(&ordinal);
        let waiters = inner.waiters.remove(&ordinal);
        let Some(fate) = fate else {
            return;
        };
        for waiter in waiters.into_iter().flatten() {
            let _ = waiter.send(fate.clone());
        }
        inner.fates.insert(ordinal, fate);
        while inner.fates.len() > limits::OUTBOX_FATES_MAX {
            let is_over = inner.fates.len() > limits::OUTBOX_FATES_AHEAD_MAX;
            let settled = inner.settled;
            match inner.fates.first_key_value() {
                // Those behind are what a later run would send again. The peer knows their keys, too.
                Some((oldest, _)) if *oldest <= settled || is_over => drop(inner.fates.pop_first()),
                _ => break,
            }
        }
    }
}

impl Inner {
    fn is_settled(&self, ordinal: u64) -> bool {
        ordinal <= self.settled || self.ahead.contains(&ordinal)
    }

    fn waiting(&self, latest: u64, fenced: u64) -> u64 {
        let behind = self.settled.max(fenced);
        let ahead = match behind == self.settled {
            // All of them, and they may be many where one author's first message is held up.
            true => self.ahead.len() as u64,
            false => self.ahead.range(behind + 1..).count() as u64,
        };
        latest.saturating_sub(behind).saturating_sub(ahead)
    }

    /// How many messages of this one's wait or are being said, and their bytes; and how many are being said by all, and the bytes of all.
    fn taken(&mut self, whose: &PersonaName, fenced: u64) -> ((usize, usize), (usize, usize)) {
        self.said.fenced(fenced);
        let (mut own, mut all) = (self.said.of(whose), (0, self.said.bytes));
        for (author, (count, bytes)) in &self.places {
            all = (all.0 + count, all.1 + bytes);
            if author == whose {
                own = (own.0 + count, own.1 + bytes);
            }
        }
        (own, all)
    }

    /// The peer is heard in this epoch of ours.
    fn hear(&mut self, epoch: Epoch, latest: u64) {
        if self.heard_in.is_none_or(|(known, _)| known < epoch.0) {
            self.heard_in = Some((epoch.0, latest));
            self.changed = true;
        }
    }
}

/// What tells a persona's own messages from others'.
pub enum Echo {
    /// The peer has not said yet how it calls us.
    Unknown,
    /// The author as the peer writes it.
    Whole(String),
    /// How many peers' names stand before this end of the author's name.
    End(usize, String),
}

impl Echo {
    /// Whether this author is the persona itself.
    pub fn is(&self, author: &str) -> bool {
        match self {
            Self::Unknown => false,
            Self::Whole(own) => own == author,
            Self::End(hops, own) => {
                let name = author.split_once('@').map_or(author, |(name, _)| name);
                let before = name.strip_suffix(own.as_str());
                let before = before.and_then(|before| before.strip_suffix('/'));
                before.is_some_and(|before| before.split('/').count() == *hops)
            }
        }
    }
}

/// As whom a persona's messages are forwarded: as itself, a guest there; or as this host, who has no other name there.
pub fn speaks_as(name: &PersonaName) -> Option<&PersonaName> {
    (name.is_plain() || name.is_guest()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_known_by_its_whole_name_or_the_end_of_it() {
        let whole = Echo::Whole("alpha/synth@0a0b0c0d".into());
        assert!(whole.is("alpha/synth@0a0b0c0d"));
        assert!(!whole.is("alpha/synth@0a0b0c0e") && !whole.is("synth@0a0b0c0d"));
        let end = Echo::End(1, "alpha/synth".into());
        assert!(end.is("bravo/alpha/synth@0a0b0c0d"));
        assert!(!end.is("alpha/synth@0a0b0c0d"));
        assert!(!end.is("x/bravo/alpha/synth@0a0b0c0d"));
        assert!(!end.is("bravo/xalpha/synth@0a0b0c0d"));
    }

    #[test]
    fn a_fate_is_kept_as_it_was() {
        let refused = Fate::refused(Refusal::CountSpent, "spent");
        assert_eq!(refused.refusal(), Some(Refusal::CountSpent));
        let bytes = postcard::to_stdvec(&refused).unwrap();
        assert_eq!(postcard::from_bytes::<Fate>(&bytes).unwrap(), refused);
    }
}
