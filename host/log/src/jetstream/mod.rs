//! The log of a team, in a JetStream stream: `queue` -> `publisher` -> the stream -> `tail` for readers.
//!
//! A place in the log is the place in the stream. There are two connections: one carries what is appended and is thrown
//! away at its first doubt (see `publisher.rs`), the other all else and connects again by itself. `keeper` asks the
//! stream for its end and size; `shared` knows whether it is still the log that it was; `settings` says what a stream
//! must be.

mod api;
mod keeper;
mod options;
mod publisher;
mod queue;
mod reader;
mod settings;
mod shared;
mod tail;
mod tls;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::Event;
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use tokio::sync::{oneshot, watch};

use self::{
    api::{ApiError, StreamInfo, code},
    queue::Waiting,
    shared::{Link, Links, Shared},
    tail::Tail,
};
pub use self::{options::JetStreamOptions, reader::StreamReader};
use crate::{Appended, Class, Durability, Lane, Log, LogError, Missing, Seq, limits};

/// The log of a team, in a JetStream stream. Dropping it lets what was taken be answered in the background;
/// [`Log::close`] waits for that. Streams and reads that were begun go on.
pub struct JetStream {
    shared: Arc<Shared>,
}

/// Whether the log can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// All connections stand.
    Connected,
    /// A connection is being made again.
    Reconnecting {
        /// When it was lost.
        since: Instant,
    },
    /// The stream no longer holds what this process has seen of it. This is for good.
    Diverged {
        /// What was found.
        why: String,
    },
    /// The log was closed.
    Closed,
}

impl JetStream {
    /// Connects, and opens the stream or creates it. Runs on the current tokio runtime from then on, besides a thread of
    /// its own.
    ///
    /// # Errors
    /// [`LogError::Options`], [`LogError::Io`], [`LogError::Unreachable`], [`LogError::Unsafe`]: the stream's settings
    /// don't fit; [`LogError::Diverged`]: entries were deleted from it.
    pub async fn open(options: JetStreamOptions) -> Result<JetStream, LogError> {
        options.check()?;
        let links = Arc::new(Links::new());
        let unreachable = |why: &dyn ToString| {
            LogError::Unreachable {
            place: options.place(),
            why: why.to_string(),
            mend: "see that the server runs, with JetStream, and that address and credentials are right"
                .into(),
        }
        };
        let reader = options
            .connect_options("reading")
            .await?
            .reconnect_delay_callback(|attempts| {
                let doublings = u32::try_from(attempts.saturating_sub(2)).unwrap_or(u32::MAX);
                let most = limits::RECONNECT_PAUSE_MS_MAX;
                let pause = limits::RECONNECT_PAUSE_MS.checked_shl(doublings.min(20));
                match attempts {
                    0 | 1 => Duration::ZERO,
                    _ => Duration::from_millis(pause.unwrap_or(most).min(most)),
                }
            })
            .event_callback({
                let links = links.clone();
                move |event| {
                    let links = links.clone();
                    async move {
                        match event {
                            Event::Connected => links.set(Link::Reader, true),
                            Event::Disconnected | Event::Closed => links.set(Link::Reader, false),
                            Event::ServerError(error) => tracing::warn!("nats: {error}"),
                            _ => {}
                        }
                    }
                }
            })
            .connect(options.servers.clone())
            .await
            .map_err(|error| unreachable(&chain(&error)))?;
        let info = found_or_made(&reader, &options).await;
        let info = info.map_err(|error| match &error {
            ApiError::Refused { err_code, .. }
                if [code::NOT_ENABLED, code::NOT_ENABLED_FOR_ACCOUNT].contains(err_code) =>
            {
                unreachable(&format!("JetStream is not enabled there: {error}"))
            }
            ApiError::Refused { err_code, .. }
                if [code::INSUFFICIENT_STORAGE, code::ACCOUNT_RESOURCES].contains(err_code) =>
            {
                LogError::Unreachable {
                    place: options.place(),
                    why: format!("the stream can't be created: {error}"),
                    mend: format!(
                        "raise the servers' max_file_store, or ask for less than {} bytes",
                        options.stream_bytes_max
                    ),
                }
            }
            _ => unreachable(&error),
        })?;
        settings::check(&info, &options)?;
        let payload_max = reader.server_info().max_payload;
        let entry_bytes_max = options
            .entry_bytes_max
            .min(payload_max.saturating_sub(limits::MESSAGE_OVERHEAD_BYTES));
        let shared = Arc::new(Shared::new(options, reader, links, &info, entry_bytes_max));
        publisher::start(shared.clone())?;
        tokio::spawn(keeper::keep(Arc::downgrade(&shared)));
        Ok(JetStream { shared })
    }

    /// The largest entry that is taken, as the options and the server have it.
    pub fn entry_bytes_max(&self) -> usize {
        self.shared.entry_bytes_max
    }

    /// Whether the log can be reached, and when that changes.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.shared.links.state()
    }
}

/// The stream, made where there is none and there may be one. A cluster that has no leader yet is waited for.
async fn found_or_made(
    reader: &async_nats::Client,
    options: &JetStreamOptions,
) -> Result<StreamInfo, ApiError> {
    let patience = Duration::from_millis(limits::LEADER_PATIENCE_MS);
    let began = Instant::now();
    loop {
        let found = match api::stream_info(reader, &options.stream).await {
            Err(ApiError::Refused { err_code, .. })
                if err_code == code::STREAM_NOT_FOUND && options.create =>
            {
                let config = settings::new_stream(options);
                match api::create_stream(reader, &options.stream, config).await {
                    // Another host was faster.
                    Err(ApiError::Refused { err_code, .. })
                        if err_code == code::STREAM_NAME_IN_USE =>
                    {
                        api::stream_info(reader, &options.stream).await
                    }
                    created => created,
                }
            }
            found => found,
        };
        let is_leaderless = match &found {
            Err(ApiError::NoAnswer(_)) => true,
            Err(ApiError::Refused { err_code, .. }) => {
                [code::CLUSTER_NOT_AVAILABLE, code::CLUSTER_NOT_LEADER].contains(err_code)
            }
            Ok(_) => false,
        };
        if !is_leaderless || began.elapsed() >= patience {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(limits::LEADER_AGAIN_MS)).await;
    }
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

impl Drop for JetStream {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Log for JetStream {
    fn append(
        &self,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        self.append_in(Lane::Main, id, bytes, class)
    }

    fn append_in(
        &self,
        lane: Lane,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let (len, bytes_max) = (bytes.len(), self.shared.entry_bytes_max);
        if len > bytes_max {
            let too_large = LogError::TooLarge {
                bytes: len,
                bytes_max,
            };
            return future::ready(Err(too_large)).boxed();
        }
        if let Err(diverged) = self.shared.check_diverged() {
            return future::ready(Err(diverged)).boxed();
        }
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        let push = move |room| {
            shared.queue.push(Waiting {
                lane,
                id,
                bytes,
                class,
                since: Instant::now(),
                answer,
                room,
            })
        };
        let shared = self.shared.clone();
        let answered = answered.map(move |answer| {
            answer.unwrap_or_else(|_| Err(shared.unknown(&"the log stopped while appending")))
        });
        match self.shared.queue.try_room(class, len) {
            Err(closed) => future::ready(Err(closed)).boxed(),
            Ok(Some(room)) => match push(room) {
                Err(closed) => future::ready(Err(closed)).boxed(),
                Ok(()) => answered.boxed(),
            },
            Ok(None) => {
                let shared = self.shared.clone();
                async move {
                    let room = shared.queue.room(class, len).await;
                    // A diverged log closes its queue.
                    shared.check_diverged()?;
                    push(room?)?;
                    answered.await
                }
                .boxed()
            }
        }
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let shared = self.shared.clone();
        async move { tail::read(&shared, from, entries, bytes_max).await }.boxed()
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let tail = Tail::new(self.shared.clone(), from);
        stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(None) => None,
                Ok(Some(found)) => Some((Ok(found), Some(tail))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    fn read_lane(
        &self,
        lane: Lane,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let shared = self.shared.clone();
        async move { tail::read_lane(&shared, lane, from, entries, bytes_max).await }.boxed()
    }

    fn purge_lane(&self, lane: Lane, through: Seq) -> BoxFuture<'static, Result<(), LogError>> {
        let shared = self.shared.clone();
        async move {
            shared.check_diverged()?;
            let (stream, filter) = (&shared.options.stream, shared.options.filter(lane));
            let purged = api::purge(&shared.reader, stream, &filter, through).await;
            purged.map_err(|error| LogError::Unavailable {
                place: shared.place.clone(),
                why: format!("nothing was taken out of it: {error}"),
                mend: "see that the server can be reached, and that this login may publish to $JS.API.STREAM.PURGE.*".into(),
            })
        }
        .boxed()
    }

    fn is_purged(&self, seq: Seq) -> BoxFuture<'static, Result<bool, LogError>> {
        let shared = self.shared.clone();
        async move { tail::is_purged(&shared, seq).await }.boxed()
    }

    fn missing(&self) -> Missing {
        self.shared.missing()
    }

    fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    fn end(&self) -> Seq {
        self.shared.end()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        self.shared.queue.close();
        let mut closed = self.shared.closed.subscribe();
        let shared = self.shared.clone();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
            shared.check_diverged()
        }
        .boxed()
    }
}
