//! Takes entries out of segments that are written to no more.
//!
//! In: places that may go. Promise: each of them reads as empty from then on, and is known for purged; all other places read as they did,
//! before, during and after, and after a crash at any moment: a segment is written anew beside itself, synced, and put in its own
//! place. What is given back is room; the hashes of what went are for the caller to keep.
//! Failure: segments are done one after the other, and those done stay so; purging the same again does the rest.

use std::{io, path::Path, sync::Arc};

use super::{
    chain::{Chain, Segment},
    files::Files,
    folder::PURGING,
    format::{Chunks, HEADER_BYTES, encode_purged, encode_record, record_bytes},
};
use crate::{LogError, Seq};

/// Purges `places`, which rise; answers how many bytes of entries went. Blocks on files, and takes as much memory as a segment.
pub(super) fn purge(chain: &Chain, dir: &Path, places: &[u64]) -> Result<u64, LogError> {
    let mut bytes = 0;
    for (segment, last, file_bytes) in chain.sealed() {
        let from = places.partition_point(|place| *place < segment.header.first);
        let to = places.partition_point(|place| *place <= last);
        if from < to {
            bytes += rewrite(
                &chain.files,
                dir,
                &segment,
                last,
                file_bytes,
                &places[from..to],
            )?;
        }
    }
    Ok(bytes)
}

fn rewrite(
    files: &Arc<dyn Files>,
    dir: &Path,
    segment: &Segment,
    last: u64,
    file_bytes: u64,
    places: &[u64],
) -> Result<u64, LogError> {
    let path = &segment.path;
    let reading = |error| LogError::io("read", path)(error);
    let file = files.open(path, false).map_err(reading)?;
    let mut chunks = Chunks::new(&*file).map_err(reading)?;
    let header = &segment.header;
    let mut out = header.encode().to_vec();
    let (mut at, mut bytes, mut changes) = (HEADER_BYTES, 0, false);
    for seq in header.first..=last {
        let Some(record) = chunks.record(header.salt, seq, at).map_err(reading)? else {
            return Err(LogError::Corrupt {
                seq: Seq(seq),
                file: path.clone(),
                offset: at,
                why: "no sound record stands there".into(),
            });
        };
        let goes = places.binary_search(&seq).is_ok();
        if goes && !record.purged {
            bytes += record.entry.len() as u64;
            changes = true;
        }
        match goes || record.purged {
            true => encode_purged(&mut out, header.salt, seq, record.batch),
            false => encode_record(&mut out, header.salt, seq, record.batch, record.entry),
        }
        at += record_bytes(record.entry.len());
    }
    if !changes {
        return Ok(0);
    }
    let draft = path.with_extension(&PURGING[1..]);
    let replaced = replace(files, dir, &draft, path, &out, file_bytes);
    if replaced.is_err() {
        let _ = files.remove(&draft);
    }
    replaced.map_err(LogError::io("purge", path))?;
    segment.forget_places();
    Ok(bytes)
}

fn replace(
    files: &Arc<dyn Files>,
    dir: &Path,
    draft: &Path,
    path: &Path,
    bytes: &[u8],
    file_bytes: u64,
) -> io::Result<()> {
    let file = files.create(draft)?;
    file.allocate(bytes.len() as u64)?;
    file.write_all_at(bytes, 0)?;
    // The next segment's header says how long this file is at least.
    if file_bytes > bytes.len() as u64 {
        file.truncate(file_bytes)?;
    }
    file.sync()?;
    files.rename(draft, path)?;
    files.sync_dir(dir)
}
