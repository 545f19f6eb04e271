//! An export gives back what went in, and every change to it is noticed.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use agora_log::{
    Seq,
    export::{ExportError, Header, Place, Reader, Trailer, Writer, leaf_hash},
};
use bytes::Bytes;
use proptest::prelude::*;

const HEADER: Header = Header {
    id: [7; 32],
    first: Seq(1),
};

fn written(places: &[Place]) -> (Vec<u8>, Trailer) {
    let mut writer = Writer::new(Vec::new(), HEADER).unwrap();
    places.iter().for_each(|place| writer.push(place).unwrap());
    writer.finish().unwrap()
}

type Read = (Vec<(Seq, Place)>, Result<Trailer, ExportError>);

fn read(file: &[u8]) -> Read {
    let mut all = Vec::new();
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => return (all, Err(error)),
    };
    loop {
        match reader.next_place() {
            Ok(Some(place)) => all.push(place),
            Ok(None) => return (all, Ok(reader.trailer().unwrap())),
            Err(error) => return (all, Err(error)),
        }
    }
}

fn places() -> impl Strategy<Value = Vec<Place>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from);
    let entry = bytes().prop_map(Place::Entry);
    let purged = (any::<[u8; 32]>(), bytes()).prop_map(|(leaf, stub)| Place::Purged { leaf, stub });
    prop::collection::vec(prop_oneof![entry, purged], 0..12)
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(places in places()) {
        let (file, trailer) = written(&places);
        let (found, ended) = read(&file);
        prop_assert_eq!(ended.unwrap(), trailer);
        prop_assert_eq!(trailer.count, places.len() as u64);
        let expected: Vec<_> = (1..).map(Seq).zip(places).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(Reader::new(&file[..]).unwrap().header(), HEADER);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_what_came_before_was_whole(
        places in places(),
        at in any::<prop::sample::Index>(),
    ) {
        let (file, _) = written(&places);
        let (found, ended) = read(&file[..at.index(file.len())]);
        let is_cut = matches!(ended, Err(ExportError::Truncated { .. } | ExportError::Foreign));
        prop_assert!(is_cut);
        for ((seq, place), (number, expected)) in found.iter().zip((1..).zip(&places)) {
            prop_assert_eq!((seq.0, place), (number, expected));
        }
    }

    #[test]
    fn a_file_with_another_byte_anywhere_is_refused(
        places in places(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let (mut file, _) = written(&places);
        let at = at.index(file.len());
        file[at] ^= flip;
        prop_assert!(read(&file).1.is_err());
    }

    #[test]
    fn any_bytes_end_in_an_error_or_are_an_export(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let (mut file, _) = written(&[Place::Entry(Bytes::from_static(b"one"))]);
        file.truncate(64);
        file.extend(bytes);
        let _ = read(&file);
    }
}

#[test]
fn places_that_changed_places_or_lost_one_are_refused() {
    let entry = |text: &'static str| Place::Entry(Bytes::from_static(text.as_bytes()));
    let (one, other) = (entry("aaaa"), entry("bbbb"));
    let (file, _) = written(&[one.clone(), other.clone()]);
    let frame = 12 + 4;
    let mut swapped = file.clone();
    swapped[64..64 + frame].copy_from_slice(&file[64 + frame..64 + 2 * frame]);
    swapped[64 + frame..64 + 2 * frame].copy_from_slice(&file[64..64 + frame]);
    assert!(matches!(
        read(&swapped).1,
        Err(ExportError::Damaged { seq: Seq(1), .. })
    ));
    let mut shorter = file.clone();
    shorter.drain(64 + frame..64 + 2 * frame);
    assert!(matches!(
        read(&shorter).1,
        Err(ExportError::Damaged { seq: Seq(2), .. })
    ));
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(
        read(&longer).1,
        Err(ExportError::Damaged { seq: Seq(3), .. })
    ));
    let foreign = read(b"something else entirely, and long enough for a header of 64 bytes!!");
    assert!(matches!(foreign.1, Err(ExportError::Foreign)));
}

#[test]
fn a_purged_place_has_the_leaf_of_what_stood_there() {
    let entry = Place::Entry(Bytes::from_static(b"gone"));
    let leaf = leaf_hash(b"gone");
    let purged = Place::Purged {
        leaf,
        stub: Bytes::from_static(b"a stub"),
    };
    assert_eq!((entry.leaf(), purged.leaf()), (leaf, leaf));
    // So an export before and after a purge ends in the same hash.
    assert_eq!(written(&[entry]).1, written(&[purged]).1);
}
