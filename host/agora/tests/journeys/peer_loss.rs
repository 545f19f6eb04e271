//! Hosts of two realms that are killed, stopped, and cut off from each other: what is said for the other counts there once, or never.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::harness::{Host, Journey, PATIENCE, agent, messages, text};
use super::network::Network;
use super::peers::{id, peer, until};
use super::proxy::Proxy;

/// How often a host is killed, unless `AGORA_KILLS` says otherwise.
const KILLS: u64 = 8;

const RIGHTS: &str = "[\"read\", \"write\"]";

/// Bravo has the channel `release`, which it grants alpha; alpha has an agent that acknowledges whatever is said there.
fn images() -> (String, String) {
    let alpha = format!(
        "[peers.bravo]\n{}",
        agent("acker", "acker", "bravo/release", RIGHTS)
    );
    let bravo = "[channels.release]\nhops = 1\n[peers.alpha]\n[[peers.alpha.grants]]\nchannel = \"release\"\n\
                 rights = [\"read\", \"write\", \"initiate\"]\n";
    (alpha, bravo.to_owned())
}

/// An address of this process's own, which no other takes while its host is down.
pub(crate) fn own_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(4101);
    let process = std::process::id();
    let (high, low) = ((process >> 8) & 0xff, process & 0xff);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "/ip4/127.{}.{high}.{low}/udp/{port}/quic-v1",
        64 + (process >> 16) % 64
    )
}

/// Two hosts, and how each is started.
struct Two {
    alpha: Journey,
    bravo: Journey,
    alpha_args: Vec<String>,
    bravo_args: Vec<String>,
}

impl Two {
    /// Bravo listens at `at`; alpha finds it at `seen`.
    fn new(alpha: Journey, bravo: Journey, at: &str, seen: &str) -> Self {
        let alpha_args = vec!["--peer".into(), format!("bravo={seen}/p2p/{}", id(&bravo))];
        let known = format!("alpha={}", id(&alpha));
        let bravo_args = ["--listen", at, "--peer", &known].map(String::from).into();
        Self {
            alpha,
            bravo,
            alpha_args,
            bravo_args,
        }
    }

    fn start_alpha(&self) -> Host {
        start(&self.alpha, &self.alpha_args)
    }

    fn start_bravo(&self) -> Host {
        start(&self.bravo, &self.bravo_args)
    }

    /// What alpha's operator said for bravo's channel, as alpha's log has it.
    fn outbox(&self) -> Vec<String> {
        let said = messages(&self.alpha.log()).into_iter();
        said.filter(|m| m["channel"] == "bravo/release" && is_by(m, "operator:"))
            .map(|m| text(&m, "body").to_owned())
            .collect()
    }

    /// What counts at bravo of an author, as bravo's log has it.
    fn counts(&self, author: &str) -> Vec<String> {
        let said = messages(&self.bravo.log()).into_iter();
        said.filter(|m| m["channel"] == "release" && is_by(m, author))
            .map(|m| text(&m, "body").to_owned())
            .collect()
    }

    /// Says it for bravo's channel; again, until bravo answers that it counts.
    #[track_caller]
    fn say(&self, text: &str) {
        let began = Instant::now();
        loop {
            let said = self.alpha.cli(&["say", "bravo/release", text]);
            if said.code == Some(0) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "'{text}' is not said: {said:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Says it for bravo's channel while bravo is out of reach.
    #[track_caller]
    fn say_in_vain(&self, text: &str) {
        let said = self.alpha.cli(&["say", "bravo/release", text]).exits(1);
        assert!(said.stderr.contains("out of reach"), "{said:?}");
    }
}

fn is_by(message: &Value, author: &str) -> bool {
    text(message, "author").starts_with(author)
}

fn start(journey: &Journey, args: &[String]) -> Host {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    journey.start(&args)
}

/// Waits until it is so. Looking takes a process each time.
#[track_caller]
fn soon(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(
            began.elapsed() < 2 * PATIENCE,
            "it doesn't come to this: {what}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_is_said_for_a_peer_counts_there_once_however_often_either_host_is_killed() {
    let (here, there) = images();
    let alpha = Journey::new(&here);
    let bravo = alpha.another(&there);
    let at = own_address();
    let two = Two::new(alpha, bravo, &at, &at);
    let mut second = two.start_bravo();
    let first = two.start_alpha();
    two.say("the first");
    soon("it is acknowledged", || {
        two.counts("alpha/acker").len() == 1
    });
    // From where its agents hear bravo's channel is written a moment later, or when it ends.
    first.stop();
    let mut first = two.start_alpha();

    let kills = std::env::var("AGORA_KILLS").ok();
    let kills = kills.map_or(KILLS, |kills| {
        kills.parse().expect("AGORA_KILLS is a number")
    });
    // A walk over the moments that is the same each time.
    let mut moment = 0x2545_f491_u64;
    for round in 0..kills {
        moment ^= moment << 13;
        moment ^= moment >> 7;
        moment ^= moment << 17;
        until(&two.alpha, "bravo", "connected");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (two, over) = (&two, &over);
            let speaker = scope.spawn(move || {
                let mut said = 0;
                while !over.load(Ordering::SeqCst) {
                    let text = format!("{round}.{said}");
                    // Whether it is answered or not: what is in the outbox counts.
                    two.alpha.cli(&["say", "bravo/release", &text]);
                    said += 1;
                }
            });
            std::thread::sleep(Duration::from_millis(100 + moment % 500));
            match round % 4 {
                0 => {
                    // Bravo takes nothing and says nothing, and alpha's outbox outlives alpha.
                    second.signal(Signal::STOP);
                    until(&two.alpha, "bravo", "lapsed");
                    two.say_in_vain(&format!("{round} in vain"));
                    first.signal(Signal::KILL);
                }
                1 => second.signal(Signal::KILL),
                2 => first.signal(Signal::KILL),
                _ => {
                    first.signal(Signal::KILL);
                    second.signal(Signal::KILL);
                }
            }
            over.store(true, Ordering::SeqCst);
            speaker.join().expect("it only speaks");
        });
        if round % 4 != 1 {
            first.until_exit();
            first = two.start_alpha();
        }
        match round % 4 {
            0 => second.signal(Signal::CONT),
            2 => {}
            _ => {
                second.until_exit();
                second = two.start_bravo();
            }
        }
    }

    two.say("the last");
    let outbox = two.outbox();
    let vain = outbox.iter().filter(|text| text.ends_with("in vain"));
    assert_eq!(vain.count() as u64, kills.div_ceil(4), "{outbox:?}");
    // One author's messages count in the order in which it said them, so that nothing is to come behind the last.
    assert_eq!(two.counts("peer:alpha"), outbox);
    // Each was heard by alpha's agent and answered, once.
    let mut answers: Vec<_> = outbox
        .iter()
        .map(|text| format!("ack peer:alpha: {text}"))
        .collect();
    answers.sort();
    let acknowledged = || {
        let mut counts = two.counts("alpha/acker");
        counts.sort();
        counts
    };
    soon("all are acknowledged", || {
        acknowledged().len() >= answers.len()
    });
    assert_eq!(acknowledged(), answers);
    first.stop();
    second.stop();
    // The record of each is verified as its journey ends.
}

/// A network between two hosts.
enum Between {
    Proxy(Proxy),
    Router(Network),
}

impl Between {
    fn cut(&self) {
        match self {
            Self::Proxy(proxy) => proxy.cut(),
            Self::Router(network) => network.forward(false),
        }
    }

    fn heal(&self) {
        match self {
            Self::Proxy(proxy) => proxy.heal(),
            Self::Router(network) => network.forward(true),
        }
    }
}

/// Two hosts, both running, that had to do with each other; and the network between them.
fn apart(between: impl FnOnce(Journey, Journey) -> (Two, Between)) -> (Two, [Host; 2], Between) {
    let (here, there) = images();
    let alpha = Journey::new(&here);
    let bravo = alpha.another(&there);
    let (two, between) = between(alpha, bravo);
    let second = two.start_bravo();
    let first = two.start_alpha();
    until(&two.alpha, "bravo", "connected");
    two.say("before");
    soon("it is acknowledged", || {
        two.counts("alpha/acker").len() == 1
    });
    (two, [first, second], between)
}

/// Bravo ends its epoch, and then alpha its own, while neither hears of the other.
fn bumps_in_a_partition(two: &Two, between: &Between) {
    let old = peer(&two.alpha, "bravo")["epoch"].clone();
    between.cut();
    until(&two.alpha, "bravo", "lapsed");
    let lapsed = peer(&two.alpha, "bravo");
    assert_eq!(
        lapsed["lends"].as_array().map(Vec::len),
        Some(0),
        "{lapsed}"
    );
    two.say_in_vain("of bravo's old epoch");
    // It waits for nobody, and what bravo's own operator says goes on.
    let bumped = two
        .bravo
        .cli(&["epoch", "bump", "--reason", "a test"])
        .exits(0);
    two.bravo.say("release", "at home");
    between.heal();
    let seen = until(&two.alpha, "bravo", "connected");
    assert_ne!(seen["epoch"], old, "{seen} after {bumped:?}");
    two.say("in bravo's new epoch");
    assert_eq!(two.counts("peer:alpha"), ["before", "in bravo's new epoch"]);
    // Alpha's agent was told, grafted again, and hears what is said now.
    soon("it is acknowledged", || {
        let said = two.counts("alpha/acker");
        said.iter()
            .any(|text| text.ends_with("in bravo's new epoch"))
    });

    between.cut();
    until(&two.alpha, "bravo", "lapsed");
    two.say_in_vain("of alpha's old epoch");
    two.alpha
        .cli(&["epoch", "bump", "--reason", "a test"])
        .exits(0);
    between.heal();
    until(&two.alpha, "bravo", "connected");
    two.say("in alpha's new epoch");
    soon("it is acknowledged", || {
        let said = two.counts("alpha/acker");
        said.iter()
            .any(|text| text.ends_with("in alpha's new epoch"))
    });
    let all = ["before", "in bravo's new epoch", "in alpha's new epoch"];
    assert_eq!(two.counts("peer:alpha"), all);
    // It stands in alpha's log that they were said, and were never sent.
    let outbox = two.outbox();
    for never in ["of bravo's old epoch", "of alpha's old epoch"] {
        assert!(outbox.iter().any(|text| text == never), "{outbox:?}");
    }
}

#[test]
fn a_bump_in_a_partition_ends_what_waits_on_either_side() {
    let (two, hosts, between) = apart(|alpha, bravo| {
        // A port of its own to begin with, that the proxy is put before.
        let at = own_address();
        let proxy = Proxy::before(&at);
        let seen = proxy.address(&at);
        (Two::new(alpha, bravo, &at, &seen), Between::Proxy(proxy))
    });
    bumps_in_a_partition(&two, &between);
    for host in hosts {
        host.stop();
    }
}

#[test]
fn a_bump_in_a_partition_ends_what_waits_on_either_side_of_a_router() {
    let network = match Network::build() {
        Ok(network) => network,
        Err(why) => {
            eprintln!("skipped: no network namespaces here ({why})");
            return;
        }
    };
    let (two, hosts, between) = apart(|alpha, bravo| {
        let exec = ["ip", "netns", "exec"];
        let alpha = alpha.under(&[&exec[..], &[&network.left]].concat());
        let bravo = bravo.under(&[&exec[..], &[&network.right]].concat());
        let at = "/ip4/10.78.2.2/udp/4101/quic-v1";
        (Two::new(alpha, bravo, at, at), Between::Router(network))
    });
    bumps_in_a_partition(&two, &between);
    for host in hosts {
        host.stop();
    }
}

#[test]
fn two_hosts_that_dial_each_other_at_once_are_connected_and_use_what_each_lends() {
    let image = |own: &str, other: &str| {
        format!(
            "[channels.{own}]\n[peers.{other}]\n[[peers.{other}.grants]]\nchannel = \"{own}\"\n\
             rights = [\"read\", \"write\", \"initiate\"]\n{}",
            agent("acker", "acker", &format!("{other}/of-{other}"), RIGHTS)
        )
        .replace(
            &format!("[channels.{own}]"),
            &format!("[channels.of-{own}]"),
        )
        .replace(
            &format!("channel = \"{own}\""),
            &format!("channel = \"of-{own}\""),
        )
    };
    let alpha = Journey::new(&image("alpha", "bravo"));
    let bravo = alpha.another(&image("bravo", "alpha"));
    let (here, there) = (own_address(), own_address());
    let args = |own: &str, name: &str, at: &str, other: &Journey| -> Vec<String> {
        let known = format!("{name}={at}/p2p/{}", id(other));
        ["--listen", own, "--peer", &known].map(String::from).into()
    };
    let first_args = args(&here, "bravo", &there, &bravo);
    let second_args = args(&there, "alpha", &here, &alpha);
    for round in 0..3 {
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| start(&alpha, &first_args));
            let second = scope.spawn(|| start(&bravo, &second_args));
            (
                first.join().expect("it starts"),
                second.join().expect("it starts"),
            )
        });
        until(&alpha, "bravo", "connected");
        until(&bravo, "alpha", "connected");
        for (from, to, channel, by) in [
            (&alpha, &bravo, "of-bravo", "peer:alpha"),
            (&bravo, &alpha, "of-alpha", "peer:bravo"),
        ] {
            let word = format!("hello {round}");
            let afar = format!("{}/{channel}", &channel["of-".len()..]);
            soon("it is said", || {
                from.cli(&["say", &afar, &word]).code == Some(0)
            });
            let counts = || {
                let said = messages(&to.log()).into_iter();
                let said = said.filter(|m| m["channel"] == channel);
                said.map(|m| (text(&m, "author").to_owned(), text(&m, "body").to_owned()))
                    .collect::<Vec<_>>()
            };
            assert!(
                counts()
                    .iter()
                    .any(|(author, text)| author.starts_with(by) && *text == word)
            );
            // Heard back by the agent of who said it.
            soon("it is acknowledged", || {
                counts()
                    .iter()
                    .any(|(_, text)| *text == format!("ack {by}: {word}"))
            });
        }
        // The first time they end as they should; then they are killed.
        match round {
            0 => {
                first.stop();
                second.stop();
            }
            _ => drop((first, second)),
        }
    }
}
