//! What is delivered to a peer on the channels that it follows, over one connection.
//!
//! In: batches of each channel. Out: the same on the wire, those of a channel in their order.
//! Promise: however many channels a peer follows and however far it is behind, little waits for it to take at once, and never so much that
//! the connection ends or that it isn't listened to. Channels that have something take turns, each with one batch.
//! Failure: the first delivery that fails ends that channel's.

use std::pin::pin;

use agora_capnp::channel_capnp::sink;
use agora_guest::wire;
use agora_membrane::error;
use capnp::Error;
use capnp::any_pointer;
use capnp::capability::{Promise, Response};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::limits;

/// What one connection has room for.
pub struct Outflow {
    wire: wire::End,
    /// Held by the channel whose turn it is.
    turn: tokio::sync::Mutex<()>,
}

impl Outflow {
    /// That of the connection with this wire.
    pub fn new(wire: wire::End) -> Self {
        Self {
            wire,
            turn: tokio::sync::Mutex::default(),
        }
    }
}

/// What is delivered of one channel.
pub struct Deliveries<'a> {
    outflow: &'a Outflow,
    sink: &'a sink::Client,
    unanswered: FuturesUnordered<Promise<Response<any_pointer::Owned>, Error>>,
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

    /// Delivers what is written, once there is room for it. It need not have been taken when this answers.
    ///
    /// # Errors
    /// A delivery failed, this or one before it; the connection ended; or those of `write`.
    pub async fn deliver(
        &mut self,
        write: impl FnOnce(sink::deliver_params::Builder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while self.unanswered.len() >= limits::FOLLOW_UNANSWERED_MAX {
            self.answered().await?;
        }
        let _turn = self.outflow.turn.lock().await;
        let wire = &self.outflow.wire;
        let room = wire.relieved(usize::MAX, limits::FOLLOW_UNTAKEN_BYTES_MAX);
        room.await
            .map_err(|wire::Closed| error::failed("the connection ended"))?;
        let mut request = self.sink.deliver_request();
        write(request.get())?;
        // The RPC system's own flow control is for a stream by itself: it knows nothing of the others on the connection.
        self.unanswered.push(request.hook.send().promise);
        Ok(())
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
            Some(answer) => answer.map(drop),
            None => Ok(()),
        }
    }
}
