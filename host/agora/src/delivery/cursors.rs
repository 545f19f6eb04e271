//! Silence's cursors: how far a persona has answered by saying nothing.
//!
//! Promise: kept in the data folder within a second, and at a clean end. Losing one only means that its agent hears again what it was
//! silent about; what it answered moves the cursor in the log itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agora_realm::{ChannelName, Ordinal, PersonaId, State};
use tokio::sync::Notify;

use crate::boot::data::{Cursors, DataFolder};
use crate::limits;

/// All of a host's.
pub struct SilentCursors {
    inner: Mutex<Inner>,
}

struct Inner {
    cursors: Cursors,
    changed: bool,
    wakers: HashMap<(PersonaId, ChannelName), Arc<Notify>>,
}

impl SilentCursors {
    /// Those that the data folder kept.
    pub fn new(cursors: Cursors) -> Self {
        Self {
            inner: Mutex::new(Inner {
                cursors,
                changed: false,
                wakers: HashMap::new(),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far silence has moved it.
    pub fn get(&self, persona: &PersonaId, channel: &ChannelName) -> Ordinal {
        let key = (persona.clone(), channel.clone());
        self.inner().cursors.get(&key).copied().unwrap_or_default()
    }

    /// The persona's place: what the log says, and silence.
    pub fn effective(&self, state: &State, persona: &PersonaId, channel: &ChannelName) -> Ordinal {
        state
            .cursor(persona, channel)
            .max(self.get(persona, channel))
    }

    /// Moves it, never back.
    pub fn advance(&self, persona: &PersonaId, channel: &ChannelName, through: Ordinal) {
        let key = (persona.clone(), channel.clone());
        let mut inner = self.inner();
        let waker = inner.wakers.get(&key).cloned();
        let cursor = inner.cursors.entry(key).or_default();
        if *cursor < through {
            *cursor = through;
            inner.changed = true;
        }
        drop(inner);
        if let Some(waker) = waker {
            waker.notify_one();
        }
    }

    /// Woken when the persona's place moves, by silence or (told by [`SilentCursors::moved`]) by the log.
    pub fn waker(&self, persona: &PersonaId, channel: &ChannelName) -> Arc<Notify> {
        let key = (persona.clone(), channel.clone());
        self.inner().wakers.entry(key).or_default().clone()
    }

    /// The log moved it.
    pub fn moved(&self, persona: &PersonaId, channel: &ChannelName) {
        let key = (persona.clone(), channel.clone());
        let waker = self.inner().wakers.get(&key).cloned();
        if let Some(waker) = waker {
            waker.notify_one();
        }
    }

    /// The log may have moved any.
    pub fn moved_all(&self) {
        let wakers: Vec<_> = self.inner().wakers.values().cloned().collect();
        wakers.iter().for_each(|waker| waker.notify_one());
    }

    /// Writes them, when any moved since.
    pub fn keep(&self, folder: &DataFolder) {
        let cursors = {
            let mut inner = self.inner();
            if !inner.changed {
                return;
            }
            inner.changed = false;
            inner.cursors.clone()
        };
        if let Err(error) = folder.keep_cursors(&cursors) {
            tracing::warn!("cursors are not kept: {error}");
            self.inner().changed = true;
        }
    }

    /// Writes them every second.
    pub async fn keep_regularly(self: Arc<Self>, folder: Arc<DataFolder>) {
        let mut ticks = tokio::time::interval(limits::CURSORS_EVERY);
        loop {
            ticks.tick().await;
            let (cursors, folder) = (self.clone(), folder.clone());
            let _ = tokio::task::spawn_blocking(move || cursors.keep(&folder)).await;
        }
    }
}
