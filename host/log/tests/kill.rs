//! A writing process killed at any moment: what it was told stands, once, and in order.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use agora_log::{Class, Embedded, Log, LogError, Options, Seq};
use bytes::Bytes;

const DIR: &str = "AGORA_LOG_KILL_DIR";
const RUN: &str = "AGORA_LOG_KILL_RUN";

fn options() -> Options {
    Options {
        entry_bytes_max: 4000,
        segment_bytes: 64 << 10,
        reserve_bytes: 12 << 10,
        queue_bytes: 64 << 10,
        control_queue_bytes: 64 << 10,
        batch_bytes: 8 << 10,
        recent_bytes: 8 << 10,
    }
}

fn entry(run: u64, writer: u64, number: u64) -> Bytes {
    let name = format!("{run} {writer} {number};");
    let fill = "x".repeat((writer * 97 + number * 31) as usize % 1500);
    Bytes::from(name + &fill)
}

fn name_of(entry: &[u8]) -> (u64, u64, u64) {
    let end = entry.iter().position(|&byte| byte == b';').unwrap();
    let name = std::str::from_utf8(&entry[..end]).unwrap();
    let mut words = name.split(' ').map(|word| word.parse().unwrap());
    let mut word = || words.next().unwrap();
    let name = (word(), word(), word());
    assert_eq!(
        entry,
        self::entry(name.0, name.1, name.2),
        "an entry is not what was appended"
    );
    name
}

/// Not a test of its own: the process that is killed. It writes until then.
#[test]
fn the_writing_process() {
    let (Ok(dir), Ok(run)) = (env::var(DIR), env::var(RUN)) else {
        return;
    };
    let run: u64 = run.parse().unwrap();
    let (log, _) = Embedded::open(Path::new(&dir), options()).unwrap();
    println!("\nopen");
    thread::scope(|scope| {
        for writer in 0..8 {
            let log = &log;
            scope.spawn(move || {
                let class = if writer == 0 {
                    Class::Control
                } else {
                    Class::Ordinary
                };
                for number in 0.. {
                    let appending = log.append([0; 32], entry(run, writer, number), class);
                    let seq = futures::executor::block_on(appending).unwrap().seq;
                    // One write, so that a line is there whole or not at all.
                    let line = format!("\nack {seq} {writer} {number} .\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_moved_or_doubled_by_kill_9() {
    let kills: u64 = env::var("AGORA_KILLS").map_or(10, |kills| kills.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    // Every acknowledgement of all runs, and how many a run's writers had.
    let mut told: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
    let mut before = 0;
    for run in 0..kills {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "the_writing_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIR, dir.path())
            .env(RUN, run.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = lines.by_ref().any(|line| line.unwrap() == "open");
        assert!(opened, "the writer did not open the log");
        let reading = thread::spawn(move || -> Vec<String> {
            lines
                .map_while(Result::ok)
                .filter(|line| line.starts_with("ack ") && line.ends_with(" ."))
                .collect()
        });
        // From before the first batch to some segments on.
        thread::sleep(Duration::from_micros(run * run * 7919 % 150_000));
        let refused = Embedded::open(dir.path(), options()).err();
        assert!(
            matches!(refused, Some(LogError::Locked { .. })),
            "{refused:?}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reading.join().unwrap() {
            let words: Vec<u64> = line
                .split(' ')
                .filter_map(|word| word.parse().ok())
                .collect();
            let again = told.insert(words[0], (run, words[1], words[2]));
            assert_eq!(again, None, "place {} was given out twice", words[0]);
        }

        let (log, opened) = Embedded::open(dir.path(), options()).unwrap();
        assert!(
            opened.end >= Seq(before),
            "entries of earlier runs are gone"
        );
        before = opened.end.0;
        let mut names = BTreeSet::new();
        let mut next: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut seq = 1;
        while seq <= opened.end.0 {
            let found = futures::executor::block_on(log.read(Seq(seq), 500, 1 << 20)).unwrap();
            for (at, bytes) in found {
                assert_eq!(at, Seq(seq), "a gap");
                let name = name_of(&bytes);
                assert!(names.insert(name), "{name:?} stands twice");
                let number = next.entry((name.0, name.1)).or_default();
                assert_eq!(name.2, *number, "a writer's entries are not in its order");
                *number += 1;
                if let Some(told) = told.get(&seq) {
                    assert_eq!(*told, name, "place {seq} holds another entry");
                }
                seq += 1;
            }
        }
        let last_told = told.last_key_value().map_or(0, |(&seq, _)| seq);
        assert!(
            last_told <= opened.end.0,
            "acknowledged up to {last_told}, the log ends at {}",
            opened.end
        );
    }
    assert!(
        kills < 5 || told.len() > 50,
        "only {} acknowledgements were seen",
        told.len()
    );
    println!(
        "{kills} kills, {} acknowledgements, {before} entries",
        told.len()
    );
}
