//! Starts the real `agora` on images of their own, and reads what it says.
//!
//! Every wait has a bound and names what it waited for; a host is killed by its handle when its test ends, however it ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest that anything is waited for. Far above what it takes, so that a busy machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Journeys at once: each runs a host with threads of its own.
const JOURNEYS_MAX: usize = 3;

/// Every component that a journey uses.
const COMPONENTS: [&str; 20] = [
    "librarian",
    "deputy",
    "hoarder",
    "launderer",
    "weaver",
    "courier",
    "acker",
    "planner",
    "reviewer",
    "owner",
    "mole",
    "notary",
    "spinner",
    "hog",
    "flooder",
    "panicker",
    "echo-reactor",
    "older",
    "lodger",
    "forbidden",
];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The built component of a crate. All are built together, once a run.
pub(crate) fn component(name: &str) -> PathBuf {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(workspace())
            .args(["build", "--release", "--target", "wasm32-wasip2"])
            .args(["--message-format", "json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        for name in COMPONENTS {
            cargo.args(["--package", name]);
        }
        let output = cargo.output().expect("cargo runs");
        assert!(output.status.success(), "the components can't be built");
        let messages = String::from_utf8_lossy(&output.stdout);
        let artifacts = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["reason"] == "compiler-artifact");
        let mut built = BTreeMap::new();
        for artifact in artifacts {
            let files = artifact["filenames"].as_array().into_iter().flatten();
            for file in files
                .filter_map(Value::as_str)
                .filter(|f| f.ends_with(".wasm"))
            {
                let file = PathBuf::from(file);
                let stem = file.file_stem().and_then(|stem| stem.to_str());
                let name = stem.unwrap_or_default().replace('_', "-");
                built.insert(name, file);
            }
        }
        built
    });
    let found = built.get(name);
    found
        .unwrap_or_else(|| panic!("no component '{name}' was built"))
        .clone()
}

/// The folder of the whole workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::canonicalize(here.join("../..")).expect("the crate lies in its workspace")
}

/// A place among the journeys that run at once.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Self {
        let (running, ended) = &TURNS;
        let mut running = lock(running);
        while *running >= JOURNEYS_MAX {
            running = ended.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&TURNS.0) -= 1;
        TURNS.1.notify_one();
    }
}

/// An image and a data folder in a folder of their own.
pub(crate) struct Journey {
    folder: tempfile::TempDir,
    data: PathBuf,
    /// What lies in its folder is no record.
    forges: AtomicBool,
    /// What its hosts are started by: nothing, or a command that takes theirs as its last words.
    under: Vec<String>,
    _turn: Option<Turn>,
}

/// Every journey's record is what correct hosts wrote.
impl Drop for Journey {
    fn drop(&mut self) {
        if std::thread::panicking()
            || self.forges.load(Ordering::SeqCst)
            || !self.data.join("log/format").is_file()
        {
            return;
        }
        let told = self.cli(&["verify"]);
        assert_eq!(told.code, Some(0), "agora verify: {told:#?}");
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Asserts that it exited with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

impl Journey {
    /// An image of this manifest, in which `{NAME}` stands for the path of a component.
    pub(crate) fn new(manifest: &str) -> Self {
        Self::with_turn(manifest, Some(Turn::take()))
    }

    /// Another one within the same turn: of two journeys that each wait for a second turn, neither would ever get it.
    pub(crate) fn another(&self, manifest: &str) -> Self {
        Self::with_turn(manifest, None)
    }

    fn with_turn(manifest: &str, turn: Option<Turn>) -> Self {
        let folder = tempfile::tempdir().expect("there is room for temporary files");
        std::fs::create_dir(folder.path().join("image")).expect("the folder is ours");
        let data = folder.path().join("data");
        let journey = Self {
            folder,
            data,
            forges: AtomicBool::new(false),
            under: Vec::new(),
            _turn: turn,
        };
        journey.write_manifest(manifest);
        journey
    }

    /// Its record is tampered with on purpose, or stands elsewhere, so that `agora verify` would refuse what lies in its folder.
    pub(crate) fn forges(&self) {
        self.forges.store(true, Ordering::SeqCst);
    }

    /// Keeps the data elsewhere.
    pub(crate) fn with_data(mut self, data: PathBuf) -> Self {
        self.data = data;
        self
    }

    /// Starts its hosts by this command, which must become theirs, as `ip netns exec NAME` does.
    pub(crate) fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Writes the manifest anew.
    pub(crate) fn write_manifest(&self, manifest: &str) {
        let text = COMPONENTS.iter().fold(manifest.to_owned(), |text, name| {
            let place = format!("{{{name}}}");
            match text.contains(&place) {
                true => text.replace(&place, &component(name).display().to_string()),
                false => text,
            }
        });
        std::fs::write(self.image().join("agora.toml"), text).expect("the folder is ours");
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    fn agora(&self) -> Command {
        self.agora_under(&[])
    }

    fn agora_under(&self, under: &[String]) -> Command {
        let own = env!("CARGO_BIN_EXE_agora");
        let mut command = match under {
            [] => Command::new(own),
            [program, words @ ..] => {
                let mut command = Command::new(program);
                command.args(words).arg(own);
                command
            }
        };
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_remove("AGORA_LOG");
        command
    }

    /// Starts a host and waits until its operator's door is open.
    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Host {
        let host = self.spawn(args);
        let door = self.data.join("operator");
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&door).is_err() {
            if let Some(status) = host.exited() {
                panic!("the host ended at once ({status}):\n{}", host.stderr());
            }
            assert!(began.elapsed() < PATIENCE, "no door:\n{}", host.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        host
    }

    /// Starts a host.
    pub(crate) fn spawn(&self, args: &[&str]) -> Host {
        let mut command = self.agora_under(&self.under);
        command
            .args(["run", "image", "--json", "--no-build", "--data"])
            .arg(&self.data)
            .args(args);
        Host::spawn(command)
    }

    /// Starts a host whose output nobody reads.
    pub(crate) fn start_unread(&self) -> Unread {
        let mut command = self.agora();
        command
            .args(["run", "image", "--json", "--no-build", "--data"])
            .arg(&self.data)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let unread = Unread(command.spawn().expect("agora runs"));
        let door = self.data.join("operator");
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&door).is_err() {
            assert!(began.elapsed() < PATIENCE, "no door");
            std::thread::sleep(Duration::from_millis(5));
        }
        unread
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn agora_in(&self, folder: &Path, args: &[&str]) -> Ran {
        let mut command = self.agora();
        command.current_dir(folder).args(args);
        run(command)
    }

    /// Runs a verb against this journey's data folder.
    #[track_caller]
    pub(crate) fn cli(&self, args: &[&str]) -> Ran {
        let mut command = self.agora();
        command.args(args).arg("--data").arg(&self.data);
        run(command)
    }

    /// Says something, and answers its message's id.
    #[track_caller]
    pub(crate) fn say(&self, channel: &str, text: &str) -> String {
        let said = self.cli(&["say", channel, text]).exits(0);
        let id = said.stdout.trim().rsplit(' ').next();
        id.expect("a receipt ends with the id").to_owned()
    }

    /// What the record holds, as `agora log` tells it.
    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Value> {
        json_lines(&self.cli(&["log", "--json"]).exits(0).stdout)
    }

    /// The row of `agora ps` for an agent.
    #[track_caller]
    pub(crate) fn ps(&self, agent: &str) -> String {
        let listed = self.cli(&["ps"]).exits(0).stdout;
        let row = listed
            .lines()
            .find(|line| line.starts_with(&format!("{agent} ")));
        row.unwrap_or_else(|| panic!("no '{agent}' in:\n{listed}"))
            .to_owned()
    }

    /// Waits until `agora ps` says that an agent is in this state.
    #[track_caller]
    pub(crate) fn until_ps(&self, agent: &str, state: &str) {
        let began = Instant::now();
        loop {
            let row = self.ps(agent);
            if row.split_whitespace().nth(1) == Some(state) {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "'{agent}' is not {state}: {row}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[track_caller]
fn run(mut command: Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("agora runs");
    let stdout = collect(child.stdout.take().expect("it was asked for"));
    let stderr = collect(child.stderr.take().expect("it was asked for"));
    let ended = wait(&mut child, PATIENCE * 3);
    if ended.is_none() {
        let _ = child.kill();
    }
    let (stdout, stderr) = (stdout.join(), stderr.join());
    let (stdout, stderr) = (
        stdout.expect("it only reads"),
        stderr.expect("it only reads"),
    );
    let status = ended.unwrap_or_else(|| panic!("{command:?} does not end:\n{stdout}\n{stderr}"));
    Ran {
        code: status.code(),
        stdout,
        stderr,
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Some(status);
        }
        if began.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Parses JSON lines.
#[track_caller]
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    text.lines().map(parse).collect()
}

#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
    stderr: Mutex<String>,
}

/// A running host.
pub(crate) struct Host {
    child: Mutex<Child>,
    heard: Arc<Heard>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Host {
    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("agora runs");
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        let stderr = BufReader::new(child.stderr.take().expect("it was asked for"));
        let heard = Arc::new(Heard::default());
        let out = heard.clone();
        let err = heard.clone();
        let readers = vec![
            std::thread::spawn(move || {
                for line in stdout.lines().map_while(Result::ok) {
                    // A line cut by a kill is none.
                    if let Ok(line) = serde_json::from_str(&line) {
                        lock(&out.lines).push(line);
                        out.more.notify_all();
                    }
                }
            }),
            std::thread::spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    let mut text = lock(&err.stderr);
                    text.push_str(&line);
                    text.push('\n');
                }
            }),
        ];
        Self {
            child: Mutex::new(child),
            heard,
            readers,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().expect("it is our child")
    }

    /// Everything it printed so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        lock(&self.heard.lines).clone()
    }

    pub(crate) fn stderr(&self) -> String {
        lock(&self.heard.stderr).clone()
    }

    /// Waits until what it printed holds what is looked for.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut(&[Value]) -> Option<T>) -> T {
        let began = Instant::now();
        let mut lines = lock(&self.heard.lines);
        loop {
            if let Some(found) = look(&lines) {
                return found;
            }
            let left = PATIENCE.saturating_sub(began.elapsed());
            if left.is_zero() {
                let tail: Vec<_> = lines
                    .iter()
                    .rev()
                    .take(12)
                    .rev()
                    .map(Value::to_string)
                    .collect();
                drop(lines);
                panic!(
                    "waited in vain for {what}; the last lines:\n{}\n{}",
                    tail.join("\n"),
                    self.stderr()
                );
            }
            let waited = self
                .heard
                .more
                .wait_timeout(lines, left.min(Duration::from_millis(200)));
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for one line.
    #[track_caller]
    pub(crate) fn until_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.until(what, |lines| lines.iter().find(|line| is_it(line)).cloned())
    }

    /// Waits for a message with this text.
    #[track_caller]
    pub(crate) fn until_message(&self, text: &str) -> Value {
        self.until_line(text, |line| is_message(line) && line["body"] == text)
    }

    /// Waits until it said this on standard error.
    #[track_caller]
    pub(crate) fn until_stderr(&self, part: &str) {
        let began = Instant::now();
        while !self.stderr().contains(part) {
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "no '{part}' in:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn until_exit(mut self) -> (ExitStatus, Vec<Value>, String) {
        let status = wait(&mut lock(&self.child), PATIENCE * 3);
        let Some(status) = status else {
            panic!("the host does not end:\n{}", self.stderr());
        };
        for reader in std::mem::take(&mut self.readers) {
            let _ = reader.join();
        }
        (status, self.lines(), self.stderr())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("a pid is not 0");
        rustix::process::kill_process(pid, signal).expect("it is our child");
    }

    /// Asks it to end, and answers its last words.
    #[track_caller]
    pub(crate) fn stop(self) -> (ExitStatus, Vec<Value>, String) {
        self.signal(rustix::process::Signal::INT);
        self.until_exit()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok())
            .expect("VmRSS is in KiB")
            << 10
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A running host whose pipes are held and not read.
pub(crate) struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn is_message(line: &Value) -> bool {
    line["event"] == "record" && line["kind"] == "message"
}

/// The messages among lines.
pub(crate) fn messages(lines: &[Value]) -> Vec<Value> {
    lines
        .iter()
        .filter(|line| is_message(line))
        .cloned()
        .collect()
}

/// The records of a kind among lines.
pub(crate) fn records<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines
        .iter()
        .filter(|line| line["event"] == "record" && line["kind"] == kind)
        .collect()
}

/// A string field.
pub(crate) fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// The summary that a host ends with.
#[track_caller]
pub(crate) fn summary(lines: &[Value]) -> Value {
    let found = lines.iter().find(|line| line["event"] == "summary");
    found
        .expect("a host that ends by itself prints a summary")
        .clone()
}

/// A manifest of so many ackers on `build-coord`, with 3 hops, and a channel that nobody is granted.
pub(crate) fn ackers(count: usize) -> String {
    let mut manifest = "[channels.build-coord]\nhops = 3\n[channels.secret-ops]\n".to_owned();
    for n in 1..=count {
        manifest.push_str(&agent(
            &format!("acker-{n}"),
            "acker",
            "build-coord",
            "[\"read\", \"write\"]",
        ));
    }
    manifest
}

/// An agent with one grant.
pub(crate) fn agent(name: &str, component: &str, channel: &str, rights: &str) -> String {
    format!(
        "[agents.{name}]\ncomponent = \"{{{component}}}\"\n[[agents.{name}.grants]]\nchannel = \"{channel}\"\nrights = {rights}\n"
    )
}
