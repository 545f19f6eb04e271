//! The wire: whole Cap'n Proto frames between an agent's vat and its host's.
//!
//! In: messages of a vat's RPC system, and frames from the other end. Out: the same, the other way.
//! Promise: frames keep their order; every queue is bounded; a closed end wakes whoever waits on it.
//! Failure: whatever passes a bound closes the wire and leaves the reason in [`End::breach`].
//!
//! Both ends use this module: the guest inside its component, the host natively. An [`End`] is `Send`, so that frames can
//! cross threads; the [`Network`] made from it is not.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use capnp::Error;
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp;

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
    /// How deep calls on the answers of calls on the answers of calls ... may go before the first is answered.
    pub depth_max: u16,
    /// Bytes of the calls that are begun and not finished with: their parameters live as long as they do.
    pub question_bytes_max: usize,
    /// Capabilities one message may carry.
    pub caps_per_message_max: usize,
    /// References to capabilities that the other end was given and has not let go of.
    pub given_max: usize,
}

impl Limits {
    /// What a host puts up with from an agent.
    pub const HOST: Self = Self {
        queue_bytes_max: 16 << 20,
        queue_frames_max: 16 * 1024,
        questions_max: 4096,
        depth_max: 32,
        question_bytes_max: 16 << 20,
        caps_per_message_max: 64,
        given_max: 8192,
    };
    /// What an agent puts up with from its host, whom it trusts.
    pub const GUEST: Self = Self {
        queue_bytes_max: 64 << 20,
        queue_frames_max: 64 * 1024,
        questions_max: usize::MAX,
        depth_max: u16::MAX,
        question_bytes_max: usize::MAX,
        caps_per_message_max: usize::MAX,
        given_max: usize::MAX,
    };
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
    reader: Option<Waker>,
    drained: Option<Waker>,
}

impl Queue {
    fn wake_all(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.drained.take()]
    }
}

struct Pair {
    /// By direction: 0 is towards the second end of [`pair`], 1 towards the first.
    queues: [Mutex<Queue>; 2],
    limits: Limits,
    breach: Mutex<Option<String>>,
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
            wakers.into_iter().flatten().for_each(Waker::wake);
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
                    drop(queue);
                    if let Some(waker) = drained.flatten() {
                        waker.wake();
                    }
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
        batch
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
type Questions = Rc<RefCell<Ledger>>;

/// One call that the other end has begun.
#[derive(Default)]
struct Question {
    depth: u16,
    bytes: usize,
    /// References that its answer gave.
    given: usize,
}

/// The calls that the other end has begun and not finished with, by question id, and what they weigh. By id, so that neither a finish
/// that crosses its answer nor one that is sent twice makes room for more.
#[derive(Default)]
struct Ledger {
    questions: HashMap<u32, Question>,
    bytes: usize,
    /// References to capabilities of this end that the other end holds.
    given: usize,
}

impl Ledger {
    fn begin(&mut self, id: u32, depth: u16, bytes: usize) {
        self.settle(id);
        self.bytes += bytes;
        let question = Question {
            depth,
            bytes,
            given: 0,
        };
        self.questions.insert(id, question);
    }

    fn settle(&mut self, id: u32) -> Option<Question> {
        let question = self.questions.remove(&id)?;
        self.bytes -= question.bytes;
        Some(question)
    }

    fn finish(&mut self, id: u32, releases: bool) {
        if let Some(question) = self.settle(id)
            && releases
        {
            self.given = self.given.saturating_sub(question.given);
        }
    }

    fn depth(&self, id: u32) -> u16 {
        self.questions
            .get(&id)
            .map_or(0, |question| question.depth.saturating_add(1))
    }

    fn check(&self, limits: &Limits) -> Result<(), String> {
        if self.questions.len() > limits.questions_max {
            return Err(format!(
                "over {} calls begun and not finished with",
                limits.questions_max
            ));
        }
        if self.bytes > limits.question_bytes_max {
            return Err(format!(
                "over {} bytes of calls begun and not finished with",
                limits.question_bytes_max
            ));
        }
        if self.given > limits.given_max {
            return Err(format!(
                "over {} references to capabilities held and not let go of",
                limits.given_max
            ));
        }
        Ok(())
    }
}

/// How many capabilities of the sender a cap table gives.
fn gives(table: capnp::struct_list::Reader<'_, rpc_capnp::cap_descriptor::Owned>) -> usize {
    use rpc_capnp::cap_descriptor::Which;
    let given = |d: &rpc_capnp::cap_descriptor::Reader<'_>| {
        matches!(
            d.which(),
            Ok(Which::SenderHosted(_) | Which::SenderPromise(_))
        )
    };
    table.iter().filter(given).count()
}

/// The RPC system's view of one end.
pub struct Network {
    connection: Option<Connection>,
    end: End,
    questions: Questions,
}

impl Network {
    /// Frames of this end as a two-party network.
    pub fn new(end: End) -> Self {
        let questions = Questions::default();
        let connection = Connection {
            end: end.clone(),
            questions: questions.clone(),
        };
        Self {
            connection: Some(connection),
            end,
            questions,
        }
    }
}

impl capnp_rpc::VatNetwork<Party> for Network {
    fn connect(&mut self, party: Party) -> Option<Box<dyn capnp_rpc::Connection<Party>>> {
        (party == Party::There).then(|| {
            // Shares the one wire with the connection that `accept` gave away.
            Box::new(Connection {
                end: self.end.clone(),
                questions: self.questions.clone(),
            }) as Box<dyn capnp_rpc::Connection<Party>>
        })
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Party>>, Error> {
        match self.connection.take() {
            Some(connection) => Promise::ok(Box::new(connection)),
            None => Promise::from_future(futures::future::pending()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        Promise::from_future(futures::future::pending())
    }
}

struct Connection {
    end: End,
    questions: Questions,
}

impl capnp_rpc::Connection<Party> for Connection {
    fn get_peer_vat_id(&self) -> Party {
        Party::There
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn capnp_rpc::OutgoingMessage> {
        Box::new(Outgoing {
            message: Builder::new(HeapAllocator::new().first_segment_words(words)),
            end: self.end.clone(),
            questions: self.questions.clone(),
        })
    }

    fn receive_incoming_message(
        &mut self,
    ) -> Promise<Option<Box<dyn capnp_rpc::IncomingMessage>>, Error> {
        let end = self.end.clone();
        let questions = self.questions.clone();
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
            if let Err(reason) = message.weigh(&questions, bytes, &end.pair.limits) {
                end.breach(reason.clone());
                return Err(Error::failed(reason));
            }
            Ok(Some(
                Box::new(message) as Box<dyn capnp_rpc::IncomingMessage>
            ))
        })
    }

    fn shutdown(&mut self, _result: capnp::Result<()>) -> Promise<(), Error> {
        // What was sent stays to be taken: the other end may still be reading an abort.
        Promise::ok(())
    }
}

struct Outgoing {
    message: Builder<HeapAllocator>,
    end: End,
    questions: Questions,
}

impl Outgoing {
    /// Notes what this message gives and settles.
    fn note(&self) {
        // What can't be read back is not counted; it is this end's own.
        let _ = self.try_note();
    }

    fn try_note(&self) -> capnp::Result<()> {
        use rpc_capnp::message::Which;
        let message: rpc_capnp::message::Reader<'_> = self.message.get_root_as_reader()?;
        let mut ledger = self.questions.borrow_mut();
        match message.which() {
            Ok(Which::Return(answer)) => {
                let answer = answer?;
                let id = answer.get_answer_id();
                if let Ok(rpc_capnp::return_::Which::Results(payload)) = answer.which() {
                    let given = gives(payload?.get_cap_table()?);
                    ledger.given += given;
                    if let Some(question) = ledger.questions.get_mut(&id) {
                        question.given = given;
                    }
                }
                // The other end need not say that it is finished with it.
                if answer.get_no_finish_needed() {
                    ledger.settle(id);
                }
            }
            Ok(Which::Call(call)) => {
                ledger.given += gives(call?.get_params()?.get_cap_table()?);
            }
            Ok(Which::Resolve(resolve)) => {
                use rpc_capnp::cap_descriptor::Which as Given;
                if let Ok(rpc_capnp::resolve::Which::Cap(cap)) = resolve?.which()
                    && let Ok(Given::SenderHosted(_) | Given::SenderPromise(_)) = cap?.which()
                {
                    ledger.given += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl capnp_rpc::OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Builder<HeapAllocator>>) {
        self.note();
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
    fn weigh(&self, ledger: &RefCell<Ledger>, bytes: usize, limits: &Limits) -> Result<(), String> {
        use rpc_capnp::message::Which;
        let malformed = |error: Error| format!("a malformed frame: {error}");
        let caps = |payload: rpc_capnp::payload::Reader<'_>| -> Result<(), String> {
            let count = payload.get_cap_table().map_err(malformed)?.len() as usize;
            if count > limits.caps_per_message_max {
                return Err(format!(
                    "a message with {count} capabilities, over the bound of {}",
                    limits.caps_per_message_max
                ));
            }
            Ok(())
        };
        let message: rpc_capnp::message::Reader<'_> = self
            .root()
            .and_then(|root| root.get_as())
            .map_err(malformed)?;
        match message.which() {
            Ok(Which::Call(call)) => {
                let call = call.map_err(malformed)?;
                let params = call.get_params().map_err(malformed)?;
                caps(params)?;
                let mut ledger = ledger.borrow_mut();
                let mut depth = 0;
                let target = call.get_target().map_err(malformed)?;
                if let Ok(rpc_capnp::message_target::Which::PromisedAnswer(on)) = target.which() {
                    depth = ledger.depth(on.map_err(malformed)?.get_question_id());
                }
                for descriptor in params.get_cap_table().map_err(malformed)?.iter() {
                    if let Ok(rpc_capnp::cap_descriptor::Which::ReceiverAnswer(on)) =
                        descriptor.which()
                    {
                        let on = on.map_err(malformed)?.get_question_id();
                        depth = depth.max(ledger.depth(on));
                    }
                }
                if depth > limits.depth_max {
                    return Err(format!(
                        "calls on answers that have not come, over {} deep",
                        limits.depth_max
                    ));
                }
                ledger.begin(call.get_question_id(), depth, bytes);
            }
            Ok(Which::Bootstrap(bootstrap)) => {
                let question = bootstrap.map_err(malformed)?.get_question_id();
                ledger.borrow_mut().begin(question, 0, bytes);
            }
            Ok(Which::Finish(finish)) => {
                let finish = finish.map_err(malformed)?;
                let releases = finish.get_release_result_caps();
                ledger
                    .borrow_mut()
                    .finish(finish.get_question_id(), releases);
            }
            Ok(Which::Release(release)) => {
                let count = release.map_err(malformed)?.get_reference_count() as usize;
                let mut ledger = ledger.borrow_mut();
                ledger.given = ledger.given.saturating_sub(count);
            }
            Ok(Which::Return(answer)) => {
                let answer = answer.map_err(malformed)?;
                if let Ok(rpc_capnp::return_::Which::Results(payload)) = answer.which() {
                    caps(payload.map_err(malformed)?)?;
                }
            }
            _ => {}
        }
        ledger.borrow().check(limits)
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
    use futures::FutureExt;

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

    fn weigh(questions: &Questions, limits: &Limits, frame: Vec<u8>) -> Result<(), String> {
        let bytes = frame.len();
        Incoming::parse(frame)
            .unwrap()
            .weigh(questions, bytes, limits)
    }

    #[test]
    fn calls_are_counted_until_they_are_finished_with() {
        let limits = Limits {
            questions_max: 2,
            ..Limits::HOST
        };
        let call = |id| frame(|m| m.init_call().set_question_id(id));
        let finish = |id| frame(|m| m.init_finish().set_question_id(id));
        let questions = Questions::default();
        weigh(&questions, &limits, call(1)).unwrap();
        weigh(&questions, &limits, call(2)).unwrap();
        weigh(&questions, &limits, finish(1)).unwrap();
        // Finishing twice makes no room for two.
        weigh(&questions, &limits, finish(1)).unwrap();
        weigh(&questions, &limits, call(3)).unwrap();
        assert!(weigh(&questions, &limits, call(4)).is_err());
    }

    #[test]
    fn an_answer_that_needs_no_finish_frees_its_question() {
        let (here, _there) = pair(Limits::HOST);
        let questions = Questions::default();
        for id in [7, 8] {
            questions.borrow_mut().begin(id, 0, 100);
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
                questions: questions.clone(),
            };
            let _ = capnp_rpc::OutgoingMessage::send(Box::new(outgoing));
        }
        let ledger = questions.borrow();
        assert_eq!(ledger.questions.keys().collect::<Vec<_>>(), [&8]);
        assert_eq!(ledger.bytes, 100);
    }

    #[test]
    fn too_many_capabilities_in_a_message_are_refused() {
        let full = |count| {
            frame(|m| {
                m.init_call().init_params().init_cap_table(count);
            })
        };
        let questions = Questions::default();
        assert!(weigh(&questions, &Limits::HOST, full(64)).is_ok());
        assert!(weigh(&questions, &Limits::HOST, full(65)).is_err());
    }

    #[test]
    fn calls_on_answers_that_have_not_come_are_bounded_in_depth() {
        let limits = Limits {
            depth_max: 3,
            ..Limits::HOST
        };
        let on = |id: u32, target: u32| {
            frame(|m| {
                let mut call = m.init_call();
                call.set_question_id(id);
                call.init_target()
                    .init_promised_answer()
                    .set_question_id(target);
            })
        };
        let questions = Questions::default();
        for id in 1..=4 {
            weigh(&questions, &limits, on(id, id - 1)).unwrap();
        }
        let error = weigh(&questions, &limits, on(5, 4)).unwrap_err();
        assert!(error.contains("deep"), "{error}");
        // Side by side they may be many.
        for id in 10..100 {
            weigh(&questions, &limits, on(id, 1)).unwrap();
        }
    }

    #[test]
    fn bytes_of_calls_are_bounded_until_they_are_finished_with() {
        let limits = Limits {
            question_bytes_max: 4096,
            ..Limits::HOST
        };
        let call = |id: u32| {
            frame(|m| {
                let mut call = m.init_call();
                call.set_question_id(id);
                call.init_params()
                    .get_content()
                    .initn_as::<capnp::data::Builder<'_>>(1500);
            })
        };
        let finish = |id: u32| frame(|m| m.init_finish().set_question_id(id));
        let questions = Questions::default();
        for id in 0..1000 {
            weigh(&questions, &limits, call(id)).unwrap();
            weigh(&questions, &limits, finish(id)).unwrap();
        }
        weigh(&questions, &limits, call(1)).unwrap();
        weigh(&questions, &limits, call(2)).unwrap();
        let error = weigh(&questions, &limits, call(3)).unwrap_err();
        assert!(error.contains("bytes"), "{error}");
    }

    #[test]
    fn capabilities_given_are_counted_until_they_are_let_go_of() {
        let limits = Limits {
            given_max: 3,
            ..Limits::HOST
        };
        let (here, _there) = pair(limits);
        let questions = Questions::default();
        let answer = |id: u32| {
            questions.borrow_mut().begin(id, 0, 0);
            let mut message = Builder::new_default();
            let mut answer = message
                .init_root::<rpc_capnp::message::Builder<'_>>()
                .init_return();
            answer.set_answer_id(id);
            let mut table = answer.init_results().init_cap_table(2);
            table.reborrow().get(0).set_sender_hosted(1);
            table.reborrow().get(1).set_sender_promise(2);
            let outgoing = Outgoing {
                message,
                end: here.clone(),
                questions: questions.clone(),
            };
            let _ = capnp_rpc::OutgoingMessage::send(Box::new(outgoing));
        };
        let finish = |id: u32, releases: bool| {
            frame(|m| {
                let mut finish = m.init_finish();
                finish.set_question_id(id);
                finish.set_release_result_caps(releases);
            })
        };
        let release = frame(|m| m.init_release().set_reference_count(2));
        for id in 0..100 {
            answer(id);
            weigh(&questions, &limits, finish(id, id % 2 == 0)).unwrap();
            if id % 2 == 1 {
                weigh(&questions, &limits, release.clone()).unwrap();
            }
        }
        answer(200);
        weigh(&questions, &limits, finish(200, false)).unwrap();
        answer(201);
        let error = weigh(&questions, &limits, finish(201, false)).unwrap_err();
        assert!(error.contains("let go"), "{error}");
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
                let _ = message.weigh(&Questions::default(), 1, &Limits::HOST);
            }
        }
    }
}
