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
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::signer_capnp::signer;
use agora_capnp::timer_capnp::timer;
use agora_guest::wire;
use agora_membrane::error;
use agora_realm::{GrantId, Object, PersonaId};
use capnp::Error;
use capnp::capability::Client;
use capnp::traits::HasTypeId;

use super::control::{Control, Granted};
use super::introduction::{Introduction, Party, Thread};
use super::service::Lease;
use super::wall::{Arrival, Told, Wall};
use crate::channel::facet::Holder;
use crate::channel::signer::{Signer, not_passed_on};
use crate::channel::timer::Timer;
use crate::limits;
use crate::persona::agent::Shared;

/// A graft that stands.
struct Standing {
    wall: Wall,
    holder: Rc<Holder>,
    /// What the host granted, and what was lent for good.
    grants: Vec<GrantId>,
    introductions: Vec<Rc<Introduction>>,
    leases: Vec<Lease>,
}

/// The door of one agent.
pub struct Door {
    control: Arc<Control>,
    shared: Arc<Shared>,
    thread: Rc<Thread>,
    wire: wire::End,
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
        wire: wire::End,
        persona: PersonaId,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            shared,
            thread,
            wire,
            persona,
            standing: RefCell::default(),
            grafts: Cell::new(0),
        })
    }

    /// Whether something that was granted on arrival is revoked by now.
    pub fn holds_revoked(&self) -> bool {
        let standing = self.standing.borrow();
        let mut grants = standing.iter().flat_map(|standing| &standing.grants);
        grants.any(|grant| self.control.is_cut(grant))
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
            for lease in &standing.leases {
                lease.fall(reason);
            }
            standing.holder.end(reason);
        }
    }
}

impl membrane::Server for Door {
    async fn graft(
        self: Rc<Self>,
        _params: membrane::GraftParams,
        results: membrane::GraftResults,
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
            self.wire.clone(),
            self.persona.clone(),
            epoch,
        );
        let signs = |granted: &Granted| matches!(granted.object, Object::Signer(_));
        let mut introductions = Vec::new();
        let mut leases = Vec::new();
        let grants = self.control.grants_for(&self.persona);
        let held = grants.iter().map(|granted| granted.id).collect();
        let signers = grants.iter().any(signs).then(|| self.thread.facets.clone());
        let mut arrival = Arrival::new(results, grants.len());
        for (at, granted) in grants.into_iter().enumerate() {
            let mut told = Told {
                name: granted.object.name(),
                interface_id: 0,
                terms: &granted.terms,
                lent_by: granted.lent_by.as_ref(),
            };
            match &granted.object {
                Object::Channel(name) => {
                    told.interface_id = channel::Client::TYPE_ID;
                    let facet = wall.wrap(holder.facet(name.clone(), granted.id));
                    arrival.grant(at, &told, Some(facet))?;
                }
                Object::Timer => {
                    told.interface_id = timer::Client::TYPE_ID;
                    let timer: timer::Client =
                        capnp_rpc::new_client(Timer::new(self.control.clone()));
                    arrival.grant(at, &told, Some(wall.wrap(timer)))?;
                }
                Object::Signer(domain) => {
                    told.interface_id = signer::Client::TYPE_ID;
                    let signer = Signer::new(
                        self.control.clone(),
                        self.shared.signing.clone(),
                        self.persona.name.clone(),
                        domain.clone(),
                        granted.id,
                        epoch,
                    );
                    let signer = self.thread.facets.know_signer(&signer);
                    arrival.grant(at, &told, Some(wall.wrap(signer)))?;
                }
                Object::Service(name) if self.control.services().has(name) => {
                    let leased =
                        self.control
                            .services()
                            .lease(name, self.wire.clone(), signers.clone());
                    let service = leased.map(|(service, lease)| {
                        leases.push(lease);
                        wall.wrap(service)
                    });
                    arrival.grant(at, &told, service)?;
                }
                Object::Service(name) => {
                    let introduction = Introduction::new(
                        self.control.clone(),
                        self.thread.clone(),
                        Party::Here(holder.clone()),
                        name.clone(),
                    );
                    let service = wall.wrap(introduction.client());
                    introductions.push(introduction);
                    arrival.grant(at, &told, Some(service))?;
                }
            }
        }
        let session: session::Client = capnp_rpc::new_client(Session {
            thread: self.thread.clone(),
            holder: holder.clone(),
        });
        arrival.tell(epoch, &self.persona, wall.wrap(session));
        *self.standing.borrow_mut() = Some(Standing {
            wall,
            holder,
            grants: held,
            introductions,
            leases,
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
        if service.is_null() {
            self.thread.withdraw(&self.holder);
            return Ok(());
        }
        let mut service: Client = service.get_as_capability()?;
        // What it is, where it is promised yet: a signer is not for others.
        while let Some(settling) = service.hook.when_more_resolved() {
            service = Client::new(settling.await?);
        }
        if self.thread.facets.is_signer(&*service.hook) {
            return Err(not_passed_on());
        }
        self.thread.offer(&self.holder, service);
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
