//! Writes batches: one write and one sync for all entries that wait.
//!
//! In: entries in the order they are to stand in.
//! Promise: an entry is acknowledged after the sync that covers it, and shown to readers only then. Ordinary entries
//! leave the reserve alone: allocated room, in this segment or in a spare one, that only control entries may use.
//! Failure: a write or sync that failed is never repeated in place, for what the file then holds is not known. The
//! segment is given up at its last durable entry, and the batch goes to a new one, which says so in its header. Only if
//! that fails too is the outcome unknown; the next batch tries a new segment again.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{
    chain::{Chain, Segment},
    files::{Files, OpenFile},
    folder::{Recovered, segment_path},
    format::{HEADER_BYTES, Header, encode_record, record_bytes},
};
use crate::{Class, LogError, Options, Seq};

/// Told of every batch that became durable, before its entries are acknowledged.
pub(super) type OnDurable = Box<dyn FnMut(Seq, &[Bytes]) + Send>;

pub(super) struct Writer {
    files: Arc<dyn Files>,
    dir: PathBuf,
    options: Options,
    chain: Arc<Chain>,
    on_durable: OnDurable,
    current: Option<Current>,
    /// Why the current segment takes nothing more.
    broken: Option<String>,
    spare: Option<(u64, PathBuf)>,
    /// Whether this batch found that there is no new segment to be had: one try is enough for all its entries.
    refused: bool,
    /// The number of the next segment to be created.
    number: u64,
    end: u64,
    records: Vec<u8>,
}

struct Current {
    segment: Arc<Segment>,
    file: Arc<dyn OpenFile>,
    /// Where the next record goes.
    at: u64,
    bytes: u64,
}

/// Where there is room for an entry.
enum Room {
    Here,
    NewSegment,
    Nowhere,
}

impl Writer {
    /// Goes on where `recovered` ends; a log without segments gets its first.
    pub(super) fn new(
        files: Arc<dyn Files>,
        dir: PathBuf,
        options: Options,
        recovered: Recovered,
        chain: Arc<Chain>,
        on_durable: OnDurable,
    ) -> Result<Self, LogError> {
        let current = match recovered.segments.last() {
            None => None,
            Some(segment) => {
                let io = |error| LogError::io("open", &segment.path)(error);
                let file = files.open(&segment.path, true).map_err(io)?;
                let bytes = file.bytes().map_err(io)?.max(options.segment_bytes);
                // A folder that was copied may have lost its room.
                let bytes = file.allocate(bytes).map_or(recovered.at, |()| bytes);
                Some(Current {
                    segment: segment.clone(),
                    file,
                    at: recovered.at,
                    bytes,
                })
            }
        };
        let mut writer = Writer {
            files,
            options,
            chain,
            on_durable,
            current,
            broken: None,
            spare: recovered.spare,
            refused: false,
            number: recovered.number,
            end: recovered.end.0,
            records: Vec::new(),
            dir,
        };
        let prepared = writer.prepare();
        if writer.current.is_none() {
            prepared
                .and_then(|()| writer.begin_segment())
                .map_err(LogError::io("create the first segment in", &writer.dir))?;
            // A spare that is missing is made up later.
            let _ = writer.prepare();
        }
        Ok(writer)
    }

    /// Whether the reserve has its whole size.
    pub(super) fn is_prepared(&self) -> bool {
        self.spare.is_some()
    }

    /// Allocates the spare segment, if there is none.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.spare.is_some() {
            return Ok(());
        }
        let path = segment_path(&self.dir, self.number);
        let made = self.files.create(&path).and_then(|file| {
            file.allocate(self.options.segment_bytes)?;
            self.files.sync_dir(&self.dir)
        });
        match made {
            Ok(()) => {
                self.spare = Some((self.number, path));
                self.number += 1;
            }
            // It holds nothing; should it stay, the next try empties it.
            Err(_) => drop(self.files.remove(&path)),
        }
        made
    }

    /// Begins a new segment, so that nothing is written any more to the one before.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        let is_new = |current: &Current| current.at == HEADER_BYTES;
        if self.broken.is_none() && self.current.as_ref().is_none_or(is_new) {
            return Ok(());
        }
        self.prepare()?;
        self.begin_segment()
    }

    /// Writes the entries in order; an answer for each. Blocks on files.
    pub(super) fn commit(&mut self, entries: &[(Class, Bytes)]) -> Vec<Result<Seq, LogError>> {
        let mut answers = Vec::with_capacity(entries.len());
        self.refused = false;
        let mut group: Vec<Bytes> = Vec::new();
        let mut group_bytes = 0;
        // What is refused is answered in its place, so the group before it is written first.
        for (class, entry) in entries {
            let bytes = record_bytes(entry.len());
            let mut room = self.room(*class, group_bytes + bytes);
            if !matches!(room, Room::Here) && !group.is_empty() {
                answers.extend(self.write(&group));
                group.clear();
                group_bytes = 0;
                room = self.room(*class, bytes);
            }
            if matches!(room, Room::NewSegment) {
                match self.begin_segment() {
                    Ok(()) => {
                        // Best effort: an ordinary entry that needs it asks again.
                        if *class == Class::Ordinary {
                            room = self.room(*class, bytes);
                        } else {
                            room = Room::Here;
                        }
                    }
                    Err(error) => {
                        answers.push(Err(
                            self.unavailable(&format!("cannot begin a segment: {error}"))
                        ));
                        continue;
                    }
                }
            }
            if matches!(room, Room::Here) {
                group.push(entry.clone());
                group_bytes += bytes;
            } else {
                answers.push(Err(self.full(*class)));
            }
        }
        if !group.is_empty() {
            answers.extend(self.write(&group));
        }
        answers
    }

    /// Where there is room for this many bytes, those that wait to be written included.
    fn room(&mut self, class: Class, bytes: u64) -> Room {
        let left = match (&self.current, &self.broken) {
            (Some(current), None) => current.bytes.saturating_sub(current.at),
            _ => 0,
        };
        let needed = match class {
            Class::Control => bytes,
            Class::Ordinary if self.spare.is_some() => bytes,
            Class::Ordinary => bytes + self.options.reserve_bytes,
        };
        if needed <= left {
            return Room::Here;
        }
        self.refused = self.refused || self.prepare().is_err();
        if self.refused {
            Room::Nowhere
        } else if bytes <= left {
            Room::Here
        } else {
            Room::NewSegment
        }
    }

    /// Gives up the current segment at its durable end and goes on in the spare one.
    fn begin_segment(&mut self) -> io::Result<()> {
        let Some((number, path)) = self.spare.take() else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        let file = self.files.open(&path, true)?;
        let bytes = file.bytes()?;
        let before = self.current.as_ref();
        let header = Header {
            salt: getrandom::u64().map_err(io::Error::other)?,
            number,
            first: self.end + 1,
            before: before.map_or(0, |current| current.segment.header.number),
            before_bytes: before.map_or(0, |current| current.at),
            bytes,
        };
        // Durable before the first record, so that records behind a bad header are known for corruption.
        let began = file
            .write_all_at(&header.encode(), 0)
            .and_then(|()| file.sync());
        if let Err(error) = began {
            // The header may stand on the disk, so nothing may be added to the segment that it ends.
            self.broken = Some(error.to_string());
            let _ = self.files.remove(&path);
            return Err(error);
        }
        let segment = Segment::new(header, path);
        self.chain.push(segment.clone());
        let current = Current {
            segment,
            file,
            at: HEADER_BYTES,
            bytes,
        };
        if let Some(before) = self.current.replace(current) {
            // Gives back what was not used; what is left standing there counts for nothing.
            let _ = before.file.truncate(before.at);
        }
        self.broken = None;
        Ok(())
    }

    fn write(&mut self, group: &[Bytes]) -> Vec<Result<Seq, LogError>> {
        let first = self.end + 1;
        let written = self.write_here(group).or_else(|error| {
            tracing::warn!(dir = %self.dir.display(), %error, "a segment failed and is given up");
            self.broken = Some(error.to_string());
            self.prepare()
                .and_then(|()| self.begin_segment())
                .and_then(|()| self.write_here(group))
                .inspect_err(|_| self.refused = true)
        });
        match written {
            Ok(()) => {
                (self.on_durable)(Seq(first), group);
                (first..=self.end).map(|seq| Ok(Seq(seq))).collect()
            }
            Err(error) => {
                self.broken = Some(error.to_string());
                let unknown = LogError::Unknown {
                    place: self.dir.display().to_string(),
                    why: error.to_string(),
                    mend: "look for it when the log takes entries again or was opened anew; check the disk"
                        .into(),
                };
                vec![Err(unknown); group.len()]
            }
        }
    }

    fn write_here(&mut self, group: &[Bytes]) -> io::Result<()> {
        let Some(current) = &mut self.current else {
            return Err(io::Error::other("there is no segment"));
        };
        let salt = current.segment.header.salt;
        let first = self.end + 1;
        self.records.clear();
        let mut seq = first;
        for entry in group {
            encode_record(&mut self.records, salt, seq, first, entry);
            seq += 1;
        }
        if current.at + self.records.len() as u64 > current.bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        current.file.write_all_at(&self.records, current.at)?;
        current.file.sync()?;
        let mut at = current.at;
        for (seq, entry) in (first..).zip(group) {
            current.segment.note(seq, at);
            at += record_bytes(entry.len());
        }
        current.at = at;
        self.end = seq - 1;
        Ok(())
    }

    fn full(&self, class: Class) -> LogError {
        match (&self.broken, class) {
            (Some(why), _) => self.unavailable(why),
            (None, Class::Ordinary) => {
                self.unavailable("the disk is full; the room left is kept for control entries")
            }
            (None, Class::Control) => {
                self.unavailable("the disk is full, and the room kept for control entries is spent")
            }
        }
    }

    fn unavailable(&self, why: &str) -> LogError {
        LogError::Unavailable {
            place: self.dir.display().to_string(),
            why: why.into(),
            mend: format!(
                "free at least {} MiB there, or mend the disk; the log then goes on by itself",
                self.options.segment_bytes.div_ceil(1 << 20)
            ),
        }
    }
}
