//! Bridges: agents of two vat threads meet over frames, as an agent and its host do.
//!
//! In: a caller of one thread, the name of a server of another. Out: what is served there, as a capability here.
//! Promise: both ends go together: when the caller's end is dropped, whatever the other has from it is cut.
//! Failure: a bridge that breaks, or is overrun, fails what crosses it as disconnected, and can be opened anew.

use std::rc::Rc;
use std::sync::Arc;

use agora_guest::wire;
use agora_membrane::error;
use agora_realm::{PersonaId, ServiceName};
use capnp::Error;
use capnp::capability::Client;

use super::control::Control;
use super::introduction::{Introduction, Party, Thread};
use crate::channel::facet::Holder;
use crate::limits;
use crate::persona::agent::Agent;

/// The caller's end.
pub struct Bridge {
    service: Client,
    vat: tokio::task::JoinHandle<()>,
    _closer: wire::Closer,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.vat.abort();
    }
}

/// The server's end, on its way to the server's thread.
pub struct Landing {
    caller: PersonaId,
    server: ServiceName,
    wire: wire::End,
}

impl Bridge {
    /// Opens one from a graft to what an agent of another thread serves.
    ///
    /// # Errors
    /// The host is ending.
    pub async fn open(
        control: &Arc<Control>,
        caller: &Rc<Holder>,
        agent: &Agent,
        server: &ServiceName,
    ) -> Result<Self, Error> {
        let (near, far) = wire::pair(limits::BRIDGE_WIRE);
        let closer = wire::Closer(near.clone());
        let landing = Landing {
            caller: caller.persona.clone(),
            server: server.clone(),
            wire: far,
        };
        if !control.land(agent.worker, landing).await {
            return Err(error::busy("the host is ending"));
        }
        let mut system = wire::Rpc::new(wire::Network::new(near), None);
        let service: Client = system.bootstrap();
        let vat = tokio::task::spawn_local(async move {
            let _ = system.await;
        });
        Ok(Self {
            service,
            vat,
            _closer: closer,
        })
    }

    /// What is served at the other end: a promise, which takes calls, but which nobody is told of when it has settled.
    pub fn service(&self) -> Client {
        self.service.clone()
    }
}

impl Landing {
    /// Keeps the server's end until the caller lets go of the bridge.
    pub async fn keep(self, control: Arc<Control>, thread: Rc<Thread>) {
        let _closer = wire::Closer(self.wire.clone());
        let caller = Party::Beyond(self.caller);
        let introduction = Introduction::new(control, thread, caller, self.server);
        let network = wire::Network::new(self.wire);
        let _ = wire::Rpc::new(network, Some(introduction.client())).await;
        introduction.end("the agent that called is gone");
    }
}
