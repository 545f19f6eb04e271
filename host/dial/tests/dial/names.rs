//! Addresses that begin with a name.

use agora_dial::{Lane, Multiaddr, PeerState, Why};
use libp2p::multiaddr::Protocol;

use crate::hosts::{QUIC, TCP, echoes, host};

/// The address with a name in place of its IP address.
fn named(address: &Multiaddr, name: Protocol<'static>) -> Multiaddr {
    std::iter::once(name)
        .chain(address.iter().skip(1))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_resolved_when_it_is_dialed() {
    for transport in [TCP, QUIC] {
        let b = host(2).listening(transport).start().await;
        let address = named(&b.address(), Protocol::Dns4("localhost".into()));
        let a = host(1).dialing(2, &[address]).start().await;
        a.settled(2).await;
        let _b = b.echoing();
        echoes(&mut a.open(2, Lane::Vat).await, b"by name").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_means_nothing_is_said_to_be_why() {
    let address: Multiaddr = "/dns4/nobody.invalid/tcp/1".parse().expect("an address");
    let a = host(1).dialing(2, &[address]).start().await;
    a.until(2, |status| {
        matches!(
            &status.state,
            PeerState::BackingOff {
                why: Some(Why::Unreachable(why)),
                ..
            } if why.contains("nobody.invalid")
        )
    })
    .await;
}
