//! Where a [hostile guest](super::hostile) meets a host, and what must hold whatever it does.
//!
//! In: bytes that a guest goes by. Out: a [`Report`], or a panic that says what did not hold.
//! Promise: the host's side is what an agent's life is made of: wire, RPC system, door, wall, facets, and a host with a log on disk behind them. It
//! is checked that nothing panics; that what the guest makes the wire hold stays within its bounds; that the memory it took is given
//! back with its connection; that a frame costs a bounded number of polls, and an idle guest none; and that nothing stands on the
//! record that its grants don't allow.
//! Failure: none is caught.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agora_capnp::membrane_capnp::membrane;
use agora_guest::wire;
use agora_realm::{
    Act, Body, MessageVerdict, Object, PersonaId, PersonaName, Rights, ServiceName, Terms,
};
use futures::FutureExt;
use tokio::sync::broadcast;

use super::hostile::{Guest, Move};
use super::{Native, Plan, all_of, under};
use crate::boot::host::Host;
use crate::boot::manifest::GrantSpec;
use crate::delivery::record::Settled;
use crate::door::control::Control;
use crate::door::graft::Door;
use crate::door::introduction::Thread;

/// Guests between two bumps, which keep what a realm remembers of an epoch small.
const GUESTS_PER_EPOCH: u64 = 256;
/// Polls of the host's side that one move may cause.
const POLLS_PER_MOVE_MAX: u64 = 256;
/// Turns after which a host whose guest says nothing more must have come to rest.
const TURNS_TO_REST: u32 = 256;
/// Memory that may stay behind a guest, in bytes, since tables keep their size; and for each entry of its that stands on the record.
const LEFT_MAX: isize = 1 << 20;
const LEFT_PER_ENTRY_MAX: isize = 16 << 10;
/// Guests that put nothing on the record, over whom what stays behind is added up; and the most that may, in bytes, for each.
const LEFT_OVER: u64 = 64;
const LEFT_EACH_MAX: isize = 2 << 10;
/// How long anything may take that another thread has a part in.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of one guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Frames it sent.
    pub sent: usize,
    /// Frames it was sent.
    pub received: usize,
    /// Capabilities it got.
    pub capabilities: usize,
    /// Messages of its that count.
    pub said: usize,
    /// It was ended for breaking a bound or the protocol, before it was done or after.
    pub ended: bool,
    /// Calls that it cancelled before they were answered.
    pub cancelled: usize,
}

/// A host, and a door for guests.
pub struct Ground {
    /// Runs the host, as its pool of threads does.
    pool: tokio::runtime::Runtime,
    /// Runs the guest's vat: this thread.
    vat: tokio::runtime::Runtime,
    host: Option<Host>,
    control: Arc<Control>,
    news: RefCell<broadcast::Receiver<Arc<Settled>>>,
    persona: PersonaId,
    /// Live bytes of this process.
    live: fn() -> isize,
    met: Cell<u64>,
    /// The guests that put nothing on the record, and what stayed behind them.
    silent: Cell<(u64, isize)>,
}

/// What the guest may say on the square.
fn square_terms() -> Terms {
    let acts = [Act::Inform, Act::Request, Act::Propose, Act::Agree];
    Terms {
        acts: acts.into_iter().collect(),
        hops: 2,
        bytes_max: 4096,
        ..Terms::ALL
    }
}

impl Ground {
    /// A host on a data folder. `live` tells the bytes that this process allocated and has not freed; nothing else
    /// may run in it meanwhile.
    pub fn open(data: &Path, live: fn() -> isize) -> Self {
        let pool = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a process can have a runtime");
        let vat = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a thread can have a runtime");
        let idle = || Native::new(|_| std::future::pending());
        let reads = Terms {
            rights: Rights::READ,
            ..Terms::ALL
        };
        let plan = Plan::new()
            .channel("square")
            .channel("notices")
            .channel("vault")
            .agent("keeper", idle(), vec![all_of("square"), all_of("vault")])
            .agent(
                "hostile",
                idle(),
                vec![
                    under("square", square_terms()),
                    under("notices", reads),
                    GrantSpec::Timer,
                    // What it serves it meets again as a stranger would.
                    GrantSpec::Service(ServiceName::new("hostile").expect("it is a name")),
                ],
            );
        let host = pool
            .block_on(plan.open(data))
            .expect("a new folder takes a host");
        let control = host.control.clone();
        let name = PersonaName::new("hostile").expect("it is a name");
        let persona = PersonaId::new(control.host_id(), name);
        let news = RefCell::new(control.record().news());
        Self {
            pool,
            vat,
            host: Some(host),
            control,
            news,
            persona,
            live,
            met: Cell::new(0),
            silent: Cell::default(),
        }
    }

    /// Lets a guest in that goes by these bytes.
    ///
    /// # Panics
    /// Something did not hold.
    pub fn meet(&self, bytes: &[u8]) -> Report {
        let met = self.met.get() + 1;
        self.met.set(met);
        if met.is_multiple_of(GUESTS_PER_EPOCH) {
            let bumped = self.control.bump("", false, "the test bed");
            let (decided, _) = self.pool.block_on(bumped);
            assert_eq!(decided.pending, None, "the log takes a fence");
        }
        let before = (self.live)();
        let mut report = {
            let local = tokio::task::LocalSet::new();
            local.block_on(&self.vat, self.attack(bytes))
        };
        self.settle();
        let entries = self.check_record(&mut report);
        let left = (self.live)() - before;
        let most = LEFT_MAX + LEFT_PER_ENTRY_MAX * entries;
        assert!(
            left < most,
            "{left} bytes stay behind a guest with {entries} entries"
        );
        if entries == 0 {
            let (guests, sum) = self.silent.get();
            self.silent.set((guests + 1, sum + left));
        }
        if let (LEFT_OVER, left) = self.silent.get() {
            self.silent.take();
            assert!(
                left < LEFT_EACH_MAX * LEFT_OVER as isize,
                "{left} bytes stay behind {LEFT_OVER} guests"
            );
        }
        report
    }

    fn door(&self, host: &wire::End) -> Rc<Door> {
        let (control, persona) = (self.control.clone(), self.persona.clone());
        let thread = Thread::new(0);
        Door::new(control, Arc::default(), thread, host.clone(), persona)
    }

    /// Lets a guest in that is a function of the guest's end, with a look at what it makes the wire hold. Answers what the function
    /// answers, once it has.
    pub fn let_in<R>(&self, guest: impl AsyncFnOnce(&wire::End, &wire::Watch) -> R) -> R {
        let living = async {
            let (host, end) = wire::pair(wire::Limits::HOST);
            let _closer = wire::Closer(host.clone());
            let door = self.door(&host);
            let bootstrap: membrane::Client = capnp_rpc::new_client_from_rc(door.clone());
            let network = wire::Network::new(host);
            let watch = network.watch();
            let system = wire::Rpc::new(network, Some(bootstrap.client));
            let vat = tokio::task::spawn_local(system);
            let answer = guest(&end, &watch).await;
            door.fall("the agent ended");
            vat.abort();
            answer
        };
        let local = tokio::task::LocalSet::new();
        local.block_on(&self.vat, living)
    }

    async fn attack(&self, bytes: &[u8]) -> Report {
        let (host, guest) = wire::pair(wire::Limits::HOST);
        let _closer = wire::Closer(host.clone());
        let door = self.door(&host);
        let bootstrap: membrane::Client = capnp_rpc::new_client_from_rc(door.clone());
        let network = wire::Network::new(host.clone());
        let watch = network.watch();
        let system = wire::Rpc::new(network, Some(bootstrap.client));
        let polls = Rc::new(Cell::new(0u64));
        let vat = {
            let (polls, mut system) = (polls.clone(), system);
            tokio::task::spawn_local(poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                system.poll_unpin(cx).map(drop)
            }))
        };
        let mut villain = Guest::new(bytes);
        let mut report = Report::default();
        let mut moves = 0u64;
        while let Some(next) = villain.next_move() {
            moves += 1;
            match next {
                Move::Send(frame) => {
                    if guest.send(frame).is_err() {
                        break;
                    }
                    report.sent += 1;
                }
                Move::Yield(turns) => {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                }
                Move::Read => report.received += read(&guest, &mut villain),
                Move::Wait => {
                    let patience = Duration::from_millis(3);
                    let waited = tokio::time::timeout(patience, guest.receive()).await;
                    if let Ok(Some(frame)) = waited {
                        assert!(villain.learn(&frame), "the host's frames can be read");
                        report.received += 1 + read(&guest, &mut villain);
                    }
                }
                Move::Fall => door.fall("revoked, says the test bed"),
            }
            // The opening is answered before anything else is tried.
            if moves == 2 {
                for _ in 0..32 {
                    tokio::task::yield_now().await;
                }
                report.received += read(&guest, &mut villain);
            }
            self.check_wire(&watch, &host);
            if vat.is_finished() {
                break;
            }
        }
        self.until_rest(&guest, &mut villain, &polls, moves).await;
        self.check_wire(&watch, &host);
        report.cancelled = watch.held().cancelled;
        report.capabilities = villain.exports_seen();
        report.ended = vat.is_finished() || host.breached().is_some();
        door.fall("the agent ended");
        vat.abort();
        if let Err(error) = vat.await {
            assert!(!error.is_panic(), "the host's side panicked");
        }
        report
    }

    fn check_wire(&self, watch: &wire::Watch, host: &wire::End) {
        if host.breached().is_none() {
            let held = watch.held();
            let excess = held.excess(&wire::Limits::HOST);
            assert_eq!(excess, None, "held past a bound: {held:?}");
        }
    }

    /// A guest that does nothing more, but read, costs nothing more.
    async fn until_rest(
        &self,
        end: &wire::End,
        guest: &mut Guest<'_>,
        polls: &Cell<u64>,
        moves: u64,
    ) {
        let before = Instant::now();
        let mut rested = 0;
        let mut turns = 0;
        while rested < 16 {
            let polled = polls.get();
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            read(end, guest);
            rested = match polls.get() == polled {
                true => rested + 1,
                false => 0,
            };
            turns += 1;
            if turns > TURNS_TO_REST {
                // What the log or a clock is waited for is told of in between, and not on end.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(before.elapsed() < PATIENCE, "no rest after {turns} turns");
        }
        let most = POLLS_PER_MOVE_MAX * (moves + u64::from(turns) + 16);
        assert!(
            polls.get() < most,
            "{} polls for {moves} moves",
            polls.get()
        );
    }

    /// Waits for what it set going: without it, that ends.
    fn settle(&self) {
        let waiting = async {
            let began = Instant::now();
            while self.control.is_busy() {
                assert!(began.elapsed() < PATIENCE, "the host is busy without end");
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        let waiting = pin!(waiting);
        self.vat.block_on(waiting);
    }

    /// What came onto the record is what the guest's grants allow. Answers how many entries that is.
    fn check_record(&self, report: &mut Report) -> isize {
        let mut entries = 0;
        loop {
            let settled = match self.news.borrow_mut().try_recv() {
                Ok(settled) => settled,
                Err(broadcast::error::TryRecvError::Lagged(_)) => continue,
                Err(_) => return entries,
            };
            entries += 1;
            let sealed = settled.sealed.as_ref().expect("a host appends entries");
            let entry = sealed.entry();
            let is_square = |object: &Object| match object {
                Object::Channel(name) => matches!(name.as_str(), "square" | "notices"),
                _ => false,
            };
            match &entry.body {
                Body::Turn(turn) => {
                    assert_eq!(entry.author.as_ref(), Some(&self.persona.name));
                    let silent = turn.messages.is_empty();
                    assert!(silent || turn.channel.as_str() == "square", "{turn:?}");
                    let terms = square_terms();
                    for (message, verdict) in turn.messages.iter().zip(&settled.judged.messages) {
                        if !matches!(verdict, MessageVerdict::Counts(_)) {
                            continue;
                        }
                        report.said += 1;
                        let within = terms.acts.has(message.act)
                            && message.hops <= terms.hops
                            && message.payload.len() <= terms.bytes_max as usize;
                        assert!(within, "the terms don't allow {message:?}");
                    }
                }
                Body::Grant(grant) => {
                    assert!(is_square(&grant.object), "{grant:?}");
                    assert_eq!(grant.persona, self.persona);
                    assert!(grant.parent.is_some(), "it narrows one that it has");
                }
                Body::Lapse(lapse) => assert_eq!(lapse.channel.as_str(), "square"),
                Body::Revoke(_) => {}
                body => panic!("no guest can put this on the record: {body:?}"),
            }
        }
    }
}

fn read(end: &wire::End, guest: &mut Guest<'_>) -> usize {
    let batch = end.take_batch();
    for frame in &batch {
        assert!(guest.learn(frame), "the host's frames can be read");
    }
    batch.len()
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            self.pool.block_on(host.close());
        }
    }
}
