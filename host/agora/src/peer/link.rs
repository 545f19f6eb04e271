//! The link to a peer: what it lent us, for as long as it lasts.
//!
//! In: how the connections to it are, from the dialer; its graft. Out: the peer's channels, to each [`Remote`]; and how the link is.
//! Promise: when the peer's epoch ends, or what it grants us changes, whoever holds one of its channels here is told stale; nothing of the old
//! graft is used after the new one. A peer that isn't heard on the control lane for a lease is out of reach until it is heard again.
//! Failure: what breaks is made again, later and later; nothing here waits for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agora_capnp::channel_capnp::{channel, sink};
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::peer_capnp::{link, login_signer, peer_channel, terminal};
use agora_dial::{Lane, PeerId, PeerState};
use agora_membrane::error::{self, Kind};
use agora_realm::{Challenge, ChannelName, Epoch, HostId, RealmId, Rights, Terms};
use capnp::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};

use super::borrowed::LinkState;
use super::mirror::Mirror;
use super::outbox::Forwarder;
use super::peers::Peer;
use super::remote::{Granted, History, ORDINAL_MAX, Page, Remote, RemoteMessage, Standing};
use super::thread::Ctx;
use super::told::{self, Known};
use super::vat::{Road, Vat};
use super::{exchange, mirroring};
use crate::limits;

/// Keeps the link to a peer, for as long as the host runs.
pub async fn keep(ctx: Rc<Ctx>, peer: Arc<Peer>) {
    let keeping = {
        let peer = peer.clone();
        async move {
            let mut can_write = true;
            loop {
                tokio::select! {
                    () = sleep(limits::BORROWED_EVERY) => {}
                    // A full disk is not asked at each message.
                    () = peer.borrowed.urgent.notified(), if can_write => {}
                }
                let peer = peer.clone();
                let keeping = tokio::task::spawn_blocking(move || peer.borrowed.keep());
                can_write = keeping.await.unwrap_or(false);
            }
        }
    };
    tokio::select! {
        () = keeping => {}
        () = keep_up(ctx, peer) => {}
    }
}

async fn keep_up(ctx: Rc<Ctx>, peer: Arc<Peer>) {
    let mut wait = limits::LINK_AGAIN_MIN;
    loop {
        let Some(reach) = reachable(&ctx, &peer).await else {
            return;
        };
        let began = Instant::now();
        let ended = match reach {
            Reach::Known(id) => {
                let link = Live::new(ctx.clone(), peer.clone(), id);
                let ended = link.live().await;
                // What was sought for it isn't any more: what is connected next is not to be replaced.
                ctx.dialer.unheard(id, false).await;
                link.lose(&crate::cut_text(&ended, limits::REASON_BYTES_MAX));
                ended
            }
            Reach::Guest(id) => match log_in(&ctx, &peer, id).await {
                Ok(()) => "logged in; it connects anew".to_owned(),
                Err(why) => why,
            },
        };
        let ended = crate::cut_text(&ended, limits::REASON_BYTES_MAX);
        tracing::debug!(peer = %peer.name, "the link ended: {ended}");
        peer.link.send_replace(LinkState::down(&ended));
        if began.elapsed() > limits::LINK_AGAIN_MAX {
            wait = limits::LINK_AGAIN_MIN;
        }
        sleep(wait).await;
        wait = (wait * 2).min(limits::LINK_AGAIN_MAX);
    }
}

/// Uses what the peer lends over streams that `open` opens, once; says why that ended. For tests: [`keep`] dials.
#[cfg(feature = "testbed")]
pub(crate) async fn borrow_over<R: Road, E: std::fmt::Display>(
    ctx: Rc<Ctx>,
    peer: Arc<Peer>,
    id: PeerId,
    open: impl AsyncFn(Lane) -> Result<R, E>,
) -> String {
    let link = Live::new(ctx, peer, id);
    let ended = link.live_over(open).await;
    link.lose(&crate::cut_text(&ended, limits::REASON_BYTES_MAX));
    ended
}

enum Reach {
    Known(PeerId),
    /// It knows us by our key only.
    Guest(PeerId),
}

/// Waits until the dialer has the peer. None: the dialer has ended.
async fn reachable(ctx: &Ctx, peer: &Peer) -> Option<Reach> {
    let mut watch = ctx.dialer.watch();
    loop {
        let id = peer.id();
        if let Some(id) = id.filter(|_| !peer.is_refused()) {
            let now = watch.borrow_and_update().clone();
            let status = now.peers.get(&id);
            match status.map(|status| (&status.state, status.configured)) {
                Some((PeerState::Connected, _)) => return Some(Reach::Known(id)),
                Some((PeerState::Guest, true)) => return Some(Reach::Guest(id)),
                _ => {}
            }
        }
        // A peer that logs in is known by an id only then, which nobody tells here.
        tokio::select! {
            changed = watch.changed() => changed.ok()?,
            () = sleep(limits::LINK_AGAIN_MAX), if id.is_none() => {}
        }
    }
}

// -- Logging in

struct Signer {
    ctx: Rc<Ctx>,
    to: PeerId,
    expected: Option<Known>,
}

impl login_signer::Server for Signer {
    async fn sign(
        self: Rc<Self>,
        params: login_signer::SignParams,
        mut results: login_signer::SignResults,
    ) -> Result<(), Error> {
        let challenge = params.get()?.get_challenge()?;
        let malformed = |_| error::denied("the challenge is malformed");
        let nonce = challenge.get_nonce()?.try_into().map_err(malformed)?;
        let realm = RealmId(challenge.get_realm()?.try_into().map_err(malformed)?);
        let host = HostId(challenge.get_host()?.try_into().map_err(malformed)?);
        if let Some(known) = &self.expected
            && (known.realm != realm || known.host != host)
        {
            return Err(error::denied(
                "the challenge is of another host or realm than this peer's was",
            ));
        }
        let challenge = Challenge {
            nonce: &nonce,
            realm: &realm,
            host: &host,
            epoch: Epoch(challenge.get_epoch()),
            challenger: &self.to.to_bytes(),
            caller: &self.ctx.dialer.peer_id().to_bytes(),
        };
        let signed = self.ctx.control.sign_as_host(&challenge.digest());
        let (signature, key) = signed.map_err(|error| error::failed(&error))?;
        results.get().set_public_key(&key.0);
        results.get().set_signature(&signature);
        Ok(())
    }
}

/// Logs in where this host is known by its key only. What is granted then is reached by connecting anew.
async fn log_in(ctx: &Rc<Ctx>, peer: &Peer, id: PeerId) -> Result<(), String> {
    let stream = ctx.dialer.open(id, Lane::Login).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let (terminal, vat): (terminal::Client, _) = Vat::connect(stream, limits::PEER_CONTROL_WIRE);
    let mut request = terminal.login_request();
    request.get().set_signer(capnp_rpc::new_client(Signer {
        ctx: ctx.clone(),
        to: id,
        expected: peer.known(),
    }));
    let asking = async {
        let answer = request.send().promise.await?;
        let outcome = answer.get()?.get_outcome()?;
        use terminal::outcome::Which;
        Ok::<_, Error>(match outcome.which()? {
            Which::Granted(_) => Ok(()),
            Which::Denied(why) => Err(format!("login denied: {}", why?.to_str()?)),
            Which::Stale(why) => Err(format!("login: {}", why?.to_str()?)),
            Which::Overloaded(why) => Err(format!("login: {}", why?.to_str()?)),
            Which::TimedOut(why) => Err(format!("login: {}", why?.to_str()?)),
        })
    };
    let outcome = tokio::time::timeout(2 * limits::LOGIN_PATIENCE, asking).await;
    let outcome = outcome.map_err(|_| "login: no answer".to_owned())?;
    outcome.map_err(|error| format!("login: {}", error::reason(&error)))??;
    // The peer ends this connection, and is reached as one that is known.
    let mut watch = ctx.dialer.watch();
    let anew = watch.wait_for(|now| {
        let status = now.peers.get(&id);
        status.is_none_or(|status| status.state != PeerState::Guest)
    });
    let _ = tokio::time::timeout(limits::LOGIN_PATIENCE, anew).await;
    drop(vat);
    Ok(())
}

// -- The link

/// One connection to the peer, on both lanes.
struct Live {
    ctx: Rc<Ctx>,
    peer: Arc<Peer>,
    id: PeerId,
    serving: RefCell<HashMap<ChannelName, Serving>>,
    graft: RefCell<Option<Graft>>,
    lapsed: Cell<bool>,
    heard: Cell<Instant>,
    round_trip: Cell<Option<Duration>>,
    /// The peer's, as its last ping said.
    revision: watch::Sender<u64>,
    since: Cell<Instant>,
}

struct Graft {
    known: Known,
    epoch: Epoch,
    grants: HashMap<ChannelName, (Terms, peer_channel::Client)>,
    shown: Vec<(String, Terms)>,
}

/// One of the peer's channels, in one graft.
struct Serving {
    remote: Arc<Remote>,
    standing: Rc<RefCell<Standing>>,
    _task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Live {
    fn new(ctx: Rc<Ctx>, peer: Arc<Peer>, id: PeerId) -> Rc<Self> {
        Rc::new(Self {
            ctx,
            peer,
            id,
            serving: RefCell::default(),
            graft: RefCell::default(),
            lapsed: Cell::new(false),
            heard: Cell::new(Instant::now()),
            round_trip: Cell::default(),
            revision: watch::channel(0).0,
            since: Cell::new(Instant::now()),
        })
    }

    /// Uses what the peer lends until the connection ends, and says why it did.
    async fn live(self: &Rc<Self>) -> String {
        let dialer = &self.ctx.dialer;
        let open = async |lane| dialer.open(self.id, lane).await;
        self.live_over(open).await
    }

    /// The same, over streams from elsewhere.
    async fn live_over<R: Road, E: std::fmt::Display>(
        self: &Rc<Self>,
        open: impl AsyncFn(Lane) -> Result<R, E>,
    ) -> String {
        let control = match open(Lane::Control).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        let (link, control): (link::Client, _) = Vat::connect(control, limits::PEER_CONTROL_WIRE);
        let using = async {
            let known = match self.greet(&link).await {
                Ok(known) => known,
                Err(error) => return error::reason(&error).to_owned(),
            };
            let _offered = self.ctx.offers(&self.peer.name, link.clone());
            let stream = match open(Lane::Vat).await {
                Ok(stream) => stream,
                Err(error) => return error.to_string(),
            };
            let (door, vat): (membrane::Client, _) = Vat::connect(stream, limits::LENDER_WIRE);
            tokio::select! {
                biased;
                why = vat.ended() => why.to_string(),
                why = self.outlived() => why,
                why = self.ping(&link) => why,
                why = self.use_up(&link, &door, known.clone()) => why,
                () = exchange::keep(self.ctx.control.clone(), self.peer.clone(), link.clone(), known) => {
                    "its checkpoints are signed with another key than it greeted with".to_owned()
                }
            }
        };
        tokio::select! {
            biased;
            why = control.ended() => why.to_string(),
            why = using => why,
        }
    }

    async fn greet(&self, link: &link::Client) -> Result<Known, Error> {
        let mut request = link.hello_request();
        let own = self.ctx.dialer.peer_id();
        let hello = request.get().init_hello();
        told::write_hello(&self.ctx.control, &own, &self.peer, hello)?;
        let answer = tokio::time::timeout(limits::LOGIN_PATIENCE, request.send().promise).await;
        let answer = answer.map_err(|_| error::failed("it did not greet in time"))??;
        let known = told::read_hello(&self.peer, &self.id, answer.get()?.get_hello()?)?;
        self.peer.met(&self.ctx.control, known.clone())?;
        Ok(known)
    }

    /// Pings, and says when the peer is heard and when it isn't.
    async fn ping(self: &Rc<Self>, link: &link::Client) -> String {
        loop {
            let sent = Instant::now();
            let ping = link.ping_request().send().promise;
            tokio::pin!(ping);
            let lease = sleep_until((self.heard.get() + limits::PEER_LEASE).into());
            let answered = tokio::select! {
                biased;
                answered = &mut ping => answered,
                () = lease => {
                    self.lapse(true);
                    self.seek(ping).await
                }
            };
            let revision = answered.and_then(|answer| Ok(answer.get()?.get_revision()));
            match revision {
                Ok(revision) => drop(self.revision.send_replace(revision)),
                Err(error) => return error::reason(&error).to_owned(),
            }
            self.heard.set(Instant::now());
            self.round_trip.set(Some(sent.elapsed()));
            self.lapse(false);
            self.show();
            sleep_until((sent + limits::PEER_PING_EVERY).into()).await;
        }
    }

    /// Waits for an answer of the peer's, and has it dialed beside what there is meanwhile: the network may be away, or only the connection.
    async fn seek<T>(&self, mut answer: impl Future<Output = T> + Unpin) -> T {
        let mut sought = false;
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => {
                    if sought {
                        self.ctx.dialer.unheard(self.id, false).await;
                    }
                    return answered;
                }
                () = sleep(limits::PEER_SEEK_EVERY) => {
                    sought = true;
                    self.ctx.dialer.unheard(self.id, true).await;
                }
            }
        }
    }

    /// Answers once this realm's epoch has ended and the peer has not been heard since, nor for a lease: what is on its way there must not
    /// arrive when the network is back, and doesn't once the streams that carry it are let go of.
    async fn outlived(&self) -> String {
        let mut fences = self.ctx.fences.subscribe();
        loop {
            if fences.changed().await.is_err() {
                return "the host is ending".to_owned();
            }
            let fenced = Instant::now();
            while self.heard.get() <= fenced {
                if self.lapsed.get() {
                    return "it was not heard when the epoch ended here".to_owned();
                }
                sleep(limits::OUTBOX_AGAIN_MIN).await;
            }
        }
    }

    /// The peer is out of reach, or within it again.
    fn lapse(&self, is_lapsed: bool) {
        if self.lapsed.replace(is_lapsed) == is_lapsed {
            return;
        }
        for serving in self.serving.borrow().values() {
            self.stand(serving);
        }
        self.show();
    }

    fn stand(&self, serving: &Serving) {
        serving.remote.set_standing(match self.lapsed.get() {
            true => Standing::Away("it has not been heard for a lease".into()),
            false => serving.standing.borrow().clone(),
        });
    }

    /// For who asks how the link is.
    fn show(&self) {
        let graft = self.graft.borrow();
        let Some(graft) = &*graft else {
            return;
        };
        let known = graft.known.clone();
        self.peer.link.send_replace(match self.lapsed.get() {
            true => LinkState::Lapsed {
                known,
                epoch: graft.epoch,
                since: self.heard.get(),
            },
            false => LinkState::Up {
                known,
                epoch: graft.epoch,
                grants: graft.shown.clone(),
                round_trip: self.round_trip.get(),
                since: self.since.get(),
            },
        });
    }

    /// Nothing of the graft is used any more.
    fn lose(&self, why: &str) {
        self.graft.take();
        self.serving.take();
        self.peer.link.send_replace(LinkState::down(why));
        for remote in self.peer.borrowed.remotes() {
            remote.set_standing(Standing::Away(why.into()));
        }
    }

    /// Grafts, again and again, and serves what each graft grants.
    async fn use_up(
        self: &Rc<Self>,
        link: &link::Client,
        door: &membrane::Client,
        known: Known,
    ) -> String {
        // A peer that changes its mind on end must not keep agents here grafting on end.
        let mut wait = limits::LINK_AGAIN_MIN;
        // The peer's revision that those who held something of the last graft were told of.
        let mut told_of = None;
        loop {
            let revision = match link.ping_request().send().promise.await {
                Ok(answer) => match answer.get() {
                    Ok(answer) => answer.get_revision(),
                    Err(error) => return error.to_string(),
                },
                Err(error) => return error::reason(&error).to_owned(),
            };
            let (session, graft) = match self.graft(door, &known).await {
                Ok(grafted) => grafted,
                Err(error) if is_told_stale(&error) => {
                    wait = self.rest(wait).await;
                    continue;
                }
                Err(error) => return error::reason(&error).to_owned(),
            };
            let epoch = graft.epoch;
            if epoch == Epoch(0) {
                return "it grafts in no epoch".to_owned();
            }
            // Who has grafted here since was not told of what came after.
            let told = told_of.take() == Some(revision);
            if let Some(why) = self.differs(&graft).filter(|_| !told) {
                self.peer.borrowed.unsettle();
                self.fell(&why).await;
            }
            self.peer.borrowed.settle(epoch);
            *self
                .peer
                .granted
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(graft.shown.clone());
            self.graft.replace(Some(graft));
            self.since.set(Instant::now());
            self.show();
            let mut request = link.changed_request();
            request.get().set_epoch(epoch.0);
            request.get().set_revision(revision);
            let changed = async {
                let answer = request.send().promise.await?;
                let answer = answer.get()?;
                let reason = answer.get_reason()?.to_str()?;
                let reason = crate::cut_text(reason, limits::REASON_BYTES_MAX);
                Ok::<_, Error>((answer.get_revision(), reason))
            };
            let mut changed = std::pin::pin!(changed);
            let ended = session.ended_request().send().promise;
            let told = tokio::select! {
                biased;
                changed = &mut changed => Some(changed),
                ended = ended => match ended {
                    // The wall of the graft has fallen. Whether that is an end for those here too, the control lane tells.
                    Err(error) if is_told_stale(&error) => {
                        tokio::time::timeout(limits::PEER_ENDING_MAX, changed).await.ok()
                    }
                    Err(error) => return error::reason(&error).to_owned(),
                    Ok(_) => None,
                },
                () = self.overtaken(revision) => None,
                () = self.serve() => return "the host is ending".to_owned(),
                never = mirroring::keep(self.ctx.control.clone(), self.peer.clone(), self.mirrored()) => match never {},
            };
            let (revision, why) = match told {
                Some(Ok(told)) => told,
                Some(Err(error)) => return error::reason(&error).to_owned(),
                // Its place was taken, or what has changed is not told. What the next one grants is compared with this.
                None => {
                    self.lose("it is being asked anew");
                    wait = self.rest(wait).await;
                    continue;
                }
            };
            // First those who hold it are told, and only then is it out of reach.
            self.peer.borrowed.unsettle();
            let name = &self.peer.name;
            let told = match why.contains("epoch") {
                true => format!("{name}: {why}"),
                false => format!("what {name} grants has changed ({why}); graft again"),
            };
            self.fell(&told).await;
            told_of = Some(revision);
            self.lose("what it grants has changed; it is being asked anew");
            wait = self.rest(wait).await;
        }
    }

    /// Answers when the peer's pings have said for a while that something has changed since this revision. It should have told by then.
    async fn overtaken(&self, revision: u64) {
        let mut heard = self.revision.subscribe();
        let _ = heard.wait_for(|heard| *heard > revision).await;
        sleep(limits::PEER_ENDING_MAX).await;
    }

    /// Waits a while where the last graft was short, and says how long the next while is.
    async fn rest(&self, wait: Duration) -> Duration {
        if self.since.get().elapsed() > limits::LINK_STEADY {
            return limits::LINK_AGAIN_MIN;
        }
        sleep(wait).await;
        (wait * 2).min(limits::LINK_AGAIN_MAX)
    }

    /// What is told to those who hold the peer's channels, where what they hold is not what there is any more.
    fn differs(&self, graft: &Graft) -> Option<String> {
        let name = &self.peer.name;
        let known_grants = self.peer.granted.lock();
        let before = known_grants.unwrap_or_else(std::sync::PoisonError::into_inner);
        match self.peer.borrowed.last() {
            Some(epoch) if epoch != graft.epoch => {
                Some(format!("{name}'s epoch {epoch} has ended; graft again"))
            }
            _ if before.as_ref().is_some_and(|before| *before != graft.shown) => {
                Some(format!("what {name} grants has changed; graft again"))
            }
            _ => None,
        }
    }

    async fn fell(&self, why: &str) {
        let control = &self.ctx.control;
        control.fell_borrowers(&self.peer.name, why).await;
    }

    /// The channels that the graft grants of those of which a copy is kept.
    fn mirrored(&self) -> Vec<(Arc<Mirror>, peer_channel::Client)> {
        let graft = self.graft.borrow();
        let granted = graft.iter().flat_map(|graft| &graft.grants);
        granted
            .filter_map(|(name, (_, channel))| {
                Some((self.peer.mirror(name)?.clone(), channel.clone()))
            })
            .collect()
    }

    async fn graft(
        &self,
        door: &membrane::Client,
        known: &Known,
    ) -> Result<(session::Client, Graft), Error> {
        let answer = door.graft_request().send().promise.await?;
        let answer = answer.get()?;
        let (mut grants, mut shown) = (HashMap::new(), Vec::new());
        for grant in answer.get_grants()?.iter().take(limits::PEER_FOLLOWS_MAX) {
            let name = grant.get_name()?.to_str()?;
            let Ok(name) = ChannelName::new(name) else {
                continue;
            };
            let terms = Terms::read(grant.get_terms()?)?;
            let channel: peer_channel::Client = grant.get_capability().get_as_capability()?;
            shown.push((name.as_str().to_owned(), terms));
            grants.insert(name, (terms, channel));
        }
        let graft = Graft {
            known: known.clone(),
            epoch: Epoch(answer.get_epoch()),
            grants,
            shown,
        };
        Ok((answer.get_session()?, graft))
    }

    /// Serves those channels that somebody here asks for, as they are asked for.
    async fn serve(self: &Rc<Self>) {
        loop {
            for remote in self.peer.borrowed.remotes() {
                if self.serving.borrow().contains_key(remote.name()) {
                    continue;
                }
                let (live, served) = (self.clone(), remote.clone());
                let standing = Rc::new(RefCell::new(remote.standing()));
                let shared = standing.clone();
                let task = tokio::task::spawn_local(async move {
                    live.serve_one(served, shared).await;
                });
                let serving = Serving {
                    remote: remote.clone(),
                    standing,
                    _task: AbortOnDrop(task),
                };
                self.serving
                    .borrow_mut()
                    .insert(remote.name().clone(), serving);
            }
            self.peer.borrowed.more.notified().await;
        }
    }

    /// Serves one channel until the graft is over.
    async fn serve_one(self: Rc<Self>, remote: Arc<Remote>, standing: Rc<RefCell<Standing>>) {
        let (known, epoch, granted) = {
            let graft = self.graft.borrow();
            let Some(graft) = &*graft else {
                return;
            };
            let granted = graft.grants.get(remote.there()).cloned();
            (graft.known.clone(), graft.epoch, granted)
        };
        remote.set_naming(&known);
        let set = |to: Standing| {
            standing.replace(to);
            let serving = self.serving.borrow();
            if let Some(serving) = serving.get(remote.name()) {
                self.stand(serving);
            }
        };
        let forwarder = |channel: Option<peer_channel::Client>| {
            Rc::new(Forwarder {
                control: self.ctx.control.clone(),
                remote: remote.clone(),
                channel,
                epoch,
                known: known.clone(),
                speakers: RefCell::default(),
            })
        };
        let Some((terms, channel)) = granted else {
            set(Standing::NotGranted);
            forwarder(None).run().await;
            return;
        };
        let forwards = forwarder(Some(channel.clone()));
        let mut wait = limits::OUTBOX_AGAIN_MIN;
        loop {
            let why = match follow(&self, &remote, &channel, &terms).await {
                Ok((granted, mut requests, following)) => {
                    set(Standing::Up(Arc::new(granted)));
                    let answering = answer(&channel, &mut requests);
                    let why = tokio::select! {
                        why = forwards.clone().run() => why,
                        why = answering => why,
                        why = following.ended() => why,
                    };
                    why
                }
                // It has it of a further peer, who grants it no more. When that changes, the graft is over.
                Err(error) if error::classify(&error) == Kind::Denied => {
                    tracing::debug!("'{}': {}", remote.name(), error::reason(&error));
                    set(Standing::NotGranted);
                    forwarder(None).run().await;
                    return;
                }
                Err(error) => error,
            };
            tracing::debug!("'{}': {}", remote.name(), error::reason(&why));
            if error::classify(&why) == Kind::Stale {
                // The graft is over, which is about to be seen, and told in its order.
                return;
            }
            let why = crate::cut_text(error::reason(&why), limits::REASON_BYTES_MAX);
            set(Standing::Away(why.into()));
            sleep(wait).await;
            wait = (wait * 2).min(limits::OUTBOX_AGAIN_MAX);
        }
    }
}

/// The peer says that it is over; a connection that is lost says nothing of that.
fn is_told_stale(error: &Error) -> bool {
    error::classify(error) == Kind::Stale && error::reason(error) != error.extra
}

/// Deliveries from the peer, for as long as it is held.
struct Following {
    _following: Option<agora_capnp::peer_capnp::following::Client>,
    over: tokio::sync::watch::Receiver<Option<String>>,
}

impl Following {
    /// Answers once the peer says that its deliveries are over.
    async fn ended(&self) -> Error {
        let mut over = self.over.clone();
        match over.wait_for(Option::is_some).await {
            Ok(why) => error::busy(why.as_deref().unwrap_or_default()),
            // Nothing is delivered under these terms.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Asks what the channel is, and has it delivered where the terms allow to read.
async fn follow(
    live: &Live,
    remote: &Arc<Remote>,
    channel: &peer_channel::Client,
    terms: &Terms,
) -> Result<(Granted, mpsc::Receiver<History>, Following), Error> {
    let plain: channel::Client = capnp::capability::FromClientHook::new(
        capnp::capability::FromClientHook::into_client_hook(channel.clone()),
    );
    let answer = plain.info_request().send().promise.await?;
    let info = answer.get()?.get_info()?;
    let (requests, asked) = mpsc::channel(limits::REMOTE_REQUESTS_MAX);
    let granted = Granted {
        terms: Terms::read(info.get_terms()?)?.meet(terms),
        hops: info.get_hops(),
        reactions: info.get_reactions(),
        carry: info.get_carry(),
        requests,
    };
    let latest = info.get_latest().min(ORDINAL_MAX);
    let epoch = || live.ctx.control.record().state().epoch();
    let (tell, over) = tokio::sync::watch::channel(None);
    if !terms.rights.has(Rights::READ) {
        remote.begins(epoch(), latest + 1, latest, 0, false);
        let following = Following {
            _following: None,
            over,
        };
        return Ok((granted, asked, following));
    }
    let from = remote.follow_from(latest);
    let mut request = channel.follow_request();
    request.get().set_from(from);
    request.get().set_sink(capnp_rpc::new_client(Ear {
        control: live.ctx.control.clone(),
        remote: remote.clone(),
        over: tell,
    }));
    let answer = request.send().promise.await?;
    let answer = answer.get()?;
    let floor = answer.get_floor().min(ORDINAL_MAX);
    remote.begins(epoch(), from, latest, floor, granted.carry);
    let following = Following {
        _following: Some(answer.get_following()?),
        over,
    };
    Ok((granted, asked, following))
}

/// Answers what is asked of the peer's history, until the graft is over.
async fn answer(channel: &peer_channel::Client, requests: &mut mpsc::Receiver<History>) -> Error {
    let mut asking = futures::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = futures::StreamExt::next(&mut asking), if !asking.is_empty() => {}
            request = requests.recv(), if asking.len() < limits::REMOTE_ASKED_MAX => match request {
                Some(request) => asking.push(ask(channel, request)),
                None => std::future::pending().await,
            },
        }
    }
}

async fn ask(channel: &peer_channel::Client, asked: History) {
    let plain: channel::Client = capnp::capability::FromClientHook::new(
        capnp::capability::FromClientHook::into_client_hook(channel.clone()),
    );
    let mut request = plain.history_request();
    request.get().set_from(asked.from);
    request.get().set_count(asked.count);
    let asking = async {
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        let messages = answer.get_messages()?.iter().map(RemoteMessage::copy);
        Ok(Page {
            messages: messages.collect::<Result<_, _>>()?,
            next: answer.get_next(),
            pruned: answer.get_pruned(),
        })
    };
    let page = tokio::time::timeout(limits::REMOTE_PATIENCE, asking).await;
    let page = page.unwrap_or_else(|_| Err(error::busy("the peer doesn't answer; try again")));
    let _ = asked.answer.send(page);
}

/// Where the peer delivers to.
struct Ear {
    control: Arc<crate::door::control::Control>,
    remote: Arc<Remote>,
    over: tokio::sync::watch::Sender<Option<String>>,
}

impl sink::Server for Ear {
    /// Waits for nothing: a peer whose wall falls gives up those that are on their way, and one that began later must not come before.
    async fn deliver(self: Rc<Self>, params: sink::DeliverParams) -> Result<(), Error> {
        let messages = params.get()?.get_messages()?;
        let messages = messages.iter().map(RemoteMessage::copy);
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let epoch = self.control.record().state().epoch();
        self.remote.came(epoch, messages);
        Ok(())
    }

    async fn ended(
        self: Rc<Self>,
        params: sink::EndedParams,
        _results: sink::EndedResults,
    ) -> Result<(), Error> {
        let why = params.get()?.get_reason()?.to_str()?.to_owned();
        self.over.send_replace(Some(why));
        Ok(())
    }

    async fn skipped(
        self: Rc<Self>,
        params: sink::SkippedParams,
        _results: sink::SkippedResults,
    ) -> Result<(), Error> {
        self.remote.pruned(params.get()?.get_through());
        Ok(())
    }
}
