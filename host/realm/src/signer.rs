//! What a signature is over that an agent has its host make.
//!
//! In: who signs, for what, and the message. Out: the 32 bytes that BIP-340 signs and verifies.
//! Promise: no two of (realm, persona, domain, message) give the same digest, and none is that of an entry, a checkpoint or anything else
//! of agora's: the tag is this purpose's alone, and each part goes in behind its length.

use crate::ids::{DomainName, PersonaId, RealmId};
use crate::key::tagged_hash;

const TAG: &str = "agora/signer";

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
    let lengths = parts.map(|part| (part.len() as u64).to_be_bytes());
    let mut data = Vec::with_capacity(2 * parts.len());
    for (part, length) in parts.iter().zip(&lengths) {
        data.extend([&length[..], part]);
    }
    tagged_hash(TAG, &data)
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
