//! A call to a callee that has its own way of calling: over a connection, most often.
//!
//! In: params already wrapped for the callee, and the route they took.
//! Promise: the params are copied once, into the callee's own request, so that pipelined calls go out on the connection
//! without waiting; an answer without capabilities passes uncopied.
//! Failure: revocation drops the promise and the pipeline, which tells the other end to give up, and answers stale.

use crate::flight::Flight;
use crate::message::{Answer, Message};
use crate::route::Route;
use crate::wall::{Cut, broken};
use capnp::capability::{Promise, RemotePromise, Response};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp, RequestHook};
use capnp::{Error, any_pointer};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

pub(crate) struct Relay {
    flight: Flight<Response<any_pointer::Owned>>,
    pipeline: RefCell<Option<Rc<dyn PipelineHook>>>,
}

/// A request of `callee`'s own kind, with `params` in it.
pub(crate) fn request(
    callee: &dyn ClientHook,
    interface_id: u64,
    method_id: u16,
    params: &Message,
) -> Result<Box<dyn RequestHook>, Error> {
    let params = params.reader()?;
    let size = params.target_size()?;
    let mut request = callee.new_call(interface_id, method_id, Some(size)).hook;
    request.get().set_as(params)?;
    Ok(request)
}

impl Relay {
    /// Sends `request`, whose params `route` has wrapped.
    pub(crate) fn start(
        route: Route,
        request: Box<dyn RequestHook>,
    ) -> RemotePromise<any_pointer::Owned> {
        let RemotePromise { promise, pipeline } = request.send();
        let relay = Rc::new(Relay {
            flight: Flight::new(route),
            pipeline: RefCell::new(Some(Rc::from(pipeline.hook))),
        });
        relay.flight.embark(promise);
        let whole: Rc<dyn Cut> = relay.clone();
        relay.flight.board(&whole);
        relay.flight.count();
        RemotePromise {
            promise: Promise::from_future(Responding(relay.clone())),
            pipeline: any_pointer::Pipeline::new(Box::new(Pipeline(relay))),
        }
    }

    fn receive(
        &self,
        response: Response<any_pointer::Owned>,
    ) -> Result<Response<any_pointer::Owned>, Error> {
        let results = response.get()?;
        let size = results.target_size()?;
        self.flight.route().results(|| Ok(size.word_count))?;
        if size.cap_count == 0 {
            return Ok(response);
        }
        let mut results = Message::copy_of(results, size.word_count)?;
        self.flight.route().outward(&mut results.caps);
        Ok(Response::new(Box::new(Answer(Rc::new(results)))))
    }
}

impl Cut for Relay {
    fn begun(&self) -> u64 {
        self.flight.begun()
    }

    fn cut(&self, error: &Error) {
        self.flight.cut(error);
        drop(self.pipeline.take());
    }

    fn wake(&self) {
        self.flight.wake();
    }
}

struct Responding(Rc<Relay>);

impl Future for Responding {
    type Output = Result<Response<any_pointer::Owned>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.0.flight.poll(cx);
        if outcome.is_ready() {
            // It stays registered for its pipeline's sake.
            self.0.flight.uncount();
        }
        if self.0.flight.stale().is_some() {
            // Else the callee would be kept at it by what may still be pipelined.
            drop(self.0.pipeline.take());
        }
        outcome.map(|response| match response {
            Ok(response) => self.0.receive(response),
            Err(error) => Err(self.0.flight.route().told(error)),
        })
    }
}

impl Drop for Responding {
    fn drop(&mut self) {
        self.0.flight.abandon();
    }
}

struct Pipeline(Rc<Relay>);

impl PipelineHook for Pipeline {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Pipeline(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        let pipeline = self.0.pipeline.borrow().clone();
        match (pipeline, self.0.flight.stale()) {
            (Some(pipeline), None) => self
                .0
                .flight
                .route()
                .outward_one(pipeline.get_pipelined_cap(ops)),
            (_, Some(error)) => broken(&self.0.flight.route().told(error.clone())),
            (None, None) => unreachable!("only being cut takes the pipeline"),
        }
    }
}
