//! What a peer's log was: the newest checkpoint that it gave, and what speaks against it.
//!
//! In: checkpoints with their proofs, as the peer gives them. Out: `checkpoint` and `evidence` in `held/NAME` of the data folder.
//! Promise: `checkpoint` is the last that was signed by the peer's host and extends all before it; once one doesn't, both are in `evidence`,
//! as they were given, until an operator accepts it. Everything is judged by the files, so that nothing is forgotten by a restart.
//! Failure: [`PastError`]: a file that can't be read or written, or is damaged; nothing is taken for known then.
//!
//! `checkpoint` is text as `agora checkpoint` prints it; `evidence` is a line of JSON for each piece. `agora verify --checkpoint` reads both.

use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agora_realm::PublicKey;
use agora_realm::checkpoint::{Extension, Signed, Unwitnessed};
use serde::{Deserialize, Serialize};

use super::mirror;
use super::told::Known;
use crate::boot::data::{DataError, replace};
use crate::limits;

/// What is held of a peer can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
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
    /// It is something else.
    #[error(
        "{}: damaged (restore it from a copy; without it, nobody here can tell whether the peer's log is what it was)",
        .0.display()
    )]
    Damaged(PathBuf),
}

/// What a peer gave that can't be of the log that it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// When it gave it, by the clock here.
    pub time_ms: i64,
    /// Whether it is at all of the peer's host and realm.
    pub is_own: bool,
    /// What is wrong with it.
    pub why: String,
    /// The checkpoint that was held; empty if there was none.
    pub held: String,
    /// The one that it gave then.
    pub given: String,
    /// The proof that came with it: hashes, hexadecimal.
    pub proof: Vec<String>,
}

impl Evidence {
    /// For people.
    pub fn shown(&self, peer: &str) -> String {
        let what = match self.is_own {
            true => "CHANGED ITS PAST",
            false => "GIVES CHECKPOINTS THAT ARE NOT ITS OWN",
        };
        format!(
            "{peer} {what}: {} (both checkpoints are in held/{peer}/evidence; ask who runs it, then `agora doctor --accept-peer {peer} REASON`)",
            self.why
        )
    }

    /// Both checkpoints, as far as there are two.
    pub fn checkpoints(&self) -> impl Iterator<Item = Signed> {
        let both = [&self.held, &self.given];
        both.into_iter().filter_map(|text| text.parse().ok())
    }
}

/// What came of a checkpoint that a peer gave.
#[derive(Debug)]
pub enum Taken {
    /// It extends what was held, or is the same, and is held now.
    Held(Box<Signed>),
    /// It isn't of the peer's host, or not of its realm, so it says nothing of the peer's log.
    Foreign(String),
    /// The peer's log is not what it was.
    Changed(Evidence),
    /// Another one is held by now than it was asked against.
    Outdated,
}

/// The files of what is held of one peer.
#[derive(Debug, Clone)]
pub struct Past {
    folder: PathBuf,
}

impl Past {
    /// Of the peer of this name, in a data folder.
    pub fn of(data: &Path, peer: &str) -> Self {
        let folder = data.join("held").join(peer);
        Self { folder }
    }

    /// The names of all peers of whom a data folder holds something.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn peers(data: &Path) -> Result<Vec<String>, PastError> {
        let path = data.join("held");
        let io = |source| PastError::Io {
            path: path.clone(),
            source,
        };
        let listing = match std::fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(error)),
        };
        let mut names = Vec::new();
        for entry in listing {
            names.extend(entry.map_err(io)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint")
    }

    fn keys_path(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// The keys that its host has had, as it proved them, while checkpoints were taken by them.
    ///
    /// # Errors
    /// They can't be read, or are damaged.
    pub fn keys(&self) -> Result<Vec<PublicKey>, PastError> {
        let path = self.keys_path();
        let text = read(&path)?.unwrap_or_default();
        let keys = text.lines().map(str::parse).collect::<Result<_, _>>();
        keys.map_err(|_| PastError::Damaged(path))
    }

    fn keep_key(&self, key: PublicKey) -> Result<(), PastError> {
        let mut keys = self.keys()?;
        if keys.contains(&key) {
            return Ok(());
        }
        keys.push(key);
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        Ok(replace(&self.keys_path(), text.as_bytes())?)
    }

    fn evidence_path(&self) -> PathBuf {
        self.folder.join("evidence")
    }

    /// The newest checkpoint that is held.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn checkpoint(&self) -> Result<Option<Signed>, PastError> {
        let path = self.checkpoint_path();
        match read(&path)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(signed) => Ok(Some(signed)),
                Err(_) => Err(PastError::Damaged(path)),
            },
        }
    }

    /// What speaks against the peer.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn evidence(&self) -> Result<Vec<Evidence>, PastError> {
        let path = self.evidence_path();
        let text = read(&path)?.unwrap_or_default();
        parse_evidence(&text).ok_or(PastError::Damaged(path))
    }

    /// Takes what the peer gave when it was asked for what extends `asked` places.
    ///
    /// # Errors
    /// The files.
    pub fn take(
        &self,
        known: &Known,
        asked: u64,
        given: Extension,
        now_ms: i64,
    ) -> Result<Taken, PastError> {
        let held = self.checkpoint()?;
        let before = held.as_ref().map(|held| *held.checkpoint());
        if before.map_or(0, |before| before.size) != asked {
            return Ok(Taken::Outdated);
        }
        let realm = given.signed.checkpoint().realm;
        if realm != known.realm {
            return Ok(Taken::Foreign(format!(
                "the checkpoint is of realm {realm}, and its host is of {}",
                known.realm
            )));
        }
        match given.witnessable(&[known.key], before.as_ref()) {
            Ok(_) => {
                if before.as_ref() != Some(given.signed.checkpoint()) {
                    self.make_folder()?;
                    self.keep_key(known.key)?;
                    replace(&self.checkpoint_path(), given.signed.to_string().as_bytes())?;
                }
                Ok(Taken::Held(Box::new(given.signed)))
            }
            Err(Unwitnessed::UnknownHost) => Ok(Taken::Foreign(format!(
                "the checkpoint is not signed by its host's key {}",
                known.key
            ))),
            Err(Unwitnessed::OtherStart { .. } | Unwitnessed::Full(_)) => Ok(Taken::Outdated),
            Err(why) => {
                let evidence = told(true, &why, held.as_ref(), &given, now_ms);
                self.keep(&evidence)?;
                Ok(Taken::Changed(evidence))
            }
        }
    }

    /// Keeps what goes on being of another host, or another realm, than the peer proves to be.
    ///
    /// # Errors
    /// The files.
    pub fn keep_foreign(
        &self,
        why: &str,
        given: &Extension,
        now_ms: i64,
    ) -> Result<Evidence, PastError> {
        let held = self.checkpoint()?;
        let evidence = told(false, &why, held.as_ref(), given, now_ms);
        self.keep(&evidence)?;
        Ok(evidence)
    }

    /// Puts a piece behind those that are kept, unless it tells nothing new or there are many.
    fn keep(&self, new: &Evidence) -> Result<(), PastError> {
        let mut all = self.evidence()?;
        let same = |old: &Evidence| old.held == new.held && body(&old.given) == body(&new.given);
        if all.len() >= limits::PEER_EVIDENCE_MAX || all.iter().any(same) {
            return Ok(());
        }
        all.push(new.clone());
        self.make_folder()?;
        replace(&self.evidence_path(), write_evidence(&all).as_bytes())?;
        Ok(())
    }

    /// An operator accepts that the peer's log is another now. Copies of its channels are put aside, too. What was held goes, with the reason, behind what was accepted before, and the
    /// next checkpoint is taken as the first. Answers how many pieces of evidence that were.
    ///
    /// # Errors
    /// The files.
    pub fn accept(&self, reason: &str) -> Result<usize, PastError> {
        let evidence = self.evidence()?;
        if evidence.is_empty() {
            return Ok(0);
        }
        let path = self.folder.join("accepted");
        let mut text = read(&path)?.unwrap_or_default();
        let time_ms = crate::now_ms();
        let accepted =
            serde_json::json!({"time_ms": time_ms, "reason": reason, "evidence": evidence});
        text.push_str(&format!("{accepted}\n"));
        replace(&path, text.as_bytes())?;
        // Copies of its channels are of the log that was.
        let copies = mirror::folder(&self.folder);
        let aside = self.folder.join(format!("channels.{time_ms}"));
        match std::fs::rename(&copies, aside) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                let path = copies;
                return Err(PastError::Io { path, source });
            }
            _ => {}
        }
        // The checkpoint first: without evidence, one that is not extended would only raise the alarm anew.
        for path in [self.checkpoint_path(), self.evidence_path()] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PastError::Io { path, source });
                }
                _ => {}
            }
        }
        Ok(evidence.len())
    }

    fn make_folder(&self) -> Result<(), PastError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|source| PastError::Io {
                path: self.folder.clone(),
                source,
            })
    }
}

fn told(
    is_own: bool,
    why: &impl ToString,
    held: Option<&Signed>,
    given: &Extension,
    time_ms: i64,
) -> Evidence {
    Evidence {
        time_ms,
        is_own,
        why: why.to_string(),
        held: held.map(ToString::to_string).unwrap_or_default(),
        given: given.signed.to_string(),
        proof: given.proof.iter().map(|hash| crate::hex(hash)).collect(),
    }
}

/// What of a checkpoint's text is signed.
fn body(text: &str) -> &str {
    text.split_once("\n\n").map_or(text, |(body, _)| body)
}

fn write_evidence(all: &[Evidence]) -> String {
    let line = |one| serde_json::to_string(one).expect("plain data has a text") + "\n";
    all.iter().map(line).collect()
}

/// The evidence in a file's text; None where a line is none.
pub fn parse_evidence(text: &str) -> Option<Vec<Evidence>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).ok()).collect()
}

fn read(path: &Path) -> Result<Option<String>, PastError> {
    let io = |source| PastError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file
            .take(limits::PEER_EVIDENCE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(io)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(PastError::Damaged(path.to_owned())),
    }
}
