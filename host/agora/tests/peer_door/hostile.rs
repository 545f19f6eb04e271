//! A peer that was let in and means harm, in a process of its own: what it costs the host, and another peer.
//!
//! Memory is that of the host's process, the honest peer's side included, while the attack goes on. Round trips are the honest peer's calls
//! of `info`, before, during and after.

use std::cell::Cell;
use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant};

use agora::limits;
use agora::peer::vat::Vat;
use agora::testbed::{Plan, Puppet, all_of};
use agora_capnp::channel_capnp::channel;
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::peer_capnp::peer_channel;
use agora_dial::{Lane, Multiaddr, PeerId, Stream, limits as dial};
use agora_guest::wire::{self, BATCH_BYTES_MAX, FRAME_BYTES_MAX, Limits};
use agora_guest::{Channel, Draft, Terms};
use agora_realm::SigningKey;
use futures::future::join_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::bed::{Bed, Caller, Collected, PATIENCE, known, on_bed, peering, speaker, within};
use crate::granted::{greet, ping};

pub(crate) const ALPHA: u8 = 1;
pub(crate) const MALLORY: u8 = 9;
/// Tells the other process what it is for: the attack, the host's libp2p id, and its address.
const ORDERS: &str = "AGORA_HOSTILE_PEER";

/// A command that starts the other process, where its lowest priority isn't enough, as `chrt --rr 1`.
const BY: &str = "AGORA_ATTACKER_BY";

/// What is measured is of the whole process, so a test that measures runs alone, and the others beside each other.
pub(crate) fn alone() -> &'static RwLock<()> {
    static ALONE: OnceLock<RwLock<()>> = OnceLock::new();
    ALONE.get_or_init(RwLock::default)
}

/// What one peer may make a host hold, by the bounds of its connections: unread bytes of either lane, and what the wires on them bear.
const QUOTA: usize = 2 * dial::RECEIVE_WINDOW_BYTES
    + wire_holds(&limits::PEER_WIRE)
    + wire_holds(&limits::PEER_CONTROL_WIRE);

/// What waits to go and to be taken, with a frame and a batch on their way; calls that are kept; a little for each entry of
/// its tables.
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

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.unwrap().parse::<usize>().unwrap() << 10
}

/// The round trip that 99 of 100 are within.
fn p99(mut trips: Vec<Duration>) -> Duration {
    trips.sort_unstable();
    trips[(trips.len() * 99 / 100).min(trips.len() - 1)]
}

pub(crate) async fn round_trip(channel: &Channel) -> Duration {
    let began = Instant::now();
    within("an honest peer's call", channel.info())
        .await
        .unwrap();
    began.elapsed()
}

async fn round_trips(channel: &Channel) -> Duration {
    let mut trips = Vec::new();
    for _ in 0..400 {
        trips.push(round_trip(channel).await);
    }
    p99(trips)
}

pub(crate) struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Attacker {
    /// Goes on for so long, and at least once.
    pub(crate) fn start(attack: &str, bed: &Bed, at_least: Duration) -> Self {
        let (host, address, ms) = (bed.dialer().peer_id(), bed.address(), at_least.as_millis());
        let orders = format!("{attack} {host} {address} {ms}");
        let by = std::env::var(BY).unwrap_or_default();
        let exe = std::env::current_exe().unwrap();
        let mut words = by
            .split_whitespace()
            .map(OsString::from)
            .chain([exe.into()]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(["--exact", "hostile::the_other_process", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ORDERS, orders)
            .stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn is_done(&mut self) -> bool {
        match self.0.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "the attack went otherwise: {status}");
                true
            }
            None => false,
        }
    }
}

/// Longer than any attack takes.
const ATTACK_PATIENCE: Duration = Duration::from_secs(240);
/// What a round trip may take besides: this build is not optimized, the attacker takes its share of the same cores, and whoever else is on
/// this machine the rest. What is left of it in a release, beside what the attacker's share of the cores costs, is in `fairness`.
const SLACK: Duration = Duration::from_secs(1);

/// What came of an attack.
struct Came {
    /// Entries that the log got meanwhile.
    entries: u64,
    took: Duration,
}

fn under_attack(attack: &str, check: impl AsyncFnOnce(&Bed, Came)) {
    let _alone = alone()
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let keeper = Puppet::new();
    let peers = [
        ("alpha", known(ALPHA, vec![all_of("release")])),
        ("mallory", known(MALLORY, vec![all_of("release")])),
    ];
    let plan = Plan::new()
        .channel("release")
        .agent("keeper", keeper.native(), vec![all_of("release")])
        .peering(peering(peers));
    on_bed(plan, async |bed: &Bed| {
        keeper.until_life(1).await;
        within("a graft", keeper.graft()).await.unwrap().unwrap();
        for _ in 0..64 {
            let said = keeper.speak("release", vec![Draft::inform(vec![b'x'; 3800])]);
            within("speech", said).await.unwrap().unwrap();
        }
        let caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        round_trips(&synth).await;
        let before = round_trips(&synth).await;
        let (memory, entries, began) = (resident(), bed.entries(), Instant::now());
        let mut attacker = Attacker::start(attack, bed, Duration::ZERO);
        let (mut during, mut most) = (Vec::new(), memory);
        while !attacker.is_done() {
            assert!(began.elapsed() < ATTACK_PATIENCE, "{attack} does not end");
            during.push(round_trip(&synth).await);
            most = most.max(resident());
            // The attacker's share of two cores is not what is measured.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let took = began.elapsed();
        let entries = bed.entries() - entries;
        let (during, after) = (p99(during), round_trips(&synth).await);
        let grew = most - memory;
        println!(
            "{attack}: {took:.1?}; p99 {before:.2?} before, {during:.2?} during, {after:.2?} after; {:.1} MiB more at most, of {:.1}; {entries} entries",
            grew as f64 / f64::from(1 << 20),
            QUOTA as f64 / f64::from(1 << 20),
        );
        assert!(grew <= QUOTA + QUOTA / 10, "{grew} bytes, of {QUOTA}");
        assert!(during <= 2 * before + SLACK, "{before:?}, then {during:?}");
        assert!(after <= 2 * before + SLACK, "{before:?}, then {after:?}");
        // It goes on as before, and nothing was granted to anybody.
        let said = within("speech", synth.say(Draft::inform("as ever"))).await;
        said.unwrap().unwrap();
        check(bed, Came { entries, took }).await;
    });
}

#[test]
fn questions_without_end() {
    under_attack("questions", async |_: &Bed, came: Came| {
        assert!(came.entries < 100, "{}", came.entries);
    });
}

#[test]
fn answers_that_are_never_finished_with() {
    under_attack("unfinished", async |_: &Bed, _| {});
}

#[test]
fn answers_that_are_not_read() {
    under_attack("unread", async |_: &Bed, _| {});
}

#[test]
fn large_messages_malformed_ones_and_such_that_stop_in_the_middle() {
    under_attack("frames", async |_: &Bed, came: Came| {
        assert!(came.entries < 100, "{}", came.entries);
    });
}

#[test]
fn personas_and_grants_without_end() {
    under_attack("introductions", async |bed: &Bed, came: Came| {
        // Some for what alpha says, and each narrowed facet that it lets go of is taken off the books.
        let seconds = came.took.as_secs() + 1;
        let drawn =
            u64::from(limits::PEER_ENTRIES_BURST) + seconds * u64::from(limits::PEER_ENTRIES_PER_S);
        assert!(
            came.entries <= 2 * drawn + 100,
            "{} of {drawn}",
            came.entries
        );
        assert!(came.entries >= u64::from(limits::PEER_ENTRIES_BURST));
        let control = bed.control();
        let state = control.record().state();
        let guests = state.personas().filter(|(id, _)| id.name.is_guest());
        assert!(guests.count() as u64 <= drawn);
    });
}

#[test]
fn followings_and_subscriptions_without_end() {
    under_attack("followings", async |_: &Bed, came: Came| {
        assert!(came.entries < 100, "{}", came.entries);
    });
}

#[test]
fn the_control_lane_flooded_and_lied_to() {
    under_attack("control", async |bed: &Bed, came: Came| {
        assert!(came.entries < 100, "{}", came.entries);
        // The one that was right is what is known.
        let key = SigningKey::from_bytes([3; 32]).unwrap();
        assert_eq!(bed.peer("mallory").known().unwrap().key, key.public());
    });
}

#[test]
fn connections_without_end() {
    under_attack("streams", async |_: &Bed, came: Came| {
        assert!(came.entries < 100, "{}", came.entries);
    });
}

// -- The other process

#[test]
#[ignore = "what the others start, as another process"]
fn the_other_process() {
    let orders = std::env::var(ORDERS).expect("it is started by the others");
    let mut orders = orders.split(' ');
    let attack = orders.next().unwrap();
    let host: PeerId = orders.next().unwrap().parse().unwrap();
    let address: Multiaddr = orders.next().unwrap().parse().unwrap();
    let at_least = Duration::from_millis(orders.next().unwrap().parse().unwrap());
    // Its share of the cores is not what is measured.
    rustix::process::setpriority_process(None, 19).unwrap();
    let began = Instant::now();
    // Beside an attack, too: a core that nobody uses goes to sleep, and is slower to answer than a busy one.
    let spinning = std::thread::spawn(move || {
        while began.elapsed() < at_least {
            std::hint::spin_loop();
        }
    });
    if attack == "none" {
        spinning.join().unwrap();
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let caller = Caller::start(MALLORY, host, address).await;
        loop {
            match attack {
                "questions" => questions(&caller).await,
                "unfinished" => unfinished(&caller).await,
                "unread" => unread(&caller, at_least).await,
                "frames" => {
                    large(&caller).await;
                    malformed(&caller).await;
                    dripped(&caller).await;
                }
                "large" => large(&caller).await,
                "malformed" => malformed(&caller).await,
                "dripped" => dripped(&caller).await,
                "introductions" => introductions(&caller).await,
                "followings" => followings(&caller).await,
                "control" => {
                    lies(&caller).await;
                    pings(&caller).await;
                    waits(&caller).await;
                }
                "pings" => pings(&caller).await,
                "waits" => waits(&caller).await,
                "streams" => streams(&caller).await,
                other => panic!("no attack is called '{other}'"),
            }
            if began.elapsed() >= at_least {
                break;
            }
        }
        caller.dialer.shutdown().await;
    });
}

/// What is had of a graft, without anything that is let go of by itself.
struct Had {
    session: session::Client,
    channel: peer_channel::Client,
    vat: Vat,
}

async fn had(caller: &Caller) -> Had {
    loop {
        let (door, vat) = caller.vat().await;
        if let Some((session, channel)) = grafted(&door).await {
            return Had {
                session,
                channel,
                vat,
            };
        }
        // It was told to wait: it opens too fast.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn grafted(door: &membrane::Client) -> Option<(session::Client, peer_channel::Client)> {
    let answer = within("a graft", door.graft_request().send().promise).await;
    let answer = answer.ok()?;
    let graft = answer.get().unwrap();
    let grant = graft.get_grants().unwrap().get(0);
    let channel = grant.get_capability().get_as_capability().unwrap();
    Some((graft.get_session().unwrap(), channel))
}

/// What the connection ended for; it is the host that ends it.
async fn ended(vat: &Vat) -> Rc<str> {
    within("the host's patience", vat.ended()).await
}

async fn questions(caller: &Caller) {
    let (mut asked, mut connections) = (0, 0);
    while asked < 100_000 {
        let had = had(caller).await;
        connections += 1;
        let mut kept = Vec::new();
        for _ in 0..limits::PEER_WIRE.questions_max + 100 {
            kept.push(had.session.ended_request().send().promise);
            asked += 1;
            if asked % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        ended(&had.vat).await;
    }
    println!("  {asked} questions on {connections} connections");
}

async fn unfinished(caller: &Caller) {
    // What holds capabilities is kept until it is finished with.
    for _ in 0..6 {
        let (door, vat) = caller.vat().await;
        let mut kept = Vec::new();
        while let Ok(answer) = within("a graft", door.graft_request().send().promise).await {
            kept.push(answer);
            assert!(
                kept.len() < 2 * limits::PEER_WIRE.questions_max,
                "nobody minds"
            );
        }
        println!(
            "  ended after {} answers: {}",
            kept.len(),
            ended(&vat).await
        );
    }
}

fn as_channel(channel: &peer_channel::Client) -> channel::Client {
    capnp::capability::FromClientHook::new(channel.client.hook.add_ref())
}

async fn read_frame(from: &mut (impl futures::AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 8];
    from.read_exact(&mut frame).await?;
    let word = |frame: &[u8], at: usize| {
        u32::from_le_bytes(frame[at..at + 4].try_into().unwrap()) as usize
    };
    let segments = word(&frame, 0) + 1;
    let header = (4 * (segments + 1)).next_multiple_of(8);
    frame.resize(header, 0);
    from.read_exact(&mut frame[8..]).await?;
    let body: usize = (1..=segments).map(|i| word(&frame, 4 * i) * 8).sum();
    frame.resize(header + body, 0);
    from.read_exact(&mut frame[header..]).await?;
    Ok(frame)
}

/// Carries frames both ways, and no more of the host's once it is deaf.
async fn carry(stream: Stream, far: wire::End, deaf: Rc<Cell<bool>>) {
    let (mut from, mut to) = stream.split();
    let receive = async {
        loop {
            if deaf.get() {
                return std::future::pending().await;
            }
            let Ok(frame) = read_frame(&mut from).await else {
                return;
            };
            if far.send(frame).is_err() {
                return;
            }
        }
    };
    let send = async {
        while let Ok(batch) = far.receive_batch().await {
            for frame in batch {
                if to.write_all(&frame).await.is_err() {
                    return;
                }
            }
            if to.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
}

/// Until the host ends it, or for so long.
async fn unread(caller: &Caller, only: Duration) {
    let stream = caller.open(Lane::Vat).await;
    let (near, far) = wire::pair(Limits::GUEST);
    let mut system = wire::Rpc::new(wire::Network::new(near), None);
    let door: membrane::Client = system.bootstrap();
    let deaf = Rc::new(Cell::new(false));
    let _system = tokio::task::spawn_local(system);
    let mut carrying = tokio::task::spawn_local(carry(stream, far, deaf.clone()));
    let (_, channel) = grafted(&door).await.unwrap();
    deaf.set(true);
    let mut kept = Vec::new();
    let began = Instant::now();
    loop {
        for _ in 0..if kept.len() < 20_000 { 16 } else { 0 } {
            let mut request = as_channel(&channel).history_request();
            request.get().set_from(1);
            request.get().set_count(64);
            kept.push(request.send().promise);
        }
        let ended = tokio::time::timeout(Duration::from_millis(5), &mut carrying).await;
        if ended.is_ok() {
            break;
        }
        if !only.is_zero() && began.elapsed() > only {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "nobody minds");
    }
    assert!(
        began.elapsed() > limits::PEER_STALL_MAX / 2,
        "it is given time"
    );
    println!("  ended after {} questions", kept.len());
}

/// Messages as many as there is room for and more.
async fn large(caller: &Caller) {
    for _ in 0..8 {
        let had = had(caller).await;
        let mut kept = Vec::new();
        for _ in 0..64 {
            let mut request = as_channel(&had.channel).speak_request();
            let mut draft = request.get().init_drafts(1).get(0);
            draft.set_payload(&vec![0; 900 << 10]);
            kept.push(request.send().promise);
            tokio::task::yield_now().await;
        }
        for refused in kept {
            let outcome = within("a refusal", refused).await;
            assert!(outcome.is_err(), "a megabyte is no message");
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Messages that aren't.
async fn malformed(caller: &Caller) {
    let noise: Vec<u8> = (0..8192_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let malformed = [
        words(&[u32::MAX, 0]),
        words(&[4095, 1]),
        words(&[0, u32::MAX]),
        words(&[0, (FRAME_BYTES_MAX / 8 + 1) as u32]),
        words(&[0, 0]),
        words(&[0, 1, u32::MAX, u32::MAX]),
        [words(&[0, 1024]), noise].concat(),
    ];
    for bytes in malformed.iter().cycle().take(10 * malformed.len()) {
        let mut stream = caller.open(Lane::Vat).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        // Whatever is said about it, it ends.
        let mut said = Vec::new();
        let _ = within("an end", stream.read_to_end(&mut said)).await;
    }
}

/// Messages that stop, or come a byte at a time.
async fn dripped(caller: &Caller) {
    for lane in [Lane::Vat, Lane::Control].repeat(4) {
        let mut stream = caller.open(lane).await;
        let _ = stream
            .write_all(&words(&[0, (FRAME_BYTES_MAX / 8 - 1) as u32]))
            .await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            if stream.write_all(&[0]).await.is_err() || stream.flush().await.is_err() {
                break;
            }
        }
    }
}

async fn introductions(caller: &Caller) {
    let (mut let_in, mut refused) = (0, 0);
    for graft in 0..10 {
        let had = had(caller).await;
        for n in 0..300 {
            match speaker(&had.channel, "release", &format!("persona-{graft}-{n}")).await {
                Ok(channel) => {
                    // The grant comes with the first call.
                    let _ = within("info", channel.info()).await;
                    let_in += 1;
                }
                Err(_) => refused += 1,
            }
        }
        // And narrower and narrower ones, each let go of at once.
        let own = Channel::from_client("release", as_channel(&had.channel));
        for _ in 0..100 {
            match within("attenuating", own.attenuate(&Terms::all())).await {
                Ok(_) => let_in += 1,
                Err(_) => refused += 1,
            }
        }
    }
    println!("  {let_in} were let in, {refused} refused");
}

async fn followings(caller: &Caller) {
    let mut had = had(caller).await;
    let collected = Collected::new();
    let mut kept = Vec::new();
    for n in 0..30 {
        let asked = (0..100).map(|_| {
            let mut request = had.channel.follow_request();
            request.get().set_from(1);
            request.get().set_sink(collected.sink());
            request.send().promise
        });
        let answers = within("following", join_all(asked)).await;
        kept.extend(answers.into_iter().flatten());
        if n == 0 {
            collected.until(64).await;
        }
    }
    println!("  {} followings", kept.len());
    assert_eq!(kept.len(), 1);
    drop(kept);
    let mut lost = 0;
    let channel = |had: &Had| as_channel(&had.channel);
    for n in 0..3000 {
        let mut request = channel(&had).subscribe_request();
        request.get().set_sink(collected.sink());
        let answer = request.send().promise;
        let answer = match n % 2 {
            // Wanted no more before it is answered.
            0 => {
                drop(answer);
                tokio::task::yield_now().await;
                continue;
            }
            _ => within("subscribing", answer).await,
        };
        if answer.is_err() {
            lost += 1;
            had = self::had(caller).await;
        }
    }
    println!("  {lost} connections ended");
}

async fn lies(caller: &Caller) {
    let key = SigningKey::from_bytes([3; 32]).unwrap();
    let other = SigningKey::from_bytes([4; 32]).unwrap();
    {
        let (link, _vat) = caller.control().await;
        greet(&link, &key, MALLORY, |_| {}).await.unwrap();
        greet(&link, &key, MALLORY, |_| {}).await.unwrap_err();
    }
    // Of another key, of another's connection, of another version, and none at all.
    type Forge = fn(&mut agora_capnp::peer_capnp::hello::Builder<'_>);
    let forged: [(&SigningKey, u8, Forge); 5] = [
        (&other, MALLORY, |hello| {
            let key = SigningKey::from_bytes([3; 32]).unwrap();
            hello.set_public_key(&key.public().0);
        }),
        (&other, ALPHA, |_| {}),
        (&other, MALLORY, |hello| hello.set_version(2)),
        (&other, MALLORY, |hello| hello.set_signature(&[])),
        (&other, MALLORY, |hello| hello.set_host(&[9; 32])),
    ];
    for (key, seed, forge) in forged {
        let (link, _vat) = caller.control().await;
        greet(&link, key, seed, forge).await.unwrap_err();
    }
}

async fn pings(caller: &Caller) {
    let (link, _vat) = caller.control().await;
    for _ in 0..625 {
        join_all((0..16).map(|_| ping(&link))).await;
    }
}

/// Waits for a change that does not come, again and again: first let go of each time, then not.
async fn waits(caller: &Caller) {
    let (mut begun, mut connections) = (0, 0);
    while begun < 10_000 {
        let (link, vat) = caller.control().await;
        let answer = within("a ping", link.ping_request().send().promise).await;
        let Ok(answer) = answer else {
            // It opens too fast.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (epoch, revision) = {
            let answer = answer.get().unwrap();
            (answer.get_epoch(), answer.get_revision())
        };
        connections += 1;
        let mut kept = Vec::new();
        for n in 0..2000 {
            let mut request = link.changed_request();
            request.get().set_epoch(epoch);
            request.get().set_revision(revision);
            let answer = request.send().promise;
            begun += 1;
            if connections % 2 == 0 {
                kept.push(answer);
            }
            if n % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        ended(&vat).await;
    }
    println!("  {connections} connections ended");
}

async fn streams(caller: &Caller) {
    let (mut opened, mut grafts) = (0, 0);
    let began = Instant::now();
    let mut last = None;
    while began.elapsed() < Duration::from_secs(8) {
        for lane in [Lane::Vat, Lane::Control] {
            if let Ok(stream) = caller.dialer.open(caller.host, lane).await {
                opened += 1;
                if lane == Lane::Vat {
                    let (door, vat): (membrane::Client, Vat) = Vat::connect(stream, Limits::GUEST);
                    let grafting = door.graft_request().send().promise;
                    let grafted = tokio::time::timeout(Duration::from_millis(50), grafting).await;
                    grafts += u32::from(matches!(grafted, Ok(Ok(_))));
                    last = Some(vat);
                }
            }
            tokio::task::yield_now().await;
        }
    }
    drop(last);
    println!("  {opened} streams, {grafts} grafts");
}
