//! An agent's door: what it meets on arrival, and the wall of its graft.
//!
//! In: `graft` calls over the agent's wire. Out: what it was granted, each capability behind one new wall.
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
        let hook = self.membrane.export(inside).into_client_hook();
        to.init_capability().set_as_capability(hook);
    }

    fn fall(&self, reason: &str) {
        self.revoker.revoke(reason);
    }
}

/// The door of one agent.
pub struct Door {
    control: Arc<Control>,
    shared: Arc<Shared>,
    persona: PersonaId,
    standing: RefCell<Option<(Wall, Rc<Holder>)>>,
    grafts: Cell<usize>,
}

impl Door {
    /// A door without a graft.
    pub fn new(control: Arc<Control>, shared: Arc<Shared>, persona: PersonaId) -> Rc<Self> {
        Rc::new(Self {
            control,
            shared,
            persona,
            standing: RefCell::default(),
            grafts: Cell::new(0),
        })
    }

    /// The wall falls: everything of the graft is revoked.
    pub fn fall(&self, reason: &str) {
        let standing = self.standing.borrow_mut().take();
        if let Some((wall, holder)) = standing {
            wall.fall(reason);
            holder.end();
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
            self.persona.clone(),
            epoch,
        );
        let grants = self.control.grants_for(&self.persona);
        results.get().set_epoch(epoch.0);
        results.get().set_persona(self.persona.to_string().as_str());
        let mut list = results.get().init_grants(grants.len() as u32);
        for (i, granted) in grants.into_iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            granted.terms.write(to.reborrow().init_terms());
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
                Object::Service(name) => to.set_name(name.as_str()),
            }
        }
        let session: session::Client = capnp_rpc::new_client(Session);
        results.get().set_session(wall.membrane.export(session));
        *self.standing.borrow_mut() = Some((wall, holder));
        self.shared.grafted(epoch);
        if !self.control.gate().is_open(epoch) {
            // The epoch ended meanwhile, and whoever ended it found no wall here to fell.
            self.fall("the epoch has ended; graft again");
        }
        Ok(())
    }
}

/// The life of a graft: its one call is answered by the wall's fall.
struct Session;

impl session::Server for Session {
    async fn ended(
        self: Rc<Self>,
        _params: session::EndedParams,
        _results: session::EndedResults,
    ) -> Result<(), Error> {
        std::future::pending().await
    }
}
