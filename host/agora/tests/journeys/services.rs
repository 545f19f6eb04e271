//! Processes outside serve agents, behind a wall: what they do wrong, and what becomes of them at a stop.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fakes::{Fake, Manner, Process};
use super::harness::{Host, Journey, ackers, is_message, text};

/// The librarian, before a service with this deadline; and a neighbour of its, on the same thread.
fn with_librarian(deadline: &str) -> Journey {
    Journey::new(&format!(
        "{}[channels.questions]\n\
         [services.folder]\nsocket = \"folder.sock\"\ndeadline = \"{deadline}\"\n\
         [agents.librarian]\ncomponent = \"{{librarian}}\"\n\
         [[agents.librarian.grants]]\nchannel = \"questions\"\nacts = [\"inform\", \"refuse\"]\n\
         [[agents.librarian.grants]]\nservice = \"folder\"\n",
        ackers(1)
    ))
}

fn start(journey: &Journey) -> Host {
    journey.start(&["--workers", "1"])
}

fn socket(journey: &Journey) -> PathBuf {
    journey.image().join("folder.sock")
}

/// A folder to ask about, with a secret beside it.
fn folder(journey: &Journey) -> PathBuf {
    let folder = journey.folder().join("served");
    std::fs::create_dir_all(folder.join("notes")).expect("the folder is ours");
    for (name, text) in [
        ("secret", "nobody may know"),
        ("served/readme.txt", "a folder\nof examples\n"),
        ("served/notes/one.txt", "an example of a note\n"),
    ] {
        std::fs::write(journey.folder().join(name), text).expect("the folder is ours");
    }
    std::os::unix::fs::symlink("../secret", folder.join("link")).expect("the folder is ours");
    folder
}

/// Says a question, and answers the question's id.
#[track_caller]
fn ask(journey: &Journey, question: &str) -> String {
    journey.say("questions", question)
}

/// The librarian's answer to a question: its act, and what it says.
#[track_caller]
fn answer(host: &Host, question: &str) -> (String, String) {
    let line = host.until_line(&format!("an answer to {question}"), |line| {
        is_message(line)
            && text(line, "author").starts_with("librarian")
            && line["parent"] == question
    });
    (
        text(&line, "act").to_owned(),
        text(&line, "body").to_owned(),
    )
}

#[track_caller]
fn asked(journey: &Journey, host: &Host, question: &str) -> (String, String) {
    answer(host, &ask(journey, question))
}

#[track_caller]
fn assert_refused(answer: (String, String), part: &str) {
    assert_eq!(answer.0, "refuse", "{answer:?}");
    assert!(answer.1.contains(part), "{answer:?}");
}

/// Whoever shares its thread goes on as ever.
#[track_caller]
fn neighbour_answers(journey: &Journey, host: &Host, word: &str) {
    journey.say("build-coord", word);
    host.until_message(&format!("ack operator:0: {word}"));
}

fn answers_from(journey: &Journey) {
    let host = start(journey);
    let ask = |question: &str| asked(journey, &host, question);
    let (act, listed) = ask("list");
    assert_eq!(act, "inform", "{listed}");
    assert_eq!(listed, "notes/\nreadme.txt (21 bytes)\n");
    let read = ask("read notes/one.txt");
    assert_eq!(read, ("inform".into(), "an example of a note\n".into()));
    let found = ask("search example");
    let lines = "readme.txt:2: of examples\nnotes/one.txt:1: an example of a note\n";
    assert_eq!(found, ("inform".into(), lines.into()));
    assert_eq!(ask("search nobody may").1, "nothing\n");
    for path in ["../secret", "link", "notes/../../secret", "/etc/passwd"] {
        assert_refused(ask(&format!("read {path}")), path);
    }
    assert_refused(ask("delete readme.txt"), "ask `list PATH`");
    host.stop();
}

#[test]
fn the_librarian_answers_from_the_service_in_rust() {
    let journey = with_librarian("30s");
    let _service = Process::rust(&folder(&journey), &socket(&journey));
    answers_from(&journey);
}

#[test]
fn the_librarian_answers_from_the_service_in_python() {
    let journey = with_librarian("30s");
    let Some(_service) = Process::python(&folder(&journey), &socket(&journey)) else {
        eprintln!(
            "SKIPPED: the service in Python was not tried, since there is no pycapnp (`cargo xtask test` installs it; or set AGORA_PYTHON)"
        );
        return;
    };
    answers_from(&journey);
}

#[test]
fn a_service_that_is_away_is_busy_and_one_that_comes_back_answers() {
    let journey = with_librarian("30s");
    let folder = folder(&journey);
    let checked = journey
        .agora_in(journey.folder(), &["check", "image"])
        .exits(0);
    assert!(
        checked.stderr.contains("note: service 'folder'"),
        "{checked:?}"
    );
    let host = start(&journey);
    host.until_stderr("note: service 'folder'");
    assert_refused(asked(&journey, &host, "list"), "can't be reached");
    let service = Process::rust(&folder, &socket(&journey));
    assert_eq!(asked(&journey, &host, "list").0, "inform");
    drop(service);
    assert_refused(asked(&journey, &host, "list"), "folder");
    let fake = Fake::start(&socket(&journey), Manner::Stalls);
    let question = ask(&journey, "read readme.txt");
    fake.until("the call", |seen| seen.stalled.load(Ordering::SeqCst) == 1);
    // It dies in the middle of the call.
    drop(fake);
    assert_refused(answer(&host, &question), "unknown");
    let _service = Process::rust(&folder, &socket(&journey));
    assert_eq!(asked(&journey, &host, "list").0, "inform");
    assert!(journey.ps("librarian").contains("running"));
    host.stop();
}

#[test]
fn a_service_that_stalls_meets_its_deadline_while_others_go_on() {
    let journey = with_librarian("3s");
    let fake = Fake::start(&socket(&journey), Manner::Stalls);
    let host = start(&journey);
    let began = Instant::now();
    let questions: Vec<_> = (0..4).map(|_| ask(&journey, "read readme.txt")).collect();
    fake.until("the calls", |seen| seen.stalled.load(Ordering::SeqCst) == 4);
    neighbour_answers(&journey, &host, "meanwhile");
    for question in &questions {
        assert_refused(answer(&host, question), "no answer within 3s");
    }
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(asked(&journey, &host, "list").0, "inform");
    assert_eq!(fake.seen.connected.load(Ordering::SeqCst), 1);
    host.stop();
}

#[test]
fn a_stop_hangs_up_on_the_service_at_once() {
    let journey = with_librarian("1h");
    let fake = Fake::start(&socket(&journey), Manner::Stalls);
    let host = start(&journey);
    let ended = |count: usize| {
        // Its deadline is an hour away.
        fake.until("the end", |seen| seen.ended.load(Ordering::SeqCst) >= count);
    };
    let stall = |calls: usize| {
        ask(&journey, "read readme.txt");
        fake.until("the call", |seen| {
            seen.stalled.load(Ordering::SeqCst) == calls
        });
    };
    stall(1);
    journey
        .cli(&["epoch", "bump", "--reason", "enough"])
        .exits(0);
    ended(1);
    // The next graft has a connection of its own.
    stall(2);
    assert_eq!(fake.seen.connected.load(Ordering::SeqCst), 2);
    journey.cli(&["kill", "librarian"]).exits(0);
    ended(2);
    journey.cli(&["start", "librarian"]).exits(0);
    fake.until("the call heard again", |seen| {
        seen.stalled.load(Ordering::SeqCst) >= 3
    });
    let granted = journey
        .log()
        .into_iter()
        .find(|line| line["kind"] == "grant" && text(line, "body").contains("service 'folder'"));
    let body = text(&granted.expect("it is on the record"), "body").to_owned();
    let number = body.split(':').next().expect("a grant has a number");
    journey.cli(&["revoke", number]).exits(0);
    ended(3);
    neighbour_answers(&journey, &host, "after all");
    host.stop();
}

#[test]
fn a_service_that_sends_garbage_or_giants_harms_nobody() {
    let journey = with_librarian("30s");
    let host = start(&journey);
    let giant = [0u32, 1 << 24].map(u32::to_le_bytes).concat();
    let endless = [
        [0u32, 100_000].map(u32::to_le_bytes).concat(),
        vec![7; 800_000],
    ]
    .concat();
    for (n, (bytes, part)) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "is it Cap'n Proto",
        ),
        (giant, "over the bound"),
        (endless, "malformed"),
    ]
    .into_iter()
    .enumerate()
    {
        let fake = Fake::start(&socket(&journey), Manner::Sends(bytes));
        assert_refused(asked(&journey, &host, "list"), part);
        fake.until("its end", |seen| seen.ended.load(Ordering::SeqCst) >= 1);
        neighbour_answers(&journey, &host, &format!("still here {n}"));
    }
    let _service = Process::rust(&folder(&journey), &socket(&journey));
    assert_eq!(asked(&journey, &host, "list").0, "inform");
    assert!(journey.log().iter().all(|line| line["kind"] != "incident"));
    host.stop();
}

#[test]
fn a_service_that_floods_an_agent_with_calls_is_held_back_and_ends_nobody() {
    let journey = with_librarian("30s");
    let fake = Fake::start(&socket(&journey), Manner::CallsBack);
    let host = start(&journey);
    let before = host.memory();
    ask(&journey, "search example");
    // Far more than may be in flight.
    fake.until("the flood", |seen| {
        seen.called.load(Ordering::SeqCst) > 3000
    });
    neighbour_answers(&journey, &host, "through the flood");
    // It goes on and is refused, or had more calls under way than a connection bears and was hung up on.
    fake.until("more of it, or its end", |seen| {
        seen.called.load(Ordering::SeqCst) > 40_000 || seen.ended.load(Ordering::SeqCst) > 0
    });
    neighbour_answers(&journey, &host, "and again");
    let grown = host.memory().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes");
    assert!(
        journey
            .log()
            .iter()
            .all(|line: &Value| line["kind"] != "incident")
    );
    journey.cli(&["kill", "librarian"]).exits(0);
    fake.until("its end", |seen| {
        seen.ended.load(Ordering::SeqCst) == seen.connected.load(Ordering::SeqCst)
    });
    host.stop();
}
