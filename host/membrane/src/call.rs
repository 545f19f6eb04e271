//! A call to a callee of this process, made by a request.
//!
//! In: params already wrapped for the callee, and the route they took.
//! Promise: nothing is copied: the callee reads the caller's message, the caller the callee's, each with the tables
//! wrapped. What is pipelined on the answer is delivered before the caller sees the answer.
//! Failure: revocation ends it with the stale error, for the caller and for whatever is pipelined.

use crate::flight::Flight;
use crate::message::{Answer, Message};
use crate::pending::{Pending, PendingHook};
use crate::results::{Recipient, Results};
use crate::route::Route;
use crate::wall::{Cut, broken};
use capnp::capability::{Promise, RemotePromise, Response};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp};
use capnp::{Error, any_pointer};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

pub(crate) struct Call {
    flight: Flight<()>,
    progress: RefCell<Progress>,
}

#[derive(Default)]
struct Progress {
    returned: bool,
    delivered: Option<Message>,
    /// What the callee offered to pipelined calls before returning.
    early: Option<Rc<Message>>,
    answer: Option<Result<Rc<Message>, Error>>,
    pending: Vec<Weak<Pending>>,
}

impl Call {
    /// Calls `callee` with `params`, which `route` has wrapped.
    pub(crate) fn start(
        route: Route,
        callee: &dyn ClientHook,
        interface_id: u64,
        method_id: u16,
        params: Message,
    ) -> Rc<Call> {
        let call = Rc::new(Call {
            flight: Flight::new(route),
            progress: RefCell::default(),
        });
        let whole: Rc<dyn Cut> = call.clone();
        call.flight.board(&whole);
        call.flight.count();
        let recipient: Weak<Call> = Rc::downgrade(&call);
        let results = Box::new(Results::new(recipient));
        let promise = callee.call(interface_id, method_id, Box::new(params), results);
        call.flight.embark(promise);
        call
    }

    /// What a caller gets.
    pub(crate) fn remote_promise(self: Rc<Self>) -> RemotePromise<any_pointer::Owned> {
        RemotePromise {
            promise: Promise::from_future(Responding(self.clone())),
            pipeline: any_pointer::Pipeline::new(Box::new(Pipeline(self))),
        }
    }

    /// Makes what progress can be made, for everybody who waits.
    pub(crate) fn drive(&self, cx: &mut Context<'_>) -> Poll<Result<Rc<Message>, Error>> {
        if let Some(answer) = &self.progress.borrow().answer {
            return Poll::Ready(answer.clone());
        }
        if let Some(error) = self.flight.stale() {
            return Poll::Ready(Err(self.flight.route().told(error.clone())));
        }
        let returned = self.progress.borrow().returned;
        if !returned {
            match self.flight.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => {
                    let told = self.flight.route().told(error);
                    return Poll::Ready(self.settle(Err(told)));
                }
                Poll::Ready(Ok(())) => self.progress.borrow_mut().returned = true,
            }
        }
        let delivered = self.progress.borrow_mut().delivered.take();
        let Some(mut results) = delivered else {
            // The callee has returned but not let go of the results.
            return match self.flight.listen(cx) {
                Poll::Ready(error) => Poll::Ready(self.settle(Err(error))),
                Poll::Pending => Poll::Pending,
            };
        };
        if let Err(error) = self.flight.route().results(|| results.words()) {
            return Poll::Ready(self.settle(Err(error)));
        }
        self.flight.route().outward(&mut results.caps);
        Poll::Ready(self.settle(Ok(Rc::new(results))))
    }

    fn settle(&self, answer: Result<Rc<Message>, Error>) -> Result<Rc<Message>, Error> {
        self.flight.leave();
        let pending = {
            let mut progress = self.progress.borrow_mut();
            progress.answer = Some(answer.clone());
            progress.early = None;
            std::mem::take(&mut progress.pending)
        };
        for pending in pending.iter().filter_map(Weak::upgrade) {
            pending.resolve(pick(&answer, pending.ops()));
        }
        self.flight.wake_others();
        answer
    }

    fn pipelined(self: &Rc<Self>, ops: Vec<PipelineOp>) -> Box<dyn ClientHook> {
        if let Some(error) = self.flight.stale() {
            return broken(&self.flight.route().told(error.clone()));
        }
        let mut progress = self.progress.borrow_mut();
        if let Some(answer) = &progress.answer {
            return pick(answer, &ops);
        }
        if let Some(early) = &progress.early {
            return pick(&Ok(early.clone()), &ops);
        }
        let pending = Pending::new(self.clone(), ops);
        // Those nobody holds any more must not add up while the call is in flight.
        if progress.pending.len() == progress.pending.capacity() {
            progress
                .pending
                .retain(|pending| pending.strong_count() > 0);
        }
        progress.pending.push(Rc::downgrade(&pending));
        Box::new(PendingHook(pending))
    }
}

impl Recipient for Call {
    fn deliver(&self, results: Message) {
        if self.flight.stale().is_some() {
            return;
        }
        let returned = {
            let mut progress = self.progress.borrow_mut();
            progress.delivered = Some(results);
            progress.returned
        };
        if returned {
            self.flight.wake();
        }
    }

    fn set_pipeline(&self, so_far: &mut Message) -> capnp::Result<()> {
        if self.flight.stale().is_some() {
            return Ok(());
        }
        let source = so_far.reader()?;
        let words = source.target_size()?.word_count;
        self.flight.route().fits(|| Ok(words))?;
        let mut early = Message::copy_of(source, words)?;
        self.flight.route().outward(&mut early.caps);
        let early = Rc::new(early);
        let pending = {
            let mut progress = self.progress.borrow_mut();
            if progress.early.is_some() {
                return Err(Error::failed("set_pipeline() called twice".into()));
            }
            progress.early = Some(early.clone());
            std::mem::take(&mut progress.pending)
        };
        for pending in pending.iter().filter_map(Weak::upgrade) {
            pending.resolve(pick(&Ok(early.clone()), pending.ops()));
        }
        Ok(())
    }
}

impl Cut for Call {
    fn begun(&self) -> u64 {
        self.flight.begun()
    }

    fn cut(&self, error: &Error) {
        self.flight.cut(error);
        let progress = std::mem::take(&mut *self.progress.borrow_mut());
        let told = self.flight.route().told(error.clone());
        for pending in progress.pending.iter().filter_map(Weak::upgrade) {
            pending.resolve(broken(&told));
        }
    }

    fn wake(&self) {
        self.flight.wake();
    }
}

fn pick(answer: &Result<Rc<Message>, Error>, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
    let found = match answer {
        Ok(results) => results
            .reader()
            .and_then(|root| root.get_pipelined_cap(ops)),
        Err(error) => Err(error.clone()),
    };
    found.unwrap_or_else(|error| broken(&error))
}

struct Responding(Rc<Call>);

impl Future for Responding {
    type Output = Result<Response<any_pointer::Owned>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0
            .drive(cx)
            .map_ok(|results| Response::new(Box::new(Answer(results))))
    }
}

struct Pipeline(Rc<Call>);

impl PipelineHook for Pipeline {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Pipeline(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.pipelined(ops.to_vec())
    }

    fn get_pipelined_cap_move(&self, ops: Vec<PipelineOp>) -> Box<dyn ClientHook> {
        self.0.pipelined(ops)
    }
}
