//! What hosts of different realms sign for each other: who speaks from a peer id, and that a login is meant for who asks for it.
//!
//! Promise: no two of the arguments give the same digest, and none is that of an entry or of anything else of agora's: each purpose has a
//! tag of its own, and each part goes in behind its length.

use crate::ids::{Epoch, HostId, RealmId};
use crate::key::tagged_hash;

fn digest(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut data = Vec::new();
    for part in parts {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part);
    }
    tagged_hash(tag, &[&data])
}

/// What a host signs to say that it speaks from this libp2p peer id (its bytes): the tagged hash "agora/hello" of realm, host and id.
pub fn hello_digest(realm: &RealmId, host: &HostId, peer_id: &[u8]) -> [u8; 32] {
    digest("agora/hello", &[&realm.0, &host.0, peer_id])
}

/// A challenge, as both ends of a login see it.
#[derive(Debug, Clone, Copy)]
pub struct Challenge<'a> {
    /// 32 random bytes, used once.
    pub nonce: &'a [u8; 32],
    /// The realm of who challenges.
    pub realm: &'a RealmId,
    /// Who challenges.
    pub host: &'a HostId,
    /// The epoch in that realm.
    pub epoch: Epoch,
    /// The peer id of who challenges, as the other's connection proved it.
    pub challenger: &'a [u8],
    /// The peer id of who logs in, as the challenger's connection proved it.
    pub caller: &'a [u8],
}

impl Challenge<'_> {
    /// What the caller signs: the tagged hash "agora/login" of all its parts, the epoch as 8 bytes, big-endian.
    pub fn digest(&self) -> [u8; 32] {
        let epoch = self.epoch.0.to_be_bytes();
        let parts = [
            &self.nonce[..],
            &self.realm.0,
            &self.host.0,
            &epoch,
            self.challenger,
            self.caller,
        ];
        digest("agora/login", &parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_challenge_counts_and_none_runs_into_the_next() {
        let (nonce, realm, host) = ([1; 32], RealmId([2; 32]), HostId([3; 32]));
        let challenge = Challenge {
            nonce: &nonce,
            realm: &realm,
            host: &host,
            epoch: Epoch(4),
            challenger: b"ab",
            caller: b"c",
        };
        let (other_nonce, other_realm, other_host) = ([9; 32], RealmId([9; 32]), HostId([9; 32]));
        let others = [
            Challenge {
                nonce: &other_nonce,
                ..challenge
            },
            Challenge {
                realm: &other_realm,
                ..challenge
            },
            Challenge {
                host: &other_host,
                ..challenge
            },
            Challenge {
                epoch: Epoch(5),
                ..challenge
            },
            Challenge {
                challenger: b"a",
                caller: b"bc",
                ..challenge
            },
            Challenge {
                challenger: b"c",
                caller: b"ab",
                ..challenge
            },
        ];
        for other in others {
            assert_ne!(challenge.digest(), other.digest(), "{other:?}");
        }
        assert_ne!(
            hello_digest(&realm, &host, b"ab"),
            hello_digest(&realm, &host, b"abc")
        );
    }
}
