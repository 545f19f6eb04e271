//! Each rule of judge, by example.

use agora_realm::limits::*;
use agora_realm::*;
use bytes::Bytes;

use crate::support::*;

const VOID: fn(Refusal) -> MessageVerdict = MessageVerdict::Void;

/// A realm where `a` and `b` may do everything on `c`.
fn two() -> (World, PersonaId, GrantId, PersonaId, GrantId) {
    let mut w = World::new();
    let (a, b) = (w.persona("a"), w.persona("b"));
    let (ga, gb) = (w.grant(&a, "c", Terms::ALL), w.grant(&b, "c", Terms::ALL));
    (w, a, ga, b, gb)
}

fn operator(w: &mut World) -> PersonaId {
    w.persona("operator:1000")
}

// -- The realm

#[test]
fn a_realm_begins_with_its_genesis_alone() {
    let key = secret(1);
    let good = genesis_entry(&key, Vec::new());
    let mut state = State::new();
    let mut early = good.clone();
    early.realm = Some(RealmId([0; 32]));
    let mut other_host = good.clone();
    other_host.host = host(2);
    let mut other_epoch = good.clone();
    other_epoch.epoch = Epoch(2);
    let mut seq = 0;
    let mut put = |state: &mut State, entry: Entry| {
        seq += 1;
        judge(state, seq, Ok(&entry.seal(&key, &[0; 32]).unwrap())).verdict
    };
    assert_eq!(put(&mut state, early), Err(Refusal::WrongRealm));
    assert_eq!(put(&mut state, other_host), Err(Refusal::Malformed));
    assert_eq!(put(&mut state, other_epoch), Err(Refusal::Malformed));
    assert_eq!((state.realm(), state.epoch()), (None, Epoch(0)));
    assert_eq!(put(&mut state, good.clone()), Ok(()));
    let id = good.clone().seal(&key, &[0; 32]).unwrap().id();
    assert_eq!((state.realm(), state.epoch()), (Some(id.into()), Epoch(1)));
    assert_eq!(put(&mut state, good), Err(Refusal::Repeated));
}

#[test]
fn junk_is_void_and_counted() {
    let mut w = World::new();
    let before = w.state.clone();
    let judged = judge(&mut w.state, 100, Err(&Junk::BadSignature));
    assert_eq!(
        (judged.verdict, judged.id),
        (Err(Refusal::BadSignature), None)
    );
    assert_eq!(w.state.tally().junk, before.tally().junk + 1);
    assert_eq!(w.state.last_seq(), Some(100));
}

#[test]
fn a_seq_is_judged_once() {
    let (mut w, a, ga, ..) = two();
    w.root(&a, ga, "c", 1);
    let before = w.state.digest();
    let stored = Sealed::open(w.log.last().unwrap().clone()).unwrap();
    let again = judge(&mut w.state, w.log.len() as u64, Ok(&stored));
    assert_eq!(again.verdict, Err(Refusal::Repeated));
    assert_eq!(w.state.digest(), before);
}

#[test]
fn an_entry_of_another_realm_is_void() {
    let (mut w, a, ga, ..) = two();
    let body = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![],
        peer_epoch: Epoch(0),
    };
    let mut entry = w.turn_entry(&a, Some(ga), body);
    entry.realm = Some(RealmId([7; 32]));
    assert_eq!(w.put(entry).verdict, Err(Refusal::WrongRealm));
}

// -- Keys

#[test]
fn only_the_authors_current_key_speaks() {
    let (mut w, a, ga, b, _) = two();
    let body = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![message(Act::Inform)],
        peer_epoch: Epoch(0),
    };
    let mut entry = w.turn_entry(&a, Some(ga), body.clone());
    entry.signer = World::persona_key(&b).public();
    let judged = w.put(entry);
    assert_eq!(judged.verdict, Err(Refusal::WrongKey));
    assert_eq!(judged.messages, [VOID(Refusal::WrongKey)]);

    // After a renewal the old key is void, and cursor, keys and grants stay.
    w.root(&a, ga, "c", 1);
    let new = secret(77);
    w.know(secret(77));
    let renewal = key_body(KeySubject::Persona(a.name.clone()), &new);
    assert_eq!(w.put(w.entry(Body::Key(renewal))).verdict, Ok(()));
    let old = w.turn_entry(&a, Some(ga), body);
    assert_eq!(w.put(old.clone()).verdict, Err(Refusal::WrongKey));
    let mut said = old;
    said.signer = new.public();
    if let Body::Turn(turn) = &mut said.body {
        turn.messages[0].key = 1;
    }
    assert!(matches!(w.put(said).messages[0], MessageVerdict::Repeat(_)));
}

#[test]
fn an_unknown_host_or_persona_is_void() {
    let mut w = World::new();
    w.know(secret(2));
    let body = key_body(KeySubject::Host(host(2)), &secret(2));
    assert_eq!(
        w.put(w.entry_of(2, Body::Key(body))).verdict,
        Err(Refusal::NotAuthorised)
    );
    let nobody = PersonaId::new(host(1), PersonaName::new("nobody").unwrap());
    w.know(World::persona_key(&nobody));
    let judged = w.speak(&nobody, None, "c", vec![message(Act::Inform)]);
    assert_eq!(judged.verdict, Err(Refusal::UnknownPersona));
}

#[test]
fn a_host_joins_by_its_own_key_and_renews_only_its_own() {
    let mut w = World::new();
    let forged = key_body(KeySubject::Host(host(2)), &secret(3));
    assert_eq!(
        w.put(w.entry(Body::Key(forged))).verdict,
        Err(Refusal::Malformed)
    );
    assert_eq!(w.join(2).verdict, Ok(()));
    w.know(secret(4));
    let renewal = key_body(KeySubject::Host(host(2)), &secret(4));
    assert_eq!(
        w.put(w.entry(Body::Key(renewal.clone()))).verdict,
        Err(Refusal::NotAuthorised)
    );
    assert_eq!(w.put(w.entry_of(2, Body::Key(renewal))).verdict, Ok(()));
    assert_eq!(w.state.host(&host(2)).unwrap().key, secret(4).public());
    let late = key_body(
        KeySubject::Persona(PersonaName::new("p").unwrap()),
        &secret(5),
    );
    assert_eq!(
        w.put(w.entry_of(2, Body::Key(late))).verdict,
        Err(Refusal::WrongKey)
    );
}

#[test]
fn a_host_speaks_for_its_own_personas_alone() {
    let mut w = World::new();
    w.join(2);
    let theirs = w.persona_of(2, "p");
    let entry = w.grant_entry(&theirs, "c", Terms::ALL, None);
    assert_eq!(w.put(entry).verdict, Err(Refusal::NotAuthorised));
    // The same name at another host is another persona.
    let ours = w.persona("p");
    assert_ne!(ours, theirs);
    assert_eq!(w.state.personas().count(), 2);
}

#[test]
fn a_killed_persona_is_void_until_started() {
    let (mut w, a, ga, ..) = two();
    let judged = w.revoke(Revoked::Persona(a.clone()));
    assert_eq!(
        judged.changes,
        [Change::PersonaKilled { persona: a.clone() }]
    );
    assert_eq!(
        w.say(&a, ga, "c", message(Act::Inform)),
        VOID(Refusal::Revoked)
    );
    assert_eq!(
        w.revoke(Revoked::Persona(a.clone())).verdict,
        Err(Refusal::Repeated)
    );
    assert_eq!(w.key(&a, false).verdict, Err(Refusal::Revoked));
    assert_eq!(w.key(&a, true).verdict, Ok(()));
    assert_eq!(w.state.persona(&a).unwrap().keys, 2);
    w.root(&a, ga, "c", 1);
}

#[test]
fn a_copy_of_a_start_does_not_undo_a_later_kill() {
    let (mut w, a, ..) = two();
    w.revoke(Revoked::Persona(a.clone()));
    assert_eq!(w.key(&a, true).verdict, Ok(()));
    let start = Sealed::open(w.log.last().unwrap().clone()).unwrap();
    w.revoke(Revoked::Persona(a.clone()));
    assert_eq!(w.put_sealed(&start).verdict, Err(Refusal::Repeated));
    w.fence();
    assert_eq!(w.put_sealed(&start).verdict, Err(Refusal::StaleEpoch));
    assert!(w.state.persona(&a).unwrap().killed);
}

#[test]
fn a_copy_of_a_kill_does_not_undo_a_later_start() {
    let (mut w, a, ..) = two();
    w.revoke(Revoked::Persona(a.clone()));
    let kill = Sealed::open(w.log.last().unwrap().clone()).unwrap();
    assert_eq!(w.key(&a, true).verdict, Ok(()));
    assert_eq!(w.put_sealed(&kill).verdict, Err(Refusal::Repeated));
}

#[test]
fn a_copy_of_a_kill_that_came_too_late_does_not_undo_a_later_start() {
    let (mut w, a, ..) = two();
    w.revoke(Revoked::Persona(a.clone()));
    assert_eq!(
        w.revoke(Revoked::Persona(a.clone())).verdict,
        Err(Refusal::Repeated)
    );
    let kill = Sealed::open(w.log.last().unwrap().clone()).unwrap();
    assert_eq!(w.key(&a, true).verdict, Ok(()));
    assert_eq!(w.put_sealed(&kill).verdict, Err(Refusal::Repeated));
}

#[test]
fn a_copy_of_a_grant_does_not_bring_it_back() {
    let (mut w, a, ..) = two();
    let grant = w.grant(&a, "c", Terms::ALL);
    let issued = Sealed::open(w.log.last().unwrap().clone()).unwrap();
    w.revoke(Revoked::Grant(grant));
    assert_eq!(w.put_sealed(&issued).verdict, Err(Refusal::Repeated));
    assert!(w.state.grant(&grant).is_none() && w.state.was_cut(&grant));
}

#[test]
fn a_revoked_host_is_out_for_good() {
    let mut w = World::new();
    w.join(2);
    let p = w.persona_of(2, "p");
    let body = GrantBody {
        persona: p.clone(),
        object: Object::Timer,
        terms: Terms::ALL,
        parent: None,
        lasting: false,
    };
    let grant = w.put(w.entry_of(2, Body::Grant(body))).id.unwrap().into();
    let judged = w.revoke(Revoked::Host(host(2)));
    assert_eq!(
        judged.changes,
        [
            Change::HostRevoked { host: host(2) },
            Change::GrantRevoked { ids: vec![grant] }
        ]
    );
    let set = ChannelBody {
        name: channel("x"),
        hops: 1,
        reactions: 1,
        carry: false,
    };
    assert_eq!(
        w.put(w.entry_of(2, Body::Channel(set))).verdict,
        Err(Refusal::Revoked)
    );
    let stop = w.revoke_entry(Revoked::Persona(p.clone())).body;
    assert_eq!(w.put(w.entry_of(2, stop)).verdict, Err(Refusal::Revoked));
    assert_eq!(
        w.speak(&p, None, "c", vec![]).verdict,
        Err(Refusal::Revoked)
    );
    assert_eq!(w.join(2).verdict, Err(Refusal::Revoked));
}

// -- Epochs

#[test]
fn what_stands_after_the_fence_of_its_epoch_is_void() {
    let (mut w, a, ga, ..) = two();
    let body = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![message(Act::Inform)],
        peer_epoch: Epoch(0),
    };
    let turn = w.turn_entry(&a, Some(ga), body);
    let grant = w.grant_entry(&a, "c", Terms::ALL, None);
    w.fence();
    assert_eq!(w.put(turn).messages, [VOID(Refusal::StaleEpoch)]);
    assert_eq!(w.put(grant).verdict, Err(Refusal::StaleEpoch));
    w.root(&a, ga, "c", 1);
}

#[test]
fn a_stop_counts_in_whatever_epoch() {
    let (mut w, a, ga, b, _) = two();
    let (cut, kill) = (
        w.revoke_entry(Revoked::Grant(ga)),
        w.revoke_entry(Revoked::Persona(b.clone())),
    );
    w.fence();
    assert_eq!(w.put(cut).verdict, Ok(()));
    assert_eq!(w.put(kill).verdict, Ok(()));
    assert!(w.state.grants_of(&a).next().is_none() && w.state.persona(&b).unwrap().killed);
}

#[test]
fn the_first_fence_of_an_epoch_wins() {
    let mut w = World::new();
    let hold = w.revoke_entry(Revoked::Fence {
        ends: Epoch(1),
        hold: true,
    });
    let late = w.revoke_entry(Revoked::Fence {
        ends: Epoch(1),
        hold: false,
    });
    let early = w.revoke_entry(Revoked::Fence {
        ends: Epoch(2),
        hold: false,
    });
    assert_eq!(w.put(early.clone()).verdict, Err(Refusal::Malformed));
    let judged = w.put(hold);
    assert_eq!(
        judged.changes[0],
        Change::Fenced {
            ended: Epoch(1),
            began: Epoch(2),
            hold: true
        }
    );
    assert!(w.state.held());
    assert_eq!(w.put(late).verdict, Err(Refusal::Repeated));
    assert!(w.state.held());
    assert_eq!(w.put(early).verdict, Ok(()));
    assert_eq!((w.state.epoch(), w.state.held()), (Epoch(3), false));
}

#[test]
fn only_fencers_end_an_epoch() {
    let mut w = World::fenced_by(vec![host(2)]);
    w.join(2);
    let fence = w.revoke_entry(Revoked::Fence {
        ends: Epoch(1),
        hold: false,
    });
    assert_eq!(w.put(fence.clone()).verdict, Err(Refusal::NotAuthorised));
    assert_eq!(w.put(w.entry_of(2, fence.body)).verdict, Ok(()));
}

#[test]
fn messages_from_before_the_fence_are_no_parents_unless_carried() {
    let (mut w, a, ga, b, gb) = two();
    w.channel("k", 3, 256, true);
    let (ka, kb) = (w.grant(&a, "k", Terms::ALL), w.grant(&b, "k", Terms::ALL));
    let (plain, carried) = (w.root(&a, ga, "c", 3), w.root(&a, ka, "k", 3));
    w.fence();
    assert_eq!(
        w.say(&b, gb, "c", reply(&plain, Act::Agree)),
        VOID(Refusal::ParentFenced)
    );
    counted(w.say(&b, kb, "k", reply(&carried, Act::Agree)));
    assert_eq!(w.state.cursor(&b, &channel("c")), Ordinal(1));
    assert_eq!(w.state.cursor(&b, &channel("k")), Ordinal(0));
}

// -- Grants

#[test]
fn a_turn_needs_a_grant_of_its_own_for_its_channel() {
    let (mut w, a, ga, _, gb) = two();
    w.channel("d", 3, 256, false);
    let said = || {
        vec![Message {
            key: 1,
            ..message(Act::Inform)
        }]
    };
    assert_eq!(
        w.speak(&a, None, "c", said()).verdict,
        Err(Refusal::UnknownGrant)
    );
    assert_eq!(
        w.speak(&a, Some(gb), "c", said()).verdict,
        Err(Refusal::UnknownGrant)
    );
    assert_eq!(
        w.speak(&a, Some(ga), "d", said()).verdict,
        Err(Refusal::UnknownGrant)
    );
    assert_eq!(
        w.speak(&a, Some(ga), "nowhere", said()).verdict,
        Err(Refusal::UnknownChannel)
    );
    w.revoke(Revoked::Grant(ga));
    assert_eq!(
        w.speak(&a, Some(ga), "c", said()).verdict,
        Err(Refusal::Revoked)
    );
}

#[test]
fn an_operator_needs_no_grant() {
    let mut w = World::new();
    let op = operator(&mut w);
    counted(w.say_exactly(
        &op,
        None,
        "c",
        Message {
            key: 1,
            hops: 3,
            ..message(Act::Request)
        },
    ));
}

#[test]
fn rights_and_acts_and_bytes_bind() {
    let mut w = World::new();
    let a = w.persona("a");
    let terms = |rights| Terms {
        rights,
        ..Terms::ALL
    };
    let reader = w.grant(&a, "c", terms(Rights::READ));
    assert_eq!(
        w.say(&a, reader, "c", message(Act::Inform)),
        VOID(Refusal::NoRight)
    );
    let answerer = w.grant(&a, "c", terms(Rights::READ | Rights::WRITE));
    assert_eq!(
        w.say(&a, answerer, "c", message(Act::Inform)),
        VOID(Refusal::NoRight)
    );
    let informer = w.grant(
        &a,
        "c",
        Terms {
            acts: [Act::Inform].into_iter().collect(),
            bytes_max: 3,
            ..Terms::ALL
        },
    );
    assert_eq!(
        w.say(&a, informer, "c", message(Act::Propose)),
        VOID(Refusal::ActNotAllowed)
    );
    let said = |bytes: &'static [u8]| Message {
        payload: Bytes::from_static(bytes),
        ..message(Act::Inform)
    };
    assert_eq!(
        w.say(&a, informer, "c", said(b"four")),
        VOID(Refusal::TooLarge)
    );
    let first = counted(w.say(&a, informer, "c", said(b"3by")));
    let b = w.persona("b");
    let deaf = w.grant(&b, "c", terms(Rights::WRITE | Rights::INITIATE));
    assert_eq!(
        w.say(&b, deaf, "c", reply(&first, Act::Inform)),
        VOID(Refusal::NoRight)
    );
    let huge = Message {
        payload: vec![0; PAYLOAD_BYTES_MAX + 1].into(),
        ..message(Act::Inform)
    };
    assert_eq!(w.say(&b, deaf, "c", huge), VOID(Refusal::TooLarge));
}

#[test]
fn a_lent_grant_narrows_its_parent_and_dies_with_it() {
    let (mut w, a, ga, b, _) = two();
    let narrow = Terms {
        hops: 1,
        ..Terms::ALL
    };
    let lent = w.lend(&b, "c", narrow, ga);
    let deeper = w.lend(
        &a,
        "c",
        Terms {
            hops: 2,
            ..Terms::ALL
        },
        lent,
    );
    assert_eq!(w.state.grant(&deeper).unwrap().effective.hops, 1);
    assert_eq!(w.state.grant(&deeper).unwrap().depth, 3);
    let judged = w.revoke(Revoked::Grant(ga));
    assert_eq!(
        judged.changes,
        [Change::GrantRevoked {
            ids: vec![ga, lent, deeper]
        }]
    );
    assert_eq!(
        w.say(&b, lent, "c", message(Act::Inform)),
        VOID(Refusal::Revoked)
    );
    let orphan = w.grant_entry(&b, "c", Terms::ALL, Some(lent));
    assert_eq!(w.put(orphan).verdict, Err(Refusal::Revoked));
}

#[test]
fn lending_needs_the_right_and_the_same_object() {
    let (mut w, a, ga, b, _) = two();
    w.channel("d", 3, 256, false);
    let kept = w.grant(
        &a,
        "c",
        Terms {
            rights: Rights::READ | Rights::WRITE,
            ..Terms::ALL
        },
    );
    let entry = w.grant_entry(&b, "c", Terms::ALL, Some(kept));
    assert_eq!(w.put(entry).verdict, Err(Refusal::NoRight));
    let entry = w.grant_entry(&b, "d", Terms::ALL, Some(ga));
    assert_eq!(w.put(entry).verdict, Err(Refusal::UnknownGrant));
    let entry = w.grant_entry(&b, "c", Terms::ALL, Some(GrantId([1; 32])));
    assert_eq!(w.put(entry).verdict, Err(Refusal::UnknownGrant));
    w.revoke(Revoked::Persona(a.clone()));
    let entry = w.grant_entry(&b, "c", Terms::ALL, Some(ga));
    assert_eq!(w.put(entry).verdict, Err(Refusal::Revoked));
}

#[test]
fn what_was_narrowed_to_be_lent_need_not_carry_the_right_to_lend_on() {
    let (mut w, a, ga, b, _) = two();
    let narrow = Terms {
        rights: Rights::READ | Rights::WRITE,
        ..Terms::ALL
    };
    let own = w.lend(&a, "c", narrow, ga);
    let lent = w.lend(&b, "c", Terms::ALL, own);
    assert_eq!(w.state.lent(&own, &b, false), Some(lent));
    assert_eq!(w.state.lent(&own, &b, true), None);
    assert_eq!(w.state.lent(&ga, &b, false), None);
    // The borrower was not given it, and can neither lend nor narrow.
    for to in [&a, &b] {
        let entry = w.grant_entry(to, "c", Terms::ALL, Some(lent));
        assert_eq!(w.put(entry).verdict, Err(Refusal::NoRight));
    }
}

#[test]
fn killing_a_lender_cuts_what_it_lent_and_suspends_what_was_to_last() {
    let (mut w, a, ga, b, gb) = two();
    let own = w.lend(&a, "c", Terms::ALL, ga);
    let lent = w.lend(&b, "c", Terms::ALL, own);
    let mut entry = w.grant_entry(&b, "c", Terms::ALL, Some(ga));
    let Body::Grant(body) = &mut entry.body else {
        unreachable!()
    };
    body.lasting = true;
    let lasting: GrantId = w.put(entry).id.unwrap().into();
    let back = w.lend(&a, "c", Terms::ALL, lasting);
    let judged = w.revoke(Revoked::Persona(a.clone()));
    let cut = Change::GrantRevoked {
        ids: vec![own, lent, back],
    };
    assert!(judged.changes.contains(&cut), "{:?}", judged.changes);
    for (grant, counts) in [(gb, true), (lasting, false)] {
        let said = w.say(&b, grant, "c", message(Act::Inform));
        assert_eq!(said != VOID(Refusal::Revoked), counts);
    }
    assert!(w.state.is_suspended(w.state.grant(&lasting).unwrap()));
    let below = w.grant_entry(&b, "c", Terms::ALL, Some(lasting));
    assert_eq!(w.put(below).verdict, Err(Refusal::Revoked));
    w.key(&a, true);
    let said = w.say(&b, lasting, "c", message(Act::Inform));
    assert_ne!(said, VOID(Refusal::Revoked));
}

#[test]
fn killing_a_borrower_takes_what_it_was_lent_and_leaves_the_lender_alone() {
    let (mut w, a, ga, b, gb) = two();
    let lent = w.lend(&b, "c", Terms::ALL, ga);
    w.revoke(Revoked::Persona(b.clone()));
    assert!(w.state.grant(&lent).is_none());
    assert!(w.state.grant(&gb).is_some(), "what the host gave it stays");
    let said = w.say(&a, ga, "c", message(Act::Inform));
    assert_ne!(said, VOID(Refusal::Revoked));
}

#[test]
fn a_lent_grant_dies_at_the_fence_unless_lasting() {
    let (mut w, _, ga, b, gb) = two();
    let lent = w.lend(&b, "c", Terms::ALL, ga);
    let mut entry = w.grant_entry(&b, "c", Terms::ALL, Some(ga));
    let Body::Grant(body) = &mut entry.body else {
        unreachable!()
    };
    body.lasting = true;
    let lasting: GrantId = w.put(entry.clone()).id.unwrap().into();
    // Lasting itself, but under one that is not.
    let Body::Grant(body) = &mut entry.body else {
        unreachable!()
    };
    body.parent = Some(lent);
    let below: GrantId = w.put(entry).id.unwrap().into();
    let judged = w.fence();
    assert!(judged.changes.contains(&Change::GrantRevoked {
        ids: vec![lent, below]
    }));
    for stands in [ga, gb, lasting] {
        assert!(w.state.grant(&stands).is_some());
    }
}

#[test]
fn a_chain_of_grants_ends_at_its_bound() {
    let (mut w, a, ga, ..) = two();
    let mut bottom = ga;
    for _ in 1..GRANT_DEPTH_MAX {
        bottom = w.lend(&a, "c", Terms::ALL, bottom);
    }
    let entry = w.grant_entry(&a, "c", Terms::ALL, Some(bottom));
    assert_eq!(w.put(entry).verdict, Err(Refusal::Overloaded));
    assert_eq!(w.state.grant(&bottom).unwrap().depth, GRANT_DEPTH_MAX);
}

#[test]
fn a_persona_has_so_many_grants_at_once() {
    let mut w = World::new();
    let a = w.persona("a");
    let mut last = None;
    for _ in 0..PERSONA_GRANTS_MAX {
        last = Some(w.grant(&a, "c", Terms::ALL));
    }
    let entry = w.grant_entry(&a, "c", Terms::ALL, None);
    assert_eq!(w.put(entry.clone()).verdict, Err(Refusal::Overloaded));
    w.revoke(Revoked::Grant(last.unwrap()));
    assert_eq!(
        w.put(entry).verdict,
        Ok(()),
        "what met a bound may be tried again"
    );
}

#[test]
fn lenders_leave_room_for_the_host_and_for_each_other() {
    let (mut w, a, ga, b, _) = two();
    let put = |w: &mut World, to: &PersonaId, parent| {
        let entry = w.grant_entry(to, "c", Terms::ALL, parent);
        w.put(entry).verdict
    };
    for _ in 0..LENT_TO_ONE_MAX {
        assert_eq!(put(&mut w, &b, Some(ga)), Ok(()));
    }
    assert_eq!(put(&mut w, &b, Some(ga)), Err(Refusal::Overloaded));
    // Others may still lend to it, and the same lender to others, until only what is kept for the host is left.
    let mut held = 1 + LENT_TO_ONE_MAX;
    for n in 0.. {
        let other = w.persona(&format!("other-{n}"));
        let grant = w.grant(&other, "c", Terms::ALL);
        assert_eq!(put(&mut w, &other, Some(ga)), Ok(()));
        for _ in 0..LENT_TO_ONE_MAX {
            match put(&mut w, &b, Some(grant)) {
                Ok(()) => held += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::Overloaded),
            }
        }
        if held == PERSONA_GRANTS_MAX - PERSONA_GRANTS_RESERVED {
            break;
        }
        assert!(n < 8, "{held}");
    }
    for _ in 0..PERSONA_GRANTS_RESERVED {
        assert_eq!(put(&mut w, &b, None), Ok(()));
    }
    assert_eq!(put(&mut w, &b, None), Err(Refusal::Overloaded));
    assert_eq!(put(&mut w, &a, Some(ga)), Ok(()));
}

#[test]
fn what_a_persona_was_ever_granted_is_remembered() {
    let mut w = World::new();
    let a = w.persona("a");
    let object = |n: usize| Object::Service(ServiceName::new(&format!("s{n}")).unwrap());
    let entry = |w: &World, n| {
        let mut entry = w.grant_entry(&a, "c", Terms::ALL, None);
        let Body::Grant(body) = &mut entry.body else {
            unreachable!()
        };
        body.object = object(n);
        entry
    };
    for n in 0..PERSONA_OBJECTS_MAX {
        let id = w.put(entry(&w, n)).id.unwrap().into();
        assert_eq!(w.revoke(Revoked::Grant(id)).verdict, Ok(()));
    }
    let known = w.state.persona(&a).unwrap();
    assert!(known.decided.contains(&object(0)));
    assert_eq!(w.state.grants_of(&a).count(), 0);
    assert_eq!(
        w.put(entry(&w, PERSONA_OBJECTS_MAX)).verdict,
        Err(Refusal::Overloaded)
    );
    assert_eq!(w.put(entry(&w, 0)).verdict, Ok(()));
}

#[test]
fn a_count_is_drawn_together_with_all_above() {
    let (mut w, a, _, b, _) = two();
    let top = w.grant(
        &a,
        "c",
        Terms {
            count: 3,
            ..Terms::ALL
        },
    );
    let one = w.lend(
        &b,
        "c",
        Terms {
            count: 2,
            ..Terms::ALL
        },
        top,
    );
    w.root(&b, one, "c", 1);
    w.root(&b, one, "c", 1);
    assert_eq!(
        w.say(&b, one, "c", message(Act::Inform)),
        VOID(Refusal::CountSpent)
    );
    w.root(&a, top, "c", 1);
    assert_eq!(
        w.say(&a, top, "c", message(Act::Inform)),
        VOID(Refusal::CountSpent)
    );
    assert_eq!(w.state.grant(&top).unwrap().used, 3);
}

// -- Messages

#[test]
fn a_reply_to_a_spent_message_is_void() {
    let (mut w, a, ga, b, gb) = two();
    let spent = w.root(&a, ga, "c", 0);
    assert_eq!(
        w.say(&b, gb, "c", reply(&spent, Act::Agree)),
        VOID(Refusal::HopsSpent)
    );
}

#[test]
fn hops_only_fall() {
    let (mut w, a, ga, b, gb) = two();
    assert_eq!(
        w.say(
            &a,
            ga,
            "c",
            Message {
                hops: 4,
                ..message(Act::Inform)
            }
        ),
        VOID(Refusal::BadHops)
    );
    let root = w.root(&a, ga, "c", 3);
    let same = Message {
        hops: 3,
        ..reply(&root, Act::Agree)
    };
    assert_eq!(w.say(&b, gb, "c", same), VOID(Refusal::BadHops));
    let second = counted(w.say(&b, gb, "c", reply(&root, Act::Agree)));
    assert_eq!(second.hops, 2);
    let low = w.grant(
        &a,
        "c",
        Terms {
            hops: 0,
            ..Terms::ALL
        },
    );
    assert_eq!(
        w.say(&a, low, "c", reply(&second, Act::Agree)),
        VOID(Refusal::BadHops)
    );
    let draft = Draft {
        act: Act::Agree,
        parent: Some(second.id),
        hops_wish: 9,
        bytes: 0,
        key: w.state.next_key(&a, &channel("c")),
        owner: None,
        deadline_ms: 0,
        in_turn: false,
    };
    assert_eq!(
        w.state.admit(&a, Some(&low), &channel("c"), &draft),
        Ok(Admitted { hops: 0 })
    );
    assert_eq!(
        w.state.admit(&a, Some(&ga), &channel("c"), &draft),
        Ok(Admitted { hops: 1 })
    );
    let wish = Draft {
        hops_wish: 0,
        ..draft
    };
    assert_eq!(
        w.state.admit(&a, Some(&ga), &channel("c"), &wish),
        Ok(Admitted { hops: 0 })
    );
}

#[test]
fn nobody_answers_itself() {
    let (mut w, a, ga, ..) = two();
    let root = w.root(&a, ga, "c", 3);
    assert_eq!(
        w.say(&a, ga, "c", reply(&root, Act::Agree)),
        VOID(Refusal::ParentOwn)
    );
}

#[test]
fn a_parent_counts_and_is_of_the_same_channel() {
    let (mut w, a, ga, b, gb) = two();
    w.channel("d", 3, 256, false);
    let db = w.grant(&b, "d", Terms::ALL);
    let root = w.root(&a, ga, "c", 3);
    assert_eq!(
        w.say(&b, db, "d", reply(&root, Act::Agree)),
        VOID(Refusal::ParentUnknown)
    );
    let void = Message {
        hops: 9,
        ..message(Act::Inform)
    };
    assert_eq!(w.say(&a, ga, "c", void), VOID(Refusal::BadHops));
    let id = Sealed::open(w.log.last().unwrap().clone())
        .unwrap()
        .message_id(0);
    let to_void = Message {
        parent: Some(id),
        ..message(Act::Agree)
    };
    assert_eq!(w.say(&b, gb, "c", to_void), VOID(Refusal::ParentUnknown));
}

#[test]
fn a_grant_reads_as_far_back_as_its_history() {
    let (mut w, a, ga, ..) = two();
    let (first, second) = (w.root(&a, ga, "c", 3), w.root(&a, ga, "c", 3));
    let n = w.persona("n");
    let gn = w.grant(
        &n,
        "c",
        Terms {
            history: 1,
            ..Terms::ALL
        },
    );
    assert_eq!(
        w.say(&n, gn, "c", reply(&first, Act::Agree)),
        VOID(Refusal::ParentUnknown)
    );
    counted(w.say(&n, gn, "c", reply(&second, Act::Agree)));
}

#[test]
fn only_the_latest_messages_may_be_answered() {
    let (mut w, a, ga, b, gb) = two();
    let (first, second) = (w.root(&a, ga, "c", 3), w.root(&a, ga, "c", 3));
    let mut key = 2;
    while key + TURN_MESSAGES_MAX as u64 <= WINDOW {
        let said = (1..=TURN_MESSAGES_MAX as u64).map(|i| Message {
            key: key + i,
            ..message(Act::Inform)
        });
        let judged = w.speak(&a, Some(ga), "c", said.collect());
        assert!(
            judged
                .messages
                .iter()
                .all(|m| matches!(m, MessageVerdict::Counts(_)))
        );
        key += TURN_MESSAGES_MAX as u64;
    }
    while key < WINDOW {
        w.root(&a, ga, "c", 0);
        key += 1;
    }
    assert!(w.state.message(&channel("c"), &first.id).is_some());
    w.root(&a, ga, "c", 0);
    assert_eq!(w.state.message(&channel("c"), &first.id), None);
    assert_eq!(w.state.message_at(&channel("c"), Ordinal(1)), None);
    assert_eq!(
        w.say(&b, gb, "c", reply(&first, Act::Agree)),
        VOID(Refusal::ParentUnknown)
    );
    assert_eq!(
        w.state.message_at(&channel("c"), Ordinal(2)).unwrap(),
        second
    );
    counted(w.say(&b, gb, "c", reply(&second, Act::Agree)));
    let snapshot = postcard::to_stdvec(&w.state).unwrap();
    let back: State = postcard::from_bytes(&snapshot).unwrap();
    assert_eq!(
        back.message_at(&channel("c"), Ordinal(3)),
        w.state.message_at(&channel("c"), Ordinal(3))
    );
    assert_eq!(back.digest(), w.state.digest());
}

// -- Keys of messages, turns and cursors

#[test]
fn a_repeated_key_gets_the_first_receipt() {
    let (mut w, a, ga, ..) = two();
    let first = w.root(&a, ga, "c", 1);
    let again = Message {
        key: 1,
        hops: 2,
        ..message(Act::Propose)
    };
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", again.clone()),
        MessageVerdict::Repeat(first.clone())
    );
    w.fence();
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", again),
        MessageVerdict::Repeat(first.clone())
    );
    assert_eq!(w.state.key_repeat(&a, &channel("c"), 1), Some(first));
    assert_eq!(w.state.channel(&channel("c")).unwrap().latest, Ordinal(1));
}

#[test]
fn a_void_message_leaves_its_key_unused() {
    let (mut w, a, ga, ..) = two();
    let bad = Message {
        key: 5,
        hops: 9,
        ..message(Act::Inform)
    };
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", bad.clone()),
        VOID(Refusal::BadHops)
    );
    counted(w.say_exactly(&a, Some(ga), "c", Message { hops: 1, ..bad }));
    assert_eq!(w.state.next_key(&a, &channel("c")), 6);
    let skipped = Message {
        key: 4,
        ..message(Act::Inform)
    };
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", skipped),
        VOID(Refusal::KeyExpired)
    );
    let unnumbered = message(Act::Inform);
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", unnumbered),
        VOID(Refusal::Malformed)
    );
}

#[test]
fn a_key_is_forgotten_after_so_many() {
    let (mut w, a, ga, ..) = two();
    let turns = KEYS_REMEMBERED / TURN_MESSAGES_MAX;
    for turn in 0..turns {
        let first = (turn * TURN_MESSAGES_MAX) as u64;
        let said = (1..=TURN_MESSAGES_MAX as u64).map(|i| Message {
            key: first + i,
            ..message(Act::Inform)
        });
        w.speak(&a, Some(ga), "c", said.collect());
    }
    assert!(w.state.key_repeat(&a, &channel("c"), 1).is_some());
    w.root(&a, ga, "c", 0);
    assert!(w.state.key_repeat(&a, &channel("c"), 2).is_some());
    let oldest = Message {
        key: 1,
        ..message(Act::Inform)
    };
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", oldest),
        VOID(Refusal::KeyExpired)
    );
}

#[test]
fn a_turn_takes_effect_once() {
    let (mut w, a, ga, b, gb) = two();
    let root = w.root(&a, ga, "c", 3);
    let said = vec![
        reply(&root, Act::Agree),
        Message {
            hops: 9,
            ..reply(&root, Act::Agree)
        },
    ];
    let judged = w.answer(&b, gb, "c", 1, said.clone());
    assert_eq!(judged.verdict, Ok(()));
    let first = counted(judged.messages[0].clone());
    assert_eq!(judged.messages[1], VOID(Refusal::BadHops));
    let moved = Change::CursorMoved {
        persona: b.clone(),
        channel: channel("c"),
        through: Ordinal(1),
    };
    assert_eq!(judged.changes, [moved]);
    let again = w.answer(&b, gb, "c", 1, said);
    assert_eq!(again.verdict, Err(Refusal::Repeated));
    assert_eq!(
        again.messages,
        [
            MessageVerdict::Repeat(first.clone()),
            VOID(Refusal::BadHops)
        ]
    );
    assert_eq!(
        w.state.turn_repeat(&b, &channel("c"), None, Ordinal(1)),
        Some(again.messages)
    );
    assert_eq!(w.state.channel(&channel("c")).unwrap().latest, Ordinal(2));
}

#[test]
fn a_turn_behind_its_cursor_is_void() {
    let (mut w, a, ga, b, gb) = two();
    for _ in 0..3 {
        w.root(&a, ga, "c", 3);
    }
    assert_eq!(
        w.answer(&b, gb, "c", 4, vec![]).verdict,
        Err(Refusal::Malformed)
    );
    let spent = Message {
        hops: 9,
        ..message(Act::Inform)
    };
    assert_eq!(
        w.answer(&b, gb, "c", 2, vec![spent]).verdict,
        Ok(()),
        "it stands though its message is void"
    );
    assert_eq!(w.state.cursor(&b, &channel("c")), Ordinal(2));
    let late = w.answer(&b, gb, "c", 1, vec![message(Act::Inform)]);
    assert_eq!(
        (late.verdict, &late.messages[..]),
        (
            Err(Refusal::BehindCursor),
            &[VOID(Refusal::BehindCursor)][..]
        )
    );
    w.fence();
    assert_eq!(
        w.answer(&b, gb, "c", 3, vec![]).verdict,
        Err(Refusal::BehindCursor)
    );
}

#[test]
fn a_cursor_starts_at_the_first_live_grant() {
    let (mut w, a, ga, ..) = two();
    w.root(&a, ga, "c", 3);
    let n = w.persona("n");
    let old = w.grant(&n, "c", Terms::ALL);
    w.root(&a, ga, "c", 3);
    w.grant(&n, "c", Terms::ALL);
    assert_eq!(w.state.cursor(&n, &channel("c")), Ordinal(1));
    w.revoke(Revoked::Grant(old));
    assert_eq!(w.state.cursor(&n, &channel("c")), Ordinal(2));
}

#[test]
fn a_reaction_on_another_channel_is_keyed_by_its_origin() {
    let (mut w, a, ga, b, gb) = two();
    w.channel("d", 3, 256, false);
    let db = w.grant(&b, "d", Terms::ALL);
    w.root(&a, ga, "c", 3);
    w.root(&a, ga, "c", 3);
    let put = |w: &mut World, by: &PersonaId, grant, origin: &str, through| {
        let body = TurnBody {
            channel: channel("d"),
            through: Ordinal(through),
            origin: Some(channel(origin)),
            messages: vec![message(Act::Inform)],
            peer_epoch: Epoch(0),
        };
        let entry = w.turn_entry(by, Some(grant), body);
        w.put(entry)
    };
    let judged = put(&mut w, &b, db, "c", 2);
    let first = counted(judged.messages[0].clone());
    assert_eq!(judged.changes, [], "the origin's cursor stays");
    assert_eq!(w.state.cursor(&b, &channel("c")), Ordinal(0));
    let again = put(&mut w, &b, db, "c", 2);
    assert_eq!(
        (again.verdict, again.messages),
        (Err(Refusal::Repeated), vec![MessageVerdict::Repeat(first)])
    );
    assert_eq!(
        put(&mut w, &b, db, "c", 1).verdict,
        Err(Refusal::KeyExpired)
    );
    assert_eq!(put(&mut w, &b, db, "c", 3).verdict, Err(Refusal::Malformed));
    assert_eq!(put(&mut w, &b, db, "d", 1).verdict, Err(Refusal::Malformed));
    assert_eq!(
        put(&mut w, &b, db, "e", 1).verdict,
        Err(Refusal::UnknownChannel)
    );
    w.root(&a, ga, "c", 3);
    w.revoke(Revoked::Grant(gb));
    assert_eq!(
        put(&mut w, &b, db, "c", 3).verdict,
        Err(Refusal::UnknownGrant)
    );
}

// -- Threads

#[test]
fn a_threads_breaker_opens_after_its_reactions() {
    let (mut w, a, ga, b, gb) = two();
    w.channel("c", 3, 2, false);
    let op = operator(&mut w);
    let (root, other) = (w.root(&a, ga, "c", 3), w.root(&a, ga, "c", 3));
    let first = counted(w.say(&b, gb, "c", reply(&root, Act::Agree)));
    let said = Message {
        key: 1,
        ..reply(&first, Act::Agree)
    };
    let by_op = w.speak(&op, None, "c", vec![said]);
    assert_eq!(
        by_op.changes,
        [Change::BreakerOpened {
            thread: root.id,
            channel: channel("c")
        }]
    );
    assert_eq!(
        w.say(&b, gb, "c", reply(&root, Act::Agree)),
        VOID(Refusal::BreakerOpen)
    );
    counted(w.say(&b, gb, "c", reply(&other, Act::Agree)));
    let more = w.speak(
        &op,
        None,
        "c",
        vec![Message {
            key: 2,
            ..reply(&first, Act::Agree)
        }],
    );
    counted(more.messages[0].clone());
    assert_eq!(more.changes, [], "it opens once");
    assert_eq!(
        w.state
            .thread_of(&channel("c"), &first.id)
            .unwrap()
            .reactions,
        3
    );
}

/// A thread that `b` decides, and a message in it that `b` may answer.
fn decision(w: &mut World, a: &PersonaId, ga: GrantId, b: &PersonaId, deadline_ms: i64) -> Placed {
    counted(w.say(
        a,
        ga,
        "c",
        Message {
            hops: 3,
            owner: Some(b.clone()),
            deadline_ms,
            ..message(Act::Request)
        },
    ))
}

#[test]
fn the_owners_decision_closes_its_thread() {
    let (mut w, a, ga, b, gb) = two();
    let op = operator(&mut w);
    let n = w.persona("n");
    let gn = w.grant(&n, "c", Terms::ALL);
    let root = decision(&mut w, &a, ga, &b, 50);
    assert_eq!(w.state.open_threads().count(), 1);
    assert_eq!(
        w.say(&n, gn, "c", reply(&root, Act::Decide)),
        VOID(Refusal::NotOwner)
    );
    let offered = counted(w.say(&n, gn, "c", reply(&root, Act::Propose)));
    let key = w.state.next_key(&b, &channel("c"));
    let judged = w.speak(
        &b,
        Some(gb),
        "c",
        vec![Message {
            key,
            ..reply(&offered, Act::Decide)
        }],
    );
    let by = counted(judged.messages[0].clone()).id;
    assert_eq!(
        judged.changes,
        [Change::Decided {
            root: root.id,
            by,
            channel: channel("c")
        }]
    );
    assert_eq!(
        w.say(&b, gb, "c", reply(&root, Act::Decide)),
        VOID(Refusal::ThreadClosed)
    );
    let by_op = Message {
        key: 1,
        ..reply(&root, Act::Inform)
    };
    assert_eq!(
        w.say_exactly(&op, None, "c", by_op),
        VOID(Refusal::ThreadClosed)
    );
    assert_eq!(w.state.open_threads().count(), 0);
    let lapse = Body::Lapse(LapseBody {
        channel: channel("c"),
        thread: root.id,
    });
    let late = Entry {
        time_ms: 99,
        ..w.entry(lapse)
    };
    assert_eq!(w.put(late).verdict, Err(Refusal::NotDue));
}

#[test]
fn without_an_owner_a_decision_is_an_act_like_any() {
    let (mut w, a, ga, b, gb) = two();
    let root = w.root(&a, ga, "c", 3);
    counted(w.say(&b, gb, "c", reply(&root, Act::Decide)));
    counted(w.say(&b, gb, "c", reply(&root, Act::Decide)));
}

#[test]
fn only_a_root_request_names_an_owner() {
    let (mut w, a, ga, b, gb) = two();
    let root = w.root(&a, ga, "c", 3);
    let owned = |m: Message| Message {
        owner: Some(a.clone()),
        ..m
    };
    assert_eq!(
        w.say(&b, gb, "c", owned(reply(&root, Act::Request))),
        VOID(Refusal::Malformed)
    );
    assert_eq!(
        w.say(&b, gb, "c", owned(message(Act::Inform))),
        VOID(Refusal::Malformed)
    );
    let dated = Message {
        deadline_ms: 5,
        ..message(Act::Request)
    };
    assert_eq!(w.say(&b, gb, "c", dated), VOID(Refusal::Malformed));
    let stranger = PersonaId::new(host(1), PersonaName::new("nobody").unwrap());
    let unknown = Message {
        owner: Some(stranger),
        ..message(Act::Request)
    };
    assert_eq!(w.say(&b, gb, "c", unknown), VOID(Refusal::UnknownPersona));
}

#[test]
fn a_lapse_closes_an_overdue_thread_of_its_host() {
    let (mut w, a, ga, b, gb) = two();
    w.join(2);
    let root = decision(&mut w, &a, ga, &b, 50);
    let lapse = Body::Lapse(LapseBody {
        channel: channel("c"),
        thread: root.id,
    });
    let at = |w: &World, n, time_ms| Entry {
        time_ms,
        ..w.entry_of(n, lapse.clone())
    };
    assert_eq!(w.put(at(&w, 1, 49)).verdict, Err(Refusal::NotDue));
    assert_eq!(w.put(at(&w, 2, 50)).verdict, Err(Refusal::NotDue));
    let judged = w.put(at(&w, 1, 50));
    assert_eq!(
        judged.changes,
        [Change::Lapsed {
            root: root.id,
            channel: channel("c")
        }]
    );
    assert_eq!(
        w.say(&b, gb, "c", reply(&root, Act::Decide)),
        VOID(Refusal::ThreadClosed)
    );
    let timeless = decision(&mut w, &a, ga, &b, 0);
    let lapse = Body::Lapse(LapseBody {
        channel: channel("c"),
        thread: timeless.id,
    });
    assert_eq!(
        w.put(Entry {
            time_ms: i64::MAX,
            ..w.entry(lapse)
        })
        .verdict,
        Err(Refusal::NotDue)
    );
}

#[test]
fn any_host_lapses_the_threads_of_a_revoked_one() {
    let mut w = World::new();
    w.join(2);
    let p = w.persona_of(2, "p");
    let body = GrantBody {
        persona: p.clone(),
        object: Object::Channel(channel("c")),
        terms: Terms::ALL,
        parent: None,
        lasting: false,
    };
    let grant = w.put(w.entry_of(2, Body::Grant(body))).id.unwrap().into();
    let owner = p.clone();
    let root = decision(&mut w, &p, grant, &owner, 50);
    w.revoke(Revoked::Host(host(2)));
    let lapse = Body::Lapse(LapseBody {
        channel: channel("c"),
        thread: root.id,
    });
    assert_eq!(
        w.put(Entry {
            time_ms: 50,
            ..w.entry(lapse)
        })
        .verdict,
        Ok(())
    );
}

#[test]
fn a_fence_closes_open_threads_unless_carried() {
    let (mut w, a, ga, b, _) = two();
    let root = decision(&mut w, &a, ga, &b, 50);
    let judged = w.fence();
    assert!(judged.changes.contains(&Change::Lapsed {
        root: root.id,
        channel: channel("c")
    }));
    assert_eq!(w.state.open_threads().count(), 0);
    w.channel("c", 3, 256, true);
    decision(&mut w, &a, ga, &b, 50);
    w.fence();
    assert_eq!(w.state.open_threads().count(), 1);
}

#[test]
fn open_decisions_are_bounded() {
    let (mut w, a, ga, b, _) = two();
    let owned = |key| Message {
        key,
        owner: Some(b.clone()),
        ..message(Act::Request)
    };
    let mut key = 0;
    for _ in 0..OPEN_DECISIONS_MAX / TURN_MESSAGES_MAX {
        let said = (1..=TURN_MESSAGES_MAX as u64)
            .map(|i| owned(key + i))
            .collect();
        w.speak(&a, Some(ga), "c", said);
        key += TURN_MESSAGES_MAX as u64;
    }
    assert_eq!(w.state.open_threads().count(), OPEN_DECISIONS_MAX);
    assert_eq!(
        w.say_exactly(&a, Some(ga), "c", owned(key + 1)),
        VOID(Refusal::Overloaded)
    );
    w.root(&a, ga, "c", 0);
}

#[test]
fn a_void_message_holds_back_neither_neighbours_nor_cursor() {
    let (mut w, a, ga, b, gb) = two();
    let root = w.root(&a, ga, "c", 1);
    let said = vec![
        reply(&root, Act::Agree),
        Message {
            hops: 7,
            ..message(Act::Inform)
        },
        message(Act::Inform),
    ];
    let judged = w.answer(&b, gb, "c", 1, said);
    let ordinals: Vec<u64> = judged
        .messages
        .iter()
        .map(|m| match m {
            MessageVerdict::Counts(placed) => placed.ordinal.0,
            _ => 0,
        })
        .collect();
    assert_eq!(ordinals, [2, 0, 3]);
    assert_eq!(w.state.cursor(&b, &channel("c")), Ordinal(1));
}

#[test]
fn two_agents_that_agree_to_everything_give_six_answers() {
    let (mut w, a, ga, b, gb) = two();
    let op = operator(&mut w);
    counted(w.say_exactly(
        &op,
        None,
        "c",
        Message {
            key: 1,
            hops: 3,
            ..message(Act::Request)
        },
    ));
    let mut spent = 0;
    for ordinal in 1.. {
        let Some(heard) = w.state.message_at(&channel("c"), Ordinal(ordinal)) else {
            break;
        };
        for (who, grant) in [(&a, ga), (&b, gb)] {
            if heard.author == *who {
                continue;
            }
            let judged = w.answer(who, grant, "c", ordinal, vec![reply(&heard, Act::Agree)]);
            spent += usize::from(judged.messages[0] == VOID(Refusal::HopsSpent));
        }
    }
    // One request, two answers, each answered twice over: 1 + 2 + 2 + 2 while everybody hears everybody.
    assert_eq!(w.state.channel(&channel("c")).unwrap().latest, Ordinal(7));
    assert_eq!(spent, 2);
}

// -- Channels and notes

#[test]
fn a_channel_changes_only_when_it_differs() {
    let mut w = World::new();
    let set = |hops| {
        Body::Channel(ChannelBody {
            name: channel("c"),
            hops,
            reactions: 256,
            carry: false,
        })
    };
    let same = Entry {
        time_ms: 1,
        ..w.entry(set(3))
    };
    let judged = w.put(same);
    assert_eq!((judged.verdict, judged.changes), (Ok(()), vec![]));
    assert_eq!(w.put(w.entry(set(4))).changes.len(), 1);
    assert_eq!(w.state.channel(&channel("c")).unwrap().settings.hops, 4);
}

#[test]
fn pruning_only_goes_forward() {
    let (mut w, a, ga, ..) = two();
    w.root(&a, ga, "c", 3);
    let prune = |through| {
        Body::Note(NoteBody::Prune {
            channel: channel("c"),
            through: Ordinal(through),
        })
    };
    assert_eq!(w.put(w.entry(prune(2))).verdict, Err(Refusal::Malformed));
    assert_eq!(w.put(w.entry(prune(1))).verdict, Ok(()));
    assert_eq!(w.put(w.entry(prune(1))).verdict, Err(Refusal::Repeated));
}

#[test]
fn a_note_of_the_tree_speaks_of_what_stands_before_it() {
    let (mut w, ..) = two();
    let note = |w: &World, size| {
        let root = [7; 32];
        w.entry(Body::Note(NoteBody::Tree { size, root }))
    };
    let last = w.state.last_seq().unwrap();
    for (size, verdict) in [
        (0, Err(Refusal::Malformed)),
        (last + 2, Err(Refusal::Malformed)),
        (last + 2, Ok(())),
        (1, Ok(())),
    ] {
        let judged = w.put(note(&w, size));
        assert_eq!(
            (judged.verdict, judged.changes),
            (verdict, vec![]),
            "{size}"
        );
    }
}

#[test]
fn a_note_of_stubs_speaks_of_places_before_it_in_their_order_and_changes_nothing() {
    let (mut w, ..) = two();
    let note = |w: &World, name: &str, seqs: &[u64]| {
        let stub = |seq: &u64| StubBody {
            seq: *seq,
            leaf: [1; 32],
            stub: Default::default(),
        };
        w.entry(Body::Note(NoteBody::Stubs {
            channel: channel(name),
            stubs: seqs.iter().map(stub).collect(),
        }))
    };
    let last = w.state.last_seq().unwrap();
    let malformed = Err(Refusal::Malformed);
    for (name, seqs, verdict) in [
        ("c", vec![1, 2, last], Ok(())),
        ("c", vec![], Ok(())),
        ("c", vec![0], malformed),
        ("c", vec![2, 1], malformed),
        ("c", vec![1, 1], malformed),
        ("c", vec![1, last + 7], malformed),
        ("nowhere", vec![1], Err(Refusal::UnknownChannel)),
    ] {
        let judged = w.put(note(&w, name, &seqs));
        assert_eq!(
            (judged.verdict, judged.changes),
            (verdict, vec![]),
            "{name} {seqs:?}"
        );
    }
}

#[test]
fn personas_write_turns_and_hosts_the_rest() {
    let (mut w, a, ga, ..) = two();
    let by_host = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![],
        peer_epoch: Epoch(0),
    };
    assert_eq!(
        w.put(w.entry(Body::Turn(by_host))).verdict,
        Err(Refusal::NotAuthorised)
    );
    let mut kill = w.revoke_entry(Revoked::Grant(ga));
    kill.author = Some(a.name.clone());
    kill.signer = World::persona_key(&a).public();
    assert_eq!(w.put(kill).verdict, Err(Refusal::NotAuthorised));
}

#[test]
fn a_marker_stands_in_its_epoch_and_changes_nothing() {
    let (mut w, ..) = two();
    let marker = |w: &World| w.entry(Body::Note(NoteBody::Marker { judged: 1 }));
    let (told, before) = (marker(&w), w.state.clone());
    let judged = w.put(told.clone());
    assert_eq!((judged.verdict, judged.changes), (Ok(()), vec![]));
    let other = |state: &agora_realm::State| (state.epoch(), state.grants().count(), state.tally());
    assert_eq!(other(&before).0, other(&w.state).0);
    assert_eq!(other(&before).1, other(&w.state).1);
    assert_eq!(other(&before).2.void, other(&w.state).2.void);
    let ends = w.state.epoch();
    let fence = w.revoke_entry(Revoked::Fence { ends, hold: false });
    assert_eq!(w.put(fence).verdict, Ok(()));
    assert_eq!(w.put(told).verdict, Err(Refusal::StaleEpoch));
    let now = marker(&w);
    assert_eq!(w.put(now).verdict, Ok(()));
}
