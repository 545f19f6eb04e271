//! The JetStream log while its server is killed, stopped, cut off, full, or put back in time.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

mod nats;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agora_log::{
    Appended, Class, ConnectionState, JetStream, JetStreamOptions, Log, LogError, Seq,
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, future::join_all};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// No step of these tests takes this long.
const STUCK: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(STUCK, what).await.expect("stuck")
}

fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

fn entry(number: u64) -> Bytes {
    Bytes::from(format!("entry {number}"))
}

fn number(entry: &Bytes) -> u64 {
    let text = std::str::from_utf8(entry).unwrap().trim_end();
    text.strip_prefix("entry ").unwrap().parse().unwrap()
}

fn append(
    log: &JetStream,
    number: u64,
    class: Class,
) -> BoxFuture<'static, Result<Appended, LogError>> {
    log.append(id(number), entry(number), class)
}

async fn all_of(log: &JetStream) -> Vec<Bytes> {
    let mut all = Vec::new();
    while Seq(all.len() as u64) < log.end() {
        let found = soon(log.read(Seq(all.len() as u64 + 1), 1000, 1 << 20)).await;
        for (seq, entry) in found.unwrap() {
            all.push(entry);
            assert_eq!(seq, Seq(all.len() as u64));
        }
    }
    all
}

/// Appends until told to stop, in both classes, some at a time; checks what is said against what a tail brought.
struct Load {
    log: Arc<JetStream>,
    stop: Arc<AtomicBool>,
    appending: tokio::task::JoinHandle<BTreeMap<u64, Result<Seq, LogError>>>,
    tailing: tokio::task::JoinHandle<Vec<Bytes>>,
}

impl Load {
    const AT_ONCE: usize = 64;

    fn begin(log: Arc<JetStream>) -> Self {
        Self::begin_with(log, Self::AT_ONCE, 0)
    }

    /// Entries are padded to `bytes` at least.
    fn begin_with(log: Arc<JetStream>, at_once: usize, bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let appending = {
            let (log, stop) = (log.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answers = BTreeMap::new();
                let mut waiting = futures::stream::FuturesUnordered::new();
                let mut next = 0;
                loop {
                    while waiting.len() < at_once && !stop.load(Ordering::Relaxed) {
                        let class = match next % 10 {
                            0 => Class::Control,
                            _ => Class::Ordinary,
                        };
                        let padded = format!("{:bytes$}", format!("entry {next}"));
                        let appending = log.append(id(next), padded.into(), class);
                        waiting.push(async move { (next, appending.await) });
                        next += 1;
                    }
                    let Some((number, answer)) = soon(waiting.next()).await else {
                        return answers;
                    };
                    answers.insert(number, answer.map(|appended| appended.seq));
                }
            })
        };
        let tailing = {
            let log = log.clone();
            tokio::spawn(async move {
                let mut tail = log.tail(Seq(1));
                let mut seen = Vec::new();
                while let Some(found) = tail.next().await {
                    let (seq, entry) = found.unwrap();
                    seen.push(entry);
                    assert_eq!(seq, Seq(seen.len() as u64), "a tail missed or repeated");
                }
                seen
            })
        };
        Load {
            log,
            stop,
            appending,
            tailing,
        }
    }

    /// Waits until so many more entries stand.
    async fn headway(&self, entries: u64) {
        let wanted = Seq(self.log.end().0 + entries);
        soon(async {
            while self.log.end() < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Ends the load, checks all that was promised, and says how many outcomes were known to be bad, and unknown.
    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let answers = soon(self.appending).await.unwrap();
        let stands = all_of(&self.log).await;
        soon(self.log.close()).await.unwrap();
        let seen = soon(self.tailing).await.unwrap();
        assert_eq!(seen, stands, "a tail saw something else than stands");
        let mut places = BTreeMap::new();
        for (seq, entry) in (1..).map(Seq).zip(&stands) {
            let twice = places.insert(number(entry), seq);
            assert_eq!(twice, None, "{entry:?} stands twice");
        }
        let (mut refused, mut unknown) = (0, 0);
        for (number, answer) in &answers {
            match answer {
                Ok(seq) => assert_eq!(places.get(number), Some(seq), "entry {number}"),
                Err(error) if error.is_outcome_known() => {
                    assert_eq!(places.get(number), None, "entry {number}: {error}");
                    refused += 1;
                }
                Err(_) => unknown += 1,
            }
        }
        for class in [true, false] {
            let of_class: Vec<_> = places
                .iter()
                .filter(|(number, _)| (*number % 10 == 0) == class)
                .map(|(_, seq)| seq)
                .collect();
            assert!(of_class.is_sorted(), "one class changed order");
        }
        eprintln!(
            "{} entries stand, {refused} refused, {unknown} unknown",
            stands.len()
        );
        (refused, unknown)
    }
}

async fn state(log: &JetStream, wanted: impl Fn(&ConnectionState) -> bool) -> ConnectionState {
    let mut states = log.state();
    soon(states.wait_for(|state| wanted(state)))
        .await
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_and_moves_nothing() {
    let Some(program) = nats::program() else {
        return;
    };
    let mut server = nats::Server::start(&program);
    let log = Arc::new(nats::open(&nats::options(server.url(), 0)).await);
    let load = Load::begin(log.clone());
    for round in 0..4 {
        load.headway(300).await;
        server.kill();
        state(&log, |state| {
            matches!(state, ConnectionState::Reconnecting { .. })
        })
        .await;
        if round == 1 {
            sleep(Duration::from_millis(700)).await;
        }
        server.run();
        state(&log, |state| *state == ConnectionState::Connected).await;
    }
    load.headway(300).await;
    assert_eq!(
        load.end().await,
        (0, 0),
        "there was time to learn every outcome"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_waited_for() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let log = Arc::new(nats::open(&nats::options(server.url(), 0)).await);
    let load = Load::begin(log.clone());
    load.headway(300).await;
    // Once shorter than an acknowledgement is waited for, once longer.
    for pause in [500, 4500] {
        server.signal(Signal::STOP);
        sleep(Duration::from_millis(pause)).await;
        server.signal(Signal::CONT);
        load.headway(300).await;
    }
    assert_eq!(
        load.end().await,
        (0, 0),
        "there was time to learn every outcome"
    );
}

/// A way to the server that can be cut.
struct Proxy {
    port: u16,
    open: watch::Sender<bool>,
    /// The latest that went to the server.
    passed: watch::Receiver<Vec<u8>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = watch::channel(true).0;
        let (passing, passed) = watch::channel(Vec::new());
        let mut is_open = open.subscribe();
        let accepting = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                if !*is_open.borrow_and_update() {
                    continue;
                }
                let (mut is_open, passing) = (is_open.clone(), passing.clone());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
                        return;
                    };
                    let (mut from_near, mut to_near) = near.split();
                    let (mut from_far, mut to_far) = far.split();
                    let there = async {
                        let mut bytes = vec![0; 64 << 10];
                        loop {
                            let read = from_near.read(&mut bytes).await?;
                            to_far.write_all(&bytes[..read]).await?;
                            passing.send_modify(|passed| {
                                passed.extend(&bytes[..read]);
                                let old = passed.len().saturating_sub(4096);
                                passed.drain(..old);
                            });
                            if read == 0 {
                                return std::io::Result::Ok(());
                            }
                        }
                    };
                    tokio::select! {
                        _ = there => {}
                        _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Proxy {
            port,
            open,
            passed,
            accepting,
        }
    }

    /// Waits until this went to the server.
    async fn has_passed(&self, bytes: &[u8]) {
        let mut passed = self.passed.clone();
        let there = passed.wait_for(|passed| passed.windows(bytes.len()).any(|w| w == bytes));
        soon(there).await.unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.open.send_replace(false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_heals_and_nothing_is_lost_or_moved() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let proxy = Proxy::start(server.port).await;
    let url = format!("nats://127.0.0.1:{}", proxy.port);
    let log = Arc::new(nats::open(&nats::options(url, 0)).await);
    // So large that much is still on its way when the connection is cut.
    let load = Load::begin_with(log.clone(), 256, 12 << 10);
    for pause in [0, 10, 300, 0, 50] {
        load.headway(100).await;
        proxy.open.send_replace(false);
        state(&log, |state| {
            matches!(state, ConnectionState::Reconnecting { .. })
        })
        .await;
        sleep(Duration::from_millis(pause)).await;
        proxy.open.send_replace(true);
        state(&log, |state| *state == ConnectionState::Connected).await;
    }
    load.headway(200).await;
    assert_eq!(
        load.end().await,
        (0, 0),
        "there was time to learn every outcome"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_what_waits_is_refused_and_what_was_sent_is_unknown() {
    let Some(program) = nats::program() else {
        return;
    };
    let mut server = nats::Server::start(&program);
    let proxy = Proxy::start(server.port).await;
    let url = format!("nats://127.0.0.1:{}", proxy.port);
    let options = JetStreamOptions {
        waiting_patience: Duration::from_millis(400),
        sent_patience: Duration::from_millis(1500),
        ..nats::options(url, 0)
    };
    let log = nats::open(&options).await;
    state(&log, |state| *state == ConnectionState::Connected).await;
    soon(append(&log, 0, Class::Ordinary)).await.unwrap();
    server.stop();
    let sent = append(&log, 1, Class::Ordinary);
    proxy.has_passed(b"entry 1").await;
    server.kill();
    let mut next = 2;
    loop {
        match soon(append(&log, next, Class::Control)).await {
            Err(LogError::Unavailable { .. }) => break,
            // It was sent before it was noticed that nobody is there.
            Err(LogError::Unknown { .. }) => next += 1,
            other => panic!("{other:?}"),
        }
    }
    let unknown = soon(sent).await;
    assert!(
        matches!(unknown, Err(LogError::Unknown { .. })),
        "{unknown:?}"
    );
    server.run();
    state(&log, |state| *state == ConnectionState::Connected).await;
    assert_eq!(
        soon(append(&log, next, Class::Control)).await.unwrap().seq,
        Seq(2)
    );
    soon(log.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_without_a_server_ends() {
    let Some(program) = nats::program() else {
        return;
    };
    let mut server = nats::Server::start(&program);
    let log = nats::open(&nats::options(server.url(), 0)).await;
    state(&log, |state| *state == ConnectionState::Connected).await;
    soon(append(&log, 0, Class::Ordinary)).await.unwrap();
    let tail = log.tail(Seq(1));
    server.kill();
    soon(log.close()).await.unwrap();
    let seen: Vec<_> = soon(tail.collect()).await;
    assert!(matches!(seen[..], [Err(LogError::Closed)]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_ordinary_entries_and_takes_control_entries() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let options = JetStreamOptions {
        stream_bytes_max: 2 << 20,
        reserve_bytes: 512 << 10,
        entry_bytes_max: 64 << 10,
        ..nats::options(server.url(), 0)
    };
    let log = nats::open(&options).await;
    let large = |number: u64| {
        let mut bytes = vec![0; 32 << 10];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Bytes::from(bytes)
    };
    let mut next = 0;
    let refused = loop {
        next += 1;
        match soon(log.append(id(next), large(next), Class::Ordinary)).await {
            Ok(appended) => assert_eq!(appended.seq, Seq(next)),
            Err(error) => break error,
        }
        assert!(next < 64, "the stream holds more than its limit");
    };
    assert!(matches!(refused, LogError::Unavailable { .. }), "{refused}");
    let taken = next - 1;
    assert!(taken >= 40, "refused after {taken} entries already");
    // Beyond what ordinary entries may fill, as often as the reserve has room.
    for number in 0..12 {
        let number = 1000 + number;
        soon(log.append(id(number), large(number), Class::Control))
            .await
            .unwrap();
    }
    // Until that is full, too: it is refused by the server, and is not in the log.
    let mut more = 2000;
    let refused = loop {
        more += 1;
        let answer = soon(log.append(id(more), large(more), Class::Control)).await;
        if let Err(error) = answer {
            break error;
        }
        assert!(more < 2020, "the stream holds more than its limit");
    };
    assert!(matches!(refused, LogError::Unavailable { .. }), "{refused}");
    let end = log.end();
    assert_eq!(all_of(&log).await.len() as u64, end.0);
    soon(log.close()).await.unwrap();
    // Opened anew, it is still full for ordinary entries.
    let log = nats::open(&options).await;
    let refused = soon(log.append(id(3000), large(3000), Class::Ordinary)).await;
    assert!(
        matches!(refused, Err(LogError::Unavailable { .. })),
        "{refused:?}"
    );
    assert_eq!(log.end(), end);
    soon(log.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_entry_overtakes_what_waits() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let log = nats::open(&nats::options(server.url(), 0)).await;
    state(&log, |state| *state == ConnectionState::Connected).await;
    // Nothing is acknowledged before all of them wait.
    server.stop();
    // Three times of what may be on its way.
    let large = Bytes::from(vec![0; 64 << 10]);
    let waiting: Vec<_> = (0..192)
        .map(|number| log.append(id(number), large.clone(), Class::Ordinary))
        .collect();
    let control = append(&log, 1000, Class::Control);
    server.signal(Signal::CONT);
    let control = soon(control).await.unwrap().seq;
    let answers = soon(join_all(waiting)).await;
    let seqs: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap().seq)
        .collect();
    assert!(seqs.is_sorted());
    let behind = seqs.iter().filter(|seq| **seq > control).count();
    assert!(behind >= 96, "only {behind} of 192 were overtaken");
    soon(log.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_id_stands_once_and_is_answered_with_its_place() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let options = nats::options(server.url(), 0);
    let (log, other) = (nats::open(&options).await, nats::open(&options).await);
    let answers = join_all([
        append(&log, 7, Class::Ordinary),
        append(&log, 8, Class::Ordinary),
        append(&log, 7, Class::Ordinary),
    ]);
    let seqs: Vec<_> = soon(answers)
        .await
        .into_iter()
        .map(|a| a.unwrap().seq)
        .collect();
    assert_eq!(seqs, [Seq(1), Seq(2), Seq(1)]);
    assert_eq!(
        soon(append(&other, 7, Class::Control)).await.unwrap().seq,
        Seq(1)
    );
    assert_eq!(
        soon(append(&other, 9, Class::Control)).await.unwrap().seq,
        Seq(3)
    );
    soon(log.close()).await.unwrap();
    let log = nats::open(&options).await;
    assert_eq!(
        soon(append(&log, 8, Class::Ordinary)).await.unwrap().seq,
        Seq(2)
    );
    assert_eq!(log.end(), Seq(3));
    soon(log.close()).await.unwrap();
    soon(other.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_appends_another_one_hears() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let options = nats::options(server.url(), 0);
    let there = JetStreamOptions {
        subject: "there".into(),
        ..options.clone()
    };
    let (here, there) = (nats::open(&options).await, nats::open(&there).await);
    let mut tail = there.tail(Seq(1));
    for number in 0..200 {
        let log = [&here, &there][number as usize % 2];
        let seq = soon(append(log, number, Class::Ordinary))
            .await
            .unwrap()
            .seq;
        let heard = soon(tail.next()).await.unwrap().unwrap();
        assert_eq!(heard, (seq, entry(number)));
    }
    drop(tail);
    soon(here.close()).await.unwrap();
    soon(there.close()).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

/// The log as it is with a server that was put back to an older state of its folder, and then given `since` entries.
async fn put_back(since: u64) -> (nats::Server, JetStream) {
    let program = nats::program().unwrap();
    let mut server = nats::Server::start(&program);
    let options = nats::options(server.url(), 0);
    let log = nats::open(&options).await;
    for number in 0..20 {
        soon(append(&log, number, Class::Ordinary)).await.unwrap();
    }
    server.kill();
    let kept = tempfile::tempdir().unwrap();
    copy(&server.store(), &kept.path().join("store"));
    server.run();
    state(&log, |state| *state == ConnectionState::Connected).await;
    for number in 20..30 {
        soon(append(&log, number, Class::Ordinary)).await.unwrap();
    }
    server.kill();
    fs::remove_dir_all(server.store()).unwrap();
    copy(&kept.path().join("store"), &server.store());
    if since > 0 {
        // By another host, before this one is back: on another port, so that it can't be.
        let mut other = nats::Server::new(&program, nats::free_port(), "sync_interval: always", "");
        fs::rename(server.store(), other.store()).unwrap();
        other.run();
        let options = nats::options(other.url(), 0);
        let stranger = nats::open(&options).await;
        assert_eq!(stranger.end(), Seq(20));
        for number in 0..since {
            soon(append(&stranger, 1000 + number, Class::Ordinary))
                .await
                .unwrap();
        }
        soon(stranger.close()).await.unwrap();
        other.kill();
        fs::rename(other.store(), server.store()).unwrap();
    }
    (server, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_put_back_in_time_is_noticed() {
    if nats::program().is_none() {
        return;
    }
    for since in [0, 10, 25] {
        let (mut server, log) = put_back(since).await;
        let mut tail = log.tail(Seq(30));
        let waiting = append(&log, 99, Class::Ordinary);
        server.run();
        state(&log, |state| {
            matches!(state, ConnectionState::Diverged { .. })
        })
        .await;
        let refused = soon(waiting).await;
        assert!(
            matches!(refused, Err(LogError::Diverged { .. })),
            "{refused:?}"
        );
        let refused = soon(append(&log, 100, Class::Control)).await;
        assert!(
            matches!(refused, Err(LogError::Diverged { .. })),
            "{refused:?}"
        );
        let ended = soon(tail.next()).await;
        assert!(
            matches!(ended, Some(Err(LogError::Diverged { .. }))),
            "{ended:?}"
        );
        let read = soon(log.read(Seq(1), 1, 1)).await;
        assert!(matches!(read, Err(LogError::Diverged { .. })), "{read:?}");
        assert!(matches!(
            soon(log.close()).await,
            Err(LogError::Diverged { .. })
        ));
    }
}

async fn ask(client: &async_nats::Client, subject: &str) -> serde_json::Value {
    let answer = soon(client.request(subject.to_owned(), "".into())).await;
    serde_json::from_slice(&answer.unwrap().payload).unwrap()
}

/// The log on a cluster, which takes a while until it has chosen a leader.
async fn opened(options: &JetStreamOptions) -> JetStream {
    soon(async {
        loop {
            match JetStream::open(options.clone()).await {
                Ok(log) => return log,
                Err(LogError::Unreachable { .. }) => sleep(Duration::from_millis(100)).await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_outlives_one_server_waits_for_two_and_changes_leaders() {
    let Some(program) = nats::program() else {
        return;
    };
    let mut servers = nats::Server::cluster(&program);
    let options = JetStreamOptions {
        servers: servers.iter().map(nats::Server::url).collect(),
        replicas: 3,
        ..nats::options(String::new(), 0)
    };
    let log = Arc::new(opened(&options).await);
    let load = Load::begin(log.clone());
    load.headway(200).await;
    let client = async_nats::connect(options.servers.clone()).await.unwrap();
    for _ in 0..2 {
        ask(&client, "$JS.API.STREAM.LEADER.STEPDOWN.realm-0").await;
        load.headway(200).await;
    }
    // The leader itself.
    let info = ask(&client, "$JS.API.STREAM.INFO.realm-0").await;
    let leader = info["cluster"]["leader"].as_str().unwrap();
    let leader: usize = leader.strip_prefix('s').unwrap().parse().unwrap();
    servers[leader].kill();
    load.headway(200).await;
    // No two of them are left.
    let other = (leader + 1) % 3;
    servers[other].kill();
    // What was answered before may still come.
    let settled = async {
        loop {
            let end = log.end();
            sleep(Duration::from_millis(1500)).await;
            if log.end() == end {
                return end;
            }
        }
    };
    let end = soon(settled).await;
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(log.end(), end, "one of three servers acknowledged");
    servers[other].run();
    load.headway(200).await;
    servers[leader].run();
    load.headway(200).await;
    load.end().await;
}

/// What the servers answer; none: nobody does now.
async fn asked(
    client: &async_nats::Client,
    subject: &str,
    payload: String,
) -> Option<serde_json::Value> {
    let request = client.request(subject.to_owned(), payload.into());
    let answer = timeout(Duration::from_secs(5), request).await.ok()?.ok()?;
    serde_json::from_slice(&answer.payload).ok()
}

/// The servers that have the stream, the leader first, and whether all of them have all of it; none: there is no leader now.
async fn members(client: &async_nats::Client) -> Option<(Vec<String>, bool)> {
    let info = asked(client, "$JS.API.STREAM.INFO.realm-0", String::new()).await?;
    let cluster = &info["cluster"];
    let replicas = cluster["replicas"].as_array()?;
    let names = replicas.iter().map(|replica| &replica["name"]);
    let names = std::iter::once(&cluster["leader"]).chain(names);
    let names: Option<_> = names.map(|name| Some(name.as_str()?.to_owned())).collect();
    // One that is asked for in the middle of the load may be a few entries behind.
    let all = |replica: &serde_json::Value| {
        replica["current"] == true || replica["lag"].as_u64().is_some_and(|lag| lag < 100)
    };
    Some((names?, replicas.iter().all(all)))
}

/// Takes the stream from a server; another one of the cluster gets it in its place. Waits until three have it.
async fn taken_from(client: &async_nats::Client, server: &str) -> Vec<String> {
    let wanted = serde_json::json!({ "peer": server }).to_string();
    let moved = async {
        let mut told = false;
        loop {
            if !told {
                let subject = "$JS.API.STREAM.PEER.REMOVE.realm-0";
                let answer = asked(client, subject, wanted.clone()).await;
                told = answer.is_some_and(|answer| answer["success"] == true);
            }
            if let Some((members, all)) = members(client).await {
                let gone = members.iter().all(|member| member != server);
                // It may have been heard although nothing was answered.
                told |= gone;
                if gone && all && members.len() == 3 {
                    return members;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    // The new one is given all that stands.
    timeout(2 * STUCK, moved).await.expect("stuck")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_cluster_are_changed_under_load() {
    let Some(program) = nats::program() else {
        return;
    };
    let mut servers = nats::Server::cluster(&program);
    let options = JetStreamOptions {
        servers: servers.iter().map(nats::Server::url).collect(),
        replicas: 3,
        ..nats::options(String::new(), 0)
    };
    let log = Arc::new(opened(&options).await);
    let load = Load::begin(log.clone());
    load.headway(200).await;
    servers.push(nats::Server::joining(&program, &servers));
    load.headway(200).await;
    let client = async_nats::connect(options.servers.clone()).await.unwrap();
    let first = soon(async {
        loop {
            match members(&client).await {
                Some((members, _)) if members.len() == 3 => return members,
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    });
    let first = first.await;
    assert!(!first.contains(&"s3".to_owned()), "{first:?}");
    // A follower, then the leader: the fourth server has the stream, and then the first one to go has it again.
    let second = taken_from(&client, &first[1]).await;
    assert!(second.contains(&"s3".to_owned()), "{second:?}");
    load.headway(200).await;
    let third = taken_from(&client, &second[0]).await;
    assert!(third.contains(&first[1]), "{third:?}");
    load.headway(200).await;
    // And the one that joined counts as any: without another one, the stream goes on.
    let other = third.iter().find(|name| *name != "s3").unwrap();
    let other: usize = other.strip_prefix('s').unwrap().parse().unwrap();
    servers[other].kill();
    load.headway(200).await;
    servers[other].run();
    load.headway(200).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_is_killed_and_stopped_and_loses_nothing_either() {
    let Some(program) = nats::oldest() else {
        return;
    };
    let mut server = nats::Server::start(&program);
    let log = Arc::new(nats::open(&nats::options(server.url(), 0)).await);
    let load = Load::begin(log.clone());
    for _ in 0..2 {
        load.headway(300).await;
        server.kill();
        state(&log, |state| {
            matches!(state, ConnectionState::Reconnecting { .. })
        })
        .await;
        server.run();
        state(&log, |state| *state == ConnectionState::Connected).await;
    }
    load.headway(300).await;
    server.stop();
    sleep(Duration::from_millis(4500)).await;
    server.signal(Signal::CONT);
    load.headway(300).await;
    assert_eq!(
        load.end().await,
        (0, 0),
        "there was time to learn every outcome"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_servers_as_a_cluster_outlive_one_of_them() {
    let Some(program) = nats::oldest() else {
        return;
    };
    let mut servers = nats::Server::cluster(&program);
    let options = JetStreamOptions {
        servers: servers.iter().map(nats::Server::url).collect(),
        replicas: 3,
        ..nats::options(String::new(), 0)
    };
    let log = Arc::new(opened(&options).await);
    let load = Load::begin(log.clone());
    load.headway(200).await;
    servers[0].kill();
    load.headway(200).await;
    servers[0].run();
    load.headway(200).await;
    load.end().await;
}
