//! Something that waits for the other side, and that revocation or a policy cuts.
//!
//! In: a promise of the other side and the walls it was made across.
//! Promise: polled by anyone it concerns, it makes progress for all of them; cut, it drops the promise on the spot and
//! then wakes them; dropped, it leaves no trace at the walls.
//! Failure: once cut, every poll answers with the stale error of the wall that cut it, or with the error of the policy that did.

use crate::route::Route;
use crate::wall::Cut;
use capnp::Error;
use capnp::capability::Promise;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

thread_local! {
    static POLLS: Cell<u64> = const { Cell::new(0) };
}

pub(crate) struct Flight<T: 'static> {
    route: Route,
    boarded: Cell<bool>,
    counted: Cell<bool>,
    begun: Cell<u64>,
    work: RefCell<Work<T>>,
    bell: RefCell<Bell>,
    stale: OnceCell<Error>,
}

enum Work<T> {
    Waiting(Promise<T, Error>),
    /// Taken out while it is being polled, so that the callee may revoke.
    Polling,
    Over,
}

impl<T: 'static> Flight<T> {
    /// A flight of which nothing waits yet.
    pub(crate) fn new(route: Route) -> Flight<T> {
        Flight {
            route,
            boarded: Cell::new(false),
            counted: Cell::new(false),
            begun: Cell::new(0),
            work: RefCell::new(Work::Over),
            bell: RefCell::default(),
            stale: OnceCell::new(),
        }
    }

    /// Waits for `promise`, which is not a call, and wants nothing but its outcome.
    pub(crate) fn wait(route: Route, promise: Promise<T, Error>) -> Rc<Flight<T>> {
        let flight = Rc::new(Flight::new(route));
        flight.embark(promise);
        flight.board(&(flight.clone() as Rc<dyn Cut>));
        flight
    }

    /// As [`wait`](Flight::wait), for a call.
    pub(crate) fn call(route: Route, promise: Promise<T, Error>) -> Rc<Flight<T>> {
        let flight = Self::wait(route, promise);
        flight.count();
        flight
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Gives it what it waits for.
    pub(crate) fn embark(&self, promise: Promise<T, Error>) {
        // If what made the promise revoked a wall, the promise goes at once.
        if self.stale.get().is_none() {
            *self.work.borrow_mut() = Work::Waiting(promise);
        }
    }

    /// Registers `whole`, which this flight is a part of, at every wall on the route.
    pub(crate) fn board(&self, whole: &Rc<dyn Cut>) {
        self.route.board(whole);
        self.boarded.set(true);
        if let Some(error) = self.route.stale() {
            // Too late for the revocation to have seen it.
            whole.cut(&error);
        }
    }

    /// From here on this is a call in flight.
    pub(crate) fn count(&self) {
        if self.stale.get().is_none() && !self.counted.replace(true) {
            for wrapped in self.route.crossings() {
                wrapped.wall().call_began();
            }
        }
    }

    /// The call has its answer, or will never have one.
    pub(crate) fn uncount(&self) {
        if self.counted.replace(false) {
            for wrapped in self.route.crossings() {
                wrapped.wall().call_ended();
            }
        }
        self.route.end();
    }

    /// Nothing of the other side is left to cut.
    pub(crate) fn leave(&self) {
        self.uncount();
        if self.boarded.replace(false) {
            self.route.leave();
        }
    }

    /// The error it was cut with, if it was.
    pub(crate) fn stale(&self) -> Option<&Error> {
        self.stale.get()
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        if self.begun.get() == 0 {
            let now = POLLS.get() + 1;
            POLLS.set(now);
            self.begun.set(now);
        }
        let work = std::mem::replace(&mut *self.work.borrow_mut(), Work::Polling);
        let mut promise = match work {
            Work::Waiting(promise) => promise,
            Work::Polling => {
                // Its own callee asks, from within the poll that will go on.
                self.bell.borrow_mut().shared(cx.waker());
                return Poll::Pending;
            }
            Work::Over => {
                *self.work.borrow_mut() = Work::Over;
                return match self.stale.get() {
                    Some(error) => Poll::Ready(Err(error.clone())),
                    None => Poll::Pending,
                };
            }
        };
        let shared = self.bell.borrow_mut().admit(cx.waker());
        let outcome = match &shared {
            Some(waker) => Pin::new(&mut promise).poll(&mut Context::from_waker(waker)),
            None => Pin::new(&mut promise).poll(cx),
        };
        if let Some(error) = self.stale.get() {
            return Poll::Ready(Err(error.clone()));
        }
        if outcome.is_pending() {
            *self.work.borrow_mut() = Work::Waiting(promise);
            if shared.is_none() && self.bell.borrow().is_shared() {
                // Somebody joined during the poll: poll once more, for both.
                cx.waker().wake_by_ref();
            }
            let expired = match &shared {
                Some(waker) => self.expire(&mut Context::from_waker(waker)),
                None => self.expire(cx),
            };
            if let Some(error) = expired {
                return Poll::Ready(Err(error));
            }
        } else {
            *self.work.borrow_mut() = Work::Over;
        }
        outcome
    }

    /// Cuts it, if it is to wait no longer; then says with which error.
    fn expire(&self, cx: &mut Context<'_>) -> Option<Error> {
        let error = self.route.expired(cx)?;
        self.cut(&error);
        // Polling may have revoked a wall, and then that was first.
        self.stale.get().cloned()
    }

    /// What it waited for has come, and more is to come: has whoever polls woken by that. Ready only with an error: it is to wait no
    /// longer.
    pub(crate) fn listen(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let shared = self.bell.borrow_mut().admit(cx.waker());
        let expired = match &shared {
            Some(waker) => self.expire(&mut Context::from_waker(waker)),
            None => self.expire(cx),
        };
        expired.map_or(Poll::Pending, Poll::Ready)
    }

    /// Lets everyone who has polled poll again.
    pub(crate) fn wake(&self) {
        let bell = std::mem::take(&mut *self.bell.borrow_mut());
        bell.ring();
    }

    /// As [`wake`](Flight::wake), from within the poll of the only one who waits, if it is the only one.
    pub(crate) fn wake_others(&self) {
        if self.bell.borrow().is_shared() {
            self.wake();
        }
    }

    /// Drops the promise; whoever waited for it has gone.
    pub(crate) fn abandon(&self) {
        self.uncount();
        let work = std::mem::replace(&mut *self.work.borrow_mut(), Work::Over);
        drop(work);
    }
}

impl<T: 'static> Cut for Flight<T> {
    fn begun(&self) -> u64 {
        self.begun.get()
    }

    fn cut(&self, error: &Error) {
        // A second wall on the route may be revoked by what the first one's revocation drops.
        if self.stale.set(error.clone()).is_ok() {
            self.leave();
            let work = std::mem::replace(&mut *self.work.borrow_mut(), Work::Over);
            drop(work);
        }
    }

    fn wake(&self) {
        Flight::wake(self);
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A flight that wants nothing but its promise's outcome.
pub(crate) struct Waiting<T: 'static>(pub(crate) Rc<Flight<T>>);

impl<T: 'static> Future for Waiting<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.0.poll(cx);
        if outcome.is_ready() {
            self.0.leave();
        }
        outcome
    }
}

/// Who is to be woken. One task is the rule; with several, each may be the one that polled last, so all are woken.
#[derive(Default)]
enum Bell {
    #[default]
    Silent,
    One(Waker),
    Many(Arc<Chime>),
}

impl Bell {
    /// Adds `waker`; returns what to poll with instead of it, if others wait too.
    fn admit(&mut self, waker: &Waker) -> Option<Waker> {
        match self {
            Bell::Silent => {
                *self = Bell::One(waker.clone());
                None
            }
            Bell::One(known) if known.will_wake(waker) => None,
            Bell::One(_) | Bell::Many(_) => Some(Waker::from(self.shared(waker))),
        }
    }

    fn shared(&mut self, waker: &Waker) -> Arc<Chime> {
        let chime = match std::mem::take(self) {
            Bell::Silent => Arc::new(Chime::default()),
            Bell::One(known) => Arc::new(Chime(Mutex::new(vec![known]))),
            Bell::Many(chime) => chime,
        };
        chime.add(waker);
        *self = Bell::Many(chime.clone());
        chime
    }

    fn is_shared(&self) -> bool {
        matches!(self, Bell::Many(_))
    }

    fn ring(self) {
        match self {
            Bell::Silent => {}
            Bell::One(waker) => waker.wake(),
            Bell::Many(chime) => chime.wake(),
        }
    }
}

#[derive(Default)]
struct Chime(Mutex<Vec<Waker>>);

impl Chime {
    fn add(&self, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }
}

impl Wake for Chime {
    fn wake(self: Arc<Self>) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in wakers {
            waker.wake();
        }
    }
}
