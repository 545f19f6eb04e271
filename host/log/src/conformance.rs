//! What every log is held to: one suite, run against each.
//!
//! A [`Place`] is where one log's data is; opening it again must find what was acknowledged. [`all`] runs every fact on a
//! new place of its own and panics at the first that does not hold.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, future::join_all};

use crate::{Class, Log, LogError, Seq};

/// Where one log's data is.
pub trait Place: Send + Sync {
    /// Opens the log there. What was opened before has been closed and dropped.
    fn open(&self) -> BoxFuture<'static, Arc<dyn Log>>;

    /// The largest entry that the log takes, bytes.
    fn entry_bytes_max(&self) -> usize;
}

/// How many random interleavings [`all`] runs, unless `AGORA_INTERLEAVINGS` says; a failing one names its seed.
pub const INTERLEAVINGS: u64 = 8;

/// No step of the suite takes this long on a log that works.
const STUCK: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, what).await {
        Ok(done) => done,
        Err(_) => panic!("the log is stuck"),
    }
}

/// Runs every fact, each on a new place. Needs a multi-threaded tokio runtime.
pub async fn all<P: Place>(mut new: impl FnMut() -> P) {
    entries_stand_densely_in_order(&new()).await;
    a_read_keeps_its_bounds(&new()).await;
    an_entry_keeps_its_bytes(&new()).await;
    what_was_acknowledged_is_there_after_reopening(&new()).await;
    a_tail_catches_up_and_then_follows(&new()).await;
    tails_under_concurrent_writers_neither_miss_nor_repeat(&new()).await;
    a_tail_may_begin_beyond_the_end(&new()).await;
    both_classes_stand_in_one_order(&new()).await;
    a_dropped_append_takes_no_place_from_others(&new()).await;
    too_large_an_entry_is_refused_alone(&new()).await;
    a_closed_log_refuses_and_ends_its_tails(&new()).await;
    let cases = std::env::var("AGORA_INTERLEAVINGS").ok();
    let cases = cases.and_then(|cases| cases.parse().ok());
    for seed in 0..cases.unwrap_or(INTERLEAVINGS) {
        any_interleaving_keeps_to_the_model(&new(), seed).await;
    }
}

fn bytes(number: u64) -> Bytes {
    Bytes::from(format!("entry {number}"))
}

fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

async fn append(log: &dyn Log, number: u64, class: Class) -> Seq {
    match soon(log.append(id(number), bytes(number), class)).await {
        Ok(appended) => appended.seq,
        Err(error) => panic!("append {number}: {error}"),
    }
}

async fn read(log: &dyn Log, from: u64, entries: usize, bytes_max: usize) -> Vec<(Seq, Bytes)> {
    match soon(log.read(Seq(from), entries, bytes_max)).await {
        Ok(found) => found,
        Err(error) => panic!("read from {from}: {error}"),
    }
}

async fn read_all(log: &dyn Log) -> Vec<Bytes> {
    let mut all = Vec::new();
    loop {
        let found = read(log, all.len() as u64 + 1, 100, 1 << 20).await;
        if found.is_empty() {
            return all;
        }
        for (seq, entry) in found {
            all.push(entry);
            assert_eq!(seq, Seq(all.len() as u64));
        }
    }
}

async fn close(log: Arc<dyn Log>) {
    if let Err(error) = soon(log.close()).await {
        panic!("close: {error}");
    }
}

/// Places count from 1 without a gap, and reading gives what was appended there.
pub async fn entries_stand_densely_in_order(place: &dyn Place) {
    let log = place.open().await;
    assert_eq!(log.end(), Seq(0));
    assert!(read(&*log, 0, 10, 1000).await.is_empty());
    for number in 1..=50 {
        assert_eq!(append(&*log, number, Class::Ordinary).await, Seq(number));
        assert!(log.end() >= Seq(number));
    }
    let expected: Vec<_> = (1..=50).map(bytes).collect();
    assert_eq!(read_all(&*log).await, expected);
    close(log).await;
}

/// A read returns no more than was asked for, but at least one entry.
pub async fn a_read_keeps_its_bounds(place: &dyn Place) {
    let log = place.open().await;
    for number in 1..=20 {
        append(&*log, number, Class::Ordinary).await;
    }
    assert_eq!(read(&*log, 3, 4, 1000).await.len(), 4);
    assert_eq!(read(&*log, 3, 4, 1000).await[0], (Seq(3), bytes(3)));
    assert_eq!(read(&*log, 1, 100, 1).await.len(), 1);
    assert_eq!(read(&*log, 1, 100, 16).await.len(), 2);
    assert_eq!(read(&*log, 18, 100, 1000).await.len(), 3);
    assert_eq!(read(&*log, 0, 1, 1000).await, [(Seq(1), bytes(1))]);
    assert!(read(&*log, 1, 0, 1000).await.is_empty());
    assert!(read(&*log, 21, 10, 1000).await.is_empty());
    assert!(read(&*log, u64::MAX, 10, 1000).await.is_empty());
    close(log).await;
}

/// Empty, binary and largest entries come back as they were.
pub async fn an_entry_keeps_its_bytes(place: &dyn Place) {
    let log = place.open().await;
    let largest: Vec<u8> = (0..place.entry_bytes_max())
        .map(|at| (at * 7) as u8)
        .collect();
    let entries = [vec![], vec![0; 33], (0..=255).collect(), largest].map(Bytes::from);
    for (number, entry) in (1..).zip(&entries) {
        let appended = soon(log.append(id(number), entry.clone(), Class::Ordinary)).await;
        assert_eq!(appended.expect("it is not too large").seq, Seq(number));
    }
    assert_eq!(read_all(&*log).await, entries);
    close(log).await;
    let log = place.open().await;
    assert_eq!(read_all(&*log).await, entries);
    close(log).await;
}

/// Closing and opening loses nothing and moves nothing, and the order goes on.
pub async fn what_was_acknowledged_is_there_after_reopening(place: &dyn Place) {
    let mut expected = Vec::new();
    for _ in 0..4 {
        let log = place.open().await;
        assert_eq!(log.end(), Seq(expected.len() as u64));
        assert_eq!(read_all(&*log).await, expected);
        for _ in 0..30 {
            let number = expected.len() as u64 + 1;
            assert_eq!(append(&*log, number, Class::Ordinary).await, Seq(number));
            expected.push(bytes(number));
        }
        close(log).await;
    }
}

/// A tail gives what stands already and then what comes.
pub async fn a_tail_catches_up_and_then_follows(place: &dyn Place) {
    let log = place.open().await;
    for number in 1..=30 {
        append(&*log, number, Class::Ordinary).await;
    }
    let mut tail = log.tail(Seq(5));
    for number in 5..=60 {
        if number > 30 {
            append(&*log, number, Class::Ordinary).await;
        }
        let found = soon(tail.next()).await.expect("the log is open");
        assert_eq!(found.expect("it can be read"), (Seq(number), bytes(number)));
    }
    assert!(tail.next().now_or_never().is_none());
    drop(tail);
    close(log).await;
}

/// Whenever a tail begins, it sees every entry from there on once and in order.
pub async fn tails_under_concurrent_writers_neither_miss_nor_repeat(place: &dyn Place) {
    const WRITERS: u64 = 16;
    const EACH: u64 = 100;
    let log = place.open().await;
    let writers = (0..WRITERS).map(|writer| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut before = Seq(0);
            for number in 0..EACH {
                let seq = append(&*log, writer * EACH + number, Class::Ordinary).await;
                assert!(seq > before, "a writer's entries changed order");
                before = seq;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let tails = (0..8_u64).map(|late| {
        let log = log.clone();
        tokio::spawn(async move {
            while log.end() < Seq(late * 100) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let from = if late % 2 == 0 {
                Seq(1)
            } else {
                log.end().next()
            };
            let mut tail = log.tail(from);
            let mut seen = Vec::new();
            for seq in from.0..=WRITERS * EACH {
                let found = soon(tail.next()).await.expect("the log is open");
                let (at, entry) = found.expect("it can be read");
                assert_eq!(at, Seq(seq));
                assert!(at <= log.end(), "not yet durable");
                seen.push(entry);
            }
            (from, seen)
        })
    });
    let tails: Vec<_> = tails.collect();
    for writer in join_all(writers).await {
        writer.expect("no writer failed");
    }
    let expected = read_all(&*log).await;
    let distinct: BTreeSet<_> = expected.iter().collect();
    assert_eq!(distinct.len() as u64, WRITERS * EACH);
    for tail in soon(join_all(tails)).await {
        let (from, seen) = tail.expect("no tail failed");
        assert_eq!(seen, expected[from.0 as usize - 1..]);
    }
    close(log).await;
}

/// A tail from a place that is still to come waits for it, and leaves out what comes before.
pub async fn a_tail_may_begin_beyond_the_end(place: &dyn Place) {
    let log = place.open().await;
    let mut tail = log.tail(Seq(3));
    for number in 1..=3 {
        assert!((&mut tail.next()).now_or_never().is_none());
        append(&*log, number, Class::Ordinary).await;
    }
    let found = soon(tail.next()).await.expect("the log is open");
    assert_eq!(found.expect("it can be read"), (Seq(3), bytes(3)));
    drop(tail);
    close(log).await;
}

/// Control and ordinary entries share one dense order, each class in the order in which it was handed in.
pub async fn both_classes_stand_in_one_order(place: &dyn Place) {
    let log = place.open().await;
    let waiting: Vec<_> = (0..60)
        .map(|number| {
            let class = if number % 3 == 0 {
                Class::Control
            } else {
                Class::Ordinary
            };
            log.append(id(number), bytes(number), class)
        })
        .collect();
    let seqs: Vec<_> = soon(join_all(waiting))
        .await
        .into_iter()
        .map(|answer| answer.expect("there is room").seq)
        .collect();
    assert_eq!(seqs.iter().collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(seqs.iter().max(), Some(&Seq(60)));
    for class in [0..1, 1..3] {
        let of_class: Vec<_> = (0..60)
            .filter(|number| class.contains(&(number % 3)))
            .collect();
        assert!(of_class.is_sorted_by_key(|&number| seqs[number]));
    }
    let found = read_all(&*log).await;
    for (number, seq) in (0..).zip(&seqs) {
        assert_eq!(found[seq.0 as usize - 1], bytes(number));
    }
    close(log).await;
}

/// Whether a dropped append stands or not, the others are answered with where they stand.
pub async fn a_dropped_append_takes_no_place_from_others(place: &dyn Place) {
    let log = place.open().await;
    let mut kept = Vec::new();
    for number in 0..40 {
        let appending = log.append(id(number), bytes(number), Class::Ordinary);
        if number % 2 == 0 {
            drop(appending);
        } else {
            kept.push((number, soon(appending).await.expect("there is room").seq));
        }
    }
    let found = read_all(&*log).await;
    for (number, seq) in kept {
        assert_eq!(found[seq.0 as usize - 1], bytes(number));
    }
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
    close(log).await;
}

/// An entry past the bound is refused as such, and nobody else notices.
pub async fn too_large_an_entry_is_refused_alone(place: &dyn Place) {
    let log = place.open().await;
    for class in [Class::Ordinary, Class::Control] {
        let large = Bytes::from(vec![1; place.entry_bytes_max() + 1]);
        match soon(log.append(id(0), large, class)).await {
            Err(LogError::TooLarge { bytes, bytes_max }) => {
                assert_eq!(
                    (bytes, bytes_max),
                    (place.entry_bytes_max() + 1, place.entry_bytes_max())
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(append(&*log, 1, Class::Ordinary).await, Seq(1));
    close(log).await;
}

/// Closing answers what was taken, refuses what comes later, and ends the tails once they have given all.
pub async fn a_closed_log_refuses_and_ends_its_tails(place: &dyn Place) {
    let log = place.open().await;
    let tail = log.tail(Seq(1));
    let waiting: Vec<_> = (1..=20)
        .map(|number| log.append(id(number), bytes(number), Class::Ordinary))
        .collect();
    close(log.clone()).await;
    for answer in soon(join_all(waiting)).await {
        assert!(answer.is_ok(), "{answer:?}");
    }
    let refused = soon(log.append(id(21), bytes(21), Class::Control)).await;
    assert!(matches!(refused, Err(LogError::Closed)), "{refused:?}");
    let seen: Vec<_> = soon(tail.map(|found| found.expect("it can be read").0).collect()).await;
    assert_eq!(seen, (1..=20).map(Seq).collect::<Vec<_>>());
    close(log).await;
}

/// Random numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// What was handed to a log, and what it must show of it.
#[derive(Default)]
struct Model {
    /// By number.
    entries: Vec<Handed>,
}

struct Handed {
    class: Class,
    bytes: Bytes,
    /// What was answered before.
    after: Seq,
    /// Whether it got room at once: any queue holds the largest entry and 4 KiB.
    has_room: bool,
    /// Where it stands, once answered.
    place: Option<Seq>,
}

impl Model {
    /// Whether the entry may stand there: it was handed in, and not answered with another place.
    fn check(&self, seq: Seq, found: &Bytes) {
        let number = found.get(..8).expect("an entry of the suite");
        let number = u64::from_le_bytes(number.try_into().expect("eight bytes"));
        let entry = &self.entries[number as usize];
        assert_eq!(*found, entry.bytes, "at {seq}");
        assert!(
            entry.place.is_none_or(|place| place == seq),
            "not at {:?}",
            entry.place
        );
        assert!(seq > entry.after, "before what was answered before");
    }

    fn answered(&self) -> Seq {
        let places = self.entries.iter().filter_map(|entry| entry.place);
        places.max().unwrap_or_default()
    }

    /// All is there, once, and each class in its order.
    fn check_all(&self, found: &[Bytes]) {
        let mut numbers = Vec::new();
        for (seq, entry) in (1..).map(Seq).zip(found) {
            self.check(seq, entry);
            numbers.push(u64::from_le_bytes(
                entry[..8].try_into().expect("eight bytes"),
            ));
        }
        for class in [Class::Control, Class::Ordinary] {
            let of_class: Vec<_> = numbers
                .iter()
                .filter(|number| {
                    let entry = &self.entries[**number as usize];
                    entry.class == class && entry.has_room
                })
                .collect();
            assert!(
                of_class.is_sorted(),
                "{class:?} entries changed order: {of_class:?}"
            );
        }
        let distinct: BTreeSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len(), "an entry stands twice");
        assert!(
            self.answered() <= Seq(found.len() as u64),
            "answered and lost"
        );
    }
}

/// Appends of both classes, dropped appends, reads, tails and reopening, in a random order: all agrees with a model.
pub async fn any_interleaving_keeps_to_the_model(place: &dyn Place, seed: u64) {
    let played = std::panic::AssertUnwindSafe(interleave(place, seed)).catch_unwind();
    if let Err(panic) = played.await {
        eprintln!("the interleaving of seed {seed} failed");
        std::panic::resume_unwind(panic);
    }
}

async fn interleave(place: &dyn Place, seed: u64) {
    const STEPS: usize = 80;
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut log = place.open().await;
    let mut appending = Vec::new();
    // Of what may still wait for room; nobody says so of what was dropped.
    let (mut waiting_bytes, mut dropped_bytes) = (0, 0);
    let mut tails: Vec<(Seq, futures::stream::BoxStream<'static, _>)> = Vec::new();
    for _ in 0..STEPS {
        match random.below(12) {
            // Some appends, not yet waited for.
            0..=4 => {
                for _ in 0..=random.below(12) {
                    let number = model.entries.len() as u64;
                    let largest = if random.below(20) == 0 {
                        place.entry_bytes_max()
                    } else {
                        400
                    };
                    let mut entry = number.to_le_bytes().to_vec();
                    entry.resize(8 + random.below(largest - 8), number as u8);
                    let class = [Class::Control, Class::Ordinary, Class::Ordinary][random.below(3)];
                    let entry = Bytes::from(entry);
                    let cost = entry.len() + crate::limits::QUEUE_ENTRY_BYTES;
                    waiting_bytes += cost;
                    model.entries.push(Handed {
                        class,
                        bytes: entry.clone(),
                        after: model.answered(),
                        has_room: waiting_bytes <= place.entry_bytes_max() + 4096,
                        place: None,
                    });
                    let answer = log.append(id(number), entry, class);
                    match random.below(10) {
                        0 => {
                            drop(answer);
                            dropped_bytes += cost;
                        }
                        _ => appending.push((number, answer)),
                    }
                }
            }
            5 | 6 => {
                settle(&mut model, &mut appending).await;
                waiting_bytes = dropped_bytes;
            }
            7 | 8 => {
                let answered = model.answered();
                let from = Seq(random.below(answered.0 as usize + 4) as u64);
                let (entries, bytes_max) = (random.below(40), 1 << random.below(16));
                let found = soon(log.read(from, entries, bytes_max)).await;
                let found = found.expect("it can be read");
                assert!(found.len() <= entries);
                let total: usize = found.iter().map(|(_, entry)| entry.len()).sum();
                assert!(found.len() == 1 || total <= bytes_max);
                if from.max(Seq::FIRST) <= answered && entries > 0 {
                    assert!(!found.is_empty(), "nothing at {from} of {answered}");
                }
                for (expected, (seq, entry)) in (from.0.max(1)..).zip(&found) {
                    assert_eq!(*seq, Seq(expected));
                    model.check(*seq, entry);
                }
            }
            9 if tails.len() < 4 => {
                let from = Seq(random.below(model.answered().0 as usize + 4) as u64);
                tails.push((from.max(Seq::FIRST), log.tail(from)));
            }
            9 | 10 => {
                let answered = model.answered();
                for (next, tail) in &mut tails {
                    for _ in 0..random.below(60) {
                        if *next > answered {
                            break;
                        }
                        let found = soon(tail.next()).await.expect("the log is open");
                        let (seq, entry): (Seq, Bytes) = found.expect("it can be read");
                        assert_eq!(seq, *next);
                        assert!(seq <= log.end());
                        model.check(seq, &entry);
                        *next = seq.next();
                    }
                }
            }
            _ => {
                settle(&mut model, &mut appending).await;
                tails.clear();
                close(log).await;
                (waiting_bytes, dropped_bytes) = (0, 0);
                log = place.open().await;
                assert!(log.end() >= model.answered());
                model.check_all(&read_all(&*log).await);
            }
        }
    }
    settle(&mut model, &mut appending).await;
    close(log.clone()).await;
    let end = log.end();
    for (next, tail) in tails {
        let seen: Vec<_> = soon(tail.collect()).await;
        let expected = (end.0 + 1).saturating_sub(next.0) as usize;
        assert_eq!(seen.len(), expected, "a tail ended early");
        for (seq, found) in (next.0..).zip(seen) {
            let (at, entry) = found.expect("it can be read");
            assert_eq!(at, Seq(seq));
            model.check(at, &entry);
        }
    }
    drop(log);
    let log = place.open().await;
    assert_eq!(log.end(), end);
    model.check_all(&read_all(&*log).await);
    close(log).await;
}

type Appending = (u64, BoxFuture<'static, Result<crate::Appended, LogError>>);

async fn settle(model: &mut Model, appending: &mut Vec<Appending>) {
    let (numbers, answers): (Vec<_>, Vec<_>) = appending.drain(..).unzip();
    for (number, answer) in numbers.into_iter().zip(soon(join_all(answers)).await) {
        let seq = answer.expect("there is room").seq;
        model.entries[number as usize].place = Some(seq);
    }
}
