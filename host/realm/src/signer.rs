//! What a signature is over that an agent has its host make, and one by which a host introduces a persona to another realm.
//!
//! In: who signs, for what, and the message. Out: the 32 bytes that BIP-340 signs and verifies.
//! Promise: no two of (realm, persona, domain, message) give the same digest, and none is that of an entry, a checkpoint or anything else
//! of agora's: the tag is this purpose's alone, and each part goes in behind its length. The same for introductions.

use crate::entry::Origin;
use crate::ids::{DomainName, PersonaId, PublicKey, RealmId};
use crate::key::tagged_hash;

const TAG: &str = "agora/signer";
const INTRODUCTION_TAG: &str = "agora/introduction";

/// The tagged hash over these parts, each behind its length.
fn digest_of(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let lengths: Vec<[u8; 8]> = parts
        .iter()
        .map(|part| (part.len() as u64).to_be_bytes())
        .collect();
    let mut data = Vec::with_capacity(2 * parts.len());
    for (part, length) in parts.iter().zip(&lengths) {
        data.extend([&length[..], part]);
    }
    tagged_hash(tag, &data)
}

/// What a host signs to introduce a persona of its own, or itself, to a host of another realm: the tagged hash "agora/introduction" over
/// the realm and the host that it is introduced to, what it is called there (all three the reader's), and the persona's name, key and
/// component at home, each behind its length as 8 bytes, big-endian, and empty where there is none.
pub fn introduction_digest(realm: &RealmId, here: &PersonaId, origin: &Origin) -> [u8; 32] {
    let persona = origin.persona.as_ref();
    let parts = [
        &realm.0[..],
        &here.host.0,
        here.name.as_str().as_bytes(),
        persona.map_or(&[], |name| name.as_str().as_bytes()),
        origin.public_key.as_ref().map_or(&[], |key| &key.0),
        origin.component.as_ref().map_or(&[], |hash| &hash.0),
    ];
    digest_of(INTRODUCTION_TAG, &parts)
}

impl Origin {
    /// Whether the host whose key this is introduced it as `here` in this realm. That the key is the host's, which may have renewed it
    /// since it took its id, is for the caller to know.
    pub fn introduced_by(&self, host_key: &PublicKey, realm: &RealmId, here: &PersonaId) -> bool {
        self.signature.as_ref().is_some_and(|signature| {
            host_key.verifies(&introduction_digest(realm, here, self), signature)
        })
    }
}

/// What the key of `persona` signs when it signs `message` in `domain`: the tagged hash "agora/signer" over realm, host, persona's name,
/// domain and message, each behind its length as 8 bytes, big-endian. [`PublicKey::verifies`](crate::PublicKey::verifies) takes it.
pub fn signer_digest(
    realm: &RealmId,
    persona: &PersonaId,
    domain: &DomainName,
    message: &[u8],
) -> [u8; 32] {
    let parts = [
        &realm.0[..],
        &persona.host.0[..],
        persona.name.as_str().as_bytes(),
        domain.as_str().as_bytes(),
        message,
    ];
    digest_of(TAG, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{HostId, PersonaName};

    #[test]
    fn every_part_makes_another_digest_and_none_slides_into_its_neighbour() {
        let digest = |realm: u8, host: u8, name: &str, domain: &str, message: &str| {
            signer_digest(
                &RealmId([realm; 32]),
                &PersonaId::new(HostId([host; 32]), PersonaName::new(name).unwrap()),
                &DomainName::new(domain).unwrap(),
                message.as_bytes(),
            )
        };
        let all = [
            digest(1, 2, "ab", "c", "d"),
            digest(3, 2, "ab", "c", "d"),
            digest(1, 3, "ab", "c", "d"),
            digest(1, 2, "a", "bc", "d"),
            digest(1, 2, "ab", "cd", ""),
            digest(1, 2, "a", "b", "cd"),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "{i}");
        }
    }

    #[test]
    fn the_digest_is_what_the_documents_say() {
        // Written out by hand, as a verifier in another language would.
        let mut data = Vec::new();
        for part in [&[1; 32][..], &[2; 32], b"ann", b"release", b"v1"] {
            data.extend((part.len() as u64).to_be_bytes());
            data.extend(part);
        }
        let expected = tagged_hash("agora/signer", &[&data]);
        let ann = PersonaId::new(HostId([2; 32]), PersonaName::new("ann").unwrap());
        let release = DomainName::new("release").unwrap();
        let digest = signer_digest(&RealmId([1; 32]), &ann, &release, b"v1");
        assert_eq!(digest, expected);
        assert_ne!(digest, tagged_hash("agora/entry", &[&data]));
    }
}
