//! The log of one machine, in a folder: `queue` -> `writer` -> segment files -> `recent` and `chain` for readers.
//!
//! In the folder: `format` (the data format's version), `lock`, and `NNNNNNNNNN.segment` files (see `format.rs`), the
//! last of them usually a spare one. Files are touched by threads of the log's own, never by the caller's.

mod chain;
mod files;
mod folder;
pub(crate) mod format;
mod purge;
mod queue;
mod recent;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod whole;
mod writer;

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::whole::{Stood, Whole};
use self::{
    chain::Chain,
    files::{Disk, Files},
    queue::{Next, Queue, Waiting},
    recent::Recent,
    writer::Writer,
};
use crate::{Appended, Class, Durability, Log, LogError, Options, Seq, limits};

/// The log of one machine, in a folder. Dropping it waits until what was taken is durable; [`Log::close`] does so
/// without blocking. Streams and reads that were begun go on.
pub struct Embedded {
    shared: Arc<Shared>,
    writing: Option<JoinHandle<()>>,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The last durable entry.
    pub end: Seq,
    /// What was cut off behind it (opened read-only: what would be).
    pub cut: Option<TornTail>,
    /// Whether the room reserved for control entries is there; if not, it is made up as soon as there is room.
    pub reserved: bool,
}

/// Bytes of entries that were being written, and never acknowledged, when the log last stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file.
    pub file: PathBuf,
    /// Where in the file the tail began.
    pub offset: u64,
    /// How many bytes it had.
    pub bytes: u64,
}

/// A folder open for reading only: sees what stood in it when it was opened. If a log has the folder open, the last
/// entries may not be durable yet.
pub struct ReadOnly {
    chain: Arc<Chain>,
    end: Seq,
}

struct Shared {
    dir: PathBuf,
    options: Options,
    queue: Queue,
    recent: Arc<Recent>,
    chain: Arc<Chain>,
    /// The last durable entry; the writer's end is dropped once the log is closed and the folder let go.
    end: watch::Receiver<Seq>,
    reads: mpsc::Sender<ReadJob>,
    syncs: Arc<AtomicU64>,
    /// Held by the one purge that is at work.
    purging: Mutex<()>,
    /// The folder's lock, as long as the writing thread has it.
    lock: Weak<Option<File>>,
}

struct ReadJob {
    from: Seq,
    entries: usize,
    bytes_max: usize,
    end: Seq,
    answer: oneshot::Sender<Result<Vec<(Seq, Bytes)>, LogError>>,
}

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";

fn format_line() -> String {
    format!("agora-log {}\n", format::VERSION)
}

impl Embedded {
    /// Opens the log in `dir`, creating the folder if needed. Blocks on files.
    ///
    /// # Errors
    /// [`LogError::Locked`], [`LogError::Format`], [`LogError::Corrupt`], [`LogError::Options`], [`LogError::Io`].
    pub fn open(dir: &Path, options: Options) -> Result<(Embedded, Opened), LogError> {
        options.check()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(LogError::io("create", dir))?;
        let lock = lock(dir)?;
        check_format(dir, true)?;
        Self::open_on(Arc::new(Disk), dir, options, Some(lock))
    }

    /// Opens the log in `dir` to read it, whether or not another process has it open. Changes nothing. Blocks on files.
    ///
    /// # Errors
    /// [`LogError::Missing`], [`LogError::Format`], [`LogError::Corrupt`], [`LogError::Io`].
    pub fn open_read_only(dir: &Path) -> Result<(ReadOnly, Opened), LogError> {
        check_format(dir, false)?;
        let files = Arc::new(Disk);
        let recovered = folder::recover(&*files, dir, None)?;
        let opened = Opened {
            end: recovered.end,
            cut: recovered.cut,
            reserved: recovered.spare.is_some(),
        };
        let log = ReadOnly {
            chain: Chain::new(files, recovered.segments),
            end: recovered.end,
        };
        Ok((log, opened))
    }

    /// Syncs that made entries durable since opening; each covers all entries that waited for it.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    fn open_on(
        files: Arc<dyn Files>,
        dir: &Path,
        options: Options,
        lock: Option<File>,
    ) -> Result<(Embedded, Opened), LogError> {
        let recovered = folder::recover(&*files, dir, Some(&options))?;
        let (end, cut) = (recovered.end, recovered.cut.clone());
        if let Some(cut) = &cut {
            tracing::warn!(file = %cut.file.display(), offset = cut.offset, bytes = cut.bytes, "a torn tail was cut");
        }
        let (end_sender, end_receiver) = watch::channel(end);
        let recent = Arc::new(Recent::new(options.recent_bytes));
        let chain = Chain::new(files.clone(), recovered.segments.clone());
        let end_sender = Arc::new(end_sender);
        let syncs = Arc::new(AtomicU64::new(0));
        let on_durable = {
            let (recent, end_sender) = (recent.clone(), end_sender.clone());
            let syncs = syncs.clone();
            Box::new(move |first: Seq, entries: &[Bytes]| {
                syncs.fetch_add(1, Ordering::Relaxed);
                recent.push(first, entries);
                end_sender.send_replace(Seq(first.0 + entries.len() as u64 - 1));
            })
        };
        let writer = Writer::new(
            files,
            dir.into(),
            options.clone(),
            recovered,
            chain.clone(),
            on_durable,
        )?;
        let opened = Opened {
            end,
            cut,
            reserved: writer.is_prepared(),
        };
        let lock = Arc::new(lock);
        let (reads, jobs) = mpsc::channel(limits::READS_WAITING_MAX);
        let shared = Arc::new(Shared {
            dir: dir.into(),
            queue: Queue::new(&options),
            options,
            recent,
            chain,
            end: end_receiver,
            reads,
            syncs,
            purging: Mutex::default(),
            lock: Arc::downgrade(&lock),
        });
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..limits::READERS {
            let (jobs, chain) = (jobs.clone(), shared.chain.clone());
            spawn("agora-log-read", dir, move || serve_reads(&jobs, &chain))?;
        }
        let writing = {
            let shared = shared.clone();
            spawn("agora-log-write", dir, move || {
                let closing = CloseOnDrop(&shared.queue);
                serve_appends(writer, &shared.queue);
                drop(closing);
                // In this order: who sees the end of the log may open the folder again.
                drop(lock);
                drop(end_sender);
            })?
        };
        let log = Embedded {
            shared,
            writing: Some(writing),
        };
        Ok((log, opened))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}

/// Whatever ends the writing thread, nobody may wait for it any more.
struct CloseOnDrop<'a>(&'a Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn spawn(
    name: &str,
    dir: &Path,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, LogError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(LogError::io("start a thread for", dir))
}

fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(LogError::io("open", &path))?;
    // A process that was just killed, or a child that was just forked from one that let go, may hold it for a moment more.
    let patience = Duration::from_millis(limits::LOCK_PATIENCE_MS);
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                thread::sleep(patience / 20);
            }
            Err(TryLockError::WouldBlock) => return Err(LogError::Locked { path: dir.into() }),
            Err(TryLockError::Error(error)) => return Err(LogError::io("lock", &path)(error)),
        }
    }
}

/// Checks the folder's format, or marks a new folder with it.
fn check_format(dir: &Path, create: bool) -> Result<(), LogError> {
    let path = dir.join(FORMAT_FILE);
    let mut found = Vec::new();
    match File::open(&path).and_then(|file| file.take(64).read_to_end(&mut found)) {
        Ok(_) if found == format_line().as_bytes() => return Ok(()),
        Ok(_) => {
            return Err(LogError::Format {
                path: dir.into(),
                found: format!("{:?}", String::from_utf8_lossy(&found).trim()),
                known: format!("{:?}", format_line().trim()),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(LogError::io("read", &path)(error)),
    }
    if !create {
        return Err(LogError::Missing { path: dir.into() });
    }
    let io = |error| LogError::io("create", &path)(error);
    for name in Disk.list(dir).map_err(io)? {
        if name.ends_with(".segment") {
            return Err(LogError::Format {
                path: dir.into(),
                found: format!("unmarked, though there is {name:?}"),
                known: format!("{:?}", format_line().trim()),
            });
        }
    }
    let new = dir.join("format.new");
    let mut file = File::create(&new).map_err(io)?;
    file.write_all(format_line().as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&new, &path).map_err(io)?;
    Disk.sync_dir(dir).map_err(io)?;
    // The folder itself must outlive a crash too.
    match dir.canonicalize().map_err(io)?.parent() {
        Some(parent) => Disk.sync_dir(parent).map_err(io),
        None => Ok(()),
    }
}

/// The writing thread: until the queue is closed and empty.
fn serve_appends(mut writer: Writer, queue: &Queue) {
    let retry = Duration::from_millis(limits::RESERVE_RETRY_MS);
    let (mut tried, mut failed) = (Instant::now(), false);
    loop {
        let idle = (!writer.is_prepared()).then_some(retry);
        match queue.next(idle) {
            Next::Closed => return,
            Next::Idle => {}
            Next::Roll(answer) => drop(answer.send(writer.roll())),
            Next::Batch(batch) => {
                let entries: Vec<_> = batch
                    .iter()
                    .map(|waiting| (waiting.class, waiting.bytes.clone()))
                    .collect();
                let answers = writer.commit(&entries);
                for (waiting, answer) in batch.into_iter().zip(answers) {
                    let Waiting {
                        answer: to, room, ..
                    } = waiting;
                    let _ = to.send(answer.map(|seq| Appended {
                        seq,
                        durability: Durability::Fsync,
                    }));
                    drop(room);
                }
            }
        }
        // Ahead of need, when nobody waits for it.
        if !writer.is_prepared() && (!failed || tried.elapsed() >= retry) {
            failed = writer.prepare().is_err();
            tried = Instant::now();
        }
    }
}

fn serve_reads(jobs: &Mutex<mpsc::Receiver<ReadJob>>, chain: &Chain) {
    loop {
        let next = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(job) = next else { return };
        let found = chain.read(job.from, job.entries, job.bytes_max, job.end);
        let _ = job.answer.send(found);
    }
}

impl Shared {
    async fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        let from = from.max(Seq::FIRST);
        let end = *self.end.borrow();
        if from > end || entries == 0 {
            return Ok(Vec::new());
        }
        if let Some(found) = self.recent.read(from, entries, bytes_max) {
            return Ok(found);
        }
        let (answer, answered) = oneshot::channel();
        let job = ReadJob {
            from,
            entries,
            bytes_max,
            end,
            answer,
        };
        self.reads.send(job).await.map_err(|_| LogError::Closed)?;
        answered.await.map_err(|_| LogError::Closed)?
    }
}

impl Shared {
    async fn purge(self: Arc<Self>, places: Vec<Seq>) -> Result<u64, LogError> {
        let end = *self.end.borrow();
        let mut places: Vec<u64> = places.into_iter().map(|place| place.0).collect();
        places.retain(|place| (1..=end.0).contains(place));
        places.sort_unstable();
        places.dedup();
        let Some(last) = places.last().copied() else {
            return Ok(0);
        };
        if last >= self.chain.open_from() {
            let rolled = self.queue.roll()?.await.map_err(|_| LogError::Closed)?;
            rolled.map_err(LogError::io("begin a segment in", &self.dir))?;
        }
        // The folder stays locked until this is done, also if the log is closed meanwhile.
        let lock = self.lock.upgrade().ok_or(LogError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let shared = self.clone();
        let _thread = spawn("agora-log-purge", &self.dir, move || {
            let one = shared
                .purging
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let purged = purge::purge(&shared.chain, &shared.dir, &places);
            if purged.is_ok() {
                shared.recent.purge(&places);
            }
            drop((one, lock));
            let _ = answer.send(purged);
        })?;
        answered.await.map_err(|_| LogError::Closed)?
    }
}

impl Log for Embedded {
    fn append(
        &self,
        _id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let bytes_max = self.shared.options.entry_bytes_max;
        if bytes.len() > bytes_max {
            let bytes = bytes.len();
            return future::ready(Err(LogError::TooLarge { bytes, bytes_max })).boxed();
        }
        let len = bytes.len();
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        let push = move |room| {
            shared.queue.push(Waiting {
                bytes,
                class,
                answer,
                room,
            })
        };
        let answered = answered.map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(LogError::Unknown {
                    place: "on this machine".into(),
                    why: "the log stopped while writing".into(),
                    mend: "open it again".into(),
                })
            })
        });
        match self.shared.queue.try_room(class, len) {
            Err(closed) => future::ready(Err(closed)).boxed(),
            Ok(Some(room)) => match push(room) {
                Err(closed) => future::ready(Err(closed)).boxed(),
                Ok(()) => answered.boxed(),
            },
            Ok(None) => {
                let shared = self.shared.clone();
                async move {
                    push(shared.queue.room(class, len).await?)?;
                    answered.await
                }
                .boxed()
            }
        }
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let shared = self.shared.clone();
        async move { shared.read(from, entries, bytes_max).await }.boxed()
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let tail = Tail {
            end: self.shared.end.clone(),
            shared: self.shared.clone(),
            next: from.max(Seq::FIRST),
            ahead: VecDeque::new(),
        };
        stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(None) => None,
                Ok(Some(found)) => Some((Ok(found), Some(tail))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    fn durability(&self) -> Durability {
        Durability::Fsync
    }

    fn purge(&self, places: Vec<Seq>) -> BoxFuture<'static, Result<u64, LogError>> {
        let shared = self.shared.clone();
        async move { shared.purge(places).await }.boxed()
    }

    fn is_purged(&self, seq: Seq) -> BoxFuture<'static, Result<bool, LogError>> {
        future::ready(self.shared.chain.is_purged(seq)).boxed()
    }

    fn end(&self) -> Seq {
        *self.shared.end.borrow()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        self.shared.queue.close();
        let mut end = self.shared.end.clone();
        async move {
            while end.changed().await.is_ok() {}
            Ok(())
        }
        .boxed()
    }
}

/// Where one follower stands.
struct Tail {
    shared: Arc<Shared>,
    end: watch::Receiver<Seq>,
    next: Seq,
    ahead: VecDeque<(Seq, Bytes)>,
}

impl Tail {
    async fn next(&mut self) -> Result<Option<(Seq, Bytes)>, LogError> {
        loop {
            if let Some(found) = self.ahead.pop_front() {
                self.next = found.0.next();
                return Ok(Some(found));
            }
            let end = *self.end.borrow_and_update();
            if self.next <= end {
                let found = self.shared.read(
                    self.next,
                    limits::TAIL_AHEAD_ENTRIES,
                    limits::TAIL_AHEAD_BYTES,
                );
                self.ahead = found.await?.into();
            } else if self.end.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

impl ReadOnly {
    /// As [`Log::read`]; blocks on files.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Seq, Bytes)>, LogError> {
        self.chain.read(from, entries, bytes_max, self.end)
    }

    /// As [`Log::is_purged`]; blocks on files.
    ///
    /// # Errors
    /// As [`Log::is_purged`].
    pub fn is_purged(&self, seq: Seq) -> Result<bool, LogError> {
        self.chain.is_purged(seq)
    }

    /// The last entry that can be read; `Seq(0)` when the log is empty.
    pub fn end(&self) -> Seq {
        self.end
    }
}
