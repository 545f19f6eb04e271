//! Arrival: what an agent was granted, for as long as the epoch lasts.
//!
//! In: the host's `Membrane`. Out: a [`Graft`] a time, and the agent's function run with each.
//! Promise: when the epoch ends, whatever the function was doing is dropped and it is called with a fresh graft.
//! Failure: an agent that finds only stale capabilities in three grafts of one epoch is told so instead of going round for ever.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;

use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::{channel_capnp::channel, timer_capnp::timer};
use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;
use futures::future::{Either, select};

use crate::channel::Channel;
use crate::error::Error;
use crate::message::Terms;
use crate::signer::Signer;
use crate::timer::Timer;
use crate::vat::ExitStatus;

/// How many grafts of one epoch may turn out stale at once before that is an error.
const STALE_GRAFTS_MAX: u32 = 3;

/// Everything the agent was granted, as capabilities of one epoch.
#[derive(Clone)]
pub struct Graft {
    epoch: u64,
    persona: String,
    grants: BTreeMap<String, Granted>,
    lent: Vec<Lent>,
    session: session::Client,
}

/// What another agent lent for good, as it is on arrival.
#[derive(Clone)]
pub struct Lent {
    /// The facet; what is said through it is said by this agent.
    pub channel: Channel,
    /// Who lent it, as `planner@1a2b3c4d`.
    pub lender: String,
    /// Its terms.
    pub terms: Terms,
}

#[derive(Clone)]
struct Granted {
    interface_id: u64,
    capability: capnp::capability::Client,
    terms: Terms,
}

impl Graft {
    /// Asks for one. Waits while the operator holds the epoch.
    ///
    /// # Errors
    /// Stale or disconnected when the agent was killed.
    pub async fn arrive(door: &membrane::Client) -> Result<Self, Error> {
        let response = door.graft_request().send().promise.await?;
        let results = response.get()?;
        let mut grants = BTreeMap::new();
        let mut lent = Vec::new();
        for grant in results.get_grants()?.iter() {
            let capability: capnp::capability::Client =
                grant.get_capability().get_as_capability()?;
            let name = grant.get_name()?.to_str()?.to_owned();
            let granted = Granted {
                interface_id: grant.get_interface_id(),
                capability,
                terms: Terms::read(grant.get_terms()?)?,
            };
            match grant.get_lent()?.to_str()? {
                "" => drop(grants.insert(name, granted)),
                lender => lent.push(Lent {
                    channel: Channel::from_client(&name, granted.cast()),
                    lender: lender.to_owned(),
                    terms: granted.terms,
                }),
            }
        }
        Ok(Self {
            epoch: results.get_epoch(),
            persona: results.get_persona()?.to_str()?.to_owned(),
            grants,
            lent,
            session: results.get_session()?,
        })
    }

    /// The epoch this graft is of.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Who this agent speaks as, as `planner@1a2b3c4d`.
    pub fn persona(&self) -> &str {
        &self.persona
    }

    /// The names of everything granted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.grants.keys().map(String::as_str)
    }

    /// The channels granted, by name.
    pub fn channels(&self) -> impl Iterator<Item = Channel> {
        self.grants
            .iter()
            .filter(|(_, granted)| granted.interface_id == channel::Client::TYPE_ID)
            .map(|(name, granted)| Channel::from_client(name, granted.cast()))
    }

    /// What others lent for good. [`channel`](Graft::channel) finds only what the host granted.
    pub fn lent(&self) -> &[Lent] {
        &self.lent
    }

    /// Serves a capability, of any interface, to the agents that were granted this one as a service; in place of what it served before
    /// in this graft. A channel that they pass in their calls arrives as this agent's own; see [`Channel::adopt`].
    ///
    /// # Errors
    /// Stale.
    pub async fn serve<C: FromClientHook>(&self, service: C) -> Result<(), Error> {
        let mut request = self.session.serve_request();
        let mut to = request.get().init_service();
        to.set_as_capability(service.into_client_hook());
        request.send().promise.await?;
        Ok(())
    }

    /// The terms of a grant, as they were on arrival.
    pub fn terms(&self, name: &str) -> Option<&Terms> {
        Some(&self.grants.get(name)?.terms)
    }

    /// A channel by name.
    ///
    /// # Errors
    /// Denied when it was not granted; names what was.
    pub fn channel(&self, name: &str) -> Result<Channel, Error> {
        Ok(Channel::from_client(name, self.capability(name)?))
    }

    /// The signer for a domain.
    ///
    /// # Errors
    /// Denied when it was not granted; names what was.
    pub fn signer(&self, domain: &str) -> Result<Signer, Error> {
        Ok(Signer {
            client: self.capability(domain)?,
        })
    }

    /// The timer.
    ///
    /// # Errors
    /// Denied when it was not granted.
    pub fn timer(&self) -> Result<Timer, Error> {
        Ok(Timer {
            client: self.capability::<timer::Client>("timer")?,
        })
    }

    /// Any grant by name, as the interface it was granted as. What a service offers its host doesn't know, so that is any; a call
    /// that it does not offer fails as unimplemented.
    ///
    /// # Errors
    /// Denied when it was not granted, or has another interface.
    pub fn capability<C: FromClientHook + HasTypeId>(&self, name: &str) -> Result<C, Error> {
        match self.grants.get(name) {
            Some(granted) if [C::TYPE_ID, 0].contains(&granted.interface_id) => Ok(granted.cast()),
            Some(_) => Err(Error::denied(format!("'{name}' has another interface"))),
            None => Err(Error::denied(format!(
                "no grant for '{name}' (granted: {})",
                self.names().collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Answers when this graft's capabilities were revoked, with the reason.
    pub async fn ended(&self) -> Error {
        match self.session.ended_request().send().promise.await {
            Err(error) => error.into(),
            Ok(_) => Error::stale("the session ended"),
        }
    }
}

impl Granted {
    fn cast<C: FromClientHook>(&self) -> C {
        C::new(self.capability.hook.add_ref())
    }
}

/// Runs an agent's function for each graft, until it is done.
pub(crate) async fn live<F, Fut, R>(door: membrane::Client, mut agent: F) -> Result<(), Error>
where
    F: FnMut(Graft) -> Fut,
    Fut: Future<Output = R>,
    R: ExitStatus,
{
    let mut stale_in_epoch = (0, 0);
    loop {
        let graft = Graft::arrive(&door).await?;
        let epoch = graft.epoch;
        let watched = graft.clone();
        let error = {
            let ended = pin!(watched.ended());
            let running = pin!(agent(graft));
            match select(ended, running).await {
                Either::Left((reason, _)) if reason.is_stale() => continue,
                Either::Left((reason, _)) => return Err(reason),
                Either::Right((result, _)) => match result.into_result() {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
            }
        };
        if !error.is_stale() {
            return Err(error);
        }
        stale_in_epoch = match stale_in_epoch {
            (same, times) if same == epoch => (epoch, times + 1),
            _ => (epoch, 1),
        };
        if stale_in_epoch.1 > STALE_GRAFTS_MAX {
            return Err(Error::failed(format!(
                "still stale after {STALE_GRAFTS_MAX} grafts: {error}"
            )));
        }
    }
}
