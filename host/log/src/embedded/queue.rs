//! Entries on their way to the writer: two lanes, each with room of its own.
//!
//! In: entries from any thread, without blocking it.
//! Promise: control entries go first and never wait for ordinary ones' room; each lane keeps its order; what got room is
//! answered.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::{Appended, Class, LogError, Options, limits};

pub(super) type Answer = Result<Appended, LogError>;

pub(super) struct Waiting {
    pub(super) bytes: Bytes,
    pub(super) class: Class,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Given back when the entry is answered.
    pub(super) room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Lanes {
    control: VecDeque<Waiting>,
    ordinary: VecDeque<Waiting>,
    /// Who waits for a new segment to be begun.
    rolls: Vec<oneshot::Sender<io::Result<()>>>,
    closed: bool,
}

pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    some: Condvar,
    control_room: Arc<Semaphore>,
    ordinary_room: Arc<Semaphore>,
    batch_bytes: usize,
}

/// What the writer is to do next.
pub(super) enum Next {
    Batch(Vec<Waiting>),
    /// A new segment is to be begun, so that the one before is written to no more.
    Roll(oneshot::Sender<io::Result<()>>),
    /// Nothing came for a while.
    Idle,
    /// Nothing will come any more.
    Closed,
}

impl Queue {
    pub(super) fn new(options: &Options) -> Self {
        Queue {
            lanes: Mutex::default(),
            some: Condvar::new(),
            control_room: Arc::new(Semaphore::new(options.control_queue_bytes)),
            ordinary_room: Arc::new(Semaphore::new(options.queue_bytes)),
            batch_bytes: options.batch_bytes,
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

    /// All that waits, up to one batch; blocks until there is something, or for `idle` at most.
    pub(super) fn next(&self, idle: Option<Duration>) -> Next {
        let mut lanes = self.lanes();
        let empty = |lanes: &mut Lanes| {
            lanes.control.is_empty()
                && lanes.ordinary.is_empty()
                && lanes.rolls.is_empty()
                && !lanes.closed
        };
        lanes = match idle {
            None => self
                .some
                .wait_while(lanes, empty)
                .unwrap_or_else(PoisonError::into_inner),
            Some(idle) => {
                self.some
                    .wait_timeout_while(lanes, idle, empty)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        let Lanes {
            control,
            ordinary,
            rolls,
            closed,
        } = &mut *lanes;
        if let (true, Some(roll)) = (control.is_empty(), rolls.pop()) {
            return Next::Roll(roll);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for lane in [control, ordinary] {
            while let Some(waiting) = lane.front() {
                bytes += waiting.bytes.len();
                if bytes > self.batch_bytes && !batch.is_empty() {
                    return Next::Batch(batch);
                }
                batch.extend(lane.pop_front());
            }
        }
        match (batch.is_empty(), *closed) {
            (false, _) => Next::Batch(batch),
            (true, true) => Next::Closed,
            (true, false) => Next::Idle,
        }
    }

    /// Asks for a new segment to be begun; answered when it is.
    pub(super) fn roll(&self) -> Result<oneshot::Receiver<io::Result<()>>, LogError> {
        let (answer, answered) = oneshot::channel();
        let mut lanes = self.lanes();
        if lanes.closed {
            return Err(LogError::Closed);
        }
        lanes.rolls.push(answer);
        drop(lanes);
        self.some.notify_one();
        Ok(answered)
    }

    /// Takes no more entries; those that are in still come out.
    pub(super) fn close(&self) {
        self.lanes().closed = true;
        self.control_room.close();
        self.ordinary_room.close();
        self.some.notify_all();
    }

    /// Closes, and lets go of what waits: its writers learn that the log stopped.
    pub(super) fn abandon(&self) {
        self.close();
        let mut lanes = self.lanes();
        lanes.control.clear();
        lanes.ordinary.clear();
        lanes.rolls.clear();
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes + limits::QUEUE_ENTRY_BYTES).unwrap_or(u32::MAX)
}
