//! A peer's channel that is lent on to a third host.

use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;

use super::bed::{QUIC, Site, graft, said, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_at_the_far_end_is_told_once_along_the_way() {
    const WAY: &str = "alpha/bravo/release";
    let far = Puppet::new();
    let away = Plan::new().agent("far", far.native(), vec![all_of(WAY)]);
    let mut bravo = Site::new("bravo", Plan::new().channel("release")).listens(QUIC);
    let mut alpha = Site::new("alpha", Plan::new()).listens(QUIC);
    let mut charlie = Site::new("charlie", away);
    bravo.knows(&alpha, vec![all_of("release")]);
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    alpha.knows(&charlie, vec![all_of("bravo/release")]);
    alpha.open().await;
    alpha.linked("bravo").await;
    charlie.knows(&alpha, vec![]);
    charlie.open().await;
    charlie.linked("alpha").await;
    far.until_life(1).await;
    graft(&far, WAY).await;
    said(&far, WAY, Draft::inform("before")).await.unwrap();
    // As often as alpha told charlie anything.
    let told = |site: &Site| {
        let charlie = site.host().control.peers().named("charlie").unwrap();
        charlie.told.borrow().revision
    };
    let first = told(&alpha);
    for bumps in 1..=3 {
        let ended = far.ended();
        let (decided, _) = bravo.host().control.bump("a test", false, "test").await;
        assert_eq!(decided.pending, None);
        assert!(within("it is told", ended).await.unwrap().is_stale());
        graft(&far, WAY).await;
        said(&far, WAY, Draft::inform("after")).await.unwrap();
        assert_eq!(told(&alpha) - first, bumps);
    }
    for site in [&mut charlie, &mut alpha, &mut bravo] {
        site.close().await;
    }
}
