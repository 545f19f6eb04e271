//! Two hosts that lend each other a channel over a bad network: what is said counts once and in order, and stops come through.
//!
//! Alpha has `news` and bravo has `release`; each grants its own to the other. `ann` at alpha and `ben` at bravo speak and listen on both.
//! `AGORA_SEED=n` draws one weather; `AGORA_SEEDS` says how many are drawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agora::door::control::Control;
use agora::peer::borrowed::LinkState;
use agora::peer::sighting::sighting;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Draft, Message, Refusal};
use agora_realm::{ChannelName, Ordinal};
use tokio::time::sleep;

use super::bed::{QUIC, Site, TCP, graft, next_key, until, within};
use super::rough::{Chance, Rough, Weather};

/// How often each of the four speaks in a storm.
const SAYINGS: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Quic,
    Tcp,
}

struct Apart {
    alpha: Site,
    bravo: Site,
    ann: Puppet,
    ben: Puppet,
    network: Rough,
    over: Over,
    chance: Chance,
}

impl Apart {
    async fn new(over: Over, seed: u64) -> Self {
        eprintln!("AGORA_SEED={seed} draws this weather again");
        let (ann, ben) = (Puppet::new(), Puppet::new());
        let here = Plan::new().channel("news").agent(
            "ann",
            ann.native(),
            vec![all_of("news"), all_of("bravo/release")],
        );
        let there = Plan::new().channel("release").agent(
            "ben",
            ben.native(),
            vec![all_of("release"), all_of("alpha/news")],
        );
        let at = match over {
            Over::Quic => QUIC,
            Over::Tcp => TCP,
        };
        let mut bravo = Site::new("bravo", there).listens(at);
        let mut alpha = Site::new("alpha", here);
        bravo.knows(&alpha, vec![all_of("release")]);
        bravo.open().await;
        alpha.knows(&bravo, vec![all_of("news")]);
        let addresses = &mut alpha.spec("bravo").addresses;
        let at = addresses[0].to_string();
        let network = Rough::before(&at, seed);
        *addresses = vec![network.address(&at).parse().unwrap()];
        alpha.open().await;
        let apart = Self {
            alpha,
            bravo,
            ann,
            ben,
            network,
            over,
            chance: Chance::new(!seed),
        };
        apart.alpha.linked("bravo").await;
        apart.bravo.linked("alpha").await;
        for puppet in [&apart.ann, &apart.ben] {
            puppet.until_life(1).await;
        }
        graft(&apart.ann, "bravo/release").await;
        graft(&apart.ben, "alpha/news").await;
        apart.ann.subscribe("news").await.unwrap().unwrap();
        apart.ben.subscribe("release").await.unwrap().unwrap();
        apart
    }

    /// It gets bad.
    fn blow(&mut self) {
        let weather = Weather::bad(&mut self.chance);
        eprintln!("{weather:?}");
        self.network.set(weather);
    }

    /// Cuts, breaks off and moves, until it is over.
    async fn storm(&mut self, is_over: &AtomicBool) {
        let mut broken = 0;
        self.blow();
        while !is_over.load(Ordering::SeqCst) {
            let wait = self.chance.between(100, 900);
            sleep(Duration::from_millis(wait)).await;
            match self.chance.between(0, 5) {
                0 => self.blow(),
                1 => {
                    let wait = self.chance.between(50, 2800);
                    eprintln!("cut for {wait} ms");
                    self.network.cut();
                    sleep(Duration::from_millis(wait)).await;
                    self.network.heal();
                }
                2 | 3 if self.over == Over::Quic => {
                    eprintln!("another address");
                    self.network.move_on();
                }
                // Each makes the next dial wait longer.
                2 | 3 if broken < 2 => {
                    eprintln!("broken off");
                    self.network.break_off();
                    broken += 1;
                }
                _ => {}
            }
        }
    }

    /// The sky clears, and both links come up.
    async fn clear(&self) {
        self.network.set(Weather::CALM);
        self.network.heal();
        self.alpha.linked("bravo").await;
        self.bravo.linked("alpha").await;
    }

    async fn close(mut self) {
        self.alpha.close().await;
        self.bravo.close().await;
    }
}

/// One that counts.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    author: String,
    epoch: u64,
    text: String,
}

async fn record(site: &Site, channel: &str) -> Vec<Counted> {
    let name = ChannelName::new(channel).unwrap();
    let record = site.host().control.record();
    let (mut found, mut next) = (Vec::new(), 1);
    loop {
        let batch = record
            .messages(&name, Ordinal(next), 100, 1 << 20)
            .await
            .unwrap();
        if batch.is_empty() {
            return found;
        }
        for kept in batch {
            assert_eq!(kept.ordinal.0, next, "none is left out");
            next += 1;
            found.push(Counted {
                author: kept.sealed.entry().author.clone().unwrap().to_string(),
                epoch: kept.sealed.entry().epoch.0,
                text: String::from_utf8(kept.message().payload.to_vec()).unwrap(),
            });
        }
    }
}

/// The texts of an author, in their order.
fn texts(counted: &[Counted], author: &str) -> Vec<String> {
    let by = counted.iter().filter(|counted| counted.author == author);
    by.map(|counted| counted.text.clone()).collect()
}

/// What was said, under which keys.
type Said = Vec<(u64, String)>;

/// Says these on a channel under keys that rise. Of each: it counts; it doesn't yet, and is on its way in the outbox; or, none, it isn't
/// taken now. Nothing: the facet is stale.
async fn tried(
    puppet: &Puppet,
    channel: &str,
    said: &[(u64, String)],
) -> Option<Vec<Option<bool>>> {
    let drafts = said
        .iter()
        .map(|(key, text)| Draft::inform(text.clone()).key(*key));
    let speaking = puppet.speak(channel, drafts.collect());
    let outcomes = match within("it is answered", speaking).await.unwrap() {
        Ok(outcomes) => outcomes,
        Err(error) if error.is_stale() => return None,
        Err(error) => panic!("'{channel}' isn't spoken on: {error}"),
    };
    let outcomes = outcomes.into_iter().map(|outcome| match outcome {
        Ok(_) => Some(true),
        Err(refused) => match refused.reason.0 {
            Refusal::PeerAway => Some(false),
            Refusal::LogUnavailable | Refusal::Overloaded | Refusal::RateLimited => None,
            reason => panic!("'{channel}' refuses: {reason:?}: {}", refused.text),
        },
    });
    Some(outcomes.collect())
}

/// The same, again and again until all of them count or are on their way.
async fn spoken(puppet: &Puppet, channel: &str, said: &[(u64, String)]) -> Option<Vec<bool>> {
    until("it is taken", async || {
        let Some(tried) = tried(puppet, channel, said).await else {
            return Some(None);
        };
        let taken: Option<Vec<bool>> = tried.into_iter().collect();
        taken.map(Some)
    })
    .await
}

/// The same for one, with a new graft where the facet is stale: whether it counts.
async fn counts(puppet: &Puppet, channel: &str, one: &(u64, String)) -> bool {
    until("there is a facet that isn't stale", async || {
        let Some(tried) = tried(puppet, channel, std::slice::from_ref(one)).await else {
            puppet.graft().await.unwrap().ok()?;
            return None;
        };
        Some(tried[0] == Some(true))
    })
    .await
}

/// Speaks so often, a few at a time.
async fn speak(puppet: Puppet, channel: &'static str, mut chance: Chance) -> Said {
    let (mut all, mut at) = (Said::new(), 0);
    while at < SAYINGS {
        let count = chance.between(1, 4) as usize;
        let few: Said = (at..at + count)
            .map(|n| (next_key(), format!("{channel} {n}")))
            .collect();
        at += count;
        let taken = spoken(&puppet, channel, &few).await;
        assert!(taken.is_some(), "no epoch has ended, and no grant changed");
        all.extend(few);
    }
    all
}

/// Hears what others say on a channel, up to the last.
async fn hear(puppet: Puppet, channel: &'static str) -> Vec<String> {
    let mut heard: Vec<Message> = Vec::new();
    loop {
        let next = within("it is heard", puppet.heard(channel)).await;
        let next = next.unwrap().unwrap().unwrap();
        assert!(
            heard.last().is_none_or(|last| last.ordinal < next.ordinal),
            "in order, and once: {next:?} behind {:?}",
            heard.last()
        );
        let is_last = next.text() == LAST;
        heard.push(next);
        if is_last {
            return heard.iter().map(|m| m.text().to_string()).collect();
        }
    }
}

const LAST: &str = "the last";

/// Traffic both ways in a storm, and what is there when it is over.
async fn traffic(apart: &mut Apart) {
    const WAYS: [(bool, &str); 4] = [
        (true, "bravo/release"),
        (true, "news"),
        (false, "alpha/news"),
        (false, "release"),
    ];
    let puppets = WAYS.map(|(is_ann, _)| match is_ann {
        true => apart.ann.clone(),
        false => apart.ben.clone(),
    });
    let hearing = WAYS.iter().zip(&puppets);
    let hearing = hearing.map(|((_, channel), puppet)| hear(puppet.clone(), channel));
    let hearing = futures::future::join_all(hearing);
    let speaking = async {
        let mut speakers = Vec::new();
        for ((_, channel), puppet) in WAYS.iter().zip(&puppets) {
            let chance = Chance::new(apart.chance.between(0, 1 << 40));
            speakers.push(speak(puppet.clone(), channel, chance));
        }
        let is_over = AtomicBool::new(false);
        let speaking = async {
            let said = futures::future::join_all(speakers).await;
            is_over.store(true, Ordering::SeqCst);
            said
        };
        let (said, ()) = futures::join!(speaking, apart.storm(&is_over));
        apart.clear().await;
        // All of it is at the other by now or soon, and each has its receipt under its key.
        for (((_, channel), puppet), said) in WAYS.iter().zip(&puppets).zip(&said) {
            for few in said.chunks(16) {
                until("it counts", async || {
                    let taken = spoken(puppet, channel, few).await?;
                    taken.into_iter().all(|counts| counts).then_some(())
                })
                .await;
            }
            let last = [(next_key(), LAST.to_owned())];
            until("the last counts", async || {
                let taken = spoken(puppet, channel, &last).await?;
                taken[0].then_some(())
            })
            .await;
        }
        said
    };
    let (heard, said) = futures::join!(hearing, speaking);
    let expected = |at: usize| -> Vec<String> {
        let said = said[at].iter().map(|(_, text)| text.clone());
        said.chain([LAST.to_owned()]).collect()
    };
    let [release, news] = [
        record(&apart.bravo, "release").await,
        record(&apart.alpha, "news").await,
    ];
    assert_eq!(texts(&release, "alpha/ann"), expected(0));
    assert_eq!(texts(&news, "ann"), expected(1));
    assert_eq!(texts(&news, "bravo/ben"), expected(2));
    assert_eq!(texts(&release, "ben"), expected(3));
    let all: usize = said.iter().map(|said| said.len() + 1).sum();
    assert_eq!(release.len() + news.len(), all);
    // Each heard what the other said.
    for (heard, at) in heard.iter().zip([3, 2, 1, 0]) {
        assert_eq!(*heard, expected(at));
    }
}

/// Bravo's epoch ends while ann speaks, in bad weather or while nothing comes through.
async fn bump(apart: &mut Apart, is_cut: bool) {
    apart.blow();
    let control = apart.bravo.host().control.clone();
    let before = control.record().state().epoch().0;
    let count = |counted: &[Counted]| texts(counted, "alpha/ann").len();
    let begun = count(&record(&apart.bravo, "release").await);
    let ended = apart.ann.ended();
    let ann = apart.ann.clone();
    let speaking = async {
        let mut all = Vec::new();
        loop {
            let few: Said = (0..3)
                .map(|n| (next_key(), format!("{before}: {}", all.len() + n)))
                .collect();
            all.extend(few.iter().map(|(_, text)| text.clone()));
            if spoken(&ann, "bravo/release", &few).await.is_none() {
                return all;
            }
        }
    };
    let ending = async {
        until("some of it counts", async || {
            let counted = record(&apart.bravo, "release").await;
            (count(&counted) > begun + 3).then_some(())
        })
        .await;
        if is_cut {
            apart.network.cut();
        }
        let (decided, epoch) = control.bump("a test", false, "test").await;
        assert_eq!(
            (decided.pending, epoch.0),
            (None, before + 1),
            "it waits for nobody"
        );
        if is_cut {
            // Alpha notices by itself that it isn't to say anything there now.
            until("what bravo lent acts no more", async || {
                let peers = apart.alpha.host().control.peers();
                let link = peers.named("bravo").unwrap().link.borrow().clone();
                (!matches!(link, LinkState::Up { .. })).then_some(())
            })
            .await;
            apart.network.heal();
        }
        assert!(within("it is told", ended).await.unwrap().is_stale());
    };
    let (said, ()) = futures::join!(within("it is told when it speaks, too", speaking), ending);
    let anew = (next_key(), format!("{}: anew", before + 1));
    until("it counts in the new epoch", async || {
        let counts = counts(&apart.ann, "bravo/release", &anew).await;
        counts.then_some(())
    })
    .await;
    let counted = record(&apart.bravo, "release").await;
    let mine = counted.iter().filter(|by| by.author == "alpha/ann");
    for said in mine.clone().filter(|by| by.text.contains(": ")) {
        assert!(
            said.text.starts_with(&format!("{}: ", said.epoch)),
            "{said:?} is of another epoch"
        );
    }
    // Nothing is left out, doubled or turned around of what came before the fence.
    let of_the_old: Vec<_> = mine
        .filter(|by| by.text.starts_with(&format!("{before}: ")))
        .map(|by| by.text.clone())
        .collect();
    assert_eq!(of_the_old, said[..of_the_old.len()]);
}

/// Bravo takes alpha back in bad weather, and lets it in again.
async fn kill(apart: &mut Apart) {
    apart.blow();
    let control: Arc<Control> = apart.bravo.host().control.clone();
    let decided = control.kill("peer:alpha", "a test", "test").await.unwrap();
    assert_eq!(decided.pending, None);
    let counted = record(&apart.bravo, "release").await;
    until("alpha is told", async || {
        let peers = apart.alpha.host().control.peers();
        let seen = sighting(peers, peers.named("bravo").unwrap());
        (seen.state == "refused").then_some(())
    })
    .await;
    let waits = (next_key(), "waits".to_owned());
    let now = counts(&apart.ann, "bravo/release", &waits).await;
    assert!(!now, "bravo lets nobody in");
    assert_eq!(record(&apart.bravo, "release").await, counted);
    control.start("peer:alpha").await.unwrap();
    until("it counts once it is let in", async || {
        let counts = counts(&apart.ann, "bravo/release", &waits).await;
        counts.then_some(())
    })
    .await;
    let now = record(&apart.bravo, "release").await;
    assert_eq!(now.len(), counted.len() + 1, "{:?}", now.last());
}

async fn weather(over: Over, seed: u64) {
    let began = std::time::Instant::now();
    let mut apart = Apart::new(over, seed).await;
    traffic(&mut apart).await;
    eprintln!("traffic: {:?}", began.elapsed());
    let is_cut = apart.chance.between(0, 1) == 0;
    bump(&mut apart, is_cut).await;
    eprintln!("bump: {:?}", began.elapsed());
    kill(&mut apart).await;
    eprintln!("kill: {:?}", began.elapsed());
    apart.clear().await;
    apart.close().await;
}

async fn weathers(over: Over) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    if let Some(seed) = number("AGORA_SEED") {
        return weather(over, seed).await;
    }
    for seed in 0..number("AGORA_SEEDS").unwrap_or(1) {
        weather(over, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_bad_network_all_counts_once_and_stops_come_through_quic() {
    weathers(Over::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_bad_network_all_counts_once_and_stops_come_through_tcp() {
    weathers(Over::Tcp).await;
}
