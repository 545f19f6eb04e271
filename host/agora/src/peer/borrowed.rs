//! What a peer lets us use, as this host's other rooms see it: its channels, and how the link to it is.
//!
//! In: from the link, how it is; the data folder. Out: a [`Remote`] for each of the peer's channels that somebody here uses.
//! Promise: what is remembered of a peer survives this process, but for the last second; losing that second costs nothing but that what was
//! sent in it is sent again under the same keys, and counts once. Where reading begins is kept before anybody goes by it.
//! Failure: a file that can't be read is begun anew, and said to be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agora_realm::{ChannelName, Epoch, RealmId, Terms};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::remote::{KeptChannel, Remote};
use super::told::Known;
use crate::boot::data::{DataFolder, replace};
use crate::delivery::record::Record;

/// How the link to a peer is: what we use of theirs.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// It is not there.
    Down {
        /// Why.
        why: Arc<str>,
        /// Since when.
        since: Instant,
    },
    /// It is.
    Up {
        /// Who the peer's host has proved to be.
        known: Known,
        /// The peer's epoch.
        epoch: Epoch,
        /// What the peer grants us, by the channels' names there.
        grants: Vec<(String, Terms)>,
        /// Of the last ping on the control lane.
        round_trip: Option<Duration>,
        /// Since when.
        since: Instant,
    },
    /// The connection stands, and the peer has not been heard on the control lane for a lease.
    Lapsed {
        /// Who the peer's host has proved to be.
        known: Known,
        /// The peer's epoch, as far as it was heard.
        epoch: Epoch,
        /// When it was heard last.
        since: Instant,
    },
}

impl LinkState {
    /// It is down from now on.
    pub fn down(why: &str) -> Self {
        Self::Down {
            why: why.into(),
            since: Instant::now(),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    realm: Option<[u8; 32]>,
    epoch: u64,
    channels: BTreeMap<String, KeptChannel>,
}

const FORMAT: &[u8] = b"agora peer 1\n";

/// What a peer lets us use.
#[derive(Default)]
pub struct Borrowed {
    record: OnceLock<Arc<Record>>,
    path: OnceLock<PathBuf>,
    /// What the file had that nobody has asked for yet.
    kept: Mutex<Kept>,
    remotes: Mutex<BTreeMap<ChannelName, Arc<Remote>>>,
    /// The peer's epoch; 0: not known.
    epoch: Arc<AtomicU64>,
    changed: AtomicBool,
    /// Held while it is written to the data folder.
    writing: Mutex<()>,
    /// Told when there is one more.
    pub(super) more: Notify,
    /// Told when something is to be kept at once.
    pub(super) urgent: Arc<Notify>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Borrowed {
    /// Finds what was kept of the peer of this name, and the channels that this realm has an outbox for.
    pub fn open(&self, name: &str, record: &Arc<Record>, folder: &DataFolder) {
        let path = match folder.folder("peers") {
            Ok(folder) => folder.join(name),
            Err(error) => {
                tracing::warn!("what is known of {name} is not kept: {error}");
                folder.join(name)
            }
        };
        let kept = match std::fs::read(&path) {
            Ok(bytes) => bytes
                .strip_prefix(FORMAT)
                .and_then(|bytes| postcard::from_bytes(bytes).ok())
                .unwrap_or_else(|| {
                    tracing::warn!("{}: it can't be read, and is begun anew", path.display());
                    Kept::default()
                }),
            Err(_) => Kept::default(),
        };
        self.epoch.store(kept.epoch, Ordering::SeqCst);
        *lock(&self.kept) = kept;
        let _ = self.path.set(path);
        let _ = self.record.set(record.clone());
        let known: Vec<_> = {
            let state = record.state();
            let names = state.channels().map(|(channel, _)| channel);
            let own = names.filter(|channel| channel.peer() == Some(name));
            own.cloned().collect()
        };
        for channel in known {
            self.remote(&channel);
        }
    }

    /// One of its channels, by its name here. None before it was opened.
    pub fn remote(&self, channel: &ChannelName) -> Option<Arc<Remote>> {
        let record = self.record.get()?;
        let mut remotes = lock(&self.remotes);
        if let Some(remote) = remotes.get(channel) {
            return Some(remote.clone());
        }
        let there = channel.at_peer()?;
        let kept = lock(&self.kept).channels.remove(there.as_str());
        let (kept, epoch) = (kept.unwrap_or_default(), self.epoch.clone());
        let urgent = self.urgent.clone();
        let remote = Remote::new(channel.clone(), record.clone(), epoch, urgent, kept)?;
        remotes.insert(channel.clone(), remote.clone());
        drop(remotes);
        self.more.notify_one();
        Some(remote)
    }

    /// Those that somebody here has asked for.
    pub fn remotes(&self) -> Vec<Arc<Remote>> {
        lock(&self.remotes).values().cloned().collect()
    }

    /// The peer's epoch, as far as it is known.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.epoch.load(Ordering::SeqCst) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    /// The peer's epoch has ended, and which one follows is not known yet.
    pub(super) fn unsettle(&self) {
        self.epoch.store(0, Ordering::SeqCst);
    }

    /// The peer is in this epoch.
    pub(super) fn settle(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::SeqCst);
        let mut kept = lock(&self.kept);
        if kept.epoch != epoch.0 {
            kept.epoch = epoch.0;
            self.changed.store(true, Ordering::SeqCst);
        }
    }

    /// In which of its epochs the peer was heard last.
    pub(super) fn last(&self) -> Option<Epoch> {
        Some(Epoch(lock(&self.kept).epoch)).filter(|epoch| *epoch != Epoch(0))
    }

    /// Of which realm the peer is, from the first time that it said so. Answers that one.
    pub(super) fn is_of(&self, realm: RealmId) -> RealmId {
        let mut kept = lock(&self.kept);
        let first = *kept.realm.get_or_insert_with(|| {
            self.changed.store(true, Ordering::SeqCst);
            realm.0
        });
        RealmId(first)
    }

    /// Writes what is remembered, when it changed. Blocks. Answers whether it could.
    pub fn keep(&self) -> bool {
        let Some(path) = self.path.get() else {
            return true;
        };
        let _one = lock(&self.writing);
        let mut changed = self.changed.swap(false, Ordering::SeqCst);
        let remotes = self.remotes();
        let file = {
            let mut all: BTreeMap<String, KeptChannel> = lock(&self.kept).channels.clone();
            for remote in &remotes {
                let (kept, is_new) = remote.keep();
                changed |= is_new;
                all.insert(remote.there().as_str().to_owned(), kept);
            }
            let known = lock(&self.kept);
            Kept {
                realm: known.realm,
                epoch: known.epoch,
                channels: all,
            }
        };
        if !changed {
            return true;
        }
        let mut bytes = FORMAT.to_vec();
        bytes.extend(postcard::to_stdvec(&file).expect("it is plain data"));
        if let Err(error) = replace(path, &bytes) {
            tracing::warn!("what is known of a peer is not kept: {error}");
            self.changed.store(true, Ordering::SeqCst);
            return false;
        }
        for remote in &remotes {
            if let Some(kept) = file.channels.get(remote.there().as_str()) {
                remote.was_kept(kept);
            }
        }
        true
    }
}
