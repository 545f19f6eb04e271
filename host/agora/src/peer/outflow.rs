//! What is delivered to a peer on the channels that it follows, over one connection.
//!
//! In: batches of each channel. Out: the same on the wire, those of a channel in their order.
//! Promise: however many channels a peer follows and however far it is behind, little waits for it to take, or to answer, and never so much
//! that the connection ends or that it isn't listened to. Channels that have something take turns, each with one batch; few batches are read
//! before their turn.
//! Failure: the first delivery that fails ends that channel's. A peer that answers no deliveries of some channels may get none of its others.

use std::pin::pin;
use std::sync::Arc;

use agora_capnp::channel_capnp::sink;
use agora_guest::wire;
use agora_membrane::error;
use capnp::Error;
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits;

/// What one connection has room for.
pub struct Outflow {
    wire: wire::End,
    /// Held by the channel whose turn it is.
    turn: tokio::sync::Mutex<()>,
    /// Who may read a batch of this host's log.
    reading: Arc<Semaphore>,
    /// The same of what is a further peer's, whose answer may take its time.
    reading_afar: Arc<Semaphore>,
    /// Bytes that may be unanswered.
    unanswered: Arc<Semaphore>,
}

impl Outflow {
    /// That of the connection with this wire.
    pub fn new(wire: wire::End) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            wire,
            turn: tokio::sync::Mutex::default(),
            reading: semaphore(limits::FOLLOW_BATCHES_READ_MAX),
            reading_afar: semaphore(limits::FOLLOW_BATCHES_READ_MAX),
            unanswered: semaphore(limits::FOLLOW_UNANSWERED_BYTES_MAX),
        }
    }

    /// Waits until the peer has taken enough of what was delivered.
    async fn room(&self) -> Result<(), Error> {
        let room = self
            .wire
            .relieved(usize::MAX, limits::FOLLOW_UNTAKEN_BYTES_MAX);
        room.await
            .map_err(|wire::Closed| error::failed("the connection ended"))
    }
}

/// Where a batch comes from.
#[derive(Clone, Copy)]
pub enum Source {
    /// This host's log.
    Here,
    /// A further peer.
    Afar,
}

/// Leave to have a batch in memory.
pub struct Leave {
    _permit: OwnedSemaphorePermit,
}

/// What is delivered of one channel.
pub struct Deliveries<'a> {
    outflow: &'a Outflow,
    sink: &'a sink::Client,
    unanswered: FuturesUnordered<LocalBoxFuture<'static, Result<(), Error>>>,
}

impl<'a> Deliveries<'a> {
    /// To this sink, over the connection with this room.
    pub fn new(outflow: &'a Outflow, sink: &'a sink::Client) -> Self {
        Self {
            outflow,
            sink,
            unanswered: FuturesUnordered::new(),
        }
    }

    /// Waits until a batch may be read.
    ///
    /// # Errors
    /// A delivery failed, or the connection ended.
    pub async fn leave(&mut self, from: Source) -> Result<Leave, Error> {
        while self.unanswered.len() >= limits::FOLLOW_UNANSWERED_MAX {
            self.answered().await?;
        }
        let reading = match from {
            Source::Here => &self.outflow.reading,
            Source::Afar => &self.outflow.reading_afar,
        };
        // What is answered meanwhile is room for others.
        let leave = self.until(reading.clone().acquire_owned()).await?;
        let leave = Leave {
            _permit: leave.expect("it is never closed"),
        };
        self.outflow.room().await?;
        Ok(leave)
    }

    /// Delivers what is written, which takes about so many bytes, once there is room for it. It need not have been taken when this answers.
    ///
    /// # Errors
    /// A delivery before it failed, or the connection ended; or those of `write`.
    pub async fn deliver(
        &mut self,
        leave: Leave,
        bytes: usize,
        write: impl FnOnce(sink::deliver_params::Builder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let bytes = bytes.min(limits::FOLLOW_UNANSWERED_BYTES_MAX) as u32;
        let room = self.outflow.unanswered.clone();
        let place = self.until(room.acquire_many_owned(bytes)).await?;
        let place = place.expect("it is never closed");
        let _turn = self.outflow.turn.lock().await;
        self.outflow.room().await?;
        let mut request = self.sink.deliver_request();
        write(request.get())?;
        // The RPC system's own flow control is for a stream by itself: it knows nothing of the others on the connection.
        let answer = request.hook.send().promise;
        self.unanswered.push(Box::pin(async move {
            let answer = answer.await;
            drop(place);
            answer.map(drop)
        }));
        drop(leave);
        Ok(())
    }

    /// Tells that these were pruned, and waits until the peer knows.
    ///
    /// # Errors
    /// It doesn't take that, or a delivery before it.
    pub async fn skip(&mut self, from: u64, through: u64) -> Result<(), Error> {
        let mut request = self.sink.skipped_request();
        request.get().set_from(from);
        request.get().set_through(through);
        self.until(request.send().promise).await?.map(drop)
    }

    /// Waits for what is to be delivered next.
    ///
    /// # Errors
    /// A delivery failed meanwhile.
    pub async fn until<T>(&mut self, next: impl Future<Output = T>) -> Result<T, Error> {
        let mut next = pin!(next);
        loop {
            tokio::select! {
                biased;
                next = &mut next => return Ok(next),
                answered = self.answered(), if !self.unanswered.is_empty() => answered?,
            }
        }
    }

    async fn answered(&mut self) -> Result<(), Error> {
        match self.unanswered.next().await {
            Some(answer) => answer,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use agora_guest::wire::Limits;
    use tokio::sync::watch;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// Answers once it may.
    struct Shut(watch::Receiver<bool>);

    impl sink::Server for Shut {
        async fn deliver(self: Rc<Self>, _: sink::DeliverParams) -> Result<(), Error> {
            let _ = self.0.clone().wait_for(|may| *may).await;
            Ok(())
        }
    }

    async fn settled() {
        for _ in 0..10_000 {
            yield_now().await;
        }
    }

    /// Channels in which so many batches of so many bytes wait: what was delivered before the peer answered any, and in the end.
    async fn delivered(channels: usize, batches: usize, bytes: usize) -> (usize, usize) {
        let (near, _far) = wire::pair(Limits::HOST);
        let outflow = Rc::new(Outflow::new(near));
        let (open, may) = watch::channel(false);
        let count = Rc::new(Cell::new(0));
        let mut all = Vec::new();
        for _ in 0..channels {
            let sink: sink::Client = capnp_rpc::new_client(Shut(may.clone()));
            let (outflow, count) = (outflow.clone(), count.clone());
            all.push(spawn_local(async move {
                let mut deliveries = Deliveries::new(&outflow, &sink);
                for _ in 0..batches {
                    let leave = deliveries.leave(Source::Here).await.unwrap();
                    let done = deliveries.deliver(leave, bytes, |_| {
                        count.set(count.get() + 1);
                        Ok(())
                    });
                    done.await.unwrap();
                }
                // Until there is more: what was answered is let go of.
                let forever: Result<(), _> = deliveries.until(std::future::pending()).await;
                forever.unwrap();
            }));
        }
        settled().await;
        let before = count.get();
        open.send_replace(true);
        settled().await;
        all.iter().for_each(|one| one.abort());
        (before, count.get())
    }

    #[tokio::test]
    async fn what_is_not_answered_is_bounded_for_a_channel_and_for_all() {
        let most = limits::FOLLOW_UNANSWERED_BYTES_MAX;
        let each = limits::FOLLOW_UNANSWERED_MAX;
        let tests = async {
            assert_eq!(delivered(1, 10, 1).await, (each, 10));
            assert_eq!(delivered(3, 10, 1).await, (3 * each, 30));
            assert_eq!(delivered(40, 6, most / 16).await, (16, 240));
            // What is larger than all that may be is delivered by itself.
            assert_eq!(delivered(5, 2, 3 * most).await, (1, 10));
        };
        LocalSet::new().run_until(tests).await;
    }

    #[tokio::test]
    async fn nothing_is_delivered_while_the_peer_takes_nothing() {
        let test = async {
            let (near, far) = wire::pair(Limits::HOST);
            let outflow = Outflow::new(near.clone());
            let (_open, may) = watch::channel(true);
            let sink: sink::Client = capnp_rpc::new_client(Shut(may));
            let mut deliveries = Deliveries::new(&outflow, &sink);
            let frame = || vec![0; limits::FOLLOW_UNTAKEN_BYTES_MAX / 2 + 8];
            let leave = deliveries.leave(Source::Afar).await.unwrap();
            near.send(frame()).unwrap();
            near.send(frame()).unwrap();
            let mut delivering = Box::pin(deliveries.deliver(leave, 1, |_| Ok(())));
            assert!(futures::poll!(&mut delivering).is_pending());
            far.receive().await.unwrap();
            delivering.await.unwrap();
            near.send(frame()).unwrap();
            assert!(futures::poll!(Box::pin(deliveries.leave(Source::Afar))).is_pending());
            near.close();
            assert!(deliveries.leave(Source::Afar).await.is_err());
        };
        LocalSet::new().run_until(test).await;
    }
}
