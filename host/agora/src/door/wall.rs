//! The wall around one graft, and the only way for a capability to reach an agent through it.
//!
//! In: capabilities of the inside. Out: [`Walled`] ones, which only a [`Wall`] makes, and which alone an [`Arrival`] takes: so what answers
//! `graft` can't name a capability that is not wrapped.
//! Promise: one load of the gate decides every call. When the wall falls, everything that went through it is revoked, both ways.
//! Failure: calls after the epoch, or after the fall, are stale.

use std::sync::Arc;

use agora_capnp::membrane_capnp::{membrane, session};
use agora_membrane::{CallInfo, Membrane, Policy, Revoker, Verdict, error};
use agora_realm::{Epoch, PersonaId, Terms};
use capnp::capability::FromClientHook;

use super::control::Control;

/// What surrounds one graft.
pub struct Wall {
    membrane: Membrane,
    revoker: Revoker,
}

/// A capability as an agent may have it.
pub struct Walled<C>(C);

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
    /// One that stands while this epoch is open.
    pub fn new(control: Arc<Control>, epoch: Epoch) -> Self {
        let (membrane, revoker) = Membrane::new(WhileOpen { control, epoch });
        Self { membrane, revoker }
    }

    /// A capability of the inside, wrapped.
    pub fn wrap<C: FromClientHook>(&self, inside: C) -> Walled<C> {
        Walled(self.membrane.export(inside))
    }

    /// Everything of the graft is revoked.
    pub fn fall(&self, reason: &str) {
        self.revoker.revoke(reason);
    }
}

/// What an agent is told on arrival.
pub struct Arrival(membrane::GraftResults);

/// What is said of one grant.
pub struct Told<'a> {
    /// Its name.
    pub name: &'a str,
    /// Of the interface it is used by; 0: nobody here knows.
    pub interface_id: u64,
    /// Effective.
    pub terms: &'a Terms,
    /// Who lent it.
    pub lent_by: Option<&'a PersonaId>,
}

impl Arrival {
    /// The answer to a `graft`, in which so many grants have room.
    pub fn new(mut results: membrane::GraftResults, grants: usize) -> Self {
        results.get().init_grants(grants as u32);
        Self(results)
    }

    /// In which epoch, as whom, and what to wait on for its end.
    pub fn tell(&mut self, epoch: Epoch, persona: &PersonaId, session: Walled<session::Client>) {
        let mut results = self.0.get();
        results.set_epoch(epoch.0);
        results.set_persona(persona.to_string().as_str());
        results.set_session(session.0);
    }

    /// What the grant at this place is. Without a capability it can't be had now.
    ///
    /// # Errors
    /// There is no such place.
    pub fn grant<C: FromClientHook>(
        &mut self,
        at: usize,
        told: &Told<'_>,
        capability: Option<Walled<C>>,
    ) -> capnp::Result<()> {
        let mut to = self
            .0
            .get()
            .get_grants()?
            .try_get(at as u32)
            .ok_or_else(|| capnp::Error::failed(format!("there is no room for grant {at}")))?;
        to.set_name(told.name);
        to.set_interface_id(told.interface_id);
        told.terms.write(to.reborrow().init_terms());
        if let Some(lender) = told.lent_by {
            to.set_lent(lender.to_string().as_str());
        }
        if let Some(Walled(capability)) = capability {
            to.init_capability()
                .set_as_capability(capability.into_client_hook());
        }
        Ok(())
    }
}
