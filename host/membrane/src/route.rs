//! The way of one call: the walls it crosses, in order, and where it ends.
//!
//! In: the wrapper a call is made on.
//! Promise: each wall on the way is asked and has allowed the call; params are wrapped by all of them on the way in and
//! results on the way out, in one pass, however many membranes are nested.
//! Failure: the first wall that refuses, or has been revoked, answers for all.

use crate::error;
use crate::policy::{CallInfo, Expiry, Verdict};
use crate::wall::{Cut, broken};
use crate::wrapper::{Cap, Passing, Wrapped};
use capnp::Error;
use capnp::private::capability::ClientHook;
use capnp::private::layout::CapTable;
use futures::future::{Either, select};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The wrappers passed through, each at its wall, from the caller's to the callee's.
pub(crate) struct Route {
    /// So that one membrane in another takes no allocation.
    near: [Option<Leg>; 2],
    far: Vec<Leg>,
    /// How many there are.
    length: usize,
    /// How many of them the call crosses: fewer than all, if a policy redirects it.
    crossed: Cell<usize>,
    /// What the walls that the call crosses demand, once it is admitted.
    exchanges: Cell<bool>,
    words_max: Cell<u64>,
    /// What cuts the call before its answer.
    expiry: Cell<Option<Expiry>>,
}

struct Leg {
    wrapped: Rc<Wrapped>,
    /// Where the flight on this route is registered at the wall, while it is.
    berth: Cell<usize>,
}

impl Leg {
    fn new(wrapped: Rc<Wrapped>) -> Leg {
        Leg {
            wrapped,
            berth: Cell::new(0),
        }
    }
}

impl Route {
    /// From a caller to a callee on its own side.
    pub(crate) fn none() -> Route {
        Route {
            near: [None, None],
            far: Vec::new(),
            length: 0,
            crossed: Cell::new(0),
            exchanges: Cell::new(false),
            words_max: Cell::new(u64::MAX),
            expiry: Cell::default(),
        }
    }

    /// Across the outermost wall only.
    pub(crate) fn across(wrapped: &Rc<Wrapped>) -> Route {
        Route {
            near: [Some(Leg::new(wrapped.clone())), None],
            length: 1,
            crossed: Cell::new(1),
            ..Route::none()
        }
    }

    /// All the way from the holder of `wrapped` to the callee.
    pub(crate) fn through(wrapped: &Rc<Wrapped>) -> Result<(Route, Rc<dyn ClientHook>), Error> {
        let mut route = Route::across(wrapped);
        let mut target = wrapped.target()?;
        loop {
            match target {
                Cap::Other(hook) => return Ok((route, hook)),
                Cap::Wrapper(within) => {
                    target = match within.target() {
                        Ok(further) => further,
                        Err(error) => return Err(route.told(error)),
                    };
                    route.extend(Leg::new(within));
                }
            }
        }
    }

    fn extend(&mut self, leg: Leg) {
        match self.near.get_mut(self.length) {
            Some(place) => *place = Some(leg),
            None => self.far.push(leg),
        }
        self.length += 1;
        self.crossed.set(self.length);
    }

    /// The first `length` of them.
    fn legs(&self, length: usize) -> impl DoubleEndedIterator<Item = &Leg> {
        (0..length).filter_map(|at| match self.near.get(at) {
            Some(leg) => leg.as_ref(),
            None => self.far.get(at - self.near.len()),
        })
    }

    /// Registers the flight on this route at every wall on it.
    pub(crate) fn board(&self, flight: &Rc<dyn Cut>) {
        for leg in self.legs(self.length) {
            leg.berth
                .set(leg.wrapped.wall().board(Rc::downgrade(flight)));
        }
    }

    /// Undoes [`board`](Route::board).
    pub(crate) fn leave(&self) {
        for leg in self.legs(self.length) {
            leg.wrapped.wall().leave(leg.berth.get());
        }
    }

    /// Asks every wall on the way about a call to `callee`; returns where it is to go.
    pub(crate) fn admit(
        &self,
        callee: Rc<dyn ClientHook>,
        interface_id: u64,
        method_id: u16,
    ) -> Result<Rc<dyn ClientHook>, Error> {
        let mut callee = callee;
        for (passed, wrapped) in self.walls().enumerate() {
            let wall = wrapped.wall();
            if wall.exchanges() {
                self.exchanges.set(true);
            }
            self.words_max
                .set(self.words_max.get().min(wall.words_max()));
            let call = CallInfo::new(wrapped.callee(), interface_id, method_id);
            match wall.policy()?.check(&call) {
                Verdict::Allow => {}
                Verdict::AllowUntil(expiry) => self.expire_by(expiry),
                Verdict::Deny(error) => return Err(self.stale().unwrap_or(error)),
                Verdict::Redirect(hook) => {
                    callee = Rc::from(hook);
                    self.crossed.set(passed + 1);
                    break;
                }
            }
        }
        // A policy may have revoked a wall, even one that had allowed the call.
        match self.stale() {
            Some(error) => Err(error),
            None => Ok(callee),
        }
    }

    fn expire_by(&self, expiry: Expiry) {
        let sooner: Expiry = match self.expiry.take() {
            None => expiry,
            Some(other) => Box::pin(async move {
                match select(other, expiry).await {
                    Either::Left((error, _)) | Either::Right((error, _)) => error,
                }
            }),
        };
        self.expiry.set(Some(sooner));
    }

    /// Whether the call is to be cut before its answer, and with which error.
    pub(crate) fn expired(&self, cx: &mut Context<'_>) -> Option<Error> {
        let mut expiry = self.expiry.take()?;
        match expiry.as_mut().poll(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => {
                self.expiry.set(Some(expiry));
                None
            }
        }
    }

    /// The call has ended.
    pub(crate) fn end(&self) {
        drop(self.expiry.take());
    }

    /// Whether what comes with the answer may have to be exchanged. A promise for it that a connection gives may never tell that it
    /// has settled, so what is pipelined waits for the answer itself.
    pub(crate) fn exchanges(&self) -> bool {
        self.exchanges.get()
    }

    /// Whether results may cross to the caller.
    pub(crate) fn results(&self, words: impl FnOnce() -> Result<u64, Error>) -> Result<(), Error> {
        self.fits(words)?;
        self.crossings()
            .rev()
            .try_for_each(|wrapped| match wrapped.wall().answers() {
                Some(policy) => policy.results(wrapped.callee()),
                None => Ok(()),
            })
    }

    /// What the caller is told of an error from beyond the walls that still stand.
    pub(crate) fn told(&self, error: Error) -> Error {
        self.crossings()
            .rev()
            .fold(error, |error, wrapped| match wrapped.wall().answers() {
                Some(policy) => policy.error(wrapped.callee(), error),
                None => error,
            })
    }

    /// Refuses a message that is too large for one of the walls it crosses. Measures only if there is a bound.
    pub(crate) fn fits(&self, words: impl FnOnce() -> Result<u64, Error>) -> Result<(), Error> {
        let bound = self.words_max.get();
        if bound == u64::MAX {
            return Ok(());
        }
        let words = words()?;
        match words <= bound {
            true => Ok(()),
            false => Err(error::denied(&format!(
                "a message of {words} words is over the bound of {bound}"
            ))),
        }
    }

    /// Every wrapper on the way, crossed or not.
    pub(crate) fn walls(&self) -> impl DoubleEndedIterator<Item = &Rc<Wrapped>> {
        self.legs(self.length).map(|leg| &leg.wrapped)
    }

    pub(crate) fn crossings(&self) -> impl DoubleEndedIterator<Item = &Rc<Wrapped>> {
        self.legs(self.crossed.get()).map(|leg| &leg.wrapped)
    }

    /// The error of the first revoked wall on the way, if there is one.
    pub(crate) fn stale(&self) -> Option<Error> {
        self.walls()
            .find_map(|wrapped| wrapped.wall().stale().cloned())
    }

    /// Wraps what goes with the call, from the caller to the callee.
    pub(crate) fn inward(&self, caps: &mut CapTable) {
        for cap in caps {
            *cap = cap.take().map(|hook| {
                let crossed = self.crossings().fold(Cap::Other(hook), |cap, wrapped| {
                    wrapped.wall().pass(cap, wrapped.callee().other())
                });
                crossed.into_hook()
            });
        }
    }

    /// Wraps what comes with the answer, from the callee to the caller.
    pub(crate) fn outward(&self, caps: &mut CapTable) {
        for cap in caps {
            *cap = cap.take().map(|hook| self.out(hook));
        }
    }

    /// Wraps one capability of the callee's side for the caller.
    pub(crate) fn outward_one(&self, hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        match self.stale() {
            Some(error) => broken(&error),
            None => self.out(hook),
        }
    }

    fn out(&self, hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        let crossings = self.crossings().rev();
        let crossed: Passing = crossings.fold(Cap::Other(hook), |cap, wrapped| {
            wrapped.wall().pass(cap, wrapped.callee())
        });
        crossed.into_hook()
    }
}
