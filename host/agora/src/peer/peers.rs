//! All peers of a host, as its other rooms know them. Everything here may be held by any thread.
//!
//! In: stops, and changes of what a peer is granted. Out: their doors' walls felled, their links told.
//! Promise: a peer that is refused is let in by nobody from that moment; what it is told on the control lane waits for nothing.
//! Failure: without a thread (no peers, or the host is ending) there are no doors, and nothing to fell.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use agora_dial::{Dialer, Multiaddr, PeerId, PeerStatus, Standing};
use agora_membrane::error;
use agora_realm::{ChannelName, Entry, Epoch, PersonaId, PersonaName, Terms};
use tokio::sync::{mpsc, oneshot, watch};

use super::book::Book;
use super::borrowed::{Borrowed, LinkState};
use super::exchange::Holding;
use super::mirror::Mirror;
use super::past::Past;
use super::remote::{Remote, Standing as RemoteStanding};
use super::spec::{PeerSpec, Peering};
use super::thread::{self, Order, Started};
use super::told::Known;
use super::withheld;
use crate::channel::allowance::Allowance;
use crate::door::control::Control;
use crate::limits;
use crate::persona::agent::Shared;

/// What a peer is told on the control lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The epoch that is, or was when its walls fell.
    pub epoch: Epoch,
    /// How often what it has here has fallen or changed.
    pub revision: u64,
    /// Why, the last time.
    pub reason: Arc<str>,
}

/// Stops and starts of a peer and of its guests, as they were decided here.
#[derive(Default)]
pub struct Stops {
    /// Held by a start that is on its way.
    pub verbs: Arc<tokio::sync::Mutex<()>>,
    count: AtomicU64,
    /// Guests that are stopped, whether or not the log has it yet.
    guests: Mutex<HashSet<PersonaName>>,
}

impl Stops {
    /// One more was stopped.
    pub fn stopped(&self, name: &PersonaName) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if name.is_guest() {
            self.guests().insert(name.clone());
        }
    }

    /// It is let in again.
    pub fn started(&self, name: &PersonaName) {
        self.guests().remove(name);
    }

    /// How often one was stopped.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether this guest is stopped.
    pub fn has(&self, guest: &PersonaName) -> bool {
        self.guests().contains(guest)
    }

    fn guests(&self) -> MutexGuard<'_, HashSet<PersonaName>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One peer.
pub struct Peer {
    /// What it is called here.
    pub name: String,
    /// What it speaks as here.
    pub persona: PersonaName,
    /// What the manifest says of it.
    pub spec: PeerSpec,
    /// What its doors show of themselves.
    pub shared: Arc<Shared>,
    /// What it is told.
    pub told: watch::Sender<Told>,
    /// How much it may have this host write besides messages.
    pub allowance: Arc<Allowance>,
    /// How it, and its guests, were stopped and started.
    pub stops: Arc<Stops>,
    /// It is let in by nobody.
    refused: AtomicBool,
    /// Who its host is, as it has proved.
    known: RwLock<Option<Known>>,
    /// By which id it is known: the manifest's, or the one it logged in with.
    id: RwLock<Option<PeerId>>,
    /// Where it may be, as `agora dial` was told; the newest first.
    dialed: RwLock<Vec<Multiaddr>>,
    /// What is held of its log.
    holding: RwLock<Holding>,
    judging: Mutex<()>,
    /// The copies of its channels.
    mirrors: OnceLock<BTreeMap<ChannelName, Arc<Mirror>>>,
    /// How the link to it is: what we use of theirs.
    pub link: watch::Sender<LinkState>,
    /// What it lets us use.
    pub borrowed: Borrowed,
    /// What it granted when it was last heard.
    pub(super) granted: Mutex<Option<Vec<(String, Terms)>>>,
}

impl Peer {
    fn new(name: String, spec: PeerSpec) -> Option<Self> {
        let persona = PersonaName::peer(&name).ok()?;
        let (told, _) = watch::channel(Told {
            epoch: Epoch(0),
            revision: 0,
            reason: "".into(),
        });
        Some(Self {
            persona,
            shared: Arc::default(),
            told,
            allowance: Arc::new(Allowance::new(
                limits::PEER_ENTRIES_BURST,
                limits::PEER_ENTRIES_PER_S,
            )),
            stops: Arc::default(),
            refused: AtomicBool::new(false),
            known: RwLock::default(),
            id: RwLock::new(spec.id),
            dialed: RwLock::default(),
            holding: RwLock::default(),
            judging: Mutex::default(),
            mirrors: OnceLock::new(),
            link: watch::channel(LinkState::down("it is not connected")).0,
            borrowed: Borrowed::default(),
            granted: Mutex::default(),
            name,
            spec,
        })
    }

    /// Its libp2p id, once it is known.
    pub fn id(&self) -> Option<PeerId> {
        *self.id.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it may be: what `agora dial` was told, what the command line gives, what the manifest says. Each once, and not more than may be.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let mut all = self.dialed();
        for address in self.spec.given.iter().chain(&self.spec.addresses) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all.truncate(limits::PEER_ADDRESSES_MAX);
        all
    }

    /// Where it may be, as `agora dial` was told.
    pub fn dialed(&self) -> Vec<Multiaddr> {
        let dialed = self.dialed.read().unwrap_or_else(PoisonError::into_inner);
        dialed.clone()
    }

    pub(super) fn set_dialed(&self, addresses: Vec<Multiaddr>) {
        *self.dialed.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Who its host is, as it has proved last.
    pub fn known(&self) -> Option<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// It has proved who its host is.
    ///
    /// # Errors
    /// Denied when it is of another realm than before. There its messages and its outbox are counted anew, so what is remembered of it here,
    /// keys above all, is not of this one: what it says would be taken for what the other said.
    pub fn met(&self, control: &Control, known: Known) -> Result<(), capnp::Error> {
        let guests = {
            let state = control.record().state();
            let realm_of = |(id, persona): (&PersonaId, &agora_realm::Persona)| {
                let is_own = id.host == control.host_id()
                    && id.name.brought_by().as_ref() == Some(&self.persona);
                persona.origin.as_ref().filter(|_| is_own)?.realm
            };
            state.personas().find_map(realm_of)
        };
        let first = self.borrowed.is_of(guests.unwrap_or(known.realm));
        let before = guests
            .filter(|realm| *realm != known.realm)
            .unwrap_or(first);
        if before != known.realm {
            return Err(error::denied(&format!(
                "{} was a host of realm {} before, and is one of {} now; who speaks for another realm is another peer, under another name \
                 (under a new [peers.NAME] in the manifest of the host that says so)",
                self.name,
                before.short(),
                known.realm.short()
            )));
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(())
    }

    /// What is held of its log: its newest checkpoint, and an alarm if its past is another now.
    pub fn holding(&self) -> Holding {
        let holding = self.holding.read().unwrap_or_else(PoisonError::into_inner);
        holding.clone()
    }

    pub(super) fn holds(&self, holding: Holding) {
        *self.holding.write().unwrap_or_else(PoisonError::into_inner) = holding;
    }

    /// Held by who judges what the peer gave of its log.
    pub(super) fn judging(&self) -> MutexGuard<'_, ()> {
        self.judging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copy of a channel of its, by what it is called there, where one is kept.
    pub fn mirror(&self, channel: &ChannelName) -> Option<&Arc<Mirror>> {
        self.mirrors.get()?.get(channel)
    }

    /// The copies of its channels.
    pub fn mirrors(&self) -> impl Iterator<Item = &Arc<Mirror>> {
        self.mirrors.get().into_iter().flat_map(BTreeMap::values)
    }

    /// Opens the copies of its channels. One that can't be opened is said in the host's log, and not kept up.
    fn open_mirrors(&self, past: &Past) {
        let open = |channel: &ChannelName| match Mirror::open(past.folder(), channel.clone()) {
            Ok(mirror) => Some((channel.clone(), Arc::new(mirror))),
            Err(error) => {
                tracing::error!("no copy is kept of {}/{channel}: {error}", self.name);
                None
            }
        };
        let _ = self
            .mirrors
            .set(self.spec.mirror.iter().filter_map(open).collect());
    }

    /// It has a graft of this epoch: what it is told from here on is of that one or later.
    pub(super) fn has_grafted(&self, epoch: Epoch) {
        self.told.send_if_modified(|told| {
            let is_later = told.epoch < epoch;
            told.epoch = told.epoch.max(epoch);
            is_later
        });
    }

    /// Whether it is let in by its key, from whatever id; also when it is known by one from an earlier login.
    pub(super) fn may_log_in(&self) -> bool {
        self.spec.id.is_none() && self.spec.key.is_some() && !self.is_refused()
    }

    /// Whether it is let in by nobody.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }

    /// What it has here has fallen, or changed.
    pub fn tell(&self, epoch: Epoch, reason: &str) {
        self.told.send_modify(|told| {
            told.epoch = epoch;
            told.revision += 1;
            told.reason = reason.into();
        });
    }
}

/// All peers of a host.
pub struct Peers {
    by_name: BTreeMap<String, Arc<Peer>>,
    by_id: RwLock<HashMap<PeerId, Arc<Peer>>>,
    peering: Peering,
    book: Arc<Book>,
    /// Held by who changes what is told of peers.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) withholding: withheld::Withholding,
    dialer: OnceLock<Dialer>,
    orders: OnceLock<mpsc::Sender<Order>>,
}

impl Peers {
    /// Those of a manifest, none of them connected, with what operators told of them in earlier runs. For people: what of that is left out.
    pub fn new(peering: Peering, book: Book) -> (Arc<Self>, Vec<String>) {
        let named = peering.peers.iter();
        let by_name: BTreeMap<_, _> = named
            .filter_map(|(name, spec)| {
                let peer = Peer::new(name.clone(), spec.clone())?;
                Some((name.clone(), Arc::new(peer)))
            })
            .collect();
        let by_id = by_name
            .values()
            .filter_map(|peer| Some((peer.id()?, peer.clone())))
            .collect();
        let mut notices = Vec::new();
        for (name, (id, addresses)) in book.pages().addresses {
            match by_name.get(&name) {
                Some(peer) if peer.spec.id == Some(id) => peer.set_dialed(addresses),
                // As long as nobody says who it is.
                Some(peer) if peer.spec.id.is_none() => {}
                Some(_) => notices.push(format!(
                    "peer '{name}' was {id} when `agora dial` was given addresses of it; they are left out"
                )),
                None => notices.push(format!(
                    "`agora dial` was given addresses of '{name}', which is no peer now; they are left out"
                )),
            }
        }
        let peers = Arc::new(Self {
            by_name,
            by_id: RwLock::new(by_id),
            peering,
            book: Arc::new(book),
            changing: tokio::sync::Mutex::default(),
            withholding: withheld::Withholding::default(),
            dialer: OnceLock::new(),
            orders: OnceLock::new(),
        });
        (peers, notices)
    }

    /// What operators told of peers.
    pub(super) fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// How peers are dealt with.
    pub fn peering(&self) -> &Peering {
        &self.peering
    }

    /// The peer of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<Peer>> {
        self.by_name.get(name)
    }

    /// The peer with this libp2p id.
    pub fn with_id(&self, id: &PeerId) -> Option<Arc<Peer>> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.get(id).cloned()
    }

    /// A channel of a peer's, by its name here. None: it is none, or of no peer of ours.
    pub fn remote(&self, channel: &ChannelName) -> Option<Arc<Remote>> {
        self.named(channel.peer()?)?.borrowed.remote(channel)
    }

    /// What a persona of this host, or a guest that it brought, said for peers and no peer has settled is never sent. It is kept in the data
    /// folder when this answers.
    pub(crate) async fn silence(&self, control: &Control, persona: &PersonaId) {
        let is_by = |name: &PersonaName| {
            *name == persona.name || name.brought_by().as_ref() == Some(&persona.name)
        };
        let over = |entry: &Entry| match entry.author.as_ref().is_some_and(is_by) {
            true => Some(withheld::STOPPED),
            false => control.withheld(entry),
        };
        self.withhold_what(control, &over).await;
        self.keep().await;
    }

    /// What was said for peers by who is stopped, or under a grant that is revoked, and no peer has settled, is never sent. It is told so, and
    /// kept in the data folder, when this answers.
    pub(crate) async fn withhold(&self, control: &Control) {
        self.withhold_what(control, &|entry| control.withheld(entry))
            .await;
    }

    async fn withhold_what(
        &self,
        control: &Control,
        over: &(dyn Fn(&Entry) -> Option<&'static str> + Sync),
    ) {
        let mut any = false;
        for remote in self.all().flat_map(|peer| peer.borrowed.remotes()) {
            any |= remote.withhold(control.host_id(), over).await;
        }
        if any {
            self.keep().await;
        }
    }

    /// What waits for peers that this host keeps connections to, by channel: how many messages that may yet be said.
    pub fn owed(&self) -> Vec<(ChannelName, u64)> {
        if self.dialer.get().is_none() {
            return Vec::new();
        }
        let kept_up = self.all().filter(|peer| !peer.is_refused());
        let remotes = kept_up.flat_map(|peer| peer.borrowed.remotes());
        let owed = remotes.map(|remote| (remote.name().clone(), remote.waiting()));
        owed.filter(|(_, waiting)| *waiting > 0).collect()
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_name.values()
    }

    /// What keeps them connected, once it runs.
    pub fn dialer(&self) -> Option<&Dialer> {
        self.dialer.get()
    }

    /// How the connections to a peer are now.
    pub fn connection(&self, peer: &Peer) -> Option<PeerStatus> {
        let snapshot = self.dialer.get()?.peers();
        snapshot.peers.get(&peer.id()?).cloned()
    }

    /// What a caller with this id is.
    pub(super) fn standing(&self, id: &PeerId) -> Standing {
        match self.with_id(id) {
            Some(peer) if peer.is_refused() => Standing::Refused,
            Some(_) => Standing::Known,
            // A guest may log in, where there is anybody who could.
            None => match self.all().any(|peer| peer.may_log_in()) {
                true => Standing::Guest,
                false => Standing::Refused,
            },
        }
    }

    /// A peer has proved by its key who it is: it is known by this id from here on, until the host ends. Answers the id that it was known
    /// by before, if that is another.
    pub(super) fn bind(&self, peer: &Arc<Peer>, id: PeerId) -> Option<PeerId> {
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        let mut own = peer.id.write().unwrap_or_else(PoisonError::into_inner);
        let old = own.replace(id).filter(|old| *old != id);
        if let Some(old) = &old {
            by_id.remove(old);
        }
        by_id.insert(id, peer.clone());
        old
    }

    /// Begins to listen and to dial, where there is anybody.
    ///
    /// # Errors
    /// For people: an address can't be listened at.
    pub async fn start(self: &Arc<Self>, control: &Arc<Control>) -> Result<(), String> {
        for peer in self.all() {
            let id = PersonaId::new(control.host_id(), peer.persona.clone());
            let killed = control
                .record()
                .state()
                .persona(&id)
                .is_some_and(|p| p.killed);
            peer.refused.store(killed, Ordering::SeqCst);
            let past = Past::of(&control.folder().join(""), &peer.name);
            peer.holds(Holding::read(&past, &peer.name));
            peer.open_mirrors(&past);
            peer.borrowed
                .open(&peer.name, control.record(), control.folder());
        }
        // What an earlier run, or another host, stopped while nobody here could note it.
        self.withhold(control).await;
        if !self.peering.is_on() {
            return Ok(());
        }
        let started = thread::start(self.clone(), control.clone()).await?;
        self.attend(started);
        Ok(())
    }

    /// From here on this is asked, and told.
    pub(crate) fn attend(&self, started: Started) {
        let _ = self.dialer.set(started.dialer);
        let _ = self.orders.set(started.orders);
    }

    /// Waits a little for the links to these peers, so that who would use them finds them there. Those that can only come are not waited for.
    pub async fn await_links(&self, names: &BTreeSet<String>) {
        if self.dialer.get().is_none() {
            return;
        }
        let dialed = names.iter().filter_map(|name| self.named(name));
        let dialed = dialed.filter(|peer| !peer.is_refused() && !peer.addresses().is_empty());
        let up = dialed.map(|peer| async {
            let mut link = peer.link.subscribe();
            let _ = link
                .wait_for(|link| matches!(link, LinkState::Up { .. }))
                .await;
        });
        let all = futures::future::join_all(up);
        let _ = tokio::time::timeout(limits::LINK_FIRST_PATIENCE, all).await;
    }

    /// Ends every connection, and the threads.
    pub async fn close(&self) {
        // A thread that stands still keeps orders from being taken.
        let _ = tokio::time::timeout(limits::PEER_ENDING_MAX, self.order(Order::End)).await;
        if let Some(orders) = self.orders.get() {
            let _ = tokio::time::timeout(limits::PEER_ENDING_MAX, orders.closed()).await;
        }
        if let Some(dialer) = self.dialer.get() {
            dialer.shutdown().await;
        }
        for peer in self.all() {
            peer.link
                .send_replace(LinkState::down("the host is ending"));
            for remote in peer.borrowed.remotes() {
                // Nobody waits for it any more.
                remote.set_standing(RemoteStanding::Away("the host is ending".into()));
            }
        }
        self.keep().await;
    }

    /// Writes what is remembered of peers.
    async fn keep(&self) {
        let peers: Vec<_> = self.all().cloned().collect();
        let keeping = tokio::task::spawn_blocking(move || {
            for peer in &peers {
                peer.borrowed.keep();
            }
        });
        let _ = keeping.await;
    }

    async fn order(&self, order: Order) {
        if let Some(orders) = self.orders.get() {
            let _ = orders.send(order).await;
        }
    }

    /// Fells the walls of one peer, or of all. Answers when they have fallen.
    pub async fn fell(&self, only: Option<&PersonaName>, epoch: Epoch, reason: &str) {
        for peer in self.all() {
            if only.is_none_or(|only| *only == peer.persona) {
                peer.tell(epoch, reason);
            }
        }
        let (done, felled) = oneshot::channel();
        let order = Order::Fell {
            only: only.cloned(),
            reason: reason.to_owned(),
            done,
        };
        self.order(order).await;
        if self.orders.get().is_some() {
            let _ = felled.await;
        }
    }

    /// Cuts, at the peers' doors, what hangs on grants that are cut. Answers when that is done.
    pub async fn cut_revoked(&self, reason: &str) {
        let (done, cut) = oneshot::channel();
        let reason = reason.to_owned();
        self.order(Order::CutRevoked { reason, done }).await;
        if self.orders.get().is_some() {
            let _ = cut.await;
        }
    }

    /// From here on nobody lets this peer in, or somebody does again. What it has here falls either way.
    pub async fn refuse(&self, peer: &Peer, is_refused: bool, epoch: Epoch, reason: &str) {
        peer.refused.store(is_refused, Ordering::SeqCst);
        self.fell(Some(&peer.persona), epoch, reason).await;
        if let (Some(dialer), Some(id)) = (self.dialer.get(), peer.id()) {
            dialer.reconsider(id).await;
        }
    }

    /// How long a round trip on the control connection takes now.
    ///
    /// # Errors
    /// For people: it is not connected, or didn't answer.
    pub async fn ping(&self, peer: &Peer) -> Result<Duration, String> {
        let (answer, answered) = oneshot::channel();
        let name = peer.name.clone();
        let order = Order::Ping {
            name: name.clone(),
            answer,
        };
        self.order(order).await;
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "{name}: this host keeps no connections to peers now"
            )),
        }
    }
}
