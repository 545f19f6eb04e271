//! How entries lie in a segment file.
//!
//! A segment is a header, then records, then zeros to its end. All numbers are little-endian.
//!
//! - Header, 64 bytes: magic `agoraseg`, format version u32, crc32c u32 of all that follows, salt u64, the segment's
//!   number u64, the first seq it holds u64, the number u64 and used bytes u64 of the segment before (0 if none), the
//!   bytes that were allocated u64.
//! - Record, 24 bytes and the entry, padded to 8: entry bytes u32, crc32c u32, seq u64, the first seq of its batch u64.
//!   The checksum is of seq to entry, and starts from the salt's checksum xor the entry bytes. The highest bit of the entry
//!   bytes says that the entry was purged; nothing follows then.
//!
//! The salt is random and never leaves the folder, so no entry can hold bytes that pass for a record, and what an
//! earlier use left in a file can't either. A record whose batch begins after seq N is proof that N was durable before
//! it was written: that is how a torn tail is told from corruption.

use std::io;

use super::files::OpenFile;

pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: u64 = 64;
const RECORD_HEADER_BYTES: u64 = 24;
/// In a record's entry bytes: the entry was purged.
const PURGED: u32 = 1 << 31;
const MAGIC: &[u8; 8] = b"agoraseg";
/// Larger entries are taken for corruption, so that hostile bytes allocate no more than this.
pub(crate) const ENTRY_BYTES_LIMIT: u64 = 64 << 20;
/// Larger segments are taken for corruption.
pub(crate) const SEGMENT_BYTES_LIMIT: u64 = 1 << 30;
const CHUNK_BYTES: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) salt: u64,
    pub(super) number: u64,
    pub(super) first: u64,
    pub(super) before: u64,
    pub(super) before_bytes: u64,
    /// How long the file is at least while it is the last.
    pub(super) bytes: u64,
}

/// What stands where a header should.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Header(Header),
    /// Written by another version.
    Version(u32),
    /// No header: a segment not in use yet, unless there is something behind.
    Nothing,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let words = [
            self.salt,
            self.number,
            self.first,
            self.before,
            self.before_bytes,
            self.bytes,
        ];
        for (place, word) in bytes[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Found {
        if bytes[..8] != *MAGIC {
            return Found::Nothing;
        }
        match u32_at(bytes, 8) {
            VERSION if crc32c::crc32c(&bytes[16..]) == u32_at(bytes, 12) => Found::Header(Header {
                salt: u64_at(bytes, 16),
                number: u64_at(bytes, 24),
                first: u64_at(bytes, 32),
                before: u64_at(bytes, 40),
                before_bytes: u64_at(bytes, 48),
                bytes: u64_at(bytes, 56),
            }),
            VERSION => Found::Nothing,
            other => Found::Version(other),
        }
    }
}

/// What an entry takes in a segment.
pub(super) fn record_bytes(entry_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + entry_bytes as u64).next_multiple_of(8)
}

/// Of a record from its seq on; the bytes before that enter through the start value.
fn crc(salt: u64, entry_bytes: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()) ^ entry_bytes, rest)
}

/// Appends a record to `out`.
pub(super) fn encode_record(out: &mut Vec<u8>, salt: u64, seq: u64, batch: u64, entry: &[u8]) {
    encode(out, salt, seq, batch, entry, entry.len() as u32);
}

/// Appends the record of a purged entry to `out`.
pub(super) fn encode_purged(out: &mut Vec<u8>, salt: u64, seq: u64, batch: u64) {
    encode(out, salt, seq, batch, &[], PURGED);
}

fn encode(out: &mut Vec<u8>, salt: u64, seq: u64, batch: u64, entry: &[u8], entry_bytes: u32) {
    let start = out.len();
    out.extend_from_slice(&entry_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&batch.to_le_bytes());
    out.extend_from_slice(entry);
    let crc = crc(salt, entry_bytes, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
}

/// A file read in order, a chunk at a time. What lies past the end reads as nothing.
pub(super) struct Chunks<'a> {
    file: &'a dyn OpenFile,
    file_bytes: u64,
    at: u64,
    chunk: Vec<u8>,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(file: &'a dyn OpenFile) -> io::Result<Self> {
        Ok(Chunks {
            file_bytes: file.bytes()?,
            file,
            at: 0,
            chunk: Vec::new(),
        })
    }

    /// The bytes at a place, `None` if the file ends before they do.
    fn get(&mut self, at: u64, bytes: u64) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(bytes).filter(|&end| end <= self.file_bytes) else {
            return Ok(None);
        };
        if at < self.at || end > self.at + self.chunk.len() as u64 {
            let want = bytes.max(CHUNK_BYTES).min(self.file_bytes - at);
            self.chunk.resize(want as usize, 0);
            self.at = at;
            let read = self.file.read_at(&mut self.chunk, at)?;
            self.chunk.truncate(read);
        }
        let start = (at - self.at) as usize;
        Ok(self.chunk.get(start..start + bytes as usize))
    }

    pub(super) fn header(&mut self) -> io::Result<Found> {
        let mut bytes = [0; HEADER_BYTES as usize];
        match self.get(0, HEADER_BYTES)? {
            None => return Ok(Found::Nothing),
            Some(found) => bytes.copy_from_slice(found),
        }
        Ok(Header::decode(&bytes))
    }

    /// The record at a place, if a whole and sound one with this `seq` stands there.
    pub(super) fn record(
        &mut self,
        salt: u64,
        seq: u64,
        at: u64,
    ) -> io::Result<Option<Record<'_>>> {
        let found = self.any_record(salt, at, |found| found == seq)?;
        Ok(found)
    }

    fn any_record(
        &mut self,
        salt: u64,
        at: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> io::Result<Option<Record<'_>>> {
        let Some(head) = self.get(at, RECORD_HEADER_BYTES)? else {
            return Ok(None);
        };
        let (entry_bytes, sum) = (u32_at(head, 0), u32_at(head, 4));
        let (seq, batch) = (u64_at(head, 8), u64_at(head, 16));
        let purged = entry_bytes == PURGED;
        let follow = if purged { 0 } else { u64::from(entry_bytes) };
        if !wanted(seq) || batch > seq || batch == 0 || follow > ENTRY_BYTES_LIMIT {
            return Ok(None);
        }
        let record_bytes = RECORD_HEADER_BYTES + follow;
        let Some(bytes) = self.get(at, record_bytes)? else {
            return Ok(None);
        };
        if crc(salt, entry_bytes, &bytes[8..]) != sum {
            return Ok(None);
        }
        let entry = &bytes[RECORD_HEADER_BYTES as usize..];
        Ok(Some(Record {
            batch,
            entry,
            purged,
        }))
    }

    /// Where the last byte before `to` that is not zero ends; `from` if all are zero.
    fn last_set(&mut self, from: u64, to: u64) -> io::Result<u64> {
        let (mut at, mut last) = (from, from);
        while at < to {
            let part = CHUNK_BYTES.min(to - at);
            match self.get(at, part)? {
                None => break,
                Some(bytes) => {
                    if let Some(place) = bytes.iter().rposition(|&byte| byte != 0) {
                        last = at + place as u64 + 1;
                    }
                }
            }
            at += part;
        }
        Ok(last)
    }

    /// How many bytes of zeros end the record of an entry of this size.
    pub(super) fn padding_bytes(entry_bytes: usize) -> u64 {
        record_bytes(entry_bytes) - RECORD_HEADER_BYTES - entry_bytes as u64
    }

    /// Whether nothing but zeros stands there.
    pub(super) fn is_zero(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let found = self.get(from, to - from)?;
        Ok(found.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0)))
    }

    /// Whether these places are in order and hold nothing but zeros.
    pub(super) fn is_blank_from(&mut self, from: u64, to: u64) -> io::Result<bool> {
        Ok(from <= to && self.last_set(from, to)? == from)
    }

    /// Whether nothing but zeros stands behind the header's place.
    pub(super) fn is_blank(&mut self) -> io::Result<bool> {
        Ok(self.last_set(HEADER_BYTES, self.file_bytes)? == HEADER_BYTES)
    }

    /// Walks all records from the first, and says how they end.
    pub(super) fn scan(&mut self, header: &Header) -> io::Result<Scan> {
        let (mut at, mut seq) = (HEADER_BYTES, header.first);
        while let Some(record) = self.record(header.salt, seq, at)? {
            at += record_bytes(record.entry.len());
            seq = match seq.checked_add(1) {
                Some(next) => next,
                None => break,
            };
        }
        let used = self.last_set(at, self.file_bytes)?;
        let mut later = None;
        // Padding aside, whole records after a bad one: of the same batch if the crash came before the sync.
        for place in (at..used).step_by(8) {
            let wanted = |found: u64| found >= seq && found - seq <= SEGMENT_BYTES_LIMIT;
            if let Some(record) = self.any_record(header.salt, place, wanted)?
                && record.batch > seq
            {
                later = Some(place);
                break;
            }
        }
        Ok(Scan {
            end: seq - 1,
            at,
            torn_bytes: used - at,
            later,
        })
    }
}

pub(super) struct Record<'a> {
    pub(super) batch: u64,
    pub(super) entry: &'a [u8],
    pub(super) purged: bool,
}

/// How a segment ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// The last sound entry (the one before the segment's first if there is none).
    pub(super) end: u64,
    /// Where it ends.
    pub(super) at: u64,
    /// Bytes behind it up to the last that is not zero.
    pub(super) torn_bytes: u64,
    /// A record behind it which proves that what is missing was durable.
    pub(super) later: Option<u64>,
}
