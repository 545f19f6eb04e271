//! Verifies a record on all cores.
//!
//! In: a [`Source`] of what stands in a log, in order; an [`Audit`]. Out: the same audit, fed with all of it.
//! Promise: each core reads a lot, verifies its signatures, and then judges whatever lots are next in order, so that none waits for
//! another while there is work; what is read ahead is bounded.
//! Failure: a source that can't be read further says where; the audit has what came before.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use agora_log::export::{self, ExportError, Place};
use agora_log::{Log, LogError, Seq, Whole};
use agora_realm::{Audit, Judged, State, Stored, Verifier};
use bytes::Bytes;

use super::gathering::gather;
use super::pruned::{Pruned, Unaccounted};
use crate::limits;

/// Where an entry lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lies {
    /// The file.
    pub file: Arc<PathBuf>,
    /// Where its record begins.
    pub offset: u64,
}

/// What stands at a place, before it is opened.
pub struct Raw {
    /// Where.
    pub seq: u64,
    /// What; or what is kept of it.
    pub place: Place,
    /// Where it lies, if that is a file.
    pub lies: Option<Lies>,
}

/// What is read in order.
pub trait Source: Send {
    /// The next places; none when all were given.
    ///
    /// # Errors
    /// The place that can't be read, if that is known, and why.
    fn next(&mut self) -> Result<Vec<Raw>, Broken>;

    /// The last place, where that is known before all is read.
    fn end(&self) -> Option<u64>;
}

/// Why a source can't be read further.
#[derive(Debug)]
pub enum Broken {
    /// What stands at a place is damaged.
    At {
        /// The place.
        seq: u64,
        /// Where it lies.
        lies: Option<Lies>,
        /// What is wrong with it.
        why: String,
    },
    /// It can't be read now, which says nothing of what stands there.
    Unreadable(anyhow::Error),
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Corrupt {
                seq,
                file,
                offset,
                why,
            } => Self::At {
                seq: seq.0,
                lies: Some(Lies {
                    file: Arc::new(file),
                    offset,
                }),
                why,
            },
            other => Self::Unreadable(other.into()),
        }
    }
}

impl From<ExportError> for Broken {
    fn from(error: ExportError) -> Self {
        match &error {
            ExportError::Truncated { seq } | ExportError::Damaged { seq, .. } => Self::At {
                seq: seq.0,
                lies: None,
                why: error.to_string(),
            },
            _ => Self::Unreadable(error.into()),
        }
    }
}

/// A log in one file.
pub struct Exported<R: Read> {
    reader: export::Reader<R>,
    broken: Option<Broken>,
}

impl<R: Read> Exported<R> {
    /// What a reader has yet to give.
    pub fn new(reader: export::Reader<R>) -> Self {
        Self {
            reader,
            broken: None,
        }
    }
}

impl<R: Read + Send> Source for Exported<R> {
    fn next(&mut self) -> Result<Vec<Raw>, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        let (mut lot, mut bytes) = (Vec::new(), 0);
        while lot.len() < limits::AUDIT_LOT_ENTRIES && bytes < limits::AUDIT_LOT_BYTES {
            let (seq, place) = match self.reader.next_place() {
                Ok(None) => break,
                Ok(Some(next)) => next,
                Err(error) => {
                    self.broken = Some(error.into());
                    break;
                }
            };
            bytes += match &place {
                Place::Entry(stored) => stored.len(),
                Place::Purged { stub, .. } => stub.len(),
            };
            lot.push(Raw {
                seq: seq.0,
                place,
                lies: None,
            });
        }
        match lot.is_empty() {
            true => self.broken.take().map_or(Ok(lot), Err),
            false => Ok(lot),
        }
    }

    fn end(&self) -> Option<u64> {
        None
    }
}

/// A log in a folder, and what is kept beside it of places that were pruned.
pub struct InFolder {
    whole: Whole,
    pruned: Option<Pruned>,
}

impl InFolder {
    /// All that the folder holds.
    pub fn new(whole: Whole, pruned: Option<Pruned>) -> Self {
        Self { whole, pruned }
    }
}

impl Source for InFolder {
    fn next(&mut self) -> Result<Vec<Raw>, Broken> {
        let lot = self
            .whole
            .read(limits::AUDIT_LOT_ENTRIES, limits::AUDIT_LOT_BYTES)?;
        let mut raw = Vec::with_capacity(lot.len());
        for stood in lot {
            let seq = stood.seq.0;
            let place = match (stood.purged, &self.pruned) {
                (false, _) => Place::Entry(stood.entry),
                (true, Some(pruned)) => kept_of(pruned, seq)?,
                (true, None) => {
                    return Err(Broken::Unreadable(anyhow::anyhow!(
                        "entry {seq} was pruned, and what is kept of it lies in the data folder: name that"
                    )));
                }
            };
            raw.push(Raw {
                seq,
                place,
                lies: Some(Lies {
                    file: stood.file,
                    offset: stood.offset,
                }),
            });
        }
        Ok(raw)
    }

    fn end(&self) -> Option<u64> {
        Some(self.whole.end().0)
    }
}

fn missing(seq: u64, error: std::io::Error) -> Broken {
    match error
        .get_ref()
        .is_some_and(|error| error.is::<Unaccounted>())
    {
        true => Broken::At {
            seq,
            lies: None,
            why: error.to_string(),
        },
        false => Broken::Unreadable(error.into()),
    }
}

/// What is kept of a place that the log says was pruned.
fn kept_of(pruned: &Pruned, seq: u64) -> Result<Place, Broken> {
    let unreadable = |error: std::io::Error| Broken::Unreadable(error.into());
    if pruned.get(seq).map_err(unreadable)?.is_none() {
        // A host that runs may have pruned since the file was opened.
        pruned.look_again().map_err(unreadable)?;
    }
    let gone = || Ok(true);
    pruned
        .place(seq, Bytes::new(), gone)
        .map_err(|error| Broken::At {
            seq,
            lies: None,
            why: error.to_string(),
        })
}

/// A log that is read as it was when it was opened.
pub struct Shared {
    log: Arc<dyn Log>,
    pruned: Pruned,
    runtime: tokio::runtime::Handle,
    next: u64,
    end: u64,
}

impl Shared {
    /// All that the log holds now.
    pub fn new(log: Arc<dyn Log>, runtime: tokio::runtime::Handle) -> Self {
        let end = log.end().0;
        Self {
            log,
            pruned: Pruned::in_memory(),
            runtime,
            next: 1,
            end,
        }
    }
}

impl Source for Shared {
    fn next(&mut self) -> Result<Vec<Raw>, Broken> {
        if self.next > self.end {
            return Ok(Vec::new());
        }
        let entries = limits::AUDIT_LOT_ENTRIES.min((self.end - self.next + 1) as usize);
        let reading = self
            .log
            .read(Seq(self.next), entries, limits::AUDIT_LOT_BYTES);
        let lot = self.runtime.block_on(reading)?;
        if let Some((last, _)) = lot.last() {
            self.next = last.0 + 1;
        }
        let read = lot.iter().map(|(seq, stored)| (seq.0, stored));
        if self.pruned.unknown(read).is_some() {
            let read = |lane, from| self.log.read_lane(lane, from, 1024, 4 << 20);
            let gathering = gather(read, State::new(), &self.pruned);
            self.runtime.block_on(gathering)?;
        }
        let mut raw = Vec::with_capacity(lot.len());
        for (seq, stored) in lot {
            let place = self.pruned.place_in(&*self.log, seq.0, stored);
            let place = self.runtime.block_on(place);
            raw.push(Raw {
                seq: seq.0,
                place: place.map_err(|error| missing(seq.0, error))?,
                lies: None,
            });
        }
        Ok(raw)
    }

    fn end(&self) -> Option<u64> {
        Some(self.end)
    }
}

/// What was audited.
pub struct Audited {
    /// The audit, fed with all that could be read.
    pub audit: Audit,
    /// Where each place lies that something was found at.
    pub lies: HashMap<u64, Lies>,
    /// Why it could not be read further.
    pub broken: Option<Broken>,
}

struct Reading<S> {
    source: S,
    lots: u64,
    over: bool,
    broken: Option<Broken>,
}

struct Judging<W> {
    audit: Audit,
    lies: HashMap<u64, Lies>,
    next: u64,
    watch: W,
}

type Lot = Vec<(Stored, Option<Lies>)>;

struct Auditing<S, W> {
    reading: Mutex<Reading<S>>,
    waiting: Mutex<BTreeMap<u64, Lot>>,
    room: Condvar,
    judging: Mutex<Judging<W>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Feeds the audit with all of the source, on so many threads. `watch` sees each place as it was judged, in order.
pub fn audit<S: Source>(
    source: S,
    audit: Audit,
    threads: NonZeroUsize,
    watch: impl FnMut(&Stored, &Judged) + Send,
) -> Audited {
    let auditing = Auditing {
        reading: Mutex::new(Reading {
            source,
            lots: 0,
            over: false,
            broken: None,
        }),
        waiting: Mutex::default(),
        room: Condvar::new(),
        judging: Mutex::new(Judging {
            audit,
            lies: HashMap::new(),
            next: 0,
            watch,
        }),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.get() {
            scope.spawn(|| auditing.work());
        }
        auditing.work();
    });
    let judging = auditing
        .judging
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let reading = auditing
        .reading
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Audited {
        audit: judging.audit,
        lies: judging.lies,
        broken: reading.broken,
    }
}

impl<S: Source, W: FnMut(&Stored, &Judged) + Send> Auditing<S, W> {
    fn work(&self) {
        let mut verifier = Verifier::new();
        while let Some((number, lot)) = self.read() {
            let opened = lot
                .into_iter()
                .map(|raw| {
                    let stored = match raw.place {
                        Place::Entry(stored) => Stored::open(raw.seq, stored, &mut verifier),
                        Place::Purged { leaf, stub } => Stored::pruned(raw.seq, leaf, stub),
                    };
                    (stored, raw.lies)
                })
                .collect();
            lock(&self.waiting).insert(number, opened);
            self.judge();
        }
    }

    /// The next lot, once there is room for it.
    fn read(&self) -> Option<(u64, Vec<Raw>)> {
        let mut waiting = lock(&self.waiting);
        // The lot that is to be judged next is in hand elsewhere then, and its thread judges these too.
        while waiting.len() >= limits::AUDIT_LOTS_WAITING_MAX {
            waiting = self
                .room
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(waiting);
        let mut reading = lock(&self.reading);
        if reading.over {
            return None;
        }
        match reading.source.next() {
            Ok(lot) if !lot.is_empty() => {
                reading.lots += 1;
                return Some((reading.lots - 1, lot));
            }
            Ok(_) => {}
            Err(error) => reading.broken = Some(error),
        }
        reading.over = true;
        None
    }

    /// Judges what is next in order, unless another thread does.
    fn judge(&self) {
        loop {
            let Ok(mut judging) = self.judging.try_lock() else {
                return;
            };
            loop {
                let lot = lock(&self.waiting).remove(&judging.next);
                let Some(lot) = lot else { break };
                judging.next += 1;
                judging.take(lot);
            }
            let next = judging.next;
            drop(judging);
            self.room.notify_all();
            // Whoever brought it meanwhile found this thread judging, and left it to it.
            if !lock(&self.waiting).contains_key(&next) {
                return;
            }
        }
    }
}

impl<W: FnMut(&Stored, &Judged)> Judging<W> {
    fn take(&mut self, lot: Lot) {
        for (stored, lies) in lot {
            let found = self.audit.found();
            let judged = self.audit.take(&stored);
            (self.watch)(&stored, &judged);
            if let (true, Some(lies)) = (self.audit.found() > found, lies)
                && self.lies.len() < agora_realm::limits::FINDINGS_MAX
            {
                self.lies.insert(stored.seq, lies);
            }
        }
    }
}
