//! A transitive, two-way, revocable membrane for Cap'n Proto capabilities.
//!
//! You lend somebody a capability. They call it, get others from it, hand it their own, and calls are under way in both
//! directions when you want all of it back. A membrane is the wall you put around what you lend: every capability that
//! passes through it, either way, in params or results, in a list or a nested struct or behind AnyPointer, by
//! pipelining or when a promise resolves, is wrapped as it crosses, and unwrapped if it comes home. Revoking the
//! membrane cuts them all at once.
//!
//! ```
//! use agora_membrane::{CallInfo, Membrane, Revoker, Verdict, error};
//! use capnp::any_pointer;
//! use capnp::capability::{Client, FromClientHook};
//!
//! /// What may be taken back.
//! fn lend<C: FromClientHook>(tool: C) -> (C, Revoker) {
//!     let (membrane, revoker) = Membrane::new(|_: &CallInfo| Verdict::Allow);
//!     (membrane.export(tool), revoker)
//! }
//!
//! # let tool: Client = capnp_rpc::new_broken_cap(capnp::Error::unimplemented("a stand-in".into()));
//! let (lent, revoker) = lend(tool);
//! let call = lent.new_call::<any_pointer::Owned, any_pointer::Owned>(0x1234, 0, None).send();
//! revoker.revoke("it was only lent until noon");
//! let error = futures::executor::block_on(call.promise).err().expect("it was in flight");
//! assert_eq!(error::classify(&error), error::Kind::Stale);
//! assert_eq!(error::reason(&error), "it was only lent until noon");
//! ```
//!
//! # The way of a call
//!
//! ```text
//! a holder's client
//!   -> wrapper     the capability as the other side holds it
//!   -> request     params, written by the caller      | served   params that come with the call
//!   -> route       asks each wall's policy, and wraps what goes and what comes
//!   -> call        a callee of this process           | relay    a callee that has its own requests
//!      pending     what is pipelined before the answer
//!   -> flight      waits for the callee, counted and cut by the wall
//!   -> results     written by the callee, wrapped on the way out
//! ```
//!
//! `wall` is the membrane itself: what is wrapped, what is in flight, and the end of both. `message` is bytes with a
//! table of capabilities. `chain` bounds how far promises are followed. `policy`, `membrane` and [`error`] are what an integrator sees.
//!
//! # Threads
//!
//! Everything here lives on one thread, as everything in capnp-rpc does. To revoke from another thread, let the policy
//! read an atomic flag, which denies new calls at once, and send a message to the membrane's thread that it revoke.
//!
//! # What a membrane is not
//!
//! It does not stop a callee that computes without returning to its executor, bounds no one's memory, and does not
//! recall what a call has already said. What grows, and with what, is said at [`Membrane`].

mod call;
mod chain;
pub mod error;
mod flight;
mod membrane;
mod message;
mod pending;
mod policy;
mod relay;
mod request;
mod results;
mod route;
mod served;
mod wall;
mod wrapper;

pub use membrane::{Membrane, Revoker};
pub use policy::{CallInfo, Exchange, Expiry, Policy, Side, Verdict};
