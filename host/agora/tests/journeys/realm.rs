//! Several hosts of one realm, on a log that a nats-server keeps.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::harness::{Host, Journey, ackers, messages, text};
use super::nats::{Server, program};

/// How often this was said, as one host shows it.
fn times(host: &Host, body: &str) -> usize {
    let said = messages(&host.lines());
    said.iter().filter(|m| text(m, "body") == body).count()
}

/// Waits until a host has shown this so many times.
#[track_caller]
fn until_said(host: &Host, body: &str, count: usize) {
    host.until(&format!("'{body}' {count} times"), |lines| {
        let said = messages(lines);
        let said = said.iter().filter(|m| text(m, "body") == body).count();
        (said >= count).then_some(())
    });
}

/// Waits until `agora ps` shows this.
#[track_caller]
fn until_shown(journey: &Journey, part: &str) {
    let began = Instant::now();
    loop {
        let shown = journey.cli(&["ps"]).exits(0).stdout;
        if shown.contains(part) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the copy is made");
    for entry in std::fs::read_dir(from).expect("the copy is made") {
        let entry = entry.expect("the copy is made");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("the copy is made").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("the copy is made")),
        }
    }
}

#[test]
fn a_servers_folder_that_was_put_back_is_refused_until_the_loss_is_accepted() {
    let Some(program) = program() else {
        return;
    };
    let mut server = Server::start(&program);
    let url = format!("nats://127.0.0.1:{}", server.port);
    let one = Journey::new(&ackers(1));
    let host = one.start(&["--log", &url]);
    one.say("build-coord", "this is kept");
    until_said(&host, "ack operator:0: this is kept", 1);
    host.stop();
    server.kill();
    let backup = one.folder().join("backup");
    copy(&server.store(), &backup);
    server.run();
    let host = one.start(&["--log", &url]);
    one.say("build-coord", "this is lost");
    until_said(&host, "ack operator:0: this is lost", 1);
    host.stop();
    server.kill();
    std::fs::remove_dir_all(server.store()).unwrap();
    copy(&backup, &server.store());
    server.run();
    let (status, _, refused) = one.spawn(&["--log", &url]).until_exit();
    assert!(!status.success());
    assert!(
        refused.contains("diverged") && refused.contains("--accept-loss"),
        "{refused}"
    );
    one.cli(&["doctor", "--accept-loss", "the disk was restored"])
        .exits(0);
    let host = one.start(&["--log", &url]);
    host.until_stderr("is accepted");
    one.say("build-coord", "on it goes");
    until_said(&host, "ack operator:0: on it goes", 1);
    assert_eq!(times(&host, "this is lost"), 0);
    host.stop();
    // Nothing is left to be accepted.
    let host = one.start(&["--log", &url]);
    host.stop();
}

#[test]
fn two_hosts_share_a_realm_its_epoch_and_its_messages_and_one_comes_back_from_its_cursors() {
    let Some(program) = program() else {
        return;
    };
    let mut server = Server::start(&program);
    let url = format!("nats://127.0.0.1:{}", server.port);
    let (one, other) = (Journey::new(&ackers(1)), Journey::new(&ackers(1)));
    let first = one.start(&["--log", &url]);
    let shown = one.cli(&["realm", "show"]).exits(0).stdout;
    let realm = shown.lines().find_map(|line| line.strip_prefix("realm "));
    let realm = realm.expect("it names the realm").trim().to_owned();
    assert!(shown.contains("connected"), "{shown}");

    // A stranger is refused, and told what to do.
    let joining = other.cli(&["realm", "join", &realm]).exits(0).stdout;
    let key = joining.lines().find_map(|line| line.strip_prefix("key "));
    let key = key.expect("it names its key").to_owned();
    let (status, _, refused) = other.spawn(&["--log", &url]).until_exit();
    assert!(!status.success());
    assert!(
        refused.contains(&format!("agora realm invite {key}")),
        "{refused}"
    );
    one.cli(&["realm", "invite", &key]).exits(0);
    let second = other.start(&["--log", &url]);

    // Agents on both answer, and answer each other, within the hops: six messages, as on one host.
    one.say("build-coord", "hello");
    for host in [&first, &second] {
        until_said(host, "ack operator:0: hello", 2);
        until_said(host, "ack acker-1: ack operator:0: hello", 2);
        until_said(host, "ack acker-1: ack acker-1: ack operator:0: hello", 2);
    }

    // A bump on one revokes on both, and both go on in the next epoch.
    let bumped = one.cli(&["epoch", "bump", "--reason", "a test", "--wait"]);
    let bumped = bumped.exits(0).stdout;
    assert!(bumped.contains("confirmed by host"), "{bumped}");
    second.until_line("the fence", |line| line["kind"] == "fence");
    other.say("build-coord", "a new epoch");
    for host in [&first, &second] {
        until_said(host, "ack operator:0: a new epoch", 2);
    }
    assert_eq!(other.cli(&["epoch"]).exits(0).stdout.trim(), "2");

    // One host is killed where it stands; what was said meanwhile it answers once, when it is back.
    second.signal(Signal::KILL);
    second.until_exit();
    one.say("build-coord", "while you were away");
    until_said(&first, "ack operator:0: while you were away", 1);
    let second = other.start(&["--log", &url]);
    until_said(&first, "ack operator:0: while you were away", 2);

    // So is the server; nothing that was acknowledged is missing, and the hosts go on by themselves.
    server.kill();
    server.run();
    one.say("build-coord", "the server is back");
    for host in [&first, &second] {
        until_said(host, "ack operator:0: the server is back", 2);
    }

    // A server that stands still is not heard: both lapse, and go on when it does.
    server.signal(Signal::STOP);
    for journey in [&one, &other] {
        until_shown(journey, "LAPSED");
    }
    server.signal(Signal::CONT);
    one.say("build-coord", "the server goes on");
    for host in [&first, &second] {
        until_said(host, "ack operator:0: the server goes on", 2);
    }
    std::thread::sleep(Duration::from_secs(1));
    for said in [
        "hello",
        "a new epoch",
        "while you were away",
        "the server is back",
        "the server goes on",
    ] {
        let ack = format!("ack operator:0: {said}");
        assert_eq!(times(&first, &ack), 2, "{ack}");
    }
    first.stop();
    second.stop();
    // What stands on the servers is what both wrote: as each finds, and whoever knows the realm's id.
    for journey in [&one, &other] {
        journey.cli(&["verify", "--log", &url]).exits(0);
    }
    let by_id = ["verify", "--log", &url, "--realm", &realm];
    one.agora_in(one.folder(), &by_id).exits(0);
    // What this leaves in its folder is no record of the realm's.
    one.forges();
    let Err(wrong) = std::panic::catch_unwind(|| one.start(&[])) else {
        panic!("a realm on a server is not to begin anew in the data folder");
    };
    let wrong = wrong.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(wrong.contains("--log"), "{wrong}");
}
