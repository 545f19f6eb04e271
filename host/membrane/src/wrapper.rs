//! A capability as the other side holds it.
//!
//! In: a capability of one side and the wall it crosses.
//! Promise: it behaves as the capability does, save that all that passes through it is wrapped in turn, and that after
//! revocation it holds nothing and fails everything as stale.
//! Failure: see [`Wall`]; what the capability itself answers passes unchanged.

use crate::chain::{Search, WALLS_MAX};
use crate::error;
use crate::flight::{Flight, Waiting};
use crate::policy::Side;
use crate::request::Request;
use crate::route::Route;
use crate::served::Served;
use crate::wall::{Identity, Wall};
use capnp::capability::Promise;
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub(crate) struct Wrapped {
    wall: Rc<Wall>,
    identity: Identity,
    berth: Cell<usize>,
    /// How many walls there are about the capability, this one included.
    walls: u32,
    target: RefCell<Option<Target>>,
}

#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) hook: Rc<dyn ClientHook>,
    /// What `hook` wraps, if it is itself a wrapper, of another wall.
    pub(crate) within: Option<Rc<Wrapped>>,
}

impl Wrapped {
    pub(crate) fn new(
        wall: Rc<Wall>,
        identity: Identity,
        hook: Box<dyn ClientHook>,
    ) -> Result<Rc<Wrapped>, Error> {
        let within = if identity.brand == 0 {
            None
        } else {
            reveal(&*hook)
        };
        let walls = 1 + within.as_ref().map_or(0, |within| within.walls);
        if walls > WALLS_MAX {
            return Err(error::denied(&format!(
                "a capability was passed through {WALLS_MAX} membranes and never came home"
            )));
        }
        let target = Target {
            hook: Rc::from(hook),
            within,
        };
        Ok(Rc::new(Wrapped {
            wall,
            identity,
            berth: Cell::new(0),
            walls,
            target: RefCell::new(Some(target)),
        }))
    }

    /// Its wall has given it `berth`.
    pub(crate) fn berth(&self, berth: usize) {
        self.berth.set(berth);
    }

    pub(crate) fn wall(&self) -> &Rc<Wall> {
        &self.wall
    }

    /// The side the capability lives on.
    pub(crate) fn callee(&self) -> Side {
        self.identity.lives
    }

    pub(crate) fn target(&self) -> Result<Target, Error> {
        match self.wall.stale() {
            Some(error) => Err(error.clone()),
            // The clone ends the borrow: what is done with the target may revoke the wall.
            None => Ok(self
                .target
                .borrow()
                .clone()
                .expect("only revocation takes the target")),
        }
    }

    /// The capability itself, for its own side.
    pub(crate) fn home(&self) -> Result<Box<dyn ClientHook>, Error> {
        Ok(self.target()?.hook.add_ref())
    }

    pub(crate) fn revoke(&self) {
        drop(self.target.take());
    }

    fn wrap(&self, hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        self.wall.cross(hook, self.callee())
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        self.wall.forget(&self.identity, self.berth.get());
    }
}

/// The hook that clients hold.
pub(crate) struct Wrapper(pub(crate) Rc<Wrapped>);

impl ClientHook for Wrapper {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Wrapper(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> capnp::capability::Request<any_pointer::Owned, any_pointer::Owned> {
        capnp::capability::Request::new(Box::new(Request::new(
            self.0.clone(),
            interface_id,
            method_id,
            size_hint,
        )))
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        Served::promise(&self.0, interface_id, method_id, params, results)
    }

    fn get_brand(&self) -> usize {
        self.0.wall.brand()
    }

    fn get_ptr(&self) -> usize {
        if ASKED.get() {
            REVEALED.with_borrow_mut(|revealed| *revealed = Some(self.0.clone()));
        }
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        let search = Search::begin();
        if !search.step() {
            return None;
        }
        let resolved = self.0.target().ok()?.hook.get_resolved()?;
        Some(self.0.wrap(resolved))
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        let target = self.0.target().ok()?;
        // First, as a promise client of capnp-rpc that has resolved wakes nobody any more.
        if let Some(resolved) = target.hook.get_resolved() {
            return Some(Promise::ok(self.0.wrap(resolved)));
        }
        let resolution = target.hook.when_more_resolved()?;
        let waiting = Flight::wait(Route::across(&self.0), resolution);
        let wrapped = self.0.clone();
        Some(Promise::from_future(async move {
            let resolved = Waiting(waiting).await?;
            Ok(wrapped.wrap(resolved))
        }))
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        let Some(mut next) = self.when_more_resolved() else {
            return Promise::ok(());
        };
        Promise::from_future(async move {
            loop {
                match next.await?.when_more_resolved() {
                    Some(further) => next = further,
                    None => return Ok(()),
                }
            }
        })
    }
}

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static REVEALED: RefCell<Option<Rc<Wrapped>>> = const { RefCell::new(None) };
}

/// What `hook` wraps, if it is a wrapper of any wall of this thread.
///
/// A `dyn ClientHook` cannot be downcast, so the wrapper is asked, through a call it answers anyway, to step forward. A
/// hook that passes `get_ptr` on to a wrapper claims to be that wrapper, and is taken at its word.
pub(crate) fn reveal(hook: &dyn ClientHook) -> Option<Rc<Wrapped>> {
    ASKED.set(true);
    hook.get_ptr();
    ASKED.set(false);
    REVEALED.take()
}
