//! The record: the log, judged.
//!
//! In: sealed entries to append; the log's own ordered tail. Out: what counts, by channel and ordinal; receipts; news.
//! Promise: everything a host says of the realm comes from [`judge`] over the tail; a commit is answered only when the log has
//! made the entry durable *and* it has come back through the tail and been judged.
//! Failure: a log that can't take an entry now says so, and nothing of the entry counts.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use agora_log::{Class, Durability, Log, LogError, Seq};
use agora_realm::{
    ChannelName, EntryId, Judged, Junk, MessageVerdict, Ordinal, Refusal, Sealed, State, judge,
};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, oneshot, watch};

use super::index::{Index, Place};
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
    /// The log ends before what this host has seen.
    #[error(
        "the log ends at {end}, but this host has seen {seen} (restore the log from a copy that has them; or, if it is on a server, say --log)"
    )]
    WentBack {
        /// Where it ends.
        end: u64,
        /// What was seen.
        seen: u64,
    },
}

#[derive(Default)]
struct Recent {
    entries: VecDeque<Arc<Settled>>,
    bytes: usize,
}

type Waiting = HashMap<EntryId, (Sealed, oneshot::Sender<Arc<Settled>>)>;

/// The log, judged. Shared by all of a host.
pub struct Record {
    log: Arc<dyn Log>,
    state: RwLock<State>,
    index: Mutex<Index>,
    recent: Mutex<Recent>,
    waiting: Mutex<Waiting>,
    channels: Mutex<HashMap<ChannelName, watch::Sender<u64>>>,
    feed: broadcast::Sender<Arc<Settled>>,
    snapshot: PathBuf,
    snapshot_seq: AtomicU64,
    /// Held while a snapshot is written, and by nothing else.
    snapshotting: Mutex<()>,
    failed: watch::Sender<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these would be a defect of this file; what it left is still the best there is.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a record keeps what it derives.
pub struct Derived {
    /// The folder of the index.
    pub index: PathBuf,
    /// The file of the snapshot.
    pub snapshot: PathBuf,
}

impl Record {
    /// Judges the log up to its end: from the snapshot where there is a good one, else from its beginning.
    /// `progress` is told how far it is, of how much, now and then.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn open(
        log: Arc<dyn Log>,
        derived: Derived,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Arc<Self>, RecordError> {
        let io = |path: PathBuf| move |source| RecordError::Io { path, source };
        let mut state = State::new();
        let mut start = None;
        if let Some(snapshot) = read_snapshot(&derived.snapshot) {
            let seen = snapshot.seq;
            if log.end().0 < seen {
                return Err(RecordError::WentBack {
                    end: log.end().0,
                    seen,
                });
            }
            let stored = log.read(Seq(seen), 1, usize::MAX).await?;
            let same = stored
                .first()
                .is_some_and(|(seq, bytes)| seq.0 == seen && leaf(bytes) == snapshot.leaf);
            if same {
                let latest = snapshot
                    .state
                    .channels()
                    .map(|(n, c)| (n.clone(), c.latest));
                match Index::open(derived.index.clone(), latest.collect::<Vec<_>>()) {
                    Ok(index) => {
                        state = snapshot.state;
                        start = Some((index, seen));
                    }
                    Err(error) => tracing::warn!("judging the log from its beginning: {error}"),
                }
            } else {
                tracing::warn!("the snapshot is not of this log; judging it from its beginning");
            }
        }
        let (index, seen) = match start {
            Some(start) => start,
            None => {
                let index = Index::open(derived.index.clone(), []);
                (index.map_err(io(derived.index.clone()))?, 0)
            }
        };
        let record = Arc::new(Self {
            log,
            state: RwLock::new(state),
            index: Mutex::new(index),
            recent: Mutex::default(),
            waiting: Mutex::default(),
            channels: Mutex::default(),
            feed: broadcast::channel(limits::FEED_WAITING_MAX).0,
            snapshot: derived.snapshot,
            snapshot_seq: AtomicU64::new(seen),
            snapshotting: Mutex::default(),
            failed: watch::channel(None).0,
        });
        let end = record.log.end().0;
        let mut next = seen + 1;
        while next <= end {
            let batch = record.log.read(Seq(next), 4096, 16 << 20).await?;
            let Some((last, _)) = batch.last() else {
                break;
            };
            next = last.0 + 1;
            for (seq, sealed) in open_all(batch).await {
                record.settle(seq, sealed);
            }
            progress(next - 1, end);
        }
        Ok(record)
    }

    /// Follows the log's tail from where [`Record::open`] left off, until the log fails or is closed.
    pub async fn follow(self: Arc<Self>) {
        let next = self.state().last_seq().unwrap_or(0) + 1;
        let mut tail = self.log.tail(Seq(next));
        while let Some(next) = tail.next().await {
            let (seq, bytes) = match next {
                Ok(next) => next,
                Err(LogError::Closed) => break,
                Err(error) => {
                    tracing::error!("the log's tail ended: {error}");
                    self.failed.send_replace(Some(error.to_string()));
                    break;
                }
            };
            let id = Sealed::reread(bytes.clone()).map(|parsed| parsed.id()).ok();
            let own = id.and_then(|id| lock(&self.waiting).remove(&id));
            let (sealed, waiter) = match own {
                // Signed by this very process, and the same to the byte.
                Some((sealed, waiter)) if sealed.stored() == &bytes => (Ok(sealed), Some(waiter)),
                other => {
                    let waiter = other.map(|(_, waiter)| waiter);
                    let opened = open_all(vec![(seq, bytes)]).await;
                    (
                        opened.into_iter().next().expect("one in, one out").1,
                        waiter,
                    )
                }
            };
            let settled = self.settle(seq.0, sealed);
            // Somebody may have come to wait for it while it was verified: for an entry of an earlier attempt.
            let late = || Some(lock(&self.waiting).remove(&id?)?.1);
            if let Some(waiter) = waiter.or_else(late) {
                let _ = waiter.send(settled);
            }
            let since = seq.0 - self.snapshot_seq.load(Ordering::Relaxed);
            if since >= limits::SNAPSHOT_EVERY {
                self.snapshot_seq.store(seq.0, Ordering::Relaxed);
                let record = self.clone();
                tokio::task::spawn_blocking(move || record.keep_snapshot());
            }
        }
        lock(&self.waiting).clear();
    }

    fn settle(&self, seq: u64, sealed: Result<Sealed, Junk>) -> Arc<Settled> {
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
        let _ = self.feed.send(settled.clone());
        settled
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
        lock(&self.waiting).insert(id, (sealed, sender));
        let appending = self.log.append(id.0, stored, class);
        let record = self.clone();
        async move {
            let appended = match appending.await {
                Ok(appended) => appended,
                Err(error) => {
                    // Should it turn up after all, it is judged like any other; nobody here waits for that.
                    lock(&record.waiting).remove(&id);
                    return Err(error);
                }
            };
            let settled = match record.settled_before(id, appended.seq.0) {
                Some(settled) => settled,
                None => receiver.await.map_err(|_| LogError::Closed)?,
            };
            Ok(Committed {
                settled,
                durability: appended.durability,
            })
        }
    }

    /// What stands at a place that the log named for a commit, if the tail had passed it before anybody waited there: a log that keeps
    /// an entry once does not bring it again.
    fn settled_before(&self, id: EntryId, seq: u64) -> Option<Arc<Settled>> {
        if self.state().last_seq() < Some(seq) {
            return None;
        }
        // The tail takes who waits along, so nobody is left waiting for what it still brings.
        let (sealed, _) = lock(&self.waiting).remove(&id)?;
        let found = self
            .recent(seq, 1)
            .and_then(|found| found.into_iter().next());
        let is_it = |settled: &Settled| settled.judged.id == Some(id);
        Some(found.filter(|settled| is_it(settled)).unwrap_or_else(|| {
            // What was judged of it is not in memory any more; of a copy in another place the log would say this.
            let messages = match &sealed.entry().body {
                agora_realm::Body::Turn(turn) => turn.messages.len(),
                _ => 0,
            };
            Arc::new(Settled {
                seq,
                judged: Judged {
                    seq,
                    id: Some(id),
                    verdict: Err(Refusal::Repeated),
                    messages: vec![MessageVerdict::Void(Refusal::Repeated); messages],
                    changes: Vec::new(),
                },
                sealed: Ok(sealed),
            })
        }))
    }

    /// How many commits are on their way.
    pub fn commits_waiting(&self) -> usize {
        lock(&self.waiting).len()
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

    /// The log itself.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Up to `count` counting messages of a channel from an ordinal on, and at most `bytes_max` of payload but at least one
    /// message if there is one.
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
            let sealed = match self.recent(place.seq, 1) {
                Some(found) if !found.is_empty() => match &found[0].sealed {
                    Ok(sealed) => sealed.clone(),
                    Err(junk) => unreachable!("junk holds no message: {junk}"),
                },
                _ => {
                    while fetched.front().is_some_and(|(seq, _)| *seq < place.seq) {
                        fetched.pop_front();
                    }
                    if fetched.front().is_none_or(|(seq, _)| *seq != place.seq) {
                        let read = self.log.read(Seq(place.seq), 64, 1 << 20).await?;
                        fetched = read
                            .into_iter()
                            .filter_map(|(seq, b)| Some((seq.0, Sealed::reread(b).ok()?)))
                            .collect();
                    }
                    match fetched.front() {
                        Some((seq, sealed)) if *seq == place.seq => sealed.clone(),
                        _ => {
                            return Err(LogError::Closed.into());
                        }
                    }
                }
            };
            let message = Kept {
                ordinal: Ordinal(from.0.max(1) + i as u64),
                place,
                sealed,
            };
            bytes += message.message().payload.len();
            if bytes > bytes_max && !kept.is_empty() {
                break;
            }
            kept.push(message);
        }
        Ok(kept)
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
            all.iter().try_for_each(|unwritten| {
                unwritten.write()?;
                lock(&self.index).written(unwritten);
                Ok(())
            })
        });
        if let Err(error) = written {
            tracing::warn!("no snapshot: the index can't be written: {error}");
            return;
        }
        let Some(stored) = self.recent(seq, 1).and_then(|found| {
            let settled = found.into_iter().next()?;
            settled.sealed.as_ref().ok().map(|s| s.stored().clone())
        }) else {
            return;
        };
        let mut file = Vec::with_capacity(bytes.len() + 128);
        file.extend_from_slice(SNAPSHOT);
        file.extend_from_slice(&seq.to_le_bytes());
        file.extend_from_slice(&leaf(&stored));
        file.extend_from_slice(&bytes);
        let sum: [u8; 32] = Sha256::digest(&file).into();
        file.extend_from_slice(&sum);
        match crate::boot::data::replace(&self.snapshot, &file) {
            Ok(()) => self.snapshot_seq.store(seq, Ordering::Relaxed),
            Err(error) => tracing::warn!("no snapshot: {error}"),
        }
    }
}

const SNAPSHOT: &[u8] = b"agora state 1\n";

struct Snapshot {
    seq: u64,
    leaf: [u8; 32],
    state: State,
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

/// The hash of what is stored at a seq (RFC 6962 leaf).
fn leaf(stored: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update([0])
        .chain_update(stored)
        .finalize()
        .into()
}

/// Parses and verifies entries on all cores, keeping their order.
async fn open_all(batch: Vec<(Seq, bytes::Bytes)>) -> Vec<(u64, Result<Sealed, Junk>)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = batch.len().div_ceil(cores).max(1);
    let mut batch = batch.into_iter().peekable();
    let mut tasks = Vec::new();
    while batch.peek().is_some() {
        let part: Vec<_> = batch.by_ref().take(chunk).collect();
        tasks.push(tokio::task::spawn_blocking(move || {
            part.into_iter()
                .map(|(seq, bytes)| (seq.0, Sealed::open(bytes)))
                .collect::<Vec<_>>()
        }));
    }
    let mut opened = Vec::new();
    for task in tasks {
        opened.extend(
            task.await
                .expect("verifying does not panic, and is never aborted"),
        );
    }
    opened
}
