//! Signatures, for an agent that was granted a signer for a domain.
//!
//! ```no_run
//! use agora_guest::prelude::*;
//!
//! /// Signs what it is asked to release, and says so.
//! #[agora_guest::main]
//! async fn releaser(graft: Graft) -> Result<(), Error> {
//!     let (channel, signer) = (graft.channel("releases")?, graft.signer("release")?);
//!     let mut heard = channel.subscribe().await?;
//!     while let Some(request) = heard.next().await? {
//!         let signed = signer.sign(&request.payload).await?;
//!         let draft = Draft::new(Act::Agree, signed.signature.to_vec());
//!         channel.reply(&request, draft).await?;
//!     }
//!     Ok(())
//! }
//! # fn main() {}
//! ```

use agora_capnp::signer_capnp::signer;

use crate::error::Error;

/// Signs as this agent, in the domain that it was granted. The key is the host's to keep.
#[derive(Clone)]
pub struct Signer {
    pub(crate) client: signer::Client,
}

/// What a signer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// BIP-340, over the digest of realm, persona, domain and message.
    pub signature: [u8; 64],
    /// The key that it verifies with: x-only, and this persona's now. The realm's record says since when.
    pub public_key: [u8; 32],
}

impl Signer {
    /// Signs up to 64 KiB; sign the hash of what is longer.
    ///
    /// # Errors
    /// Stale after the epoch's end; busy when 16 are under way, or too many were asked for in this second; denied when it is too long.
    pub async fn sign(&self, message: &[u8]) -> Result<Signature, Error> {
        let mut request = self.client.sign_request();
        request.get().set_message(message);
        let response = request.send().promise.await?;
        let results = response.get()?;
        let malformed = |_| Error::failed("the host's signature has not the size of one");
        Ok(Signature {
            signature: results.get_signature()?.try_into().map_err(malformed)?,
            public_key: results.get_public_key()?.try_into().map_err(malformed)?,
        })
    }

    /// The capability itself. It can be called, and not passed on: whoever it is passed to gets a refusal.
    pub fn client(&self) -> signer::Client {
        self.client.clone()
    }
}
