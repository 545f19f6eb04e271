//! Who is told that something has ended, and how often.

use std::sync::mpsc;
use std::time::Instant;

use agora::peer::borrowed::LinkState;
use agora::testbed::{Plan, Puppet, all_of};
use agora_realm::ChannelName;

use super::bed::{Bed, Site, TCP, graft, linked, until, within};

async fn bump(site: &Site) {
    let (decided, _) = site.host().control.bump("a test", false, "test").await;
    assert_eq!(decided.pending, None);
}

/// An agent that has been told may graft anew before everybody has. It is told of the peer's next bump, too, although the link grafts anew
/// only once for both.
#[tokio::test(flavor = "multi_thread")]
async fn who_grafts_while_others_are_told_is_told_of_the_next_end() {
    let (first, second) = (Puppet::new(), Puppet::new());
    let borrows = || vec![all_of("bravo/release")];
    let here = Plan::new()
        .workers(2)
        .agent("first", first.native(), borrows())
        .agent("second", second.native(), borrows());
    let (mut alpha, mut bravo) = linked(here, TCP).await;
    for puppet in [&first, &second] {
        puppet.until_life(1).await;
        graft(puppet, "bravo/release").await;
    }
    // The second's thread is busy for as long as this takes, so that it can't be told.
    let (held, holds) = (mpsc::channel::<()>(), mpsc::channel());
    let busy = second.run(move |_| async move {
        holds.0.send(()).unwrap();
        let _ = held.1.recv();
    });
    let started = tokio::task::spawn_blocking(move || holds.1.recv());
    within("the thread is busy", started)
        .await
        .unwrap()
        .unwrap();
    let ended = first.ended();
    bump(&bravo).await;
    let told = within("the first is told beside it", ended).await.unwrap();
    assert!(told.is_stale());
    first.graft().await.unwrap().unwrap();
    let ended = first.ended();
    // What it asks now is not answered with what is over.
    let name = ChannelName::new("bravo/release").unwrap();
    let remote = alpha.host().control.peers().remote(&name).unwrap();
    assert!(remote.granted().is_err());
    bump(&bravo).await;
    drop(held.0);
    busy.await.unwrap();
    let told = within("it is told of the next as well", ended).await;
    assert!(told.unwrap().is_stale());
    for puppet in [&first, &second] {
        graft(puppet, "bravo/release").await;
    }
    alpha.close().await;
    bravo.close().await;
}

/// The peer's pings say how often something has changed, so a change that it never tells is seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_peer_fails_to_tell_is_seen_by_its_pings() {
    let bed = Bed::new(TCP).await;
    let link = {
        let peers = bed.alpha.host().control.peers();
        peers.named("bravo").unwrap().link.clone()
    };
    let before = Instant::now();
    let told = {
        let peers = bed.bravo.host().control.peers();
        peers.named("alpha").unwrap().told.clone()
    };
    told.send_if_modified(|told| {
        told.revision += 1;
        // Nobody who waits is woken.
        false
    });
    until("the link has grafted anew", async || {
        match &*link.borrow() {
            LinkState::Up { since, .. } => (*since > before).then_some(()),
            _ => None,
        }
    })
    .await;
    bed.close().await;
}
