//! The test bed's agents meet the real host: what they say counts, and what stops a component stops them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::time::Duration;

use agora::boot::host::Host;
use agora::door::control::Grantable;
use agora::persona::agent::Phase;
use agora::persona::instance::End;
use agora::testbed::{Gone, Native, Plan, Puppet, all_of, under};
use agora_guest::{Act, Draft, Kind, Terms};
use agora_realm::{Rights, Terms as Granted};

struct Bed {
    host: Host,
    one: Puppet,
    two: Puppet,
    _data: tempfile::TempDir,
}

async fn bed() -> Bed {
    let data = tempfile::tempdir().unwrap();
    let (one, two) = (Puppet::new(), Puppet::new());
    let reads = Granted {
        rights: Rights::READ,
        ..Granted::ALL
    };
    let plan = Plan::new()
        .workers(2)
        .channel("square")
        .agent("one", one.native(), vec![all_of("square")])
        .agent("two", two.native(), vec![under("square", reads)]);
    let host = plan.open(data.path()).await.unwrap();
    one.until_life(1).await;
    two.until_life(1).await;
    Bed {
        host,
        one,
        two,
        _data: data,
    }
}

async fn until_phase(host: &Host, name: &str, is: impl Fn(&Phase) -> bool) -> Phase {
    let agent = host.control.agent(name).unwrap();
    let looking = async {
        loop {
            let phase = agent.shared.phase();
            if is(&phase) {
                return phase;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), looking).await;
    waited.unwrap_or_else(|_| panic!("{name} is {:?}", agent.shared.phase()))
}

fn draft(text: &str) -> Draft {
    Draft::new(Act::Inform, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_says_the_other_hears() {
    let bed = bed().await;
    let grafted = bed.one.graft().await.unwrap().unwrap();
    assert_eq!((grafted.epoch, grafted.channels.len()), (1, 1));
    assert!(grafted.persona.starts_with("one@"));
    bed.two.graft().await.unwrap().unwrap();
    bed.two.subscribe("square").await.unwrap().unwrap();
    let outcomes = bed.one.speak("square", vec![draft("hello")]).await;
    let receipt = outcomes.unwrap().unwrap().remove(0).unwrap();
    let message = bed.two.heard("square").await.unwrap().unwrap().unwrap();
    assert_eq!(message.id, receipt.id);
    assert_eq!(message.author, grafted.persona);
    let refused = bed.two.speak("square", vec![draft("I may not")]).await;
    match refused.unwrap() {
        Ok(outcomes) => assert!(outcomes[0].is_err(), "{outcomes:?}"),
        Err(error) => assert_eq!(error.kind(), Kind::Denied),
    }
    bed.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_facet_is_stale_and_its_parent_is_not() {
    let bed = bed().await;
    bed.one.graft().await.unwrap().unwrap();
    let terms = Terms::all();
    bed.one
        .attenuate("square", terms, "narrow")
        .await
        .unwrap()
        .unwrap();
    bed.one.info("narrow").await.unwrap().unwrap();
    bed.one.cut("narrow", "enough").await.unwrap().unwrap();
    let error = bed.one.info("narrow").await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    bed.one.info("square").await.unwrap().unwrap();
    bed.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_ends_a_graft_and_the_next_one_speaks() {
    let bed = bed().await;
    bed.one.graft().await.unwrap().unwrap();
    bed.one.keep_as("square", "old").await.unwrap().unwrap();
    let ended = bed.one.ended();
    let (decided, epoch) = bed.host.control.bump("a test", false, "test").await;
    assert_eq!((decided.pending, epoch.0), (None, 2));
    assert!(ended.await.unwrap().is_stale());
    assert_eq!(bed.one.graft().await.unwrap().unwrap().epoch, 2);
    let stale = bed.one.speak("old", vec![draft("late")]).await.unwrap();
    assert!(stale.unwrap_err().is_stale());
    let outcomes = bed.one.speak("square", vec![draft("in time")]).await;
    assert!(outcomes.unwrap().unwrap()[0].is_ok());
    bed.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_gone_until_it_is_started() {
    let bed = bed().await;
    let control = &bed.host.control;
    bed.one.graft().await.unwrap().unwrap();
    let ended = bed.one.ended();
    control.kill("one", "a test", "test").await.unwrap();
    assert_eq!(ended.await.unwrap_err(), Gone);
    assert_eq!(bed.one.graft().await.unwrap_err(), Gone);
    until_phase(&bed.host, "one", |p| matches!(p, Phase::Killed(_))).await;
    control.start("one").await.unwrap();
    bed.one.until_life(2).await;
    bed.one.graft().await.unwrap().unwrap();
    bed.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_is_missing_from_the_next_graft_until_it_is_granted_anew() {
    let bed = bed().await;
    let control = &bed.host.control;
    let granted = bed.two.graft().await.unwrap().unwrap();
    assert_eq!(granted.channels.len(), 1);
    let two = control.persona_named("two").unwrap();
    let id = control.grants_for(&two)[0].id.to_string();
    let ended = bed.two.ended();
    control.revoke(&id, "a test", "test").await.unwrap();
    assert!(ended.await.unwrap().is_stale());
    assert!(bed.two.graft().await.unwrap().unwrap().channels.is_empty());
    let ended = bed.two.ended();
    control
        .grant("two", Grantable::Channel("square".into(), Granted::ALL))
        .await
        .unwrap();
    assert!(ended.await.unwrap().is_stale());
    assert_eq!(bed.two.graft().await.unwrap().unwrap().channels.len(), 1);
    bed.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_as_it_says_and_a_panic_is_its_own() {
    let data = tempfile::tempdir().unwrap();
    let one = Puppet::new();
    let panics = Native::new(|_| async { panic!("on purpose") });
    let plan =
        Plan::new()
            .agent("one", one.native(), Vec::new())
            .agent("panics", panics, Vec::new());
    let host = plan.open(data.path()).await.unwrap();
    one.until_life(1).await;
    one.end(End::Failed("it had enough".into())).await;
    let ended = |phase: &Phase| matches!(phase, Phase::Ended(_));
    let phase = until_phase(&host, "one", ended).await;
    assert_eq!(phase.detail(), "it had enough");
    let phase = until_phase(&host, "panics", ended).await;
    assert!(phase.detail().contains("panicked") && !phase.detail().contains("defect"));
    host.close().await;
    // The folder is gone on with.
    let host = plan.open(data.path()).await.unwrap();
    one.until_life(2).await;
    assert_eq!(one.graft().await.unwrap().unwrap().epoch, 1);
    host.close().await;
}
