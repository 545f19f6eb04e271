//! The data folder: everything a host keeps, locked by the host that runs on it.
//!
//! Promise: one host a folder; what is written here survives kill -9 at any line. The room for stops that the log could
//! not take yet is reserved when the folder is made, so that a full disk can't prevent a kill.
//! Failure: a folder of another format, or in use, is refused and left as it is.
//!
//! ```text
//! format       what this folder is, and the version of its layout
//! lock         held while a host runs
//! secret       the root secret, 0600; unless it is elsewhere (--identity)
//! host         the host that this folder belongs to
//! realm        the realm's id, once it has one
//! log/         the embedded log
//! index/       by channel: where each counting message stands (derived)
//! state        snapshot of the realm's state (derived)
//! cursors      silence: cursors moved by no entry
//! tip          the newest entry that was judged: its place, and the hash of what stands there
//! own          what this host itself decided, for a log that loses it
//! accepted     the operator's reason for accepting that the log lost something, until the next start has signed it
//! stops        stops that wait for the log
//! tree         the tree over the log (derived)
//! checkpoint   this host's newest signed word of what the log was
//! checkpoints  those before it
//! cosigned     those that witnesses signed, too
//! book         what operators told of peers while a host ran
//! forked       other hosts that have another log
//! held/        by peer: its newest checkpoint, and what speaks against it
//! pruned       stubs of pruned turns
//! pruning      the channels that are being pruned on servers
//! purged       how far each channel's pruned turns are gone from the log
//! importing    an import that is not done
//! cache/       compiled components (derived)
//! operator     the operator's socket, while a host runs
//! ```

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use agora_realm::{ChannelName, Ordinal, PersonaId, RealmId};
use bytes::Bytes;

use super::own::Own;
use crate::delivery::tip::Tip;
use crate::limits;

const FORMAT: &str = "agora data 1\n";

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another host runs on it.
    #[error("the data folder {} is in use by another host (stop it, or give this one its own with --data DIR)", .0.display())]
    Locked(PathBuf),
    /// It is of another version.
    #[error("the data folder {} has format '{found}'; this build reads '{}' (use the build that wrote it)", path.display(), FORMAT.trim())]
    Format {
        /// Where.
        path: PathBuf,
        /// What it says it is.
        found: String,
    },
    /// It is something else.
    #[error("{} is not empty and not a data folder (name another with --data DIR)", .0.display())]
    Foreign(PathBuf),
    /// There is none.
    #[error("there is no data folder at {} (name one with --data DIR, or start a host with `agora run IMAGE`)", .0.display())]
    Missing(PathBuf),
    /// The operating system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
    |source| DataError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A data folder in use.
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
    stops: Stops,
    own: Own,
    /// Held while the tip or the cursors are replaced: a host that ends may do so beside one of its own tasks.
    replacing: Mutex<()>,
}

impl DataFolder {
    /// Opens the folder for a host, making it when there is none.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io(path))?;
        let format = path.join("format");
        let is_new = !format.exists();
        if is_new {
            let mut others = std::fs::read_dir(path).map_err(io(path))?;
            // The last: as earlier versions called it.
            let known = ["lock", "stops", "own", ".format.new", "format.new"];
            let foreign = others
                .any(|entry| !entry.is_ok_and(|e| known.iter().any(|name| e.file_name() == *name)));
            if foreign {
                return Err(DataError::Foreign(path.to_owned()));
            }
        } else {
            check_format(path)?;
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        // A host that was just killed, or a child that it had just forked, may hold it for a moment more.
        let until = Instant::now() + limits::LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(limits::LOCK_PATIENCE / 20);
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(DataError::Locked(path.to_owned()));
                }
                Err(std::fs::TryLockError::Error(source)) => return Err(io(&lock_path)(source)),
            }
        }
        let stops = Stops::open(&path.join("stops"))?;
        let own = Own::open(&path.join("own"))?;
        if is_new {
            // Last, so that a folder with a format has all that the format promises.
            replace(&format, FORMAT.as_bytes())?;
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
            stops,
            own,
            replacing: Mutex::default(),
        })
    }

    /// A file or folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder in it, made when there is none.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn folder(&self, name: &str) -> Result<PathBuf, DataError> {
        let path = self.path.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(io(&path))?;
        Ok(path)
    }

    /// The stops that wait for the log.
    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// What this host itself decided.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// The newest entry that a host of this folder judged.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn tip(&self) -> Result<Option<Tip>, DataError> {
        kept_tip(&self.path)
    }

    /// Keeps the tip.
    ///
    /// # Errors
    /// It can't be written; the old one is still there.
    pub fn keep_tip(&self, tip: &Tip) -> Result<(), DataError> {
        let text = format!("{} {}\n", tip.seq, crate::hex(&tip.leaf));
        let _one = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        replace(&self.join("tip"), text.as_bytes())
    }

    /// Why the operator accepts that the log lost something, when that is so.
    ///
    /// # Errors
    /// It can't be read.
    pub fn accepted_loss(&self) -> Result<Option<String>, DataError> {
        let path = self.join("accepted");
        match std::fs::read_to_string(&path) {
            Ok(reason) => Ok(Some(reason)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&path)(error)),
        }
    }

    /// Keeps the operator's decision for the next start, or takes it away.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn accept_loss(&self, reason: Option<&str>) -> Result<(), DataError> {
        let path = self.join("accepted");
        match reason {
            Some(reason) => replace(&path, reason.as_bytes()),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
                _ => Ok(()),
            },
        }
    }

    /// The realm this folder belongs to, when it has been pinned.
    ///
    /// # Errors
    /// It can't be read.
    pub fn realm(&self) -> Result<Option<RealmId>, DataError> {
        pinned_realm(&self.path)
    }

    /// Pins the realm.
    ///
    /// # Errors
    /// It can't be written.
    pub fn pin_realm(&self, realm: RealmId) -> Result<(), DataError> {
        replace(&self.join("realm"), format!("{realm}\n").as_bytes())
    }

    /// Which log is being imported into this folder, if one is: until that is done, no host may go on with what is there.
    ///
    /// # Errors
    /// It can't be read.
    pub fn importing(&self) -> Result<Option<String>, DataError> {
        let path = self.join("importing");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&path)(error)),
        }
    }

    /// An import begins (`Some`, telling which), or is done.
    ///
    /// # Errors
    /// It can't be written.
    pub fn set_importing(&self, which: Option<&str>) -> Result<(), DataError> {
        let path = self.join("importing");
        match which {
            Some(which) => replace(&path, which.as_bytes()),
            None => std::fs::remove_file(&path)
                .and_then(|()| File::open(&self.path)?.sync_all())
                .map_err(io(&path)),
        }
    }

    /// The cursors that silence moved.
    ///
    /// # Errors
    /// They can't be read. What can't be understood counts as none: an agent then hears again what it was silent about.
    pub fn cursors(&self) -> Result<Cursors, DataError> {
        let path = self.join("cursors");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(postcard::from_bytes(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Cursors::new()),
            Err(error) => Err(io(&path)(error)),
        }
    }

    /// Keeps the cursors that silence moved.
    ///
    /// # Errors
    /// They can't be written; the old ones are still there.
    pub fn keep_cursors(&self, cursors: &Cursors) -> Result<(), DataError> {
        let bytes = postcard::to_stdvec(cursors).expect("cursors are plain data");
        let _one = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        replace(&self.join("cursors"), &bytes)
    }
}

/// The newest entry that a host of this data folder judged; without locking the folder.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn kept_tip(data: &Path) -> Result<Option<Tip>, DataError> {
    let path = data.join("tip");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(&path)(error)),
    };
    let tip = text.trim().split_once(' ').and_then(|(seq, leaf)| {
        let leaf: agora_realm::EntryId = leaf.parse().ok()?;
        Some(Tip {
            seq: seq.parse().ok()?,
            leaf: leaf.0,
        })
    });
    match tip {
        Some(tip) => Ok(Some(tip)),
        None => Err(DataError::Format {
            path,
            found: text.trim().chars().take(64).collect(),
        }),
    }
}

/// The realm that a data folder belongs to, when it has been pinned; without locking the folder.
///
/// # Errors
/// It can't be read.
pub fn pinned_realm(data: &Path) -> Result<Option<RealmId>, DataError> {
    let path = data.join("realm");
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(DataError::Format {
                path,
                found: text.trim().to_owned(),
            }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(&path)(error)),
    }
}

/// By persona and channel.
pub type Cursors = BTreeMap<(PersonaId, ChannelName), Ordinal>;

/// Checks that there is a data folder of this format, without locking it.
///
/// # Errors
/// There is none, or it has another format.
pub fn check_format(path: &Path) -> Result<(), DataError> {
    let format = path.join("format");
    let found = std::fs::read_to_string(&format).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing(path.to_owned()),
        _ => io(&format)(error),
    })?;
    if found != FORMAT {
        return Err(DataError::Format {
            path: path.to_owned(),
            found: found.trim().chars().take(64).collect(),
        });
    }
    Ok(())
}

/// Replaces a file as a whole: after a crash it is the old one or the new one.
///
/// # Errors
/// The operating system says no; the old one is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    // No name that a file is kept under begins so.
    let mut draft = std::ffi::OsString::from(".");
    draft.push(path.file_name().expect("a file has a name"));
    draft.push(".new");
    let draft = path.with_file_name(draft);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)?;
        File::open(path.parent().expect("a file in a folder"))?.sync_all()
    })();
    if written.is_err() {
        // A full disk must not be left fuller.
        let _ = std::fs::remove_file(&draft);
    }
    written.map_err(io(path))
}

/// Stops that are in effect and not yet in the log, in slots whose room was reserved when the folder was made.
pub struct Stops {
    path: PathBuf,
    file: File,
    used: Mutex<[bool; limits::STOPS_PENDING_MAX]>,
}

const SLOT_BYTES: usize = 1024;
const SLOT_HEAD: usize = 8;
const _: () = assert!(limits::STOP_BYTES_MAX + SLOT_HEAD <= SLOT_BYTES);

/// A stop's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(usize);

impl Stops {
    fn open(path: &Path) -> Result<Self, DataError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io(path))?;
        let size = (limits::STOPS_PENDING_MAX * SLOT_BYTES) as u64;
        if file.metadata().map_err(io(path))?.len() != size {
            file.write_all_at(&vec![0; size as usize], 0)
                .map_err(io(path))?;
            file.sync_all().map_err(io(path))?;
        }
        let stops = Self {
            path: path.to_owned(),
            file,
            used: Mutex::new([false; limits::STOPS_PENDING_MAX]),
        };
        for (slot, _) in stops.waiting()? {
            stops
                .used
                .lock()
                .expect("not poisoned: nothing panics under it")[slot.0] = true;
        }
        Ok(stops)
    }

    /// Keeps a stop, synced, in a free slot.
    ///
    /// # Errors
    /// All slots are taken, the entry is too large for one, or the write failed.
    pub fn keep(&self, stored: &[u8]) -> Result<Slot, DataError> {
        let full = |what: &str| DataError::Io {
            path: self.path.clone(),
            source: std::io::Error::other(what.to_owned()),
        };
        if stored.len() > limits::STOP_BYTES_MAX {
            return Err(full("the stop is too large to keep"));
        }
        let mut used = self
            .used
            .lock()
            .expect("not poisoned: nothing panics under it");
        let slot = used
            .iter()
            .position(|used| !used)
            .ok_or_else(|| full("all slots hold stops that wait for the log"))?;
        let mut bytes = [0; SLOT_BYTES];
        bytes[..4].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        bytes[4..SLOT_HEAD].copy_from_slice(&crc32c::crc32c(stored).to_le_bytes());
        bytes[SLOT_HEAD..SLOT_HEAD + stored.len()].copy_from_slice(stored);
        self.file
            .write_all_at(&bytes, (slot * SLOT_BYTES) as u64)
            .and_then(|()| self.file.sync_data())
            .map_err(io(&self.path))?;
        used[slot] = true;
        Ok(Slot(slot))
    }

    /// Frees a slot, its stop being in the log.
    ///
    /// # Errors
    /// The write failed; the stop is then appended once more on start, which changes nothing.
    pub fn clear(&self, slot: Slot) -> Result<(), DataError> {
        let mut used = self
            .used
            .lock()
            .expect("not poisoned: nothing panics under it");
        self.file
            .write_all_at(&[0; SLOT_HEAD], (slot.0 * SLOT_BYTES) as u64)
            .and_then(|()| self.file.sync_data())
            .map_err(io(&self.path))?;
        used[slot.0] = false;
        Ok(())
    }

    /// The stops that wait. A slot torn by a crash while it was being written holds none.
    ///
    /// # Errors
    /// They can't be read.
    pub fn waiting(&self) -> Result<Vec<(Slot, Bytes)>, DataError> {
        let mut found = Vec::new();
        for slot in 0..limits::STOPS_PENDING_MAX {
            let mut bytes = [0; SLOT_BYTES];
            self.file
                .read_exact_at(&mut bytes, (slot * SLOT_BYTES) as u64)
                .map_err(io(&self.path))?;
            let word =
                |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
            let len = word(0) as usize;
            if len == 0 || len > limits::STOP_BYTES_MAX {
                continue;
            }
            let stored = &bytes[SLOT_HEAD..SLOT_HEAD + len];
            if crc32c::crc32c(stored) == word(4) {
                found.push((Slot(slot), Bytes::copy_from_slice(stored)));
            }
        }
        Ok(found)
    }

    /// How many slots are taken.
    pub fn count(&self) -> usize {
        let used = self
            .used
            .lock()
            .expect("not poisoned: nothing panics under it");
        used.iter().filter(|used| **used).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_host_on_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataFolder::open(dir.path()).unwrap();
        assert!(matches!(
            DataFolder::open(dir.path()),
            Err(DataError::Locked(_))
        ));
    }

    #[test]
    fn a_folder_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "mine").unwrap();
        assert!(matches!(
            DataFolder::open(dir.path()),
            Err(DataError::Foreign(_))
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_without_another_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["alpha.new", "alpha.one", "alpha.two", "alpha"];
        for name in names {
            replace(&dir.path().join(name), name.as_bytes()).unwrap();
        }
        for name in names {
            let kept = std::fs::read_to_string(dir.path().join(name));
            assert_eq!(kept.unwrap(), name);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), names.len());
    }

    #[test]
    fn a_folder_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "agora data 9\n").unwrap();
        assert!(matches!(
            DataFolder::open(dir.path()),
            Err(DataError::Format { .. })
        ));
    }

    #[test]
    fn stops_are_kept_across_a_restart_until_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let slot = folder.stops().keep(b"first").unwrap();
        folder.stops().keep(b"second").unwrap();
        folder.stops().clear(slot).unwrap();
        drop(folder);
        let folder = DataFolder::open(dir.path()).unwrap();
        let waiting = folder.stops().waiting().unwrap();
        assert_eq!(waiting.len(), 1);
        assert_eq!(&waiting[0].1[..], b"second");
        assert_eq!(folder.stops().count(), 1);
    }

    #[test]
    fn a_torn_slot_holds_no_stop_and_full_slots_refuse() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        for _ in 0..limits::STOPS_PENDING_MAX {
            folder.stops().keep(b"stop").unwrap();
        }
        assert!(folder.stops().keep(b"one more").is_err());
        let file = OpenOptions::new()
            .write(true)
            .open(dir.path().join("stops"))
            .unwrap();
        file.write_all_at(b"X", SLOT_HEAD as u64).unwrap();
        assert_eq!(
            folder.stops().waiting().unwrap().len(),
            limits::STOPS_PENDING_MAX - 1
        );
    }
}
