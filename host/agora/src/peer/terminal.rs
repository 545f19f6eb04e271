//! What a caller finds that isn't known by its libp2p id: a door at which it may log in with its host's key.
//!
//! In: `login` calls of guests. Out: for a key of the manifest, that id is known as this peer's from then on, and its membrane.
//! Promise: a signature lets in only who made it for this host, this realm, this epoch and this connection: it names both ends as the
//! transport proved them, and a nonce that is used once. Who is refused isn't told why. A login that fails costs a nonce, and one signature's
//! verification only where the key is a peer's.
//! Failure: too many at once, or too often from one id, are overloaded; a signer that doesn't answer is timed out.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{login_signer, terminal};
use agora_dial::PeerId;
use agora_guest::wire;
use agora_membrane::error;
use agora_realm::{Challenge, PersonaId, PublicKey};
use capnp::Error;

use super::door::PeerDoor;
use super::peers::Peer;
use super::thread::Ctx;
use crate::boot::host::propose_grants;
use crate::limits;
use crate::persona::secret::random_bytes;

/// Logins of all guests: whose are under way, and who failed lately.
#[derive(Default)]
pub struct Logins {
    running: RefCell<HashSet<PeerId>>,
    failed: RefCell<HashMap<PeerId, Failed>>,
}

/// How often one id has failed, and when it may try again.
struct Failed {
    times: u32,
    until: Instant,
}

impl Logins {
    /// Whether nobody logs in now.
    #[cfg(feature = "testbed")]
    pub(crate) fn is_idle(&self) -> bool {
        self.running.borrow().is_empty()
    }

    /// A place for one more.
    fn begin(&self, from: PeerId) -> Result<Running<'_>, String> {
        let now = Instant::now();
        let failed = self.failed.borrow();
        if let Some(failed) = failed.get(&from).filter(|failed| failed.until > now) {
            let wait = failed.until - now;
            return Err(format!(
                "it failed before; try again in {:.0} s",
                wait.as_secs_f32().ceil()
            ));
        }
        let mut running = self.running.borrow_mut();
        if running.contains(&from) {
            return Err("it logs in already; one login at a time".into());
        }
        if running.len() >= limits::LOGINS_AT_ONCE_MAX {
            return Err("too many log in at once; try again later".into());
        }
        running.insert(from);
        Ok(Running {
            logins: self,
            from,
            succeeded: false,
        })
    }

    /// One more failure: the wait doubles with each.
    fn fail(&self, from: PeerId) {
        let now = Instant::now();
        let mut failed = self.failed.borrow_mut();
        if failed.len() >= limits::LOGINS_REMEMBERED_MAX {
            // Those who may try again anyway first; then whoever may soonest.
            failed.retain(|_, failed| failed.until > now);
            let soonest = failed.iter().min_by_key(|(_, failed)| failed.until);
            let soonest = soonest.map(|(id, _)| *id);
            if let Some(id) = soonest.filter(|_| failed.len() >= limits::LOGINS_REMEMBERED_MAX) {
                failed.remove(&id);
            }
        }
        let known = failed.entry(from).or_insert(Failed {
            times: 0,
            until: now,
        });
        let wait = limits::LOGIN_AGAIN_MIN * 2_u32.pow(known.times.min(10));
        known.times += 1;
        known.until = now + wait.min(limits::LOGIN_AGAIN_MAX);
    }

    fn succeed(&self, from: &PeerId) {
        self.failed.borrow_mut().remove(from);
    }
}

/// One login. Unless it succeeds it has failed, also when the guest gives it up.
struct Running<'a> {
    logins: &'a Logins,
    from: PeerId,
    succeeded: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.logins.running.borrow_mut().remove(&self.from);
        match self.succeeded {
            true => self.logins.succeed(&self.from),
            false => self.logins.fail(self.from),
        }
    }
}

/// One guest's connection.
pub struct Terminal {
    ctx: Rc<Ctx>,
    from: PeerId,
    wire: wire::End,
    tried: Cell<bool>,
    /// What it was let in to.
    door: RefCell<Option<Rc<PeerDoor>>>,
}

impl Terminal {
    /// What a guest finds.
    pub fn new(ctx: Rc<Ctx>, from: PeerId, wire: wire::End) -> Self {
        Self {
            ctx,
            from,
            wire,
            tried: Cell::new(false),
            door: RefCell::default(),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(door) = self.door.take() {
            door.fall("the connection ended");
        }
    }
}

enum Outcome {
    Granted(Arc<Peer>),
    Denied(&'static str),
    Stale(&'static str),
    Overloaded(String),
    TimedOut(&'static str),
}

const DENIED: &str = "this host does not let that key in";

impl Terminal {
    async fn challenge(&self, signer: login_signer::Client) -> Result<Outcome, Error> {
        if self.tried.replace(true) {
            return Ok(Outcome::Overloaded(
                "one login a connection; connect anew".into(),
            ));
        }
        let mut running = match self.ctx.logins.begin(self.from) {
            Ok(running) => running,
            Err(why) => return Ok(Outcome::Overloaded(why)),
        };
        let control = &self.ctx.control;
        let epoch = control.gate().shown().epoch;
        let Some(realm) = control.record().state().realm() else {
            return Ok(Outcome::Overloaded("this host has no realm yet".into()));
        };
        let nonce = random_bytes().map_err(|error| Error::failed(error.to_string()))?;
        let host = control.host_id();
        let mut request = signer.sign_request();
        let mut challenge = request.get().init_challenge();
        challenge.set_nonce(&nonce);
        challenge.set_realm(&realm.0);
        challenge.set_host(&host.0);
        challenge.set_epoch(epoch.0);
        let answered = tokio::time::timeout(limits::LOGIN_PATIENCE, request.send().promise).await;
        let Ok(answered) = answered else {
            return Ok(Outcome::TimedOut("the signer did not answer in time"));
        };
        let proved = answered.and_then(|answered| {
            let answer = answered.get()?;
            let key = <[u8; 32]>::try_from(answer.get_public_key()?);
            let signature = <[u8; 64]>::try_from(answer.get_signature()?);
            Ok(key.ok().zip(signature.ok()))
        });
        let challenge = Challenge {
            nonce: &nonce,
            realm: &realm,
            host: &host,
            epoch,
            challenger: &self.ctx.dialer.peer_id().to_bytes(),
            caller: &self.from.to_bytes(),
        };
        let peer = proved.ok().flatten().and_then(|(key, signature)| {
            let key = PublicKey(key);
            let mut peers = self.ctx.peers.all();
            let peer = peers.find(|peer| peer.may_log_in() && peer.spec.key == Some(key))?;
            let is_signed = key.verifies(&challenge.digest(), &signature);
            is_signed.then(|| peer.clone())
        });
        let Some(peer) = peer else {
            return Ok(Outcome::Denied(DENIED));
        };
        // Whoever proved its key need not wait to do so again.
        running.succeeded = true;
        if !control.gate().is_open(epoch) {
            return Ok(Outcome::Stale("the epoch has ended; log in again"));
        }
        Ok(Outcome::Granted(peer))
    }
}

/// Puts a peer that has logged in on the record, with what the manifest proposes for it and the log has not decided.
async fn settle(ctx: &Ctx, peer: &Peer) -> Result<(), String> {
    let control = &ctx.control;
    control.key_peer(peer, false).await?;
    let id = PersonaId::new(control.host_id(), peer.persona.clone());
    let known = control.record().state().persona(&id).cloned();
    // What the log has decided otherwise was told at the start.
    let notices = &mut Vec::new();
    propose_grants(control, &id, known.as_ref(), &peer.spec.grants, notices).await
}

impl terminal::Server for Terminal {
    async fn login(
        self: Rc<Self>,
        params: terminal::LoginParams,
        mut results: terminal::LoginResults,
    ) -> Result<(), Error> {
        let outcome = self.challenge(params.get()?.get_signer()?).await?;
        let mut to = results.get().init_outcome();
        let peer = match outcome {
            Outcome::Granted(peer) => peer,
            Outcome::Denied(why) => {
                to.set_denied(why);
                return Ok(());
            }
            Outcome::Stale(why) => {
                to.set_stale(why);
                return Ok(());
            }
            Outcome::Overloaded(why) => {
                to.set_overloaded(why.as_str());
                return Ok(());
            }
            Outcome::TimedOut(why) => {
                to.set_timed_out(why);
                return Ok(());
            }
        };
        let (ctx, id) = (self.ctx.clone(), self.from);
        if peer.id() != Some(id)
            && let Err(error) = peer.allowance.draw()
        {
            to.set_overloaded(error::reason(&error));
            return Ok(());
        }
        if let Some(old) = ctx.peers.bind(&peer, id) {
            // Whoever has the key has it from another machine now.
            ctx.dialer.reconsider(old).await;
        }
        if let Err(error) = settle(&ctx, &peer).await {
            to.set_overloaded(format!("{}: {error}", peer.name).as_str());
            return Ok(());
        }
        let (control, facets) = (ctx.control.clone(), ctx.facets.clone());
        let door = PeerDoor::new(control, peer, facets, self.wire.clone());
        let offered: membrane::Client = capnp_rpc::new_client_from_rc(door.clone());
        ctx.keep_guest(&door);
        self.door.replace(Some(door));
        to.set_granted(offered);
        // From here on it is known by its id. Its connection as a guest ends once it has the answer, and it connects anew.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            ctx.dialer.reconsider(id).await;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seed: u8) -> PeerId {
        agora_dial::Options::new([seed; 32], |_: &PeerId| agora_dial::Standing::Guest).peer_id()
    }

    #[test]
    fn logins_are_few_one_an_id_and_who_fails_or_gives_up_waits() {
        let logins = Logins::default();
        let max = limits::LOGINS_AT_ONCE_MAX as u8;
        let mut running: Vec<_> = (0..max).map(|n| logins.begin(id(n)).unwrap()).collect();
        assert!(logins.begin(id(max)).is_err(), "there are too many");
        running[1].succeeded = true;
        drop(running.drain(..2));
        assert!(logins.begin(id(0)).is_err(), "it failed a moment ago");
        let mut again = logins.begin(id(1)).unwrap();
        again.succeeded = true;
        assert!(logins.begin(id(1)).is_err(), "one at a time");
        drop(logins.begin(id(max)).unwrap());
        assert_eq!(logins.failed.borrow()[&id(max)].times, 1);
    }

    #[test]
    fn the_wait_doubles_up_to_the_longest_and_few_ids_are_remembered() {
        let logins = Logins::default();
        for times in 1..40 {
            let began = Instant::now();
            logins.fail(id(1));
            let wait = logins.failed.borrow()[&id(1)].until - began;
            let doubled = limits::LOGIN_AGAIN_MIN * 2_u32.pow((times - 1).min(10));
            assert!(
                wait >= doubled.min(limits::LOGIN_AGAIN_MAX),
                "{times}: {wait:?}"
            );
        }
        for n in 0..=limits::LOGINS_REMEMBERED_MAX as u32 {
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            let policy = |_: &PeerId| agora_dial::Standing::Guest;
            logins.fail(agora_dial::Options::new(seed, policy).peer_id());
        }
        let failed = logins.failed.borrow();
        assert_eq!(failed.len(), limits::LOGINS_REMEMBERED_MAX);
        assert!(
            failed.contains_key(&id(1)),
            "who failed most is remembered longest"
        );
    }
}
