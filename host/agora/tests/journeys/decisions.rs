//! Requests that wait for somebody's decision.

use super::harness::{Journey, agent, component, messages, records, summary, text, workspace};

/// The demonstration's manifest, with the components that were built for these tests.
fn demonstration() -> String {
    let path = workspace().join("boot/agora.toml");
    let manifest =
        std::fs::read_to_string(path).expect("the demonstration is part of the checkout");
    let lines = manifest.lines().filter(|line| !line.starts_with("source"));
    let lines = lines.map(|line| match line.strip_prefix("component = \"") {
        Some(rest) => {
            let name = rest.trim_end_matches("\"").trim_end_matches(".wasm");
            format!("component = \"{}\"", component(name).display())
        }
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_demonstration_negotiates_a_release_and_decides_it() {
    let journey = Journey::new(&demonstration());
    let (status, lines, stderr) = journey
        .spawn(&["--say", "build-coord=nightly is green", "--until-quiet"])
        .until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let summary = summary(&lines);
    assert_eq!(summary["decisions"], 1);
    let said = messages(&lines);
    let on_release: Vec<_> = said.iter().filter(|m| m["channel"] == "release").collect();
    let decided = on_release
        .iter()
        .find(|m| m["act"] == "decide")
        .expect("it is decided");
    assert_eq!(text(decided, "author"), "owner");
    assert!(
        on_release.iter().any(|m| m["act"] == "refuse"),
        "it was negotiated"
    );
    let acks = said
        .iter()
        .filter(|m| text(m, "author").starts_with("acker-"))
        .count();
    assert_eq!(acks, 6);
    // Started again, nobody begins anew.
    let (status, lines, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(messages(&lines).is_empty(), "{lines:#?}");
}

#[test]
fn a_request_that_nobody_decides_lapses_and_is_closed() {
    let rights = "[\"read\", \"write\"]";
    let journey = Journey::new(&format!(
        "[channels.c]\n{}",
        agent("acker", "acker", "c", rights)
    ));
    let host = journey.start(&[]);
    let asked = journey
        .cli(&[
            "say",
            "c",
            "which one?",
            "--owner",
            "acker",
            "--deadline",
            "700ms",
        ])
        .exits(0);
    let id = asked
        .stdout
        .trim()
        .rsplit(' ')
        .next()
        .expect("a receipt ends with the id")
        .to_owned();
    host.until_message("ack operator:0: which one?");
    let lapse = host.until_line("the lapse", |line| line["kind"] == "lapse");
    assert_eq!(lapse["channel"], "c");
    let late = journey
        .cli(&["say", "c", "--act", "inform", "too late", "--parent", &id])
        .exits(1);
    assert!(late.stderr.contains("refused"), "{}", late.stderr);
    journey.cli(&["say", "c", "another"]).exits(0);
    host.until_message("ack operator:0: another");
}

#[test]
fn a_deadline_that_passed_while_the_host_was_away_lapses_first() {
    let rights = "[\"read\", \"write\"]";
    let journey = Journey::new(&format!(
        "[channels.c]\n{}",
        agent("acker", "acker", "c", rights)
    ));
    let host = journey.start(&[]);
    journey
        .cli(&[
            "say",
            "c",
            "which one?",
            "--owner",
            "acker",
            "--deadline",
            "800ms",
        ])
        .exits(0);
    drop(host);
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let (status, _, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let log = journey.log();
    assert_eq!(records(&log, "lapse").len(), 1);
    assert_eq!(records(&log, "lapse")[0]["channel"], "c");
}

#[test]
fn an_owner_that_is_nobody_is_refused_with_who_there_is() {
    let rights = "[\"read\", \"write\"]";
    let journey = Journey::new(&format!(
        "[channels.c]\n{}",
        agent("acker", "acker", "c", rights)
    ));
    let _host = journey.start(&[]);
    let ran = journey
        .cli(&["say", "c", "x", "--owner", "aker", "--deadline", "30s"])
        .exits(1);
    assert!(ran.stderr.contains("'acker'"), "{}", ran.stderr);
    journey
        .cli(&["say", "c", "x", "--deadline", "30s"])
        .exits(2);
}
