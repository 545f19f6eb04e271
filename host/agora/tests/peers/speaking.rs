//! What is said for a peer's channel.

use agora::door::control::Said;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Draft, Kind, Refusal};
use agora_realm::{Rights, Terms};

use super::bed::{
    Bed, Pair, QUIC, Site, TCP, all, graft, heard, linked, next_key, repeated, replied, said,
    tried, until, within,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_here_is_heard_there_and_the_other_way_round() {
    for at in [QUIC, TCP] {
        let bed = Bed::new(at).await;
        let receipt = said(&bed.synth, "bravo/release", Draft::inform("from afar"))
            .await
            .unwrap();
        assert_eq!(receipt.channel, "bravo/release");
        assert_eq!(receipt.ordinal, 1);
        let message = heard(&bed.keeper, "release").await;
        assert_eq!(message.id, receipt.id);
        assert!(
            message.author.starts_with("alpha/synth@"),
            "{}",
            message.author
        );
        assert_eq!(message.payload, b"from afar");

        let answer = within(
            "the answer counts",
            bed.keeper
                .reply("release", message, Draft::inform("at home")),
        );
        let answer = answer.await.unwrap().unwrap().unwrap();
        let message = heard(&bed.synth, "bravo/release").await;
        assert_eq!((message.id, message.ordinal), (answer.id, 2));
        assert!(message.author.starts_with("keeper@"), "{}", message.author);
        // Its own message was passed over: this is the first that it heard.
        let turn = replied(&bed.synth, "bravo/release", &message, "thanks").await;
        assert_eq!(turn.hops, message.hops - 1, "hops are the peer's to count");
        let thanks = heard(&bed.keeper, "release").await;
        assert_eq!((thanks.id, thanks.parent), (turn.id, Some(message.id)));
        bed.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_taken_once_however_often_it_is_repeated() {
    let bed = Bed::new(QUIC).await;
    said(&bed.keeper, "release", Draft::inform("ready?"))
        .await
        .unwrap();
    let asked = heard(&bed.synth, "bravo/release").await;
    let mut receipts = Vec::new();
    for _ in 0..3 {
        receipts.push(replied(&bed.synth, "bravo/release", &asked, "yes").await);
    }
    assert!(receipts.iter().all(|receipt| receipt.id == receipts[0].id));
    assert!(receipts[1].repeated && receipts[2].repeated);
    let keyed = Draft::inform("keyed").key(next_key());
    let first = repeated(&bed.synth, "bravo/release", keyed.clone())
        .await
        .unwrap();
    let again = repeated(&bed.synth, "bravo/release", keyed).await.unwrap();
    assert_eq!((first.id, again.repeated), (again.id, true));
    let texts: Vec<_> = all(bed.bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["ready?", "yes", "keyed"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_an_agent_says_there_may_be_an_answer() {
    let bed = Bed::new(QUIC).await;
    let asked = said(&bed.keeper, "release", Draft::inform("who is there?")).await;
    let asked = heard_as(&bed, asked.unwrap().id).await;
    let answer = replied(&bed.synth, "bravo/release", &asked, "synth").await;
    assert_eq!((answer.ordinal, answer.hops), (2, asked.hops - 1));
    let heard = heard(&bed.keeper, "release").await;
    assert_eq!(heard.parent, Some(asked.id));
    bed.close().await;
}

/// What alpha's agent hears next, which is this message.
async fn heard_as(bed: &Bed, id: agora_guest::MessageId) -> agora_guest::Message {
    let message = heard(&bed.synth, "bravo/release").await;
    assert_eq!(message.id, id);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terms_of_both_hosts_hold() {
    let theirs = Terms {
        hops: 2,
        count: 3,
        ..Terms::ALL
    };
    let ours = Terms {
        bytes_max: 8,
        rights: Rights(Rights::READ.0 | Rights::WRITE.0 | Rights::INITIATE.0),
        ..Terms::ALL
    };
    let bed = Bed::under(QUIC, theirs, ours).await;
    let say = async |text: &str| said(&bed.synth, "bravo/release", Draft::inform(text)).await;
    assert_eq!(say("far too long").await.unwrap_err(), Refusal::TooLarge);
    let receipt = say("one").await.unwrap();
    assert_eq!((receipt.ordinal, receipt.hops), (1, 2));
    let info = until("the peer is within reach", async || {
        bed.synth.info("bravo/release").await.unwrap().ok()
    })
    .await;
    assert_eq!((info.terms.hops, info.terms.bytes_max), (2, 8));
    say("two").await.unwrap();
    say("three").await.unwrap();
    assert_eq!(say("four").await.unwrap_err(), Refusal::CountSpent);
    let made = bed
        .synth
        .attenuate("bravo/release", agora_guest::Terms::all(), "narrow");
    assert_eq!(made.await.unwrap().unwrap_err().kind(), Kind::Denied);
    assert_eq!(all(bed.bravo.host(), "release").await.len(), 3);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_known_by_its_key_logs_in_and_is_as_any_other() {
    let synth = Puppet::new();
    let here = Plan::new().agent("synth", synth.native(), vec![all_of("bravo/release")]);
    let mut bravo = Site::new("bravo", Plan::new().channel("release")).listens(QUIC);
    let mut alpha = Site::new("alpha", here);
    bravo.knows_key_of(&alpha, vec![all_of("release")]);
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    alpha.open().await;
    alpha.linked("bravo").await;
    synth.until_life(1).await;
    graft(&synth, "bravo/release").await;
    said(&synth, "bravo/release", Draft::inform("let in"))
        .await
        .unwrap();
    assert_eq!(
        all(bravo.host(), "release").await,
        [("alpha/synth".to_owned(), "let in".to_owned())]
    );
    alpha.close().await;
    bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_at_home_speaks_at_the_peers_once() {
    let (synth, other) = (Puppet::new(), Puppet::new());
    let here = Plan::new()
        .channel("home")
        .agent(
            "synth",
            synth.native(),
            vec![all_of("home"), all_of("bravo/release")],
        )
        .agent("other", other.native(), vec![all_of("home")]);
    let (mut alpha, mut bravo) = linked(here, QUIC).await;
    synth.until_life(1).await;
    other.until_life(1).await;
    graft(&synth, "bravo/release").await;
    synth.subscribe("home").await.unwrap().unwrap();
    graft(&other, "home").await;
    said(&other, "home", Draft::inform("tell them"))
        .await
        .unwrap();
    let asked = heard(&synth, "home").await;
    for again in [false, true] {
        let asked = asked.clone();
        let receipts = until("the peer is within reach", async || {
            let asked = asked.clone();
            let turn = synth.run(move |stage| async move {
                let (home, afar) = (stage.facet("home")?, stage.facet("bravo/release")?);
                let turn = home.turn(&asked).reply(Draft::inform("done"));
                turn.say_on(&afar, Draft::inform("news")).take().await
            });
            let outcomes = within("the turn is answered", turn).await.unwrap().unwrap();
            let receipts: Result<Vec<_>, _> = outcomes.into_iter().collect();
            receipts.ok()
        })
        .await;
        assert_eq!(receipts[0].channel, "home");
        assert_eq!(
            (receipts[1].channel.as_str(), receipts[1].ordinal),
            ("bravo/release", 1)
        );
        assert!(receipts[1].repeated || !again);
    }
    assert_eq!(all(bravo.host(), "release").await.len(), 1);
    alpha.close().await;
    bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_speaks_there_as_the_host() {
    let bed = Bed::new(QUIC).await;
    let say = Said {
        channel: "bravo/release".into(),
        act: agora_realm::Act::Inform,
        text: "by hand".into(),
        parent: None,
        owner: String::new(),
        deadline_ms: 0,
    };
    let control = bed.alpha.host().control.clone();
    let outcome = within("it is said", control.say(1000, say)).await.unwrap();
    let agora::channel::speak::Outcome::Receipt { placed, .. } = outcome else {
        panic!("it counts: {outcome:?}");
    };
    assert_eq!(
        (placed.channel.as_str(), placed.ordinal.0),
        ("bravo/release", 1)
    );
    let message = heard(&bed.keeper, "release").await;
    assert!(
        message.author.starts_with("peer:alpha@"),
        "{}",
        message.author
    );
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"by hand");
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_killed_there_is_refused_and_others_go_on() {
    let Pair {
        mut alpha,
        mut bravo,
        synth,
        mate,
    } = Pair::new().await;
    said(&synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    let control = bravo.host().control.clone();
    control.kill("alpha/synth", "a test", "test").await.unwrap();
    let refused = until("it is refused there", async || {
        synth.graft().await.unwrap().ok()?;
        let speaking = synth.speak("bravo/release", vec![Draft::inform("two")]);
        let outcomes = within("it is answered", speaking).await.unwrap().ok()?;
        let refused = outcomes.into_iter().next()?.unwrap_err().reason.0;
        (refused != Refusal::PeerAway).then_some(refused)
    })
    .await;
    // At once, and not for having been of another time too often.
    assert_eq!(refused, Refusal::NotAuthorised);
    until("the other goes on", async || {
        mate.graft().await.unwrap().ok()?;
        let speaking = mate.speak("bravo/release", vec![Draft::inform("three")]);
        let outcomes = within("it is answered", speaking).await.unwrap().ok()?;
        outcomes.into_iter().next()?.ok()
    })
    .await;
    let texts: Vec<_> = all(bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["one", "three"]);
    alpha.close().await;
    bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_fills_half_of_an_outbox_and_is_told_so_and_others_go_on() {
    let Pair {
        mut alpha,
        mut bravo,
        synth,
        mate,
    } = Pair::new().await;
    bravo.close().await;
    alpha.unlinked("bravo").await;
    let most = agora::limits::OUTBOX_WAITING_MAX / 2;
    for _ in 0..most / 64 {
        let drafts = vec![Draft::inform("waits"); 64];
        let speaking = synth.speak("bravo/release", drafts);
        let outcomes = within("it is answered", speaking).await.unwrap().unwrap();
        let away = |outcome: agora_guest::Outcome| outcome.unwrap_err().reason.0;
        assert!(
            outcomes
                .into_iter()
                .all(|outcome| away(outcome) == Refusal::PeerAway)
        );
    }
    let more = tried(&synth, "bravo/release", Draft::inform("too many")).await;
    assert_eq!(more.unwrap_err(), Refusal::Overloaded);
    let others = tried(&mate, "bravo/release", Draft::inform("waits")).await;
    assert_eq!(others.unwrap_err(), Refusal::PeerAway);
    bravo.open().await;
    alpha.linked("bravo").await;
    until("all are said", async || {
        (all(bravo.host(), "release").await.len() == most + 1).then_some(())
    })
    .await;
    said(&synth, "bravo/release", Draft::inform("again"))
        .await
        .unwrap();
    alpha.close().await;
    bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_there_before_its_peer_waits_and_loses_nothing() {
    let (synth, other, keeper) = (Puppet::new(), Puppet::new(), Puppet::new());
    let here = Plan::new()
        .channel("home")
        .agent(
            "synth",
            synth.native(),
            vec![all_of("home"), all_of("bravo/release")],
        )
        .agent("other", other.native(), vec![all_of("home")]);
    let there = Plan::new().channel("release");
    let there = there.agent("keeper", keeper.native(), vec![all_of("release")]);
    let mut bravo = Site::new("bravo", there);
    let mut alpha = Site::new("alpha", here).listens(QUIC);
    alpha.knows(&bravo, vec![]);
    alpha.open().await;
    synth.until_life(1).await;
    other.until_life(1).await;
    synth.graft().await.unwrap().unwrap();
    synth.subscribe("bravo/release").await.unwrap().unwrap();
    synth.subscribe("home").await.unwrap().unwrap();
    graft(&other, "home").await;
    let early = tried(&synth, "bravo/release", Draft::inform("early")).await;
    assert_eq!(early.unwrap_err(), Refusal::LogUnavailable);
    let info = synth.info("bravo/release").await.unwrap();
    assert_eq!(info.unwrap_err().kind(), Kind::Busy);
    // A turn waits; and the next one behind it, though it could go.
    let mut asked = Vec::new();
    for text in ["tell them", "and me"] {
        said(&other, "home", Draft::inform(text)).await.unwrap();
        asked.push(heard(&synth, "home").await);
    }
    let [first, second] = asked.try_into().unwrap();
    let turns = synth.run(move |stage| async move {
        let (home, afar) = (stage.facet("home")?, stage.facet("bravo/release")?);
        let told = home.turn(&first).say_on(&afar, Draft::inform("news"));
        let told = told.take();
        let here = home.turn(&second).reply(Draft::inform("done")).take();
        let (told, here) = (told.await?, here.await?);
        Ok::<_, agora_guest::Error>((told, here))
    });
    let turns = tokio::spawn(turns);
    bravo.knows(&alpha, vec![all_of("release")]);
    bravo.open().await;
    alpha.linked("bravo").await;
    let (told, here) = within("the turns are answered", turns)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    match &told[0] {
        Ok(receipt) => assert_eq!(receipt.channel, "bravo/release"),
        Err(refused) => assert_eq!(refused.reason.0, Refusal::PeerAway, "{refused}"),
    }
    here[0].as_ref().unwrap();
    keeper.until_life(1).await;
    graft(&keeper, "release").await;
    until("it is said there", async || {
        (all(bravo.host(), "release").await.len() == 1).then_some(())
    })
    .await;
    said(&keeper, "release", Draft::inform("welcome"))
        .await
        .unwrap();
    // By the subscription of before, in the same life.
    let welcome = heard(&synth, "bravo/release").await;
    assert_eq!(welcome.payload, b"welcome");
    replied(&synth, "bravo/release", &welcome, "thanks").await;
    assert_eq!(synth.lives(), 1);
    let texts: Vec<_> = all(bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["news", "welcome", "thanks"]);
    alpha.close().await;
    bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_realm_under_the_same_name_is_refused_and_said_to_be() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    bed.alpha.close().await;
    bed.bravo.close().await;
    let synth = Puppet::new();
    let here = Plan::new().agent("synth", synth.native(), vec![all_of("bravo/release")]);
    let mut anew = Site::new("alpha", here);
    bed.bravo.spec("alpha").id = Some(anew.id());
    bed.bravo.open().await;
    anew.knows(&bed.bravo, vec![]);
    anew.open().await;
    let peer = anew.host().control.peers().named("bravo").unwrap().clone();
    let mut link = peer.link.subscribe();
    let refused = link.wait_for(|link| match link {
        agora::peer::borrowed::LinkState::Down { why, .. } => why.contains("another peer"),
        _ => false,
    });
    within("it is told why", refused).await.unwrap();
    synth.until_life(1).await;
    synth.graft().await.unwrap().unwrap();
    let lost = tried(&synth, "bravo/release", Draft::inform("lost?")).await;
    assert_eq!(lost.unwrap_err(), Refusal::LogUnavailable);
    assert_eq!(all(bed.bravo.host(), "release").await.len(), 1);
    anew.close().await;
    bed.bravo.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_may_be_granted_many_channels() {
    const CHANNELS: usize = 100;
    let names: Vec<_> = (0..CHANNELS).map(|i| format!("c{i}")).collect();
    let there = names
        .iter()
        .fold(Plan::new(), |plan, name| plan.channel(name));
    let synth = Puppet::new();
    let here = Plan::new().agent("synth", synth.native(), vec![all_of("bravo/c99")]);
    let mut bravo = Site::new("bravo", there).listens(QUIC);
    let mut alpha = Site::new("alpha", here);
    bravo.knows(&alpha, names.iter().map(|name| all_of(name)).collect());
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    alpha.open().await;
    alpha.linked("bravo").await;
    synth.until_life(1).await;
    graft(&synth, "bravo/c99").await;
    let said = said(&synth, "bravo/c99", Draft::inform("one")).await;
    assert_eq!(said.unwrap().ordinal, 1);
    alpha.close().await;
    bravo.close().await;
}
