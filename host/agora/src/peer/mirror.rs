//! A copy of a peer's channel, with proofs: what it said can be read while it is out of reach, and shown later.
//!
//! In: entries of the peer's log with their way up to a checkpoint that is held of it. Out: its messages by ordinal, as `history` would give them;
//! and, offline, whether all of the copy is what the peer's host signed.
//! Promise: nothing is kept that isn't proved: each entry's signature verifies, and it stands in the tree of a checkpoint that was
//! signed by the peer's host and extends those before it. What is kept survives kill -9. The copy is bounded; the oldest of it goes
//! first. What the peer prunes stays here.
//! Failure: [`MirrorError`]. What is not proved is refused as a whole, and nothing of it is kept.
//!
//! Not proved, and on the peer's word: a message's ordinal and its thread; that messages between were not left out; that a message counts.
//!
//! Two files, `older` and `newer`, of at most half the bytes each. A file is 8 bytes of head and records behind each other: length, CRC-32C, and
//! a kind with what belongs to it: a checkpoint; an entry, proved by the checkpoint before it; a message of the entry before it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agora_realm::checkpoint::{Checkpoint, Signed};
use agora_realm::evidence::Exhibit;
use agora_realm::limits::ENTRY_BYTES_MAX;
use agora_realm::merkle::{self, Hash, PROOF_HASHES_MAX};
use agora_realm::{Body, ChannelName, MessageId, Ordinal, PublicKey, Sealed, Stored, Verifier};
use bytes::Bytes;

use crate::delivery::index::Place;
use crate::delivery::record::Kept;
use crate::limits;

const HEAD: &[u8; 8] = b"agmirr 1";
const RECORD_HEAD: usize = 8;
const CHECKPOINT: u8 = 1;
const ENTRY: u8 = 2;
const MESSAGE: u8 = 3;
/// Ordinal, index, thread.
const MESSAGE_BYTES: usize = 8 + 2 + 32;

/// A copy can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The operating system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is something else.
    #[error("{}: this is no copy of a peer's channel (move it away; the copy is made anew)", .0.display())]
    NotOne(PathBuf),
    /// What is to be kept is not proved.
    #[error("entry {seq}: {why}")]
    NotProved {
        /// Its place.
        seq: u64,
        /// What is wrong.
        why: String,
    },
}

/// A message of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Its place among the channel's counting messages.
    pub ordinal: u64,
    /// Which message of the entry.
    pub index: u16,
    /// The root of its thread.
    pub thread: MessageId,
}

/// An entry of the peer's log, and its messages that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// It, with its proof.
    pub exhibit: Exhibit,
    /// In order.
    pub messages: Vec<Said>,
}

/// Where a message stands in the copy.
#[derive(Debug, Clone, Copy)]
struct Row {
    said: Said,
    seq: u64,
    /// The entry's bytes, in the file.
    at: u64,
    len: u32,
}

/// Where the copy ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct End {
    ordinal: u64,
    seq: u64,
    index: u16,
}

impl End {
    /// Goes on by one message, which must stand behind.
    fn pass(&mut self, seq: u64, said: &Said) -> Result<(), String> {
        if said.ordinal <= self.ordinal || (seq, said.index) <= (self.seq, self.index) {
            return Err(format!(
                "message {} doesn't stand behind message {}",
                said.ordinal, self.ordinal
            ));
        }
        (self.ordinal, self.seq, self.index) = (said.ordinal, seq, said.index);
        Ok(())
    }
}

struct Inner {
    older: Option<File>,
    newer: File,
    bytes: u64,
    /// In both files, by ordinal; the first `split` are in `older`.
    rows: Vec<Row>,
    split: usize,
    end: End,
    /// The last checkpoint in `newer`.
    checkpoint: Option<Checkpoint>,
}

/// The copy of one channel.
pub struct Mirror {
    folder: PathBuf,
    channel: ChannelName,
    half_bytes_max: u64,
    inner: Mutex<Inner>,
}

/// Where the copies of a peer's channels are, in what is held of it.
pub fn folder(held: &Path) -> PathBuf {
    held.join("channels")
}

/// The channels of which there are copies.
///
/// # Errors
/// The operating system says no.
pub fn channels(held: &Path) -> Result<Vec<ChannelName>, MirrorError> {
    let path = folder(held);
    let listing = match std::fs::read_dir(&path) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(MirrorError::Io { path, source }),
    };
    let mut names: Vec<_> = listing
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            ChannelName::new(&name.replace('+', "/")).ok()
        })
        .collect();
    names.sort();
    Ok(names)
}

impl Mirror {
    /// Opens the copy of a channel, to go on with it. What a crash left of a record is cut off.
    ///
    /// # Errors
    /// The files.
    pub fn open(held: &Path, channel: ChannelName) -> Result<Self, MirrorError> {
        Self::open_with(held, channel, limits::MIRROR_BYTES_MAX)
    }

    /// The same, with another bound.
    ///
    /// # Errors
    /// The files.
    pub fn open_with(
        held: &Path,
        channel: ChannelName,
        bytes_max: u64,
    ) -> Result<Self, MirrorError> {
        let folder = folder(held).join(channel.file_name());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| MirrorError::Io {
                path: folder.clone(),
                source,
            })?;
        let (mut rows, mut end, mut checkpoint) = (Vec::new(), End::default(), None);
        let older_path = folder.join("older");
        let older = read(&older_path)?;
        if let Some(bytes) = &older {
            index(&older_path, bytes, &mut rows, &mut end)?;
        }
        let split = rows.len();
        let path = folder.join("newer");
        let io = |source| MirrorError::Io {
            path: path.clone(),
            source,
        };
        let bytes = read(&path)?.unwrap_or_default();
        let mut length = 0;
        if bytes.len() >= HEAD.len() {
            (length, checkpoint) = index(&path, &bytes, &mut rows, &mut end)?;
        }
        let newer = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        newer.set_len(length).map_err(io)?;
        if length == 0 {
            newer.write_all_at(HEAD, 0).map_err(io)?;
            newer.sync_all().map_err(io)?;
            length = HEAD.len() as u64;
        }
        let older = match older {
            None => None,
            Some(_) => Some(File::open(&older_path).map_err(|source| MirrorError::Io {
                path: older_path,
                source,
            })?),
        };
        Ok(Self {
            folder,
            channel,
            half_bytes_max: bytes_max / 2,
            inner: Mutex::new(Inner {
                older,
                newer,
                bytes: length,
                rows,
                split,
                end,
                checkpoint,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is a copy of, as it is called there.
    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The ordinals of the first and the last message that it has.
    pub fn span(&self) -> Option<(u64, u64)> {
        let inner = self.inner();
        let (first, last) = (inner.rows.first()?, inner.rows.last()?);
        Some((first.said.ordinal, last.said.ordinal))
    }

    /// The ordinal to go on from.
    pub fn next(&self) -> u64 {
        self.inner().end.ordinal + 1
    }

    /// Up to `count` messages from an ordinal on, and at most `bytes_max` of payload but at least one message if there is one. Blocks.
    ///
    /// # Errors
    /// The files.
    pub fn read(
        &self,
        from: u64,
        count: usize,
        bytes_max: usize,
    ) -> Result<Vec<Kept>, MirrorError> {
        let inner = self.inner();
        let first = inner.rows.partition_point(|row| row.said.ordinal < from);
        let (mut kept, mut bytes) = (Vec::<Kept>::new(), 0);
        for (at, row) in inner.rows.iter().enumerate().skip(first).take(count) {
            let last = kept.last().filter(|last| last.place.seq == row.seq);
            let sealed = match last {
                Some(last) => last.sealed.clone(),
                None => self.sealed(&inner, at < inner.split, row)?,
            };
            let message = Kept {
                ordinal: Ordinal(row.said.ordinal),
                place: Place {
                    seq: row.seq,
                    index: row.said.index,
                    thread: row.said.thread,
                },
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

    fn sealed(&self, inner: &Inner, is_older: bool, row: &Row) -> Result<Sealed, MirrorError> {
        let (file, name) = match (is_older, &inner.older) {
            (true, Some(older)) => (older, "older"),
            _ => (&inner.newer, "newer"),
        };
        let path = self.folder.join(name);
        let mut stored = vec![0; row.len as usize];
        if let Err(source) = file.read_exact_at(&mut stored, row.at) {
            return Err(MirrorError::Io { path, source });
        }
        let sealed = Sealed::reread(stored.into());
        match sealed {
            Ok(sealed) if is_said(&sealed, &self.channel, row.said.index).is_ok() => Ok(sealed),
            _ => Err(MirrorError::NotOne(path)),
        }
    }

    /// Takes what the peer gave from [`next`](Self::next) on, proved by a checkpoint that is held of it. Blocks.
    ///
    /// # Errors
    /// It is not proved, or the files.
    pub fn take(&self, held: &Signed, given: &[Mirrored]) -> Result<(), MirrorError> {
        let mut inner = self.inner();
        let (mut verifier, mut end) = (Verifier::new(), inner.end);
        let checkpoint = held.checkpoint();
        for one in given {
            let seq = one.exhibit.seq;
            let proved = proved(checkpoint, &self.channel, one, &mut verifier)
                .and_then(|()| one.messages.iter().try_for_each(|said| end.pass(seq, said)));
            proved.map_err(|why| MirrorError::NotProved { seq, why })?;
        }
        if given.is_empty() {
            return Ok(());
        }
        let path = self.folder.join("newer");
        let io = |source| MirrorError::Io {
            path: path.clone(),
            source,
        };
        if inner.bytes >= self.half_bytes_max {
            self.turn_over(&mut inner).map_err(io)?;
        }
        let mut bytes = Vec::new();
        if inner.checkpoint.as_ref() != Some(checkpoint) {
            record(&mut bytes, CHECKPOINT, &[held.to_string().as_bytes()]);
        }
        let mut rows = Vec::new();
        for Mirrored { exhibit, messages } in given {
            let count = [exhibit.path.len() as u8];
            let (seq, path) = (exhibit.seq.to_le_bytes(), exhibit.path.concat());
            record(&mut bytes, ENTRY, &[&seq, &count, &path, &exhibit.stored]);
            let len = exhibit.stored.len();
            let at = inner.bytes + (bytes.len() - len) as u64;
            for said in messages {
                let parts: [&[u8]; 3] = [
                    &said.ordinal.to_le_bytes(),
                    &said.index.to_le_bytes(),
                    &said.thread.0,
                ];
                record(&mut bytes, MESSAGE, &parts);
                rows.push(Row {
                    said: *said,
                    seq: exhibit.seq,
                    at,
                    len: len as u32,
                });
            }
        }
        let written = inner.newer.write_all_at(&bytes, inner.bytes);
        if let Err(error) = written.and_then(|()| inner.newer.sync_data()) {
            // What is left of it would be cut off by the next start, too.
            let _ = inner.newer.set_len(inner.bytes);
            return Err(io(error));
        }
        inner.bytes += bytes.len() as u64;
        inner.rows.extend(rows);
        (inner.end, inner.checkpoint) = (end, Some(*checkpoint));
        Ok(())
    }

    /// The older half goes, and the newer one is the older from here on.
    fn turn_over(&self, inner: &mut Inner) -> std::io::Result<()> {
        let (newer, older) = (self.folder.join("newer"), self.folder.join("older"));
        let draft = self.folder.join("draft");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all_at(HEAD, 0)?;
        file.sync_all()?;
        // After a crash between the two there is no newer one, which is as good as an empty one.
        std::fs::rename(&newer, &older)?;
        let full = std::mem::replace(&mut inner.newer, file);
        inner.older = Some(full);
        let split = inner.split;
        inner.rows.drain(..split);
        inner.split = inner.rows.len();
        (inner.bytes, inner.checkpoint) = (HEAD.len() as u64, None);
        std::fs::rename(&draft, &newer)?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Whether the entry says this message on the channel.
fn is_said(sealed: &Sealed, channel: &ChannelName, index: u16) -> Result<(), String> {
    match &sealed.entry().body {
        Body::Turn(turn) if turn.channel != *channel => {
            Err(format!("it is said on '{}'", turn.channel))
        }
        Body::Turn(turn) if usize::from(index) < turn.messages.len() => Ok(()),
        Body::Turn(_) => Err(format!("it has no message {index}")),
        _ => Err("it says nothing on a channel".into()),
    }
}

fn proved(
    checkpoint: &Checkpoint,
    channel: &ChannelName,
    given: &Mirrored,
    verifier: &mut Verifier,
) -> Result<(), String> {
    let Exhibit { seq, stored, path } = &given.exhibit;
    let stored = Stored::open(*seq, stored.clone(), verifier);
    let index = seq.checked_sub(1).ok_or("there is no place 0")?;
    let (size, root) = (checkpoint.size, &checkpoint.root);
    merkle::check_inclusion(&stored.leaf, index, size, root, path)
        .map_err(|why| format!("it is not in the log of the checkpoint: {why}"))?;
    let sealed = stored.entry.map_err(|junk| junk.to_string())?;
    if sealed.entry().realm != Some(checkpoint.realm) {
        return Err("it is of another realm".into());
    }
    let mut messages = given.messages.iter();
    messages.try_for_each(|said| is_said(&sealed, channel, said.index))
}

// -- The files

fn record(to: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let start = to.len();
    to.extend_from_slice(&[0; RECORD_HEAD]);
    to.push(kind);
    parts.iter().for_each(|part| to.extend_from_slice(part));
    let body = &to[start + RECORD_HEAD..];
    let head = [
        (body.len() as u32).to_le_bytes(),
        crc32c::crc32c(body).to_le_bytes(),
    ];
    to[start..start + RECORD_HEAD].copy_from_slice(&head.concat());
}

enum Record<'a> {
    Checkpoint(Box<Signed>),
    Entry {
        seq: u64,
        path: Vec<Hash>,
        stored: &'a [u8],
        /// Where that begins in the file.
        at: u64,
    },
    Message(Said),
}

/// The records of a file, as far as they are whole.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    fn of(path: &Path, bytes: &'a [u8]) -> Result<Self, MirrorError> {
        match bytes.starts_with(HEAD) {
            true => Ok(Self {
                bytes,
                at: HEAD.len(),
            }),
            false => Err(MirrorError::NotOne(path.to_owned())),
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let rest = &self.bytes[self.at..];
        let (head, rest) = rest.split_at_checked(RECORD_HEAD)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let len = word(0) as usize;
        let body = rest.get(..len)?;
        if crc32c::crc32c(body) != word(4) {
            return None;
        }
        let (kind, rest) = body.split_first()?;
        let record = match *kind {
            CHECKPOINT => {
                let text = std::str::from_utf8(rest).ok()?;
                Record::Checkpoint(Box::new(text.parse().ok()?))
            }
            ENTRY => {
                let (seq, rest) = rest.split_first_chunk()?;
                let (count, rest) = rest.split_first()?;
                let (path, stored) = rest.split_at_checked(32 * usize::from(*count))?;
                let (path, _) = path.as_chunks::<32>();
                Record::Entry {
                    seq: u64::from_le_bytes(*seq),
                    path: path.to_vec(),
                    stored,
                    at: (self.at + RECORD_HEAD + len - stored.len()) as u64,
                }
            }
            MESSAGE if rest.len() == MESSAGE_BYTES => {
                let (ordinal, rest) = rest.split_first_chunk()?;
                let (index, rest) = rest.split_first_chunk()?;
                Record::Message(Said {
                    ordinal: u64::from_le_bytes(*ordinal),
                    index: u16::from_le_bytes(*index),
                    thread: MessageId(rest.try_into().ok()?),
                })
            }
            _ => return None,
        };
        self.at += RECORD_HEAD + len;
        Some(record)
    }
}

/// Finds the messages of a file. Answers how long it is as far as it is whole, and the last checkpoint in it.
fn index(
    path: &Path,
    bytes: &[u8],
    rows: &mut Vec<Row>,
    end: &mut End,
) -> Result<(u64, Option<Checkpoint>), MirrorError> {
    let mut records = Records::of(path, bytes)?;
    let (mut checkpoint, mut entry) = (None, None);
    for record in records.by_ref() {
        match record {
            Record::Checkpoint(signed) => checkpoint = Some(*signed.checkpoint()),
            Record::Entry {
                seq, stored, at, ..
            } => entry = Some((seq, at, stored.len() as u32)),
            Record::Message(said) => {
                let not_one = || MirrorError::NotOne(path.to_owned());
                let (seq, at, len) = entry.ok_or_else(not_one)?;
                end.pass(seq, &said).map_err(|_| not_one())?;
                rows.push(Row { said, seq, at, len });
            }
        }
    }
    Ok((records.at as u64, checkpoint))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, MirrorError> {
    let io = |source| MirrorError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(limits::MIRROR_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(io)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    Ok(Some(bytes))
}

// -- Offline

/// What a copy comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Messages.
    pub messages: u64,
    /// The ordinals of the first and the last.
    pub span: Option<(u64, u64)>,
    /// How many places the checkpoint covers that proves the last.
    pub size: u64,
    /// What is wrong, for people. The first few.
    pub wrong: Vec<String>,
}

/// Goes through a copy, host running or not: `tell` is told each message, proved or not. What is wrong is in the answer. `keys`: of the
/// peer's host, as they are known.
///
/// # Errors
/// The files.
pub fn examine(
    held: &Path,
    channel: &ChannelName,
    keys: &[PublicKey],
    mut tell: impl FnMut(&Kept),
) -> Result<Copied, MirrorError> {
    let folder = folder(held).join(channel.file_name());
    let (mut copied, mut end) = (Copied::default(), End::default());
    let mut verifier = Verifier::new();
    let mut found = 0;
    for name in ["older", "newer"] {
        let path = folder.join(name);
        let Some(bytes) = read(&path)? else {
            continue;
        };
        found += 1;
        let (mut checkpoint, mut entry) = (None::<Checkpoint>, None::<(u64, Sealed)>);
        for record in Records::of(&path, &bytes)? {
            let mut wrong = |seq: u64, why: String| {
                if copied.wrong.len() < limits::MIRROR_FINDINGS_MAX {
                    copied.wrong.push(format!("entry {seq}: {why}"));
                }
            };
            match record {
                Record::Checkpoint(signed) => {
                    let size = signed.checkpoint().size;
                    if !keys.iter().any(|key| signed.is_signed_by(key)) {
                        wrong(
                            size,
                            "the checkpoint is not signed by the peer's host".into(),
                        );
                    }
                    if size < copied.size {
                        wrong(size, "the checkpoint is older than one before it".into());
                    }
                    copied.size = size;
                    checkpoint = Some(*signed.checkpoint());
                }
                Record::Entry {
                    seq, path, stored, ..
                } => {
                    let stored = Bytes::copy_from_slice(stored);
                    entry = match Sealed::reread(stored.clone()) {
                        Ok(sealed) => Some((seq, sealed)),
                        Err(_) => None,
                    };
                    let one = Mirrored {
                        exhibit: Exhibit { seq, stored, path },
                        messages: Vec::new(),
                    };
                    let proved = match &checkpoint {
                        None => Err("no checkpoint stands before it".into()),
                        Some(checkpoint) => proved(checkpoint, channel, &one, &mut verifier),
                    };
                    if let Err(why) = proved {
                        wrong(seq, why);
                    }
                }
                Record::Message(said) => {
                    let Some((seq, sealed)) = &entry else {
                        wrong(0, format!("message {} has no entry", said.ordinal));
                        continue;
                    };
                    let told =
                        is_said(sealed, channel, said.index).and_then(|()| end.pass(*seq, &said));
                    if let Err(why) = told {
                        wrong(*seq, why);
                        continue;
                    }
                    copied.messages += 1;
                    let first = copied.span.map_or(said.ordinal, |(first, _)| first);
                    copied.span = Some((first, said.ordinal));
                    tell(&Kept {
                        ordinal: Ordinal(said.ordinal),
                        place: Place {
                            seq: *seq,
                            index: said.index,
                            thread: said.thread,
                        },
                        sealed: sealed.clone(),
                    });
                }
            }
        }
    }
    match found {
        0 => Err(MirrorError::NotOne(folder)),
        _ => Ok(copied),
    }
}

const _: () = assert!(
    limits::MIRROR_BYTES_MAX / 2 + 4 * (ENTRY_BYTES_MAX + 32 * PROOF_HASHES_MAX) as u64
        <= limits::MIRROR_FILE_BYTES_MAX
);
