//! Opening a folder: which segments make up the log, and where it ends.
//!
//! In: whatever a crash left, or anybody put there.
//! Promise: every entry that was acknowledged is found, or the log is refused; bytes behind the last one that were never
//! acknowledged are cut and reported; nothing is changed when opening to read.
//! Failure: nothing was cut.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    TornTail,
    chain::{Segment, missing},
    files::{Files, OpenFile},
    format::{Chunks, Found, HEADER_BYTES, Header, SEGMENT_BYTES_LIMIT, VERSION},
};
use crate::{LogError, Options, Seq};

/// The segments in use, in order, and the end of the last.
pub(super) struct Recovered {
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) end: Seq,
    /// Where the next record goes in the last segment.
    pub(super) at: u64,
    pub(super) cut: Option<TornTail>,
    /// An allocated segment that nothing stands in.
    pub(super) spare: Option<(u64, PathBuf)>,
    /// A number that no segment has.
    pub(super) number: u64,
}

/// How the file's name ends that is to replace a segment.
pub(super) const PURGING: &str = ".purging";

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.segment"))
}

/// Finds the log in `dir`; cuts a torn tail and removes what is not in use only if `options` say how it is written.
pub(super) fn recover(
    files: &dyn Files,
    dir: &Path,
    options: Option<&Options>,
) -> Result<Recovered, LogError> {
    let writing = options.is_some();
    let mut numbers: Vec<u64> = files
        .list(dir)
        .map_err(LogError::io("list", dir))?
        .iter()
        .filter_map(|name| name.strip_suffix(".segment")?.parse().ok())
        .filter(|&number| number > 0 && number < u64::MAX)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();

    let mut used: Vec<(Header, u64)> = Vec::new();
    let mut idle: Vec<u64> = Vec::new();
    for &number in &numbers {
        let path = segment_path(dir, number);
        let io = |error| LogError::io("read", &path)(error);
        let file = match files.open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io)?,
        };
        let file_bytes = file.bytes().map_err(io)?;
        if file_bytes > SEGMENT_BYTES_LIMIT {
            return Err(LogError::Corrupt {
                seq: Seq(used.last().map_or(1, |(header, _)| header.first)),
                file: path,
                offset: 0,
                why: format!("a segment of {file_bytes} bytes is larger than any that is written"),
            });
        }
        let mut chunks = Chunks::new(&*file).map_err(io)?;
        match chunks.header().map_err(io)? {
            Found::Header(header) if header.number == number && header.first > 0 => {
                used.push((header, file_bytes));
            }
            Found::Version(found) => {
                return Err(LogError::Format {
                    path,
                    found: found.to_string(),
                    known: VERSION.to_string(),
                });
            }
            Found::Header(_) | Found::Nothing => {
                if !chunks.is_blank().map_err(io)? {
                    let seq = used.last().map_or(1, |(header, _)| header.first);
                    return Err(missing(
                        &path,
                        seq,
                        "entries follow a header that is not sound",
                    ));
                }
                idle.push(number);
            }
        }
    }

    // From the last back: each names the one before, and how far that one counts.
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    let mut left = used.as_slice();
    let mut cursor = used.last().map(|(header, _)| *header);
    while let Some(header) = cursor {
        segments.push(Segment::new(header, segment_path(dir, header.number)));
        cursor = if header.before == 0 {
            if header.first != 1 {
                let path = segment_path(dir, header.number);
                return Err(missing(&path, 1, "the first segment does not begin at 1"));
            }
            None
        } else {
            let place = left.partition_point(|(known, _)| known.number < header.before);
            let path = segment_path(dir, header.before);
            match left.get(place) {
                Some((before, bytes))
                    if before.number == header.before && before.number < header.number =>
                {
                    if *bytes < header.before_bytes || before.first > header.first {
                        return Err(missing(
                            &path,
                            before.first,
                            "the file is shorter than it was",
                        ));
                    }
                    left = &left[..place];
                    Some(*before)
                }
                _ => {
                    return Err(missing(
                        &path,
                        header.first.saturating_sub(1),
                        "the file is gone",
                    ));
                }
            }
        };
    }
    segments.reverse();

    let number = numbers.last().map_or(1, |last| last + 1);
    let mut recovered = Recovered {
        segments,
        end: Seq(0),
        at: HEADER_BYTES,
        cut: None,
        spare: None,
        number,
    };
    if let Some(last) = recovered.segments.last() {
        let (end, at, cut) = end_of(files, last, writing)?;
        (recovered.end, recovered.at, recovered.cut) = (Seq(end), at, cut);
    }
    if let Some(options) = options {
        let in_use = |number: u64| {
            recovered
                .segments
                .iter()
                .any(|segment| segment.header.number == number)
        };
        let newest = recovered
            .segments
            .last()
            .map_or(0, |segment| segment.header.number);
        for name in files.list(dir).map_err(LogError::io("list", dir))? {
            // A purge that did not come to its end; the segment that it was to replace is still there.
            if name.ends_with(PURGING) {
                let path = dir.join(name);
                files.remove(&path).map_err(LogError::io("remove", &path))?;
            }
        }
        for number in numbers {
            if in_use(number) {
                continue;
            }
            let path = segment_path(dir, number);
            if recovered.spare.is_none()
                && number > newest
                && idle.contains(&number)
                && is_whole(files, &path, options).unwrap_or(false)
            {
                recovered.spare = Some((number, path));
            } else {
                files.remove(&path).map_err(LogError::io("remove", &path))?;
            }
        }
        files.sync_dir(dir).map_err(LogError::io("sync", dir))?;
    }
    Ok(recovered)
}

/// Whether a blank segment really has its room: it may have been left while it was being allocated.
fn is_whole(files: &dyn Files, path: &Path, options: &Options) -> io::Result<bool> {
    let file = files.open(path, true)?;
    if file.bytes()? != options.segment_bytes {
        return Ok(false);
    }
    file.allocate(options.segment_bytes)?;
    Ok(true)
}

/// Where the last segment ends; makes durable what is there, and cuts what is torn, if `writing`.
fn end_of(
    files: &dyn Files,
    segment: &Segment,
    writing: bool,
) -> Result<(u64, u64, Option<TornTail>), LogError> {
    let path = &segment.path;
    let file = files
        .open(path, writing)
        .map_err(LogError::io("open", path))?;
    if writing {
        // What a killed process wrote is only in memory yet, and what failed to be synced may be there alone.
        file.sync().map_err(LogError::io("sync", path))?;
        file.forget_cached();
    }
    // A crash does not shorten a file that was allocated.
    let file_bytes = file.bytes().map_err(LogError::io("read", path))?;
    let shortened = file_bytes < segment.header.bytes;
    // Who only reads may see a batch half written; the writer is ahead of it a moment later.
    let mut tries = if writing { 1 } else { 3 };
    let scan = loop {
        let mut chunks = Chunks::new(&*file).map_err(LogError::io("read", path))?;
        let scan = chunks
            .scan(&segment.header)
            .map_err(LogError::io("read", path))?;
        tries -= 1;
        match scan.later {
            None => break scan,
            Some(_) if tries > 0 => {}
            Some(later) => {
                return Err(LogError::Corrupt {
                    seq: Seq(scan.end + 1),
                    file: path.clone(),
                    offset: scan.at,
                    why: format!("it is not sound, and a later entry, at byte {later}, is"),
                });
            }
        }
    };
    if shortened {
        return Err(LogError::Corrupt {
            seq: Seq(scan.end + 1),
            file: path.clone(),
            offset: scan.at,
            why: format!(
                "the file was cut short, to {file_bytes} of {} bytes",
                segment.header.bytes
            ),
        });
    }
    let mut cut = None;
    if scan.torn_bytes > 0 {
        if writing {
            blank(&*file, scan.at, scan.torn_bytes)
                .map_err(LogError::io("cut the torn tail of", path))?;
        }
        cut = Some(TornTail {
            file: path.clone(),
            offset: scan.at,
            bytes: scan.torn_bytes,
        });
    }
    Ok((scan.end, scan.at, cut))
}

/// Overwrites with zeros from the back, so that a crash in between leaves a torn tail again.
fn blank(file: &dyn OpenFile, at: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; (1 << 20).min(bytes as usize)];
    let mut end = at + bytes;
    while end > at {
        let part = (zeros.len() as u64).min(end - at);
        end -= part;
        file.write_all_at(&zeros[..part as usize], end)?;
    }
    file.sync()
}
