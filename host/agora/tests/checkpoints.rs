//! Checkpoints of a real host: they appear, extend each other, survive what a host may go through, and are found out when the log is not what
//! it was; hosts of a realm compare; witnesses cosign.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agora::boot::host::Host;
use agora::delivery::checkpoints::{Kept, NotExtended};
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::Draft;
use agora_log::{Appended, Class, Durability, Embedded, Log, LogError, Options, Seq};
use agora_realm::checkpoint::{Extension, Signed};
use agora_realm::merkle::{self, Tree};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// One agent on `square`, and a puppet to move it.
fn plan() -> (Plan, Puppet) {
    let puppet = Puppet::new();
    let plan =
        Plan::new()
            .channel("square")
            .agent("worker", puppet.native(), vec![all_of("square")]);
    (plan, puppet)
}

/// Waits for a condition, far longer than it takes.
async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), waiting).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: not within a minute"),
    }
}

async fn ready(puppet: &Puppet) {
    puppet.until_life(1).await;
    puppet.graft().await.unwrap().unwrap();
}

async fn say(puppet: &Puppet, count: usize) {
    for n in 0..count {
        let drafts = vec![Draft::inform(format!("number {n}"))];
        let mut outcomes = puppet.speak("square", drafts).await.unwrap().unwrap();
        outcomes.remove(0).unwrap();
    }
}

/// The tree over what the log in a data folder holds, hashed anew.
fn tree_of(data: &Path) -> Tree {
    let (log, _) = Embedded::open_read_only(&data.join("log")).unwrap();
    let mut tree = Tree::new();
    loop {
        let batch = log.read(Seq(tree.size() + 1), 1024, 8 << 20).unwrap();
        if batch.is_empty() {
            return tree;
        }
        batch
            .iter()
            .for_each(|(_, stored)| tree.push(merkle::leaf(stored)));
    }
}

/// All kept checkpoints are signed by the host, are of the log, and each covers more than the one before.
fn assert_sound(data: &Path, host: &agora_realm::HostId) -> Vec<Signed> {
    let tree = tree_of(data);
    let all = Kept::of(data).all().unwrap();
    let mut covered = 0;
    for signed in &all {
        let checkpoint = signed.checkpoint();
        assert!(signed.is_signed_by(&agora_realm::PublicKey(host.0)));
        assert!(
            checkpoint.size > covered,
            "{} after {covered}",
            checkpoint.size
        );
        assert_eq!(tree.root(checkpoint.size), Some(checkpoint.root));
        covered = checkpoint.size;
    }
    all
}

fn newest(data: &Path) -> Option<Signed> {
    Kept::of(data).newest().unwrap()
}

/// Waits until the newest checkpoint covers all that the host judged.
async fn until_covered(data: &Path, host: &Host) -> Signed {
    let record = host.control.record();
    until("a checkpoint", || {
        newest(data).filter(|signed| signed.checkpoint().size == record.tree().size())
    })
    .await
}

/// Copies a folder that its host may be writing in; a draft that is renamed meanwhile is not there any more.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            match std::fs::copy(entry.path(), to.join(entry.file_name())) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_appear_while_entries_arrive_at_a_fence_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (plan, puppet) = plan();
    let host = plan.open(&data).await.unwrap();
    let id = host.control.host_id();
    ready(&puppet).await;
    say(&puppet, 3).await;
    let first = until_covered(&data, &host).await;
    say(&puppet, 300).await;
    let second = until_covered(&data, &host).await;
    assert!(first.checkpoint().size < second.checkpoint().size);
    let fence = host.control.bump("a test", false, "test").await.0;
    assert_eq!(fence.pending, None);
    let fenced = host.control.record().state().last_seq().unwrap();
    until("a checkpoint of the fence", || {
        newest(&data).filter(|signed| signed.checkpoint().size >= fenced)
    })
    .await;
    host.close().await;
    let all = assert_sound(&data, &id);
    assert!(all.len() >= 3);
    let size = tree_of(&data).size();
    assert_eq!(all.last().unwrap().checkpoint().size, size);
    // Whoever holds the first one can be shown that the last one extends it.
    let covering = Kept::of(&data).covering(first.checkpoint().size).unwrap();
    assert_eq!(covering.unwrap().checkpoint(), first.checkpoint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_goes_on_from_its_checkpoints_after_an_end_and_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (first, puppet) = plan();
    let host = first.open(&data).await.unwrap();
    let id = host.control.host_id();
    ready(&puppet).await;
    say(&puppet, 300).await;
    until_covered(&data, &host).await;
    // What a host that is killed here leaves behind.
    let crashed = dir.path().join("crashed");
    copy(&data, &crashed);
    say(&puppet, 10).await;
    host.close().await;
    for folder in [&data, &crashed] {
        let before = newest(folder).unwrap();
        let (again, puppet) = plan();
        let host = again.open(folder).await.unwrap();
        assert_eq!(host.control.host_id(), id);
        ready(&puppet).await;
        say(&puppet, 5).await;
        let after = until_covered(folder, &host).await;
        assert!(after.checkpoint().size > before.checkpoint().size);
        host.close().await;
        assert_sound(folder, &id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_tree_is_mended_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (first, puppet) = plan();
    let host = first.open(&data).await.unwrap();
    let id = host.control.host_id();
    ready(&puppet).await;
    say(&puppet, 600).await;
    host.close().await;
    let whole = std::fs::read(data.join("tree")).unwrap();
    let damages: [fn(&mut Vec<u8>); 4] = [
        Vec::clear,
        |bytes| bytes[16 + 40 + 100] ^= 1,
        |bytes| bytes[16 + 3] ^= 1,
        |bytes| bytes.truncate(9000),
    ];
    for damage in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        std::fs::write(data.join("tree"), bytes).unwrap();
        let (again, puppet) = plan();
        let host = again.open(&data).await.unwrap();
        ready(&puppet).await;
        say(&puppet, 1).await;
        let record = host.control.record();
        let (size, root) = record.tree().now();
        let proof = record.tree().consistency(100, size).await.unwrap();
        host.close().await;
        let tree = tree_of(&data);
        assert_eq!(tree.root(size), Some(root));
        let old = tree.root(100).unwrap();
        merkle::check_consistency(100, &old, size, &root, &proof).unwrap();
        assert_sound(&data, &id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_what_it_was_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (first, puppet) = plan();
    let host = first.open(&data).await.unwrap();
    ready(&puppet).await;
    say(&puppet, 5).await;
    until_covered(&data, &host).await;
    let older = dir.path().join("older");
    copy(&data, &older);
    say(&puppet, 5).await;
    host.close().await;
    // A log that went back, to a time of which the snapshot knows nothing.
    let back = dir.path().join("back");
    copy(&older, &back);
    for file in ["checkpoint", "checkpoints"] {
        std::fs::copy(data.join(file), back.join(file)).unwrap();
    }
    let Err(refused) = plan().0.open(&back).await else {
        panic!("a log that went back is refused");
    };
    let refused = refused.downcast::<NotExtended>().unwrap();
    assert!(matches!(refused, NotExtended::WentBack { .. }), "{refused}");
    // One that went on otherwise from there, for longer.
    let other = dir.path().join("other");
    copy(&older, &other);
    let (again, puppet) = plan();
    let host = again.open(&other).await.unwrap();
    ready(&puppet).await;
    say(&puppet, 20).await;
    host.close().await;
    for file in ["checkpoint", "checkpoints"] {
        std::fs::copy(data.join(file), other.join(file)).unwrap();
    }
    let Err(refused) = plan().0.open(&other).await else {
        panic!("another log is refused");
    };
    let refused = refused.downcast::<NotExtended>().unwrap();
    assert!(matches!(refused, NotExtended::Changed { .. }), "{refused}");
    // Where the operator accepts the loss, the host signs anew, and what it had signed is set aside.
    let lost = Kept::of(&back).all().unwrap().len();
    for (folder, is_known_lost) in [(&back, true), (&other, false)] {
        if is_known_lost {
            std::fs::copy(data.join("tip"), folder.join("tip")).unwrap();
        }
        out(&mut agora(&["doctor", "--accept-loss", "a test"], folder));
        let (again, puppet) = plan();
        let host = again.open(folder).await.unwrap();
        let id = host.control.host_id();
        ready(&puppet).await;
        say(&puppet, 1).await;
        host.close().await;
        assert_sound(folder, &id);
        let aside = std::fs::read_to_string(folder.join("checkpoints.lost")).unwrap();
        assert_eq!(aside.matches("\n— agora-host/").count(), lost);
    }
}

// -- The command

fn agora(args: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
    command.args(args).arg("--data").arg(data);
    command.env_remove("AGORA_LOG");
    command
}

#[track_caller]
fn out(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {ran:#?}");
    String::from_utf8(ran.stdout).unwrap()
}

#[track_caller]
fn err(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    assert_eq!(ran.status.code(), Some(1), "{command:?}: {ran:#?}");
    String::from_utf8(ran.stderr).unwrap()
}

/// A witness in a folder of its own.
struct Witness(PathBuf);

impl Witness {
    fn sign(&self, input: &str) -> Command {
        let path = self.0.with_extension("input");
        std::fs::write(&path, input).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
        command
            .arg("witness")
            .arg(&path)
            .arg("--state")
            .arg(&self.0);
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_checkpoints_and_proofs_and_a_witness_signs_what_extends() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (first, puppet) = plan();
    let host = first.open(&data).await.unwrap();
    ready(&puppet).await;
    say(&puppet, 5).await;
    let early = until_covered(&data, &host).await;
    let fork = dir.path().join("fork");
    copy(&data, &fork);
    say(&puppet, 300).await;
    let late = until_covered(&data, &host).await;
    // While the host runs.
    let shown = out(&mut agora(&["checkpoint"], &data));
    assert_eq!(
        shown.parse::<Signed>().unwrap().checkpoint(),
        late.checkpoint()
    );
    let at = early.checkpoint().size.to_string();
    let shown = out(&mut agora(&["checkpoint", "--at", &at], &data));
    assert_eq!(
        shown.parse::<Signed>().unwrap().checkpoint(),
        early.checkpoint()
    );
    let shown = out(&mut agora(&["checkpoint", "--since", &at], &data));
    let extension: Extension = shown.parse().unwrap();
    let (old, new) = (early.checkpoint(), extension.signed.checkpoint());
    merkle::check_consistency(old.size, &old.root, new.size, &new.root, &extension.proof).unwrap();
    err(&mut agora(&["checkpoint", "--since", "1000000"], &data));
    err(&mut agora(&["checkpoint", "--at", "1000000"], &data));
    host.close().await;

    let witness = Witness(dir.path().join("witness"));
    let input = out(&mut agora(
        &["checkpoint", "--at", &at, "--for-witness", "0"],
        &data,
    ));
    let signed: Signed = out(&mut witness.sign(&input)).parse().unwrap();
    assert_eq!(signed.checkpoint(), early.checkpoint());
    assert_eq!(signed.witnesses().len(), 1);
    // The same once more, and what extends it.
    let input = out(&mut agora(&["checkpoint", "--for-witness", &at], &data));
    let cosigned = out(&mut witness.sign(&input));
    let signed: Signed = cosigned.parse().unwrap();
    assert_eq!(signed.witnesses().len(), 1);
    // Its signature is kept with the checkpoint.
    let file = dir.path().join("cosigned");
    std::fs::write(&file, &cosigned).unwrap();
    let args = ["checkpoint", "--cosigned", file.to_str().unwrap()];
    out(&mut agora(&args, &data));
    assert_eq!(newest(&data).unwrap(), signed);
    assert_eq!(out(&mut agora(&["checkpoint"], &data)), cosigned);
    err(&mut agora(&args, &fork));

    // Not what is older, not from elsewhere, and not another history.
    let state = std::fs::read(&witness.0).unwrap();
    let input = out(&mut agora(
        &["checkpoint", "--at", &at, "--for-witness", "0"],
        &data,
    ));
    assert!(err(&mut witness.sign(&input)).contains("witnessed already"));
    let (again, puppet) = plan();
    let host = again.open(&fork).await.unwrap();
    ready(&puppet).await;
    say(&puppet, 400).await;
    host.close().await;
    let held = signed.checkpoint().size.to_string();
    let input = out(&mut agora(&["checkpoint", "--for-witness", &held], &fork));
    assert!(err(&mut witness.sign(&input)).contains("NOT AN EXTENSION"));
    assert_eq!(std::fs::read(&witness.0).unwrap(), state);
}

// -- Hosts of a realm

/// A host's view of a shared log; a broker that lies shows something else at one place.
struct View {
    log: Arc<dyn Log>,
    /// The place whose bytes it changes; 0: none.
    changed: Arc<AtomicU64>,
}

fn shown(changed: u64, seq: Seq, stored: Bytes) -> (Seq, Bytes) {
    match seq.0 == changed {
        true => {
            let mut bytes = stored.to_vec();
            // In the signature: junk here, an entry there.
            bytes[10] ^= 1;
            (seq, bytes.into())
        }
        false => (seq, stored),
    }
}

impl Log for View {
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
        let reading = self.log.read(from, entries, bytes_max);
        let changed = self.changed.clone();
        Box::pin(async move {
            let changed = changed.load(Ordering::SeqCst);
            let read = reading.await?.into_iter();
            Ok(read
                .map(|(seq, bytes)| shown(changed, seq, bytes))
                .collect())
        })
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let changed = self.changed.clone();
        let tail = self.log.tail(from);
        tail.map(move |next| {
            next.map(|(seq, bytes)| shown(changed.load(Ordering::SeqCst), seq, bytes))
        })
        .boxed()
    }

    fn end(&self) -> Seq {
        self.log.end()
    }

    fn durability(&self) -> Durability {
        self.log.durability()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        self.log.close()
    }
}

/// Two hosts on one log; what the second is shown can be changed.
struct Realm {
    dir: tempfile::TempDir,
    log: Arc<dyn Log>,
    view: Arc<dyn Log>,
    changed: Arc<AtomicU64>,
    hosts: [(Host, Puppet); 2],
}

impl Realm {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let (log, _) = Embedded::open(&dir.path().join("log"), Options::default()).unwrap();
        let log: Arc<dyn Log> = Arc::new(log);
        let changed = Arc::new(AtomicU64::new(0));
        let view: Arc<dyn Log> = Arc::new(View {
            log: log.clone(),
            changed: changed.clone(),
        });
        let ((first, ann), (second, bob)) = (plan(), plan());
        let first = first
            .open_shared(&dir.path().join("first"), &log)
            .await
            .unwrap();
        let data = dir.path().join("second");
        let Err(refused) = second.open_shared(&data, &view).await else {
            panic!("a stranger is refused");
        };
        let refused = refused.to_string();
        let (_, key) = refused.split_once("agora realm invite ").unwrap();
        first
            .control
            .invite(key.trim_end_matches(')'))
            .await
            .unwrap();
        let second = second.open_shared(&data, &view).await.unwrap();
        ready(&ann).await;
        ready(&bob).await;
        Self {
            dir,
            log,
            view,
            changed,
            hosts: [(first, ann), (second, bob)],
        }
    }

    /// How many notes of the tree each host has in the log.
    async fn notes(&self) -> [usize; 2] {
        let mut counts = [0; 2];
        let mut next = 1;
        loop {
            let batch = self.log.read(Seq(next), 1024, 8 << 20).await.unwrap();
            let Some((last, _)) = batch.last() else {
                return counts;
            };
            next = last.0 + 1;
            for sealed in batch
                .iter()
                .flat_map(|(_, b)| agora_realm::Sealed::open(b.clone()))
            {
                let entry = sealed.entry();
                let is_note = matches!(
                    entry.body,
                    agora_realm::Body::Note(agora_realm::NoteBody::Tree { .. })
                );
                for (count, (host, _)) in counts.iter_mut().zip(&self.hosts) {
                    *count += usize::from(is_note && entry.host == host.control.host_id());
                }
            }
        }
    }

    /// Speaks on both until each has told the other what the log was, after this was called.
    async fn until_told(&self) {
        let before = self.notes().await;
        let telling = async {
            loop {
                let now = self.notes().await;
                if now[0] > before[0] && now[1] > before[1] {
                    return;
                }
                for (_, puppet) in &self.hosts {
                    say(puppet, 1).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), telling)
            .await
            .expect("both tell within a minute");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_a_realm_agree_and_are_quiet_when_there_is_nothing_to_tell() {
    let realm = Realm::open().await;
    realm.until_told().await;
    let [first, second] = &realm.hosts;
    let seen = async |host: &Host| {
        until("all is judged", || {
            (host.control.record().tree().size() == realm.log.end().0).then_some(())
        })
        .await;
    };
    let arrived = |host: &Host| host.control.record().arrived();
    let before = realm.notes().await;
    say(&first.1, 1).await;
    say(&second.1, 1).await;
    seen(&first.0).await;
    seen(&second.0).await;
    let entries = [arrived(&first.0), arrived(&second.0)];
    // Each tells of these, and what they tell calls for nothing more.
    let telling = async {
        loop {
            let now = realm.notes().await;
            if now[0] > before[0] && now[1] > before[1] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), telling)
        .await
        .expect("both tell within a minute");
    seen(&first.0).await;
    seen(&second.0).await;
    assert_eq!(entries, [arrived(&first.0), arrived(&second.0)]);
    for (host, _) in &realm.hosts {
        assert!(host.control.forks().standing().is_empty());
    }
    let trees = || [first, second].map(|host| host.0.control.record().tree().now());
    until("one tree", || {
        let [one, other] = trees();
        (one == other).then_some(())
    })
    .await;
    for (host, _) in realm.hosts {
        host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forked_view_is_told_and_kept_until_it_is_accepted() {
    let realm = Realm::open().await;
    let data = ["first", "second"].map(|host| realm.dir.path().join(host));
    // From its next entry on the second host is shown another log than the first.
    realm.changed.store(realm.log.end().0 + 1, Ordering::SeqCst);
    say(&realm.hosts[0].1, 1).await;
    for (_, puppet) in &realm.hosts {
        say(puppet, 1).await;
    }
    for ((host, puppet), data) in realm.hosts.iter().zip(&data) {
        let arrived = until_forked(host, puppet).await;
        assert!(arrived.contains("two histories"), "{arrived}");
        assert!(data.join("forked").exists());
    }
    let [(first, _), (second, _)] = realm.hosts;
    first.close().await;
    second.close().await;
    let told = agora(&["doctor"], &data[1]).output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stdout).contains("FORKED"));
    // Across a restart.
    let (again, _puppet) = plan();
    let host = again.open_shared(&data[1], &realm.view).await.unwrap();
    assert!(host.notices.iter().any(|notice| notice.contains("FORKED")));
    assert_eq!(host.control.forks().standing().len(), 1);
    out(&mut agora(&["doctor", "--accept-fork", "mended"], &data[1]));
    assert!(host.control.forks().standing().is_empty());
    host.close().await;
}

/// Speaks until the host knows that another one has another log, and answers what it says of that.
async fn until_forked(host: &Host, puppet: &Puppet) -> String {
    let telling = async {
        loop {
            if let Some(fork) = host.control.forks().standing().first() {
                return fork.show();
            }
            say(puppet, 1).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), telling)
        .await
        .expect("it is told within a minute")
}
