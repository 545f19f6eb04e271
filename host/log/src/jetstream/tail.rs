//! Follows the stream in order, and reads parts of it.
//!
//! Promise: every entry once and in order, each behind the one before it: a gap is fetched again, and a stream that
//! lacks its last entry, or has another one where the tail left off, is diverged. A place before one that is there, and that has nothing
//! itself, reads as empty: servers take in entries in order, so one that has the later has had the earlier. Whether that was to go is
//! for the reader to know.
//! Failure: whatever happens to the connection, the server or the consumer, a new consumer begins at the last entry that
//! was given; only a diverged log ends a tail with an error. A cluster that has lost servers makes no consumers for
//! seconds, so until there is one the tail reads directly, which any server that has the stream answers.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    api::{self, ApiError, AtLeader},
    shared::Shared,
};
use crate::{Lane, LogError, Seq, limits};

/// Where one follower stands.
pub(super) struct Tail {
    shared: Arc<Shared>,
    readers: watch::Receiver<u64>,
    closed: watch::Receiver<bool>,
    next: Seq,
    /// The last entry that was given; the next consumer begins there to see that it is still the same.
    last: Option<(Seq, Bytes)>,
    consumer: Option<Consumer>,
    /// The next consumer, while there is none.
    beginning: Option<BoxFuture<'static, Result<Consumer, String>>>,
    /// What was read directly: each entry behind the one that stands before it, whatever lies between.
    ahead: VecDeque<(Seq, Bytes)>,
    failures: u32,
    /// Since when every consumer has failed.
    stuck_since: Option<Instant>,
    /// Consumers in a row that had a gap at `next`.
    gaps: u32,
}

struct Consumer {
    name: String,
    inbox: String,
    messages: Subscriber,
    /// Requests that the server has not served in full yet: their number, and how many entries they still ask for.
    requests: VecDeque<(u64, usize)>,
    asked: u64,
    /// The next request is to be for one entry of any size.
    is_large_next: bool,
    heard: Instant,
    /// It was heard since then, too.
    is_heard: bool,
}

enum Heard {
    Entry(Seq, Bytes),
    Nothing,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Tail {
    pub(super) fn new(shared: Arc<Shared>, from: Seq) -> Self {
        Tail {
            readers: shared.links.readers.subscribe(),
            closed: shared.closed.subscribe(),
            shared,
            next: from.max(Seq::FIRST),
            last: None,
            consumer: None,
            beginning: None,
            ahead: VecDeque::new(),
            failures: 0,
            stuck_since: None,
            gaps: 0,
        }
    }

    /// The next entry; none: the log is closed, and all was given.
    pub(super) async fn next(&mut self) -> Result<Option<(Seq, Bytes)>, LogError> {
        loop {
            self.shared.check_diverged()?;
            let heard = match self.heard_already() {
                Some(heard) => heard,
                None => {
                    let closed = *self.closed.borrow_and_update();
                    if closed && self.next > self.shared.end() {
                        return Ok(None);
                    }
                    self.step(closed).await
                }
            };
            let (seq, bytes) = match heard {
                Ok(Heard::Entry(seq, bytes)) => (seq, bytes),
                Ok(Heard::Nothing) => continue,
                Err(why) => {
                    self.consumer = None;
                    self.failures += 1;
                    let (place, next) = (&self.shared.place, self.next);
                    match self.failures {
                        5 => tracing::warn!(log = %place, "a tail can't go on at {next}: {why}"),
                        _ => tracing::debug!(log = %place, "a tail begins anew at {next}: {why}"),
                    }
                    let stuck = *self.stuck_since.get_or_insert_with(Instant::now);
                    let patience = ms(limits::TAIL_CLOSED_PATIENCE_MS);
                    if *self.closed.borrow() && stuck.elapsed() > patience {
                        return Err(LogError::Closed);
                    }
                    continue;
                }
            };
            if let Some((last, expected)) = &self.last
                && seq == *last
            {
                if bytes != expected {
                    let why = format!("entry {seq} is not the one that was seen");
                    return Err(self.shared.diverge(why));
                }
                continue;
            }
            if seq < self.next {
                continue;
            }
            if seq > self.next {
                self.gap().await?;
                continue;
            }
            self.failures = 0;
            self.stuck_since = None;
            self.gaps = 0;
            self.next = seq.next();
            self.last = Some((seq, bytes.clone()));
            self.shared.saw(seq, &bytes);
            return Ok(Some((seq, bytes)));
        }
    }

    /// A message that is here already.
    fn heard_already(&mut self) -> Option<Result<Heard, String>> {
        if let Some((seq, _)) = self.ahead.front() {
            if *seq > self.next {
                return Some(Ok(Heard::Entry(self.next, Bytes::new())));
            }
            let (seq, bytes) = self.ahead.pop_front()?;
            return Some(Ok(Heard::Entry(seq, bytes)));
        }
        let consumer = self.consumer.as_mut()?;
        if consumer.requests.len() < limits::TAIL_REQUESTS {
            return None;
        }
        let message = consumer.messages.next().now_or_never()??;
        consumer.is_heard = true;
        Some(consumer.take(message))
    }

    /// Reads directly what the consumer left out: entries that were taken out of the stream, or that got lost on the way. Where nothing
    /// is to be had behind the gap, and the leader has nothing in it either, the entry is lost.
    async fn gap(&mut self) -> Result<(), LogError> {
        self.ahead.clear();
        let stream = &self.shared.options.stream;
        let (entries, bytes) = (limits::TAIL_REQUEST_ENTRIES, limits::TAIL_REQUEST_BYTES);
        let found = api::get_batch(&self.shared.reader, stream, self.next, entries, bytes).await;
        let found = found.unwrap_or_default().into_iter();
        self.ahead
            .extend(found.map(|stored| (stored.seq, stored.bytes)));
        if !self.ahead.is_empty() {
            return Ok(());
        }
        self.consumer = None;
        self.failures += 1;
        self.gaps += 1;
        if self.gaps >= limits::GAP_TRIES {
            let found = api::at_leader(&self.shared.reader, stream, self.next).await;
            if let Ok(AtLeader::Nothing) = found {
                let why = format!("entry {} is missing", self.next);
                return Err(self.shared.diverge(why));
            }
        }
        Ok(())
    }

    /// Waits for one message, or for a reason to look around.
    async fn step(&mut self, closed: bool) -> Result<Heard, String> {
        let Some(consumer) = &mut self.consumer else {
            return self.step_without().await;
        };
        consumer.ask(&self.shared).await?;
        if std::mem::take(&mut consumer.is_heard) {
            consumer.heard = Instant::now();
        }
        let quiet = ms(limits::HEARTBEAT_MS * 5 / 2).saturating_sub(consumer.heard.elapsed());
        let message = tokio::select! {
            biased;
            message = timeout(quiet, consumer.messages.next()) => message,
            changed = self.readers.changed() => {
                return match changed {
                    Ok(()) => Err("the connection was made anew".into()),
                    Err(_) => Err("the connection is gone".into()),
                };
            }
            _ = self.closed.wait_for(|closed| *closed), if !closed => return Ok(Heard::Nothing),
        };
        match message {
            Ok(Some(message)) => {
                consumer.is_heard = true;
                consumer.take(message)
            }
            Ok(None) => Err("the subscription ended".into()),
            Err(_) => Err("the server is silent".into()),
        }
    }

    /// Waits for a consumer, reading directly now and then.
    async fn step_without(&mut self) -> Result<Heard, String> {
        let from = self.last.as_ref().map_or(self.next, |(last, _)| *last);
        let beginning = match &mut self.beginning {
            Some(beginning) => beginning,
            beginning => {
                self.readers.mark_unchanged();
                let pause = match self.failures {
                    0 | 1 => 0,
                    more => limits::RECONNECT_PAUSE_MS << more.min(6),
                };
                let pause = ms(pause.min(limits::RECONNECT_PAUSE_MS_MAX));
                beginning.insert(begin(self.shared.clone(), from, pause).boxed())
            }
        };
        match timeout(ms(limits::DIRECT_EVERY_MS), beginning).await {
            Ok(consumer) => {
                self.beginning = None;
                self.consumer = Some(consumer?);
            }
            Err(_) => {
                let stream = &self.shared.options.stream;
                let (entries, bytes) = (limits::TAIL_REQUEST_ENTRIES, limits::TAIL_REQUEST_BYTES);
                let found = api::get_batch(&self.shared.reader, stream, from, entries, bytes);
                // If that does not work either, the consumer's failure says so.
                let found = found.await.unwrap_or_default();
                self.ahead.clear();
                let new = found.into_iter().map(|stored| (stored.seq, stored.bytes));
                self.ahead.extend(new);
            }
        }
        Ok(Heard::Nothing)
    }
}

async fn begin(shared: Arc<Shared>, from: Seq, pause: Duration) -> Result<Consumer, String> {
    sleep(pause).await;
    let inbox = shared.reader.new_inbox();
    let patience = ms(limits::REQUEST_PATIENCE_MS);
    let messages = timeout(patience, shared.reader.subscribe(format!("{inbox}.*"))).await;
    let messages = messages
        .map_err(|_| "not connected".to_owned())?
        .map_err(|error| error.to_string())?;
    let name = api::create_consumer(&shared.reader, &shared.options.stream, from).await;
    Ok(Consumer {
        name: name.map_err(|error| error.to_string())?,
        inbox,
        messages,
        requests: VecDeque::new(),
        asked: 0,
        is_large_next: false,
        heard: Instant::now(),
        is_heard: false,
    })
}

impl Drop for Tail {
    fn drop(&mut self) {
        let (Some(consumer), Ok(runtime)) =
            (self.consumer.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let forgetting =
                api::forget_consumer(&shared.reader, &shared.options.stream, &consumer.name);
            let _ = timeout(ms(limits::REQUEST_PATIENCE_MS), forgetting).await;
        });
    }
}

impl Consumer {
    /// Keeps so many entries asked for that the server need not wait, and no more than may be read ahead.
    async fn ask(&mut self, shared: &Shared) -> Result<(), String> {
        while self.requests.len() < limits::TAIL_REQUESTS {
            if self.is_large_next && !self.requests.is_empty() {
                return Ok(());
            }
            let number = self.asked;
            let entries = match self.is_large_next {
                true => 1,
                false => limits::TAIL_REQUEST_ENTRIES,
            };
            let mut request = json!({
                "batch": entries,
                "expires": nanos(limits::TAIL_REQUEST_MS),
                "idle_heartbeat": nanos(limits::HEARTBEAT_MS),
            });
            if !self.is_large_next {
                request["max_bytes"] = limits::TAIL_REQUEST_BYTES.into();
            }
            let subject = format!(
                "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
                shared.options.stream, self.name
            );
            let reply = format!("{}.{number}", self.inbox);
            let payload = request.to_string().into();
            let asking = shared.reader.publish_with_reply(subject, reply, payload);
            timeout(ms(limits::REQUEST_PATIENCE_MS), asking)
                .await
                .map_err(|_| "not connected".to_owned())?
                .map_err(|error| error.to_string())?;
            self.asked += 1;
            self.requests.push_back((number, entries));
            if std::mem::take(&mut self.is_large_next) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<Heard, String> {
        let Some(status) = message.status.map(|status| status.as_u16()) else {
            let seq = message.reply.as_deref().and_then(place);
            let Some(seq) = seq else {
                return Err("an entry came without its place".into());
            };
            // The server serves requests in their order.
            if let Some((_, left)) = self.requests.front_mut() {
                *left -= 1;
                if *left == 0 {
                    self.requests.pop_front();
                }
            }
            return Ok(Heard::Entry(seq, message.payload));
        };
        let why = message.description.unwrap_or_default();
        let number = message.subject.rsplit('.').next();
        let number: Option<u64> = number.and_then(|number| number.parse().ok());
        let (large, done) = (why.contains("Exceeds MaxBytes"), why == "Batch Completed");
        match status {
            100 => {}
            // That many bytes are sent, or it has waited long enough; more than one request can have been for the same.
            408 | 409 if status == 408 || large || done => {
                let asked = self
                    .requests
                    .iter()
                    .find(|(asked, _)| Some(*asked) == number);
                let whole = limits::TAIL_REQUEST_ENTRIES;
                self.is_large_next = large && asked.is_some_and(|(_, left)| *left == whole);
                self.requests.retain(|(asked, _)| Some(*asked) != number);
            }
            _ => return Err(format!("{status} {why}")),
        }
        Ok(Heard::Nothing)
    }
}

fn nanos(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

/// The entry's place, from `$JS.ACK.[domain.account.]stream.consumer.delivered.PLACE.consumer_place.time.pending[.token]`.
fn place(reply: &str) -> Option<Seq> {
    let parts = reply.strip_prefix("$JS.ACK.")?;
    let at = match parts.bytes().filter(|byte| *byte == b'.').count() {
        6 => 3,
        8.. => 5,
        _ => return None,
    };
    parts.split('.').nth(at)?.parse().ok().map(Seq)
}

/// What stands from `from` on, within bounds as [`crate::Log::read`] has them.
pub(super) async fn read(
    shared: &Shared,
    from: Seq,
    entries: usize,
    bytes_max: usize,
) -> Result<Vec<(Seq, Bytes)>, LogError> {
    shared.check_diverged()?;
    let (from, end) = (from.max(Seq::FIRST), shared.end());
    let entries = entries.min(limits::READ_ENTRIES_MAX);
    let bytes_max = bytes_max.min(limits::READ_BYTES_MAX);
    let (mut found, mut bytes, mut next) = (Vec::new(), 0_usize, from);
    let mut failures = 0;
    while next <= end && found.len() < entries {
        if let Some(until) = shared.hole_at(next) {
            while next < until && next <= end && found.len() < entries {
                found.push((next, Bytes::new()));
                next = next.next();
            }
            continue;
        }
        let wanted = usize::try_from(end.0 - next.0 + 1).unwrap_or(usize::MAX);
        let wanted = wanted.min(entries - found.len());
        // The server counts more than the entries' own bytes.
        let room = bytes_max - bytes
            + wanted.min(limits::READ_ENTRIES_MAX) * limits::MESSAGE_OVERHEAD_BYTES;
        let batch =
            api::get_batch(&shared.reader, &shared.options.stream, next, wanted, room).await;
        let before = next;
        let failed = match batch {
            Ok(batch) => {
                for stored in batch {
                    if stored.seq < next {
                        continue;
                    }
                    if stored.seq > next {
                        shared.saw_hole(next, stored.seq);
                    }
                    while next < stored.seq && next <= end && found.len() < entries {
                        found.push((next, Bytes::new()));
                        next = next.next();
                    }
                    if next > end || found.len() >= entries {
                        return Ok(found);
                    }
                    if bytes + stored.bytes.len() > bytes_max && !found.is_empty() {
                        return Ok(found);
                    }
                    bytes += stored.bytes.len();
                    next = next.next();
                    found.push((stored.seq, stored.bytes));
                    if bytes >= bytes_max {
                        return Ok(found);
                    }
                }
                // A replica that is behind, or a hole.
                ApiError::NoAnswer(format!("entry {next} can't be read"))
            }
            Err(error) => error,
        };
        if next > before {
            failures = 0;
            continue;
        }
        failures += 1;
        if failures < limits::READ_TRIES {
            sleep(ms(limits::RECONNECT_PAUSE_MS << failures)).await;
            continue;
        }
        if !found.is_empty() {
            break;
        }
        let stream = &shared.options.stream;
        if let Ok(AtLeader::Nothing) = api::at_leader(&shared.reader, stream, next).await {
            return Err(shared.diverge(format!("entry {next} is missing")));
        }
        return Err(shared.unavailable(&failed));
    }
    Ok(found)
}

/// What stands in a lane from `from` on, as [`crate::Log::read_lane`] has it.
pub(super) async fn read_lane(
    shared: &Shared,
    lane: Lane,
    from: Seq,
    entries: usize,
    bytes_max: usize,
) -> Result<Vec<(Seq, Bytes)>, LogError> {
    shared.check_diverged()?;
    let (stream, filter) = (&shared.options.stream, shared.options.filter(lane));
    let entries = entries.min(limits::READ_ENTRIES_MAX);
    let room = bytes_max.min(limits::READ_BYTES_MAX) + entries * limits::MESSAGE_OVERHEAD_BYTES;
    let from = from.max(Seq::FIRST);
    let found = api::get_batch_of(&shared.reader, stream, &filter, from, entries, room).await;
    let found = found.map_err(|error| shared.unavailable(&error))?;
    Ok(found
        .into_iter()
        .map(|stored| (stored.seq, stored.bytes))
        .collect())
}

/// Whether a place that reads as empty has nothing, as the stream's leader says.
pub(super) async fn is_purged(shared: &Shared, seq: Seq) -> Result<bool, LogError> {
    let stream = &shared.options.stream;
    match api::at_leader(&shared.reader, stream, seq).await {
        Ok(AtLeader::Nothing) => Ok(true),
        Ok(AtLeader::Empty) => Ok(false),
        Ok(AtLeader::Some) => {
            let why = format!("a server that was asked lacks entry {seq}, and their leader has it");
            Err(shared.unavailable(&why))
        }
        Err(error) => Err(shared.unavailable(&error)),
    }
}
