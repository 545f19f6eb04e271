//! Ten thousand changes to a real record: each is found where a checkpoint is held, and its first place is named.

use std::sync::atomic::{AtomicUsize, Ordering};

use agora_realm::{Audit, Body, Report, Sealed, Stored, Verifier, merkle};
use bytes::Bytes;

use super::written::{Draw, checkpoint, written};

/// How many; AGORA_MUTATIONS says otherwise.
fn mutations() -> usize {
    let wanted = std::env::var("AGORA_MUTATIONS").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

fn opened(entries: &[Bytes]) -> Vec<Stored> {
    let mut verifier = Verifier::new();
    (1..)
        .zip(entries)
        .map(|(seq, stored)| Stored::open(seq, stored.clone(), &mut verifier))
        .collect()
}

fn report(mut audit: Audit, stored: &[Stored]) -> Report {
    stored.iter().for_each(|stored| drop(audit.take(stored)));
    audit.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_wrote_is_accepted_whatever_they_did() {
    let mut void = 0;
    for seed in 0..5 {
        let written = written(seed, 40).await;
        let mut audit = Audit::new();
        audit.hold(checkpoint(&written.entries, &written.host_key()));
        let report = report(audit, &opened(&written.entries));
        assert!(report.is_well(), "seed {seed}: {:?}", report.findings);
        assert_eq!(report.totals.entries, written.entries.len() as u64);
        assert!(report.totals.messages > 0 && report.state.hosts().count() == 2);
        assert!(report.state.hosts().all(|(_, host)| host.keys > 1));
        void += report.totals.void_entries.values().sum::<u64>();
    }
    println!("{void} void entries, none of them a finding");
}

/// A record, and another of other hosts, to change one with the help of the other.
struct Material {
    entries: Vec<Bytes>,
    /// Opened, so that only what is changed is verified again.
    opened: Vec<Stored>,
    other: Vec<Bytes>,
    /// The keys of those who have one, with an entry of each to know them by.
    keys: Vec<(Sealed, agora_realm::SigningKey)>,
    /// Audits that have taken the first places, every `APART` of them: with the leaves known, and with a checkpoint alone.
    begun: [Vec<Audit>; 2],
}

const APART: usize = 8;

/// A place of a changed record.
#[derive(Clone, PartialEq)]
enum Piece {
    /// What stood at this place, from 0.
    Old(usize),
    New(Bytes),
}

impl Material {
    /// Changes the record in some way, and says in which.
    fn mutated(&self, draw: &mut Draw) -> (usize, Vec<Piece>) {
        let len = self.entries.len();
        let mut pieces: Vec<_> = (0..len).map(Piece::Old).collect();
        let (one, two) = (draw.below(len), draw.below(len));
        let kind = draw.below(9);
        match kind {
            0 => {
                let mut bytes = self.entries[one].to_vec();
                let bit = draw.below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                pieces[one] = Piece::New(bytes.into());
            }
            1 => {
                let bytes = &self.entries[one];
                pieces[one] = Piece::New(bytes.slice(..draw.below(bytes.len())));
            }
            2 => drop(pieces.remove(one)),
            3 => pieces.insert(two, Piece::Old(one)),
            4 => pieces.swap(one, two),
            // Another's key, name or both on what somebody said.
            5 => pieces[one] = Piece::New(self.resigned(one, draw)),
            // The record of others from some place on, or in between.
            6 => {
                let from = draw.below(self.other.len());
                let others = self.other[from..].iter().cloned().map(Piece::New);
                match draw.below(2) {
                    0 => drop(pieces.splice(one.., others)),
                    _ => drop(pieces.splice(one..one, others.take(3))),
                }
            }
            7 => pieces.truncate(one),
            // A part of it the other way round.
            _ => {
                let (from, to) = (one.min(two), one.max(two));
                pieces[from..=to].reverse();
            }
        }
        (kind, pieces)
    }

    fn resigned(&self, at: usize, draw: &mut Draw) -> Bytes {
        let mut entry = self.opened[at].entry.as_ref().unwrap().entry().clone();
        let (who, key) = &self.keys[draw.below(self.keys.len())];
        let who = who.entry();
        if draw.below(2) == 0 && entry.author.is_some() && who.author.is_some() {
            (entry.host, entry.author) = (who.host, who.author.clone());
            if draw.below(2) == 0 {
                entry.grant = who.grant;
            }
        }
        if let (Body::Turn(turn), 0) = (&mut entry.body, draw.below(2))
            && let Some(message) = turn.messages.first_mut()
        {
            message.payload = Bytes::from_static(b"what was never said");
        }
        entry.signer = key.public();
        entry.seal(key, &[1; 32]).unwrap().stored().clone()
    }

    /// Audits a changed record; `which` of the two ways.
    fn audited(&self, which: usize, pieces: &[Piece], bad: usize) -> Report {
        let begun = bad / APART;
        let mut audit = self.begun[which][begun].clone();
        let mut verifier = Verifier::new();
        for (at, piece) in pieces.iter().enumerate().skip(begun * APART) {
            let seq = at as u64 + 1;
            let stored = match piece {
                Piece::Old(old) => Stored {
                    seq,
                    ..self.opened[*old].clone()
                },
                Piece::New(bytes) => Stored::open(seq, bytes.clone(), &mut verifier),
            };
            audit.take(&stored);
            // Where the leaves are known, the first bad place speaks for itself.
            if which == 0 && audit.found() > 0 {
                break;
            }
        }
        audit.end()
    }
}

async fn material() -> Material {
    let written = written(77, 60).await;
    let other = super::written::written(78, 12).await;
    let opened = opened(&written.entries);
    let mut keys = Vec::new();
    for stored in &opened {
        let sealed = stored.entry.as_ref().unwrap();
        let entry = sealed.entry();
        let host = match entry.host.to_string() == format!("{}", written.host_key().public()) {
            true => "first",
            false => "second",
        };
        let secret = written.secret(host);
        let key = match &entry.author {
            None => (1..20)
                .map(|n| secret.host_key(n))
                .find(|key| key.public() == entry.signer),
            Some(name) => (1..20)
                .map(|n| secret.persona_key(name, Some(&agora_realm::ComponentHash([0; 32])), n))
                .find(|key| key.public() == entry.signer),
        };
        let known = |(_, known): &(Sealed, agora_realm::SigningKey)| known.public() == entry.signer;
        if let Some(key) = key
            && !keys.iter().any(known)
        {
            keys.push((sealed.clone(), key));
        }
    }
    assert!(keys.len() >= 4, "hosts and personas sign: {}", keys.len());
    let held = checkpoint(&written.entries, &written.host_key());
    let leaves: Vec<_> = written.entries.iter().map(|e| merkle::leaf(e)).collect();
    let begun = [true, false].map(|with_leaves| {
        let mut audit = Audit::new();
        audit.hold(held.clone());
        if with_leaves {
            audit.hold_leaves(leaves.clone());
        }
        let mut begun = Vec::new();
        for (at, stored) in opened.iter().enumerate() {
            if at % APART == 0 {
                begun.push(audit.clone());
            }
            audit.take(stored);
        }
        begun.push(audit.clone());
        assert!(audit.end().is_well());
        begun
    });
    Material {
        entries: written.entries.clone(),
        opened,
        other: other.entries.clone(),
        keys,
        begun,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mutation_is_found_and_the_first_bad_entry_named() {
    let material = material().await;
    let (next, all) = (AtomicUsize::new(0), mutations());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let kinds: [AtomicUsize; 9] = Default::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= all {
                        return;
                    }
                    let mut draw = Draw(0x6167_6f72_6100_0000 + number as u64);
                    let len = material.entries.len();
                    // Some changes change nothing; another is drawn then.
                    let (kind, pieces, bad) = loop {
                        let (kind, pieces) = material.mutated(&mut draw);
                        let is_old = |at: usize| match &pieces.get(at) {
                            Some(Piece::Old(old)) => material.entries[*old] == material.entries[at],
                            Some(Piece::New(bytes)) => *bytes == material.entries[at],
                            None => false,
                        };
                        if let Some(bad) = (0..len).find(|at| !is_old(*at)) {
                            break (kind, pieces, bad);
                        }
                    };
                    kinds[kind].fetch_add(1, Ordering::Relaxed);
                    let place = bad as u64 + 1;
                    let found = material.audited(0, &pieces, bad);
                    let first = found.findings.first();
                    let named = first.map(|first| (first.since, first.seq));
                    assert_eq!(
                        named,
                        Some((place, place)),
                        "{number}, kind {kind}: {first:?}"
                    );
                    if number % 8 == 0 {
                        let found = material.audited(1, &pieces, bad);
                        let holds = |f: &agora_realm::Finding| (f.since..=f.seq).contains(&place);
                        let all = &found.findings;
                        assert!(
                            all.iter().any(holds),
                            "{number}, kind {kind}, {place}: {all:?}"
                        );
                        assert!(all[0].seq >= place);
                    }
                }
            });
        }
    });
    for (kind, count) in kinds.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        assert!(count > all / 20, "kind {kind} was drawn {count} times only");
    }
}
