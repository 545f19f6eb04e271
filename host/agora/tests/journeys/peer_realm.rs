//! A realm of two hosts on one log, and a peer that is connected to the first: what is decided about it at the second.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::harness::{Journey, PATIENCE, Ran, agent, messages, text};
use super::nats::{Server, program};
use super::peer_loss::own_address;
use super::peers::{id, until};

const RIGHTS: &str = "rights = [\"read\", \"write\", \"initiate\"]\n";

fn bravo() -> String {
    format!(
        "[channels.release]\nhops = 1\n[peers.alpha]\n[[peers.alpha.grants]]\nchannel = \"release\"\n{RIGHTS}"
    )
}

/// What was said so far by an author, as a record has it.
fn said(journey: &Journey, log: &[&str], author: &str) -> Vec<String> {
    let told = journey
        .cli(&[&["log", "--json"], log].concat())
        .exits(0)
        .stdout;
    let messages = messages(&super::harness::json_lines(&told)).into_iter();
    messages
        .filter(|m| text(m, "author").starts_with(author))
        .map(|m| text(&m, "body").to_owned())
        .collect()
}

/// Says it for bravo's channel, again and again, until this comes of it.
#[track_caller]
fn say_until(alpha: &Journey, word: &str, is_it: impl Fn(&Ran) -> bool) -> Ran {
    let began = Instant::now();
    loop {
        let said = alpha.cli(&["say", "bravo/release", word]);
        if is_it(&said) {
            return said;
        }
        assert!(began.elapsed() < PATIENCE, "'{word}': {said:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_peer_and_its_guest_that_are_stopped_at_another_host_of_the_realm_are_let_in_by_none_until_started()
 {
    let Some(program) = program() else {
        return;
    };
    let server = Server::start(&program);
    let url = format!("nats://127.0.0.1:{}", server.port);
    let alpha = Journey::new(&format!(
        "[peers.bravo]\n{}",
        agent("acker", "acker", "bravo/release", "[\"read\", \"write\"]")
    ));
    let one = alpha.another(&bravo());
    // It has the channel by the realm's log, and knows nothing of alpha.
    let other = alpha.another("");
    let at = own_address();
    let known = format!("alpha={}", id(&alpha));
    let first_args = ["--log", &url, "--listen", &at, "--peer", &known];
    let first = one.start(&first_args);
    let shown = one.cli(&["realm", "show"]).exits(0).stdout;
    let realm = shown.lines().find_map(|line| line.strip_prefix("realm "));
    let realm = realm.expect("it names the realm").trim().to_owned();
    let joining = other.cli(&["realm", "join", &realm]).exits(0).stdout;
    let key = joining.lines().find_map(|line| line.strip_prefix("key "));
    let key = key.expect("it names its key").to_owned();
    one.cli(&["realm", "invite", &key]).exits(0);
    let second = other.start(&["--log", &url]);
    let found = format!("bravo={at}/p2p/{}", id(&one));
    let alphas = alpha.start(&["--peer", &found]);
    until(&alpha, "bravo", "connected");
    let counts = |said: &Ran| said.code == Some(0);
    say_until(&alpha, "the first", counts);
    let log = ["--log", &url];
    let by = |author: &str| said(&one, &log, author);
    let until_acked = |count: usize| {
        let began = Instant::now();
        while by("alpha/acker").len() < count {
            assert!(began.elapsed() < PATIENCE, "{:?}", by("alpha/acker"));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until_acked(1);

    // The peer: its link ends at the host that it is connected to, and is not made again.
    let done = other.cli(&["kill", "peer:alpha", "--reason", "a test"]);
    let done = done.exits(0);
    assert!(done.stdout.contains("peer:alpha of host"), "{done:?}");
    until(&one, "alpha", "revoked");
    until(&alpha, "bravo", "refused");
    alpha.cli(&["say", "bravo/release", "in vain"]).exits(1);
    one.cli(&["ping", "alpha", "--count", "1"]).exits(1);
    let again = other.cli(&["revoke", "peer:alpha"]).exits(0);
    assert!(again.stdout.contains("revoked before"), "{again:?}");
    // It is started where it comes to, and not by the other.
    let wrong = other.cli(&["start", "peer:alpha"]).exits(1);
    assert!(wrong.stderr.contains("known at host"), "{wrong:?}");
    // It stays so for a host that was away.
    first.stop();
    let first = one.start(&first_args);
    until(&one, "alpha", "revoked");
    until(&alpha, "bravo", "refused");
    assert_eq!(by("peer:alpha"), ["the first"]);
    one.cli(&["start", "peer:alpha"]).exits(0);
    until(&one, "alpha", "connected");
    until(&alpha, "bravo", "connected");
    say_until(&alpha, "the second", counts);
    until_acked(2);

    // A guest, alone: its peer is let be.
    other
        .cli(&["kill", "alpha/acker", "--reason", "a test"])
        .exits(0);
    let began = Instant::now();
    while !one.ps("alpha/acker").contains("revoked") {
        assert!(began.elapsed() < PATIENCE, "{}", one.ps("alpha/acker"));
        std::thread::sleep(Duration::from_millis(50));
    }
    say_until(&alpha, "the third", counts);
    one.cli(&["start", "alpha/acker"]).exits(0);
    say_until(&alpha, "the fourth", counts);
    let began = Instant::now();
    while !by("alpha/acker").iter().any(|t| t.ends_with("the fourth")) {
        assert!(began.elapsed() < PATIENCE, "{:?}", by("alpha/acker"));
        std::thread::sleep(Duration::from_millis(100));
    }

    // A host that is down when it is decided.
    first.signal(Signal::KILL);
    first.until_exit();
    other.cli(&["kill", "peer:alpha"]).exits(0);
    let first = one.start(&first_args);
    first.until_stderr("peer 'alpha' was revoked and stays so");
    until(&alpha, "bravo", "refused");
    one.cli(&["start", "peer:alpha"]).exits(0);
    say_until(&alpha, "the last", counts);
    // What was said while bravo was away counts as well, as often as it was said.
    let mut spoken = by("peer:alpha");
    spoken.retain(|text| text != "in vain");
    spoken.dedup();
    assert_eq!(
        spoken,
        [
            "the first",
            "the second",
            "the third",
            "the fourth",
            "the last"
        ]
    );
    let acked = by("alpha/acker");
    for word in ["the first", "the second", "the fourth"] {
        let ack = format!("ack peer:alpha: {word}");
        let times = acked.iter().filter(|text| **text == ack).count();
        assert_eq!(times, 1, "{word}: {acked:?}");
    }
    for host in [alphas, second, first] {
        host.stop();
    }
    // What stands on the server is what both wrote; their folders hold no record.
    for journey in [&one, &other] {
        journey.cli(&["verify", "--log", &url]).exits(0);
        journey.forges();
    }
}
