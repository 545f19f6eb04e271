//! What a host holds of a peer's log while their link stands, and has of it when it doesn't.

use agora::delivery::checkpoints::Kept;
use agora_guest::Draft;
use agora_realm::{ChannelName, PublicKey};

use super::bed::{Bed, QUIC, graft, said, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_channel_is_read_while_its_peer_is_gone_and_the_peers_log_is_held_and_signed() {
    let mut bed = Bed::new(QUIC).await;
    // Alpha may mirror, does, and signs as a witness, from its next start on.
    bed.alpha.close().await;
    bed.bravo.close().await;
    bed.bravo.spec("alpha").may_mirror = true;
    let release = ChannelName::new("release").unwrap();
    let spec = bed.alpha.spec("bravo");
    (spec.mirror, spec.witness) = ([release.clone()].into(), true);
    bed.bravo.open().await;
    bed.alpha.open().await;
    bed.alpha.linked("bravo").await;
    bed.synth.until_life(2).await;
    bed.keeper.until_life(2).await;
    graft(&bed.synth, "bravo/release").await;
    graft(&bed.keeper, "release").await;
    for n in 0..5 {
        let draft = Draft::inform(format!("number {n}"));
        said(&bed.keeper, "release", draft).await.unwrap();
    }
    said(&bed.synth, "bravo/release", Draft::inform("mine"))
        .await
        .unwrap();
    let bravo = bed
        .alpha
        .host()
        .control
        .peers()
        .named("bravo")
        .unwrap()
        .clone();
    let mirror = bravo.mirror(&release).unwrap();
    until("all is copied", async || {
        (mirror.span()? == (1, 6)).then_some(())
    })
    .await;
    assert_eq!(bravo.holding().alarm, None);
    let key = PublicKey(bed.alpha.host().control.host_id().0);
    let kept = Kept::of(&bed.bravo.data());
    until("a checkpoint is cosigned", async || {
        let all = kept.all().ok()?;
        let mut covering = all.iter().map(|signed| signed.checkpoint().size);
        covering.find(|size| {
            let signed = kept.covering(*size).unwrap().unwrap();
            signed.witnesses().iter().any(|one| one.witness == key)
        })
    })
    .await;

    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let read = until("it is read from the copy", async || {
        // What was held of bravo's graft may have fallen with it.
        if let Ok(read) = bed.synth.history("bravo/release", 2, 10).await.unwrap() {
            return Some(read);
        }
        let _ = bed.synth.graft().await.unwrap();
        None
    })
    .await;
    let texts: Vec<_> = read
        .0
        .iter()
        .map(|m| String::from_utf8_lossy(&m.payload))
        .collect();
    let all = ["number 1", "number 2", "number 3", "number 4", "mine"];
    assert_eq!((&texts[..], read.1), (&all.map(Into::into)[..], 7));
    let mine: Vec<_> = read.0.iter().map(|m| m.mine).collect();
    assert_eq!(mine, [false, false, false, false, true]);

    // And by who starts while it is gone.
    bed.alpha.close().await;
    bed.alpha.open().await;
    let read = until("it is read by who comes later", async || {
        bed.synth.until_life(3).await;
        bed.synth.graft().await.unwrap().ok()?;
        bed.synth
            .history("bravo/release", 1, 10)
            .await
            .unwrap()
            .ok()
    })
    .await;
    assert_eq!(read.0.len(), 6);
    bed.alpha.close().await;
}
