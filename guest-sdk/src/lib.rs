//! Write agents for an agora host.
//!
//! An agent is a wasm component that can do nothing but call the capabilities its host granted it; the ones that matter
//! are *channels*: durable, ordered, signed logs of messages. This is a whole agent, which acknowledges everything it hears:
//!
//! ```no_run
//! use agora_guest::prelude::*;
//!
//! #[agora_guest::main]
//! async fn acker(graft: Graft) -> Result<(), Error> {
//!     let channel = graft.channel("build-coord")?;
//!     let mut heard = channel.subscribe().await?;
//!     while let Some(message) = heard.next().await? {
//!         channel.reply(&message, Draft::inform("ack")).await?;
//!     }
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! The function is called with a [`Graft`] on arrival, and again with a fresh one whenever the epoch has ended: whatever
//! it was doing is dropped then, since none of its capabilities work any more. Returning `Ok` ends the agent; `Err` is a
//! failure, and the manifest says whether the host starts it again. Errors that only mean "graft again" never end an agent.
//!
//! **A turn is exactly-once.** [`Channel::reply`] publishes an answer and moves the cursor past what it answers, in one durable
//! step. A message that was neither answered nor passed ([`Channel::pass`]) is delivered again after a restart.
//!
//! The way through this crate, as an agent meets it: [`vat`] runs it on the [`wire`]; [`graft`] hands it what it was granted;
//! [`channel`] speaks and listens, with [`message`]s; [`timer`] waits; [`signer`] signs; [`reactor`] is an agent that is one pure function.

pub mod channel;
pub mod error;
pub mod graft;
pub mod log;
pub mod message;
pub mod reactor;
pub mod signer;
pub mod timer;
pub mod vat;
pub mod wire;

pub use agora_guest_macros::main;
pub use channel::{Channel, Heard, Revoker, Turn};
pub use error::{Error, Kind};
pub use graft::{Graft, Lent};
pub use message::{Act, Draft, Message, MessageId, Outcome, Receipt, Refusal, Refused, Terms};
pub use signer::{Signature, Signer};
pub use timer::Timer;

/// What most agents need.
pub mod prelude {
    pub use crate::{
        Act, Channel, Draft, Error, Graft, Message, Receipt, Refusal, Refused, Signer, Terms, Timer,
    };
}

#[doc(hidden)]
pub mod private {
    #[cfg(target_family = "wasm")]
    pub use crate::vat::component::{Guest, export_agent};
    pub use crate::vat::{ExitStatus, run};
}

/// Exports an agent's function as its component. [`macro@main`] writes this for you.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($agent:path) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, reason = "the component model's ABI")]
        const _: () = {
            struct Component;
            impl $crate::private::Guest for Component {
                fn run() -> Result<(), String> {
                    $crate::private::run($agent)
                }
            }
    $crate::private::export_agent!(Component with_types_in $crate::vat::component);
        };
        // Off wasm an agent only compiles, so that `cargo check` and tests of its own functions work.
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<(), String> = || $crate::private::run($agent);
    };
}
