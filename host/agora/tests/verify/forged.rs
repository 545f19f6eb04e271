//! Entries that nobody may write, put into the log of running hosts by somebody who can: void or junk, counted, never delivered; and found
//! by an audit.

use agora_guest::Draft;
use agora_log::Class;
use agora_realm::{
    Audit, Body, Entry, Epoch, GrantId, Message, MessageVerdict, RealmId, Refusal, Sealed,
    SigningKey, Stored, Verifier, tagged_hash,
};
use bytes::Bytes;

use super::written::{Running, read_all, running, within};

/// The order of the curve, less a number.
fn negated(s: &[u8]) -> Vec<u8> {
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let mut borrow = 0;
    let mut out = vec![0; 32];
    for at in (0..32).rev() {
        let digit = i32::from(u8::from_str_radix(&order[2 * at..2 * at + 2], 16).unwrap());
        let left = digit - i32::from(s[at]) - borrow;
        borrow = i32::from(left < 0);
        out[at] = (left + 256 * borrow) as u8;
    }
    out
}

/// What a forger makes of a message that ann really said, with ann's own key where the forgery is a host's.
fn forgeries(
    said: &Sealed,
    ann: &SigningKey,
    other: &SigningKey,
) -> Vec<(&'static str, Refusal, Bytes)> {
    let entry = said.entry().clone();
    let with = |change: &dyn Fn(&mut Entry, &mut Message)| {
        let mut entry = entry.clone();
        let Body::Turn(turn) = &mut entry.body else {
            panic!("ann said something");
        };
        let mut message = turn.messages.remove(0);
        message.key += 1000;
        message.payload = Bytes::from_static(b"FORGED");
        turn.messages = Vec::new();
        change(&mut entry, &mut message);
        if let Body::Turn(turn) = &mut entry.body {
            turn.messages.push(message);
        }
        entry
    };
    let sealed = |key: &SigningKey, change: &dyn Fn(&mut Entry, &mut Message)| {
        let mut entry = with(change);
        entry.signer = key.public();
        entry.seal(key, &[0; 32]).unwrap().stored().clone()
    };
    let signed_as_something_else = {
        let sealed = sealed(ann, &|_, _| {});
        let digest = tagged_hash("agora/checkpoint", &[&sealed[64..]]);
        [&ann.sign(&digest, &[0; 32])[..], &sealed[64..]].concat()
    };
    let malleated = {
        let stored = said.stored();
        [&stored[..32], &negated(&stored[32..64]), &stored[64..]].concat()
    };
    let altered = {
        let mut stored = sealed(ann, &|_, _| {}).to_vec();
        let at = stored
            .windows(6)
            .position(|part| part == b"FORGED")
            .unwrap();
        stored[at] ^= 1;
        stored
    };
    vec![
        (
            "another's key",
            Refusal::WrongKey,
            sealed(other, &|_, _| {}),
        ),
        (
            "another domain",
            Refusal::BadSignature,
            signed_as_something_else.into(),
        ),
        (
            "a malleated signature",
            Refusal::BadSignature,
            malleated.into(),
        ),
        ("an altered entry", Refusal::BadSignature, altered.into()),
        (
            "an epoch to come",
            Refusal::StaleEpoch,
            sealed(ann, &|e, _| e.epoch = Epoch(9)),
        ),
        (
            "no grant",
            Refusal::UnknownGrant,
            sealed(ann, &|e, _| e.grant = None),
        ),
        (
            "another's grant",
            Refusal::UnknownGrant,
            sealed(ann, &|e, _| e.grant = Some(GrantId([7; 32]))),
        ),
        (
            "too many hops",
            Refusal::BadHops,
            sealed(ann, &|_, m| m.hops = 60_000),
        ),
        (
            "another realm",
            Refusal::WrongRealm,
            sealed(ann, &|e, _| e.realm = Some(RealmId([1; 32]))),
        ),
        ("out of order", Refusal::Repeated, said.stored().clone()),
        ("no entry", Refusal::Malformed, Bytes::from_static(b"hello")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_entry_is_void_or_junk_on_every_way_in() {
    let Running {
        log,
        folder,
        hosts,
        agents,
    } = running().await;
    let (ann, far) = (&agents[0].2, &agents[2].2);
    for puppet in [ann, far] {
        within(puppet.graft()).await.unwrap().unwrap();
    }
    within(far.subscribe("square")).await.unwrap().unwrap();
    within(ann.speak("square", vec![Draft::inform("true")]))
        .await
        .unwrap()
        .unwrap();
    let heard = within(far.heard("square")).await.unwrap().unwrap();
    assert_eq!(heard.unwrap().text(), "true");
    let said = read_all(&log).await.pop().unwrap();
    let said = Sealed::open(said).unwrap();
    let secret = |host: &str| {
        agora::persona::secret::Secret::open(&folder.path().join(host).join("secret")).unwrap()
    };
    let name = said.entry().author.clone().unwrap();
    let component = agora_realm::ComponentHash([0; 32]);
    let key = secret("first").persona_key(&name, Some(&component), 1);
    let forged = forgeries(&said, &key, &secret("second").host_key(1));
    let tally = hosts[1].control.record().state().tally();
    let mut places = Vec::new();
    for (n, (_, _, stored)) in forged.iter().enumerate() {
        let appending = log.append([n as u8; 32], stored.clone(), Class::Ordinary);
        places.push(within(appending).await.unwrap().seq.0);
    }
    // The tail of both hosts: nothing of it comes before what is said next.
    within(ann.speak("square", vec![Draft::inform("after")]))
        .await
        .unwrap()
        .unwrap();
    let heard = within(far.heard("square")).await.unwrap().unwrap();
    assert_eq!(heard.unwrap().text(), "after");
    for host in &hosts {
        let after = host.control.record().state().tally();
        // The copy's entry stands, and its message is a repeat; of the hops, too, only the message is void.
        assert_eq!(after.void - tally.void, forged.len() as u64 - 2);
        assert_eq!(after.junk - tally.junk, 4);
        let (history, _) = within(far.history("square", 1, 100))
            .await
            .unwrap()
            .unwrap();
        assert!(history.iter().all(|message| message.text() != "FORGED"));
    }
    let digest = hosts[1].control.record().state().digest();
    for host in hosts {
        host.close().await;
    }
    // An audit, from the beginning: the same, and all but the copy is found, in order.
    let entries = read_all(&log).await;
    let (mut audit, mut verifier) = (Audit::new(), Verifier::new());
    for (seq, stored) in (1..).zip(&entries) {
        let judged = audit.take(&Stored::open(seq, stored.clone(), &mut verifier));
        if let Some(at) = places.iter().position(|place| *place == seq) {
            let (what, refusal, _) = &forged[at];
            let message = match judged.messages.first() {
                Some(MessageVerdict::Repeat(_)) => Err(Refusal::Repeated),
                Some(MessageVerdict::Void(refusal)) => Err(*refusal),
                Some(MessageVerdict::Counts(_)) | None => Ok(()),
            };
            let verdict = judged.verdict.and(message);
            assert_eq!(verdict, Err(*refusal), "{what}");
        }
    }
    assert_eq!(audit.state().digest(), digest);
    let report = audit.end();
    let found: Vec<_> = report.findings.iter().map(|finding| finding.seq).collect();
    let expected: Vec<_> = places
        .iter()
        .zip(&forged)
        .filter(|(_, (_, refusal, _))| *refusal != Refusal::Repeated)
        .map(|(place, _)| *place)
        .collect();
    assert_eq!(found, expected);
}
