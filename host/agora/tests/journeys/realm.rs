//! Several hosts of one realm, on a log that a nats-server keeps.

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
    one.cli(&["epoch", "bump", "--reason", "a test"]).exits(0);
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
    std::thread::sleep(std::time::Duration::from_secs(1));
    for said in [
        "hello",
        "a new epoch",
        "while you were away",
        "the server is back",
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
