//! What is read of a peer's channel.

use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Draft, Kind};
use agora_realm::Terms;

use super::bed::{Bed, QUIC, Site, all, graft, heard, said, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_stood_before_is_history_and_what_came_meanwhile_is_delivered() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("mine"))
        .await
        .unwrap();
    said(&bed.keeper, "release", Draft::inform("theirs"))
        .await
        .unwrap();
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"theirs");
    let (messages, next) = until("the peer is within reach", async || {
        let read = bed.synth.history("bravo/release", 1, 10).await;
        read.unwrap().ok()
    })
    .await;
    let mine: Vec<_> = messages.iter().map(|m| (m.ordinal, m.mine)).collect();
    assert_eq!((mine, next), (vec![(1, true), (2, false)], 3));
    let info = until("the peer is within reach", async || {
        bed.synth.info("bravo/release").await.unwrap().ok()
    })
    .await;
    assert_eq!((info.name.as_str(), info.latest), ("bravo/release", 2));

    bed.alpha.close().await;
    said(&bed.keeper, "release", Draft::inform("meanwhile"))
        .await
        .unwrap();
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    // What it heard and never answered comes again.
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"theirs");
    assert_eq!(
        heard(&bed.synth, "bravo/release").await.payload,
        b"meanwhile"
    );

    // A fence here makes history of it, as on a channel of its own realm.
    let (decided, _) = bed.alpha.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    graft(&bed.synth, "bravo/release").await;
    said(&bed.keeper, "release", Draft::inform("new"))
        .await
        .unwrap();
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"new");
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_before_the_peer_is_heard_reaches_no_further_back_than_the_terms() {
    let narrow = Terms {
        history: 0,
        ..Terms::ALL
    };
    let mut bed = Bed::under(QUIC, Terms::ALL, narrow).await;
    for text in ["one", "two"] {
        said(&bed.keeper, "release", Draft::inform(text))
            .await
            .unwrap();
    }
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"one");
    // That makes history of both.
    let (decided, _) = bed.alpha.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    graft(&bed.synth, "bravo/release").await;
    bed.alpha.close().await;
    bed.bravo.close().await;
    bed.alpha.open().await;
    bed.synth.until_life(2).await;
    within("it grafts", bed.synth.graft())
        .await
        .unwrap()
        .unwrap();
    let asking = bed.synth.history("bravo/release", 1, 9);
    let (asked, ()) = tokio::join!(asking, bed.bravo.open());
    let read = match asked.unwrap() {
        Ok((messages, _)) => messages.len(),
        // It was too late for it.
        Err(error) => {
            assert_eq!(error.kind(), Kind::Busy);
            0
        }
    };
    assert_eq!(read, 0);
    // The peer is there, and has them.
    bed.alpha.linked("bravo").await;
    assert_eq!(all(bed.bravo.host(), "release").await.len(), 2);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_is_kept_in_memory_is_delivered_in_order() {
    const MESSAGES: usize = 1500;
    let bed = Bed::new(QUIC).await;
    let mut calls = Vec::new();
    for first in (0..MESSAGES).step_by(50) {
        let drafts = (first..first + 50).map(|n| Draft::inform(n.to_string()));
        calls.push(bed.keeper.speak("release", drafts.collect()));
    }
    for call in calls {
        let outcomes = within("it is said", call).await.unwrap().unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
    for n in 0..MESSAGES {
        let message = heard(&bed.synth, "bravo/release").await;
        assert_eq!(message.payload, n.to_string().as_bytes());
        let passing = bed
            .synth
            .run(|stage| async move { stage.facet("bravo/release").unwrap().pass(&message).await });
        within("it is passed over", passing).await.unwrap().unwrap();
    }
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_lent_is_lent_on() {
    let (near, far) = (Puppet::new(), Puppet::new());
    let home = Plan::new()
        .channel("news")
        .agent("far", far.native(), vec![all_of("news")]);
    let mut charlie = Site::new("charlie", home).listens(QUIC);
    let mut bravo = Site::new("bravo", Plan::new()).listens(QUIC);
    let reader = Plan::new().agent("near", near.native(), vec![all_of("bravo/charlie/news")]);
    let mut alpha = Site::new("alpha", reader);
    charlie.knows(&bravo, vec![all_of("news")]);
    charlie.open().await;
    bravo.knows(&charlie, vec![]);
    bravo.knows(&alpha, vec![all_of("charlie/news")]);
    bravo.open().await;
    bravo.linked("charlie").await;
    alpha.knows(&bravo, vec![]);
    alpha.open().await;
    alpha.linked("bravo").await;
    near.until_life(1).await;
    far.until_life(1).await;
    graft(&far, "news").await;
    graft(&near, "bravo/charlie/news").await;

    let receipt = said(&near, "bravo/charlie/news", Draft::inform("two hops")).await;
    let receipt = receipt.unwrap();
    assert_eq!(receipt.channel, "bravo/charlie/news");
    let message = heard(&far, "news").await;
    assert_eq!(message.id, receipt.id);
    assert!(
        message.author.starts_with("bravo/alpha/near@"),
        "{}",
        message.author
    );
    let answer = far.reply("news", message, Draft::inform("heard"));
    let answer = within("it is answered", answer)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    // Its own message does not come back to it, over however many hosts.
    let back = heard(&near, "bravo/charlie/news").await;
    assert_eq!((back.id, back.ordinal), (answer.id, 2));
    let authors: Vec<_> = all(charlie.host(), "news").await;
    assert_eq!(authors[0].0, "bravo/alpha/near");

    // A fence at the far end is told all the way.
    let ended = near.ended();
    let (decided, _) = charlie.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    assert!(within("it is told", ended).await.unwrap().is_stale());
    graft(&near, "bravo/charlie/news").await;
    let receipt = said(&near, "bravo/charlie/news", Draft::inform("anew")).await;
    assert_eq!(receipt.unwrap().epoch, 2);
    for site in [&mut alpha, &mut bravo, &mut charlie] {
        site.close().await;
    }
}

/// What was unread when a host was killed is unread when it is back, however soon after the peer was first heard in its epoch that was.
#[tokio::test(flavor = "multi_thread")]
async fn where_reading_begins_outlives_a_host_that_is_killed_at_once() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.keeper, "release", Draft::inform("before"))
        .await
        .unwrap();
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"before");
    // In the new epoch that is history, and what comes is not.
    let (decided, _) = bed.alpha.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    graft(&bed.synth, "bravo/release").await;
    said(&bed.keeper, "release", Draft::inform("unread"))
        .await
        .unwrap();
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"unread");
    // What the data folder has of the peer now is what a kill leaves of it.
    let known = bed.alpha.data().join("peers/bravo");
    let left = std::fs::read(&known);
    bed.alpha.close().await;
    match left {
        Ok(left) => std::fs::write(&known, left).unwrap(),
        Err(_) => std::fs::remove_file(&known).unwrap(),
    }
    said(&bed.keeper, "release", Draft::inform("meanwhile"))
        .await
        .unwrap();
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    assert_eq!(heard(&bed.synth, "bravo/release").await.payload, b"unread");
    assert_eq!(
        heard(&bed.synth, "bravo/release").await.payload,
        b"meanwhile"
    );
    bed.close().await;
}
