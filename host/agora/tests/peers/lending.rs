//! A peer's channel that one agent lends to another, and that one host lends to a third.

use agora::door::control::Grantable;
use agora::persona::instance::End;
use agora::testbed::{Native, Plan, Puppet, Stage, all_of};
use agora_desk::desk_capnp::desk;
use agora_guest::{Draft, Error, Kind, Refusal, Terms};
use agora_realm::{PersonaId, PersonaName};

use super::bed::{QUIC, Site, all, graft, heard, linked, said, until, within};

/// An agent that serves a desk, and does nothing of its own.
fn clerk() -> Native {
    Native::new(|end| async {
        match agora_guest::vat::drive(end, agora_desk::serve).await {
            Ok(()) => End::Done,
            Err(error) => End::Failed(error.to_string()),
        }
    })
}

fn bob(stage: &Stage) -> Result<desk::Client, Error> {
    let graft = stage.graft.borrow().clone();
    graft.unwrap().capability("bob")
}

/// Ann passes a facet of hers to bob, who keeps it.
async fn hand(ann: &Puppet, facet: &str) {
    let facet = facet.to_owned();
    let handing = ann.run(|stage| async move {
        let facet = stage.facet(&facet)?.client();
        agora_desk::hand(&bob(&stage)?, "kept", facet).await
    });
    within("it is handed over", handing).await.unwrap().unwrap();
}

/// Eve asks bob to say something through what he keeps. Empty: it counts.
async fn ask(eve: &Puppet, text: &str) -> String {
    let text = text.to_owned();
    let asking =
        eve.run(|stage| async move { agora_desk::ask(&bob(&stage)?, "kept", &text).await });
    let asked = within("bob answers", asking).await.unwrap();
    asked.unwrap_or_else(|error| format!("{:?}: {error}", error.kind()))
}

/// The same, again while the peer is out of reach. What was said meanwhile is said once it is back, so a text counts at least once.
async fn asked(eve: &Puppet, text: &str) -> String {
    until("the peer is within reach", async || {
        let asked = ask(eve, text).await;
        let is_away = asked.starts_with("PeerAway") || asked.starts_with("Busy");
        (!is_away).then_some(asked)
    })
    .await
}

/// What counts at bravo, each once however often bob had to be asked.
async fn counts(bravo: &Site) -> Vec<(String, String)> {
    let mut said = all(bravo.host(), "release").await;
    said.dedup();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_to_another_agent_speaks_there_as_itself_and_goes_with_its_lender_and_the_epoch()
 {
    // All on one vat thread; each on its own.
    for workers in [4, 1] {
        let (ann, eve) = (Puppet::new(), Puppet::new());
        let here = Plan::new()
            .workers(workers)
            .agent("ann", ann.native(), vec![all_of("bravo/release")])
            .agent("bob", clerk(), vec![])
            .agent("eve", eve.native(), vec![]);
        let (mut alpha, mut bravo) = linked(here, QUIC).await;
        let control = alpha.host().control.clone();
        for caller in ["ann", "eve"] {
            let service = Grantable::Service("bob".into());
            control.grant(caller, service).await.unwrap();
        }
        let threads: std::collections::BTreeSet<_> =
            control.agents().iter().map(|agent| agent.worker).collect();
        assert_eq!(threads.len(), workers.min(3));
        for puppet in [&ann, &eve] {
            puppet.until_life(1).await;
            puppet.graft().await.unwrap().unwrap();
        }
        graft(&ann, "bravo/release").await;
        let made = ann.attenuate("bravo/release", Terms::all(), "made").await;
        made.unwrap().unwrap();
        hand(&ann, "made").await;
        assert_eq!(asked(&eve, "by bob").await, "");
        said(&ann, "bravo/release", Draft::inform("by ann"))
            .await
            .unwrap();
        let word = |author: &str, text: &str| (author.to_owned(), text.to_owned());
        let mut expected = vec![word("alpha/bob", "by bob"), word("alpha/ann", "by ann")];
        assert_eq!(counts(&bravo).await, expected);

        // The lender cuts it; what she holds herself goes on.
        ann.cut("made", "a test").await.unwrap().unwrap();
        let refused = asked(&eve, "after the cut").await;
        assert!(refused.starts_with("Stale"), "{refused}");
        said(&ann, "bravo/release", Draft::inform("still ann"))
            .await
            .unwrap();
        expected.push(word("alpha/ann", "still ann"));
        assert_eq!(counts(&bravo).await, expected);

        // The peer's epoch ends, and with it what was lent in it.
        hand(&ann, "bravo/release").await;
        assert_eq!(asked(&eve, "lent anew").await, "");
        expected.push(word("alpha/bob", "lent anew"));
        let ended = ann.ended();
        let (decided, _) = bravo.host().control.bump("a test", false, "test").await;
        assert_eq!(decided.pending, None);
        assert!(within("it is told", ended).await.unwrap().is_stale());
        let refused = asked(&eve, "after the bump").await;
        assert_ne!(
            refused, "",
            "what was lent before the bump says nothing after it"
        );
        graft(&ann, "bravo/release").await;
        said(&ann, "bravo/release", Draft::inform("ann anew"))
            .await
            .unwrap();
        expected.push(word("alpha/ann", "ann anew"));
        // Lent once more, it speaks again.
        let lent = until("bob is back, too", async || {
            hand(&ann, "bravo/release").await;
            let asked = asked(&eve, "bob anew").await;
            asked.is_empty().then_some(())
        });
        lent.await;
        expected.push(word("alpha/bob", "bob anew"));
        assert_eq!(counts(&bravo).await, expected);
        drop(control);
        alpha.close().await;
        bravo.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_host_speaks_through_the_second_and_directly_and_each_way_is_cut_by_itself() {
    const WAYS: [&str; 2] = ["alpha/bravo/release", "bravo/release"];
    let (far, keeper) = (Puppet::new(), Puppet::new());
    let home =
        Plan::new()
            .channel("release")
            .agent("keeper", keeper.native(), vec![all_of("release")]);
    let away = Plan::new().agent("far", far.native(), WAYS.map(all_of).into());
    let mut bravo = Site::new("bravo", home).listens(QUIC);
    let mut alpha = Site::new("alpha", Plan::new()).listens(QUIC);
    let mut charlie = Site::new("charlie", away);
    bravo.knows(&alpha, vec![all_of("release")]);
    bravo.knows(&charlie, vec![all_of("release")]);
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    alpha.knows(&charlie, vec![all_of("bravo/release")]);
    alpha.open().await;
    alpha.linked("bravo").await;
    charlie.knows(&alpha, vec![]);
    charlie.knows(&bravo, vec![]);
    charlie.open().await;
    charlie.linked("alpha").await;
    charlie.linked("bravo").await;
    far.until_life(1).await;
    keeper.until_life(1).await;
    graft(&keeper, "release").await;
    for way in WAYS {
        graft(&far, way).await;
    }

    // It works both ways, as another guest each.
    let word = |author: &str, text: &str| (author.to_owned(), text.to_owned());
    let mut expected = Vec::new();
    for (way, author) in WAYS.iter().zip(["alpha/charlie/far", "charlie/far"]) {
        said(&far, way, Draft::inform(*way)).await.unwrap();
        assert!(
            heard(&keeper, "release")
                .await
                .author
                .starts_with(&format!("{author}@"))
        );
        expected.push(word(author, way));
    }
    assert_eq!(all(bravo.host(), "release").await, expected);

    // Bravo takes back what it granted alpha: what charlie has of alpha is gone with it, and what it has of bravo isn't.
    let control = bravo.host().control.clone();
    let peer = PersonaId::new(control.host_id(), PersonaName::peer("alpha").unwrap());
    let ended = far.ended();
    for grant in control.grants_for(&peer) {
        let decided = control
            .revoke(&grant.id.to_string(), "a test", "test")
            .await;
        assert_eq!(decided.unwrap().pending, None);
    }
    assert!(within("it is told", ended).await.unwrap().is_stale());
    until("the way through alpha is denied", async || {
        far.graft().await.unwrap().ok()?;
        let speaking = far.speak(WAYS[0], vec![Draft::inform("never")]);
        match within("it is answered", speaking).await.unwrap() {
            Err(error) => (error.kind() == Kind::Denied).then_some(()),
            Ok(outcomes) => {
                let outcome = outcomes.into_iter().next()?;
                let refused = outcome.expect_err("bravo has taken it back").reason.0;
                (refused == Refusal::NoRight).then_some(())
            }
        }
    })
    .await;
    graft(&far, WAYS[1]).await;
    said(&far, WAYS[1], Draft::inform("directly"))
        .await
        .unwrap();
    expected.push(word("charlie/far", "directly"));
    assert_eq!(all(bravo.host(), "release").await, expected);

    // Bravo's epoch ends for charlie's agents, too.
    far.keep_as(WAYS[1], "old").await.unwrap().unwrap();
    let ended = far.ended();
    let (decided, _) = control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    assert!(within("it is told", ended).await.unwrap().is_stale());
    let late = is_stale(&far, "old").await;
    assert!(late, "what is of the old epoch says nothing");
    graft(&far, WAYS[1]).await;
    said(&far, WAYS[1], Draft::inform("anew")).await.unwrap();
    expected.push(word("charlie/far", "anew"));
    assert_eq!(all(bravo.host(), "release").await, expected);
    drop(control);
    for site in [&mut charlie, &mut alpha, &mut bravo] {
        site.close().await;
    }
}

/// Whether what is said through an old facet is stale.
async fn is_stale(puppet: &Puppet, facet: &str) -> bool {
    let speaking = puppet.speak(facet, vec![Draft::inform("late")]);
    let said = within("it is answered", speaking).await.unwrap();
    said.is_err_and(|error| error.is_stale())
}
