//! A log from before there were peers: its bytes, and what is said of them, are what they were.

use agora_realm::*;

use crate::support::*;

/// One of each kind of entry, with all fields set that there were.
fn log() -> (World, String) {
    let mut w = World::new();
    w.channel("d", 5, 2, true);
    w.join(2);
    let (ann, bob) = (w.persona("ann"), w.persona("bob"));
    let uid = w.persona("operator:1000");
    let (a, b) = (
        w.grant(&ann, "c", Terms::ALL),
        w.grant(&bob, "c", Terms::ALL),
    );
    let lent = w.lend(&bob, "c", Terms::ALL, a);
    let said = counted(w.say(&ann, a, "c", message(Act::Inform)));
    let root = Message {
        hops: 3,
        owner: Some(bob.clone()),
        deadline_ms: 50,
        content_type: "text/markdown".into(),
        payload: vec![7; 300].into(),
        ..message(Act::Request)
    };
    let root = counted(w.say(&ann, a, "c", root));
    let mut told = Vec::new();
    told.push(w.answer(
        &bob,
        b,
        "c",
        2,
        vec![reply(&root, Act::Decide), reply(&said, Act::Inform)],
    ));
    told.push(w.answer(&bob, lent, "c", 1, vec![]));
    let by_operator = Message {
        key: 1,
        hops: 5,
        ..message(Act::Request)
    };
    told.push(w.speak(&uid, None, "d", vec![by_operator]));
    let prune = NoteBody::Prune {
        channel: channel("c"),
        through: Ordinal(1),
    };
    told.push(w.put(w.entry(Body::Note(prune))));
    let incident = NoteBody::Incident {
        persona: ann.name.clone(),
        reason: "memory".into(),
        count: 2,
    };
    told.push(w.put(w.entry(Body::Note(incident))));
    told.push(w.revoke(Revoked::Persona(bob.clone())));
    told.push(w.key(&bob, true));
    told.push(w.revoke(Revoked::Grant(a)));
    told.push(w.fence());
    told.push(w.speak(&ann, Some(a), "c", vec![message(Act::Inform)]));
    (w, format!("{told:?}"))
}

#[test]
fn an_old_log_has_the_bytes_and_the_verdicts_it_had() {
    let (w, told) = log();
    let bytes = w.log.concat();
    let hash = |data: &[u8]| HostId(tagged_hash("test/before", &[data])).to_string();
    assert_eq!((w.log.len(), bytes.len()), (22, 7528));
    assert_eq!(
        hash(&bytes),
        "9f3fceb9e4ec487c5cbf9b827e043e10971b18d6e409f4a354856e619f31859b"
    );
    assert_eq!(
        hash(told.as_bytes()),
        "f84bff9ad611c35f241238c6522c185794bcfaf2afac13e6f6ba251e02185e79"
    );
    // And they are read as what they are.
    let mut state = State::new();
    for (at, stored) in w.log.iter().enumerate() {
        let sealed = Sealed::open(stored.clone()).unwrap();
        judge(&mut state, at as u64 + 1, Ok(&sealed));
    }
    assert_eq!(state.digest(), w.state.digest());
}
