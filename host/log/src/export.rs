//! A whole log in one file, to keep or to move it.
//!
//! In: the places of a log, in order, from one on. Out: the same, from the file.
//! Promise: what is read is what was written, to the byte and in its place, or an error says where it is not: each place has a checksum,
//! and the file ends with the count and a hash over all of it, so that a file that was cut short is known for that.
//! Failure: reading ends with the first error; what came before it was whole.
//!
//! The file, all numbers little-endian:
//!
//! - Header, 64 bytes: `agora export 1\n`, a zero, the id of whose log it is (32 bytes), the first seq u64, four zeros, crc32c u32 of all
//!   before it.
//! - For each place a frame: kind u32, bytes u32, crc32c u32 (of the seq as u64, kind, bytes, and what follows), and so many bytes.
//!   Kind 1: the entry, verbatim. Kind 2: the place was purged: its leaf hash (32 bytes), and what the log's owner keeps in the
//!   entry's stead.
//! - Trailer, a frame of kind 3 in the place after the last: count u64, and SHA-256 over all leaf hashes in order (32 bytes). Nothing
//!   follows.
//!
//! A leaf hash is SHA-256 of a zero byte and the entry, as in RFC 6962.

use std::io::{self, Read, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{Seq, limits::EXPORT_FRAME_BYTES_MAX};

const MAGIC: &[u8; 16] = b"agora export 1\n\0";
const HEADER_BYTES: usize = 64;
const FRAME_HEADER_BYTES: usize = 12;
const ENTRY: u32 = 1;
const PURGED: u32 = 2;
const TRAILER: u32 = 3;
const TRAILER_BYTES: usize = 40;

/// The hash that an entry has as a leaf of its log's tree.
pub fn leaf_hash(entry: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update([0])
        .chain_update(entry)
        .finalize()
        .into()
}

/// Whose log it is, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The id of whose log it is: a realm's.
    pub id: [u8; 32],
    /// The first place in the file.
    pub first: Seq,
}

/// What stands at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An entry, verbatim.
    Entry(Bytes),
    /// What stood there was purged.
    Purged {
        /// The leaf hash of what stood there.
        leaf: [u8; 32],
        /// What is kept in its stead; the log's owner knows what that is.
        stub: Bytes,
    },
}

impl Place {
    /// Its leaf hash.
    pub fn leaf(&self) -> [u8; 32] {
        match self {
            Place::Entry(entry) => leaf_hash(entry),
            Place::Purged { leaf, .. } => *leaf,
        }
    }
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// How many places it has.
    pub count: u64,
    /// SHA-256 over all leaf hashes in order.
    pub leaves: [u8; 32],
}

/// Why a file can't be read, or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// It is something else.
    #[error("this is no export of a log (`agora log --export FILE` writes one)")]
    Foreign,
    /// It ends too early.
    #[error(
        "the export ends within or after place {seq}, before its end (export it again, or copy it again)"
    )]
    Truncated {
        /// The place that would have come next.
        seq: Seq,
    },
    /// It is not what was written.
    #[error("the export is damaged at place {seq}: {why} (export it again, or copy it again)")]
    Damaged {
        /// The place.
        seq: Seq,
        /// What is wrong.
        why: &'static str,
    },
    /// The operating system says no.
    #[error("the export: {0}")]
    Io(#[from] io::Error),
}

/// What a frame's checksum covers besides its bytes.
fn crc(seq: u64, kind: u32, body: &[&[u8]]) -> u32 {
    let bytes: usize = body.iter().map(|part| part.len()).sum();
    let mut sum = crc32c::crc32c(&seq.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &kind.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &(bytes as u64).to_le_bytes());
    for part in body {
        sum = crc32c::crc32c_append(sum, part);
    }
    sum
}

/// Writes a log into a file.
pub struct Writer<W: Write> {
    to: W,
    next: Seq,
    count: u64,
    leaves: Sha256,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn new(mut to: W, header: Header) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..48].copy_from_slice(&header.id);
        bytes[48..56].copy_from_slice(&header.first.0.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        to.write_all(&bytes)?;
        Ok(Writer {
            to,
            next: header.first,
            count: 0,
            leaves: Sha256::new(),
        })
    }

    fn frame(&mut self, kind: u32, body: &[&[u8]]) -> io::Result<()> {
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let bytes = u32::try_from(bytes).ok();
        let Some(bytes) = bytes.filter(|bytes| *bytes as usize <= EXPORT_FRAME_BYTES_MAX) else {
            return Err(io::Error::other("an entry is larger than any is"));
        };
        self.to.write_all(&kind.to_le_bytes())?;
        self.to.write_all(&bytes.to_le_bytes())?;
        self.to
            .write_all(&crc(self.next.0, kind, body).to_le_bytes())?;
        body.iter().try_for_each(|part| self.to.write_all(part))
    }

    /// Adds the next place.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn push(&mut self, place: &Place) -> io::Result<()> {
        match place {
            Place::Entry(entry) => self.frame(ENTRY, &[entry])?,
            Place::Purged { leaf, stub } => self.frame(PURGED, &[leaf, stub])?,
        }
        self.leaves.update(place.leaf());
        self.count += 1;
        self.next = self.next.next();
        Ok(())
    }

    /// Ends the file, and gives back what it was written to. Making it durable is the caller's.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn finish(mut self) -> io::Result<(W, Trailer)> {
        let leaves = std::mem::take(&mut self.leaves);
        let trailer = Trailer {
            count: self.count,
            leaves: leaves.finalize().into(),
        };
        let count = trailer.count.to_le_bytes();
        self.frame(TRAILER, &[&count, &trailer.leaves])?;
        self.to.flush()?;
        Ok((self.to, trailer))
    }
}

/// Reads a log from a file.
pub struct Reader<R: Read> {
    from: R,
    header: Header,
    next: Seq,
    leaves: Sha256,
    trailer: Option<Trailer>,
}

impl<R: Read> Reader<R> {
    /// Begins to read. Wants a source that is buffered.
    ///
    /// # Errors
    /// [`ExportError::Foreign`], [`ExportError::Truncated`], [`ExportError::Damaged`], [`ExportError::Io`].
    pub fn new(mut from: R) -> Result<Self, ExportError> {
        let mut bytes = [0; HEADER_BYTES];
        let read = fill(&mut from, &mut bytes)?;
        if read < MAGIC.len() || bytes[..16] != *MAGIC {
            return Err(ExportError::Foreign);
        }
        if read < HEADER_BYTES {
            return Err(ExportError::Truncated { seq: Seq::FIRST });
        }
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[48..56]);
        let first = Seq(u64::from_le_bytes(word));
        if crc32c::crc32c(&bytes[..60]).to_le_bytes() != bytes[60..] || first < Seq::FIRST {
            let why = "its header is not sound";
            return Err(ExportError::Damaged {
                seq: Seq::FIRST,
                why,
            });
        }
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[16..48]);
        Ok(Reader {
            from,
            header: Header { id, first },
            next: first,
            leaves: Sha256::new(),
            trailer: None,
        })
    }

    /// Whose log it is, and where it begins.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The next place; none when all was read, and was whole.
    ///
    /// # Errors
    /// [`ExportError::Truncated`], [`ExportError::Damaged`], [`ExportError::Io`].
    pub fn next_place(&mut self) -> Result<Option<(Seq, Place)>, ExportError> {
        if self.trailer.is_some() {
            return Ok(None);
        }
        let seq = self.next;
        let damaged = |why| ExportError::Damaged { seq, why };
        let mut head = [0; FRAME_HEADER_BYTES];
        if fill(&mut self.from, &mut head)? < head.len() {
            return Err(ExportError::Truncated { seq });
        }
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&head[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let (kind, bytes, sum) = (word(0), word(4) as usize, word(8));
        if bytes > EXPORT_FRAME_BYTES_MAX {
            return Err(damaged("it says that it is larger than any is"));
        }
        // Grows with what is really there, so that a length that lies takes no memory.
        let mut body = Vec::new();
        let read = (&mut self.from).take(bytes as u64).read_to_end(&mut body)?;
        if read < bytes {
            return Err(ExportError::Truncated { seq });
        }
        if crc(seq.0, kind, &[&body]) != sum {
            return Err(damaged("its checksum does not hold"));
        }
        let place = match kind {
            ENTRY => Place::Entry(body.into()),
            PURGED => {
                let Some(leaf) = body.first_chunk::<32>().copied() else {
                    return Err(damaged("it is too short for a purged place"));
                };
                let stub = Bytes::from(body).slice(32..);
                Place::Purged { leaf, stub }
            }
            TRAILER if body.len() == TRAILER_BYTES => {
                let mut count = [0; 8];
                count.copy_from_slice(&body[..8]);
                let mut leaves = [0; 32];
                leaves.copy_from_slice(&body[8..]);
                let found: [u8; 32] = std::mem::take(&mut self.leaves).finalize().into();
                let count = u64::from_le_bytes(count);
                if count != seq.0 - self.header.first.0 || leaves != found {
                    return Err(damaged(
                        "the file's end is not that of what comes before it",
                    ));
                }
                if fill(&mut self.from, &mut [0])? > 0 {
                    return Err(damaged("something follows the file's end"));
                }
                self.trailer = Some(Trailer { count, leaves });
                return Ok(None);
            }
            _ => return Err(damaged("it is of no kind that is known here")),
        };
        self.leaves.update(place.leaf());
        self.next = seq.next();
        Ok(Some((seq, place)))
    }

    /// How the file ends, once all was read.
    pub fn trailer(&self) -> Option<Trailer> {
        self.trailer
    }
}

/// Reads until `buf` is full or the source ends; says how much it read.
fn fill(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match from.read(&mut buf[read..]) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
