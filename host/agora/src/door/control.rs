//! What the operator may do, and what agents' facets need of the host.
//!
//! In: an operator's verbs; facets' requests. Out: entries, and their effect here.
//! Promise: a stop (bump, kill, revoke) takes effect here first and waits for nothing; then it is kept in the data folder, then put in the
//! log, and the answer says how far that got. Whatever is not yet in the log is first in line for it, also after a crash.
//! Failure: anything else that the log can't take now is refused, and nothing of it is in effect.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agora_log::{Class, LogError};
use agora_membrane::error;
use agora_realm::checkpoint::Signed;
use agora_realm::{
    Body, ChannelBody, ChannelName, DomainName, Entry, EntryId, Epoch, GrantBody, GrantId, HostId,
    KeyBody, KeySubject, LapseBody, MessageId, NoteBody, Object, Ordinal, Origin, PersonaId,
    PersonaName, PublicKey, Refusal, RevokeBody, Revoked, Sealed, ServiceName, SigningKey, State,
    Terms,
};
use tokio::sync::watch;

use super::bridge::Landing;
use super::gate::Gate;
use super::service::Services;
use super::worker::Worker;
use crate::boot::data::{DataFolder, Slot};
use crate::boot::host::LogPlace;
use crate::boot::manifest::{NotADomain, unknown};
use crate::channel::allowance::Allowance;
use crate::channel::speak::{
    Counted, Draft, Outcome, SpeakError, Speakers, Speech, Stage, Standing,
};
use crate::delivery::cursors::SilentCursors;
use crate::delivery::forks::Forks;
use crate::delivery::record::{Committed, Record};
use crate::limits;
use crate::peer::peers::{Peer, Peers, Stops};
use crate::peer::remote::Remote;
use crate::persona::agent::{Agent, Phase};
use crate::persona::keys::Keys;
use crate::persona::secret::random_bytes;

/// What an agent was granted, as the log has it.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The grant.
    pub id: GrantId,
    /// What for.
    pub object: Object,
    /// Effective.
    pub terms: Terms,
    /// Who lent it; none: the host granted it.
    pub lent_by: Option<PersonaId>,
}

/// What an operator may grant.
#[derive(Debug, Clone)]
pub enum Grantable {
    /// A channel, by its name, under terms.
    Channel(String, Terms),
    /// What an agent serves, by its name.
    Service(String),
    /// The timer.
    Timer,
    /// A signer for a domain, by its name.
    Signer(String),
}

/// The answer to a verb that changes what counts.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    /// The entry that says it.
    pub entry: Option<EntryId>,
    /// Of a grant: its number.
    pub number: u64,
    /// Why it is not durable yet; none: it is.
    pub pending: Option<String>,
    /// It is in the log, and void there for this reason.
    pub void: Option<Refusal>,
    /// For people.
    pub note: String,
    /// Of a bump: the other hosts that have said that the epoch has begun for them, too.
    pub confirmed: Vec<HostId>,
    /// Those that have not.
    pub unconfirmed: Vec<HostId>,
    /// The leases of those must have run out since.
    pub outlasted: bool,
}

/// Where an operator's message goes, and what it is.
#[derive(Debug, Clone)]
pub struct Said {
    /// The channel's name.
    pub channel: String,
    /// What is meant.
    pub act: agora_realm::Act,
    /// What is said.
    pub text: String,
    /// What it answers.
    pub parent: Option<MessageId>,
    /// Who decides; empty: nobody.
    pub owner: String,
    /// Milliseconds until it lapses; 0: never.
    pub deadline_ms: i64,
}

/// What is counted of a run.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers refused because no hops were left.
    pub hops_spent: AtomicU64,
}

/// The host's controls. Shared by every door.
pub struct Control {
    record: Arc<Record>,
    keys: Arc<Keys>,
    gate: Arc<Gate>,
    silent: Arc<SilentCursors>,
    speakers: Speakers,
    folder: Arc<DataFolder>,
    runtime: tokio::runtime::Handle,
    /// Grants that are revoked here, whether or not the log has it yet.
    cut: RwLock<HashSet<GrantId>>,
    agents: RwLock<BTreeMap<PersonaName, Arc<Agent>>>,
    workers: RwLock<Vec<Arc<Worker>>>,
    services: Services,
    log_place: LogPlace,
    peers: Arc<Peers>,
    /// Stops of personas of peers that the manifest doesn't have any more.
    pub(super) foreign_stops: Arc<Stops>,
    forks: Arc<Forks>,
    busy: Arc<AtomicUsize>,
    /// Held by each marker that is on its way.
    markers: Arc<()>,
    tokens: AtomicU64,
    /// The time of this host's latest entry.
    stamped: AtomicI64,
    bumping: tokio::sync::Mutex<()>,
    /// The place up to which what would have to be said again is kept.
    kept_through: AtomicU64,
    /// Held while the host's key is changed.
    rotating: tokio::sync::Mutex<()>,
    /// Held by the one prune that is at work.
    pruning: tokio::sync::Mutex<()>,
    /// What was counted of this run.
    pub counts: Counts,
    ending: watch::Sender<bool>,
}

/// What a start holds, for as long as it is on its way.
pub(super) type Verbs = Arc<tokio::sync::Mutex<()>>;

/// As what a stop is in the log, and what was judged of it.
type Entered = (EntryId, Result<(), Refusal>);

/// Waits for a cut on vat threads, but not for ever: a thread that does not answer must not keep a stop from the record. Answers what
/// the operator should know.
pub(super) async fn cut_soon(cut: impl Future<Output = ()>) -> &'static str {
    match tokio::time::timeout(limits::STOP_WAIT, cut).await {
        Ok(()) => "",
        Err(_) => {
            "a vat thread does not answer; nothing passes its walls, but what runs on it runs on"
        }
    }
}

/// The log has changed the host's key to one that this secret doesn't give.
const FOREIGN_KEY: &str =
    "the log has another key for this host than its secret gives (restore the secret)";

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Controls of a host whose record is open.
    pub fn new(
        stage: Stage,
        folder: Arc<DataFolder>,
        services: Services,
        log_place: LogPlace,
        peers: Arc<Peers>,
    ) -> Arc<Self> {
        let forks = Arc::new(Forks::open(&folder.join("")));
        let tip = folder.tip().ok().flatten().map_or(0, |tip| tip.seq);
        let judged = stage.record.state().last_seq().unwrap_or(0);
        Arc::new(Self {
            record: stage.record.clone(),
            keys: stage.keys.clone(),
            gate: stage.gate.clone(),
            silent: stage.silent.clone(),
            runtime: stage.runtime.clone(),
            speakers: Speakers::new(stage),
            folder,
            cut: RwLock::default(),
            agents: RwLock::default(),
            workers: RwLock::default(),
            services,
            log_place,
            peers,
            foreign_stops: Arc::default(),
            forks,
            busy: Arc::default(),
            markers: Arc::default(),
            tokens: AtomicU64::new(0),
            stamped: AtomicI64::new(0),
            bumping: tokio::sync::Mutex::new(()),
            kept_through: AtomicU64::new(tip.min(judged)),
            rotating: tokio::sync::Mutex::new(()),
            pruning: tokio::sync::Mutex::new(()),
            counts: Counts::default(),
            ending: watch::channel(false).0,
        })
    }

    /// Held by the one prune that is at work.
    pub(super) fn pruning(&self) -> &tokio::sync::Mutex<()> {
        &self.pruning
    }

    /// Gives it the vat threads.
    pub fn set_workers(&self, workers: Vec<Worker>) {
        *write(&self.workers) = workers.into_iter().map(Arc::new).collect();
    }

    fn worker(&self, at: usize) -> Option<Arc<Worker>> {
        read(&self.workers).get(at).cloned()
    }

    /// Lands a bridge on a vat thread. Says whether that is there to keep it.
    pub async fn land(&self, worker: usize, landing: Landing) -> bool {
        match self.worker(worker) {
            Some(worker) => worker.land(landing).await,
            None => false,
        }
    }

    // -- For facets

    /// The record.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The gate.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Silence's cursors.
    pub fn silent(&self) -> &Arc<SilentCursors> {
        &self.silent
    }

    /// Who publishes.
    pub fn speakers(&self) -> &Speakers {
        &self.speakers
    }

    /// The data folder.
    pub fn folder(&self) -> &Arc<DataFolder> {
        &self.folder
    }

    /// The runtime that everything but vats runs on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// This host.
    pub fn host_id(&self) -> HostId {
        self.keys.host_id()
    }

    /// What it signs with.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What an agent's seed is.
    pub fn insecure_seed(&self, name: &PersonaName) -> u128 {
        self.keys.secret().insecure_seed(name)
    }

    /// Something is being done, until the answer is dropped.
    pub fn busy(&self) -> Counted {
        Counted::new(&self.busy)
    }

    /// The place up to which what would have to be said again is kept.
    pub(super) fn kept_through(&self) -> &AtomicU64 {
        &self.kept_through
    }

    /// What each marker on its way holds.
    pub(super) fn markers(&self) -> &Arc<()> {
        &self.markers
    }

    /// How many things are being done.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
            || self.speakers.waiting() > 0
            || self.record.commits_waiting() > 0
            || self.services.is_busy()
    }

    /// Where the log is, and how it is reached.
    pub fn log_place(&self) -> &LogPlace {
        &self.log_place
    }

    /// Other realms' hosts.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Where other hosts have another log.
    pub fn forks(&self) -> &Arc<Forks> {
        &self.forks
    }

    /// The services outside.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// A number that was not given before.
    pub fn next_token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts what the summary tells.
    pub fn count_outcome(&self, outcome: &Outcome) {
        if let Outcome::Refused(Refusal::HopsSpent, _) = outcome {
            self.counts.hops_spent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a grant, or one above it, is revoked here, or came through an agent that is killed here.
    pub fn is_cut(&self, grant: &GrantId) -> bool {
        let cut = read(&self.cut);
        let state = self.record.state();
        let mut next = Some((*grant, false));
        while let Some((id, above)) = next {
            if cut.contains(&id) {
                return true;
            }
            // What is handed out was granted, so what is not there any more is cut.
            let Some(grant) = state.grant(&id) else {
                return true;
            };
            if above && self.is_killed(&grant.persona) {
                return true;
            }
            next = grant.parent.map(|parent| (parent, true));
        }
        false
    }

    /// Whether this is an agent or a peer of this host that is killed, whether or not the log has it yet.
    pub fn is_killed(&self, persona: &PersonaId) -> bool {
        if persona.host != self.host_id() {
            return false;
        }
        if let Some(peer) = persona.name.peer_name() {
            return self.peers.named(peer).is_some_and(|peer| peer.is_refused());
        }
        let agents = read(&self.agents);
        let agent = agents.get(&persona.name);
        agent.is_some_and(|agent| matches!(agent.shared.phase(), Phase::Killed(_)))
    }

    /// These grants are cut here from now on, whatever the log has.
    pub(super) fn cut_here(&self, grants: &[GrantId]) {
        write(&self.cut).extend(grants);
    }

    /// What the log says of these grants holds.
    pub(super) fn cut_no_more(&self, grants: &[GrantId]) {
        write(&self.cut).retain(|id| !grants.contains(id));
    }

    /// What a persona's next graft holds: for each object its newest grant, and the newest of what others lent it for good, each.
    pub fn grants_for(&self, persona: &PersonaId) -> Vec<Granted> {
        let live: Vec<_> = {
            let state = self.record.state();
            let of = state.grants_of(persona);
            of.filter_map(|(id, grant)| {
                let lent_by = match grant.parent {
                    None => None,
                    Some(parent) if grant.lasting && !state.is_suspended(grant) => {
                        let lender = &state.grant(&parent)?.persona;
                        // What it narrowed itself it can narrow again.
                        (lender != persona).then(|| Some(lender.clone()))?
                    }
                    Some(_) => return None,
                };
                Some(Granted {
                    id: *id,
                    object: grant.object.clone(),
                    terms: grant.effective,
                    lent_by,
                })
            })
            .collect()
        };
        let mut newest = BTreeMap::new();
        for granted in live {
            if !self.is_cut(&granted.id) {
                // Oldest first, so that the newest stays; its own before what was lent.
                newest.insert((granted.object.clone(), granted.lent_by.clone()), granted);
            }
        }
        newest.into_values().collect()
    }

    /// A persona by `name` (of this host) or `name@host`.
    pub fn persona_named(&self, text: &str) -> Option<PersonaId> {
        let state = self.record.state();
        match text.split_once('@') {
            None => {
                let id = PersonaId::new(self.host_id(), PersonaName::new(text).ok()?);
                state.persona(&id).is_some().then_some(id)
            }
            Some(_) => state
                .personas()
                .map(|(id, _)| id)
                .find(|id| id.to_string() == text)
                .cloned(),
        }
    }

    /// Issues a grant on behalf of an agent of this epoch.
    ///
    /// # Errors
    /// For people.
    pub async fn issue(self: &Arc<Self>, body: GrantBody, epoch: Epoch) -> Result<GrantId, String> {
        {
            let state = self.record.state();
            state
                .admit_grant(&self.host_id(), &body)
                .map_err(|refusal| refusal.to_string())?;
        }
        let committed = self
            .enact(Body::Grant(body), epoch, Class::Ordinary)
            .await?;
        let id = committed.settled.judged.id;
        Ok(GrantId::from(id.expect("what stands is an entry")))
    }

    /// Takes a grant off the books that an agent made and that nobody can reach any more. At the end of an epoch, or of the host, the
    /// fence does that.
    pub fn let_go(self: &Arc<Self>, grant: GrantId, epoch: Epoch) {
        let is_moot = move |control: &Self| {
            !control.gate.is_open(epoch)
                || *control.ending.borrow()
                || control.record.state().grant(&grant).is_none()
        };
        if is_moot(self) {
            return;
        }
        let control = self.clone();
        let mut busy = Some(self.busy());
        self.runtime.spawn(async move {
            let mut wait = limits::OUTBOX_AGAIN_MIN;
            while control.is_owed_under(&grant) {
                // Nobody took back what was said under it.
                busy = None;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(limits::OUTBOX_AGAIN_MAX);
                if is_moot(&control) {
                    return;
                }
            }
            let _busy = busy.unwrap_or_else(|| control.busy());
            let gone = control.revoke_facet(grant, epoch, "nobody holds it".into());
            if let Err(error) = gone.await {
                tracing::debug!("a grant that nobody holds stays on the books: {error}");
            }
        });
    }

    /// Revokes a facet that an agent made. It is cut already; this puts it on the record.
    ///
    /// # Errors
    /// For people: it is not on the record yet.
    pub async fn revoke_facet(
        self: &Arc<Self>,
        grant: GrantId,
        epoch: Epoch,
        reason: String,
    ) -> Result<(), String> {
        write(&self.cut).insert(grant);
        let known = self.record.state().grant(&grant).map(|known| known.lasting);
        let Some(is_lasting) = known else {
            return Ok(());
        };
        let body = Body::Revoke(RevokeBody {
            what: Revoked::Grant(grant),
            reason,
            by: String::new(),
        });
        // An agent's own cuts don't draw on the room that is kept for stops.
        let committed = self.enact(body, epoch, Class::Ordinary).await?;
        if let (true, Ok(sealed)) = (is_lasting, &committed.settled.sealed) {
            self.keep_for_again(sealed).await;
        }
        // The state knows now, and needs no reminder.
        write(&self.cut).remove(&grant);
        Ok(())
    }

    // -- Entries

    /// The time for one more entry of this host: later than any before, so that two that say the same are two entries.
    fn stamp(&self) -> i64 {
        let now = crate::now_ms();
        let next = |last: i64| now.max(last.saturating_add(1));
        let last = self
            .stamped
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        last.map_or(now, next)
    }

    pub(super) async fn seal(self: &Arc<Self>, body: Body, epoch: Epoch) -> Result<Sealed, String> {
        let time_ms = self.stamp();
        let control = self.clone();
        let sealing = self.runtime.spawn_blocking(move || {
            let (realm, key) = {
                let state = control.record.state();
                (state.realm(), control.keys.host_by(&state))
            };
            let key = key.ok_or(FOREIGN_KEY)?;
            let entry = Entry {
                realm,
                host: control.host_id(),
                author: None,
                signer: key.public(),
                epoch,
                time_ms,
                grant: None,
                body,
            };
            control.keys.seal(entry, &key)
        });
        sealing
            .await
            .unwrap_or_else(|_| Err("the host is ending".into()))
    }

    /// Writes an entry of this host; again where the host's key was changed while it was on its way, since then it changed nothing.
    async fn enact(
        self: &Arc<Self>,
        body: Body,
        epoch: Epoch,
        class: Class,
    ) -> Result<Committed, String> {
        loop {
            let sealed = self.seal(body.clone(), epoch).await?;
            let signer = sealed.entry().signer;
            let committed = self
                .record
                .commit(sealed, class)
                .await
                .map_err(|error| format!("logUnavailable: {error}"))?;
            match committed.settled.judged.verdict {
                Ok(()) => {
                    if let Ok(sealed) = &committed.settled.sealed {
                        self.keep_own(sealed).await;
                    }
                    return Ok(committed);
                }
                Err(Refusal::WrongKey) if self.signed_before_a_change(&signer) => {}
                Err(refusal) => return Err(refusal.to_string()),
            }
        }
    }

    /// Whether this host signs with another key by now.
    fn signed_before_a_change(&self, signer: &PublicKey) -> bool {
        let current = self.keys.host_by(&self.record.state());
        current.is_some_and(|current| current.public() != *signer)
    }

    /// The same entry, signed with the key that the host has now.
    async fn sealed_anew(self: &Arc<Self>, sealed: &Sealed) -> Result<Sealed, String> {
        let (control, mut entry) = (self.clone(), sealed.entry().clone());
        let sealing = self.runtime.spawn_blocking(move || {
            let key = control.keys.host_by(&control.record.state());
            let key = key.ok_or(FOREIGN_KEY)?;
            entry.signer = key.public();
            control.keys.seal(entry, &key)
        });
        sealing
            .await
            .unwrap_or_else(|_| Err("the host is ending".into()))
    }

    /// Writes an entry of this host in the current epoch.
    ///
    /// # Errors
    /// For people.
    pub async fn decide(self: &Arc<Self>, body: Body) -> Result<Committed, String> {
        self.decide_as(body, Class::Ordinary).await
    }

    /// The same, as an entry of this class.
    ///
    /// # Errors
    /// For people.
    pub(super) async fn decide_as(
        self: &Arc<Self>,
        body: Body,
        class: Class,
    ) -> Result<Committed, String> {
        loop {
            let epoch = self.record.state().epoch();
            match self.enact(body.clone(), epoch, class).await {
                // A fence came in between. What is decided is not of an epoch, so it is decided again in the next.
                Err(_) if self.record.state().epoch() != epoch => {}
                decided => return decided,
            }
        }
    }

    /// Puts an agent's end on the record, when the log takes it.
    pub fn note_incident(self: &Arc<Self>, persona: &PersonaName, reason: &str, count: u32) {
        let control = self.clone();
        let body = Body::Note(NoteBody::Incident {
            persona: persona.clone(),
            reason: crate::cut_text(reason, limits::REASON_BYTES_MAX),
            count,
        });
        let busy = self.busy();
        self.runtime.spawn(async move {
            let _busy = busy;
            if let Err(error) = control.decide(body).await {
                tracing::warn!("an agent's end is not on the record: {error}");
            }
        });
    }

    /// Makes a stop durable: keeps it here, then puts it in the log, trying until it is in. `behind` is held by a start that may be on its
    /// way, behind which it goes in the log; it is kept here without waiting for that.
    pub(super) async fn make_durable(
        self: &Arc<Self>,
        body: Body,
        behind: Option<Verbs>,
    ) -> Decided {
        let epoch = self.record.state().epoch();
        let sealed = match self.seal(body, epoch).await {
            Ok(sealed) => sealed,
            Err(error) => {
                return Decided {
                    pending: Some(error),
                    ..Decided::default()
                };
            }
        };
        let mut entry = Some(sealed.id());
        let control = self.clone();
        let stored = sealed.stored().clone();
        let kept = self
            .runtime
            .spawn_blocking(move || control.folder.stops().keep(&stored))
            .await;
        let (slot, unkept) = match kept {
            Ok(Ok(slot)) => (Some(slot), None),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(_) => (None, Some("the host is ending".to_owned())),
        };
        let (mut trouble, entering) = self.enter(sealed, slot, behind);
        let mut void = None;
        let pending = match tokio::time::timeout(limits::STOP_WAIT, entering).await {
            Ok(Ok(Some((id, verdict)))) => {
                entry = Some(id);
                void = verdict.err();
                None
            }
            _ => {
                let log = trouble.borrow_and_update().clone();
                Some(match unkept {
                    None => log,
                    Some(unkept) => format!("{log}; nor is it kept in the data folder: {unkept}"),
                })
            }
        };
        Decided {
            entry,
            pending,
            void,
            ..Decided::default()
        }
    }

    /// Puts a stop in the log, trying until it is in; signed anew where the host's key was changed meanwhile. Tells its trouble meanwhile,
    /// and in the end what was judged of it; none when the host ended first.
    fn enter(
        self: &Arc<Self>,
        mut sealed: Sealed,
        slot: Option<Slot>,
        behind: Option<Verbs>,
    ) -> (
        watch::Receiver<String>,
        tokio::task::JoinHandle<Option<Entered>>,
    ) {
        let (tell, trouble) = watch::channel("the log has not answered yet".to_owned());
        let control = self.clone();
        let entering = self.runtime.spawn(async move {
            let _one = match &behind {
                Some(verbs) => Some(verbs.lock().await),
                None => None,
            };
            let mut wait = limits::STOP_AGAIN_MIN;
            let verdict = loop {
                match control.record.commit(sealed.clone(), Class::Control).await {
                    Ok(committed) => {
                        let verdict = committed.settled.judged.verdict;
                        if verdict != Err(Refusal::WrongKey)
                            || !control.signed_before_a_change(&sealed.entry().signer)
                        {
                            break verdict;
                        }
                        // What is kept in the slot stands for it: the next start would sign that anew, too.
                        match control.sealed_anew(&sealed).await {
                            Ok(anew) => {
                                sealed = anew;
                                continue;
                            }
                            Err(error) => {
                                tell.send_replace(error);
                            }
                        }
                    }
                    // The slot keeps it for the next start.
                    Err(LogError::Closed) => return None,
                    Err(error @ LogError::Diverged { .. }) => {
                        tell.send_replace(error.to_string());
                        return None;
                    }
                    Err(error) => {
                        tell.send_replace(error.to_string());
                        tracing::warn!("a stop waits for the log: {error}");
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(limits::STOP_AGAIN_MAX);
            };
            if verdict.is_ok() {
                control.keep_own(&sealed).await;
                if let Body::Revoke(body) = &sealed.entry().body
                    && !matches!(body.what, Revoked::Fence { .. })
                {
                    control.withhold_soon();
                }
            }
            if let Some(slot) = slot {
                let cleared =
                    tokio::task::spawn_blocking(move || control.folder.stops().clear(slot));
                if let Ok(Err(error)) = cleared.await {
                    tracing::warn!("{error}");
                }
            }
            Some((sealed.id(), verdict))
        });
        (trouble, entering)
    }

    /// Puts the stops that an earlier run left in the log, before anything else.
    ///
    /// # Errors
    /// For people: one can't be put in now.
    pub async fn enter_kept_stops(self: &Arc<Self>) -> Result<usize, String> {
        let waiting = self.folder.stops().waiting().map_err(|e| e.to_string())?;
        let count = waiting.len();
        for (slot, stored) in waiting {
            match Sealed::open(stored) {
                Ok(sealed) => {
                    let (trouble, entering) = self.enter(sealed, Some(slot), None);
                    if tokio::time::timeout(limits::STOP_WAIT, entering)
                        .await
                        .is_err()
                    {
                        return Err(format!("a stop waits for the log: {}", *trouble.borrow()));
                    }
                }
                Err(junk) => {
                    tracing::error!("a kept stop is damaged and dropped: {junk:?}");
                    let _ = self.folder.stops().clear(slot);
                }
            }
        }
        Ok(count)
    }

    // -- Agents

    /// An agent of this host.
    ///
    /// # Errors
    /// There is none of that name; names those there are.
    pub fn agent(&self, name: &str) -> Result<Arc<Agent>, String> {
        let agents = read(&self.agents);
        agents
            .values()
            .find(|agent| agent.name.as_str() == name)
            .cloned()
            .ok_or_else(|| match self.peers.named(name) {
                Some(peer) => format!("unknown agent '{name}'; did you mean '{}'?", peer.persona),
                None => unknown("agent", name, agents.keys().map(PersonaName::as_str)),
            })
    }

    /// All agents of this host.
    pub fn agents(&self) -> Vec<Arc<Agent>> {
        read(&self.agents).values().cloned().collect()
    }

    /// One more agent of this host.
    pub fn add(&self, agent: Arc<Agent>) {
        write(&self.agents).insert(agent.name.clone(), agent);
    }

    /// Begins an agent's life, unless it was killed.
    pub async fn begin(&self, agent: Arc<Agent>) {
        let stops = agent.shared.stops();
        let persona = PersonaId::new(self.host_id(), agent.name.clone());
        let killed = |persona: &agora_realm::Persona| persona.killed;
        if self.record.state().persona(&persona).is_some_and(killed) {
            // By another host, while this one started.
            agent
                .shared
                .set_phase(Phase::Killed("by another host".into()));
        }
        if let (Phase::Starting, Some(worker)) = (agent.shared.phase(), self.worker(agent.worker)) {
            worker.begin(agent, stops).await;
        }
    }

    /// The key a persona is to have: its next when `renew`, else the one that the log knows.
    ///
    /// # Errors
    /// The log knows another key than this host's secret gives.
    pub fn persona_key(
        &self,
        name: &PersonaName,
        component: Option<&agora_realm::ComponentHash>,
        renew: bool,
    ) -> Result<(SigningKey, bool), String> {
        let id = PersonaId::new(self.host_id(), name.clone());
        let secret = self.keys.secret();
        let known = self.record.state().persona(&id).cloned();
        match known {
            Some(known) if !renew && known.component.as_ref() == component => {
                let key = secret.persona_key(name, component, known.keys);
                match key.public() == known.key {
                    true => Ok((key, false)),
                    false => Err(format!(
                        "the log has another key for '{name}' than this data folder's secret gives (restore the secret)"
                    )),
                }
            }
            known => {
                let generation = known.map_or(0, |known| known.keys) + 1;
                Ok((secret.persona_key(name, component, generation), true))
            }
        }
    }

    /// Gives a persona its key, on the record when the log has not got it.
    ///
    /// # Errors
    /// For people.
    pub async fn key_persona(
        self: &Arc<Self>,
        name: &PersonaName,
        component: Option<agora_realm::ComponentHash>,
        started: bool,
    ) -> Result<(), String> {
        let (key, is_new) = self.persona_key(name, component.as_ref(), started)?;
        if is_new {
            let id = PersonaId::new(self.host_id(), name.clone());
            let known = self.record.state().persona(&id).cloned();
            let body = Body::Key(KeyBody {
                subject: KeySubject::Persona(name.clone()),
                public_key: key.public(),
                component,
                started,
                genesis: None,
                // Who it is elsewhere stays as it was told.
                origin: known.and_then(|known| known.origin),
            });
            self.decide(body).await?;
        }
        Ok(())
    }

    /// Gives a peer's persona its key, on the record when the log has not got it. Without a libp2p id it has none yet.
    ///
    /// # Errors
    /// For people.
    pub async fn key_peer(self: &Arc<Self>, peer: &Peer, started: bool) -> Result<(), String> {
        let Some(id) = peer.id() else {
            return Ok(());
        };
        let origin = Origin {
            peer: id.to_bytes(),
            host: None,
            realm: None,
            persona: None,
            public_key: None,
            component: None,
            signature: None,
        };
        match self.key_from(&peer.persona, origin, started)? {
            Some(body) => self.decide(body).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Gives a persona that a peer brought its key, on the record when the log has not got it, or has it as another's. What is written is
    /// drawn on the peer's allowance.
    ///
    /// # Errors
    /// What the peer is told: there is no room for more of its guests, it must wait, or the log can't take it now.
    pub async fn key_guest(
        self: &Arc<Self>,
        name: &PersonaName,
        origin: Origin,
        allowance: &Allowance,
    ) -> Result<(), capnp::Error> {
        let busy =
            |error: String| error::busy(&format!("{name} can't be put on the record: {error}"));
        let Some(body) = self.key_from(name, origin, false).map_err(busy)? else {
            return Ok(());
        };
        // The judge would refuse it as well; but it would stand in the log.
        let id = PersonaId::new(self.host_id(), name.clone());
        let admitted = {
            let state = self.record.state();
            let is_killed = state.persona(&id).is_some_and(|known| known.killed);
            match is_killed {
                true => Err(Refusal::Revoked),
                false => state.admit_guest(&id).map(|_| ()),
            }
        };
        admitted
            .map_err(|refusal| error::denied(&format!("{name} is not let in here: {refusal}")))?;
        allowance.draw()?;
        self.decide(body).await.map(|_| ()).map_err(busy)
    }

    /// The key of a persona that comes from elsewhere, when it must be put on the record.
    fn key_from(
        self: &Arc<Self>,
        name: &PersonaName,
        origin: Origin,
        started: bool,
    ) -> Result<Option<Body>, String> {
        let id = PersonaId::new(self.host_id(), name.clone());
        let known = self.record.state().persona(&id).cloned();
        // Whoever it is now, its next key says so.
        let changed = known.as_ref().is_some_and(|known| {
            // The same introduction has another signature each time.
            let told = known.origin.as_deref().cloned().map(|told| Origin {
                signature: origin.signature,
                ..told
            });
            told.as_ref() != Some(&origin)
        });
        let (key, is_new) = self.persona_key(name, None, started || changed)?;
        Ok(is_new.then(|| {
            Body::Key(KeyBody {
                subject: KeySubject::Persona(name.clone()),
                public_key: key.public(),
                component: None,
                started,
                genesis: None,
                origin: Some(Box::new(origin)),
            })
        }))
    }

    /// Signs a digest that says something of this host, with the key that it has now.
    ///
    /// # Errors
    /// For people: there is no such key, or no randomness.
    pub fn sign_as_host(&self, digest: &[u8; 32]) -> Result<([u8; 64], PublicKey), String> {
        let key = self.keys.host_by(&self.record.state());
        let key = key.ok_or(FOREIGN_KEY)?;
        let aux = random_bytes().map_err(|error| error.to_string())?;
        Ok((key.sign(digest, &aux), key.public()))
    }

    /// Adds this host's signature as a witness to the checkpoint of the host with this key.
    ///
    /// # Errors
    /// For people: there is no such key, no randomness, no room for one more signature, or it isn't that host's checkpoint.
    pub fn cosign(&self, signed: &mut Signed, host: &PublicKey) -> Result<(), String> {
        let key = self.keys.host_by(&self.record.state());
        let key = key.ok_or(FOREIGN_KEY)?;
        let aux = random_bytes().map_err(|error| error.to_string())?;
        let now_s = u64::try_from(crate::now_ms() / 1000).unwrap_or(0);
        let cosigned = signed.cosign(host, &key, now_s, &aux);
        cosigned.map_err(|error| error.to_string())
    }

    /// What this host's libp2p id comes from.
    pub fn peer_seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        self.keys.secret().peer_seed()
    }

    /// Gives a persona of this host, an agent or an operator, its next key. What it says meanwhile waits, so that nothing of it that was
    /// signed with the last key comes behind the new one.
    ///
    /// # Errors
    /// There is no such persona, it is killed, what it said is not in the log yet, or the log can't take the key now.
    pub async fn rotate(self: &Arc<Self>, name: &str) -> Result<Decided, String> {
        let name = match PersonaName::new(name) {
            Ok(name) if name.is_operator() => name,
            _ => match self.foreign(name)? {
                Some(foreign) => foreign.persona.name,
                None => self.agent(name)?.name.clone(),
            },
        };
        // A kill doesn't come this way, and waits for nobody here.
        let turnstile = self.keys.turnstile(&name).write_owned();
        let _alone = tokio::time::timeout(limits::ROTATE_PATIENCE, turnstile)
            .await
            .map_err(|_| {
                format!("what {name} said is still on its way to the log; its key is as it was (try again)")
            })?;
        let id = PersonaId::new(self.host_id(), name.clone());
        let known = self.record.state().persona(&id).cloned();
        let known = known.ok_or_else(|| format!("{name} has no key yet: it has said nothing"))?;
        let killed = || format!("{name} is killed; `agora start {name}` gives it a new key");
        if known.killed {
            return Err(killed());
        }
        let generation = known.keys + 1;
        let key = self
            .keys
            .secret()
            .persona_key(&name, known.component.as_ref(), generation)
            .public();
        let body = Body::Key(KeyBody {
            subject: KeySubject::Persona(name.clone()),
            public_key: key,
            component: known.component,
            started: false,
            genesis: None,
            origin: known.origin.clone(),
        });
        let decided = self.decide(body).await;
        let committed = match decided {
            Err(_) if self.record.state().persona(&id).is_some_and(|p| p.killed) => {
                return Err(killed());
            }
            decided => decided?,
        };
        Ok(Decided {
            entry: committed.settled.judged.id,
            note: format!("{name} signs with key {key} from here on, its key number {generation}"),
            ..Decided::default()
        })
    }

    /// Gives this host its next key. Its id stays. What it has on the way with the last one is signed anew.
    ///
    /// # Errors
    /// Stops wait for the log, or the log can't take the key now.
    pub async fn rotate_host(self: &Arc<Self>) -> Result<Decided, String> {
        let _one = self.rotating.lock().await;
        match self.folder.stops().count() {
            0 => {}
            n => {
                return Err(format!(
                    "{n} stops wait for the log; the host's key is as it was (try again when they are in)"
                ));
            }
        }
        let id = self.host_id();
        let known = self.record.state().host(&id).cloned();
        let generation = known.map_or(0, |known| known.keys) + 1;
        let key = self.keys.secret().host_key(generation).public();
        let body = Body::Key(KeyBody {
            subject: KeySubject::Host(id),
            public_key: key,
            component: None,
            started: false,
            genesis: None,
            origin: None,
        });
        let committed = self.decide(body).await?;
        Ok(Decided {
            entry: committed.settled.judged.id,
            note: format!(
                "the host signs with key {key} from here on, its key number {generation}"
            ),
            ..Decided::default()
        })
    }

    /// Signs what an agent asks to have signed, with the key that its persona has now. Takes as long as signing an entry.
    ///
    /// # Errors
    /// For people: the persona has no key any more, or there is no randomness.
    pub fn sign_for(
        &self,
        name: &PersonaName,
        domain: &DomainName,
        message: &[u8],
    ) -> Result<([u8; 64], PublicKey), String> {
        let id = PersonaId::new(self.host_id(), name.clone());
        let (realm, key) = {
            let state = self.record.state();
            let key = self.keys.persona_by(&state, name);
            let stands = state.persona(&id).is_some_and(|known| !known.killed);
            (state.realm(), key.filter(|_| stands))
        };
        let (Some(realm), Some(key)) = (realm, key) else {
            return Err(format!("{name} has no key"));
        };
        let digest = agora_realm::signer_digest(&realm, &id, domain, message);
        let aux = random_bytes().map_err(|error| error.to_string())?;
        Ok((key.sign(&digest, &aux), key.public()))
    }

    // -- The operator's verbs

    /// Ends the epoch.
    pub async fn bump(self: &Arc<Self>, reason: &str, hold: bool, by: &str) -> (Decided, Epoch) {
        // First of all, and before any queue: no wall lets anything pass from here on.
        self.gate.close();
        let _one = self.bumping.lock().await;
        let reason = crate::cut_text(reason, limits::REASON_BYTES_MAX);
        let told = match reason.is_empty() {
            true => "the epoch has ended; graft again".to_owned(),
            false => format!("the epoch has ended ({reason}); graft again"),
        };
        let by = by.to_owned();
        let fence = move |ends| {
            Body::Revoke(RevokeBody {
                what: Revoked::Fence { ends, hold },
                reason: reason.clone(),
                by: by.clone(),
            })
        };
        // The gate is closed, so nothing passes. The walls fall beside the fence's way to the log, and neither waits for the other.
        let felled = cut_soon(self.fell_walls(&told));
        let fencing = async {
            let ends = self.record.state().epoch();
            (self.make_durable(fence(ends), None).await, ends)
        };
        let (felled, (mut decided, mut ends)) = tokio::join!(felled, fencing);
        loop {
            let (now, held) = {
                let state = self.record.state();
                (state.epoch(), state.held())
            };
            // Another fence was first. That ends the epoch as well, but does not hold the next.
            if decided.void.is_none() || now == ends || held || !hold {
                break;
            }
            ends = now;
            decided = self.make_durable(fence(ends), None).await;
        }
        if self.record.state().epoch() != ends {
            // The epoch has ended, by whichever fence.
            decided.void = None;
        }
        decided.note.push_str(felled);
        if self.record.state().epoch() != ends {
            self.open_gate();
            if self.record.hearing().is_needed() {
                // Another host's bump may wait for this one to confirm.
                self.send_marker();
            }
        } else {
            let control = self.clone();
            self.runtime.spawn(async move {
                // Nothing is granted until the fence is in.
                let now = loop {
                    let now = control.record.state().epoch();
                    if now != ends {
                        break now;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                if hold && !control.record.state().held() {
                    // Another fence was first, and did not hold.
                    control.make_durable(fence(now), None).await;
                }
                control.open_gate();
                control.send_marker();
            });
        }
        let now = self.record.state().epoch();
        (decided, now)
    }

    /// Shows on the gate what the log says, now that a fence is in.
    pub fn open_gate(&self) {
        self.show_on_gate(false);
    }

    /// Shows on the gate what the log says, now that a fence is in, or that the log is heard again.
    pub(super) fn show_on_gate(&self, is_heard: bool) {
        write(&self.cut).retain(|id| self.record.state().grant(id).is_some());
        let now = || {
            let state = self.record.state();
            (state.epoch(), state.held())
        };
        match is_heard {
            true => self.gate.hear(now),
            false => self.gate.open(now),
        }
    }

    /// Fells every wall.
    pub(super) async fn fell_walls(&self, reason: &str) {
        let workers = read(&self.workers).clone();
        let stops = workers
            .iter()
            .map(|worker| worker.stop(None, false, reason));
        let epoch = self.gate.shown().epoch;
        let peers = self.peers.fell(None, epoch, reason);
        futures::join!(futures::future::join_all(stops), peers);
    }

    /// Ends an agent until it is started by command; or takes a peer, or one of its guests, back.
    ///
    /// # Errors
    /// There is no such agent, peer or guest.
    pub async fn kill(
        self: &Arc<Self>,
        name: &str,
        reason: &str,
        by: &str,
    ) -> Result<Decided, String> {
        if let Some(decided) = self.kill_everywhere(name, reason, by).await? {
            return Ok(decided);
        }
        let agent = self.agent(name)?;
        let reason = crate::cut_text(reason, limits::REASON_BYTES_MAX);
        let phase = Phase::Killed(match reason.is_empty() {
            true => format!("by {by}"),
            false => format!("by {by}: {reason}"),
        });
        let persona = PersonaId::new(self.host_id(), agent.name.clone());
        let felled = cut_soon(self.end_agent(&agent, phase.clone()));
        let body = Body::Revoke(RevokeBody {
            what: Revoked::Persona(persona),
            reason,
            by: by.to_owned(),
        });
        // A start that was on its way may yet put a new key on the record; the kill goes behind it.
        let durable = self.make_durable(body, Some(agent.verbs.clone()));
        let (felled, mut decided) = tokio::join!(felled, durable);
        // Its own last act may have been to write another phase.
        agent.shared.set_phase(phase);
        if decided.void == Some(Refusal::Repeated) {
            decided.void = None;
            decided.note =
                format!("{name} was killed before; it stays so until `agora start {name}`");
        }
        decided.note.push_str(felled);
        Ok(decided)
    }

    /// Ends an agent, and cuts what it lent.
    pub(super) async fn end_agent(&self, agent: &Arc<Agent>, phase: Phase) {
        agent.shared.stop(phase);
        if let Some(worker) = self.worker(agent.worker) {
            let name = Some(agent.name.clone());
            worker.stop(name, true, "this agent was killed").await;
        }
        let persona = PersonaId::new(self.host_id(), agent.name.clone());
        if self.lends(&persona) {
            self.cut_revoked("the agent that lent this was killed")
                .await;
        }
    }

    /// Starts a killed or ended agent, under a new key; or lets a peer, or one of its guests, in again.
    ///
    /// # Errors
    /// There is no such agent, peer or guest, or the log can't take the key now.
    pub async fn start(self: &Arc<Self>, name: &str) -> Result<Decided, String> {
        if let Some(foreign) = self.foreign(name)? {
            return self.start_foreign(foreign).await;
        }
        let agent = self.agent(name)?;
        let _one = agent.verbs.lock().await;
        let stops = agent.shared.stops();
        match agent.shared.phase() {
            Phase::Starting | Phase::Running | Phase::Backoff(_) => {
                return Ok(Decided {
                    note: format!("{name} is running already"),
                    ..Decided::default()
                });
            }
            Phase::Ended(_) => {}
            Phase::Killed(_) => {
                let persona = PersonaId::new(self.host_id(), agent.name.clone());
                self.peers.silence(self, &persona).await;
            }
        }
        self.key_persona(&agent.name, Some(agent.program.hash()), true)
            .await?;
        if !agent.shared.start(stops) {
            return Err(format!("{name} was killed meanwhile"));
        }
        if let Some(worker) = self.worker(agent.worker) {
            worker.begin(agent.clone(), stops).await;
        }
        Ok(Decided {
            note: format!("{name} is started"),
            ..Decided::default()
        })
    }

    /// Grants an agent a channel under terms, or what has none.
    ///
    /// # Errors
    /// There is no such agent, channel or service, or the log can't take it now.
    pub async fn grant(self: &Arc<Self>, name: &str, what: Grantable) -> Result<Decided, String> {
        let foreign = self.foreign(name)?;
        let agent = match &foreign {
            Some(foreign) => {
                foreign.may_be_granted(&what)?;
                None
            }
            None => Some(self.agent(name)?),
        };
        let (object, terms) = match what {
            Grantable::Channel(channel, terms) => {
                if let Ok(remote) = ChannelName::new(&channel) {
                    self.declare_remote(&remote).await?;
                }
                (Object::Channel(self.channel_named(&channel)?), terms)
            }
            Grantable::Service(service) => (
                Object::Service(self.service_named(name, &service)?),
                Terms::ALL,
            ),
            Grantable::Timer => (Object::Timer, Terms::ALL),
            Grantable::Signer(domain) => {
                let domain =
                    DomainName::new(&domain).map_err(|_| NotADomain(domain).to_string())?;
                (Object::Signer(domain), Terms::ALL)
            }
        };
        let persona = match (&foreign, &agent) {
            (Some(foreign), _) => foreign.persona.clone(),
            (None, Some(agent)) => PersonaId::new(self.host_id(), agent.name.clone()),
            (None, None) => return Err(format!("unknown agent '{name}'")),
        };
        let granted = self.grants_for(&persona);
        if let Some(twin) = granted
            .iter()
            .find(|g| g.object != object && g.object.name() == object.name())
        {
            return Err(format!(
                "{name} has something else called '{}' already, and an agent finds its grants by name",
                twin.object.name()
            ));
        }
        let holder = persona.name.clone();
        let body = GrantBody {
            persona,
            object,
            terms,
            parent: None,
            lasting: false,
        };
        let committed = self.decide(Body::Grant(body)).await?;
        let number = committed
            .settled
            .judged
            .changes
            .iter()
            .find_map(|change| match change {
                agora_realm::Change::Granted { number, .. } => Some(*number),
                _ => None,
            });
        match &agent {
            Some(agent) => self.fell_wall(agent, "a new grant; graft again").await,
            None => {
                let epoch = self.gate.shown().epoch;
                let name = Some(&holder);
                self.peers
                    .fell(name, epoch, "a new grant; graft again")
                    .await;
            }
        }
        Ok(Decided {
            entry: committed.settled.judged.id,
            number: number.unwrap_or_default(),
            ..Decided::default()
        })
    }

    /// Whether others hold grants under this persona's.
    fn lends(&self, persona: &PersonaId) -> bool {
        let state = self.record.state();
        state.grants().any(|(_, grant)| {
            let parent = grant.parent.and_then(|parent| state.grant(&parent));
            parent.is_some_and(|parent| parent.persona == *persona && grant.persona != *persona)
        })
    }

    /// Fells the walls of whoever holds a channel of this peer's: agents here, and other peers.
    pub async fn fell_borrowers(&self, peer: &str, reason: &str) {
        let (holders, epoch) = {
            let state = self.record.state();
            let borrowed = state.grants().filter(|(_, grant)| {
                let channel = match &grant.object {
                    Object::Channel(channel) => channel.peer(),
                    _ => None,
                };
                channel == Some(peer) && grant.persona.host == self.host_id()
            });
            let holders: HashSet<PersonaName> = borrowed
                .map(|(_, grant)| grant.persona.name.clone())
                .collect();
            (holders, state.epoch())
        };
        // None waits for another, whose thread may be slow to answer.
        let felled = holders.into_iter().map(|name| async move {
            if name.is_peer() {
                self.peers.fell(Some(&name), epoch, reason).await;
            } else if let Ok(agent) = self.agent(name.as_str()) {
                self.fell_wall(&agent, reason).await;
            }
        });
        futures::future::join_all(felled).await;
    }

    /// Declares a channel of a peer's, where this realm has no outbox for it yet.
    ///
    /// # Errors
    /// For people: there is no such peer, or the log can't take it now.
    pub async fn declare_remote(self: &Arc<Self>, name: &ChannelName) -> Result<(), String> {
        let Some(peer) = name.peer() else {
            return Ok(());
        };
        if self.peers.named(peer).is_none() {
            let names: Vec<_> = self.peers.all().map(|peer| peer.name.clone()).collect();
            return Err(unknown("peer", peer, names.iter().map(String::as_str)));
        }
        if self.record.state().channel(name).is_some() {
            return Ok(());
        }
        let body = ChannelBody {
            name: name.clone(),
            hops: limits::HOPS_DEFAULT,
            reactions: limits::REACTIONS_DEFAULT,
            carry: false,
        };
        self.decide(Body::Channel(body)).await.map(drop)
    }

    /// Cuts, on every vat thread, what hangs on grants that are cut here: facets, and the walls of those who hold such a grant.
    pub(super) async fn cut_revoked(&self, reason: &str) {
        let workers = read(&self.workers).clone();
        let cuts = workers.iter().map(|worker| worker.cut_revoked(reason));
        let peers = self.peers.cut_revoked(reason);
        futures::join!(futures::future::join_all(cuts), peers);
    }

    async fn fell_wall(&self, agent: &Agent, reason: &str) {
        if let Some(worker) = self.worker(agent.worker) {
            worker.stop(Some(agent.name.clone()), false, reason).await;
        }
    }

    /// Takes a grant back, by its number (as `g7`) or its id; or all that a peer has, as `peer:NAME`.
    ///
    /// # Errors
    /// There is no such grant, or peer; names those there are.
    pub async fn revoke(
        self: &Arc<Self>,
        grant: &str,
        reason: &str,
        by: &str,
    ) -> Result<Decided, String> {
        if grant.contains(':')
            && let Some(decided) = self.kill_everywhere(grant, reason, by).await?
        {
            return Ok(decided);
        }
        let (id, number) = {
            let state = self.record.state();
            let found = state
                .grants()
                .find(|(id, g)| grant == format!("g{}", g.number) || id.to_string() == grant);
            match found {
                Some((id, g)) => (*id, g.number),
                None => {
                    let mut live: Vec<_> = state.grants().map(|(_, g)| g.number).collect();
                    live.sort_unstable();
                    let names: Vec<_> = live.iter().map(|number| format!("g{number}")).collect();
                    return Err(unknown("grant", grant, names.iter().map(String::as_str)));
                }
            }
        };
        write(&self.cut).insert(id);
        // The grant is cut already: every call of a facet looks. What was in flight falls with the wall.
        let felled = cut_soon(self.cut_revoked("a grant was revoked"));
        let body = Body::Revoke(RevokeBody {
            what: Revoked::Grant(id),
            reason: crate::cut_text(reason, limits::REASON_BYTES_MAX),
            by: by.to_owned(),
        });
        let (felled, mut decided) = tokio::join!(felled, self.make_durable(body, None));
        decided.note.push_str(felled);
        if decided.void == Some(Refusal::Repeated) {
            // Its agent let go of it, or another host was first.
            decided.void = None;
        }
        // Nothing of it is sent as it is; this is for who asks.
        let _ = tokio::time::timeout(limits::STOP_WAIT, self.peers.withhold(self)).await;
        if decided.pending.is_none() {
            write(&self.cut).remove(&id);
        }
        decided.number = number;
        Ok(decided)
    }

    /// What `agent` may be granted as a service: another agent, or a process that the manifest declares.
    fn service_named(&self, agent: &str, service: &str) -> Result<ServiceName, String> {
        let agents = self.agents();
        let names = agents.iter().map(|a| a.name.as_str());
        let others = names
            .filter(|name| *name != agent)
            .chain(self.services.names());
        match others.clone().find(|name| *name == service) {
            Some(name) => ServiceName::new(name).map_err(|error| error.to_string()),
            None => Err(unknown("service", service, others)),
        }
    }

    /// Lets another host into the realm, by its public key in hexadecimal.
    ///
    /// # Errors
    /// That is no key, or the log can't take it now.
    pub async fn invite(self: &Arc<Self>, key: &str) -> Result<Decided, String> {
        let key: PublicKey = key.parse().map_err(|_| {
            format!("'{key}' is no host's key: it takes the 64 hexadecimal digits that `agora id` prints")
        })?;
        let host = HostId::from(key);
        let known = self.record.state().host(&host).cloned();
        match known {
            Some(known) if known.revoked => {
                return Err(format!(
                    "host {} was revoked, for good; a new data folder has a new key",
                    host.short()
                ));
            }
            Some(_) => {
                return Ok(Decided {
                    note: format!("host {} is in the realm already", host.short()),
                    ..Decided::default()
                });
            }
            None => {}
        }
        let body = Body::Key(KeyBody {
            subject: KeySubject::Host(host),
            public_key: key,
            component: None,
            started: false,
            genesis: None,
            origin: None,
        });
        let committed = self.decide(body).await?;
        Ok(Decided {
            entry: committed.settled.judged.id,
            ..Decided::default()
        })
    }

    /// Takes another host's place in the realm back, for good, with all its personas and what they were granted.
    ///
    /// # Errors
    /// There is no such host; names those there are. Or it is this one.
    pub async fn revoke_host(
        self: &Arc<Self>,
        host: &str,
        reason: &str,
        by: &str,
    ) -> Result<Decided, String> {
        let hosts: Vec<_> = self.record.state().hosts().map(|(id, _)| *id).collect();
        let found = hosts
            .iter()
            .find(|id| id.to_string() == host || id.short() == host);
        let Some(id) = found.copied() else {
            let names: Vec<_> = hosts.iter().map(HostId::short).collect();
            return Err(unknown("host", host, names.iter().map(String::as_str)));
        };
        if id == self.host_id() {
            return Err("a host can't revoke itself; do it at another host of the realm".into());
        }
        let body = Body::Revoke(RevokeBody {
            what: Revoked::Host(id),
            reason: crate::cut_text(reason, limits::REASON_BYTES_MAX),
            by: by.to_owned(),
        });
        Ok(self.make_durable(body, None).await)
    }

    /// A channel of the realm.
    ///
    /// # Errors
    /// There is none of that name; names those there are.
    pub fn channel_named(&self, name: &str) -> Result<ChannelName, String> {
        let state = self.record.state();
        let found = state
            .channels()
            .map(|(n, _)| n)
            .find(|n| n.as_str() == name);
        match found {
            Some(name) => Ok(name.clone()),
            None => {
                let names: Vec<_> = state.channels().map(|(n, _)| n.clone()).collect();
                Err(unknown(
                    "channel",
                    name,
                    names.iter().map(ChannelName::as_str),
                ))
            }
        }
    }

    /// Speaks as an operator.
    ///
    /// # Errors
    /// There is no such channel, or it can't be said now.
    pub async fn say(self: &Arc<Self>, uid: u32, said: Said) -> Result<Outcome, String> {
        let channel = self.channel_named(&said.channel)?;
        let (remote, peer_epoch) = match channel.is_remote() {
            false => (None, Epoch(0)),
            true => {
                let (remote, epoch) = self.remote_epoch(&channel)?;
                (Some(remote), epoch)
            }
        };
        let name = PersonaName::operator(uid);
        if said.text.len() > agora_realm::limits::PAYLOAD_BYTES_MAX {
            return Err(format!(
                "a text of {} bytes is over the bound of {}",
                said.text.len(),
                agora_realm::limits::PAYLOAD_BYTES_MAX
            ));
        }
        let owner = match said.owner.as_str() {
            "" => None,
            text => Some(self.persona_named(text).ok_or_else(|| {
                let names: Vec<_> = self.agents().iter().map(|a| a.name.clone()).collect();
                unknown("persona", text, names.iter().map(PersonaName::as_str))
            })?),
        };
        let heard = self.gate.heard(limits::HEARD_PATIENCE).await;
        heard.map_err(|why| SpeakError::LogUnavailable(why).to_string())?;
        let known = self.keys.persona_by(&self.record.state(), &name);
        if known.is_none() {
            self.key_persona(&name, None, false).await?;
        }
        let epoch = self.record.state().epoch();
        let speech = Speech {
            standing: Standing {
                channel,
                grant: None,
                epoch,
                peer_epoch,
            },
            drafts: vec![Draft {
                act: said.act,
                parent: said.parent,
                content_type: String::new(),
                payload: said.text.into_bytes().into(),
                key: 0,
                hops_max: u16::MAX,
                owner,
                deadline_ms: said.deadline_ms,
            }],
            elsewhere: Vec::new(),
            through: agora_realm::Ordinal(0),
            graft: self.next_token(),
        };
        let persona = PersonaId::new(self.host_id(), name);
        match self.speakers.speak(&persona, speech).await {
            Ok((mut outcomes, _)) => {
                if let Some(remote) = remote {
                    outcomes = remote.settle(outcomes).await;
                }
                let first = outcomes.into_iter().next();
                first.ok_or_else(|| "nothing was said".to_owned())
            }
            Err(SpeakError::Stale(_)) => {
                Err("a fence waits for the log; nothing is admitted until it is in".into())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// A peer's channel, and the peer's epoch as far as it is known.
    fn remote_epoch(&self, channel: &ChannelName) -> Result<(Arc<Remote>, Epoch), String> {
        let remote = self.peers.remote(channel);
        let remote = remote.ok_or_else(|| format!("'{channel}': there is no such peer now"))?;
        match remote.epoch() {
            Some(epoch) => Ok((remote, epoch)),
            None => Err(format!(
                "'{channel}': the peer has not been heard yet; try again"
            )),
        }
    }

    /// How far a channel has come, and the persona's place there.
    pub fn place_on(
        &self,
        state: &State,
        persona: &PersonaId,
        channel: &ChannelName,
    ) -> (Ordinal, Ordinal) {
        match self.peers.remote(channel) {
            Some(remote) => (
                Ordinal(remote.heard().borrow().latest),
                remote.cursor(&self.silent, state, persona),
            ),
            None => (
                state
                    .channel(channel)
                    .map_or(Ordinal(0), |view| view.latest),
                self.silent.effective(state, persona, channel),
            ),
        }
    }

    // -- Deadlines

    /// This host's open threads with a deadline: when each lapses.
    pub fn deadlines(&self) -> Vec<(i64, LapseBody)> {
        let state = self.record.state();
        let mut due: Vec<_> = state
            .open_threads()
            .filter(|thread| thread.deadline_ms > 0 && thread.starter.host == self.host_id())
            .map(|thread| {
                let lapse = LapseBody {
                    channel: thread.channel,
                    thread: thread.root,
                };
                (thread.deadline_ms, lapse)
            })
            .collect();
        due.sort_by_key(|(deadline, _)| *deadline);
        due
    }

    /// Writes the lapses that are overdue.
    pub async fn lapse_overdue(self: &Arc<Self>) {
        let now = crate::now_ms();
        for (deadline, lapse) in self.deadlines() {
            if deadline > now {
                break;
            }
            if let Err(error) = self.decide(Body::Lapse(lapse)).await {
                tracing::debug!("a lapse: {error}");
            }
        }
    }

    /// Writes lapses as they fall due, for as long as the host runs.
    pub async fn watch_deadlines(self: Arc<Self>) {
        let mut news = self.record.news();
        loop {
            self.lapse_overdue().await;
            let wait = self.deadlines().first().map(|(deadline, _)| {
                let ms = (deadline - crate::now_ms()).max(50);
                Duration::from_millis(ms.unsigned_abs())
            });
            let opened = async {
                loop {
                    match news.recv().await {
                        Ok(settled) => {
                            let mut changes = settled.judged.changes.iter();
                            if changes
                                .any(|c| matches!(c, agora_realm::Change::ThreadOpened { .. }))
                            {
                                return true;
                            }
                        }
                        Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => return true,
                        Err(_) => return false,
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(3600))) => {}
                goes_on = opened => if !goes_on {
                    return;
                },
            }
        }
    }

    /// Wakes subscriptions whose cursor the log moved, for as long as the host runs.
    pub async fn watch_cursors(self: Arc<Self>) {
        let mut news = self.record.news();
        loop {
            match news.recv().await {
                Ok(settled) => {
                    for change in &settled.judged.changes {
                        if let agora_realm::Change::CursorMoved {
                            persona, channel, ..
                        } = change
                        {
                            self.silent.moved(persona, channel);
                        }
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => self.silent.moved_all(),
                Err(_) => return,
            }
        }
    }

    // -- The end

    /// Asks the host to drain and end.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// Told when the host is to end.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Ends every agent, wherever it is, and the threads they lived on.
    pub async fn end_agents(&self) {
        let workers = std::mem::take(&mut *write(&self.workers));
        let stops = workers
            .iter()
            .map(|worker| worker.stop(None, true, "the host is ending"));
        futures::future::join_all(stops).await;
    }
}
