//! Other hosts, their personas, and what is said for their channels.

use agora_realm::limits::*;
use agora_realm::*;

use crate::support::*;

const VOID: fn(Refusal) -> MessageVerdict = MessageVerdict::Void;
const OUT: &str = "bravo/release";

fn name(text: &str) -> PersonaName {
    PersonaName::new(text).unwrap()
}

/// A realm with the peer `alpha`, which may read and write on `c`, and attenuate nothing.
fn with_alpha() -> (World, PersonaId, GrantId) {
    let mut w = World::new();
    let alpha = w.persona("peer:alpha");
    let terms = Terms {
        rights: Rights::READ | Rights::WRITE | Rights::INITIATE,
        ..Terms::ALL
    };
    let grant = w.grant(&alpha, "c", terms);
    (w, alpha, grant)
}

/// A realm with the channel [`OUT`], where `a` may do everything on it and on `c`.
fn with_bravo() -> (World, PersonaId, GrantId) {
    let mut w = World::new();
    w.channel(OUT, 0, 0, false);
    let a = w.persona("a");
    let grant = w.grant(&a, OUT, Terms::ALL);
    (w, a, grant)
}

fn lasting(w: &World, to: &PersonaId, parent: GrantId) -> Entry {
    let mut entry = w.grant_entry(to, "c", Terms::ALL, Some(parent));
    if let Body::Grant(body) = &mut entry.body {
        body.lasting = true;
    }
    entry
}

fn keyed(w: &mut World, of: &str, origin: Option<Box<Origin>>) -> Result<(), Refusal> {
    let key = World::persona_key(&PersonaId::new(host(1), name(of)));
    let body = KeyBody {
        origin,
        ..key_body(KeySubject::Persona(name(of)), &key)
    };
    let mut entry = w.entry(Body::Key(body));
    entry.time_ms = w.log.len() as i64;
    w.put(entry).verdict
}

// -- Keys

#[test]
fn peers_and_guests_say_where_they_come_from_and_nobody_else_does() {
    let mut w = World::new();
    let (peer, guest) = (origin_of(&name("peer:alpha")), origin_of(&name("alpha/x")));
    for (of, origin) in [
        ("peer:alpha", &None),
        ("peer:alpha", &guest),
        ("ann", &peer),
        ("operator:7", &peer),
        ("ann", &guest),
    ] {
        let verdict = keyed(&mut w, of, origin.clone());
        assert_eq!(verdict, Err(Refusal::Malformed), "{of}");
    }
    assert_eq!(keyed(&mut w, "peer:alpha", peer.clone()), Ok(()));
    for origin in [&None, &peer] {
        let verdict = keyed(&mut w, "alpha/x", origin.clone());
        assert_eq!(verdict, Err(Refusal::Malformed));
    }
    assert_eq!(keyed(&mut w, "alpha/x", guest.clone()), Ok(()));
    let of_host = KeyBody {
        origin: peer,
        ..key_body(KeySubject::Host(host(1)), &secret(1))
    };
    let verdict = w.put(w.entry(Body::Key(of_host))).verdict;
    assert_eq!(verdict, Err(Refusal::Malformed));
    let id = PersonaId::new(host(1), name("alpha/x"));
    assert_eq!(w.state.persona(&id).unwrap().origin, guest);
}

#[test]
fn who_a_guest_is_elsewhere_may_be_told_anew() {
    let (mut w, ..) = with_alpha();
    let guest = w.persona("alpha/x");
    let before = w.state.persona(&guest).unwrap().clone();
    assert!(w.key(&guest, false).changes.is_empty(), "nothing is new");
    let mut origin = origin_of(&guest.name).unwrap();
    origin.component = Some(ComponentHash([3; 32]));
    assert_eq!(keyed(&mut w, "alpha/x", Some(origin.clone())), Ok(()));
    let after = w.state.persona(&guest).unwrap();
    assert_eq!(after.origin, Some(origin));
    assert_eq!((after.key, after.keys), (before.key, before.keys + 1));
}

#[test]
fn a_guest_comes_with_its_peer() {
    let mut w = World::new();
    let guest = origin_of(&name("alpha/x"));
    let early = keyed(&mut w, "alpha/x", guest.clone());
    assert_eq!(early, Err(Refusal::UnknownPersona));
    let alpha = w.persona("peer:alpha");
    assert_eq!(
        keyed(&mut w, "bravo/x", guest.clone()),
        Err(Refusal::UnknownPersona)
    );
    w.revoke(Revoked::Persona(alpha.clone()));
    assert_eq!(
        keyed(&mut w, "alpha/x", guest.clone()),
        Err(Refusal::Revoked)
    );
    assert_eq!(w.key(&alpha, true).verdict, Ok(()));
    assert_eq!(keyed(&mut w, "alpha/x", guest.clone()), Ok(()));
    // The peer of another host is another one.
    w.join(2);
    let there = w.entry_of(
        2,
        Body::Key(KeyBody {
            origin: guest,
            ..key_body(KeySubject::Persona(name("alpha/x")), &secret(50))
        }),
    );
    assert_eq!(w.put(there).verdict, Err(Refusal::UnknownPersona));
}

#[test]
fn a_peer_brings_so_many_guests_and_another_as_many() {
    let (mut w, ..) = with_alpha();
    w.persona("peer:delta");
    let key = secret(60).public();
    let entries = (0..=GUESTS_PER_PEER_MAX).map(|n| {
        let name = PersonaName::guest("alpha", &format!("g{n}")).unwrap();
        KeyBody {
            subject: KeySubject::Persona(name.clone()),
            public_key: key,
            component: None,
            started: false,
            genesis: None,
            origin: origin_of(&name),
        }
    });
    for (n, body) in entries.enumerate() {
        let verdict = w.put(w.entry(Body::Key(body))).verdict;
        let full = n as u32 == GUESTS_PER_PEER_MAX;
        let expected = if full {
            Err(Refusal::Overloaded)
        } else {
            Ok(())
        };
        assert_eq!(verdict, expected, "{n}");
    }
    // One that is there may have a new key, and another peer has room of its own.
    let first = PersonaId::new(host(1), name("alpha/g0"));
    assert_eq!(w.key(&first, false).verdict, Ok(()));
    w.persona("delta/x");
}

#[test]
fn an_introduction_is_of_one_persona_to_one_name_of_one_host() {
    let (realm, key) = (RealmId([1; 32]), secret(8));
    let here = PersonaId::new(host(1), name("alpha/synth"));
    let mut origin = *origin_of(&here.name).unwrap();
    origin.public_key = Some(secret(9).public());
    origin.component = Some(ComponentHash([3; 32]));
    assert!(!origin.introduced_by(&key.public(), &realm, &here));
    let digest = introduction_digest(&realm, &here, &origin);
    origin.signature = Some(key.sign(&digest, &[0; 32]));
    assert!(origin.introduced_by(&key.public(), &realm, &here));

    assert!(!origin.introduced_by(&secret(7).public(), &realm, &here));
    assert!(!origin.introduced_by(&key.public(), &RealmId([2; 32]), &here));
    let there = PersonaId::new(host(2), here.name.clone());
    assert!(!origin.introduced_by(&key.public(), &realm, &there));
    let other = PersonaId::new(host(1), name("alpha/other"));
    assert!(!origin.introduced_by(&key.public(), &realm, &other));
    let changes: [fn(&mut Origin); 4] = [
        |of| of.persona = None,
        |of| of.public_key = None,
        |of| of.component = None,
        |of| of.component = Some(ComponentHash([4; 32])),
    ];
    for change in changes {
        let mut changed = origin.clone();
        change(&mut changed);
        assert!(!changed.introduced_by(&key.public(), &realm, &here));
    }

    // As a verifier in another language would write it.
    let mut data = Vec::new();
    let persona = origin.persona.as_ref().unwrap().as_str().as_bytes();
    for part in [
        &[1; 32][..],
        &host(1).0,
        b"alpha/synth",
        persona,
        &secret(9).public().0,
        &[3; 32],
    ] {
        data.extend((part.len() as u64).to_be_bytes());
        data.extend(part);
    }
    assert_eq!(digest, tagged_hash("agora/introduction", &[&data]));
    assert_ne!(digest, tagged_hash("agora/signer", &[&data]));
}

#[test]
fn an_origin_is_bounded() {
    let seal = |peer: Vec<u8>| {
        let mut origin = origin_of(&name("peer:alpha")).unwrap();
        origin.peer = peer;
        let body = KeyBody {
            origin: Some(origin),
            ..key_body(KeySubject::Persona(name("peer:alpha")), &secret(3))
        };
        let entry = Entry {
            body: Body::Key(body),
            ..genesis_entry(&secret(1), Vec::new())
        };
        entry.seal(&secret(1), &[0; 32]).map(|_| ())
    };
    assert_eq!(seal(vec![1; PEER_ID_BYTES_MAX]), Ok(()));
    assert_eq!(seal(vec![]), Err(Malformed::PeerId(0)));
    let long = PEER_ID_BYTES_MAX + 1;
    assert_eq!(seal(vec![1; long]), Err(Malformed::PeerId(long)));
}

// -- Guests

#[test]
fn a_peer_lends_its_own_guests_what_it_holds_and_nobody_else() {
    let (mut w, alpha, grant) = with_alpha();
    let (guest, ann) = (w.persona("alpha/x"), w.persona("ann"));
    w.persona("peer:delta");
    let other = w.persona("delta/x");
    let lent = w.lend(&guest, "c", Terms::ALL, grant);
    assert_eq!(w.root(&guest, lent, "c", 1).author, guest);
    for to in [&ann, &other, &alpha] {
        let entry = w.grant_entry(to, "c", Terms::ALL, Some(grant));
        assert_eq!(w.put(entry).verdict, Err(Refusal::NoRight), "{to}");
    }
    // What the peer couldn't pass on, its guest can't.
    let entry = w.grant_entry(&ann, "c", Terms::ALL, Some(lent));
    assert_eq!(w.put(entry).verdict, Err(Refusal::NoRight));
    // One budget over all of them.
    assert_eq!(w.state.grant(&grant).unwrap().used, 1);
}

#[test]
fn revoking_a_peers_grant_cuts_what_its_guests_have_of_it() {
    let (mut w, _, grant) = with_alpha();
    let guest = w.persona("alpha/x");
    let passing = w.lend(&guest, "c", Terms::ALL, grant);
    let stays = w.put(lasting(&w, &guest, grant)).id.unwrap().into();
    w.revoke(Revoked::Grant(grant));
    for lent in [passing, stays] {
        assert!(w.state.grant(&lent).is_none());
        let said = w.say(&guest, lent, "c", message(Act::Inform));
        assert_eq!(said, VOID(Refusal::Revoked));
    }
}

#[test]
fn killing_a_peer_silences_its_guests_whatever_they_hold() {
    let (mut w, alpha, grant) = with_alpha();
    let (guest, ann) = (w.persona("alpha/x"), w.persona("ann"));
    let passing = w.lend(&guest, "c", Terms::ALL, grant);
    let stays: GrantId = w.put(lasting(&w, &guest, grant)).id.unwrap().into();
    let own = w.grant(&guest, "c", Terms::ALL);
    let onward = w.lend(&ann, "c", Terms::ALL, own);
    let for_good: GrantId = w.put(lasting(&w, &ann, own)).id.unwrap().into();
    for (by, grant) in [
        (&guest, passing),
        (&guest, stays),
        (&guest, own),
        (&ann, onward),
        (&ann, for_good),
    ] {
        w.root(by, grant, "c", 1);
    }

    assert_eq!(w.revoke(Revoked::Persona(alpha.clone())).verdict, Ok(()));
    assert!(w.state.is_cut_off(&guest) && !w.state.is_cut_off(&ann));
    for (by, grant, cut) in [
        (&guest, passing, true),
        (&guest, stays, false),
        (&guest, own, false),
        (&ann, onward, true),
        (&ann, for_good, false),
    ] {
        assert_eq!(w.state.grant(&grant).is_none(), cut);
        let said = w.say(by, grant, "c", message(Act::Inform));
        assert_eq!(said, VOID(Refusal::Revoked));
    }
    let again = w.grant_entry(&ann, "c", Terms::ALL, Some(own));
    assert_eq!(w.put(again).verdict, Err(Refusal::Revoked));

    // Started again, what was to last counts again, and what was passing does not.
    assert_eq!(w.key(&alpha, true).verdict, Ok(()));
    for (by, grant) in [(&guest, stays), (&guest, own), (&ann, for_good)] {
        w.root(by, grant, "c", 1);
    }
    for (by, grant) in [(&guest, passing), (&ann, onward)] {
        let said = w.say(by, grant, "c", message(Act::Inform));
        assert_eq!(said, VOID(Refusal::Revoked));
    }
}

#[test]
fn a_guest_is_killed_alone() {
    let (mut w, alpha, grant) = with_alpha();
    let (one, two) = (w.persona("alpha/one"), w.persona("alpha/two"));
    let first = w.lend(&one, "c", Terms::ALL, grant);
    let second = w.lend(&two, "c", Terms::ALL, grant);
    w.revoke(Revoked::Persona(one.clone()));
    let said = w.say(&one, first, "c", message(Act::Inform));
    assert_eq!(said, VOID(Refusal::Revoked));
    w.root(&two, second, "c", 1);
    w.root(&alpha, grant, "c", 1);
}

// -- Remote channels

#[test]
fn the_peers_epoch_is_said_on_remote_channels_alone() {
    let (mut w, a, out) = with_bravo();
    let own = w.grant(&a, "c", Terms::ALL);
    for (on, grant, epoch, expected) in [
        (OUT, out, 0, Err(Refusal::Malformed)),
        ("c", own, 5, Err(Refusal::Malformed)),
        (OUT, out, 5, Ok(())),
        ("c", own, 0, Ok(())),
    ] {
        let body = TurnBody {
            channel: channel(on),
            through: Ordinal(0),
            origin: None,
            messages: vec![Message {
                key: 1,
                ..message(Act::Inform)
            }],
            peer_epoch: Epoch(epoch),
        };
        let entry = w.turn_entry(&a, Some(grant), body);
        assert_eq!(w.put(entry).verdict, expected, "{on} {epoch}");
    }
}

#[test]
fn what_is_said_there_is_judged_by_its_terms_and_not_by_what_it_answers() {
    let (mut w, a, _) = with_bravo();
    let narrow = Terms {
        acts: [Act::Inform].into_iter().collect(),
        hops: 4,
        bytes_max: 10,
        count: 3,
        ..Terms::ALL
    };
    let grant = w.grant(&a, OUT, narrow);
    let unknown = |hops| Message {
        parent: Some(MessageId([9; 32])),
        hops,
        ..message(Act::Inform)
    };
    // The channel's own settings allow no hops and no reactions: they are not asked.
    let placed = counted(w.say(&a, grant, OUT, unknown(4)));
    assert_eq!(
        (placed.hops, placed.ordinal, placed.thread),
        (4, Ordinal(1), placed.id)
    );
    assert_eq!(w.say(&a, grant, OUT, unknown(5)), VOID(Refusal::BadHops));
    let large = Message {
        payload: vec![0; 11].into(),
        ..message(Act::Inform)
    };
    assert_eq!(w.say(&a, grant, OUT, large), VOID(Refusal::TooLarge));
    let other = message(Act::Request);
    assert_eq!(w.say(&a, grant, OUT, other), VOID(Refusal::ActNotAllowed));
    // One of its own, again and again, and more often than any breaker lets by.
    let own = Message {
        parent: Some(placed.id),
        hops: 4,
        ..message(Act::Inform)
    };
    for _ in 0..2 {
        counted(w.say(&a, grant, OUT, own.clone()));
    }
    assert_eq!(w.say(&a, grant, OUT, own), VOID(Refusal::CountSpent));
}

#[test]
fn admission_there_gives_the_hops_that_were_wished_within_the_terms() {
    let (mut w, a, _) = with_bravo();
    let grant = w.grant(
        &a,
        OUT,
        Terms {
            hops: 4,
            ..Terms::ALL
        },
    );
    let draft = |hops_wish| Draft {
        act: Act::Inform,
        parent: Some(MessageId([9; 32])),
        hops_wish,
        bytes: 0,
        key: 1,
        owner: None,
        deadline_ms: 0,
        in_turn: false,
    };
    let admit = |wish| w.state.admit(&a, Some(&grant), &channel(OUT), &draft(wish));
    assert_eq!(admit(2), Ok(Admitted { hops: 2 }));
    assert_eq!(admit(u16::MAX), Ok(Admitted { hops: 4 }));
}

#[test]
fn no_thread_of_a_peers_is_owned_or_breaks_here() {
    let (mut w, a, grant) = with_bravo();
    let owned = |owner, deadline_ms| Message {
        owner,
        deadline_ms,
        ..message(Act::Request)
    };
    let said = w.say(&a, grant, OUT, owned(Some(a.clone()), 0));
    assert_eq!(said, VOID(Refusal::Malformed));
    let said = w.say(&a, grant, OUT, owned(None, 50));
    assert_eq!(said, VOID(Refusal::Malformed));
    let mut root = message(Act::Request);
    root.key = w.state.next_key(&a, &channel(OUT));
    let judged = w.speak(&a, Some(grant), OUT, vec![root]);
    counted(judged.messages[0].clone());
    assert_eq!(judged.changes, [], "no breaker opens");
    assert_eq!(w.state.open_threads().count(), 0);
}

#[test]
fn rights_there_are_those_of_any_channel() {
    let (mut w, a, whole) = with_bravo();
    w.revoke(Revoked::Grant(whole));
    let of = |rights| Terms {
        rights,
        ..Terms::ALL
    };
    let answer = Message {
        parent: Some(MessageId([9; 32])),
        ..message(Act::Inform)
    };
    for (rights, root, answers) in [
        (Rights::WRITE | Rights::INITIATE, true, false),
        (Rights::WRITE | Rights::READ, false, true),
        (Rights::READ | Rights::INITIATE, false, false),
    ] {
        let grant = w.grant(&a, OUT, of(rights));
        let said = w.say(&a, grant, OUT, message(Act::Inform));
        assert_eq!(
            matches!(said, MessageVerdict::Counts(_)),
            root,
            "{rights:?}"
        );
        let said = w.say(&a, grant, OUT, answer.clone());
        assert_eq!(
            matches!(said, MessageVerdict::Counts(_)),
            answers,
            "{rights:?}"
        );
    }
    // A grant on another channel of that name is none on this.
    w.channel("release", 3, 256, false);
    let local = w.grant(&a, "release", Terms::ALL);
    let said = w.say(&a, local, OUT, message(Act::Inform));
    assert_eq!(said, VOID(Refusal::UnknownGrant));
    // An operator needs none.
    let uid = w.persona("operator:1000");
    let by_operator = Message { key: 1, ..answer };
    counted(w.say_exactly(&uid, None, OUT, by_operator));
}

#[test]
fn a_turn_there_answers_through_the_peers_ordinals() {
    let (mut w, a, grant) = with_bravo();
    let said =
        |w: &mut World, through| w.answer(&a, grant, OUT, through, vec![message(Act::Inform)]);
    // Far beyond what was said here.
    let first = said(&mut w, 1000);
    let placed = counted(first.messages[0].clone());
    assert_eq!(placed.ordinal, Ordinal(1));
    assert_eq!(w.state.cursor(&a, &channel(OUT)), Ordinal(1000));
    let again = said(&mut w, 1000);
    assert_eq!(
        (again.verdict, again.messages),
        (Err(Refusal::Repeated), vec![MessageVerdict::Repeat(placed)])
    );
    assert_eq!(said(&mut w, 999).verdict, Err(Refusal::BehindCursor));
    assert_eq!(said(&mut w, 1001).verdict, Ok(()));
}

#[test]
fn neither_a_grant_nor_a_fence_here_moves_a_cursor_there() {
    let (mut w, a, grant) = with_bravo();
    for _ in 0..3 {
        w.say(&a, grant, OUT, message(Act::Inform));
    }
    let b = w.persona("b");
    let late = w.grant(&b, OUT, Terms::ALL);
    assert_eq!(w.state.cursor(&b, &channel(OUT)), Ordinal(0));
    assert_eq!(w.answer(&b, late, OUT, 1, vec![]).verdict, Ok(()));
    w.fence();
    assert_eq!(w.state.cursor(&a, &channel(OUT)), Ordinal(0));
    assert_eq!(w.state.cursor(&b, &channel(OUT)), Ordinal(1));
    assert_eq!(w.answer(&a, grant, OUT, 1, vec![]).verdict, Ok(()));
}

#[test]
fn a_turn_may_answer_there_what_was_said_here_and_here_what_was_said_there() {
    let (mut w, a, out) = with_bravo();
    let own = w.grant(&a, "c", Terms::ALL);
    let ann = w.persona("ann");
    let hers = w.grant(&ann, "c", Terms::ALL);
    w.root(&ann, hers, "c", 3);
    let across = |w: &mut World, on: &str, from: &str, grant, through| {
        let body = TurnBody {
            channel: channel(on),
            through: Ordinal(through),
            origin: Some(channel(from)),
            messages: vec![message(Act::Inform)],
            peer_epoch: peer_epoch(&channel(on)),
        };
        w.put(w.turn_entry(&a, Some(grant), body)).verdict
    };
    assert_eq!(across(&mut w, OUT, "c", out, 1), Ok(()));
    assert_eq!(across(&mut w, OUT, "c", out, 9), Err(Refusal::Malformed));
    assert_eq!(across(&mut w, "c", OUT, own, 700), Ok(()));
    assert_eq!(across(&mut w, "c", OUT, own, 699), Err(Refusal::KeyExpired));
}

#[test]
fn what_is_said_there_has_keys_and_ordinals_and_may_be_purged() {
    let (mut w, a, grant) = with_bravo();
    let said = |key| Message {
        key,
        payload: vec![b'S'; 1000].into(),
        ..message(Act::Inform)
    };
    let placed = counted(w.say_exactly(&a, Some(grant), OUT, said(7)));
    let again = w.say_exactly(&a, Some(grant), OUT, said(7));
    assert_eq!(again, MessageVerdict::Repeat(placed.clone()));
    let expired = w.say_exactly(&a, Some(grant), OUT, said(6));
    assert_eq!(expired, VOID(Refusal::KeyExpired));
    assert_eq!(w.state.message_at(&channel(OUT), Ordinal(1)), Some(placed));

    let stored = w.log[placed_at(&w, OUT)].clone();
    let sealed = Sealed::open(stored).unwrap();
    let back = Sealed::from_stub(sealed.leaf(), sealed.stub().unwrap()).unwrap();
    assert!(matches!(&back.entry().body, Body::Turn(turn) if turn.peer_epoch == Epoch(5)));
    let prune = NoteBody::Prune {
        channel: channel(OUT),
        through: Ordinal(1),
    };
    assert_eq!(w.put(w.entry(Body::Note(prune))).verdict, Ok(()));
    assert_eq!(w.state.channel(&channel(OUT)).unwrap().pruned, Ordinal(1));
}

/// The place in the log of the first message of a channel.
fn placed_at(w: &World, on: &str) -> usize {
    let first = w.state.message_at(&channel(on), Ordinal(1)).unwrap();
    first.seq as usize - 1
}
