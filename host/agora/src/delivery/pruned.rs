//! What is kept of turns whose payloads were pruned: stubs, by place.
//!
//! In: places of the log, with what judge still needs of each ([`Sealed::stub`]) and its leaf hash. Out: the same, when the log has
//! nothing there any more.
//! Promise: kept, whole and synced, before the log lets go of anything; so the log is judged as it always was, from its beginning too,
//! and every leaf of its tree is known.
//! Failure: a file that is damaged is refused: without it the log can't be judged any more.
//!
//! One file, `pruned` in the data folder, which is replaced as a whole. Little-endian: `agora pruned 1\n` and a zero; then for each place, in
//! order: bytes u32, crc32c u32 (of what follows), seq u64, leaf hash, stub; then a record of no stub whose seq is 2^64 - 1 and whose leaf
//! begins with the count.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use agora_log::export::Place;
use agora_log::{Log, LogError, Seq};
use agora_realm::{Junk, Sealed, Verifier};
use bytes::Bytes;

use super::record::RecordError;

const MAGIC: &[u8; 16] = b"agora pruned 1\n\0";
const HEAD: usize = 8;
const FIXED: usize = 8 + 32;
/// Entries that are not worth another thread.
const FEW: usize = 16;
/// More than any stub takes.
const RECORD_BYTES_MAX: usize = 2 * agora_realm::limits::ENTRY_BYTES_MAX;

/// One pruned place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    /// Where.
    pub seq: u64,
    /// The leaf hash of what stood there.
    pub leaf: [u8; 32],
    /// What is kept of it.
    pub stub: Bytes,
}

/// The stubs of a data folder.
pub struct Pruned {
    path: PathBuf,
    shelf: RwLock<Shelf>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

/// A place has nothing any more, and nothing is kept of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "entry {0} is not in the log any more, and what was to be kept of it is not there (in a data folder: restore `pruned` from a copy of \
     it; on servers: it was deleted there, and not by `agora prune`: restore the stream)"
)]
pub struct Unaccounted(pub u64);

#[derive(Default)]
struct Shelf {
    file: Option<File>,
    /// Each place, and where its record begins in the file; both rise.
    places: Vec<(u64, u64)>,
    /// Those that are not in the file, or are others there.
    loose: BTreeMap<u64, Stub>,
    loose_bytes: usize,
}

fn damaged(path: &Path, why: &str) -> std::io::Error {
    std::io::Error::other(format!(
        "{}: {why}; without it the log can't be judged (restore it from a copy of the data folder)",
        path.display()
    ))
}

impl Pruned {
    /// Those kept in this file; none when there is no such file.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn open(path: PathBuf) -> std::io::Result<Self> {
        let shelf = Shelf::open(&path)?;
        Ok(Self {
            path,
            shelf: RwLock::new(shelf),
            writing: Mutex::default(),
        })
    }

    /// None, and no file.
    pub fn in_memory() -> Self {
        Self {
            path: PathBuf::new(),
            shelf: RwLock::default(),
            writing: Mutex::default(),
        }
    }

    /// Why the file can't be read.
    pub(super) fn error(&self, source: std::io::Error) -> RecordError {
        RecordError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        let more = shelf.loose.keys().filter(|seq| !shelf.has_in_file(**seq));
        shelf.places.len() + more.count()
    }

    /// Whether anything is kept of a place.
    pub fn has(&self, seq: u64) -> bool {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        shelf.loose.contains_key(&seq) || shelf.has_in_file(seq)
    }

    /// Keeps these too, in memory until [`Pruned::write_held`]. One that is kept of the same place and with the same leaf stays.
    pub fn hold(&self, more: Vec<Stub>) {
        for stub in more {
            if matches!(self.get(stub.seq), Ok(Some(kept)) if kept.leaf == stub.leaf) {
                continue;
            }
            let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
            shelf.loose_bytes += stub.stub.len() + FIXED;
            shelf.loose.insert(stub.seq, stub);
        }
    }

    /// How many bytes of stubs are in memory only.
    pub fn held_bytes(&self) -> usize {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        shelf.loose_bytes
    }

    /// Puts what is in memory only into the file. Blocks.
    ///
    /// # Errors
    /// They can't be written; they stay in memory.
    pub fn write_held(&self) -> std::io::Result<()> {
        let held: Vec<Stub> = {
            let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
            shelf.loose.values().cloned().collect()
        };
        match held.is_empty() || self.path.as_os_str().is_empty() {
            true => Ok(()),
            false => self.add(&held),
        }
    }

    /// What is kept of a place.
    ///
    /// # Errors
    /// It can't be read.
    pub fn get(&self, seq: u64) -> std::io::Result<Option<Stub>> {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stub) = shelf.loose.get(&seq) {
            return Ok(Some(stub.clone()));
        }
        let (Ok(at), Some(file)) = (
            shelf.places.binary_search_by_key(&seq, |(seq, _)| *seq),
            &shelf.file,
        ) else {
            return Ok(None);
        };
        let offset = shelf.places[at].1;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, offset)?;
        let mut body = vec![0; length(&head).ok_or_else(|| damaged(&self.path, "it is damaged"))?];
        file.read_exact_at(&mut body, offset + HEAD as u64)?;
        match parse(&head, body) {
            Some(stub) if stub.seq == seq => Ok(Some(stub)),
            _ => Err(damaged(&self.path, "it is damaged")),
        }
    }

    /// Looks again at the file: another process may have replaced it.
    ///
    /// # Errors
    /// As [`Pruned::open`].
    pub fn look_again(&self) -> std::io::Result<()> {
        self.look_again_without(&[])
    }

    /// The same; these are in the file now.
    fn look_again_without(&self, written: &[Stub]) -> std::io::Result<()> {
        let mut new = Shelf::open(&self.path)?;
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        new.loose = std::mem::take(&mut shelf.loose);
        new.loose_bytes = shelf.loose_bytes;
        for stub in written {
            if new.loose.get(&stub.seq) == Some(stub) {
                new.loose.remove(&stub.seq);
                new.loose_bytes -= stub.stub.len() + FIXED;
            }
        }
        *shelf = new;
        Ok(())
    }

    /// Keeps these too, which rise; durable when this returns. One that is kept of the same place gives way: what is given was just read
    /// from the log, and the other may be of a log that went back. Blocks.
    ///
    /// # Errors
    /// They can't be written; those that were kept are kept.
    pub fn add(&self, more: &[Stub]) -> std::io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let draft = self.path.with_extension("new");
        let written = self.write(&draft, more);
        if written.is_err() {
            let _ = std::fs::remove_file(&draft);
        }
        written?;
        self.look_again_without(more)
    }

    fn write(&self, draft: &Path, more: &[Stub]) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut to = BufWriter::with_capacity(1 << 20, options.open(draft)?);
        to.write_all(MAGIC)?;
        let mut old = Records::open(&self.path)?;
        let mut kept = old.as_mut().map_or(Ok(None), Records::next_stub)?;
        let mut more = more.iter().peekable();
        let mut count = 0_u64;
        loop {
            let first = match (&kept, more.peek()) {
                (None, None) => break,
                (Some(stub), Some(new)) if new.seq < stub.seq => more.next().cloned(),
                (None, Some(_)) => more.next().cloned(),
                (Some(stub), new) => {
                    let is_replaced = new.is_some_and(|new| new.seq == stub.seq);
                    let next = old.as_mut().map_or(Ok(None), Records::next_stub)?;
                    let stub = std::mem::replace(&mut kept, next);
                    match is_replaced {
                        true => more.next().cloned(),
                        false => stub,
                    }
                }
            };
            if let Some(stub) = first {
                put(&mut to, &stub)?;
                count += 1;
            }
        }
        let mut leaf = [0; 32];
        leaf[..8].copy_from_slice(&count.to_le_bytes());
        let end = Stub {
            seq: u64::MAX,
            leaf,
            stub: Bytes::new(),
        };
        put(&mut to, &end)?;
        let file = to
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(draft, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// What stands, or stood, at a place of the log that reads as `stored`.
    ///
    /// # Errors
    /// The stub of a purged place can't be read, or is missing.
    pub fn place(
        &self,
        seq: u64,
        stored: Bytes,
        is_purged: impl FnOnce() -> Result<bool, LogError>,
    ) -> std::io::Result<Place> {
        if !stored.is_empty() {
            return Ok(Place::Entry(stored));
        }
        match self.get(seq)? {
            Some(Stub { leaf, stub, .. }) => Ok(Place::Purged { leaf, stub }),
            None if is_purged().map_err(std::io::Error::other)? => {
                Err(std::io::Error::other(Unaccounted(seq)))
            }
            None => Ok(Place::Entry(stored)),
        }
    }

    /// Which of these places read as empty, and nothing is kept of them.
    pub fn unknown<'a>(&self, read: impl IntoIterator<Item = (u64, &'a Bytes)>) -> Option<u64> {
        let mut empty = read.into_iter().filter(|(_, stored)| stored.is_empty());
        empty.find(|(seq, _)| !self.has(*seq)).map(|(seq, _)| seq)
    }

    /// The same, of a log that is open.
    ///
    /// # Errors
    /// The same.
    pub async fn place_in(&self, log: &dyn Log, seq: u64, stored: Bytes) -> std::io::Result<Place> {
        let purged = match stored.is_empty() && self.get(seq)?.is_none() {
            true => log.is_purged(Seq(seq)).await,
            false => Ok(false),
        };
        self.place(seq, stored, || purged)
    }
}

/// The entry of a place, its signature checked.
///
/// # Errors
/// There is none.
pub fn open_place(place: Place) -> Result<Sealed, Junk> {
    match place {
        Place::Entry(stored) => Sealed::open(stored),
        Place::Purged { leaf, stub } => Sealed::from_stub(leaf, stub),
    }
}

/// The entries of places, in their order, their signatures checked on all cores.
pub fn open_places(mut places: Vec<(u64, Place)>) -> Vec<(u64, Result<Sealed, Junk>)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lot = places.len().div_ceil(cores).max(FEW);
    let open = |lot: Vec<(u64, Place)>| -> Vec<_> {
        let opened = lot.into_iter().map(|(seq, place)| (seq, open_place(place)));
        opened.collect()
    };
    std::thread::scope(|scope| {
        let rest = places.split_off(lot.min(places.len()));
        let mut rest = rest.into_iter().peekable();
        let mut lots = Vec::new();
        while rest.peek().is_some() {
            let lot: Vec<_> = rest.by_ref().take(lot).collect();
            lots.push(scope.spawn(move || open(lot)));
        }
        let mut opened = open(places);
        for lot in lots {
            opened.extend(lot.join().expect("verifying does not panic"));
        }
        opened
    })
}

/// As [`open_place`], with a verifier that remembers keys: for who opens many.
///
/// # Errors
/// There is none.
pub fn open_place_with(place: Place, verifier: &mut Verifier) -> Result<Sealed, Junk> {
    match place {
        Place::Entry(stored) => Sealed::open_with(stored, verifier),
        Place::Purged { leaf, stub } => Sealed::from_stub(leaf, stub),
    }
}

fn length(head: &[u8; HEAD]) -> Option<usize> {
    let bytes = u32::from_le_bytes(*head.first_chunk()?) as usize;
    (FIXED..=RECORD_BYTES_MAX).contains(&bytes).then_some(bytes)
}

fn parse(head: &[u8; HEAD], body: Vec<u8>) -> Option<Stub> {
    if head[4..] != crc32c::crc32c(&body).to_le_bytes() {
        return None;
    }
    let seq = u64::from_le_bytes(*body.first_chunk()?);
    let leaf = *body.get(8..)?.first_chunk()?;
    let stub = Bytes::from(body).slice(FIXED..);
    Some(Stub { seq, leaf, stub })
}

fn put(to: &mut impl Write, stub: &Stub) -> std::io::Result<()> {
    let mut body = Vec::with_capacity(FIXED + stub.stub.len());
    body.extend_from_slice(&stub.seq.to_le_bytes());
    body.extend_from_slice(&stub.leaf);
    body.extend_from_slice(&stub.stub);
    to.write_all(&(body.len() as u32).to_le_bytes())?;
    to.write_all(&crc32c::crc32c(&body).to_le_bytes())?;
    to.write_all(&body)
}

/// The records of a file, in order.
struct Records {
    path: PathBuf,
    from: BufReader<File>,
    at: u64,
    last: u64,
    count: u64,
}

impl Records {
    fn open(path: &Path) -> std::io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut from = BufReader::with_capacity(1 << 18, file);
        let mut magic = [0; 16];
        if from.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(damaged(path, "it is no such file, or of another version"));
        }
        Ok(Some(Self {
            path: path.to_owned(),
            from,
            at: MAGIC.len() as u64,
            last: 0,
            count: 0,
        }))
    }

    fn next_stub(&mut self) -> std::io::Result<Option<Stub>> {
        let mut head = [0; HEAD];
        let broken = |_| damaged(&self.path, "it ends too early");
        self.from.read_exact(&mut head).map_err(broken)?;
        let wrong = || damaged(&self.path, "it is damaged");
        let mut body = vec![0; length(&head).ok_or_else(wrong)?];
        self.from.read_exact(&mut body).map_err(broken)?;
        self.at += (HEAD + body.len()) as u64;
        let stub = parse(&head, body).ok_or_else(wrong)?;
        if stub.seq == u64::MAX {
            return match stub.leaf[..8] == self.count.to_le_bytes() {
                true => Ok(None),
                false => Err(wrong()),
            };
        }
        if stub.seq <= self.last {
            return Err(wrong());
        }
        self.last = stub.seq;
        self.count += 1;
        Ok(Some(stub))
    }
}

impl Shelf {
    fn has_in_file(&self, seq: u64) -> bool {
        let found = self.places.binary_search_by_key(&seq, |(seq, _)| *seq);
        found.is_ok()
    }

    fn open(path: &Path) -> std::io::Result<Self> {
        let Some(mut records) = Records::open(path)? else {
            return Ok(Self::default());
        };
        let mut places = Vec::new();
        loop {
            let at = records.at;
            match records.next_stub()? {
                Some(stub) => places.push((stub.seq, at)),
                None => break,
            }
        }
        // The very file that was read, also if it was replaced meanwhile.
        let file = Some(records.from.into_inner());
        Ok(Self {
            file,
            places,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub(seq: u64) -> Stub {
        Stub {
            seq,
            leaf: [seq as u8; 32],
            stub: Bytes::from(vec![seq as u8; seq as usize % 50]),
        }
    }

    fn all(pruned: &Pruned) -> Vec<u64> {
        let found = (0..200).filter(|seq| {
            let found = pruned.get(*seq).unwrap();
            assert!(found.is_none() || found == Some(stub(*seq)));
            found.is_some()
        });
        found.collect()
    }

    #[test]
    fn stubs_are_kept_in_order_and_merged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pruned");
        let pruned = Pruned::open(path.clone()).unwrap();
        assert_eq!(all(&pruned), [0; 0]);
        pruned.add(&[stub(5), stub(9), stub(100)]).unwrap();
        pruned
            .add(&[stub(1), stub(9), stub(50), stub(150)])
            .unwrap();
        pruned.add(&[]).unwrap();
        assert_eq!(all(&pruned), [1, 5, 9, 50, 100, 150]);
        assert_eq!(all(&Pruned::open(path).unwrap()), [1, 5, 9, 50, 100, 150]);
        assert_eq!(pruned.count(), 6);
        // The log went back, and something else came to stand there.
        let other = Stub {
            leaf: [77; 32],
            ..stub(50)
        };
        pruned.add(std::slice::from_ref(&other)).unwrap();
        assert_eq!(pruned.get(50).unwrap(), Some(other));
        assert_eq!(pruned.get(100).unwrap(), Some(stub(100)));
        assert_eq!(pruned.count(), 6);
    }

    #[test]
    fn what_is_held_is_had_at_once_and_kept_once_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pruned");
        let pruned = Pruned::open(path.clone()).unwrap();
        pruned.add(&[stub(5), stub(9)]).unwrap();
        let again = Stub {
            stub: Bytes::from_static(b"said later"),
            ..stub(9)
        };
        pruned.hold(vec![again, stub(50), stub(100)]);
        // The first of one leaf stays.
        assert_eq!(all(&pruned), [5, 9, 50, 100]);
        assert_eq!(pruned.count(), 4);
        assert!(pruned.held_bytes() > 0 && pruned.has(50) && !pruned.has(51));
        assert_eq!(all(&Pruned::open(path.clone()).unwrap()), [5, 9]);
        let empty = Bytes::new();
        assert_eq!(pruned.unknown([(5, &empty), (50, &empty)]), None);
        assert_eq!(pruned.unknown([(5, &empty), (51, &empty)]), Some(51));
        pruned.write_held().unwrap();
        assert_eq!((pruned.held_bytes(), pruned.count()), (0, 4));
        assert_eq!(all(&Pruned::open(path).unwrap()), [5, 9, 50, 100]);
        let memory = Pruned::in_memory();
        memory.hold(vec![stub(7)]);
        memory.write_held().unwrap();
        assert_eq!(all(&memory), [7]);
    }

    #[test]
    fn a_damaged_or_shortened_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pruned");
        let pruned = Pruned::open(path.clone()).unwrap();
        pruned.add(&[stub(5), stub(9), stub(100)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            assert!(Pruned::open(path.clone()).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Pruned::open(path.clone()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_place_is_an_entry_a_stub_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let pruned = Pruned::open(dir.path().join("pruned")).unwrap();
        pruned.add(&[stub(5)]).unwrap();
        let entry = Bytes::from_static(b"entry");
        let gone = || Ok(true);
        assert_eq!(
            pruned.place(5, entry.clone(), gone).unwrap(),
            Place::Entry(entry)
        );
        let Place::Purged { leaf, .. } = pruned.place(5, Bytes::new(), gone).unwrap() else {
            panic!("it was pruned");
        };
        assert_eq!(leaf, [5; 32]);
        assert!(pruned.place(6, Bytes::new(), gone).is_err());
        let empty = pruned.place(6, Bytes::new(), || Ok(false)).unwrap();
        assert_eq!(empty, Place::Entry(Bytes::new()));
    }
}
