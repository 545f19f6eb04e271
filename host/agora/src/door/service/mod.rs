//! Services: outside processes that serve a Cap'n Proto vat on a unix socket, as agents meet them.
//!
//! In: the manifest's services, and grafts in which one is granted. Out: for each a capability that stands for the service, and the
//! [`Lease`] it is held on.
//! Promise: between a graft and a service stands a wall of their own, which bounds the calls in flight each way and how long the
//! service may take for each. When the lease falls, the wall falls, and the connection with it, on the spot.
//! Failure: a call past a bound is refused as busy; one without an answer in time fails, its outcome unknown. Never as stale: the
//! agent's graft stands.

mod frames;
mod line;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agora_guest::wire;
use agora_membrane::{CallInfo, Exchange, Membrane, Policy, Revoker, Side, Verdict, error};
use agora_realm::ServiceName;
use capnp::capability::Client;
use capnp::private::capability::ClientHook;

use crate::boot::manifest::ServiceSpec;
use crate::channel::facet::Facets;
use crate::channel::signer::not_passed_on;
use crate::channel::speak::Counted;
use crate::limits;
use line::Line;

/// The services of a host, and what all of their connections share.
#[derive(Default)]
pub struct Services {
    specs: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    connections: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Services {
    /// The services that a manifest declares.
    pub fn new(specs: BTreeMap<ServiceName, Arc<ServiceSpec>>) -> Self {
        Self {
            specs,
            ..Self::default()
        }
    }

    /// Whether the manifest declares a service of this name; otherwise it is an agent's.
    pub fn has(&self, name: &ServiceName) -> bool {
        self.specs.contains_key(name)
    }

    /// What the manifest declares.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.specs.keys().map(ServiceName::as_str)
    }

    /// Whether a service has been asked for something that it has not answered.
    pub fn is_busy(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > 0
    }

    /// What the operator should know: services that nobody can reach now.
    pub fn notices(&self) -> Vec<String> {
        use std::os::unix::fs::FileTypeExt;
        let found = |spec: &ServiceSpec| {
            let trouble = match std::fs::metadata(&spec.socket) {
                Ok(found) if found.file_type().is_socket() => return None,
                Ok(_) => "is no socket".to_owned(),
                Err(error) => format!("can't be reached ({error})"),
            };
            Some(format!(
                "service '{}': {} {trouble}; calls to it are refused as busy until it listens there",
                spec.name,
                spec.socket.display(),
            ))
        };
        self.specs.values().filter_map(|spec| found(spec)).collect()
    }

    /// A service for one graft of the agent behind `agent`, on the vat thread that calls this. Connects when it is first called.
    /// `signers`: among the facets of the thread there are signers of this agent's, which are not passed on to it.
    pub fn lease(
        &self,
        name: &ServiceName,
        agent: wire::End,
        signers: Option<Rc<Facets>>,
    ) -> Option<(Client, Lease)> {
        let spec = self.specs.get(name)?;
        let line = Line::new(spec.clone(), self.connections.clone(), agent);
        let bounds = Bounds {
            spec: spec.clone(),
            line: line.clone(),
            signers,
            asked: Rc::default(),
            asking: Rc::default(),
            calls: self.calls.clone(),
        };
        let (membrane, revoker) = Membrane::new(bounds);
        let client = membrane.export(line.client());
        Some((client, Lease { revoker, line }))
    }
}

/// How one graft holds one service. Falls when it is dropped.
pub struct Lease {
    revoker: Revoker,
    line: Rc<Line>,
}

impl Lease {
    /// Ends it: what the agent got from the service, what the service got from the agent, and the connection.
    pub fn fall(&self, reason: &str) {
        self.revoker.revoke(reason);
        self.line.end(reason);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.fall("the graft ended");
    }
}

/// What the wall between a graft and a service lets pass.
struct Bounds {
    spec: Arc<ServiceSpec>,
    line: Rc<Line>,
    /// Where the agent's signers are known, if it has any.
    signers: Option<Rc<Facets>>,
    /// Calls of the agent that the service has not answered.
    asked: Rc<Cell<usize>>,
    /// Calls of the service that the agent has not answered.
    asking: Rc<Cell<usize>>,
    /// Calls of all agents that services have not answered.
    calls: Arc<AtomicUsize>,
}

/// A call under way.
struct Under(Rc<Cell<usize>>);

impl Under {
    fn begin(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Policy for Bounds {
    fn exchanges(&self) -> bool {
        self.signers.is_some()
    }

    fn exchange(&self, capability: &dyn ClientHook, _lives: Side) -> Exchange {
        let signers = self.signers.as_ref();
        match signers.is_some_and(|signers| signers.is_signer(capability)) {
            true => Exchange::Give(capnp_rpc::new_broken_cap(not_passed_on()).hook),
            false => Exchange::Wrap,
        }
    }

    fn words_max(&self) -> u64 {
        limits::MESSAGE_WORDS_MAX
    }

    fn check(&self, call: &CallInfo) -> Verdict {
        let name = &self.spec.name;
        let (count, what) = match call.callee {
            Side::Inside => (&self.asked, "calls to"),
            Side::Outside => (&self.asking, "calls from"),
        };
        if count.get() >= self.spec.calls {
            return Verdict::Deny(error::busy(&format!(
                "{} {what} service '{name}' are in flight with this agent; wait for one",
                count.get()
            )));
        }
        let under = Under::begin(count);
        if call.callee == Side::Outside {
            // How long an agent may take is the service's to say.
            return Verdict::AllowUntil(Box::pin(async move {
                let _under = under;
                std::future::pending().await
            }));
        }
        let waiting = self.line.waiting();
        if waiting > limits::SERVICE_BYTES_WAITING_MAX {
            return Verdict::Deny(error::busy(&format!(
                "service '{name}' does not take what it is sent ({waiting} bytes wait)"
            )));
        }
        let counted = Counted::new(&self.calls);
        let spec = self.spec.clone();
        Verdict::AllowUntil(Box::pin(async move {
            let (_under, _counted) = (under, counted);
            tokio::time::sleep(spec.deadline).await;
            error::failed(&format!(
                "service '{}': no answer within {:?}; whether it does what it was asked is unknown",
                spec.name, spec.deadline,
            ))
        }))
    }
}

#[cfg(test)]
mod tests;
