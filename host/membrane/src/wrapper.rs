//! A capability as the other side holds it.
//!
//! In: a capability of one side and the wall it crosses.
//! Promise: it behaves as the capability does, save that all that passes through it is wrapped in turn, and that after
//! revocation it holds nothing and fails everything as stale.
//! Failure: see [`Wall`]; what the capability itself answers passes unchanged.

use crate::chain::Search;
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
    /// Its place at its wall.
    berth: Cell<usize>,
    /// How many walls there are about the capability, this one included.
    walls: u32,
    target: RefCell<Option<Target>>,
    cover: Cell<Option<Cover>>,
    /// Whether there has been more than one wrapper around this one. Their walls know the others.
    crowded: Cell<bool>,
}

/// A capability, told apart from the wrappers, of whatever wall.
#[derive(Clone)]
pub(crate) enum Cap<Hook> {
    Wrapper(Rc<Wrapped>),
    Other(Hook),
}

/// What is wrapped: something that anybody may hold on to while it is called.
pub(crate) type Target = Cap<Rc<dyn ClientHook>>;

/// What crosses. A wrapper is known to stand for nothing that has resolved.
pub(crate) type Passing = Cap<Box<dyn ClientHook>>;

/// The wrapper around a wrapper. Noted on the inner one, it need not be looked up in its wall's table.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cover {
    /// The brand of its wall. As the note goes before it does, no other wall has that brand.
    brand: usize,
    lives: Side,
    berth: usize,
}

impl Passing {
    pub(crate) fn into_hook(self) -> Box<dyn ClientHook> {
        match self {
            Cap::Wrapper(wrapped) => Box::new(Wrapper(wrapped)),
            Cap::Other(hook) => hook,
        }
    }
}

impl Target {
    fn get_resolved(self) -> Option<Box<dyn ClientHook>> {
        match self {
            Cap::Wrapper(wrapped) => Wrapper(wrapped).get_resolved(),
            Cap::Other(hook) => hook.get_resolved(),
        }
    }

    fn when_more_resolved(self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        match self {
            Cap::Wrapper(wrapped) => Wrapper(wrapped).when_more_resolved(),
            Cap::Other(hook) => hook.when_more_resolved(),
        }
    }
}

impl Wrapped {
    pub(crate) fn new(wall: Rc<Wall>, identity: Identity, target: Target) -> Rc<Wrapped> {
        let walls = 1 + match &target {
            Cap::Wrapper(within) => within.walls,
            Cap::Other(_) => 0,
        };
        Rc::new(Wrapped {
            wall,
            identity,
            berth: Cell::new(0),
            walls,
            target: RefCell::new(Some(target)),
            cover: Cell::new(None),
            crowded: Cell::new(false),
        })
    }

    /// How many walls there are about the capability.
    pub(crate) fn walls(&self) -> u32 {
        self.walls
    }

    /// Its wall has given it `berth`.
    pub(crate) fn board(&self, berth: usize) {
        self.berth.set(berth);
    }

    pub(crate) fn berth(&self) -> usize {
        self.berth.get()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where `wall` has the wrapper around this one, if that is noted.
    pub(crate) fn cover(&self, wall: &Wall, lives: Side) -> Option<usize> {
        let cover = self.cover.get()?;
        (cover.brand == wall.brand() && cover.lives == lives).then_some(cover.berth)
    }

    /// Whether there may be wrappers around this one that are not noted.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.get()
    }

    /// Notes this one on `within`, which it wraps, if there is room.
    pub(crate) fn note_on(&self, within: &Wrapped) -> bool {
        if within.cover.get().is_some() {
            within.crowded.set(true);
            return false;
        }
        within.cover.set(Some(self.as_cover()));
        true
    }

    fn as_cover(&self) -> Cover {
        Cover {
            brand: self.wall.brand(),
            lives: self.identity.lives,
            berth: self.berth.get(),
        }
    }

    /// Takes the note of this one off what it wraps; tells whether there was one.
    fn uncover(&self, target: &Target) -> bool {
        match target {
            Cap::Wrapper(within) if within.cover.get() == Some(self.as_cover()) => {
                within.cover.set(None);
                true
            }
            Cap::Wrapper(_) | Cap::Other(_) => false,
        }
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
    pub(crate) fn home(&self) -> Result<Passing, Error> {
        Ok(match self.target()? {
            Cap::Wrapper(wrapped) => Cap::Wrapper(wrapped),
            Cap::Other(hook) => Cap::Other(hook.add_ref()),
        })
    }

    pub(crate) fn revoke(&self) {
        let target = self.target.take();
        if let Some(target) = &target {
            self.uncover(target);
        }
        drop(target);
    }

    fn wrap(&self, hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        self.wall.cross(hook, self.callee())
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        let noted = match &*self.target.borrow() {
            Some(target) => self.uncover(target),
            None => return,
        };
        self.wall.forget(self, noted);
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
        let resolved = self.0.target().ok()?.get_resolved()?;
        Some(self.0.wrap(resolved))
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        let target = self.0.target().ok()?;
        // First, as a promise client of capnp-rpc that has resolved wakes nobody any more.
        if let Some(resolved) = target.clone().get_resolved() {
            return Some(Promise::ok(self.0.wrap(resolved)));
        }
        let resolution = target.when_more_resolved()?;
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

/// The pointer of `hook`, and what it wraps, if it is a wrapper of any wall of this thread.
///
/// A `dyn ClientHook` cannot be downcast, so the wrapper is asked, through a call it answers anyway, to step forward. A
/// hook that passes both `get_ptr` and `get_brand` on to a wrapper claims to be that wrapper, and is taken at its word.
pub(crate) fn reveal(hook: &dyn ClientHook, brand: usize) -> (usize, Option<Rc<Wrapped>>) {
    if brand == 0 {
        return (hook.get_ptr(), None);
    }
    ASKED.set(true);
    let ptr = hook.get_ptr();
    ASKED.set(false);
    let wrapped = REVEALED.take();
    (ptr, wrapped.filter(|wrapped| wrapped.wall.brand() == brand))
}
