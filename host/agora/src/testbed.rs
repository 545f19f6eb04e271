//! Agents that are functions of this process, on a host that is real in everything else. For tests, benchmarks and fuzzing.
//!
//! In: a plan of channels, agents and grants, and a folder. Out: a running [`Host`], whose controls a test drives; and [`Puppet`]s, agents
//! that do step by step what a test tells them.
//! Promise: what such an agent says crosses the same wire, RPC system, wall, facets, speakers, log and judge as a component's does;
//! nothing but the sandbox is missing. It ends as a component does: by a kill, by a bound, or by itself.
//! Failure: what a puppet can't do any more, since its life is over, answers [`Gone`].

pub mod border;
pub mod ground;
pub mod hostile;
pub mod pipe;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use agora_capnp::membrane_capnp::membrane;
use agora_guest::wire;
use agora_guest::{Channel, Draft, Error, Graft, Heard, Message, Outcome, Revoker, Terms};
use agora_log::Log;
use agora_realm::{ChannelName, ComponentHash, PersonaName};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};

use crate::boot::data::DataFolder;
use crate::boot::host::{Host, LogChoice, Programs, open_with};
use crate::boot::manifest::{AgentSpec, ChannelSpec, GrantSpec, Manifest, Restart};
use crate::limits;
use crate::peer::spec::Peering;
use crate::persona::agent::Program;
use crate::persona::identity::Identity;
use crate::persona::instance::{End, Parking};

type Live = dyn Fn(wire::End) -> LocalBoxFuture<'static, End> + Send + Sync;

/// An agent that is a function: called once a life, on the agent's vat thread, with the guest's end of its wire.
#[derive(Clone)]
pub struct Native {
    live: Arc<Live>,
    pub(crate) hash: ComponentHash,
}

impl Native {
    /// An agent that does this.
    pub fn new<F, Fut>(live: F) -> Self
    where
        F: Fn(wire::End) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = End> + 'static,
    {
        Self {
            live: Arc::new(move |end| live(end).boxed_local()),
            hash: ComponentHash([0; 32]),
        }
    }

    /// Lives one life.
    pub(crate) async fn run(&self, end: wire::End, parked: &Parking) -> End {
        let _closer = wire::Closer(end.clone());
        // As a trap is the guest's, so is this panic, and not the host's.
        let living = AssertUnwindSafe((self.live)(end)).catch_unwind();
        let mut living = pin!(living);
        let lived = poll_fn(|cx| {
            parked.set(false);
            let lived = living.as_mut().poll(cx);
            parked.set(lived.is_pending());
            lived
        });
        lived
            .await
            .unwrap_or_else(|_| End::Failed("the agent's function panicked".into()))
    }
}

/// What a host of the test bed runs.
#[derive(Clone, Default)]
pub struct Plan {
    manifest: Manifest,
    programs: Programs,
    workers: usize,
}

impl Plan {
    /// Nothing yet, on one vat thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// This many vat threads.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// One more channel, with the settings of one that names none.
    pub fn channel(self, name: &str) -> Self {
        let spec = ChannelSpec {
            hops: limits::HOPS_DEFAULT,
            reactions: limits::REACTIONS_DEFAULT,
            carry: false,
        };
        self.channel_with(name, spec)
    }

    /// One more channel, with these settings.
    pub fn channel_with(mut self, name: &str, spec: ChannelSpec) -> Self {
        self.manifest.channels.insert(channel_name(name), spec);
        self
    }

    /// One more agent. It is not started again when it fails.
    pub fn agent(mut self, name: &str, native: Native, grants: Vec<GrantSpec>) -> Self {
        let name = PersonaName::new(name).expect("a test names its agents well");
        let spec = AgentSpec {
            component: Default::default(),
            source: None,
            memory: limits::MEMORY_DEFAULT,
            restart: Restart::Never,
            grants,
        };
        self.programs.insert(name.clone(), Program::Native(native));
        self.manifest.agents.insert(name, spec);
        self
    }

    /// Deals with these peers.
    pub fn peering(mut self, peering: Peering) -> Self {
        self.manifest.peering = peering;
        self
    }

    /// Opens a host that runs this on a data folder, and starts the agents; no operator's socket. A folder that an earlier host of the
    /// same plan closed is gone on with. Runs on the tokio runtime that this is called on.
    ///
    /// # Errors
    /// For people.
    pub async fn open(&self, data: &Path) -> anyhow::Result<Host> {
        self.open_on(data, LogChoice::Own).await
    }

    /// The same, on a log that is shared with other hosts. Closing the host leaves it open.
    ///
    /// # Errors
    /// For people, as that this host is not one of the realm's.
    pub async fn open_shared(&self, data: &Path, log: &Arc<dyn Log>) -> anyhow::Result<Host> {
        let kept = Kept {
            log: log.clone(),
            closed: watch::channel(false).0,
        };
        self.open_on(data, LogChoice::Open(Arc::new(kept))).await
    }

    /// The same, under a lease, as on a log that servers keep.
    ///
    /// # Errors
    /// For people.
    pub async fn open_leased(&self, data: &Path, log: &Arc<dyn Log>) -> anyhow::Result<Host> {
        let kept = Kept {
            log: log.clone(),
            closed: watch::channel(false).0,
        };
        self.open_on(data, LogChoice::Shared(Arc::new(kept))).await
    }

    /// The same, on a log that servers keep, as these options reach it. The stream is the realm's.
    ///
    /// # Errors
    /// For people.
    pub async fn open_on_servers(
        &self,
        data: &Path,
        options: agora_log::JetStreamOptions,
    ) -> anyhow::Result<Host> {
        self.open_on(data, LogChoice::JetStream(Box::new(options)))
            .await
    }

    async fn open_on(&self, data: &Path, log: LogChoice) -> anyhow::Result<Host> {
        let (manifest, programs) = (self.manifest.clone(), self.programs.clone());
        let (identity, workers) = (Identity::in_folder(), self.workers);
        let opened = open_with(
            manifest,
            programs,
            data,
            &identity,
            workers,
            log,
            &mut |_| {},
        )
        .await?;
        opened.start_with(false).await
    }
}

/// The libp2p id that a host on this data folder has. Makes the folder's secret, where there is none.
pub fn peer_id(data: &Path) -> agora_dial::PeerId {
    // A folder that has a secret and nothing else is none of a host's.
    drop(DataFolder::open(data));
    let keys = Identity::in_folder().open_or_make(data);
    let keys = keys.expect("a test's folder takes a secret");
    let refuse = |_: &agora_dial::PeerId| agora_dial::Standing::Refused;
    agora_dial::Options::new(*keys.secret().peer_seed(), refuse).peer_id()
}

/// A log that outlives the host that closes it.
struct Kept {
    log: Arc<dyn Log>,
    closed: watch::Sender<bool>,
}

impl Log for Kept {
    fn append(
        &self,
        id: [u8; 32],
        bytes: bytes::Bytes,
        class: agora_log::Class,
    ) -> futures::future::BoxFuture<'static, Result<agora_log::Appended, agora_log::LogError>> {
        self.log.append(id, bytes, class)
    }

    fn read(
        &self,
        from: agora_log::Seq,
        entries: usize,
        bytes_max: usize,
    ) -> futures::future::BoxFuture<
        'static,
        Result<Vec<(agora_log::Seq, bytes::Bytes)>, agora_log::LogError>,
    > {
        self.log.read(from, entries, bytes_max)
    }

    fn tail(
        &self,
        from: agora_log::Seq,
    ) -> futures::stream::BoxStream<
        'static,
        Result<(agora_log::Seq, bytes::Bytes), agora_log::LogError>,
    > {
        let mut closed = self.closed.subscribe();
        let closed = async move {
            let _ = closed.wait_for(|closed| *closed).await;
        };
        self.log.tail(from).take_until(closed.boxed()).boxed()
    }

    fn durability(&self) -> agora_log::Durability {
        self.log.durability()
    }

    fn end(&self) -> agora_log::Seq {
        self.log.end()
    }

    fn close(&self) -> futures::future::BoxFuture<'static, Result<(), agora_log::LogError>> {
        self.closed.send_replace(true);
        async { Ok(()) }.boxed()
    }
}

fn channel_name(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a test names its channels well")
}

/// A grant of a channel under all terms.
pub fn all_of(channel: &str) -> GrantSpec {
    under(channel, agora_realm::Terms::ALL)
}

/// A grant of a channel under these terms.
pub fn under(channel: &str, terms: agora_realm::Terms) -> GrantSpec {
    GrantSpec::Channel(channel_name(channel), Box::new(terms))
}

// -- Puppets

/// The puppet's life is over, or it has none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is not running")]
pub struct Gone;

/// What a puppet's step came to.
pub type Step<R> = Result<Result<R, Error>, Gone>;

type Act = Box<dyn FnOnce(Rc<Stage>) -> LocalBoxFuture<'static, ()> + Send>;

/// The test's hold on an agent: what it is told to do it does on its vat thread, with what it was granted. Steps don't wait for each
/// other, so that calls can be left in flight. Clones hold the same agent.
#[derive(Clone)]
pub struct Puppet {
    strings: Arc<Mutex<Option<mpsc::UnboundedSender<Act>>>>,
    lives: Arc<watch::Sender<u64>>,
}

/// What a puppet has, while it lives.
pub struct Stage {
    /// Its host.
    pub door: membrane::Client,
    /// The guest's end of its wire.
    pub wire: wire::End,
    /// Its latest graft.
    pub graft: RefCell<Option<Graft>>,
    /// The facets that it holds, by the names that the test gave them; those of the latest graft by their channels'.
    pub facets: RefCell<BTreeMap<String, Channel>>,
    /// What cuts those that it made.
    pub revokers: RefCell<BTreeMap<String, Rc<Revoker>>>,
    /// Its subscriptions, by facet.
    pub heard: RefCell<BTreeMap<String, Rc<futures::lock::Mutex<Heard>>>>,
    end: RefCell<Option<oneshot::Sender<End>>>,
}

impl Stage {
    /// A facet that it holds.
    ///
    /// # Errors
    /// It holds none of that name.
    pub fn facet(&self, name: &str) -> Result<Channel, Error> {
        let found = self.facets.borrow().get(name).cloned();
        found.ok_or_else(|| Error::failed(format!("no facet '{name}' is held")))
    }
}

/// What a puppet found in a graft.
#[derive(Debug, Clone)]
pub struct Grafted {
    /// Of which epoch it is.
    pub epoch: u64,
    /// As whom it speaks.
    pub persona: String,
    /// The channels, with their terms on arrival.
    pub channels: Vec<(String, Terms)>,
}

impl Default for Puppet {
    fn default() -> Self {
        Self::new()
    }
}

impl Puppet {
    /// One that has no agent yet.
    pub fn new() -> Self {
        Self {
            strings: Arc::default(),
            lives: Arc::new(watch::channel(0).0),
        }
    }

    /// The agent that it moves.
    pub fn native(&self) -> Native {
        let puppet = self.clone();
        Native::new(move |end| puppet.clone().live(end))
    }

    async fn live(self, end: wire::End) -> End {
        let mut system = wire::Rpc::new(wire::Network::new(end.clone()), None);
        let (ended, mut told_to_end) = oneshot::channel();
        let stage = Rc::new(Stage {
            door: system.bootstrap(),
            wire: end,
            graft: RefCell::default(),
            facets: RefCell::default(),
            revokers: RefCell::default(),
            heard: RefCell::default(),
            end: RefCell::new(Some(ended)),
        });
        let (pull, mut pulled) = mpsc::unbounded_channel::<Act>();
        *self.strings.lock().unwrap_or_else(PoisonError::into_inner) = Some(pull);
        self.lives.send_modify(|lives| *lives += 1);
        let mut acts = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = &mut system => return End::Failed("the host closed the wire".into()),
                Ok(end) = &mut told_to_end => return end,
                Some(act) = pulled.recv() => acts.push(act(stage.clone())),
                Some(()) = acts.next() => {}
            }
        }
    }

    /// How many lives the agent has had.
    pub fn lives(&self) -> u64 {
        *self.lives.borrow()
    }

    /// Waits until the agent has begun this many lives.
    pub async fn until_life(&self, number: u64) {
        let mut lives = self.lives.subscribe();
        // Far above what it takes, so that a test that would wait for ever says what for.
        let patience = std::time::Duration::from_secs(60);
        let begun = tokio::time::timeout(patience, lives.wait_for(|lives| *lives >= number));
        assert!(begun.await.is_ok(), "life {number} begins");
    }

    /// Does anything at all. It is on its way when this returns; the answer is waited for by whoever wants it.
    pub fn run<R, F, Fut>(
        &self,
        act: F,
    ) -> impl Future<Output = Result<R, Gone>> + Send + use<R, F, Fut>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Stage>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let act: Act = Box::new(move |stage| {
            let acting = act(stage);
            async move { drop(answer.send(acting.await)) }.boxed_local()
        });
        if let Some(strings) = &*self.strings.lock().unwrap_or_else(PoisonError::into_inner) {
            // An act that is not taken drops its answer.
            let _ = strings.send(act);
        }
        async move { answered.await.map_err(|_| Gone) }
    }

    /// Grafts. The facets of the graft are held by their channels' names, in place of those of the graft before.
    pub async fn graft(&self) -> Step<Grafted> {
        let grafting = self.run(|stage| async move {
            let graft = Graft::arrive(&stage.door).await?;
            let channels: Vec<_> = graft.channels().collect();
            let grafted = Grafted {
                epoch: graft.epoch(),
                persona: graft.persona().to_owned(),
                channels: channels
                    .iter()
                    .filter_map(|c| Some((c.name().to_owned(), graft.terms(c.name())?.clone())))
                    .collect(),
            };
            let named = channels.into_iter().map(|c| (c.name().to_owned(), c));
            stage.facets.borrow_mut().extend(named);
            *stage.graft.borrow_mut() = Some(graft);
            Ok(grafted)
        });
        grafting.await
    }

    /// Holds a facet by one more name, as one that outlives its graft.
    pub async fn keep_as(&self, facet: &str, name: &str) -> Step<()> {
        let (facet, name) = (facet.to_owned(), name.to_owned());
        let keeping = self.run(|stage| async move {
            let facet = stage.facet(&facet)?;
            stage.facets.borrow_mut().insert(name, facet);
            Ok(())
        });
        keeping.await
    }

    /// Waits until its latest graft is over, and says why. Sent at once.
    pub fn ended(&self) -> impl Future<Output = Result<Error, Gone>> + Send + use<> {
        self.run(|stage| async move {
            let graft = stage.graft.borrow().clone();
            match graft {
                Some(graft) => graft.ended().await,
                None => Error::failed("there is no graft"),
            }
        })
    }

    /// Makes a narrower facet, and holds it and its revoker by a name.
    pub async fn attenuate(&self, facet: &str, terms: Terms, name: &str) -> Step<()> {
        let (facet, name) = (facet.to_owned(), name.to_owned());
        let making = self.run(|stage| async move {
            let (made, revoker) = stage.facet(&facet)?.attenuate(&terms).await?;
            stage.facets.borrow_mut().insert(name.clone(), made);
            stage.revokers.borrow_mut().insert(name, Rc::new(revoker));
            Ok(())
        });
        making.await
    }

    /// Cuts a facet that it made.
    pub async fn cut(&self, facet: &str, reason: &str) -> Step<()> {
        let (facet, reason) = (facet.to_owned(), reason.to_owned());
        let cutting = self.run(|stage| async move {
            let revoker = stage.revokers.borrow().get(&facet).cloned();
            match revoker {
                Some(revoker) => revoker.revoke(&reason).await,
                None => Err(Error::failed(format!("no revoker of '{facet}' is held"))),
            }
        });
        cutting.await
    }

    /// Speaks. Sent at once.
    pub fn speak(
        &self,
        facet: &str,
        drafts: Vec<Draft>,
    ) -> impl Future<Output = Step<Vec<Outcome>>> + Send + use<> {
        let facet = facet.to_owned();
        self.run(|stage| async move { stage.facet(&facet)?.speak(drafts).await })
    }

    /// Answers a message that it heard: a turn.
    pub fn reply(
        &self,
        facet: &str,
        to: Message,
        draft: Draft,
    ) -> impl Future<Output = Step<Outcome>> + Send + use<> {
        let facet = facet.to_owned();
        self.run(move |stage| async move { stage.facet(&facet)?.reply(&to, draft).await })
    }

    /// Reads what was said, from an ordinal on.
    pub async fn history(&self, facet: &str, from: u64, count: u32) -> Step<(Vec<Message>, u64)> {
        let facet = facet.to_owned();
        let reading =
            self.run(move |stage| async move { stage.facet(&facet)?.history(from, count).await });
        reading.await
    }

    /// What a facet is and allows.
    pub async fn info(&self, facet: &str) -> Step<agora_guest::channel::Info> {
        let facet = facet.to_owned();
        let asking = self.run(|stage| async move { stage.facet(&facet)?.info().await });
        asking.await
    }

    /// Listens, in place of the subscription of the facet before.
    pub async fn subscribe(&self, facet: &str) -> Step<()> {
        let facet = facet.to_owned();
        let subscribing = self.run(|stage| async move {
            let heard = stage.facet(&facet)?.subscribe().await?;
            let heard = Rc::new(futures::lock::Mutex::new(heard));
            stage.heard.borrow_mut().insert(facet, heard);
            Ok(())
        });
        subscribing.await
    }

    /// Waits for the next message of a subscription; none: the deliveries ended.
    pub async fn heard(&self, facet: &str) -> Step<Option<Message>> {
        let facet = facet.to_owned();
        let hearing = self.run(|stage| async move {
            let heard = stage.heard.borrow().get(&facet).cloned();
            match heard {
                Some(heard) => heard.lock().await.next().await,
                None => Err(Error::failed(format!("'{facet}' is not listened to"))),
            }
        });
        hearing.await
    }

    /// Ends, as an agent that returns from its function or fails.
    pub async fn end(&self, end: End) {
        let ending = self.run(|stage| async move {
            let told = stage.end.borrow_mut().take();
            if let Some(told) = told {
                let _ = told.send(end);
            }
        });
        let _ = ending.await;
    }
}
