//! One facet of a channel: what a permitted call does.
//!
//! In: calls that crossed the holder's wall. Out: answers, deliveries, narrower facets, and facets for those it is lent to.
//! Promise: what the facet's grant does not allow is refused, with the reason. A facet that is cut fails from that moment, its calls in
//! flight with it, and its listener is told; so do all that were made from it, whoever holds them. Nobody but its holder speaks through it.
//! Failure: errors say what the caller should do next (re-graft, ask differently, wait).

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use agora_capnp::channel_capnp::{channel, draft, message, revoker, sink, subscription};
use agora_capnp::loan_capnp::loan;
use agora_capnp::signer_capnp::signer;
use agora_guest::wire;
use agora_membrane::error;
use agora_realm::merkle::Hash;
use agora_realm::{
    ChannelName, Epoch, GrantBody, GrantId, MessageId, Object, Ordinal, PersonaId, Refusal, Rights,
    Terms,
};
use bytes::Bytes;
use capnp::Error;
use capnp::private::capability::ClientHook;

use super::allowance::Allowance;
use super::leash::Leash;
use super::repeats::compared;
use super::speak::{Draft, Outcome, SpeakError, Speech, Standing};
use crate::delivery::message::{write_message, write_outcome};
use crate::delivery::record::Kept;
use crate::delivery::subscription::{Progress, Subscription};
use crate::door::control::Control;
use crate::limits;
use crate::peer::mirroring;
use crate::peer::outflow::{Deliveries, Outflow, Source};
use crate::peer::remote::{Echo, Granted, Missed, Place as OutboxPlace, Remote, RemoteMessage};
use crate::peer::subscription::RemoteSubscription;
use crate::persona::agent::Shared;

/// What the facets of one graft share.
pub struct Holder {
    /// The host's controls, for what must go on the record.
    pub control: Arc<Control>,
    /// Who holds them.
    pub persona: PersonaId,
    /// The epoch they are of.
    pub epoch: Epoch,
    /// The holder's wire, to see how much waits on it.
    pub wire: wire::End,
    /// Those of the whole thread.
    facets: Rc<Facets>,
    /// Cut with the graft; every facet of it hangs below.
    leash: Leash,
    /// What `ps` and the watch for quiet are shown.
    shared: Arc<Shared>,
    /// By channel: what ends the deliveries when it is dropped.
    listening: RefCell<HashMap<ChannelName, Listening>>,
    /// Facets made by attenuating, and those in the making.
    facets_live: Rc<Cell<usize>>,
    /// Subscriptions handed out and not let go of, those that were replaced included.
    subscriptions_live: Rc<Cell<usize>>,
    /// Tells this graft from others.
    token: u64,
    /// What grants below its own are drawn on, when it is another host's.
    allowance: OnceCell<Arc<Allowance>>,
}

/// The facets alive on one vat thread, and the signers, by the brand and address of the capability: which one it is.
#[derive(Default)]
pub struct Facets {
    known: RefCell<HashMap<(usize, usize), Weak<Facet>>>,
    signers: RefCell<HashMap<(usize, usize), Weak<dyn Any>>>,
}

impl Facets {
    /// Hands out a signer, as one that is known wherever it is met.
    pub fn know_signer<S: signer::Server + 'static>(&self, signer: &Rc<S>) -> signer::Client {
        let client: signer::Client = capnp_rpc::new_client_from_rc(signer.clone());
        let signer: Rc<dyn Any> = signer.clone();
        let mut signers = self.signers.borrow_mut();
        if signers.len() == signers.capacity() {
            signers.retain(|_, signer| signer.strong_count() > 0);
        }
        signers.insert(identity(&*client.client.hook), Rc::downgrade(&signer));
        client
    }

    /// Whether this capability is a signer. A promise is none yet.
    pub fn is_signer(&self, capability: &dyn ClientHook) -> bool {
        let signers = self.signers.borrow();
        let found = signers.get(&identity(capability));
        found.is_some_and(|signer| signer.strong_count() > 0)
    }

    fn know(&self, facet: &Rc<Facet>) -> channel::Client {
        let client: channel::Client = capnp_rpc::new_client_from_rc(facet.clone());
        let mut facets = self.known.borrow_mut();
        if facets.len() == facets.capacity() {
            facets.retain(|_, facet| facet.strong_count() > 0);
        }
        facets.insert(identity(&*client.client.hook), Rc::downgrade(facet));
        client
    }

    /// Which facet this capability is, if it is one. A promise is none yet.
    pub fn find(&self, capability: &dyn ClientHook) -> Option<Rc<Facet>> {
        let facets = self.known.borrow();
        facets.get(&identity(capability)).and_then(Weak::upgrade)
    }

    /// Cuts those whose grants have been cut meanwhile.
    pub fn cut_revoked(&self, reason: &str) {
        let facets: Vec<_> = {
            let facets = self.known.borrow();
            facets.values().filter_map(Weak::upgrade).collect()
        };
        for facet in facets {
            if facet.holder.control.is_cut(&facet.grant) {
                facet.leash.cut(reason);
            }
        }
    }
}

/// What tells one capability from another.
fn identity(capability: &dyn ClientHook) -> (usize, usize) {
    (capability.get_brand(), capability.get_ptr())
}

struct Listening {
    token: u64,
    sink: sink::Client,
    progress: Arc<Progress>,
    _task: AbortOnDrop,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Wherever its task was, nothing is due from it any more.
        self.progress.over();
    }
}

/// Tells a sink that its deliveries are over. Nobody waits for the answer.
fn tell_ended(sink: &sink::Client, reason: &str) {
    let mut request = sink.ended_request();
    request.get().set_reason(reason);
    tokio::task::spawn_local(async move {
        let _ = request.send().promise.await;
    });
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Holder {
    /// A holder without facets.
    pub fn new(
        control: Arc<Control>,
        shared: Arc<Shared>,
        facets: Rc<Facets>,
        wire: wire::End,
        persona: PersonaId,
        epoch: Epoch,
    ) -> Rc<Self> {
        let token = control.next_token();
        Rc::new(Self {
            control,
            persona,
            epoch,
            wire,
            facets,
            leash: Leash::default(),
            listening: RefCell::default(),
            facets_live: Rc::default(),
            subscriptions_live: Rc::default(),
            token,
            shared,
            allowance: OnceCell::new(),
        })
    }

    /// Every grant that is made below its own is drawn on this from here on.
    pub fn draw_on(&self, allowance: &Arc<Allowance>) {
        let _ = self.allowance.set(allowance.clone());
    }

    /// A facet for a grant, as a capability of the inside.
    pub fn facet(self: &Rc<Self>, channel: ChannelName, grant: GrantId) -> channel::Client {
        let facet = Facet::new(self, channel, grant, self.leash.below());
        self.facets.know(&Rc::new(facet))
    }

    /// The same, for whoever puts something before it. Nobody can pass it on as a facet.
    pub fn own_facet(self: &Rc<Self>, channel: ChannelName, grant: GrantId) -> Rc<Facet> {
        Rc::new(Facet::new(self, channel, grant, self.leash.below()))
    }

    /// The facet that was lent from another vat thread under this grant. It hangs below `leash` and this holder's, and goes with the loan.
    ///
    /// # Errors
    /// Denied when there is no such grant of this holder's.
    pub fn borrowed(
        self: &Rc<Self>,
        grant: GrantId,
        leash: &Leash,
        loan: loan::Client,
    ) -> Result<Rc<Facet>, Error> {
        let channel = {
            let state = self.control.record().state();
            let found = state.grant(&grant).filter(|g| g.persona == self.persona);
            match found.map(|grant| &grant.object) {
                Some(Object::Channel(channel)) => channel.clone(),
                _ => return Err(refused(Refusal::Revoked)),
            }
        };
        let leash = leash.below();
        leash.hang_below(&self.leash);
        let mut facet = Facet::new(self, channel, grant, leash.clone());
        let ended = loan.ended_request().send().promise;
        facet._watch = Some(AbortOnDrop(tokio::task::spawn_local(async move {
            let reason = match ended.await {
                Err(error) => error::reason(&error).to_owned(),
                Ok(_) => "the loan is over".to_owned(),
            };
            leash.cut(&reason);
            drop(loan);
        })));
        Ok(Rc::new(facet))
    }

    /// Hands out a facet of this holder's.
    pub fn hand_out(&self, facet: &Rc<Facet>) -> channel::Client {
        self.facets.know(facet)
    }

    /// Ends all deliveries, and cuts what was lent.
    pub fn end(&self, reason: &str) {
        self.leash.cut(reason);
        let listening = std::mem::take(&mut *self.listening.borrow_mut());
        drop(listening);
        self.shared.subscriptions().clear();
    }
}

/// One facet.
pub struct Facet {
    holder: Rc<Holder>,
    channel: ChannelName,
    grant: GrantId,
    leash: Leash,
    /// What is lent of it is lent for good.
    lasting: bool,
    /// By the graft that borrowed it: what it was lent as.
    loans: RefCell<HashMap<u64, Weak<Facet>>>,
    /// Held by a turn until it is the speaker's.
    turning: tokio::sync::Mutex<()>,
    /// Held while one is being lent, so that the same is not lent twice.
    lending: tokio::sync::Mutex<()>,
    /// What it was made from; that goes on as long as this does.
    _above: Option<Rc<Facet>>,
    /// Cuts it when what it was lent from on another thread is over.
    _watch: Option<AbortOnDrop>,
    /// Of a facet made by attenuating.
    place: Option<Place>,
    /// Of a peer's channel.
    afar: Option<Afar>,
}

/// What a facet of a peer's channel goes by.
struct Afar {
    /// None: this host has no such peer any more.
    remote: Option<Arc<Remote>>,
    /// The peer's epoch that the facet is of; none while none is known.
    epoch: Cell<Option<Epoch>>,
}

impl Drop for Facet {
    fn drop(&mut self) {
        if self.place.is_some() && !self.lasting {
            // Nobody can reach it any more, nor what was lent of it.
            let (control, epoch) = (&self.holder.control, self.holder.epoch);
            control.let_go(self.grant, epoch);
        }
    }
}

/// One of the things that a graft may hold so many of.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(live: &Rc<Cell<usize>>, max: usize, what: &str) -> Result<Self, Error> {
        if live.get() >= max {
            return Err(error::busy(&format!(
                "this graft has {max} {what}; let go of one first"
            )));
        }
        live.set(live.get() + 1);
        Ok(Self(live.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::StaleEpoch | Refusal::Revoked => error::stale(&refusal.to_string()),
        Refusal::RateLimited | Refusal::LogUnavailable | Refusal::Overloaded => {
            error::busy(&refusal.to_string())
        }
        _ => error::denied(&refusal.to_string()),
    }
}

impl Facet {
    fn new(holder: &Rc<Holder>, channel: ChannelName, grant: GrantId, leash: Leash) -> Self {
        let afar = channel.is_remote().then(|| {
            let remote = holder.control.peers().remote(&channel);
            Afar {
                epoch: Cell::new(remote.as_ref().and_then(|remote| remote.epoch())),
                remote,
            }
        });
        Self {
            afar,
            holder: holder.clone(),
            channel,
            grant,
            leash,
            lasting: false,
            loans: RefCell::default(),
            turning: tokio::sync::Mutex::default(),
            lending: tokio::sync::Mutex::default(),
            _above: None,
            _watch: None,
            place: None,
        }
    }

    /// Whether it has been cut.
    pub fn is_cut(&self) -> bool {
        self.leash.stale().is_some()
    }

    /// Of which channel it is.
    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// Who holds it.
    pub fn holder(&self) -> &Rc<Holder> {
        &self.holder
    }

    /// What arrives when its holder passes it to another: the other's own facet, once the grant stands.
    pub fn lent_to(self: Rc<Self>, to: Rc<Holder>) -> channel::Client {
        capnp_rpc::new_future_client(async move {
            let leash = self.leash.clone();
            leash.hold(self.lend(&to)).await
        })
    }

    async fn lend(self: Rc<Self>, to: &Rc<Holder>) -> Result<channel::Client, Error> {
        let _one = self.lending.lock().await;
        let standing = self.loans.borrow().get(&to.token).and_then(Weak::upgrade);
        // One that was taken back by the operator is lent anew, under a new grant.
        if let Some(standing) = standing.filter(|facet| !facet.is_cut()) {
            return Ok(capnp_rpc::new_client_from_rc(standing));
        }
        let grant = self.loan_grant(&to.persona).await?;
        let leash = self.leash.below();
        // What the borrower lends on goes with its own graft, too.
        leash.hang_below(&to.leash);
        let mut facet = Self::new(to, self.channel.clone(), grant, leash);
        facet._above = Some(self.clone());
        let facet = Rc::new(facet);
        let mut loans = self.loans.borrow_mut();
        loans.retain(|_, loan| loan.strong_count() > 0);
        loans.insert(to.token, Rc::downgrade(&facet));
        Ok(to.facets.know(&facet))
    }

    async fn loan_grant(&self, to: &PersonaId) -> Result<GrantId, Error> {
        let control = &self.holder.control;
        // Lent before, to an earlier graft of the same agent.
        let known = control.record().state().lent(&self.grant, to, self.lasting);
        if let Some(known) = known.filter(|grant| !control.is_cut(grant)) {
            return Ok(known);
        }
        let lent = self.granted(to, Terms::ALL, self.lasting);
        lent.await.map_err(|error| {
            let text = format!(
                "'{}' could not be lent by {}: {}",
                self.channel,
                self.holder.persona,
                error::reason(&error)
            );
            match error::classify(&error) {
                error::Kind::Stale => error::stale(&text),
                error::Kind::Busy => error::busy(&text),
                _ => error::denied(&text),
            }
        })
    }

    /// What stands for it on the way to an agent of another vat thread.
    pub fn loan(self: &Rc<Self>, to: &PersonaId) -> loan::Client {
        capnp_rpc::new_client(Loan {
            facet: self.clone(),
            to: to.clone(),
        })
    }

    /// A grant under this one, on the record.
    async fn granted(&self, to: &PersonaId, terms: Terms, lasting: bool) -> Result<GrantId, Error> {
        let control = &self.holder.control;
        let body = GrantBody {
            persona: to.clone(),
            object: Object::Channel(self.channel.clone()),
            terms,
            parent: Some(self.grant),
            lasting,
        };
        self.terms()?;
        let admitted = control
            .record()
            .state()
            .admit_grant(&control.host_id(), &body);
        match admitted {
            Ok(_) => {}
            Err(Refusal::NoRight) => {
                return Err(error::denied(&format!(
                    "'{}': the grant lacks the right to attenuate and to lend",
                    self.channel
                )));
            }
            Err(refusal) => return Err(refused(refusal)),
        }
        if let Some(allowance) = self.holder.allowance.get() {
            allowance.draw()?;
        }
        control
            .issue(body, self.holder.epoch)
            .await
            .map_err(|error| error::busy(&error))
    }

    /// The terms in force, while the grant stands.
    fn terms(&self) -> Result<(Terms, Ordinal), Error> {
        if self.holder.control.is_cut(&self.grant) {
            return Err(refused(Refusal::Revoked));
        }
        let record = self.holder.control.record();
        let state = record.state();
        let grant = state
            .grant(&self.grant)
            .filter(|grant| !state.is_suspended(grant))
            .ok_or_else(|| refused(Refusal::Revoked))?;
        if crate::now_ms() > grant.effective.until_ms {
            return Err(refused(Refusal::Expired));
        }
        Ok((grant.effective, grant.reach()))
    }

    /// Whether its grant and all above it outlive the epoch.
    fn lasts(&self) -> bool {
        let state = self.holder.control.record().state();
        let mut next = Some(self.grant);
        while let Some(id) = next {
            match state.grant(&id) {
                Some(grant) if grant.parent.is_none() || grant.lasting => next = grant.parent,
                _ => return false,
            }
        }
        true
    }

    fn standing(&self, peer_epoch: Epoch) -> Standing {
        Standing {
            channel: self.channel.clone(),
            grant: Some(self.grant),
            epoch: self.holder.epoch,
            peer_epoch,
        }
    }

    /// The peer's channel that this is a facet of; none where it is this realm's own.
    fn remote(&self) -> Result<Option<&Arc<Remote>>, Error> {
        match &self.afar {
            None => Ok(None),
            Some(Afar {
                remote: Some(remote),
                ..
            }) => Ok(Some(remote)),
            Some(_) => Err(error::denied(&format!(
                "'{}': this host has no such peer now",
                self.channel
            ))),
        }
    }

    /// The peer's epoch that it is of, as far as it is known; zero where the channel is this realm's own.
    fn peer_epoch(&self) -> Result<Option<Epoch>, Error> {
        let (Some(remote), Some(afar)) = (self.remote()?, &self.afar) else {
            return Ok(Some(Epoch(0)));
        };
        let now = remote.epoch();
        match (afar.epoch.get().or(now), now) {
            (Some(own), Some(now)) if own != now => Err(error::stale(&format!(
                "'{}': the peer's epoch {own} has ended; graft again",
                self.channel
            ))),
            (Some(own), _) => {
                afar.epoch.set(Some(own));
                Ok(Some(own))
            }
            (None, _) => Ok(None),
        }
    }

    /// Where drafts for this channel would go: with room in the outbox, where there is one; or why they can't go there.
    fn way(&self, drafts: &[Draft], through: Ordinal) -> Result<Way, Error> {
        let Some(remote) = self.remote()? else {
            return Ok(Ok((self.standing(Epoch(0)), None)));
        };
        let Some(peer_epoch) = self.peer_epoch()? else {
            let text = format!(
                "'{}': the peer has not been heard yet, and nothing was said; say it again later",
                self.channel
            );
            return Ok(Err((Refusal::LogUnavailable, text)));
        };
        let heard = *remote.heard().borrow();
        if heard.is_known && through.0 > heard.latest {
            let text = format!(
                "'{}' has {} messages, and none is the one that is answered through",
                self.channel, heard.latest
            );
            return Ok(Err((Refusal::Malformed, text)));
        }
        let bytes = drafts.iter().map(|draft| draft.payload.len()).sum();
        let room = remote.reserve(&self.holder.persona.name, drafts.len(), bytes);
        Ok(room.map(|room| (self.standing(peer_epoch), Some(room))))
    }

    /// Where the drafts of one call go, this channel's first. A turn is not taken by halves: it waits for what only needs time.
    async fn ways(
        &self,
        own: &[Draft],
        elsewhere: &[(Rc<Self>, Vec<Draft>)],
        through: Ordinal,
    ) -> Result<(Way, Vec<Way>), Error> {
        loop {
            let first = self.way(own, through)?;
            let others = elsewhere.iter();
            let others = others.map(|(facet, drafts)| facet.way(drafts, Ordinal(0)));
            let others = others.collect::<Result<Vec<_>, _>>()?;
            let early = |way: &Way| {
                let refused = way.as_ref().err().map(|(refusal, _)| refusal);
                matches!(refused, Some(Refusal::LogUnavailable | Refusal::Overloaded))
            };
            if through.0 == 0 || !(early(&first) || others.iter().any(early)) {
                return Ok((first, others));
            }
            drop((first, others));
            tokio::time::sleep(limits::OUTBOX_ROOM_AGAIN).await;
        }
    }

    fn needs(&self, right: Rights, what: &str) -> Result<(Terms, Ordinal), Error> {
        let (terms, reach) = self.terms()?;
        match terms.rights.has(right) {
            true => Ok((terms, reach)),
            false => Err(error::denied(&format!(
                "'{}': the grant lacks the right to {what}",
                self.channel
            ))),
        }
    }

    fn read_draft(&self, reader: draft::Reader<'_>) -> Result<Draft, Error> {
        let content_type = reader.get_content_type()?.to_str()?;
        if content_type.len() > agora_realm::limits::CONTENT_TYPE_BYTES_MAX {
            return Err(error::denied(&format!(
                "a content type of {} bytes is over the bound of {}",
                content_type.len(),
                agora_realm::limits::CONTENT_TYPE_BYTES_MAX
            )));
        }
        let parent = match reader.get_parent()? {
            [] => None,
            id => Some(MessageId(id.try_into().map_err(|_| {
                error::denied("a parent is the 32 bytes of a message's id")
            })?)),
        };
        let owner =
            match reader.get_owner()?.to_str()? {
                "" => None,
                text => Some(self.holder.control.persona_named(text).ok_or_else(|| {
                    error::denied(&format!("no persona '{text}' to own the thread"))
                })?),
            };
        Ok(Draft {
            act: reader
                .get_act()
                .map_err(|_| error::denied("an act that this host does not know"))?
                .into(),
            parent,
            content_type: content_type.to_owned(),
            payload: Bytes::copy_from_slice(reader.get_payload()?),
            key: reader.get_key(),
            hops_max: reader.get_hops_max(),
            owner,
            deadline_ms: reader.get_deadline_ms(),
        })
    }
}

/// What is said on one channel.
struct Bound {
    /// Its place in the call.
    at: usize,
    /// Through what: kept until it is said, since a grant that nobody holds is let go of, and nothing more is said under it.
    facet: Rc<Facet>,
    /// The outbox that it goes to, and the room that it has there.
    afar: Option<(Arc<Remote>, OutboxPlace)>,
    /// The bytes of each draft.
    sizes: Vec<usize>,
}

fn sizes(drafts: &[Draft]) -> Vec<usize> {
    drafts.iter().map(|draft| draft.payload.len()).collect()
}

/// Where drafts go; or why none of them can, as each is told.
type Way = Result<(Standing, Option<OutboxPlace>), (Refusal, String)>;

fn speak_error(error: &SpeakError) -> Error {
    match error {
        SpeakError::Stale(text) => error::stale(text),
        other => error::busy(&other.to_string()),
    }
}

impl channel::Server for Facet {
    async fn info(
        self: Rc<Self>,
        params: channel::InfoParams,
        results: channel::InfoResults,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        leash.hold(self.info_held(params, results)).await
    }

    async fn speak(
        self: Rc<Self>,
        params: channel::SpeakParams,
        results: channel::SpeakResults,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        leash.hold(self.speak_held(params, results)).await
    }

    async fn subscribe(
        self: Rc<Self>,
        params: channel::SubscribeParams,
        results: channel::SubscribeResults,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        leash.hold(self.subscribe_held(params, results)).await
    }

    async fn history(
        self: Rc<Self>,
        params: channel::HistoryParams,
        results: channel::HistoryResults,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        leash.hold(self.history_held(params, results)).await
    }

    async fn attenuate(
        self: Rc<Self>,
        params: channel::AttenuateParams,
        results: channel::AttenuateResults,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        leash.hold(self.attenuate_held(params, results)).await
    }
}

/// For a peer that follows the channel.
impl Facet {
    /// Writes what the channel is, and answers what ordinal a follower's own readers begin behind.
    ///
    /// # Errors
    /// The grant does not stand, or does not allow to read.
    pub fn follow_info(&self, info: channel::info::Builder<'_>) -> Result<u64, Error> {
        self.needs(Rights::READ, "read")?;
        let remote = self.remote()?;
        let granted = remote.map(|remote| remote.granted()).transpose()?;
        self.write_info(info, granted.as_deref())?;
        let state = self.holder.control.record().state();
        if let Some(remote) = remote {
            let floor = remote.kept_floor(state.epoch());
            return floor.ok_or_else(|| {
                error::busy(&format!(
                    "'{}': where its readers begin is not kept here yet; try again",
                    self.channel
                ))
            });
        }
        Ok(state.cursor(&self.holder.persona, &self.channel).0)
    }

    /// Delivers every counting message from an ordinal on, as far as the terms reach, until the sink fails or the facet is cut.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn follow(
        &self,
        from: u64,
        sink: &sink::Client,
        outflow: &Outflow,
    ) -> Result<(), Error> {
        let leash = self.leash.clone();
        match self.remote()? {
            Some(remote) => {
                leash
                    .hold(self.follow_afar(remote, from, sink, outflow))
                    .await
            }
            None => leash.hold(self.follow_held(from, sink, outflow)).await,
        }
    }

    /// The same, of a channel that is a further peer's.
    async fn follow_afar(
        &self,
        remote: &Arc<Remote>,
        from: u64,
        sink: &sink::Client,
        outflow: &Outflow,
    ) -> Result<(), Error> {
        let mut deliveries = Deliveries::new(outflow, sink);
        let mut heard = remote.heard();
        let mut next = from.max(1);
        loop {
            let now = *heard.borrow_and_update();
            if !now.is_known || next > now.latest {
                if deliveries.until(heard.changed()).await?.is_err() {
                    return Ok(());
                }
                continue;
            }
            let leave = deliveries.leave(Source::Afar).await?;
            self.needs(Rights::READ, "read")?;
            if next <= now.pruned {
                drop(leave);
                deliveries.skip(next, now.pruned).await?;
                next = now.pruned + 1;
                continue;
            }
            let page = match remote.messages(next, limits::BATCH_MESSAGES_MAX).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!("'{}' can't be read for a peer: {error}", self.channel);
                    drop(leave);
                    tokio::time::sleep(limits::READ_AGAIN).await;
                    continue;
                }
            };
            if page.messages.is_empty() && page.next <= next {
                drop(leave);
                tokio::time::sleep(limits::READ_AGAIN).await;
                continue;
            }
            next = page.next;
            if page.messages.is_empty() {
                continue;
            }
            let bytes = page.messages.iter().map(|message| message.bytes()).sum();
            deliveries
                .deliver(leave, bytes, |to| {
                    let list = to.init_messages(page.messages.len() as u32);
                    write_afar(&page.messages, list, None)
                })
                .await?;
        }
    }

    /// Counting messages from an ordinal on, as far as the terms reach and they stand among the first `size` places of the log; each with
    /// its proof in the tree of these. And the ordinal to go on from.
    ///
    /// # Errors
    /// Denied: the grant doesn't allow to read, or the log has fewer places. Busy: they can't be read or proved now.
    pub async fn proved(
        &self,
        from: u64,
        count: usize,
        size: u64,
    ) -> Result<(Vec<(Kept, Vec<Hash>)>, u64), Error> {
        let leash = self.leash.clone();
        leash.hold(self.proved_held(from, count, size)).await
    }

    async fn proved_held(
        &self,
        from: u64,
        count: usize,
        size: u64,
    ) -> Result<(Vec<(Kept, Vec<Hash>)>, u64), Error> {
        let _busy = self.holder.control.busy();
        let (_, reach) = self.needs(Rights::READ, "read")?;
        let record = self.holder.control.record();
        if size > record.tree().size() {
            return Err(error::denied("the log has fewer places than that"));
        }
        let pruned = record.state().channel(&self.channel);
        let pruned = pruned.map_or(0, |view| view.pruned.0);
        let from = from.max(1).max(reach.0 + 1).max(pruned + 1);
        let count = count.min(limits::BATCH_MESSAGES_MAX);
        let read = record.messages(&self.channel, Ordinal(from), count, limits::BATCH_BYTES_MAX);
        let read = read
            .await
            .map_err(|error| error::busy(&error.to_string()))?;
        let (mut proved, mut next) = (Vec::new(), from);
        let (mut last, mut bytes) = (0, 0);
        for kept in read {
            let seq = kept.place.seq;
            if seq != last {
                bytes += kept.sealed.stored().len();
            }
            if seq > size || (bytes > limits::BATCH_BYTES_MAX && !proved.is_empty()) {
                break;
            }
            let proof = match seq == last {
                true => Vec::new(),
                false => {
                    let proof = record.tree().inclusion(seq, size).await;
                    proof.map_err(|error| error::busy(&error.to_string()))?
                }
            };
            (last, next) = (seq, kept.ordinal.0 + 1);
            proved.push((kept, proof));
        }
        Ok((proved, next))
    }

    async fn follow_held(
        &self,
        from: u64,
        sink: &sink::Client,
        outflow: &Outflow,
    ) -> Result<(), Error> {
        let mut deliveries = Deliveries::new(outflow, sink);
        let record = self.holder.control.record().clone();
        let mut latest = record.latest(&self.channel);
        let mut next = from.max(1);
        loop {
            let end = *latest.borrow_and_update();
            if next > end {
                if deliveries.until(latest.changed()).await?.is_err() {
                    return Ok(());
                }
                continue;
            }
            let leave = deliveries.leave(Source::Here).await?;
            let (_, reach) = self.needs(Rights::READ, "read")?;
            let pruned = record.state().channel(&self.channel);
            let pruned = pruned.map_or(0, |view| view.pruned.0);
            if next <= pruned {
                drop(leave);
                deliveries.skip(next, pruned).await?;
                next = pruned + 1;
                continue;
            }
            next = next.max(reach.0 + 1);
            let (count, bytes) = (limits::BATCH_MESSAGES_MAX, limits::BATCH_BYTES_MAX);
            let read = record.messages(&self.channel, Ordinal(next), count, bytes);
            let batch = match read.await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::warn!("'{}' can't be read for a peer: {error}", self.channel);
                    drop(leave);
                    tokio::time::sleep(limits::READ_AGAIN).await;
                    continue;
                }
            };
            let Some(last) = batch.last() else {
                // The tail is about to tell.
                drop(leave);
                tokio::task::yield_now().await;
                continue;
            };
            next = last.ordinal.0 + 1;
            let sizes = batch
                .iter()
                .map(|kept| kept.message().payload.len() + limits::MESSAGE_FRAME_BYTES);
            let bytes = sizes.sum();
            deliveries
                .deliver(leave, bytes, |to| {
                    let mut list = to.init_messages(batch.len() as u32);
                    for (i, kept) in batch.iter().enumerate() {
                        write_message(kept, &self.channel, None, list.reborrow().get(i as u32));
                    }
                    Ok(())
                })
                .await?;
        }
    }
}

/// Writes a peer's messages as the peer has them; `reader` tells which are marked as the reader's own.
pub(crate) fn write_afar(
    messages: &[Arc<RemoteMessage>],
    mut list: capnp::struct_list::Builder<'_, message::Owned>,
    reader: Option<&Echo>,
) -> Result<(), Error> {
    for (i, message) in messages.iter().enumerate() {
        message.read(|from| list.set_with_caveats(i as u32, from))?;
        let mine = reader.is_some_and(|echo| echo.is(&message.author));
        list.reborrow().get(i as u32).set_mine(mine);
    }
    Ok(())
}

/// The calls, while the leash holds.
impl Facet {
    async fn info_held(
        self: Rc<Self>,
        _params: channel::InfoParams,
        mut results: channel::InfoResults,
    ) -> Result<(), Error> {
        let _busy = self.holder.control.busy();
        let granted = match self.remote()? {
            Some(remote) => Some(remote.granted_soon().await?),
            None => None,
        };
        self.write_info(results.get().init_info(), granted.as_deref())
    }

    /// `granted`: by the peer, on a channel of a peer's.
    fn write_info(
        &self,
        mut info: channel::info::Builder<'_>,
        granted: Option<&Granted>,
    ) -> Result<(), Error> {
        let (terms, _) = self.terms()?;
        let control = &self.holder.control;
        if let Some(granted) = granted {
            let state = control.record().state();
            info.set_name(self.channel.as_str());
            info.set_hops(granted.hops);
            info.set_reactions(granted.reactions);
            info.set_carry(granted.carry);
            let (latest, cursor) = control.place_on(&state, &self.holder.persona, &self.channel);
            info.set_latest(latest.0);
            info.set_cursor(cursor.0);
            info.set_next_key(state.next_key(&self.holder.persona, &self.channel));
            terms.meet(&granted.terms).write(info.init_terms());
            return Ok(());
        }
        let state = control.record().state();
        let view = state
            .channel(&self.channel)
            .ok_or_else(|| refused(Refusal::UnknownChannel))?;
        info.set_name(self.channel.as_str());
        info.set_hops(view.settings.hops);
        info.set_reactions(view.settings.reactions);
        info.set_carry(view.settings.carry);
        info.set_latest(view.latest.0);
        let cursor = control
            .silent()
            .effective(&state, &self.holder.persona, &self.channel);
        info.set_cursor(cursor.0);
        info.set_next_key(state.next_key(&self.holder.persona, &self.channel));
        terms.write(info.init_terms());
        Ok(())
    }

    async fn speak_held(
        self: Rc<Self>,
        params: channel::SpeakParams,
        mut results: channel::SpeakResults,
    ) -> Result<(), Error> {
        self.terms()?;
        let params = params.get()?;
        let drafts = params.get_drafts()?;
        if drafts.len() as usize > limits::DRAFTS_PER_CALL_MAX {
            return Err(error::denied(&format!(
                "{} drafts in one call; at most {}",
                drafts.len(),
                limits::DRAFTS_PER_CALL_MAX
            )));
        }
        let through = Ordinal(params.get_through());
        let mut own = Vec::new();
        let mut elsewhere: Vec<(Rc<Self>, Vec<Draft>)> = Vec::new();
        // For each draft: on which of the channels it is spoken (0: this one), to put the outcomes back in order.
        let mut order = Vec::new();
        for reader in drafts.iter() {
            let draft = self.read_draft(reader)?;
            let target = match reader.has_to() {
                false => None,
                true => Some(self.holder.find(reader.get_to()?).await?),
            };
            match target {
                Some(facet) if facet.channel != self.channel => {
                    if through.0 == 0 {
                        return Err(error::denied("`to` is for turns: call the other facet"));
                    }
                    facet.terms()?;
                    let known = elsewhere
                        .iter()
                        .position(|(known, _)| known.channel == facet.channel);
                    let at = known.unwrap_or(elsewhere.len());
                    if known.is_none() {
                        elsewhere.push((facet, Vec::new()));
                    }
                    order.push(at + 1);
                    elsewhere[at].1.push(draft);
                }
                _ => {
                    order.push(0);
                    own.push(draft);
                }
            }
        }
        // What one entry must hold: a turn is one, and lone drafts of one call stay together.
        let bytes = |drafts: &[Draft]| drafts.iter().map(|d| d.payload.len()).sum::<usize>();
        let heaviest = elsewhere.iter().map(|(_, drafts)| bytes(drafts)).max();
        let heaviest = heaviest.unwrap_or(0).max(bytes(&own));
        if heaviest > limits::FOLD_BYTES_MAX {
            return Err(error::denied(&format!(
                "{heaviest} bytes of payload for one channel in one call; at most {} (split them)",
                limits::FOLD_BYTES_MAX
            )));
        }
        if own.is_empty() && elsewhere.is_empty() && through.0 == 0 {
            return Ok(());
        }
        // A turn that waits is not overtaken by the next one, whose cursor would be past it.
        let one_turn = match through.0 {
            0 => None,
            _ => Some(self.turning.lock().await),
        };
        let (first, others) = self.ways(&own, &elsewhere, through).await?;
        // From here on it depends on nobody else here.
        let _busy = self.holder.control.busy();
        let refuse = |(refusal, text): &(Refusal, String), drafts: usize| {
            vec![Outcome::Refused(*refusal, text.clone()); drafts].into_iter()
        };
        let mut queues = vec![Vec::new().into_iter(); 1 + elsewhere.len()];
        match first {
            Err(barred) => {
                // Nothing of it was said, and the cursor stands where it stood.
                queues[0] = refuse(&barred, own.len());
                for (queue, (_, drafts)) in queues[1..].iter_mut().zip(&elsewhere) {
                    *queue = refuse(&barred, drafts.len());
                }
            }
            Ok((standing, room)) => {
                let mut bound = vec![Bound {
                    at: 0,
                    facet: self.clone(),
                    afar: self.remote()?.cloned().zip(room),
                    sizes: sizes(&own),
                }];
                let mut speech = Speech {
                    standing,
                    drafts: own,
                    elsewhere: Vec::new(),
                    through,
                    graft: self.holder.token,
                };
                for (at, ((facet, drafts), way)) in elsewhere.into_iter().zip(others).enumerate() {
                    match way {
                        Err(barred) => queues[at + 1] = refuse(&barred, drafts.len()),
                        Ok((standing, room)) => {
                            bound.push(Bound {
                                at: at + 1,
                                afar: facet.remote()?.cloned().zip(room),
                                facet,
                                sizes: sizes(&drafts),
                            });
                            speech.elsewhere.push((standing, drafts));
                        }
                    }
                }
                for (at, outcomes) in self.say(speech, bound, one_turn).await? {
                    queues[at] = outcomes.into_iter();
                }
            }
        }
        let mut list = results.get().init_outcomes(order.len() as u32);
        for (i, at) in order.into_iter().enumerate() {
            if let Some(outcome) = queues[at].next() {
                self.holder.control.count_outcome(&outcome);
                write_outcome(&outcome, list.reborrow().get(i as u32));
            }
        }
        Ok(())
    }

    /// Says it. What goes to a peer is in the outbox then, and is answered as the peer answers it.
    async fn say(
        &self,
        speech: Speech,
        bound: Vec<Bound>,
        one_turn: Option<tokio::sync::MutexGuard<'_, ()>>,
    ) -> Result<Vec<(usize, Vec<Outcome>)>, Error> {
        let (control, persona) = (self.holder.control.clone(), self.holder.persona.clone());
        let is_afar = bound.iter().any(|bound| bound.afar.is_some());
        // Their keys are places in the outbox of another host.
        let is_foreign = persona.name.is_guest() || persona.name.is_peer();
        let is_keyed = is_foreign && speech.through.0 == 0;
        let keyed = is_keyed.then(|| (speech.standing.channel.clone(), speech.drafts.clone()));
        let saying = async move {
            let said = control.speakers().speak(&persona, speech).await;
            let (mut own, others) = said.map_err(|error| speak_error(&error))?;
            if let Some((channel, drafts)) = &keyed {
                own = compared(control.record(), channel, drafts, own).await;
            }
            let outcomes = std::iter::once(own).chain(others);
            let said = outcomes.zip(bound).map(|(outcomes, bound)| {
                // What is in the outbox counts there.
                let remote = bound.afar.map(|(remote, _room)| {
                    remote.note(&persona.name, bound.facet.grant, &outcomes, &bound.sizes);
                    remote
                });
                (bound.at, outcomes, remote)
            });
            Ok::<Vec<_>, Error>(said.collect())
        };
        let mut saying = Box::pin(saying);
        // The first poll puts it in the speaker's queue, so calls keep their order.
        let begun = futures::poll!(&mut saying);
        drop(one_turn);
        let said = match begun {
            std::task::Poll::Ready(said) => said?,
            std::task::Poll::Pending if !is_afar => saying.await?,
            // Whoever gives its call up has the room in the outbox all the same.
            std::task::Poll::Pending => {
                let saying = tokio::task::spawn_local(saying);
                saying
                    .await
                    .map_err(|_| error::failed("the host is ending"))??
            }
        };
        let mut told = Vec::with_capacity(said.len());
        for (at, outcomes, remote) in said {
            let outcomes = match remote {
                None => outcomes,
                // What becomes of it is the peer's to say.
                Some(remote) => remote.settle(outcomes).await,
            };
            told.push((at, outcomes));
        }
        Ok(told)
    }

    async fn subscribe_held(
        self: Rc<Self>,
        params: channel::SubscribeParams,
        mut results: channel::SubscribeResults,
    ) -> Result<(), Error> {
        let (terms, _) = self.needs(Rights::READ, "read")?;
        let place = Place::take(
            &self.holder.subscriptions_live,
            limits::SUBSCRIPTIONS_PER_GRAFT_MAX,
            "subscriptions",
        )?;
        let params = params.get()?;
        let window = match params.get_window() {
            0 => limits::WINDOW_DEFAULT,
            asked => asked.min(limits::WINDOW_MAX),
        };
        let sink = params.get_sink()?;
        let control = &self.holder.control;
        // Where the peer is away, or grants nothing on it now, it waits.
        let remote = self.remote()?.cloned();
        let cursor = {
            let state = control.record().state();
            let (_, cursor) = control.place_on(&state, &self.holder.persona, &self.channel);
            cursor
        };
        let progress = Arc::new(Progress::default());
        let name = self.channel.clone();
        self.holder
            .shared
            .subscriptions()
            .insert(name, progress.clone());
        let running = Subscription {
            record: control.record().clone(),
            silent: control.silent().clone(),
            persona: self.holder.persona.clone(),
            channel: self.channel.clone(),
            window,
            until_ms: terms.until_ms,
            sink: sink.clone(),
            progress: progress.clone(),
        };
        let running = async move {
            match remote {
                Some(remote) => RemoteSubscription(running, remote).run().await,
                None => running.run(cursor).await,
            }
        };
        let name = format!("{} on {}", self.holder.persona, self.channel);
        let (own, over, leash) = (sink.clone(), progress.clone(), self.leash.clone());
        let task = tokio::task::spawn_local(async move {
            let ended = leash.hold(running).await;
            // Nothing more is due from a subscription that has ended.
            over.over();
            if let Err(error) = ended {
                tracing::debug!("subscription of {name} ended: {error}");
                tell_ended(&own, &error.to_string());
            }
        });
        let token = control.next_token();
        let old = self.holder.listening.borrow_mut().insert(
            self.channel.clone(),
            Listening {
                token,
                sink,
                progress,
                _task: AbortOnDrop(task),
            },
        );
        if let Some(old) = old {
            tell_ended(&old.sink, "a newer subscription took its place");
        }
        results.get().set_cursor(cursor.0);
        results
            .get()
            .set_subscription(capnp_rpc::new_client(Subscribed {
                holder: Rc::downgrade(&self.holder),
                channel: self.channel.clone(),
                token,
                _place: place,
            }));
        Ok(())
    }

    async fn history_held(
        self: Rc<Self>,
        params: channel::HistoryParams,
        mut results: channel::HistoryResults,
    ) -> Result<(), Error> {
        let _busy = self.holder.control.busy();
        let (terms, reach) = self.needs(Rights::READ, "read")?;
        let params = params.get()?;
        if let Some(remote) = self.remote()? {
            let count = params.get_count().min(limits::BATCH_MESSAGES_MAX as u32);
            let from = params.get_from().max(1);
            // How far the terms reach back is known once the peer has told its floor.
            let first = || {
                let floor = remote.floor(self.holder.epoch);
                let floor = floor.or((terms.history == u64::MAX).then_some(0))?;
                Some(from.max(floor.saturating_sub(terms.history) + 1))
            };
            let soon = || {
                first().ok_or_else(|| {
                    error::busy(&format!(
                        "'{}': how far back the grant reaches isn't known before the peer was heard; try again",
                        self.channel
                    ))
                })
            };
            let at_once = match first() {
                None => None,
                Some(first) => match remote.history(first, count).await {
                    Ok(page) => Some(page),
                    Err(Missed::Away(_)) => {
                        let control = &self.holder.control;
                        mirroring::page(control, &self.channel, first, count).await?
                    }
                    Err(missed) => return Err(missed.into()),
                },
            };
            let page = match at_once {
                Some(page) => page,
                None => remote.history_soon(soon, count).await?,
            };
            let next = match page.messages.is_empty() {
                true => from.max(page.pruned + 1),
                false => page.next,
            };
            results.get().set_next(next);
            results.get().set_pruned(page.pruned);
            let list = results.get().init_messages(page.messages.len() as u32);
            let echo = remote.echo(&self.holder.persona);
            return write_afar(&page.messages, list, Some(&echo));
        }
        let from = Ordinal(params.get_from().max(1));
        let pruned = self.holder.control.record().state().channel(&self.channel);
        let pruned = pruned.map_or(Ordinal(0), |view| view.pruned);
        let start = from.max(Ordinal(reach.0 + 1)).max(Ordinal(pruned.0 + 1));
        let count = (params.get_count() as usize).min(limits::BATCH_MESSAGES_MAX);
        let kept = self
            .holder
            .control
            .record()
            .messages(&self.channel, start, count, limits::BATCH_BYTES_MAX)
            .await
            .map_err(|error| error::busy(&error.to_string()))?;
        // What was pruned is passed over, and said.
        let from = from.max(Ordinal(pruned.0 + 1));
        let next = kept.last().map_or(from.0, |last| last.ordinal.0 + 1);
        results.get().set_next(next);
        results.get().set_pruned(pruned.0);
        let mut list = results.get().init_messages(kept.len() as u32);
        for (i, message) in kept.iter().enumerate() {
            write_message(
                message,
                &self.channel,
                Some(&self.holder.persona),
                list.reborrow().get(i as u32),
            );
        }
        Ok(())
    }

    async fn attenuate_held(
        self: Rc<Self>,
        params: channel::AttenuateParams,
        mut results: channel::AttenuateResults,
    ) -> Result<(), Error> {
        let _busy = self.holder.control.busy();
        let holder = &self.holder;
        let place = Place::take(&holder.facets_live, limits::FACETS_PER_GRAFT_MAX, "facets")?;
        let params = params.get()?;
        let terms = Terms::read(params.get_terms()?)?;
        // What is held in passing goes with its lender's graft, and so must whatever is made of it.
        let lasting = params.get_lasting() && self.lasts();
        let grant = self.granted(&holder.persona, terms, lasting).await?;
        let leash = self.leash.below();
        let mut facet = Facet::new(holder, self.channel.clone(), grant, leash.clone());
        facet.lasting = lasting;
        facet._above = Some(self.clone());
        facet.place = Some(place);
        results
            .get()
            .set_channel(holder.facets.know(&Rc::new(facet)));
        results.get().set_revoker(capnp_rpc::new_client(Scissors {
            control: holder.control.clone(),
            epoch: holder.epoch,
            grant,
            leash,
        }));
        Ok(())
    }
}

impl Holder {
    /// Which of this graft's facets a capability is, once it is known.
    async fn find(&self, client: channel::Client) -> Result<Rc<Facet>, Error> {
        let resolved: channel::Client = capnp::capability::get_resolved_cap(client).await;
        self.facets
            .find(&*resolved.client.hook)
            .filter(|facet| std::ptr::eq(&*facet.holder, self))
            .ok_or_else(|| error::denied("`to` is not a facet of this graft"))
    }
}

/// A facet that its holder passes to an agent of another vat thread.
struct Loan {
    facet: Rc<Facet>,
    to: PersonaId,
}

impl loan::Server for Loan {
    async fn claim(
        self: Rc<Self>,
        _params: loan::ClaimParams,
        mut results: loan::ClaimResults,
    ) -> Result<(), Error> {
        let facet = &self.facet;
        let claiming = async {
            let _one = facet.lending.lock().await;
            facet.loan_grant(&self.to).await
        };
        let grant = facet.leash.hold(claiming).await?;
        results.get().set_grant(&grant.0);
        Ok(())
    }

    async fn ended(
        self: Rc<Self>,
        _params: loan::EndedParams,
        _results: loan::EndedResults,
    ) -> Result<(), Error> {
        Err(self.facet.leash.ended().await)
    }
}

struct Subscribed {
    holder: Weak<Holder>,
    channel: ChannelName,
    token: u64,
    _place: Place,
}

impl subscription::Server for Subscribed {}

impl Drop for Subscribed {
    fn drop(&mut self) {
        if let Some(holder) = self.holder.upgrade() {
            let mut listening = holder.listening.borrow_mut();
            if listening
                .get(&self.channel)
                .is_some_and(|l| l.token == self.token)
            {
                let ended = listening.remove(&self.channel);
                drop(listening);
                drop(ended);
            }
        }
    }
}

struct Scissors {
    control: Arc<Control>,
    epoch: Epoch,
    grant: GrantId,
    leash: Leash,
}

impl revoker::Server for Scissors {
    async fn revoke(
        self: Rc<Self>,
        params: revoker::RevokeParams,
        _results: revoker::RevokeResults,
    ) -> Result<(), Error> {
        let reason = params.get()?.get_reason()?.to_string()?;
        let reason = crate::cut_text(&reason, limits::REASON_BYTES_MAX);
        self.leash.cut(&reason);
        let revoked = self
            .control
            .revoke_facet(self.grant, self.epoch, reason)
            .await;
        self.control.peers().withhold(&self.control).await;
        revoked.map_err(|error| error::busy(&error))
    }
}
