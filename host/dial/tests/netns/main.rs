//! Hosts on networks of their own: latency, loss, a bottleneck, partitions, networks that only a relay joins, and mDNS.
//!
//! Each host is this test binary again, run within a network namespace. That takes root, `ip` and `tc`; where they are missing the
//! tests say so on stderr and pass.

mod network;
mod role;

use network::Network;

/// Two networks with a router between them, or nothing where that can't be.
macro_rules! network_or_skip {
    () => {
        match Network::build() {
            Ok(network) => network,
            Err(why) => {
                eprintln!("skipped: no network namespaces here ({why})");
                return;
            }
        }
    };
}

const LISTEN: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";

/// Where a host of the other network listens.
fn right(seed: u8) -> String {
    format!("/ip4/10.77.2.2/udp/4001/quic-v1/p2p/{}", role::id(seed))
}

/// The host that a test starts; nothing when it is run by itself.
#[test]
fn host_of_another_test() {
    role::play();
}

#[test]
fn a_connection_comes_back_after_a_partition() {
    let network = network_or_skip!();
    let mut b = network.right(&["seed=2", &format!("listen={LISTEN}"), "peer=1"]);
    b.says("started");
    let mut a = network.left(&["seed=1", "peer=2", &format!("at={}", right(2))]);
    a.says("connected");
    for _ in 0..2 {
        network.forward(false);
        a.says("apart");
        network.forward(true);
        a.says("connected");
        a.order("echo");
        a.says("echoed");
    }
}

#[test]
fn control_goes_on_while_bulk_fills_a_bottleneck() {
    let network = network_or_skip!();
    network.bottleneck();
    let mut b = network.right(&["seed=2", &format!("listen={LISTEN}"), "peer=1"]);
    b.says("started");
    let mut a = network.left(&["seed=1", "peer=2", &format!("at={}", right(2))]);
    a.says("connected");
    a.order("measure");
    let measured = a.says("measured");
    eprintln!("control, microseconds: {measured}");
    let number = |name: &str| -> u64 {
        let at = measured
            .split(' ')
            .find_map(|word| word.strip_prefix(&format!("{name}=")));
        at.and_then(|text| text.parse().ok()).expect("a number")
    };
    // What it takes depends on the network; behind all of bulk it would be a minute.
    assert!(number("sent") > 1 << 20, "bulk was written meanwhile");
    assert!(number("busy_p99") < 10_000_000);
}

/// Neither network reaches the other; both reach the relay.
#[test]
fn networks_that_only_a_relay_joins_are_joined() {
    let network = network_or_skip!();
    network.forward(false);
    let mut relay = network.middle(&["seed=9", &format!("listen={LISTEN}"), "relay=1"]);
    relay.says("started");
    let at_relay = |side: u8| format!("/ip4/10.77.{side}.1/udp/4001/quic-v1/p2p/{}", role::id(9));
    let mut b = network.right(&["seed=2", "peer=1", &format!("via={}", at_relay(2))]);
    b.says("placed");
    let circuit = format!("{}/p2p-circuit/p2p/{}", at_relay(1), role::id(2));
    let mut a = network.left(&["seed=1", "peer=2", &format!("at={circuit}")]);
    assert_eq!(a.says("connected"), "relayed=true");
    a.order("echo");
    a.says("echoed");
}

/// On one network, with nothing configured but ids.
#[test]
fn hosts_on_one_network_find_each_other_by_mdns() {
    let network = network_or_skip!();
    let listen = format!("listen={LISTEN}");
    let mut b = network.middle(&["seed=2", &listen, "peer=1", "mdns=1"]);
    b.says("started");
    let mut stranger = network.middle(&["seed=3", "listen=/ip4/0.0.0.0/tcp/4003", "mdns=1"]);
    stranger.says("started");
    let mut a = network.left(&["seed=1", &listen, "peer=2", "mdns=1"]);
    a.says("connected");
    b.says("connected");
    // The stranger announces itself too, and nobody has anything to do with it.
    a.order("peers");
    assert_eq!(a.says("peers"), "1");
}
