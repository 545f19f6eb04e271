//! Introductions: how an agent reaches what another one serves.
//!
//! In: calls that crossed the caller's wall, of whatever interface. Out: the same calls at the server's wall.
//! Promise: between the two stands a membrane of their own, which falls with the caller's graft; whatever either has from the other
//! falls with it, or with the other's wall. A facet that crosses is lent: it arrives as the receiver's own. Neither can send the other
//! more than its wire bears. Agents of two vat threads meet over a [bridge](super::bridge), with such a membrane at each end.
//! Failure: a server that does not serve, or whose wall falls meanwhile, is told as busy or failed, and never as stale: that is said of
//! the caller's own graft only.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use agora_capnp::loan_capnp::loan;
use agora_guest::wire;
use agora_membrane::{CallInfo, Exchange, Membrane, Policy, Revoker, Side, Verdict, error};
use agora_realm::{GrantId, PersonaId, PersonaName, ServiceName};
use capnp::any_pointer;
use capnp::capability::{
    Client, DispatchCallResult, FromClientHook, FromServer, Params, Promise, Results, Server,
};
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capnp::{Error, ErrorKind};
use tokio::sync::Notify;

use super::bridge::Bridge;
use super::control::Control;
use crate::channel::facet::{Facet, Facets, Holder};
use crate::channel::leash::Leash;
use crate::channel::signer::not_passed_on;
use crate::limits;
use crate::persona::agent::{Agent, Phase};

/// What the agents of one vat thread have in common.
pub struct Thread {
    /// Its place among the vat threads.
    pub place: usize,
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
    /// One without agents.
    pub fn new(place: usize) -> Rc<Self> {
        Rc::new(Self {
            place,
            facets: Rc::default(),
            offers: RefCell::default(),
            changed: Notify::new(),
        })
    }

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
    caller: Party,
    server: ServiceName,
    meeting: RefCell<Option<Rc<Meeting>>>,
    /// Held while a bridge is being opened, so that calls that come at once don't open one each.
    opening: tokio::sync::Mutex<()>,
    over: Cell<bool>,
}

/// An agent that takes part in an introduction.
#[derive(Clone)]
pub enum Party {
    /// One of this vat thread, in one graft.
    Here(Rc<Holder>),
    /// One that is met over a bridge.
    Beyond(PersonaId),
}

/// The membrane between a caller and what is served.
struct Meeting {
    /// None: it is served beyond a bridge.
    offer: Option<Rc<Offer>>,
    service: Client,
    revoker: Revoker,
    borrowed: Leash,
    _bridge: Option<Bridge>,
}

impl Meeting {
    fn end(&self, reason: &str) {
        self.revoker.revoke(reason);
        self.borrowed.cut(reason);
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.end("the introduction is over");
    }
}

impl Introduction {
    /// Introduces an agent to another.
    pub fn new(
        control: Arc<Control>,
        thread: Rc<Thread>,
        caller: Party,
        server: ServiceName,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            thread,
            caller,
            server,
            meeting: RefCell::default(),
            opening: tokio::sync::Mutex::default(),
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
            meeting.end(reason);
        }
    }

    /// The membrane to what the server serves now; waits a while for it to serve.
    async fn meet(self: &Rc<Self>) -> Result<Rc<Meeting>, Error> {
        let agent = self.running()?;
        if agent.worker != self.thread.place {
            return self.met_beyond(&agent).await;
        }
        let waiting = async {
            loop {
                let changed = self.thread.changed.notified();
                if let Some(offer) = self.thread.offered(&self.server) {
                    return self.met(offer);
                }
                self.running()?;
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

    /// The server, if it runs.
    fn running(&self) -> Result<Arc<Agent>, Error> {
        let agent = self.control.agent(self.server.as_str());
        let agent = agent.map_err(|error| error::denied(&error))?;
        match agent.shared.phase() {
            phase @ (Phase::Ended(_) | Phase::Killed(_)) => Err(error::busy(&format!(
                "agent '{}' is {}",
                self.server,
                phase.name()
            ))),
            Phase::Starting | Phase::Running | Phase::Backoff(_) => Ok(agent),
        }
    }

    fn met(&self, offer: Rc<Offer>) -> Result<Rc<Meeting>, Error> {
        let standing = self.meeting.borrow().clone();
        if let Some(standing) = standing
            && standing
                .offer
                .as_ref()
                .is_some_and(|known| Rc::ptr_eq(known, &offer))
        {
            return Ok(standing);
        }
        let server = Party::Here(offer.server.clone());
        let service = offer.service.clone();
        self.arrange(server, service, Some(offer), None)
    }

    async fn met_beyond(&self, agent: &Agent) -> Result<Rc<Meeting>, Error> {
        let _one = self.opening.lock().await;
        let standing = self.meeting.borrow().clone();
        if let Some(standing) = standing {
            return Ok(standing);
        }
        let Party::Here(caller) = &self.caller else {
            return Err(error::denied("a bridge leads to the server's own thread"));
        };
        let bridge = Bridge::open(&self.control, caller, agent, &self.server).await?;
        let AnyService(service) = capnp_rpc::new_client(Far(bridge.service()));
        let server = PersonaId::new(self.control.host_id(), agent.name.clone());
        self.arrange(Party::Beyond(server), service, None, Some(bridge))
    }

    /// Puts a membrane between the two.
    fn arrange(
        &self,
        server: Party,
        service: Client,
        offer: Option<Rc<Offer>>,
        bridge: Option<Bridge>,
    ) -> Result<Rc<Meeting>, Error> {
        if self.over.get() {
            return Err(error::stale("the graft is over"));
        }
        let itself = Rc::new(RefCell::new(None));
        let borrowed = Leash::default();
        let (membrane, revoker) = Membrane::new(Lending {
            facets: self.thread.facets.clone(),
            caller: End::of(&self.caller),
            server: End::of(&server),
            borrowed: borrowed.clone(),
            claimed: Rc::default(),
            membrane: itself.clone(),
        });
        let service = membrane.export(service);
        *itself.borrow_mut() = Some(membrane);
        let meeting = Rc::new(Meeting {
            offer,
            service,
            revoker,
            borrowed,
            _bridge: bridge,
        });
        let old = self.meeting.replace(Some(meeting.clone()));
        if let Some(old) = old {
            old.end("the server serves something else now");
        }
        Ok(meeting)
    }

    /// What the caller is told when the server was cut.
    fn explain(&self, error: Error, meeting: &Rc<Meeting>) -> Error {
        if let Party::Here(caller) = &self.caller
            && !self.control.gate().is_open(caller.epoch)
        {
            // A bump fells the server's wall, too, and on another thread that may come first.
            return error::stale("the epoch has ended; graft again");
        }
        if !error.extra.contains(CUT) || self.over.get() {
            return error;
        }
        let stands = match &meeting.offer {
            Some(met) => self
                .thread
                .offered(&self.server)
                .is_some_and(|offer| Rc::ptr_eq(&offer, met)),
            // The far end says it of its own bridge only, so that has fallen.
            None => {
                let standing = self
                    .meeting
                    .borrow_mut()
                    .take_if(|standing| Rc::ptr_eq(standing, meeting));
                drop(standing);
                false
            }
        };
        match stands {
            true => error,
            false => error::busy(&format!(
                "agent '{}' was cut or served something else while it was at it, so the outcome is unknown",
                self.server
            )),
        }
    }
}

/// How an error begins that says of the other agent, or of what it gave, what stale says of one's own graft. Stale itself is not for
/// another to say: its caller would graft anew, for nothing.
const CUT: &str = "the other agent was cut, or what it gave is over: ";

/// A party, as the policy between two knows it.
#[derive(Clone)]
enum End {
    Here(Weak<Holder>, wire::End),
    Beyond(PersonaId),
}

impl End {
    fn of(party: &Party) -> Self {
        match party {
            Party::Here(holder) => Self::Here(Rc::downgrade(holder), holder.wire.clone()),
            Party::Beyond(persona) => Self::Beyond(persona.clone()),
        }
    }

    /// Whether it can be sent one more answer.
    fn takes_answers(&self) -> Result<(), Error> {
        let Self::Here(_, wire) = self else {
            return Ok(());
        };
        let (bytes, held) = (wire.waiting(), wire.handed_over());
        match bytes <= limits::PEER_ANSWERS_WAITING_MAX
            && held <= limits::PEER_ANSWER_CAPABILITIES_MAX
        {
            true => Ok(()),
            false => Err(error::failed(&format!(
                "{bytes} bytes wait for it, and it holds {held} capabilities"
            ))),
        }
    }

    /// Whether it can be sent more.
    fn bears_more(&self) -> Result<(), Error> {
        let Self::Here(_, wire) = self else {
            return Ok(());
        };
        let (bytes, held, asked) = (wire.waiting(), wire.handed_over(), wire.asked());
        if bytes > limits::PEER_BYTES_WAITING_MAX {
            return Err(error::busy(&format!(
                "the other agent does not take what it is sent ({bytes} bytes wait)"
            )));
        }
        if held > limits::PEER_CAPABILITIES_MAX {
            return Err(error::busy(&format!(
                "the other agent holds {held} capabilities and can't be given more"
            )));
        }
        if asked > limits::PEER_CALLS_UNANSWERED_MAX {
            return Err(error::busy(&format!(
                "the other agent leaves {asked} calls unanswered"
            )));
        }
        Ok(())
    }
}

/// Lets everything pass between two agents, within what their wires bear, but facets: those are lent; and signers: those stay.
struct Lending {
    facets: Rc<Facets>,
    caller: End,
    server: End,
    /// What was lent from beyond a bridge hangs on this.
    borrowed: Leash,
    /// That, by its grant.
    claimed: Rc<RefCell<HashMap<GrantId, Weak<Facet>>>>,
    /// The membrane itself, which drops this when it is revoked.
    membrane: Rc<RefCell<Option<Membrane>>>,
}

impl Lending {
    fn refused(&self, call: &CallInfo) -> Result<(), Error> {
        if call.interface_id == loan::Client::TYPE_ID {
            return Err(Error::unimplemented("this is no loan".into()));
        }
        let membrane = self.membrane.borrow();
        let in_flight = membrane.as_ref().map_or(0, Membrane::calls_in_flight);
        if in_flight >= limits::INTRODUCTION_CALLS_MAX {
            return Err(error::busy(&format!(
                "{in_flight} calls between these two agents are in flight; wait for one"
            )));
        }
        match call.callee {
            Side::Inside => self.server.bears_more(),
            Side::Outside => self.caller.bears_more(),
        }
    }
}

impl Policy for Lending {
    fn check(&self, call: &CallInfo) -> Verdict {
        match self.refused(call) {
            Ok(()) => Verdict::Allow,
            Err(error) => Verdict::Deny(error),
        }
    }

    fn words_max(&self) -> u64 {
        limits::MESSAGE_WORDS_MAX
    }

    fn answers(&self) -> bool {
        true
    }

    /// An answer that its caller does not take must not end the caller, who can't know what it is answered.
    fn results(&self, callee: Side) -> Result<(), Error> {
        let caller = match callee {
            Side::Inside => &self.caller,
            Side::Outside => &self.server,
        };
        caller.takes_answers().map_err(|why| {
            error::failed(&format!(
                "the answer is lost, since this agent does not take what it is sent ({why})"
            ))
        })
    }

    fn error(&self, _callee: Side, mut error: Error) -> Error {
        if error.extra.len() > limits::PEER_ERROR_BYTES_MAX {
            error.extra = crate::cut_text(&error.extra, limits::PEER_ERROR_BYTES_MAX);
        }
        match error::classify(&error) {
            error::Kind::Stale => error::failed(&format!("{CUT}{}", error::reason(&error))),
            _ => error,
        }
    }

    fn exchanges(&self) -> bool {
        true
    }

    fn exchange(&self, capability: &dyn ClientHook, lives: Side) -> Exchange {
        let (from, to) = match lives {
            Side::Inside => (&self.server, &self.caller),
            Side::Outside => (&self.caller, &self.server),
        };
        if let (End::Beyond(_), End::Here(to, _)) = (from, to) {
            return self.claim(capability, to);
        }
        if self.facets.is_signer(capability) {
            return Exchange::Give(capnp_rpc::new_broken_cap(not_passed_on()).hook);
        }
        let Some(facet) = self.facets.find(capability) else {
            return Exchange::Wrap;
        };
        let holds = |end: &End| match end {
            End::Here(holder, _) => std::ptr::eq(holder.as_ptr(), &**facet.holder()),
            End::Beyond(_) => false,
        };
        let given = match to {
            to if holds(to) => capability.add_ref(),
            End::Beyond(to) if holds(from) => facet.loan(to).into_client_hook(),
            End::Here(to, _) if holds(from) && to.strong_count() > 0 => {
                let to = to.upgrade().expect("it was just counted");
                facet.lent_to(to).into_client_hook()
            }
            _ => capnp_rpc::new_broken_cap(error::denied("this facet is another's")).hook,
        };
        Exchange::Give(given)
    }
}

impl Lending {
    /// What came over a bridge: a loan, which becomes a facet of the receiver's, or anything else.
    fn claim(&self, capability: &dyn ClientHook, to: &Weak<Holder>) -> Exchange {
        let loan = loan::Client {
            client: Client::new(capability.add_ref()),
        };
        let (to, leash, claimed) = (to.clone(), self.borrowed.clone(), self.claimed.clone());
        Exchange::Later(Box::pin(async move {
            let answer = match loan.claim_request().send().promise.await {
                Ok(answer) => answer,
                Err(error) if error.kind == ErrorKind::Unimplemented => return Ok(Exchange::Wrap),
                Err(error) => return Err(error),
            };
            let grant = answer.get()?.get_grant()?;
            let grant = GrantId(
                grant
                    .try_into()
                    .map_err(|_| Error::failed("a grant's id has 32 bytes".into()))?,
            );
            let to = to
                .upgrade()
                .ok_or_else(|| error::stale("the graft is over"))?;
            let known = claimed.borrow().get(&grant).and_then(Weak::upgrade);
            // The same grant is lent again after the lender's earlier graft, and what came of that with it, is over.
            let known = known.filter(|facet| !facet.is_cut());
            let facet = match known {
                Some(facet) => facet,
                None => {
                    let facet = to.borrowed(grant, &leash, loan)?;
                    let mut claimed = claimed.borrow_mut();
                    claimed.retain(|_, facet| facet.strong_count() > 0);
                    claimed.insert(grant, Rc::downgrade(&facet));
                    facet
                }
            };
            Ok(Exchange::Give(to.hand_out(&facet).into_client_hook()))
        }))
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

impl<T: Onward> FromServer<T> for AnyService {
    type Dispatch = Forward<T>;

    fn from_server(onward: Rc<T>) -> Forward<T> {
        Forward(onward)
    }
}

/// A call of whatever interface.
struct AnyCall {
    interface_id: u64,
    method_id: u16,
    params: Params<any_pointer::Owned>,
    results: Results<any_pointer::Owned>,
}

impl AnyCall {
    /// Makes it on this.
    async fn on(self, callee: &Client) -> Result<(), Error> {
        let (params, results) = (self.params.hook, self.results.hook);
        let call = callee
            .hook
            .call(self.interface_id, self.method_id, params, results);
        call.await
    }
}

/// Where calls of every interface are handed on to.
trait Onward: 'static {
    async fn call(self: Rc<Self>, call: AnyCall) -> Result<(), Error>;
}

impl Onward for Introduction {
    async fn call(self: Rc<Self>, call: AnyCall) -> Result<(), Error> {
        // A host is not quiet while an agent waits for another's answer.
        let _busy = self.control.busy();
        let meeting = self.meet().await?;
        let called = call.on(&meeting.service).await;
        called.map_err(|error| self.explain(error, &meeting))
    }
}

/// What is beyond a bridge, as an object of this side.
struct Far(Client);

impl Onward for Far {
    async fn call(self: Rc<Self>, call: AnyCall) -> Result<(), Error> {
        call.on(&self.0).await
    }
}

/// Hands every call on.
struct Forward<T>(Rc<T>);

impl<T> Clone for Forward<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Forward<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Onward> Server for Forward<T> {
    fn dispatch_call(
        self,
        interface_id: u64,
        method_id: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let call = AnyCall {
            interface_id,
            method_id,
            params,
            results,
        };
        let onward = match interface_id == loan::Client::TYPE_ID {
            true => Promise::err(Error::unimplemented("this is no loan".into())),
            false => Promise::from_future(self.0.call(call)),
        };
        DispatchCallResult::new(onward, false)
    }

    fn as_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }
}
