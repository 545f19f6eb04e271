//! Kademlia, for one thing: where a known peer is. Nothing is stored for anyone, and the table holds few.
//!
//! A question ends at the peer itself, if it is found; [`crate::links`] believes the address at which it proved its key, and
//! nothing that others say.

use std::{net::IpAddr, num::NonZeroUsize, time::Duration};

use libp2p::{
    PeerId, StreamProtocol, identify,
    kad::{
        Behaviour, BucketInserts, Config, Mode, StoreInserts,
        store::{MemoryStore, MemoryStoreConfig},
    },
    multiaddr::Protocol,
};

use crate::{Kademlia, limits, links::plausible};

pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new("/agora/kad/1");

pub(crate) type Kad = Behaviour<MemoryStore>;

pub(crate) fn build(own: PeerId, options: &Kademlia) -> Kad {
    let store = MemoryStore::with_config(
        own,
        MemoryStoreConfig {
            max_records: 0,
            max_value_bytes: 0,
            max_providers_per_key: 0,
            max_provided_keys: 0,
        },
    );
    let mut config = Config::new(PROTOCOL);
    config
        .set_query_timeout(Duration::from_millis(limits::KAD_QUESTION_MS))
        .set_max_packet_size(limits::KAD_MESSAGE_BYTES_MAX)
        // Records are told to us as events, and dropped.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_kbucket_inserts(BucketInserts::Manual);
    if let Some(size) = NonZeroUsize::new(limits::KAD_BUCKET_MAX) {
        config.set_kbucket_size(size);
    }
    let mut kad = Behaviour::with_config(own, store, config);
    kad.set_mode(Some(match options.serve {
        true => Mode::Server,
        false => Mode::Client,
    }));
    kad
}

/// Asks where a peer is, unless much is being asked already.
pub(crate) fn ask(kad: &mut Kad, peer: PeerId) {
    if kad.iter_queries().count() < limits::KAD_QUESTIONS_MAX {
        kad.get_closest_peers(peer);
    }
}

/// A host that answers says where it listens: what lies at the place that it is connected from goes into the table, in place of
/// what was there.
pub(crate) fn learn(kad: &mut Kad, peer: PeerId, from: IpAddr, info: &identify::Info) {
    if !info.protocols.contains(&PROTOCOL) {
        return;
    }
    let mut there = Vec::new();
    for address in info.listen_addrs.iter().filter_map(plausible) {
        let at = match address.iter().next() {
            Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(ip)),
            Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        if at == Some(from) && there.len() < limits::KAD_ADDRESSES_MAX && !there.contains(&address)
        {
            there.push(address);
        }
    }
    if !there.is_empty() {
        kad.remove_peer(&peer);
        for address in there {
            kad.add_address(&peer, address);
        }
    }
}
