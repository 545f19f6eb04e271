//! One membrane: what has crossed it, what is in flight across it, and its end.
//!
//! In: capabilities to be wrapped, calls to be registered, and at most one revocation.
//! Promise: a live capability has one wrapper per side; revocation reaches every wrapper and every call there is, at
//! once and in one go, and nothing gets past it afterwards.
//! Failure: once revoked, whatever is asked of the wall is answered with the stale error that says why.
//!
//! No borrow of a `RefCell` here is held while foreign code runs: dropping a capability, a promise or a policy may run
//! any destructor, and that may call back in.

use crate::chain::{Depth, Search};
use crate::error;
use crate::flight::{Flight, Waiting};
use crate::policy::{Exchange, Policy, Side};
use crate::route::Route;
use crate::wrapper::{Wrapped, Wrapper, reveal};
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
    stale: OnceCell<Error>,
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
        mut hook: Box<dyn ClientHook>,
        lives: Side,
    ) -> Box<dyn ClientHook> {
        if let Some(error) = self.stale.get() {
            return broken(error);
        }
        let search = Search::begin();
        while search.step()
            && let Some(resolved) = hook.get_resolved()
        {
            hook = resolved;
        }
        drop(search);
        let brand = hook.get_brand();
        if brand == self.brand()
            && let Some(wrapped) = reveal(&*hook)
        {
            return if wrapped.callee() == lives {
                // The other side's kind of wrapper already.
                hook
            } else {
                wrapped.home().unwrap_or_else(|error| broken(&error))
            };
        }
        let identity = Identity {
            lives,
            brand,
            ptr: hook.get_ptr(),
        };
        match self.wrapper(identity, hook) {
            Ok(wrapped) if self.exchanges => self.exchange(identity, Wrapper(wrapped)),
            Ok(wrapped) => Box::new(Wrapper(wrapped)),
            Err(error) => broken(&error),
        }
    }

    /// As the end of [`cross`](Wall::cross), for a policy that exchanges capabilities.
    fn exchange(self: &Rc<Self>, identity: Identity, wrapper: Wrapper) -> Box<dyn ClientHook> {
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
            let settled = wrapper.0.home()?;
            Ok(policy.exchange(&*settled, identity.lives))
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

    fn wrapper(
        self: &Rc<Self>,
        identity: Identity,
        hook: Box<dyn ClientHook>,
    ) -> Result<Rc<Wrapped>, Error> {
        let berth = self.known.borrow().get(&identity).copied();
        if let Some(berth) = berth {
            let known = self.wrappers.borrow().get(berth).and_then(Weak::upgrade);
            // It is forgotten before it is dropped, so it is alive.
            return Ok(known.expect("a known wrapper is alive"));
        }
        let wrapped = Wrapped::new(self.clone(), identity, hook)?;
        let berth = self.wrappers.borrow_mut().take(Rc::downgrade(&wrapped));
        self.known.borrow_mut().insert(identity, berth);
        wrapped.berth(berth);
        Ok(wrapped)
    }

    /// The wrapper of `identity`, which was given `berth`, is gone.
    pub(crate) fn forget(&self, identity: &Identity, berth: usize) {
        if self.known.borrow_mut().remove(identity).is_some() {
            self.wrappers.borrow_mut().free(berth);
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

/// A capability that answers everything with `error`.
pub(crate) fn broken(error: &Error) -> Box<dyn ClientHook> {
    capnp_rpc::new_broken_cap(error.clone()).hook
}

/// Things that each know their place. In the order they came, as far as places were not reused: walking them in the
/// order they were allocated is several times faster than in the order of a hash table.
struct Berths<T> {
    berths: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Berths<T> {
    fn default() -> Self {
        Berths {
            berths: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Berths<T> {
    fn take(&mut self, thing: T) -> usize {
        match self.free.pop() {
            Some(berth) => {
                self.berths[berth] = Some(thing);
                berth
            }
            None => {
                self.berths.push(Some(thing));
                self.berths.len() - 1
            }
        }
    }

    fn free(&mut self, berth: usize) {
        self.berths[berth] = None;
        self.free.push(berth);
    }

    fn get(&self, berth: usize) -> Option<&T> {
        self.berths.get(berth)?.as_ref()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.berths.iter().flatten()
    }

    fn into_iter(self) -> impl Iterator<Item = T> {
        self.berths.into_iter().flatten()
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
