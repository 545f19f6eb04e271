//! The keys that this host signs with: its own, and its personas'.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use agora_realm::{Entry, HostId, PersonaName, SigningKey};

use super::secret::{Secret, random_bytes};

/// Signing keys in use.
pub struct Keys {
    secret: Secret,
    host: Arc<SigningKey>,
    id: HostId,
    personas: RwLock<HashMap<PersonaName, Arc<SigningKey>>>,
}

impl Keys {
    /// The keys of the host with this secret.
    pub fn new(secret: Secret) -> Self {
        let host = Arc::new(secret.host_key());
        // A host's id is the first public key it ever had.
        let id = HostId(host.public().0);
        Self {
            secret,
            host,
            id,
            personas: RwLock::default(),
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

    /// The host's key.
    pub fn host(&self) -> &Arc<SigningKey> {
        &self.host
    }

    /// A persona's current key.
    pub fn persona(&self, name: &PersonaName) -> Option<Arc<SigningKey>> {
        let personas = self.personas.read().unwrap_or_else(PoisonError::into_inner);
        personas.get(name).cloned()
    }

    /// Uses this key for a persona from here on.
    pub fn use_for(&self, name: PersonaName, key: SigningKey) {
        let mut personas = self
            .personas
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        personas.insert(name, Arc::new(key));
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
