//! Runs an agent as a vat: its RPC system and its function, on one thread, over one [`wire`](crate::wire).
//!
//! In: the agent's function, and a wire. Out: how it ended.
//! Promise: everything the agent sent before it returned is handed to the host.
//! Failure: a closed wire ends the agent with [`Kind::Disconnected`](crate::Kind::Disconnected).

use std::future::Future;
use std::pin::pin;

use agora_capnp::membrane_capnp::membrane;
use futures::future::{Either, select};

use crate::error::Error;
use crate::graft::{Graft, live};
use crate::wire::{End, Network, Rpc};

/// What an agent's function may return.
pub trait ExitStatus {
    /// `Err` is a failure.
    fn into_result(self) -> Result<(), Error>;
}

impl ExitStatus for () {
    fn into_result(self) -> Result<(), Error> {
        Ok(())
    }
}

impl<E: Into<Error>> ExitStatus for Result<(), E> {
    fn into_result(self) -> Result<(), Error> {
        self.map_err(Into::into)
    }
}

/// Runs an agent on one end of a wire, on whatever executor polls this.
///
/// # Errors
/// What the agent returned, or that the wire was closed.
pub async fn drive<F, Fut, R>(end: End, agent: F) -> Result<(), Error>
where
    F: FnMut(Graft) -> Fut,
    Fut: Future<Output = R>,
    R: ExitStatus,
{
    let mut system = Rpc::new(Network::new(end), None);
    let door: membrane::Client = system.bootstrap();
    let agent = pin!(live(door, agent));
    match select(agent, system).await {
        // Dropping the system here lets go of everything the agent held.
        Either::Left((result, _system)) => result,
        Either::Right(_) => Err(Error::disconnected("the host closed the wire")),
    }
}

#[cfg(target_family = "wasm")]
#[allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::all,
    reason = "generated from wit/agent"
)]
pub mod component {
    //! The bindings of world `agent`.
    wit_bindgen::generate!({
        path: "../wit/agent",
        world: "agent",
        pub_export_macro: true,
        export_macro_name: "export_agent",
        default_bindings_module: "agora_guest::vat::component",
    });
}

/// Runs an agent inside its component until it is done. Called by the `run` export.
///
/// # Errors
/// What the agent returned, as text for the host's record.
#[cfg(target_family = "wasm")]
pub fn run<F, Fut, R>(agent: F) -> Result<(), String>
where
    F: FnMut(Graft) -> Fut,
    Fut: Future<Output = R>,
    R: ExitStatus,
{
    use crate::wire::{Limits, pair};
    use component::agora::agent::wire as host;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
        fn wake_by_ref(self: &Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let (mine, theirs) = pair(Limits::GUEST);
    let mut future = pin!(drive(mine, agent));
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        while flag.0.swap(false, Ordering::Relaxed) {
            if let Poll::Ready(result) = future.as_mut().poll(&mut cx) {
                loop {
                    let batch = theirs.take_batch();
                    if batch.is_empty() || host::offer(&batch).is_err() {
                        return result.map_err(|error| error.to_string());
                    }
                }
            }
        }
        let mut batch = theirs.take_batch();
        let incoming = loop {
            // All but the last batch go without waiting, or the answer might be to a frame still here.
            let next = theirs.take_batch();
            if next.is_empty() {
                break host::exchange(&batch);
            }
            if host::offer(&batch).is_err() {
                break Err(host::Closed::Ended);
            }
            batch = next;
        };
        let frames = incoming.map_err(|_| "the host closed the wire".to_owned())?;
        for frame in frames {
            if theirs.send(frame).is_err() {
                return Err("the wire is closed".to_owned());
            }
        }
    }
}

/// Off wasm there is no host to meet; an agent's crate still compiles.
///
/// # Errors
/// Always.
#[cfg(not(target_family = "wasm"))]
pub fn run<F, Fut, R>(agent: F) -> Result<(), String>
where
    F: FnMut(Graft) -> Fut,
    Fut: Future<Output = R>,
    R: ExitStatus,
{
    drop(agent);
    Err("this is an agent: build it for wasm32-wasip2 and run it with `agora run`".into())
}
