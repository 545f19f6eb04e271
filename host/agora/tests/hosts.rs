//! Several hosts in one realm, on one log: what one decides, all do.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

#[path = "../../log/tests/nats/mod.rs"]
mod nats;

use std::sync::Arc;
use std::time::Duration;

use agora::boot::host::Host;
use agora::persona::agent::Phase;
use agora::testbed::{Gone, Plan, Puppet, all_of};
use agora_guest::{Draft, Kind};
use agora_log::{Embedded, JetStreamOptions, Log, Options};

struct Realm {
    log: Arc<dyn Log>,
    /// How the second host connects to it, where it has a connection of its own.
    seconds: Option<JetStreamOptions>,
    folder: tempfile::TempDir,
}

impl Realm {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        let (log, _) = Embedded::open(&folder.path().join("log"), Options::default()).unwrap();
        Self {
            log: Arc::new(log),
            seconds: None,
            folder,
        }
    }

    async fn on(server: &nats::Server) -> Self {
        let options = nats::options(server.url(), 0);
        Self {
            log: Arc::new(nats::open(&options).await),
            seconds: Some(options),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn data(&self, host: &str) -> std::path::PathBuf {
        self.folder.path().join(host)
    }

    async fn open(&self, host: &str, plan: &Plan) -> anyhow::Result<Host> {
        let own: Arc<dyn Log>;
        let log = match &self.seconds {
            Some(options) if host == "second" => {
                own = Arc::new(nats::open(options).await);
                &own
            }
            _ => &self.log,
        };
        plan.open_shared(&self.data(host), log).await
    }
}

/// One agent on `square`, and a puppet to move it.
fn plan(agent: &str) -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan = Plan::new()
        .channel("square")
        .agent(agent, puppet.native(), vec![all_of("square")]);
    (plan, puppet)
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it comes in time")
}

fn key_in(refused: &anyhow::Error) -> String {
    let text = refused.to_string();
    let Some((_, rest)) = text.split_once("agora realm invite ") else {
        panic!("it does not say what to do: {text}");
    };
    rest.trim_end_matches(')').to_owned()
}

/// Two hosts; agents of the same name on both.
async fn two() -> (Realm, [(Host, Puppet); 2]) {
    two_in(Realm::new()).await
}

async fn two_in(realm: Realm) -> (Realm, [(Host, Puppet); 2]) {
    let ((first_plan, ann), (second_plan, bob)) = (plan("worker"), plan("worker"));
    let first = realm.open("first", &first_plan).await.unwrap();
    let Err(refused) = realm.open("second", &second_plan).await else {
        panic!("a stranger is refused");
    };
    let key = key_in(&refused);
    first.control.invite(&key).await.unwrap();
    let second = realm.open("second", &second_plan).await.unwrap();
    for puppet in [&ann, &bob] {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
        puppet.subscribe("square").await.unwrap().unwrap();
    }
    (realm, [(first, ann), (second, bob)])
}

async fn said(puppet: &Puppet, text: &str) -> agora_guest::Receipt {
    let outcomes = puppet.speak("square", vec![Draft::inform(text)]).await;
    outcomes.unwrap().unwrap().remove(0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_by_invitation_and_agents_of_both_hear_each_other_as_themselves() {
    let (realm, [(first, ann), (second, bob)]) = two().await;
    for (speaker, hearer, host) in [(&ann, &bob, &first), (&bob, &ann, &second)] {
        let receipt = said(speaker, "hello").await;
        let heard = within(hearer.heard("square"))
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(heard.id, receipt.id);
        assert_eq!(
            heard.author,
            format!("worker@{}", host.control.host_id().short())
        );
    }
    let digests = || [&first, &second].map(|host| host.control.record().state().digest());
    within(async {
        while digests()[0] != digests()[1] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    first.close().await;
    second.close().await;
    realm.log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_on_one_revokes_on_all() {
    let (_realm, [(first, ann), (second, bob)]) = two().await;
    bob.keep_as("square", "old").await.unwrap().unwrap();
    let (told, other) = (ann.ended(), bob.ended());
    let (decided, epoch) = first.control.bump("a test", false, "test").await;
    assert_eq!((decided.pending, epoch.0), (None, 2));
    assert!(within(told).await.unwrap().is_stale());
    assert!(within(other).await.unwrap().is_stale());
    let refused = bob.speak("old", vec![Draft::inform("late")]).await.unwrap();
    assert_eq!(refused.unwrap_err().kind(), Kind::Stale);
    for puppet in [&ann, &bob] {
        assert_eq!(within(puppet.graft()).await.unwrap().unwrap().epoch, 2);
    }
    said(&bob, "again").await;
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_that_bump_at_once_end_one_epoch_each_or_both_the_same() {
    let (realm, hosts) = two().await;
    bump_at_once(hosts, 10).await;
    realm.log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_that_bump_at_once_on_a_server_end_one_epoch_each_or_both_the_same() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let (realm, hosts) = two_in(Realm::on(&server).await).await;
    bump_at_once(hosts, 10).await;
    realm.log.close().await.unwrap();
}

/// Whatever order the fences come in, every one of them ended something or came too late to, and both hosts are where the log is.
async fn bump_at_once([(first, ann), (second, bob)]: [(Host, Puppet); 2], rounds: usize) {
    for _ in 0..rounds {
        let before = first.control.record().state().epoch();
        let (one, other) = tokio::join!(
            first.control.bump("one", false, "test"),
            second.control.bump("other", false, "test"),
        );
        for (decided, _) in [&one, &other] {
            assert_eq!(decided.void, None);
        }
        let epochs = || [&first, &second].map(|host| host.control.gate().shown());
        let same = within(async {
            loop {
                let [one, other] = epochs();
                if one == other && one.open && one.epoch > before {
                    return one.epoch;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let same = same.await;
        assert!(same.0 == before.0 + 1 || same.0 == before.0 + 2, "{same}");
        for puppet in [&ann, &bob] {
            assert_eq!(within(puppet.graft()).await.unwrap().unwrap().epoch, same.0);
            said(puppet, "here").await;
        }
    }
    let digests = || [&first, &second].map(|host| host.control.record().state().digest());
    within(async {
        while digests()[0] != digests()[1] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_host_takes_back_is_gone_here() {
    let (realm, [(first, _ann), (second, bob)]) = two().await;
    let bobs = second.control.persona_named("worker").unwrap();
    // A grant: by whichever host.
    let grant = second.control.grants_for(&bobs)[0].id.to_string();
    let ended = bob.ended();
    first
        .control
        .revoke(&grant, "a test", "test")
        .await
        .unwrap();
    assert!(within(ended).await.unwrap().is_stale());
    let grafted = within(bob.graft()).await.unwrap().unwrap();
    assert!(grafted.channels.is_empty());
    // A host, and all its agents with it.
    let ended = bob.ended();
    first
        .control
        .revoke_host(&second.control.host_id().to_string(), "a test", "test")
        .await
        .unwrap();
    assert!(matches!(within(ended).await, Ok(error) if error.is_stale()));
    let waiting = tokio::time::timeout(Duration::from_millis(200), bob.graft()).await;
    assert!(waiting.is_err(), "nothing is granted any more");
    second.close().await;
    let Err(refused) = realm.open("second", &plan("worker").0).await else {
        panic!("a revoked host is refused");
    };
    assert!(refused.to_string().contains("was revoked"), "{refused}");
    first.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_away_is_where_the_log_is_and_its_stops_count_everywhere() {
    let (realm, [(first, ann), (second, bob)]) = two().await;
    second.close().await;
    first.control.bump("while it was away", false, "test").await;
    within(ann.graft()).await.unwrap().unwrap();
    said(&ann, "while you were away").await;
    let (again, bob_again) = plan("worker");
    let second = realm.open("second", &again).await.unwrap();
    bob_again.until_life(1).await;
    assert_eq!(bob.graft().await.unwrap_err(), Gone);
    assert_eq!(within(bob_again.graft()).await.unwrap().unwrap().epoch, 2);
    bob_again.subscribe("square").await.unwrap().unwrap();
    let heard = within(bob_again.heard("square"))
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(heard.text(), "while you were away");
    // Killing its own agent is seen by the other, which hears nothing of it any more.
    second
        .control
        .kill("worker", "a test", "test")
        .await
        .unwrap();
    let agent = second.control.agent("worker").unwrap();
    assert!(matches!(agent.shared.phase(), Phase::Killed(_)));
    let killed = second.control.persona_named("worker").unwrap();
    within(async {
        loop {
            let seen = first
                .control
                .record()
                .state()
                .persona(&killed)
                .is_some_and(|p| p.killed);
            if seen {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    first.close().await;
    second.close().await;
}
