//! Which host a data folder is of, and where that host's secret lies.
//!
//! In: a data folder, and a file outside it where the operator named one. Out: the host's keys.
//! Promise: a folder knows the host it belongs to (`host` in it), and is opened with that host's secret or not at all. A secret is made
//! only for a folder that belongs to nobody yet.
//! Failure: what is wrong, with which file, and what to do.

use std::path::{Path, PathBuf};

use agora_dial::{Options, PeerId, Standing};
use agora_realm::HostId;

use super::keys::Keys;
use super::secret::{Secret, SecretError};
use crate::boot::data::{DataError, replace};

/// Where the secret is.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    file: Option<PathBuf>,
}

/// Why there are no keys to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The secret is missing or not to be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The folder is another host's.
    #[error(
        "the data folder {} belongs to host {}, and the secret {} is that of host {} (name the right one with --identity FILE, or another \
         folder with --data DIR)",
        folder.display(), .belongs.short(), secret.display(), .found.short()
    )]
    OtherHost {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        belongs: HostId,
        /// The secret that was used.
        secret: PathBuf,
        /// Whose that is.
        found: HostId,
    },
    /// The folder's note of its host can't be understood.
    #[error("{} is not a host's id (delete it if the folder is known to be this host's; it is written anew)", .0.display())]
    Malformed(PathBuf),
    /// The folder can't be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl Identity {
    /// A secret in the data folder.
    pub fn in_folder() -> Self {
        Self::default()
    }

    /// A secret in a file elsewhere.
    pub fn at(file: PathBuf) -> Self {
        Self { file: Some(file) }
    }

    /// The file that holds the secret of the host of this data folder.
    pub fn path(&self, folder: &Path) -> PathBuf {
        self.file.clone().unwrap_or_else(|| folder.join("secret"))
    }

    /// The keys of a folder's host.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn open(&self, folder: &Path) -> Result<Keys, IdentityError> {
        let path = self.path(folder);
        self.check(folder, Keys::new(Secret::open(&path)?))
    }

    /// The same, with a new secret where there is none and the folder is nobody's yet.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn open_or_make(&self, folder: &Path) -> Result<Keys, IdentityError> {
        let path = self.path(folder);
        let taken = host_of(folder)?.is_some() || folder.join("realm").exists();
        match taken {
            true => self.open(folder),
            false => Ok(Keys::new(Secret::open_or_make(&path)?)),
        }
    }

    fn check(&self, folder: &Path, keys: Keys) -> Result<Keys, IdentityError> {
        match host_of(folder)? {
            Some(belongs) if belongs != keys.host_id() => Err(IdentityError::OtherHost {
                folder: folder.to_owned(),
                belongs,
                secret: self.path(folder),
                found: keys.host_id(),
            }),
            _ => Ok(keys),
        }
    }
}

/// The host that a data folder belongs to, once it belongs to one.
///
/// # Errors
/// It can't be read, or understood.
pub fn host_of(folder: &Path) -> Result<Option<HostId>, IdentityError> {
    let path = folder.join("host");
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(IdentityError::Malformed(path)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataError::Io { path, source }.into()),
    }
}

/// From here on the folder belongs to this host.
///
/// # Errors
/// It can't be written.
pub fn claim(folder: &Path, host: HostId) -> Result<(), IdentityError> {
    if host_of(folder)? != Some(host) {
        replace(&folder.join("host"), format!("{host}\n").as_bytes())?;
    }
    Ok(())
}

/// The libp2p id of the host with this secret: what hosts of other realms know it by.
pub fn peer_id(secret: &Secret) -> PeerId {
    Options::new(*secret.peer_seed(), |_: &PeerId| Standing::Refused).peer_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_opened_with_its_own_hosts_secret_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (own, other) = (
            Identity::in_folder(),
            Identity::at(elsewhere.path().join("id")),
        );
        let host = own.open_or_make(folder.path()).unwrap().host_id();
        // Nobody's yet, so any secret will do.
        assert_ne!(other.open_or_make(folder.path()).unwrap().host_id(), host);
        claim(folder.path(), host).unwrap();
        assert_eq!(own.open(folder.path()).unwrap().host_id(), host);
        for opened in [other.open(folder.path()), other.open_or_make(folder.path())] {
            assert!(matches!(opened, Err(IdentityError::OtherHost { .. })));
        }
        std::fs::remove_file(folder.path().join("secret")).unwrap();
        assert!(matches!(
            own.open_or_make(folder.path()),
            Err(IdentityError::Secret(SecretError::Missing { .. }))
        ));
    }
}
