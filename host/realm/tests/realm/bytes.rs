//! Entries as bytes: what is written reads back, and nothing else is taken.

use agora_realm::limits::*;
use agora_realm::*;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::support::*;
use crate::terms::terms;

fn id() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>()
}

fn name() -> impl Strategy<Value = ChannelName> {
    "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|text| ChannelName::new(&text).unwrap())
}

fn channel_name() -> impl Strategy<Value = ChannelName> {
    "[a-z0-9][a-z0-9._-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20}){0,3}"
        .prop_map(|text| ChannelName::new(&text).unwrap())
}

fn origin() -> impl Strategy<Value = Origin> {
    let ids = (
        option::of(id()),
        option::of(id()),
        option::of(id()),
        option::of(id()),
    );
    let signature = option::of((id(), id()));
    let peer = vec(any::<u8>(), 1..=PEER_ID_BYTES_MAX);
    (peer, ids, option::of(persona_name()), signature).prop_map(
        |(peer, (host, realm, key, component), persona, signature)| Origin {
            peer,
            host: host.map(HostId),
            realm: realm.map(RealmId),
            persona,
            public_key: key.map(PublicKey),
            component: component.map(ComponentHash),
            signature: signature.map(|halves| {
                let (first, second) = halves;
                [first, second].concat().try_into().unwrap()
            }),
        },
    )
}

fn persona_name() -> impl Strategy<Value = PersonaName> {
    prop_oneof![
        "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|text| PersonaName::peer(&text).unwrap()),
        "[a-z0-9][a-z0-9._-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20}){1,3}"
            .prop_map(|text| PersonaName::new(&text).unwrap()),
        "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|text| PersonaName::new(&text).unwrap()),
        any::<u32>().prop_map(PersonaName::operator),
    ]
}

fn persona() -> impl Strategy<Value = PersonaId> {
    (id(), persona_name()).prop_map(|(host, name)| PersonaId::new(HostId(host), name))
}

fn said() -> impl Strategy<Value = Message> {
    let ids = (0..6usize, option::of(id()), option::of(persona()));
    let numbers = (any::<u16>(), any::<u64>(), any::<i64>(), any::<i64>());
    (ids, numbers, ".{0,20}", vec(any::<u8>(), 0..60)).prop_map(
        |((act, parent, owner), (hops, key, time_ms, deadline_ms), content_type, payload)| {
            Message {
                act: Act::EVERY[act],
                parent: parent.map(MessageId),
                hops,
                key,
                content_type,
                payload: payload.into(),
                time_ms,
                owner,
                deadline_ms,
            }
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let genesis = (any::<u16>(), id(), vec(id().prop_map(HostId), 0..3)).prop_map(
        |(format, nonce, fencers)| Genesis {
            format,
            nonce,
            fencers,
        },
    );
    let subject = prop_oneof![
        id().prop_map(|host| KeySubject::Host(HostId(host))),
        persona_name().prop_map(KeySubject::Persona),
    ];
    let key = (
        subject,
        id(),
        option::of(id()),
        any::<bool>(),
        option::of(genesis),
        option::of(origin()),
    )
        .prop_map(|(subject, key, component, started, genesis, origin)| {
            let component = component.map(ComponentHash);
            Body::Key(KeyBody {
                subject,
                public_key: PublicKey(key),
                component,
                started,
                genesis,
                origin: origin.map(Box::new),
            })
        });
    let channel = (channel_name(), any::<u16>(), any::<u32>(), any::<bool>()).prop_map(
        |(name, hops, reactions, carry)| {
            Body::Channel(ChannelBody {
                name,
                hops,
                reactions,
                carry,
            })
        },
    );
    let object = prop_oneof![
        channel_name().prop_map(Object::Channel),
        Just(Object::Timer),
        name().prop_map(|name| Object::Service(ServiceName::new(name.as_str()).unwrap())),
        name().prop_map(|name| {
            let domain = DomainName::new(name.as_str());
            Object::Signer(domain.unwrap_or_else(|_| DomainName::new("release").unwrap()))
        }),
    ];
    let grant = (persona(), object, terms(), option::of(id()), any::<bool>()).prop_map(
        |(persona, object, terms, parent, lasting)| {
            Body::Grant(GrantBody {
                persona,
                object,
                terms,
                parent: parent.map(GrantId),
                lasting,
            })
        },
    );
    let what = prop_oneof![
        id().prop_map(|grant| Revoked::Grant(GrantId(grant))),
        persona().prop_map(Revoked::Persona),
        id().prop_map(|host| Revoked::Host(HostId(host))),
        (any::<u64>(), any::<bool>()).prop_map(|(ends, hold)| Revoked::Fence {
            ends: Epoch(ends),
            hold
        }),
    ];
    let revoke = (what, ".{0,20}", ".{0,9}")
        .prop_map(|(what, reason, by)| Body::Revoke(RevokeBody { what, reason, by }));
    let places = (channel_name(), any::<u64>(), option::of(channel_name()));
    let turn = (places, any::<u64>(), vec(said(), 0..4)).prop_map(
        |((channel, through, origin), peer_epoch, messages)| {
            Body::Turn(TurnBody {
                channel,
                through: Ordinal(through),
                origin,
                messages,
                peer_epoch: Epoch(peer_epoch),
            })
        },
    );
    let lapse = (channel_name(), id()).prop_map(|(channel, thread)| {
        Body::Lapse(LapseBody {
            channel,
            thread: MessageId(thread),
        })
    });
    let note = prop_oneof![
        (any::<u64>(), id()).prop_map(|(size, root)| NoteBody::Tree { size, root }),
        (channel_name(), any::<u64>()).prop_map(|(channel, through)| NoteBody::Prune {
            channel,
            through: Ordinal(through)
        }),
        (any::<u64>(), any::<u64>(), id(), ".{0,20}").prop_map(
            |(first_seq, last_seq, leaf, reason)| NoteBody::Gap {
                first_seq,
                last_seq,
                leaf,
                reason
            }
        ),
        (persona_name(), ".{0,20}", any::<u32>()).prop_map(|(persona, reason, count)| {
            NoteBody::Incident {
                persona,
                reason,
                count,
            }
        }),
        any::<u64>().prop_map(|judged| NoteBody::Marker { judged }),
        (
            name(),
            vec((any::<u64>(), id(), vec(any::<u8>(), 0..40)), 0..4)
        )
            .prop_map(|(channel, stubs)| NoteBody::Stubs {
                channel,
                stubs: stubs
                    .into_iter()
                    .map(|(seq, leaf, stub)| StubBody {
                        seq,
                        leaf,
                        stub: stub.into()
                    })
                    .collect(),
            }),
    ]
    .prop_map(Body::Note);
    prop_oneof![key, channel, grant, revoke, turn, lapse, note]
}

fn entry() -> impl Strategy<Value = Entry> {
    let ids = (
        option::of(id()),
        id(),
        option::of(persona_name()),
        option::of(id()),
    );
    (ids, any::<u64>(), any::<i64>(), body()).prop_map(
        |((realm, host, author, grant), epoch, time_ms, body)| Entry {
            realm: realm.map(RealmId),
            host: HostId(host),
            author,
            signer: secret(1).public(),
            epoch: Epoch(epoch),
            time_ms,
            grant: grant.map(GrantId),
            body,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_entry_reads_back_as_it_was_written((entry, aux) in (entry(), id())) {
        let sealed = entry.clone().seal(&secret(1), &aux).unwrap();
        let opened = Sealed::open(sealed.stored().clone()).unwrap();
        prop_assert_eq!(opened.entry(), &entry);
        prop_assert_eq!(&opened, &sealed);
        // Wherever in memory the bytes happen to stand.
        let shifted = Bytes::from([&[0u8; 3][..], sealed.stored()].concat()).slice(3..);
        prop_assert_eq!(Sealed::open(shifted).unwrap(), opened);
    }

    #[test]
    fn an_altered_bit_is_never_taken((entry, at) in (entry(), any::<prop::sample::Index>())) {
        let sealed = entry.seal(&secret(1), &[0; 32]).unwrap();
        let mut altered = sealed.stored().to_vec();
        let bit = at.index(altered.len() * 8);
        altered[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Sealed::open(altered.into()).is_err());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        (entry, changes, cut, noise) in (
            entry(),
            vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            any::<prop::sample::Index>(),
            vec(any::<u8>(), 0..400),
        )
    ) {
        let sealed = entry.seal(&secret(1), &[0; 32]).unwrap();
        let mut altered = sealed.stored().to_vec();
        for (at, to) in changes {
            let at = 64 + at.index(altered.len() - 64);
            altered[at] = to;
        }
        if let Ok(read) = Sealed::reread(altered.clone().into()) {
            // What is taken means one thing, which can be said again.
            let said = Entry { signer: secret(1).public(), ..read.entry().clone() };
            let again = said.clone().seal(&secret(1), &[0; 32]).unwrap();
            prop_assert_eq!(again.entry(), &said);
        }
        altered.truncate(cut.index(altered.len()));
        prop_assert!(Sealed::open(altered.into()).is_err());
        prop_assert!(Sealed::open(noise.into()).is_err());
    }
}

#[test]
fn every_bit_of_a_stored_entry_matters() {
    let sealed = genesis_entry(&secret(1), vec![host(2)])
        .seal(&secret(1), &[0; 32])
        .unwrap();
    for bit in 0..sealed.stored().len() * 8 {
        let mut altered = sealed.stored().to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(Sealed::open(altered.into()).is_err(), "bit {bit}");
    }
}

fn turn_of(messages: Vec<Message>) -> Entry {
    let body = Body::Turn(TurnBody {
        channel: channel("c"),
        through: Ordinal(0),
        origin: None,
        messages,
        peer_epoch: Epoch(0),
    });
    Entry {
        realm: Some(RealmId([1; 32])),
        body,
        ..genesis_entry(&secret(1), Vec::new())
    }
}

#[test]
fn a_payload_is_a_slice_of_the_stored_bytes() {
    let payload = Bytes::from(vec![7; 1000]);
    let sealed = turn_of(vec![Message {
        payload,
        ..message(Act::Inform)
    }])
    .seal(&secret(1), &[0; 32])
    .unwrap();
    for offset in 0..8 {
        let stored = Bytes::from([&vec![0; offset][..], sealed.stored()].concat()).slice(offset..);
        let opened = Sealed::open(stored.clone()).unwrap();
        let Body::Turn(turn) = &opened.entry().body else {
            unreachable!()
        };
        let payload = turn.messages[0].payload.as_ptr() as usize;
        let start = stored.as_ptr() as usize;
        assert!(
            (start..start + stored.len()).contains(&payload),
            "copied at offset {offset}"
        );
        assert_eq!(turn.messages[0].payload, vec![7; 1000]);
    }
}

#[test]
fn what_passes_a_bound_is_not_signed() {
    let seal = |entry: Entry| entry.seal(&secret(1), &[0; 32]).err();
    let large = |bytes| Message {
        payload: vec![0; bytes].into(),
        ..message(Act::Inform)
    };
    assert!(seal(turn_of(vec![large(PAYLOAD_BYTES_MAX); 2])).is_none());
    assert!(matches!(
        seal(turn_of(vec![large(PAYLOAD_BYTES_MAX); 3])),
        Some(Malformed::TooLarge { .. })
    ));
    assert!(seal(turn_of(vec![message(Act::Inform); TURN_MESSAGES_MAX])).is_none());
    let many = turn_of(vec![message(Act::Inform); TURN_MESSAGES_MAX + 1]);
    assert_eq!(
        seal(many),
        Some(Malformed::TooManyMessages(TURN_MESSAGES_MAX + 1))
    );
    let wordy = Message {
        content_type: "x".repeat(CONTENT_TYPE_BYTES_MAX + 1),
        ..message(Act::Inform)
    };
    assert!(matches!(
        seal(turn_of(vec![wordy])),
        Some(Malformed::TextTooLong { .. })
    ));
    assert_eq!(
        turn_of(vec![]).seal(&secret(2), &[0; 32]).err(),
        Some(Malformed::OtherSigner)
    );
    let junk = Sealed::open(vec![0; ENTRY_BYTES_MAX + 1].into());
    assert_eq!(junk.err(), Some(Junk::TooLarge(ENTRY_BYTES_MAX + 1)));
}

#[test]
fn a_signature_by_another_key_is_junk() {
    let sealed = turn_of(vec![]).seal(&secret(1), &[0; 32]).unwrap();
    let forged = secret(2).sign(&sealed.id().0, &[0; 32]);
    let stored = Bytes::from([&forged[..], &sealed.stored()[64..]].concat());
    assert_eq!(Sealed::open(stored).err(), Some(Junk::BadSignature));
}

#[test]
fn a_stub_holds_no_payload_is_no_entry_and_an_entry_is_no_stub() {
    let mut world = World::new();
    let ann = world.persona("ann");
    let grant = world.grant(&ann, "c", Terms::ALL);
    let secret = Bytes::from(vec![b'S'; 1000]);
    let said = Message {
        hops: 3,
        key: 1,
        content_type: "text/secret".into(),
        payload: secret.clone(),
        ..message(Act::Inform)
    };
    world.speak(&ann, Some(grant), "c", vec![said]);
    let sealed = Sealed::open(world.log.last().unwrap().clone()).unwrap();
    assert_eq!(sealed.payload_bytes(0), 1000);
    let stub = sealed.stub().unwrap();
    assert!(
        !stub
            .windows(6)
            .any(|part| part == b"SSSSSS" || part == b"secret")
    );
    assert!(stub.len() < 600, "{}", stub.len());
    let back = Sealed::from_stub(sealed.leaf(), stub.clone()).unwrap();
    assert_eq!((back.id(), back.payload_bytes(0)), (sealed.id(), 1000));
    assert!(Sealed::open(stub.clone()).is_err() && Sealed::reread(stub.clone()).is_err());
    assert!(Sealed::from_stub(sealed.leaf(), sealed.stored().clone()).is_err());
    // Another id than was signed, and anything cut off, is no stub.
    let mut other = stub.to_vec();
    other[4] ^= 1;
    assert_eq!(
        Sealed::from_stub(sealed.leaf(), other.into()).unwrap_err(),
        Junk::BadSignature
    );
    for cut in 0..stub.len() {
        assert!(Sealed::from_stub(sealed.leaf(), stub.slice(..cut)).is_err());
    }
    // What is no turn has none.
    assert!(Sealed::open(world.log[0].clone()).unwrap().stub().is_none());
}

proptest! {
    #[test]
    fn any_bytes_as_a_stub_end_in_an_error(bytes in vec(any::<u8>(), 0..400)) {
        let mut framed = 1_u32.to_le_bytes().to_vec();
        framed.extend(&bytes);
        prop_assert!(Sealed::from_stub([0; 32], bytes.into()).is_err());
        prop_assert!(Sealed::from_stub([0; 32], framed.into()).is_err());
    }
}
