//! Introductions: how an agent reaches what another one serves.
//!
//! In: calls that crossed the caller's wall, of whatever interface. Out: the same calls at the server's wall.
//! Promise: between the two stands a membrane of their own, which falls with the caller's graft; whatever either has from the other
//! falls with it, or with the other's wall. A facet that crosses is lent: it arrives as the receiver's own.
//! Failure: a server that does not serve, or whose wall falls meanwhile, is told as busy or failed, and never as stale: that is said of
//! the caller's own graft only.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use agora_membrane::{CallInfo, Membrane, Policy, Revoker, Side, Verdict, error};
use agora_realm::{PersonaName, ServiceName};
use capnp::Error;
use capnp::any_pointer;
use capnp::capability::{
    Client, DispatchCallResult, FromClientHook, FromServer, Params, Promise, Results, Server,
};
use capnp::private::capability::ClientHook;
use tokio::sync::Notify;

use super::control::Control;
use crate::channel::facet::{Facets, Holder};
use crate::limits;
use crate::persona::agent::Phase;

/// What the agents of one vat thread have in common.
#[derive(Default)]
pub struct Thread {
    /// The facets they hold.
    pub facets: Rc<Facets>,
    /// What they serve, by name.
    offers: RefCell<HashMap<ServiceName, Rc<Offer>>>,
    changed: Notify,
}

/// What one agent serves, in one graft.
struct Offer {
    service: Client,
    server: Rc<Holder>,
}

impl Thread {
    /// An agent serves this, in place of what it served before.
    pub fn offer(&self, server: &Rc<Holder>, service: Client) {
        let offer = Offer {
            service,
            server: server.clone(),
        };
        let Some(name) = service_of(&server.persona.name) else {
            return;
        };
        let old = self.offers.borrow_mut().insert(name, Rc::new(offer));
        drop(old);
        self.changed.notify_waiters();
    }

    /// An agent serves nothing any more, if it did in this graft.
    pub fn withdraw(&self, server: &Rc<Holder>) {
        let Some(name) = service_of(&server.persona.name) else {
            return;
        };
        let mut offers = self.offers.borrow_mut();
        if offers
            .get(&name)
            .is_some_and(|offer| Rc::ptr_eq(&offer.server, server))
        {
            let old = offers.remove(&name);
            drop(offers);
            drop(old);
        }
    }

    fn offered(&self, name: &ServiceName) -> Option<Rc<Offer>> {
        self.offers.borrow().get(name).cloned()
    }
}

/// As what an agent is granted to others. Operators serve nothing.
fn service_of(agent: &PersonaName) -> Option<ServiceName> {
    ServiceName::new(agent.as_str()).ok()
}

/// One agent's way to another: a capability that always leads to what the other serves now.
pub struct Introduction {
    control: Arc<Control>,
    thread: Rc<Thread>,
    caller: Rc<Holder>,
    server: ServiceName,
    meeting: RefCell<Option<Rc<Meeting>>>,
    over: Cell<bool>,
}

/// The membrane between a caller and one offer.
struct Meeting {
    offer: Rc<Offer>,
    service: Client,
    revoker: Revoker,
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.revoker.revoke("the introduction is over");
    }
}

impl Introduction {
    /// Introduces a graft to an agent.
    pub fn new(
        control: Arc<Control>,
        thread: Rc<Thread>,
        caller: Rc<Holder>,
        server: ServiceName,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            thread,
            caller,
            server,
            meeting: RefCell::default(),
            over: Cell::new(false),
        })
    }

    /// The capability that the caller gets.
    pub fn client(self: &Rc<Self>) -> Client {
        let AnyService(client) = capnp_rpc::new_client_from_rc(self.clone());
        client
    }

    /// The caller's graft is over: whatever either has from the other is cut.
    pub fn end(&self, reason: &str) {
        self.over.set(true);
        let meeting = self.meeting.take();
        if let Some(meeting) = meeting {
            meeting.revoker.revoke(reason);
        }
    }

    /// The membrane to what the server serves now; waits a while for it to serve.
    async fn meet(self: &Rc<Self>) -> Result<Rc<Meeting>, Error> {
        let waiting = async {
            loop {
                let changed = self.thread.changed.notified();
                if let Some(offer) = self.thread.offered(&self.server) {
                    return self.met(offer);
                }
                self.runs()?;
                // A server that ends tells nobody here, so look now and then.
                let _ = tokio::time::timeout(limits::SERVE_AGAIN, changed).await;
            }
        };
        match tokio::time::timeout(limits::SERVE_PATIENCE, waiting).await {
            Ok(met) => met,
            Err(_) => Err(error::busy(&format!(
                "agent '{}' serves nothing yet",
                self.server
            ))),
        }
    }

    fn runs(&self) -> Result<(), Error> {
        let agent = self.control.agent(self.server.as_str());
        let agent = agent.map_err(|error| error::denied(&error))?;
        match agent.shared.phase() {
            phase @ (Phase::Ended(_) | Phase::Killed(_)) => Err(error::busy(&format!(
                "agent '{}' is {}",
                self.server,
                phase.name()
            ))),
            Phase::Starting | Phase::Running | Phase::Backoff(_) => Ok(()),
        }
    }

    fn met(&self, offer: Rc<Offer>) -> Result<Rc<Meeting>, Error> {
        if self.over.get() {
            return Err(error::stale("the graft is over"));
        }
        let standing = self.meeting.borrow().clone();
        if let Some(standing) = standing
            && Rc::ptr_eq(&standing.offer, &offer)
        {
            return Ok(standing);
        }
        let itself = Rc::new(RefCell::new(None));
        let (membrane, revoker) = Membrane::new(Lending {
            facets: self.thread.facets.clone(),
            caller: Rc::downgrade(&self.caller),
            server: Rc::downgrade(&offer.server),
            membrane: itself.clone(),
        });
        let service = membrane.export(offer.service.clone());
        *itself.borrow_mut() = Some(membrane);
        let meeting = Rc::new(Meeting {
            offer,
            service,
            revoker,
        });
        let old = self.meeting.replace(Some(meeting.clone()));
        if let Some(old) = old {
            old.revoker.revoke("the server serves something else now");
        }
        Ok(meeting)
    }

    /// What the caller is told. Stale is not for the server to say: its caller would graft anew, for nothing.
    fn explain(&self, error: Error, meeting: &Meeting) -> Error {
        if error::classify(&error) != error::Kind::Stale {
            return error;
        }
        let current = self.thread.offered(&self.server);
        match current.is_some_and(|offer| Rc::ptr_eq(&offer, &meeting.offer)) {
            true => error::failed(error::reason(&error)),
            false => error::busy(&format!(
                "agent '{}' was cut or served something else while it was at it, so the outcome is unknown",
                self.server
            )),
        }
    }
}

/// Lets everything pass between two agents, but facets: those are lent.
struct Lending {
    facets: Rc<Facets>,
    caller: Weak<Holder>,
    server: Weak<Holder>,
    /// The membrane itself, which drops this when it is revoked.
    membrane: Rc<RefCell<Option<Membrane>>>,
}

impl Policy for Lending {
    fn check(&self, _call: &CallInfo) -> Verdict {
        let membrane = self.membrane.borrow();
        let in_flight = membrane.as_ref().map_or(0, Membrane::calls_in_flight);
        match in_flight < limits::INTRODUCTION_CALLS_MAX {
            true => Verdict::Allow,
            false => Verdict::Deny(error::busy(&format!(
                "{in_flight} calls between these two agents are in flight; wait for one"
            ))),
        }
    }

    fn exchanges(&self) -> bool {
        true
    }

    fn exchange(&self, capability: &dyn ClientHook, lives: Side) -> Option<Box<dyn ClientHook>> {
        let facet = self.facets.find(capability)?;
        let (from, to) = match lives {
            Side::Inside => (&self.server, &self.caller),
            Side::Outside => (&self.caller, &self.server),
        };
        let holds = |holder: &Weak<Holder>| std::ptr::eq(holder.as_ptr(), &**facet.holder());
        if holds(to) {
            return Some(capability.add_ref());
        }
        let lent = match (holds(from), to.upgrade()) {
            (true, Some(to)) => facet.lent_to(to).into_client_hook(),
            _ => capnp_rpc::new_broken_cap(error::denied("this facet is another's")).hook,
        };
        Some(lent)
    }
}

/// A capability of whatever interface.
struct AnyService(Client);

impl FromClientHook for AnyService {
    fn new(hook: Box<dyn ClientHook>) -> Self {
        Self(Client::new(hook))
    }
    fn into_client_hook(self) -> Box<dyn ClientHook> {
        self.0.hook
    }
    fn as_client_hook(&self) -> &dyn ClientHook {
        &*self.0.hook
    }
}

impl FromServer<Introduction> for AnyService {
    type Dispatch = Forward;

    fn from_server(introduction: Rc<Introduction>) -> Forward {
        Forward(introduction)
    }
}

/// Hands every call on.
#[derive(Clone)]
struct Forward(Rc<Introduction>);

impl Deref for Forward {
    type Target = Introduction;

    fn deref(&self) -> &Introduction {
        &self.0
    }
}

impl Server for Forward {
    fn dispatch_call(
        self,
        interface_id: u64,
        method_id: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let introduction = self.0;
        let call = async move {
            let meeting = introduction.meet().await?;
            let service = &meeting.service.hook;
            let call = service.call(interface_id, method_id, params.hook, results.hook);
            call.await
                .map_err(|error| introduction.explain(error, &meeting))
        };
        DispatchCallResult::new(Promise::from_future(call), false)
    }

    fn as_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }
}
