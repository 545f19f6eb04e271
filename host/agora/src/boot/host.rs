//! The outermost wiring: opens everything in order, and closes it in order.
//!
//! In: an image and a data folder. Out: a running [`Host`].
//! Promise: an image with a component that can't run leaves everything as it was; a log that is not what this host has seen is refused,
//! unless the operator accepted that; stops kept from an earlier run enter the log before anything else; overdue lapses come before any
//! agent; what the log has decided stands, and the manifest proposes only the rest. Closing
//! drains, flushes and loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agora_log::{ConnectionState, Embedded, JetStream, JetStreamOptions, Log, Options};
use agora_realm::checkpoint::Checkpoint;
use agora_realm::{
    Body, ChannelBody, Entry, Epoch, Genesis, GrantBody, KeyBody, KeySubject, Object, PersonaId,
    PersonaName, REALM_FORMAT, RealmId, Sealed,
};

use tokio::sync::watch;

use super::data::{DataFolder, check_format, replace};
use super::image::Image;
use super::manifest::{AgentSpec, GrantSpec, Manifest};
use crate::channel::rates::Rates;
use crate::channel::speak::Stage;
use crate::delivery::checkpoints::{self, Checkpoints, Vouched};
use crate::delivery::cursors::SilentCursors;
use crate::delivery::record::{Derived, Loss, Record, Seen};
use crate::delivery::tip::Tip;
use crate::door::control::Control;
use crate::door::gate::Gate;
use crate::door::operator::Socket;
use crate::door::service::Services;
use crate::door::worker::Worker;
use crate::peer::book::Book;
use crate::peer::peers::Peers;
use crate::persona::agent::{Agent, Phase, Program, Shared};
use crate::persona::engine::{Prepared, Workshop};
use crate::persona::identity::{Identity, claim};
use crate::persona::keys::Keys;
use crate::persona::secret::random_bytes;

/// How a host is set up.
pub struct Setup {
    /// What it runs.
    pub image: Image,
    /// Where it keeps what it keeps.
    pub data: PathBuf,
    /// Where its secret is.
    pub identity: Identity,
    /// How many vat threads.
    pub workers: usize,
    /// What it runs on.
    pub log: LogChoice,
}

/// Which log a host runs on.
pub enum LogChoice {
    /// The one in its data folder.
    Own,
    /// A stream on NATS servers. Which stream follows from the realm.
    JetStream(Box<JetStreamOptions>),
    /// One that is open already.
    #[cfg(feature = "testbed")]
    Open(Arc<dyn Log>),
    /// One that is open already, which hosts share under a lease as they do one on servers.
    #[cfg(feature = "testbed")]
    Shared(Arc<dyn Log>),
}

/// How the log is shown to people.
pub enum LogPlace {
    /// In the data folder.
    Own,
    /// Elsewhere: where, and how it is reached now.
    JetStream(String, watch::Receiver<ConnectionState>),
    /// In the hands of a test.
    #[cfg(feature = "testbed")]
    Shared,
}

impl LogPlace {
    /// As "embedded", or the servers, with their state.
    pub fn show(&self) -> String {
        match self {
            Self::Own => "embedded".to_owned(),
            Self::JetStream(place, state) => match &*state.borrow() {
                ConnectionState::Connected => format!("{place}, connected"),
                ConnectionState::Reconnecting { since } => format!(
                    "{place}, out of reach for {:.0} s",
                    since.elapsed().as_secs_f32()
                ),
                ConnectionState::Diverged { why } => format!("{place}, DIVERGED: {why}"),
                ConnectionState::Closed => format!("{place}, closed"),
            },
            #[cfg(feature = "testbed")]
            Self::Shared => "shared".to_owned(),
        }
    }

    /// Whether other hosts may append to it.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::Own)
    }
}

/// A running host.
pub struct Host {
    /// Its controls.
    pub control: Arc<Control>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    socket: Option<Socket>,
    following: tokio::task::JoinHandle<()>,
    checkpoints: Arc<Checkpoints>,
    /// What the operator should know: what the manifest proposed and the log had decided otherwise.
    pub notices: Vec<String>,
}

/// A host whose record is open and whose agents are not started.
pub struct Opened {
    host: Host,
    manifest: Manifest,
    programs: Programs,
    workers: usize,
}

/// What the agents of a manifest run, by agent.
pub(crate) type Programs = BTreeMap<PersonaName, Program>;

/// The components of an image, compiled, by agent.
type AllPrepared = BTreeMap<PersonaName, Prepared>;

impl Opened {
    /// Closes it again, with no agent started.
    pub async fn close(self) {
        self.host.close().await;
    }

    /// Its controls.
    pub fn control(&self) -> &Arc<Control> {
        &self.host.control
    }
}

type Failure = anyhow::Error;

/// Prepares the components, opens the data folder, the log and the record, and brings the realm up to what the manifest proposes.
/// `progress` is told what goes on.
///
/// # Errors
/// For people. Where a component can't run, all such are named, and nothing was written.
pub async fn open(setup: Setup, progress: &mut dyn FnMut(&str)) -> Result<Opened, Failure> {
    // A folder that is not known to be ours holds nothing to be trusted.
    let cache = check_format(&setup.data)
        .ok()
        .map(|()| setup.data.join("cache"));
    let workshop = Workshop::new(cache)
        .map_err(|error| Failure::msg(format!("the wasm engine can't be set up: {error:#}")))?;
    let programs = prepare_all(&workshop, &setup.image, progress)?
        .into_iter()
        .map(|(name, prepared)| (name, Program::Component(prepared, workshop.clone())))
        .collect();
    let manifest = setup.image.manifest;
    let (data, identity, workers) = (&setup.data, &setup.identity, setup.workers);
    let opened = open_with(
        manifest, programs, data, identity, workers, setup.log, progress,
    )
    .await?;
    workshop.keep(&opened.control().folder().folder("cache")?);
    Ok(opened)
}

/// The same, of a manifest whose programs are in hand.
pub(crate) async fn open_with(
    manifest: Manifest,
    programs: Programs,
    data: &Path,
    identity: &Identity,
    workers: usize,
    log: LogChoice,
    progress: &mut dyn FnMut(&str),
) -> Result<Opened, Failure> {
    let folder = Arc::new(DataFolder::open(data)?);
    if folder.importing()?.is_some() {
        anyhow::bail!(
            "{}: an import into this data folder was interrupted (run the same `agora import` again; it goes on where it stopped)",
            data.display()
        );
    }
    // A realm's host without its secret would be another host, whom the log refuses.
    let keys = Arc::new(identity.open_or_make(data)?);
    let mut notices = Vec::new();
    let mut genesis = None;
    let (log, place): (Arc<dyn Log>, _) = match log {
        LogChoice::Own => (own_log(&folder, &mut notices)?, LogPlace::Own),
        LogChoice::JetStream(options) => {
            // The stream is named after the realm, so a realm that is to begin has its first entry before it has a log.
            let realm = match folder.realm()? {
                Some(realm) => realm,
                None => RealmId::from(genesis.insert(drafted_genesis(&keys, &folder)?).id()),
            };
            progress("connecting to the log");
            let (log, place) = stream_log(*options, realm, genesis.is_some(), &keys).await?;
            (log, place)
        }
        #[cfg(feature = "testbed")]
        LogChoice::Open(log) => (log, LogPlace::Own),
        #[cfg(feature = "testbed")]
        LogChoice::Shared(log) => (log, LogPlace::Shared),
    };
    let derived = Derived {
        index: folder.folder("index")?,
        snapshot: folder.join("state"),
        tree: folder.join("tree"),
        pruned: folder.join("pruned"),
    };
    let accepted = folder.accepted_loss()?;
    let seen = Seen {
        tip: folder.tip()?,
        accepts_loss: accepted.is_some(),
        host: keys.host_id(),
    };
    let began = std::time::Instant::now();
    let mut told = began;
    let record = Record::open(log, derived, seen, place.is_shared(), |at, of| {
        if told.elapsed() >= std::time::Duration::from_secs(1) {
            told = std::time::Instant::now();
            progress(&format!("judging the log: {at} of {of} entries"));
        }
    })
    .await?;
    let mut vouched = checkpoints::vouch(&folder, &record, accepted.is_some()).await?;
    let loss = record.take_loss().or_else(|| {
        let Checkpoint { size, .. } = vouched.lost()?;
        // A crash came before the tip was kept, or what changed stands before it.
        let first = size.min(record.log().end().0 + 1);
        Some(record.loss_of(
            first,
            Tip {
                seq: size,
                leaf: [0; 32],
            },
        ))
    });
    // The places they name are given out anew.
    let silent = match &loss {
        Some(_) => super::data::Cursors::new(),
        None => folder.cursors()?,
    };
    let following = tokio::spawn(record.clone().follow());
    let realm = begin_realm(&record, &keys, &folder, genesis).await?;
    claim(data, keys.host_id())?;
    let (epoch, held) = {
        let state = record.state();
        (state.epoch(), state.held())
    };
    let stage = Stage {
        record: record.clone(),
        keys: keys.clone(),
        gate: Arc::new(Gate::new(epoch, held, record.hearing().clone())),
        rates: Arc::new(Rates::default()),
        silent: Arc::new(SilentCursors::new(silent)),
        runtime: tokio::runtime::Handle::current(),
    };
    let services = Services::new(manifest.services.clone());
    notices.extend(services.notices());
    let book = Book::open(folder.join("book"))?;
    let (peers, left_out) = Peers::new(manifest.peering.clone(), book);
    notices.extend(left_out);
    let control = Control::new(stage, folder.clone(), services, place, peers);
    if record.hearing().is_needed() {
        // Until the first of its own entries has come back to it.
        control.gate().lapse();
    }
    // Before the stops that wait: what they stop may have to be said again first.
    if let Some(reason) = accepted {
        notices.extend(settle_loss(&control, loss, &reason, &mut vouched).await?);
    }
    let checkpoints = Checkpoints::open(vouched, record.clone(), keys.clone(), realm)?;
    let forks = control.forks().clone();
    notices.extend(
        forks
            .standing()
            .iter()
            .map(|f| format!("FORKED: {}", f.show())),
    );
    let kept = control.enter_kept_stops().await.map_err(Failure::msg)?;
    if kept > 0 {
        notices.push(format!(
            "{kept} stops that an earlier run kept are in the log now"
        ));
        control.open_gate();
    }
    // Before anything new is decided, so that it is kept in its order.
    control.keep_missed().await;
    if let Err(error) = control.finish_prunes().await {
        notices.push(format!(
            "pruned messages are still in the log: {error} (the next start, or the next prune, goes on)"
        ));
    }
    propose_channels(&control, &manifest, &mut notices).await?;
    control.lapse_overdue().await;
    let tasks = vec![
        tokio::spawn(control.clone().watch_deadlines()),
        tokio::spawn(control.clone().watch_cursors()),
        tokio::spawn(control.clone().heed_others()),
        tokio::spawn(control.clone().keep_lease()),
        tokio::spawn(control.clone().heed_divergence()),
        tokio::spawn(control.clone().keep_tip_regularly()),
        tokio::spawn(control.silent().clone().keep_regularly(folder.clone())),
        tokio::spawn(checkpoints.clone().make_regularly()),
        tokio::spawn(control.clone().compare_trees(forks)),
    ];
    Ok(Opened {
        host: Host {
            control,
            tasks,
            socket: None,
            following,
            checkpoints,
            notices,
        },
        manifest,
        programs,
        workers: workers.max(1),
    })
}

/// The log in the data folder.
fn own_log(folder: &DataFolder, notices: &mut Vec<String>) -> Result<Arc<dyn Log>, Failure> {
    let (log, found) = Embedded::open(&folder.folder("log")?, Options::default())?;
    if let Some(cut) = found.cut {
        notices.push(format!(
            "the log had a torn tail ({} bytes at byte {} of {}), which was never acknowledged; it is cut back to entry {}",
            cut.bytes,
            cut.offset,
            cut.file.display(),
            found.end
        ));
    }
    Ok(Arc::new(log))
}

/// The log of a realm in a stream on NATS servers.
async fn stream_log(
    options: JetStreamOptions,
    realm: RealmId,
    create: bool,
    keys: &Keys,
) -> Result<(Arc<dyn Log>, LogPlace), Failure> {
    let mut options = stream_of(options, realm, &keys.host_id().short());
    options.create = create;
    let place = options.place();
    let log = JetStream::open(options).await?;
    let state = log.state();
    Ok((Arc::new(log), LogPlace::JetStream(place, state)))
}

/// The stream of a realm, for whoever has this subject in it. It is not created.
pub(crate) fn stream_of(
    mut options: JetStreamOptions,
    realm: RealmId,
    subject: &str,
) -> JetStreamOptions {
    options.stream = format!("agora-{}", &realm.to_string()[..16]);
    options.subject_prefix = options.stream.clone();
    options.subject = subject.to_owned();
    options.name = format!("agora {subject}");
    options.create = false;
    options
}

/// The first entry of a realm of this host's, kept until the realm is pinned: a start that was interrupted goes on with the same.
fn drafted_genesis(keys: &Keys, folder: &DataFolder) -> Result<Sealed, Failure> {
    let path = folder.join("genesis");
    if let Ok(kept) = std::fs::read(&path)
        && let Ok(sealed) = Sealed::open(kept.into())
        && sealed.entry().host == keys.host_id()
    {
        return Ok(sealed);
    }
    let sealed = genesis(keys)?;
    replace(&path, sealed.stored())?;
    Ok(sealed)
}

/// The first entry of a realm that this host begins.
fn genesis(keys: &Keys) -> Result<Sealed, Failure> {
    let entry = Entry {
        realm: None,
        host: keys.host_id(),
        author: None,
        signer: keys.host().public(),
        epoch: Epoch(1),
        time_ms: crate::now_ms(),
        grant: None,
        body: Body::Key(KeyBody {
            subject: KeySubject::Host(keys.host_id()),
            public_key: keys.host().public(),
            component: None,
            started: false,
            genesis: Some(Genesis {
                format: REALM_FORMAT,
                nonce: random_bytes()?,
                fencers: Vec::new(),
            }),
            origin: None,
        }),
    };
    keys.seal(entry, &keys.host()).map_err(Failure::msg)
}

/// Writes the genesis of a new realm, or finds this host in the realm there is, and pins the realm in the folder.
async fn begin_realm(
    record: &Arc<Record>,
    keys: &Arc<Keys>,
    folder: &DataFolder,
    drafted: Option<Sealed>,
) -> Result<RealmId, Failure> {
    let pinned = folder.realm()?;
    let found = record.state().realm();
    let realm = match found {
        Some(found) => found,
        None => {
            if let Some(pinned) = pinned {
                anyhow::bail!(
                    "the log is empty, but this data folder belongs to realm {} (restore the log; or, if it is on a server, say --log)",
                    pinned.short()
                );
            }
            let sealed = match drafted {
                Some(drafted) => drafted,
                None => genesis(keys)?,
            };
            let committed = record.commit(sealed, agora_log::Class::Ordinary).await?;
            if let Err(refusal) = committed.settled.judged.verdict {
                anyhow::bail!("the realm can't begin: {refusal}");
            }
            let began = record.state().realm();
            began.ok_or_else(|| Failure::msg("the realm did not begin"))?
        }
    };
    if let Some(wrong) = membership(record, keys) {
        anyhow::bail!("realm {}: {wrong}", realm.short());
    }
    match pinned {
        Some(pinned) if pinned != realm => Err(crate::delivery::record::RecordError::OtherRealm {
            found: realm.short(),
            pinned: pinned.short(),
        }
        .into()),
        Some(_) => Ok(realm),
        None => {
            folder.pin_realm(realm)?;
            Ok(realm)
        }
    }
}

/// Does what the operator decided about what the log lost. Answers what the operator should know.
async fn settle_loss(
    control: &Arc<Control>,
    loss: Option<Loss>,
    reason: &str,
    vouched: &mut Vouched,
) -> Result<Vec<String>, Failure> {
    let folder = control.folder();
    let notices = match loss {
        Some(loss) => {
            // What names places that are given out anew goes first: nothing else would tell a later start that they mean others.
            folder.keep_cursors(&super::data::Cursors::new())?;
            control.forget_purged()?;
            let accepted = control.accept_loss(loss, reason).await;
            let notices =
                accepted.map_err(|error| Failure::msg(format!("the accepted loss: {error}")))?;
            // A fence may have been said again.
            control.open_gate();
            notices
        }
        None => vec![
            "the log holds all that this host has seen, so the decision to accept a loss is dropped"
                .to_owned(),
        ],
    };
    vouched.set_lost_aside()?;
    folder.accept_loss(None)?;
    Ok(notices)
}

/// Why this host has no place in the realm.
fn membership(record: &Record, keys: &Keys) -> Option<String> {
    let state = record.state();
    match state.host(&keys.host_id()) {
        None => Some(format!(
            "this host is not one of its hosts; one of them must let it in (agora realm invite {})",
            keys.host_id()
        )),
        Some(host) if host.revoked => {
            Some("this host was revoked from it, and nothing it says counts".to_owned())
        }
        Some(_) if keys.host_by(&state).is_none() => Some(
            "it knows another key of this host than this data folder's secret gives (restore the secret)"
                .to_owned(),
        ),
        Some(_) => None,
    }
}

async fn propose_channels(
    control: &Arc<Control>,
    manifest: &Manifest,
    notices: &mut Vec<String>,
) -> Result<(), Failure> {
    for (name, spec) in &manifest.channels {
        let known = control.record().state().channel(name);
        match known {
            None => {
                let body = ChannelBody {
                    name: name.clone(),
                    hops: spec.hops,
                    reactions: spec.reactions,
                    carry: spec.carry,
                };
                let decided = control.decide(Body::Channel(body)).await;
                decided.map_err(|error| Failure::msg(format!("channel '{name}': {error}")))?;
            }
            Some(view) => {
                let settings = view.settings;
                if (settings.hops, settings.reactions, settings.carry)
                    != (spec.hops, spec.reactions, spec.carry)
                {
                    notices.push(format!(
                        "channel '{name}': the log has hops {}, reactions {}, carry {}; the manifest proposes otherwise, and the log decides",
                        settings.hops, settings.reactions, settings.carry
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Puts what the manifest says of peers on the record, as far as the log has not decided it.
async fn propose_peers(control: &Arc<Control>, notices: &mut Vec<String>) -> Result<(), Failure> {
    let peers = control.peers().clone();
    for peer in peers.all() {
        let id = PersonaId::new(control.host_id(), peer.persona.clone());
        let known = control.record().state().persona(&id).cloned();
        if known.as_ref().is_some_and(|known| known.killed) {
            notices.push(format!(
                "peer '{}' was revoked and stays so (agora start {})",
                peer.name, peer.persona
            ));
            continue;
        }
        if known.is_none() && peer.id().is_none() {
            match peer.spec.key {
                // Once it has logged in.
                Some(_) => {}
                None => notices.push(format!(
                    "peer '{0}' has neither `id` nor `key`, so it can't be known (add one to [peers.{0}]; or run with --peer {0}=ID)",
                    peer.name
                )),
            }
            continue;
        }
        let wrong = |error: String| Failure::msg(format!("peer '{}': {error}", peer.name));
        control.key_peer(peer, false).await.map_err(wrong)?;
        propose_grants(control, &id, known.as_ref(), &peer.spec.grants, notices)
            .await
            .map_err(wrong)?;
    }
    Ok(())
}

async fn propose_agent(
    control: &Arc<Control>,
    name: &agora_realm::PersonaName,
    spec: &AgentSpec,
    program: &Program,
    notices: &mut Vec<String>,
) -> Result<Phase, Failure> {
    let id = PersonaId::new(control.host_id(), name.clone());
    let known = control.record().state().persona(&id).cloned();
    if known.as_ref().is_some_and(|known| known.killed) {
        notices.push(format!(
            "agent '{name}' was killed and stays so (agora start {name})"
        ));
        return Ok(Phase::Killed("in an earlier run".into()));
    }
    let wrong = |error: String| Failure::msg(format!("agent '{name}': {error}"));
    let keyed = control.key_persona(name, Some(program.hash()), false).await;
    keyed.map_err(wrong)?;
    let granted = propose_grants(control, &id, known.as_ref(), &spec.grants, notices).await;
    granted.map_err(wrong)?;
    Ok(Phase::Starting)
}

/// Grants what the manifest proposes for a persona, as far as the log has not decided it.
///
/// # Errors
/// For people.
pub(crate) async fn propose_grants(
    control: &Arc<Control>,
    id: &PersonaId,
    known: Option<&agora_realm::Persona>,
    grants: &[GrantSpec],
    notices: &mut Vec<String>,
) -> Result<(), String> {
    let name = &id.name;
    for grant in grants {
        let (object, terms) = match grant {
            GrantSpec::Channel(channel, terms) => (Object::Channel(channel.clone()), **terms),
            GrantSpec::Timer => (Object::Timer, agora_realm::Terms::ALL),
            GrantSpec::Service(service) => {
                (Object::Service(service.clone()), agora_realm::Terms::ALL)
            }
            GrantSpec::Signer(domain) => (Object::Signer(domain.clone()), agora_realm::Terms::ALL),
        };
        let what = match &object {
            Object::Channel(channel) => format!("channel '{channel}'"),
            Object::Service(service) => format!("service '{service}'"),
            Object::Timer => "the timer".to_owned(),
            Object::Signer(domain) => format!("the signer for '{domain}'"),
        };
        if let Object::Channel(channel) = &object {
            control.declare_remote(channel).await?;
        }
        let decided = known.is_some_and(|known| known.decided.contains(&object));
        if !decided {
            let body = GrantBody {
                persona: id.clone(),
                object,
                terms,
                parent: None,
                lasting: false,
            };
            control.decide(Body::Grant(body)).await?;
            continue;
        }
        let standing = control
            .grants_for(id)
            .into_iter()
            .find(|granted| granted.object == object && granted.lent_by.is_none());
        match standing {
            Some(standing) if standing.terms != terms => notices.push(format!(
                "'{name}': {what}: the log has other terms than the manifest proposes, and the log decides (agora revoke, then agora grant)"
            )),
            Some(_) => {}
            None => notices.push(format!(
                "'{name}': its grant of {what} was revoked and stays so (agora grant)"
            )),
        }
    }
    Ok(())
}

impl Opened {
    /// Starts the agents, and opens the operator's door.
    ///
    /// # Errors
    /// For people.
    pub async fn start(self) -> Result<Host, Failure> {
        self.start_with(true).await
    }

    /// The same, with an operator's door or without.
    pub(crate) async fn start_with(self, operators: bool) -> Result<Host, Failure> {
        let Self {
            mut host,
            manifest,
            programs,
            workers,
        } = self;
        let control = host.control.clone();
        let threads: Result<Vec<_>, _> = (0..workers)
            .map(|place| Worker::start(place, control.clone()))
            .collect();
        control.set_workers(threads?);
        let mut phases = Vec::new();
        for (name, spec) in &manifest.agents {
            let program = &programs[name];
            phases.push(propose_agent(&control, name, spec, program, &mut host.notices).await?);
        }
        propose_peers(&control, &mut host.notices).await?;
        let names: Vec<_> = manifest.agents.keys().cloned().collect();
        let places = places(&names, &introduced(&control, &names), workers);
        let mut agents = Vec::new();
        for (((name, spec), phase), worker) in manifest.agents.iter().zip(phases).zip(places) {
            let program = programs[name].clone();
            let shared = Arc::new(Shared::default());
            shared.set_phase(phase);
            let agent = Arc::new(Agent {
                name: name.clone(),
                spec: spec.clone(),
                program,
                worker,
                shared,
                verbs: Arc::default(),
            });
            control.add(agent.clone());
            agents.push(agent);
        }
        // Nobody meets a host that does not know its agents yet, and all are granted before the first one speaks, so that
        // none misses what another says at once.
        if operators {
            host.socket = Some(Socket::open(control.clone())?);
        }
        // Before the agents, who may hold what a peer lent; and behind all that was proposed.
        control
            .peers()
            .start(&control)
            .await
            .map_err(Failure::msg)?;
        control
            .peers()
            .await_links(&lenders(&control, &names))
            .await;
        for agent in agents {
            control.begin(agent).await;
        }
        Ok(host)
    }
}

/// The peers whose channels these agents are granted.
fn lenders(control: &Control, names: &[PersonaName]) -> BTreeSet<String> {
    let mut lenders = BTreeSet::new();
    for name in names {
        let persona = PersonaId::new(control.host_id(), name.clone());
        for granted in control.grants_for(&persona) {
            if let Object::Channel(channel) = granted.object {
                lenders.extend(channel.peer().map(str::to_owned));
            }
        }
    }
    lenders
}

/// Which agents were introduced to which, as places in `names`.
fn introduced(control: &Control, names: &[PersonaName]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (caller, name) in names.iter().enumerate() {
        let persona = PersonaId::new(control.host_id(), name.clone());
        for granted in control.grants_for(&persona) {
            if let Object::Service(service) = granted.object {
                let server = names.iter().position(|n| n.as_str() == service.as_str());
                pairs.extend(server.map(|server| (caller, server)));
            }
        }
    }
    pairs
}

/// On which vat thread each agent lives: in the order of their names, where there are fewest, and with those that they were introduced
/// to, unless that would crowd a thread.
fn places(names: &[PersonaName], introduced: &[(usize, usize)], workers: usize) -> Vec<usize> {
    let mut group: Vec<usize> = (0..names.len()).collect();
    for (one, other) in introduced {
        let (from, to) = (group[*one], group[*other]);
        group
            .iter_mut()
            .filter(|g| **g == from)
            .for_each(|g| *g = to);
    }
    let crowd = names
        .len()
        .div_ceil(workers)
        .max(crate::limits::INTRODUCED_TOGETHER_MIN);
    let mut load = vec![0; workers];
    let mut home: BTreeMap<usize, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for group in group {
        let known = home.get(&group).filter(|place| load[**place] < crowd);
        let place = match known {
            Some(place) => *place,
            None => (0..workers).min_by_key(|place| load[*place]).unwrap_or(0),
        };
        home.insert(group, place);
        load[place] += 1;
        places.push(place);
    }
    places
}

/// Compiles every component of an image.
///
/// # Errors
/// Every component that can't run, one a line.
pub fn prepare_all(
    workshop: &Workshop,
    image: &Image,
    progress: &mut dyn FnMut(&str),
) -> Result<AllPrepared, Failure> {
    let mut by_path: BTreeMap<&Path, Result<Prepared, String>> = Default::default();
    let mut prepared = AllPrepared::new();
    let mut wrong = Vec::new();
    for (name, spec) in &image.manifest.agents {
        let found = by_path.entry(&spec.component).or_insert_with(|| {
            progress(&format!("preparing {}", spec.component.display()));
            workshop
                .prepare(&spec.component)
                .map_err(|error| error.to_string())
        });
        match found {
            Ok(found) => drop(prepared.insert(name.clone(), found.clone())),
            Err(error) => wrong.push(format!("agent '{name}': {error}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(prepared),
        false => Err(Failure::msg(wrong.join("\n"))),
    }
}

impl Host {
    /// Drains what is in flight, ends the agents, flushes and closes.
    pub async fn close(mut self) {
        drop(self.socket.take());
        let control = self.control.clone();
        if tokio::time::timeout(crate::limits::DRAIN_MAX, control.peers().close())
            .await
            .is_err()
        {
            tracing::warn!("the connections to peers don't end; they do so with the process");
        }
        // The wall first, so that nothing new comes; what was spoken already is on its way to the log.
        // A vat thread that does not answer must not keep the rest from being flushed.
        if tokio::time::timeout(crate::limits::DRAIN_MAX, control.end_agents())
            .await
            .is_err()
        {
            tracing::warn!("a vat thread does not answer; it ends with the process");
        }
        let drained = async {
            while control.is_busy() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(crate::limits::DRAIN_MAX, drained)
            .await
            .is_err()
        {
            tracing::warn!("the host ends with calls that the log has not answered");
        }
        for task in &self.tasks {
            task.abort();
        }
        let folder = control.folder().clone();
        let (silent, keeper) = (control.silent().clone(), control.clone());
        let kept = tokio::task::spawn_blocking(move || {
            silent.keep(&folder);
            if keeper.record().divergence().borrow().is_none() {
                keeper.record().keep_snapshot();
                keeper.keep_tip();
            }
        });
        let _ = kept.await;
        if let Err(error) = control.record().log().close().await {
            tracing::error!("the log did not close: {error}");
        }
        let _ = self.following.await;
        // All that will be judged is.
        let checkpoints = self.checkpoints;
        let _ = tokio::task::spawn_blocking(move || checkpoints.make_last()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<PersonaName> {
        let name = |n: usize| PersonaName::new(&format!("agent-{n:03}")).expect("a good name");
        (0..count).map(name).collect()
    }

    #[test]
    fn strangers_are_dealt_out_and_those_who_were_introduced_stay_together() {
        assert_eq!(places(&names(5), &[], 2), [0, 1, 0, 1, 0]);
        assert_eq!(places(&names(4), &[(0, 2), (3, 2)], 2), [0, 1, 0, 0]);
        assert_eq!(places(&names(3), &[(0, 1), (1, 2)], 1), [0, 0, 0]);
    }

    #[test]
    fn a_server_of_all_does_not_draw_all_onto_one_thread() {
        let hub: Vec<_> = (1..100).map(|n| (n, 0)).collect();
        let places = places(&names(100), &hub, 2);
        let first = places.iter().filter(|place| **place == 0).count();
        assert_eq!(first, 50);
    }
}
