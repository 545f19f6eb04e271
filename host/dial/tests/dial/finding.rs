//! Peers whose addresses nobody configured.

use agora_dial::{Lane, PeerId, Standing, limits};

use crate::hosts::{QUIC, TCP, echoes, host, id};

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
