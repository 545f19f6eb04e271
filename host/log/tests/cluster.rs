//! `etc/nats-cluster.conf`, run as it is: three servers, and hosts that may do what a host does and nothing else.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use agora_log::{Class, JetStream, JetStreamOptions, Log, LogError, Seq, StreamReader};
use bytes::Bytes;
use futures::StreamExt;

mod nats;

const PATIENCE: Duration = Duration::from_secs(60);

/// The three servers of the example.
struct Cluster {
    children: Vec<Child>,
    ports: Vec<u16>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/nats-cluster.conf");
        let ports: Vec<_> = (0..6).map(|_| nats::free_port()).collect();
        let routes = &ports[3..];
        let start = |at: usize| {
            let mut command = Command::new(program);
            command
                .arg("--config")
                .arg(&config)
                .env("NAME", ["one", "two", "three"][at])
                .env("LISTEN", format!("127.0.0.1:{}", ports[at]))
                .env("ROUTE", format!("127.0.0.1:{}", routes[at]))
                .env("STORE", dir.path().join(at.to_string()))
                .env("FOUNDER", "f-secret")
                .env("FIRST", "first-secret")
                .env("SECOND", "second-secret");
            for (n, port) in routes.iter().enumerate() {
                let url = format!("nats://127.0.0.1:{port}");
                command.env(format!("ROUTE_{}", n + 1), url);
            }
            let log = std::fs::File::create(dir.path().join(format!("log-{at}"))).unwrap();
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            command.spawn().unwrap()
        };
        let children = (0..3).map(start).collect();
        Self {
            children,
            ports: ports[..3].to_vec(),
            _dir: dir,
        }
    }

    fn urls(&self, user: &str, password: &str) -> Vec<String> {
        let url = |port: &u16| format!("nats://{user}:{password}@127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// As a host of this user's, whose entries go under this subject.
    fn options(&self, user: &str, password: &str, subject: &str) -> JetStreamOptions {
        JetStreamOptions {
            servers: self.urls(user, password),
            stream: "agora-0123456789abcdef".into(),
            subject_prefix: "agora-0123456789abcdef".into(),
            subject: subject.into(),
            create: user == "founder",
            replicas: 3,
            stream_bytes_max: 256 << 20,
            reserve_bytes: 16 << 20,
            ..JetStreamOptions::default()
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tries until the cluster has found together.
async fn opened(options: &JetStreamOptions) -> Arc<JetStream> {
    let began = Instant::now();
    loop {
        match JetStream::open(options.clone()).await {
            Ok(log) => return Arc::new(log),
            Err(error) if began.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn append(log: &JetStream, entry: &'static str) -> Result<Seq, LogError> {
    let mut id = [0; 32];
    id[..entry.len()].copy_from_slice(entry.as_bytes());
    let began = Instant::now();
    loop {
        let appended = log.append(id, Bytes::from_static(entry.as_bytes()), Class::Ordinary);
        match appended.await {
            // A leader may be chosen just now.
            Err(LogError::Unavailable { .. }) if began.elapsed() < PATIENCE => {}
            appended => return appended.map(|appended| appended.seq),
        }
    }
}

fn server() -> Option<PathBuf> {
    nats::program()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_the_example_cluster_append_as_themselves_read_all_and_can_do_nothing_else() {
    let Some(program) = server() else {
        return;
    };
    let cluster = Cluster::start(&program);
    let founder = opened(&cluster.options("founder", "f-secret", "ffffffff")).await;
    assert_eq!(append(&founder, "genesis").await.unwrap(), Seq(1));
    founder.close().await.unwrap();

    let first = opened(&cluster.options("first", "first-secret", "aaaaaaaa")).await;
    let second = opened(&cluster.options("second", "second-secret", "bbbbbbbb")).await;
    assert_eq!(append(&first, "of first").await.unwrap(), Seq(2));
    assert_eq!(append(&second, "of second").await.unwrap(), Seq(3));
    for log in [&first, &second] {
        let mut tail = log.tail(Seq(1));
        let mut heard = Vec::new();
        while heard.len() < 3 {
            let next = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap();
            heard.push(next.unwrap().unwrap().1);
        }
        assert_eq!(heard, ["genesis", "of first", "of second"].map(Bytes::from));
        assert_eq!(log.read(Seq(1), 10, 1 << 20).await.unwrap().len(), 3);
    }
    let reading = StreamReader::open(cluster.options("second", "second-secret", "reader")).await;
    let (reader, found) = reading.unwrap();
    assert_eq!(
        (reader.end(), reader.replicas(), found.len()),
        (Seq(3), 3, 0)
    );

    // Whatever else it asks for, the servers don't even hear.
    let login = async_nats::ConnectOptions::with_user_and_password;
    let raw = login("first".into(), "first-secret".into())
        .connect(cluster.urls("first", "first-secret"))
        .await
        .unwrap();
    let stream = "agora-0123456789abcdef";
    for forbidden in [
        format!("{stream}.bbbbbbbb"),
        format!("{stream}.ffffffff"),
        format!("{stream}.bbbbbbbb.0000000000000001"),
        format!("$JS.API.STREAM.DELETE.{stream}"),
        format!("$JS.API.STREAM.PURGE.{stream}"),
        format!("$JS.API.STREAM.UPDATE.{stream}"),
        format!("$JS.API.STREAM.MSG.DELETE.{stream}"),
        format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"),
        "$JS.API.STREAM.CREATE.other".into(),
    ] {
        let asked = raw.request(forbidden.clone(), "{}".into());
        // A refused publish is told of outside of the request, so that nothing comes is the answer.
        let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
        assert!(!matches!(answered, Ok(Ok(_))), "{forbidden} was answered");
    }
    assert_eq!(append(&first, "still there").await.unwrap(), Seq(4));
    let began = Instant::now();
    while second.end() < Seq(4) {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let read = second.read(Seq(4), 1, 1 << 20).await.unwrap();
    assert_eq!(read[0].1, "still there");
    // They append in lanes, and who made the stream takes out of those what was pruned.
    let lane = agora_log::Lane::Of([0, 0, 0, 0, 0, 0, 0, 1]);
    let bytes = Bytes::from_static(b"in a lane");
    let appended = first.append_in(lane, [7; 32], bytes, Class::Ordinary);
    assert_eq!(appended.await.unwrap().seq, Seq(5));
    assert_eq!(append(&second, "behind it").await.unwrap(), Seq(6));
    for host in [&first, &second] {
        let refused = host.purge_lane(lane, Seq(5)).await;
        assert!(
            matches!(refused, Err(LogError::Unavailable { .. })),
            "{refused:?}"
        );
    }
    let founder = opened(&cluster.options("founder", "f-secret", "ffffffff")).await;
    founder.purge_lane(lane, Seq(5)).await.unwrap();
    for log in [&founder, &first, &second] {
        let began = Instant::now();
        loop {
            let read = log.read(Seq(4), 3, 1 << 20).await.unwrap();
            let read: Vec<_> = read.into_iter().map(|(_, bytes)| bytes).collect();
            if read == ["still there", "", "behind it"].map(Bytes::from) {
                break;
            }
            // A server may be behind the others.
            assert!(began.elapsed() < PATIENCE, "{read:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(log.is_purged(Seq(5)).await.unwrap());
    }
    founder.close().await.unwrap();
    first.close().await.unwrap();
    second.close().await.unwrap();
}
