//! One subscription: brings a channel's counting messages to one sink, in order, from the persona's cursor on.
//!
//! In: the record; a sink that crossed its subscriber's wall. Out: `deliver` calls.
//! Promise: every counting message after the cursor, but the persona's own, once and in order, for as long as it lives; at most
//! `window` of them unanswered. A slow sink delays only itself.
//! Failure: a sink that fails ends its subscription; what it did not answer is delivered to the next one. A record that can't be read
//! is read again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agora_capnp::channel_capnp::sink;
use agora_realm::{ChannelName, Ordinal, PersonaId};

use super::cursors::SilentCursors;
use super::message::write_message;
use super::record::Record;
use crate::limits;

/// What a subscription shows of itself, for `ps` and for telling when all is quiet.
#[derive(Debug, Default)]
pub struct Progress {
    /// The last ordinal that was looked at.
    pub position: AtomicU64,
    rest: Mutex<Rest>,
    /// Own messages that were passed over.
    pub echoes: AtomicU64,
    /// Messages delivered.
    pub delivered: AtomicU64,
}

/// Whether a subscription has anything to do, and what would give it something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It is at it.
    #[default]
    Busy,
    /// Nothing comes after this ordinal.
    AtEnd(Ordinal),
    /// The window is full, as long as the cursor stands here.
    Full(Ordinal),
    /// It has ended.
    Over,
}

impl Progress {
    pub(crate) fn set(&self, rest: Rest) {
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = rest;
    }

    /// It has ended.
    pub fn over(&self) {
        self.set(Rest::Over);
    }

    /// Whether nothing is due, with the channel's latest ordinal and the persona's cursor as they are now: what has changed since
    /// this subscription looked, it is about to see.
    pub fn is_idle(&self, latest: Ordinal, cursor: Ordinal) -> bool {
        match *self.rest.lock().unwrap_or_else(PoisonError::into_inner) {
            Rest::Busy => false,
            Rest::AtEnd(end) => end == latest,
            Rest::Full(at) => at == cursor,
            Rest::Over => true,
        }
    }
}

/// What a subscription is about.
pub struct Subscription {
    /// The record.
    pub record: Arc<Record>,
    /// Silence's cursors.
    pub silent: Arc<SilentCursors>,
    /// Who listens.
    pub persona: PersonaId,
    /// To what.
    pub channel: ChannelName,
    /// The most messages delivered and not answered.
    pub window: u32,
    /// When the grant expires, in milliseconds since 1970-01-01 UTC.
    pub until_ms: i64,
    /// Where the messages go.
    pub sink: sink::Client,
    /// What it shows of itself.
    pub progress: Arc<Progress>,
}

impl Subscription {
    /// Delivers until the sink fails or the grant expires.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn run(self, from: Ordinal) -> Result<(), capnp::Error> {
        let mut latest = self.record.latest(&self.channel);
        let moved = self.silent.waker(&self.persona, &self.channel);
        let mut next = Ordinal(from.0 + 1);
        // Ordinals delivered and not yet answered, so that own messages between them don't fill the window.
        let mut unanswered = std::collections::VecDeque::new();
        loop {
            let cursor = {
                let state = self.record.state();
                self.silent.effective(&state, &self.persona, &self.channel)
            };
            while unanswered.front().is_some_and(|ordinal| *ordinal <= cursor) {
                unanswered.pop_front();
            }
            next = next.max(Ordinal(cursor.0 + 1));
            let pruned = {
                let state = self.record.state();
                state.channel(&self.channel).map_or(0, |view| view.pruned.0)
            };
            if next.0 <= pruned {
                // Its cursor was passed by force. An older subscriber does not know the call, and misses them untold.
                let mut request = self.sink.skipped_request();
                request.get().set_from(next.0);
                request.get().set_through(pruned);
                // On its way before what follows is.
                let telling = request.send();
                tokio::task::spawn_local(async move {
                    let _ = telling.promise.await;
                });
                if unanswered.is_empty() {
                    self.silent
                        .advance(&self.persona, &self.channel, Ordinal(pruned));
                }
                next = Ordinal(pruned + 1);
            }
            let end = *latest.borrow_and_update();
            let room = (self.window as usize).saturating_sub(unanswered.len());
            if next.0 > end || room == 0 {
                self.progress.set(match room {
                    0 => Rest::Full(cursor),
                    _ => Rest::AtEnd(Ordinal(end)),
                });
                tokio::select! {
                    changed = latest.changed() => if changed.is_err() {
                        return Ok(());
                    },
                    () = moved.notified() => {}
                }
                self.progress.set(Rest::Busy);
                continue;
            }
            self.progress.set(Rest::Busy);
            let count = room.min(limits::BATCH_MESSAGES_MAX);
            let read = self
                .record
                .messages(&self.channel, next, count, limits::BATCH_BYTES_MAX);
            let batch = match read.await {
                Ok(batch) => batch,
                Err(error) => {
                    // The agent can do nothing about it, and must not miss what follows.
                    tracing::warn!(
                        "'{}' can't be read for {}: {error}",
                        self.channel,
                        self.persona
                    );
                    tokio::time::sleep(limits::READ_AGAIN).await;
                    continue;
                }
            };
            if crate::now_ms() > self.until_ms {
                return Err(capnp::Error::failed("the grant has expired".into()));
            }
            let Some(last) = batch.last() else {
                // The tail is about to tell.
                tokio::task::yield_now().await;
                continue;
            };
            let last = last.ordinal;
            let (due, own): (Vec<_>, Vec<_>) = batch.into_iter().partition(|kept| {
                let entry = kept.sealed.entry();
                entry.host != self.persona.host || entry.author.as_ref() != Some(&self.persona.name)
            });
            self.progress
                .echoes
                .fetch_add(own.len() as u64, Ordering::Relaxed);
            if !due.is_empty() {
                let mut request = self.sink.deliver_request();
                let mut list = request.get().init_messages(due.len() as u32);
                for (i, kept) in due.iter().enumerate() {
                    write_message(kept, &self.channel, None, list.reborrow().get(i as u32));
                    unanswered.push_back(kept.ordinal);
                }
                request.send().await?;
                self.progress
                    .delivered
                    .fetch_add(due.len() as u64, Ordering::Relaxed);
            }
            if unanswered.is_empty() {
                // Nothing is owed for own messages, so no later subscription need pass over them again.
                self.silent.advance(&self.persona, &self.channel, last);
            }
            // Long ways past own messages leave room for others on this thread, a newer subscription among them.
            tokio::task::yield_now().await;
            self.progress.position.store(last.0, Ordering::SeqCst);
            next = Ordinal(last.0 + 1);
        }
    }
}
