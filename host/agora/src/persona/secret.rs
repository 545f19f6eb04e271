//! The host's one root secret, and the keys that come from it.
//!
//! In: 32 random bytes, made when the data folder is. Out: signing keys, each for one purpose, by HKDF-SHA256.
//! Promise: no two purposes share a key; the secret is never logged, never in wasm, and zeroed when dropped.
//! Failure: a secret that is another's, that others can read, or that is no regular file, is refused.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
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
    /// It is a folder, a pipe or the like.
    #[error("the secret {} is not a regular file (name one with --identity FILE)", .0.display())]
    NotAFile(PathBuf),
    /// It is another user's.
    #[error("the secret {} belongs to user {owner}, and this runs as user {ours} (run as that user; or chown it to this one)", path.display())]
    NotOurs {
        /// Where.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Who this is.
        ours: u32,
    },
    /// It is not what this host wrote.
    #[error("the secret {} is not 64 hexadecimal digits (restore it from a copy)", path.display())]
    Malformed {
        /// Where.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no secret at {}; without it this is another host (restore it from a copy; or, if it is elsewhere, name it with --identity FILE)", path.display())]
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
        // Without waiting for whoever would write to a pipe.
        let at_once = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(at_once)
            .open(path);
        let mut file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SecretError::Missing {
                path: path.to_owned(),
            },
            _ => io(error),
        })?;
        let found = file.metadata().map_err(io)?;
        if !found.is_file() {
            return Err(SecretError::NotAFile(path.to_owned()));
        }
        let ours = rustix::process::geteuid().as_raw();
        if found.uid() != ours {
            return Err(SecretError::NotOurs {
                path: path.to_owned(),
                owner: found.uid(),
                ours,
            });
        }
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let malformed = || SecretError::Malformed {
            path: path.to_owned(),
        };
        let mut text = Zeroizing::new([0; 64]);
        match file.read_exact(&mut *text) {
            Ok(()) => Self::parse(&*text).ok_or_else(malformed),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(malformed()),
            Err(error) => Err(io(error)),
        }
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
                // Written whole under another name first: half a secret must never be found under this one. A name that nobody else has
                // used, since the folder may be the user's.
                let mut draft = path.as_os_str().to_owned();
                draft.push(format!(".{}.new", std::process::id()));
                let draft = PathBuf::from(draft);
                let written = (|| {
                    let mut file = std::fs::OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&draft)?;
                    file.write_all(&*secret.text())?;
                    file.sync_all()?;
                    std::fs::rename(&draft, path)?;
                    let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
                    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
                })();
                written.map_err(io)?;
                Ok(secret)
            }
            opened => opened,
        }
    }

    /// As it is kept: 64 hexadecimal digits and a newline, wiped when dropped.
    fn text(&self) -> Zeroizing<[u8; 65]> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new([b'\n'; 65]);
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0.iter()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
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

    /// The key that the host itself signs with. `generation` counts the keys it has had; the first names it.
    pub fn host_key(&self, generation: u64) -> SigningKey {
        match generation {
            0 | 1 => self.key(&[b"host-signing"]),
            later => self.key(&[b"host-signing", &later.to_be_bytes()]),
        }
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

    /// What this host's libp2p id comes from: an ed25519 seed.
    pub fn peer_seed(&self) -> Zeroizing<[u8; 32]> {
        self.derive(&[b"libp2p"])
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
        let made = Secret::open_or_make(&path).unwrap();
        let key = |secret: &Secret| secret.host_key(1).public();
        assert_eq!(key(&Secret::open(&path).unwrap()), key(&made));
        let kept = std::fs::read_dir(dir.path()).unwrap();
        assert_eq!(kept.count(), 1, "no draft of it is left");
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
    fn what_is_no_file_of_ours_with_a_secret_is_refused_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(Secret::open(&path), Err(SecretError::NotAFile(_))));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(Secret::open(&pipe), Err(SecretError::NotAFile(_))));
        let short = dir.path().join("short");
        for text in ["abc", &"+1".repeat(32), &"é".repeat(32)] {
            std::fs::write(&short, text).unwrap();
            std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600)).unwrap();
            let opened = Secret::open(&short);
            assert!(
                matches!(opened, Err(SecretError::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn the_first_keys_are_those_of_every_version() {
        // Hosts are known by them, in logs that exist.
        let secret = Secret(Zeroizing::new([7; 32]));
        let expand = |info: &[u8]| {
            let mut key = [0; 32];
            Hkdf::<Sha256>::new(Some(b"agora/root/v1"), &[7; 32])
                .expand(info, &mut key)
                .unwrap();
            SigningKey::from_bytes(key).unwrap().public()
        };
        assert_eq!(secret.host_key(1).public(), expand(b"host-signing\0\0"));
        let name = PersonaName::new("a").unwrap();
        let info = b"persona\0\0\0\0\0\0\0\x01a\0\0\0\0\0\0\0\x02\0\0";
        assert_eq!(secret.persona_key(&name, None, 2).public(), expand(info));
    }

    #[test]
    fn the_peer_id_follows_from_the_secret_and_is_no_key_of_another_purpose() {
        let secret = Secret(Zeroizing::new([7; 32]));
        let seed = secret.peer_seed();
        assert_eq!(seed, Secret(Zeroizing::new([7; 32])).peer_seed());
        assert_ne!(seed, Secret(Zeroizing::new([8; 32])).peer_seed());
        let signing = SigningKey::from_bytes(*seed).unwrap().public();
        assert_ne!(signing, secret.host_key(1).public());
        assert_ne!(signing, secret.witness_key().public());
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
            secret.host_key(1).public(),
            secret.host_key(2).public(),
            secret.host_key(3).public(),
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
