//! When a host is quiet that said something for a peer.

use std::sync::Arc;

use agora::boot::quiet::until_quiet;
use agora::door::control::Control;
use agora::persona::agent::Phase;
use agora::persona::instance::End;
use agora_guest::{Draft, Refusal};
use tokio::sync::mpsc;

use super::bed::{Bed, QUIC, all, said, tried, until, within};

/// Alpha has something for bravo, which it has never heard in this run; and nobody else does anything.
async fn owing() -> (Bed, Arc<Control>) {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    bed.bravo.close().await;
    bed.alpha.close().await;
    bed.alpha.open().await;
    bed.synth.until_life(2).await;
    bed.synth.graft().await.unwrap().unwrap();
    let away = tried(&bed.synth, "bravo/release", Draft::inform("two")).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    bed.synth.end(End::Done).await;
    let control = bed.alpha.host().control.clone();
    until("it has ended", async || {
        let agent = control.agent("synth").unwrap();
        matches!(agent.shared.phase(), Phase::Ended(_)).then_some(())
    })
    .await;
    (bed, control)
}

fn waiting(
    control: Arc<Control>,
) -> (tokio::task::JoinHandle<()>, mpsc::UnboundedReceiver<String>) {
    let (told, tells) = mpsc::unbounded_channel();
    let tell = move |text: &str| drop(told.send(text.to_owned()));
    (tokio::spawn(until_quiet(control, tell)), tells)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_not_quiet_while_a_peer_that_it_dials_is_owed_something_and_says_so() {
    let (mut bed, control) = owing().await;
    let (quiet, mut told) = waiting(control);
    let what = within("it says what it waits for", told.recv()).await;
    let what = what.unwrap();
    assert!(what.contains("1 for 'bravo/release'"), "{what}");
    assert!(!quiet.is_finished());
    bed.bravo.open().await;
    within("it is quiet", quiet).await.unwrap();
    let texts: Vec<_> = all(bed.bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_waits_for_no_peer_that_it_has_revoked() {
    let (mut bed, control) = owing().await;
    control.kill("peer:bravo", "a test", "test").await.unwrap();
    let (quiet, mut told) = waiting(control);
    within("it is quiet", quiet).await.unwrap();
    assert_eq!(told.recv().await, None, "and nothing was waited for");
    bed.alpha.close().await;
}
