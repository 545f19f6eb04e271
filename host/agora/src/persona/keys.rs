//! The keys that this host signs with: its own, and its personas'.
//!
//! Promise: which key is current is the log's to say. A key that the log has changed is the one in use from that place on, whether this
//! process asked for it, or an earlier one that did not live to see it in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use agora_realm::{Entry, HostId, PersonaId, PersonaName, SigningKey, State};
use tokio::sync::{OwnedRwLockReadGuard, RwLock as Turnstile};

use super::secret::{Secret, random_bytes};

/// Signing keys in use.
pub struct Keys {
    secret: Secret,
    id: HostId,
    host: RwLock<Arc<SigningKey>>,
    personas: RwLock<HashMap<PersonaName, Arc<SigningKey>>>,
    turnstiles: Mutex<HashMap<PersonaName, Arc<Turnstile<()>>>>,
}

/// Held for each entry of a persona from before it is signed until it is in the log, so that a change of its key finds none on the way.
pub type Passing = OwnedRwLockReadGuard<()>;

impl Keys {
    /// The keys of the host with this secret.
    pub fn new(secret: Secret) -> Self {
        let first = secret.host_key(1);
        Self {
            secret,
            // A host's id is the first public key it ever had.
            id: HostId(first.public().0),
            host: RwLock::new(Arc::new(first)),
            personas: RwLock::default(),
            turnstiles: Mutex::default(),
        }
    }

    /// The root secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The host's id.
    pub fn host_id(&self) -> HostId {
        self.id
    }

    /// The host's key, as of when it was last asked for [by the log](Self::host_by).
    pub fn host(&self) -> Arc<SigningKey> {
        let host = self.host.read().unwrap_or_else(PoisonError::into_inner);
        host.clone()
    }

    /// The key that the log has for this host; its first while the log has none. None: it isn't one that the secret gives.
    pub fn host_by(&self, state: &State) -> Option<Arc<SigningKey>> {
        let current = self.host();
        let Some(known) = state.host(&self.id) else {
            return Some(current);
        };
        if current.public() == known.key {
            return Some(current);
        }
        let key = Arc::new(self.secret.host_key(known.keys));
        if key.public() != known.key {
            return None;
        }
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = key.clone();
        Some(key)
    }

    /// The key that the log has for a persona of this host. None: it has none, or not one that the secret gives.
    pub fn persona_by(&self, state: &State, name: &PersonaName) -> Option<Arc<SigningKey>> {
        let known = state.persona(&PersonaId::new(self.id, name.clone()))?;
        {
            let personas = self.personas.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = personas.get(name).filter(|key| key.public() == known.key) {
                return Some(key.clone());
            }
        }
        let component = known.component.as_ref();
        let key = Arc::new(self.secret.persona_key(name, component, known.keys));
        if key.public() != known.key {
            return None;
        }
        let mut personas = self
            .personas
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        personas.insert(name.clone(), key.clone());
        Some(key)
    }

    /// What every entry of a persona passes; see [`Passing`].
    pub fn turnstile(&self, name: &PersonaName) -> Arc<Turnstile<()>> {
        let mut turnstiles = self
            .turnstiles
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        turnstiles.entry(name.clone()).or_default().clone()
    }

    /// Signs an entry. Takes tens of microseconds: not for a vat's thread.
    ///
    /// # Errors
    /// For people: the entry is malformed, or there is no randomness.
    pub fn seal(&self, entry: Entry, key: &SigningKey) -> Result<agora_realm::Sealed, String> {
        let aux = random_bytes().map_err(|error| error.to_string())?;
        entry.seal(key, &aux).map_err(|error| error.to_string())
    }
}
