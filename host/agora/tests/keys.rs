//! Keys: where the secret lies, how keys are changed while all goes on, and what agents sign with them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

#[path = "journeys/harness.rs"]
#[allow(dead_code, reason = "other journeys use the rest")]
mod harness;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agora::boot::host::Host;
use agora::boot::manifest::GrantSpec;
use agora::door::control::Grantable;
use agora::persona::agent::Phase;
use agora::persona::instance::End;
use agora::persona::keys::Keys;
use agora::persona::secret::Secret;
use agora::testbed::{Native, Plan, Puppet, all_of};
use agora_capnp::channel_capnp::channel;
use agora_guest::{Draft, Error, Kind, Signature, Terms};
use agora_log::{Appended, Class, Embedded, Log, LogError, Options, Seq};
use agora_realm::{
    Body, DomainName, Entry, Epoch, HostId, KeyBody, KeySubject, Ordinal, PersonaId, PersonaName,
    PublicKey, RevokeBody, Revoked, Sealed, SigningKey, signer_digest,
};
use capnp::capability::FromClientHook;
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::BoxStream;
use harness::{Journey, PATIENCE};
use tokio::sync::watch;

fn plan() -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan = Plan::new()
        .channel("square")
        .agent("ann", puppet.native(), vec![all_of("square")]);
    (plan, puppet)
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it comes to an end")
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what} did not come to be"));
}

fn persona(host: &Host, name: &str) -> PersonaId {
    PersonaId::new(host.control.host_id(), PersonaName::new(name).unwrap())
}

/// The key that the log has for a persona, and its place among those it had.
fn key_of(host: &Host, name: &str) -> (PublicKey, u64) {
    let state = host.control.record().state();
    let known = state.persona(&persona(host, name)).unwrap();
    (known.key, known.keys)
}

fn host_key_of(host: &Host) -> (PublicKey, u64) {
    let state = host.control.record().state();
    let known = state.host(&host.control.host_id()).unwrap();
    (known.key, known.keys)
}

/// What was said on the square, and who signed it.
async fn said(host: &Host) -> Vec<(String, PublicKey)> {
    let record = host.control.record();
    let square = host.control.channel_named("square").unwrap();
    let kept = record.messages(&square, Ordinal(1), 10_000, usize::MAX);
    let kept = kept.await.unwrap().into_iter().map(|kept| {
        let text = String::from_utf8(kept.message().payload.to_vec()).unwrap();
        (text, kept.sealed.entry().signer)
    });
    kept.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_under_load_and_nothing_is_lost_or_doubled() {
    let data = tempfile::tempdir().unwrap();
    let (plan, ann) = plan();
    let host = plan.open(data.path()).await.unwrap();
    ann.until_life(1).await;
    ann.graft().await.unwrap().unwrap();
    let control = &host.control;
    let (first, host_first) = (key_of(&host, "ann").0, host_key_of(&host).0);
    let mut expected = BTreeSet::new();
    for round in 0..6 {
        let texts: Vec<_> = (0..40).map(|n| format!("{round}-{n}")).collect();
        let speaking = texts
            .iter()
            .map(|text| ann.speak("square", vec![Draft::inform(text.as_str())]));
        let made = format!("made-{round}");
        let (outcomes, changed, host_changed, narrowed) = within(async {
            tokio::join!(
                join_all(speaking),
                control.rotate("ann"),
                control.rotate_host(),
                ann.attenuate("square", Terms::all(), &made),
            )
        })
        .await;
        for outcomes in outcomes {
            assert!(outcomes.unwrap().unwrap()[0].is_ok(), "{round}");
        }
        assert_eq!(changed.unwrap().pending, None);
        assert_eq!(host_changed.unwrap().pending, None);
        narrowed.unwrap().unwrap();
        expected.extend(texts);
    }
    // Twice in a row, with nothing between.
    control.rotate("ann").await.unwrap();
    let said_all = said(&host).await;
    let texts: BTreeSet<_> = said_all.iter().map(|(text, _)| text.clone()).collect();
    assert_eq!((said_all.len(), &texts), (expected.len(), &expected));
    let signers: BTreeSet<_> = said_all.iter().map(|(_, signer)| *signer).collect();
    assert!(signers.len() > 1, "keys changed while it spoke");
    let (now, generation) = key_of(&host, "ann");
    assert_eq!((generation, now == first), (8, false));
    let (host_now, generation) = host_key_of(&host);
    assert_eq!((generation, host_now == host_first), (7, false));
    assert_eq!(
        HostId::from(host_first),
        control.host_id(),
        "the id is the first key"
    );
    // What was signed before is as verifiable as what is signed now.
    let end = control.record().log().end().0;
    let all = control.record().log().read(Seq(1), 100_000, usize::MAX);
    let all = all.await.unwrap();
    assert_eq!(all.len() as u64, end);
    for (seq, stored) in all {
        assert!(Sealed::open(stored).is_ok(), "{seq:?}");
    }
    host.close().await;
    // The next start finds which keys the log knows.
    let host = plan.open(data.path()).await.unwrap();
    ann.until_life(2).await;
    ann.graft().await.unwrap().unwrap();
    assert_eq!(key_of(&host, "ann"), (now, 8));
    let outcomes = ann.speak("square", vec![Draft::inform("again")]).await;
    assert!(outcomes.unwrap().unwrap()[0].is_ok());
    assert_eq!(said(&host).await.last().unwrap(), &("again".into(), now));
    host.close().await;
}

/// A log that keeps ordinary entries waiting for as long as it is told to.
struct Stalling {
    log: Arc<dyn Log>,
    open: watch::Sender<bool>,
}

impl Log for Stalling {
    fn append(
        &self,
        id: [u8; 32],
        bytes: bytes::Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let (log, mut open) = (self.log.clone(), self.open.subscribe());
        async move {
            if class == Class::Ordinary {
                let _ = open.wait_for(|open| *open).await;
            }
            log.append(id, bytes, class).await
        }
        .boxed()
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, bytes::Bytes)>, LogError>> {
        self.log.read(from, entries, bytes_max)
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, bytes::Bytes), LogError>> {
        self.log.tail(from)
    }

    fn durability(&self) -> agora_log::Durability {
        self.log.durability()
    }

    fn end(&self) -> Seq {
        self.log.end()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        self.log.close()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_does_not_wait_for_a_change_of_the_same_agents_key() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("log")).unwrap();
    let (log, _) = Embedded::open(&data.path().join("log"), Options::default()).unwrap();
    let stalling = Arc::new(Stalling {
        log: Arc::new(log),
        open: watch::channel(true).0,
    });
    let shared: Arc<dyn Log> = stalling.clone();
    let (plan, ann) = plan();
    let folder = data.path().join("data");
    let host = plan.open_shared(&folder, &shared).await.unwrap();
    ann.until_life(1).await;
    ann.graft().await.unwrap().unwrap();
    let before = key_of(&host, "ann");
    stalling.open.send_replace(false);
    let speaking = ann.speak("square", vec![Draft::inform("on its way")]);
    let control = host.control.clone();
    eventually("an entry on its way", || {
        control.record().commits_waiting() > 0
    })
    .await;
    let rotating = tokio::spawn({
        let control = control.clone();
        async move { control.rotate("ann").await.map(drop) }
    });
    let _ = within(control.kill("ann", "a test", "test")).await.unwrap();
    let killed = || {
        let state = control.record().state();
        state.persona(&persona(&host, "ann")).unwrap().killed
    };
    eventually("the kill in the log", killed).await;
    let agent = control.agent("ann").unwrap();
    assert!(matches!(agent.shared.phase(), Phase::Killed(_)));
    stalling.open.send_replace(true);
    let rotated = within(rotating).await.unwrap();
    assert!(
        rotated.is_err(),
        "a killed agent gets no key but by a start"
    );
    assert_eq!(key_of(&host, "ann"), before);
    drop(speaking);
    assert!(said(&host).await.is_empty(), "it came behind the kill");
    host.close().await;
    shared.close().await.unwrap();
}

/// An entry of a host, as its own process would sign it.
fn sealed(keys: &Keys, key: &SigningKey, realm: agora_realm::RealmId, body: Body) -> Sealed {
    let entry = Entry {
        realm: Some(realm),
        host: keys.host_id(),
        author: None,
        signer: key.public(),
        epoch: Epoch(1),
        time_ms: 1,
        grant: None,
        body,
    };
    keys.seal(entry, key).unwrap()
}

fn keyed(subject: KeySubject, key: &SigningKey, component: Option<[u8; 32]>) -> Body {
    Body::Key(KeyBody {
        subject,
        public_key: key.public(),
        component: component.map(Into::into),
        started: false,
        genesis: None,
        origin: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_into_the_log_while_its_host_died_is_the_one_that_the_next_start_uses() {
    let data = tempfile::tempdir().unwrap();
    let (plan, ann) = plan();
    let host = plan.open(data.path()).await.unwrap();
    let realm = host.control.record().state().realm().unwrap();
    ann.until_life(1).await;
    host.close().await;
    let keys = Keys::new(Secret::open(&data.path().join("secret")).unwrap());
    let name = PersonaName::new("ann").unwrap();
    let (old, new) = (keys.secret().host_key(1), keys.secret().host_key(2));
    let anns = keys.secret().persona_key(&name, Some(&[0; 32].into()), 2);
    let entries = [
        sealed(
            &keys,
            &old,
            realm,
            keyed(KeySubject::Host(keys.host_id()), &new, None),
        ),
        sealed(
            &keys,
            &new,
            realm,
            keyed(KeySubject::Persona(name), &anns, Some([0; 32])),
        ),
    ];
    // A host that was killed at any of these places is started after each.
    for (at, entry) in entries.into_iter().enumerate() {
        let (log, _) = Embedded::open(&data.path().join("log"), Options::default()).unwrap();
        let stored = entry.stored().clone();
        log.append(entry.id().0, stored, Class::Ordinary)
            .await
            .unwrap();
        log.close().await.unwrap();
        let host = plan.open(data.path()).await.unwrap();
        ann.until_life(at as u64 + 2).await;
        ann.graft().await.unwrap().unwrap();
        let text = format!("after {at}");
        let outcomes = ann
            .speak("square", vec![Draft::inform(text.as_str())])
            .await;
        assert!(outcomes.unwrap().unwrap()[0].is_ok());
        assert_eq!(host_key_of(&host), (new.public(), 2));
        assert_eq!(key_of(&host, "ann").1, at as u64 + 1);
        assert_eq!(said(&host).await.last().unwrap().1, key_of(&host, "ann").0);
        host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_was_signed_before_the_hosts_key_changed_counts_all_the_same() {
    let data = tempfile::tempdir().unwrap();
    let (plan, _ann) = plan();
    let host = plan.open(data.path()).await.unwrap();
    let realm = host.control.record().state().realm().unwrap();
    let keys = Keys::new(Secret::open(&data.path().join("secret")).unwrap());
    let kill = Body::Revoke(RevokeBody {
        what: Revoked::Persona(persona(&host, "ann")),
        reason: "a test".into(),
        by: "test".into(),
    });
    let stop = sealed(&keys, &keys.host(), realm, kill);
    host.control.rotate_host().await.unwrap();
    let stops = host.control.folder().stops();
    let slot = stops.keep(stop.stored()).unwrap();
    let refused = host.control.rotate_host().await;
    assert!(refused.is_err(), "not while a stop waits for the log");
    stops.clear(slot).unwrap();
    stops.keep(stop.stored()).unwrap();
    host.close().await;
    let host = plan.open(data.path()).await.unwrap();
    let agent = host.control.agent("ann").unwrap();
    assert!(matches!(agent.shared.phase(), Phase::Killed(_)));
    let killed = {
        let state = host.control.record().state();
        state.persona(&persona(&host, "ann")).unwrap().killed
    };
    assert!(killed);
    assert_eq!(host.control.folder().stops().count(), 0);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_of_a_realm_changes_its_own_keys() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("log")).unwrap();
    let (log, _) = Embedded::open(&folder.path().join("log"), Options::default()).unwrap();
    let log: Arc<dyn Log> = Arc::new(log);
    let ((first_plan, ann), (second_plan, bob)) = (plan(), plan());
    let data = |name: &str| folder.path().join(name);
    let first = first_plan.open_shared(&data("first"), &log).await.unwrap();
    assert!(
        second_plan
            .open_shared(&data("second"), &log)
            .await
            .is_err()
    );
    let second_id = {
        let secret = Secret::open(&data("second").join("secret")).unwrap();
        Keys::new(secret).host_id()
    };
    first.control.invite(&second_id.to_string()).await.unwrap();
    // A host that changed its key is in the realm as before, and may let others in.
    first.control.rotate_host().await.unwrap();
    let second = second_plan
        .open_shared(&data("second"), &log)
        .await
        .unwrap();
    second.control.rotate_host().await.unwrap();
    second.control.rotate("ann").await.unwrap();
    for (puppet, host) in [(&ann, &first), (&bob, &second)] {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
        let outcomes = puppet.speak("square", vec![Draft::inform("here")]).await;
        assert!(outcomes.unwrap().unwrap()[0].is_ok());
        assert_eq!(host_key_of(host).1, 2);
    }
    assert_eq!((key_of(&first, "ann").1, key_of(&second, "ann").1), (1, 2));
    eventually("both at one place", || {
        let digests = [&first, &second].map(|host| host.control.record().state().digest());
        digests[0] == digests[1]
    })
    .await;
    first.close().await;
    second.close().await;
    log.close().await.unwrap();
}

// -- Signers

fn signer(domain: &str) -> GrantSpec {
    GrantSpec::Signer(DomainName::new(domain).unwrap())
}

/// An agent that serves a desk, and does nothing of its own.
fn clerk() -> Native {
    Native::new(|end| async {
        match agora_guest::vat::drive(end, agora_desk::serve).await {
            Ok(()) => End::Done,
            Err(error) => End::Failed(error.to_string()),
        }
    })
}

async fn sign(puppet: &Puppet, domain: &str, message: &[u8]) -> Result<Signature, Error> {
    let (domain, message) = (domain.to_owned(), message.to_vec());
    let signing = puppet.run(|stage| async move {
        let graft = stage.graft.borrow().clone().unwrap();
        graft.signer(&domain)?.sign(&message).await
    });
    within(signing).await.unwrap()
}

fn verifies(host: &Host, name: &str, domain: &str, message: &[u8], signed: &Signature) -> bool {
    let realm = host.control.record().state().realm().unwrap();
    let domain = DomainName::new(domain).unwrap();
    let digest = signer_digest(&realm, &persona(host, name), &domain, message);
    PublicKey(signed.public_key).verifies(&digest, &signed.signature)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_agent_signs_in_its_domain_as_itself_and_nobody_else_does() {
    let data = tempfile::tempdir().unwrap();
    let (ann, bob) = (Puppet::new(), Puppet::new());
    let plan = Plan::new()
        .agent("ann", ann.native(), vec![signer("release")])
        .agent("bob", bob.native(), vec![]);
    let host = plan.open(data.path()).await.unwrap();
    for puppet in [&ann, &bob] {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
    }
    let signed = sign(&ann, "release", b"v1.0").await.unwrap();
    assert!(verifies(&host, "ann", "release", b"v1.0", &signed));
    assert_eq!(PublicKey(signed.public_key), key_of(&host, "ann").0);
    for (name, domain, message) in [
        ("bob", "release", &b"v1.0"[..]),
        ("ann", "deploy", b"v1.0"),
        ("ann", "release", b"v1.1"),
    ] {
        assert!(
            !verifies(&host, name, domain, message, &signed),
            "{name} {domain}"
        );
    }
    // It is no signature of these very bytes, whatever they are: an entry's id, say.
    let id = [7; 32];
    let signed = sign(&ann, "release", &id).await.unwrap();
    assert!(!PublicKey(signed.public_key).verifies(&id, &signed.signature));
    // Bounds, and what was not granted.
    let most = vec![0; 64 << 10];
    assert!(sign(&ann, "release", &most).await.is_ok());
    let error = sign(&ann, "release", &vec![0; (64 << 10) + 1]).await;
    assert_eq!(error.unwrap_err().kind(), Kind::Denied);
    for (puppet, domain) in [(&ann, "deploy"), (&bob, "release")] {
        let error = sign(puppet, domain, b"v1.0").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
    }
    // Granted by command; a domain of the host's own is none.
    let ended = bob.ended();
    let grant = |domain: &str| Grantable::Signer(domain.to_owned());
    assert!(
        host.control
            .grant("bob", grant("agora-entry"))
            .await
            .is_err()
    );
    host.control.grant("bob", grant("release")).await.unwrap();
    assert!(within(ended).await.unwrap().is_stale());
    bob.graft().await.unwrap().unwrap();
    let signed = sign(&bob, "release", b"v1.0").await.unwrap();
    assert!(verifies(&host, "bob", "release", b"v1.0", &signed));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_goes_with_its_epoch_its_grant_and_its_agent_and_a_new_key_signs_from_then_on() {
    let data = tempfile::tempdir().unwrap();
    let ann = Puppet::new();
    let plan = Plan::new().agent("ann", ann.native(), vec![signer("release")]);
    let host = plan.open(data.path()).await.unwrap();
    let control = &host.control;
    ann.until_life(1).await;
    ann.graft().await.unwrap().unwrap();
    let first = sign(&ann, "release", b"one").await.unwrap();
    control.rotate("ann").await.unwrap();
    let second = sign(&ann, "release", b"one").await.unwrap();
    assert_ne!(first.public_key, second.public_key);
    assert_eq!(PublicKey(second.public_key), key_of(&host, "ann").0);
    for signed in [&first, &second] {
        assert!(verifies(&host, "ann", "release", b"one", signed));
    }
    // The epoch.
    control.bump("a test", false, "test").await;
    let error = sign(&ann, "release", b"late").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    within(ann.graft()).await.unwrap().unwrap();
    sign(&ann, "release", b"two").await.unwrap();
    // The grant.
    let grant = control.grants_for(&persona(&host, "ann"))[0].id.to_string();
    control.revoke(&grant, "a test", "test").await.unwrap();
    let error = sign(&ann, "release", b"late").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    within(ann.graft()).await.unwrap().unwrap();
    let error = sign(&ann, "release", b"late").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    // The agent.
    control.kill("ann", "a test", "test").await.unwrap();
    let name = PersonaName::new("ann").unwrap();
    let release = DomainName::new("release").unwrap();
    assert!(control.sign_for(&name, &release, b"late").is_err());
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_is_not_passed_on() {
    for workers in [1, 2] {
        let data = tempfile::tempdir().unwrap();
        let (ann, eve) = (Puppet::new(), Puppet::new());
        let plan = Plan::new()
            .workers(workers)
            .channel("square")
            .agent(
                "ann",
                ann.native(),
                vec![all_of("square"), signer("release")],
            )
            .agent("bob", clerk(), vec![])
            .agent("eve", eve.native(), vec![]);
        let host = plan.open(data.path()).await.unwrap();
        for (caller, server) in [("ann", "bob"), ("eve", "ann")] {
            let service = Grantable::Service(server.into());
            host.control.grant(caller, service).await.unwrap();
        }
        for puppet in [&ann, &eve] {
            puppet.until_life(1).await;
            puppet.graft().await.unwrap().unwrap();
        }
        // In a call: in place of the signer arrives a refusal. (As a channel, since that is what a desk keeps.)
        let handing = ann.run(|stage| async move {
            let graft = stage.graft.borrow().clone().unwrap();
            let signer = graft.signer("release")?.client();
            let bob = graft.capability("bob")?;
            let disguised = channel::Client::new(signer.client.hook.add_ref());
            agora_desk::hand(&bob, "signer", disguised).await?;
            let facet = graft.channel("square")?.client();
            agora_desk::hand(&bob, "facet", facet).await?;
            let kept = agora_desk::ask(&bob, "signer", "hello").await?;
            let lent = agora_desk::ask(&bob, "facet", "hello").await?;
            Ok::<_, Error>((kept, lent))
        });
        let (kept, lent) = within(handing).await.unwrap().unwrap();
        assert!(kept.contains("can't be passed on"), "{workers}: {kept}");
        assert_eq!(lent, "", "a facet is lent");
        // As what it serves.
        let serving = ann.run(|stage| async move {
            let graft = stage.graft.borrow().clone().unwrap();
            graft.serve(graft.signer("release")?.client()).await
        });
        let served = within(serving).await.unwrap();
        assert_eq!(served.unwrap_err().kind(), Kind::Denied);
        // And it goes on signing for its own agent.
        let signed = sign(&ann, "release", b"v1.0").await.unwrap();
        assert!(verifies(&host, "ann", "release", b"v1.0", &signed));
        host.close().await;
    }
}

// -- The command

const MANIFEST: &str = "[channels.square]\n";

fn operator() -> String {
    format!("operator:{}", rustix::process::getuid().as_raw())
}

fn id(journey: &Journey, args: &[&str]) -> serde_json::Value {
    let shown = journey.cli(&[&["id", "--json"], args].concat()).exits(0);
    serde_json::from_str(&shown.stdout).unwrap()
}

#[test]
fn a_host_runs_on_a_secret_elsewhere_and_its_folder_knows_whose_it_is() {
    let journey = Journey::new(MANIFEST);
    let secret = journey.folder().join("my.key");
    let elsewhere = ["--identity", secret.to_str().unwrap()];
    let host = journey.start(&elsewhere);
    journey.say("square", "hello");
    host.stop();
    assert!(!journey.data().join("secret").exists());
    let shown = id(&journey, &elsewhere);
    assert_eq!(shown["secret"], secret.to_str().unwrap());
    assert_eq!(shown["generation"], 1);
    assert_eq!(shown["personas"][0]["name"], operator());
    let kept = std::fs::read_to_string(journey.data().join("host")).unwrap();
    assert_eq!(shown["host"], kept.trim());
    let text = journey.cli(&[&["id"], &elsewhere[..]].concat()).exits(0);
    assert!(text.stdout.contains(kept.trim()), "{}", text.stdout);
    // Without it, or with another's, nothing starts.
    let missing = journey.cli(&["id"]).exits(1);
    assert!(missing.stderr.contains("--identity"), "{}", missing.stderr);
    let other = Journey::new(MANIFEST);
    other.start(&[]).stop();
    let wrong = other.data().join("secret");
    let (status, _, stderr) = journey
        .spawn(&["--identity", wrong.to_str().unwrap()])
        .until_exit();
    assert!(!status.success());
    assert!(stderr.contains("belongs to host"), "{stderr}");
    // Where others can read it, or where it is none, neither.
    for (mode, path) in [(0o640, &secret), (0o600, &journey.folder().to_path_buf())] {
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(mode)).unwrap();
        let args = ["id", "--identity", path.to_str().unwrap()];
        journey.cli(&args).exits(1);
    }
    // It is found through a link, and by the environment's word.
    let link = journey.folder().join("link");
    symlink(&secret, &link).unwrap();
    let linked = id(&journey, &["--identity", link.to_str().unwrap()]);
    assert_eq!(linked["host"], shown["host"]);
    let mut by_environment = std::process::Command::new(env!("CARGO_BIN_EXE_agora"));
    by_environment
        .args(["id", "--json", "--data"])
        .arg(journey.data())
        .env("AGORA_IDENTITY", &secret);
    let told = by_environment.output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["host"], shown["host"]);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1));
    let bits: Vec<u8> = bits.collect();
    let digits = bits.chunks_exact(6).map(|six| {
        let at = six
            .iter()
            .fold(0usize, |at, bit| at << 1 | usize::from(*bit));
        char::from(DIGITS[at])
    });
    digits.collect()
}

/// The secret in every way it could be written: as bytes, in hexadecimal, and in base64 wherever it begins.
fn disguises(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![
        secret.to_vec(),
        hex.clone().into_bytes(),
        hex.to_uppercase().into_bytes(),
    ];
    for skipped in 0..3 {
        all.push(base64(&secret[skipped..]).into_bytes());
        all.push(
            base64(&secret[skipped..])
                .replace('+', "-")
                .replace('/', "_")
                .into_bytes(),
        );
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|part| part == needle)
}

#[test]
fn nothing_that_is_printed_logged_or_kept_holds_the_secret() {
    let journey = Journey::new(MANIFEST);
    let host = journey.start(&["-vv"]);
    journey.say("square", "hello");
    let mut told = Vec::new();
    for args in [
        &["id"][..],
        &["id", "--json"],
        &["ps", "--grants"],
        &["realm", "show"],
        &["rotate", "--host"],
        &["rotate", &operator()],
        &["epoch", "bump", "--reason", "a test"],
        &["log"],
        &["log", "--format", "yaml"],
        &["doctor", "-vv"],
    ] {
        let ran = journey.cli(args).exits(0);
        told.extend([ran.stdout.into_bytes(), ran.stderr.into_bytes()]);
    }
    let (_, lines, stderr) = host.stop();
    told.push(stderr.into_bytes());
    told.extend(lines.iter().map(|line| line.to_string().into_bytes()));
    let path = journey.data().join("secret");
    let kept = std::fs::read(&path).unwrap();
    let digits = std::str::from_utf8(&kept).unwrap().trim();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let secret: Vec<u8> = (0..64).step_by(2).map(byte).collect();
    let disguises = disguises(&secret);
    assert!(disguises.iter().any(|disguise| holds(&kept, disguise)));
    let others: Vec<_> = files(journey.folder())
        .into_iter()
        .filter(|file| *file != path)
        .collect();
    assert!(others.len() > 5, "{others:?}");
    told.extend(others.iter().map(|file| std::fs::read(file).unwrap()));
    for (at, told) in told.iter().enumerate() {
        for disguise in &disguises {
            assert!(!holds(told, disguise), "{at}");
        }
    }
}

#[test]
fn keys_change_by_command_and_a_host_that_is_killed_meanwhile_goes_on() {
    let journey = Journey::new(MANIFEST);
    let operator = operator();
    let mut receipts = Vec::new();
    for round in 0..4 {
        let host = journey.start(&[]);
        // Of an earlier round: nothing can be said that would not count.
        receipts.push(journey.say("square", &format!("{round} began")));
        std::thread::scope(|scope| {
            for whose in ["--host", &operator] {
                let (journey, host) = (&journey, &host);
                scope.spawn(move || {
                    while host.exited().is_none() {
                        // The host may be gone by now, or be killed at any step of it.
                        let _ = journey.cli(&["rotate", whose]);
                    }
                });
            }
            for n in 0..=round {
                receipts.push(journey.say("square", &format!("{round}-{n}")));
            }
            host.signal(rustix::process::Signal::KILL);
        });
        drop(host);
    }
    let host = journey.start(&[]);
    receipts.push(journey.say("square", "the end"));
    journey.cli(&["rotate", "--host"]).exits(0);
    journey.cli(&["rotate", &operator]).exits(0);
    journey.cli(&["rotate", "nobody"]).exits(1);
    receipts.push(journey.say("square", "with new keys"));
    host.stop();
    let shown = id(&journey, &[]);
    assert!(shown["generation"].as_u64() >= Some(2), "{shown}");
    assert!(
        shown["personas"][0]["generation"].as_u64() >= Some(2),
        "{shown}"
    );
    let said = harness::messages(&journey.log());
    for receipt in &receipts {
        let times = said.iter().filter(|m| m["id"] == receipt.as_str()).count();
        assert_eq!(times, 1, "{receipt}");
    }
    let texts: BTreeSet<_> = said.iter().map(|m| m["body"].to_string()).collect();
    assert_eq!(texts.len(), said.len(), "nothing was said twice");
    journey.cli(&["doctor"]).exits(0);
}
