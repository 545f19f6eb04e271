//! Signing and verifying: BIP-340 over the 32 bytes of a tagged hash, and the tagged hash itself.
//!
//! Promise: the secret is wiped when its key is dropped, and is never printed. Randomness is the caller's.

use std::collections::HashMap;
use std::fmt;

use k256::schnorr;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::ids::PublicKey;
use crate::limits::VERIFIER_KEYS_MAX;

/// Bytes that are no secret key: zero, or not below the order of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these 32 bytes are no secret key (zero, or not below the curve's order)")]
pub struct NotAKey;

/// A secret key of a host or persona. Wiped on drop; its `Debug` shows the public key.
pub struct SigningKey(schnorr::SigningKey);

impl SigningKey {
    /// The key of these secret bytes. This copy of them is wiped; the caller's is the caller's to wipe.
    ///
    /// # Errors
    /// [`NotAKey`] for zero and for the one in 2^128 that is not below the curve's order.
    pub fn from_bytes(mut secret: [u8; 32]) -> Result<Self, NotAKey> {
        let key = schnorr::SigningKey::from_slice(&secret)
            .map(Self)
            .map_err(|_| NotAKey);
        secret.zeroize();
        key
    }

    /// The public key that its signatures verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes().into())
    }

    /// Signs 32 bytes. `aux` should be fresh randomness; without it (zeros) the signature is deterministic, and
    /// only its resistance to side channels is lost.
    pub fn sign(&self, digest: &[u8; 32], aux: &[u8; 32]) -> [u8; 64] {
        #[cfg(feature = "bench")]
        if crate::unsigned::is_signing_off() {
            return [0; 64];
        }
        let mut aux = *aux;
        loop {
            if let Ok(signature) = self.0.sign_raw(digest, &aux) {
                return signature.to_bytes();
            }
            // The nonce came out as zero, which nobody will ever see; another nonce comes from another aux.
            aux[0] = aux[0].wrapping_add(1);
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public()).finish()
    }
}

impl PublicKey {
    /// Whether the signature over these 32 bytes is this key's.
    pub fn verifies(&self, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        verifies(&self.0, digest, signature)
    }
}

/// Verifies signatures by few keys many times: what a key takes to be read is spent once.
#[derive(Default)]
pub struct Verifier(HashMap<PublicKey, Option<schnorr::VerifyingKey>>);

impl Verifier {
    /// One that knows no key yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`PublicKey::verifies`].
    pub fn verifies(&mut self, key: &PublicKey, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        #[cfg(feature = "bench")]
        if crate::unsigned::is_verifying_off() {
            return true;
        }
        if self.0.len() >= VERIFIER_KEYS_MAX && !self.0.contains_key(key) {
            self.0.clear();
        }
        let read = self
            .0
            .entry(*key)
            .or_insert_with(|| schnorr::VerifyingKey::from_slice(&key.0).ok());
        match (read, schnorr::Signature::try_from(&signature[..])) {
            (Some(key), Ok(signature)) => key.verify_raw(digest, &signature).is_ok(),
            _ => false,
        }
    }
}

fn verifies(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    #[cfg(feature = "bench")]
    if crate::unsigned::is_verifying_off() {
        return true;
    }
    let Ok(key) = schnorr::VerifyingKey::from_slice(key) else {
        return false;
    };
    let Ok(signature) = schnorr::Signature::try_from(&signature[..]) else {
        return false;
    };
    key.verify_raw(message, &signature).is_ok()
}

/// SHA-256(SHA-256(tag) || SHA-256(tag) || data), as in BIP-340: a hash that no other use of SHA-256 can collide with.
pub fn tagged_hash(tag: &str, data: &[&[u8]]) -> [u8; 32] {
    let tag = Sha256::digest(tag.as_bytes());
    let mut hash = Sha256::new();
    hash.update(tag);
    hash.update(tag);
    for part in data {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with BIP-340: secret key and aux (empty where only verifying is tested), public key,
    /// message, signature, and whether it verifies.
    const PUBLISHED: &[(&str, &str, &str, &str, &str, bool)] = &[
        (
            "0000000000000000000000000000000000000000000000000000000000000003",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "F9308A019258C31049344F85F89D5229B531C845836F99B08601F113BCE036F9",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "E907831F80848D1069A5371B402410364BDF1C5F8307B0084C55F1CE2DCA821525F66A4A85EA8B71E482A74F382D2CE5EBEEE8FDB2172F477DF4900D310536C0",
            true,
        ),
        (
            "B7E151628AED2A6ABF7158809CF4F3C762E7160F38B4DA56A784D9045190CFEF",
            "0000000000000000000000000000000000000000000000000000000000000001",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "6896BD60EEAE296DB48A229FF71DFE071BDE413E6D43F917DC8DCF8C78DE33418906D11AC976ABCCB20B091292BFF4EA897EFCB639EA871CFA95F6DE339E4B0A",
            true,
        ),
        (
            "C90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B14E5C9",
            "C87AA53824B4D7AE2EB035A2B5BBBCCC080E76CDC6D1692C4B0B62D798E6D906",
            "DD308AFEC5777E13121FA72B9CC1B7CC0139715309B086C960E18FD969774EB8",
            "7E2D58D8B3BCDF1ABADEC7829054F90DDA9805AAB56C77333024B9D0A508B75C",
            "5831AAEED7B44BB74E5EAB94BA9D4294C49BCF2A60728D8B4C200F50DD313C1BAB745879A5AD954A72C45A91C3A51D3C7ADEA98D82F8481E0E1E03674A6F3FB7",
            true,
        ),
        // 3: test fails if msg is reduced modulo p or n
        (
            "0B432B2677937381AEF05BB02A66ECD012773062CF3FA2549E44F58ED2401710",
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
            "25D1DFF95105F5253C4022F628A996AD3A0D95FBF21D468A1B33F8C160D8F517",
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
            "7EB0509757E246F19449885651611CB965ECC1A187DD51B64FDA1EDC9637D5EC97582B9CB13DB3933705B32BA982AF5AF25FD78881EBB32771FC5922EFC66EA3",
            true,
        ),
        (
            "",
            "",
            "D69C3509BB99E412E68B0FE8544E72837DFA30746D8BE2AA65975F29D22DC7B9",
            "4DF3C3F68FCC83B27E9D42C90431A72499F17875C81A599B566C9889B9696703",
            "00000000000000000000003B78CE563F89A0ED9414F5AA28AD0D96D6795F9C6376AFB1548AF603B3EB45C9F8207DEE1060CB71C04E80F593060B07D28308D7F4",
            true,
        ),
        // 5: public key not on the curve
        (
            "",
            "",
            "EEFDEA4CDB677750A420FEE807EACF21EB9898AE79B9768766E4FAA04A2D4A34",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "6CFF5C3BA86C69EA4B7376F31A9BCB4F74C1976089B2D9963DA2E5543E17776969E89B4C5564D00349106B8497785DD7D1D713A8AE82B32FA79D5F7FC407D39B",
            false,
        ),
        // 6: has_even_y(R) is false
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "FFF97BD5755EEEA420453A14355235D382F6472F8568A18B2F057A14602975563CC27944640AC607CD107AE10923D9EF7A73C643E166BE5EBEAFA34B1AC553E2",
            false,
        ),
        // 7: negated message
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "1FA62E331EDBC21C394792D2AB1100A7B432B013DF3F6FF4F99FCB33E0E1515F28890B3EDB6E7189B630448B515CE4F8622A954CFE545735AAEA5134FCCDB2BD",
            false,
        ),
        // 8: negated s value
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "6CFF5C3BA86C69EA4B7376F31A9BCB4F74C1976089B2D9963DA2E5543E177769961764B3AA9B2FFCB6EF947B6887A226E8D7C93E00C5ED0C1834FF0D0C2E6DA6",
            false,
        ),
        // 9: sG - eP is infinite. Test fails in single verification if has_even_y(inf) is defined as true and x(inf) as 0
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "0000000000000000000000000000000000000000000000000000000000000000123DDA8328AF9C23A94C1FEECFD123BA4FB73476F0D594DCB65C6425BD186051",
            false,
        ),
        // 10: sG - eP is infinite. Test fails in single verification if has_even_y(inf) is defined as true and x(inf) as 1
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "00000000000000000000000000000000000000000000000000000000000000017615FBAF5AE28864013C099742DEADB4DBA87F11AC6754F93780D5A1837CF197",
            false,
        ),
        // 11: sig[0:32] is not an X coordinate on the curve
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "4A298DACAE57395A15D0795DDBFD1DCB564DA82B0F269BC70A74F8220429BA1D69E89B4C5564D00349106B8497785DD7D1D713A8AE82B32FA79D5F7FC407D39B",
            false,
        ),
        // 12: sig[0:32] is equal to field size
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFC2F69E89B4C5564D00349106B8497785DD7D1D713A8AE82B32FA79D5F7FC407D39B",
            false,
        ),
        // 13: sig[32:64] is equal to curve order
        (
            "",
            "",
            "DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "6CFF5C3BA86C69EA4B7376F31A9BCB4F74C1976089B2D9963DA2E5543E177769FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141",
            false,
        ),
        // 14: public key is not a valid X coordinate because it exceeds the field size
        (
            "",
            "",
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFC30",
            "243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89",
            "6CFF5C3BA86C69EA4B7376F31A9BCB4F74C1976089B2D9963DA2E5543E17776969E89B4C5564D00349106B8497785DD7D1D713A8AE82B32FA79D5F7FC407D39B",
            false,
        ),
        // 15: message of size 0 (added 2022-12)
        (
            "0340034003400340034003400340034003400340034003400340034003400340",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "778CAA53B4393AC467774D09497A87224BF9FAB6F6E68B23086497324D6FD117",
            "",
            "71535DB165ECD9FBBC046E5FFAEA61186BB6AD436732FCCC25291A55895464CF6069CE26BF03466228F19A3A62DB8A649F2D560FAC652827D1AF0574E427AB63",
            true,
        ),
        // 16: message of size 1 (added 2022-12)
        (
            "0340034003400340034003400340034003400340034003400340034003400340",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "778CAA53B4393AC467774D09497A87224BF9FAB6F6E68B23086497324D6FD117",
            "11",
            "08A20A0AFEF64124649232E0693C583AB1B9934AE63B4C3511F3AE1134C6A303EA3173BFEA6683BD101FA5AA5DBC1996FE7CACFC5A577D33EC14564CEC2BACBF",
            true,
        ),
        // 17: message of size 17 (added 2022-12)
        (
            "0340034003400340034003400340034003400340034003400340034003400340",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "778CAA53B4393AC467774D09497A87224BF9FAB6F6E68B23086497324D6FD117",
            "0102030405060708090A0B0C0D0E0F1011",
            "5130F39A4059B43BC7CAC09A19ECE52B5D8699D1A71E3C52DA9AFDB6B50AC370C4A482B77BF960F8681540E25B6771ECE1E5A37FD80E5A51897C5566A97EA5A5",
            true,
        ),
        // 18: message of size 100 (added 2022-12)
        (
            "0340034003400340034003400340034003400340034003400340034003400340",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "778CAA53B4393AC467774D09497A87224BF9FAB6F6E68B23086497324D6FD117",
            "99999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
            "403B12B0D8555A344175EA7EC746566303321E5DBFA8BE6F091635163ECA79A8585ED3E3170807E7C03B720FC54C7B23897FCBA0E9D0B4A06894CFD249F22367",
            true,
        ),
    ];

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn fixed<const N: usize>(text: &str) -> [u8; N] {
        unhex(text).try_into().unwrap()
    }

    #[test]
    fn the_published_vectors_verify_as_they_should() {
        for (_, _, public, message, signature, good) in PUBLISHED {
            assert_eq!(
                verifies(&fixed(public), &unhex(message), &fixed(signature)),
                *good,
                "{signature}"
            );
        }
    }

    #[test]
    fn a_verifier_that_remembers_keys_says_the_same() {
        let mut verifier = Verifier::new();
        // Twice, so that the second time every key is known, bad ones too.
        for (_, _, public, message, signature, good) in [PUBLISHED, PUBLISHED].concat() {
            if message.len() == 64 {
                let key = PublicKey(fixed(public));
                let verifies = verifier.verifies(&key, &fixed(message), &fixed(signature));
                assert_eq!(verifies, good, "{signature}");
            }
        }
        for n in 0..2 * VERIFIER_KEYS_MAX as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            verifier.verifies(&PublicKey(key), &[0; 32], &[0; 64]);
            assert!(verifier.0.len() <= VERIFIER_KEYS_MAX);
        }
    }

    #[test]
    fn the_published_vectors_are_signed_to_the_byte() {
        let mut signed = 0;
        for (secret, aux, public, message, signature, _) in PUBLISHED {
            if secret.is_empty() || message.len() != 64 {
                continue;
            }
            let key = SigningKey::from_bytes(fixed(secret)).unwrap();
            assert_eq!(key.public(), PublicKey(fixed(public)));
            assert_eq!(
                key.sign(&fixed(message), &fixed(aux)),
                fixed::<64>(signature)
            );
            signed += 1;
        }
        assert_eq!(signed, 4);
    }

    #[test]
    fn zero_and_the_curves_order_are_no_secret_keys() {
        let order = "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141";
        assert_eq!(SigningKey::from_bytes([0; 32]).err(), Some(NotAKey));
        assert_eq!(SigningKey::from_bytes(fixed(order)).err(), Some(NotAKey));
    }

    #[test]
    fn a_key_shows_no_secret() {
        let key = SigningKey::from_bytes([0x5a; 32]).unwrap();
        let shown = format!("{key:?}");
        assert!(
            shown.contains(&key.public().short()) && !shown.contains("5a5a5a"),
            "{shown}"
        );
    }

    #[test]
    fn a_tagged_hash_is_that_of_bip_340() {
        let tag = Sha256::digest(b"agora/entry");
        let whole: [u8; 32] = Sha256::digest([&tag[..], &tag[..], b"abcd"].concat()).into();
        assert_eq!(tagged_hash("agora/entry", &[b"ab", b"cd"]), whole);
        assert_ne!(tagged_hash("agora/message", &[b"ab", b"cd"]), whole);
    }
}
