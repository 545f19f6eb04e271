//! How a log fails: what happened, to what, and what to do.

use std::{io, path::PathBuf, sync::Arc};

use crate::Seq;

/// Why the log could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The log can't take the entry now. It is not in the log and never will be: append it again later.
    #[error("log {place}: nothing can be appended now: {why} ({mend})")]
    Unavailable {
        /// The folder or broker.
        place: String,
        /// What is wrong.
        why: String,
        /// What the operator can do.
        mend: String,
    },
    /// Writing failed in a way that leaves open whether the entry will be found. In an embedded log it can turn up after
    /// a restart only; in a broker's at any time.
    #[error("log {place}: whether the entry was appended is not known: {why} ({mend})")]
    Unknown {
        /// The folder or broker.
        place: String,
        /// What is wrong.
        why: String,
        /// What the operator can do.
        mend: String,
    },
    /// The entry is larger than the log takes.
    #[error("an entry of {bytes} bytes is too large: this log takes {bytes_max} (split it)")]
    TooLarge {
        /// The entry's size.
        bytes: usize,
        /// The largest that is taken.
        bytes_max: usize,
    },
    /// Another process has the folder.
    #[error(
        "log {}: another process has this folder open (stop that one, or give this one a folder of its own)",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A durable entry can't be read back. Nothing was changed.
    #[error(
        "log: entry {seq} is corrupt in {} at byte {offset}: {why} (keep the folder as it is, and restore it from a copy)",
        file.display()
    )]
    Corrupt {
        /// The entry.
        seq: Seq,
        /// The file it stands in.
        file: PathBuf,
        /// Where in the file it begins, or should begin.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The folder is in a format that this build does not know.
    #[error("log {}: the folder's format is {found}, this build knows {known} (use the build that wrote it)", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What stands in its format file.
        found: String,
        /// What this build reads and writes.
        known: String,
    },
    /// There is no log in the folder (reading only creates none).
    #[error("log {}: there is no log in this folder (check the path)", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The options contradict each other.
    #[error("log options: {why}")]
    Options {
        /// Which relation does not hold.
        why: String,
    },
    /// The folder or a file in it can't be used.
    #[error("log: cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// The log's servers can't be reached, or don't offer what is needed.
    #[error("log {place}: can't be opened: {why} ({mend})")]
    Unreachable {
        /// The broker.
        place: String,
        /// What is wrong.
        why: String,
        /// What the operator can do.
        mend: String,
    },
    /// The stream could lose or change entries. It was left as it is.
    #[error("log {place}: the stream is not safe: {}", found.join("; "))]
    Unsafe {
        /// The broker and the stream.
        place: String,
        /// Each setting that does not fit, and its mend.
        found: Vec<String>,
    },
    /// The log no longer holds what it held. Nothing is appended to it any more.
    #[error("log {place}: it has diverged: {why} ({mend})")]
    Diverged {
        /// The broker and the stream.
        place: String,
        /// What is missing, or different.
        why: String,
        /// What the operator can do.
        mend: String,
    },
    /// The log was closed; the entry is not in it.
    #[error("the log is closed (open it again)")]
    Closed,
}

impl LogError {
    /// Whether it is certain that a failed append left nothing in the log, now and after any restart.
    pub fn is_outcome_known(&self) -> bool {
        !matches!(self, LogError::Unknown { .. })
    }

    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| LogError::Io {
            doing,
            path,
            source: Arc::new(source),
        }
    }
}
