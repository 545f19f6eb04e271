//! The connection between one graft and one service.
//!
//! In: calls on the capability that stands for the service; frames of its socket. Out: the same calls on the service's bootstrap.
//! Promise: it is made at the first call and, when it was lost, anew at the next one. What the service sends waits in its socket while
//! the agent does not take what waits for it. Ending it closes the socket before [`Line::end`] returns.
//! Failure: when the socket can't be reached, calls are refused as busy, and were not made. When the connection is lost, or the service
//! breaks the protocol or a bound, calls in flight fail, their outcome unknown, and so do later ones on what it had given.

use std::cell::{Cell, OnceCell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agora_guest::wire::{self, Party};
use agora_membrane::error;
use capnp::capability::{Client, Promise};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};
use capnp_rpc::{Disconnector, IncomingMessage, OutgoingMessage, RpcSystem, VatNetwork};
use futures::FutureExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::frames::{Frames, lost};
use crate::boot::manifest::ServiceSpec;
use crate::channel::speak::Counted;
use crate::limits;

/// A service, as it can be called in one graft.
pub(super) struct Line {
    spec: Arc<ServiceSpec>,
    /// How many connections the host has.
    connections: Arc<AtomicUsize>,
    /// The wire of the agent that calls.
    agent: wire::End,
    current: RefCell<Option<Connection>>,
    over: OnceCell<Error>,
}

impl Line {
    pub(super) fn new(
        spec: Arc<ServiceSpec>,
        connections: Arc<AtomicUsize>,
        agent: wire::End,
    ) -> Rc<Self> {
        Rc::new(Self {
            spec,
            connections,
            agent,
            current: RefCell::default(),
            over: OnceCell::new(),
        })
    }

    /// The capability that stands for the service.
    pub(super) fn client(self: &Rc<Self>) -> Client {
        Client::new(Box::new(Hook(self.clone())))
    }

    /// How many bytes the service has not taken.
    pub(super) fn waiting(&self) -> usize {
        let current = self.current.borrow();
        current.as_ref().map_or(0, |current| current.end.waiting())
    }

    /// Ends it for good.
    pub(super) fn end(&self, reason: &str) {
        let _ = self.over.set(error::stale(reason));
        let current = self.current.borrow_mut().take();
        drop(current);
    }

    /// Where a call is to go now.
    fn target(&self) -> Client {
        if let Some(error) = self.over.get() {
            return capnp_rpc::new_broken_cap(error.clone());
        }
        if let Some(current) = &*self.current.borrow()
            && !current.end.is_closed()
        {
            return current.bootstrap.clone();
        }
        let counted = Counted::new(&self.connections);
        let connections = self.connections.load(Ordering::SeqCst);
        if connections > limits::SERVICE_CONNECTIONS_MAX {
            return capnp_rpc::new_broken_cap(error::busy(&format!(
                "service '{}': the host has {} connections to services already",
                self.spec.name,
                connections - 1
            )));
        }
        let next = Connection::open(self.spec.clone(), self.agent.clone(), counted);
        let bootstrap = next.bootstrap.clone();
        let last = self.current.borrow_mut().replace(next);
        drop(last);
        bootstrap
    }
}

/// What the wall of a graft and a service has on its inside. It never resolves: what it leads to may be another connection tomorrow.
struct Hook(Rc<Line>);

impl ClientHook for Hook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> capnp::capability::Request<any_pointer::Owned, any_pointer::Owned> {
        let target = self.0.target();
        target.hook.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let target = self.0.target();
        target.hook.call(interface_id, method_id, params, results)
    }

    fn get_brand(&self) -> usize {
        0
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}

/// One connection, from its first call to its end.
struct Connection {
    bootstrap: Client,
    end: wire::End,
    socket: Weak<Socket>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end.close();
        if let Some(socket) = self.socket.upgrade() {
            socket.shut();
        }
        self.task.abort();
    }
}

/// The socket, once it is there.
#[derive(Default)]
struct Socket {
    stream: OnceCell<UnixStream>,
    shut: Cell<bool>,
}

impl Socket {
    /// Hangs up. The service sees it at once, whoever still holds this.
    fn shut(&self) {
        self.shut.set(true);
        if let Some(stream) = self.stream.get() {
            let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
        }
    }
}

/// How a connection ends.
#[derive(Default)]
struct Ends {
    /// Why, as those who wait are to be told.
    loss: OnceCell<Error>,
    /// Why the RPC system gave it up. By then it has told them.
    given_up: OnceCell<Error>,
    gave_up: Notify,
}

impl Connection {
    fn open(spec: Arc<ServiceSpec>, agent: wire::End, counted: Counted) -> Self {
        let (end, other) = wire::pair(limits::SERVICE_WIRE);
        let ends = Rc::new(Ends::default());
        let network = Network {
            inner: wire::Network::new(end.clone()),
            wire: end.clone(),
            spec: spec.clone(),
            ends: ends.clone(),
        };
        let mut system = RpcSystem::new(Box::new(network), None);
        let bootstrap = system.bootstrap(Party::There);
        let vat = Vat {
            parting: system.get_disconnector(),
            system,
        };
        let socket = Rc::new(Socket::default());
        let task = Life {
            spec,
            agent,
            other,
            socket: socket.clone(),
            ends,
            _counted: counted,
        };
        Self {
            bootstrap,
            end,
            socket: Rc::downgrade(&socket),
            task: tokio::task::spawn_local(task.live(vat)),
        }
    }
}

/// The RPC system. Wherever it is dropped, it lets go of all that either side held of the other, which capnp-rpc's own would keep in a
/// circle, for ever.
struct Vat {
    system: RpcSystem<Party>,
    parting: Disconnector<Party>,
}

impl Drop for Vat {
    fn drop(&mut self) {
        let _ = (&mut self.parting).now_or_never();
    }
}

/// What keeps a connection going.
struct Life {
    spec: Arc<ServiceSpec>,
    agent: wire::End,
    other: wire::End,
    socket: Rc<Socket>,
    ends: Rc<Ends>,
    _counted: Counted,
}

impl Life {
    async fn live(self, mut vat: Vat) {
        let carrying = AssertUnwindSafe(async {
            tokio::select! {
                biased;
                loss = self.carry() => loss,
                () = self.given_up(&mut vat.system) => {
                    self.say_farewell();
                    let why = self.ends.given_up.get();
                    let why = why.map_or(String::new(), |error| format!(" ({})", error.extra));
                    fault(&self.spec, &format!("it broke the protocol{why}"))
                }
            }
        });
        // A defect that a service brings to light is not to take the agents of this thread with it.
        let loss = carrying.catch_unwind().await.unwrap_or_else(|_| {
            let why = "the host's side of it panicked; this is a defect of the host";
            fault(&self.spec, why)
        });
        tracing::debug!("{loss}");
        let _ = self.ends.loss.set(loss);
        self.other.close();
        self.socket.shut();
        // Those who wait are told by the RPC system.
        let telling = timeout(limits::SERVICE_ENDING_MAX, self.given_up(&mut vat.system));
        let _ = AssertUnwindSafe(telling).catch_unwind().await;
    }

    /// Drives the RPC system until it has given the connection up.
    async fn given_up(&self, system: &mut RpcSystem<Party>) {
        if self.ends.given_up.get().is_none() {
            tokio::select! {
                biased;
                _ = system => {}
                () = self.ends.gave_up.notified() => {}
            }
        }
    }

    /// Carries frames both ways until it can't, and says why.
    async fn carry(&self) -> Error {
        let stream = match UnixStream::connect(&self.spec.socket).await {
            Ok(stream) => self.socket.stream.get_or_init(|| stream),
            Err(error) => {
                return error::busy(&format!(
                    "service '{}' can't be reached at {} ({error}); is it running? The next call tries again",
                    self.spec.name,
                    self.spec.socket.display()
                ));
            }
        };
        if self.socket.shut.get() {
            self.socket.shut();
        }
        let why = tokio::select! {
            Err(why) = self.receive(stream) => why,
            Err(why) = self.send(stream) => why,
        };
        fault(&self.spec, &self.other.breached().unwrap_or(why))
    }

    async fn receive(&self, stream: &UnixStream) -> Result<std::convert::Infallible, String> {
        let closed = |wire::Closed| "its wire is closed".to_owned();
        let mut frames = Frames::of(stream);
        loop {
            let frame = frames.next().await?;
            // A service can't fill the wire of an agent, which would end the agent: what it sends waits.
            let (frames_max, bytes_max) = (
                limits::AGENT_FRAMES_WAITING_MAX,
                limits::AGENT_BYTES_WAITING_MAX,
            );
            let taken = self.agent.relieved(frames_max, bytes_max).await;
            taken.map_err(closed)?;
            self.other.send(frame).map_err(closed)?;
            // One after the other, so that the agent's wire shows what came of each.
            self.other.relieved(0, 0).await.map_err(closed)?;
        }
    }

    async fn send(&self, stream: &UnixStream) -> Result<std::convert::Infallible, String> {
        let closed = |wire::Closed| "its wire is closed".to_owned();
        loop {
            for frame in self.other.receive_batch().await.map_err(closed)? {
                let mut rest = &frame[..];
                while !rest.is_empty() {
                    let ready = timeout(self.spec.deadline, stream.writable()).await;
                    let stalled = |_| format!("it took nothing for {:?}", self.spec.deadline);
                    ready.map_err(stalled)?.map_err(lost)?;
                    match stream.try_write(rest) {
                        Ok(wrote) => rest = &rest[wrote..],
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(lost(error)),
                    }
                }
            }
        }
    }

    /// Tells the service what it did wrong, as far as its socket takes that now.
    fn say_farewell(&self) {
        if let Some(stream) = self.socket.stream.get() {
            for frame in self.other.take_batch() {
                let _ = stream.try_write(&frame);
            }
        }
    }
}

/// The connection is over. Not stale: the agent's graft stands, and asking the service again is all there is to do.
fn fault(spec: &ServiceSpec, why: &str) -> Error {
    error::failed(&format!(
        "service '{}': {why}. Whether it did what it was asked and has not answered is unknown; what it had given is gone, and the \
         next call connects anew",
        spec.name
    ))
}

/// The wire's network, of which the end is told as what it is.
struct Network {
    inner: wire::Network,
    wire: wire::End,
    spec: Arc<ServiceSpec>,
    ends: Rc<Ends>,
}

impl VatNetwork<Party> for Network {
    fn connect(&mut self, party: Party) -> Option<Box<dyn capnp_rpc::Connection<Party>>> {
        let inner = self.inner.connect(party)?;
        Some(Box::new(Ending {
            inner,
            wire: self.wire.clone(),
            spec: self.spec.clone(),
            ends: self.ends.clone(),
        }))
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Party>>, Error> {
        // There is one connection, and this end made it.
        Promise::from_future(std::future::pending())
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        self.inner.drive_until_shutdown()
    }
}

struct Ending {
    inner: Box<dyn capnp_rpc::Connection<Party>>,
    wire: wire::End,
    spec: Arc<ServiceSpec>,
    ends: Rc<Ends>,
}

impl capnp_rpc::Connection<Party> for Ending {
    fn get_peer_vat_id(&self) -> Party {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        self.inner.new_outgoing_message(words)
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let received = self.inner.receive_incoming_message();
        let (wire, spec, ends) = (self.wire.clone(), self.spec.clone(), self.ends.clone());
        Promise::from_future(async move {
            match received.await {
                Ok(Some(message)) => Ok(Some(message)),
                ended => {
                    let why = ended.err().map(|error| error.extra);
                    let why = wire.breached().or(why);
                    Err(ends.loss.get().cloned().unwrap_or_else(|| {
                        fault(&spec, &why.unwrap_or_else(|| "the connection ended".into()))
                    }))
                }
            }
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        if let Err(error) = &result {
            let _ = self.ends.given_up.set(error.clone());
        }
        self.ends.gave_up.notify_one();
        self.inner.shutdown(result)
    }
}
