//! Services for journeys: real ones as processes, and ones that misbehave, on threads of their own.
//!
//! Each ends when it is dropped, and whoever was connected is hung up on.

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream as Client;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use capnp::Error;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use folder_service::folder_capnp::folder;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::harness::{PATIENCE, workspace};

/// A service that is a process.
pub(crate) struct Process(Child);

impl Process {
    fn start(mut command: Command, folder: &Path, socket: &Path) -> Self {
        command.arg(folder).arg(socket).stdin(Stdio::null());
        let mut process = Self(command.spawn().expect("the service runs"));
        let began = Instant::now();
        while Client::connect(socket).is_err() {
            let ended = process.0.try_wait().expect("it is our child");
            assert!(ended.is_none(), "the service ended at once: {ended:?}");
            assert!(began.elapsed() < PATIENCE, "the service does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }

    /// The folder service in Rust.
    pub(crate) fn rust(folder: &Path, socket: &Path) -> Self {
        static BUILT: OnceLock<String> = OnceLock::new();
        let program = BUILT.get_or_init(|| {
            let output = Command::new(env!("CARGO"))
                .current_dir(workspace())
                .args(["build", "--package", "folder-service"])
                .args(["--message-format", "json-render-diagnostics"])
                .stdin(Stdio::null())
                .stderr(Stdio::inherit())
                .output()
                .expect("cargo runs");
            assert!(output.status.success(), "the service can't be built");
            let messages = String::from_utf8_lossy(&output.stdout);
            let program = messages
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find_map(|message| message["executable"].as_str().map(str::to_owned));
            program.expect("it is a program")
        });
        Self::start(Command::new(program), folder, socket)
    }

    /// The folder service in Python, where pycapnp is: with the interpreter that `AGORA_PYTHON` names, or `python3`.
    pub(crate) fn python(folder: &Path, socket: &Path) -> Option<Self> {
        let python = std::env::var_os("AGORA_PYTHON").unwrap_or_else(|| "python3".into());
        let probe = Command::new(&python)
            .args(["-c", "import capnp"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !probe.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = Command::new(python);
        command.arg(workspace().join("services/folder/python/folder_service.py"));
        Some(Self::start(command, folder, socket))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a service misbehaves.
#[derive(Clone)]
pub(crate) enum Manner {
    /// It answers `list` and no other call.
    Stalls,
    /// It sends these bytes to whoever connects.
    Sends(Vec<u8>),
    /// Once it is asked for a search, it calls back as fast as it can, waiting for no answer and giving up every second call.
    CallsBack,
}

/// What it saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Connections that were made.
    pub(crate) connected: AtomicUsize,
    /// Connections that ended.
    pub(crate) ended: AtomicUsize,
    /// Calls that it does not answer.
    pub(crate) stalled: AtomicUsize,
    /// Calls that it made.
    pub(crate) called: AtomicUsize,
}

/// A service that misbehaves.
pub(crate) struct Fake {
    pub(crate) seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(socket: &Path, manner: Manner) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("the folder is ours");
        listener.set_nonblocking(true).expect("it can be");
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let sees = seen.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a thread can have a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                let listener = UnixListener::from_std(listener).expect("it is a listener");
                let accepting = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        sees.connected.fetch_add(1, Ordering::SeqCst);
                        tokio::task::spawn_local(serve(stream, manner.clone(), sees.clone()));
                    }
                };
                tokio::select! {
                    () = accepting => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Waits for what it sees.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, fact: impl Fn(&Seen) -> bool) {
        let began = Instant::now();
        while !fact(&self.seen) {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(mut stream: UnixStream, manner: Manner, seen: Arc<Seen>) {
    if let Manner::Sends(bytes) = manner {
        let _ = stream.write_all(&bytes).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    } else {
        let (read, write) = stream.into_split();
        let network = twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            rpc_twoparty_capnp::Side::Server,
            Default::default(),
        );
        let calls = Rc::new(Calls {
            seen: seen.clone(),
            callbacks: RefCell::default(),
            ended: Cell::new(false),
        });
        let folder: folder::Client = capnp_rpc::new_client_from_rc(calls.clone());
        let _ = RpcSystem::new(Box::new(network), Some(folder.client)).await;
        calls.ended.set(true);
        for callback in calls.callbacks.take() {
            callback.abort();
        }
    }
    seen.ended.fetch_add(1, Ordering::SeqCst);
}

/// The calls of one connection.
struct Calls {
    seen: Arc<Seen>,
    callbacks: RefCell<Vec<tokio::task::JoinHandle<()>>>,
    ended: Cell<bool>,
}

impl Calls {
    async fn stall(&self) -> Result<(), Error> {
        self.seen.stalled.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

impl folder::Server for Calls {
    async fn list(
        self: Rc<Self>,
        _: folder::ListParams,
        _: folder::ListResults,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: folder::ReadParams,
        _: folder::ReadResults,
    ) -> Result<(), Error> {
        self.stall().await
    }

    async fn search(
        self: Rc<Self>,
        params: folder::SearchParams,
        _: folder::SearchResults,
    ) -> Result<(), Error> {
        let found = params.get()?.get_found()?;
        let calls = self.clone();
        let flood = tokio::task::spawn_local(async move {
            let text = "x".repeat(2000);
            // Nothing here waits for an answer; only the connection's own queue is kept short.
            while !calls.ended.get() {
                for _ in 0..64 {
                    let mut line = found.line_request();
                    line.get().set_text(&text);
                    let answer = line.send().promise;
                    let called = calls.seen.called.fetch_add(1, Ordering::SeqCst);
                    if called.is_multiple_of(2) {
                        tokio::task::spawn_local(async move { drop(answer.await) });
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        self.callbacks.borrow_mut().push(flood);
        self.stall().await
    }

    async fn sub(self: Rc<Self>, _: folder::SubParams, _: folder::SubResults) -> Result<(), Error> {
        self.stall().await
    }
}
