//! Forged exports: refused with the entry named, before anything of them is written.

use std::path::Path;

use agora_log::Seq;
use agora_log::export::{Header, Place, Reader, Writer, leaf_hash};
use agora_realm::{
    Body, Entry, KeySubject, MessageVerdict, RealmId, Sealed, SigningKey, State, judge,
};
use bytes::Bytes;

use super::command::agora;
use super::written::{Written, checkpoint, written};

/// An export with all its checksums, whatever is in it.
fn export(id: RealmId, places: &[Place]) -> Vec<u8> {
    let header = Header {
        id: id.0,
        first: Seq::FIRST,
    };
    let mut writer = Writer::new(Vec::new(), header).unwrap();
    places.iter().for_each(|place| writer.push(place).unwrap());
    writer.finish().unwrap().0
}

fn places(entries: &[Bytes]) -> Vec<Place> {
    entries.iter().cloned().map(Place::Entry).collect()
}

fn realm_of(written: &Written) -> RealmId {
    RealmId::from(Sealed::open(written.entries[0].clone()).unwrap().id())
}

/// The index of the first turn of which something counts.
fn first_turn(entries: &[Bytes]) -> usize {
    let mut state = State::new();
    let mut counts = |(seq, stored): (u64, &Bytes)| {
        let judged = judge(&mut state, seq, Ok(&Sealed::open(stored.clone()).unwrap()));
        judged
            .messages
            .iter()
            .any(|verdict| matches!(verdict, MessageVerdict::Counts(_)))
    };
    (1..).zip(entries).position(&mut counts).unwrap()
}

/// The index of the entry that introduces an entry's author.
fn introduced(entries: &[Bytes], of: &Entry) -> usize {
    let introduces = |stored: &Bytes| {
        let sealed = Sealed::open(stored.clone()).unwrap();
        let entry = sealed.entry();
        matches!(&entry.body, Body::Key(key) if key.subject == KeySubject::Persona(of.author.clone().unwrap()))
            && entry.host == of.host
    };
    entries.iter().position(introduces).unwrap()
}

fn altered(place: &Bytes, at: usize) -> Bytes {
    let mut bytes = place.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

/// What is forged, the file, and the words that name the place.
type Forged = (&'static str, Vec<u8>, String);

fn forgeries(written: &Written, other: &Written) -> Vec<Forged> {
    let (entries, realm) = (&written.entries, realm_of(written));
    let turn = first_turn(entries);
    let said = Sealed::open(entries[turn].clone()).unwrap();
    let keyed = introduced(entries, said.entry());
    let entry = |index: usize| format!("entry {}:", index + 1);
    let with = |change: &dyn Fn(&mut Vec<Place>)| {
        let mut places = places(entries);
        change(&mut places);
        export(realm, &places)
    };
    let stored = &entries[turn];
    let bad_signature = altered(stored, 40);
    let changed_body = altered(stored, stored.len() - 1);
    let large: Bytes = vec![7; 900 * 1024].into();
    let stub = said.stub().unwrap();
    let mut forged = vec![
        (
            "a bad signature",
            with(&|places| places[turn] = Place::Entry(bad_signature.clone())),
            entry(turn),
        ),
        (
            "a changed body",
            with(&|places| places[turn] = Place::Entry(changed_body.clone())),
            entry(turn),
        ),
        (
            "no entry",
            with(&|places| places.insert(turn, Place::Entry(Bytes::from_static(b"hello")))),
            entry(turn),
        ),
        (
            "larger than any entry",
            with(&|places| places[turn] = Place::Entry(large.clone())),
            entry(turn),
        ),
        (
            "said before its author was known",
            with(&|places| places.swap(keyed, turn)),
            entry(keyed),
        ),
        (
            "its author's key is missing",
            with(&|places| drop(places.remove(keyed))),
            // What grants come before it are void first.
            "entry ".into(),
        ),
        (
            "the beginning is missing",
            with(&|places| drop(places.remove(0))),
            "doesn't begin".into(),
        ),
        (
            "an entry of another realm",
            with(&|places| places.insert(turn, Place::Entry(other.entries[3].clone()))),
            entry(turn),
        ),
        (
            "another realm's log",
            export(realm, &places(&other.entries)),
            "doesn't begin".into(),
        ),
        (
            "passed off as pruned",
            with(&|places| {
                places[turn] = Place::Purged {
                    leaf: leaf_hash(stored),
                    stub: stub.clone(),
                };
            }),
            entry(turn),
        ),
        (
            "passed off as pruned, with a made up rest",
            with(&|places| {
                places[turn] = Place::Purged {
                    leaf: [9; 32],
                    stub: Bytes::from_static(b"whatever"),
                };
            }),
            entry(turn),
        ),
    ];
    // The frames themselves.
    let whole = export(realm, &places(entries));
    let start = 64
        + entries[..turn]
            .iter()
            .map(|entry| 12 + entry.len())
            .sum::<usize>();
    let place = |index: usize| format!("place {}", index + 1);
    let mut oversized = whole.clone();
    oversized[start + 4..start + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    forged.push(("an oversized frame", oversized, place(turn)));
    let mut long = whole[..start + 4].to_vec();
    long.extend_from_slice(&(1_u32 << 20).to_le_bytes());
    long.extend_from_slice(&[0; 100]);
    forged.push(("a frame that lies about its length", long, place(turn)));
    let mut kind = whole.clone();
    kind[start] = 9;
    forged.push(("a frame of no kind", kind, place(turn)));
    for (cut, which) in [
        (start, turn),
        (start + 5, turn),
        (start + 30, turn),
        (whole.len() - 52, entries.len()),
        (whole.len() - 1, entries.len()),
    ] {
        forged.push(("cut off", whole[..cut].to_vec(), place(which)));
    }
    let more = [&whole[..], b"more"].concat();
    forged.push(("something behind its end", more, place(entries.len())));
    forged
}

/// Imports a file into a folder that isn't there yet.
fn import(folder: &Path, bytes: &[u8], more: &[&str]) -> (i32, String) {
    std::fs::write(folder.join("file.agora"), bytes).unwrap();
    let args = ["import", "file.agora", "--data", "new"];
    agora(folder, &[&args[..], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_export_is_refused_before_anything_is_written_and_its_place_is_named() {
    let (written, other) = (written(12, 24).await, written(13, 4).await);
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    for (what, bytes, named) in forgeries(&written, &other) {
        let (code, text) = import(folder.path(), &bytes, &[]);
        assert_eq!((code, text.contains(&named)), (1, true), "{what}: {text}");
        assert!(!new.exists(), "{what}");
    }
    // What only a checkpoint speaks against: two places exchanged that don't depend on each other, the last one gone, and another
    // checkpoint altogether.
    let (entries, realm) = (&written.entries, realm_of(&written));
    let held = checkpoint(entries, &written.host_key()).signed;
    std::fs::write(folder.path().join("held"), held.to_string()).unwrap();
    let held = ["--checkpoint", "held"];
    let whole = export(realm, &places(entries));
    let last = entries.len() - 1;
    let gone = export(realm, &places(&entries[..last]));
    let mut other_order = places(entries);
    other_order.swap(last - 1, last);
    let other_order = export(realm, &other_order);
    for (what, bytes) in [("the last is gone", gone), ("exchanged", other_order)] {
        let (code, text) = import(folder.path(), &bytes, &held);
        assert_eq!((code, text.contains("entr")), (1, true), "{what}: {text}");
        assert!(!new.exists(), "{what}");
    }
    // As it is, it is taken, and comes out again to the byte.
    let (code, text) = import(folder.path(), &whole, &held);
    assert_eq!(code, 0, "{text}");
    let back = ["log", "--export", "back.agora", "--data", "new"];
    assert_eq!(agora(folder.path(), &back).0, 0);
    assert!(std::fs::read(folder.path().join("back.agora")).unwrap() == whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_passed_over_moves_with_the_rest_where_the_operator_says_so() {
    let written = written(14, 12).await;
    let folder = tempfile::tempdir().unwrap();
    let turn = first_turn(&written.entries);
    let mut met = places(&written.entries);
    met.insert(turn, Place::Entry(Bytes::from_static(b"hello")));
    let bytes = export(realm_of(&written), &met);
    assert_eq!(import(folder.path(), &bytes, &[]).0, 1);
    assert!(!folder.path().join("new").exists());
    let (code, text) = import(folder.path(), &bytes, &["--accept-findings"]);
    assert_eq!((code, text.contains("(1 junk)")), (0, true), "{text}");
    let back = ["log", "--export", "back.agora", "--data", "new"];
    assert_eq!(agora(folder.path(), &back).0, 0);
    let back = std::fs::File::open(folder.path().join("back.agora")).unwrap();
    let mut back = Reader::new(std::io::BufReader::new(back)).unwrap();
    for place in &met {
        assert_eq!(&back.next_place().unwrap().unwrap().1, place);
    }
    assert_eq!(back.next_place().unwrap(), None);
    // Nor does that let through what no host meets with in a log: what is passed off as pruned, what a checkpoint speaks against, and
    // what is damaged.
    std::fs::remove_dir_all(folder.path().join("new")).unwrap();
    let stub = Sealed::open(written.entries[turn].clone()).unwrap().stub();
    for stub in [stub.unwrap(), Bytes::from_static(b"whatever")] {
        let mut purged = met.clone();
        let leaf = leaf_hash(&written.entries[turn]);
        purged[turn + 1] = Place::Purged { leaf, stub };
        let purged = export(realm_of(&written), &purged);
        let (code, text) = import(folder.path(), &purged, &["--accept-findings"]);
        let named = format!("entry {}:", turn + 2);
        assert_eq!((code, text.contains(&named)), (1, true), "{text}");
    }
    // Nor behind more of such entries than are told: what hosts pass over is taken, and what they don't is found.
    let junk = (0..120).map(|n| Bytes::from(format!("junk {n}")));
    let many: Vec<_> = junk.collect();
    let many = [&written.entries[..], &many].concat();
    let strangers = checkpoint(&many, &SigningKey::from_bytes([77; 32]).unwrap());
    std::fs::write(folder.path().join("held"), strangers.signed.to_string()).unwrap();
    let many = export(realm_of(&written), &places(&many));
    let with_held = ["--accept-findings", "--checkpoint", "held"];
    let (code, text) = import(folder.path(), &many, &with_held);
    assert_eq!((code, text.contains("no host of")), (1, true), "{text}");
    let (code, text) = import(folder.path(), &many, &["--accept-findings"]);
    assert_eq!((code, text.contains("(120 junk)")), (0, true), "{text}");
    std::fs::remove_dir_all(folder.path().join("new")).unwrap();
    let held = checkpoint(&written.entries, &written.host_key()).signed;
    std::fs::write(folder.path().join("held"), held.to_string()).unwrap();
    let with_held = ["--accept-findings", "--checkpoint", "held"];
    let (code, text) = import(folder.path(), &bytes, &with_held);
    assert_eq!((code, text.contains("not those of")), (1, true), "{text}");
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let (code, text) = import(folder.path(), &damaged, &["--accept-findings"]);
    assert_eq!((code, text.contains("place ")), (1, true), "{text}");
    assert!(!folder.path().join("new").exists());
}
