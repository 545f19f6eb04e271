//! A call that has not been sent yet.
//!
//! In: the caller's params, written by the caller.
//! Promise: until it is sent it belongs to the caller alone and holds nothing of the callee but the wrapper it was made
//! on, so it keeps nothing alive past a revocation. The policy is asked when it is sent.
//! Failure: a refused request answers with the refusal, and so does whatever is pipelined on it.

use crate::call::Call;
use crate::flight::{Flight, Waiting};
use crate::message::Message;
use crate::relay::{self, Relay};
use crate::route::Route;
use crate::wall::broken;
use crate::wrapper::Wrapped;
use capnp::capability::{Promise, RemotePromise};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp, RequestHook};
use capnp::{Error, MessageSize, any_pointer};
use std::rc::Rc;

pub(crate) struct Request {
    wrapped: Rc<Wrapped>,
    interface_id: u64,
    method_id: u16,
    params: Message,
}

impl Request {
    pub(crate) fn new(
        wrapped: Rc<Wrapped>,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request {
        Request {
            wrapped,
            interface_id,
            method_id,
            params: Message::blank(size_hint.map(|size| size.word_count)),
        }
    }

    fn plan(&mut self) -> Result<(Route, Rc<dyn ClientHook>), Error> {
        let (route, callee) = Route::through(&self.wrapped)?;
        let callee = route.admit(callee, self.interface_id, self.method_id)?;
        route.fits(|| self.params.words())?;
        route.inward(&mut self.params.caps);
        Ok((route, callee))
    }

    fn try_send(mut self) -> Result<RemotePromise<any_pointer::Owned>, Error> {
        let (route, callee) = self.plan()?;
        if is_local(&*callee) || route.exchanges() {
            return Ok(self.call(route, &*callee).remote_promise());
        }
        let request = relay::request(&*callee, self.interface_id, self.method_id, &self.params)?;
        Ok(Relay::start(route, request))
    }

    fn try_send_streaming(mut self) -> Result<Promise<(), Error>, Error> {
        let (route, callee) = self.plan()?;
        if is_local(&*callee) {
            let sent = self.call(route, &*callee).remote_promise();
            return Ok(Promise::from_future(
                async move { sent.promise.await.map(drop) },
            ));
        }
        let request = relay::request(&*callee, self.interface_id, self.method_id, &self.params)?;
        let flight = Flight::call(route, request.send_streaming());
        Ok(Promise::from_future(async move {
            let sent = Waiting(flight.clone()).await;
            sent.map_err(|error| flight.route().told(error))
        }))
    }

    fn call(self, route: Route, callee: &dyn ClientHook) -> Rc<Call> {
        Call::start(
            route,
            callee,
            self.interface_id,
            self.method_id,
            self.params,
        )
    }
}

/// Whether `callee`'s own requests do no more than `call()`: the hooks of objects, of promises and of errors.
fn is_local(callee: &dyn ClientHook) -> bool {
    callee.get_brand() == 0
}

impl RequestHook for Request {
    fn get(&mut self) -> any_pointer::Builder<'_> {
        self.params
            .builder()
            .expect("a message that is being built has a root")
    }

    fn get_brand(&self) -> usize {
        self.wrapped.wall().brand()
    }

    fn send(self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        self.try_send().unwrap_or_else(|error| RemotePromise {
            promise: Promise::err(error.clone()),
            pipeline: any_pointer::Pipeline::new(Box::new(Refused(error))),
        })
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        self.try_send_streaming().unwrap_or_else(Promise::err)
    }

    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

/// What is pipelined on a refused call.
struct Refused(Error);

impl PipelineHook for Refused {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Refused(self.0.clone()))
    }

    fn get_pipelined_cap(&self, _ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        broken(&self.0)
    }
}
