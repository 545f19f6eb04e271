//! Components that are one pure function run as agents like any other.

use super::harness::{Journey, agent, messages, text};

#[test]
fn a_reactor_echoes_statements_and_is_silent_else() {
    let manifest = format!(
        "[channels.c]\nhops = 3\n{}",
        agent("echo", "echo-reactor", "c", "[\"read\", \"write\"]")
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    journey.cli(&["say", "c", "a question"]).exits(0);
    journey
        .cli(&["say", "c", "--act", "inform", "a fact"])
        .exits(0);
    let echo = host.until_message("echo: a fact");
    assert_eq!((text(&echo, "author"), &echo["hops"]), ("echo", &2.into()));
    journey
        .cli(&["epoch", "bump", "--reason", "reactors graft too"])
        .exits(0);
    journey
        .cli(&["say", "c", "--act", "inform", "another"])
        .exits(0);
    assert_eq!(host.until_message("echo: another")["epoch"], 2);
    let by_echo = messages(&host.lines())
        .iter()
        .filter(|m| m["author"] == "echo")
        .count();
    assert_eq!(by_echo, 2);
    journey.cli(&["kill", "echo"]).exits(0);
    assert!(journey.ps("echo").contains("killed"));
}

#[test]
fn a_component_of_the_older_world_runs_unchanged_and_its_claims_count_for_nothing() {
    let two = ["one", "two"].map(|name| agent(name, "older", "c", "[\"read\", \"write\"]"));
    let journey = Journey::new(&format!("[channels.c]\nhops = 3\n{}", two.concat()));
    let (status, lines, stderr) = journey
        .spawn(&["--say", "c=build it", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let said = messages(&lines);
    let by_them: Vec<_> = said
        .iter()
        .filter(|m| !text(m, "author").starts_with("operator"))
        .collect();
    assert_eq!(by_them.len(), 6);
    assert!(
        by_them
            .iter()
            .all(|m| ["one", "two"].contains(&text(m, "author")))
    );
    assert!(by_them.iter().all(|m| m["hops"].as_u64() < Some(3)));
    assert!(by_them.iter().all(|m| text(m, "body").starts_with("ack: ")));
}
