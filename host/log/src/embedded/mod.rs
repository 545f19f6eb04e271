//! The log of one machine, in a folder.

use std::path::Path;

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};

use crate::{Appended, Class, Log, LogError, Options, Seq};

/// The log of one machine, in a folder.
pub struct Embedded;

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The last durable entry.
    pub end: Seq,
    /// What was cut off behind it.
    pub cut: Option<TornTail>,
}

/// Bytes of entries that were being written, and never acknowledged, when the log last stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file.
    pub file: std::path::PathBuf,
    /// Where in the file the tail began.
    pub offset: u64,
    /// How many bytes it had.
    pub bytes: u64,
}

/// A folder open for reading only.
pub struct ReadOnly;

impl ReadOnly {
    /// As [`Log::read`], blocking.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read(
        &self,
        _from: Seq,
        _entries: usize,
        _bytes_max: usize,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        Err(LogError::Closed)
    }

    /// The last entry that can be read.
    pub fn end(&self) -> Seq {
        Seq(0)
    }
}

impl Embedded {
    /// Opens the log in `dir`, creating the folder if needed.
    ///
    /// # Errors
    /// [`LogError::Locked`], [`LogError::Format`], [`LogError::Corrupt`], [`LogError::Options`], [`LogError::Io`].
    pub fn open(dir: &Path, options: Options) -> Result<(Embedded, Opened), LogError> {
        options.check()?;
        Err(LogError::Missing { path: dir.into() })
    }

    /// Opens the log in `dir` to read it, whether or not another process has it open. Changes nothing.
    ///
    /// # Errors
    /// [`LogError::Missing`], [`LogError::Format`], [`LogError::Corrupt`], [`LogError::Io`].
    pub fn open_read_only(dir: &Path) -> Result<(ReadOnly, Opened), LogError> {
        Err(LogError::Missing { path: dir.into() })
    }
}

impl Log for Embedded {
    fn append(
        &self,
        _id: [u8; 32],
        _bytes: Bytes,
        _class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        future::ready(Err(LogError::Closed)).boxed()
    }
    fn read(
        &self,
        _from: Seq,
        _entries: usize,
        _bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        future::ready(Err(LogError::Closed)).boxed()
    }
    fn tail(&self, _from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        stream::empty().boxed()
    }
    fn end(&self) -> Seq {
        Seq(0)
    }
    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        future::ready(Ok(())).boxed()
    }
}
