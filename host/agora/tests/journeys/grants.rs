//! What is granted and taken back while agents run.

use super::harness::{Journey, ackers, agent, messages, records, text};

/// The number of the grant of an agent, from `agora ps --grants`.
#[track_caller]
pub(crate) fn grant_of(journey: &Journey, agent: &str, object: &str) -> String {
    let listed = journey.cli(&["ps", "--grants"]).exits(0).stdout;
    let found = listed.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.len() > 2 && words[0].starts_with('g') && words[1] == agent && words[2] == object)
            .then(|| words[0].to_owned())
    });
    found.unwrap_or_else(|| panic!("no grant of '{object}' for '{agent}' in:\n{listed}"))
}

#[test]
fn a_revoked_grant_is_gone_at_once_and_no_manifest_brings_it_back() {
    let journey = Journey::new(&ackers(2));
    let host = journey.start(&[]);
    journey.say("build-coord", "one");
    host.until("both acks", |lines| {
        let acks = messages(lines);
        (acks
            .iter()
            .filter(|m| m["body"] == "ack operator:0: one")
            .count()
            == 2)
            .then_some(())
    });
    let grant = grant_of(&journey, "acker-2", "build-coord");
    journey
        .cli(&["revoke", &grant, "--reason", "not needed"])
        .exits(0);
    let listed = journey.cli(&["ps", "--grants"]).exits(0).stdout;
    assert!(
        !listed
            .lines()
            .any(|l| l.starts_with('g') && l.contains("acker-2")),
        "{listed}"
    );
    journey.say("build-coord", "two");
    let ack = host.until_message("ack operator:0: two");
    assert_eq!(ack["author"], "acker-1");
    host.stop();

    let host = journey.start(&[]);
    journey.say("build-coord", "three");
    host.until_message("ack operator:0: three");
    journey.say("build-coord", "four");
    host.until_message("ack operator:0: four");
    assert!(
        !messages(&host.lines())
            .iter()
            .any(|m| m["author"] == "acker-2")
    );
    assert!(
        host.stderr().contains("was revoked and stays so"),
        "{}",
        host.stderr()
    );

    // It comes back by command, at once.
    journey.cli(&["grant", "acker-2", "build-coord"]).exits(0);
    journey.say("build-coord", "five");
    host.until_line("the ack of the one that was granted", |line| {
        line["body"] == "ack operator:0: five" && line["author"] == "acker-2"
    });
    let log = journey.log();
    let after = log.iter().skip_while(|r| r["kind"] != "revoke");
    let first = after
        .into_iter()
        .find(|m| m["author"] == "acker-2")
        .expect("it spoke");
    let granted = records(&log, "grant").last().expect("it was granted")["seq"].as_u64();
    assert!(
        first["seq"].as_u64() > granted,
        "nothing in between: {first}"
    );
}

#[test]
fn a_grant_arrives_at_once_and_its_terms_hold() {
    let journey = Journey::new(&ackers(1));
    let host = journey.start(&[]);
    journey
        .cli(&[
            "grant",
            "acker-1",
            "secret-ops",
            "--rights",
            "read,write",
            "--count",
            "2",
        ])
        .exits(0);
    for n in 1..=3 {
        journey.say("secret-ops", &format!("{n}"));
    }
    journey.say("build-coord", "done");
    host.until_message("ack operator:0: done");
    host.until_message("ack operator:0: 2");
    journey.say("secret-ops", "4");
    journey.say("build-coord", "done again");
    host.until_message("ack operator:0: done again");
    let said = messages(&journey.log());
    let acks = said
        .iter()
        .filter(|m| m["channel"] == "secret-ops" && m["author"] == "acker-1");
    assert_eq!(acks.count(), 2, "the grant allows two messages in all");
}

#[test]
fn many_grants_in_one_epoch_end_no_agent() {
    let journey = Journey::new(&ackers(1));
    let host = journey.start(&[]);
    for n in 0..8 {
        journey.say("build-coord", &format!("{n}"));
        journey.cli(&["grant", "acker-1", "secret-ops"]).exits(0);
    }
    journey.say("secret-ops", "last");
    host.until_message("ack operator:0: last");
    for n in 0..8 {
        host.until_message(&format!("ack operator:0: {n}"));
    }
    let (_, lines, _) = host.stop();
    assert!(records(&lines, "incident").is_empty(), "{lines:#?}");
}

#[test]
fn an_attenuated_facet_works_and_dies_when_it_is_revoked() {
    let rights = "[\"read\", \"write\", \"initiate\", \"attenuate\"]";
    let journey = Journey::new(&format!(
        "[channels.inn]\n{}",
        agent("lodger", "lodger", "inn", rights)
    ));
    let (status, lines, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let said = messages(&lines);
    let report = said
        .iter()
        .find(|m| text(m, "body").starts_with("lodger: read-only"));
    let report = text(
        report.unwrap_or_else(|| panic!("no report: {stderr}")),
        "body",
    );
    assert!(!report.contains("BAD"), "{report}");
    assert_eq!(
        said.len(),
        3,
        "two through the facet that allows two, and the report"
    );
}

#[test]
fn answers_over_a_rate_wait_and_none_is_lost() {
    let journey = Journey::new(
        "[channels.work]\nhops = 1\n[agents.acker]\ncomponent = \"{acker}\"\n\
         [[agents.acker.grants]]\nchannel = \"work\"\nrate = \"2/s\"\n",
    );
    let says: Vec<_> = (0..6).map(|n| format!("work=say {n}")).collect();
    let mut args = vec!["--until-quiet"];
    args.extend(says.iter().flat_map(|say| ["--say", say.as_str()]));
    let began = std::time::Instant::now();
    let (status, lines, stderr) = journey.spawn(&args).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let answers = messages(&lines)
        .into_iter()
        .filter(|m| m["author"] == "acker");
    assert_eq!(answers.count(), 6);
    let least = std::time::Duration::from_millis(1500);
    assert!(began.elapsed() > least, "2 at once, then 4 at 2 a second");
    assert!(records(&lines, "incident").is_empty(), "{lines:#?}");
}
