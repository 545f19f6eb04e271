//! How a host ends, and what can be had of it afterwards.

use super::harness::{Journey, ackers, json_lines, messages, records, summary};

#[test]
fn an_interrupt_drains_and_sums_up_and_the_record_stays_readable() {
    let journey = Journey::new(&ackers(3));
    let host = journey.start(&[]);
    let said: Vec<_> = (0..10)
        .map(|n| journey.say("build-coord", &format!("{n}")))
        .collect();
    let (status, lines, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let shown = messages(&lines);
    assert_eq!(summary(&lines)["messages"], shown.len());
    // What was shown is what was kept.
    let log = journey.log();
    assert_eq!(messages(&log), shown);
    for id in said {
        assert!(shown.iter().any(|m| m["id"] == id.as_str()), "{id}");
    }
    let only = journey.cli(&["log", "secret-ops", "--json"]).exits(0);
    assert!(messages(&json_lines(&only.stdout)).is_empty());
    let people = journey.cli(&["log", "build-coord"]).exits(0);
    assert!(people.stdout.contains("hops 3"), "{}", people.stdout);
    let typo = journey.cli(&["log", "build-cord"]).exits(1);
    assert!(typo.stderr.contains("'build-coord'"), "{}", typo.stderr);
}

#[test]
fn an_interrupt_ends_even_those_who_spin_sleep_or_fail() {
    let manifest = format!(
        "{}[agents.spinner]\ncomponent = \"{{spinner}}\"\n[agents.panicker]\ncomponent = \"{{panicker}}\"\n",
        ackers(1)
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    host.until_line("an incident", |line| line["kind"] == "incident");
    let (status, lines, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(summary(&lines)["epoch"], 1);
}

#[test]
fn a_host_tells_who_it_is_and_how_it_is() {
    let journey = Journey::new(&ackers(1));
    let none = journey.cli(&["doctor"]).exits(0);
    assert!(none.stdout.contains("no data folder"), "{}", none.stdout);
    let host = journey.start(&[]);
    let running = journey.cli(&["doctor"]).exits(0);
    assert!(
        running.stdout.contains("a host runs on"),
        "{}",
        running.stdout
    );
    let id = journey.cli(&["id"]).exits(0).stdout;
    host.stop();
    assert_eq!(
        journey.cli(&["id"]).exits(0).stdout,
        id,
        "its identity outlives it"
    );
    let listed = journey.log();
    let genesis = records(&listed, "genesis");
    let host_id = genesis[0]["host"]
        .as_str()
        .expect("every record names its host");
    assert!(id.contains(host_id), "{id}\n{host_id}");
    let well = journey.cli(&["doctor"]).exits(0);
    assert!(
        well.stdout.contains("the log reads whole"),
        "{}",
        well.stdout
    );
    assert!(!well.stdout.contains("BAD"), "{}", well.stdout);
}
