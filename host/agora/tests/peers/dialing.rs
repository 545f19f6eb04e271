//! A peer that moved, and is dialed where an operator says.

use agora_guest::{Draft, Refusal};

use super::bed::{Bed, QUIC, TCP, all, graft, next_key, said, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_while_a_peer_moved_is_said_once_where_it_is_dialed_then() {
    let mut bed = Bed::new(QUIC).await;
    said(&bed.synth, "bravo/release", Draft::inform("before"))
        .await
        .unwrap();
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let meanwhile = Draft::inform("meanwhile").key(next_key());
    let speaking = bed.synth.speak("bravo/release", vec![meanwhile]);
    let mut outcomes = within("it is answered", speaking).await.unwrap().unwrap();
    let refused = outcomes.remove(0).unwrap_err();
    assert_eq!(refused.reason.0, Refusal::PeerAway);
    bed.bravo.moves(TCP);
    bed.bravo.open().await;

    let peers = bed.alpha.host().control.peers().clone();
    let dialer = bed.bravo.host().control.peers().dialer().unwrap().clone();
    let at = dialer.listening()[0].to_string();
    let at = at.split("/p2p/").next().unwrap().to_owned();
    let connected = until("it is connected", async || {
        let dialed = peers
            .dial("bravo", std::slice::from_ref(&at))
            .await
            .unwrap();
        assert_eq!(dialed.note, "");
        dialed.outcome.ok()
    });
    assert_eq!(connected.await.address, at);
    bed.alpha.linked("bravo").await;
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("after"))
        .await
        .unwrap();
    let texts = all(bed.bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["before", "meanwhile", "after"]);

    // Where it was isn't forgotten, and where it is now is known at the next start.
    let known = peers.named("bravo").unwrap().addresses();
    assert_eq!((known.len(), known[0].to_string()), (2, at.clone()));
    bed.alpha.close().await;
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    let peers = bed.alpha.host().control.peers().clone();
    assert_eq!(peers.named("bravo").unwrap().addresses(), known);
    let left = peers.forget_addresses("peer:bravo", &[at]).await.unwrap();
    assert!(left.is_empty());
    bed.close().await;
}
