//! A host with peers, and callers of any kind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agora::boot::host::Host;
use agora::boot::manifest::GrantSpec;
use agora::door::control::Control;
use agora::peer::peers::Peer;
use agora::peer::spec::{PeerSpec, Peering};
use agora::peer::vat::Vat;
use agora::testbed::Plan;
use agora_capnp::channel_capnp::{channel, sink};
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{link, peer_channel, terminal};
use agora_dial::{
    Dialer, Inbound, KnownPeer, Lane, Multiaddr, Options, PeerId, PeerState, Standing, Stream,
    Timing,
};
use agora_guest::wire::Limits;
use agora_guest::{Channel, Graft};
use agora_realm::{PersonaId, PersonaName, PublicKey};
use capnp::capability::FromClientHook;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// The longest that anything is waited for. Far above what it takes, so that a busy machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something, and says what for when it doesn't come.
pub(crate) async fn within<R>(what: &str, work: impl Future<Output = R>) -> R {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// The libp2p id of a seed.
pub(crate) fn id(seed: u8) -> PeerId {
    Options::new([seed; 32], |_: &PeerId| Standing::Known).peer_id()
}

/// A peer that is known by the id of a seed.
pub(crate) fn known(seed: u8, grants: Vec<GrantSpec>) -> PeerSpec {
    PeerSpec {
        id: Some(id(seed)),
        grants,
        ..PeerSpec::default()
    }
}

/// A peer that is known by its key alone.
pub(crate) fn keyed(key: PublicKey, grants: Vec<GrantSpec>) -> PeerSpec {
    PeerSpec {
        key: Some(key),
        grants,
        ..PeerSpec::default()
    }
}

/// How a host deals with these, listening.
pub(crate) fn peering<const N: usize>(peers: [(&str, PeerSpec); N]) -> Peering {
    let peers: BTreeMap<_, _> = peers
        .into_iter()
        .map(|(name, spec)| (name.to_owned(), spec))
        .collect();
    Peering {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        peers,
        ..Peering::default()
    }
}

/// A host, and the thread that its callers live on.
pub(crate) struct Bed {
    pool: Runtime,
    host: RefCell<Option<Host>>,
    plan: Plan,
    data: tempfile::TempDir,
}

/// Runs a test on a host of this plan.
pub(crate) fn on_bed(plan: Plan, test: impl AsyncFnOnce(&Bed)) {
    let pool = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let vat = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let data = tempfile::tempdir().unwrap();
    let host = pool.block_on(plan.open(data.path())).unwrap();
    let bed = Bed {
        pool,
        host: RefCell::new(Some(host)),
        plan,
        data,
    };
    LocalSet::new().block_on(&vat, test(&bed));
    if let Some(host) = bed.host.take() {
        bed.pool.block_on(host.close());
    }
}

impl Bed {
    pub(crate) fn control(&self) -> Arc<Control> {
        let host = self.host.borrow();
        host.as_ref().unwrap().control.clone()
    }

    /// Does something of the host's where the host does it.
    pub(crate) async fn on_pool<R: Send + 'static>(
        &self,
        work: impl Future<Output = R> + Send + 'static,
    ) -> R {
        within("what the host does", self.pool.spawn(work))
            .await
            .unwrap()
    }

    pub(crate) fn dialer(&self) -> Dialer {
        self.control().peers().dialer().unwrap().clone()
    }

    pub(crate) fn address(&self) -> Multiaddr {
        self.dialer().listening()[0].clone()
    }

    pub(crate) fn peer(&self, name: &str) -> Arc<Peer> {
        self.control().peers().named(name).unwrap().clone()
    }

    /// Closes the host and starts it again on the same data.
    pub(crate) async fn restart(&self) {
        let host = self.host.take().unwrap();
        self.on_pool(host.close()).await;
        let host = std::thread::scope(|scope| {
            let (pool, plan, data) = (&self.pool, &self.plan, self.data.path());
            let opening = move || pool.block_on(plan.open(data));
            scope.spawn(opening).join().unwrap().unwrap()
        });
        self.host.replace(Some(host));
    }

    /// What is known of a persona of the host's.
    pub(crate) fn persona(&self, name: &str) -> Option<agora_realm::Persona> {
        let control = self.control();
        let id = PersonaId::new(control.host_id(), PersonaName::new(name).unwrap());
        control.record().state().persona(&id).cloned()
    }

    /// How many entries the log holds.
    pub(crate) fn entries(&self) -> u64 {
        let state = self.control();
        let last = state.record().state().last_seq();
        last.unwrap_or_default()
    }

    /// The number of a persona's own grant, as `g7`.
    pub(crate) fn grant_of(&self, name: &str) -> String {
        let control = self.control();
        let id = PersonaId::new(control.host_id(), PersonaName::new(name).unwrap());
        let state = control.record().state();
        let grant = state.grants_of(&id).next().unwrap().1.number;
        format!("g{grant}")
    }

    /// A caller with the id of a seed, that keeps this host dialed.
    pub(crate) async fn caller(&self, seed: u8) -> Caller {
        let (host, address) = (self.dialer().peer_id(), self.address());
        self.on_pool(Caller::start(seed, host, address)).await
    }
}

/// Another host, as far as this one can see.
pub(crate) struct Caller {
    pub(crate) dialer: Dialer,
    pub(crate) host: PeerId,
    /// What the host opens to it is kept, and not answered.
    _inbound: Inbound,
}

impl Caller {
    pub(crate) async fn start(seed: u8, host: PeerId, address: Multiaddr) -> Self {
        let mut options = Options::new([seed; 32], |_: &PeerId| Standing::Known);
        options.peers.push(KnownPeer {
            peer: host,
            addresses: vec![address],
        });
        options.timing = Timing {
            backoff_min_ms: 50,
            backoff_max_ms: 400,
            ..Timing::default()
        };
        let (dialer, inbound) = Dialer::start(options).await.unwrap();
        Self {
            dialer,
            host,
            _inbound: inbound,
        }
    }

    /// Opens a stream, as soon as there is a connection for it.
    pub(crate) async fn open(&self, lane: Lane) -> Stream {
        let opening = async {
            loop {
                match self.dialer.open(self.host, lane).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        within("a stream", opening).await
    }

    /// Waits until the host takes it for this.
    pub(crate) async fn until(&self, state: PeerState) {
        let until = self.dialer.until(self.host, |now| now.state == state);
        within(&format!("{state:?}"), until).await.unwrap();
    }

    async fn lane<C: FromClientHook>(&self, lane: Lane) -> (C, Vat) {
        Vat::connect(self.open(lane).await, Limits::GUEST)
    }

    pub(crate) async fn vat(&self) -> (membrane::Client, Vat) {
        self.lane(Lane::Vat).await
    }

    pub(crate) async fn control(&self) -> (link::Client, Vat) {
        self.lane(Lane::Control).await
    }

    pub(crate) async fn terminal(&self) -> (terminal::Client, Vat) {
        self.lane(Lane::Login).await
    }

    /// A connection and its graft.
    pub(crate) async fn graft(&self) -> Grafted {
        let (door, vat) = self.vat().await;
        let graft = within("a graft", Graft::arrive(&door)).await.unwrap();
        Grafted {
            graft,
            door,
            _vat: vat,
        }
    }
}

/// What a peer has of one graft.
pub(crate) struct Grafted {
    pub(crate) graft: Graft,
    pub(crate) door: membrane::Client,
    _vat: Vat,
}

impl Grafted {
    /// Grafts anew on the same connection.
    pub(crate) async fn again(&mut self) {
        self.graft = within("another graft", Graft::arrive(&self.door))
            .await
            .unwrap();
    }

    pub(crate) fn peer_channel(&self, name: &str) -> peer_channel::Client {
        self.graft.capability(name).unwrap()
    }

    /// A channel, as the peer itself uses it.
    pub(crate) fn own(&self, name: &str) -> Channel {
        let client: channel::Client = self.peer_channel(name).client.hook.cast();
        Channel::from_client(name, client)
    }

    /// A channel, as one of the peer's personas uses it.
    pub(crate) async fn speaker(&self, name: &str, persona: &str) -> Result<Channel, String> {
        speaker(&self.peer_channel(name), name, persona).await
    }
}

trait Cast {
    fn cast<C: FromClientHook>(&self) -> C;
}

impl Cast for Box<dyn capnp::private::capability::ClientHook> {
    fn cast<C: FromClientHook>(&self) -> C {
        C::new(self.add_ref())
    }
}

/// The key that a persona of a caller's is introduced with.
pub(crate) const KEY: [u8; 32] = [7; 32];

/// Introduces a persona.
pub(crate) async fn speaker(
    channel: &peer_channel::Client,
    name: &str,
    persona: &str,
) -> Result<Channel, String> {
    let mut request = channel.speaker_request();
    let mut introduction = request.get().init_introduction();
    introduction.set_persona(persona);
    introduction.set_public_key(&KEY);
    let answer = within("an introduction", request.send().promise).await;
    let answer = answer.map_err(|error| error.extra)?;
    let client = answer.get().unwrap().get_channel().unwrap();
    Ok(Channel::from_client(name, client))
}

/// What was delivered to a sink: the ordinal, the author's name, and the text.
#[derive(Clone)]
pub(crate) struct Collected {
    pub(crate) messages: Rc<RefCell<Vec<(u64, String, String)>>>,
    told: tokio::sync::watch::Sender<()>,
}

impl Collected {
    pub(crate) fn new() -> Self {
        Self {
            messages: Rc::default(),
            told: tokio::sync::watch::channel(()).0,
        }
    }

    pub(crate) fn sink(&self) -> sink::Client {
        capnp_rpc::new_client(self.clone())
    }

    /// Waits for so many messages.
    pub(crate) async fn until(&self, many: usize) {
        let mut told = self.told.subscribe();
        let until = told.wait_for(|()| self.messages.borrow().len() >= many);
        within("deliveries", until).await.unwrap();
    }
}

impl sink::Server for Collected {
    async fn deliver(self: Rc<Self>, params: sink::DeliverParams) -> Result<(), capnp::Error> {
        for message in params.get()?.get_messages()? {
            let author = message.get_author()?.to_str()?;
            let author = author.split('@').next().unwrap().to_owned();
            let text = String::from_utf8(message.get_payload()?.to_vec()).unwrap();
            let message = (message.get_ordinal(), author, text);
            self.messages.borrow_mut().push(message);
        }
        self.told.send_replace(());
        Ok(())
    }
}
