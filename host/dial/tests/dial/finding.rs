//! Peers whose addresses nobody configured.

use agora_dial::{Lane, Multiaddr, PeerId, Standing, limits};

use crate::{
    hosts::{QUIC, TCP, echoes, host, id},
    liar::liar,
};

async fn found_by_a_third(transport: &str) {
    // The third knows neither.
    let third = host(9)
        .listening(transport)
        .policy(|_: &PeerId| Standing::Guest)
        .asking(&[], true)
        .start()
        .await;
    let there = [third.full_address()];
    let b = host(2)
        .listening(transport)
        .dialing(1, &[])
        .asking(&there, true)
        .start()
        .await;
    let a = host(1)
        .listening(transport)
        .dialing(2, &[])
        .asking(&there, true)
        .start()
        .await;
    let status = a.settled(2).await;
    b.settled(1).await;
    assert!(status.found.len() <= limits::FOUND_ADDRESSES_MAX);
    let _b = b.echoing();
    echoes(&mut a.open(2, Lane::Vat).await, b"found").await;
    // Whom nobody looked for isn't dialed.
    let snapshot = a.dialer.peers();
    assert!(!snapshot.peers.contains_key(&id(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_find_each_other_by_kademlia_over_tcp() {
    found_by_a_third(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_find_each_other_by_kademlia_over_quic() {
    found_by_a_third(QUIC).await;
}

/// Whoever lies about a peer keeps it from being found for a while at most, and nothing of what it says is kept.
async fn found_beside_a_liar(addresses: usize) {
    let third = host(9)
        .listening(TCP)
        .policy(|_: &PeerId| Standing::Guest)
        .asking(&[], true)
        .start()
        .await;
    let liar = liar(id(2), addresses, 1 << 20).await;
    let lies = |address: &Multiaddr| address.to_string().starts_with("/ip4/127.9.");
    let a = host(1)
        .listening(TCP)
        .dialing(2, &[])
        .asking(&[liar.clone(), third.full_address()], true)
        .start()
        .await;
    // The liar is heard first.
    a.until_all(|now| now.waypoints.values().all(|waypoint| waypoint.connected))
        .await;
    let b = host(2)
        .listening(TCP)
        .dialing(1, &[])
        .asking(&[third.full_address()], true)
        .start()
        .await;
    let status = a.settled(2).await;
    b.settled(1).await;
    assert!(status.found.len() <= limits::FOUND_ADDRESSES_MAX);
    let mut found = status.found.iter().map(|(address, _)| address);
    assert!(!found.any(lies), "{:?}", status.found);
    // It is no peer, however it greets.
    let all = a.dialer.peers();
    assert_eq!(all.peers.keys().collect::<Vec<_>>(), [&id(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_names_ten_thousand_addresses_is_not_listened_to() {
    found_beside_a_liar(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_names_hundreds_of_false_addresses_has_none_of_them_kept() {
    found_beside_a_liar(300).await;
}
