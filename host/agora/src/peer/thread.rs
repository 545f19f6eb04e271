//! The threads that peers live on: who is let in there, and what is kept connected.
//!
//! In: streams that peers opened; stops. Out: doors on the vat lane, links on the control lane; and what we use of theirs.
//! Promise: a stop is done before it is answered, whatever peers do. Each peer has a thread of its own, so what one asks for is done beside what
//! another asks for, and not before it; those that aren't known share one, which also brings each what is meant for it. A peer has one
//! connection a lane: a newer one takes the place of the older. Failure: a connection that breaks takes nothing but itself along.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{link, terminal};
use agora_dial::{Dialer, Inbound, Incoming, KnownPeer, Lane, Options, PeerId};
use agora_membrane::error;
use agora_realm::PersonaName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::borrowed::LinkState;
use super::door::PeerDoor;
use super::peers::{Peer, Peers};
use super::terminal::{Logins, Terminal};
use super::told::Link;
use super::vat::{Road, Vat};
use crate::channel::facet::Facets;
use crate::door::control::Control;
use crate::limits;

/// What the threads are asked to do.
pub enum Order {
    /// Fell the walls of one peer, or of all.
    Fell {
        /// Only of this one.
        only: Option<PersonaName>,
        /// For those who had something through them.
        reason: String,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Cut what hangs on grants that are cut.
    CutRevoked {
        /// For those who had it.
        reason: String,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Measure a round trip on the control lane.
    Ping {
        /// The peer's name.
        name: String,
        /// How long it took, or why it didn't.
        answer: oneshot::Sender<Result<Duration, String>>,
    },
    /// The host is ending.
    End,
}

/// What was started.
pub struct Started {
    /// What keeps peers connected.
    pub dialer: Dialer,
    /// Takes orders. Closed when all threads have ended.
    pub orders: mpsc::Sender<Order>,
}

/// What those who live on one thread share.
pub struct Ctx {
    /// The host's controls.
    pub control: Arc<Control>,
    /// All peers.
    pub peers: Arc<Peers>,
    /// What keeps them connected.
    pub dialer: Dialer,
    /// The facets of this thread.
    pub facets: Rc<Facets>,
    /// Those of guests.
    pub logins: Logins,
    doors: RefCell<HashMap<String, (Rc<PeerDoor>, Resident)>>,
    /// Those of guests that have logged in, until they connect as who they are.
    guests: RefCell<Vec<std::rc::Weak<PeerDoor>>>,
    links: RefCell<HashMap<String, Resident>>,
    /// Of peers that we are connected to: what each offers on the control lane.
    controls: RefCell<HashMap<String, link::Client>>,
    /// Told when all that was granted here has fallen, as when this realm's epoch ends.
    pub(super) fences: watch::Sender<()>,
}

/// A peer's control lane, as others here find it for as long as this is kept.
pub(super) struct Offered {
    ctx: Rc<Ctx>,
    name: String,
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.ctx.controls.borrow_mut().remove(&self.name);
    }
}

/// What is kept of a connection for as long as it lives.
struct Resident(tokio::task::JoinHandle<()>);

impl Drop for Resident {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where one peer lives.
struct Home {
    /// Half of its room is for stops, which are no more than [`PEER_ORDERS_MAX`](limits::PEER_ORDERS_MAX) at once; pings have the other half.
    orders: mpsc::Sender<Order>,
    streams: mpsc::Sender<Incoming>,
}

type Homes = HashMap<String, Home>;

/// Listens, dials, and starts the threads.
///
/// # Errors
/// For people.
pub async fn start(peers: Arc<Peers>, control: Arc<Control>) -> Result<Started, String> {
    let policy = {
        let peers = peers.clone();
        move |id: &PeerId| peers.standing(id)
    };
    let seed = control.peer_seed();
    let mut options = Options::new(*seed, policy);
    options.listen = peers.peering().listen.clone();
    options.discovery = peers.peering().discovery.clone();
    options.relay = peers.peering().relay.clone();
    options.peers = peers
        .all()
        .filter_map(|peer| {
            Some(KnownPeer {
                peer: peer.id()?,
                addresses: peer.addresses(),
            })
        })
        .collect();
    let started = Dialer::start(options).await;
    let (dialer, inbound) = started.map_err(|error| format!("peers: {error}"))?;
    let (alive, gone) = mpsc::channel::<Infallible>(1);
    let mut homes = Homes::new();
    for peer in peers.all() {
        let (orders, ordered) = mpsc::channel(2 * limits::PEER_ORDERS_MAX);
        let (streams, opened) = mpsc::channel(limits::PEER_STREAMS_WAITING_MAX);
        let (own, alive) = (peer.clone(), alive.clone());
        let life = |ctx: Rc<Ctx>| async move {
            live(ctx, own, opened, ordered).await;
            drop(alive);
        };
        on_thread(peer.persona.as_str(), &control, &peers, &dialer, life)?;
        homes.insert(peer.name.clone(), Home { orders, streams });
    }
    drop(alive);
    let (orders, ordered) = mpsc::channel(limits::PEER_ORDERS_MAX);
    let life = |ctx: Rc<Ctx>| direct(ctx, homes, inbound, ordered, gone);
    on_thread("agora-peers", &control, &peers, &dialer, life)?;
    Ok(Started { dialer, orders })
}

fn on_thread<L: Future<Output = ()>>(
    name: &str,
    control: &Arc<Control>,
    peers: &Arc<Peers>,
    dialer: &Dialer,
    life: impl FnOnce(Rc<Ctx>) -> L + Send + 'static,
) -> Result<(), String> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(limits::VAT_STACK_BYTES);
    let (control, peers, dialer) = (control.clone(), peers.clone(), dialer.clone());
    let spawned = thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a thread can have a runtime");
        let local = tokio::task::LocalSet::new();
        let ctx = Ctx::new(control, peers, dialer);
        local.block_on(&runtime, life(ctx));
    });
    spawned.map_err(|error| format!("peers: the system gives no thread: {error}"))?;
    Ok(())
}

/// The life of the thread that brings each peer what is meant for it, and that those live on who aren't known.
async fn direct(
    ctx: Rc<Ctx>,
    homes: Homes,
    mut inbound: Inbound,
    mut orders: mpsc::Receiver<Order>,
    mut gone: mpsc::Receiver<Infallible>,
) {
    // Orders that some thread has not done yet.
    let undone = Arc::new(Semaphore::new(limits::PEER_ORDERS_MAX));
    loop {
        let next = async {
            let place = undone.clone().acquire_owned().await;
            (place.expect("it is never closed"), orders.recv().await)
        };
        tokio::select! {
            biased;
            (place, order) = next => match order {
                Some(Order::End) | None => break,
                Some(order) => ctx.pass_on(&homes, order, place),
            },
            incoming = inbound.next() => match incoming {
                Some(incoming) => {
                    let peer = ctx.peers.with_id(&incoming.peer);
                    match peer.and_then(|peer| homes.get(&peer.name)) {
                        // One that opens more than its thread takes loses them.
                        Some(home) => drop(home.streams.try_send(incoming)),
                        None => ctx.let_in(incoming.peer, incoming.lane, incoming.stream),
                    }
                }
                None => break,
            },
        }
    }
    drop(homes);
    let _ = gone.recv().await;
}

/// The life of a peer's thread.
async fn live(
    ctx: Rc<Ctx>,
    peer: Arc<Peer>,
    mut opened: mpsc::Receiver<Incoming>,
    mut orders: mpsc::Receiver<Order>,
) {
    tokio::task::spawn_local(super::link::keep(ctx.clone(), peer));
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::End) | None => break,
                Some(order) => ctx.obey(order),
            },
            incoming = opened.recv() => match incoming {
                Some(incoming) => ctx.let_in(incoming.peer, incoming.lane, incoming.stream),
                None => break,
            },
        }
    }
    let doors = ctx.doors.take();
    for (door, _) in doors.values() {
        door.fall("the host is ending");
    }
    drop(doors);
    ctx.links.take();
}

impl Ctx {
    /// Nobody is let in yet.
    pub(crate) fn new(control: Arc<Control>, peers: Arc<Peers>, dialer: Dialer) -> Rc<Self> {
        Rc::new(Self {
            control,
            peers,
            dialer,
            facets: Rc::default(),
            logins: Logins::default(),
            doors: RefCell::default(),
            guests: RefCell::default(),
            links: RefCell::default(),
            controls: RefCell::default(),
            fences: watch::channel(()).0,
        })
    }

    /// Has an order done on every thread that it concerns, this one included.
    fn pass_on(self: &Rc<Self>, homes: &Homes, order: Order, place: OwnedSemaphorePermit) {
        let mut whose = None;
        let (make, done): (Box<dyn Fn(oneshot::Sender<()>) -> Order>, _) = match order {
            Order::Fell { only, reason, done } => {
                whose.clone_from(&only);
                let make = move |done| {
                    let (only, reason) = (only.clone(), reason.clone());
                    Order::Fell { only, reason, done }
                };
                (Box::new(make), done)
            }
            Order::CutRevoked { reason, done } => {
                let make = move |done| {
                    let reason = reason.clone();
                    Order::CutRevoked { reason, done }
                };
                (Box::new(make), done)
            }
            Order::Ping { name, answer } => {
                let Some(home) = homes.get(&name) else {
                    return;
                };
                if home.orders.capacity() > limits::PEER_ORDERS_MAX {
                    let _ = home.orders.try_send(Order::Ping { name, answer });
                } else {
                    let text = format!("{name}: its thread has too much to do; try again");
                    let _ = answer.send(Err(text));
                }
                return;
            }
            Order::End => return,
        };
        let (own, did) = oneshot::channel();
        self.obey(make(own));
        let mut all = vec![did];
        for (name, home) in homes {
            // Who is told by no other waits for no other.
            if whose
                .as_ref()
                .is_some_and(|whose| whose.peer_name() != Some(name))
            {
                continue;
            }
            let (done, did) = oneshot::channel();
            // There is room as long as its thread lives.
            let _ = home.orders.try_send(make(done));
            all.push(did);
        }
        // What comes behind it doesn't wait for it here: each thread does it in this order.
        tokio::task::spawn_local(async move {
            futures::future::join_all(all).await;
            drop(place);
            let _ = done.send(());
        });
    }

    pub(crate) fn obey(self: &Rc<Self>, order: Order) {
        match order {
            Order::Fell { only, reason, done } => {
                if only.is_none() {
                    self.fences.send_replace(());
                }
                for door in self.doors() {
                    if only
                        .as_ref()
                        .is_none_or(|only| *only == door.peer().persona)
                    {
                        door.fall(&reason);
                    }
                }
                let _ = done.send(());
            }
            Order::CutRevoked { reason, done } => {
                for door in self.doors() {
                    if door.holds_revoked() {
                        let epoch = self.control.gate().shown().epoch;
                        door.fall(&format!("{reason}; graft again"));
                        door.peer().tell(epoch, &reason);
                    }
                }
                self.facets.cut_revoked(&reason);
                let _ = done.send(());
            }
            Order::Ping { name, answer } => self.ping(name, answer),
            Order::End => {}
        }
    }

    /// What a peer offers on the control lane, for who pings it.
    pub(super) fn offers(self: &Rc<Self>, name: &str, control: link::Client) -> Offered {
        let (ctx, name) = (self.clone(), name.to_owned());
        self.controls.borrow_mut().insert(name.clone(), control);
        Offered { ctx, name }
    }

    fn ping(self: &Rc<Self>, name: String, answer: oneshot::Sender<Result<Duration, String>>) {
        let Some(link) = self.controls.borrow().get(&name).cloned() else {
            let state = self
                .peers
                .named(&name)
                .map(|peer| peer.link.borrow().clone());
            let why = match state {
                Some(LinkState::Down { why, .. }) => why.to_string(),
                _ => "it is not connected".to_owned(),
            };
            let _ = answer.send(Err(why));
            return;
        };
        // Not on this task, which stops come by.
        tokio::task::spawn_local(async move {
            let sent = std::time::Instant::now();
            let ping = link.ping_request().send().promise;
            let answered = match tokio::time::timeout(limits::PEER_PING_PATIENCE, ping).await {
                Ok(Ok(_)) => Ok(sent.elapsed()),
                Ok(Err(error)) => Err(error::reason(&error).to_owned()),
                Err(_) => Err(format!(
                    "nothing came back in {:?}",
                    limits::PEER_PING_PATIENCE
                )),
            };
            let _ = answer.send(answered);
        });
    }

    fn doors(&self) -> Vec<Rc<PeerDoor>> {
        let doors = self.doors.borrow();
        let mut all: Vec<_> = doors.values().map(|(door, _)| door.clone()).collect();
        all.extend(
            self.guests
                .borrow()
                .iter()
                .filter_map(std::rc::Weak::upgrade),
        );
        all
    }

    /// A guest that has logged in has this door: stops find it.
    pub(super) fn keep_guest(&self, door: &Rc<PeerDoor>) {
        let mut guests = self.guests.borrow_mut();
        guests.retain(|guest| guest.strong_count() > 0);
        guests.push(Rc::downgrade(door));
    }

    /// Whether a peer has a connection on the vat lane.
    #[cfg(feature = "testbed")]
    pub(crate) fn has_door(&self, name: &str) -> bool {
        self.doors.borrow().contains_key(name)
    }

    /// A stream that a peer opened.
    pub(crate) fn let_in(self: &Rc<Self>, from: PeerId, lane: Lane, stream: impl Road) {
        match (lane, self.peers.with_id(&from)) {
            (Lane::Vat, Some(peer)) if !peer.is_refused() => {
                let mut opened = None;
                let vat = Vat::serve(stream, limits::PEER_WIRE, |wire| {
                    let control = self.control.clone();
                    let door = PeerDoor::new(control, peer.clone(), self.facets.clone(), wire);
                    opened = Some(door.clone());
                    let offered: membrane::Client = capnp_rpc::new_client_from_rc(door);
                    offered.client
                });
                let Some(door) = opened else {
                    return;
                };
                let (ctx, own) = (self.clone(), door.clone());
                let living = tokio::task::spawn_local(async move {
                    let why = vat.ended().await;
                    tracing::debug!(peer = %own.peer().name, "its connection to this host ended: {why}");
                    own.fall(&why);
                    // Unless a newer one has its place.
                    let mut doors = ctx.doors.borrow_mut();
                    let name = &own.peer().name;
                    if doors
                        .get(name)
                        .is_some_and(|(door, _)| Rc::ptr_eq(door, &own))
                    {
                        let ended = doors.remove(name);
                        drop(doors);
                        drop(ended);
                    }
                });
                let name = peer.name.clone();
                let old = self
                    .doors
                    .borrow_mut()
                    .insert(name, (door, Resident(living)));
                if let Some((old, _)) = &old {
                    old.fall("a newer connection took its place");
                }
            }
            (Lane::Control, Some(peer)) if !peer.is_refused() => {
                let server = Link::new(
                    self.control.clone(),
                    peer.clone(),
                    from,
                    self.dialer.peer_id(),
                );
                let vat = Vat::serve(stream, limits::PEER_CONTROL_WIRE, |_| {
                    let offered: link::Client = capnp_rpc::new_client(server);
                    offered.client
                });
                let living = tokio::task::spawn_local(async move {
                    vat.ended().await;
                });
                let old = self
                    .links
                    .borrow_mut()
                    .insert(peer.name.clone(), Resident(living));
                drop(old);
            }
            (Lane::Login, None) => {
                let vat = Vat::serve(stream, limits::PEER_CONTROL_WIRE, |wire| {
                    let terminal = Terminal::new(self.clone(), from, wire);
                    let offered: terminal::Client = capnp_rpc::new_client(terminal);
                    offered.client
                });
                // The dialer ends it when a guest's time is over.
                tokio::task::spawn_local(async move {
                    vat.ended().await;
                });
            }
            // The policy was asked when it connected, and may answer otherwise by now: the stream is dropped, and with it the peer's hope.
            _ => {}
        }
    }
}
