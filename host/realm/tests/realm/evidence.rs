//! Proofs of one entry: what they show, and that nothing can be taken out of them unnoticed that they rest on.

use agora_realm::checkpoint::{Checkpoint, Signed};
use agora_realm::evidence::{Gathering, NoProof, Proof, Refuted, Wanted};
use agora_realm::merkle::{self, Frontier};
use agora_realm::*;
use bytes::Bytes;
use proptest::prelude::*;

use crate::support::*;

fn checkpoint(log: &[Bytes], size: usize, key: &SigningKey) -> Signed {
    let mut tree = Frontier::new();
    log[..size].iter().for_each(|s| tree.push(merkle::leaf(s)));
    let realm = Sealed::open(log[0].clone()).unwrap().id().into();
    let (size, root) = (tree.size(), tree.root());
    Checkpoint { realm, size, root }.sign(key, &[0; 32])
}

fn prove(log: &[Bytes], wanted: Wanted, signed: Signed) -> Result<Proof, NoProof> {
    let mut gathering = Gathering::new(wanted);
    let (mut audit, mut verifier) = (Audit::new(), Verifier::new());
    for (seq, stored) in (1..).zip(log) {
        let stored = Stored::open(seq, stored.clone(), &mut verifier);
        let judged = audit.take(&stored);
        gathering.take(&stored, &judged);
    }
    gathering.prove(signed)
}

/// A message of a borrower, in the third epoch, with much that has nothing to do with it around; and its place.
fn world() -> (World, Placed, u64) {
    let mut world = World::new();
    world.join(2);
    let (ann, bob) = (world.persona("ann"), world.persona("bob"));
    world.persona_of(2, "far");
    let grant = world.grant(&ann, "c", Terms::ALL);
    for _ in 0..3 {
        world.root(&ann, grant, "c", 3);
    }
    world.fence();
    world.revoke(Revoked::Persona(bob.clone()));
    world.key(&bob, true);
    world.fence();
    let lent = world.lend(&bob, "c", Terms::ALL, grant);
    let said = world.root(&bob, lent, "c", 2);
    let place = world.log.len() as u64;
    world.root(&ann, grant, "c", 3);
    world.fence();
    world.revoke(Revoked::Grant(grant));
    (world, said, place)
}

#[test]
fn a_proof_shows_who_by_what_authority_in_which_epoch() {
    let (world, said, place) = world();
    let size = world.log.len();
    let signed = checkpoint(&world.log, size, &secret(2));
    let proof = prove(&world.log, Wanted::Message(said.id), signed).unwrap();
    assert!(proof.exhibits.len() < size, "not all of the log is needed");
    let shown = proof.check(world.realm).unwrap();
    assert_eq!(
        (shown.verdict, shown.seq, shown.message),
        (Ok(()), place, Some(0))
    );
    assert_eq!(shown.sealed.message_id(0), said.id);
    assert_eq!(shown.hosts, [(host(2), secret(2).public())]);
    let names: Vec<_> = shown.grants.iter().map(|(.., p)| p.name.as_str()).collect();
    assert_eq!(names, ["bob", "ann"]);
    assert!(shown.began.is_some() && shown.ended.is_some() && shown.keyed.is_some());
    // Any other entry too.
    for seq in 1..=size as u64 {
        let signed = checkpoint(&world.log, size, &secret(1));
        let proof = prove(&world.log, Wanted::Place(seq), signed).unwrap();
        let shown = proof.check(world.realm).unwrap();
        assert_eq!((shown.verdict, shown.seq), (Ok(()), seq));
        assert_eq!(shown.sealed.stored(), &world.log[seq as usize - 1]);
    }
}

#[test]
fn there_is_no_proof_of_what_is_not_there() {
    let (world, said, place) = world();
    let size = world.log.len();
    let of = |wanted, size| prove(&world.log, wanted, checkpoint(&world.log, size, &secret(1)));
    assert_eq!(of(Wanted::Place(999), size), Err(NoProof::NoSubject));
    assert_eq!(
        of(Wanted::Message(MessageId([1; 32])), size),
        Err(NoProof::NoSubject)
    );
    let short = place as usize - 1;
    let refused = of(Wanted::Message(said.id), short).unwrap_err();
    assert!(matches!(refused, NoProof::NotCovered { .. }));
    let mut forked = World::new();
    forked.persona("eve");
    let other = checkpoint(&forked.log, 3, &secret(1));
    assert_eq!(
        prove(&world.log, Wanted::Place(1), other),
        Err(NoProof::OtherTree)
    );
    let stranger = checkpoint(&world.log, size, &secret(9));
    let refused = prove(&world.log, Wanted::Place(1), stranger).unwrap_err();
    assert_eq!(refused, NoProof::WouldNotHold(Refuted::Unsigned));
}

#[test]
fn what_is_void_is_shown_as_void_where_the_proof_has_the_reason() {
    let (mut world, ..) = world();
    let ann = PersonaId::new(host(1), PersonaName::new("ann").unwrap());
    let grant = world.grant(&ann, "c", Terms::ALL);
    let body = TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages: vec![Message {
            key: 50,
            ..message(Act::Inform)
        }],
        peer_epoch: Epoch(0),
    };
    let late = world.turn_entry(&ann, Some(grant), body);
    world.revoke(Revoked::Persona(ann));
    assert_eq!(world.put(late).verdict, Err(Refusal::Revoked));
    let size = world.log.len();
    let signed = checkpoint(&world.log, size, &secret(1));
    let proof = prove(&world.log, Wanted::Place(size as u64), signed).unwrap();
    assert_eq!(
        proof.check(world.realm).unwrap().verdict,
        Err(Refusal::Revoked)
    );
}

#[test]
fn nothing_that_a_proof_rests_on_can_be_left_out() {
    let (world, said, place) = world();
    let signed = checkpoint(&world.log, world.log.len(), &secret(1));
    let proof = prove(&world.log, Wanted::Message(said.id), signed).unwrap();
    let whole = proof.check(world.realm).unwrap();
    for at in 0..proof.exhibits.len() {
        let mut less = proof.clone();
        let left_out = less.exhibits.remove(at);
        match less.check(world.realm) {
            Err(_) => {}
            Ok(shown) if shown.verdict.is_err() => {}
            // The fence behind it bears on nothing but what is said of when its epoch ended.
            Ok(shown) => {
                assert!(left_out.seq > place, "{}", left_out.seq);
                assert!(whole.ended.is_some() && shown.ended.is_none());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_changed_proof_is_refuted(at: usize, bit: usize, kind in 0..5) {
        let (world, said, _) = world();
        let signed = checkpoint(&world.log, world.log.len(), &secret(1));
        let mut proof = prove(&world.log, Wanted::Message(said.id), signed).unwrap();
        let count = proof.exhibits.len();
        let exhibit = &mut proof.exhibits[at % count];
        match kind {
            0 => {
                let mut stored = exhibit.stored.to_vec();
                let place = bit % (stored.len() * 8);
                stored[place / 8] ^= 1 << (place % 8);
                exhibit.stored = stored.into();
            }
            1 => {
                let hashes = exhibit.path.len();
                exhibit.path[at % hashes][bit % 32] ^= 1;
            }
            2 => exhibit.seq += 1,
            3 => {
                let other = (at + 1 + bit % (count - 1)) % count;
                let (one, two) = (exhibit.stored.clone(), proof.exhibits[other].stored.clone());
                proof.exhibits[at % count].stored = two;
                proof.exhibits[other].stored = one;
            }
            _ => {
                let other = Checkpoint { root: [bit as u8; 32], ..*proof.checkpoint.checkpoint() };
                proof.checkpoint = other.sign(&secret(1), &[0; 32]);
            }
        }
        prop_assert!(proof.check(world.realm).is_err());
    }
}

/// A guest speaks under a lasting grant of its peer's, which was killed and started meanwhile, and somebody speaks to another realm.
fn peers() -> (World, MessageId, MessageId) {
    let mut world = World::new();
    world.channel("bravo/release", 0, 0, false);
    let (alpha, ann) = (world.persona("peer:alpha"), world.persona("ann"));
    let terms = Terms {
        rights: Rights::READ | Rights::WRITE | Rights::INITIATE,
        ..Terms::ALL
    };
    let grant = world.grant(&alpha, "c", terms);
    let guest = world.persona("alpha/x");
    let mut lent = world.grant_entry(&guest, "c", Terms::ALL, Some(grant));
    if let Body::Grant(body) = &mut lent.body {
        body.lasting = true;
    }
    let lent = world.put(lent).id.unwrap().into();
    world.root(&guest, lent, "c", 1);
    world.revoke(Revoked::Persona(alpha.clone()));
    assert_eq!(world.key(&alpha, true).verdict, Ok(()));
    world.fence();
    let by_guest = world.root(&guest, lent, "c", 1);
    let out = world.grant(&ann, "bravo/release", Terms::ALL);
    let told = Message {
        parent: Some(MessageId([7; 32])),
        hops: 9,
        ..message(Act::Agree)
    };
    let abroad = counted(world.say(&ann, out, "bravo/release", told));
    (world, by_guest.id, abroad.id)
}

#[test]
fn what_guests_say_and_what_is_said_to_peers_is_proved_like_all_else() {
    let (world, by_guest, abroad) = peers();
    let size = world.log.len();
    for wanted in [by_guest, abroad] {
        let signed = checkpoint(&world.log, size, &secret(1));
        let proof = prove(&world.log, Wanted::Message(wanted), signed).unwrap();
        assert_eq!(proof.check(world.realm).unwrap().verdict, Ok(()));
    }
    for seq in 1..=size as u64 {
        let signed = checkpoint(&world.log, size, &secret(1));
        let proof = prove(&world.log, Wanted::Place(seq), signed).unwrap();
        assert_eq!(proof.check(world.realm).unwrap().verdict, Ok(()), "{seq}");
    }
}

#[test]
fn a_guest_of_a_killed_peer_is_shown_as_void() {
    let (mut world, ..) = peers();
    let alpha = PersonaId::new(host(1), PersonaName::peer("alpha").unwrap());
    let guest = PersonaId::new(host(1), PersonaName::guest("alpha", "x").unwrap());
    let own = world.grant(&guest, "c", Terms::ALL);
    world.revoke(Revoked::Persona(alpha));
    let said = world.say(&guest, own, "c", message(Act::Inform));
    assert_eq!(said, MessageVerdict::Void(Refusal::Revoked));
    let size = world.log.len();
    let signed = checkpoint(&world.log, size, &secret(1));
    let proof = prove(&world.log, Wanted::Place(size as u64), signed).unwrap();
    assert_eq!(
        proof.check(world.realm).unwrap().verdict,
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_turn_that_says_no_epoch_of_the_peers_is_shown_as_void() {
    let (mut world, ..) = peers();
    let ann = PersonaId::new(host(1), PersonaName::new("ann").unwrap());
    let out = world.grant(&ann, "bravo/release", Terms::ALL);
    let of = |epoch, owner: Option<PersonaId>| TurnBody {
        channel: channel("bravo/release"),
        through: Ordinal(0),
        origin: None,
        messages: vec![Message {
            key: 50,
            owner,
            ..message(Act::Request)
        }],
        peer_epoch: Epoch(epoch),
    };
    for body in [of(0, None), of(5, Some(ann.clone()))] {
        let judged = world.put(world.turn_entry(&ann, Some(out), body));
        assert_eq!(judged.messages, [MessageVerdict::Void(Refusal::Malformed)]);
        let size = world.log.len();
        let signed = checkpoint(&world.log, size, &secret(1));
        let proof = prove(&world.log, Wanted::Place(size as u64), signed).unwrap();
        assert_eq!(
            proof.check(world.realm).unwrap().verdict,
            Err(Refusal::Malformed)
        );
    }
}
