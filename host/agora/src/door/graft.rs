//! An agent's door: what it meets on arrival, and the wall of its graft.
//!
//! In: `graft` calls over the agent's wire, and what it offers to serve. Out: what it was granted, each capability behind one new wall.
//! Promise: a [`Wall`] is the only way that a capability gets into a graft, so nothing reaches the agent unwrapped; the wall of an earlier
//! graft falls first. When a wall falls, every call through it fails as stale, `ended` with them.
//! Failure: a graft waits while a fence is pending or the epoch is held.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use agora_capnp::channel_capnp::channel;
use agora_capnp::membrane_capnp::{grant, membrane, session};
use agora_capnp::timer_capnp::timer;
use agora_membrane::{CallInfo, Membrane, Policy, Revoker, Verdict, error};
use agora_realm::{Epoch, Object, PersonaId};
use capnp::Error;
use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;

use super::control::Control;
use super::introduction::{Introduction, Thread};
use crate::channel::facet::Holder;
use crate::channel::timer::Timer;
use crate::limits;
use crate::persona::agent::Shared;

/// What surrounds one graft.
pub struct Wall {
    membrane: Membrane,
    revoker: Revoker,
}

struct WhileOpen {
    control: Arc<Control>,
    epoch: Epoch,
}

impl Policy for WhileOpen {
    fn check(&self, _call: &CallInfo) -> Verdict {
        match self.control.gate().is_open(self.epoch) {
            true => Verdict::Allow,
            false => Verdict::Deny(error::stale("the epoch has ended; graft again")),
        }
    }
}

impl Wall {
    fn new(control: Arc<Control>, epoch: Epoch) -> Self {
        let (membrane, revoker) = Membrane::new(WhileOpen { control, epoch });
        Self { membrane, revoker }
    }

    /// Puts a capability into a grant, wrapped.
    fn grant<C: FromClientHook + HasTypeId>(&self, inside: C, mut to: grant::Builder<'_>) {
        to.set_interface_id(C::TYPE_ID);
        self.grant_any(inside, to);
    }

    /// Puts a capability of unknown interface into a grant, wrapped.
    fn grant_any<C: FromClientHook>(&self, inside: C, to: grant::Builder<'_>) {
        let hook = self.membrane.export(inside).into_client_hook();
        to.init_capability().set_as_capability(hook);
    }

    fn fall(&self, reason: &str) {
        self.revoker.revoke(reason);
    }
}

/// A graft that stands.
struct Standing {
    wall: Wall,
    holder: Rc<Holder>,
    introductions: Vec<Rc<Introduction>>,
}

/// The door of one agent.
pub struct Door {
    control: Arc<Control>,
    shared: Arc<Shared>,
    thread: Rc<Thread>,
    persona: PersonaId,
    standing: RefCell<Option<Standing>>,
    grafts: Cell<usize>,
}

impl Door {
    /// A door without a graft.
    pub fn new(
        control: Arc<Control>,
        shared: Arc<Shared>,
        thread: Rc<Thread>,
        persona: PersonaId,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            shared,
            thread,
            persona,
            standing: RefCell::default(),
            grafts: Cell::new(0),
        })
    }

    /// The wall falls: everything of the graft is revoked.
    pub fn fall(&self, reason: &str) {
        let standing = self.standing.borrow_mut().take();
        if let Some(standing) = standing {
            standing.wall.fall(reason);
            self.thread.withdraw(&standing.holder);
            for introduction in &standing.introductions {
                introduction.end(reason);
            }
            standing.holder.end(reason);
        }
    }
}

impl membrane::Server for Door {
    async fn graft(
        self: Rc<Self>,
        _params: membrane::GraftParams,
        mut results: membrane::GraftResults,
    ) -> Result<(), Error> {
        if self.grafts.get() >= limits::GRAFTS_PER_LIFE_MAX {
            return Err(error::busy(&format!(
                "this agent has had {} grafts; more need a new start",
                limits::GRAFTS_PER_LIFE_MAX
            )));
        }
        self.grafts.set(self.grafts.get() + 1);
        let epoch = self.control.gate().passage().await;
        self.fall("a newer graft took its place");
        let wall = Wall::new(self.control.clone(), epoch);
        let holder = Holder::new(
            self.control.clone(),
            self.shared.clone(),
            self.thread.facets.clone(),
            self.persona.clone(),
            epoch,
        );
        let mut introductions = Vec::new();
        let grants = self.control.grants_for(&self.persona);
        results.get().set_epoch(epoch.0);
        results.get().set_persona(self.persona.to_string().as_str());
        let mut list = results.get().init_grants(grants.len() as u32);
        for (i, granted) in grants.into_iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            granted.terms.write(to.reborrow().init_terms());
            if let Some(lender) = granted.lent_by {
                to.set_lent(lender.to_string().as_str());
            }
            match granted.object {
                Object::Channel(name) => {
                    to.set_name(name.as_str());
                    let facet: channel::Client = holder.facet(name, granted.id);
                    wall.grant(facet, to);
                }
                Object::Timer => {
                    to.set_name("timer");
                    let timer: timer::Client =
                        capnp_rpc::new_client(Timer::new(self.control.clone()));
                    wall.grant(timer, to);
                }
                Object::Service(name) => {
                    to.set_name(name.as_str());
                    let introduction = Introduction::new(
                        self.control.clone(),
                        self.thread.clone(),
                        holder.clone(),
                        name,
                    );
                    wall.grant_any(introduction.client(), to);
                    introductions.push(introduction);
                }
            }
        }
        let session: session::Client = capnp_rpc::new_client(Session {
            thread: self.thread.clone(),
            holder: holder.clone(),
        });
        results.get().set_session(wall.membrane.export(session));
        *self.standing.borrow_mut() = Some(Standing {
            wall,
            holder,
            introductions,
        });
        self.shared.grafted(epoch);
        if !self.control.gate().is_open(epoch) {
            // The epoch ended meanwhile, and whoever ended it found no wall here to fell.
            self.fall("the epoch has ended; graft again");
        }
        Ok(())
    }
}

/// The life of a graft, and what is served in it.
struct Session {
    thread: Rc<Thread>,
    holder: Rc<Holder>,
}

impl session::Server for Session {
    async fn serve(
        self: Rc<Self>,
        params: session::ServeParams,
        _results: session::ServeResults,
    ) -> Result<(), Error> {
        let service = params.get()?.get_service();
        match service.is_null() {
            true => self.thread.withdraw(&self.holder),
            false => self
                .thread
                .offer(&self.holder, service.get_as_capability()?),
        }
        Ok(())
    }

    /// Answered by the wall's fall.
    async fn ended(
        self: Rc<Self>,
        _params: session::EndedParams,
        _results: session::EndedResults,
    ) -> Result<(), Error> {
        std::future::pending().await
    }
}
