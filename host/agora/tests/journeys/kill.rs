//! Ending one agent, whatever it does, and whatever the disk does.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Journey, ackers, agent, messages, records, text};

fn with_spinner() -> String {
    format!(
        "{}{}",
        ackers(1),
        agent("spinner", "spinner", "build-coord", "[\"read\"]")
    )
}

#[test]
fn a_spinning_agent_is_gone_when_the_kill_returns_and_stays_so() {
    let journey = Journey::new(&with_spinner());
    let host = journey.start(&[]);
    journey.say("build-coord", "spin");
    // It shares its thread with the spinner, and answers all the same.
    host.until_message("ack operator:0: spin");
    assert!(journey.ps("spinner").contains("running"));
    journey
        .cli(&["kill", "spinner", "--reason", "hot"])
        .exits(0);
    let row = journey.ps("spinner");
    assert!(row.contains("killed") && row.contains("hot"), "{row}");
    assert!(row.contains(" 0B "), "its memory is gone: {row}");
    let again = journey.cli(&["kill", "spinner"]).exits(0);
    assert!(again.stdout.contains("killed before"), "{}", again.stdout);
    journey.say("build-coord", "and now?");
    host.until_message("ack operator:0: and now?");
    host.stop();

    let host = journey.start(&[]);
    journey.until_ps("acker-1", "running");
    assert!(journey.ps("spinner").contains("killed"));
    let key = |journey: &Journey| {
        let keys = journey.log();
        let of = records(&keys, "key")
            .into_iter()
            .filter(|k| text(k, "body").starts_with("spinner"));
        of.count()
    };
    let keys = key(&journey);
    journey.cli(&["start", "spinner"]).exits(0);
    journey.until_ps("spinner", "running");
    assert_eq!(key(&journey), keys + 1, "it comes back with a new key");
    let again = journey.cli(&["start", "spinner"]).exits(0);
    assert!(again.stdout.contains("running already"), "{}", again.stdout);
    host.stop();
    let _host = journey.start(&[]);
    journey.until_ps("spinner", "running");
}

#[test]
fn kills_and_starts_at_once_end_as_the_record_says() {
    let journey = Journey::new(&with_spinner());
    let host = journey.start(&[]);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let journey = &journey;
            scope.spawn(move || {
                for _ in 0..6 {
                    let verb = ["kill", "start"][n % 2];
                    let ran = journey.cli(&[verb, "spinner"]);
                    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
                }
            });
        }
    });
    let is_killed = || {
        let log = journey.log();
        let mut ours = log.iter().rev().filter(|record| {
            text(record, "body").starts_with("spinner is")
                && (record["kind"] == "kill" || record["kind"] == "key")
        });
        ours.next().is_some_and(|last| last["kind"] == "kill")
    };
    let expected = ["running", "killed"][usize::from(is_killed())];
    journey.until_ps("spinner", expected);
    journey.cli(&["kill", "spinner"]).exits(0);
    assert!(is_killed());
    host.stop();
    let _host = journey.start(&[]);
    assert!(journey.ps("spinner").contains("killed"));
}

#[test]
fn a_spinning_reactor_neighbour_is_not_slowed_by_four_spinners() {
    let mut manifest = ackers(1);
    for n in 1..=4 {
        manifest.push_str(&agent(
            &format!("spinner-{n}"),
            "spinner",
            "build-coord",
            "[\"read\"]",
        ));
    }
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    for n in 0..10 {
        journey.say("build-coord", &format!("{n}"));
        host.until_message(&format!("ack operator:0: {n}"));
    }
    journey
        .cli(&["epoch", "bump", "--reason", "they never learn of it"])
        .exits(0);
    journey.say("build-coord", "on");
    host.until_message("ack operator:0: on");
    for n in 1..=4 {
        journey.cli(&["kill", &format!("spinner-{n}")]).exits(0);
    }
    let (status, _, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

/// A file system of its own, so that filling it harms nobody.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// None, said loudly, where mounting is not permitted.
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir(at).expect("the folder is ours");
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m"),
                "agora-journey",
            ])
            .arg(at)
            .output();
        match mounted {
            Ok(out) if out.status.success() => Some(Self { at: at.to_owned() }),
            other => {
                eprintln!("NOT TESTED: a full disk, since nothing can be mounted here: {other:?}");
                None
            }
        }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Takes all the room but a little.
    fn fill(&self) {
        let stat = rustix::fs::statvfs(&self.at).expect("it is mounted");
        let free = (stat.f_bavail * stat.f_frsize).saturating_sub(512 << 10);
        let free = usize::try_from(free).expect("it is small");
        std::fs::write(self.filler(), vec![1; free]).expect("it fits");
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[test]
fn kill_and_bump_work_while_the_disk_is_full_and_the_host_recovers_by_itself() {
    let journey = Journey::new(&with_spinner());
    let place = journey.folder().join("disk");
    let Some(disk) = SmallDisk::mount(&place, 64) else {
        return;
    };
    let journey = journey.with_data(place.join("data"));
    let host = journey.start(&[]);
    disk.fill();
    journey.say("build-coord", "before");
    host.until_message("ack operator:0: before");
    // The log has allocated its room; these use it up.
    let long = "x".repeat(120 << 10);
    let mut said = Vec::new();
    let refused = (0..400).find_map(|_| {
        let ran = journey.cli(&["say", "secret-ops", &long]);
        match ran.code {
            Some(0) => {
                said.push(
                    ran.stdout
                        .trim()
                        .rsplit(' ')
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
                None
            }
            _ => Some(ran),
        }
    });
    let refused = refused.expect("the disk fills").exits(1);
    assert!(
        refused.stderr.contains("logUnavailable"),
        "{}",
        refused.stderr
    );
    assert!(said.len() > 10, "{}", said.len());

    journey
        .cli(&["kill", "spinner", "--reason", "no room"])
        .exits(0);
    assert!(journey.ps("spinner").contains("killed"));
    let bumped = journey
        .cli(&["epoch", "bump", "--reason", "no room"])
        .exits(0);
    assert_eq!(bumped.stdout.trim(), "epoch 2");

    disk.free();
    let began = std::time::Instant::now();
    while journey.cli(&["say", "build-coord", "after"]).code != Some(0) {
        assert!(
            began.elapsed() < super::harness::PATIENCE,
            "it does not recover"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    host.until_message("ack operator:0: after");
    let (status, _, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let log = journey.log();
    let kept: Vec<_> = messages(&log);
    for id in &said {
        assert!(
            kept.iter().any(|m| m["id"] == id.as_str()),
            "{id} was acknowledged"
        );
    }
    assert_eq!(records(&log, "kill").len(), 1);
    assert_eq!(records(&log, "fence").len(), 1);
    let _host = journey.start(&[]);
    assert!(journey.ps("spinner").contains("killed"));
    drop(_host);
    drop(disk);
}
