//! A capability that an answer will hold, before there is an answer.
//!
//! In: calls made on it meanwhile, and the capability it turns out to be.
//! Promise: calls are handed on in the order they were made, before any made after it is known; whoever waits for one
//! of them drives the call that is to answer.
//! Failure: if there is no answer, every call fails as that call did.
//!
//! Waiting calls are held here until the answer comes, as many as the holder makes: the bound is the holder's.

use crate::call::Call;
use crate::message::Message;
use crate::route::Route;
use capnp::capability::{Promise, RemotePromise};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineOp, RequestHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};
use futures::channel::oneshot;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

pub(crate) struct Pending {
    ops: Vec<PipelineOp>,
    hopes: RefCell<Hopes>,
}

#[derive(Default)]
struct Hopes {
    /// The call that is to answer, until it has.
    call: Option<Rc<Call>>,
    resolved: Option<Box<dyn ClientHook>>,
    calls: Vec<Waiting>,
    watchers: Vec<oneshot::Sender<Box<dyn ClientHook>>>,
}

struct Waiting {
    interface_id: u64,
    method_id: u16,
    params: Box<dyn ParamsHook>,
    results: Box<dyn ResultsHook>,
    begun: oneshot::Sender<Promise<(), Error>>,
}

impl Pending {
    pub(crate) fn new(call: Rc<Call>, ops: Vec<PipelineOp>) -> Rc<Pending> {
        Rc::new(Pending {
            ops,
            hopes: RefCell::new(Hopes {
                call: Some(call),
                ..Hopes::default()
            }),
        })
    }

    pub(crate) fn ops(&self) -> &[PipelineOp] {
        &self.ops
    }

    /// It turned out to be `hook`.
    pub(crate) fn resolve(&self, hook: Box<dyn ClientHook>) {
        let hopes = {
            let mut hopes = self.hopes.borrow_mut();
            if hopes.resolved.is_some() {
                return;
            }
            let resolved = Hopes {
                resolved: Some(hook.clone()),
                ..Hopes::default()
            };
            std::mem::replace(&mut *hopes, resolved)
        };
        for waiting in hopes.calls {
            if !waiting.begun.is_canceled() {
                let promise = hook.call(
                    waiting.interface_id,
                    waiting.method_id,
                    waiting.params,
                    waiting.results,
                );
                // If the caller has gone meanwhile, the call goes too.
                drop(waiting.begun.send(promise));
            }
        }
        for watcher in hopes.watchers {
            drop(watcher.send(hook.clone()));
        }
    }

    fn resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.hopes.borrow().resolved.clone()
    }

    fn drive(&self, cx: &mut Context<'_>) {
        let call = self.hopes.borrow().call.clone();
        if let Some(call) = call {
            // The answer comes by way of resolve().
            let _ = call.drive(cx);
        }
    }

    fn wait(self: &Rc<Self>, waiting: impl FnOnce(oneshot::Sender<Promise<(), Error>>) -> Waiting) -> Forwarding {
        let (begun, begins) = oneshot::channel();
        let gone = {
            let mut hopes = self.hopes.borrow_mut();
            let mut gone = Vec::new();
            if hopes.calls.len() == hopes.calls.capacity() {
                let (kept, cancelled) = std::mem::take(&mut hopes.calls)
                    .into_iter()
                    .partition(|waiting| !waiting.begun.is_canceled());
                hopes.calls = kept;
                gone = cancelled;
            }
            hopes.calls.push(waiting(begun));
            gone
        };
        drop(gone);
        Forwarding::Waiting(self.clone(), begins)
    }
}

pub(crate) struct PendingHook(pub(crate) Rc<Pending>);

impl ClientHook for PendingHook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(PendingHook(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> capnp::capability::Request<any_pointer::Owned, any_pointer::Owned> {
        match self.0.resolved() {
            Some(hook) => hook.new_call(interface_id, method_id, size_hint),
            None => capnp::capability::Request::new(Box::new(Request {
                pending: self.0.clone(),
                interface_id,
                method_id,
                params: Message::blank(size_hint.map(|size| size.word_count)),
            })),
        }
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        if let Some(hook) = self.0.resolved() {
            return hook.call(interface_id, method_id, params, results);
        }
        Promise::from_future(self.0.wait(|begun| Waiting {
            interface_id,
            method_id,
            params,
            results,
            begun,
        }))
    }

    fn get_brand(&self) -> usize {
        0
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.0.resolved()
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(hook) = self.0.resolved() {
            return Some(Promise::ok(hook));
        }
        let (watcher, known) = oneshot::channel();
        self.0.hopes.borrow_mut().watchers.push(watcher);
        Some(Promise::from_future(Watching {
            pending: self.0.clone(),
            known,
        }))
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        let hook = self.add_ref();
        Promise::from_future(async move {
            let mut hook = hook;
            while let Some(next) = hook.when_more_resolved() {
                hook = next.await?;
            }
            Ok(())
        })
    }
}

/// A request made before it is known where it goes.
struct Request {
    pending: Rc<Pending>,
    interface_id: u64,
    method_id: u16,
    params: Message,
}

impl RequestHook for Request {
    fn get(&mut self) -> any_pointer::Builder<'_> {
        self.params.builder().expect("a message that is being built has a root")
    }

    fn get_brand(&self) -> usize {
        0
    }

    fn send(self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        let callee = PendingHook(self.pending);
        // The call crosses when it is handed on, not now.
        Call::start(Route::none(), &callee, self.interface_id, self.method_id, self.params).remote_promise()
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        let sent = self.send();
        Promise::from_future(async move { sent.promise.await.map(drop) })
    }

    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn capnp::private::capability::PipelineHook>)> {
        None
    }
}

enum Forwarding {
    Waiting(Rc<Pending>, oneshot::Receiver<Promise<(), Error>>),
    Begun(Promise<(), Error>),
}

impl Future for Forwarding {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut *self {
                Forwarding::Waiting(pending, begins) => {
                    pending.drive(cx);
                    match Pin::new(begins).poll(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(oneshot::Canceled)) => {
                            return Poll::Ready(Err(Error::failed("the pipelined call was dropped".into())));
                        }
                        Poll::Ready(Ok(promise)) => *self = Forwarding::Begun(promise),
                    }
                }
                Forwarding::Begun(promise) => return Pin::new(promise).poll(cx),
            }
        }
    }
}

struct Watching {
    pending: Rc<Pending>,
    known: oneshot::Receiver<Box<dyn ClientHook>>,
}

impl Future for Watching {
    type Output = Result<Box<dyn ClientHook>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.pending.drive(cx);
        Pin::new(&mut self.known)
            .poll(cx)
            .map_err(|oneshot::Canceled| Error::failed("the promised capability was dropped".into()))
    }
}
