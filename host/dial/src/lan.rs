//! mDNS: who says to be where on the networks of this machine. What it says of peers that aren't configured is dropped.

use std::io;

use libp2p::{
    Multiaddr, PeerId,
    core::transport::ListenerId,
    mdns,
    swarm::{
        FromSwarm, NetworkBehaviour,
        behaviour::{NewListenAddr, toggle::Toggle},
    },
};

use crate::{Finder, limits, links::Links};

pub(crate) type Lan = Toggle<mdns::tokio::Behaviour>;

pub(crate) fn build(own: PeerId, on: bool) -> io::Result<Lan> {
    on.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), own))
        .transpose()
        .map(Toggle::from)
}

/// Hands on what was found. libp2p's mDNS keeps all that anyone on the network says for as long as they say; beyond a bound it
/// is thrown away here, and begins anew.
pub(crate) fn heard(
    lan: &mut Lan,
    links: &mut Links,
    own: PeerId,
    listening: &[Multiaddr],
    event: mdns::Event,
) {
    match event {
        mdns::Event::Discovered(found) => {
            for (peer, address) in &found {
                links.found(peer, address, Finder::Mdns);
            }
        }
        mdns::Event::Expired(lost) => {
            for (peer, address) in &lost {
                links.lost(peer, address);
            }
        }
    }
    if lan
        .as_ref()
        .is_some_and(|lan| lan.discovered_nodes().len() > limits::MDNS_SEEN_MAX)
    {
        tracing::warn!("mDNS is flooded, and begins anew");
        links.lost_mdns();
        match build(own, true) {
            Ok(anew) => *lan = anew,
            Err(error) => {
                tracing::error!(%error, "mDNS can't begin anew, and is off");
                *lan = None.into();
            }
        }
        let listener_id = ListenerId::next();
        for addr in listening {
            lan.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
                listener_id,
                addr,
            }));
        }
    }
}
