//! The control lane, as a peer finds it here: who we are, and what it must know at once.
//!
//! In: calls of a peer that is known by its id. Out: answers, each at once or when something has changed.
//! Promise: `changed` misses nothing: it compares with what the caller has seen. Nothing here waits for the vat lane.
//! Failure: what it says of its own host key is checked; a `hello` that doesn't verify is denied, and the connection is of no more use.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use agora_capnp::peer_capnp::link;
use agora_dial::PeerId;
use agora_membrane::error;
use agora_realm::{HostId, PublicKey, RealmId, hello_digest};
use capnp::Error;

use super::exchange::{self, Lot};
use super::peers::Peer;
use crate::door::control::Control;

/// The version of what hosts say to each other.
pub const VERSION: u16 = 1;

/// Who another host says it is, as far as that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its realm.
    pub realm: RealmId,
    /// Its id there.
    pub host: HostId,
    /// The key it has now.
    pub key: PublicKey,
    /// What it calls us.
    pub calls_us: String,
}

/// Writes this host's hello.
///
/// # Errors
/// This host has no realm or no key.
pub fn write_hello(
    control: &Control,
    own: &PeerId,
    to_whom: &Peer,
    mut to: agora_capnp::peer_capnp::hello::Builder<'_>,
) -> Result<(), Error> {
    let (realm, epoch) = {
        let state = control.record().state();
        (state.realm(), state.epoch())
    };
    let realm = realm.ok_or_else(|| error::failed("this host has no realm"))?;
    let host = control.host_id();
    let signed = control.sign_as_host(&hello_digest(&realm, &host, &own.to_bytes()));
    let (signature, key) = signed.map_err(|error| error::failed(&error))?;
    to.set_version(VERSION);
    to.set_realm(&realm.0);
    to.set_host(&host.0);
    to.set_public_key(&key.0);
    to.set_signature(&signature);
    to.set_epoch(epoch.0);
    to.set_name(to_whom.name.as_str());
    Ok(())
}

/// Reads a hello of who is connected by this peer id.
///
/// # Errors
/// Denied, with what is wrong and what to do.
pub fn read_hello(
    peer: &Peer,
    from: &PeerId,
    hello: agora_capnp::peer_capnp::hello::Reader<'_>,
) -> Result<Known, Error> {
    let version = hello.get_version();
    if version != VERSION {
        return Err(error::denied(&format!(
            "{} speaks version {version} of agora's peer protocol, and this host {VERSION} (update the older one)",
            peer.name
        )));
    }
    let malformed = || error::denied(&format!("{}: its hello is malformed", peer.name));
    let bytes = |data: &[u8]| <[u8; 32]>::try_from(data).map_err(|_| malformed());
    let realm = RealmId(bytes(hello.get_realm()?)?);
    let host = HostId(bytes(hello.get_host()?)?);
    let key = PublicKey(bytes(hello.get_public_key()?)?);
    let signature = <[u8; 64]>::try_from(hello.get_signature()?).map_err(|_| malformed())?;
    if !key.verifies(&hello_digest(&realm, &host, &from.to_bytes()), &signature) {
        return Err(error::denied(&format!(
            "{}: what it says of its host key is not signed by that key",
            peer.name
        )));
    }
    if peer.spec.key.is_some_and(|expected| expected != key) {
        return Err(error::denied(&format!(
            "{}: its host key is {key}, and the manifest expects another (if it was rotated, change `key` of [peers.{}])",
            peer.name, peer.name
        )));
    }
    let calls_us = crate::cut_text(hello.get_name()?.to_str().map_err(|_| malformed())?, 64);
    Ok(Known {
        realm,
        host,
        key,
        calls_us,
    })
}

/// One control connection that the peer opened.
pub struct Link {
    control: Arc<Control>,
    peer: Arc<Peer>,
    /// Of its connection.
    from: PeerId,
    /// Ours.
    own: PeerId,
    greeted: Cell<bool>,
    lot: Lot,
}

impl Link {
    /// What a peer finds on the control lane.
    pub fn new(control: Arc<Control>, peer: Arc<Peer>, from: PeerId, own: PeerId) -> Self {
        Self {
            control,
            peer,
            from,
            own,
            greeted: Cell::new(false),
            lot: Lot::default(),
        }
    }
}

impl link::Server for Link {
    async fn hello(
        self: Rc<Self>,
        params: link::HelloParams,
        mut results: link::HelloResults,
    ) -> Result<(), Error> {
        if self.greeted.replace(true) {
            return Err(error::denied("a control connection is greeted once"));
        }
        let known = read_hello(&self.peer, &self.from, params.get()?.get_hello()?)?;
        self.peer.met(&self.control, known)?;
        write_hello(
            &self.control,
            &self.own,
            &self.peer,
            results.get().init_hello(),
        )
    }

    async fn ping(
        self: Rc<Self>,
        _params: link::PingParams,
        mut results: link::PingResults,
    ) -> Result<(), Error> {
        let told = self.peer.told.borrow();
        results.get().set_epoch(told.epoch.0);
        results.get().set_revision(told.revision);
        Ok(())
    }

    async fn changed(
        self: Rc<Self>,
        params: link::ChangedParams,
        mut results: link::ChangedResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (epoch, revision) = (params.get_epoch(), params.get_revision());
        let mut told = self.peer.told.subscribe();
        let changed = told.wait_for(|told| told.epoch.0 != epoch || told.revision != revision);
        let now = changed
            .await
            .map_err(|_| error::failed("the host is ending"))?;
        results.get().set_epoch(now.epoch.0);
        results.get().set_revision(now.revision);
        results.get().set_reason(&*now.reason);
        Ok(())
    }

    async fn checkpoint(
        self: Rc<Self>,
        params: link::CheckpointParams,
        mut results: link::CheckpointResults,
    ) -> Result<(), Error> {
        self.lot.draw()?;
        let newest = exchange::newest(&self.control, params.get()?.get_since()).await?;
        let mut answer = results.get();
        answer.set_checkpoint(newest.signed.to_string().as_bytes());
        let mut proof = answer.init_proof(newest.proof.len() as u32);
        for (i, hash) in newest.proof.iter().enumerate() {
            proof.set(i as u32, hash);
        }
        Ok(())
    }

    async fn witnessed(
        self: Rc<Self>,
        params: link::WitnessedParams,
        _results: link::WitnessedResults,
    ) -> Result<(), Error> {
        self.lot.draw()?;
        let known = self.peer.known().filter(|_| self.greeted.get());
        let known = known.ok_or_else(|| error::denied("say hello first"))?;
        exchange::keep_cosigned(&self.control, &known, params.get()?.get_cosigned()?).await
    }
}
