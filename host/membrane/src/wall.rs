//! One membrane: what has crossed it, what is in flight across it, and its end.
//!
//! In: capabilities to be wrapped, calls to be registered, and at most one revocation.
//! Promise: a live capability has one wrapper per side; revocation reaches every wrapper and every call there is, at
//! once and in one go, and nothing gets past it afterwards.
//! Failure: once revoked, whatever is asked of the wall is answered with the stale error that says why.
//!
//! A wall finds its wrapper of a capability in a table; that of another wall's wrapper by a note on it, as long as no
//! other wall has left one there. All its wrappers have a berth, by which revocation reaches them.
//!
//! No borrow of a `RefCell` here is held while foreign code runs: dropping a capability, a promise or a policy may run
//! any destructor, and that may call back in.

use crate::chain::{Depth, Search, WALLS_MAX};
use crate::error;
use crate::flight::{Flight, Waiting};
use crate::policy::{Exchange, Policy, Side};
use crate::route::Route;
use crate::wrapper::{Cap, Passing, Target, Wrapped, Wrapper, reveal};
use capnp::Error;
use capnp::capability::Promise;
use capnp::private::capability::ClientHook;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::{Rc, Weak};

/// What tells one capability from another: the side it lives on, its hook's brand, its hook's pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) lives: Side,
    pub(crate) brand: usize,
    pub(crate) ptr: usize,
}

/// Something in flight that revocation must cut.
pub(crate) trait Cut {
    /// When it was first polled, or 0: the order in which calls began to reach their callees.
    fn begun(&self) -> u64;
    /// Ends it with `error` and drops all it holds of the other side. Wakes nobody.
    fn cut(&self, error: &Error);
    /// Wakes whoever waits for it, after everything has been cut.
    fn wake(&self);
}

pub(crate) struct Wall {
    policy: RefCell<Option<Rc<dyn Policy>>>,
    exchanges: bool,
    words_max: u64,
    answers: bool,
    stale: OnceCell<Error>,
    /// Where the wrappers are, save those that are noted on the wrapper they wrap.
    known: RefCell<HashMap<Identity, usize, BuildHasherDefault<AddressHasher>>>,
    wrappers: RefCell<Berths<Weak<Wrapped>>>,
    flights: RefCell<Berths<Weak<dyn Cut>>>,
    calls: Cell<usize>,
}

impl Wall {
    pub(crate) fn new(policy: Rc<dyn Policy>) -> Rc<Wall> {
        Rc::new(Wall {
            exchanges: policy.exchanges(),
            words_max: policy.words_max(),
            answers: policy.answers(),
            policy: RefCell::new(Some(policy)),
            stale: OnceCell::new(),
            known: RefCell::default(),
            wrappers: RefCell::default(),
            flights: RefCell::default(),
            calls: Cell::new(0),
        })
    }

    /// The brand of this wall's wrappers. The brand of what is wrapped would make capnp-rpc take the wrapper for its own
    /// client.
    pub(crate) fn brand(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(crate) fn exchanges(&self) -> bool {
        self.exchanges
    }

    /// The policy, if it is asked about answers and has not been revoked.
    pub(crate) fn answers(&self) -> Option<Rc<dyn Policy>> {
        match self.answers {
            true => self.policy().ok(),
            false => None,
        }
    }

    pub(crate) fn words_max(&self) -> u64 {
        self.words_max
    }

    pub(crate) fn stale(&self) -> Option<&Error> {
        self.stale.get()
    }

    pub(crate) fn policy(&self) -> Result<Rc<dyn Policy>, Error> {
        match self.stale.get() {
            Some(error) => Err(error.clone()),
            None => Ok(self
                .policy
                .borrow()
                .clone()
                .expect("only revocation takes the policy")),
        }
    }

    /// `hook` lives on side `lives`; returns it as the other side may hold it: unwrapped if it comes home, else wrapped.
    pub(crate) fn cross(
        self: &Rc<Self>,
        hook: Box<dyn ClientHook>,
        lives: Side,
    ) -> Box<dyn ClientHook> {
        self.pass(Cap::Other(hook), lives).into_hook()
    }

    /// As [`cross`](Wall::cross), on the way across several walls.
    #[inline]
    pub(crate) fn pass(self: &Rc<Self>, cap: Passing, lives: Side) -> Passing {
        match cap {
            Cap::Wrapper(wrapped) => self.pass_wrapper(wrapped, lives),
            Cap::Other(hook) => self.pass_other(settled(hook), lives),
        }
    }

    fn pass_other(self: &Rc<Self>, hook: Box<dyn ClientHook>, lives: Side) -> Passing {
        let brand = hook.get_brand();
        let (ptr, wrapped) = reveal(&*hook, brand);
        if let Some(wrapped) = wrapped {
            return self.pass_wrapper(wrapped, lives);
        }
        // Asked only now, as a capability that was asked may have revoked.
        if let Some(error) = self.stale.get() {
            return Cap::Other(broken(error));
        }
        let identity = Identity { lives, brand, ptr };
        let wrapped = self.known(&identity).unwrap_or_else(|| {
            let wrapped = self.wrap(identity, Cap::Other(Rc::from(hook)));
            self.enter(&wrapped);
            wrapped
        });
        self.passed(wrapped)
    }

    fn pass_wrapper(self: &Rc<Self>, within: Rc<Wrapped>, lives: Side) -> Passing {
        if let Some(error) = self.stale.get() {
            return Cap::Other(broken(error));
        }
        if Rc::ptr_eq(within.wall(), self) {
            if within.callee() == lives {
                // The other side's kind of wrapper already.
                return Cap::Wrapper(within);
            }
            let home = within.home();
            return home.unwrap_or_else(|error| Cap::Other(broken(&error)));
        }
        let identity = Identity {
            lives,
            brand: within.wall().brand(),
            ptr: Rc::as_ptr(&within).addr(),
        };
        if within.walls() >= WALLS_MAX {
            let error = error::denied(&format!(
                "a capability was passed through {WALLS_MAX} membranes and never came home"
            ));
            return Cap::Other(broken(&error));
        }
        let known = match within.cover(self, lives) {
            Some(berth) => Some(self.at(berth)),
            None if within.is_crowded() => self.known(&identity),
            None => None,
        };
        let wrapped = known.unwrap_or_else(|| {
            let wrapped = self.wrap(identity, Cap::Wrapper(within.clone()));
            if !wrapped.note_on(&within) {
                self.enter(&wrapped);
            }
            wrapped
        });
        self.passed(wrapped)
    }

    #[inline]
    fn passed(self: &Rc<Self>, wrapped: Rc<Wrapped>) -> Passing {
        if self.exchanges {
            Cap::Other(self.exchange(wrapped))
        } else {
            Cap::Wrapper(wrapped)
        }
    }

    /// As the end of [`pass`](Wall::pass), for a policy that exchanges capabilities.
    fn exchange(self: &Rc<Self>, wrapped: Rc<Wrapped>) -> Box<dyn ClientHook> {
        let lives = wrapped.callee();
        let wrapper = Wrapper(wrapped);
        if let Some(resolution) = wrapper.when_more_resolved() {
            // What it resolves to crosses in its turn. Until then nothing may reach it.
            let settled: capnp::capability::Client =
                capnp_rpc::new_future_client(deeper(async move {
                    let hook = resolution.await?;
                    Ok(capnp::capability::Client::new(hook))
                }));
            return settled.hook;
        }
        let exchanged = self.policy().and_then(|policy| {
            let settled = wrapper.0.home()?.into_hook();
            Ok(policy.exchange(&*settled, lives))
        });
        match exchanged {
            Ok(Exchange::Wrap) => Box::new(wrapper),
            Ok(Exchange::Give(instead)) => instead,
            Ok(Exchange::Later(later)) => {
                let told: capnp::capability::Client =
                    capnp_rpc::new_future_client(deeper(async move {
                        let mut later = later;
                        loop {
                            let waiting = Promise::from_future(later);
                            let waiting = Flight::wait(Route::across(&wrapper.0), waiting);
                            match Waiting(waiting).await? {
                                Exchange::Wrap => {
                                    let wrapper = Box::new(wrapper);
                                    return Ok(capnp::capability::Client::new(wrapper));
                                }
                                Exchange::Give(instead) => {
                                    return Ok(capnp::capability::Client::new(instead));
                                }
                                Exchange::Later(further) => later = further,
                            }
                        }
                    }));
                told.hook
            }
            Err(error) => broken(&error),
        }
    }

    fn known(&self, identity: &Identity) -> Option<Rc<Wrapped>> {
        let berth = self.known.borrow().get(identity).copied()?;
        Some(self.at(berth))
    }

    fn at(&self, berth: usize) -> Rc<Wrapped> {
        let wrapped = self.wrappers.borrow().get(berth).and_then(Weak::upgrade);
        // It is forgotten before it is dropped, so it is alive.
        wrapped.expect("a known wrapper is alive")
    }

    fn wrap(self: &Rc<Self>, identity: Identity, target: Target) -> Rc<Wrapped> {
        let wrapped = Wrapped::new(self.clone(), identity, target);
        let berth = self.wrappers.borrow_mut().take(Rc::downgrade(&wrapped));
        wrapped.board(berth);
        wrapped
    }

    fn enter(&self, wrapped: &Wrapped) {
        let mut known = self.known.borrow_mut();
        known.insert(*wrapped.identity(), wrapped.berth());
    }

    /// `wrapped` is gone. If it was `noted`, that is undone already.
    pub(crate) fn forget(&self, wrapped: &Wrapped, noted: bool) {
        if noted || self.known.borrow_mut().remove(wrapped.identity()).is_some() {
            self.wrappers.borrow_mut().free(wrapped.berth());
        }
    }

    pub(crate) fn board(&self, flight: Weak<dyn Cut>) -> usize {
        self.flights.borrow_mut().take(flight)
    }

    pub(crate) fn leave(&self, berth: usize) {
        self.flights.borrow_mut().free(berth);
    }

    pub(crate) fn call_began(&self) {
        self.calls.set(self.calls.get() + 1);
    }

    pub(crate) fn call_ended(&self) {
        self.calls.set(self.calls.get() - 1);
    }

    pub(crate) fn calls_in_flight(&self) -> usize {
        self.calls.get()
    }

    pub(crate) fn revoke(&self, reason: &str) {
        if self.stale.set(error::stale(reason)).is_err() {
            return;
        }
        let error = self.stale.get().expect("it was set above");
        let mut flights: Vec<Rc<dyn Cut>> = self
            .flights
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        // Dropping a streaming call lets those queued behind it at its callee begin, unless they were dropped before it:
        // so first what never began, then the latest first.
        flights.sort_by_cached_key(|flight| u64::MAX - flight.begun().wrapping_sub(1));
        for flight in &flights {
            flight.cut(error);
        }
        drop(self.known.take());
        let wrappers = self.wrappers.take();
        for wrapped in wrappers.into_iter().filter_map(|wrapped| wrapped.upgrade()) {
            wrapped.revoke();
        }
        drop(self.policy.take());
        for flight in &flights {
            flight.wake();
        }
    }
}

/// What is waited for may wait for another such, and so on, as far as strangers pass it to and fro; each is polled, and dropped, from
/// within the next.
fn deeper<T>(
    work: impl Future<Output = Result<T, Error>>,
) -> impl Future<Output = Result<T, Error>> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |cx| {
        let _depth = Depth::enter()?;
        work.as_mut().poll(cx)
    })
}

/// What `hook` has resolved to, if it is a promise.
fn settled(mut hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    let search = Search::begin();
    while search.step()
        && let Some(resolved) = hook.get_resolved()
    {
        hook = resolved;
    }
    hook
}

/// A capability that answers everything with `error`.
pub(crate) fn broken(error: &Error) -> Box<dyn ClientHook> {
    capnp_rpc::new_broken_cap(error.clone()).hook
}

/// Things that each know their place. In the order they came, as far as places were not reused: walking them in the
/// order they were allocated is several times faster than in the order of a hash table.
struct Berths<T> {
    berths: Vec<Berth<T>>,
    /// The last that became free. None is beyond the end.
    free: usize,
}

enum Berth<T> {
    Taken(T),
    /// And which became free before it.
    Free(usize),
}

impl<T> Default for Berths<T> {
    fn default() -> Self {
        Berths {
            berths: Vec::new(),
            free: usize::MAX,
        }
    }
}

impl<T> Berths<T> {
    fn take(&mut self, thing: T) -> usize {
        if let Some(berth) = self.berths.get_mut(self.free)
            && let Berth::Free(before) = *berth
        {
            *berth = Berth::Taken(thing);
            return std::mem::replace(&mut self.free, before);
        }
        self.berths.push(Berth::Taken(thing));
        self.berths.len() - 1
    }

    /// Nothing happens if all have been taken out before.
    fn free(&mut self, at: usize) {
        if let Some(berth @ Berth::Taken(_)) = self.berths.get_mut(at) {
            *berth = Berth::Free(self.free);
            self.free = at;
        }
    }

    fn get(&self, at: usize) -> Option<&T> {
        match self.berths.get(at)? {
            Berth::Taken(thing) => Some(thing),
            Berth::Free(_) => None,
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.berths.iter().filter_map(|berth| match berth {
            Berth::Taken(thing) => Some(thing),
            Berth::Free(_) => None,
        })
    }

    fn into_iter(self) -> impl Iterator<Item = T> {
        self.berths.into_iter().filter_map(|berth| match berth {
            Berth::Taken(thing) => Some(thing),
            Berth::Free(_) => None,
        })
    }
}

/// Hashes addresses, which nobody outside the process chooses.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}
