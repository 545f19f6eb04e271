//! Reading a folder whole: no byte of what was written can differ unnoticed.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf};

use agora_log::{Class, Embedded, Log, LogError, Options, Seq, Stood, Whole};
use bytes::Bytes;

/// A record's header, as it lies before each entry.
const RECORD_HEADER_BYTES: u64 = 24;
/// A segment's header.
const HEADER_BYTES: u64 = 64;

fn small() -> Options {
    Options {
        entry_bytes_max: 4000,
        segment_bytes: 32 << 10,
        reserve_bytes: 12 << 10,
        queue_bytes: 16 << 10,
        control_queue_bytes: 16 << 10,
        batch_bytes: 4 << 10,
        recent_bytes: 2 << 10,
    }
}

fn entry(n: u64) -> Bytes {
    let len = 1 + (n * 37 % 400) as usize;
    (0..len).map(|i| (n as usize + i * 7) as u8).collect()
}

/// A folder of so many entries, each of a batch of its own, over several segments.
async fn written(dir: &Path, entries: u64) {
    let (log, _) = Embedded::open(dir, small()).unwrap();
    for n in 1..=entries {
        let appended = log
            .append([0; 32], entry(n), Class::Ordinary)
            .await
            .unwrap();
        assert_eq!(appended.seq, Seq(n));
    }
    log.close().await.unwrap();
}

fn read(dir: &Path) -> Result<(Vec<Stood>, Seq, bool), LogError> {
    let mut whole = Whole::open(dir)?;
    let mut all = Vec::new();
    loop {
        let lot = whole.read(7, 2000)?;
        if lot.is_empty() {
            return Ok((all, whole.end(), whole.torn().is_some()));
        }
        all.extend(lot);
    }
}

fn end_of(stood: &Stood) -> u64 {
    (stood.offset + RECORD_HEADER_BYTES + stood.entry.len() as u64).next_multiple_of(8)
}

#[tokio::test]
async fn every_entry_is_given_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 300).await;
    let (all, end, torn) = read(dir.path()).unwrap();
    assert_eq!((all.len(), end, torn), (300, Seq(300), false));
    for (stood, n) in all.iter().zip(1..) {
        assert_eq!((stood.seq, &stood.entry), (Seq(n), &entry(n)));
        let file = fs::read(&*stood.file).unwrap();
        let at = (stood.offset + RECORD_HEADER_BYTES) as usize;
        assert_eq!(file[at..at + stood.entry.len()], stood.entry);
    }
    let files: BTreeMap<_, _> = all.iter().map(|s| (s.file.clone(), ())).collect();
    assert!(files.len() > 2, "one segment proves little");
}

#[tokio::test]
async fn a_flipped_bit_of_what_was_written_is_found_and_its_entry_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 300).await;
    let (all, end, _) = read(dir.path()).unwrap();
    // By file: the written part, and which entry each byte belongs to.
    let mut parts: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for stood in &all {
        parts.insert((*stood.file).clone(), end_of(stood));
    }
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    for (path, written) in &parts {
        let sound = fs::read(path).unwrap();
        // Every byte of the header, every padding, and bytes of records as they are drawn.
        let mut places: Vec<u64> = (0..HEADER_BYTES).collect();
        for stood in all.iter().filter(|s| *s.file == *path) {
            let unpadded = stood.offset + RECORD_HEADER_BYTES + stood.entry.len() as u64;
            places.extend(unpadded..end_of(stood));
        }
        for _ in 0..150 {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            places.push(HEADER_BYTES + (draw >> 20) % (written - HEADER_BYTES));
        }
        for place in places {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let mut flipped = sound.clone();
            flipped[place as usize] ^= 1 << (draw >> 61);
            fs::write(path, &flipped).unwrap();
            let hit = all
                .iter()
                .find(|s| *s.file == *path && (s.offset..end_of(s)).contains(&place));
            match (read(dir.path()), hit) {
                (Err(LogError::Corrupt { seq, .. }), Some(hit)) => assert_eq!(seq, hit.seq),
                (Err(LogError::Corrupt { .. } | LogError::Format { .. }), None) => {}
                // The last batch can't be told from one that a crash tore; the end shows it.
                (Ok((_, found, true)), Some(hit)) => {
                    assert_eq!((hit.seq, found), (end, Seq(end.0 - 1)));
                }
                (found, hit) => panic!("byte {place} of {}: {found:?}, {hit:?}", path.display()),
            }
        }
        fs::write(path, &sound).unwrap();
    }
    assert!(read(dir.path()).is_ok());
}

#[tokio::test]
async fn a_segment_that_is_gone_or_swapped_is_found() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 300).await;
    let (all, _, _) = read(dir.path()).unwrap();
    let mut files: Vec<PathBuf> = all.iter().map(|s| (*s.file).clone()).collect();
    files.dedup();
    let (first, second) = (&files[0], &files[1]);
    let (one, other) = (fs::read(first).unwrap(), fs::read(second).unwrap());
    fs::remove_file(second).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
    fs::write(second, &one).unwrap();
    fs::write(first, &other).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
    fs::write(first, &one).unwrap();
    fs::write(second, &other).unwrap();
    assert!(read(dir.path()).is_ok());
}

#[tokio::test]
async fn a_purged_place_is_given_as_such_and_what_is_around_it_is_still_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Embedded::open(dir.path(), small()).unwrap();
    for n in 1..=300 {
        let appending = log.append([0; 32], entry(n), Class::Ordinary);
        appending.await.unwrap();
    }
    let gone = [3, 4, 40, 41, 42];
    log.purge(gone.map(Seq).to_vec()).await.unwrap();
    log.close().await.unwrap();
    let (all, end, _) = read(dir.path()).unwrap();
    assert_eq!((all.len(), end), (300, Seq(300)));
    for (stood, n) in all.iter().zip(1..) {
        let purged = gone.contains(&n);
        assert_eq!(stood.purged, purged, "{n}");
        assert_eq!(stood.entry, if purged { Bytes::new() } else { entry(n) });
    }
    // Behind the records of a segment that was written anew nothing may stand.
    let first = all[0].file.clone();
    let last = all.iter().rfind(|stood| stood.file == first).unwrap();
    let mut bytes = fs::read(&*first).unwrap();
    bytes[end_of(last) as usize + 9] = 1;
    fs::write(&*first, &bytes).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
}
