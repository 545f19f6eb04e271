//! What a membrane asks before it lets a call across.
//!
//! In: which side the callee stands on, and which method is called.
//! Promise: every crossing call is asked about exactly once per membrane it crosses, before its callee can notice it.
//! Failure: a denied call answers the policy's own error; a policy that panics takes the caller's task with it.

use capnp::private::capability::ClientHook;
use std::future::Future;
use std::pin::Pin;

/// Which side of the membrane the callee lives on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The side whose capabilities [`export`](crate::Membrane::export) lets out.
    Inside,
    /// The side whose capabilities [`import`](crate::Membrane::import) lets in.
    Outside,
}

impl Side {
    /// The other side.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Inside => Side::Outside,
            Side::Outside => Side::Inside,
        }
    }
}

/// A call about to cross.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CallInfo {
    /// Where the callee lives; the caller is on the other side.
    pub callee: Side,
    /// The interface that declares the method.
    pub interface_id: u64,
    /// The method's ordinal in that interface.
    pub method_id: u16,
}

impl CallInfo {
    /// A call of method `method_id` of interface `interface_id` on a callee that lives on side `callee`.
    #[must_use]
    pub fn new(callee: Side, interface_id: u64, method_id: u16) -> CallInfo {
        CallInfo {
            callee,
            interface_id,
            method_id,
        }
    }
}

/// When, and with which error, a call that was let across is cut.
pub type Expiry = Pin<Box<dyn Future<Output = capnp::Error>>>;

/// What a policy says of a call.
pub enum Verdict {
    /// Let it cross.
    Allow,
    /// Let it cross, and cut it with the error that this completes with, if it completes before the call has its answer.
    ///
    /// Cutting does to the one call what revocation does to all: its promise is dropped at the callee, and the caller,
    /// with whatever is pipelined on the answer, gets the error. Over a connection, what was pipelined on it earlier is cut by
    /// its own verdict.
    ///
    /// It is polled with the call, on whatever executor polls that, and dropped when the call ends, however it ends: so
    /// it may as well count the calls under way.
    AllowUntil(Expiry),
    /// Answer it with this error; the callee never hears of it.
    Deny(capnp::Error),
    /// Let it cross, to this capability instead of the one it was made on.
    ///
    /// The capability stands where the callee stood: parameters and results are wrapped, and the call is counted and
    /// cut like any other. (C++'s `membrane.h` differs: there a redirected call does not cross.) The policy is not
    /// asked again. It lives as long as the policy does, so the policy should hold it and hand out references.
    Redirect(Box<dyn ClientHook>),
}

/// What the other side gets of a capability that crosses.
pub enum Exchange {
    /// A wrapper, as with any other policy.
    Wrap,
    /// This instead. It is handed over as it is: it belongs to the other side from then on, is not wrapped, and revoking
    /// the membrane does not cut it.
    Give(Box<dyn ClientHook>),
    /// What this says once it completes; calls made meanwhile wait for it. An error breaks the capability.
    Later(Pin<Box<dyn Future<Output = Result<Exchange, capnp::Error>>>>),
}

/// Decides which calls may cross.
///
/// [`check`](Policy::check) runs on the thread of the capabilities, once per crossing call in either direction, so it
/// should cost no more than an atomic load and a few compares. An atomic flag read here lets another thread stop all
/// new calls at once, before its message that asks for [`revoke`](crate::Revoker::revoke) has been read.
///
/// The membrane drops the policy when it is revoked.
pub trait Policy: 'static {
    /// Says what becomes of `call`. It may revoke the membrane; the call then fails as stale whatever it returns.
    fn check(&self, call: &CallInfo) -> Verdict;

    /// The most words that params or results may take, either way; a larger call fails as denied. Asked once, when the membrane is made.
    ///
    /// What matters is what a message takes when it is copied: a received one may be larger then than it was on its way,
    /// since its pointers may overlap. So a stranger can't make the other side's connection carry more than it can.
    fn words_max(&self) -> u64 {
        u64::MAX
    }

    /// Whether [`results`](Policy::results) and [`error`](Policy::error) are to be asked. Asked once, when the membrane is made.
    fn answers(&self) -> bool {
        false
    }

    /// Says whether results may cross to the caller, now that they are there. `callee` is where the callee lives.
    ///
    /// # Errors
    /// What the caller is told instead. The callee has done what it was asked, and is not told.
    fn results(&self, callee: Side) -> Result<(), capnp::Error> {
        let _ = callee;
        Ok(())
    }

    /// Says what the caller is told of an error from beyond this membrane: the callee's own, or that of another membrane on the
    /// way that was revoked. Not asked about this one's revocation, nor about what policies deny.
    fn error(&self, callee: Side, error: capnp::Error) -> capnp::Error {
        let _ = callee;
        error
    }

    /// Whether [`exchange`](Policy::exchange) is to be asked. Asked once, when the membrane is made.
    ///
    /// If so, a promise that crosses is held back until it has settled, and so are the calls made on it: nobody can know
    /// before what it would have to be exchanged for.
    fn exchanges(&self) -> bool {
        false
    }

    /// Says what the other side gets of `capability`, which lives on side `lives` and has settled.
    ///
    /// Asked at every crossing, not once per capability; whoever wants to give the same for the same must remember it.
    /// Not asked about what comes home.
    fn exchange(&self, capability: &dyn ClientHook, lives: Side) -> Exchange {
        let _ = (capability, lives);
        Exchange::Wrap
    }
}

impl<F: Fn(&CallInfo) -> Verdict + 'static> Policy for F {
    fn check(&self, call: &CallInfo) -> Verdict {
        self(call)
    }
}
