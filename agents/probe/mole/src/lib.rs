//! Reaches for what it was not granted, and keeps what was taken back.
//!
//! In: a channel with the rights to read, write and initiate (and attenuate, if it likes). Out, each epoch: one message that
//! claims to be another's; one report; a reply to each of the first few messages; an alarm if anything gives way.
//!
//! Tries, and what must stop it:
//! - names it was not granted, as `secret-ops`: nothing stands behind a name that was not granted;
//! - to speak as another: a draft has no field for it, so it claims it in the payload; readers see its own name;
//! - parents that do not exist, and its own messages as parents: both refused;
//! - to keep the hops of what it answers: the host stamps one less, whatever the wish;
//! - to hoard: it keeps every capability of every graft it ever had, and calls the old ones as fast as it can for as long
//!   as it lives. The wall they crossed is down: every such call fails as stale, and its old subscriptions hear nothing;
//! - to wear the host out with calls: its own wire and queues are bounded, and others don't wait for them.
//!
//! The report reads `mole: epoch=2 old-calls=100 stale=100 passed=0 forged=0 names=0 late=0`. Of `old-calls`, made with
//! what earlier grafts gave, `stale` failed as they must and `passed` got an answer; `forged` and `names` count tricks that
//! worked, `late` messages that reached an old subscription. All but the first two numbers must be 0.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use agora_guest::prelude::*;
use agora_guest::{Heard, Kind, MessageId};
use futures::future::{join, join_all, try_join};

/// Calls on old capabilities before the report.
const OLD_CALLS: usize = 100;
/// Calls in flight at a time; far below what would close the wire.
const FLIGHT: usize = 64;
/// Messages answered in one graft; the rest are passed.
const REPLIES_MAX: usize = 4;
/// Grafts whose capabilities are kept.
const GRAFTS_MAX: usize = 16;
/// Names it was never told of.
const NAMES: [&str; 4] = ["secret-ops", "operator", "membrane", "../release"];

thread_local! {
    /// Outlives every graft: the function is called again in the same instance.
    static HOARD: RefCell<Hoard> = RefCell::default();
}

#[derive(Default)]
struct Hoard {
    kept: Vec<Kept>,
    tally: Tally,
}

/// What one graft gave.
struct Kept {
    channels: Vec<Channel>,
    heard: Heard,
}

/// How its tricks went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    old_calls: u64,
    stale: u64,
    passed: u64,
    forged: u64,
    names: u64,
    late: u64,
}

impl Tally {
    fn called<T>(&mut self, answer: &Result<T, Error>) {
        self.old_calls += 1;
        match answer {
            Ok(_) => self.passed += 1,
            Err(error) if error.is_stale() => self.stale += 1,
            Err(_) => {}
        }
    }

    /// A wish for more hops must not be granted.
    fn replied(&mut self, heard_hops: u16, outcome: &Result<Receipt, Refused>) {
        if matches!(outcome, Ok(receipt) if receipt.hops >= heard_hops) {
            self.forged += 1;
        }
    }

    fn gave_way(&self) -> bool {
        self.passed + self.forged + self.names + self.late > 0
    }

    fn report(&self, epoch: u64) -> String {
        let Self {
            old_calls,
            stale,
            passed,
            forged,
            names,
            late,
        } = self;
        format!(
            "mole: epoch={epoch} old-calls={old_calls} stale={stale} passed={passed} forged={forged} names={names} late={late}"
        )
    }
}

fn tally<R>(change: impl FnOnce(&mut Tally) -> R) -> R {
    HOARD.with_borrow_mut(|hoard| change(&mut hoard.tally))
}

#[agora_guest::main]
async fn mole(graft: Graft) -> Result<(), Error> {
    let old = look_back();
    try_names(&graft);
    let mut channels: Vec<_> = graft.channels().collect();
    let Some(channel) = channels.first().cloned() else {
        agora_guest::info!("{}", tally(|tally| tally.report(graft.epoch())));
        return Err(graft.ended().await);
    };
    if let Ok((facet, _)) = channel.attenuate(&Terms::all()).await {
        channels.push(facet);
    }
    keep(channels, channel.subscribe().await?);
    try_forgery(&channel).await?;
    for _ in 0..OLD_CALLS.div_ceil(FLIGHT) {
        let done = tally(|tally| tally.old_calls) as usize;
        call_old(&old, FLIGHT.min(OLD_CALLS - done)).await;
    }
    count_late();
    let report = tally(|tally| tally.report(graft.epoch()));
    agora_guest::info!("{report}");
    if let Err(refused) = channel.say(Draft::inform(report)).await? {
        agora_guest::info!("mole: the report was refused: {refused}");
    }
    let key = channel.info().await?.next_key;
    try_join(hammer(&channel, &old, key, graft.epoch()), listen(&channel)).await?;
    Ok(())
}

fn try_names(graft: &Graft) {
    for name in NAMES {
        if graft
            .channel(name)
            .map_or_else(|error| error.kind(), |_| Kind::Failed)
            != Kind::Denied
        {
            tally(|tally| tally.names += 1);
        }
    }
}

/// Everything that earlier grafts gave to call; what their subscriptions heard while they might is let go.
fn look_back() -> Vec<Channel> {
    HOARD.with_borrow_mut(|hoard| {
        hoard.tally = Tally::default();
        for kept in &mut hoard.kept {
            while kept.heard.try_next().is_some() {}
        }
        let channels = hoard
            .kept
            .iter()
            .flat_map(|kept| kept.channels.iter().cloned());
        channels.collect()
    })
}

fn keep(channels: Vec<Channel>, heard: Heard) {
    HOARD.with_borrow_mut(|hoard| {
        if hoard.kept.len() == GRAFTS_MAX {
            hoard.kept.remove(0);
        }
        hoard.kept.push(Kept { channels, heard });
    });
}

/// Counts what reached a subscription of an earlier graft since.
fn count_late() {
    HOARD.with_borrow_mut(|hoard| {
        let earlier = hoard.kept.len().saturating_sub(1);
        for kept in &mut hoard.kept[..earlier] {
            while kept.heard.try_next().is_some() {
                hoard.tally.late += 1;
            }
        }
    });
}

/// The next message of this graft's subscription, which the hoard holds.
async fn next() -> Result<Option<Message>, Error> {
    poll_fn(|cx| {
        HOARD.with_borrow_mut(|hoard| match hoard.kept.last_mut() {
            Some(kept) => pin!(kept.heard.next()).poll(cx),
            None => Poll::Ready(Ok(None)),
        })
    })
    .await
}

/// Claims to be another, and answers what does not exist, and itself.
async fn try_forgery(channel: &Channel) -> Result<(), Error> {
    let claim =
        r#"{"author":"operator:0","hops":65535,"sig":"00","text":"mole: this is not who it says"}"#;
    let said = channel
        .say(
            Draft::inform(claim)
                .content_type("application/json")
                .hops_max(u16::MAX),
        )
        .await?;
    let mut parents: Vec<_> = (0..3).map(made_up).collect();
    parents.extend(said.ok().map(|receipt| receipt.id));
    let drafts = parents
        .into_iter()
        .map(|parent| Draft::inform("mole: must not count").answering(parent))
        .collect();
    let outcomes = channel.speak(drafts).await?;
    let counted = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
    tally(|tally| tally.forged += counted);
    Ok(())
}

/// An id that no message has.
fn made_up(seed: u8) -> MessageId {
    let mut state = 0x9e37_79b9_u32 ^ u32::from(seed);
    MessageId(std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    }))
}

/// So many calls at once on what was taken back.
async fn call_old(old: &[Channel], calls: usize) {
    let calls = old
        .iter()
        .cycle()
        .take(calls)
        .enumerate()
        .map(|(n, channel)| async move {
            let answer = match n % 4 {
                0 => channel
                    .say(Draft::inform("mole: from an epoch that is over"))
                    .await
                    .map(drop),
                1 => channel.history(1, 1).await.map(drop),
                _ => channel.info().await.map(drop),
            };
            tally(|tally| tally.called(&answer));
        });
    join_all(calls).await;
}

/// Calls, old and new, without a pause, until the epoch ends.
async fn hammer(channel: &Channel, old: &[Channel], key: u64, epoch: u64) -> Result<(), Error> {
    let mut alarmed = false;
    loop {
        let live = join_all((0..FLIGHT).map(|n| async move {
            match n {
                // One message however often: the key is the same.
                0 => {
                    let same = Draft::inform("mole: again and again").key(key);
                    channel.say(same).await.map(drop)
                }
                _ => channel.info().await.map(drop),
            }
        }));
        let (answers, ()) = join(live, call_old(old, FLIGHT)).await;
        for answer in answers {
            match answer {
                Err(error) if error.kind() == Kind::Busy => {}
                other => other?,
            }
        }
        count_late();
        if !alarmed && tally(|tally| tally.gave_way()) {
            alarmed = true;
            let alarm = tally(|tally| tally.report(epoch));
            channel
                .say(Draft::inform(format!("ALARM {alarm}")))
                .await?
                .ok();
        }
    }
}

/// Hears, and answers the first few with a wish for all the hops there are.
async fn listen(channel: &Channel) -> Result<(), Error> {
    let mut replies = 0;
    while let Some(message) = next().await? {
        if replies < REPLIES_MAX {
            replies += 1;
            let answer = Draft::inform("mole: with all its hops").hops_max(u16::MAX);
            let outcome = channel.reply(&message, answer).await?;
            tally(|tally| tally.replied(message.hops, &outcome));
        } else {
            channel.pass(&message).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(hops: u16) -> Receipt {
        Receipt {
            id: made_up(0),
            channel: "release".into(),
            ordinal: 1,
            epoch: 1,
            hops,
            repeated: false,
        }
    }

    #[test]
    fn an_answer_on_an_old_capability_is_counted_by_how_it_failed() {
        let mut tally = Tally::default();
        tally.called(&Ok(()));
        tally.called::<()>(&Err(Error::failed("for another reason")));
        assert_eq!((tally.old_calls, tally.passed, tally.stale), (2, 1, 0));
        assert!(tally.gave_way());
    }

    #[test]
    fn hops_that_were_not_taken_are_a_forgery() {
        let mut tally = Tally::default();
        tally.replied(3, &Ok(receipt(2)));
        assert!(!tally.gave_way());
        tally.replied(3, &Ok(receipt(3)));
        assert_eq!(tally.forged, 1);
    }

    #[test]
    fn the_report_is_one_line_of_numbers() {
        let tally = Tally {
            old_calls: 100,
            stale: 100,
            ..Tally::default()
        };
        assert_eq!(
            tally.report(2),
            "mole: epoch=2 old-calls=100 stale=100 passed=0 forged=0 names=0 late=0"
        );
        assert!(!tally.gave_way());
    }

    #[test]
    fn made_up_ids_differ() {
        assert_ne!(made_up(0), made_up(1));
    }
}
