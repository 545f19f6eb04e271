//! A stream open for reading only.
//!
//! Promise: nothing is created or changed on the servers, not even a consumer: what is read is read directly.
//! Failure: a stream that is not safe can be read all the same; what is unsafe about it is told.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    api,
    options::JetStreamOptions,
    settings,
    shared::{Links, Shared},
    tail,
};
use crate::{Lane, LogError, Seq, limits};

/// A stream open for reading only: sees what stood in it when it was opened.
pub struct StreamReader {
    shared: Shared,
    replicas: usize,
    end: Seq,
}

impl StreamReader {
    /// Connects, and finds the stream that is there. Tells what of its settings is not safe. Runs on the current tokio runtime.
    ///
    /// # Errors
    /// [`LogError::Options`], [`LogError::Io`], [`LogError::Unreachable`]; [`LogError::Diverged`]: entries were deleted from it.
    pub async fn open(options: JetStreamOptions) -> Result<(Self, Vec<String>), LogError> {
        options.check()?;
        let unreachable = |why: String, mend: &str| LogError::Unreachable {
            place: options.place(),
            why,
            mend: mend.into(),
        };
        let reader = options
            .connect_options("reading")
            .await?
            .connect(options.servers.clone())
            .await
            .map_err(|error| {
                let mend = "see that the server runs, and that address and credentials are right";
                unreachable(super::chain(&error), mend)
            })?;
        let info = api::stream_info(&reader, &options.stream).await;
        let info = info.map_err(|error| {
            let mend = "see that the realm's hosts run on these servers, and that JetStream is on";
            unreachable(error.to_string(), mend)
        })?;
        let found = match settings::check(&info, &options) {
            Ok(()) => Vec::new(),
            Err(LogError::Unsafe { found, .. }) => found,
            Err(error) => return Err(error),
        };
        let replicas = info.config["num_replicas"].as_u64().unwrap_or(1).max(1);
        let end = Seq(info.state.last_seq);
        let entry_bytes_max = limits::STREAM_ENTRY_BYTES_LIMIT;
        let links = Arc::new(Links::new());
        let shared = Shared::new(options, reader, links, &info, entry_bytes_max);
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
        Ok((
            StreamReader {
                shared,
                replicas,
                end,
            },
            found,
        ))
    }

    /// As [`Log::read`](crate::Log::read).
    ///
    /// # Errors
    /// As [`Log::read`](crate::Log::read).
    pub async fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        tail::read(&self.shared, from, entries, bytes_max).await
    }

    /// As [`Log::read_lane`](crate::Log::read_lane).
    ///
    /// # Errors
    /// As [`Log::read_lane`](crate::Log::read_lane).
    pub async fn read_lane(
        &self,
        lane: Lane,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        tail::read_lane(&self.shared, lane, from, entries, bytes_max).await
    }

    /// As [`Log::is_purged`](crate::Log::is_purged).
    ///
    /// # Errors
    /// As [`Log::is_purged`](crate::Log::is_purged).
    pub async fn is_purged(&self, seq: Seq) -> Result<bool, LogError> {
        tail::is_purged(&self.shared, seq).await
    }

    /// The last entry that can be read; `Seq(0)` when the stream is empty.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// How many servers keep a copy.
    pub fn replicas(&self) -> usize {
        self.replicas
    }
}
