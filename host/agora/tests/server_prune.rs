//! Pruning a log that servers keep: every host goes on judging it as before, whoever pruned, and whenever the host comes by.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

#[path = "../../log/tests/nats/mod.rs"]
mod nats;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agora::boot::host::Host;
use agora::delivery::gathering::{STUBS, lane_of_channel};
use agora::door::prune::{Keep, PruneDone};
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;
use agora_log::{JetStreamOptions, Lane, Seq};
use agora_realm::{Body, ChannelName, NoteBody, Ordinal, Sealed, StubBody};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it comes in time")
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn square() -> ChannelName {
    ChannelName::new("square").unwrap()
}

/// A realm on one server.
struct Site {
    server: nats::Server,
    folder: tempfile::TempDir,
    client: async_nats::Client,
    /// Each host has a login of its own: `one` may do all, others may publish under their one subject, and not purge.
    has_logins: bool,
}

fn options(url: String) -> JetStreamOptions {
    JetStreamOptions {
        servers: vec![url],
        stream_bytes_max: 256 << 20,
        reserve_bytes: 16 << 20,
        ..JetStreamOptions::default()
    }
}

fn plan(agent: &str) -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan = Plan::new().channel("square").channel("attic").agent(
        agent,
        puppet.native(),
        vec![all_of("square"), all_of("attic")],
    );
    (plan, puppet)
}

/// A host that runs, and a puppet to move its agent.
struct Running {
    host: Host,
    puppet: Puppet,
}

impl Site {
    async fn new() -> Option<Self> {
        let server = nats::Server::start(&nats::program()?);
        Some(Self {
            client: async_nats::connect(server.url()).await.unwrap(),
            server,
            folder: tempfile::tempdir().unwrap(),
            has_logins: false,
        })
    }

    async fn with_logins() -> Option<Self> {
        let rest = r#"
            authorization { users: [
                { user: one, password: one }
                { user: two, password: two, permissions {
                    publish: [ "*.*", "$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.*", "$JS.API.STREAM.MSG.GET.*",
                        "$JS.API.CONSUMER.CREATE.*", "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.CONSUMER.DELETE.*.*" ]
                    subscribe: ["_INBOX.>"]
                } }
            ] }"#;
        let (program, port) = (nats::program()?, nats::free_port());
        let mut server = nats::Server::new(&program, port, "sync_interval: always", rest);
        server.run();
        let login = async_nats::ConnectOptions::with_user_and_password;
        let client = login("one".into(), "one".into()).connect(server.url());
        Some(Self {
            client: client.await.unwrap(),
            server,
            folder: tempfile::tempdir().unwrap(),
            has_logins: true,
        })
    }

    /// How a host reaches the server.
    fn url(&self, name: &str) -> String {
        match self.has_logins {
            true => format!("nats://{name}:{name}@127.0.0.1:{}", self.server.port),
            false => self.server.url(),
        }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn try_open(&self, name: &str) -> anyhow::Result<Running> {
        let (plan, puppet) = plan(name);
        let data = self.data(name);
        let opening = plan.open_on_servers(&data, options(self.url(name)));
        let host = within(opening).await?;
        within(puppet.until_life(1)).await;
        within(puppet.graft()).await.unwrap().unwrap();
        Ok(Running { host, puppet })
    }

    async fn open(&self, name: &str) -> Running {
        match self.try_open(name).await {
            Ok(running) => running,
            Err(error) => panic!("{name}: {error:#}"),
        }
    }

    /// One more host of the realm that `first` is of.
    async fn join(&self, name: &str, first: &Running) -> Running {
        let realm = first.host.control.record().state().realm().unwrap();
        let (realm, data) = (realm.to_string(), self.data(name));
        let mut join = Command::new(env!("CARGO_BIN_EXE_agora"));
        join.args(["realm", "join", &realm, "--data", data.to_str().unwrap()]);
        let joined = join.stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&joined.stdout).into_owned();
        let Some(key) = told.lines().find_map(|line| line.strip_prefix("key ")) else {
            panic!("{joined:?}");
        };
        first.host.control.invite(key).await.unwrap();
        self.open(name).await
    }

    fn forget_derived(&self, name: &str) {
        for file in ["state", "tree", "pruned"] {
            let _ = std::fs::remove_file(self.data(name).join(file));
        }
        let _ = std::fs::remove_dir_all(self.data(name).join("index"));
    }

    fn stream(&self, running: &Running) -> String {
        let realm = running.host.control.record().state().realm().unwrap();
        format!("agora-{}", &realm.to_string()[..16])
    }

    async fn ask(&self, subject: String, payload: Value) -> Value {
        let answer = self.client.request(subject, payload.to_string().into());
        serde_json::from_slice(&within(answer).await.unwrap().payload).unwrap()
    }

    async fn bytes(&self, stream: &str) -> u64 {
        let info = self
            .ask(format!("$JS.API.STREAM.INFO.{stream}"), json!({}))
            .await;
        info["state"]["bytes"].as_u64().unwrap()
    }

    /// How many entries stand in a lane.
    async fn in_lane(&self, stream: &str, lane: Lane) -> u64 {
        let filter = format!("{stream}.*.{}", token(lane));
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let info = self.ask(subject, json!({"subjects_filter": filter})).await;
        let counts = info["state"]["subjects"].as_object();
        counts.map_or(0, |all| {
            all.values().map(|count| count.as_u64().unwrap()).sum()
        })
    }

    fn agora(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
        command.args(args).args(["--log", &self.url("one")]);
        let told = command.stdin(Stdio::null()).output().unwrap();
        let text = [told.stdout, told.stderr].concat();
        (
            told.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }
}

fn token(lane: Lane) -> String {
    match lane {
        Lane::Of(name) => name.iter().map(|byte| format!("{byte:02x}")).collect(),
        Lane::Main => panic!("it has no token"),
    }
}

fn text(number: usize) -> String {
    format!("<said {number}>").repeat(200)
}

impl Running {
    async fn say(&self, channel: &str, numbers: std::ops::RangeInclusive<usize>) {
        for number in numbers {
            let drafts = vec![Draft::inform(text(number))];
            let outcomes = within(self.puppet.speak(channel, drafts)).await;
            outcomes.unwrap().unwrap().remove(0).unwrap();
        }
    }

    async fn prune(&self, keep: u64) -> PruneDone {
        let pruning = self
            .host
            .control
            .prune("square", Keep::Count(keep), false, true);
        match within(pruning).await {
            Ok(done) => done,
            Err(error) => panic!("{error}"),
        }
    }

    fn digest(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        self.host.control.record().state().digest()
    }

    fn judged(&self) -> u64 {
        self.host.control.record().state().last_seq().unwrap()
    }

    /// The leaves of the first places of the log, as the host has them in its tree.
    async fn leaves(&self, size: u64) -> Vec<[u8; 32]> {
        let tree = self.host.control.record().tree();
        tree.leaves(1, size).await.unwrap()
    }

    /// What its agent may read of the channel.
    async fn history(&self) -> Vec<String> {
        let (messages, _) = within(self.puppet.history("square", 1, 64))
            .await
            .unwrap()
            .unwrap();
        messages
            .iter()
            .map(|message| String::from_utf8_lossy(&message.payload).into_owned())
            .collect()
    }
}

/// Waits until they have judged the same.
async fn until_alike(running: &[&Running]) {
    // Markers go on and on, so it is waited for a moment in which all have the same.
    until("all hosts have judged alike", async || {
        let digests: Vec<_> = running
            .iter()
            .map(|running| (running.judged(), running.digest()))
            .collect();
        digests.windows(2).all(|two| two[0] == two[1])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_prunes_is_gone_for_all_and_whoever_comes_later_judges_alike() {
    let Some(site) = Site::new().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    let stream = site.stream(&one);
    one.say("square", 1..=20).await;
    two.say("square", 21..=40).await;
    one.say("attic", 100..=101).await;
    one.say("square", 41..=44).await;
    until_alike(&[&one, &two]).await;
    let end = one.judged();
    let before = (site.bytes(&stream).await, one.leaves(end).await);

    // Whose cursors are passed is said first.
    let control = &one.host.control;
    let refused = control.prune("square", Keep::Count(4), false, false).await;
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("one@") && refused.contains("two@"),
        "{refused}"
    );
    let done = one.prune(4).await;
    assert_eq!((done.through, done.messages), (Ordinal(40), 40));
    assert!(
        done.pending.is_none() && done.freed >= 40 * text(1).len() as u64,
        "{done:?}"
    );
    // Stubs take their part of what went.
    let after = site.bytes(&stream).await;
    assert!(
        after + 40 * text(1).len() as u64 / 2 < before.0,
        "{after} of {}",
        before.0
    );
    assert_eq!(site.in_lane(&stream, lane_of_channel(&square())).await, 4);

    // The other acts alike, goes on, and is heard.
    until_alike(&[&one, &two]).await;
    let kept: Vec<_> = (41..=44).map(text).collect();
    for running in [&one, &two] {
        assert_eq!(running.history().await, kept);
    }
    two.puppet.subscribe("square").await.unwrap().unwrap();
    let heard = within(two.puppet.heard("square")).await;
    assert_eq!(heard.unwrap().unwrap().unwrap().ordinal, 41);
    let skipped = two.puppet.run(|stage| async move {
        let heard = stage.heard.borrow()["square"].clone();
        heard.lock().await.take_skipped()
    });
    assert_eq!(skipped.await.unwrap(), Some((1, 40)));
    two.say("square", 45..=46).await;

    // From its snapshot, and from the beginning, with nothing of what it had derived.
    two.host.close().await;
    one.say("square", 47..=48).await;
    let again = one.prune(3).await;
    assert_eq!((again.messages, again.pending), (5, None));
    let two = site.open("two").await;
    until_alike(&[&one, &two]).await;
    two.host.close().await;
    site.forget_derived("two");
    let two = site.open("two").await;
    until_alike(&[&one, &two]).await;
    assert_eq!(two.leaves(end).await, before.1);
    assert_eq!(one.leaves(end).await, before.1);

    // One that joins has never seen any of it.
    let three = site.join("three", &one).await;
    until_alike(&[&one, &two, &three]).await;
    assert_eq!(three.leaves(end).await, before.1);
    assert_eq!(three.history().await, two.history().await);
    three.say("square", 50..=50).await;
    // And may prune in its turn.
    let done = three.prune(1).await;
    assert_eq!(done.pending, None);
    until_alike(&[&one, &two, &three]).await;
    assert_eq!(site.in_lane(&stream, lane_of_channel(&square())).await, 1);

    let data = site.data("three");
    let realm = one.host.control.record().state().realm().unwrap();
    for running in [one, two, three] {
        running.host.close().await;
    }
    // Whoever only looks.
    let (data, file) = (data.to_str().unwrap(), site.data("export"));
    for folder in ["one", "two", "three"] {
        let folder = site.data(folder);
        let (fine, told) = site.agora(&["verify", "--data", folder.to_str().unwrap()]);
        assert!(fine && told.contains("pruned"), "{told}");
    }
    let elsewhere = site.data("elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    let (fine, told) = site.agora(&["verify", "--realm", &realm.to_string(), "--data", elsewhere]);
    assert!(fine && told.contains("pruned"), "{told}");
    let (fine, told) = site.agora(&["log", "square", "--data", data]);
    assert!(
        fine && told.contains(&text(50)) && !told.contains(&text(44)),
        "{told}"
    );
    let (fine, told) = site.agora(&["doctor", "--data", data]);
    assert!(told.contains("pruned"), "{fine} {told}");
    // An export carries what is kept.
    let to = file.to_str().unwrap();
    let (fine, told) = site.agora(&["log", "--export", to, "--data", data]);
    assert!(fine, "{told}");
    let local = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
        let told = command.args(args).output().unwrap();
        assert!(told.status.success(), "{told:?}");
    };
    local(&["verify", to]);
    // It can be moved into a data folder, and into a stream on other servers, where hosts go on.
    let moved = site.data("moved");
    let moved = moved.to_str().unwrap();
    local(&["import", to, "--data", moved]);
    local(&["verify", "--data", moved]);
    let other = nats::Server::start(&nats::program().unwrap());
    local(&["import", to, "--data", data, "--log", &other.url()]);
    let site = Site {
        client: async_nats::connect(other.url()).await.unwrap(),
        server: other,
        folder: site.folder,
        has_logins: false,
    };
    let three = site.open("three").await;
    assert_eq!(three.leaves(end).await, before.1);
    site.forget_derived("one");
    let one = site.open("one").await;
    until_alike(&[&one, &three]).await;
    assert_eq!(one.leaves(end).await, before.1);
    one.host.close().await;
    three.host.close().await;
}

/// Puts the file there that says which channels this host is pruning.
fn begin_pruning(site: &Site, name: &str) {
    std::fs::write(site.data(name).join("pruning"), b"\x01\x06square").unwrap();
}

async fn note_prune(running: &Running, through: u64) {
    let note = NoteBody::Prune {
        channel: square(),
        through: Ordinal(through),
    };
    let control = &running.host.control;
    within(control.decide(Body::Note(note))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_was_cut_short_at_any_line_is_finished_by_the_next_start_or_by_another_host() {
    let Some(site) = Site::new().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    let stream = site.stream(&one);
    let lane = lane_of_channel(&square());
    one.say("square", 1..=12).await;

    // The note is in, and nothing else.
    note_prune(&one, 4).await;
    one.host.close().await;
    begin_pruning(&site, "one");
    let one = site.open("one").await;
    assert_eq!(site.in_lane(&stream, lane).await, 8);
    assert_eq!(site.in_lane(&stream, STUBS).await, 1);
    assert!(one.host.control.finish_prunes().await.is_ok());
    assert_eq!(site.in_lane(&stream, STUBS).await, 1);

    // Half of the stubs are in.
    note_prune(&one, 8).await;
    let log = one.host.control.record().log().clone();
    let turns = log.read_lane(lane, Seq(1), 2, 1 << 20).await.unwrap();
    let stubs = turns.into_iter().map(|(seq, stored)| {
        let sealed = Sealed::open(stored).unwrap();
        StubBody {
            seq: seq.0,
            leaf: sealed.leaf(),
            stub: sealed.stub().unwrap(),
        }
    });
    let note = NoteBody::Stubs {
        channel: square(),
        stubs: stubs.collect(),
    };
    one.host.control.decide(Body::Note(note)).await.unwrap();
    one.host.close().await;
    begin_pruning(&site, "one");
    let one = site.open("one").await;
    assert_eq!(site.in_lane(&stream, lane).await, 4);
    let log = one.host.control.record().log().clone();
    let notes = log.read_lane(STUBS, Seq(1), 9, 1 << 20).await.unwrap();
    let mut kept = Vec::new();
    for (_, stored) in notes {
        let sealed = Sealed::open(stored).unwrap();
        let Body::Note(NoteBody::Stubs { stubs, .. }) = &sealed.entry().body else {
            panic!("it is in the lane of stubs");
        };
        kept.extend(stubs.iter().map(|stub| stub.seq));
    }
    // Each once, and none twice.
    assert_eq!(kept.len(), 8, "{kept:?}");
    assert!(kept.windows(2).all(|two| two[0] < two[1]), "{kept:?}");

    // A host that does not come back leaves it to the others.
    note_prune(&one, 10).await;
    one.host.close().await;
    until("the other has judged the note", async || {
        let state = two.host.control.record().state();
        state.channel(&square()).unwrap().pruned == Ordinal(10)
    })
    .await;
    let done = two.prune(2).await;
    assert_eq!((done.messages, done.pending), (0, None));
    assert_eq!(site.in_lane(&stream, lane).await, 2);
    let one = site.open("one").await;
    until_alike(&[&one, &two]).await;
    assert_eq!(one.history().await, two.history().await);
    one.host.close().await;
    two.host.close().await;
}

const CHILD: &str = "AGORA_PRUNING_CHILD";

/// Not a test: the host that the next one kills. It prunes what it finds, and is done with that.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_to_be_killed() {
    let Ok(given) = std::env::var(CHILD) else {
        return;
    };
    let (url, data) = given.split_once(' ').unwrap();
    let (plan, _puppet) = plan("one");
    let host = plan.open_on_servers(data.as_ref(), options(url.to_owned()));
    let host = host.await.unwrap();
    let pruned = host.control.prune("square", Keep::Count(1), false, true);
    pruned.await.unwrap();
    std::process::exit(0);
}

/// Ended with its handle, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_while_it_prunes_and_a_server_killed_then_lose_and_double_nothing() {
    let Some(mut site) = Site::new().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    let (stream, lane) = (site.stream(&one), lane_of_channel(&square()));
    let mut one = Some(one);
    for (round, wait_ms) in [0_u64, 5, 15, 40, 80].into_iter().enumerate() {
        let running = match one.take() {
            Some(running) => running,
            None => site.open("one").await,
        };
        running
            .say("square", round * 60 + 1..=round * 60 + 60)
            .await;
        running.host.close().await;
        let said = site.in_lane(&stream, lane).await;
        assert!(said >= 60, "{said}");
        let pruned = || {
            let state = two.host.control.record().state();
            state.channel(&square()).unwrap().pruned
        };
        let before = pruned();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_host_that_is_to_be_killed", "--nocapture"])
            .env(
                CHILD,
                format!("{} {}", site.server.url(), site.data("one").display()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = Killed(child.unwrap());
        until("the note is in", async || pruned() > before).await;
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        // kill -9, wherever it is.
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        if round % 2 == 1 {
            site.server.kill();
            site.server.run();
            site.client = async_nats::connect(site.server.url()).await.unwrap();
        }
        // The next start does the rest.
        let running = site.open("one").await;
        until("the rest is done", async || {
            site.in_lane(&stream, lane).await == 1
        })
        .await;
        until_alike(&[&running, &two]).await;
        one = Some(running);
    }
    let one = one.unwrap();
    let three = site.join("three", &one).await;
    until_alike(&[&one, &two, &three]).await;
    let latest = three
        .host
        .control
        .record()
        .state()
        .channel(&square())
        .unwrap()
        .latest;
    assert_eq!(latest, Ordinal(300));
    for running in [one, two, three] {
        running.host.close().await;
    }
    let data = site.data("three");
    let (fine, told) = site.agora(&["verify", "--data", data.to_str().unwrap()]);
    assert!(fine, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_takes_out_by_hand_is_a_log_that_diverged() {
    let Some(site) = Site::new().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    let stream = site.stream(&one);
    one.say("square", 1..=8).await;
    let done = one.prune(5).await;
    assert_eq!(done.pending, None);
    until_alike(&[&one, &two]).await;
    let two_before = two.judged();
    two.host.close().await;
    let filter = format!("{stream}.*.{}", token(lane_of_channel(&square())));
    let purge = site.ask(
        format!("$JS.API.STREAM.PURGE.{stream}"),
        json!({"filter": filter}),
    );
    assert_eq!(purge.await["purged"], 5);
    // A host that runs notices by itself.
    let mut diverged = one.host.control.record().divergence();
    let why = within(diverged.wait_for(Option::is_some)).await.unwrap();
    assert!(
        why.as_ref().unwrap().contains("not there any more"),
        "{why:?}"
    );
    drop(why);
    one.host.close().await;
    // One that starts is refused, from its snapshot and from the beginning.
    for _ in 0..2 {
        let refused = site.try_open("two").await.err();
        let refused = refused.expect("it is refused").to_string();
        assert!(
            refused.contains("diverged") || refused.contains("not in the log any more"),
            "{refused}"
        );
        site.forget_derived("two");
    }
    let data = site.data("one");
    let (fine, told) = site.agora(&["verify", "--data", data.to_str().unwrap()]);
    assert!(!fine && told.contains("not in the log any more"), "{told}");
    assert!(two_before > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stubs_of_something_else_and_of_strangers_are_not_taken() {
    let Some(site) = Site::new().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    one.say("square", 1..=4).await;
    until_alike(&[&one, &two]).await;
    let (log, lane) = (
        one.host.control.record().log().clone(),
        lane_of_channel(&square()),
    );
    let turns = log.read_lane(lane, Seq(1), 4, 1 << 20).await.unwrap();
    let sealed = Sealed::open(turns[0].1.clone()).unwrap();
    let false_stub = |leaf| NoteBody::Stubs {
        channel: square(),
        stubs: vec![StubBody {
            seq: turns[0].0.0,
            leaf,
            stub: sealed.stub().unwrap(),
        }],
    };
    // A note that a key of no host signed: it counts for nobody, and a host that joins takes the other one.
    let note = {
        let body = Body::Note(false_stub([9; 32]));
        let key = agora_realm::SigningKey::from_bytes([7; 32]).unwrap();
        let mut entry = sealed.entry().clone();
        (entry.author, entry.grant, entry.body) = (None, None, body);
        entry.signer = key.public();
        entry.seal(&key, &[0; 32]).unwrap()
    };
    let class = agora_log::Class::Ordinary;
    let appending = log.append_in(STUBS, note.id().0, note.stored().clone(), class);
    within(appending).await.unwrap();
    one.say("square", 5..=5).await;
    assert_eq!(one.prune(1).await.pending, None);
    let three = site.join("three", &one).await;
    until_alike(&[&one, &two, &three]).await;
    let end = one.judged();
    assert_eq!(three.leaves(end).await, one.leaves(end).await);
    three.host.close().await;

    // A host of the realm that says something else than what another has seen is found out by that.
    one.say("square", 6..=7).await;
    until_alike(&[&one, &two]).await;
    let record = two.host.control.record().clone();
    let mut diverged = record.divergence();
    let place = record.place_of(&square(), Ordinal(6)).unwrap().unwrap().seq;
    let lie = NoteBody::Stubs {
        channel: square(),
        stubs: vec![StubBody {
            seq: place,
            leaf: [9; 32],
            stub: sealed.stub().unwrap(),
        }],
    };
    let _ = within(one.host.control.decide(Body::Note(lie))).await;
    let why = within(diverged.wait_for(Option::is_some)).await.unwrap();
    assert!(
        why.as_ref().unwrap().contains("of something else"),
        "{why:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_in_no_lane_stays_and_who_may_not_take_out_is_told_before_anything_is_written()
 {
    let Some(site) = Site::with_logins().await else {
        return;
    };
    let one = site.open("one").await;
    let two = site.join("two", &one).await;
    let (stream, lane) = (site.stream(&one), lane_of_channel(&square()));
    one.say("square", 1..=3).await;
    two.say("square", 4..=5).await;
    one.say("square", 6..=8).await;
    until_alike(&[&one, &two]).await;
    assert_eq!(site.in_lane(&stream, lane).await, 6);
    let control = &two.host.control;
    let refused = within(control.prune("square", Keep::Count(1), false, true)).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("STREAM.PURGE"), "{refused}");
    let pruned = |running: &Running| {
        let state = running.host.control.record().state();
        state.channel(&square()).unwrap().pruned
    };
    assert_eq!(pruned(&two), Ordinal(0));

    let done = one.prune(1).await;
    assert_eq!((done.messages, done.through), (7, Ordinal(7)));
    let pending = done.pending.unwrap();
    assert!(pending.contains("2 of the messages stay"), "{pending}");
    assert_eq!(site.in_lane(&stream, lane).await, 1);
    until_alike(&[&one, &two]).await;
    assert_eq!(two.history().await, [text(8)]);

    // What is no turn of the channel, and stands in its lane, is not taken out, and nothing behind it.
    let log = one.host.control.record().log().clone();
    let junk = log.append_in(lane, [3; 32], "junk".into(), agora_log::Class::Ordinary);
    let junk = within(junk).await.unwrap().seq;
    one.say("square", 9..=10).await;
    let done = one.prune(1).await;
    let pending = done.pending.unwrap();
    assert!(pending.contains(&format!("entry {junk}")), "{pending}");
    assert_eq!(site.in_lane(&stream, lane).await, 3);
    until_alike(&[&one, &two]).await;
    one.host.close().await;
    two.host.close().await;
}
