//! Entries on their way to the publisher: two lanes, each with room of its own.
//!
//! In: entries from any thread, without blocking it.
//! Promise: control entries never wait for ordinary ones' room; each lane keeps its order; what got room is answered.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::{Appended, Class, Lane, LogError, limits};

pub(super) type Answer = Result<Appended, LogError>;

pub(super) struct Waiting {
    pub(super) lane: Lane,
    pub(super) id: [u8; 32],
    pub(super) bytes: Bytes,
    pub(super) class: Class,
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Given back when the entry is answered.
    pub(super) room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Lanes {
    control: VecDeque<Waiting>,
    ordinary: VecDeque<Waiting>,
    closed: bool,
}

pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    some: Notify,
    control_room: Arc<Semaphore>,
    ordinary_room: Arc<Semaphore>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Queue {
            lanes: Mutex::default(),
            some: Notify::new(),
            control_room: Arc::new(Semaphore::new(limits::CONTROL_QUEUE_BYTES)),
            ordinary_room: Arc::new(Semaphore::new(limits::ORDINARY_QUEUE_BYTES)),
        }
    }

    /// The room that an entry takes, if there is some at once.
    pub(super) fn try_room(
        &self,
        class: Class,
        bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, LogError> {
        match self.lane_room(class).try_acquire_many_owned(cost(bytes)) {
            Ok(room) => Ok(Some(room)),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(LogError::Closed),
        }
    }

    /// The room that an entry takes, when there is some.
    pub(super) async fn room(
        &self,
        class: Class,
        bytes: usize,
    ) -> Result<OwnedSemaphorePermit, LogError> {
        let room = self.lane_room(class).acquire_many_owned(cost(bytes)).await;
        room.map_err(|_| LogError::Closed)
    }

    fn lane_room(&self, class: Class) -> Arc<Semaphore> {
        match class {
            Class::Control => self.control_room.clone(),
            Class::Ordinary => self.ordinary_room.clone(),
        }
    }

    pub(super) fn push(&self, waiting: Waiting) -> Result<(), LogError> {
        let mut lanes = self.lanes();
        if lanes.closed {
            return Err(LogError::Closed);
        }
        match waiting.class {
            Class::Control => lanes.control.push_back(waiting),
            Class::Ordinary => lanes.ordinary.push_back(waiting),
        }
        drop(lanes);
        self.some.notify_one();
        Ok(())
    }

    /// The next to send, control first, of those that `fits` lets pass; a lane whose first does not fit waits.
    pub(super) fn next(&self, fits: impl Fn(Class, usize) -> bool) -> Option<Waiting> {
        let mut lanes = self.lanes();
        let Lanes {
            control, ordinary, ..
        } = &mut *lanes;
        for lane in [control, ordinary] {
            if let Some(first) = lane.front()
                && fits(first.class, first.bytes.len())
            {
                return lane.pop_front();
            }
        }
        None
    }

    /// Takes out what has waited since `before` or longer.
    pub(super) fn expire(&self, before: Instant) -> Vec<Waiting> {
        let mut lanes = self.lanes();
        let mut expired = Vec::new();
        let Lanes {
            control, ordinary, ..
        } = &mut *lanes;
        for lane in [control, ordinary] {
            while lane.front().is_some_and(|first| first.since <= before) {
                expired.extend(lane.pop_front());
            }
        }
        expired
    }

    /// Resolves once something was pushed, or the queue closed, since this was last awaited.
    pub(super) async fn changed(&self) {
        self.some.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        let lanes = self.lanes();
        lanes.control.is_empty() && lanes.ordinary.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lanes().closed
    }

    /// Takes no more entries; those that are in still come out.
    pub(super) fn close(&self) {
        self.lanes().closed = true;
        self.control_room.close();
        self.ordinary_room.close();
        self.some.notify_one();
    }

    /// Closes, and lets go of what waits: its writers learn that the log stopped.
    pub(super) fn abandon(&self) {
        self.close();
        let mut lanes = self.lanes();
        lanes.control.clear();
        lanes.ordinary.clear();
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes + limits::QUEUE_ENTRY_BYTES).unwrap_or(u32::MAX)
}
