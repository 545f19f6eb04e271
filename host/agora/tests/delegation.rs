//! Agents introduced to each other: what is lent speaks as its borrower, within the lender's terms, and dies with the lender.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::time::Duration;

use agora::boot::host::Host;
use agora::boot::manifest::GrantSpec;
use agora::door::control::Grantable;
use agora::persona::instance::End;
use agora::testbed::{Native, Plan, Puppet, all_of, under};
use agora_desk::desk_capnp::desk;
use agora_guest::{Draft, Error, Kind, Terms};
use agora_realm::{Ordinal, Rights, ServiceName, Terms as Granted};

/// All on one vat thread; each on its own, with bridges between them.
const THREADS: [usize; 2] = [4, 1];

fn service(name: &str) -> GrantSpec {
    GrantSpec::Service(ServiceName::new(name).unwrap())
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

/// `ann` holds `square` and knows `bob`; `bob` holds `own` and knows `cy`; `cy` holds nothing; `eve` knows `bob`.
struct Bed {
    host: Host,
    ann: Puppet,
    _data: tempfile::TempDir,
}

async fn bed_under(terms: Granted, workers: usize) -> Bed {
    bed_with_eve(terms, workers).await.0
}

async fn bed(workers: usize) -> Bed {
    bed_under(Granted::ALL, workers).await
}

impl Bed {
    /// Ann passes a facet to bob, who keeps it under a name.
    async fn hand(&self, facet: &str, name: &str) -> Result<(), Error> {
        let (facet, name) = (facet.to_owned(), name.to_owned());
        let handing = self.ann.run(|stage| async move {
            let facet = stage.facet(&facet)?.client();
            agora_desk::hand(&bob(&stage)?, &name, facet).await
        });
        within(handing).await.unwrap()
    }

    /// Ann asks bob to say something through what he keeps, or holds himself. Empty: it counts.
    async fn ask(&self, name: &str, text: &str) -> Result<String, Error> {
        let (name, text) = (name.to_owned(), text.to_owned());
        let asking = self
            .ann
            .run(|stage| async move { agora_desk::ask(&bob(&stage)?, &name, &text).await });
        within(asking).await.unwrap()
    }

    /// Who said what on a channel, in order.
    async fn said(&self, channel: &str) -> Vec<(String, String)> {
        let control = &self.host.control;
        let name = control.channel_named(channel).unwrap();
        let record = control.record();
        let kept = record.messages(&name, Ordinal(1), 1000, usize::MAX).await;
        let said = kept.unwrap().into_iter().map(|kept| {
            let author = kept.sealed.entry().author.clone().unwrap();
            let payload = kept.message().payload.to_vec();
            (author.to_string(), String::from_utf8(payload).unwrap())
        });
        said.collect()
    }

    fn grants(&self, agent: &str) -> Vec<agora_realm::Grant> {
        let persona = self.host.control.persona_named(agent).unwrap();
        let state = self.host.control.record().state();
        state.grants_of(&persona).map(|(_, g)| g.clone()).collect()
    }
}

fn bob(stage: &agora::testbed::Stage) -> Result<desk::Client, Error> {
    let graft = stage.graft.borrow().clone();
    graft.unwrap().capability("bob")
}

fn words(said: &[(&str, &str)]) -> Vec<(String, String)> {
    let said = said.iter();
    said.map(|(who, what)| (String::from(*who), String::from(*what)))
        .collect()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it answers in time")
}

async fn eventually(what: &str, is: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come to be");
}

fn draft(text: &str) -> Draft {
    Draft::inform(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_speaks_as_its_borrower_under_the_lenders_terms() {
    for workers in THREADS {
        let bed = bed(workers).await;
        let narrow = Terms {
            bytes_max: 5,
            ..Terms::all()
        };
        let made = bed.ann.attenuate("square", narrow, "narrow").await;
        made.unwrap().unwrap();
        bed.hand("narrow", "kept").await.unwrap();
        assert_eq!(bed.ask("kept", "hi").await.unwrap(), "");
        assert!(
            bed.ask("kept", "far too long")
                .await
                .unwrap()
                .starts_with("TooLarge")
        );
        bed.ann
            .speak("square", vec![draft("and me")])
            .await
            .unwrap()
            .unwrap();
        let said = words(&[("bob", "hi"), ("ann", "and me")]);
        assert_eq!(bed.said("square").await, said);
        let lent: Vec<_> = bed
            .grants("bob")
            .into_iter()
            .filter(|g| g.parent.is_some())
            .collect();
        assert_eq!(lent.len(), 1, "a grant under ann's is on the record");
        assert_eq!(
            (lent[0].effective.bytes_max, lent[0].depth, lent[0].used),
            (5, 3, 1)
        );
        // Lent again, it is the same grant.
        bed.hand("narrow", "twice").await.unwrap();
        assert_eq!(bed.ask("twice", "ho").await.unwrap(), "");
        assert_eq!(bed.grants("bob").len(), 3, "own, the service, the loan");
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_lender_cuts_what_it_lent_and_killing_the_borrower_leaves_the_lender_alone() {
    for workers in THREADS {
        let bed = bed(workers).await;
        bed.hand("square", "kept").await.unwrap();
        assert_eq!(bed.ask("kept", "before").await.unwrap(), "");
        let control = &bed.host.control;
        control.kill("bob", "a test", "test").await.unwrap();
        let refused = bed.ask("kept", "nobody").await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy, "{refused}");
        bed.ann.info("square").await.unwrap().unwrap();
        control.start("bob").await.unwrap();
        // A new life keeps nothing, and was lent nothing.
        let refused = bed.ask("kept", "gone").await.unwrap_err();
        assert!(
            refused.to_string().contains("no grant for 'kept'"),
            "{refused}"
        );
        assert_eq!(bed.grants("bob").len(), 2);
        bed.hand("square", "kept").await.unwrap();
        assert_eq!(bed.ask("kept", "again").await.unwrap(), "");

        // What bob passed on to cy died with bob's first life, and dies with ann's.
        let relayed = relay(&bed, "kept", "by cy").await.unwrap();
        assert_eq!(relayed, "");
        control.kill("ann", "a test", "test").await.unwrap();
        for agent in ["bob", "cy"] {
            let lent = bed.grants(agent);
            assert!(lent.iter().all(|g| g.parent.is_none()), "{agent}: {lent:?}");
        }
        let said = words(&[("bob", "before"), ("bob", "again"), ("cy", "by cy")]);
        assert_eq!(bed.said("square").await, said);
        bed.host.close().await;
    }
}

/// Bob passes what he keeps to cy, who speaks through it.
async fn relay(bed: &Bed, name: &str, text: &str) -> Result<String, Error> {
    let (name, text) = (name.to_owned(), text.to_owned());
    let relaying = bed.ann.run(|stage| async move {
        let mut request = bob(&stage)?.relay_request();
        request.get().set_name(name.as_str());
        request.get().set_at("cy");
        request.get().set_text(text.as_str());
        let response = request.send().promise.await?;
        Ok(response.get()?.get_error()?.to_string()?)
    });
    within(relaying).await.unwrap()
}

/// A second agent's view: what bob keeps works for as long as it should, seen from bob's side after ann is gone.
async fn speaks_still(bed: &Bed, eve: &Puppet, name: &str) -> String {
    let name = name.to_owned();
    let asking = eve.run(|stage| async move {
        match bob(&stage) {
            Ok(bob) => agora_desk::ask(&bob, &name, "still?").await,
            Err(error) => Err(error),
        }
    });
    let asked = within(asking).await.unwrap();
    let _ = &bed.host;
    asked.unwrap_or_else(|error| format!("{:?}: {error}", error.kind()))
}

/// As [`bed`], and `eve` knows `bob` too. With several vat threads, each lives on one of its own.
async fn bed_with_eve(terms: Granted, workers: usize) -> (Bed, Puppet) {
    let data = tempfile::tempdir().unwrap();
    let (ann, eve) = (Puppet::new(), Puppet::new());
    let plan = Plan::new()
        .workers(workers)
        .channel("square")
        .channel("own")
        .agent("ann", ann.native(), vec![under("square", terms)])
        .agent("bob", clerk(), vec![all_of("own")])
        .agent("cy", clerk(), vec![])
        .agent("eve", eve.native(), vec![]);
    let host = plan.open(data.path()).await.unwrap();
    // Introduced by the operator, so that they stay on the threads they were dealt to.
    for (caller, server) in [("ann", "bob"), ("bob", "cy"), ("eve", "bob")] {
        let service = Grantable::Service(server.into());
        host.control.grant(caller, service).await.unwrap();
    }
    let threads: std::collections::BTreeSet<_> =
        host.control.agents().iter().map(|a| a.worker).collect();
    assert_eq!(threads.len(), workers);
    for puppet in [&ann, &eve] {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
    }
    let bed = Bed {
        host,
        ann,
        _data: data,
    };
    (bed, eve)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_dies_with_the_lenders_kill_grant_graft_and_facet_while_the_borrower_lives_on()
{
    let ways = ["kill", "revoke", "graft", "cut", "end"];
    for (how, workers) in ways.iter().flat_map(|how| THREADS.map(|n| (*how, n))) {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        let control = &bed.host.control;
        let made = bed.ann.attenuate("square", Terms::all(), "made").await;
        made.unwrap().unwrap();
        bed.hand("made", "kept").await.unwrap();
        assert_eq!(speaks_still(&bed, &eve, "kept").await, "", "{how}");
        match how {
            "kill" => drop(control.kill("ann", "a test", "test").await.unwrap()),
            "revoke" => {
                let ann = control.persona_named("ann").unwrap();
                let grants = control.grants_for(&ann);
                let square = grants
                    .iter()
                    .find(|g| matches!(&g.object, agora_realm::Object::Channel(_)));
                let id = square.unwrap().id.to_string();
                drop(control.revoke(&id, "a test", "test").await.unwrap());
            }
            "graft" => drop(bed.ann.graft().await.unwrap().unwrap()),
            "cut" => bed.ann.cut("made", "a test").await.unwrap().unwrap(),
            _ => bed.ann.end(End::Done).await,
        }
        if how == "end" {
            eventually("ann's end", async || {
                speaks_still(&bed, &eve, "kept").await.starts_with("Stale")
            })
            .await;
        }
        let refused = speaks_still(&bed, &eve, "kept").await;
        assert!(refused.starts_with("Stale"), "{how}: {refused}");
        assert_eq!(speaks_still(&bed, &eve, "own").await, "", "{how}");
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_takes_everything_that_was_lent_and_what_lasts_comes_back_by_name() {
    for workers in THREADS {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        let control = &bed.host.control;
        let few = Terms {
            count: 3,
            ..Terms::all()
        };
        let lasting = bed.ann.run(|stage| async move {
            let square = stage.facet("square")?;
            let (passing, _) = square.attenuate(&Terms::all()).await?;
            let (lasting, _) = square.attenuate_lasting(&few).await?;
            agora_desk::hand(&bob(&stage)?, "passing", passing.client()).await?;
            agora_desk::hand(&bob(&stage)?, "lasting", lasting.client()).await
        });
        within(lasting).await.unwrap().unwrap();
        assert_eq!(speaks_still(&bed, &eve, "passing").await, "");
        assert_eq!(speaks_still(&bed, &eve, "lasting").await, "");
        control.bump("a test", false, "test").await;
        for puppet in [&bed.ann, &eve] {
            puppet.graft().await.unwrap().unwrap();
        }
        // The names that bob gave are forgotten, and what lasts has its channel's.
        for name in ["passing", "lasting"] {
            let refused = speaks_still(&bed, &eve, name).await;
            assert!(refused.contains("no grant"), "{refused}");
        }
        assert_eq!(speaks_still(&bed, &eve, "square").await, "");
        // It is suspended while ann is killed, and back when she is started; her count goes on.
        let ann = bed.ann.ended();
        control.kill("ann", "a test", "test").await.unwrap();
        drop(ann.await);
        eventually("the suspension", async || {
            let refused = speaks_still(&bed, &eve, "square").await;
            assert!(!refused.is_empty());
            refused.starts_with("Stale") || refused.contains("no grant")
        })
        .await;
        control.start("ann").await.unwrap();
        control.kill("bob", "a test", "test").await.unwrap();
        control.start("bob").await.unwrap();
        assert_eq!(speaks_still(&bed, &eve, "square").await, "");
        let spent = speaks_still(&bed, &eve, "square").await;
        assert!(spent.starts_with("CountSpent"), "{spent}");
        // Taken back by the operator, it is gone for good.
        let lent = bed.grants("bob").into_iter().find(|g| g.lasting).unwrap();
        let taken = control
            .revoke(&format!("g{}", lent.number), "a test", "test")
            .await;
        taken.unwrap();
        eventually("the end of it", async || {
            speaks_still(&bed, &eve, "square")
                .await
                .contains("no grant")
        })
        .await;
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_and_deliveries_through_what_was_lent_end_with_it() {
    for workers in THREADS {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        // Ann hears through a facet that she cuts: she is told, and her own facet goes on.
        let made = bed.ann.attenuate("square", Terms::all(), "made").await;
        made.unwrap().unwrap();
        bed.ann.subscribe("made").await.unwrap().unwrap();
        let hearing = {
            let ann = bed.ann.clone();
            tokio::spawn(async move { ann.heard("made").await })
        };
        bed.ann.cut("made", "enough").await.unwrap().unwrap();
        assert!(within(hearing).await.unwrap().unwrap().unwrap().is_none());
        bed.ann.info("square").await.unwrap().unwrap();
        // A call between two agents is cut with the caller's graft, and what it holds with it.
        let holding = eve.run(|stage| async move {
            let request = bob(&stage)?.hold_request();
            request.send().promise.await.map(drop).map_err(Error::from)
        });
        let ended = eve.ended();
        // What is sent behind it is answered only once it is there.
        assert_eq!(speaks_still(&bed, &eve, "own").await, "");
        bed.host.control.bump("a test", false, "test").await;
        let refused = within(holding).await.unwrap().unwrap_err();
        assert!(refused.is_stale(), "{refused}");
        assert!(within(ended).await.unwrap().is_stale());
        // And with the server's life; then it is not the caller's graft that is stale.
        eve.graft().await.unwrap().unwrap();
        let holding = eve.run(|stage| async move {
            let request = bob(&stage)?.hold_request();
            request.send().promise.await.map(drop).map_err(Error::from)
        });
        // What is sent behind it is answered only once it is there.
        assert_eq!(speaks_still(&bed, &eve, "own").await, "");
        bed.host
            .control
            .kill("bob", "a test", "test")
            .await
            .unwrap();
        let refused = within(holding).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy, "{refused}");
        assert!(refused.to_string().contains("unknown"), "{refused}");
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facet_passed_before_it_exists_is_lent_all_the_same() {
    for workers in THREADS {
        let bed = bed(workers).await;
        let early = bed.ann.run(|stage| async move {
            // Everything is sent at once: the facet is still being made when bob is asked to speak through it.
            let mut making = stage.facet("square")?.client().attenuate_request();
            making.get().init_terms();
            let made = making.send();
            let bob = bob(&stage)?;
            let handing = agora_desk::hand(&bob, "early", made.pipeline.get_channel());
            let asking = agora_desk::ask(&bob, "early", "who am I?");
            let (handed, asked) = futures::join!(handing, asking);
            handed?;
            asked
        });
        assert_eq!(within(early).await.unwrap().unwrap(), "");
        assert_eq!(bed.said("square").await, words(&[("bob", "who am I?")]));
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_holds_is_lent_too_and_what_comes_back_is_lent_back() {
    for workers in THREADS {
        let bed = bed(workers).await;
        let fetching = bed.ann.run(|stage| async move {
            let bob = bob(&stage)?;
            agora_desk::hand(&bob, "square", stage.facet("square")?.client()).await?;
            let mut said = Vec::new();
            for name in ["own", "square"] {
                let mut request = bob.fetch_request();
                request.get().set_name(name);
                let fetched = request.send().promise.await?;
                let facet = fetched.get()?.get_channel()?;
                said.push(agora_desk::say(facet, name).await);
            }
            Ok::<_, Error>(said)
        });
        assert_eq!(within(fetching).await.unwrap().unwrap(), ["", ""]);
        // She speaks as herself, through bob's channel too.
        assert_eq!(bed.said("own").await, words(&[("ann", "own")]));
        assert_eq!(bed.said("square").await, words(&[("ann", "square")]));
        let depths: Vec<_> = bed.grants("ann").iter().map(|g| g.depth).collect();
        assert_eq!(depths, [1, 1, 2, 3]);
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_delegates_spends_no_more_than_its_root() {
    for workers in THREADS {
        let few = Granted {
            count: 7,
            ..Granted::ALL
        };
        let bed = bed_under(few, workers).await;
        bed.hand("square", "kept").await.unwrap();
        assert_eq!(relay(&bed, "kept", "first of cy").await.unwrap(), "");
        let speaking = (0..10).map(|n| {
            let (ann, text) = (bed.ann.clone(), format!("ann {n}"));
            let bed = &bed;
            async move {
                let own = ann.speak("square", vec![draft(&text)]);
                let lent = bed.ask("kept", "bob");
                let passed = relay(bed, "kept", "cy");
                let (own, lent, passed) = tokio::join!(own, lent, passed);
                usize::from(own.unwrap().unwrap()[0].is_ok())
                    + usize::from(lent.unwrap().is_empty())
                    + usize::from(passed.unwrap().is_empty())
            }
        });
        let counted: usize = futures::future::join_all(speaking).await.iter().sum();
        assert_eq!(counted, 6);
        assert_eq!(bed.said("square").await.len(), 7);
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_attenuate_nothing_is_lent() {
    for workers in THREADS {
        let kept = Granted {
            rights: Rights::READ | Rights::WRITE | Rights::INITIATE,
            ..Granted::ALL
        };
        let bed = bed_under(kept, workers).await;
        bed.hand("square", "kept").await.unwrap();
        let refused = bed.ask("kept", "not mine").await.unwrap();
        assert!(refused.starts_with("Denied"), "{refused}");
        assert!(refused.contains("lent by ann@"), "{refused}");
        assert!(bed.said("square").await.is_empty());
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_through_a_narrow_facet_may_name_another_and_never_somebody_elses() {
    for workers in THREADS {
        let bed = bed(workers).await;
        let control = &bed.host.control;
        let what = Grantable::Channel("own".into(), Granted::ALL);
        control.grant("ann", what).await.unwrap();
        bed.ann.graft().await.unwrap().unwrap();
        bed.hand("square", "kept").await.unwrap();
        assert_eq!(bed.ask("own", "question").await.unwrap(), "");
        let made = bed.ann.attenuate("own", Terms::all(), "narrow").await;
        made.unwrap().unwrap();
        let answering = bed.ann.run(|stage| async move {
            let (narrow, square) = (stage.facet("narrow")?, stage.facet("square")?);
            let (heard, _) = narrow.history(1, 10).await?;
            let turn = narrow.turn(&heard[0]).reply(draft("answer"));
            let outcomes = turn.say_on(&square, draft("elsewhere")).take().await?;
            Ok::<_, Error>(outcomes.iter().all(Result::is_ok))
        });
        assert!(within(answering).await.unwrap().unwrap());
        assert_eq!(bed.said("square").await, words(&[("ann", "elsewhere")]));
        bed.host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_serves_nothing_keeps_its_callers_waiting_a_while_and_a_stranger_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let (ann, bob) = (Puppet::new(), Puppet::new());
    let plan = Plan::new()
        .agent("ann", ann.native(), vec![service("bob")])
        .agent("bob", bob.native(), vec![]);
    let host = plan.open(data.path()).await.unwrap();
    for puppet in [&ann, &bob] {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
    }
    let asking = ann.run(|stage| async move {
        let bob: desk::Client = stage.graft.borrow().clone().unwrap().capability("bob")?;
        agora_desk::ask(&bob, "anything", "to say?").await
    });
    let mut asking = std::pin::pin!(asking);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut asking).await;
    assert!(early.is_err(), "it waits for bob to serve");
    let serving = bob.run(|stage| async move {
        let graft = stage.graft.borrow().clone().unwrap();
        let clerk = agora_desk::Clerk::new(&graft);
        let client: desk::Client = capnp_rpc::new_client_from_rc(clerk);
        graft.serve(client).await
    });
    within(serving).await.unwrap().unwrap();
    let answered = within(asking).await.unwrap().unwrap_err();
    assert!(answered.to_string().contains("no grant"), "{answered}");
    let known = host
        .control
        .grant("ann", Grantable::Service("bbo".into()))
        .await;
    assert!(known.unwrap_err().contains("did you mean 'bob'"));
    host.close().await;
}

/// Eve asks cy, whom she was introduced to, to say something through what it keeps.
async fn cy_speaks_still(eve: &Puppet, name: &str) -> String {
    let name = name.to_owned();
    let asking = eve.run(|stage| async move {
        let graft = stage.graft.borrow().clone();
        let cy: desk::Client = graft.unwrap().capability("cy")?;
        agora_desk::ask(&cy, &name, "still?").await
    });
    let asked = within(asking).await.unwrap();
    asked.unwrap_or_else(|error| format!("{:?}: {error}", error.kind()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_borrower_lent_on_ends_with_the_borrowers_graft() {
    for workers in THREADS {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        let control = &bed.host.control;
        let cy = Grantable::Service("cy".into());
        control.grant("eve", cy).await.unwrap();
        eve.graft().await.unwrap().unwrap();
        bed.hand("square", "kept").await.unwrap();
        assert_eq!(relay(&bed, "kept", "by cy").await.unwrap(), "");
        assert_eq!(cy_speaks_still(&eve, "relayed").await, "");
        // Bob's wall falls; ann's stands, and so does cy's.
        control.grant("bob", Grantable::Timer).await.unwrap();
        eventually("the end of what bob lent", async || {
            cy_speaks_still(&eve, "relayed").await.starts_with("Stale")
        })
        .await;
        assert_eq!(bed.grants("cy").len(), 1, "it stays on the books");
        bed.host.close().await;
    }
}

/// Eve takes what bob has under a name, keeps it, and speaks through it.
async fn fetches(eve: &Puppet, name: &str, keep: &str) -> String {
    let (name, keep) = (name.to_owned(), keep.to_owned());
    let fetching = eve.run(|stage| async move {
        let mut request = bob(&stage)?.fetch_request();
        request.get().set_name(name.as_str());
        let fetched = request.send().promise.await?;
        let facet = fetched.get()?.get_channel()?;
        let held = agora_guest::Channel::from_client(&keep, facet.clone());
        stage.facets.borrow_mut().insert(keep, held);
        Ok::<_, Error>(agora_desk::say(facet, "fetched").await)
    });
    let said = within(fetching).await.unwrap();
    said.unwrap_or_else(|error| format!("{:?}: {error}", error.kind()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_anew_lives_although_what_was_lent_before_is_still_held() {
    for workers in THREADS {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        let control = &bed.host.control;
        assert_eq!(fetches(&eve, "own", "first").await, "");
        control.grant("bob", Grantable::Timer).await.unwrap();
        eventually("bob's next graft", async || {
            !fetches(&eve, "own", "second").await.starts_with("Busy")
        })
        .await;
        assert_eq!(fetches(&eve, "own", "third").await, "");
        let refused = eve.info("first").await.unwrap().unwrap_err();
        assert!(refused.is_stale(), "{refused}");
        bed.host.close().await;
    }
}

/// Passed to and fro, a promise is held back once more each time, and each waits for the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_passed_to_and_fro_does_not_pile_up_without_end() {
    for workers in THREADS {
        let bed = bed(workers).await;
        let playing = bed.ann.run(|stage| async move {
            let bob = bob(&stage)?;
            let mut ball: desk::Client = capnp_rpc::new_future_client(std::future::pending());
            for _ in 0..3000 {
                let mut request = bob.echo_request();
                request.get().set_desk(ball);
                let answer = request.send().promise.await?;
                ball = answer.get()?.get_desk()?;
            }
            Ok::<_, Error>(())
        });
        let _ = tokio::time::timeout(Duration::from_secs(120), playing).await;
        bed.ann.graft().await.unwrap().unwrap();
        assert_eq!(bed.ask("own", "alive").await.unwrap(), "");
        bed.host.close().await;
    }
}

/// Hands on whatever desk it is given to hold.
struct Keeper(tokio::sync::mpsc::UnboundedSender<desk::Client>);

impl desk::Server for Keeper {
    async fn hold(
        self: std::rc::Rc<Self>,
        params: desk::HoldParams,
        _results: desk::HoldResults,
    ) -> Result<(), capnp::Error> {
        let _ = self.0.send(params.get()?.get_desk()?);
        Ok(())
    }
}

/// Two who know each other pass one thing round, so that it is never home: there is one more wall about it each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_thing_passed_round_does_not_pile_up_walls_without_end() {
    let data = tempfile::tempdir().unwrap();
    let names = ["ann", "bob"];
    let puppets = [Puppet::new(), Puppet::new()];
    let plan = Plan::new()
        .agent("ann", puppets[0].native(), vec![service("bob")])
        .agent("bob", puppets[1].native(), vec![service("ann")]);
    let host = plan.open(data.path()).await.unwrap();
    for puppet in &puppets {
        puppet.until_life(1).await;
        puppet.graft().await.unwrap().unwrap();
    }
    let (denied, mut was_denied) = tokio::sync::mpsc::unbounded_channel();
    for (puppet, other) in puppets.iter().zip([names[1], names[0]]) {
        let denied = denied.clone();
        let serving = puppet.run(move |stage| async move {
            let graft = stage.graft.borrow().clone().unwrap();
            let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel();
            let keeper: desk::Client = capnp_rpc::new_client(Keeper(keep.clone()));
            graft.serve(keeper).await?;
            let other: desk::Client = graft.capability(other)?;
            if graft.capability::<desk::Client>("bob").is_ok() {
                let _ = keep.send(capnp_rpc::new_client(Keeper(keep.clone())));
            }
            tokio::task::spawn_local(async move {
                while let Some(thing) = kept.recv().await {
                    let tried = thing.echo_request().send().promise.await;
                    if Error::from(tried.err().unwrap()).kind() == Kind::Denied {
                        let _ = denied.send(());
                        break;
                    }
                    let mut request = other.hold_request();
                    request.get().set_desk(thing);
                    let _ = request.send().promise.await;
                }
            });
            Ok::<_, Error>(())
        });
        within(serving).await.unwrap().unwrap();
    }
    within(was_denied.recv()).await.unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cancels_its_calls_ends_nobody_else() {
    for workers in THREADS {
        let (bed, eve) = bed_with_eve(Granted::ALL, workers).await;
        for round in 0..36 {
            // Each end of a test bed's wire keeps the host's bounds, so one alone would end itself first; a component would not.
            let who = [&bed.ann, &eve][round % 2];
            let calling = who.run(|stage| async move {
                let bob = bob(&stage)?;
                let holding: Vec<_> = (0..500).map(|_| bob.hold_request().send()).collect();
                // Behind them.
                agora_desk::ask(&bob, "nope", "are they there?").await.ok();
                drop(holding);
                Ok::<_, Error>(())
            });
            within(calling).await.unwrap().unwrap();
        }
        let phase = bed.host.control.agent("bob").unwrap().shared.phase();
        assert_eq!(phase.name(), "running", "{phase:?}");
        // He can't be asked any more, until he starts anew.
        let refused = speaks_still(&bed, &eve, "own").await;
        assert!(refused.starts_with("Busy"), "{refused}");
        bed.host.close().await;
    }
}

struct Flood(std::cell::Cell<u64>);

impl desk::Server for Flood {
    async fn echo(
        self: std::rc::Rc<Self>,
        _params: desk::EchoParams,
        mut results: desk::EchoResults,
    ) -> Result<(), capnp::Error> {
        self.0.set(self.0.get() + 1);
        tokio::time::sleep(Duration::from_millis(1000 + 30 * self.0.get())).await;
        results.get().set_text("x".repeat(900_000).as_str());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cannot_end_its_caller_by_large_answers() {
    let data = tempfile::tempdir().unwrap();
    let ann = Native::new(|end| async move {
        let mut system = agora_guest::wire::Rpc::new(agora_guest::wire::Network::new(end), None);
        let door = system.bootstrap();
        let asking = async {
            let graft = agora_guest::Graft::arrive(&door).await?;
            let bob: desk::Client = graft.capability("bob")?;
            let sent = (0..40).map(|_| bob.echo_request().send().promise);
            let answers = futures::future::join_all(sent.collect::<Vec<_>>()).await;
            Ok::<_, Error>(answers.iter().filter(|a| a.is_ok()).count())
        };
        let mut asking = Box::pin(asking);
        for busy in [true, false] {
            // Long enough to send everything, and in the end to take what came.
            let span = Duration::from_millis(if busy { 900 } else { 60_000 });
            let some = tokio::time::timeout(span, async {
                tokio::select! {
                    _ = &mut system => End::Failed("closed".into()),
                    done = &mut asking => match done {
                        // What did not fit is lost, and said so.
                        Ok(1..=40) => End::Done,
                        other => End::Failed(format!("{other:?}")),
                    },
                }
            });
            if let Ok(end) = some.await {
                return end;
            }
            // It computes for a while.
            if busy {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        }
        End::Failed("too late".into())
    });
    let bob = Native::new(|end| async {
        let served = agora_guest::vat::drive(end, |graft: agora_guest::Graft| async move {
            let client: desk::Client = capnp_rpc::new_client(Flood(Default::default()));
            graft.serve(client).await?;
            Err::<(), _>(graft.ended().await)
        });
        match served.await {
            Ok(()) => End::Done,
            Err(error) => End::Failed(error.to_string()),
        }
    });
    let plan = Plan::new()
        .agent("ann", ann, vec![service("bob")])
        .agent("bob", bob, vec![]);
    let host = plan.open(data.path()).await.unwrap();
    let phase = || host.control.agent("ann").unwrap().shared.phase();
    for _ in 0..1600 {
        if phase().name() == "ended" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(phase().detail(), "it was done");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lender_does_not_use_up_the_borrowers_grants() {
    let bed = bed(1).await;
    for _ in 0..30 {
        let lending = bed.ann.run(|stage| async move {
            let (bob, square) = (bob(&stage)?, stage.facet("square")?);
            let one = |n: usize| {
                let (bob, square) = (bob.clone(), square.clone());
                async move {
                    let (made, _) = square.attenuate_lasting(&Terms::all()).await?;
                    agora_desk::hand(&bob, &format!("x{n}"), made.client()).await?;
                    Ok::<_, Error>(agora_desk::ask(&bob, &format!("x{n}"), "").await)
                }
            };
            futures::future::join_all((0..50).map(one)).await;
            Ok::<_, Error>(())
        });
        within(lending).await.unwrap().ok();
    }
    let granted = bed.host.control.grant("bob", Grantable::Timer).await;
    assert!(granted.is_ok(), "{granted:?}");
    bed.host.close().await;
}

struct Liar;

impl desk::Server for Liar {
    async fn echo(
        self: std::rc::Rc<Self>,
        _params: desk::EchoParams,
        mut results: desk::EchoResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_desk(capnp_rpc::new_client(Liar));
        Ok(())
    }
    async fn hold(
        self: std::rc::Rc<Self>,
        _params: desk::HoldParams,
        _results: desk::HoldResults,
    ) -> Result<(), capnp::Error> {
        Err(capnp::Error::failed("[stale] graft again".into()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_gave_cannot_stale_its_caller_either() {
    let data = tempfile::tempdir().unwrap();
    let ann = Puppet::new();
    let liar = Native::new(|end| async {
        let served = agora_guest::vat::drive(end, |graft: agora_guest::Graft| async move {
            let client: desk::Client = capnp_rpc::new_client(Liar);
            graft.serve(client).await?;
            Err::<(), _>(graft.ended().await)
        });
        match served.await {
            Ok(()) => End::Done,
            Err(error) => End::Failed(error.to_string()),
        }
    });
    let plan = Plan::new()
        .agent("ann", ann.native(), vec![service("bob")])
        .agent("bob", liar, vec![]);
    let host = plan.open(data.path()).await.unwrap();
    ann.until_life(1).await;
    ann.graft().await.unwrap().unwrap();
    let asking = ann.run(|stage| async move {
        let bob = bob(&stage)?;
        let at_once = bob.hold_request().send().promise.await;
        let given = bob.echo_request().send().promise.await?;
        let given = given.get()?.get_desk()?;
        let later = given.hold_request().send().promise.await;
        let kinds = [at_once, later].map(|a| Error::from(a.err().unwrap()).kind());
        Ok::<_, Error>(kinds)
    });
    let kinds = within(asking).await.unwrap().unwrap();
    assert!(!kinds.contains(&Kind::Stale), "{kinds:?}");
    host.close().await;
}
