//! Hosts of one realm that hear the log, and that don't: the lease, who confirms a bump, and a log that went back.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agora::boot::host::Host;
use agora::door::control::{Decided, Said};
use agora::persona::agent::Phase;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;
use agora_log::{Appended, Class, Durability, Embedded, Log, LogError, Options, Seq};
use agora_realm::{Act, Epoch, HostId};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;

/// The log as one host reaches it.
struct Link {
    log: Mutex<Arc<dyn Log>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    appends: bool,
    comes_by: bool,
    /// How often another log was put in the place of the one before.
    put_back: u64,
}

impl Link {
    fn new(log: Arc<dyn Log>) -> Arc<Self> {
        let state = State {
            appends: true,
            comes_by: true,
            put_back: 0,
        };
        Arc::new(Self {
            log: Mutex::new(log),
            state: watch::channel(state).0,
        })
    }

    /// Nothing is appended and nothing comes by until it is healed. What stands there can be read.
    fn cut(&self) {
        self.set(false, false);
    }

    fn heal(&self) {
        self.set(true, true);
    }

    fn set(&self, appends: bool, comes_by: bool) {
        self.state.send_modify(|state| {
            state.appends = appends;
            state.comes_by = comes_by;
        });
    }

    /// The server's folder is restored from a copy.
    fn put_back(&self, log: Arc<dyn Log>) {
        *self.log.lock().unwrap() = log;
        self.state.send_modify(|state| state.put_back += 1);
    }

    fn log(&self) -> Arc<dyn Log> {
        self.log.lock().unwrap().clone()
    }
}

/// What a host holds of it.
struct Linked(Arc<Link>);

impl Log for Linked {
    fn append(
        &self,
        id: [u8; 32],
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let link = self.0.clone();
        if link.state.borrow().appends {
            return link.log().append(id, bytes, class);
        }
        async move {
            let mut state = link.state.subscribe();
            let _ = state.wait_for(|state| state.appends).await;
            link.log().append(id, bytes, class).await
        }
        .boxed()
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        self.0.log().read(from, entries, bytes_max)
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let link = self.0.clone();
        let state = link.state.subscribe();
        let tail = link.log().tail(from);
        futures::stream::unfold(
            (link, state, tail, from, 0),
            |(link, mut state, mut tail, mut next, mut put_back)| async move {
                loop {
                    let now = *state.borrow_and_update();
                    if now.put_back != put_back {
                        put_back = now.put_back;
                        tail = link.log().tail(next);
                    }
                    let came = tokio::select! {
                        came = tail.next(), if now.comes_by => came?,
                        changed = state.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return None,
                        },
                    };
                    if let Ok((seq, _)) = &came {
                        next = seq.next();
                    }
                    return Some((came, (link, state, tail, next, put_back)));
                }
            },
        )
        .boxed()
    }

    fn end(&self) -> Seq {
        self.0.log().end()
    }

    fn durability(&self) -> Durability {
        self.0.log().durability()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        async { Ok(()) }.boxed()
    }
}

struct Realm {
    log: Arc<dyn Log>,
    folder: tempfile::TempDir,
}

impl Realm {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = embedded(folder.path().join("log"));
        Self { log, folder }
    }

    fn data(&self, host: &str) -> PathBuf {
        self.folder.path().join(host)
    }

    fn link(&self) -> Arc<Link> {
        Link::new(self.log.clone())
    }

    async fn open(&self, host: &str, plan: &Plan, link: &Arc<Link>) -> anyhow::Result<Host> {
        let log: Arc<dyn Log> = Arc::new(Linked(link.clone()));
        plan.open_leased(&self.data(host), &log).await
    }

    /// A copy of the log as it is now.
    async fn backup(&self, name: &str) -> Arc<dyn Log> {
        let copy = embedded(self.data(name));
        for (seq, bytes) in self.log.read(Seq(1), 4096, 4 << 20).await.unwrap() {
            // Only logs that know ids go by them.
            let appended = copy.append([0; 32], bytes, Class::Ordinary).await.unwrap();
            assert_eq!(appended.seq, seq);
        }
        copy
    }
}

fn embedded(path: PathBuf) -> Arc<dyn Log> {
    std::fs::create_dir(&path).unwrap();
    Arc::new(Embedded::open(&path, Options::default()).unwrap().0)
}

/// One agent on `square`, and a puppet to move it.
fn plan() -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan =
        Plan::new()
            .channel("square")
            .agent("worker", puppet.native(), vec![all_of("square")]);
    (plan, puppet)
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it comes in time")
}

/// Waits until it is so.
async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Speaks until it counts: a loaded machine may make a host lapse for a moment, and then its agent grafts again.
async fn said(puppet: &Puppet, text: &str) {
    within(async {
        loop {
            if let Ok(Ok(_)) = puppet.graft().await
                && let Ok(Ok(outcomes)) = puppet.speak("square", vec![Draft::inform(text)]).await
                && outcomes.iter().all(Result::is_ok)
            {
                return;
            }
        }
    })
    .await;
}

fn id(host: &Host) -> HostId {
    host.control.host_id()
}

fn something() -> Said {
    Said {
        channel: "square".into(),
        act: Act::Inform,
        text: "is anybody there?".into(),
        parent: None,
        owner: String::new(),
        deadline_ms: 0,
    }
}

struct Party {
    host: Host,
    puppet: Puppet,
    link: Arc<Link>,
}

/// Two hosts that hear the log, each by a link of its own; agents of the same name on both.
async fn two() -> (Realm, Party, Party) {
    let realm = Realm::new();
    let (first, second) = (party(&realm, "first", None).await, realm.link());
    let (plan, puppet) = plan();
    let Err(refused) = realm.open("second", &plan, &second).await else {
        panic!("a stranger is refused");
    };
    let text = refused.to_string();
    let (_, key) = text.split_once("agora realm invite ").unwrap();
    let key = key.trim_end_matches(')');
    first.host.control.invite(key).await.unwrap();
    let host = realm.open("second", &plan, &second).await.unwrap();
    let second = Party {
        host,
        puppet,
        link: second,
    };
    for party in [&first, &second] {
        party.puppet.until_life(1).await;
        said(&party.puppet, "here").await;
    }
    (realm, first, second)
}

async fn party(realm: &Realm, name: &str, link: Option<Arc<Link>>) -> Party {
    let link = link.unwrap_or_else(|| realm.link());
    let (plan, puppet) = plan();
    let host = realm.open(name, &plan, &link).await.unwrap();
    Party { host, puppet, link }
}

/// Ends the epoch, and hears who confirmed.
async fn bumped(host: &Host, all: bool) -> (Decided, Epoch) {
    let (mut decided, epoch) = host.control.bump("a test", false, "test").await;
    host.control.confirm(&mut decided, epoch, all).await;
    (decided, epoch)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_alone_needs_no_lease_and_two_do() {
    let (realm, first, second) = two().await;
    let needs = |party: &Party| party.host.control.record().hearing().is_needed();
    assert!(needs(&first) && needs(&second));
    let second_id = id(&second.host).to_string();
    let control = &first.host.control;
    control.revoke_host(&second_id, "", "test").await.unwrap();
    until(|| !needs(&first)).await;
    first.link.cut();
    assert!(first.host.control.record().hearing().is_fresh());
    until(|| control.gate().unheard().is_none()).await;
    first.link.heal();
    second.host.close().await;
    first.host.close().await;
    realm.log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_hear_the_log_is_cut_and_goes_on_when_it_does() {
    let (_realm, first, second) = two().await;
    let control = second.host.control.clone();
    let ended = second.puppet.ended();
    second.link.cut();
    // What is in flight is cut, and nothing is admitted.
    assert!(within(ended).await.unwrap().is_stale());
    until(|| control.gate().shown().lapsed).await;
    let refused = control.say(0, something()).await.unwrap_err();
    assert!(refused.starts_with("logUnavailable"), "{refused}");
    // The other one is not held up, and knows what it may rely on.
    said(&first.puppet, "nobody is missed").await;
    let (decided, epoch) = bumped(&first.host, true).await;
    assert_eq!((&decided.pending, &decided.void), (&None, &None));
    assert_eq!(decided.unconfirmed, [id(&second.host)]);
    assert!(decided.outlasted && decided.confirmed.is_empty());
    assert!(!control.gate().is_open(Epoch(epoch.0 - 1)));
    // A stop acts all the same.
    let killed = control.kill("worker", "a test", "test").await.unwrap();
    assert!(killed.pending.is_some());
    let agent = control.agent("worker").unwrap();
    assert!(matches!(agent.shared.phase(), Phase::Killed(_)));
    // It comes back behind all that the log held, and says so.
    second.link.heal();
    until(|| control.gate().is_open(epoch)).await;
    let mut confirmed = first.host.control.record().confirmed();
    let heeded = confirmed.wait_for(|hosts| hosts.get(&id(&second.host)) == Some(&epoch));
    assert!(within(heeded).await.is_ok());
    within(async {
        while control.start("worker").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    second.puppet.until_life(2).await;
    said(&second.puppet, "back").await;
    first.host.close().await;
    second.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_grants_nothing_until_it_has_heard_itself() {
    let (realm, first, second) = two().await;
    let Party { host, link, .. } = second;
    host.close().await;
    link.cut();
    let second = party(&realm, "second", Some(link)).await;
    second.puppet.until_life(1).await;
    let grafting = second.puppet.graft();
    let early = tokio::time::timeout(Duration::from_millis(300), grafting).await;
    assert!(early.is_err(), "nothing was heard yet");
    assert!(second.host.control.gate().unheard().is_some());
    second.link.heal();
    said(&second.puppet, "here I am").await;
    first.host.close().await;
    second.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bump_says_which_hosts_confirmed_it() {
    let (realm, first, second) = two().await;
    let third_link = realm.link();
    let (third_plan, third) = plan();
    let Err(refused) = realm.open("third", &third_plan, &third_link).await else {
        panic!("a stranger is refused");
    };
    let text = refused.to_string();
    let (_, key) = text.split_once("agora realm invite ").unwrap();
    let key = key.trim_end_matches(')');
    second.host.control.invite(key).await.unwrap();
    let third_host = realm.open("third", &third_plan, &third_link).await.unwrap();
    third.until_life(1).await;
    said(&third, "here").await;
    let mut others = [id(&second.host), id(&third_host)];
    others.sort_unstable();
    // On a loaded machine one of them may be late, and is then said to be.
    within(async {
        loop {
            let (mut decided, _) = bumped(&first.host, true).await;
            assert_eq!(decided.confirmed.len() + decided.unconfirmed.len(), 2);
            decided.confirmed.sort_unstable();
            if decided.confirmed == others {
                assert!(!decided.outlasted);
                return;
            }
        }
    })
    .await;
    third_link.cut();
    within(async {
        loop {
            let (decided, _) = bumped(&first.host, false).await;
            assert!(decided.unconfirmed.contains(&id(&third_host)) && !decided.outlasted);
            if decided.confirmed == [id(&second.host)] {
                return;
            }
        }
    })
    .await;
    third_link.heal();
    for host in [first.host, second.host, third_host] {
        host.close().await;
    }
}

// -- A log that went back

/// One host that has said something, and the log as it was before that.
async fn alone_with_backup() -> (Realm, Party, Arc<dyn Log>) {
    let realm = Realm::new();
    let party = party(&realm, "first", None).await;
    party.puppet.until_life(1).await;
    let backup = realm.backup("backup").await;
    said(&party.puppet, "after the backup").await;
    (realm, party, backup)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_host_notices_that_its_log_ends_before_what_it_has_seen() {
    let (_realm, party, backup) = alone_with_backup().await;
    let ended = party.puppet.ended();
    party.link.put_back(backup);
    let control = party.host.control.clone();
    let mut diverged = control.record().divergence();
    assert!(within(diverged.wait_for(Option::is_some)).await.is_ok());
    assert!(within(ended).await.unwrap().is_stale());
    until(|| control.gate().unheard().is_some()).await;
    assert_eq!(control.condition().state, "diverged");
    let refused = control.say(0, something()).await.unwrap_err();
    assert!(refused.starts_with("logUnavailable"), "{refused}");
    // A stop acts here, and is kept.
    let killed = control.kill("worker", "a test", "test").await.unwrap();
    assert!(killed.pending.is_some());
    assert_eq!(control.folder().stops().count(), 1);
    party.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_host_notices_that_another_entry_stands_where_its_own_was_acknowledged() {
    let (realm, party, backup) = alone_with_backup().await;
    // It is acknowledged by the log as it was, and comes by from the log as it is put back, with other entries in it.
    let end = realm.log.end();
    while backup.end() <= end {
        let entry = Bytes::from_static(b"another");
        backup
            .append([0; 32], entry, Class::Ordinary)
            .await
            .unwrap();
    }
    party.link.set(true, false);
    let control = party.host.control.clone();
    let speaking = tokio::spawn(async move { control.say(0, something()).await });
    until(|| realm.log.end() > end).await;
    party.link.put_back(backup);
    party.link.heal();
    let mut diverged = party.host.control.record().divergence();
    assert!(within(diverged.wait_for(Option::is_some)).await.is_ok());
    assert!(within(speaking).await.unwrap().is_err());
    party.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_back_while_the_host_was_down_is_refused_until_the_loss_is_accepted() {
    let realm = Realm::new();
    let Party { host, link, puppet } = party(&realm, "first", None).await;
    puppet.until_life(1).await;
    let control = host.control.clone();
    let worker = control.persona_named("worker").unwrap();
    let grants = |host: &Host| host.control.grants_for(&worker);
    let backup = realm.backup("backup").await;
    // What the log will lose: a message, a new key, a grant that stands, one that does not, and the revocation of one that it keeps.
    let first = grants(&host)[0].id.to_string();
    said(&puppet, "this will be lost").await;
    control.kill("worker", "a test", "test").await.unwrap();
    control.start("worker").await.unwrap();
    let key = control.record().state().persona(&worker).unwrap().key;
    let all = agora_realm::Terms::ALL;
    let narrow = agora_realm::Terms { count: 7, ..all };
    let grant = |terms| agora::door::control::Grantable::Channel("square".into(), terms);
    let lost = control.grant("worker", grant(all)).await.unwrap();
    control.grant("worker", grant(narrow)).await.unwrap();
    let lost = agora_realm::GrantId::from(lost.entry.unwrap()).to_string();
    control.revoke(&lost, "a test", "test").await.unwrap();
    control.revoke(&first, "a test", "test").await.unwrap();
    control.bump("a test", false, "test").await;
    let tip = control.record().tip().unwrap();
    drop(control);
    host.close().await;
    // The server's folder is put back.
    link.put_back(backup.clone());
    let plan = plan().0;
    let Err(refused) = realm.open("first", &plan, &link).await else {
        panic!("a log that went back is refused");
    };
    let text = format!("{refused:#}");
    assert!(
        text.contains("--accept-loss") && text.contains(&tip.seq.to_string()),
        "{text}"
    );
    let before = backup.end().0;
    // The operator accepts it.
    let folder = agora::boot::data::DataFolder::open(&realm.data("first")).unwrap();
    folder.accept_loss(Some("the disk was restored")).unwrap();
    drop(folder);
    let again = party(&realm, "first", Some(link.clone())).await;
    let control = again.host.control.clone();
    let stored = backup.read(Seq(before + 1), 1, usize::MAX).await.unwrap();
    let said_first = agora_realm::Sealed::open(stored[0].1.clone()).unwrap();
    let agora_realm::Body::Note(agora_realm::NoteBody::Gap {
        first_seq,
        last_seq,
        leaf,
        reason,
    }) = &said_first.entry().body
    else {
        panic!("the loss is signed first: {:?}", said_first.entry().body);
    };
    assert_eq!((*first_seq, *last_seq), (before + 1, tip.seq));
    assert_eq!(*leaf, tip.leaf);
    assert_eq!(reason, "the disk was restored");
    // What it had decided stands again, and nothing that it had taken back.
    {
        let state = control.record().state();
        assert_eq!(state.persona(&worker).unwrap().key, key);
        assert!(!state.persona(&worker).unwrap().killed);
        assert_eq!(state.epoch(), Epoch(2));
    }
    let granted = grants(&again.host);
    assert_eq!(granted.len(), 1, "{granted:?}");
    assert_eq!(granted[0].terms.count, 7);
    assert!(!again.host.notices.is_empty());
    again.puppet.until_life(1).await;
    said(&again.puppet, "and on it goes").await;
    drop(control);
    again.host.close().await;
    // From here on it is the log that it is.
    let last = party(&realm, "first", Some(link)).await;
    assert_eq!(grants(&last.host).len(), 1);
    last.host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_to_accept_a_loss_is_dropped_when_nothing_is_lost() {
    let realm = Realm::new();
    let Party { host, link, puppet } = party(&realm, "first", None).await;
    puppet.until_life(1).await;
    host.close().await;
    let folder = agora::boot::data::DataFolder::open(&realm.data("first")).unwrap();
    folder.accept_loss(Some("by mistake")).unwrap();
    drop(folder);
    let end = realm.log.end();
    let again = party(&realm, "first", Some(link)).await;
    assert_eq!(realm.log.end(), end, "nothing is said of it");
    assert!(
        again
            .host
            .control
            .folder()
            .accepted_loss()
            .unwrap()
            .is_none()
    );
    assert_eq!(again.host.notices.len(), 1);
    again.host.close().await;
}
