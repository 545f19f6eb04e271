//! Where a [hostile peer](super::hostile::peer) meets a host, and what must hold whatever it does.
//!
//! In: bytes that a peer goes by. Out: a [`Report`], or a panic that says what did not hold.
//! Promise: the host's side is real, from the bytes of a stream to a log on disk: a peer's vat, its door, the terminal and the control lane; or,
//! where the host uses what the peer lends, the link, the outbox, checkpoints and copies. It is checked that nothing panics on any thread;
//! that what the peer makes the host hold stays within what its connections bear, and is given back with them; that nothing stands on
//! the record that its grants don't allow, and no copy has what is not proved; and that an honest peer is served all the while.
//! Failure: none is caught.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use agora_capnp::channel_capnp::channel;
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{link, peer_channel};
use agora_dial::{Dialer, Lane, Options, PeerId, Standing};
use agora_guest::wire::{BATCH_BYTES_MAX, FRAME_BYTES_MAX, Limits};
use agora_guest::{Channel, Draft, Graft};
use agora_realm::{
    Act, Body, ChannelName, KeySubject, MessageVerdict, Object, PersonaName, Rights, Terms,
};
use capnp::capability::FromClientHook;
use tokio::sync::{broadcast, mpsc};
use tokio::task::LocalSet;

use super::hostile::peer::{Role, Who, key};
use super::hostile::{Guest, Move};
use super::pipe::{Pipe, pipe};
use super::{Plan, Puppet, all_of, under};
use crate::boot::host::Host;
use crate::delivery::record::Settled;
use crate::door::control::Control;
use crate::limits;
use crate::peer::link::borrow_over;
use crate::peer::mirror::examine;
use crate::peer::past::Past;
use crate::peer::spec::{PeerSpec, Peering};
use crate::peer::thread::{Ctx, Order, Started};
use crate::peer::vat::Vat;

/// Peers between two bumps, which keep what a realm remembers of an epoch small.
const PEERS_PER_EPOCH: u64 = 256;
/// Peers between two honest ones that come anew.
const HONEST_EVERY: u64 = 16;
/// Known peers that mean harm. Each has an allowance of its own for what it may have written.
const HOSTILE: [&str; 4] = ["mallory", "trudy", "eve", "oscar"];
/// The seeds of their ids begin here.
const HOSTILE_SEED: u8 = 10;
/// Of the peer that the host borrows from.
const LENDER_SEED: u8 = 20;
/// Of the peer that is known by its key alone.
const KEYED_SEED: u8 = 30;
/// Of the one that means well.
const HONEST_SEED: u8 = 40;
/// What one peer may make a host hold, by the bounds of its connections.
const HELD_MAX: usize =
    2 * wire_holds(&limits::PEER_WIRE) + 2 * wire_holds(&limits::PEER_CONTROL_WIRE);
/// Memory that may stay behind a peer, in bytes, since tables keep their size; and for each entry that it put on the record.
const LEFT_MAX: isize = 2 << 20;
const LEFT_PER_ENTRY_MAX: isize = 16 << 10;
/// Peers after whom it is looked at what stays behind them all; and the most that may, in bytes, for each.
const LEFT_OVER: u64 = 64;
const LEFT_EACH_MAX: isize = 8 << 10;
/// How long anything may take that another thread has a part in.
const PATIENCE: Duration = Duration::from_secs(60);

/// As in `tests/peer_door`: what waits, with a frame and a batch on their way; calls that are kept; a little for each entry of the tables.
const fn wire_holds(wire: &Limits) -> usize {
    let entries = wire.questions_max + wire.exports_max + wire.asked_max;
    wire.queue_bytes_max
        + limits::PEER_BYTES_AHEAD_MAX
        + 2 * FRAME_BYTES_MAX
        + BATCH_BYTES_MAX
        + wire.unanswered_bytes_max
        + (entries << 10)
        + 64 * wire.cancelled_max
}

/// What came of one peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Connections that it had.
    pub connections: usize,
    /// Frames it sent.
    pub sent: usize,
    /// Frames it was sent.
    pub received: usize,
    /// Capabilities it got.
    pub capabilities: usize,
    /// Messages of its that count.
    pub said: usize,
    /// Entries that it put on the record.
    pub entries: usize,
    /// Connections of its that the host ended.
    pub ended: usize,
    /// The host used what it lent.
    pub lent: bool,
    /// The host had a graft of it.
    pub linked: bool,
    /// It logged in.
    pub logged_in: bool,
}

/// Counts the panics of all threads.
fn panics() -> u64 {
    static HOOK: Once = Once::new();
    static PANICS: AtomicU64 = AtomicU64::new(0);
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

fn id(seed: u64) -> PeerId {
    let mut bytes = [HONEST_SEED; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    Options::new(bytes, |_: &PeerId| Standing::Refused).peer_id()
}

/// What a hostile peer may say on the square.
fn square_terms() -> Terms {
    let acts = [Act::Inform, Act::Request, Act::Propose, Act::Agree];
    Terms {
        acts: acts.into_iter().collect(),
        hops: 2,
        bytes_max: 4096,
        ..Terms::ALL
    }
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("it is a name")
}

fn peering() -> Peering {
    let reads = Terms {
        rights: Rights::READ,
        ..Terms::ALL
    };
    let mut peers = BTreeMap::new();
    for (name, seed) in HOSTILE.iter().zip(HOSTILE_SEED..) {
        let spec = PeerSpec {
            id: Some(id(seed.into())),
            grants: vec![under("square", square_terms()), under("notices", reads)],
            may_mirror: true,
            ..PeerSpec::default()
        };
        peers.insert((*name).to_owned(), spec);
    }
    let lender = PeerSpec {
        id: Some(id(LENDER_SEED.into())),
        mirror: [channel("square"), channel("news")].into(),
        witness: true,
        ..PeerSpec::default()
    };
    let keyed = PeerSpec {
        key: Some(key(KEYED_SEED).public()),
        grants: vec![under("square", square_terms())],
        ..PeerSpec::default()
    };
    let honest = PeerSpec {
        id: Some(id(HONEST_SEED.into())),
        grants: vec![all_of("square")],
        ..PeerSpec::default()
    };
    peers.insert("lender".into(), lender);
    peers.insert("keyed".into(), keyed);
    peers.insert("honest".into(), honest);
    Peering {
        peers,
        // What would be its thread runs here.
        offline: true,
        ..Peering::default()
    }
}

/// One connection of the peer's.
struct Villain<'a> {
    guest: Guest<'a>,
    pipe: Pipe,
    /// What came and is no whole frame.
    bytes: Vec<u8>,
    /// How many moves it has made.
    moves: u64,
    is_over: bool,
}

impl<'a> Villain<'a> {
    fn new(bytes: &'a [u8], role: Role, pipe: Pipe) -> Self {
        Self {
            guest: Guest::peer(bytes, role),
            pipe,
            bytes: Vec::new(),
            moves: 0,
            is_over: false,
        }
    }

    /// Learns from the frames that have come.
    fn read(&mut self) -> usize {
        self.bytes.extend(self.pipe.take());
        let mut rest = &self.bytes[..];
        let mut frames = 0;
        while let Some(len) = frame_len(rest).filter(|len| *len <= rest.len()) {
            let (frame, after) = rest.split_at(len);
            assert!(self.guest.learn(frame), "the host's frames can be read");
            (rest, frames) = (after, frames + 1);
        }
        self.bytes = rest.to_vec();
        frames
    }
}

/// How long the frame is that begins here, if that can be told yet.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| {
        let word = bytes.get(4 * at..4 * at + 4)?;
        Some(u32::from_le_bytes(word.try_into().ok()?) as usize)
    };
    let segments = word(0)? + 1;
    let header = (4 * (segments + 1)).next_multiple_of(8);
    let mut body = 0;
    for i in 1..=segments {
        body += word(i)? * 8;
    }
    Some(header + body)
}

/// An honest peer's hold on the host.
struct Honest {
    link: link::Client,
    door: membrane::Client,
    graft: Graft,
    _vats: [Vat; 2],
}

/// A host, and a border for peers.
pub struct Border {
    /// Runs the host, as its pool of threads does.
    pool: tokio::runtime::Runtime,
    /// Runs what would be the peers' thread: this one.
    vat: tokio::runtime::Runtime,
    local: LocalSet,
    ctx: Rc<Ctx>,
    host: Option<Host>,
    control: Arc<Control>,
    data: PathBuf,
    /// The agent that uses what is lent.
    keeper: Puppet,
    who: Rc<Who>,
    lender: Rc<Who>,
    keyed: Rc<Who>,
    news: RefCell<broadcast::Receiver<Arc<Settled>>>,
    /// Who has logged in. What that writes may come to the record after who logged in is gone.
    let_in: RefCell<HashSet<Vec<u8>>>,
    honest: RefCell<Option<Honest>>,
    /// Live bytes of this process.
    live: fn() -> isize,
    panics: u64,
    met: Cell<u64>,
    /// Why links to the lender ended, and how often.
    ends: RefCell<BTreeMap<String, u64>>,
    /// How many have been met since memory was looked at, and how much of it was live then.
    since: Cell<(u64, isize)>,
    /// Entries since then, anybody's.
    entries: Cell<isize>,
}

impl Border {
    /// A host on a data folder. `live` tells the bytes that this process allocated and has not freed; nothing else may run in it meanwhile.
    pub fn open(data: &Path, live: fn() -> isize) -> Self {
        let panics = panics();
        let pool = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a process can have a runtime");
        let vat = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a thread can have a runtime");
        let keeper = Puppet::new();
        let grants = ["square", "vault", "lender/square", "lender/news"].map(all_of);
        let plan = Plan::new()
            .channel("square")
            .channel("notices")
            .channel("vault")
            .agent("keeper", keeper.native(), grants.to_vec())
            .peering(peering());
        let host = pool
            .block_on(plan.open(data))
            .expect("a new folder takes a host");
        let control = host.control.clone();
        let dialer = async {
            keeper.until_life(1).await;
            let options = Options::new(*control.peer_seed(), |_: &PeerId| Standing::Refused);
            Dialer::start(options).await
        };
        let (dialer, _) = pool.block_on(dialer).expect("it listens nowhere");
        let (orders, mut ordered) = mpsc::channel(limits::PEER_ORDERS_MAX);
        let peers = control.peers().clone();
        let ctx = Ctx::new(control.clone(), peers.clone(), dialer.clone());
        let local = LocalSet::new();
        let obedient = ctx.clone();
        local.spawn_local(async move {
            while let Some(order) = ordered.recv().await {
                obedient.obey(order);
            }
        });
        let host_id = dialer.peer_id();
        peers.attend(Started { dialer, orders });
        let border = Self {
            pool,
            vat,
            local,
            ctx,
            host: Some(host),
            data: data.to_owned(),
            keeper,
            who: Who::new(HOSTILE_SEED, id(HOSTILE_SEED.into()), host_id),
            lender: Who::new(LENDER_SEED, id(LENDER_SEED.into()), host_id),
            keyed: Who::new(KEYED_SEED, id(KEYED_SEED.into()), host_id),
            news: RefCell::new(control.record().news()),
            control,
            let_in: RefCell::default(),
            honest: RefCell::default(),
            live,
            panics,
            met: Cell::new(0),
            ends: RefCell::default(),
            since: Cell::default(),
            entries: Cell::default(),
        };
        border.local.block_on(&border.vat, border.come_anew());
        border.since.set((0, live()));
        border
    }

    /// Lets a peer in that goes by these bytes, or uses what it lends.
    ///
    /// # Panics
    /// Something did not hold.
    pub fn meet(&self, bytes: &[u8]) -> Report {
        let met = self.met.get() + 1;
        self.met.set(met);
        if met.is_multiple_of(PEERS_PER_EPOCH) {
            self.bump();
        }
        let before = (self.live)();
        let mut report = self.local.block_on(&self.vat, self.attack(bytes, before));
        self.local.block_on(&self.vat, self.settle());
        self.check_record(&mut report);
        self.check_copies();
        let left = (self.live)() - before;
        let most = LEFT_MAX + LEFT_PER_ENTRY_MAX * report.entries as isize;
        assert!(left < most, "{left} bytes stay behind {report:?}");
        self.local.block_on(&self.vat, self.honest(met));
        assert_eq!(panics(), self.panics, "a thread of the host's panicked");
        let (peers, base) = self.since.get();
        self.since.set((peers + 1, base));
        if peers + 1 == LEFT_OVER {
            let most = LEFT_MAX
                + LEFT_EACH_MAX * LEFT_OVER as isize
                + LEFT_PER_ENTRY_MAX * self.entries.take();
            // A connection that ended may take a moment to be let go of.
            let is_back = || (self.live)() - base < most;
            let waiting = self.until("what peers took is given back", is_back);
            self.local.block_on(&self.vat, waiting);
            self.since.set((0, (self.live)()));
        }
        report
    }

    /// Why links to the one that lends ended, and how often.
    pub fn ends(&self) -> BTreeMap<String, u64> {
        self.ends.borrow().clone()
    }

    fn bump(&self) {
        let control = self.control.clone();
        let bumped = async move { control.bump("", false, "the test bed").await };
        let bumped = self.pool.spawn(bumped);
        let (decided, _) = self.local.block_on(&self.vat, bumped).expect("a bump ends");
        assert_eq!(decided.pending, None, "the log takes a fence");
        // What a bump says is not what a peer says.
        self.local.block_on(&self.vat, self.settle());
        while !matches!(
            self.news.borrow_mut().try_recv(),
            Err(broadcast::error::TryRecvError::Empty)
        ) {}
        self.local.block_on(&self.vat, self.come_anew());
    }

    // -- The attack

    async fn attack(&self, bytes: &[u8], before: isize) -> Report {
        let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let at = usize::from(first / 16) % HOSTILE.len();
        let mut report = Report::default();
        match first % 16 {
            0..=4 => {
                self.at_the_door(at, &[Lane::Vat], rest, before, &mut report)
                    .await
            }
            5 => {
                self.at_the_door(at, &[Lane::Control], rest, before, &mut report)
                    .await
            }
            6 | 7 => {
                let lanes = [Lane::Vat, Lane::Control];
                self.at_the_door(at, &lanes, rest, before, &mut report)
                    .await;
            }
            8 => {
                // The second takes the first one's place.
                let lanes = [Lane::Vat, Lane::Vat];
                self.at_the_door(at, &lanes, rest, before, &mut report)
                    .await;
            }
            9 | 10 => self.at_the_terminal(at, rest, before, &mut report).await,
            _ => self.lending(rest, before, &mut report).await,
        }
        report
    }

    async fn at_the_door(
        &self,
        at: usize,
        lanes: &[Lane],
        bytes: &[u8],
        before: isize,
        report: &mut Report,
    ) {
        let own = id(u64::from(HOSTILE_SEED) + at as u64);
        let who = self.who.known_as(own);
        let share = bytes.len().div_ceil(lanes.len()).max(1);
        let mut shares = bytes.chunks(share);
        let mut villains = Vec::new();
        for lane in lanes {
            let (near, far) = pipe();
            self.ctx.let_in(own, *lane, near);
            let role = match lane {
                Lane::Control => Role::Control(who.clone()),
                _ => Role::Vat(who.clone()),
            };
            villains.push(Villain::new(shares.next().unwrap_or_default(), role, far));
        }
        let fall = || {
            let (done, _) = tokio::sync::oneshot::channel();
            self.ctx.obey(Order::Fell {
                only: PersonaName::peer(HOSTILE[at]).ok(),
                reason: "revoked, says the test bed".into(),
                done,
            });
        };
        self.fight(&mut villains, fall, before, report).await;
        drop(villains);
        self.until("its door is gone", || !self.ctx.has_door(HOSTILE[at]))
            .await;
    }

    async fn at_the_terminal(&self, at: usize, bytes: &[u8], before: isize, report: &mut Report) {
        // Nobody is remembered by it for long.
        let own = id(1000 + self.met.get());
        let who = match at {
            0 => self.who.known_as(own),
            _ => self.keyed.known_as(own),
        };
        let (near, far) = pipe();
        self.ctx.let_in(own, Lane::Login, near);
        let mut villains = vec![Villain::new(bytes, Role::Stranger(who), far)];
        self.fight(&mut villains, || {}, before, report).await;
        drop(villains);
        let over = || self.ctx.logins.is_idle();
        self.until("its login is over", over).await;
        report.logged_in = self.control.peers().with_id(&own).is_some();
        assert!(at != 0 || !report.logged_in, "nobody has its key");
        if report.logged_in {
            self.let_in.borrow_mut().insert(own.to_bytes());
        }
    }

    async fn lending(&self, bytes: &[u8], before: isize, report: &mut Report) {
        report.lent = true;
        let peer = self.control.peers().named("lender");
        let peer = peer.expect("the plan has it").clone();
        let (opened, mut opens) = mpsc::unbounded_channel();
        let open = async move |lane| {
            let (near, far) = pipe();
            opened.send((lane, far)).map_err(|_| "it is over")?;
            Ok::<_, &str>(near)
        };
        let link = borrow_over(self.ctx.clone(), peer.clone(), id(LENDER_SEED.into()), open);
        let link = tokio::task::spawn_local(link);
        self.use_it();
        let share = bytes.len().div_ceil(3).max(1);
        let (control, vat) = bytes.split_at(share.min(bytes.len()));
        let mut villains = Vec::new();
        for turn in 0..64 {
            while let Ok((lane, far)) = opens.try_recv() {
                let (bytes, role) = match lane {
                    Lane::Control => (control, Role::LenderControl(self.lender.clone())),
                    _ => (vat, Role::LenderVat(self.lender.clone())),
                };
                villains.push(Villain::new(bytes, role, far));
            }
            self.rounds(&mut villains, &|| {}, before, report, Some(24))
                .await;
            let graft = peer.link.borrow().clone();
            report.linked |= matches!(graft, crate::peer::borrowed::LinkState::Up { .. });
            let is_over = villains.iter().all(|villain| villain.is_over);
            if turn > 2 && is_over && opens.is_empty() {
                break;
            }
        }
        self.rest(&mut villains, report).await;
        drop(villains);
        drop(opens);
        match tokio::time::timeout(PATIENCE, link).await {
            Ok(Ok(why)) => *self.ends.borrow_mut().entry(why).or_default() += 1,
            Ok(Err(error)) => panic!("the link: {error}"),
            Err(_) => panic!("the link goes on without a connection"),
        }
    }

    /// An agent reads and speaks what is lent, and waits for nothing.
    fn use_it(&self) {
        let using = self.keeper.run(|stage| async move {
            let Ok(graft) = Graft::arrive(&stage.door).await else {
                return;
            };
            for name in ["lender/square", "lender/news"] {
                let Ok(channel) = graft.channel(name) else {
                    continue;
                };
                let heard = channel.subscribe();
                let said = channel.speak(vec![Draft::inform("one"), Draft::inform("two")]);
                let read = channel.history(1, 8);
                let info = channel.info();
                let using = futures::future::join4(heard, said, read, info);
                let all = async {
                    let (heard, ..) = using.await;
                    if let Ok(mut heard) = heard {
                        while let Ok(Some(message)) = heard.next().await {
                            let _ = channel.pass(&message).await;
                        }
                    }
                };
                // Both at once, and no longer than the link.
                let _ = tokio::time::timeout(Duration::from_millis(40), all).await;
            }
        });
        drop(using);
    }

    async fn fight(
        &self,
        villains: &mut [Villain<'_>],
        fall: impl Fn(),
        before: isize,
        report: &mut Report,
    ) {
        self.rounds(villains, &fall, before, report, None).await;
        self.rest(villains, report).await;
    }

    /// Lets each make a move, again and again, until all have spent their bytes or are over.
    async fn rounds(
        &self,
        villains: &mut [Villain<'_>],
        fall: &impl Fn(),
        before: isize,
        report: &mut Report,
        rounds: Option<u32>,
    ) {
        let mut round = 0;
        loop {
            let mut moved = false;
            for villain in villains.iter_mut().filter(|villain| !villain.is_over) {
                moved |= self.step(villain, fall, report).await;
            }
            let held = (self.live)() - before;
            assert!(
                held < HELD_MAX as isize,
                "{held} bytes are held for one peer"
            );
            round += 1;
            if !moved || rounds.is_some_and(|most| round >= most) {
                // What it opens next is not to be missed.
                yields(8).await;
                return;
            }
        }
    }

    async fn step(&self, villain: &mut Villain<'_>, fall: &impl Fn(), report: &mut Report) -> bool {
        let Some(next) = villain.guest.next_move() else {
            // Its bytes are spent.
            report.received += villain.read();
            villain.is_over = true;
            return false;
        };
        villain.moves += 1;
        match next {
            Move::Send(bytes) => {
                if !villain.pipe.push(&bytes) {
                    villain.is_over = true;
                    return false;
                }
                report.sent += 1;
            }
            Move::Yield(turns) => yields(turns).await,
            Move::Read => report.received += villain.read(),
            Move::Wait => {
                let patience = Duration::from_millis(3);
                let _ = tokio::time::timeout(patience, villain.pipe.until_some()).await;
                report.received += villain.read();
            }
            Move::Fall => fall(),
        }
        // The opening is answered before anything else is tried.
        if villain.moves == 2 {
            yields(64).await;
            report.received += villain.read();
        }
        if villain.guest.is_asked() {
            yields(6).await;
            report.received += villain.read();
        }
        true
    }

    /// What was sent is taken, and what it led to is read; then there is no more of them.
    async fn rest(&self, villains: &mut [Villain<'_>], report: &mut Report) {
        for villain in villains.iter_mut() {
            let mut quiet = 0;
            for _ in 0..256 {
                yields(4).await;
                let frames = villain.read();
                report.received += frames;
                quiet = match frames {
                    0 => quiet + 1,
                    _ => 0,
                };
                let is_taken = villain.pipe.untaken() == 0 || villain.pipe.is_cut();
                if is_taken && quiet > 8 {
                    break;
                }
            }
            report.connections += 1;
            report.capabilities += villain.guest.exports_seen();
            report.ended += usize::from(villain.pipe.is_cut());
        }
    }

    // -- What must hold

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        let mut turns = 0;
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
            turns += 1;
            match turns < 256 {
                true => yields(1).await,
                false => tokio::time::sleep(Duration::from_micros(200)).await,
            }
        }
    }

    /// Waits for what it set going: without it, that ends.
    async fn settle(&self) {
        self.until("the host is busy without it", || !self.control.is_busy())
            .await;
    }

    /// What came onto the record is what grants allow, the peer's or others'.
    fn check_record(&self, report: &mut Report) {
        loop {
            let settled = match self.news.borrow_mut().try_recv() {
                Ok(settled) => settled,
                Err(broadcast::error::TryRecvError::Lagged(_)) => continue,
                Err(_) => return,
            };
            self.entries.set(self.entries.get() + 1);
            let sealed = settled.sealed.as_ref().expect("a host appends entries");
            let entry = sealed.entry();
            match &entry.body {
                Body::Turn(turn) => {
                    let author = entry.author.clone().expect("somebody speaks");
                    if is_own(&author) {
                        continue;
                    }
                    assert!(is_hostile(&author), "{author} says {turn:?}");
                    report.entries += 1;
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
                    report.entries += 1;
                    assert!(is_hostile(&grant.persona.name), "{grant:?}");
                    let name = match &grant.object {
                        Object::Channel(name) => name.as_str(),
                        object => panic!("no peer has {object:?}"),
                    };
                    // What the manifest proposes for one that has logged in.
                    let came = !self.let_in.borrow().is_empty();
                    let proposed = came && grant.persona.name.as_str() == "peer:keyed";
                    assert!(proposed || grant.parent.is_some(), "{grant:?}");
                    assert!(matches!(name, "square" | "notices"), "{grant:?}");
                }
                Body::Key(key) => {
                    report.entries += 1;
                    let KeySubject::Persona(name) = &key.subject else {
                        panic!("no peer can put this on the record: {key:?}");
                    };
                    let origin = key.origin.as_ref().map(|origin| &origin.peer);
                    let came = origin.is_some_and(|id| self.let_in.borrow().contains(id));
                    let came = came && name.as_str() == "peer:keyed";
                    assert!(came || name.is_guest() && is_hostile(name), "{key:?}");
                    assert!(key.origin.is_some() && !key.started, "{key:?}");
                }
                Body::Lapse(lapse) => assert_eq!(lapse.channel.as_str(), "square"),
                Body::Revoke(_) => report.entries += 1,
                body => panic!("no peer can put this on the record: {body:?}"),
            }
        }
    }

    /// What is held of the lender's log is its own, and copies have nothing that is not proved.
    fn check_copies(&self) {
        let past = Past::of(&self.data, "lender");
        let keys = past.keys().expect("what is held can be read");
        assert!(keys.iter().all(|known| *known == key(LENDER_SEED).public()));
        let held = past.checkpoint().expect("what is held can be read");
        assert!(held.is_none_or(|held| keys.iter().any(|key| held.is_signed_by(key))));
        for name in ["square", "news"] {
            let copied = examine(past.folder(), &channel(name), &keys, |_| {});
            let copied = copied.expect("a copy can be read");
            assert_eq!(copied.wrong, Vec::<String>::new());
        }
    }

    // -- An honest peer

    async fn come_anew(&self) {
        let own = id(HONEST_SEED.into());
        let (near, far) = pipe();
        self.ctx.let_in(own, Lane::Control, near);
        let (link, control): (link::Client, _) = Vat::connect(far, limits::PEER_CONTROL_WIRE);
        let (near, far) = pipe();
        self.ctx.let_in(own, Lane::Vat, near);
        let (door, vat): (membrane::Client, _) = Vat::connect(far, limits::LENDER_WIRE);
        let graft = within("an honest peer's graft", Graft::arrive(&door)).await;
        let graft = graft.expect("an honest peer is let in");
        *self.honest.borrow_mut() = Some(Honest {
            link,
            door,
            graft,
            _vats: [control, vat],
        });
    }

    /// It is answered, and now and then comes anew, speaks, and hears it.
    async fn honest(&self, met: u64) {
        if met.is_multiple_of(HONEST_EVERY) {
            self.come_anew().await;
        }
        let (link, square) = {
            let honest = self.honest.borrow();
            let honest = honest.as_ref().expect("it came at the start");
            let square: peer_channel::Client =
                honest.graft.capability("square").expect("it is granted");
            let _stays = &honest.door;
            (honest.link.clone(), square)
        };
        let ping = link.ping_request().send().promise;
        let ping = within("an honest peer's ping", ping).await;
        ping.expect("an honest peer is answered");
        let plain: channel::Client = FromClientHook::new(square.into_client_hook());
        let square = Channel::from_client("square", plain);
        let info = within("an honest peer's call", square.info()).await;
        let info = info.expect("an honest peer is answered");
        if met.is_multiple_of(HONEST_EVERY) {
            let said = square.say(Draft::inform("honestly"));
            let said = within("an honest peer's message", said).await;
            said.expect("it is let speak").expect("it counts");
            let read = square.history(info.latest + 1, 64);
            let (heard, _) = within("an honest peer's history", read)
                .await
                .expect("it is let read");
            let own = heard.iter().find(|heard| heard.payload == b"honestly");
            assert!(own.is_some(), "what it said is there: {heard:?}");
            self.settle().await;
            // Others' entries than a hostile peer's are looked at, too.
            self.check_record(&mut Report::default());
        }
    }
}

/// The host's own agent, or the peer that means well.
fn is_own(author: &PersonaName) -> bool {
    matches!(author.as_str(), "keeper" | "peer:honest")
}

/// A peer that means harm, or a guest of its.
fn is_hostile(name: &PersonaName) -> bool {
    let peer = name.brought_by().unwrap_or_else(|| name.clone());
    let named = peer.as_str().strip_prefix("peer:");
    named.is_some_and(|name| HOSTILE.contains(&name) || name == "keyed")
}

async fn yields(turns: u32) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

async fn within<R>(what: &str, work: impl Future<Output = R>) -> R {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

impl Drop for Border {
    fn drop(&mut self) {
        self.honest.take();
        if let Some(host) = self.host.take() {
            let closed = self.pool.spawn(host.close());
            let _ = self.local.block_on(&self.vat, closed);
        }
    }
}
