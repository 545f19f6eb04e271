//! The embedded log on real files: the shared suite, and what belongs to a folder.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use agora_log::{
    Class, Embedded, Log, LogError, Options, Seq,
    conformance::{self, Place},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, future::join_all};

struct Folder {
    dir: tempfile::TempDir,
    options: Options,
}

impl Place for Folder {
    fn open(&self) -> BoxFuture<'static, Arc<dyn Log>> {
        let opened = Embedded::open(self.dir.path(), self.options.clone());
        let log: Arc<dyn Log> = Arc::new(opened.unwrap().0);
        futures::future::ready(log).boxed()
    }

    fn entry_bytes_max(&self) -> usize {
        self.options.entry_bytes_max
    }
}

/// So small that every test crosses segments and outruns what is kept in memory.
fn small() -> Options {
    Options {
        entry_bytes_max: 4000,
        segment_bytes: 32 << 10,
        reserve_bytes: 12 << 10,
        queue_bytes: 16 << 10,
        control_queue_bytes: 16 << 10,
        batch_bytes: 4 << 10,
        recent_bytes: 2 << 10,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_keeps_the_contract() {
    conformance::all(|| Folder {
        dir: tempfile::tempdir().unwrap(),
        options: Options::default(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_keeps_the_contract_with_little_room() {
    conformance::all(|| Folder {
        dir: tempfile::tempdir().unwrap(),
        options: small(),
    })
    .await;
}

async fn append(log: &dyn Log, bytes: usize, class: Class) -> Result<Seq, LogError> {
    let entry = Bytes::from(vec![7; bytes]);
    Ok(log.append([0; 32], entry, class).await?.seq)
}

fn kind<T>(result: Result<T, LogError>) -> LogError {
    result.err().expect("it was not refused")
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Embedded::open(dir.path(), small()).unwrap();
    let refused = kind(Embedded::open(dir.path(), small()));
    assert!(
        matches!(&refused, LogError::Locked { path } if path == dir.path()),
        "{refused}"
    );
    append(&log, 10, Class::Ordinary).await.unwrap();
    assert_eq!(Embedded::open_read_only(dir.path()).unwrap().1.end, Seq(1));
    // Not even a tail that is still held keeps the folder.
    let tail = log.tail(Seq(1));
    log.close().await.unwrap();
    let (again, opened) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!(opened.end, Seq(1));
    drop((tail, again));
    Embedded::open(dir.path(), small()).unwrap();
}

#[test]
fn an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Embedded::open(dir.path(), small()).unwrap());
    for found in ["agora-log 2\n", "", "\u{0}\u{1}", &"x".repeat(1 << 16)] {
        fs::write(dir.path().join("format"), found).unwrap();
        let refused = kind(Embedded::open(dir.path(), small()));
        assert!(matches!(refused, LogError::Format { .. }), "{refused}");
        let refused = kind(Embedded::open_read_only(dir.path()));
        assert!(matches!(refused, LogError::Format { .. }), "{refused}");
    }
    fs::remove_file(dir.path().join("format")).unwrap();
    let refused = kind(Embedded::open(dir.path(), small()));
    assert!(matches!(refused, LogError::Format { .. }), "{refused}");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = [
        Options {
            entry_bytes_max: 0,
            ..small()
        },
        Options {
            entry_bytes_max: 20 << 10,
            ..small()
        },
        Options {
            segment_bytes: 16 << 10,
            ..small()
        },
        Options {
            segment_bytes: u64::MAX,
            ..small()
        },
        Options {
            reserve_bytes: 100,
            ..small()
        },
        Options {
            reserve_bytes: u64::MAX,
            ..small()
        },
        Options {
            queue_bytes: 10,
            ..small()
        },
        Options {
            control_queue_bytes: usize::MAX,
            ..small()
        },
        Options {
            batch_bytes: 0,
            ..small()
        },
    ];
    for options in wrong {
        let refused = kind(Embedded::open(dir.path(), options));
        assert!(matches!(refused, LogError::Options { .. }), "{refused}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn reading_only_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = kind(Embedded::open_read_only(dir.path()));
    assert!(matches!(missing, LogError::Missing { .. }), "{missing}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let (log, _) = Embedded::open(dir.path(), small()).unwrap();
    for _ in 0..30 {
        append(&log, 3000, Class::Ordinary).await.unwrap();
    }
    drop(log);
    // A torn tail: the first bytes of a record that never was.
    let segment = last_segment_with_entries(dir.path());
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .unwrap()
        .next_multiple_of(8);
    bytes[end..end + 20].fill(9);
    fs::write(&segment, &bytes).unwrap();
    let before = contents(dir.path());
    let (log, opened) = Embedded::open_read_only(dir.path()).unwrap();
    assert_eq!(opened.end, Seq(30));
    assert_eq!(opened.cut.unwrap().bytes, 20);
    assert_eq!(log.read(Seq(1), 100, 1 << 20).unwrap().len(), 30);
    assert_eq!(log.read(Seq(29), 100, 1 << 20).unwrap().len(), 2);
    assert_eq!(contents(dir.path()), before);

    let (_, opened) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!((opened.end, opened.cut.unwrap().bytes), (Seq(30), 20));
    let (_, opened) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!((opened.end, opened.cut), (Seq(30), None));
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

fn last_segment_with_entries(dir: &Path) -> PathBuf {
    let segments = contents(dir).into_iter();
    let mut used = segments.filter(|(path, bytes)| {
        path.extension().is_some_and(|ending| ending == "segment")
            && bytes.iter().any(|&byte| byte != 0)
    });
    used.next_back().unwrap().0
}

#[tokio::test]
async fn bounds_hold_while_writers_press() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Embedded::open(dir.path(), small()).unwrap();
    // Far more than the queue holds.
    let answers = join_all((0..400).map(|_| append(&log, 1000, Class::Ordinary))).await;
    let mut seqs: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    seqs.sort();
    assert_eq!(seqs, (1..=400).map(Seq).collect::<Vec<_>>());
}

/// A file system of a given size, if this process may mount one.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Option<Tiny> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "agora-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(done) if done.status.success() => Some(Tiny(dir)),
            _ => None,
        }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_really_full_disk_keeps_room_for_control_entries_and_mends_itself() {
    let Some(tiny) = Tiny::mount() else {
        eprintln!(
            "SKIPPED: this process may not mount a tmpfs (run as root to test a really full disk)"
        );
        return;
    };
    let dir = tiny.0.path().join("log");
    let ballast = tiny.0.path().join("ballast");
    let (log, opened) = Embedded::open(&dir, small()).unwrap();
    assert!(opened.reserved);
    fill(&ballast);
    let mut stands = 0;
    let refused = loop {
        match append(&log, 1000, Class::Ordinary).await {
            Ok(_) => stands += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::Unavailable { .. }), "{refused}");
    for _ in 0..10 {
        append(&log, 1000, Class::Control).await.unwrap();
        stands += 1;
    }
    // Opening on a full disk works too, and control entries still go in.
    drop(log);
    let (log, opened) = Embedded::open(&dir, small()).unwrap();
    assert_eq!((opened.end, opened.reserved), (Seq(stands), false));
    append(&log, 100, Class::Control).await.unwrap();
    let refused = kind(append(&log, 1000, Class::Ordinary).await);
    assert!(matches!(refused, LogError::Unavailable { .. }), "{refused}");

    fs::remove_file(ballast).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while let Err(error) = append(&log, 1000, Class::Ordinary).await {
        assert!(Instant::now() < patience, "{error}");
    }
    let (found, _) = Embedded::open_read_only(&dir).unwrap();
    assert_eq!(found.end(), Seq(stands + 2));
}

fn fill(ballast: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(ballast).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_places_read_as_empty_while_all_goes_on_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Embedded::open(dir.path(), small()).unwrap();
    let log = Arc::new(log);
    for _ in 0..100 {
        append(&*log, 1000, Class::Ordinary).await.unwrap();
    }
    // Who reads on meanwhile, here and in another process, sees each place as it was or empty, and nothing else.
    let (reading, _) = Embedded::open_read_only(dir.path()).unwrap();
    reading.read(Seq(1), 100, 1 << 20).unwrap();
    let appending = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..100 {
                append(&*log, 1000, Class::Ordinary).await.unwrap();
            }
        }
    });
    let odd: Vec<_> = (1..=100).filter(|seq| seq % 2 == 1).map(Seq).collect();
    assert_eq!(log.purge(odd.clone()).await.unwrap(), 50 * 1000);
    assert_eq!(log.purge(odd).await.unwrap(), 0);
    appending.await.unwrap();
    let holds = |seq: u64, bytes: usize| bytes == if seq <= 100 && seq % 2 == 1 { 0 } else { 1000 };
    let all = |found: Vec<(Seq, Bytes)>| {
        let wrong = found.iter().find(|(seq, entry)| !holds(seq.0, entry.len()));
        assert_eq!(wrong, None);
        found.len()
    };
    assert_eq!(all(reading.read(Seq(1), 100, 1 << 20).unwrap()), 100);
    let mut tail = log.tail(Seq(1));
    for seq in 1..=200 {
        let (at, entry) = tail.next().await.unwrap().unwrap();
        assert!(at.0 == seq && holds(seq, entry.len()), "{seq}");
    }
    assert!(log.is_purged(Seq(1)).await.unwrap() && reading.is_purged(Seq(99)).unwrap());
    assert!(!log.is_purged(Seq(2)).await.unwrap());
    log.close().await.unwrap();
    let (log, opened) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!(opened.end, Seq(200));
    assert_eq!(all(log.read(Seq(1), 200, 1 << 20).await.unwrap()), 200);
    // An empty entry of somebody's is not a purged one.
    let empty = append(&log, 0, Class::Ordinary).await.unwrap();
    assert!(!log.is_purged(empty).await.unwrap());
    // Purging the last ones begins a new segment, and goes on from there.
    log.purge(vec![Seq(199), empty, Seq(5000)]).await.unwrap();
    assert_eq!(append(&log, 7, Class::Ordinary).await.unwrap(), Seq(202));
    assert!(log.is_purged(Seq(199)).await.unwrap());
}
