//! Agents that would talk for ever come to rest, and the host notices.

use serde_json::Value;

use super::harness::{Journey, ackers, is_message, messages, records, summary, text};

fn acknowledgements(lines: &[Value]) -> Vec<Value> {
    let by_agents = |line: &Value| text(line, "author").starts_with("acker-");
    messages(lines).into_iter().filter(by_agents).collect()
}

#[test]
fn two_ackers_acknowledge_six_times_and_all_is_quiet() {
    let journey = Journey::new(&ackers(2));
    let host = journey.spawn(&[
        "--say",
        "build-coord=ship v0.1?",
        "--say",
        "secret-ops=rotate keys",
        "--until-quiet",
    ]);
    let (status, lines, stderr) = host.until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let acks = acknowledgements(&lines);
    let mut hops: Vec<_> = acks.iter().filter_map(|ack| ack["hops"].as_u64()).collect();
    hops.sort_unstable();
    assert_eq!(hops, [0, 0, 1, 1, 2, 2]);
    assert!(acks.iter().all(|ack| ack["channel"] == "build-coord"));
    let summary = summary(&lines);
    assert_eq!(summary["messages"], 8);
    assert_eq!(summary["withheld"], 2, "the secret is withheld from both");
    assert_eq!(summary["echoes_dropped"], 6);
    assert_eq!(summary["hops_spent"], 2);
    assert_eq!(summary["breaker_opened"], 0);
    assert_eq!(summary["epoch"], 1);
}

#[test]
fn five_ackers_acknowledge_a_hundred_and_five_times() {
    let journey = Journey::new(&ackers(5));
    let (status, lines, stderr) = journey
        .spawn(&["--say", "build-coord=ship v0.1?", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(acknowledgements(&lines).len(), 105);
    assert_eq!(summary(&lines)["breaker_opened"], 0);
}

#[test]
fn a_crowd_is_stopped_by_the_breaker_and_the_operator_is_told() {
    let journey = Journey::new(&ackers(20));
    let (status, lines, stderr) = journey
        .spawn(&["--say", "build-coord=ship v0.1?", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(acknowledgements(&lines).len(), 256);
    assert_eq!(summary(&lines)["breaker_opened"], 1);
    let said = lines
        .iter()
        .any(|line| line["event"] == "aside" && text(line, "text").starts_with("breakerOpen"));
    assert!(said, "the operator is told");
}

#[test]
fn an_open_breaker_leaves_other_threads_alone() {
    let journey = Journey::new(&ackers(20));
    let (status, lines, _) = journey
        .spawn(&[
            "--say",
            "build-coord=one",
            "--say",
            "build-coord=two",
            "--until-quiet",
        ])
        .until_exit();
    assert_eq!(status.code(), Some(0));
    let roots: Vec<_> = messages(&lines)
        .into_iter()
        .filter(|line| text(line, "author").starts_with("operator"))
        .collect();
    for root in &roots {
        let in_thread = acknowledgements(&lines)
            .iter()
            .filter(|ack| ack["thread"] == root["id"])
            .count();
        assert_eq!(in_thread, 256, "{root}");
    }
    assert_eq!(roots.len(), 2);
}

#[test]
fn a_quiet_host_has_nothing_left_for_the_next_run() {
    let journey = Journey::new(&ackers(3));
    let (status, lines, _) = journey
        .spawn(&["--say", "build-coord=hello", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0));
    assert_eq!(acknowledgements(&lines).len(), 3 * (1 + 2 + 4));
    let (status, lines, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!lines.iter().any(is_message), "{lines:?}");
    assert!(
        records(&lines, "grant").is_empty(),
        "what was granted stands"
    );
}
