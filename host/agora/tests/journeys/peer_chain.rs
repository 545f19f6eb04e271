//! Three hosts of three realms: bravo lends alpha a channel, alpha hands it on to charlie, and bravo lends it to charlie as well. What
//! charlie's agents say through alpha and directly counts once and in order, whoever is killed; and bravo takes it back by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::harness::{Host, Journey, PATIENCE, Ran, agent, messages, text};
use super::peer_loss::own_address;
use super::peers::{id, peer, until};

/// How often the host in the middle is killed, unless `AGORA_KILLS` says otherwise.
const KILLS: u64 = 3;

const RIGHTS: &str = "[\"read\", \"write\"]";

fn granted(peer: &str, channel: &str) -> String {
    format!(
        "[peers.{peer}]\n[[peers.{peer}.grants]]\nchannel = \"{channel}\"\nrights = [\"read\", \"write\", \"initiate\"]\n"
    )
}

/// Alpha, bravo and charlie, and how each is started.
struct Three {
    sites: [(Journey, Vec<String>); 3],
}

const ALPHA: usize = 0;
const BRAVO: usize = 1;
const CHARLIE: usize = 2;

impl Three {
    fn new() -> Self {
        let alpha = Journey::new(&format!(
            "[peers.bravo]\n{}",
            granted("charlie", "bravo/release")
        ));
        let bravo = alpha.another(&format!(
            "[channels.release]\nhops = 1\n{}{}",
            granted("alpha", "release"),
            granted("charlie", "release")
        ));
        let charlie = alpha.another(&format!(
            "[peers.alpha]\n[peers.bravo]\n{}{}",
            agent("through", "acker", "alpha/bravo/release", RIGHTS),
            agent("direct", "acker", "bravo/release", RIGHTS),
        ));
        let [at_alpha, at_bravo] = [own_address(), own_address()];
        let ids = [&alpha, &bravo, &charlie].map(id);
        let known = |name: &str, at: &str, id: &str| match at {
            "" => ["--peer".to_owned(), format!("{name}={id}")],
            at => ["--peer".to_owned(), format!("{name}={at}/p2p/{id}")],
        };
        let listen = |at: &str| ["--listen".to_owned(), at.to_owned()];
        let args = [
            [
                listen(&at_alpha),
                known("bravo", &at_bravo, &ids[BRAVO]),
                known("charlie", "", &ids[CHARLIE]),
            ]
            .concat(),
            [
                listen(&at_bravo),
                known("alpha", "", &ids[ALPHA]),
                known("charlie", "", &ids[CHARLIE]),
            ]
            .concat(),
            [
                known("alpha", &at_alpha, &ids[ALPHA]),
                known("bravo", &at_bravo, &ids[BRAVO]),
            ]
            .concat(),
        ];
        let [first, second, third] = args;
        Self {
            sites: [(alpha, first), (bravo, second), (charlie, third)],
        }
    }

    fn journey(&self, site: usize) -> &Journey {
        &self.sites[site].0
    }

    fn start(&self, site: usize) -> Host {
        let (journey, args) = &self.sites[site];
        journey.start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What counts at bravo, in its order: the author's name, the epoch, the text.
    fn counts(&self) -> Vec<(String, u64, String)> {
        let said = messages(&self.journey(BRAVO).log()).into_iter();
        said.filter(|m| m["channel"] == "release")
            .map(|m| {
                let author = text(&m, "author");
                let author = author.split('@').next().unwrap_or_default();
                let epoch = m["epoch"].as_u64().unwrap_or_default();
                (author.to_owned(), epoch, text(&m, "body").to_owned())
            })
            .collect()
    }

    /// What counts there of an author.
    fn by(&self, author: &str) -> Vec<String> {
        let said = self.counts().into_iter();
        said.filter(|(by, ..)| by.starts_with(author))
            .map(|(.., text)| text)
            .collect()
    }

    /// What charlie's operator said for bravo's channel through alpha, as charlie's log has it.
    fn outbox(&self) -> Vec<String> {
        let said = messages(&self.journey(CHARLIE).log()).into_iter();
        said.filter(|m| {
            m["channel"] == "alpha/bravo/release" && text(m, "author").starts_with("operator:")
        })
        .map(|m| text(&m, "body").to_owned())
        .collect()
    }

    /// What each of charlie's agents is to answer of what counts by now, in order: all that is no answer.
    fn answers(&self) -> Vec<String> {
        let said = self.counts().into_iter();
        said.filter(|(.., text)| !text.starts_with("ack "))
            .map(|(author, _, text)| format!("ack {author}: {text}"))
            .collect()
    }

    /// Waits until an agent of charlie's has answered this.
    #[track_caller]
    fn until_answered(&self, author: &str, word: &str) {
        let began = Instant::now();
        loop {
            let answers = self.by(author);
            if answers
                .iter()
                .any(|text| text.ends_with(&format!(": {word}")))
            {
                return;
            }
            assert!(
                began.elapsed() < 2 * PATIENCE,
                "{author} doesn't answer '{word}': {answers:?}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Charlie's operator says it through alpha, again and again, until this comes of it.
    #[track_caller]
    fn say_until(&self, word: &str, is_it: impl Fn(&Ran) -> bool) -> Ran {
        let began = Instant::now();
        loop {
            let said = self
                .journey(CHARLIE)
                .cli(&["say", "alpha/bravo/release", word]);
            if is_it(&said) {
                return said;
            }
            assert!(began.elapsed() < 2 * PATIENCE, "'{word}': {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Both ways are up, and both agents of charlie's hear.
    #[track_caller]
    fn until_whole(&self, word: &str) {
        until(self.journey(ALPHA), "bravo", "connected");
        until(self.journey(CHARLIE), "alpha", "connected");
        until(self.journey(CHARLIE), "bravo", "connected");
        self.journey(BRAVO).say("release", word);
        for agent in [THROUGH, DIRECT] {
            self.until_answered(agent, word);
        }
    }
}

/// Charlie's agents, as bravo knows them.
const THROUGH: &str = "alpha/charlie/through";
const DIRECT: &str = "charlie/direct";

fn counts(said: &Ran) -> bool {
    said.code == Some(0)
}

#[test]
fn what_goes_through_a_host_that_is_killed_counts_once_and_in_order_and_who_needs_it_not_goes_on() {
    let three = Three::new();
    let second = three.start(BRAVO);
    let mut first = three.start(ALPHA);
    let third = three.start(CHARLIE);
    three.until_whole("the first");
    three.say_until("through alpha", counts);

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
        let over = AtomicBool::new(false);
        let speak = |far: bool| {
            let mut said = 0;
            while !over.load(Ordering::SeqCst) {
                if far {
                    // Whether it is answered or not: what is in the outbox counts.
                    let text = format!("{round}.{said} far");
                    let charlie = three.journey(CHARLIE);
                    charlie.cli(&["say", "alpha/bravo/release", &text]);
                } else {
                    let text = format!("{round}.{said} home");
                    three.journey(BRAVO).say("release", &text);
                }
                said += 1;
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| speak(true));
            scope.spawn(|| speak(false));
            std::thread::sleep(Duration::from_millis(200 + moment % 600));
            first.signal(Signal::KILL);
            over.store(true, Ordering::SeqCst);
        });
        first.until_exit();
        // Directly it goes on meanwhile.
        let word = format!("{round} without alpha");
        three.journey(BRAVO).say("release", &word);
        three.until_answered(DIRECT, &word);
        let answers = three.by(THROUGH);
        assert!(
            !answers.iter().any(|text| text.ends_with(&word)),
            "{answers:?}"
        );
        first = three.start(ALPHA);
    }

    three.say_until("the last far", counts);
    // Of one author, and so nothing of it is to come behind the last.
    assert_eq!(three.by("peer:alpha"), three.outbox());
    three.journey(BRAVO).say("release", "the last home");
    for agent in [THROUGH, DIRECT] {
        three.until_answered(agent, "the last home");
        assert_eq!(three.by(agent), three.answers(), "{agent}");
    }
    for host in [third, first, second] {
        host.stop();
    }
    // The record of each is verified as its journey ends.
}

#[test]
fn bravo_alone_ends_what_alpha_hands_on_and_leaves_what_it_lends_directly() {
    let three = Three::new();
    let second = three.start(BRAVO);
    let first = three.start(ALPHA);
    let third = three.start(CHARLIE);
    three.until_whole("the first");
    let bravo = three.journey(BRAVO);

    // Its epoch ends: charlie's agents are told, and hear and speak in the next one. Alpha's and charlie's own go on.
    bravo.cli(&["epoch", "bump", "--reason", "a test"]).exits(0);
    bravo.say("release", "anew");
    for agent in [THROUGH, DIRECT] {
        three.until_answered(agent, "anew");
    }
    // Speaking in bravo's second epoch takes a facet of a graft in it.
    let counts_there = three.counts();
    for agent in [THROUGH, DIRECT] {
        let answer = counts_there
            .iter()
            .find(|(by, _, text)| by == agent && text.ends_with("anew"));
        assert!(
            answer.is_some_and(|(_, epoch, _)| *epoch == 2),
            "{counts_there:?}"
        );
    }
    for site in [ALPHA, CHARLIE] {
        let epoch = three.journey(site).cli(&["epoch"]).exits(0).stdout;
        assert_eq!(epoch.trim(), "1");
    }

    // It takes alpha's grant back: charlie has nothing through alpha, and what it was lent directly.
    let grants = bravo.cli(&["ps", "--grants"]).exits(0).stdout;
    let row = grants
        .lines()
        .find(|row| row.starts_with('g') && row.contains(" peer:alpha "));
    let number = row.and_then(|row| row.split_whitespace().next());
    let number = number.unwrap_or_else(|| panic!("no grant of alpha's:\n{grants}"));
    bravo
        .cli(&["revoke", number, "--reason", "a test"])
        .exits(0);
    bravo.say("release", "without alpha");
    three.until_answered(DIRECT, "without alpha");
    let refused = three.say_until("never", |said| {
        said.code == Some(1) && !said.stderr.contains("out of reach")
    });
    assert!(refused.stderr.contains("grants"), "{refused:?}");
    let direct = three
        .journey(CHARLIE)
        .cli(&["say", "bravo/release", "directly"])
        .exits(0);
    assert!(direct.stdout.contains("release"), "{direct:?}");
    let lent = peer(three.journey(ALPHA), "bravo");
    assert_eq!(lent["lends"].as_array().map(Vec::len), Some(0), "{lent}");
    let answers = three.by(THROUGH);
    for word in ["without alpha", "directly"] {
        assert!(
            !answers.iter().any(|text| text.ends_with(word)),
            "{answers:?}"
        );
    }

    // It grants it anew, and charlie's agent that was told goes on.
    bravo
        .cli(&[
            "grant",
            "peer:alpha",
            "release",
            "--rights",
            "read,write,initiate",
        ])
        .exits(0);
    three.say_until("granted anew", counts);
    three.until_answered(THROUGH, "granted anew");
    three.until_answered(DIRECT, "granted anew");
    assert!(!three.counts().iter().any(|(.., text)| text == "never"));
    for agent in ["through", "direct"] {
        let shown = three.journey(CHARLIE).ps(agent);
        let row: Vec<_> = shown.split_whitespace().collect();
        assert_eq!(row.get(1), Some(&"running"), "{shown}");
    }
    let once = |author: &str| {
        let mut answers = three.by(author);
        let all = answers.len();
        answers.sort();
        answers.dedup();
        assert_eq!(answers.len(), all, "{author} answers twice: {answers:?}");
    };
    once(THROUGH);
    once(DIRECT);
    for host in [third, first, second] {
        host.stop();
    }
}
