//! What is said for a peer's channel.

use agora_guest::Refusal;
use agora_guest::{Draft, Kind};
use agora_realm::{Rights, Terms};

use super::bed::{Bed, QUIC, TCP, all, heard, said, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_here_is_heard_there_and_the_other_way_round() {
    for at in [QUIC, TCP] {
        let bed = Bed::new(at).await;
        let receipt = said(&bed.synth, "bravo/release", Draft::inform("from afar"))
            .await
            .unwrap();
        assert_eq!(receipt.channel, "bravo/release");
        assert_eq!((receipt.ordinal, receipt.repeated), (1, false));
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
        let turn = within(
            "the turn is taken",
            bed.synth
                .reply("bravo/release", message.clone(), Draft::inform("thanks")),
        );
        let turn = turn.await.unwrap().unwrap().unwrap();
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
        let turn = bed
            .synth
            .reply("bravo/release", asked.clone(), Draft::inform("yes"));
        let turn = within("the turn is answered", turn).await;
        receipts.push(turn.unwrap().unwrap().unwrap());
    }
    assert!(receipts.iter().all(|receipt| receipt.id == receipts[0].id));
    assert!(!receipts[0].repeated && receipts[1].repeated && receipts[2].repeated);
    let keyed = Draft::inform("keyed").key(9);
    let first = said(&bed.synth, "bravo/release", keyed.clone())
        .await
        .unwrap();
    let again = said(&bed.synth, "bravo/release", keyed).await.unwrap();
    assert_eq!((first.id, again.repeated), (again.id, true));
    let texts: Vec<_> = all(bed.bravo.host(), "release").await;
    let texts: Vec<_> = texts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["ready?", "yes", "keyed"]);
    bed.close().await;
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
    let info = bed.synth.info("bravo/release").await.unwrap().unwrap();
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
