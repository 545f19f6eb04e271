//! Pruning: what was said goes, that it was said stays, and nobody's unread messages go unsaid.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::path::Path;
use std::time::Duration;

use agora::boot::host::Host;
use agora::door::prune::Keep;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;
use agora_log::{Seq, export::leaf_hash};
use agora_realm::{Body, ChannelName, NoteBody, Ordinal, Placed};

fn square() -> ChannelName {
    ChannelName::new("square").unwrap()
}

/// Two agents on `square`, and puppets to move them.
struct Bed {
    plan: Plan,
    one: Puppet,
    two: Puppet,
    data: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let (one, two) = (Puppet::new(), Puppet::new());
        let plan = Plan::new()
            .channel("square")
            .channel("attic")
            .agent("one", one.native(), vec![all_of("square"), all_of("attic")])
            .agent("two", two.native(), vec![all_of("square")]);
        Self {
            plan,
            one,
            two,
            data: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self, life: u64) -> Host {
        let host = self.plan.open(self.data.path()).await.unwrap();
        for puppet in [&self.one, &self.two] {
            puppet.until_life(life).await;
            puppet.graft().await.unwrap().unwrap();
        }
        host
    }

    fn forget_derived(&self) {
        let _ = std::fs::remove_file(self.data.path().join("state"));
        let _ = std::fs::remove_dir_all(self.data.path().join("index"));
    }
}

/// What one message says: nothing else in the folder holds it.
fn text(number: usize) -> String {
    format!("<secret {number}>").repeat(80)
}

async fn say(puppet: &Puppet, channel: &str, numbers: std::ops::RangeInclusive<usize>) {
    for number in numbers {
        let outcomes = puppet.speak(channel, vec![Draft::inform(text(number))]);
        outcomes.await.unwrap().unwrap().remove(0).unwrap();
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Whether any file below a folder holds these bytes.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds(&path, text),
            false => std::fs::read(&path)
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text)),
        }
    })
}

fn all_placed(host: &Host) -> Vec<Placed> {
    let state = host.control.record().state();
    let latest = state.channel(&square()).unwrap().latest.0;
    (1..=latest)
        .map(|ordinal| state.message_at(&square(), Ordinal(ordinal)).unwrap())
        .collect()
}

async fn leaves(host: &Host, end: u64) -> Vec<[u8; 32]> {
    let record = host.control.record();
    let mut leaves = Vec::new();
    for seq in 1..=end {
        let stored = record.log().read(Seq(seq), 1, usize::MAX).await.unwrap();
        let stored = stored[0].1.clone();
        let place = record.pruned().place_in(&**record.log(), seq, stored).await;
        leaves.push(place.unwrap().leaf());
    }
    leaves
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pruned_is_gone_and_the_log_is_judged_as_before_from_its_beginning_too() {
    let bed = Bed::new();
    let host = bed.open(1).await;
    say(&bed.one, "square", 1..=6).await;
    say(&bed.one, "attic", 100..=100).await;
    say(&bed.one, "square", 7..=10).await;
    let end = host.control.record().log().end().0;
    let before = leaves(&host, end).await;
    for (at, leaf) in before.iter().enumerate() {
        let stored = host
            .control
            .record()
            .log()
            .read(Seq(at as u64 + 1), 1, usize::MAX);
        assert_eq!(leaf_hash(&stored.await.unwrap()[0].1), *leaf);
    }

    // Neither has read: both are named, and nothing happens.
    let prune = |keep, dry, force| host.control.prune("square", keep, dry, force);
    let refused = prune(Keep::Count(4), false, false).await.unwrap_err();
    assert!(
        refused.contains("one@") && refused.contains("two@"),
        "{refused}"
    );
    let would = prune(Keep::Count(4), true, false).await.unwrap();
    assert_eq!(
        (would.through, would.messages, would.passed.len()),
        (Ordinal(6), 6, 2)
    );
    assert_eq!(
        prune(Keep::Bytes(1700), true, false).await.unwrap().through,
        Ordinal(8)
    );
    assert_eq!(
        prune(Keep::Age(3_600_000), true, false)
            .await
            .unwrap()
            .messages,
        0
    );
    assert!(holds(&bed.data.path().join("log"), &text(1)));

    // Now they do. Their own pass them by; the other answers.
    bed.one.subscribe("square").await.unwrap().unwrap();
    bed.two.subscribe("square").await.unwrap().unwrap();
    for number in 1..=10 {
        let heard = bed.two.heard("square").await.unwrap().unwrap().unwrap();
        assert_eq!(heard.ordinal, number);
        if number == 6 {
            let answer = bed.two.reply("square", heard, Draft::inform("so far"));
            answer.await.unwrap().unwrap().unwrap();
        }
    }
    until("both have read through 6", || {
        let state = host.control.record().state();
        let cursors = state
            .personas()
            .filter(|(id, _)| !id.name.as_str().starts_with("operator"));
        cursors
            .map(|(id, _)| host.control.silent().effective(&state, id, &square()))
            .all(|cursor| cursor.0 >= 6)
    })
    .await;
    let placed = all_placed(&host);
    let done = prune(Keep::Count(5), false, false).await.unwrap();
    assert_eq!(
        (done.through, done.messages, done.passed.len()),
        (Ordinal(6), 6, 0)
    );
    assert!(
        done.freed >= 6 * text(1).len() as u64 && done.pending.is_none(),
        "{done:?}"
    );
    assert_eq!(
        prune(Keep::Count(5), false, false).await.unwrap().messages,
        0
    );

    let (messages, next) = bed.two.history("square", 1, 64).await.unwrap().unwrap();
    assert_eq!((messages[0].ordinal, next), (7, 12));
    let gone = |data: &Path| (1..=6).all(|number| !holds(data, &text(number)));
    let kept = |data: &Path| {
        [7, 8, 9, 10, 100]
            .iter()
            .all(|number| holds(data, &text(*number)))
    };
    host.close().await;
    assert!(gone(bed.data.path()) && kept(bed.data.path()));

    // From the snapshot, and from the beginning: the same verdicts, ordinals and leaves.
    for life in [2, 3] {
        let host = bed.open(life).await;
        assert_eq!(all_placed(&host), placed);
        assert_eq!(leaves(&host, end).await, before);
        let (messages, next) = bed.two.history("square", 3, 64).await.unwrap().unwrap();
        assert_eq!((messages.len(), messages[0].ordinal, next), (5, 7, 12));
        let (messages, _) = bed.one.history("attic", 1, 64).await.unwrap().unwrap();
        assert_eq!(messages.len(), 1);
        host.close().await;
        bed.forget_derived();
    }
    // It is more than a detail: without what is kept the log can't be judged, and that is said.
    std::fs::remove_file(bed.data.path().join("pruned")).unwrap();
    let refused = bed
        .plan
        .open(bed.data.path())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("pruned"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_cursor_is_passed_by_force_is_told() {
    let bed = Bed::new();
    let host = bed.open(1).await;
    say(&bed.one, "square", 1..=5).await;
    let done = host
        .control
        .prune("square", Keep::Count(2), false, true)
        .await
        .unwrap();
    assert_eq!((done.through, done.passed.len()), (Ordinal(3), 2));
    bed.two.subscribe("square").await.unwrap().unwrap();
    let heard = bed.two.heard("square").await.unwrap().unwrap().unwrap();
    assert_eq!(heard.ordinal, 4);
    // It was told before it was given what follows.
    let skipped = bed.two.run(|stage| async move {
        let heard = stage.heard.borrow()["square"].clone();
        heard.lock().await.take_skipped()
    });
    assert_eq!(skipped.await.unwrap(), Some((1, 3)));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_a_crash_cut_short_is_done_by_the_next_start() {
    let bed = Bed::new();
    let host = bed.open(1).await;
    say(&bed.one, "square", 1..=5).await;
    // As a crash leaves it right after the note.
    let note = NoteBody::Prune {
        channel: square(),
        through: Ordinal(3),
    };
    host.control.decide(Body::Note(note)).await.unwrap();
    let (messages, _) = bed.two.history("square", 1, 64).await.unwrap().unwrap();
    assert_eq!(messages[0].ordinal, 4);
    host.close().await;
    assert!(holds(bed.data.path(), &text(1)));
    let host = bed.open(2).await;
    assert!((1..=3).all(|number| !holds(bed.data.path(), &text(number))));
    assert!(holds(bed.data.path(), &text(4)));
    // And a crash after the stubs were kept, before the log let go: done once more, to the same effect.
    say(&bed.one, "square", 6..=8).await;
    host.close().await;
    std::fs::remove_file(bed.data.path().join("purged")).unwrap();
    bed.forget_derived();
    let host = bed.open(3).await;
    assert_eq!(all_placed(&host).len(), 8);
    assert!(holds(bed.data.path(), &text(8)));
    host.close().await;
}
