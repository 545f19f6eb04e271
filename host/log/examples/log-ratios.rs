//! What the log costs over the files it is made of: `cargo run --release -p agora-log --example log-ratios [DIR]`.
//!
//! Rows are `agora / floor = ratio`, higher is better, each the median of rounds that take turns. The floor is given the
//! same batches, already framed, and does nothing but write and sync them: no queue, no threads, no answers.

#![allow(clippy::unwrap_used, reason = "a measurement that fails is to stop")]

use std::{
    env,
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agora_log::{Class, Embedded, Log, Options, Seq};
use bytes::Bytes;

const ENTRY_BYTES: usize = 256;
/// An entry as it stands in a segment: 24 bytes of framing.
const RECORD_BYTES: usize = ENTRY_BYTES + 24;
const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_millis(150);

fn main() {
    let place = env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("target"), PathBuf::from);
    fs::create_dir_all(&place).unwrap();
    let dir = tempfile::tempdir_in(&place).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    println!(
        "entries of {ENTRY_BYTES} bytes, synced before they are answered; median of {ROUNDS} rounds"
    );
    for writers in [1, 64, 512] {
        let folder = dir.path().join(writers.to_string());
        let log = Arc::new(Embedded::open(&folder, Options::default()).unwrap().0);
        let mut floor = Floor::new(folder.join("floor"));
        let (mut ratios, mut per_sync) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (rate, batch) = runtime.block_on(append(&log, writers));
            ratios.push(rate / floor.write_and_sync(batch.round() as usize));
            per_sync.push(batch);
        }
        drop(log);
        fs::remove_dir_all(folder).unwrap();
        let entries = median(&mut per_sync);
        row(
            &format!("append, {writers} writers ({entries:.1} entries per sync)"),
            &mut ratios,
        );
    }

    let folder = dir.path().join("replay");
    let log = Arc::new(Embedded::open(&folder, Options::default()).unwrap().0);
    for _ in 0..10 {
        runtime.block_on(append(&log, 512));
    }
    drop(log);
    let (mut reads, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let floor = plain_read(&folder);
        let (log, opened) = Embedded::open(&folder, Options::default()).unwrap();
        let bytes = opened.end.0 as f64 * RECORD_BYTES as f64;
        reads.push(runtime.block_on(replay(&log, opened.end)).recip() * bytes / floor);
        tails.push(runtime.block_on(tail(&log, opened.end)).recip() * bytes / floor);
    }
    row(
        "replay by read, over plain reading of the same files",
        &mut reads,
    );
    row(
        "replay by tail, over plain reading of the same files",
        &mut tails,
    );
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, ratios: &mut [f64]) {
    let median = median(ratios);
    let (lowest, highest) = (ratios[ratios.len() / 4], ratios[ratios.len() * 3 / 4]);
    println!("{what}: agora / floor = {median:.2} (middle half {lowest:.2} to {highest:.2})");
}

/// Entries per second, and entries per sync.
async fn append(log: &Arc<Embedded>, writers: usize) -> (f64, f64) {
    let entry = Bytes::from(vec![7; ENTRY_BYTES]);
    let (end, syncs, begin) = (log.end().0, log.syncs(), Instant::now());
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (log, entry) = (log.clone(), entry.clone());
            tokio::spawn(async move {
                while begin.elapsed() < ROUND {
                    log.append([0; 32], entry.clone(), Class::Ordinary)
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let entries = (log.end().0 - end) as f64;
    let rate = entries / begin.elapsed().as_secs_f64();
    (rate, entries / (log.syncs() - syncs) as f64)
}

/// Writes and syncs batches into files allocated like segments, and nothing else.
struct Floor {
    path: PathBuf,
    number: u64,
    file: File,
    at: u64,
}

impl Floor {
    fn new(path: PathBuf) -> Self {
        Floor {
            file: Self::allocate(&path, 0),
            path,
            number: 0,
            at: 0,
        }
    }

    fn allocate(path: &Path, number: u64) -> File {
        let path = path.with_extension(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        let bytes = Options::default().segment_bytes;
        file.write_all_at(&vec![0; bytes as usize], 0).unwrap();
        file.sync_all().unwrap();
        file
    }

    /// Entries per second.
    fn write_and_sync(&mut self, batch: usize) -> f64 {
        let records = vec![7; batch.max(1) * RECORD_BYTES];
        let begin = Instant::now();
        let mut entries = 0;
        while begin.elapsed() < ROUND {
            if self.at + records.len() as u64 > Options::default().segment_bytes {
                self.number += 1;
                self.file = Self::allocate(&self.path, self.number);
                self.at = 0;
            }
            self.file.write_all_at(&records, self.at).unwrap();
            self.file.sync_data().unwrap();
            self.at += records.len() as u64;
            entries += batch.max(1);
        }
        entries as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Bytes per second of reading the segments and doing nothing with them.
fn plain_read(folder: &Path) -> f64 {
    let begin = Instant::now();
    let mut bytes = 0;
    let mut buf = vec![0; 256 << 10];
    for file in fs::read_dir(folder).unwrap() {
        let mut file = File::open(file.unwrap().path()).unwrap();
        loop {
            let read = file.read(&mut buf).unwrap();
            if read == 0 {
                break;
            }
            black_box(&buf[..read]);
            bytes += read;
        }
    }
    bytes as f64 / begin.elapsed().as_secs_f64()
}

/// Seconds to read all.
async fn replay(log: &Embedded, end: Seq) -> f64 {
    let begin = Instant::now();
    let mut next = Seq::FIRST;
    while next <= end {
        let found = log.read(next, usize::MAX, usize::MAX).await.unwrap();
        next = found.last().unwrap().0.next();
        black_box(found);
    }
    begin.elapsed().as_secs_f64()
}

/// Seconds to follow from the first to the last.
async fn tail(log: &Embedded, end: Seq) -> f64 {
    use futures::StreamExt;
    let begin = Instant::now();
    let mut tail = log.tail(Seq::FIRST);
    loop {
        let found = tail.next().await.unwrap().unwrap();
        if found.0 == end {
            return begin.elapsed().as_secs_f64();
        }
        black_box(found);
    }
}
