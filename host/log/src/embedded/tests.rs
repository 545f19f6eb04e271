//! The embedded log against files that fail, forget and are tampered with.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, executor::block_on};
use proptest::prelude::*;

use super::{
    Embedded,
    chain::Chain,
    folder::{Recovered, recover},
    format::HEADER_BYTES,
    purge,
    simulated::{Fault, Simulated},
    writer::Writer,
};
use crate::{Class, Log, LogError, Options, Seq};

const DIR: &str = "/log";

fn small() -> Options {
    Options {
        entry_bytes_max: 2048,
        segment_bytes: 24 << 10,
        reserve_bytes: 8 << 10,
        queue_bytes: 16 << 10,
        control_queue_bytes: 16 << 10,
        batch_bytes: 4 << 10,
        recent_bytes: 4 << 10,
    }
}

/// A writer without threads, so that what it does follows from the test alone.
struct Rig {
    writer: Writer,
    chain: Arc<Chain>,
    end: Seq,
}

impl Rig {
    fn open(disk: &Simulated) -> Result<Rig, LogError> {
        let options = small();
        let dir = Path::new(DIR);
        let recovered: Recovered = recover(disk, dir, Some(&options))?;
        let end = recovered.end;
        let files = Arc::new(disk.clone());
        let chain = Chain::new(files.clone(), recovered.segments.clone());
        let quiet = Box::new(|_: Seq, _: &[Bytes]| {});
        let writer = Writer::new(files, dir.into(), options, recovered, chain.clone(), quiet)?;
        Ok(Rig { writer, chain, end })
    }

    fn commit(&mut self, class: Class, entries: &[Bytes]) -> Vec<Result<Seq, LogError>> {
        let entries: Vec<_> = entries.iter().map(|entry| (class, entry.clone())).collect();
        let answers = self.writer.commit(&entries);
        for answer in answers.iter().flatten() {
            assert_eq!(*answer, self.end.next());
            self.end = *answer;
        }
        answers
    }

    fn all(&self) -> Result<Vec<Bytes>, LogError> {
        read_all(&self.chain, self.end)
    }
}

fn read_all(chain: &Chain, end: Seq) -> Result<Vec<Bytes>, LogError> {
    let mut all = Vec::new();
    while (all.len() as u64) < end.0 {
        let from = Seq(all.len() as u64 + 1);
        let found = chain.read(from, 7, 3000, end)?;
        assert!(!found.is_empty(), "nothing at {from} of {end}");
        for (seq, entry) in found {
            assert_eq!(seq.0, all.len() as u64 + 1);
            all.push(entry);
        }
    }
    Ok(all)
}

/// What was purged in vain may have gone or not; all else stands.
fn stand(found: &[Bytes], stands: &[Bytes], maybe: &BTreeSet<usize>) -> bool {
    let is = |(at, (found, stands)): (usize, (&Bytes, &Bytes))| {
        found == stands || (found.is_empty() && maybe.contains(&at))
    };
    found.len() == stands.len() && found.iter().zip(stands).enumerate().all(is)
}

/// An entry unlike all others.
fn entry(number: u64, bytes: usize) -> Bytes {
    let mut entry = number.to_le_bytes().to_vec();
    entry.resize(bytes.max(8), number as u8 | 1);
    entry.into()
}

#[derive(Clone, Debug)]
enum Step {
    Append(Class, Vec<usize>),
    Fail(Fault, u32),
    Heal,
    Kill,
    /// Killed between the write and the sync.
    KillWriting(Vec<usize>),
    CutPower(u64),
    /// Takes out every entry whose bit is set, by its place.
    Purge(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![3 => Just(Class::Ordinary), 1 => Just(Class::Control)];
    let fault = prop_oneof![
        Just(Fault::Full),
        Just(Fault::ShortWrite),
        Just(Fault::Sync),
        Just(Fault::Write)
    ];
    let step = prop_oneof![
        8 => (class, prop::collection::vec(0_usize..2048, 1..12)).prop_map(|(c, e)| Step::Append(c, e)),
        3 => (fault, prop_oneof![1_u32..4, Just(u32::MAX)]).prop_map(|(f, n)| Step::Fail(f, n)),
        2 => Just(Step::Heal),
        1 => Just(Step::Kill),
        1 => prop::collection::vec(0_usize..2048, 1..6).prop_map(Step::KillWriting),
        2 => any::<u64>().prop_map(Step::CutPower),
        2 => any::<u64>().prop_map(Step::Purge),
    ];
    prop::collection::vec(step, 1..40)
}

/// Coins that follow from a seed.
fn coins(mut seed: u64) -> impl FnMut() -> bool {
    move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 63 == 1
    }
}

/// How many cases each property is tried on: `AGORA_CASES`, or 300.
fn cases() -> u32 {
    let asked = std::env::var("AGORA_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_entries_stay_and_refused_ones_never_come(steps in steps()) {
        let disk = Simulated::default();
        let mut rig = Rig::open(&disk).unwrap();
        let mut stands: Vec<Bytes> = Vec::new();
        // Groups of entries of which any beginning may turn up after the next crash.
        let mut open_ended: Vec<Vec<Bytes>> = Vec::new();
        let mut maybe: BTreeSet<usize> = BTreeSet::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Append(class, sizes) => {
                    let entries: Vec<Bytes> = sizes
                        .into_iter()
                        .map(|bytes| { number += 1; entry(number, bytes) })
                        .collect();
                    let answers = rig.commit(class, &entries);
                    prop_assert_eq!(answers.len(), entries.len());
                    let mut unknown = Vec::new();
                    for (answer, entry) in answers.into_iter().zip(entries) {
                        match answer {
                            Ok(seq) => {
                                stands.push(entry);
                                prop_assert_eq!(seq.0, stands.len() as u64);
                                open_ended.clear();
                                unknown.clear();
                            }
                            Err(error) if error.is_outcome_known() => {}
                            Err(_) => unknown.push(entry),
                        }
                    }
                    if !unknown.is_empty() {
                        open_ended.push(unknown);
                    }
                    prop_assert!(stand(&rig.all().unwrap(), &stands, &maybe));
                }
                Step::Purge(mask) => {
                    // Without room for a new segment, what stands in the last one stays.
                    let _ = rig.writer.roll();
                    let open_from = rig.chain.open_from();
                    let places: Vec<u64> = (1..open_from).filter(|place| mask >> (place % 64) & 1 == 1).collect();
                    let purged = purge::purge(&rig.chain, Path::new(DIR), &places);
                    for place in places {
                        let at = place as usize - 1;
                        match &purged {
                            Ok(_) => {
                                stands[at] = Bytes::new();
                                prop_assert!(rig.chain.is_purged(Seq(place)).unwrap());
                            }
                            Err(_) => drop(maybe.insert(at)),
                        }
                    }
                    prop_assert!(stand(&rig.all().unwrap(), &stands, &maybe));
                }
                Step::Fail(fault, times) => disk.fail(fault, times),
                Step::Heal => disk.heal(),
                Step::Kill | Step::KillWriting(_) | Step::CutPower(_) => {
                    disk.heal();
                    if let Step::KillWriting(sizes) = &step {
                        let entries: Vec<Bytes> = sizes
                            .iter()
                            .map(|&bytes| { number += 1; entry(number, bytes) })
                            .collect();
                        disk.fail(Fault::Killed, 1);
                        prop_assert!(rig.commit(Class::Ordinary, &entries).iter().all(Result::is_err));
                        // Nobody was told anything.
                        open_ended.push(entries);
                        disk.heal();
                    }
                    if let Step::CutPower(seed) = step {
                        disk.cut_power(coins(seed));
                    }
                    rig = Rig::open(&disk).unwrap();
                    let found = rig.all().unwrap();
                    prop_assert!(found.len() >= stands.len(), "{} of {} are left", found.len(), stands.len());
                    prop_assert!(stand(&found[..stands.len()], &stands, &maybe));
                    let more = &found[stands.len()..];
                    prop_assert!(
                        more.is_empty() || open_ended.iter().any(|group| group.starts_with(more)),
                        "refused entries turned up"
                    );
                    stands.extend_from_slice(&found[stands.len()..]);
                    open_ended.clear();
                }
            }
        }
        // And it goes on by itself.
        disk.heal();
        let last = entry(number + 1, 100);
        prop_assert!(rig.commit(Class::Ordinary, std::slice::from_ref(&last))[0].is_ok());
        stands.push(last);
        prop_assert!(stand(&rig.all().unwrap(), &stands, &maybe));
    }

    #[test]
    fn tampering_is_refused_or_cuts_the_last_batch_but_never_lies(
        batches in prop::collection::vec(prop::collection::vec(0_usize..600, 1..6), 1..30),
        place in any::<prop::sample::Index>(),
        file in any::<prop::sample::Index>(),
        with in 1_u8..,
        how in 0_u8..4,
    ) {
        let disk = Simulated::default();
        let mut rig = Rig::open(&disk).unwrap();
        let mut stands = Vec::new();
        let mut last_batch = 0;
        for batch in batches {
            last_batch = stands.len();
            let entries: Vec<_> = batch
                .into_iter()
                .enumerate()
                .map(|(i, bytes)| entry((stands.len() + i) as u64, bytes))
                .collect();
            prop_assert!(rig.commit(Class::Ordinary, &entries).iter().all(Result::is_ok));
            stands.extend(entries);
        }
        drop(rig);
        let names = disk.names();
        let mut cut_at = 0;
        disk.garble(&names[file.index(names.len())], |bytes| {
            if bytes.is_empty() {
                return;
            }
            let at = place.index(bytes.len());
            cut_at = at;
            match how {
                0 => bytes[at] ^= with,
                1 => bytes.truncate(at),
                // Torn here: nothing behind has reached the disk.
                2 => bytes[at..].fill(0),
                _ => {
                    let end = bytes.len().min(at + 1000);
                    bytes[at..end].fill(with);
                }
            }
        });
        for writing in [false, true] {
            let (chain, end) = if writing {
                match Rig::open(&disk) {
                    Ok(rig) => (rig.chain, rig.end),
                    Err(_) => continue,
                }
            } else {
                match recover(&disk, Path::new(DIR), None) {
                    Ok(found) => (Chain::new(Arc::new(disk.clone()), found.segments), found.end),
                    Err(_) => continue,
                }
            };
            if how == 0 || (how == 1 && cut_at >= HEADER_BYTES as usize) {
                // At most the batch that nothing proves durable. (A last segment lost from its header on is not missed.)
                prop_assert!(end.0 >= last_batch as u64);
            }
            for seq in 1..=end.0 {
                match chain.read(Seq(seq), 1, 1, end) {
                    Ok(found) => prop_assert_eq!(&found[..], &[(Seq(seq), stands[seq as usize - 1].clone())]),
                    Err(LogError::Corrupt { seq: at, .. }) => prop_assert!(at.0 <= seq),
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
        }
    }

    #[test]
    fn hostile_bytes_never_panic(files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..4), seed in any::<u64>()) {
        let disk = Simulated::default();
        let mut rig = Rig::open(&disk).unwrap();
        for number in 0..4 {
            prop_assert!(rig.commit(Class::Ordinary, &[entry(number, 100)])[0].is_ok());
        }
        drop(rig);
        let mut names = disk.names();
        names.push(PathBuf::from(DIR).join("0000000009.segment"));
        let mut coin = coins(seed);
        for (name, bytes) in names.iter().zip(files) {
            if name.ends_with("0000000009.segment") {
                super::files::Files::create(&disk, name).unwrap();
            }
            let keep_header = coin();
            disk.garble(name, |old| {
                let keep = if keep_header { (HEADER_BYTES as usize).min(old.len()) } else { 0 };
                old.truncate(keep);
                old.extend(bytes);
            });
        }
        if let Ok(found) = recover(&disk, Path::new(DIR), None) {
            let chain = Chain::new(Arc::new(disk.clone()), found.segments);
            for seq in 0..6 {
                let _ = chain.read(Seq(seq), 10, 1000, found.end);
            }
        }
    }
}

#[test]
fn a_full_disk_stops_ordinary_entries_but_not_control_ones_and_mends_itself() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    disk.fail(Fault::Full, u32::MAX);
    let mut number = 0;
    let refusal = loop {
        number += 1;
        if let Err(error) = rig.commit(Class::Ordinary, &[entry(number, 500)]).remove(0) {
            break error;
        }
        assert!(number < 1000, "the disk never filled");
    };
    assert!(matches!(refusal, LogError::Unavailable { .. }), "{refusal}");
    let before = rig.end;
    let mut control_bytes = 0;
    let refusal = loop {
        number += 1;
        match rig.commit(Class::Control, &[entry(number, 500)]).remove(0) {
            Ok(_) => control_bytes += 500,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, LogError::Unavailable { .. }), "{refusal}");
    assert!(
        control_bytes as u64 > small().reserve_bytes * 9 / 10,
        "only {control_bytes} bytes were kept for control entries"
    );
    assert!(rig.end > before);
    disk.heal();
    assert!(rig.commit(Class::Ordinary, &[entry(number + 1, 500)])[0].is_ok());
    assert!(rig.writer.prepare().is_ok() && rig.writer.is_prepared());
    assert_eq!(rig.all().unwrap().len() as u64, rig.end.0);
}

#[test]
fn refusals_in_a_batch_leave_the_others_where_they_belong() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    disk.fail(Fault::Full, u32::MAX);
    let batch: Vec<_> = (0..60)
        .map(|number| {
            let class = if number % 5 == 0 {
                Class::Control
            } else {
                Class::Ordinary
            };
            (class, entry(number, 1000))
        })
        .collect();
    let answers = rig.writer.commit(&batch);
    let mut stands = Vec::new();
    for (answer, (_, entry)) in answers.iter().zip(&batch) {
        if let Ok(seq) = answer {
            stands.push(entry.clone());
            assert_eq!(seq.0, stands.len() as u64);
        }
    }
    let refused = |class| {
        let answers = answers.iter().zip(&batch);
        answers
            .filter(|(answer, (of, _))| answer.is_err() && *of == class)
            .count()
    };
    assert!(refused(Class::Ordinary) > 0);
    assert_eq!(refused(Class::Control), 0);
    rig.end = Seq(stands.len() as u64);
    assert_eq!(rig.all().unwrap(), stands);
}

#[test]
fn a_failed_sync_is_not_repeated_in_place() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    assert!(rig.commit(Class::Ordinary, &[entry(1, 900)])[0].is_ok());
    disk.fail(Fault::Sync, 1);
    let files = disk.names().len();
    assert_eq!(
        rig.commit(Class::Ordinary, &[entry(2, 900)])[0]
            .clone()
            .unwrap(),
        Seq(2)
    );
    assert!(
        !rig.writer.is_prepared(),
        "it went to the same segment again"
    );
    assert_eq!(disk.names().len(), files);
    // Acknowledged, so it must outlive even a power cut that loses all that was not synced.
    disk.cut_power(|| false);
    let rig = Rig::open(&disk).unwrap();
    assert_eq!(rig.all().unwrap(), [entry(1, 900), entry(2, 900)]);
}

#[test]
fn a_segment_that_failed_to_begin_does_not_bury_what_follows() {
    for kept in [false, true] {
        let disk = Simulated::default();
        let mut rig = Rig::open(&disk).unwrap();
        let mut stands = Vec::new();
        while stands.len() < 23 {
            stands.push(entry(stands.len() as u64, 1000));
            let last = stands[stands.len() - 1].clone();
            assert!(rig.commit(Class::Ordinary, &[last])[0].is_ok());
        }
        // The next does not fit, and its segment's header may or may not have reached the disk.
        disk.fail(Fault::Sync, 1);
        let refused = rig.commit(Class::Ordinary, &[entry(99, 2000)]).remove(0);
        assert!(
            matches!(refused, Err(LogError::Unavailable { .. })),
            "{refused:?}"
        );
        disk.heal();
        stands.push(entry(100, 8));
        // A control entry: it fits, and asks for no new segment.
        assert!(rig.commit(Class::Control, &[entry(100, 8)])[0].is_ok());
        disk.cut_power(|| kept);
        assert_eq!(Rig::open(&disk).unwrap().all().unwrap(), stands);
    }
}

#[test]
fn a_disk_that_stays_broken_answers_unknown_then_unavailable() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    disk.fail(Fault::Sync, u32::MAX);
    let first = rig
        .commit(Class::Control, &[entry(1, 100)])
        .remove(0)
        .unwrap_err();
    assert!(matches!(first, LogError::Unknown { .. }), "{first}");
    let second = rig
        .commit(Class::Control, &[entry(2, 100)])
        .remove(0)
        .unwrap_err();
    assert!(matches!(second, LogError::Unavailable { .. }), "{second}");
    disk.heal();
    assert_eq!(
        rig.commit(Class::Control, &[entry(3, 100)])[0]
            .clone()
            .unwrap(),
        Seq(1)
    );
    disk.cut_power(|| true);
    assert_eq!(Rig::open(&disk).unwrap().all().unwrap(), [entry(3, 100)]);
}

#[test]
fn corruption_before_a_durable_entry_is_refused_by_name() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    for number in 0..5 {
        assert!(rig.commit(Class::Ordinary, &[entry(number, 40)])[0].is_ok());
    }
    drop(rig);
    let record = 64;
    let segment = disk.names().remove(0);
    disk.garble(&segment, |bytes| {
        bytes[HEADER_BYTES as usize + 2 * record + 30] ^= 1
    });
    for writing in [None, Some(small())] {
        match recover(&disk, Path::new(DIR), writing.as_ref()).map(|found| found.end) {
            Err(LogError::Corrupt {
                seq, offset, file, ..
            }) => {
                assert_eq!((seq, offset), (Seq(3), HEADER_BYTES + 2 * record as u64));
                assert_eq!(file, segment);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_entry_cannot_pass_for_a_later_record() {
    // The whole of another log's segment, records, header and all, as one entry that is then torn.
    let other = Simulated::default();
    let mut rig = Rig::open(&other).unwrap();
    for number in 0..9 {
        assert!(rig.commit(Class::Ordinary, &[entry(number, 40)])[0].is_ok());
    }
    drop(rig);
    let mut stolen = Vec::new();
    other.garble(&other.names()[0], |bytes| stolen = bytes[..700].to_vec());

    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    assert!(rig.commit(Class::Ordinary, &[stolen.into()])[0].is_ok());
    drop(rig);
    disk.garble(&disk.names()[0], |bytes| {
        bytes[HEADER_BYTES as usize + 24] ^= 1
    });
    let recovered = recover(&disk, Path::new(DIR), Some(&small())).unwrap();
    assert_eq!(recovered.end, Seq(0));
    assert!(recovered.cut.is_some());
    // Cut for good: the same folder opens clean from now on.
    let again = recover(&disk, Path::new(DIR), Some(&small())).unwrap();
    assert_eq!(again.cut, None);
}

#[test]
fn a_lost_segment_is_refused() {
    let disk = Simulated::default();
    let mut rig = Rig::open(&disk).unwrap();
    for number in 0..120 {
        assert!(rig.commit(Class::Ordinary, &[entry(number, 1000)])[0].is_ok());
    }
    drop(rig);
    let names = disk.names();
    assert!(names.len() > 4);
    for lost in &names[..names.len() - 2] {
        let mut kept = Vec::new();
        disk.garble(lost, |bytes| kept = bytes.clone());
        super::files::Files::remove(&disk, lost).unwrap();
        let found = recover(&disk, Path::new(DIR), Some(&small()));
        assert!(
            matches!(found, Err(LogError::Corrupt { .. })),
            "{} was not missed",
            lost.display()
        );
        super::files::Files::create(&disk, lost).unwrap();
        disk.garble(lost, |bytes| *bytes = kept);
    }
    assert_eq!(Rig::open(&disk).unwrap().end, Seq(120));
}

#[test]
fn control_entries_overtake_and_do_not_wait_for_the_ordinary_queue() {
    let disk = Simulated::default();
    let dir = Path::new(DIR);
    let (log, _) = Embedded::open_on(Arc::new(disk.clone()), dir, small(), None).unwrap();
    let append = |number, class| log.append([0; 32], entry(number, 1000), class);
    let held = disk.gate.lock().unwrap();
    // Until the queue is full: the next has no room, and waits outside.
    let mut ordinary: Vec<_> = (0..40)
        .map(|number| append(number, Class::Ordinary))
        .collect();
    let mut waits = ordinary.pop().unwrap();
    assert!((&mut waits).now_or_never().is_none());
    assert!(
        ordinary
            .iter_mut()
            .any(|waiting| waiting.now_or_never().is_none())
    );
    let control = append(100, Class::Control);
    drop(held);
    let control = block_on(control).unwrap().seq;
    let last = block_on(waits).unwrap().seq;
    assert!(control < last, "control at {control}, ordinary at {last}");
    // At most one batch was ahead of it.
    assert!(
        control.0 <= 1 + small().batch_bytes as u64 / 1000,
        "{control}"
    );
}

#[test]
fn waiting_writers_share_a_sync() {
    let disk = Simulated::default();
    let options = Options {
        batch_bytes: 1 << 20,
        queue_bytes: 1 << 20,
        ..small()
    };
    let options = Options {
        segment_bytes: 2 << 20,
        ..options
    };
    let (log, _) =
        Embedded::open_on(Arc::new(disk.clone()), Path::new(DIR), options, None).unwrap();
    let held = disk.gate.lock().unwrap();
    let before = disk.syncs();
    let waiting: Vec<_> = (0..64)
        .map(|number| log.append([0; 32], entry(number, 256), Class::Ordinary))
        .collect();
    drop(held);
    for append in waiting {
        block_on(append).unwrap();
    }
    // Some may have been taken before the sync was held up; all that came later shares one.
    let syncs = disk.syncs() - before;
    assert!(syncs <= 3, "{syncs} syncs for 64 entries");
}

#[test]
fn a_tail_shows_nothing_that_is_not_durable() {
    let disk = Simulated::default();
    let (log, _) =
        Embedded::open_on(Arc::new(disk.clone()), Path::new(DIR), small(), None).unwrap();
    let mut tail = log.tail(Seq(1));
    let held = disk.gate.lock().unwrap();
    let append = log.append([0; 32], entry(1, 10), Class::Ordinary);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(tail.next().now_or_never().is_none());
    assert_eq!(log.end(), Seq(0));
    drop(held);
    block_on(append).unwrap();
    assert_eq!(
        block_on(tail.next()).unwrap().unwrap(),
        (Seq(1), entry(1, 10))
    );
}
