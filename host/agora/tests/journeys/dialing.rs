//! What an operator tells a running host of its peers: that one has moved, where it is, and that it is to be dialed now.

use std::net::TcpListener;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use super::harness::{Host, Journey, PATIENCE, Ran, json_lines, text};
use super::peers::{id, image, listening, peer, until};

const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// An address without the id behind it.
fn place(whole: &str) -> &str {
    whole.split("/p2p/").next().unwrap_or_default()
}

/// Dials until that goes as it is to: on a machine that is busy enough a handshake takes too long.
#[track_caller]
fn dials(journey: &Journey, args: &[&str], is_it: impl Fn(&Ran) -> bool) -> Ran {
    let began = Instant::now();
    let args: Vec<_> = ["dial"].iter().chain(args).copied().collect();
    loop {
        let ran = journey.cli(&args);
        if ran.code == Some(0) && is_it(&ran) {
            return ran;
        }
        assert!(began.elapsed() < PATIENCE, "{args:?}: {ran:?}");
    }
}

/// What `agora dial --json` told.
fn told(ran: &Ran) -> Value {
    json_lines(&ran.stdout).remove(0)
}

/// Where a peer may be: each address with who says so.
fn known(journey: &Journey, name: &str) -> Vec<(String, String)> {
    let seen = peer(journey, name);
    let all = seen["addresses"].as_array().expect("a list").iter();
    all.map(|at| (text(at, "address").to_owned(), text(at, "from").to_owned()))
        .filter(|(_, from)| from != "identify")
        .collect()
}

/// A port that nobody listens at.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened at");
    listener.local_addr().expect("it has one").port()
}

/// Alpha, which knows who bravo is; and bravo, which listens, and may use another port at each start.
struct Two {
    alpha: Journey,
    bravo: Journey,
    alpha_id: String,
    bravo_id: String,
}

impl Two {
    fn new() -> Self {
        let alpha = Journey::new(&image("bravo"));
        let bravo = alpha.another(&image("alpha"));
        Self {
            alpha_id: id(&alpha),
            bravo_id: id(&bravo),
            alpha,
            bravo,
        }
    }

    /// Bravo, and where it is.
    fn bravo(&self) -> (Host, String) {
        let known = format!("alpha={}", self.alpha_id);
        let host = self.bravo.start(&["--listen", LOOPBACK, "--peer", &known]);
        let at = listening(&host);
        (host, at)
    }

    /// Alpha, which is told who bravo is, and where, if that is said.
    fn alpha(&self, at: Option<&str>) -> Host {
        let at = at.unwrap_or(&self.bravo_id);
        self.alpha.start(&["--peer", &format!("bravo={at}")])
    }
}

#[test]
fn a_peer_that_moved_is_connected_where_the_operator_says_and_found_there_after_a_restart() {
    let two = Two::new();
    let (second, first_place) = two.bravo();
    let first = two.alpha(Some(&first_place));
    until(&two.alpha, "bravo", "connected");
    let from = |from: &str, at: &str| (place(at).to_owned(), from.to_owned());
    assert_eq!(
        known(&two.alpha, "bravo"),
        [from("command line", &first_place)]
    );

    // It is elsewhere when it comes back.
    second.stop();
    let (second, second_place) = two.bravo();
    assert_ne!(first_place, second_place);
    let ran = dials(&two.alpha, &["bravo", &second_place, "--json"], |_| true);
    let dialed = told(&ran);
    assert_eq!(dialed["connected"], true, "{dialed}");
    assert_eq!(text(&dialed, "address"), place(&second_place), "{dialed}");
    assert!(
        dialed["why"].is_null() && dialed["note"].is_null(),
        "{dialed}"
    );
    until(&two.alpha, "bravo", "connected");
    let all = [
        from("dial", &second_place),
        from("command line", &first_place),
    ];
    assert_eq!(known(&two.alpha, "bravo"), all);
    let shown = two.alpha.cli(&["peers"]).exits(0).stdout;
    assert!(
        shown.contains(&format!("{} (dial)", place(&second_place))),
        "{shown}"
    );

    // Who is connected isn't dialed.
    dials(&two.alpha, &["peer:bravo"], |ran| {
        ran.stdout.contains("round trip") && ran.stdout.contains("before, too")
    });

    // The next start knows it, and needs no other.
    first.stop();
    let first = two.alpha(None);
    until(&two.alpha, "bravo", "connected");
    assert_eq!(known(&two.alpha, "bravo"), [from("dial", &second_place)]);

    // It is gone without a word, and back elsewhere: the connection that nobody has missed yet is not what is told.
    second.signal(Signal::KILL);
    second.until_exit();
    let (second, third_place) = two.bravo();
    let ran = dials(&two.alpha, &["bravo", place(&third_place)], |_| true);
    assert!(
        ran.stdout
            .contains(&format!("connected at {}", place(&third_place))),
        "{ran:?}"
    );

    // What is taken back isn't known any more, here and after a restart.
    let ran = two
        .alpha
        .cli(&["dial", "bravo", "--forget", &second_place])
        .exits(0);
    assert!(ran.stdout.contains(place(&third_place)), "{ran:?}");
    assert_eq!(known(&two.alpha, "bravo"), [from("dial", &third_place)]);
    let ran = two
        .alpha
        .cli(&["dial", "bravo", "--forget", &second_place])
        .exits(1);
    assert!(ran.stderr.contains(place(&third_place)), "{ran:?}");
    first.signal(Signal::KILL);
    first.until_exit();
    let first = two.alpha(None);
    assert_eq!(known(&two.alpha, "bravo"), [from("dial", &third_place)]);
    until(&two.alpha, "bravo", "connected");
    first.stop();
    second.stop();
}

#[test]
fn a_dial_says_why_it_came_to_nothing_and_goes_on_to_other_addresses() {
    let two = Two::new();
    let nobody = format!("/ip4/127.0.0.1/tcp/{}", closed_port());
    let known_as = format!("bravo={}", two.bravo_id);
    let _first = two
        .alpha
        .start(&["--listen", LOOPBACK, "--peer", &known_as]);
    let ran = two.alpha.cli(&["dial", "bravo"]).exits(1);
    assert!(ran.stdout.contains("no address"), "{ran:?}");
    let ran = two
        .alpha
        .cli(&["dial", "bravo", &nobody, "--json"])
        .exits(1);
    let dialed = told(&ran);
    assert_eq!(dialed["connected"], false, "{dialed}");
    assert!(text(&dialed, "why").contains(&nobody), "{dialed}");

    // Someone else is there.
    let charlie = two.alpha.another(&image("alpha"));
    let third = charlie.start(&["--listen", LOOPBACK]);
    let at_charlie = listening(&third);
    let ran = two
        .alpha
        .cli(&["dial", "bravo", place(&at_charlie)])
        .exits(1);
    assert!(ran.stdout.contains("not connected"), "{ran:?}");
    // Both are kept all the same: it may come to be there.
    assert_eq!(known(&two.alpha, "bravo").len(), 2);

    let (_second, at) = two.bravo();
    let ran = dials(&two.alpha, &["bravo", &at], |_| true);
    assert!(ran.stdout.contains(place(&at)), "{ran:?}");
}

#[test]
fn what_is_no_address_of_the_peer_is_refused_with_what_would_be_right() {
    let two = Two::new();
    let stranger = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let at = "/ip4/127.0.0.1/udp/4101/quic-v1";
    let ran = two.alpha.cli(&["dial", "bravo", at]).exits(1);
    assert!(ran.stderr.contains("no host answers"), "{ran:?}");

    let offline = two.alpha.start(&["--offline"]);
    let ran = two.alpha.cli(&["dial", "bravo", at]).exits(1);
    assert!(ran.stderr.contains("no id"), "{ran:?}");
    offline.stop();

    let known_as = format!("bravo={}", two.bravo_id);
    let first = two
        .alpha
        .start(&["--listen", LOOPBACK, "--peer", &known_as]);
    let own = listening(&first);
    for (address, says) in [
        ("127.0.0.1:4101", at),
        ("/ip4/127.0.0.1/udp/0/quic-v1", "port 0"),
        ("/ip4/127.0.0.1/udp/4101", "quic-v1"),
        ("charlie", "/quic-v1"),
    ] {
        let ran = two.alpha.cli(&["dial", "bravo", address]).exits(2);
        assert!(ran.stderr.contains(says), "{address}: {ran:?}");
    }
    let theirs = format!("{at}/p2p/{stranger}");
    let long = format!("/dns4/{}/tcp/4101", "a".repeat(600));
    let many: Vec<_> = (1..=17)
        .map(|port| format!("/ip4/127.0.0.1/tcp/{port}"))
        .collect();
    let mut all = vec!["dial", "bravo"];
    all.extend(many.iter().map(String::as_str));
    for (args, says) in [
        (&["dial", "brava", at][..], "did you mean 'bravo'"),
        (&["dial", "bravo", &theirs], stranger),
        (&["dial", "bravo", &theirs], &two.bravo_id),
        (&["dial", "bravo", &long], "at most 512"),
        (&["dial", "bravo", place(&own)], "own address"),
        (&all, "at most 16"),
        (&["dial", "bravo", "--forget", at], "not given"),
    ] {
        let ran = two.alpha.cli(args).exits(1);
        assert!(ran.stderr.contains(says), "{args:?}: {ran:?}");
    }
    assert_eq!(known(&two.alpha, "bravo"), [], "nothing of it was kept");
    two.alpha
        .cli(&["dial", "bravo", at, "--forget", at])
        .exits(2);

    // Whom the operator let go is not dialed.
    two.alpha.cli(&["revoke", "peer:bravo"]).exits(0);
    let ran = two.alpha.cli(&["dial", "bravo", at]).exits(1);
    assert!(ran.stderr.contains("agora start peer:bravo"), "{ran:?}");
    two.alpha.cli(&["start", "peer:bravo"]).exits(0);
    first.stop();

    // A peer that is another one now isn't looked for where the first was.
    let other = two.alpha.start(&["--peer", &format!("bravo={stranger}")]);
    two.alpha
        .cli(&[
            "dial",
            "bravo",
            &format!("/ip4/127.0.0.1/tcp/{}", closed_port()),
        ])
        .exits(1);
    assert_eq!(known(&two.alpha, "bravo").len(), 1);
    other.stop();
    let first = two.alpha(None);
    first.until_stderr("left out");
    assert_eq!(known(&two.alpha, "bravo"), []);
    first.stop();

    // A host that keeps no connections dials nobody.
    let declared = format!("[peers.bravo]\nid = \"{}\"\n", two.bravo_id);
    two.alpha
        .write_manifest(&image("bravo").replace("[peers.bravo]\n", &declared));
    let first = two.alpha.start(&["--offline"]);
    let ran = two.alpha.cli(&["dial", "bravo", at]).exits(1);
    assert!(ran.stderr.contains("--offline"), "{ran:?}");
    first.stop();

    // A file that is damaged is told of, with its line.
    std::fs::write(two.alpha.data().join("book"), "agora book 1\nadress\n").expect("it is ours");
    let (status, _, wrong) = two.alpha.spawn(&[]).until_exit();
    assert_eq!(status.code(), Some(1), "{wrong}");
    assert!(wrong.contains("book: line 2"), "{wrong}");
}
