//! The way of one call: the walls it crosses, in order, and where it ends.
//!
//! In: the wrapper a call is made on.
//! Promise: each wall on the way is asked and has allowed the call; params are wrapped by all of them on the way in and
//! results on the way out, in one pass, however many membranes are nested.
//! Failure: the first wall that refuses, or has been revoked, answers for all.

use crate::error;
use crate::policy::{CallInfo, Expiry, Verdict};
use crate::wall::{Wall, broken};
use crate::wrapper::Wrapped;
use capnp::Error;
use capnp::private::capability::ClientHook;
use capnp::private::layout::CapTable;
use futures::future::{Either, select};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The wrappers passed through, each at its wall, from the caller's to the callee's.
pub(crate) struct Route {
    first: Option<Rc<Wrapped>>,
    /// Empty unless membranes are nested.
    further: Vec<Rc<Wrapped>>,
    /// How many of them the call crosses: fewer than all, if a policy redirects it.
    crossed: Cell<usize>,
    /// What cuts the call before its answer.
    expiry: Cell<Option<Expiry>>,
}

impl Route {
    /// From a caller to a callee on its own side.
    pub(crate) fn none() -> Route {
        Route {
            first: None,
            further: Vec::new(),
            crossed: Cell::new(0),
            expiry: Cell::default(),
        }
    }

    /// Across the outermost wall only.
    pub(crate) fn across(wrapped: &Rc<Wrapped>) -> Route {
        Route {
            first: Some(wrapped.clone()),
            further: Vec::new(),
            crossed: Cell::new(1),
            expiry: Cell::default(),
        }
    }

    /// All the way from the holder of `wrapped` to the callee.
    pub(crate) fn through(wrapped: &Rc<Wrapped>) -> Result<(Route, Rc<dyn ClientHook>), Error> {
        let mut route = Route::across(wrapped);
        let mut target = wrapped.target()?;
        while let Some(within) = target.within {
            match within.target() {
                Ok(further) => target = further,
                Err(error) => return Err(route.told(error)),
            }
            route.further.push(within);
            route.crossed.set(1 + route.further.len());
        }
        Ok((route, target.hook))
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
            let call = CallInfo::new(wrapped.callee(), interface_id, method_id);
            match wrapped.wall().policy()?.check(&call) {
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
        self.crossings().any(|wrapped| wrapped.wall().exchanges())
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
        let bounds = self.crossings().map(|wrapped| wrapped.wall().words_max());
        let bound = bounds.min().unwrap_or(u64::MAX);
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
        self.first.iter().chain(&self.further)
    }

    pub(crate) fn crossings(&self) -> impl DoubleEndedIterator<Item = &Rc<Wrapped>> {
        let further = self.crossed.get().saturating_sub(1);
        self.first.iter().chain(&self.further[..further])
    }

    /// The error of the first revoked wall on the way, if there is one.
    pub(crate) fn stale(&self) -> Option<Error> {
        self.walls()
            .find_map(|wrapped| wrapped.wall().stale().cloned())
    }

    /// Wraps what goes with the call, from the caller to the callee.
    pub(crate) fn inward(&self, caps: &mut CapTable) {
        if caps.is_empty() {
            return;
        }
        for wrapped in self.crossings() {
            wrap_each(caps, wrapped.wall(), |wall, hook| {
                wall.cross(hook, wrapped.callee().other())
            });
        }
    }

    /// Wraps what comes with the answer, from the callee to the caller.
    pub(crate) fn outward(&self, caps: &mut CapTable) {
        if caps.is_empty() {
            return;
        }
        for wrapped in self.crossings().rev() {
            wrap_each(caps, wrapped.wall(), |wall, hook| {
                wall.cross(hook, wrapped.callee())
            });
        }
    }

    /// Wraps one capability of the callee's side for the caller.
    pub(crate) fn outward_one(&self, hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        match self.stale() {
            Some(error) => broken(&error),
            None => self.crossings().rev().fold(hook, |hook, wrapped| {
                wrapped.wall().cross(hook, wrapped.callee())
            }),
        }
    }
}

fn wrap_each(
    caps: &mut CapTable,
    wall: &Rc<Wall>,
    wrap: impl Fn(&Rc<Wall>, Box<dyn ClientHook>) -> Box<dyn ClientHook>,
) {
    for cap in caps {
        *cap = cap.take().map(|hook| wrap(wall, hook));
    }
}
