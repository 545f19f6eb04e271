//! Signatures in a domain, for whom they were granted.
//!
//! In: messages that crossed the wall of the agent that was granted the signer. Out: its persona's signature over the digest of realm,
//! persona, domain and message, which nothing else of agora's is signed over.
//! Promise: the key stays here. Signing is off the vat's thread and bounded; a signature is handed out only while the grant stands and its
//! epoch is open. A signer is not passed on: whoever another agent or a service hands it to gets a refusal instead.
//! Failure: errors say what the caller should do next (re-graft, ask differently, wait).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agora_capnp::signer_capnp::signer;
use agora_membrane::error;
use agora_realm::{DomainName, Epoch, GrantId, PersonaName};
use capnp::Error;

use crate::channel::speak::Counted;
use crate::door::control::Control;
use crate::limits;

/// What one agent has asked to have signed lately, in all its grafts.
#[derive(Default)]
pub struct Signing {
    under_way: Arc<AtomicUsize>,
    /// When the second began that is counted, and what was asked for in it.
    second: Mutex<Option<(Instant, u32)>>,
}

impl Signing {
    /// One more, under way until the answer is dropped.
    fn begin(&self, now: Instant) -> Result<Counted, Error> {
        if self.under_way.load(Ordering::SeqCst) >= limits::SIGNS_IN_FLIGHT_MAX {
            return Err(error::busy(&format!(
                "{} signatures are under way; that is all an agent may have",
                limits::SIGNS_IN_FLIGHT_MAX
            )));
        }
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, asked) = match *second {
            Some((began, asked)) if now.duration_since(began) < Duration::from_secs(1) => {
                (began, asked)
            }
            _ => (now, 0),
        };
        if asked >= limits::SIGNS_PER_SECOND_MAX {
            return Err(error::busy(&format!(
                "an agent may ask for {} signatures in a second",
                limits::SIGNS_PER_SECOND_MAX
            )));
        }
        *second = Some((began, asked + 1));
        Ok(Counted::new(&self.under_way))
    }
}

/// An agent's signer for one domain, in one graft.
pub struct Signer {
    control: Arc<Control>,
    signing: Arc<Signing>,
    persona: PersonaName,
    domain: DomainName,
    grant: GrantId,
    epoch: Epoch,
}

impl Signer {
    /// A signer under this grant.
    pub fn new(
        control: Arc<Control>,
        signing: Arc<Signing>,
        persona: PersonaName,
        domain: DomainName,
        grant: GrantId,
        epoch: Epoch,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            signing,
            persona,
            domain,
            grant,
            epoch,
        })
    }

    fn stands(&self) -> Result<(), Error> {
        if !self.control.gate().is_open(self.epoch) {
            return Err(error::stale("the epoch has ended; graft again"));
        }
        match self.control.is_cut(&self.grant) {
            true => Err(error::stale("the grant was revoked")),
            false => Ok(()),
        }
    }
}

/// What stands in a signer's place wherever it would be passed on.
pub fn not_passed_on() -> Error {
    error::denied("a signer can't be passed on; sign yourself, and pass the signature on")
}

impl signer::Server for Signer {
    async fn sign(
        self: Rc<Self>,
        params: signer::SignParams,
        mut results: signer::SignResults,
    ) -> Result<(), Error> {
        let message = params.get()?.get_message()?;
        if message.len() > limits::SIGN_BYTES_MAX {
            return Err(error::denied(&format!(
                "a message of {} bytes; a signer takes up to {} (sign its hash)",
                message.len(),
                limits::SIGN_BYTES_MAX
            )));
        }
        self.stands()?;
        let under_way = (self.signing.begin(Instant::now())?, self.control.busy());
        let (control, persona) = (self.control.clone(), self.persona.clone());
        let (domain, message) = (self.domain.clone(), message.to_vec());
        let signing = self.control.runtime().spawn_blocking(move || {
            // Until it is done, also when nobody waits for it any more.
            let _under_way = under_way;
            control.sign_for(&persona, &domain, &message)
        });
        let signed = signing
            .await
            .map_err(|_| error::failed("the host is ending"))?;
        // What was cut meanwhile is not handed out any more.
        self.stands()?;
        let (signature, key) = signed.map_err(|error| error::failed(&error))?;
        let mut results = results.get();
        results.set_signature(&signature);
        results.set_public_key(&key.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_asks_for_so_many_at_once_and_in_a_second() {
        let signing = Signing::default();
        let now = Instant::now();
        let held: Vec<_> = (0..limits::SIGNS_IN_FLIGHT_MAX)
            .map(|_| signing.begin(now).unwrap())
            .collect();
        assert!(signing.begin(now).is_err());
        drop(held);
        for _ in limits::SIGNS_IN_FLIGHT_MAX..limits::SIGNS_PER_SECOND_MAX as usize {
            drop(signing.begin(now).unwrap());
        }
        assert!(signing.begin(now).is_err());
        assert!(signing.begin(now + Duration::from_secs(1)).is_ok());
    }
}
