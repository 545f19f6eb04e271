//! The wire: whole Cap'n Proto frames between an agent's vat and its host's.
//!
//! In: messages of a vat's RPC system, and frames from the other end. Out: the same, the other way.
//! Promise: frames keep their order; every queue is bounded; a closed end wakes whoever waits on it.
//! Failure: whatever passes a bound closes the wire and leaves the reason in [`End::breach`]. Whoever breaks the protocol is told so, and
//! the RPC system that was told it ends.
//!
//! Both ends use this module: the guest inside its component, the host natively. An [`End`] is `Send`, so that frames can
//! cross threads; the [`Network`] made from it is not.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use capnp::Error;
use capnp::capability::{FromClientHook, Promise};
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp;
use futures::FutureExt;
use futures::channel::oneshot;

/// The largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// The most frames that one `exchange` or `offer` may carry.
pub const BATCH_FRAMES_MAX: usize = 1024;
/// The most bytes that one `exchange` or `offer` may carry.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// What one end puts up with from the other.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes waiting in a queue before the wire is closed.
    pub queue_bytes_max: usize,
    /// Frames waiting in a queue before the wire is closed.
    pub queue_frames_max: usize,
    /// Calls the other end may have begun and not finished with.
    pub questions_max: usize,
    /// Calls the other end may have finished with that were not answered and never will be: the RPC system keeps a little of each for as
    /// long as the wire lasts, and so does the caller's.
    pub cancelled_max: usize,
    /// Bytes of calls that are begun and not answered yet: what they brought is kept until they end.
    pub unanswered_bytes_max: usize,
    /// Calls that may wait for each other in one chain, each made on what the one before is to answer: they are polled, and dropped,
    /// inside each other.
    pub depth_max: u32,
    /// Promises of the other end that it may have resolved to answers that are still to come; each may join two such chains.
    pub links_max: usize,
    /// Capabilities the other end may hold of this one. Each counts once, however often it was handed over: it is that often that it
    /// must be released, and an agent that keeps the one that it has owes nothing for getting it again.
    pub exports_max: usize,
    /// Capabilities one call may carry.
    pub caps_per_call_max: usize,
    /// Capabilities one answer may carry.
    pub caps_per_answer_max: usize,
    /// Calls of this end that the other has not answered, wanted still or not: a call that is given up is remembered until it is answered.
    pub asked_max: usize,
}

impl Limits {
    /// What a host puts up with from an agent.
    pub const HOST: Self = Self {
        queue_bytes_max: 16 << 20,
        queue_frames_max: 16 * 1024,
        questions_max: 4096,
        cancelled_max: 1 << 17,
        unanswered_bytes_max: 16 << 20,
        depth_max: 32,
        links_max: 32,
        exports_max: 8192,
        caps_per_call_max: 64,
        caps_per_answer_max: 64,
        // An agent asks to be told as often as it likes (a sink is told that a newer one took its place), so this is no more bounded
        // than anything else that it asks for.
        asked_max: 16 * 1024,
    };
    /// What an agent puts up with from its host, whom it trusts.
    pub const GUEST: Self = Self {
        queue_bytes_max: 64 << 20,
        queue_frames_max: 64 * 1024,
        questions_max: usize::MAX,
        cancelled_max: usize::MAX,
        unanswered_bytes_max: usize::MAX,
        depth_max: u32::MAX,
        links_max: usize::MAX,
        exports_max: usize::MAX,
        caps_per_call_max: usize::MAX,
        caps_per_answer_max: usize::MAX,
        asked_max: usize::MAX,
    };
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
    reader: Option<Waker>,
    drained: Option<Waker>,
    /// Who waits for it to become shorter.
    relieved: Vec<Waker>,
}

impl Queue {
    fn wake_all(&mut self) -> impl Iterator<Item = Waker> + use<> {
        let two = [self.reader.take(), self.drained.take()];
        let relieved = std::mem::take(&mut self.relieved);
        two.into_iter().flatten().chain(relieved)
    }
}

struct Pair {
    /// By direction: 0 is towards the second end of [`pair`], 1 towards the first.
    queues: [Mutex<Queue>; 2],
    limits: Limits,
    breach: Mutex<Option<String>>,
    /// Capabilities handed over and not released, by the end that handed them: as `queues`.
    handed_over: [AtomicUsize; 2],
    /// Calls that are not answered, by the end that made them.
    asked: [AtomicUsize; 2],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks; were it otherwise, a queue is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end of a wire. Clones are the same end. Close it with [`End::close`], or hold a [`Closer`].
#[derive(Clone)]
pub struct End {
    pair: Arc<Pair>,
    inward: usize,
}

/// Two ends joined by bounded queues.
pub fn pair(limits: Limits) -> (End, End) {
    let pair = Arc::new(Pair {
        queues: Default::default(),
        limits,
        breach: Mutex::new(None),
        handed_over: Default::default(),
        asked: Default::default(),
    });
    let first = End {
        pair: pair.clone(),
        inward: 1,
    };
    (first, End { pair, inward: 0 })
}

/// Closes a wire when dropped, so that nobody waits for an end that is gone.
pub struct Closer(pub End);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The wire is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl End {
    fn incoming(&self) -> MutexGuard<'_, Queue> {
        lock(&self.pair.queues[self.inward])
    }

    fn outgoing(&self) -> MutexGuard<'_, Queue> {
        lock(&self.pair.queues[1 - self.inward])
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The wire is closed, or is closed by this very frame for passing a bound.
    pub fn send(&self, frame: Vec<u8>) -> Result<(), Closed> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(self.breach(format!(
                "a frame of {} bytes is over the bound of {FRAME_BYTES_MAX}",
                frame.len()
            )));
        }
        let limits = self.pair.limits;
        let mut queue = self.outgoing();
        if queue.closed {
            return Err(Closed);
        }
        if queue.bytes + frame.len() > limits.queue_bytes_max
            || queue.frames.len() >= limits.queue_frames_max
        {
            let (frames, bytes) = (queue.frames.len(), queue.bytes);
            drop(queue);
            return Err(self.breach(format!(
                "{frames} frames ({bytes} bytes) wait on the wire and nobody takes them"
            )));
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        let waker = queue.reader.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Closes the wire because the other end passed a bound, and keeps the first such reason.
    pub fn breach(&self, reason: String) -> Closed {
        lock(&self.pair.breach).get_or_insert(reason);
        self.close();
        Closed
    }

    /// Why the wire was closed, when an end passed a bound.
    pub fn breached(&self) -> Option<String> {
        lock(&self.pair.breach).clone()
    }

    /// Closes both directions. Frames that wait are dropped. Repeating is harmless.
    pub fn close(&self) {
        for queue in &self.pair.queues {
            let mut queue = lock(queue);
            queue.closed = true;
            queue.frames.clear();
            queue.bytes = 0;
            let wakers = queue.wake_all();
            drop(queue);
            wakers.for_each(Waker::wake);
        }
    }

    /// Whether the wire is closed.
    pub fn is_closed(&self) -> bool {
        self.incoming().closed
    }

    /// Whether frames wait in either direction.
    pub fn is_idle(&self) -> bool {
        self.incoming().frames.is_empty() && self.outgoing().frames.is_empty()
    }

    /// The next incoming frame; `None` once the wire is closed.
    pub async fn receive(&self) -> Option<Vec<u8>> {
        poll_fn(|cx| {
            let mut queue = self.incoming();
            match queue.frames.pop_front() {
                Some(frame) => {
                    queue.bytes -= frame.len();
                    let drained = queue.frames.is_empty().then(|| queue.drained.take());
                    let relieved = std::mem::take(&mut queue.relieved);
                    drop(queue);
                    if let Some(waker) = drained.flatten() {
                        waker.wake();
                    }
                    relieved.into_iter().for_each(Waker::wake);
                    Poll::Ready(Some(frame))
                }
                None if queue.closed => Poll::Ready(None),
                None => {
                    queue.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits for at least one frame, then takes all that wait, within the bounds of one `exchange`.
    ///
    /// # Errors
    /// The wire is closed.
    pub async fn receive_batch(&self) -> Result<Vec<Vec<u8>>, Closed> {
        let Some(first) = self.receive().await else {
            return Err(Closed);
        };
        let mut bytes = first.len();
        let mut batch = vec![first];
        let mut queue = self.incoming();
        while batch.len() < BATCH_FRAMES_MAX {
            match queue.frames.front() {
                Some(next) if bytes + next.len() <= BATCH_BYTES_MAX => {}
                _ => break,
            }
            let frame = queue.frames.pop_front().expect("the front was just seen");
            queue.bytes -= frame.len();
            bytes += frame.len();
            batch.push(frame);
        }
        // Whoever waits for the queue to be shorter looks only when this has let go of it.
        let relieved = std::mem::take(&mut queue.relieved);
        drop(queue);
        relieved.into_iter().for_each(Waker::wake);
        Ok(batch)
    }

    /// Takes what waits, within the bounds of one `exchange`, without waiting.
    pub fn take_batch(&self) -> Vec<Vec<u8>> {
        let mut queue = self.incoming();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_FRAMES_MAX {
            match queue.frames.front() {
                Some(next) if bytes + next.len() <= BATCH_BYTES_MAX => {}
                _ => break,
            }
            let frame = queue.frames.pop_front().expect("the front was just seen");
            queue.bytes -= frame.len();
            bytes += frame.len();
            batch.push(frame);
        }
        let relieved = std::mem::take(&mut queue.relieved);
        drop(queue);
        relieved.into_iter().for_each(Waker::wake);
        batch
    }

    /// How many bytes the other end has not taken.
    pub fn waiting(&self) -> usize {
        self.outgoing().bytes
    }

    /// How many calls of this end the other one has not answered, wanted still or not.
    pub fn asked(&self) -> usize {
        self.pair.asked[1 - self.inward].load(Ordering::Relaxed)
    }

    fn set_asked(&self, count: usize) {
        self.pair.asked[1 - self.inward].store(count, Ordering::Relaxed);
    }

    /// How many capabilities of this end the other one holds.
    pub fn handed_over(&self) -> usize {
        self.pair.handed_over[1 - self.inward].load(Ordering::Relaxed)
    }

    fn set_handed_over(&self, count: usize) {
        self.pair.handed_over[1 - self.inward].store(count, Ordering::Relaxed);
    }

    /// Waits until the other end has taken all but so many frames and bytes. Any number may wait.
    ///
    /// # Errors
    /// The wire is closed.
    pub async fn relieved(&self, frames: usize, bytes: usize) -> Result<(), Closed> {
        poll_fn(|cx| {
            let mut queue = self.outgoing();
            if queue.closed {
                return Poll::Ready(Err(Closed));
            }
            if queue.frames.len() <= frames && queue.bytes <= bytes {
                return Poll::Ready(Ok(()));
            }
            if !queue
                .relieved
                .iter()
                .any(|known| known.will_wake(cx.waker()))
            {
                queue.relieved.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the other end has taken every frame sent so far.
    ///
    /// # Errors
    /// The wire is closed.
    pub async fn drained(&self) -> Result<(), Closed> {
        poll_fn(|cx| {
            let mut queue = self.outgoing();
            if queue.closed {
                Poll::Ready(Err(Closed))
            } else if queue.frames.is_empty() {
                Poll::Ready(Ok(()))
            } else {
                queue.drained = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// The two parties of a wire, for the RPC system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// This end.
    Here,
    /// The other end.
    There,
}

/// What the other end makes this one remember.
#[derive(Default)]
struct Ledger {
    /// The calls that it has begun and not finished with, by id. By id, so that neither a finish that crosses its answer nor one that
    /// is sent twice makes room for more.
    questions: HashMap<u32, Question>,
    /// Those that it finished with before they were answered.
    cancelled: HashSet<u32>,
    unanswered: Rc<Unanswered>,
    /// Nothing more is sent.
    parting: bool,
    /// How often each capability of this end was handed over and not released.
    exports: HashMap<u32, u32>,
    /// Calls of this end without an answer, where they are bounded. By id, since a call may be answered twice.
    asked: HashSet<u32>,
}

#[derive(Default)]
struct Question {
    /// How many calls wait for each other up to this one.
    depth: u32,
    /// Gone when it is answered.
    burden: Option<Rc<Burden>>,
    /// What its answer handed over, which a finish may release.
    exports: Vec<u32>,
}

#[derive(Default)]
struct Unanswered {
    bytes: Cell<usize>,
    links: Cell<usize>,
}

/// What a call holds until it ends. A call that another one waits for goes on even when it is finished with, so that one shares it.
struct Burden {
    bytes: usize,
    links: Cell<usize>,
    totals: Rc<Unanswered>,
    /// No deeper than the question's own depth.
    _awaited: Vec<Rc<Self>>,
}

impl Drop for Burden {
    fn drop(&mut self) {
        let totals = &self.totals;
        totals.bytes.set(totals.bytes.get() - self.bytes);
        totals.links.set(totals.links.get() - self.links.get());
    }
}

fn malformed(error: impl std::fmt::Display) -> String {
    format!("a malformed frame: {error}")
}

type CapTable<'a> = capnp::struct_list::Reader<'a, rpc_capnp::cap_descriptor::Owned>;

impl Ledger {
    fn begin(
        &mut self,
        id: u32,
        bytes: usize,
        awaited: impl Iterator<Item = u32>,
        limits: &Limits,
    ) -> Result<(), String> {
        let mut depth = 0;
        let mut burdens = Vec::new();
        for question in awaited.filter_map(|id| self.questions.get(&id)) {
            depth = depth.max(question.depth + 1);
            burdens.extend(question.burden.clone());
        }
        if depth > limits.depth_max {
            return Err(format!(
                "over {} calls wait for each other in a chain",
                limits.depth_max
            ));
        }
        let totals = &self.unanswered;
        totals.bytes.set(totals.bytes.get() + bytes);
        let burden = Burden {
            bytes,
            links: Cell::default(),
            totals: totals.clone(),
            _awaited: burdens,
        };
        let question = Question {
            depth,
            burden: Some(Rc::new(burden)),
            exports: Vec::new(),
        };
        self.questions.insert(id, question);
        if self.questions.len() > limits.questions_max {
            return Err(format!(
                "over {} calls begun and not finished with",
                limits.questions_max
            ));
        }
        if self.unanswered.bytes.get() > limits.unanswered_bytes_max {
            return Err(format!(
                "over {} bytes of calls that are not answered",
                limits.unanswered_bytes_max
            ));
        }
        Ok(())
    }

    fn finish(&mut self, id: u32, release: bool, limits: &Limits) -> Result<(), String> {
        let Some(question) = self.questions.remove(&id) else {
            return Ok(());
        };
        if question.burden.is_some() {
            self.cancelled.insert(id);
        }
        if release {
            for export in question.exports {
                self.release(export, 1);
            }
        }
        match self.cancelled.len() > limits.cancelled_max {
            true => Err(format!("over {} calls cancelled", limits.cancelled_max)),
            false => Ok(()),
        }
    }

    /// A promise of the other end is now what a call of its own will answer.
    fn link(&mut self, id: u32, limits: &Limits) -> Result<(), String> {
        let question = self.questions.get(&id);
        if let Some(burden) = question.and_then(|question| question.burden.as_ref()) {
            burden.links.set(burden.links.get() + 1);
            self.unanswered.links.set(self.unanswered.links.get() + 1);
        }
        if self.unanswered.links.get() > limits.links_max {
            return Err(format!(
                "over {} promises resolved to answers that are still to come",
                limits.links_max
            ));
        }
        Ok(())
    }

    fn release(&mut self, export: u32, count: u32) {
        // Releasing more than was handed over is the RPC system's to refuse.
        if let Some(held) = self.exports.get_mut(&export) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                self.exports.remove(&export);
            }
        }
    }

    fn ask(&mut self, id: u32, limits: &Limits) {
        if limits.asked_max != usize::MAX {
            self.asked.insert(id);
        }
    }

    fn hand_over(&mut self, descriptor: rpc_capnp::cap_descriptor::Reader<'_>) -> Option<u32> {
        use rpc_capnp::cap_descriptor::Which;
        match descriptor.which() {
            Ok(Which::SenderHosted(export) | Which::SenderPromise(export)) => {
                *self.exports.entry(export).or_default() += 1;
                Some(export)
            }
            _ => None,
        }
    }

    fn hand_over_all(&mut self, caps: CapTable<'_>) -> Vec<u32> {
        caps.iter().filter_map(|cap| self.hand_over(cap)).collect()
    }

    /// Counts what this end hands over, and forgets the calls that it answers.
    fn send(
        &mut self,
        message: rpc_capnp::message::Reader<'_>,
        limits: &Limits,
    ) -> Result<(), String> {
        use rpc_capnp::message::Which;
        match message.which() {
            Ok(Which::Return(Ok(answer))) => {
                let exports = match answer.which() {
                    Ok(rpc_capnp::return_::Which::Results(Ok(payload))) => {
                        self.hand_over_all(payload.get_cap_table().map_err(malformed)?)
                    }
                    _ => Vec::new(),
                };
                let id = answer.get_answer_id();
                self.cancelled.remove(&id);
                if answer.get_no_finish_needed() {
                    self.questions.remove(&id);
                } else if let Some(question) = self.questions.get_mut(&id) {
                    question.burden = None;
                    question.exports = exports;
                }
            }
            Ok(Which::Call(Ok(call))) => {
                let params = call.get_params().map_err(malformed)?;
                self.hand_over_all(params.get_cap_table().map_err(malformed)?);
                self.ask(call.get_question_id(), limits);
            }
            Ok(Which::Bootstrap(Ok(bootstrap))) => {
                self.ask(bootstrap.get_question_id(), limits);
            }
            Ok(Which::Resolve(Ok(resolve))) => {
                if let Ok(rpc_capnp::resolve::Which::Cap(Ok(cap))) = resolve.which() {
                    self.hand_over(cap);
                }
            }
            _ => {}
        }
        if self.exports.len() > limits.exports_max {
            return Err(format!(
                "over {} capabilities handed over and not released",
                limits.exports_max
            ));
        }
        if self.asked.len() > limits.asked_max {
            return Err(format!(
                "over {} calls, wanted still or not, that are not answered",
                limits.asked_max
            ));
        }
        Ok(())
    }
}

type Books = Rc<RefCell<Ledger>>;

/// What the other end makes this one hold, each below its bound in [`Limits`] for as long as the wire is open.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    pub questions: usize,
    pub cancelled: usize,
    pub unanswered_bytes: usize,
    pub links: usize,
    pub asked: usize,
    pub exports: usize,
    pub queue_frames: usize,
    pub queue_bytes: usize,
}

impl Held {
    /// The first of them that is over its bound.
    #[doc(hidden)]
    pub fn excess(&self, limits: &Limits) -> Option<&'static str> {
        let bounds = [
            ("questions", self.questions, limits.questions_max),
            ("cancelled", self.cancelled, limits.cancelled_max),
            ("bytes", self.unanswered_bytes, limits.unanswered_bytes_max),
            ("links", self.links, limits.links_max),
            ("asked", self.asked, limits.asked_max),
            ("exports", self.exports, limits.exports_max),
            ("frames", self.queue_frames, 2 * limits.queue_frames_max),
            ("queued", self.queue_bytes, 2 * limits.queue_bytes_max),
        ];
        let over = bounds.into_iter().find(|(_, held, bound)| held > bound);
        over.map(|(name, ..)| name)
    }
}

/// Tells what a network holds, after the RPC system has taken it.
#[doc(hidden)]
pub struct Watch {
    end: End,
    books: Books,
}

impl Watch {
    /// What it holds now.
    #[doc(hidden)]
    pub fn held(&self) -> Held {
        let books = self.books.borrow();
        let mut held = Held {
            questions: books.questions.len(),
            cancelled: books.cancelled.len(),
            unanswered_bytes: books.unanswered.bytes.get(),
            links: books.unanswered.links.get(),
            asked: books.asked.len(),
            exports: books.exports.len(),
            ..Held::default()
        };
        for queue in &self.end.pair.queues {
            let queue = lock(queue);
            held.queue_frames += queue.frames.len();
            held.queue_bytes += queue.bytes;
        }
        held
    }
}

/// The RPC system's view of one end.
pub struct Network {
    connection: Option<Connection>,
    end: End,
    books: Books,
    over: Over,
    shut: Option<oneshot::Receiver<()>>,
}

/// Told when the RPC system has given a connection up.
type Over = Rc<Cell<Option<oneshot::Sender<()>>>>;

impl Network {
    /// Frames of this end as a two-party network.
    pub fn new(end: End) -> Self {
        let books = Books::default();
        let (over, shut) = oneshot::channel();
        let over = Rc::new(Cell::new(Some(over)));
        let connection = Connection {
            end: end.clone(),
            books: books.clone(),
            over: over.clone(),
        };
        Self {
            connection: Some(connection),
            end,
            books,
            over,
            shut: Some(shut),
        }
    }

    /// Tells what it holds, for tests.
    #[doc(hidden)]
    pub fn watch(&self) -> Watch {
        Watch {
            end: self.end.clone(),
            books: self.books.clone(),
        }
    }
}

impl capnp_rpc::VatNetwork<Party> for Network {
    fn connect(&mut self, party: Party) -> Option<Box<dyn capnp_rpc::Connection<Party>>> {
        (party == Party::There).then(|| {
            // Shares the one wire with the connection that `accept` gave away.
            Box::new(Connection {
                end: self.end.clone(),
                books: self.books.clone(),
                over: self.over.clone(),
            }) as Box<dyn capnp_rpc::Connection<Party>>
        })
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Party>>, Error> {
        match self.connection.take() {
            Some(connection) => Promise::ok(Box::new(connection)),
            None => Promise::from_future(futures::future::pending()),
        }
    }

    /// The RPC system goes on without a connection, for ever, unless it is told here that there will be none.
    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        let shut = self.shut.take();
        Promise::from_future(async move {
            if let Some(shut) = shut {
                let _ = shut.await;
            }
            Ok(())
        })
    }
}

/// An RPC system over one wire. Dropping it lets go of everything that either side held of the other; capnp-rpc's own would keep what
/// refers to its connection and is held by it, in a circle, for ever.
#[must_use = "a future does nothing unless polled"]
pub struct Rpc {
    system: capnp_rpc::RpcSystem<Party>,
    parting: capnp_rpc::Disconnector<Party>,
    books: Books,
}

impl Rpc {
    /// A vat's side of a wire, and what it offers on it.
    pub fn new(network: Network, bootstrap: Option<capnp::capability::Client>) -> Self {
        let books = network.books.clone();
        let system = capnp_rpc::RpcSystem::new(Box::new(network), bootstrap);
        Self {
            parting: system.get_disconnector(),
            system,
            books,
        }
    }

    /// What the other end offers.
    pub fn bootstrap<C: FromClientHook>(&mut self) -> C {
        self.system.bootstrap(Party::There)
    }
}

impl Future for Rpc {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.system).poll(cx)
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        // Not even an abort: whoever drops this has said what there was to say, or is gone with all of it.
        self.books.borrow_mut().parting = true;
        let _ = (&mut self.parting).now_or_never();
    }
}

struct Connection {
    end: End,
    books: Books,
    over: Over,
}

impl capnp_rpc::Connection<Party> for Connection {
    fn get_peer_vat_id(&self) -> Party {
        Party::There
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn capnp_rpc::OutgoingMessage> {
        Box::new(Outgoing {
            message: Builder::new(HeapAllocator::new().first_segment_words(words)),
            end: self.end.clone(),
            books: self.books.clone(),
        })
    }

    fn receive_incoming_message(
        &mut self,
    ) -> Promise<Option<Box<dyn capnp_rpc::IncomingMessage>>, Error> {
        let end = self.end.clone();
        let books = self.books.clone();
        Promise::from_future(async move {
            let Some(frame) = end.receive().await else {
                return Ok(None);
            };
            let bytes = frame.len();
            let message = match Incoming::parse(frame) {
                Ok(message) => message,
                Err(error) => {
                    end.breach(format!("a malformed frame: {error}"));
                    return Err(error);
                }
            };
            let weighed = message.weigh(bytes, &mut books.borrow_mut(), &end.pair.limits);
            end.set_handed_over(books.borrow().exports.len());
            end.set_asked(books.borrow().asked.len());
            if let Err(reason) = weighed {
                end.breach(reason.clone());
                return Err(Error::failed(reason));
            }
            Ok(Some(
                Box::new(message) as Box<dyn capnp_rpc::IncomingMessage>
            ))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        // What was sent stays to be taken: the other end may still be reading an abort.
        if let Err(error) = result
            && error.kind != capnp::ErrorKind::Disconnected
        {
            let reason = format!("its vat broke the protocol: {error}");
            lock(&self.end.pair.breach).get_or_insert(reason);
        }
        if let Some(over) = self.over.take() {
            let _ = over.send(());
        }
        Promise::ok(())
    }
}

struct Outgoing {
    message: Builder<HeapAllocator>,
    end: End,
    books: Books,
}

impl capnp_rpc::OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Builder<HeapAllocator>>) {
        if self.books.borrow().parting {
            return (Promise::ok(()), Rc::new(self.message));
        }
        let message = self.message.get_root_as_reader().map_err(malformed);
        let counted = message.and_then(|message| {
            let mut books = self.books.borrow_mut();
            let counted = books.send(message, &self.end.pair.limits);
            self.end.set_handed_over(books.exports.len());
            self.end.set_asked(books.asked.len());
            counted
        });
        if let Err(reason) = counted {
            self.end.breach(reason);
        }
        let message = Rc::new(self.message);
        let frame = capnp::serialize::write_message_to_words(&*message);
        let sent = match self.end.send(frame) {
            Ok(()) => Promise::ok(()),
            Err(Closed) => Promise::err(Error::disconnected(
                self.end
                    .breached()
                    .unwrap_or_else(|| "the wire is closed".into()),
            )),
        };
        (sent, message)
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

type Segments = capnp::serialize::BufferSegments<Vec<u8>>;
type OwnedSegments = capnp::serialize::OwnedSegments;

enum Incoming {
    /// Read where it arrived.
    InPlace(capnp::message::Reader<Segments>),
    /// Copied, since it did not arrive on a word boundary.
    Copied(capnp::message::Reader<OwnedSegments>),
}

impl Incoming {
    fn parse(frame: Vec<u8>) -> capnp::Result<Self> {
        // A reading of all words, by the RPC system, a membrane's copy and the method itself, with room to spare; overlapping
        // pointers can't make more of a frame than this.
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(Some(frame.len() + 8192));
        options.nesting_limit(32);
        if (frame.as_ptr() as usize).is_multiple_of(8) {
            let segments = Segments::new(frame, options)?;
            Ok(Self::InPlace(capnp::message::Reader::new(
                segments, options,
            )))
        } else {
            let message = capnp::serialize::read_message(&mut frame.as_slice(), options)?;
            Ok(Self::Copied(message))
        }
    }

    fn root(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        match self {
            Self::InPlace(message) => message.get_root(),
            Self::Copied(message) => message.get_root(),
        }
    }

    /// Counts what the other end makes this one remember.
    fn weigh(&self, bytes: usize, books: &mut Ledger, limits: &Limits) -> Result<(), String> {
        use rpc_capnp::message::Which;
        use rpc_capnp::{cap_descriptor, message_target, resolve, return_};
        let caps = |count: u32, most: usize| match count as usize > most {
            true => Err(format!(
                "a message with {count} capabilities, over the bound of {most}"
            )),
            false => Ok(()),
        };
        let message: rpc_capnp::message::Reader<'_> = self
            .root()
            .and_then(|root| root.get_as())
            .map_err(malformed)?;
        match message.which() {
            Ok(Which::Call(call)) => {
                let call = call.map_err(malformed)?;
                let params = call.get_params().map_err(malformed)?;
                let table = params.get_cap_table().map_err(malformed)?;
                caps(table.len(), limits.caps_per_call_max)?;
                // Without a target there is nothing to wait for; the RPC system refuses it.
                let target = match call.get_target().map(|target| target.which()) {
                    Ok(Ok(message_target::Which::PromisedAnswer(answer))) => {
                        Some(answer.map_err(malformed)?.get_question_id())
                    }
                    _ => None,
                };
                let carried = table.iter().filter_map(|cap| match cap.which() {
                    Ok(cap_descriptor::Which::ReceiverAnswer(Ok(answer))) => {
                        Some(answer.get_question_id())
                    }
                    _ => None,
                });
                let awaited = target.into_iter().chain(carried);
                books.begin(call.get_question_id(), bytes, awaited, limits)?;
            }
            Ok(Which::Bootstrap(bootstrap)) => {
                let question = bootstrap.map_err(malformed)?.get_question_id();
                books.begin(question, bytes, std::iter::empty(), limits)?;
            }
            Ok(Which::Finish(finish)) => {
                let finish = finish.map_err(malformed)?;
                let release = finish.get_release_result_caps();
                books.finish(finish.get_question_id(), release, limits)?;
            }
            Ok(Which::Return(answer)) => {
                let answer = answer.map_err(malformed)?;
                books.asked.remove(&answer.get_answer_id());
                if let Ok(return_::Which::Results(payload)) = answer.which() {
                    let table = payload.and_then(|payload| payload.get_cap_table());
                    caps(table.map_err(malformed)?.len(), limits.caps_per_answer_max)?;
                }
            }
            Ok(Which::Release(release)) => {
                let release = release.map_err(malformed)?;
                books.release(release.get_id(), release.get_reference_count());
            }
            Ok(Which::Resolve(resolve)) => {
                let resolve = resolve.map_err(malformed)?;
                if let Ok(resolve::Which::Cap(Ok(cap))) = resolve.which() {
                    match cap.which() {
                        Ok(cap_descriptor::Which::ReceiverAnswer(answer)) => {
                            let answer = answer.map_err(malformed)?;
                            books.link(answer.get_question_id(), limits)?;
                        }
                        // A chain of these has no end, and is dropped link inside link.
                        Ok(cap_descriptor::Which::SenderPromise(_))
                            if limits.links_max != usize::MAX =>
                        {
                            return Err("a promise resolved to one more promise".into());
                        }
                        _ => {}
                    }
                }
            }
            Ok(Which::Unimplemented(Ok(message))) => {
                // Only a resolve may come back: what it handed over was not taken.
                if let Ok(Which::Resolve(Ok(resolve))) = message.which()
                    && let Ok(resolve::Which::Cap(Ok(cap))) = resolve.which()
                    && let Ok(
                        cap_descriptor::Which::SenderHosted(export)
                        | cap_descriptor::Which::SenderPromise(export),
                    ) = cap.which()
                {
                    books.release(export, 1);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl capnp_rpc::IncomingMessage for Incoming {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits {
        queue_bytes_max: 64,
        queue_frames_max: 4,
        ..Limits::HOST
    };

    #[test]
    fn frames_keep_their_order_and_their_direction() {
        let (here, there) = pair(SMALL);
        here.send(vec![1]).unwrap();
        here.send(vec![2]).unwrap();
        there.send(vec![3]).unwrap();
        assert_eq!(there.take_batch(), [vec![1], vec![2]]);
        assert_eq!(here.receive().now_or_never(), Some(Some(vec![3])));
        assert!(here.is_idle() && there.is_idle());
    }

    #[test]
    fn a_full_queue_closes_the_wire_and_says_why() {
        for frame in [vec![0; 40], vec![0; 1]] {
            let (here, there) = pair(SMALL);
            let sent = (0..6).filter(|_| here.send(frame.clone()).is_ok()).count();
            assert!(sent < 6, "{sent} frames of {} bytes fit", frame.len());
            assert!(there.is_closed());
            assert!(there.breached().unwrap().contains("nobody takes them"));
        }
    }

    #[test]
    fn a_frame_over_the_bound_closes_the_wire() {
        let (here, there) = pair(Limits::HOST);
        assert_eq!(here.send(vec![0; FRAME_BYTES_MAX + 1]), Err(Closed));
        assert!(there.breached().unwrap().contains("over the bound"));
    }

    #[test]
    fn closing_wakes_whoever_waits() {
        let (here, there) = pair(SMALL);
        let waiting = std::thread::spawn(move || futures::executor::block_on(there.receive()));
        here.close();
        assert_eq!(waiting.join().unwrap(), None);
        assert_eq!(here.drained().now_or_never(), Some(Err(Closed)));
    }

    #[test]
    fn drained_waits_for_the_other_end() {
        let (here, there) = pair(SMALL);
        here.send(vec![1]).unwrap();
        assert_eq!(here.drained().now_or_never(), None);
        there.receive().now_or_never();
        assert_eq!(here.drained().now_or_never(), Some(Ok(())));
    }

    fn frame(build: impl FnOnce(rpc_capnp::message::Builder<'_>)) -> Vec<u8> {
        let mut message = Builder::new_default();
        build(message.init_root());
        capnp::serialize::write_message_to_words(&message)
    }

    fn weigh(books: &Books, limits: &Limits, frame: Vec<u8>) -> Result<(), String> {
        let bytes = frame.len();
        Incoming::parse(frame)
            .unwrap()
            .weigh(bytes, &mut books.borrow_mut(), limits)
    }

    fn call_on(id: u32, answer: u32) -> Vec<u8> {
        frame(|m| {
            let mut call = m.init_call();
            call.set_question_id(id);
            call.reborrow()
                .init_target()
                .init_promised_answer()
                .set_question_id(answer);
            call.init_params();
        })
    }

    fn finish(id: u32, release: bool) -> Vec<u8> {
        frame(|m| {
            let mut finish = m.init_finish();
            finish.set_question_id(id);
            finish.set_release_result_caps(release);
        })
    }

    /// Sends an answer that hands these over.
    fn answer(books: &Books, end: &End, id: u32, exports: &[u32]) {
        let mut message = Builder::new_default();
        let mut answer = message
            .init_root::<rpc_capnp::message::Builder<'_>>()
            .init_return();
        answer.set_answer_id(id);
        let mut table = answer.init_results().init_cap_table(exports.len() as u32);
        for (n, export) in exports.iter().enumerate() {
            table.reborrow().get(n as u32).set_sender_hosted(*export);
        }
        let outgoing = Outgoing {
            message,
            end: end.clone(),
            books: books.clone(),
        };
        let _ = capnp_rpc::OutgoingMessage::send(Box::new(outgoing));
    }

    #[test]
    fn calls_that_wait_for_each_other_have_a_depth() {
        let books = Books::default();
        weigh(&books, &Limits::HOST, call_on(0, 9999)).unwrap();
        for id in 1..=32 {
            weigh(&books, &Limits::HOST, call_on(id, id - 1)).unwrap();
            // Forgetting the first ones makes the chain no shorter.
            weigh(&books, &Limits::HOST, finish(id - 1, true)).unwrap();
        }
        let carrying = frame(|m| {
            let mut call = m.init_call();
            call.set_question_id(33);
            let table = call.init_params().init_cap_table(1);
            table.get(0).init_receiver_answer().set_question_id(32);
        });
        let refused = weigh(&books, &Limits::HOST, carrying).unwrap_err();
        assert!(refused.contains("in a chain"), "{refused}");
        // Ever so many side by side are no chain.
        let books = Books::default();
        weigh(&books, &Limits::HOST, call_on(0, 9999)).unwrap();
        for id in 1..4000 {
            weigh(&books, &Limits::HOST, call_on(id, 0)).unwrap();
        }
    }

    #[test]
    fn promises_that_join_chains_are_bounded() {
        let resolve = |to: u32, promise: bool| {
            frame(|m| {
                let cap = m.init_resolve().init_cap();
                match promise {
                    true => {
                        let mut cap = cap;
                        cap.set_sender_promise(to);
                    }
                    false => cap.init_receiver_answer().set_question_id(to),
                }
            })
        };
        let (here, _there) = pair(Limits::HOST);
        let books = Books::default();
        // Those whose answer has come join nothing any more.
        for id in 0..1000 {
            weigh(&books, &Limits::HOST, call_on(id, 9999)).unwrap();
            weigh(&books, &Limits::HOST, resolve(id, false)).unwrap();
            answer(&books, &here, id, &[1]);
        }
        weigh(&books, &Limits::HOST, call_on(1000, 9999)).unwrap();
        for _ in 0..32 {
            weigh(&books, &Limits::HOST, resolve(1000, false)).unwrap();
        }
        assert!(weigh(&books, &Limits::HOST, resolve(1000, false)).is_err());
        assert!(weigh(&books, &Limits::HOST, resolve(3, true)).is_err());
    }

    #[test]
    fn bytes_of_a_call_count_until_it_ends() {
        let large = |id: u32, on: u32| {
            frame(|m| {
                let mut call = m.init_call();
                call.set_question_id(id);
                call.reborrow()
                    .init_target()
                    .init_promised_answer()
                    .set_question_id(on);
                let mut content = call.init_params().init_content();
                content
                    .set_as::<capnp::data::Owned>(&[0u8; 1000][..])
                    .unwrap();
            })
        };
        let limits = Limits {
            unanswered_bytes_max: 2500,
            ..Limits::HOST
        };
        let (here, _there) = pair(limits);
        let books = Books::default();
        let bytes = || books.borrow().unanswered.bytes.get();
        for id in 0..100 {
            weigh(&books, &limits, large(id, 9999)).unwrap();
            match id % 2 {
                0 => answer(&books, &here, id, &[1]),
                _ => weigh(&books, &limits, finish(id, false)).unwrap(),
            }
            assert_eq!(bytes(), 0);
        }
        // One that another call waits for goes on without its question.
        weigh(&books, &limits, large(101, 9999)).unwrap();
        weigh(&books, &limits, call_on(102, 101)).unwrap();
        weigh(&books, &limits, finish(101, true)).unwrap();
        assert!(bytes() > 1000, "{}", bytes());
        weigh(&books, &limits, large(103, 9999)).unwrap();
        let refused = weigh(&books, &limits, large(104, 9999)).unwrap_err();
        assert!(refused.contains("not answered"), "{refused}");
        for id in [102, 103, 104] {
            weigh(&books, &limits, finish(id, true)).unwrap();
        }
        assert_eq!(bytes(), 0);
    }

    #[test]
    fn capabilities_count_until_they_are_released() {
        let release = |id, count| {
            frame(|m| {
                let mut release = m.init_release();
                release.set_id(id);
                release.set_reference_count(count);
            })
        };
        let limits = Limits {
            exports_max: 4,
            queue_frames_max: usize::MAX,
            queue_bytes_max: usize::MAX,
            ..Limits::HOST
        };
        let (here, _there) = pair(limits);
        let books = Books::default();
        let exports = || books.borrow().exports.len();
        // Honest agents, for a long life: one kept forever, others let go of in either way.
        for n in 0..100_000u32 {
            weigh(&books, &limits, call_on(n, u32::MAX)).unwrap();
            answer(&books, &here, n, &[7, 1000 + n, 1000 + n]);
            weigh(&books, &limits, finish(n, n % 2 == 0)).unwrap();
            if n % 2 == 1 {
                weigh(&books, &limits, release(1000 + n, 2)).unwrap();
            }
            assert!(exports() <= 1, "{} after {n}", exports());
            here.outgoing().frames.clear();
        }
        assert!(books.borrow().questions.is_empty());
        assert_eq!(here.breached(), None);
        for n in 0..5 {
            weigh(&books, &limits, call_on(n, u32::MAX)).unwrap();
            answer(&books, &here, n, &[n]);
            weigh(&books, &limits, finish(n, false)).unwrap();
        }
        assert!(here.breached().unwrap().contains("not released"));
    }

    #[test]
    fn calls_are_counted_until_they_are_finished_with() {
        let limits = Limits {
            questions_max: 2,
            ..Limits::HOST
        };
        let call = |id| frame(|m| m.init_call().set_question_id(id));
        let books = Books::default();
        weigh(&books, &limits, call(1)).unwrap();
        weigh(&books, &limits, call(2)).unwrap();
        weigh(&books, &limits, finish(1, true)).unwrap();
        // Finishing twice makes no room for two.
        weigh(&books, &limits, finish(1, true)).unwrap();
        weigh(&books, &limits, call(3)).unwrap();
        assert!(weigh(&books, &limits, call(4)).is_err());
    }

    #[test]
    fn calls_cancelled_before_their_answer_are_counted() {
        let limits = Limits {
            cancelled_max: 2,
            ..Limits::HOST
        };
        let call = |id| frame(|m| m.init_call().set_question_id(id));
        let (here, _there) = pair(limits);
        let books = Books::default();
        for id in 0..100 {
            // Answered in time, or answered all the same since another call waits for it.
            weigh(&books, &limits, call(id)).unwrap();
            if id % 2 == 0 {
                answer(&books, &here, id, &[]);
            }
            weigh(&books, &limits, finish(id, true)).unwrap();
            answer(&books, &here, id, &[]);
            here.outgoing().frames.clear();
        }
        assert!(books.borrow().cancelled.is_empty());
        for id in 0..3 {
            weigh(&books, &limits, call(id)).unwrap();
            let finished = weigh(&books, &limits, finish(id, true));
            assert_eq!(finished.is_ok(), id < 2, "{id}");
            // A second finish is nothing new.
            assert!(weigh(&books, &limits, finish(0, true)).is_ok());
        }
    }

    #[test]
    fn whoever_waits_for_relief_is_woken_by_whatever_shortens_the_queue() {
        let (here, there) = pair(Limits::HOST);
        for _ in 0..4 {
            here.send(vec![0; 100]).unwrap();
        }
        assert_eq!(here.waiting(), 400);
        let waits = |bytes| here.relieved(usize::MAX, bytes);
        let (mut few, mut none) = (Box::pin(waits(300)), Box::pin(waits(0)));
        let mut closed = Box::pin(here.relieved(0, usize::MAX));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(
            few.as_mut().poll(&mut cx).is_pending() && none.as_mut().poll(&mut cx).is_pending()
        );
        assert!(there.receive().now_or_never().is_some());
        assert!(woken.take());
        assert_eq!(few.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert!(
            none.as_mut().poll(&mut cx).is_pending() && closed.as_mut().poll(&mut cx).is_pending()
        );
        assert_eq!(there.take_batch().len(), 3);
        assert!(woken.take());
        assert_eq!(none.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        here.close();
        assert_eq!(closed.as_mut().poll(&mut cx), Poll::Ready(Err(Closed)));
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl Woken {
        fn take(&self) -> bool {
            self.0.swap(false, std::sync::atomic::Ordering::SeqCst)
        }
    }

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn calls_that_are_not_answered_are_counted_even_when_they_are_given_up() {
        let limits = Limits {
            asked_max: 3,
            ..Limits::HOST
        };
        let (here, _there) = pair(limits);
        let books = Books::default();
        let send = |fill: &dyn Fn(rpc_capnp::message::Builder<'_>)| {
            let mut message = Builder::new_default();
            fill(message.init_root());
            let outgoing = Outgoing {
                message,
                end: here.clone(),
                books: books.clone(),
            };
            let _ = capnp_rpc::OutgoingMessage::send(Box::new(outgoing));
        };
        let call = |id: u32| {
            send(&|m| m.init_call().set_question_id(id));
            send(&|m| m.init_finish().set_question_id(id));
        };
        let answered = |id: u32| {
            weigh(
                &books,
                &limits,
                frame(|m| m.init_return().set_answer_id(id)),
            )
        };
        for id in 0..100 {
            call(id);
            answered(id).unwrap();
            // An answer that comes twice makes no room for two.
            answered(id).unwrap();
        }
        (0..3).for_each(call);
        assert_eq!(here.breached(), None);
        call(3);
        assert!(here.breached().unwrap().contains("not answered"));
    }

    #[test]
    fn an_answer_that_needs_no_finish_frees_its_question() {
        let (here, _there) = pair(Limits::HOST);
        let books = Books::default();
        for id in [7, 8] {
            books.borrow_mut().questions.insert(id, Question::default());
        }
        for (id, no_finish_needed) in [(7, true), (8, false)] {
            let mut message = Builder::new_default();
            let mut answer = message
                .init_root::<rpc_capnp::message::Builder<'_>>()
                .init_return();
            answer.set_answer_id(id);
            answer.set_no_finish_needed(no_finish_needed);
            let outgoing = Outgoing {
                message,
                end: here.clone(),
                books: books.clone(),
            };
            let _ = capnp_rpc::OutgoingMessage::send(Box::new(outgoing));
        }
        let books = books.borrow();
        assert_eq!(books.questions.keys().collect::<Vec<_>>(), [&8]);
    }

    #[test]
    fn an_rpc_system_ends_with_its_connection() {
        let garbled = frame(|m| m.init_return().set_answer_id(77));
        for (frame, why) in [(Some(garbled), Some("protocol")), (None, None)] {
            let (here, there) = pair(Limits::HOST);
            let network = Box::new(Network::new(here.clone()));
            let mut system = capnp_rpc::RpcSystem::new(network, None);
            assert!((&mut system).now_or_never().is_none());
            match frame {
                Some(frame) => there.send(frame).unwrap(),
                None => there.close(),
            }
            let ended = futures::executor::block_on(system);
            assert!(ended.is_ok(), "{ended:?}");
            match why {
                Some(why) => assert!(here.breached().unwrap().contains(why)),
                None => assert_eq!(here.breached(), None),
            }
            // The abort is there to be read.
            assert_eq!(there.take_batch().len(), usize::from(why.is_some()));
        }
    }

    #[test]
    fn too_many_capabilities_in_a_message_are_refused() {
        let full = |count| {
            frame(|m| {
                m.init_call().init_params().init_cap_table(count);
            })
        };
        let books = Books::default();
        assert!(weigh(&books, &Limits::HOST, full(64)).is_ok());
        assert!(weigh(&books, &Limits::HOST, full(65)).is_err());
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let mut seed = 1u64;
        for len in 0..400usize {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            if let Ok(message) = Incoming::parse(bytes) {
                let _ = message.weigh(len, &mut Ledger::default(), &Limits::HOST);
            }
        }
    }
}
