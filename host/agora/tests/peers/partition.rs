//! A network that is cut while both hosts are up.

use agora::door::control::Grantable;
use agora::peer::borrowed::LinkState;
use agora::peer::sighting::sighting;
use agora::testbed::{Plan, Puppet, all_of};
use agora_dial::PeerState;
use agora_guest::{Draft, Kind, Refusal};
use agora_realm::{PersonaId, PersonaName, Terms};

use super::bed::{
    Bed, QUIC, Site, all, graft, heard, next_key, repeated, said, tried, until, within,
};
use super::proxy::Proxy;

/// As [`Bed::new`], with a network between the hosts.
async fn apart() -> (Bed, Proxy) {
    let (synth, keeper) = (Puppet::new(), Puppet::new());
    let here = Plan::new().agent("synth", synth.native(), vec![all_of("bravo/release")]);
    let home = vec![all_of("release")];
    let there = Plan::new()
        .channel("release")
        .agent("keeper", keeper.native(), home);
    let mut bravo = Site::new("bravo", there).listens(QUIC);
    let mut alpha = Site::new("alpha", here);
    bravo.knows(&alpha, vec![all_of("release")]);
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    let addresses = &mut alpha.spec("bravo").addresses;
    let at = addresses[0].to_string();
    let proxy = Proxy::before(&at);
    *addresses = vec![proxy.address(&at).parse().unwrap()];
    alpha.open().await;
    let bed = Bed {
        alpha,
        bravo,
        synth,
        keeper,
    };
    bed.alpha.linked("bravo").await;
    bed.graft().await;
    (bed, proxy)
}

/// Waits until bravo is lapsed at alpha, and shown to be.
async fn lapsed(bed: &Bed) {
    let peers = bed.alpha.host().control.peers().clone();
    let bravo = peers.named("bravo").unwrap();
    let mut link = bravo.link.subscribe();
    let lapsed = link.wait_for(|link| matches!(link, LinkState::Lapsed { .. }));
    drop(within("bravo is lapsed", lapsed).await.unwrap());
    let shown = sighting(&peers, bravo);
    assert_eq!(shown.state, "lapsed", "{shown:?}");
    assert!(shown.lends.is_empty(), "{shown:?}");
}

async fn texts(bed: &Bed) -> Vec<String> {
    let said = all(bed.bravo.host(), "release").await;
    said.into_iter().map(|(_, text)| text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_heard_lends_nothing_until_it_is_and_nothing_is_lost() {
    let (bed, network) = apart().await;
    said(&bed.synth, "bravo/release", Draft::inform("one"))
        .await
        .unwrap();
    network.cut();
    lapsed(&bed).await;
    let keys = [next_key(), next_key()];
    for (key, text) in keys.into_iter().zip(["two", "three"]) {
        let away = tried(&bed.synth, "bravo/release", Draft::inform(text).key(key)).await;
        assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    }
    let read = bed.synth.history("bravo/release", 1, 9).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), Kind::Busy);
    // Each host goes on without the other.
    said(&bed.keeper, "release", Draft::inform("meanwhile"))
        .await
        .unwrap();
    network.heal();
    bed.alpha.linked("bravo").await;
    // What it listened to before goes on: nobody was told to graft again.
    assert_eq!(
        heard(&bed.synth, "bravo/release").await.payload,
        b"meanwhile"
    );
    let two = Draft::inform("two").key(keys[0]);
    let two = repeated(&bed.synth, "bravo/release", two).await.unwrap();
    assert_eq!((two.ordinal, two.repeated), (3, true));
    said(&bed.synth, "bravo/release", Draft::inform("four"))
        .await
        .unwrap();
    let all = ["one", "meanwhile", "two", "three", "four"];
    assert_eq!(texts(&bed).await, all);
    bed.close().await;
}

/// Says something when the network is cut and nobody knows yet, and something when the link is lapsed.
async fn say_into_the_dark(bed: &Bed, network: &Proxy) -> [Draft; 2] {
    let [sent, waits] = ["sent", "waits"].map(|text| Draft::inform(text).key(next_key()));
    network.cut();
    let away = tried(&bed.synth, "bravo/release", sent.clone()).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    lapsed(bed).await;
    let away = tried(&bed.synth, "bravo/release", waits.clone()).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    [sent, waits]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_there_in_a_partition_is_told_here_before_anything_is_said_again() {
    let (bed, network) = apart().await;
    said(&bed.synth, "bravo/release", Draft::inform("before"))
        .await
        .unwrap();
    bed.synth
        .keep_as("bravo/release", "old")
        .await
        .unwrap()
        .unwrap();
    let ended = bed.synth.ended();
    let drafts = say_into_the_dark(&bed, &network).await;
    let (decided, _) = bed.bravo.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None, "it waits for nobody");
    network.heal();
    assert!(within("it is told", ended).await.unwrap().is_stale());
    // What it held is of no use, however the link is by now.
    let late = bed.synth.speak("old", vec![Draft::inform("late")]).await;
    assert!(late.unwrap().unwrap_err().is_stale());
    assert_eq!(texts(&bed).await, ["before"]);
    bed.alpha.linked("bravo").await;
    graft(&bed.synth, "bravo/release").await;
    let receipt = said(&bed.synth, "bravo/release", Draft::inform("after"))
        .await
        .unwrap();
    assert_eq!((receipt.epoch, receipt.ordinal), (2, 2));
    for draft in drafts {
        let never = repeated(&bed.synth, "bravo/release", draft).await;
        assert_eq!(never.unwrap_err(), Refusal::StaleEpoch);
    }
    assert_eq!(texts(&bed).await, ["before", "after"]);
    bed.close().await;
}

/// It has never spoken there, so the peer is asked for what it speaks through, and doesn't answer before its grant is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_an_introduction_is_not_said_behind_a_revocation() {
    let (bed, network) = apart().await;
    network.cut();
    let never = Draft::inform("never").key(next_key());
    let away = tried(&bed.synth, "bravo/release", never.clone()).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
    let control = bed.alpha.host().control.clone();
    let synth = PersonaId::new(control.host_id(), PersonaName::new("synth").unwrap());
    for grant in control.grants_for(&synth) {
        let id = grant.id.to_string();
        let revoked = control.revoke(&id, "a test", "test").await;
        assert_eq!(revoked.unwrap().pending, None);
    }
    network.heal();
    bed.alpha.linked("bravo").await;
    let again = Grantable::Channel("bravo/release".into(), Terms::ALL);
    control.grant("synth", again).await.unwrap();
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("after"))
        .await
        .unwrap();
    let refused = repeated(&bed.synth, "bravo/release", never).await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
    assert_eq!(texts(&bed).await, ["after"]);
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_here_in_a_partition_ends_what_waits_and_what_is_on_its_way() {
    let (bed, network) = apart().await;
    let drafts = say_into_the_dark(&bed, &network).await;
    let (decided, _) = bed.alpha.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
    // The link lets go of what it carries; the connection below has not been missed yet.
    bed.alpha.unlinked("bravo").await;
    let peers = bed.alpha.host().control.peers().clone();
    let bravo = peers.named("bravo").unwrap();
    let connection = peers.connection(bravo).unwrap();
    assert_eq!(connection.state, PeerState::Connected);
    network.heal();
    bed.alpha.linked("bravo").await;
    graft(&bed.synth, "bravo/release").await;
    said(&bed.synth, "bravo/release", Draft::inform("later"))
        .await
        .unwrap();
    for draft in drafts {
        let never = repeated(&bed.synth, "bravo/release", draft).await;
        assert_eq!(never.unwrap_err(), Refusal::StaleEpoch);
    }
    // By now anything that was still on its way is there.
    until("bravo is heard", async || peers.ping(bravo).await.ok()).await;
    assert_eq!(texts(&bed).await, ["later"]);
    bed.close().await;
}
