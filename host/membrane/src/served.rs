//! A call that arrives with its own params and results: from a connection, or from a promise that has resolved.
//!
//! In: the caller's params, and the results to be filled in.
//! Promise: params without capabilities pass uncopied, others are copied and wrapped; results are wrapped and copied
//! out once, when the callee has finished with them. Nothing happens before the first poll, as the caller may be in the
//! middle of something; the policy is asked then.
//! Failure: revocation lets go of params, results and callee at once, so the caller's connection can answer at once.

use crate::chain::Depth;
use crate::flight::Flight;
use crate::message::Message;
use crate::results::{Recipient, Results};
use crate::route::Route;
use crate::wall::Cut;
use crate::wrapper::Wrapped;
use capnp::Error;
use capnp::capability::Promise;
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

pub(crate) struct Served {
    flight: Flight<()>,
    progress: RefCell<Progress>,
}

#[derive(Default)]
struct Progress {
    start: Option<Start>,
    /// The caller's results.
    outer: Option<Box<dyn ResultsHook>>,
    /// What was in them when they were offered to pipelined calls.
    early: Option<Early>,
    returned: bool,
    delivered: Option<Message>,
}

struct Start {
    callee: Rc<dyn ClientHook>,
    interface_id: u64,
    method_id: u16,
    params: Box<dyn ParamsHook>,
}

struct Early {
    bytes: Vec<u8>,
    holds_caps: bool,
}

impl Served {
    /// The promise for a call on `wrapped`.
    pub(crate) fn promise(
        wrapped: &Rc<Wrapped>,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let (route, callee) = match Route::through(wrapped) {
            Ok(way) => way,
            Err(error) => return Promise::err(error),
        };
        let served = Rc::new(Served {
            flight: Flight::new(route),
            progress: RefCell::new(Progress {
                start: Some(Start {
                    callee,
                    interface_id,
                    method_id,
                    params,
                }),
                outer: Some(results),
                ..Progress::default()
            }),
        });
        let whole: Rc<dyn Cut> = served.clone();
        served.flight.board(&whole);
        Promise::from_future(Serving(served))
    }

    fn begin(self: &Rc<Self>, start: Start) -> Result<(), Error> {
        let Start {
            callee,
            interface_id,
            method_id,
            params,
        } = start;
        let route = self.flight.route();
        let callee = route.admit(callee, interface_id, method_id)?;
        let source = params.get()?;
        let size = source.target_size()?;
        route.fits(|| Ok(size.word_count))?;
        let params = if size.cap_count == 0 {
            params
        } else {
            let mut copy = Message::copy_of(source, size.word_count)?;
            route.inward(&mut copy.caps);
            Box::new(copy)
        };
        self.flight.count();
        let recipient: Weak<Served> = Rc::downgrade(self);
        let results = Box::new(Results::new(recipient));
        self.flight
            .embark(callee.call(interface_id, method_id, params, results));
        Ok(())
    }

    fn drive(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = self.flight.stale() {
            return Poll::Ready(Err(self.flight.route().told(error.clone())));
        }
        let start = self.progress.borrow_mut().start.take();
        if let Some(start) = start {
            self.begin(start)?;
        }
        let returned = self.progress.borrow().returned;
        if !returned {
            match self.flight.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome.map_err(|e| self.flight.route().told(e))?,
            }
            self.progress.borrow_mut().returned = true;
        }
        let delivered = self.progress.borrow_mut().delivered.take();
        match delivered {
            Some(results) => Poll::Ready(self.copy_out(results)),
            None => self.flight.listen(cx).map(Err),
        }
    }

    fn copy_out(&self, mut results: Message) -> Result<(), Error> {
        let (outer, early) = {
            let mut progress = self.progress.borrow_mut();
            (progress.outer.take(), progress.early.take())
        };
        let mut outer = outer.expect("only the end of the call takes the caller's results");
        match early {
            Some(early) if early.bytes == results.bytes() => Ok(()),
            // capnp cannot overwrite a pointer to what holds capabilities.
            Some(Early {
                holds_caps: true, ..
            }) => Err(Error::failed(
                "results that hold capabilities were changed after set_pipeline()".into(),
            )),
            _ => {
                let route = self.flight.route();
                route.results(|| results.words())?;
                route.outward(&mut results.caps);
                outer.get()?.set_as(results.reader()?)
            }
        }
    }
}

impl Recipient for Served {
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
        let outer = {
            let mut progress = self.progress.borrow_mut();
            if progress.early.is_some() {
                return Err(Error::failed("set_pipeline() called twice".into()));
            }
            progress.outer.take()
        };
        let Some(mut outer) = outer else {
            return Ok(());
        };
        let source = so_far.reader()?;
        let size = source.target_size()?;
        self.flight.route().fits(|| Ok(size.word_count))?;
        let mut copy = Message::copy_of(source, size.word_count)?;
        self.flight.route().outward(&mut copy.caps);
        outer.get()?.set_as(copy.reader()?)?;
        outer.set_pipeline()?;
        let early = Early {
            bytes: so_far.bytes(),
            holds_caps: size.cap_count > 0,
        };
        // If that revoked a wall, nobody waits for the results any more.
        if self.flight.stale().is_none() {
            let mut progress = self.progress.borrow_mut();
            progress.early = Some(early);
            progress.outer = Some(outer);
        }
        Ok(())
    }
}

impl Cut for Served {
    fn begun(&self) -> u64 {
        self.flight.begun()
    }

    fn cut(&self, error: &Error) {
        self.flight.cut(error);
        let progress = std::mem::take(&mut *self.progress.borrow_mut());
        drop(progress);
    }

    fn wake(&self) {
        self.flight.wake();
    }
}

struct Serving(Rc<Served>);

impl Future for Serving {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match Depth::enter() {
            Ok(_depth) => self.0.drive(cx),
            Err(error) => Poll::Ready(Err(error)),
        };
        if outcome.is_ready() {
            self.0.flight.leave();
            let progress = std::mem::take(&mut *self.0.progress.borrow_mut());
            drop(progress);
        }
        outcome
    }
}
