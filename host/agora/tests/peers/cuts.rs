//! Stops at either host, and links that are cut.

use agora::door::control::Grantable;
use agora::door::prune::Keep;
use agora::testbed::Puppet;
use agora_guest::{Draft, Error, Kind, Refusal};
use agora_realm::{ChannelName, PersonaId, PersonaName, Terms};

use super::bed::{Bed, QUIC, all, graft, heard, next_key, repeated, said, tried, until, within};

/// What bravo grants alpha, taken back.
async fn revoke(bed: &Bed) {
    let control = &bed.bravo.host().control;
    let alpha = PersonaId::new(control.host_id(), PersonaName::peer("alpha").unwrap());
    let granted = control.grants_for(&alpha);
    for grant in granted {
        let decided = control
            .revoke(&grant.id.to_string(), "a test", "test")
            .await;
        assert_eq!(decided.unwrap().pending, None);
    }
}

async fn texts(bed: &Bed) -> Vec<String> {
    let said = all(bed.bravo.host(), "release").await;
    said.into_iter().map(|(_, text)| text).collect()
}

/// Waits until this is all that counts at bravo.
async fn until_all(bed: &Bed, expected: &[&str]) {
    until(&format!("{expected:?} counts there"), async || {
        (texts(bed).await == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_there_is_told_here_and_a_new_graft_goes_on() {
    let bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("before"))
        .await
        .unwrap();
    bed.synth
        .keep_as("bravo/release", "old")
        .await
        .unwrap()
        .unwrap();
    let ended = bed.synth.ended();
    let (decided, epoch) = bed.bravo.host().control.bump("a test", false, "test").await;
    assert_eq!((decided.pending, epoch.0), (None, 2));
    assert!(within("it is told", ended).await.unwrap().is_stale());
    let late = bed.synth.speak("old", vec![Draft::inform("late")]).await;
    assert!(late.unwrap().unwrap_err().is_stale());
    // Its own realm's epoch is what it was; only what the peer lent is of another time.
    graft(&bed.synth, "bravo/release").await;
    graft(&bed.keeper, "release").await;
    let receipt = said(&bed.synth, "bravo/release", Draft::inform("after"))
        .await
        .unwrap();
    assert_eq!((receipt.epoch, receipt.ordinal), (2, 2));
    assert_eq!(heard(&bed.keeper, "release").await.payload, b"after");
    assert_eq!(texts(&bed).await, ["before", "after"]);
    // It was introduced anew, and is who it was.
    let keys = {
        let control = &bed.bravo.host().control;
        let guest = PersonaName::guest("alpha", "synth").unwrap();
        let state = control.record().state();
        let guest = state.persona(&PersonaId::new(control.host_id(), guest));
        guest.map(|guest| guest.keys)
    };
    assert_eq!(keys, Some(1));
    bed.close().await;
}

/// What an agent asks, however often that must be since it was told that its graft is over.
async fn asked<T>(puppet: &Puppet, mut ask: impl AsyncFnMut() -> Result<T, Error>) -> T {
    until("it is answered", async || match ask().await {
        Ok(answer) => Some(answer),
        Err(error) => {
            assert!(error.is_stale(), "only what has ended is refused: {error}");
            let _ = puppet.graft().await.unwrap();
            None
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_right_behind_a_bump_there_is_answered_when_the_link_has_grafted() {
    let bed = Bed::new(QUIC).await;
    said(&bed.keeper, "release", Draft::inform("one"))
        .await
        .unwrap();
    for epoch in 2..=5 {
        let ended = bed.synth.ended();
        let (decided, now) = bed.bravo.host().control.bump("a test", false, "test").await;
        assert_eq!((decided.pending, now.0), (None, epoch));
        assert!(within("it is told", ended).await.unwrap().is_stale());
        let _ = bed.synth.graft().await.unwrap();
        let (said, _) = asked(&bed.synth, async || {
            bed.synth.history("bravo/release", 1, 9).await.unwrap()
        })
        .await;
        assert_eq!(said.len(), 1);
        let info = asked(&bed.synth, async || {
            bed.synth.info("bravo/release").await.unwrap()
        })
        .await;
        assert_eq!(info.latest, 1);
    }
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_there_is_gone_here_until_it_is_granted_again() {
    let bed = Bed::new(QUIC).await;
    let ended = bed.synth.ended();
    revoke(&bed).await;
    assert!(within("it is told", ended).await.unwrap().is_stale());
    until("it is denied", async || {
        bed.synth.graft().await.unwrap().ok()?;
        let speaking = bed.synth.speak("bravo/release", vec![Draft::inform("no")]);
        match within("it is answered", speaking).await.unwrap() {
            Err(error) => (error.kind() == Kind::Denied).then_some(()),
            Ok(outcomes) => {
                let refused = outcomes.into_iter().next()?.unwrap_err().reason.0;
                (refused == Refusal::NoRight).then_some(())
            }
        }
    })
    .await;
    let control = &bed.bravo.host().control;
    let again = Grantable::Channel("release".into(), Terms::ALL);
    control.grant("peer:alpha", again).await.unwrap();
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("again"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["again"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_the_peer_is_away_is_said_there_once_when_it_is_back() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let keys = [next_key(), next_key()];
    for (key, text) in keys.into_iter().zip(["two", "three"]) {
        let away = tried(&bed.synth, "bravo/release", Draft::inform(text).key(key)).await;
        assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    }
    let error = bed.synth.history("bravo/release", 1, 9).await.unwrap();
    assert_eq!(error.unwrap_err().kind(), Kind::Busy);
    bed.bravo.open().await;
    bed.alpha.linked("bravo").await;
    until_all(&bed, &["one", "two", "three"]).await;
    let two = Draft::inform("two").key(keys[0]);
    let repeated = repeated(&bed.synth, "bravo/release", two).await.unwrap();
    assert_eq!((repeated.ordinal, repeated.repeated), (2, true));
    said(&bed.synth, "bravo/release", Draft::inform("four"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["one", "two", "three", "four"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_outlives_its_host() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let key = next_key();
    let away = tried(&bed.synth, "bravo/release", Draft::inform("two").key(key)).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    bed.alpha.close().await;
    bed.bravo.open().await;
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    until_all(&bed, &["one", "two"]).await;
    bed.synth.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    let two = Draft::inform("two").key(key);
    let repeated = repeated(&bed.synth, "bravo/release", two).await.unwrap();
    assert_eq!((repeated.ordinal, repeated.repeated), (2, true));
    assert_eq!(texts(&bed).await, ["one", "two"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_forgot_how_far_its_outbox_got_says_nothing_twice() {
    let mut bed = Bed::new(QUIC).await;
    for text in ["one", "two", "three"] {
        said(&bed.synth, "bravo/release", Draft::inform(text))
            .await
            .unwrap();
    }
    bed.alpha.close().await;
    // As after a crash, but for all of it.
    std::fs::remove_file(bed.alpha.data().join("peers/bravo")).unwrap();
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("four"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["one", "two", "three", "four"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_here_ends_what_waits() {
    let mut bed = Bed::new(QUIC).await;
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let key = next_key();
    let away = tried(&bed.synth, "bravo/release", Draft::inform("never").key(key)).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    let (decided, _) = bed.alpha.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    bed.bravo.open().await;
    bed.alpha.linked("bravo").await;
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("later"))
        .await
        .unwrap();
    let never = Draft::inform("never").key(key);
    let never = repeated(&bed.synth, "bravo/release", never).await;
    assert_eq!(never.unwrap_err(), Refusal::StaleEpoch);
    assert_eq!(texts(&bed).await, ["later"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_there_while_it_is_away_ends_what_waits_for_it() {
    let mut bed = Bed::new(QUIC).await;
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let key = next_key();
    let away = tried(&bed.synth, "bravo/release", Draft::inform("never").key(key)).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    bed.alpha.close().await;
    bed.bravo.open().await;
    let (decided, _) = bed.bravo.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    let later = next_key();
    until("it is said in the new epoch", async || {
        graft(&bed.synth, "bravo/release").await;
        let speaking = bed
            .synth
            .speak("bravo/release", vec![Draft::inform("later").key(later)]);
        let outcomes = within("it is answered", speaking).await.unwrap().ok()?;
        outcomes.into_iter().next()?.ok()
    })
    .await;
    let never = Draft::inform("never").key(key);
    let never = repeated(&bed.synth, "bravo/release", never).await;
    assert_eq!(never.unwrap_err(), Refusal::StaleEpoch);
    assert_eq!(texts(&bed).await, ["later"]);
    bed.close().await;
}

/// What waited for the peer is never said, although the persona is started again before the peer is back; nor after a restart of its host.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_persona_says_nothing_more_anywhere() {
    for restarts in [false, true] {
        let mut bed = Bed::new(QUIC).await;
        bed.bravo.close().await;
        bed.alpha.unlinked("bravo").await;
        let key = next_key();
        let never = Draft::inform("never").key(key);
        let away = tried(&bed.synth, "bravo/release", never.clone()).await;
        assert_eq!(away.unwrap_err(), Refusal::PeerAway);
        let control = bed.alpha.host().control.clone();
        let killed = control.kill("synth", "a test", "test").await.unwrap();
        assert_eq!(killed.pending, None);
        // Started while what it said still waits.
        control.start("synth").await.unwrap();
        drop(control);
        let mut lives = 2;
        if restarts {
            bed.synth.until_life(lives).await;
            bed.alpha.close().await;
            bed.alpha.open().await;
            lives += 1;
        }
        bed.bravo.open().await;
        bed.alpha.linked("bravo").await;
        bed.synth.until_life(lives).await;
        graft(&bed.synth, "bravo/release").await;
        said(&bed.synth, "bravo/release", Draft::inform("anew"))
            .await
            .unwrap();
        let never = repeated(&bed.synth, "bravo/release", never).await;
        assert_eq!(never.unwrap_err(), Refusal::Revoked);
        said(&bed.synth, "bravo/release", Draft::inform("and again"))
            .await
            .unwrap();
        assert_eq!(texts(&bed).await, ["anew", "and again"]);
        bed.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pruned_from_an_outbox_is_never_said_and_holds_up_nothing() {
    let mut bed = Bed::new(QUIC).await;
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let key = next_key();
    let pruned = Draft::inform("pruned").key(key);
    let away = tried(&bed.synth, "bravo/release", pruned.clone()).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    let control = bed.alpha.host().control.clone();
    let pruning = control.prune("bravo/release", Keep::Count(0), false, true);
    pruning.await.unwrap();
    bed.bravo.open().await;
    bed.alpha.linked("bravo").await;
    let name = ChannelName::new("bravo/release").unwrap();
    let remote = control.peers().remote(&name).unwrap();
    until("nothing waits", async || {
        (remote.waiting() == 0).then_some(())
    })
    .await;
    let never = repeated(&bed.synth, "bravo/release", pruned).await;
    assert_eq!(never.unwrap_err(), Refusal::KeyExpired);
    said(&bed.synth, "bravo/release", Draft::inform("later"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["later"]);
    bed.close().await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let at = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &at);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), at).unwrap();
        }
    }
}

/// Alpha's agent said "one" and "two", and alpha, which isn't open, has a log and a folder from between them.
async fn lost() -> Bed {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    bed.alpha.close().await;
    let kept = tempfile::tempdir().unwrap();
    copy(&bed.alpha.data(), kept.path());
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("two"))
        .await
        .unwrap();
    bed.alpha.close().await;
    std::fs::remove_dir_all(bed.alpha.data()).unwrap();
    copy(kept.path(), &bed.alpha.data());
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_log_lost_its_end_is_not_told_that_something_else_counts() {
    let mut bed = lost().await;
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(3).await;
    graft(&bed.synth, "bravo/release").await;
    let taken = said(&bed.synth, "bravo/release", Draft::inform("three")).await;
    assert_eq!(taken.unwrap_err(), Refusal::KeyExpired);
    said(&bed.synth, "bravo/release", Draft::inform("four"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["one", "two", "four"]);
    bed.close().await;
}

/// A message in the place of a lost one is sent, nobody hears what became of it, and it is sent again: by then it may have been sent before.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_a_lost_message_had_gets_nobody_its_receipt_however_often_it_is_sent() {
    let mut bed = lost().await;
    bed.bravo.close().await;
    bed.alpha.open().await;
    bed.synth.until_life(3).await;
    bed.synth.graft().await.unwrap().unwrap();
    let three = Draft::inform("three").key(next_key());
    let away = tried(&bed.synth, "bravo/release", three.clone()).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    // As far as its host knows now it may have been sent.
    bed.alpha.close().await;
    bed.bravo.open().await;
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(4).await;
    graft(&bed.synth, "bravo/release").await;
    let taken = repeated(&bed.synth, "bravo/release", three).await;
    assert_eq!(taken.unwrap_err(), Refusal::KeyExpired);
    said(&bed.synth, "bravo/release", Draft::inform("four"))
        .await
        .unwrap();
    assert_eq!(texts(&bed).await, ["one", "two", "four"]);
    bed.close().await;
}
