//! What an audit takes for the work of correct hosts, and what it finds.

use agora_realm::checkpoint::Checkpoint;
use agora_realm::merkle::{self, Frontier, Hash};
use agora_realm::*;
use bytes::Bytes;
use proptest::prelude::*;

use crate::support::*;

fn leaves(log: &[Bytes]) -> Vec<Hash> {
    log.iter().map(|stored| merkle::leaf(stored)).collect()
}

/// A checkpoint of the first places of a log, signed with this key.
fn checkpoint(log: &[Bytes], size: usize, key: &SigningKey, elsewhere: bool) -> Held {
    let mut tree = Frontier::new();
    leaves(&log[..size])
        .into_iter()
        .for_each(|leaf| tree.push(leaf));
    let realm = Sealed::open(log[0].clone()).unwrap().id().into();
    let (size, root) = (tree.size(), tree.root());
    Held {
        signed: Checkpoint { realm, size, root }.sign(key, &[0; 32]),
        whence: "a test".into(),
        elsewhere,
    }
}

fn audited(mut audit: Audit, log: &[Bytes]) -> Report {
    let mut verifier = Verifier::new();
    for (seq, stored) in (1..).zip(log) {
        audit.take(&Stored::open(seq, stored.clone(), &mut verifier));
    }
    audit.end()
}

fn plain(log: &[Bytes]) -> Report {
    audited(Audit::new(), log)
}

/// Two hosts, personas, grants, a loan, messages, a kill, a start and a fence: nothing void.
fn world() -> (World, PersonaId, GrantId) {
    let mut world = World::new();
    world.join(2);
    let ann = world.persona("ann");
    let bob = world.persona("bob");
    let far = world.persona_of(2, "far");
    let grant = world.grant(&ann, "c", Terms::ALL);
    let lent = world.lend(&bob, "c", Terms::ALL, grant);
    let body = GrantBody {
        persona: far.clone(),
        object: Object::Channel(channel("c")),
        terms: Terms::ALL,
        parent: None,
        lasting: false,
    };
    let judged = world.put(world.entry_of(2, Body::Grant(body)));
    assert_eq!(judged.verdict, Ok(()));
    let fars = judged.id.unwrap().into();
    let said = world.root(&ann, grant, "c", 3);
    counted(world.say(&bob, lent, "c", reply(&said, Act::Agree)));
    let said = world.root(&far, fars, "c", 3);
    let answered = world.answer(&ann, grant, "c", 3, vec![reply(&said, Act::Inform)]);
    assert_eq!(answered.verdict, Ok(()));
    world.revoke(Revoked::Persona(bob.clone()));
    assert_eq!(world.key(&bob, true).verdict, Ok(()));
    world.fence();
    world.root(&ann, grant, "c", 2);
    (world, ann, grant)
}

#[test]
fn what_is_gone_is_a_finding_unless_a_note_lets_it_go() {
    let (mut world, ..) = world();
    let is_turn = |stored: &&Bytes| {
        let sealed = Sealed::open((*stored).clone()).unwrap();
        matches!(sealed.entry().body, Body::Turn(_))
    };
    let last = world
        .log
        .iter()
        .rposition(|stored| is_turn(&stored))
        .unwrap();
    let with_stub = |log: &[Bytes]| {
        let (mut audit, mut verifier) = (Audit::new(), Verifier::new());
        for (seq, stored) in (1..).zip(log) {
            let stored = Stored::open(seq, stored.clone(), &mut verifier);
            let stored = match seq == last as u64 + 1 {
                true => {
                    let stub = stored.entry.unwrap().stub().unwrap();
                    Stored::pruned(seq, stored.leaf, stub)
                }
                false => stored,
            };
            audit.take(&stored);
        }
        audit
    };
    let report = with_stub(&world.log).end();
    let through = Ordinal(5);
    let gone = Wrong::NotPruned {
        channel: channel("c"),
        ordinal: through,
    };
    assert_eq!((report.found, report.totals.pruned), (1, 1));
    assert_eq!(
        (report.findings[0].seq, &report.findings[0].wrong),
        (last as u64 + 1, &gone)
    );
    // Of a record that breaks off, the note may be in what is missing.
    assert!(with_stub(&world.log).broken_off().is_well());
    for (through, found) in [(Ordinal(4), 1), (through, 0)] {
        let note = NoteBody::Prune {
            channel: channel("c"),
            through,
        };
        let judged = world.put(world.entry_of(1, Body::Note(note)));
        assert_eq!(judged.verdict, Ok(()));
        assert_eq!(with_stub(&world.log).end().found, found);
        // Behind more findings than are told, too.
        let junk = std::iter::repeat_n(Bytes::from_static(b"junk"), limits::FINDINGS_MAX + 20);
        let log: Vec<_> = world.log.iter().cloned().chain(junk).collect();
        let report = with_stub(&log).end();
        assert_eq!(report.found, limits::FINDINGS_MAX as u64 + 20 + found);
        let gravest = report.gravest.map(|finding| finding.wrong);
        assert_eq!(gravest, (found > 0).then(|| gone.clone()));
    }
}

#[test]
fn what_correct_hosts_wrote_has_no_finding() {
    let (world, ..) = world();
    let report = plain(&world.log);
    assert_eq!((report.findings.len(), report.is_well()), (0, true));
    assert_eq!(report.totals.messages, 5);
    assert_eq!(report.realm, world.realm);
    assert_eq!(report.state.digest(), world.state.digest());
    assert!(report.totals.void_entries.is_empty());
    let mut audit = Audit::new();
    for size in [0, 1, 5, world.log.len()] {
        // Whose word it is doesn't matter, as long as it is a host of the realm.
        audit.hold(checkpoint(&world.log, size, &secret(2), size > 1));
    }
    let report = audited(audit, &world.log);
    assert!(report.is_well(), "{:?}", report.findings);
    assert_eq!(report.checkpoints.len(), 4);
    assert!(
        report
            .checkpoints
            .iter()
            .all(|c| c.agrees && c.hosts[0].0 == host(2))
    );
}

fn voids(report: &Report) -> Vec<(u64, Refusal)> {
    let void = |finding: &Finding| match &finding.wrong {
        Wrong::Void { refusal, .. } => (finding.seq, *refusal),
        Wrong::Junk(junk) => (finding.seq, junk.refusal()),
        other => panic!("{other:?}"),
    };
    report.findings.iter().map(void).collect()
}

/// Puts one more entry in, and says whether the audit takes it for a race or finds it.
fn one_more(world: &mut World, entry: Entry) -> (Result<(), Refusal>, bool) {
    let judged = world.put(entry);
    let voided = judged.messages.iter().find_map(|verdict| match verdict {
        MessageVerdict::Void(refusal) => Some(*refusal),
        MessageVerdict::Repeat(_) => Some(Refusal::Repeated),
        MessageVerdict::Counts(_) => None,
    });
    let verdict = judged.verdict.and(voided.map_or(Ok(()), Err));
    let report = plain(&world.log);
    if let Some((seq, refusal)) = voids(&report).first() {
        assert_eq!((*seq, Err(*refusal)), (judged.seq, verdict));
    }
    (verdict, report.found > 0)
}

fn said(world: &World, by: &PersonaId, grant: Option<GrantId>, message: Message) -> Entry {
    let body = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![message],
        peer_epoch: Epoch(0),
    };
    world.turn_entry(by, grant, body)
}

#[test]
fn races_of_correct_hosts_are_no_findings() {
    let race = |refusal, entry: &dyn Fn(&mut World, &PersonaId, GrantId) -> Entry| {
        let (mut world, ann, grant) = world();
        let entry = entry(&mut world, &ann, grant);
        let (verdict, found) = one_more(&mut world, entry);
        assert_eq!((verdict, found), (Err(refusal), false));
    };
    let keyed = |key: u64| Message {
        key,
        ..message(Act::Inform)
    };
    race(Refusal::StaleEpoch, &|world, ann, grant| {
        let late = said(world, ann, Some(grant), keyed(90));
        world.fence();
        late
    });
    race(Refusal::Revoked, &|world, ann, grant| {
        let late = said(world, ann, Some(grant), keyed(90));
        world.revoke(Revoked::Grant(grant));
        late
    });
    race(Refusal::WrongKey, &|world, ann, grant| {
        let late = said(world, ann, Some(grant), keyed(90));
        let key = secret(77);
        let renewed = key_body(KeySubject::Persona(ann.name.clone()), &key);
        world.know(key);
        assert_eq!(world.put(world.entry(Body::Key(renewed))).verdict, Ok(()));
        late
    });
    race(Refusal::Repeated, &|world, ann, grant| {
        counted(world.say_exactly(ann, Some(grant), "c", keyed(90)));
        said(world, ann, Some(grant), keyed(90))
    });
    race(Refusal::NotAuthorised, &|world, _, _| {
        world.join(3);
        world.entry_of(
            2,
            Body::Key(key_body(KeySubject::Host(host(3)), &secret(3))),
        )
    });
    race(Refusal::UnknownGrant, &|world, _, _| {
        world.revoke_entry(Revoked::Grant(GrantId([5; 32])))
    });
    race(Refusal::UnknownPersona, &|world, _, _| {
        let nobody = PersonaName::new("nobody").unwrap();
        world.revoke_entry(Revoked::Persona(PersonaId::new(host(1), nobody)))
    });
    race(Refusal::BadHops, &|world, ann, grant| {
        let late = Message {
            hops: 3,
            ..keyed(90)
        };
        let late = said(world, ann, Some(grant), late);
        world.channel("c", 1, 256, false);
        late
    });
}

#[test]
fn what_no_correct_host_writes_is_found() {
    let wrong = |refusal, entry: &dyn Fn(&mut World, &PersonaId, GrantId) -> Entry| {
        let (mut world, ann, grant) = world();
        let entry = entry(&mut world, &ann, grant);
        let (verdict, found) = one_more(&mut world, entry);
        assert_eq!((verdict, found), (Err(refusal), true));
    };
    let keyed = |key: u64| Message {
        key,
        ..message(Act::Inform)
    };
    wrong(Refusal::StaleEpoch, &|world, ann, grant| Entry {
        epoch: Epoch(9),
        ..said(world, ann, Some(grant), keyed(90))
    });
    wrong(Refusal::WrongKey, &|world, ann, grant| {
        let signer = world.know(secret(77));
        Entry {
            signer,
            ..said(world, ann, Some(grant), keyed(90))
        }
    });
    wrong(Refusal::WrongRealm, &|world, ann, grant| Entry {
        realm: Some(RealmId([1; 32])),
        ..said(world, ann, Some(grant), keyed(90))
    });
    wrong(Refusal::UnknownGrant, &|world, ann, _| {
        said(world, ann, None, keyed(90))
    });
    wrong(Refusal::UnknownGrant, &|world, ann, _| {
        said(world, ann, Some(GrantId([3; 32])), keyed(90))
    });
    wrong(Refusal::NotAuthorised, &|world, _, _| {
        world.know(secret(8));
        world.entry_of(
            8,
            Body::Channel(ChannelBody {
                name: channel("mine"),
                hops: 1,
                reactions: 1,
                carry: false,
            }),
        )
    });
    wrong(Refusal::NotAuthorised, &|world, ann, _| {
        // One host grants the other's persona something.
        let mut entry = world.grant_entry(ann, "c", Terms::ALL, None);
        (entry.host, entry.signer) = (host(2), secret(2).public());
        entry
    });
    wrong(Refusal::UnknownChannel, &|world, ann, _| {
        world.grant_entry(ann, "nowhere", Terms::ALL, None)
    });
    wrong(Refusal::UnknownPersona, &|world, _, grant| {
        let who = PersonaId::new(host(1), PersonaName::new("nobody").unwrap());
        world.know(World::persona_key(&who));
        said(world, &who, Some(grant), keyed(90))
    });
    wrong(Refusal::BadHops, &|world, ann, grant| {
        said(
            world,
            ann,
            Some(grant),
            Message {
                hops: 9,
                ..keyed(90)
            },
        )
    });
    wrong(Refusal::Malformed, &|world, ann, grant| {
        said(world, ann, Some(grant), keyed(0))
    });
    wrong(Refusal::ParentOwn, &|world, ann, grant| {
        let own = world.root(ann, grant, "c", 3);
        said(
            world,
            ann,
            Some(grant),
            Message {
                key: 90,
                ..reply(&own, Act::Agree)
            },
        )
    });
    wrong(Refusal::NoRight, &|world, ann, _| {
        let reads = Terms {
            rights: Rights::READ,
            ..Terms::ALL
        };
        let grant = world.grant(ann, "c", reads);
        said(world, ann, Some(grant), keyed(90))
    });
    wrong(Refusal::Repeated, &|world, _, _| {
        world.know(secret(6));
        genesis_entry(&secret(6), Vec::new())
    });
}

#[test]
fn another_realm_a_missing_beginning_and_no_entries_are_told() {
    let (world, ..) = world();
    let mut audit = Audit::new();
    audit.expect_realm(RealmId([4; 32]));
    let report = audited(audit, &world.log);
    assert!(matches!(report.findings[0].wrong, Wrong::OtherRealm { .. }));
    let report = plain(&world.log[1..]);
    assert_eq!(report.findings[0].seq, 1);
    assert!(plain(&[]).is_well());
    let mut audit = Audit::new();
    audit.hold(checkpoint(&world.log, 4, &secret(1), true));
    let report = audited(audit, &[]);
    assert!(matches!(
        report.findings[0].wrong,
        Wrong::Short {
            end: 0,
            size: 4,
            ..
        }
    ));
}

#[test]
fn a_checkpoint_of_a_stranger_or_of_another_realm_is_a_finding() {
    let (world, ..) = world();
    let size = world.log.len();
    let mut audit = Audit::new();
    audit.hold(checkpoint(&world.log, size, &secret(9), true));
    let report = audited(audit, &world.log);
    assert!(matches!(
        report.findings[..],
        [Finding {
            wrong: Wrong::Unsigned { .. },
            ..
        }]
    ));
    let mut held = checkpoint(&world.log, size, &secret(1), true);
    let other = Checkpoint {
        realm: RealmId([1; 32]),
        ..*held.signed.checkpoint()
    };
    held.signed = other.sign(&secret(1), &[0; 32]);
    let mut audit = Audit::new();
    audit.hold(held);
    let report = audited(audit, &world.log);
    assert!(matches!(
        report.findings[..],
        [Finding {
            wrong: Wrong::OtherCheckpoint { .. },
            ..
        }]
    ));
}

/// What an attacker without keys, and one with those of another persona, does to a record.
fn mutated(
    log: &[Bytes],
    other: &[Bytes],
    how: u8,
    one: usize,
    two: usize,
    bit: usize,
) -> Vec<Bytes> {
    let mut log = log.to_vec();
    let (one, two) = (one % log.len(), two % log.len());
    match how % 8 {
        0 => {
            let mut bytes = log[one].to_vec();
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            log[one] = bytes.into();
        }
        1 => log[one] = log[one].slice(..bit % log[one].len()),
        2 => drop(log.remove(one)),
        3 => {
            let copy = log[one].clone();
            log.insert(two, copy);
        }
        4 => log.swap(one, two),
        5 => {
            // Another valid persona's name under somebody else's words.
            let sealed = Sealed::open(log[one].clone()).unwrap();
            let mut entry = sealed.entry().clone();
            let ann = PersonaId::new(host(1), PersonaName::new("ann").unwrap());
            let key = World::persona_key(&ann);
            entry.signer = key.public();
            if bit.is_multiple_of(2) && entry.author.is_some() {
                (entry.host, entry.author) = (ann.host, Some(ann.name));
            }
            log[one] = entry.seal(&key, &[1; 32]).unwrap().stored().clone();
        }
        6 => {
            let from = two % other.len();
            log.truncate(one);
            log.extend_from_slice(&other[from..]);
        }
        _ => log.truncate(one),
    }
    log
}

/// The first place at which two records differ.
fn first_bad(log: &[Bytes], mutated: &[Bytes]) -> Option<u64> {
    let differs = (0..log.len().max(mutated.len())).find(|at| log.get(*at) != mutated.get(*at));
    differs.map(|at| at as u64 + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_mutation_is_found_and_its_first_place_named(
        how: u8, one: usize, two: usize, bit: usize, all_leaves: bool,
    ) {
        let (world, ..) = world();
        let other = World::fenced_by(vec![host(1)]);
        let mut other = other;
        other.channel("c", 2, 9, true);
        let mutated = mutated(&world.log, &other.log, how, one, two, bit);
        let Some(bad) = first_bad(&world.log, &mutated) else {
            return Ok(());
        };
        let mut audit = Audit::new();
        let size = world.log.len();
        if bad > size as u64 {
            // A copy of the last entry, behind all that the checkpoint covers: a host that tries again may put it there.
            return Ok(());
        }
        audit.hold(checkpoint(&world.log, size, &secret(1), true));
        if all_leaves {
            audit.hold_leaves(leaves(&world.log));
        }
        let report = audited(audit, &mutated);
        prop_assert!(!report.is_well());
        let (first, all) = (&report.findings[0], &report.findings);
        prop_assert!(first.seq >= bad);
        prop_assert!(all.iter().any(|f| (f.since..=f.seq).contains(&bad)), "{bad}: {all:?}");
        if all_leaves {
            prop_assert_eq!((first.since, first.seq), (bad, bad), "{:?}", all);
        }
    }
}

#[test]
fn peers_guests_and_remote_channels_are_no_findings() {
    let mut world = World::new();
    world.channel("bravo/release", 0, 0, false);
    let (alpha, ann) = (world.persona("peer:alpha"), world.persona("ann"));
    let terms = Terms {
        rights: Rights::READ | Rights::WRITE | Rights::INITIATE,
        ..Terms::ALL
    };
    let grant = world.grant(&alpha, "c", terms);
    let guest = world.persona("alpha/x");
    let lent = world.lend(&guest, "c", Terms::ALL, grant);
    let said = world.root(&guest, lent, "c", 3);
    let out = world.grant(&ann, "bravo/release", Terms { hops: 4, ..terms });
    let told = reply(&Placed { hops: 5, ..said }, Act::Agree);
    counted(world.say(&ann, out, "bravo/release", told.clone()));
    let through = world.answer(&ann, out, "bravo/release", 900, vec![told.clone()]);
    counted(through.messages[0].clone());
    assert!(plain(&world.log).is_well());
    // What raced a kill of the peer is no finding either.
    world.revoke(Revoked::Persona(alpha));
    let late = world.say(&guest, lent, "c", message(Act::Inform));
    assert_eq!(late, MessageVerdict::Void(Refusal::Revoked));
    assert!(plain(&world.log).is_well());
    // More hops than the terms have is one, whatever became of the channel's settings.
    world.channel("bravo/release", 7, 0, false);
    let over = Message { hops: 5, ..told };
    let void = world.say(&ann, out, "bravo/release", over);
    assert_eq!(void, MessageVerdict::Void(Refusal::BadHops));
    assert_eq!(plain(&world.log).found, 1);
}

#[test]
fn a_guest_without_its_peer_and_a_turn_without_the_peers_epoch_are_findings() {
    let mut world = World::new();
    world.channel("bravo/release", 0, 0, false);
    let ann = world.persona("ann");
    let out = world.grant(&ann, "bravo/release", Terms::ALL);
    assert!(plain(&world.log).is_well());
    let guest = PersonaId::new(host(1), PersonaName::new("alpha/x").unwrap());
    assert_eq!(
        world.key(&guest, false).verdict,
        Err(Refusal::UnknownPersona)
    );
    assert_eq!(plain(&world.log).found, 1);
    let body = TurnBody {
        channel: channel("bravo/release"),
        through: Ordinal(0),
        origin: None,
        messages: vec![Message {
            key: 1,
            ..message(Act::Inform)
        }],
        peer_epoch: Epoch(0),
    };
    let judged = world.put(world.turn_entry(&ann, Some(out), body));
    assert_eq!(judged.verdict, Err(Refusal::Malformed));
    assert_eq!(plain(&world.log).found, 2);
}
