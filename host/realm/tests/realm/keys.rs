//! Keys that change: who may change which, and what each of them still signs.

use agora_realm::*;

use crate::support::*;

fn host_key(n: u8, key: u8) -> Body {
    Body::Key(key_body(KeySubject::Host(host(n)), &secret(key)))
}

#[test]
fn a_host_changes_its_own_key_and_the_last_one_signs_no_more() {
    let mut w = World::new();
    w.join(2);
    w.know(secret(7));
    w.know(secret(8));
    let other = w.entry_of(2, host_key(1, 7));
    assert_eq!(w.put(other).verdict, Err(Refusal::NotAuthorised));
    assert_eq!(w.state.host(&host(1)).unwrap().keys, 1);
    let before = w.seal(w.entry(Body::Channel(ChannelBody {
        name: ChannelName::new("early").unwrap(),
        hops: 1,
        reactions: 1,
        carry: false,
    })));
    let judged = w.put(w.entry(host_key(1, 7)));
    assert_eq!(
        judged.changes,
        [Change::HostKeyed {
            host: host(1),
            key: secret(7).public(),
            joined: false,
        }]
    );
    let known = w.state.host(&host(1)).unwrap().clone();
    assert_eq!((known.key, known.keys), (secret(7).public(), 2));
    // Signed before, and come behind: void, and to be signed anew.
    assert_eq!(w.put_sealed(&before).verdict, Err(Refusal::WrongKey));
    let mut anew = before.entry().clone();
    anew.signer = secret(7).public();
    assert_eq!(w.put(anew).verdict, Ok(()));
    // The first key names the host, and does nothing else any more.
    let back = w.entry(host_key(1, 8));
    assert_eq!(w.put(back.clone()).verdict, Err(Refusal::WrongKey));
    let mut next = back;
    next.signer = secret(7).public();
    assert_eq!(w.put(next).verdict, Ok(()));
    assert_eq!(w.state.host(&host(1)).unwrap().keys, 3);
}

#[test]
fn a_copy_of_an_earlier_key_does_not_bring_it_back() {
    let mut w = World::new();
    w.know(secret(7));
    let first = w.seal(w.entry(host_key(1, 7)));
    assert_eq!(w.put_sealed(&first).verdict, Ok(()));
    assert_eq!(w.put_sealed(&first).verdict, Err(Refusal::WrongKey));
    let known = w.state.host(&host(1)).unwrap();
    assert_eq!((known.key, known.keys), (secret(7).public(), 2));
}

#[test]
fn a_signer_is_the_hosts_to_grant_and_nobodys_to_lend() {
    let mut w = World::new();
    let (ann, bob) = (w.persona("ann"), w.persona("bob"));
    let grant = |to: &PersonaId, parent| {
        Body::Grant(GrantBody {
            persona: to.clone(),
            object: Object::Signer(DomainName::new("release").unwrap()),
            terms: Terms::ALL,
            parent,
            lasting: false,
        })
    };
    let judged = w.put(w.entry(grant(&ann, None)));
    assert_eq!(judged.verdict, Ok(()));
    let own = GrantId::from(judged.id.unwrap());
    for to in [&bob, &ann] {
        let lent = w.put(w.entry(grant(to, Some(own))));
        assert_eq!(lent.verdict, Err(Refusal::NoRight));
    }
    assert_eq!(w.state.grants_of(&bob).count(), 0);
    assert_eq!(w.put(w.entry(grant(&bob, None))).verdict, Ok(()));
}
