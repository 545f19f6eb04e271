//! Hosts of two realms, each a process of its own: who they are to each other, how they are reached, and how one lets the other go.

use std::time::Instant;

use serde_json::Value;

use super::harness::{Host, Journey, PATIENCE, is_message, json_lines, text, workspace};

const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// An image without agents, with a channel and a peer that is granted it.
pub(crate) fn image(peer: &str) -> String {
    format!(
        "[channels.news]\n[channels.plans]\n[peers.{peer}]\n[[peers.{peer}.grants]]\nchannel = \"news\"\n"
    )
}

/// Its peer id; the data folder is made where there is none.
pub(crate) fn id(journey: &Journey) -> String {
    let told = journey.cli(&["id", "--make", "--peer"]).exits(0).stdout;
    told.trim().to_owned()
}

/// Where a host listens, with its id.
pub(crate) fn listening(host: &Host) -> String {
    let line = host.until_line("where it listens", |line| line["event"] == "listening");
    text(&line, "address").to_owned()
}

/// A peer as `agora peers` tells it.
pub(crate) fn peer(journey: &Journey, name: &str) -> Value {
    let told = json_lines(&journey.cli(&["peers", "--json"]).exits(0).stdout);
    let mut peers = told.into_iter().filter(|line| line["event"] == "peer");
    let found = peers.find(|line| line["name"] == name);
    found.unwrap_or_else(|| panic!("no peer '{name}'"))
}

/// Waits until `agora peers` says that a peer is in this state.
#[track_caller]
pub(crate) fn until(journey: &Journey, name: &str, state: &str) -> Value {
    let began = Instant::now();
    loop {
        let found = peer(journey, name);
        if found["state"] == state {
            return found;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "'{name}' is not {state}: {found}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Pings until it is answered.
#[track_caller]
fn until_ping(journey: &Journey, name: &str) {
    let began = Instant::now();
    loop {
        let told = journey.cli(&["ping", name, "--count", "1"]);
        if told.code == Some(0) {
            assert!(told.stdout.contains("1 of 1 answered"), "{told:?}");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "no ping of '{name}': {told:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Alpha and bravo, both running; bravo listens.
struct Two {
    alpha: Journey,
    bravo: Journey,
    hosts: [Host; 2],
}

impl Two {
    fn start() -> Self {
        let alpha = Journey::new(&image("bravo"));
        let bravo = alpha.another(&image("alpha"));
        let known = format!("alpha={}", id(&alpha));
        let second = bravo.start(&["--listen", LOOPBACK, "--peer", &known]);
        let at = listening(&second);
        assert!(at.ends_with(&format!("/p2p/{}", id(&bravo))), "{at}");
        let first = alpha.start(&["--peer", &format!("bravo={at}")]);
        Self {
            alpha,
            bravo,
            hosts: [first, second],
        }
    }
}

#[test]
fn a_host_has_its_peer_id_before_it_runs_and_keeps_it() {
    let journey = Journey::new(&image("bravo"));
    let missing = journey.cli(&["id", "--peer"]).exits(1);
    assert!(
        missing.stderr.contains("--make") || missing.stderr.contains("data folder"),
        "{missing:?}"
    );
    let first = id(&journey);
    assert!(first.starts_with("12D3KooW"), "{first}");
    assert_eq!(id(&journey), first);
    let shown = journey.cli(&["id"]).exits(0).stdout;
    assert!(shown.contains(&format!("peer    {first}\n")), "{shown}");
    for _ in 0..2 {
        let host = journey.start(&["--listen", LOOPBACK, "--listen", "/ip4/127.0.0.1/tcp/0"]);
        for kind in ["/udp/", "/tcp/"] {
            let line = host.until_line(kind, |line| {
                line["event"] == "listening" && text(line, "address").contains(kind)
            });
            let at = text(&line, "address");
            assert!(at.ends_with(&format!("/p2p/{first}")), "{at}");
            assert!(!at.contains("/0"), "it names the real port: {at}");
        }
        let told = json_lines(&journey.cli(&["peers", "--json"]).exits(0).stdout);
        assert_eq!(
            (&told[0]["event"], &told[0]["id"]),
            (&"host".into(), &first.as_str().into())
        );
        assert_eq!(told[0]["listening"].as_array().map(Vec::len), Some(2));
        let keyed = json_lines(&journey.cli(&["id", "--json"]).exits(0).stdout);
        assert_eq!(keyed[0]["peer"], first.as_str());
        host.stop();
    }
}

#[test]
fn two_hosts_connect_and_each_says_how_the_other_is() {
    let two = Two::start();
    let seen = until(&two.alpha, "bravo", "connected");
    assert_eq!(seen["id"], id(&two.bravo).as_str());
    assert!(text(&seen, "address").contains("/127.0.0.1/"), "{seen}");
    let seen = until(&two.bravo, "alpha", "connected");
    assert_eq!(seen["granted"][0]["channel"], "news", "{seen}");
    assert!(two.bravo.ps("peer:alpha").contains("connected"));
    until_ping(&two.alpha, "bravo");
    until_ping(&two.bravo, "peer:alpha");
    let shown = two.alpha.cli(&["peers"]).exits(0).stdout;
    assert!(shown.contains("bravo  connected"), "{shown}");

    // A grant more, and one less.
    let granted = two
        .bravo
        .cli(&["grant", "peer:alpha", "plans", "--count", "3"])
        .exits(0);
    let number = granted
        .stdout
        .split(':')
        .next()
        .unwrap_or_default()
        .to_owned();
    let grants = two.bravo.cli(&["ps", "--grants"]).exits(0).stdout;
    let row = grants
        .lines()
        .find(|line| line.starts_with(&format!("{number} ")));
    assert!(
        row.is_some_and(|row| row.contains("peer:alpha") && row.contains("3 messages")),
        "{grants}"
    );
    two.bravo.cli(&["revoke", &number]).exits(0);
    let seen = peer(&two.bravo, "alpha");
    assert_eq!(seen["granted"].as_array().map(Vec::len), Some(1), "{seen}");

    // Who is gone is told as gone.
    let [first, second] = two.hosts;
    second.stop();
    let began = Instant::now();
    while peer(&two.alpha, "bravo")["state"] == "connected" {
        assert!(began.elapsed() < PATIENCE, "bravo is gone");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let told = two
        .alpha
        .cli(&["ping", "bravo", "--count", "2"])
        .exits(1)
        .stdout;
    assert!(
        told.contains("no answer") && told.contains("0 of 2 answered"),
        "{told}"
    );
    first.stop();
}

#[test]
fn a_peer_that_is_revoked_is_let_in_by_nobody_until_it_is_started() {
    let two = Two::start();
    until(&two.bravo, "alpha", "connected");
    let done = two
        .bravo
        .cli(&["revoke", "peer:alpha", "--reason", "a test"])
        .exits(0);
    assert!(done.stdout.contains("peer:alpha is revoked"), "{done:?}");
    until(&two.bravo, "alpha", "revoked");
    until(&two.alpha, "bravo", "refused");
    assert!(two.bravo.ps("peer:alpha").contains("revoked"));
    let again = two.bravo.cli(&["kill", "peer:alpha"]).exits(0);
    assert!(again.stdout.contains("revoked before"), "{again:?}");
    two.bravo.cli(&["ping", "alpha", "--count", "1"]).exits(1);

    // It stays so across a restart.
    let [_first, second] = two.hosts;
    second.stop();
    let known = format!("alpha={}", id(&two.alpha));
    let second = two.bravo.start(&["--listen", LOOPBACK, "--peer", &known]);
    second.until_stderr("peer 'alpha' was revoked and stays so");
    let at = listening(&second);
    drop(_first);
    let _first = two.alpha.start(&["--peer", &format!("bravo={at}")]);
    until(&two.alpha, "bravo", "refused");

    two.bravo.cli(&["start", "peer:alpha"]).exits(0);
    until(&two.bravo, "alpha", "connected");
    let again = two.bravo.cli(&["start", "peer:alpha"]).exits(0);
    assert!(again.stdout.contains("not revoked"), "{again:?}");
    let log = two.bravo.log();
    let keys = log
        .iter()
        .filter(|line| line["kind"] == "key" && text(line, "body").contains("peer:alpha"));
    assert_eq!(keys.count(), 2, "it comes back with a new key");
}

#[test]
fn what_is_wrong_about_a_peer_is_told_with_what_would_be_right() {
    let journey = Journey::new(&image("alpha"));
    let stranger = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    for (args, told) in [
        (
            ["--dial", "127.0.0.1:4101"],
            "/ip4/127.0.0.1/udp/4101/quic-v1",
        ),
        (["--listen", "/ip4/127.0.0.1/udp/4101"], "quic-v1"),
        (["--peer", "bravo=charlie"], "agora id"),
    ] {
        let (status, _, wrong) = journey.spawn(&args).until_exit();
        assert_eq!(status.code(), Some(2), "{args:?}");
        assert!(wrong.contains(told), "{args:?}: {wrong}");
    }
    let dial = format!("/ip4/127.0.0.1/udp/4101/quic-v1/p2p/{stranger}");
    let named = format!("alpa={stranger}");
    for (args, told) in [
        (["--dial", &dial], stranger),
        (["--peer", &named], "did you mean 'alpha'"),
    ] {
        let (status, _, wrong) = journey.spawn(&args).until_exit();
        assert_eq!(status.code(), Some(1), "{args:?}");
        assert!(wrong.contains(told), "{args:?}: {wrong}");
    }

    // A peer without an id is told of, and the host runs.
    let host = journey.start(&[]);
    host.until_stderr("neither `id` nor `key`");
    host.stop();
    let _host = journey.start(&["--peer", &format!("alpha={stranger}")]);
    for (args, told) in [
        (&["revoke", "peer:alhpa"][..], "did you mean 'peer:alpha'"),
        (&["kill", "alpha"], "did you mean 'peer:alpha'"),
        (&["grant", "peer:alpha", "nesw"], "did you mean 'news'"),
        (&["grant", "peer:alpha", "--timer"], "channels only"),
        (&["grant", "alpha/synth", "news"], "guest"),
        (&["kill", "alpha/synth"], "guest"),
        (&["ping", "alhpa"], "did you mean 'alpha'"),
    ] {
        let ran = journey.cli(args).exits(1);
        assert!(ran.stderr.contains(told), "{args:?}: {ran:?}");
    }
    let ran = journey.cli(&["ping", "alpha", "--count", "1"]).exits(1);
    assert!(ran.stdout.contains("no answer"), "{ran:?}");
    assert_eq!(peer(&journey, "alpha")["id"], stranger);
    let checked = journey
        .agora_in(journey.folder(), &["check", "image"])
        .exits(0);
    assert!(checked.stdout.contains("1 peers (alpha)"), "{checked:?}");
}

#[test]
fn agents_of_two_realms_negotiate_and_the_record_of_each_says_so() {
    let shared = |name: &str| {
        let path = workspace().join(format!("boot/peers/{name}/agora.toml"));
        let text = std::fs::read_to_string(path).expect("it is in the repository");
        // Its components are those that the journeys build.
        ["planner", "reviewer"].iter().fold(text, |text, agent| {
            text.replace(&format!("\"{agent}.wasm\""), &format!("\"{{{agent}}}\""))
                .replace(&format!("source = \"../../../agents/{agent}\"\n"), "")
        })
    };
    let alpha = Journey::new(&shared("alpha"));
    let bravo = alpha.another(&shared("bravo"));
    let known = format!("alpha={}", id(&alpha));
    let second = bravo.start(&["--listen", LOOPBACK, "--peer", &known]);
    let at = listening(&second);
    let first = alpha.start(&["--peer", &format!("bravo={at}")]);

    let acts = |host: &Host, act: &str, author: &str| {
        host.until_line(&format!("{author}: {act}"), |line| {
            is_message(line) && line["act"] == act && text(line, "author") == author
        })
    };
    acts(&second, "request", "alpha/planner");
    acts(&second, "refuse", "reviewer");
    let proposed = acts(&second, "propose", "alpha/planner");
    assert_eq!(
        proposed["hops"], 4,
        "each answer has one less, whoever says it"
    );
    acts(&second, "agree", "reviewer");
    // What the planner said stands in its own realm, too.
    let own = acts(&first, "propose", "planner");
    assert_eq!(own["channel"], "bravo/release");
    let lent = until(&alpha, "bravo", "connected");
    assert_eq!(lent["lends"][0]["channel"], "bravo/release", "{lent}");
    let grants = bravo.cli(&["ps", "--grants"]).exits(0).stdout;
    let guest = grants
        .lines()
        .find(|line| line.contains("under g") && line.contains("alpha/planner"));
    assert!(
        guest.is_some_and(|row| row.contains("peer:alpha")),
        "{grants}"
    );

    // A guest that is stopped says nothing more; its peer is let alone.
    bravo
        .cli(&["kill", "alpha/planner", "--reason", "a test"])
        .exits(0);
    assert!(bravo.ps("alpha/planner").contains("revoked"));
    assert!(!bravo.ps("peer:alpha").contains("revoked"));
    let again = bravo.cli(&["kill", "alpha/planner"]).exits(0);
    assert!(again.stdout.contains("revoked before"), "{again:?}");
    bravo.cli(&["start", "alpha/planner"]).exits(0);
    first.stop();
    second.stop();
}

#[test]
fn a_peer_that_is_known_by_its_key_logs_in_and_has_what_it_was_granted() {
    let alpha = Journey::new(&image("bravo"));
    id(&alpha);
    let keyed = json_lines(&alpha.cli(&["id", "--json"]).exits(0).stdout);
    let key = text(&keyed[0], "key");
    let by_key = image("alpha").replace(
        "[peers.alpha]\n",
        &format!("[peers.alpha]\nkey = \"{key}\"\n"),
    );
    let bravo = alpha.another(&by_key);
    let second = bravo.start(&["--listen", LOOPBACK]);
    let ran = bravo.cli(&["grant", "peer:alpha", "plans"]).exits(1);
    assert!(ran.stderr.contains("logged in"), "{ran:?}");
    let at = listening(&second);
    let _first = alpha.start(&["--peer", &format!("bravo={at}")]);
    until(&alpha, "bravo", "connected");
    let seen = peer(&bravo, "alpha");
    assert_eq!(seen["id"], id(&alpha).as_str(), "{seen}");
    assert_eq!(seen["granted"][0]["channel"], "news", "{seen}");
    let lent = peer(&alpha, "bravo");
    assert_eq!(lent["lends"][0]["channel"], "bravo/news", "{lent}");
    bravo.cli(&["grant", "peer:alpha", "plans"]).exits(0);
}
