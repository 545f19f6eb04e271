//! Forks: what another host of the realm says the log was, where it was something else here.
//!
//! In: the notes of other hosts, and this host's tree. Out: an alarm, kept in the data folder (`forked`) until an operator accepts it.
//! Promise: a host's newest note is compared each second, and one that disagrees is never passed over; a later root covers all that an
//! earlier one did, so a fork that goes on is found by the later. The alarm stands across restarts.
//! Failure: an alarm that can't be kept is said in the host's log nevertheless, and stands while this host runs. A note that can't be
//! compared now is said there, too; the next one is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agora_realm::HostId;
use agora_realm::merkle::Hash;

use super::tree::{LogTree, TreeError};
use crate::boot::data::{DataError, replace};
use crate::limits;

/// What another host said that the log was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Where it says so.
    pub seq: u64,
    /// How many places it speaks of.
    pub size: u64,
    /// The root that it has over them.
    pub root: Hash,
}

/// Two hosts that have different logs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fork {
    /// The other host.
    host: String,
    /// Where it says what it has.
    seq: u64,
    /// Over how many places.
    size: u64,
    /// The root that it has over them.
    theirs: String,
    /// The root over them here.
    ours: String,
}

impl Fork {
    /// For people.
    pub fn show(&self) -> String {
        let short = |text: &str| text.chars().take(8).collect::<String>();
        format!(
            "host {} says in entry {} that the first {} entries of the log are {}, and here they are {}: there are two histories \
             (compare `agora checkpoint --at {}` of both hosts; mend the log of one, then `agora doctor --accept-fork REASON`)",
            short(&self.host),
            self.seq,
            self.size,
            short(&self.theirs),
            short(&self.ours),
            self.size,
        )
    }
}

/// The forks that a data folder keeps; none that can't be read.
pub fn kept(data: &Path) -> Vec<Fork> {
    let path = data.join("forked");
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::error!("{}: damaged: {error}", path.display());
            Vec::new()
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::error!("{}: {error}", path.display());
            Vec::new()
        }
    }
}

/// Ends the alarm: what was known goes, with the reason, behind what was accepted before. Answers how many forks that were.
///
/// # Errors
/// The files can't be written.
pub fn accept(data: &Path, reason: &str) -> Result<usize, DataError> {
    let forks = kept(data);
    let path = data.join("forked");
    if !path.exists() {
        return Ok(0);
    }
    let accepted = data.join("forked.accepted");
    let mut text = std::fs::read_to_string(&accepted).unwrap_or_default();
    let now_ms = crate::now_ms();
    let entry = serde_json::json!({ "time_ms": now_ms, "reason": reason, "forks": forks });
    text.push_str(&format!("{entry}\n"));
    replace(&accepted, text.as_bytes())?;
    std::fs::remove_file(&path).map_err(|source| DataError::Io { path, source })?;
    Ok(forks.len().max(1))
}

/// Compares what other hosts say with this host's tree.
pub struct Forks {
    data: PathBuf,
    /// What could not be kept, by host.
    unkept: Mutex<BTreeMap<HostId, Fork>>,
}

impl Forks {
    /// Of a data folder. What it keeps from earlier runs is said at once.
    pub fn open(data: &Path) -> Self {
        for fork in kept(data) {
            tracing::error!("FORKED: {}", fork.show());
        }
        Self {
            data: data.to_owned(),
            unkept: Mutex::default(),
        }
    }

    fn unkept(&self) -> MutexGuard<'_, BTreeMap<HostId, Fork>> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The forks that stand.
    pub fn standing(&self) -> Vec<Fork> {
        let mut standing = kept(&self.data);
        standing.extend(self.unkept().values().cloned());
        standing
    }

    /// Compares what a host says with the tree. Says whether they agree.
    ///
    /// # Errors
    /// The tree can't be read there.
    pub async fn compare(
        &self,
        tree: &LogTree,
        host: HostId,
        told: Told,
    ) -> Result<bool, TreeError> {
        let ours = tree.root(told.size).await?;
        if ours == told.root {
            return Ok(true);
        }
        let fork = Fork {
            host: host.to_string(),
            seq: told.seq,
            size: told.size,
            theirs: crate::hex(&told.root),
            ours: crate::hex(&ours),
        };
        self.alarm(host, fork);
        Ok(false)
    }

    fn alarm(&self, host: HostId, fork: Fork) {
        tracing::error!("FORKED: {}", fork.show());
        let mut forks = kept(&self.data);
        // The earliest of a host is where to look.
        if forks.iter().any(|known| known.host == fork.host)
            || forks.len() >= limits::FORKS_KEPT_MAX
        {
            return;
        }
        let mut unkept = self.unkept();
        forks.push(unkept.remove(&host).unwrap_or(fork));
        let bytes = serde_json::to_vec(&forks).expect("forks are plain data");
        if let Err(error) = replace(&self.data.join("forked"), &bytes) {
            tracing::error!("the fork is not kept: {error}");
            unkept.extend(forks.pop().map(|fork| (host, fork)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_stands_across_restarts_until_it_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let fork = |host| Fork {
            host: HostId([host; 32]).to_string(),
            seq: 9,
            size: 5,
            theirs: "aa".into(),
            ours: "bb".into(),
        };
        let forks = Forks::open(dir.path());
        assert!(forks.standing().is_empty());
        forks.alarm(HostId([1; 32]), fork(1));
        forks.alarm(HostId([1; 32]), Fork { seq: 10, ..fork(1) });
        forks.alarm(HostId([2; 32]), fork(2));
        assert_eq!(forks.standing(), [fork(1), fork(2)]);
        let again = Forks::open(dir.path());
        assert_eq!(again.standing(), [fork(1), fork(2)]);
        assert_eq!(accept(dir.path(), "restored").unwrap(), 2);
        assert!(forks.standing().is_empty() && again.standing().is_empty());
        assert_eq!(accept(dir.path(), "again").unwrap(), 0);
        // One that can't be kept stands nevertheless, also where others were accepted.
        let kept = dir.path().join("forked");
        std::fs::create_dir(&kept).unwrap();
        again.alarm(HostId([3; 32]), fork(3));
        assert_eq!(again.standing(), [fork(3)]);
        std::fs::remove_dir(&kept).unwrap();
        again.alarm(HostId([3; 32]), fork(3));
        assert_eq!(again.standing(), [fork(3)]);
        assert_eq!(accept(dir.path(), "once more").unwrap(), 1);
        assert!(again.standing().is_empty());
        // What is not mended is told again.
        again.alarm(HostId([2; 32]), fork(2));
        assert_eq!(again.standing(), [fork(2)]);
    }
}
