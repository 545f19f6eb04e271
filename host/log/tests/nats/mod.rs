//! Real NATS servers on loopback, each a process of its own that ends with its handle.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]
#![allow(dead_code, reason = "each user needs a part of it")]

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use agora_log::{JetStream, JetStreamOptions};

const PROGRAM: &str = "AGORA_NATS_SERVER";
const OLDEST: &str = "AGORA_NATS_SERVER_OLDEST";

/// The server's program: what `AGORA_NATS_SERVER` names, else the one on the path. None: the test that asks is skipped,
/// and says so.
pub(crate) fn program() -> Option<PathBuf> {
    let named = env::var_os(PROGRAM).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let program = named.or_else(|| {
        env::split_paths(&path)
            .map(|dir| dir.join("nats-server"))
            .find(|program| program.is_file())
    });
    if program.is_none() {
        // Not by `eprintln`, which nobody sees of a test that passes.
        let _ = writeln!(
            std::io::stderr(),
            "\n*** SKIPPED: there is no nats-server (set AGORA_NATS_SERVER, or let `cargo xtask test` install one) ***\n"
        );
    }
    program
}

/// The oldest server that is supported: what `AGORA_NATS_SERVER_OLDEST` names. None: the test that asks is skipped, and says so.
pub(crate) fn oldest() -> Option<PathBuf> {
    let program = env::var_os(OLDEST).map(PathBuf::from);
    if program.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "\n*** SKIPPED: {OLDEST} names no nats-server (`cargo xtask test` installs the oldest one that is supported) ***\n"
        );
    }
    program
}

/// A port that was free just now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// One server with a folder of its own.
pub(crate) struct Server {
    program: PathBuf,
    child: Option<Child>,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    /// Where other servers of its cluster find it.
    route: Option<u16>,
}

impl Server {
    /// Starts one by itself, which syncs before it acknowledges.
    pub(crate) fn start(program: &Path) -> Self {
        Self::start_with(program, "sync_interval: always")
    }

    pub(crate) fn start_with(program: &Path, jetstream: &str) -> Self {
        let mut server = Self::new(program, free_port(), jetstream, "");
        server.run();
        server
    }

    /// One that is yet to run.
    pub(crate) fn new(program: &Path, port: u16, jetstream: &str, rest: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let config = format!(
            "listen: 127.0.0.1:{port}\nmax_payload: 2MB\njetstream {{ store_dir: {store:?}, max_file_store: 1TB, {jetstream} }}\n{rest}\n"
        );
        fs::write(dir.path().join("nats.conf"), config).unwrap();
        Server {
            program: program.into(),
            child: None,
            dir,
            port,
            route: None,
        }
    }

    /// Three of one cluster, running, with stores of their own.
    pub(crate) fn cluster(program: &Path) -> Vec<Self> {
        let routes: Vec<_> = (0..3).map(|_| free_port()).collect();
        let mut servers: Vec<_> = (0..3)
            .map(|at| Self::of_cluster(program, at, routes[at], &routes))
            .collect();
        for server in &mut servers {
            server.run();
        }
        servers
    }

    /// One more of this cluster, running.
    pub(crate) fn joining(program: &Path, cluster: &[Self]) -> Self {
        let routes: Vec<_> = cluster.iter().filter_map(|server| server.route).collect();
        let mut server = Self::of_cluster(program, cluster.len(), free_port(), &routes);
        server.run();
        server
    }

    fn of_cluster(program: &Path, at: usize, route: u16, routes: &[u16]) -> Self {
        let routes: Vec<_> = routes
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        let rest = format!(
            "server_name: s{at}\ncluster {{ name: c, listen: 127.0.0.1:{route}, routes: [{}] }}",
            routes.join(", ")
        );
        let mut server = Self::new(program, free_port(), "sync_interval: always", &rest);
        server.route = Some(route);
        server
    }

    pub(crate) fn spawn(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(self.dir.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub(crate) fn run(&mut self) {
        self.spawn();
        let begin = Instant::now();
        while !self.greets() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "nats-server does not start: {}",
                fs::read_to_string(self.dir.path().join("log")).unwrap()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else {
            return false;
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        stream.read(&mut [0; 16]).is_ok_and(|read| read > 0)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stopped, every thread of it, until it is told to go on.
    pub(crate) fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.as_ref().unwrap().id());
        let is_stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // After the name, which may hold anything.
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        };
        let begin = Instant::now();
        while !fs::read_dir(&tasks).unwrap().flatten().all(is_stopped) {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "it does not stop"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Options for one of many streams on a server: streams of other numbers are other logs.
pub(crate) fn options(url: String, number: u64) -> JetStreamOptions {
    JetStreamOptions {
        servers: vec![url],
        name: "agora test".into(),
        stream: format!("realm-{number}"),
        subject_prefix: format!("agora.{number}"),
        stream_bytes_max: 256 << 20,
        reserve_bytes: 16 << 20,
        ..JetStreamOptions::default()
    }
}

pub(crate) async fn open(options: &JetStreamOptions) -> JetStream {
    match JetStream::open(options.clone()).await {
        Ok(log) => log,
        Err(error) => panic!("{error}"),
    }
}
