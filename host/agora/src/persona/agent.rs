//! The life of an agent: started, ended, started again as the manifest says.
//!
//! Promise: whatever ends an agent ends that agent alone, and goes on the record with the reason.
//! Failure: a failed agent is started again later and later, or stays ended.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use agora_capnp::membrane_capnp::membrane;
use agora_guest::wire;
use agora_realm::{ChannelName, ComponentHash, Epoch, PersonaId, PersonaName};
use futures::FutureExt;

use super::engine::{Prepared, Workshop, World};
use super::instance::{End, Fittings, Parking, Reactor, run_agent};
use super::output::Output;
use crate::boot::manifest::{AgentSpec, Restart};
use crate::channel::signer::Signing;
use crate::delivery::subscription::Progress;
use crate::door::control::Control;
use crate::door::graft::Door;
use crate::door::introduction::Thread;
use crate::limits;

/// One agent of this host.
pub struct Agent {
    /// Its name.
    pub name: PersonaName,
    /// What the manifest says of it.
    pub spec: AgentSpec,
    /// What it runs.
    pub program: Program,
    /// Which vat thread it lives on.
    pub worker: usize,
    /// What it shows of itself.
    pub shared: Arc<Shared>,
    /// Held by the verb that starts or kills it, while that goes on the record.
    pub verbs: Arc<tokio::sync::Mutex<()>>,
}

/// What an agent runs.
#[derive(Clone)]
pub enum Program {
    /// A component, and where it is run.
    Component(Prepared, Workshop),
    /// A function of this process, at the guest's end of the wire.
    #[cfg(feature = "testbed")]
    Native(crate::testbed::Native),
}

impl Program {
    /// What the agent's key is for.
    pub fn hash(&self) -> ComponentHash {
        match self {
            Self::Component(prepared, _) => prepared.hash,
            #[cfg(feature = "testbed")]
            Self::Native(native) => native.hash,
        }
    }
}

/// Where an agent is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// On its way.
    Starting,
    /// Running.
    Running,
    /// Failed, and to be started again.
    Backoff(String),
    /// Ended, by itself or for good.
    Ended(String),
    /// Killed.
    Killed(String),
}

impl Phase {
    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Backoff(_) => "backoff",
            Self::Ended(_) => "ended",
            Self::Killed(_) => "killed",
        }
    }

    /// Why.
    pub fn detail(&self) -> &str {
        match self {
            Self::Starting | Self::Running => "",
            Self::Backoff(text) | Self::Ended(text) | Self::Killed(text) => text,
        }
    }
}

/// What an agent shows of itself to other threads.
pub struct Shared {
    phase: Mutex<Phase>,
    stops: AtomicU64,
    subscriptions: Mutex<HashMap<ChannelName, Arc<Progress>>>,
    grafted: Mutex<Option<Epoch>>,
    /// What it has asked to have signed lately.
    pub signing: Arc<Signing>,
    /// Linear memory now, in bytes.
    pub memory: Arc<AtomicUsize>,
    /// How often it was started again.
    pub restarts: AtomicUsize,
    /// Whether it waits on its wire.
    pub parked: Parking,
    /// Its wire, to see whether anything is on it.
    end: Mutex<Option<wire::End>>,
    /// Own messages passed over, in grafts that are over.
    echoes: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::Starting),
            stops: AtomicU64::new(0),
            subscriptions: Mutex::default(),
            grafted: Mutex::default(),
            signing: Arc::default(),
            memory: Arc::default(),
            restarts: AtomicUsize::new(0),
            parked: Parking::default(),
            end: Mutex::default(),
            echoes: AtomicUsize::new(0),
        }
    }
}

impl Shared {
    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        lock(&self.phase).clone()
    }

    /// It is there now.
    pub fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// How often it was stopped.
    pub fn stops(&self) -> u64 {
        self.stops.load(Ordering::SeqCst)
    }

    /// It is stopped: whatever start is on its way is off.
    pub fn stop(&self, phase: Phase) {
        let mut now = lock(&self.phase);
        self.stops.fetch_add(1, Ordering::SeqCst);
        *now = phase;
    }

    /// It is to start, unless it was stopped more often than this. Says whether it is.
    pub fn start(&self, stops: u64) -> bool {
        let mut now = lock(&self.phase);
        let starts = self.stops() == stops;
        if starts {
            *now = Phase::Starting;
        }
        starts
    }

    /// Its subscriptions, by channel.
    pub fn subscriptions(&self) -> Subscriptions<'_> {
        Subscriptions {
            map: lock(&self.subscriptions),
            echoes: &self.echoes,
        }
    }

    /// How its subscription to a channel is doing.
    pub fn progress(&self, channel: &ChannelName) -> Option<Arc<Progress>> {
        lock(&self.subscriptions).get(channel).cloned()
    }

    /// It has a graft of this epoch.
    pub fn grafted(&self, epoch: Epoch) {
        *lock(&self.grafted) = Some(epoch);
    }

    /// Own messages that were passed over.
    pub fn echoes(&self) -> u64 {
        let now: u64 = lock(&self.subscriptions)
            .values()
            .map(|progress| progress.echoes.load(Ordering::Relaxed))
            .sum();
        now + self.echoes.load(Ordering::Relaxed) as u64
    }

    /// Whether it has nothing to do: ended, or waiting on a wire on which nothing is. `idle` says so of a subscription.
    pub fn is_quiet(&self, epoch: Epoch, idle: impl Fn(&ChannelName, &Progress) -> bool) -> bool {
        match self.phase() {
            Phase::Ended(_) | Phase::Killed(_) => return true,
            Phase::Starting | Phase::Backoff(_) => return false,
            Phase::Running => {}
        }
        if !self.parked.is_parked() || !lock(&self.end).as_ref().is_some_and(wire::End::is_idle) {
            return false;
        }
        *lock(&self.grafted) == Some(epoch)
            && lock(&self.subscriptions)
                .iter()
                .all(|(channel, progress)| idle(channel, progress))
    }
}

/// A view of an agent's subscriptions.
pub struct Subscriptions<'a> {
    map: MutexGuard<'a, HashMap<ChannelName, Arc<Progress>>>,
    echoes: &'a AtomicUsize,
}

impl Subscriptions<'_> {
    fn retire(&self, progress: &Progress) {
        let echoes = progress.echoes.load(Ordering::Relaxed) as usize;
        self.echoes.fetch_add(echoes, Ordering::Relaxed);
    }

    /// One more; it takes the place of the channel's old one.
    pub fn insert(&mut self, channel: ChannelName, progress: Arc<Progress>) {
        if let Some(old) = self.map.insert(channel, progress) {
            self.retire(&old);
        }
    }

    /// None any more.
    pub fn clear(&mut self) {
        for progress in std::mem::take(&mut *self.map).into_values() {
            self.retire(&progress);
        }
    }
}

/// Lives an agent's life on a vat thread. Dropping the future ends it wherever it is.
pub async fn live(
    agent: Arc<Agent>,
    control: Arc<Control>,
    thread: Rc<Thread>,
    door: Rc<RefCell<Option<Rc<Door>>>>,
) {
    let mut backoff = limits::BACKOFF_MIN;
    let mut incidents = Incidents::default();
    loop {
        agent.shared.set_phase(Phase::Running);
        let began = Instant::now();
        // The host's side of an agent, its RPC system among it, must not take the agent from the books by panicking.
        let running = AssertUnwindSafe(run_once(&agent, &control, &thread, &door));
        let end = running.catch_unwind().await.unwrap_or_else(|_| {
            End::Failed("the host's side of it panicked; this is a defect of the host".into())
        });
        let reason = match end {
            End::Done => {
                agent.shared.set_phase(Phase::Ended("it was done".into()));
                return;
            }
            End::Failed(reason) => reason,
        };
        tracing::warn!(agent = %agent.name, "ended: {reason}");
        if let Some(count) = incidents.count(&reason) {
            control.note_incident(&agent.name, &reason, count);
        }
        if agent.spec.restart == Restart::Never {
            agent.shared.set_phase(Phase::Ended(reason));
            return;
        }
        if began.elapsed() >= limits::BACKOFF_FORGOTTEN {
            backoff = limits::BACKOFF_MIN;
        }
        let wait = format!("starts again in {:.1} s: {reason}", backoff.as_secs_f32());
        agent.shared.set_phase(Phase::Backoff(wait));
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(limits::BACKOFF_MAX);
        agent.shared.restarts.fetch_add(1, Ordering::Relaxed);
    }
}

/// Coalesces what repeats: the first, second, fourth, eighth ... end for the same reason is noted, with the count since the last note.
#[derive(Default)]
struct Incidents {
    reason: String,
    seen: u32,
    noted: u32,
}

impl Incidents {
    fn count(&mut self, reason: &str) -> Option<u32> {
        if self.reason != reason {
            *self = Self {
                reason: reason.to_owned(),
                ..Self::default()
            };
        }
        self.seen = self.seen.saturating_add(1);
        self.seen.is_power_of_two().then(|| {
            let count = self.seen - self.noted;
            self.noted = self.seen;
            count
        })
    }
}

/// Fells the wall and forgets the door, however a run ends.
struct Leaving<'a> {
    door: &'a RefCell<Option<Rc<Door>>>,
    shared: &'a Shared,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let door = self.door.borrow_mut().take();
        if let Some(door) = door {
            door.fall("the agent ended");
        }
        *lock(&self.shared.end) = None;
        *lock(&self.shared.grafted) = None;
        self.shared.parked.set(false);
        self.shared.memory.store(0, Ordering::Relaxed);
    }
}

async fn run_once(
    agent: &Arc<Agent>,
    control: &Arc<Control>,
    thread: &Rc<Thread>,
    slot: &RefCell<Option<Rc<Door>>>,
) -> End {
    let (host, guest) = wire::pair(wire::Limits::HOST);
    let _closer = wire::Closer(host.clone());
    *lock(&agent.shared.end) = Some(host.clone());
    let persona = PersonaId::new(control.host_id(), agent.name.clone());
    let door = Door::new(
        control.clone(),
        agent.shared.clone(),
        thread.clone(),
        host.clone(),
        persona,
    );
    *slot.borrow_mut() = Some(door.clone());
    let _leaving = Leaving {
        door: slot,
        shared: &agent.shared,
    };
    let bootstrap: membrane::Client = capnp_rpc::new_client_from_rc(door);
    let mut system = wire::Rpc::new(wire::Network::new(host.clone()), Some(bootstrap.client));
    let output = Output::new(agent.name.clone());
    let fittings = Fittings {
        memory_max: agent.spec.memory,
        memory: agent.shared.memory.clone(),
        seed: control.insecure_seed(&agent.name),
        output: output.clone(),
        parked: agent.shared.parked.clone(),
    };
    let end = tokio::select! {
        biased;
        end = run(agent, fittings, guest) => end,
        _ = &mut system => End::Failed("its vat broke the protocol".into()),
    };
    match (host.breached(), end) {
        (Some(breach), _) => End::Failed(breach),
        (None, End::Failed(reason)) => {
            // A panic's message went to standard error; the trap itself only says `unreachable`.
            let said = output.last_error();
            End::Failed(match said.is_empty() || reason.contains(&said) {
                true => reason,
                false => crate::cut_text(&format!("{reason} ({said})"), limits::REASON_BYTES_MAX),
            })
        }
        (None, end) => end,
    }
}

async fn run(agent: &Arc<Agent>, fittings: Fittings, end: wire::End) -> End {
    let (prepared, workshop) = match &agent.program {
        Program::Component(prepared, workshop) => (prepared, workshop),
        #[cfg(feature = "testbed")]
        Program::Native(native) => return native.run(end, &fittings.parked).await,
    };
    if prepared.world == World::Agent {
        return run_agent(workshop, prepared, fittings, end).await;
    }
    let parked = fittings.parked.clone();
    let reactor = match Reactor::new(workshop, prepared, fittings).await {
        Ok(reactor) => reactor,
        Err(end) => return end,
    };
    drive_reactor(&agent.name, reactor, parked, end).await
}

/// A message to coordinate over, and where its answers go.
type Hearing = (
    String,
    agora_guest::Channel,
    agora_guest::Message,
    tokio::sync::oneshot::Sender<Vec<agora_guest::Draft>>,
);

/// Keeps the vat of a component that has none, with the guest SDK, so that reactors have no second path.
async fn drive_reactor(
    name: &PersonaName,
    mut reactor: Reactor,
    parked: Parking,
    end: wire::End,
) -> End {
    let _closer = wire::Closer(end.clone());
    // The component is called from a loop of its own: a graft that ends does not drop it in the middle of a call, and yet all of it is
    // this one future, which goes with the agent.
    let (hear, mut hearing) = tokio::sync::mpsc::channel::<Hearing>(1);
    let driven = agora_guest::vat::drive(end, |graft| {
        let hear = hear.clone();
        let coordinate = move |me, channel, heard| {
            let hear = hear.clone();
            async move {
                let (answer, answered) = tokio::sync::oneshot::channel();
                let ended = |_| agora_guest::Error::failed("the component ended");
                let sent = hear.send((me, channel, heard, answer)).await;
                sent.map_err(|_| agora_guest::Error::failed("the component ended"))?;
                answered.await.map_err(ended)
            }
        };
        agora_guest::reactor::react_telling(graft, coordinate, |channel, refused| {
            tracing::debug!(agent = %name, "{}: an answer was refused: {refused}", channel.name());
        })
    });
    let calling = Cell::new(false);
    let calls = async {
        loop {
            let Some((me, channel, heard, answer)) = hearing.recv().await else {
                return std::future::pending().await;
            };
            calling.set(true);
            let drafts = reactor.coordinate(&me, channel.name(), &heard).await;
            calling.set(false);
            match drafts {
                Ok(drafts) => drop(answer.send(drafts)),
                Err(end) => return end,
            }
        }
    };
    let (mut driven, mut calls) = (pin!(driven), pin!(calls));
    poll_fn(|cx| {
        // Like a component with a vat of its own, it waits only between two polls, and not while it computes.
        parked.set(false);
        if let Poll::Ready(end) = calls.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(driven) = driven.as_mut().poll(cx) {
            return Poll::Ready(match driven {
                Ok(()) => End::Done,
                Err(error) => End::Failed(error.to_string()),
            });
        }
        parked.set(!calling.get());
        Poll::Pending
    })
    .await
}
