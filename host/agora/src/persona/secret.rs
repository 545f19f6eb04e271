//! The host's one root secret, and the keys that come from it.
//!
//! In: 32 random bytes, made when the data folder is. Out: signing keys, each for one purpose, by HKDF-SHA256.
//! Promise: no two purposes share a key; the secret is never logged, never in wasm, and zeroed when dropped.
//! Failure: a secret that others than its owner can read is refused.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use agora_realm::{ComponentHash, PersonaName, SigningKey};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// The root secret.
pub struct Secret(Zeroizing<[u8; 32]>);

/// Why there is no secret to work with.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Others may read it.
    #[error("the secret {} can be read by others than its owner (mode {mode:o}); chmod 600 it, and consider its keys known", path.display())]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not what this host wrote.
    #[error("the secret {} is not 64 hexadecimal digits (restore it from a copy)", path.display())]
    Malformed {
        /// Where.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no secret at {}; without it this is another host (restore it from a copy)", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// The system gave no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// It can't be read or written.
    #[error("the secret {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Random bytes of the operating system.
///
/// # Errors
/// The system has none to give.
pub fn random_bytes() -> Result<[u8; 32], SecretError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(SecretError::Random)?;
    Ok(bytes)
}

impl Secret {
    /// Reads the secret at `path`.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let io = |source| SecretError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = std::fs::File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SecretError::Missing {
                path: path.to_owned(),
            },
            _ => io(error),
        })?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new([0; 64]);
        file.read_exact(&mut *text).map_err(io)?;
        Self::parse(&*text).ok_or_else(|| SecretError::Malformed {
            path: path.to_owned(),
        })
    }

    /// Reads the secret at `path`, or makes one there.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn open_or_make(path: &Path) -> Result<Self, SecretError> {
        let io = |source| SecretError::Io {
            path: path.to_owned(),
            source,
        };
        match Self::open(path) {
            Err(SecretError::Missing { .. }) => {
                let secret = Self(Zeroizing::new(random_bytes()?));
                let text = Zeroizing::new(crate::hex(&*secret.0) + "\n");
                // Written whole under another name first: half a secret must never be found under this one.
                let draft = path.with_extension("new");
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&draft)
                    .map_err(io)?;
                file.write_all(text.as_bytes()).map_err(io)?;
                file.sync_all().map_err(io)?;
                std::fs::rename(&draft, path).map_err(io)?;
                Ok(secret)
            }
            opened => opened,
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    fn derive(&self, purpose: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(b"agora/root/v1"), &*self.0)
            .expand_multi_info(purpose, &mut *out)
            .expect("32 bytes are fewer than HKDF can give");
        out
    }

    fn key(&self, purpose: &[&[u8]]) -> SigningKey {
        // A derived value is no valid key with probability 2^-128; the next counter would then be.
        (0..=u8::MAX)
            .find_map(|counter| {
                let counter = [0, counter];
                let info: Vec<&[u8]> = purpose.iter().copied().chain([&counter[..]]).collect();
                SigningKey::from_bytes(*self.derive(&info)).ok()
            })
            .expect("one of 256 derived values is a valid key")
    }

    /// The key that the host itself signs with.
    pub fn host_key(&self) -> SigningKey {
        self.key(&[b"host-signing"])
    }

    /// The key that a witness signs with, of a secret of its own.
    pub fn witness_key(&self) -> SigningKey {
        self.key(&[b"witness-signing"])
    }

    /// A persona's key. `generation` counts the keys it has had: each start and each new component has its own.
    pub fn persona_key(
        &self,
        name: &PersonaName,
        component: Option<&ComponentHash>,
        generation: u64,
    ) -> SigningKey {
        let name = name.as_str().as_bytes();
        let component = component.map_or(&[][..], |hash| hash.as_bytes());
        self.key(&[
            b"persona",
            &(name.len() as u64).to_be_bytes(),
            name,
            component,
            &generation.to_be_bytes(),
        ])
    }

    /// What an agent's `wasi:random/insecure-seed` gives: fixed per persona, and unknown to others.
    pub fn insecure_seed(&self, name: &PersonaName) -> u128 {
        let bytes = self.derive(&[b"insecure-seed", name.as_str().as_bytes()]);
        u128::from_be_bytes(bytes[..16].try_into().expect("16 of 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(matches!(
            Secret::open(&path),
            Err(SecretError::Missing { .. })
        ));
        let made = Secret::open_or_make(&path).unwrap().host_key().public();
        assert_eq!(Secret::open(&path).unwrap().host_key().public(), made);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        drop(Secret::open_or_make(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Secret::open(&path),
            Err(SecretError::Exposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn keys_differ_by_name_component_and_generation() {
        let secret = Secret(Zeroizing::new([7; 32]));
        let (a, b) = (
            PersonaName::new("a").unwrap(),
            PersonaName::new("b").unwrap(),
        );
        let component = ComponentHash([1; 32]);
        let keys = [
            secret.host_key().public(),
            secret.persona_key(&a, None, 1).public(),
            secret.persona_key(&b, None, 1).public(),
            secret.persona_key(&a, Some(&component), 1).public(),
            secret.persona_key(&a, Some(&component), 2).public(),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
    }
}
