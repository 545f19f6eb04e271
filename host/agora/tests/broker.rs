//! A broker that lies: between two hosts of a realm it edits, drops, repeats and reorders what one of them is shown, or shows it something else
//! when it reads a place again. Nothing that was not said is delivered, and that the two have different logs is found out.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agora::boot::host::Host;
use agora::door::operator::Replay;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;
use agora_log::{Appended, Class, Durability, Embedded, Log, LogError, Options, Seq};
use agora_realm::{Body, Sealed, SigningKey};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// What a broker lies about is said in these words.
const MARK: &str = "the marked one";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// The marked words are others.
    Edit,
    /// The marked entry is not told.
    Drop,
    /// The marked entry is told twice, at its place.
    Repeat,
    /// The marked entry comes after the one behind it, each at its place.
    Late,
    /// The marked entry and the one behind it stand in each other's places.
    Swap,
    /// The first entry of the log stands in the marked one's place.
    Replay,
}

/// The log as one host is shown it.
#[derive(Clone)]
struct Shown {
    log: Arc<dyn Log>,
    /// What of the tail is a lie.
    on_tail: Option<Lie>,
    /// What of what is read is one, from now on.
    on_read: Arc<Mutex<Option<Lie>>>,
}

impl Shown {
    fn truly(log: &Arc<dyn Log>) -> Self {
        Self {
            log: log.clone(),
            on_tail: None,
            on_read: Arc::default(),
        }
    }
}

fn position(stored: &[u8], words: &str) -> Option<usize> {
    stored
        .windows(words.len())
        .position(|at| at == words.as_bytes())
}

/// The same entry with other words.
fn edited(stored: &Bytes, words: &str) -> Bytes {
    let at = position(stored, words).unwrap();
    let mut stored = stored.to_vec();
    stored[at..at + words.len()].make_ascii_uppercase();
    stored.into()
}

impl Log for Shown {
    fn append(
        &self,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        self.log.append(id, bytes, class)
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let (log, lie) = (self.log.clone(), *self.on_read.lock().unwrap());
        Box::pin(async move {
            let mut read = log.read(from, entries, bytes_max).await?;
            let first = log.read(Seq::FIRST, 1, usize::MAX).await?[0].1.clone();
            for at in 0..read.len() {
                if position(&read[at].1, MARK).is_none() {
                    continue;
                }
                match lie {
                    None => {}
                    Some(Lie::Edit) => read[at].1 = edited(&read[at].1, MARK),
                    Some(Lie::Replay) => read[at].1 = first.clone(),
                    Some(Lie::Swap) if at + 1 < read.len() => {
                        let (one, other) = (read[at].1.clone(), read[at + 1].1.clone());
                        (read[at].1, read[at + 1].1) = (other, one);
                        return Ok(read);
                    }
                    Some(lie) => panic!("{lie:?} is a lie about the tail"),
                }
            }
            Ok(read)
        })
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let (log, lie) = (self.log.clone(), self.on_tail);
        let tail = log.tail(from);
        let told = futures::stream::unfold((log, tail), move |(log, mut tail)| async move {
            let came = tail.next().await?;
            let mut told = vec![came];
            if let (Some(lie), Ok((seq, stored))) = (lie, told[0].clone())
                && position(&stored, MARK).is_some()
            {
                told = match lie {
                    Lie::Edit => vec![Ok((seq, edited(&stored, MARK)))],
                    Lie::Drop => Vec::new(),
                    Lie::Repeat => vec![Ok((seq, stored.clone())), Ok((seq, stored))],
                    Lie::Replay => {
                        let first = log.read(Seq::FIRST, 1, usize::MAX).await;
                        vec![first.map(|first| (seq, first[0].1.clone()))]
                    }
                    Lie::Late | Lie::Swap => {
                        let (next, behind) = tail.next().await?.unwrap();
                        match lie {
                            Lie::Late => vec![Ok((next, behind)), Ok((seq, stored))],
                            _ => vec![Ok((seq, behind)), Ok((next, stored))],
                        }
                    }
                };
            }
            Some((futures::stream::iter(told), (log, tail)))
        });
        told.flatten().boxed()
    }

    fn end(&self) -> Seq {
        self.log.end()
    }

    fn durability(&self) -> Durability {
        self.log.durability()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it comes in time")
}

fn plan() -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan = Plan::new().channel("square");
    let plan = plan.agent("worker", puppet.native(), vec![all_of("square")]);
    (plan, puppet)
}

async fn say(puppet: &Puppet, text: &str) {
    let said = within(puppet.speak("square", vec![Draft::inform(text)])).await;
    said.unwrap().unwrap().remove(0).unwrap();
}

/// Two hosts, of which the second is shown the log as the broker likes.
struct Realm {
    log: Arc<dyn Log>,
    shown: Shown,
    first: (Host, Puppet),
    second: (Host, Puppet),
    folder: tempfile::TempDir,
}

impl Realm {
    async fn open(on_tail: Option<Lie>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        let (log, _) = Embedded::open(&folder.path().join("log"), Options::default()).unwrap();
        let log: Arc<dyn Log> = Arc::new(log);
        let shown = Shown {
            on_tail,
            ..Shown::truly(&log)
        };
        let view: Arc<dyn Log> = Arc::new(shown.clone());
        let (first_plan, first_puppet) = plan();
        let data = folder.path().join("first");
        let first = first_plan.open_shared(&data, &log).await.unwrap();
        let (second_plan, second_puppet) = plan();
        let data = folder.path().join("second");
        let Err(refused) = second_plan.open_shared(&data, &view).await else {
            panic!("a stranger is refused");
        };
        let text = refused.to_string();
        let (_, key) = text.split_once("agora realm invite ").unwrap();
        let key = key.trim_end_matches(')');
        first.control.invite(key).await.unwrap();
        let second = second_plan.open_shared(&data, &view).await.unwrap();
        for puppet in [&first_puppet, &second_puppet] {
            within(puppet.until_life(1)).await;
            within(puppet.graft()).await.unwrap().unwrap();
        }
        Self {
            log,
            shown,
            first: (first, first_puppet),
            second: (second, second_puppet),
            folder,
        }
    }

    /// Speaks at the first host until the second one knows that its log is another one.
    async fn until_found_out(&self, said: &mut Vec<String>) {
        let control = &self.second.0.control;
        let found = || {
            control.record().divergence().borrow().is_some()
                || !control.forks().standing().is_empty()
        };
        within(async {
            while !found() {
                let text = format!("number {}", said.len());
                say(&self.first.1, &text).await;
                said.push(text);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }
}

/// Of all lies about the tail nothing false is heard, and each is found out.
async fn is_found_out(lie: Lie) {
    let realm = Realm::open(Some(lie)).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    within(realm.second.1.subscribe("square"))
        .await
        .unwrap()
        .unwrap();
    let hearing = {
        let (agent, heard) = (realm.second.1.clone(), heard.clone());
        tokio::spawn(async move {
            while let Ok(Ok(Some(message))) = agent.heard("square").await {
                heard.lock().unwrap().push(message.text().into_owned());
            }
        })
    };
    let mut said = vec!["before".to_owned(), MARK.to_owned(), "behind".to_owned()];
    say(&realm.first.1, &said[0]).await;
    within(async {
        while heard.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for text in &said[1..] {
        say(&realm.first.1, text).await;
    }
    realm.until_found_out(&mut said).await;
    realm.first.0.close().await;
    realm.second.0.close().await;
    hearing.abort();
    let heard = heard.lock().unwrap().clone();
    for (at, text) in heard.iter().enumerate() {
        assert!(said.contains(text), "{lie:?}: nobody said '{text}'");
        assert!(!heard[..at].contains(text), "{lie:?}: '{text}' came twice");
    }
    assert!(heard.contains(&said[0]), "{lie:?}: {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_edits_drops_repeats_or_reorders_is_not_delivered_as_said_and_found_out() {
    let lies = [
        Lie::Edit,
        Lie::Drop,
        Lie::Repeat,
        Lie::Late,
        Lie::Swap,
        Lie::Replay,
    ];
    futures::future::join_all(lies.map(is_found_out)).await;
}

/// A place that reads as something else than what was judged there.
#[tokio::test(flavor = "multi_thread")]
async fn what_reads_otherwise_than_it_was_judged_is_not_handed_out() {
    for lie in [Lie::Edit, Lie::Replay, Lie::Swap] {
        let realm = Realm::open(None).await;
        for text in ["before", MARK, "behind"] {
            say(&realm.first.1, text).await;
        }
        let end = realm.log.end().0;
        let record = realm.second.0.control.record().clone();
        within(async {
            while record.state().last_seq() < Some(end) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        drop(record);
        realm.second.0.close().await;
        // It goes on from its snapshot, and has nothing in memory.
        let (plan, puppet) = plan();
        let view: Arc<dyn Log> = Arc::new(realm.shown.clone());
        let data = realm.folder.path().join("second");
        let host = plan.open_shared(&data, &view).await.unwrap();
        within(puppet.until_life(1)).await;
        within(puppet.graft()).await.unwrap().unwrap();
        *realm.shown.on_read.lock().unwrap() = Some(lie);
        let read = within(puppet.history("square", 1, 100)).await;
        assert!(!matches!(read, Ok(Ok(_))), "{lie:?} is handed out");
        let found = host.control.record().divergence().borrow().clone();
        assert!(found.is_some(), "{lie:?} is not found out");
        let mut replay = Replay::new(host.control.record().clone());
        assert!(replay.next(end + 1).await.is_err(), "{lie:?} is told");
        host.close().await;
        realm.first.0.close().await;
    }
}

fn agora(args: &[&str], data: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
    let told = command.args(args).arg("--data").arg(data).output().unwrap();
    String::from_utf8(told.stdout).unwrap()
}

/// An entry that would count, had the signer that it names signed it.
fn forged(genuine: &Bytes, words: &str) -> Bytes {
    let mut entry = Sealed::open(genuine.clone()).unwrap().entry().clone();
    let Body::Turn(turn) = &mut entry.body else {
        panic!("a turn was marked");
    };
    turn.messages[0].key += 1;
    turn.messages[0].payload = words.to_owned().into();
    let key = SigningKey::from_bytes([7; 32]).unwrap();
    let named = std::mem::replace(&mut entry.signer, key.public());
    let mut stored = entry.seal(&key, &[0; 32]).unwrap().stored().to_vec();
    let at = stored.windows(32).position(|at| at == key.public().0);
    let at = at.unwrap();
    stored[at..at + 32].copy_from_slice(&named.0);
    stored.into()
}

/// What somebody else appended to a host's own log while it didn't run, and what is on its tail.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_forged_into_a_log_counts_for_no_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, puppet) = plan();
    let host = plan.open(folder.path()).await.unwrap();
    within(puppet.until_life(1)).await;
    within(puppet.graft()).await.unwrap().unwrap();
    say(&puppet, MARK).await;
    host.close().await;
    let (log, _) = Embedded::open(&folder.path().join("log"), Options::default()).unwrap();
    let all = log.read(Seq::FIRST, 4096, 4 << 20).await.unwrap();
    let (marked, genuine) = all
        .into_iter()
        .find(|(_, stored)| position(stored, MARK).is_some())
        .unwrap();
    let forged = forged(&genuine, &MARK.to_ascii_uppercase());
    let appended = log.append([7; 32], forged, Class::Ordinary).await.unwrap();
    // And a copy of what is genuine.
    log.append([8; 32], genuine, Class::Ordinary).await.unwrap();
    log.close().await.unwrap();
    drop(log);
    let counted = |told: &str| {
        (
            told.matches(MARK).count(),
            told.matches(&MARK.to_ascii_uppercase()).count(),
        )
    };
    assert_eq!(counted(&agora(&["log"], folder.path())), (1, 0));
    assert_eq!(counted(&agora(&["log", "--json"], folder.path())), (1, 0));
    let verdict = agora(&["verify"], folder.path());
    let first_bad = format!("first bad: entry {}", appended.seq);
    assert!(verdict.contains(&first_bad), "{verdict}");
    // The signatures are what is wrong with it, and nothing else.
    assert!(verdict.contains("bad-signature 1"), "{verdict}");
    let doctor = agora(&["doctor"], folder.path());
    assert!(doctor.contains("the signature does not verify"), "{doctor}");

    let host = plan.open(folder.path()).await.unwrap();
    within(puppet.until_life(2)).await;
    within(puppet.graft()).await.unwrap().unwrap();
    let (read, _) = within(puppet.history("square", 1, 100))
        .await
        .unwrap()
        .unwrap();
    let read: Vec<_> = read.iter().map(|message| message.text()).collect();
    assert_eq!(read, [MARK]);
    let mut replay = Replay::new(host.control.record().clone());
    let end = host.control.record().state().last_seq().unwrap();
    let told = within(replay.next(end + 1)).await.unwrap().unwrap();
    let messages: Vec<_> = told.iter().filter(|told| told.message.is_some()).collect();
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].seq, &*messages[0].body), (marked.0, MARK));
    host.close().await;
}
