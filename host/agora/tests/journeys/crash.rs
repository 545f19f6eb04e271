//! A host that is killed at any moment goes on as if it had only paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::harness::{Journey, ackers, agent, messages, records, text};

/// How often it is killed, unless `AGORA_KILLS` says otherwise.
const KILLS: u64 = 6;

fn kills() -> u64 {
    let asked = std::env::var("AGORA_KILLS").ok();
    asked.map_or(KILLS, |kills| {
        kills.parse().expect("AGORA_KILLS is a number")
    })
}

const ACKERS: usize = 3;

fn manifest() -> String {
    format!(
        "{}{}{}",
        ackers(ACKERS),
        agent(
            "echo",
            "echo-reactor",
            "secret-ops",
            "[\"read\", \"write\"]"
        ),
        agent("spinner", "spinner", "secret-ops", "[\"read\"]")
    )
}

/// Every acker has answered everything of others that may be answered, exactly once.
#[track_caller]
fn every_reaction_is_there_once(log: &[Value]) {
    let said: Vec<_> = messages(log)
        .into_iter()
        .filter(|m| m["channel"] == "build-coord")
        .collect();
    let mut answers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for message in &said {
        if let Some(parent) = message["parent"].as_str() {
            *answers
                .entry((text(message, "author"), parent))
                .or_default() += 1;
        }
    }
    for message in said.iter().filter(|m| m["hops"].as_u64() > Some(0)) {
        for n in 1..=ACKERS {
            let acker = format!("acker-{n}");
            if text(message, "author") == acker {
                continue;
            }
            let count = answers.get(&(acker.as_str(), text(message, "id"))).copied();
            assert_eq!(count, Some(1), "{acker}'s answers to {message}");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_counts_twice_however_often_it_is_killed() {
    let journey = Journey::new(&manifest());
    let host = journey.start(&[]);
    journey.cli(&["kill", "spinner"]).exits(0);
    journey.cli(&["grant", "acker-1", "secret-ops"]).exits(0);
    let listed = journey.cli(&["ps", "--grants"]).exits(0).stdout;
    let revoked = listed.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.len() > 2 && words[1] == "acker-1" && words[2] == "secret-ops")
            .then(|| words[0].to_owned())
    });
    journey
        .cli(&["revoke", &revoked.expect("it was just granted")])
        .exits(0);
    drop(host);

    let mut acknowledged = BTreeSet::new();
    let mut shown = BTreeSet::new();
    // A walk over the moments that is the same each time.
    let mut moment = 0x9e37_79b9_u64;
    for round in 0..kills() {
        moment ^= moment << 13;
        moment ^= moment >> 7;
        moment ^= moment << 17;
        let host = journey.start(&[]);
        let over = AtomicBool::new(false);
        let receipts = std::thread::scope(|scope| {
            let speakers: Vec<_> = (0..2)
                .map(|speaker| {
                    let (journey, over) = (&journey, &over);
                    scope.spawn(move || {
                        let mut receipts = Vec::new();
                        for n in 0.. {
                            if over.load(Ordering::SeqCst) {
                                break;
                            }
                            let text = format!("{round}.{speaker}.{n}");
                            let said = journey.cli(&["say", "build-coord", &text]);
                            if said.code == Some(0) {
                                let id = said.stdout.trim().rsplit(' ').next();
                                receipts.push(id.expect("a receipt ends with the id").to_owned());
                            }
                        }
                        receipts
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(30 + moment % 500));
            host.signal(rustix::process::Signal::KILL);
            over.store(true, Ordering::SeqCst);
            let joined = speakers
                .into_iter()
                .map(|speaker| speaker.join().expect("it only speaks"));
            joined.flatten().collect::<Vec<_>>()
        });
        acknowledged.extend(receipts);
        let (_, lines, _) = host.until_exit();
        shown.extend(messages(&lines).iter().map(|m| text(m, "id").to_owned()));
        let kept = messages(&journey.log());
        let kept: BTreeSet<_> = kept.iter().map(|m| text(m, "id").to_owned()).collect();
        assert!(
            acknowledged.is_subset(&kept),
            "round {round}: a receipt was given for what is gone"
        );
        assert!(
            shown.is_subset(&kept),
            "round {round}: what was shown is gone"
        );
    }
    assert!(!acknowledged.is_empty(), "it was under load");

    let (status, lines, stderr) = journey
        .spawn(&["--say", "build-coord=the last", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("was killed and stays so"), "{stderr}");
    assert!(records(&lines, "incident").is_empty(), "{lines:#?}");
    let log = journey.log();
    every_reaction_is_there_once(&log);
    let secret = messages(&log)
        .into_iter()
        .filter(|m| m["channel"] == "secret-ops");
    assert_eq!(secret.count(), 0);
    journey.start(&["--say", "secret-ops=still nobody"]).stop();
    let answered = messages(&journey.log());
    assert!(
        !answered
            .iter()
            .any(|m| m["channel"] == "secret-ops" && m["author"] == "acker-1")
    );
    let well = journey.cli(&["doctor"]).exits(0);
    assert!(
        well.stdout.contains("the log reads whole"),
        "{}",
        well.stdout
    );
}

#[test]
fn a_torn_tail_is_told_and_cut_and_fails_no_start() {
    let journey = Journey::new(&ackers(2));
    let host = journey.start(&[]);
    journey.say("build-coord", "one");
    host.until("six acks", |lines| {
        (messages(lines).len() == 7).then_some(())
    });
    drop(host);
    let before = messages(&journey.log());
    tear(&journey);
    assert_eq!(
        messages(&journey.log()),
        before,
        "a torn tail hides nothing from `agora log`"
    );
    let host = journey.start(&[]);
    assert!(
        host.stderr().contains("torn tail") || stderr_soon(&host),
        "{}",
        host.stderr()
    );
    journey.say("build-coord", "two");
    host.until_message("ack operator:0: two");
    host.stop();
    let after = messages(&journey.log());
    assert_eq!(after[..before.len()], before);
}

fn stderr_soon(host: &super::harness::Host) -> bool {
    (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        host.stderr().contains("torn tail")
    })
}

/// Writes half a record behind the last one, as a crash in the middle of a write leaves it.
fn tear(journey: &Journey) {
    use std::os::unix::fs::FileExt;
    let log = journey.data().join("log");
    let segments = std::fs::read_dir(&log)
        .expect("there is a log")
        .filter_map(Result::ok);
    let segments = segments.map(|entry| entry.path());
    let with_records = segments.filter_map(|path| {
        let bytes = std::fs::read(&path).ok()?;
        let end = bytes.iter().rposition(|byte| *byte != 0)?;
        (bytes.len() > 1 << 20).then_some((end, path))
    });
    let (end, path) = with_records.max().expect("a segment holds the records");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the folder is ours");
    file.write_all_at(&[0x5a; 100], end as u64 + 16)
        .expect("the folder is ours");
}

#[test]
fn a_turn_over_two_channels_takes_effect_once_on_both() {
    let journey = Journey::new(
        "[channels.in]\nhops = 1\n[channels.out]\n[agents.courier]\ncomponent = \"{courier}\"\n\
         [[agents.courier.grants]]\nchannel = \"in\"\n\
         [[agents.courier.grants]]\nchannel = \"out\"\nrights = [\"write\", \"initiate\"]\n",
    );
    let mut said = BTreeSet::new();
    let mut moment = 0x51ed_270b_u64;
    for round in 0..kills().min(8) {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005) | 1;
        let host = journey.start(&[]);
        let over = AtomicBool::new(false);
        let acknowledged = std::thread::scope(|scope| {
            let speaker = scope.spawn(|| {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    let text = format!("{round}.{n}");
                    if journey.cli(&["say", "in", &text]).code == Some(0) {
                        acknowledged.push(text);
                    }
                }
                acknowledged
            });
            std::thread::sleep(Duration::from_millis(40 + (moment >> 40) % 300));
            host.signal(rustix::process::Signal::KILL);
            over.store(true, Ordering::SeqCst);
            speaker.join().expect("it only speaks")
        });
        said.extend(acknowledged);
    }
    let (status, _, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let all = messages(&journey.log());
    let mut carried: BTreeMap<String, u32> = BTreeMap::new();
    for message in all.iter().filter(|m| m["channel"] == "out") {
        *carried.entry(text(message, "body").to_owned()).or_default() += 1;
    }
    for message in all
        .iter()
        .filter(|m| text(m, "author").starts_with("operator"))
    {
        said.remove(text(message, "body"));
        let body = format!("carried {}", text(message, "body"));
        assert_eq!(carried.get(&body), Some(&1), "{message}");
        let answers = all.iter().filter(|m| m["parent"] == message["id"]).count();
        assert_eq!(answers, 1, "{message}");
    }
    assert!(said.is_empty(), "acknowledged and gone: {said:?}");
}
