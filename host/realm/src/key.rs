//! Signing and verifying: BIP-340 over the 32 bytes of a tagged hash, and the tagged hash itself.
//!
//! Promise: the secret is wiped when its key is dropped, and is never printed. Randomness is the caller's.

use std::fmt;

use k256::schnorr;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::ids::PublicKey;

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
        let field = Zeroizing::new(<[u8; 32]>::from(secret));
        secret.zeroize();
        schnorr::SigningKey::from_slice(&*field)
            .map(Self)
            .map_err(|_| NotAKey)
    }

    /// The public key that its signatures verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes().into())
    }

    /// Signs 32 bytes. `aux` should be fresh randomness; without it (zeros) the signature is deterministic, and
    /// only its resistance to side channels is lost.
    pub fn sign(&self, digest: &[u8; 32], aux: &[u8; 32]) -> [u8; 64] {
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

fn verifies(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
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
