//! The end of an epoch takes every capability back at once.

use serde_json::Value;

use super::harness::{Host, Journey, ackers, agent, is_message, messages, records, text};

/// A channel for the ackers of [`ackers`], and one where a mole digs.
fn with_mole() -> String {
    let rights = "[\"read\", \"write\", \"initiate\", \"attenuate\"]";
    format!(
        "{}[channels.den]\n{}",
        ackers(2),
        agent("mole", "mole", "den", rights)
    )
}

/// The numbers of a mole's report of an epoch, once it has made it.
#[track_caller]
fn report(host: &Host, epoch: u64) -> Vec<(String, u64)> {
    let start = format!("mole: epoch={epoch} ");
    let line = host.until_line("the mole's report", |line| {
        is_message(line) && text(line, "body").starts_with(&start)
    });
    let words = text(&line, "body").split_whitespace().skip(1);
    words
        .map(|word| word.split_once('=').expect("words are KEY=NUMBER"))
        .map(|(key, number)| (key.to_owned(), number.parse().expect("it is a number")))
        .collect()
}

fn of(report: &[(String, u64)], key: &str) -> u64 {
    report
        .iter()
        .find(|(k, _)| k == key)
        .expect("every report has them all")
        .1
}

#[track_caller]
fn nothing_gave_way(report: &[(String, u64)]) {
    for trick in ["passed", "forged", "names", "late"] {
        assert_eq!(of(report, trick), 0, "{trick}: {report:?}");
    }
}

/// No message of an epoch stands behind the fence that ended it.
#[track_caller]
fn fences_hold(log: &[Value]) {
    let mut epoch = 1;
    for record in log {
        if record["kind"] == "fence" {
            epoch += 1;
        } else if is_message(record) {
            assert_eq!(record["epoch"], epoch, "{record}");
        }
    }
}

#[test]
fn a_bump_takes_everything_back_at_once_and_agents_carry_on() {
    let journey = Journey::new(&with_mole());
    let host = journey.start(&[]);
    nothing_gave_way(&report(&host, 1));
    let bumped = journey
        .cli(&["epoch", "bump", "--reason", "enough"])
        .exits(0);
    assert_eq!(bumped.stdout.trim(), "epoch 2");
    let second = report(&host, 2);
    nothing_gave_way(&second);
    assert!(of(&second, "old-calls") > 0, "{second:?}");
    assert_eq!(of(&second, "stale"), of(&second, "old-calls"), "{second:?}");
    let fence = host.until_line("the fence", |line| line["kind"] == "fence");
    assert!(text(&fence, "body").contains("enough"), "{fence}");
    // The ackers were idle: they learn it all the same, and answer in the new epoch.
    journey.say("build-coord", "still with us?");
    let ack = host.until_message("ack operator:0: still with us?");
    assert_eq!(ack["epoch"], 2);
    journey
        .cli(&["epoch", "bump", "--reason", "once more"])
        .exits(0);
    nothing_gave_way(&report(&host, 3));
    let (status, lines, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(
        !messages(&lines)
            .iter()
            .any(|m| text(m, "body").starts_with("ALARM"))
    );
    fences_hold(&journey.log());
}

#[test]
fn the_loop_of_an_old_epoch_does_not_resume() {
    // With these hops it would go on for as long as anybody waits.
    let manifest = ackers(2).replace("hops = 3", "hops = 64\nreactions = 65536");
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    // Many threads, so that some are in full swing when the epoch ends.
    for n in 0..20 {
        journey.say("build-coord", &format!("round {n}"));
    }
    journey
        .cli(&["epoch", "bump", "--reason", "a loop"])
        .exits(0);
    let id = journey.say("build-coord", "a new thread");
    host.until("the new thread's last word", |lines| {
        let last = |line: &&Value| line["thread"] == *id && line["hops"] == 0;
        (messages(lines).iter().filter(last).count() == 2).then_some(())
    });
    let log = journey.log();
    fences_hold(&log);
    let mut after = log.iter().skip_while(|record| record["kind"] != "fence");
    let others = after.find(|record| is_message(record) && record["thread"] != *id);
    assert_eq!(others, None, "nothing of the old epoch goes on");
}

#[test]
fn bumps_under_load_hold_their_fences() {
    let journey = Journey::new(&ackers(4).replace("hops = 3", "hops = 8\nreactions = 65536"));
    let host = journey.start(&[]);
    for n in 0..5 {
        for m in 0..4 {
            journey.say("build-coord", &format!("{n}.{m}"));
        }
        let bumped = journey
            .cli(&["epoch", "bump", "--reason", "again"])
            .exits(0);
        assert_eq!(bumped.stdout.trim(), format!("epoch {}", n + 2));
    }
    journey.say("build-coord", "the end");
    host.until_message("ack operator:0: the end");
    let (status, _, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let log = journey.log();
    fences_hold(&log);
    assert_eq!(records(&log, "fence").len(), 5);
    assert!(
        records(&log, "incident").is_empty(),
        "no agent fails over it: {log:#?}"
    );
}

#[test]
fn a_held_epoch_grants_nothing_until_the_next() {
    let journey = Journey::new(&ackers(1));
    let host = journey.start(&[]);
    journey.say("build-coord", "before");
    host.until_message("ack operator:0: before");
    let held = journey
        .cli(&["epoch", "bump", "--hold", "--reason", "look closely"])
        .exits(0);
    assert_eq!(held.stdout.trim(), "epoch 2");
    assert!(
        journey
            .cli(&["epoch", "show"])
            .exits(0)
            .stdout
            .contains("(held)")
    );
    // The operator is no agent, and may speak.
    journey.say("build-coord", "anybody?");
    journey
        .cli(&["epoch", "bump", "--reason", "go on"])
        .exits(0);
    assert_eq!(journey.cli(&["epoch", "show"]).exits(0).stdout.trim(), "3");
    journey.say("build-coord", "after");
    host.until_message("ack operator:0: after");
    let said = messages(&host.lines());
    let in_hold = said
        .iter()
        .filter(|m| m["epoch"] == 2 && m["author"] == "acker-1")
        .count();
    assert_eq!(in_hold, 0, "nobody answers in a held epoch");
}

#[test]
fn a_hold_outlives_the_host() {
    let journey = Journey::new(&ackers(1));
    let host = journey.start(&[]);
    journey
        .cli(&["epoch", "bump", "--hold", "--reason", "over night"])
        .exits(0);
    host.stop();
    let host = journey.start(&[]);
    assert!(
        journey
            .cli(&["epoch", "show"])
            .exits(0)
            .stdout
            .contains("2 (held)")
    );
    journey
        .cli(&["epoch", "bump", "--reason", "good morning"])
        .exits(0);
    journey.say("build-coord", "hello");
    host.until_message("ack operator:0: hello");
}
