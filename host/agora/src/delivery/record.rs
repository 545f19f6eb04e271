//! The record: the log, judged.
//!
//! In: sealed entries to append; the log's own ordered tail. Out: what counts, by channel and ordinal; receipts; news.
//! Promise: everything a host says of the realm comes from [`judge`] over the tail; a commit is answered only when the log has
//! made the entry durable *and* it has come back through the tail and been judged.
//! Failure: a log that can't take an entry now says so, and nothing of the entry counts. A log that is not what it was has diverged:
//! from then on nothing of it is judged, and nothing is committed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use agora_log::{Class, Durability, Log, LogError, Seq};
use agora_realm::{
    Body, Change, ChannelName, EntryId, Epoch, HostId, Judged, Junk, MessageVerdict, NoteBody,
    Ordinal, Refusal, Sealed, State, judge, merkle,
};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, broadcast, oneshot, watch};

use super::forks::Told;
use super::gathering::{self, lane_of, stubs_in};
use super::hearing::Hearing;
use super::index::{Index, Place};
use super::lots;
use super::pruned::{Pruned, Unaccounted};
use super::tip::Tip;
use super::tree::{LogTree, TreeError};
use crate::limits;

/// One place of the log, judged.
#[derive(Debug)]
pub struct Settled {
    /// Where.
    pub seq: u64,
    /// The entry, unless what stands there is none.
    pub sealed: Result<Sealed, Junk>,
    /// What judge says of it.
    pub judged: Judged,
}

/// What became of a commit.
#[derive(Debug)]
pub struct Committed {
    /// The entry in its place.
    pub settled: Arc<Settled>,
    /// What the log says it did to keep it.
    pub durability: Durability,
}

/// A counting message, as read from the record.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its place among the channel's counting messages.
    pub ordinal: Ordinal,
    /// Where it stands.
    pub place: Place,
    /// The entry that holds it.
    pub sealed: Sealed,
}

impl Kept {
    /// The message itself.
    pub fn message(&self) -> &agora_realm::Message {
        match &self.sealed.entry().body {
            agora_realm::Body::Turn(turn) => &turn.messages[usize::from(self.place.index)],
            _ => unreachable!("only places of turns' messages are indexed"),
        }
    }
}

/// Why the record can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The tree over the log failed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The derived files failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log belongs to another realm than the folder.
    #[error(
        "the log begins realm {found}, but this data folder belongs to realm {pinned} (restore the folder's own log)"
    )]
    OtherRealm {
        /// What the log says.
        found: String,
        /// What the folder says.
        pinned: String,
    },
    /// The index names what is not a message of the channel.
    #[error(
        "the index of '{channel}' is damaged at message {ordinal} (stop the host and move the files of the folder `index` and the file \
         `state` away: they are made anew from the log)"
    )]
    Index {
        /// Of which channel.
        channel: ChannelName,
        /// Where.
        ordinal: Ordinal,
    },
    /// The log does not hold what this host has seen.
    #[error(
        "the log has diverged: this host has seen {seen}, but {found} (restore the log from a copy that has it; if it is on a server, say \
         --log; or accept the loss with `agora doctor --accept-loss REASON`)"
    )]
    Diverged {
        /// What was seen.
        seen: Tip,
        /// What is there instead.
        found: String,
    },
}

#[derive(Default)]
struct Recent {
    entries: VecDeque<Arc<Settled>>,
    bytes: usize,
}

type Waiter = oneshot::Sender<Result<Arc<Settled>, LogError>>;

/// An entry on its way through the log.
struct Commit {
    sealed: Sealed,
    settled: Waiter,
    /// When it was handed to the log; none: it may have been before, and so proves nothing of when it came to stand there.
    handed: Option<Duration>,
}

/// What came by on the tail, and is yet to be judged.
struct Came {
    seq: u64,
    /// Of what stands there, if that is an entry.
    id: Option<EntryId>,
    /// For one that this process waited for when it came: when that was handed to the log.
    handed: Option<Duration>,
    leaf: merkle::Hash,
    opened: Opened,
}

enum Opened {
    /// What this process signed, to the byte.
    Own(bytes::Bytes),
    /// Verified.
    Other(Box<Result<Sealed, Junk>>),
}

#[derive(Default)]
struct Waiting {
    commits: HashMap<EntryId, Commit>,
    /// Places that the log has acknowledged, and that have not come by on the tail yet.
    acknowledged: BTreeMap<u64, EntryId>,
    /// Why nothing comes by any more.
    ended: Option<LogError>,
}

/// The log, judged. Shared by all of a host.
pub struct Record {
    log: Arc<dyn Log>,
    state: RwLock<State>,
    index: Mutex<Index>,
    pruned: Arc<Pruned>,
    recent: Mutex<Recent>,
    waiting: Mutex<Waiting>,
    channels: Mutex<HashMap<ChannelName, watch::Sender<u64>>>,
    feed: broadcast::Sender<Arc<Settled>>,
    snapshot: PathBuf,
    snapshot_seq: AtomicU64,
    /// Held while a snapshot is written, and by nothing else.
    snapshotting: Mutex<()>,
    failed: watch::Sender<Option<String>>,
    diverged: watch::Sender<Option<String>>,
    hearing: Arc<Hearing>,
    /// Other hosts may append to the log.
    is_shared: bool,
    /// The latest epoch that each host is known to have come to.
    confirmed: watch::Sender<BTreeMap<HostId, Epoch>>,
    /// The place of the latest entry that is no marker.
    last_said: AtomicU64,
    /// The newest entry that was judged, and its bytes.
    latest: Mutex<Option<Tip>>,
    loss: Mutex<Option<Loss>>,
    /// Where the operator accepts a loss: the host's own decisions, and the stops of all hosts, that stood when this was opened.
    stood: HashSet<EntryId>,
    tree: LogTree,
    fenced: Notify,
    /// What each host said last of the log, and nobody has compared yet.
    trees_told: Mutex<HashMap<HostId, Told>>,
    /// Entries that say something, since this host started.
    arrived: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these would be a defect of this file; what it left is still the best there is.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a host has seen of its log in earlier runs.
pub struct Seen {
    /// The newest entry.
    pub tip: Option<Tip>,
    /// The operator accepts that the log does not hold it.
    pub accepts_loss: bool,
    /// The host itself.
    pub host: HostId,
}

/// What a log lost, that its host had seen.
pub struct Loss {
    /// The first place that is known to be lost.
    pub first_seq: u64,
    /// What had been seen last.
    pub tip: Tip,
    /// The host's own decisions, and the stops of all hosts, that do stand in the log.
    pub stood: HashSet<EntryId>,
}

/// Where a record keeps what it derives.
pub struct Derived {
    /// The folder of the index.
    pub index: PathBuf,
    /// The file of the snapshot.
    pub snapshot: PathBuf,
    /// The file of the tree over the log.
    pub tree: PathBuf,
    /// The file of what is kept of pruned turns; not derived from anything.
    pub pruned: PathBuf,
}

/// What judge would say of a copy of what stands there.
fn repeated(seq: u64, sealed: Sealed) -> Settled {
    let messages = match &sealed.entry().body {
        Body::Turn(turn) => turn.messages.len(),
        _ => 0,
    };
    let judged = Judged {
        seq,
        id: Some(sealed.id()),
        verdict: Err(Refusal::Repeated),
        messages: vec![MessageVerdict::Void(Refusal::Repeated); messages],
        changes: Vec::new(),
    };
    Settled {
        seq,
        sealed: Ok(sealed),
        judged,
    }
}

impl Record {
    /// Judges the log up to its end: from the snapshot where there is a good one, else from its beginning. `is_shared`: other hosts may
    /// append to the log, too. `progress` is told how far it is, of how much, now and then.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn open(
        log: Arc<dyn Log>,
        derived: Derived,
        seen: Seen,
        is_shared: bool,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Arc<Self>, RecordError> {
        let io = |path: PathBuf| move |source| RecordError::Io { path, source };
        let pruned = Pruned::open(derived.pruned.clone()).map_err(io(derived.pruned.clone()))?;
        let pruned = Arc::new(pruned);
        let mut state = State::new();
        let mut start = None;
        let snapshot = read_snapshot(&derived.snapshot);
        let vouched = snapshot.as_ref().map(|snapshot| Tip {
            seq: snapshot.seq,
            leaf: snapshot.leaf,
        });
        if is_shared {
            let judged = snapshot.as_ref().map(|snapshot| &snapshot.state);
            gather(&*log, judged.cloned().unwrap_or_default(), &pruned).await?;
            if log.missing().count > pruned.count() as u64 {
                // What was kept of what the snapshot covers is not in the folder any more.
                gather(&*log, State::new(), &pruned).await?;
            }
            write_held(&pruned, limits::PRUNE_BYTES_MAX).await;
        }
        let mut loss = None;
        // The later one first: it is the one to be told.
        let mut tips: Vec<_> = seen.tip.into_iter().chain(vouched).collect();
        tips.sort_by_key(|tip| std::cmp::Reverse(tip.seq));
        for tip in tips {
            let Some(found) = tip.missing_in(&*log, &pruned).await? else {
                continue;
            };
            if !seen.accepts_loss {
                return Err(RecordError::Diverged { seen: tip, found });
            }
            let first_seq = tip.seq.min(log.end().0 + 1);
            loss.get_or_insert((first_seq, tip));
        }
        let mut latest = None;
        // What a log lost is found by looking at all that it has.
        if let (Some(snapshot), false) = (snapshot, seen.accepts_loss) {
            let ordinals = snapshot
                .state
                .channels()
                .map(|(n, c)| (n.clone(), c.latest));
            match Index::open(derived.index.clone(), ordinals.collect::<Vec<_>>()) {
                Ok(index) => {
                    state = snapshot.state;
                    start = Some((index, snapshot.seq));
                    latest = vouched;
                }
                Err(error) => tracing::warn!("judging the log from its beginning: {error}"),
            }
        }
        let (index, judged) = match start {
            Some(start) => start,
            None => {
                let index = Index::open(derived.index.clone(), []);
                (index.map_err(io(derived.index.clone()))?, 0)
            }
        };
        let kept = Some(pruned.clone());
        let tree =
            LogTree::open_with(derived.tree, log.clone(), kept, judged, &mut progress).await?;
        let mut record = Self {
            log,
            state: RwLock::new(state),
            index: Mutex::new(index),
            pruned,
            recent: Mutex::default(),
            waiting: Mutex::default(),
            channels: Mutex::default(),
            feed: broadcast::channel(limits::FEED_WAITING_MAX).0,
            snapshot: derived.snapshot,
            snapshot_seq: AtomicU64::new(judged),
            snapshotting: Mutex::default(),
            failed: watch::channel(None).0,
            diverged: watch::channel(None).0,
            hearing: Arc::new(Hearing::new(limits::LEASE)),
            is_shared,
            confirmed: watch::channel(BTreeMap::new()).0,
            last_said: AtomicU64::new(0),
            latest: Mutex::new(latest),
            loss: Mutex::default(),
            stood: HashSet::new(),
            tree,
            fenced: Notify::new(),
            trees_told: Mutex::default(),
            arrived: AtomicU64::new(0),
        };
        record.count_hosts();
        let end = record.log.end().0;
        let mut next = judged + 1;
        while next <= end {
            let batch = record.log.read(Seq(next), 4096, 16 << 20).await?;
            let Some((last, _)) = batch.last() else {
                break;
            };
            next = last.0 + 1;
            let places = match record.places_in(batch).await {
                Ok(places) => places,
                Err(error) => return Err(record.unreadable(error)),
            };
            for (seq, leaf, sealed) in lots::open_all(places).await {
                if let (true, Ok(sealed)) = (seen.accepts_loss, &sealed)
                    && sealed.entry().author.is_none()
                    && (sealed.entry().host == seen.host
                        || matches!(sealed.entry().body, Body::Revoke(_)))
                {
                    record.stood.insert(sealed.id());
                }
                record.settle(seq, leaf, sealed);
            }
            if let Err(error) = record.tree.keep() {
                tracing::warn!("the tree over the log can't be written: {error}");
            }
            write_held(&record.pruned, limits::PRUNE_BYTES_MAX).await;
            progress(next - 1, end);
        }
        if !record.accounts_for_what_is_missing() {
            let why = std::io::Error::other("checked");
            return Err(record.unreadable(why));
        }
        let loss = loss.map(|(first_seq, tip)| record.loss_of(first_seq, tip));
        *lock(&record.loss) = loss;
        Ok(Arc::new(record))
    }

    /// Follows the log's tail from where [`Record::open`] left off, until the log fails or is closed.
    pub async fn follow(self: Arc<Self>) {
        let next = self.state().last_seq().unwrap_or(0) + 1;
        let mut tail = self.log.tail(Seq(next));
        let mut lots = FuturesOrdered::new();
        let mut end = None;
        let mut every_second = tokio::time::interval(limits::MISSING_EVERY);
        every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        'following: loop {
            let may_read = end.is_none() && lots.len() < limits::TAIL_LOTS_AHEAD_MAX;
            tokio::select! {
                biased;
                Some(came) = lots.next(), if !lots.is_empty() => {
                    let came: Vec<Came> = match came {
                        Ok(came) => came,
                        Err(error) => {
                            let error: std::io::Error = error;
                            if self.diverged.borrow().is_none() {
                                tracing::error!("the log's tail ended: {error}");
                                self.failed.send_replace(Some(error.to_string()));
                            }
                            break 'following;
                        }
                    };
                    for came in came {
                        if !self.settle_next(came) {
                            break 'following;
                        }
                    }
                }
                _ = every_second.tick(), if self.is_shared && end.is_none() => {
                    if !self.accounts_for_what_is_missing() {
                        break 'following;
                    }
                }
                lot = lots::next(&mut tail), if may_read => {
                    end = lot.end;
                    if !lot.places.is_empty() {
                        lots.push_back(self.open_lot(lot.places));
                    }
                }
                else => {
                    match end {
                        None | Some(LogError::Closed) => {}
                        Some(LogError::Diverged { why, .. }) => {
                            self.diverge(why);
                        }
                        Some(error) => {
                            tracing::error!("the log's tail ended: {error}");
                            self.failed.send_replace(Some(error.to_string()));
                        }
                    }
                    break 'following;
                }
            }
        }
        self.end_waiting(LogError::Closed);
    }

    /// Opens what came by together. What this very process signed, and is the same to the byte, is known and needs no verifying.
    fn open_lot(
        self: &Arc<Self>,
        places: Vec<(Seq, bytes::Bytes)>,
    ) -> impl Future<Output = std::io::Result<Vec<Came>>> + Send + use<> {
        let named: Vec<_> = places
            .into_iter()
            .map(|(seq, bytes)| (seq, Sealed::id_of(&bytes), bytes))
            .collect();
        let (mut came, mut others) = (Vec::with_capacity(named.len()), Vec::new());
        let mut known = Vec::new();
        {
            let waiting = lock(&self.waiting);
            for (seq, id, bytes) in named {
                let own = id.and_then(|id| waiting.commits.get(&id));
                let own = own.filter(|own| own.sealed.stored() == &bytes);
                let handed = own.and_then(|own| own.handed);
                match own {
                    Some(_) => known.push((came.len(), bytes)),
                    None => others.push((seq, bytes)),
                }
                came.push(Came {
                    seq: seq.0,
                    id,
                    handed,
                    leaf: [0; 32],
                    opened: Opened::Own(bytes::Bytes::new()),
                });
            }
        }
        for (at, bytes) in known {
            came[at].leaf = merkle::leaf(&bytes);
            came[at].opened = Opened::Own(bytes);
        }
        let record = self.clone();
        async move {
            if others.is_empty() {
                return Ok(came);
            }
            let mut at = 0;
            for (seq, leaf, sealed) in lots::open_all(record.places_in(others).await?).await {
                while came[at].seq != seq {
                    at += 1;
                }
                came[at].leaf = leaf;
                came[at].opened = Opened::Other(Box::new(sealed));
            }
            Ok(came)
        }
    }

    /// Judges what came by next, and tells who waits for it. False: the log has diverged.
    fn settle_next(self: &Arc<Self>, came: Came) -> bool {
        let Came { seq, id, .. } = came;
        if self.diverged.borrow().is_some() {
            return false;
        }
        let expected = self.state().last_seq().unwrap_or(0) + 1;
        if seq != expected {
            self.diverge(format!("entry {seq} came where entry {expected} is next"));
            return false;
        }
        let (own, acknowledged) = {
            let mut waiting = lock(&self.waiting);
            let acknowledged = waiting.acknowledged.remove(&seq);
            (id.and_then(|id| waiting.commits.remove(&id)), acknowledged)
        };
        if acknowledged.is_some_and(|acknowledged| id != Some(acknowledged)) {
            self.diverge(format!(
                "entry {seq} is not the one that was acknowledged to stand there"
            ));
            return false;
        }
        let (own, waiter) = own.map(|own| (own.sealed, own.settled)).unzip();
        let sealed = match came.opened {
            Opened::Other(sealed) => *sealed,
            Opened::Own(bytes) => match own {
                Some(own) if own.stored() == &bytes => Ok(own),
                // Whoever waited for it was told meanwhile that it failed.
                _ => Sealed::reread(bytes),
            },
        };
        let settled = self.settle(seq, came.leaf, sealed);
        self.check_stubs(&settled);
        if let Some(handed) = came.handed {
            self.hearing.seen(handed);
        }
        // Somebody may have come to wait for it while it was judged: for an entry of an earlier attempt.
        if let Some(waiter) = waiter.or_else(|| self.late(seq, id)) {
            let _ = waiter.send(Ok(settled));
        }
        let since = seq - self.snapshot_seq.load(Ordering::Relaxed);
        if since >= limits::SNAPSHOT_EVERY
            || (since >= limits::SNAPSHOT_FOR_STUBS_EVERY
                && self.pruned.held_bytes() >= limits::HELD_STUBS_BYTES_MAX
                && self.snapshotting.try_lock().is_ok())
        {
            self.snapshot_seq.store(seq, Ordering::Relaxed);
            let record = self.clone();
            tokio::task::spawn_blocking(move || record.keep_snapshot());
        }
        true
    }

    /// Nothing comes by any more.
    fn end_waiting(&self, why: LogError) {
        let commits = {
            let mut waiting = lock(&self.waiting);
            waiting.acknowledged.clear();
            waiting.ended.get_or_insert_with(|| why.clone());
            std::mem::take(&mut waiting.commits)
        };
        for commit in commits.into_values() {
            let _ = commit.settled.send(Err(why.clone()));
        }
    }

    /// The log is not what it was: nothing of it is judged any more, and nothing committed. This is for good.
    pub fn diverge(&self, why: String) -> LogError {
        let mut first = why;
        self.diverged.send_if_modified(|diverged| match diverged {
            Some(known) => {
                first.clone_from(known);
                false
            }
            None => {
                *diverged = Some(first.clone());
                true
            }
        });
        let error = LogError::Diverged {
            place: "of this host".to_owned(),
            why: first,
            mend: "stop the host, and restore the log from a copy that has what it had; or accept the loss with `agora doctor \
                   --accept-loss REASON`"
                .to_owned(),
        };
        self.end_waiting(error.clone());
        error
    }

    /// Told why when the log turns out not to be what it was.
    pub fn divergence(&self) -> watch::Receiver<Option<String>> {
        self.diverged.subscribe()
    }

    /// The newest entry that was judged.
    pub fn tip(&self) -> Option<Tip> {
        *lock(&self.latest)
    }

    /// What the log lost before this start, where the operator accepts it. Answers once.
    pub fn take_loss(&self) -> Option<Loss> {
        lock(&self.loss).take()
    }

    /// The loss of these places, where something else than the tip tells of it and the operator accepts it.
    pub fn loss_of(&self, first_seq: u64, tip: Tip) -> Loss {
        Loss {
            first_seq,
            tip,
            stood: self.stood.clone(),
        }
    }

    /// Whether other hosts may append to the log.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Counts who shares the log.
    fn count_hosts(&self) {
        let hosts = {
            let state = self.state();
            state.hosts().filter(|(_, host)| !host.revoked).count()
        };
        self.hearing.need(self.is_shared && hosts > 1);
    }

    /// `leaf`: the hash of what is stored there.
    fn settle(&self, seq: u64, leaf: merkle::Hash, sealed: Result<Sealed, Junk>) -> Arc<Settled> {
        // First, so that whatever follows from an entry finds its place in the tree.
        self.tree.push(seq, leaf);
        let settled = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let judged = judge(&mut state, seq, sealed.as_ref());
            // Under the state's lock, so that a snapshot never vouches for more places than the index has.
            let mut index = lock(&self.index);
            for verdict in &judged.messages {
                if let MessageVerdict::Counts(placed) = verdict {
                    let place = Place {
                        seq,
                        index: placed.index,
                        thread: placed.thread,
                    };
                    index.push(&placed.channel, place);
                }
            }
            // As well, of the stubs in it.
            if let (Ok(()), Some(stubs)) = (judged.verdict, stubs_of(&sealed)) {
                self.pruned.hold(stubs_in(stubs));
            }
            Arc::new(Settled {
                seq,
                sealed,
                judged,
            })
        };
        let bytes = settled
            .sealed
            .as_ref()
            .map_or(0, |sealed| sealed.stored().len())
            + 512;
        {
            let mut recent = lock(&self.recent);
            recent.entries.push_back(settled.clone());
            recent.bytes += bytes;
            while recent.bytes > limits::RECENT_BYTES_MAX {
                let Some(oldest) = recent.entries.pop_front() else {
                    break;
                };
                let size = oldest.sealed.as_ref().map_or(0, |s| s.stored().len()) + 512;
                recent.bytes -= size;
            }
        }
        if let Some(MessageVerdict::Counts(last)) = settled
            .judged
            .messages
            .iter()
            .rev()
            .find(|verdict| matches!(verdict, MessageVerdict::Counts(_)))
        {
            let channels = lock(&self.channels);
            if let Some(latest) = channels.get(&last.channel) {
                latest.send_replace(last.ordinal.0);
            }
        }
        *lock(&self.latest) = Some(Tip { seq, leaf });
        self.take_note(&settled);
        self.take_tree_told(&settled);
        let is_fence = |change: &Change| matches!(change, Change::Fenced { .. });
        if settled.judged.changes.iter().any(is_fence) {
            self.fenced.notify_one();
        }
        let _ = self.feed.send(settled.clone());
        settled
    }

    fn take_tree_told(&self, settled: &Settled) {
        let entry = settled.sealed.as_ref().map(Sealed::entry);
        match entry.map(|entry| (entry.host, &entry.body)) {
            Ok((host, Body::Note(NoteBody::Tree { size, root }))) => {
                if settled.judged.verdict.is_ok() {
                    let (seq, size, root) = (settled.seq, *size, *root);
                    lock(&self.trees_told).insert(host, Told { seq, size, root });
                }
            }
            // It says nothing that would have to be compared.
            Ok((_, body)) if is_upkeep(body) => {}
            _ => {
                self.arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What hosts said of the log since this was asked before, the latest of each.
    pub fn trees_told(&self) -> HashMap<HostId, Told> {
        std::mem::take(&mut lock(&self.trees_told))
    }

    /// How many entries came that say something, since this host started: not counting what hosts tell each other to keep going.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// The tree over the log, as far as that is judged.
    pub fn tree(&self) -> &LogTree {
        &self.tree
    }

    /// Waits for a fence; one that came since the last waiting is not missed. For one who waits at a time.
    pub async fn fenced(&self) {
        self.fenced.notified().await;
    }

    /// Of who shares the log, and of what a standing entry says of its host.
    fn take_note(&self, settled: &Settled) {
        let hosts = |change: &Change| {
            matches!(
                change,
                Change::HostKeyed { .. } | Change::HostRevoked { .. }
            )
        };
        if settled.judged.changes.iter().any(hosts) {
            self.count_hosts();
        }
        let entry = settled.sealed.as_ref().map(Sealed::entry);
        let is_marker = entry.is_ok_and(|entry| is_marker(&entry.body));
        if !entry.is_ok_and(|entry| is_upkeep(&entry.body)) {
            self.last_said.store(settled.seq, Ordering::Relaxed);
        }
        // Other entries say nothing of where the walls of their host are: decisions are stamped with the log's epoch.
        if let Ok(entry) = entry
            && (is_marker || matches!(entry.body, Body::Turn(_)))
            && settled.judged.verdict.is_ok()
        {
            self.confirmed.send_if_modified(|confirmed| {
                let known = confirmed.entry(entry.host).or_default();
                let is_news = *known < entry.epoch;
                *known = entry.epoch.max(*known);
                is_news
            });
        }
    }

    /// Tells the latest epoch that each host is known to have come to, with its walls of all earlier ones felled.
    pub fn confirmed(&self) -> watch::Receiver<BTreeMap<HostId, Epoch>> {
        self.confirmed.subscribe()
    }

    /// The place of the latest entry that is no marker, of those judged since this host started.
    pub fn last_said(&self) -> u64 {
        self.last_said.load(Ordering::Relaxed)
    }

    /// Whether this host hears the log.
    pub fn hearing(&self) -> &Arc<Hearing> {
        &self.hearing
    }

    /// The realm as judged so far. Hold it briefly, and never across an await.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an entry and waits until it is durable and judged. The append goes on when the future is dropped. An entry that stood
    /// before, from an attempt whose outcome was unknown, is answered with its place.
    ///
    /// # Errors
    /// The log's; [`LogError::is_outcome_known`] says whether the entry may still turn up.
    pub fn commit(
        self: &Arc<Self>,
        sealed: Sealed,
        class: Class,
    ) -> impl Future<Output = Result<Committed, LogError>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let id = sealed.id();
        let stored = sealed.stored().clone();
        let lane = lane_of(&sealed.entry().body);
        // A stop may have been handed over before, by this process or an earlier one.
        let handed = (class == Class::Ordinary).then(|| self.hearing.sent());
        let begun = {
            let mut waiting = lock(&self.waiting);
            match &waiting.ended {
                Some(ended) => Err(ended.clone()),
                None => {
                    let commit = Commit {
                        sealed,
                        settled: sender,
                        handed,
                    };
                    waiting.commits.insert(id, commit);
                    Ok(())
                }
            }
        };
        let begun = begun.map(|()| self.log.append_in(lane, id.0, stored, class));
        let record = self.clone();
        async move {
            let appended = match begun?.await {
                Ok(appended) => appended,
                Err(error) => {
                    // Should it turn up after all, it is judged like any other; nobody here waits for that.
                    lock(&record.waiting).commits.remove(&id);
                    if let LogError::Diverged { why, .. } = &error {
                        record.diverge(why.clone());
                    }
                    return Err(error);
                }
            };
            let settled = match record.acknowledge(id, appended.seq.0)? {
                Some(settled) => settled,
                None => receiver.await.unwrap_or(Err(LogError::Closed))?,
            };
            Ok(Committed {
                settled,
                durability: appended.durability,
            })
        }
    }

    /// The log says that an entry stands there. Answers it when it came by before anybody waited for it: the log keeps what is sent again
    /// once, and its tail doesn't tell it again.
    fn acknowledge(&self, id: EntryId, seq: u64) -> Result<Option<Arc<Settled>>, LogError> {
        let commit = {
            let mut waiting = lock(&self.waiting);
            if !waiting.commits.contains_key(&id) {
                return Ok(None);
            }
            // Whoever judges takes the commit out first, so if the place is judged now, that was before.
            if self.state().last_seq().is_none_or(|last| last < seq) {
                waiting.acknowledged.insert(seq, id);
                return Ok(None);
            }
            waiting.commits.remove(&id)
        };
        let found = self
            .recent(seq, 1)
            .and_then(|found| found.into_iter().next());
        match found {
            Some(settled) if settled.judged.id == Some(id) => Ok(Some(settled)),
            Some(_) => Err(self.diverge(format!(
                "entry {seq} is acknowledged to stand where another one was seen"
            ))),
            // Judged before this host began: a copy of it would be told the same.
            None => Ok(commit.map(|commit| Arc::new(repeated(seq, commit.sealed)))),
        }
    }

    /// Who came to wait for an entry while it was judged.
    fn late(&self, seq: u64, id: Option<EntryId>) -> Option<Waiter> {
        let mut waiting = lock(&self.waiting);
        waiting.acknowledged.remove(&seq);
        Some(waiting.commits.remove(&id?)?.settled)
    }

    /// How many commits are on their way, markers aside.
    pub fn commits_waiting(&self) -> usize {
        let waiting = lock(&self.waiting);
        let commits = waiting.commits.values();
        commits
            .filter(|commit| !is_upkeep(&commit.sealed.entry().body))
            .count()
    }

    /// Tells the channel's latest ordinal whenever it changes.
    pub fn latest(&self, channel: &ChannelName) -> watch::Receiver<u64> {
        let mut channels = lock(&self.channels);
        if let Some(latest) = channels.get(channel) {
            return latest.subscribe();
        }
        let now = self.state().channel(channel).map_or(0, |c| c.latest.0);
        let (sender, receiver) = watch::channel(now);
        channels.insert(channel.clone(), sender);
        receiver
    }

    /// News: every entry as it is judged. A receiver that falls behind misses some, and is told how many.
    pub fn news(&self) -> broadcast::Receiver<Arc<Settled>> {
        self.feed.subscribe()
    }

    /// Told the reason when the log's tail has failed for good.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Recent entries from `seq` on, when they are still in memory.
    pub fn recent(&self, seq: u64, count: usize) -> Option<Vec<Arc<Settled>>> {
        let recent = lock(&self.recent);
        let first = recent.entries.front()?.seq;
        let at = usize::try_from(seq.checked_sub(first)?).ok()?;
        Some(
            recent
                .entries
                .iter()
                .skip(at)
                .take(count)
                .cloned()
                .collect(),
        )
    }

    /// All from `seq` on that are still in memory.
    pub fn recent_from(&self, seq: u64) -> Vec<Arc<Settled>> {
        let recent = lock(&self.recent);
        let older = recent.entries.partition_point(|settled| settled.seq < seq);
        recent.entries.range(older..).cloned().collect()
    }

    /// What is kept of pruned turns.
    pub fn pruned(&self) -> &Arc<Pruned> {
        &self.pruned
    }

    /// Where a counting message stands, pruned or not.
    ///
    /// # Errors
    /// The index's.
    pub fn place_of(
        &self,
        channel: &ChannelName,
        ordinal: Ordinal,
    ) -> std::io::Result<Option<Place>> {
        let found = lock(&self.index).places(channel, ordinal, 1)?;
        Ok(found.into_iter().next())
    }

    /// Where counting messages stand, pruned or not, from an ordinal on.
    ///
    /// # Errors
    /// The index's.
    pub fn places_of(
        &self,
        channel: &ChannelName,
        from: Ordinal,
        count: usize,
    ) -> std::io::Result<Vec<Place>> {
        lock(&self.index).places(channel, from, count)
    }

    async fn places_in(
        &self,
        batch: Vec<(Seq, bytes::Bytes)>,
    ) -> std::io::Result<Vec<(u64, agora_log::export::Place)>> {
        if let Err(error) = self.account_for(&batch).await {
            if let Some(unaccounted) = error
                .get_ref()
                .and_then(|e| e.downcast_ref::<Unaccounted>())
                && self.is_shared
            {
                self.diverge(unaccounted.to_string());
            }
            return Err(error);
        }
        let mut places = Vec::with_capacity(batch.len());
        for (seq, stored) in batch {
            let place = self.pruned.place_in(&*self.log, seq.0, stored).await?;
            places.push((seq.0, place));
        }
        Ok(places)
    }

    /// Sees to it that of each place in the batch that has nothing any more it is known what is kept of it. What a host keeps stands in the
    /// log before it takes anything out, but may stand behind these places, and one server may be behind another.
    async fn account_for(&self, batch: &[(Seq, bytes::Bytes)]) -> std::io::Result<()> {
        let mut tries = 0;
        loop {
            let places = batch.iter().map(|(seq, stored)| (seq.0, stored));
            let Some(unknown) = self.pruned.unknown(places) else {
                return Ok(());
            };
            let judged = self.state().clone();
            let gathered = match self.is_shared {
                true => gather(&*self.log, judged, &self.pruned).await,
                false => Ok(()),
            };
            if gathered.is_ok() && self.pruned.has(unknown) {
                continue;
            }
            let found = match gathered {
                Ok(()) => self.log.is_purged(Seq(unknown)).await,
                Err(error) => Err(error),
            };
            match found {
                // Of those behind it the same is asked when they are looked up.
                Ok(false) => return Ok(()),
                Ok(true) if !self.is_shared || tries >= limits::STUB_TRIES => {
                    return Err(std::io::Error::other(Unaccounted(unknown)));
                }
                Err(error) if tries >= limits::STUB_TRIES => {
                    return Err(std::io::Error::other(error));
                }
                Ok(true) | Err(_) => {}
            }
            tries += 1;
            tokio::time::sleep(limits::STUB_AGAIN).await;
        }
    }

    /// Whether all that was taken out of the log was pruned, as far as this host has judged. Where not, the log has diverged.
    fn accounts_for_what_is_missing(&self) -> bool {
        let missing = self.log.missing();
        let judged = self.state().last_seq().unwrap_or(0);
        let kept = self.pruned.count() as u64;
        if missing.count <= kept || judged < missing.end.0 {
            return true;
        }
        self.diverge(format!(
            "{} of its entries are not there any more, and {kept} were pruned",
            missing.count
        ));
        false
    }

    /// Why the log can't be judged.
    fn unreadable(&self, error: std::io::Error) -> RecordError {
        let why = self.diverged.borrow().clone();
        match why {
            Some(why) => self.diverge(why).into(),
            None => self.pruned.error(error),
        }
    }

    /// Compares what a host says it kept with what this one has seen to stand there. A host that says something else would have
    /// others judge another log.
    fn check_stubs(self: &Arc<Self>, settled: &Arc<Settled>) {
        if settled.judged.verdict.is_err() || stubs_of(&settled.sealed).is_none() {
            return;
        }
        let (record, settled) = (self.clone(), settled.clone());
        tokio::spawn(async move {
            let Some(stubs) = stubs_of(&settled.sealed) else {
                return;
            };
            for stub in stubs {
                match record.tree.leaves(stub.seq, stub.seq).await {
                    Ok(leaves) if leaves.first() != Some(&stub.leaf) => {
                        let host = settled.sealed.as_ref().map(|sealed| sealed.entry().host);
                        let host = host.map_or_else(|_| String::new(), |host| host.short());
                        record.diverge(format!(
                            "host {host} says in entry {} that it keeps what is needed of entry {}, and it is of something else",
                            settled.seq, stub.seq
                        ));
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!("entry {}: can't be compared: {error}", settled.seq);
                        return;
                    }
                }
            }
        });
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Up to `count` counting messages of a channel from an ordinal on, those that were pruned left out, and at most `bytes_max` of
    /// payload but at least one message if there is one.
    ///
    /// # Errors
    /// The log's, or the index's.
    pub async fn messages(
        &self,
        channel: &ChannelName,
        from: Ordinal,
        count: usize,
        bytes_max: usize,
    ) -> Result<Vec<Kept>, RecordError> {
        let mut tries = 0;
        loop {
            let found = self.messages_now(channel, from, count, bytes_max).await?;
            match found {
                Some(found) => return Ok(found),
                // Another host prunes just now, and what says so comes by in a moment.
                None if tries < limits::STUB_TRIES => tries += 1,
                None => return Err(LogError::Closed.into()),
            }
            tokio::time::sleep(limits::STUB_AGAIN).await;
        }
    }

    /// The same; none where one of them is not in the log any more, and not known to be pruned yet.
    async fn messages_now(
        &self,
        channel: &ChannelName,
        from: Ordinal,
        count: usize,
        bytes_max: usize,
    ) -> Result<Option<Vec<Kept>>, RecordError> {
        let pruned = self.state().channel(channel).map_or(0, |c| c.pruned.0);
        let from = Ordinal(from.0.max(pruned + 1));
        let places = lock(&self.index)
            .places(channel, from, count)
            .map_err(|source| RecordError::Io {
                path: PathBuf::from("index"),
                source,
            })?;
        let mut kept: Vec<Kept> = Vec::with_capacity(places.len());
        let mut fetched: VecDeque<(u64, Sealed)> = VecDeque::new();
        let mut bytes = 0;
        for (i, place) in places.into_iter().enumerate() {
            let ordinal = Ordinal(from.0.max(1) + i as u64);
            let damaged = || RecordError::Index {
                channel: channel.clone(),
                ordinal,
            };
            let sealed = match self.recent(place.seq, 1) {
                Some(found) if !found.is_empty() => {
                    found[0].sealed.clone().map_err(|_| damaged())?
                }
                _ => {
                    while fetched.front().is_some_and(|(seq, _)| *seq < place.seq) {
                        fetched.pop_front();
                    }
                    if fetched.front().is_none_or(|(seq, _)| *seq != place.seq) {
                        fetched = self.read_again(place.seq).await?;
                    }
                    match fetched.front() {
                        Some((seq, sealed)) if *seq == place.seq => sealed.clone(),
                        _ => return Ok(None),
                    }
                }
            };
            let is_there = matches!(&sealed.entry().body, Body::Turn(turn)
                if turn.channel == *channel && usize::from(place.index) < turn.messages.len());
            if !is_there {
                return Err(damaged());
            }
            let message = Kept {
                ordinal,
                place,
                sealed,
            };
            bytes += message.message().payload.len();
            if bytes > bytes_max && !kept.is_empty() {
                break;
            }
            kept.push(message);
        }
        Ok(Some(kept))
    }

    /// Entries from a place on, which were judged before: what the log gives now must be what it gave then.
    async fn read_again(&self, from: u64) -> Result<VecDeque<(u64, Sealed)>, RecordError> {
        let read = self.log.read(Seq(from), 64, 1 << 20).await?;
        let leaves = self.leaves_of(&read).await?;
        let mut fetched = VecDeque::with_capacity(read.len());
        for ((seq, stored), leaf) in read.into_iter().zip(leaves) {
            // What was pruned reads as empty, and is nobody's to read any more.
            if stored.is_empty() {
                continue;
            }
            self.is_as_judged(seq.0, &stored, &leaf)?;
            if let Ok(sealed) = Sealed::reread(stored) {
                fetched.push_back((seq.0, sealed));
            }
        }
        Ok(fetched)
    }

    /// What the tree has for each of these places, as far as they were judged.
    ///
    /// # Errors
    /// The tree's.
    pub async fn leaves_of(
        &self,
        read: &[(Seq, bytes::Bytes)],
    ) -> Result<Vec<merkle::Hash>, RecordError> {
        let Some((first, _)) = read.first() else {
            return Ok(Vec::new());
        };
        let last = first.0.saturating_add(read.len() as u64 - 1);
        let last = last.min(self.tree.size());
        if last < first.0 {
            return Ok(Vec::new());
        }
        Ok(self.tree.leaves(first.0, last).await?)
    }

    /// Whether what the log gives for a place is what stood there when it was judged.
    ///
    /// # Errors
    /// It is something else: the log has diverged.
    pub fn is_as_judged(
        &self,
        seq: u64,
        stored: &[u8],
        leaf: &merkle::Hash,
    ) -> Result<(), LogError> {
        match merkle::leaf(stored) == *leaf {
            true => Ok(()),
            false => Err(self.diverge(format!(
                "entry {seq} reads as something else than what was judged there"
            ))),
        }
    }

    /// Writes a snapshot, so that the next start need not judge everything again. Blocks. What can't be written is said in the
    /// host's log, and the next start takes longer.
    pub fn keep_snapshot(&self) {
        let _one = lock(&self.snapshotting);
        let (seq, bytes, unwritten) = {
            let state = self.state();
            let Some(seq) = state.last_seq() else {
                return;
            };
            let unwritten = lock(&self.index).unwritten();
            let bytes = postcard::to_stdvec(&*state).expect("a state is plain data");
            (seq, bytes, unwritten)
        };
        // The disk is waited for without any lock that judging or a verb might need.
        let written = unwritten.and_then(|all| {
            // It vouches for the stubs of all that it covers, too.
            self.pruned.write_held()?;
            all.iter().try_for_each(|unwritten| {
                unwritten.write()?;
                lock(&self.index).written(unwritten);
                Ok(())
            })
        });
        if let Err(error) = written {
            tracing::warn!("no snapshot: the index, or what was pruned, can't be written: {error}");
            return;
        }
        let Some(leaf) = self.recent(seq, 1).and_then(|found| {
            let settled = found.into_iter().next()?;
            settled.sealed.as_ref().ok().map(Sealed::leaf)
        }) else {
            return;
        };
        let mut file = Vec::with_capacity(bytes.len() + 128);
        file.extend_from_slice(SNAPSHOT);
        file.extend_from_slice(&seq.to_le_bytes());
        file.extend_from_slice(&leaf);
        file.extend_from_slice(&bytes);
        let sum: [u8; 32] = Sha256::digest(&file).into();
        file.extend_from_slice(&sum);
        match crate::boot::data::replace(&self.snapshot, &file) {
            Ok(()) => self.snapshot_seq.store(seq, Ordering::Relaxed),
            Err(error) => tracing::warn!("no snapshot: {error}"),
        }
    }
}

fn stubs_of(sealed: &Result<Sealed, Junk>) -> Option<&[agora_realm::StubBody]> {
    match &sealed.as_ref().ok()?.entry().body {
        Body::Note(NoteBody::Stubs { stubs, .. }) => Some(stubs),
        _ => None,
    }
}

/// Takes in what hosts keep in the log of what they took out of it.
async fn gather(log: &dyn Log, judged: State, pruned: &Pruned) -> Result<(), LogError> {
    let read = |lane, from| log.read_lane(lane, from, 1024, 4 << 20);
    gathering::gather(read, judged, pruned).await
}

/// Puts stubs that are in memory only into their file, if they are more than that.
async fn write_held(pruned: &Arc<Pruned>, bytes_max: usize) {
    if pruned.held_bytes() < bytes_max {
        return;
    }
    let pruned = pruned.clone();
    let written = tokio::task::spawn_blocking(move || pruned.write_held()).await;
    if let Ok(Err(error)) = written {
        tracing::warn!("what was pruned can't be written: {error}");
    }
}

fn is_upkeep(body: &Body) -> bool {
    is_marker(body) || matches!(body, Body::Note(NoteBody::Tree { .. }))
}

fn is_marker(body: &Body) -> bool {
    matches!(body, Body::Note(NoteBody::Marker { .. }))
}

const SNAPSHOT: &[u8] = b"agora state 3\n";

/// A judged state, and where it stops.
pub struct Snapshot {
    /// The last seq that is in it.
    pub seq: u64,
    leaf: [u8; 32],
    /// The realm up to there.
    pub state: State,
}

impl Snapshot {
    /// Whether what has this leaf hash is what stands where it stops.
    pub fn stops_at(&self, leaf: &merkle::Hash) -> bool {
        *leaf == self.leaf
    }
}

/// The snapshot in this file, for whoever only looks: none that is not whole.
pub fn last_snapshot(path: &std::path::Path) -> Option<Snapshot> {
    read_snapshot(path)
}

/// The last place that the host had judged when it kept its snapshot, and the hash of what stood there.
pub fn snapshot_place(path: &std::path::Path) -> Option<(u64, [u8; 32])> {
    read_snapshot(path).map(|snapshot| (snapshot.seq, snapshot.leaf))
}

/// A snapshot that is whole, or none.
fn read_snapshot(path: &std::path::Path) -> Option<Snapshot> {
    let file = std::fs::read(path).ok()?;
    let (body, sum) = file.split_last_chunk::<32>()?;
    if <[u8; 32]>::from(Sha256::digest(body)) != *sum {
        tracing::warn!("the snapshot is damaged; judging the log from its beginning");
        return None;
    }
    let body = body.strip_prefix(SNAPSHOT)?;
    let (seq, body) = body.split_first_chunk::<8>()?;
    let (leaf, body) = body.split_first_chunk::<32>()?;
    Some(Snapshot {
        seq: u64::from_le_bytes(*seq),
        leaf: *leaf,
        state: postcard::from_bytes(body).ok()?,
    })
}
