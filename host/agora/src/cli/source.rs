//! Where a record is read from without a host: the log in a data folder, or the realm's stream on servers.
//!
//! In: a data folder, and which servers. Out: what stands in the log, in order, up to its end when it was opened.
//! Promise: nothing is created or changed, neither in the folder nor on the servers, whether or not a host runs.
//! Failure: the log's own errors.

use std::path::Path;
use std::time::{Duration, Instant};

use agora_log::export::Place;
use agora_log::{Durability, Embedded, JetStreamOptions, ReadOnly, Seq, StreamReader};
use agora_realm::{RealmId, State};
use bytes::Bytes;

use super::args::LogServerArgs;
use super::show;
use crate::boot::data::{check_format, pinned_realm};
use crate::boot::host::{LogChoice, stream_of};
use crate::delivery::gathering::gather;
use crate::delivery::pruned::Pruned;

/// A log open for reading.
pub(super) struct Source {
    log: Open,
    /// The realm that the data folder belongs to.
    pub(super) realm: Option<RealmId>,
    /// For people.
    pub(super) place: String,
    /// What of a stream's settings is not safe.
    pub(super) unsafe_settings: Vec<String>,
    pruned: Pruned,
    next: Seq,
}

enum Open {
    Own(ReadOnly),
    Servers(Box<Remote>),
}

struct Remote {
    runtime: tokio::runtime::Runtime,
    log: StreamReader,
    durability: Durability,
}

impl Source {
    /// The log of a data folder, where the arguments say that it is.
    pub(super) fn open(data: &Path, servers: &LogServerArgs) -> anyhow::Result<Self> {
        check_format(data)?;
        let realm = pinned_realm(data)?;
        let pruned = Pruned::open(data.join("pruned"))?;
        match servers.choice() {
            LogChoice::JetStream(options) => Self::servers(data, realm, pruned, *options),
            _ => {
                let path = data.join("log");
                Ok(Self {
                    log: Open::Own(Embedded::open_read_only(&path)?.0),
                    realm,
                    place: path.display().to_string(),
                    unsafe_settings: Vec::new(),
                    pruned,
                    next: Seq::FIRST,
                })
            }
        }
    }

    fn servers(
        data: &Path,
        realm: Option<RealmId>,
        pruned: Pruned,
        options: JetStreamOptions,
    ) -> anyhow::Result<Self> {
        let Some(realm) = realm else {
            anyhow::bail!(
                "{}: this data folder belongs to no realm yet, so that there is no telling which stream is meant (agora realm join)",
                data.display()
            );
        };
        let durability = options.durability;
        let options = stream_of(options, realm, "reader");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let place = options.place();
        let (log, unsafe_settings) = runtime.block_on(StreamReader::open(options))?;
        Ok(Self {
            log: Open::Servers(Box::new(Remote {
                runtime,
                log,
                durability,
            })),
            realm: Some(realm),
            place,
            unsafe_settings,
            pruned,
            next: Seq::FIRST,
        })
    }

    /// The last place that is read.
    pub(super) fn end(&self) -> Seq {
        match &self.log {
            Open::Own(log) => log.end(),
            Open::Servers(remote) => remote.log.end(),
        }
    }

    /// What stands next; empty at the end.
    pub(super) fn next_batch(&mut self) -> anyhow::Result<Vec<(Seq, Place)>> {
        let batch: Vec<(Seq, Bytes)> = match &self.log {
            Open::Own(log) => log.read(self.next, 1024, 8 << 20)?,
            Open::Servers(remote) => {
                let reading = remote.log.read(self.next, 4096, 4 << 20);
                remote.runtime.block_on(reading)?
            }
        };
        if let Some((last, _)) = batch.last() {
            self.next = last.next();
        }
        let mut places = Vec::with_capacity(batch.len());
        for (seq, stored) in batch {
            places.push((seq, self.place(seq, stored)?));
        }
        Ok(places)
    }

    fn place(&self, seq: Seq, stored: Bytes) -> anyhow::Result<Place> {
        if stored.is_empty() && self.pruned.get(seq.0)?.is_none() {
            // A host that runs may have pruned since the file was opened.
            match &self.log {
                Open::Own(_) => self.pruned.look_again()?,
                // What is kept of it stands there, and in the folder only as far as this host has heard of it.
                Open::Servers(remote) => {
                    let read = |lane, from| remote.log.read_lane(lane, from, 1024, 4 << 20);
                    let gathering = gather(read, State::new(), &self.pruned);
                    remote.runtime.block_on(gathering)?;
                }
            }
        }
        let is_purged = || match &self.log {
            Open::Own(log) => log.is_purged(seq),
            Open::Servers(remote) => remote.runtime.block_on(remote.log.is_purged(seq)),
        };
        Ok(self.pruned.place(seq.0, stored, is_purged)?)
    }

    /// How many places were pruned.
    pub(super) fn pruned_count(&self) -> usize {
        self.pruned.count()
    }

    /// What receipts of this log claim, what that means, and what it would take to have more.
    pub(super) fn durability(&self) -> String {
        match &self.log {
            Open::Own(_) => "receipts say `fsync`: an entry is synced to this machine's disk before it is acknowledged, so that it survives \
                 the process and the power, and not the disk. To have more, keep the log on several servers (docs/realm.md)"
                .to_owned(),
            Open::Servers(remote) => {
                let copies = match remote.log.replicas() {
                    1 => "one server keeps it".to_owned(),
                    n => format!("{n} servers keep it"),
                };
                let more = match remote.log.replicas() {
                    1 => "; a cluster of three, with the stream on three replicas, also survives the loss of one",
                    _ => "",
                };
                match remote.durability {
                    Durability::Asserted => format!(
                        "receipts say `asserted`: {copies}, and you assert that servers sync before they acknowledge, which can't be seen \
                         from here{more}"
                    ),
                    _ => format!(
                        "receipts say `acknowledged`: {copies}, and whether servers sync before they acknowledge can't be seen from here. \
                         By default they don't, and a power cut loses minutes. To have more, set `sync_interval: always` on each, and \
                         say --log-synced{more}"
                    ),
                }
            }
        }
    }
}

/// Tells on standard error how far a long job is, after a second and each second from then on.
pub(super) struct Pace {
    progress: show::Progress,
    told: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            progress: show::Progress::new(),
            told: Instant::now(),
        }
    }

    /// It is at this now.
    pub(super) fn at(&mut self, text: impl FnOnce() -> String) {
        if self.told.elapsed() >= Duration::from_secs(1) {
            self.told = Instant::now();
            self.progress.show(&text());
        }
    }

    /// It is done, or something else is to be shown.
    pub(super) fn done(&mut self) {
        self.progress.done();
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.done();
    }
}
