//! Checkpoints: this host's signed word of what the log was, each extending the one before.
//!
//! In: the record's tree. Out: `checkpoint`, the newest, and `checkpoints`, those before it, in the data folder.
//! Promise: while entries arrive there is a new one each second, and one at each fence and at a clean end; each covers entries that were
//! durable. At start the log must extend the newest one, or nothing goes on.
//! Failure: [`NotExtended`] for a log that is not what it was. What can't be written is said in the host's log, and tried again.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agora_realm::RealmId;
use agora_realm::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, NotACheckpoint, Signed};

use super::record::Record;
use super::tree::{LogTree, TreeError};
use crate::boot::data::{DataError, DataFolder, replace};
use crate::limits;
use crate::persona::keys::Keys;
use crate::persona::secret::{SecretError, random_bytes};

/// Why checkpoints can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// So it does when a file is replaced.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file holds no checkpoint.
    #[error("{}: {source}", path.display())]
    NotOne {
        /// Where.
        path: PathBuf,
        /// Why.
        source: NotACheckpoint,
    },
    /// There is no randomness.
    #[error(transparent)]
    Randomness(#[from] SecretError),
}

/// The log is not the one that this host made a checkpoint of.
#[derive(Debug, thiserror::Error)]
pub enum NotExtended {
    /// It ends before.
    #[error(
        "the log is not what it was: it ends at {end}, and this host signed a checkpoint of {size} entries (restore the log from a \
         copy that has them; if it is on a server, say --log; or accept the loss with `agora doctor --accept-loss REASON`)"
    )]
    WentBack {
        /// Where it ends.
        end: u64,
        /// What the checkpoint covers.
        size: u64,
    },
    /// It holds something else.
    #[error(
        "the log is not what it was: its first {size} entries are not those of the checkpoint that this host signed (restore the log \
         from a copy that has them; or accept the loss with `agora doctor --accept-loss REASON`)"
    )]
    Changed {
        /// What the checkpoint covers.
        size: u64,
    },
    /// That can't be told.
    #[error("whether the log extends this host's newest checkpoint can't be told: {0}")]
    Unknown(#[from] TreeError),
}

/// Whether the tree begins with what the checkpoint covers.
///
/// # Errors
/// It does not.
pub async fn extends(tree: &LogTree, checkpoint: &Checkpoint) -> Result<(), NotExtended> {
    let (end, size) = (tree.size(), checkpoint.size);
    if end < size {
        return Err(NotExtended::WentBack { end, size });
    }
    match tree.root(size).await? {
        root if root == checkpoint.root => Ok(()),
        _ => Err(NotExtended::Changed { size }),
    }
}

/// The checkpoints in a data folder. Reading needs no lock, and no running host.
#[derive(Debug, Clone)]
pub struct Kept {
    newest: PathBuf,
    history: PathBuf,
    cosigned: PathBuf,
}

impl Kept {
    /// Those of this folder.
    pub fn of(data: &Path) -> Self {
        Self {
            newest: data.join("checkpoint"),
            history: data.join("checkpoints"),
            cosigned: data.join("cosigned"),
        }
    }

    /// The newest one, if there is any, with what witnesses signed.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn newest(&self) -> Result<Option<Signed>, CheckpointError> {
        let alone = match read(&self.newest)? {
            None => None,
            Some(text) => match text.parse::<Signed>() {
                Ok(signed) => Some(signed),
                Err(source) => {
                    tracing::error!("{}: damaged: {source}", self.newest.display());
                    None
                }
            },
        };
        // A crash may have come between the two files.
        let last = several(&self.history)?.pop();
        let newest = [alone, last]
            .into_iter()
            .flatten()
            .max_by_key(|signed| signed.checkpoint().size);
        newest.map(|signed| self.with_witnesses(signed)).transpose()
    }

    /// The newest one of those that a host has finished making: never an older one than it was before.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn latest(&self) -> Result<Option<Signed>, CheckpointError> {
        let Some(text) = read(&self.newest)? else {
            return Ok(None);
        };
        let signed = text.parse().map_err(|source| CheckpointError::NotOne {
            path: self.newest.clone(),
            source,
        })?;
        Ok(Some(signed))
    }

    /// All that are kept, oldest first. Of older ones there are fewer.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn all(&self) -> Result<Vec<Signed>, CheckpointError> {
        let mut all = several(&self.history)?;
        if let Some(newest) = self.newest()? {
            all.retain(|signed| signed.checkpoint().size < newest.checkpoint().size);
            all.push(newest);
        }
        Ok(all)
    }

    /// The same, with what witnesses signed.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn all_witnessed(&self) -> Result<Vec<Signed>, CheckpointError> {
        let mut all = self.all()?;
        for cosigned in several(&self.cosigned)? {
            let same = |signed: &&mut Signed| signed.checkpoint() == cosigned.checkpoint();
            if let Some(signed) = all.iter_mut().find(same) {
                // One that is full already is shown as it is.
                let _ = signed.adopt(&cosigned);
            }
        }
        Ok(all)
    }

    /// The first that is kept of those that cover a place.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn covering(&self, seq: u64) -> Result<Option<Signed>, CheckpointError> {
        let mut all = self.all()?.into_iter();
        let found = all.find(|signed| signed.checkpoint().size >= seq);
        found.map(|signed| self.with_witnesses(signed)).transpose()
    }

    /// Puts what is kept behind what was set aside before, and begins anew.
    fn set_aside(&self) -> Result<(), CheckpointError> {
        let lost = self.history.with_extension("lost");
        let mut text = read(&lost)?.unwrap_or_default();
        self.all()?
            .iter()
            .for_each(|signed| text.push_str(&in_a_row(signed)));
        replace(&lost, text.as_bytes())?;
        for path in [&self.newest, &self.history] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let path = path.clone();
                    return Err(CheckpointError::Io {
                        path,
                        source: error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn with_witnesses(&self, mut signed: Signed) -> Result<Signed, CheckpointError> {
        for cosigned in several(&self.cosigned)? {
            if cosigned.checkpoint() == signed.checkpoint() {
                // One that is full already is shown as it is.
                let _ = signed.adopt(&cosigned);
            }
        }
        Ok(signed)
    }

    /// Keeps what witnesses signed of a checkpoint that is kept, as far as they signed it as this host's. None: no such checkpoint is kept.
    ///
    /// # Errors
    /// The files can't be read or written, or it can't take one more signature.
    pub fn keep_cosigned(&self, cosigned: &Signed) -> Result<Option<Cosigned>, CheckpointError> {
        let all = self.all()?;
        let same = |signed: &&Signed| signed.checkpoint() == cosigned.checkpoint();
        let Some(known) = all.iter().find(same) else {
            return Ok(None);
        };
        let mut known = self.with_witnesses(known.clone())?;
        let (theirs, hosts) = (cosigned.witnesses(), known.hosts());
        let foreign = theirs.iter().filter(|one| !hosts.contains(&one.host));
        let foreign = foreign.count();
        let new = known
            .adopt(cosigned)
            .map_err(|source| CheckpointError::NotOne {
                path: self.cosigned.clone(),
                source,
            })?;
        if new > 0 {
            let mut kept = several(&self.cosigned)?;
            kept.retain(|signed| signed.checkpoint() != known.checkpoint());
            kept.push(known.clone());
            let extra = kept.len().saturating_sub(limits::CHECKPOINTS_COSIGNED_MAX);
            let text: String = kept[extra..].iter().map(in_a_row).collect();
            replace(&self.cosigned, text.as_bytes())?;
        }
        Ok(Some(Cosigned {
            witnesses: known.witnesses().len(),
            new,
            given: theirs.len(),
            foreign,
        }))
    }
}

/// What became of witnesses' signatures that were to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cosigned {
    /// How many good ones the checkpoint has now.
    pub witnesses: usize,
    /// How many of them are new.
    pub new: usize,
    /// How many good ones were given.
    pub given: usize,
    /// Of how many of these the witness signed the checkpoint as another host's: they are not kept.
    pub foreign: usize,
}

impl Cosigned {
    /// None of what was given is kept.
    pub fn is_refused(&self) -> bool {
        self.given == self.foreign
    }
}

fn read(path: &Path) -> Result<Option<String>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}

/// A checkpoint as it stands behind others: with an empty line after it.
fn in_a_row(signed: &Signed) -> String {
    format!("{signed}\n")
}

/// The checkpoints of a file that holds several. What a crash or damage left between them is passed over.
fn several(path: &Path) -> Result<Vec<Signed>, CheckpointError> {
    let text = read(path)?.unwrap_or_default();
    let starts = text.match_indices("agora/").map(|(at, _)| at);
    // The origin is the only line that begins so; names of keys stand behind a dash.
    let starts: Vec<_> = starts
        .filter(|at| *at == 0 || text.as_bytes()[at - 1] == b'\n')
        .collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    Ok(starts
        .iter()
        .zip(ends)
        .filter_map(|(start, end)| {
            let one = text[*start..end].trim_end_matches('\n');
            format!("{one}\n").parse().ok()
        })
        .collect())
}

struct Making {
    newest: Option<Checkpoint>,
    /// Checkpoints in the history's file.
    count: usize,
    is_failing: bool,
    /// What had arrived when the newest one was made.
    arrived: Option<u64>,
}

/// Makes the checkpoints of a running host.
pub struct Checkpoints {
    kept: Kept,
    record: Arc<Record>,
    keys: Arc<Keys>,
    realm: RealmId,
    making: Mutex<Making>,
}

/// What a data folder keeps, and its log extends, or is accepted not to.
pub struct Vouched {
    kept: Kept,
    newest: Option<Checkpoint>,
    /// What the log does not extend.
    lost: Option<Checkpoint>,
}

impl Vouched {
    /// What the host signed of the log that was, where the log is another now and the operator accepts that.
    pub fn lost(&self) -> Option<Checkpoint> {
        self.lost
    }

    /// Sets that aside: it stands in `checkpoints.lost`. Call it when the loss is signed: until then it is what tells of the loss.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn set_lost_aside(&mut self) -> Result<(), CheckpointError> {
        if self.lost.is_some() {
            self.kept.set_aside()?;
            self.lost = None;
        }
        Ok(())
    }
}

/// Looks whether a log that was just opened extends the newest checkpoint in the data folder, before anything goes on, or the operator
/// accepts that it does not.
///
/// # Errors
/// For people: the files can't be read, or the log is not what it was ([`NotExtended`]).
pub async fn vouch(
    folder: &DataFolder,
    record: &Record,
    accepts_loss: bool,
) -> anyhow::Result<Vouched> {
    let kept = Kept::of(&folder.join(""));
    let Some(signed) = kept.newest()? else {
        return Ok(Vouched {
            kept,
            newest: None,
            lost: None,
        });
    };
    let newest = *signed.checkpoint();
    let realm = record.state().realm();
    if realm.is_some_and(|realm| realm != newest.realm) || signed.hosts().is_empty() {
        anyhow::bail!(
            "{}: the newest checkpoint is not of this realm, or nobody signed it (restore the file, or move it away if you know \
             how it came there)",
            kept.newest.display()
        );
    }
    match extends(record.tree(), &newest).await {
        Err(NotExtended::WentBack { .. } | NotExtended::Changed { .. }) if accepts_loss => {
            Ok(Vouched {
                kept,
                newest: None,
                lost: Some(newest),
            })
        }
        extends => {
            extends?;
            Ok(Vouched {
                kept,
                newest: Some(newest),
                lost: None,
            })
        }
    }
}

impl Checkpoints {
    /// Goes on from what the folder keeps.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn open(
        vouched: Vouched,
        record: Arc<Record>,
        keys: Arc<Keys>,
        realm: RealmId,
    ) -> Result<Arc<Self>, CheckpointError> {
        let Vouched { kept, newest, .. } = vouched;
        let count = several(&kept.history)?.len();
        Ok(Arc::new(Self {
            kept,
            record,
            keys,
            realm,
            making: Mutex::new(Making {
                newest,
                count,
                is_failing: false,
                arrived: None,
            }),
        }))
    }

    fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest one.
    pub fn newest(&self) -> Option<Checkpoint> {
        self.making().newest
    }

    /// Makes one, where something has arrived since the newest. Blocks. What goes wrong is said in the host's log, once.
    pub fn make(&self) {
        let mut making = self.making();
        let arrived = Some(self.record.arrived());
        if making.arrived == arrived {
            // What hosts tell each other to keep going is covered by the next one.
            return;
        }
        match self.try_make(&mut making) {
            Ok(()) => (making.is_failing, making.arrived) = (false, arrived),
            Err(error) if making.is_failing => tracing::debug!("no checkpoint: {error}"),
            Err(error) => {
                making.is_failing = true;
                tracing::warn!("no checkpoint is kept: {error}");
            }
        }
    }

    /// Makes the last one of a host that ends: of all that was judged. Blocks.
    pub fn make_last(&self) {
        self.making().arrived = None;
        self.make();
    }

    fn try_make(&self, making: &mut Making) -> Result<(), CheckpointError> {
        let tree = self.record.tree();
        // The key before the size, so that a checkpoint covers the entry that introduces the key it is signed with.
        let key = self.keys.host();
        let (size, root) = tree.now();
        if making.newest.is_some_and(|newest| newest.size >= size) || size == 0 {
            return Ok(());
        }
        let io = |path: &PathBuf| {
            let path = path.clone();
            move |source| CheckpointError::Io { path, source }
        };
        // The tree's file first, so that what proves the checkpoint is there when the checkpoint is.
        tree.keep().map_err(io(&self.kept.history))?;
        let realm = self.realm;
        let checkpoint = Checkpoint { realm, size, root };
        let signed = checkpoint.sign(&key, &random_bytes()?);
        let text = in_a_row(&signed);
        let mut history = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.kept.history)
            .map_err(io(&self.kept.history))?;
        history
            .write_all(text.as_bytes())
            .map_err(io(&self.kept.history))?;
        let replaced = replace(&self.kept.newest, signed.to_string().as_bytes());
        // Also when that failed, and is tried again each second: the history must not grow without bound.
        making.count += 1;
        if making.count > limits::CHECKPOINTS_KEPT_MAX {
            making.count = self.thin()?;
        }
        replaced?;
        making.newest = Some(checkpoint);
        Ok(())
    }

    /// Keeps every second one of the older half, so that there are fewer the older they are.
    fn thin(&self) -> Result<usize, CheckpointError> {
        let all = several(&self.kept.history)?;
        let half = all.len() / 2;
        let kept: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(at, _)| *at >= half || at % 2 == 0)
            .map(|(_, signed)| in_a_row(signed))
            .collect();
        replace(&self.kept.history, kept.concat().as_bytes())?;
        Ok(kept.len())
    }

    /// Makes them for as long as this host runs: each second in which entries arrived, and at once for a fence.
    pub async fn make_regularly(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(limits::CHECKPOINT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.record.fenced() => {}
            }
            let checkpoints = self.clone();
            let _ = tokio::task::spawn_blocking(move || checkpoints.make()).await;
        }
    }
}

/// A checkpoint from a file that somebody else may have written.
///
/// # Errors
/// It can't be read, or is none.
pub fn parse_file<T>(path: &Path) -> Result<T, CheckpointError>
where
    T: std::str::FromStr<Err = NotACheckpoint>,
{
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let limit = 2 * CHECKPOINT_BYTES_MAX as u64;
    match path.as_os_str() == "-" {
        true => {
            use std::io::Read;
            let stdin = std::io::stdin().lock();
            stdin.take(limit).read_to_end(&mut text).map_err(io)?;
        }
        false => {
            use std::io::Read;
            let file = std::fs::File::open(path).map_err(io)?;
            file.take(limit).read_to_end(&mut text).map_err(io)?;
        }
    }
    String::from_utf8_lossy(&text)
        .parse()
        .map_err(|source| CheckpointError::NotOne {
            path: path.to_owned(),
            source,
        })
}
