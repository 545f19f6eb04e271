//! Agents that misbehave are ended, each alone, with the reason on the record; nobody else notices.

use serde_json::Value;

use super::harness::{Host, Journey, ackers, agent, is_message, messages, records, text};

/// The most that a host's memory may have grown by, in bytes: its own bounds (recent entries, queues, the log's) and room.
const GROWTH_MAX: u64 = 400 << 20;

fn incident(agent: &str, part: &str) -> impl Fn(&Value) -> bool {
    let (start, part) = (format!("{agent} ended"), part.to_owned());
    move |line| {
        let body = text(line, "body");
        line["kind"] == "incident" && body.starts_with(&start) && body.contains(&part)
    }
}

/// A neighbour on the same thread answers.
#[track_caller]
fn neighbour_answers(journey: &Journey, host: &Host, word: &str) {
    journey.say("build-coord", word);
    host.until_message(&format!("ack operator:0: {word}"));
}

fn with_flooder() -> String {
    let rights = "[\"read\", \"write\", \"initiate\", \"attenuate\"]";
    format!(
        "{}[channels.flood]\nreactions = 65536\n{}",
        ackers(1),
        agent("flooder", "flooder", "flood", rights)
    )
}

/// What a flood that must end the flooder is told as.
#[track_caller]
fn ends_the_flooder(floods: &[(&str, &str)]) {
    let journey = Journey::new(&with_flooder());
    // A flood is waiting for it already, or it would begin with one of calls.
    let host = journey.start(&["--say", "flood=output"]);
    host.until_line("the first report", |line| {
        text(line, "body").starts_with("flooder: output")
    });
    let before = host.memory();
    for (n, (flood, reason)) in floods.iter().enumerate() {
        journey.say("flood", flood);
        host.until(&format!("the incident of '{flood}'"), |lines| {
            lines
                .iter()
                .find(|line| incident("flooder", reason)(line))
                .map(drop)
        });
        neighbour_answers(&journey, &host, &format!("{flood} {n}"));
        // It is back in its time, and hears the next flood; a message waits for it then, so it does not begin with calls.
        journey.say("flood", "output");
        host.until("the report after the restart", |lines| {
            let reports = messages(lines);
            let reports = reports
                .iter()
                .filter(|m| text(m, "body").starts_with("flooder: output"));
            (reports.count() >= n + 2).then_some(())
        });
    }
    let taken = messages(&host.lines());
    assert!(
        !taken.iter().any(|m| text(m, "body").ends_with("was taken")),
        "{taken:#?}"
    );
    assert!(
        host.memory() < before + GROWTH_MAX,
        "{before} bytes became {}",
        host.memory()
    );
    let (status, _, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[test]
fn too_many_calls_in_flight_end_the_one_who_made_them() {
    ends_the_flooder(&[("questions", "calls")]);
}

#[test]
fn frames_over_their_bounds_and_malformed_ones_end_the_one_who_sent_them() {
    ends_the_flooder(&[
        ("frames", "is over the bound"),
        ("batch", "handed over 2000 frames"),
        ("malformed", "malformed"),
    ]);
}

#[test]
fn chains_parcels_leaks_and_writes_over_their_bounds_end_the_one_who_made_them() {
    ends_the_flooder(&[
        ("chain", "in a chain"),
        ("parcels", "bytes of calls that are not answered"),
        ("leak", "not released"),
        ("write", "of output at once"),
        // Released, as many grafts meet no bound of the host's.
        ("regraft", "the grafts were taken back"),
    ]);
}

#[test]
fn an_honest_life_of_many_calls_meets_no_bound() {
    let journey = Journey::new(&with_flooder());
    let host = journey.start(&["--say", "flood=honest"]);
    host.until_message("flooder: honest rounds=3000");
    neighbour_answers(&journey, &host, "hello");
    let (_, lines, _) = host.stop();
    assert!(records(&lines, "incident").is_empty());
}

#[test]
fn a_flood_of_lines_delays_no_stop() {
    let manifest = format!(
        "{}{}",
        with_flooder(),
        "[agents.spinner]\ncomponent = \"{spinner}\"\n"
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&["--say", "flood=lines"]);
    // It answers at all, and is done: what it waits for is bounded by the command itself.
    journey.cli(&["kill", "spinner"]).exits(0);
    host.until_message("flooder: lines");
}

#[test]
fn floods_of_calls_facets_and_output_meet_their_bounds_and_slow_nobody() {
    let journey = Journey::new(&with_flooder());
    let host = journey.start(&[]);
    let before = host.memory();
    // Unasked it begins with calls.
    neighbour_answers(&journey, &host, "while it floods");
    for flood in ["calls", "facets", "output"] {
        journey.say("flood", flood);
        neighbour_answers(&journey, &host, flood);
        let line = host.until_line("the flooder's report", |line| {
            is_message(line) && text(line, "body").starts_with(&format!("flooder: {flood} "))
        });
        let report = text(&line, "body");
        match flood {
            "calls" => assert!(
                !report.contains(" ok=0 ") && report.contains("other=0"),
                "{report}"
            ),
            "facets" => assert!(
                report.contains("facets ok=256 refused=0 busy=1744"),
                "{report}"
            ),
            _ => {}
        }
    }
    assert!(
        host.memory() < before + GROWTH_MAX,
        "{before} bytes became {}",
        host.memory()
    );
    let (status, lines, stderr) = host.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(
        records(&lines, "incident").is_empty(),
        "it stayed within its bounds"
    );
}

#[test]
fn a_hog_is_ended_by_its_own_memory_and_nobody_elses() {
    let manifest = format!(
        "{}[agents.hog]\ncomponent = \"{{hog}}\"\nmemory = \"48MiB\"\nrestart = \"never\"\n",
        ackers(1)
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    host.until_line("the hog's end", incident("hog", "more than its 48"));
    neighbour_answers(&journey, &host, "hello");
    journey.until_ps("hog", "ended");
    assert!(host.memory() < GROWTH_MAX, "{}", host.memory());
    let (_, lines, _) = host.stop();
    assert_eq!(
        records(&lines, "incident").len(),
        1,
        "it is not started again"
    );
}

#[test]
fn an_answer_beside_a_panic_is_neither_lost_nor_repeated() {
    let rights = "[\"read\", \"write\"]";
    let manifest = format!(
        "{}[channels.p]\n{}",
        ackers(1),
        agent("panicker", "panicker", "p", rights)
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    journey.say("p", "hello");
    host.until_message("panicking");
    let end = host.until_line("the panic", incident("panicker", "unreachable"));
    assert!(
        text(&end, "body").contains("panicker: its first message was 1"),
        "{end}"
    );
    journey.say("p", "once more");
    host.until_message("still here: once more");
    neighbour_answers(&journey, &host, "fine");
    let (_, lines, _) = host.stop();
    let said = messages(&lines);
    assert_eq!(
        said.iter().filter(|m| m["author"] == "panicker").count(),
        2,
        "{said:#?}"
    );
}

#[test]
fn ends_that_repeat_are_told_together_and_come_later_each_time() {
    let manifest = format!(
        "{}[agents.panicker]\ncomponent = \"{{panicker}}\"\n",
        ackers(1)
    );
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    host.until("the fourth end", |lines| {
        let told: Vec<_> = lines
            .iter()
            .filter(|l| incident("panicker", "nothing was granted")(l))
            .collect();
        (told.len() == 3).then_some(())
    });
    let lines = host.lines();
    let told = records(&lines, "incident");
    assert!(
        text(told[2], "body").contains("(2 times)"),
        "the third and the fourth: {}",
        told[2]
    );
    let at = |n: usize| {
        told[n]["time_ms"]
            .as_i64()
            .expect("every record has its time")
    };
    assert!(
        at(2) - at(1) > at(1) - at(0),
        "it comes later each time: {told:#?}"
    );
    let row = journey.ps("panicker");
    assert!(row.contains("backoff") || row.contains("running"), "{row}");
    neighbour_answers(&journey, &host, "still fine");
    // A kill meets it while it waits to be started again.
    journey.cli(&["kill", "panicker"]).exits(0);
    let ends = records(&host.lines(), "incident").len();
    neighbour_answers(&journey, &host, "and quiet");
    assert!(journey.ps("panicker").contains("killed"));
    assert_eq!(records(&host.lines(), "incident").len(), ends);
}

#[test]
fn an_agent_that_is_never_restarted_stays_ended_until_it_is_started() {
    let manifest = format!(
        "{}[agents.panicker]\ncomponent = \"{{panicker}}\"\nrestart = \"never\"\n",
        ackers(1)
    );
    let journey = Journey::new(&manifest);
    let (status, lines, stderr) = journey.spawn(&["--until-quiet"]).until_exit();
    assert_eq!(
        status.code(),
        Some(0),
        "an ended agent is a quiet one: {stderr}"
    );
    assert_eq!(records(&lines, "incident").len(), 1);
    let host = journey.start(&[]);
    journey.until_ps("panicker", "ended");
    journey.cli(&["start", "panicker"]).exits(0);
    host.until("its second end", |lines| {
        (records(lines, "incident").len() == 2).then_some(())
    });
}

#[test]
fn what_a_host_would_have_to_remember_for_ever_ends_the_one_who_asks_it() {
    for (word, why) in [
        ("chain", "in a chain"),
        ("params", "bytes of calls"),
        ("leak", "not released"),
    ] {
        let journey = Journey::new(&format!(
            "{}[channels.wild]\n{}",
            ackers(2),
            agent(
                "weaver",
                "weaver",
                "wild",
                "[\"read\", \"write\", \"initiate\"]"
            )
        ));
        let host = journey.start(&[]);
        let before = host.memory();
        journey.say("wild", word);
        host.until_line(word, incident("weaver", why));
        neighbour_answers(&journey, &host, word);
        let grown = host.memory().saturating_sub(before);
        assert!(grown < 256 << 20, "{word}: {} MiB more", grown >> 20);
        let (_, lines, _) = host.stop();
        let survived = messages(&lines)
            .iter()
            .any(|m| text(m, "body").starts_with("survived"));
        assert!(!survived, "{word}");
    }
}
