//! A loss that the operator accepts: what is said again, and what the data folder must forget.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agora::boot::data::DataFolder;
use agora::boot::host::Host;
use agora::door::control::Said;
use agora::door::prune::{Keep, PruneDone};
use agora::testbed::{Plan, Puppet, all_of};
use agora_log::{Class, Embedded, Log, Options, Seq};
use agora_realm::{
    Act, Body, ChannelName, Epoch, Ordinal, PersonaId, PersonaName, PublicKey, Revoked, Sealed,
};

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

/// One agent on `square`.
fn plan() -> Plan {
    let puppet = Puppet::new();
    Plan::new()
        .channel("square")
        .agent("worker", puppet.native(), vec![all_of("square")])
}

fn worker(host: &Host) -> PersonaId {
    PersonaId::new(host.control.host_id(), PersonaName::new("worker").unwrap())
}

fn host_key(host: &Host) -> (PublicKey, u64) {
    let state = host.control.record().state();
    let known = state.host(&host.control.host_id()).unwrap();
    (known.key, known.keys)
}

fn is_killed(host: &Host) -> bool {
    let state = host.control.record().state();
    state.persona(&worker(host)).unwrap().killed
}

fn accept(data: &Path) {
    let folder = DataFolder::open(data).unwrap();
    folder.accept_loss(Some("restored from a copy")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn doctor(data: &Path, args: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agora"));
    command.arg("doctor").args(args).arg("--data").arg(data);
    command.output().unwrap()
}

async fn reopened(data: &Path) -> Host {
    plan().open(data).await.unwrap()
}

async fn refused(data: &Path) -> String {
    match plan().open(data).await {
        Ok(_) => panic!("a log that went back is refused"),
        Err(error) => format!("{error:#}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_change_of_the_hosts_key_is_said_again_and_so_is_what_was_signed_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    reopened(&data).await.close().await;
    copy(&data.join("log"), &backup);
    let host = reopened(&data).await;
    let control = &host.control;
    let (first, one) = host_key(&host);
    assert_eq!(one, 1);
    // With its first key, with its second, and with its third.
    control.bump("first", false, "test").await;
    control.rotate_host().await.unwrap();
    control.bump("second", false, "test").await;
    control.rotate_host().await.unwrap();
    control.kill("worker", "third", "test").await.unwrap();
    let (third, keys) = host_key(&host);
    assert_eq!((third == first, keys), (false, 3));
    host.close().await;

    assert!(doctor(&data, &[]).status.success());
    copy(&backup, &data.join("log"));
    let text = refused(&data).await;
    assert!(text.contains("--accept-loss"), "{text}");
    let examined = doctor(&data, &[]);
    let said = String::from_utf8(examined.stdout).unwrap();
    assert!(said.contains("the log has diverged"), "{said}");
    assert_eq!(examined.status.code(), Some(1));
    let both = ["--accept-loss", "one", "--accept-fork", "two"];
    assert_eq!(doctor(&data, &both).status.code(), Some(2));
    accept(&data);
    let kept = ["own", "tip", "accepted"];
    for name in kept {
        std::fs::copy(data.join(name), dir.path().join(name)).unwrap();
    }
    for _ in 0..2 {
        let host = reopened(&data).await;
        assert_eq!(host_key(&host), (third, 3), "{:?}", host.notices);
        assert_eq!(host.control.record().state().epoch(), Epoch(3));
        assert!(is_killed(&host), "{:?}", host.notices);
        let grants = host.control.record().state().grants().count();
        assert_eq!(grants, 1, "{:?}", host.notices);
        host.close().await;
        // As after a crash that came when all was said, and before that was kept.
        for name in kept {
            std::fs::copy(dir.path().join(name), data.join(name)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_predecessor_nobody_kept_is_said_again_as_one_that_the_secret_gives() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    reopened(&data).await.close().await;
    copy(&data.join("log"), &backup);
    let host = reopened(&data).await;
    host.control.rotate_host().await.unwrap();
    host.control.rotate("worker").await.unwrap();
    host.control.rotate_host().await.unwrap();
    host.control.rotate("worker").await.unwrap();
    host.close().await;
    // A crash may come between an entry and its being kept.
    let folder = DataFolder::open(&data).unwrap();
    let mut dropped = 0;
    let keep = |all: Vec<bytes::Bytes>| {
        let rotated: Vec<_> = all.iter().rev().take(4).cloned().collect();
        let gone = &rotated[2..];
        dropped = gone.len();
        all.into_iter().filter(|one| !gone.contains(one)).collect()
    };
    folder.own().shorten(keep).unwrap();
    assert_eq!(dropped, 2);
    drop(folder);

    copy(&backup, &data.join("log"));
    accept(&data);
    let host = reopened(&data).await;
    let (_, host_keys) = host_key(&host);
    let worker_keys = {
        let state = host.control.record().state();
        state.persona(&worker(&host)).unwrap().keys
    };
    assert_eq!((host_keys, worker_keys), (2, 2));
    // Both can sign with what they have, also later.
    host.close().await;
    let host = reopened(&data).await;
    host.control.rotate("worker").await.unwrap();
    host.close().await;
}

/// A log that several hosts share.
fn shared(path: PathBuf) -> Arc<dyn Log> {
    std::fs::create_dir(&path).unwrap();
    Arc::new(Embedded::open(&path, Options::default()).unwrap().0)
}

async fn copied(log: &Arc<dyn Log>, path: PathBuf) -> Arc<dyn Log> {
    let copy = shared(path);
    for (seq, bytes) in log.read(Seq(1), 4096, 4 << 20).await.unwrap() {
        let appended = copy.append([0; 32], bytes, Class::Ordinary).await.unwrap();
        assert_eq!(appended.seq, seq);
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_a_host_whose_key_was_lost_too_is_said_again_by_who_heeded_it() {
    let two = two().await;
    let (first_data, second_data) = (two.data("first"), two.data("second"));
    let backup = copied(&two.log, two.data("backup")).await;
    two.first.control.rotate_host().await.unwrap();
    two.first.control.bump("a test", false, "test").await;
    until_kept(&two.second).await;
    two.first.close().await;
    two.second.close().await;

    // The one that says it again can't give the other its key.
    accept(&second_data);
    let second = plan().open_shared(&second_data, &backup).await.unwrap();
    let epoch = second.control.record().state().epoch();
    assert_eq!(epoch, Epoch(2), "{:?}", second.notices);
    accept(&first_data);
    let first = plan().open_shared(&first_data, &backup).await.unwrap();
    assert_eq!(host_key(&first).1, 2);
    assert_eq!(first.control.record().state().epoch(), Epoch(2));
    first.close().await;
    second.close().await;
}

/// Two hosts of a realm on a shared log.
struct Two {
    dir: tempfile::TempDir,
    log: Arc<dyn Log>,
    first: Host,
    second: Host,
}

impl Two {
    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn two() -> Two {
    let dir = tempfile::tempdir().unwrap();
    let log = shared(dir.path().join("log"));
    let second_data = dir.path().join("second");
    let first = plan().open_shared(&dir.path().join("first"), &log).await;
    let first = first.unwrap();
    let Err(stranger) = plan().open_shared(&second_data, &log).await else {
        panic!("a stranger is refused");
    };
    let text = stranger.to_string();
    let (_, key) = text.split_once("agora realm invite ").unwrap();
    let invited = first.control.invite(key.trim_end_matches(')')).await;
    invited.unwrap();
    let second = plan().open_shared(&second_data, &log).await.unwrap();
    Two {
        dir,
        log,
        first,
        second,
    }
}

/// Waits until the host has kept the fence, to say it again.
async fn until_kept(host: &Host) {
    let is_fence = |stored: bytes::Bytes| {
        let sealed = Sealed::open(stored).unwrap();
        matches!(&sealed.entry().body, Body::Revoke(r) if matches!(r.what, Revoked::Fence { .. }))
    };
    let own = host.control.folder().own();
    until(|| own.all().unwrap().into_iter().any(is_fence)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_came_while_a_host_was_down_is_said_again_by_it() {
    let two = two().await;
    let data = two.data("second");
    let backup = copied(&two.log, two.data("backup")).await;
    two.second.close().await;
    two.first.control.bump("a test", false, "test").await;
    // It comes up, and heeds what it finds. The other one never comes back.
    let second = plan().open_shared(&data, &two.log).await.unwrap();
    until_kept(&second).await;
    second.close().await;
    two.first.close().await;

    accept(&data);
    let second = plan().open_shared(&data, &backup).await.unwrap();
    let epoch = second.control.record().state().epoch();
    assert_eq!(epoch, Epoch(2), "{:?}", second.notices);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_whose_host_was_killed_before_it_was_kept_is_kept_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    reopened(&data).await.close().await;
    copy(&data.join("log"), &backup);
    let kept = ["own", "tip", "state"];
    for name in kept {
        std::fs::copy(data.join(name), dir.path().join(name)).unwrap();
    }
    let host = reopened(&data).await;
    host.control.bump("a test", false, "test").await;
    host.control.rotate_host().await.unwrap();
    host.close().await;
    for name in kept {
        std::fs::copy(dir.path().join(name), data.join(name)).unwrap();
    }
    reopened(&data).await.close().await;

    copy(&backup, &data.join("log"));
    accept(&data);
    let host = reopened(&data).await;
    assert_eq!(host.control.record().state().epoch(), Epoch(2));
    assert_eq!(host_key(&host).1, 2, "{:?}", host.notices);
    host.close().await;
}

fn something(text: &str) -> Said {
    Said {
        channel: "square".into(),
        act: Act::Inform,
        text: text.into(),
        parent: None,
        owner: String::new(),
        deadline_ms: 0,
    }
}

async fn say(host: &Host, texts: &[&str]) {
    for text in texts {
        host.control.say(0, something(text)).await.unwrap();
    }
}

async fn prune_all(host: &Host) -> PruneDone {
    let pruned = host.control.prune("square", Keep::Count(0), false, true);
    let done = pruned.await.unwrap();
    assert_eq!(done.pending, None);
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_stand_where_something_pruned_was_lost_is_pruned_as_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    let host = reopened(&data).await;
    say(&host, &["one", "two", "three"]).await;
    host.close().await;
    copy(&data.join("log"), &backup);
    let host = reopened(&data).await;
    say(&host, &["four", "five", "six"]).await;
    assert!(prune_all(&host).await.freed > 0);
    host.close().await;

    copy(&backup, &data.join("log"));
    accept(&data);
    let host = reopened(&data).await;
    say(&host, &["other four", "other five"]).await;
    assert_eq!(prune_all(&host).await.messages, 5);
    let record = host.control.record().clone();
    let log = record.log();
    for (seq, stored) in log.read(Seq(1), 4096, 4 << 20).await.unwrap() {
        let text = String::from_utf8_lossy(&stored);
        for said in ["one", "two", "three", "other four", "other five"] {
            assert!(!text.contains(said), "{said} is in entry {seq}");
        }
    }
    let (size, root) = record.tree().now();
    drop(record);
    host.close().await;
    // Judged from its beginning, it is what it was.
    std::fs::remove_file(data.join("state")).unwrap();
    std::fs::remove_file(data.join("tree")).unwrap();
    let host = reopened(&data).await;
    assert_eq!(host.control.record().tree().root(size).await.unwrap(), root);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_about_what_was_lost_is_forgotten_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    reopened(&data).await.close().await;
    copy(&data.join("log"), &backup);
    let host = reopened(&data).await;
    say(&host, &["one", "two"]).await;
    let (worker, square) = (worker(&host), ChannelName::new("square").unwrap());
    host.close().await;
    let folder = DataFolder::open(&data).unwrap();
    let cursors = [((worker, square), Ordinal(2))];
    folder.keep_cursors(&cursors.into()).unwrap();
    drop(folder);

    copy(&backup, &data.join("log"));
    accept(&data);
    reopened(&data).await.close().await;
    // A host that is killed before it writes them anew must not find them.
    let folder = DataFolder::open(&data).unwrap();
    assert!(folder.cursors().unwrap().is_empty());
    assert!(folder.accepted_loss().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_only_a_checkpoint_tells_of_is_accepted_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backup) = (dir.path().join("data"), dir.path().join("backup"));
    reopened(&data).await.close().await;
    copy(&data.join("log"), &backup);
    let host = reopened(&data).await;
    host.control.bump("a test", false, "test").await;
    host.close().await;

    // As after a crash that came before the tip was kept.
    copy(&backup, &data.join("log"));
    std::fs::remove_file(data.join("tip")).unwrap();
    std::fs::remove_file(data.join("state")).unwrap();
    let text = refused(&data).await;
    assert!(text.contains("--accept-loss"), "{text}");
    let accepted = doctor(&data, &["--accept-loss", "restored from a copy"]);
    assert!(accepted.status.success(), "{accepted:?}");
    let host = reopened(&data).await;
    let epoch = host.control.record().state().epoch();
    assert_eq!(epoch, Epoch(2), "{:?}", host.notices);
    host.close().await;
    assert!(data.join("checkpoints.lost").exists());
    reopened(&data).await.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_comes_to_nothing_sets_no_checkpoint_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    reopened(&data).await.close().await;
    // The log is elsewhere, and the operator forgets to say where.
    std::fs::rename(data.join("log"), &log).unwrap();
    accept(&data);
    refused(&data).await;
    assert!(data.join("checkpoint").exists() && !data.join("checkpoints.lost").exists());
    copy(&log, &data.join("log"));
    let host = reopened(&data).await;
    assert_eq!(host.notices.len(), 1, "{:?}", host.notices);
    host.close().await;
    assert!(data.join("checkpoint").exists() && !data.join("checkpoints.lost").exists());
}
