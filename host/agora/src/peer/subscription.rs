//! One subscription to a peer's channel: brings its messages to one sink here, in order, from the persona's place on.
//!
//! In: what the link hears, or asks the peer for again; a sink that crossed its subscriber's wall. Out: `deliver` calls.
//! Promise: as for a channel of this realm: every message after the persona's place, but its own, once and in order, at most `window` of them
//! unanswered. While the peer is out of reach it waits.
//! Failure: a sink that fails ends it, and so does the end of the grant.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agora_realm::Ordinal;

use super::remote::Remote;
use crate::channel::facet::write_afar;
use crate::delivery::subscription::{Rest, Subscription};
use crate::limits;

/// What is subscribed, and to what.
pub struct RemoteSubscription(pub Subscription, pub Arc<Remote>);

impl RemoteSubscription {
    /// Delivers until the sink fails or the grant expires.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn run(self) -> Result<(), capnp::Error> {
        let Self(to, remote) = self;
        let mut heard = remote.heard();
        let moved = to.silent.waker(&to.persona, &to.channel);
        let mut next = 0;
        // Ordinals delivered and not yet answered.
        let mut unanswered = VecDeque::new();
        loop {
            let now = *heard.borrow_and_update();
            // What would be answered now can't be put in the outbox before the peer's epoch is known; it is told again by then.
            let (cursor, begins) = {
                let state = to.record.state();
                (
                    remote.cursor(&to.silent, &state, &to.persona),
                    remote.kept_floor(state.epoch()).is_some(),
                )
            };
            let is_heard = now.is_known && remote.epoch().is_some();
            let is_known = is_heard && begins;
            while unanswered
                .front()
                .is_some_and(|ordinal| *ordinal <= cursor.0)
            {
                unanswered.pop_front();
            }
            next = cursor.0.max(next);
            if is_known && next < now.pruned {
                let mut request = to.sink.skipped_request();
                request.get().set_from(next + 1);
                request.get().set_through(now.pruned);
                tokio::task::spawn_local(async move {
                    let _ = request.send().promise.await;
                });
                if unanswered.is_empty() {
                    let through = Ordinal(now.pruned);
                    to.silent.advance(&to.persona, &to.channel, through);
                }
                next = now.pruned;
            }
            let room = (to.window as usize).saturating_sub(unanswered.len());
            if !is_known || next >= now.latest || room == 0 {
                to.progress.set(match room {
                    // In a moment, when it is kept.
                    _ if is_heard && !begins => Rest::Busy,
                    0 => Rest::Full(cursor),
                    _ => Rest::AtEnd(Ordinal(now.latest)),
                });
                tokio::select! {
                    changed = heard.changed() => if changed.is_err() {
                        return Ok(());
                    },
                    () = moved.notified() => {}
                }
                to.progress.set(Rest::Busy);
                continue;
            }
            to.progress.set(Rest::Busy);
            let count = room.min(limits::BATCH_MESSAGES_MAX);
            let page = match remote.messages(next + 1, count).await {
                Ok(page) => page,
                Err(error) => {
                    // The link is away, or about to be; what is missing is there when it is back.
                    tracing::debug!("'{}' for {}: {error}", to.channel, to.persona);
                    tokio::time::sleep(limits::READ_AGAIN).await;
                    continue;
                }
            };
            if crate::now_ms() > to.until_ms {
                return Err(capnp::Error::failed("the grant has expired".into()));
            }
            let Some(last) = page.messages.last().map(|message| message.ordinal) else {
                match page.next > next + 1 {
                    true => next = page.next - 1,
                    false => tokio::time::sleep(limits::READ_AGAIN).await,
                }
                continue;
            };
            let echo = remote.echo(&to.persona);
            let (own, due): (Vec<_>, Vec<_>) = page
                .messages
                .into_iter()
                .partition(|message| echo.is(&message.author));
            let echoes = &to.progress.echoes;
            echoes.fetch_add(own.len() as u64, Ordering::Relaxed);
            if !due.is_empty() {
                let mut request = to.sink.deliver_request();
                let list = request.get().init_messages(due.len() as u32);
                write_afar(&due, list, None)?;
                unanswered.extend(due.iter().map(|message| message.ordinal));
                request.send().await?;
                let delivered = &to.progress.delivered;
                delivered.fetch_add(due.len() as u64, Ordering::Relaxed);
            }
            if unanswered.is_empty() {
                // Nothing is owed for own messages, so no later subscription need pass over them again.
                to.silent.advance(&to.persona, &to.channel, Ordinal(last));
            }
            tokio::task::yield_now().await;
            to.progress.position.store(last, Ordering::SeqCst);
            next = last;
        }
    }
}
