//! The operator's door: a unix socket in the data folder, and what is behind it.
//!
//! In: connections of whoever may open the socket (0600 in a 0700 folder); holding it is the authority. Out: [`Control`]'s verbs.
//! Promise: served on a thread of its own, so that a stop never queues behind agents or bulk. What is said here is authored
//! `operator:<uid>` of the caller, as the kernel tells it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agora_capnp::operator_capnp::{feed, grant_status, keep, operator, status, watching};
use agora_dial::Dialer;
use agora_membrane::{CallInfo, Membrane, Verdict, error};
use agora_realm::{MessageId, Object, PersonaId, State, Terms};
use capnp::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::control::{Control, Decided, Grantable, Said};
use super::prune::Keep;
use crate::boot::manifest::unknown;
use crate::delivery::feed::{Told, tell};
use crate::delivery::lots::open_all;
use crate::delivery::message::write_outcome;
use crate::delivery::record::Record;
use crate::limits;
use crate::peer::sighting::sighting;
use crate::persona::identity::peer_id;

/// The open socket; dropping it closes it.
pub struct Socket {
    path: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Where the socket of a data folder is.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join("operator")
}

/// A path to the socket that is short enough to be bound, and what keeps it valid.
///
/// # Errors
/// The folder can't be opened.
pub fn short_path(path: &Path) -> std::io::Result<(PathBuf, Option<std::fs::File>)> {
    // An address holds 108 bytes. A longer path is reached through an open folder.
    if path.as_os_str().len() < 100 {
        return Ok((path.to_owned(), None));
    }
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((short, Some(folder)))
}

impl Socket {
    /// Opens the socket of a host.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn open(control: Arc<Control>) -> anyhow::Result<Self> {
        let path = control.folder().join("operator");
        // The folder's lock is ours, so what is left here is of a host that is gone.
        let _ = std::fs::remove_file(&path);
        let (stop, mut stopped) = watch::channel(false);
        let (ready, opened) = std::sync::mpsc::sync_channel(1);
        let bound = path.clone();
        let thread = std::thread::Builder::new()
            .name("agora-operator".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a thread can have a runtime");
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async move {
                    let listener = bind(&bound);
                    let listener = match listener {
                        Ok(listener) => {
                            let _ = ready.send(Ok(()));
                            listener
                        }
                        Err(error) => {
                            let _ = ready.send(Err(error));
                            return;
                        }
                    };
                    let room = Rc::new(tokio::sync::Semaphore::new(limits::OPERATORS_MAX));
                    loop {
                        tokio::select! {
                            accepted = listener.accept() => {
                                let Ok((stream, _)) = accepted else {
                                    // Out of file descriptors: others may close theirs.
                                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                                    continue;
                                };
                                let Ok(permit) = room.clone().try_acquire_owned_rc() else {
                                    continue;
                                };
                                let control = control.clone();
                                tokio::task::spawn_local(async move {
                                    let _permit = permit;
                                    serve(stream, control).await;
                                });
                            }
                            _ = stopped.changed() => break,
                        }
                    }
                });
            })?;
        opened.recv()??;
        Ok(Self {
            path,
            stop,
            thread: Some(thread),
        })
    }
}

/// A semaphore's permit behind an `Rc`.
trait AcquireRc {
    fn try_acquire_owned_rc(self) -> Result<Permit, tokio::sync::TryAcquireError>;
}

struct Permit(Rc<tokio::sync::Semaphore>);

impl AcquireRc for Rc<tokio::sync::Semaphore> {
    fn try_acquire_owned_rc(self) -> Result<Permit, tokio::sync::TryAcquireError> {
        self.try_acquire()?.forget();
        Ok(Permit(self))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let (short, _folder) = short_path(path)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(stream: UnixStream, control: Arc<Control>) {
    let Ok(credentials) = stream.peer_cred() else {
        return;
    };
    let (reader, writer) = stream.into_split();
    let network = capnp_rpc::twoparty::VatNetwork::new(
        futures::io::BufReader::new(reader.compat()),
        futures::io::BufWriter::new(writer.compat_write()),
        capnp_rpc::rpc_twoparty_capnp::Side::Server,
        capnp::message::ReaderOptions::new(),
    );
    // The operator's wall lets everything pass; it falls with the connection, and takes feeds with it.
    let (wall, revoker) = Membrane::new(|_: &CallInfo| Verdict::Allow);
    let operator: operator::Client = capnp_rpc::new_client(Desk {
        control,
        uid: credentials.uid(),
    });
    let bootstrap = wall.export(operator);
    let system = capnp_rpc::RpcSystem::new(Box::new(network), Some(bootstrap.client));
    let _ = system.await;
    revoker.revoke("the connection is closed");
}

/// What one caller stands before.
struct Desk {
    control: Arc<Control>,
    uid: u32,
}

impl Desk {
    fn by(&self) -> String {
        format!("operator:{}", self.uid)
    }

    /// Runs a verb on the host's runtime, so that it goes on when the caller hangs up.
    async fn run<T: Send + 'static>(
        &self,
        verb: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.control.runtime().spawn(async move {
            let _ = answer.send(verb.await);
        });
        answered
            .await
            .map_err(|_| error::failed("the host is ending"))
    }
}

fn refuse(text: String) -> Error {
    error::denied(&text)
}

fn texts(list: capnp::text_list::Reader<'_>) -> Result<Vec<String>, Error> {
    let all = list.iter().map(|text| Ok(text?.to_string()?));
    all.collect()
}

fn write_decided(decided: &Decided, mut to: agora_capnp::operator_capnp::decided::Builder<'_>) {
    if let Some(entry) = &decided.entry {
        to.set_entry(&entry.0);
    }
    to.set_number(decided.number);
    to.set_durable(decided.pending.is_none());
    if let Some(pending) = &decided.pending {
        to.set_pending(pending.as_str());
    }
    to.set_note(decided.note.as_str());
    if let Some(void) = &decided.void {
        to.set_void(void.to_string().as_str());
    }
    let mut confirmed = to.reborrow().init_confirmed(decided.confirmed.len() as u32);
    for (i, host) in decided.confirmed.iter().enumerate() {
        confirmed.set(i as u32, &host.0);
    }
    let mut unconfirmed = to
        .reborrow()
        .init_unconfirmed(decided.unconfirmed.len() as u32);
    for (i, host) in decided.unconfirmed.iter().enumerate() {
        unconfirmed.set(i as u32, &host.0);
    }
    to.set_outlasted(decided.outlasted);
}

/// Writes what a persona holds, into the list that is made for so many.
fn write_grants<'a>(
    control: &Control,
    state: &State,
    persona: &PersonaId,
    list: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, grant_status::Owned>,
) {
    let grants: Vec<_> = state.grants_of(persona).collect();
    let mut list = list(grants.len() as u32);
    for (i, (id, grant)) in grants.into_iter().enumerate() {
        let mut to = list.reborrow().get(i as u32);
        to.set_number(grant.number);
        to.set_id(&id.0);
        grant.effective.write(to.reborrow().init_terms());
        to.set_used(grant.used);
        let parent = grant.parent.and_then(|parent| state.grant(&parent));
        to.set_parent(parent.map_or(0, |parent| parent.number));
        if let Some(lender) = parent.map(|parent| &parent.persona)
            && *lender != *persona
        {
            to.set_lent(lender.to_string().as_str());
        }
        to.set_lasting(grant.lasting);
        to.set_suspended(state.is_suspended(grant));
        match &grant.object {
            Object::Channel(name) => {
                to.set_object(name.as_str());
                let (latest, cursor) = control.place_on(state, persona, name);
                to.set_cursor(cursor.0);
                to.set_latest(latest.0);
            }
            Object::Timer => to.set_object("timer"),
            Object::Service(name) => to.set_object(name.as_str()),
            Object::Signer(domain) => to.set_object(format!("signer:{domain}").as_str()),
        }
    }
}

impl Desk {
    /// Writes the personas of peers and their guests.
    fn write_foreign(&self, state: &State, status: &mut status::Builder<'_>) {
        let control = &self.control;
        let own = state
            .personas()
            .filter(|(id, _)| id.host == control.host_id());
        let mut foreign: Vec<_> = own
            .filter(|(id, known)| {
                let holds = || known.killed || state.grants_of(id).next().is_some();
                id.name.is_peer() || id.name.is_guest() && holds()
            })
            .collect();
        // Each peer, then its guests.
        foreign.sort_by_key(|(id, _)| {
            let whose = id.name.peer_name().or(id.name.host_peer());
            (whose, id.name.is_guest(), &id.name)
        });
        let mut list = status.reborrow().init_foreign(foreign.len() as u32);
        for (i, (id, known)) in foreign.into_iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_name(id.name.as_str());
            to.set_key(&known.key.0);
            let peer = id
                .name
                .peer_name()
                .and_then(|name| control.peers().named(name));
            let (shown, detail) = match (id.name.is_peer(), peer) {
                _ if known.killed => ("revoked", format!("agora start {}", id.name)),
                (false, _) => ("guest", String::new()),
                (true, None) => ("away", "not in the manifest".to_owned()),
                (true, Some(peer)) => {
                    let seen = sighting(control.peers(), peer);
                    let is_here = matches!(seen.state, "connected" | "partly" | "lapsed");
                    let detail = match is_here {
                        true => String::new(),
                        false => format!("agora peers: {}", seen.state),
                    };
                    (if is_here { "connected" } else { "away" }, detail)
                }
            };
            to.set_state(shown);
            to.set_detail(detail.as_str());
            write_grants(control, state, id, |count| to.init_grants(count));
        }
    }
}

impl operator::Server for Desk {
    async fn peers(
        self: Rc<Self>,
        _params: operator::PeersParams,
        mut results: operator::PeersResults,
    ) -> Result<(), Error> {
        let control = &self.control;
        let id = peer_id(control.keys().secret());
        let mut results = results.get();
        results.set_id(id.to_string().as_str());
        let listening = control.peers().dialer().map(Dialer::listening);
        let listening = listening.unwrap_or_default();
        let mut list = results.reborrow().init_listening(listening.len() as u32);
        for (i, address) in listening.iter().enumerate() {
            list.set(i as u32, format!("{address}/p2p/{id}").as_str());
        }
        let all: Vec<_> = control.peers().all().cloned().collect();
        let mut list = results.init_peers(all.len() as u32);
        for (i, peer) in all.iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            sighting(control.peers(), peer).write(&peer.name, to.reborrow());
            to.set_name(peer.name.as_str());
            if let Some(id) = peer.id() {
                to.set_id(id.to_string().as_str());
            }
            let holding = peer.holding();
            to.set_held(holding.size);
            to.set_alarm(holding.alarm.as_deref().unwrap_or(""));
            let mirrors: Vec<_> = peer.mirrors().collect();
            let mut copies = to.reborrow().init_mirrors(mirrors.len() as u32);
            for (j, mirror) in mirrors.iter().enumerate() {
                let (first, last) = mirror.span().unwrap_or_default();
                let mut copy = copies.reborrow().get(j as u32);
                copy.set_channel(mirror.channel().as_str());
                copy.set_first(first);
                copy.set_last(last);
            }
            let persona = PersonaId::new(control.host_id(), peer.persona.clone());
            let state = control.record().state();
            write_grants(control, &state, &persona, |count| to.init_granted(count));
        }
        Ok(())
    }

    async fn ping(
        self: Rc<Self>,
        params: operator::PingParams,
        mut results: operator::PingResults,
    ) -> Result<(), Error> {
        let name = params.get()?.get_peer()?.to_string()?;
        let peers = self.control.peers().clone();
        let name = name.strip_prefix("peer:").unwrap_or(&name);
        let Some(peer) = peers.named(name).cloned() else {
            let names = peers.all().map(|peer| peer.name.as_str());
            return Err(refuse(unknown("peer", name, names.collect::<Vec<_>>())));
        };
        let took = self.run(async move { peers.ping(&peer).await }).await?;
        let took = took.map_err(|why| error::busy(&why))?;
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        results.get().set_microseconds(microseconds);
        Ok(())
    }

    async fn dial(
        self: Rc<Self>,
        params: operator::DialParams,
        mut results: operator::DialResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let name = params.get_peer()?.to_string()?;
        let addresses = texts(params.get_addresses()?)?;
        let peers = self.control.peers().clone();
        let dialed = self
            .run(async move { peers.dial(&name, &addresses).await })
            .await?
            .map_err(refuse)?;
        let mut to = results.get().init_outcome();
        to.set_note(dialed.note.as_str());
        match &dialed.outcome {
            Ok(connected) => {
                to.set_connected(true);
                to.set_address(connected.address.as_str());
                let micros = connected
                    .round_trip
                    .map_or(0, |took| took.as_micros().max(1));
                to.set_round_trip_us(u64::try_from(micros).unwrap_or(u64::MAX));
                to.set_already(connected.already);
            }
            Err(why) => to.set_why(why.as_str()),
        }
        Ok(())
    }

    async fn forget_addresses(
        self: Rc<Self>,
        params: operator::ForgetAddressesParams,
        mut results: operator::ForgetAddressesResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let name = params.get_peer()?.to_string()?;
        let addresses = texts(params.get_addresses()?)?;
        let peers = self.control.peers().clone();
        let left = self
            .run(async move { peers.forget_addresses(&name, &addresses).await })
            .await?
            .map_err(refuse)?;
        let mut list = results.get().init_left(left.len() as u32);
        for (i, address) in left.iter().enumerate() {
            list.set(i as u32, address.to_string().as_str());
        }
        Ok(())
    }

    async fn status(
        self: Rc<Self>,
        _params: operator::StatusParams,
        mut results: operator::StatusResults,
    ) -> Result<(), Error> {
        let control = &self.control;
        let agents = control.agents();
        let shown = control.gate().shown();
        let condition = control.condition();
        let state = control.record().state();
        let mut status = results.get().init_status();
        if let Some(realm) = state.realm() {
            status.set_realm(&realm.0);
        }
        status.set_host(&control.host_id().0);
        status.set_epoch(state.epoch().0);
        status.set_held(shown.held);
        let log = match control.forks().standing().first() {
            None => condition.text,
            Some(fork) => format!("{}, FORKED: {}", condition.text, fork.show()),
        };
        status.set_log(log.as_str());
        status.set_log_state(condition.state);
        status.set_behind(condition.behind);
        status.set_lapsed_ms(condition.lapsed_ms);
        status.set_diverged(condition.diverged.as_deref().unwrap_or_default());
        status.set_log_end(control.record().log().end().0);
        status.set_pending_stops(control.folder().stops().count() as u32);
        let mut tally = status.reborrow().init_tally();
        tally.set_void(state.tally().void);
        tally.set_junk(state.tally().junk);
        let hosts: Vec<_> = state.hosts().collect();
        let mut list = status.reborrow().init_hosts(hosts.len() as u32);
        for (i, (id, host)) in hosts.into_iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_id(&id.0);
            to.set_revoked(host.revoked);
            let personas = state.personas().filter(|(persona, _)| persona.host == *id);
            to.set_personas(personas.count() as u32);
        }
        let mut list = status.reborrow().init_agents(agents.len() as u32);
        for (i, agent) in agents.iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            let phase = agent.shared.phase();
            to.set_name(agent.name.as_str());
            to.set_state(phase.name());
            to.set_detail(phase.detail());
            to.set_component(&agent.program.hash().0);
            to.set_restarts(agent.shared.restarts.load(Ordering::Relaxed) as u32);
            to.set_memory(agent.shared.memory.load(Ordering::Relaxed) as u64);
            let persona = PersonaId::new(control.host_id(), agent.name.clone());
            if let Some(known) = state.persona(&persona) {
                to.set_key(&known.key.0);
            }
            write_grants(control, &state, &persona, |count| to.init_grants(count));
        }
        self.write_foreign(&state, &mut status);
        let channels: Vec<_> = state.channels().collect();
        let mut list = status.init_channels(channels.len() as u32);
        for (i, (name, view)) in channels.into_iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_name(name.as_str());
            to.set_latest(view.latest.0);
            to.set_hops(view.settings.hops);
            let on = |right| {
                let grants = state.grants();
                grants
                    .filter(|(_, grant)| {
                        matches!(&grant.object, Object::Channel(n) if n == name)
                            && grant.effective.rights.has(right)
                    })
                    .count() as u32
            };
            to.set_readers(on(agora_realm::Rights::READ));
            to.set_writers(on(agora_realm::Rights::WRITE));
        }
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        params: operator::WatchParams,
        mut results: operator::WatchResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let feed = params.get_feed()?;
        let channel = match params.get_channel()?.to_str()? {
            "" => None,
            name => Some(self.control.channel_named(name).map_err(refuse)?),
        };
        let from = params.get_from();
        let (stop, stopped) = oneshot::channel::<()>();
        let control = self.control.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                ended = tell_all(&control, feed, channel, from) => {
                    if let Err(error) = ended {
                        tracing::debug!("a watch ended: {error}");
                    }
                }
                _ = stopped => {}
            }
        });
        results
            .get()
            .set_watching(capnp_rpc::new_client(Watching(Some(stop))));
        Ok(())
    }

    async fn say(
        self: Rc<Self>,
        params: operator::SayParams,
        mut results: operator::SayResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let said = Said {
            channel: params.get_channel()?.to_string()?,
            act: params
                .get_act()
                .map_err(|_| error::denied("an act that this host does not know"))?
                .into(),
            text: params.get_text()?.to_string()?,
            parent: match params.get_parent()? {
                [] => None,
                id => Some(MessageId(id.try_into().map_err(|_| {
                    error::denied("a parent is the 32 bytes of a message's id")
                })?)),
            },
            owner: params.get_owner()?.to_string()?,
            deadline_ms: params.get_deadline_ms(),
        };
        let (control, uid) = (self.control.clone(), self.uid);
        let outcome = self
            .run(async move { control.say(uid, said).await })
            .await?
            .map_err(refuse)?;
        write_outcome(&outcome, results.get().init_outcome());
        Ok(())
    }

    async fn grant(
        self: Rc<Self>,
        params: operator::GrantParams,
        mut results: operator::GrantResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let agent = params.get_agent()?.to_string()?;
        let (channel, service, signer) = (
            params.get_channel()?.to_string()?,
            params.get_service()?.to_string()?,
            params.get_signer()?.to_string()?,
        );
        let named = [&channel, &service, &signer].map(|name| !name.is_empty());
        let what = match (named, params.get_timer()) {
            ([false, false, false], true) => Grantable::Timer,
            ([false, true, false], false) => Grantable::Service(service),
            ([false, false, true], false) => Grantable::Signer(signer),
            ([_, false, false], false) => {
                Grantable::Channel(channel, Terms::read(params.get_terms()?)?)
            }
            _ => {
                return Err(refuse(
                    "a grant is of one thing: a channel, a service, a signer or the timer".into(),
                ));
            }
        };
        let control = self.control.clone();
        let decided = self
            .run(async move { control.grant(&agent, what).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: operator::RevokeParams,
        mut results: operator::RevokeResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (grant, reason) = (
            params.get_grant()?.to_string()?,
            params.get_reason()?.to_string()?,
        );
        let (control, by) = (self.control.clone(), self.by());
        let decided = self
            .run(async move { control.revoke(&grant, &reason, &by).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn kill(
        self: Rc<Self>,
        params: operator::KillParams,
        mut results: operator::KillResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (agent, reason) = (
            params.get_agent()?.to_string()?,
            params.get_reason()?.to_string()?,
        );
        let (control, by) = (self.control.clone(), self.by());
        let decided = self
            .run(async move { control.kill(&agent, &reason, &by).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn invite(
        self: Rc<Self>,
        params: operator::InviteParams,
        mut results: operator::InviteResults,
    ) -> Result<(), Error> {
        let key = params.get()?.get_key()?.to_string()?;
        let control = self.control.clone();
        let decided = self
            .run(async move { control.invite(&key).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn revoke_host(
        self: Rc<Self>,
        params: operator::RevokeHostParams,
        mut results: operator::RevokeHostResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (host, reason) = (
            params.get_host()?.to_string()?,
            params.get_reason()?.to_string()?,
        );
        let (control, by) = (self.control.clone(), self.by());
        let decided = self
            .run(async move { control.revoke_host(&host, &reason, &by).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn rotate(
        self: Rc<Self>,
        params: operator::RotateParams,
        mut results: operator::RotateResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (agent, host) = (params.get_agent()?.to_string()?, params.get_host());
        let control = self.control.clone();
        let decided = self
            .run(async move {
                match (host, agent.as_str()) {
                    (true, "") => control.rotate_host().await,
                    (true, _) => Err("one key at a time: an agent's, or the host's".into()),
                    (false, agent) => control.rotate(agent).await,
                }
            })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn prune(
        self: Rc<Self>,
        params: operator::PruneParams,
        mut results: operator::PruneResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let name = params.get_channel()?.to_string()?;
        let (dry_run, force) = (params.get_dry_run(), params.get_force_past_cursors());
        let keep = match params.get_keep()?.which()? {
            keep::Count(count) => Keep::Count(count),
            keep::AgeMs(ms) => Keep::Age(ms),
            keep::Bytes(bytes) => Keep::Bytes(bytes),
        };
        let control = self.control.clone();
        let done = self
            .run(async move { control.prune(&name, keep, dry_run, force).await })
            .await?
            .map_err(refuse)?;
        let mut to = results.get().init_outcome();
        to.set_through(done.through.0);
        to.set_messages(done.messages);
        to.set_bytes(done.bytes);
        to.set_freed(done.freed);
        if let Some(pending) = &done.pending {
            to.set_pending(pending.as_str());
        }
        let mut list = to.init_passed(done.passed.len() as u32);
        for (i, passed) in done.passed.iter().enumerate() {
            list.set(i as u32, passed.as_str());
        }
        Ok(())
    }

    async fn start(
        self: Rc<Self>,
        params: operator::StartParams,
        mut results: operator::StartResults,
    ) -> Result<(), Error> {
        let agent = params.get()?.get_agent()?.to_string()?;
        let control = self.control.clone();
        let decided = self
            .run(async move { control.start(&agent).await })
            .await?
            .map_err(refuse)?;
        write_decided(&decided, results.get().init_outcome());
        Ok(())
    }

    async fn bump(
        self: Rc<Self>,
        params: operator::BumpParams,
        mut results: operator::BumpResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (reason, hold) = (params.get_reason()?.to_string()?, params.get_hold());
        let (control, by, all) = (self.control.clone(), self.by(), params.get_wait());
        let (decided, epoch) = self
            .run(async move {
                let (mut decided, epoch) = control.bump(&reason, hold, &by).await;
                control.confirm(&mut decided, epoch, all).await;
                (decided, epoch)
            })
            .await?;
        write_decided(&decided, results.get().init_outcome());
        results.get().set_epoch(epoch.0);
        Ok(())
    }

    async fn stop(
        self: Rc<Self>,
        _params: operator::StopParams,
        _results: operator::StopResults,
    ) -> Result<(), Error> {
        self.control.end();
        Ok(())
    }
}

struct Watching(Option<oneshot::Sender<()>>);

impl watching::Server for Watching {}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(stop) = self.0.take() {
            let _ = stop.send(());
        }
    }
}

async fn tell_all(
    control: &Control,
    feed: feed::Client,
    channel: Option<agora_realm::ChannelName>,
    from: u64,
) -> Result<(), Error> {
    let record = control.record();
    // Subscribed before looking back, so that nothing falls between.
    let mut news = record.news();
    let mut next = record.state().last_seq().unwrap_or(0) + 1;
    let meant = |told: &Told| channel.is_none() || told.channel == channel;
    if from > 0 {
        let end = next;
        let mut replay = Replay::new(record.clone());
        while let Some(batch) = replay.next(end).await? {
            let told = batch.into_iter().filter(|t| t.seq >= from && meant(t));
            send(&feed, told.collect()).await?;
        }
    }
    feed.caught_up_request().send().promise.await?;
    loop {
        match news.recv().await {
            Ok(settled) if settled.seq >= next => {
                next = settled.seq + 1;
                send(
                    &feed,
                    tell(&settled).into_iter().filter(|t| meant(t)).collect(),
                )
                .await?;
            }
            Ok(_) => {}
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                // What is still in memory fills the gap.
                let Some(missed) = record.recent(next, usize::MAX) else {
                    return Err(Error::overloaded(
                        "this watcher fell too far behind; watch again from where it was".into(),
                    ));
                };
                for settled in missed {
                    next = settled.seq + 1;
                    let told = tell(&settled).into_iter().filter(|t| meant(t)).collect();
                    send(&feed, told).await?;
                }
            }
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn send(feed: &feed::Client, told: Vec<Told>) -> Result<(), Error> {
    for part in told.chunks(limits::BATCH_MESSAGES_MAX) {
        let mut request = feed.records_request();
        let mut list = request.get().init_records(part.len() as u32);
        for (i, told) in part.iter().enumerate() {
            told.write(list.reborrow().get(i as u32));
        }
        request.send().await?;
    }
    Ok(())
}

/// Judges a log again from its beginning, to tell what was told when it was new.
pub struct Replay {
    record: Arc<Record>,
    state: agora_realm::State,
    next: u64,
}

impl Replay {
    /// From the beginning of this log.
    pub fn new(record: Arc<Record>) -> Self {
        Self {
            record,
            state: agora_realm::State::new(),
            next: 1,
        }
    }

    /// What the next entries before `end` tell; none when there are no more.
    ///
    /// # Errors
    /// The log's.
    pub async fn next(&mut self, end: u64) -> Result<Option<Vec<Told>>, Error> {
        if self.next >= end {
            return Ok(None);
        }
        let count = (end - self.next).min(1024) as usize;
        let batch = self
            .record
            .log()
            .read(agora_log::Seq(self.next), count, 8 << 20)
            .await
            .map_err(|error| Error::failed(error.to_string()))?;
        if batch.is_empty() {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| Error::failed(error.to_string());
        let leaves = self.record.leaves_of(&batch).await;
        let leaves = leaves.map_err(|error| failed(&error))?;
        let (log, pruned) = (self.record.log(), self.record.pruned());
        let mut places = Vec::with_capacity(batch.len());
        for ((seq, stored), leaf) in batch.into_iter().zip(leaves) {
            self.next = seq.0 + 1;
            if !stored.is_empty() {
                let judged = self.record.is_as_judged(seq.0, &stored, &leaf);
                judged.map_err(|error| failed(&error))?;
            }
            let place = pruned.place_in(&**log, seq.0, stored).await;
            places.push((seq.0, place.map_err(|error| failed(&error))?));
        }
        if places.is_empty() {
            return Ok(None);
        }
        let mut all = Vec::new();
        for (seq, _, sealed) in open_all(places).await {
            all.extend(replay_one(&mut self.state, seq, sealed));
        }
        // A long replay leaves room for others on this thread.
        tokio::task::yield_now().await;
        Ok(Some(all))
    }
}

/// Judges one stored entry again and tells it. It was opened with its signature checked: what a host takes for void must not be told here.
pub fn replay_one(
    state: &mut agora_realm::State,
    seq: u64,
    sealed: Result<agora_realm::Sealed, agora_realm::Junk>,
) -> Vec<Told> {
    let judged = agora_realm::judge(state, seq, sealed.as_ref());
    tell(&crate::delivery::record::Settled {
        seq,
        sealed,
        judged,
    })
}
