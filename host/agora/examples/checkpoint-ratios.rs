//! Prints what the tree and the checkpoints cost beside publishing: signed entries, 64 on their way at once, synced, judged. Run by
//! `cargo xtask bench`.
//!
//! Rows end in: agora, its floor, their ratio; medians of rounds that alternate between the two, in microseconds an entry.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails should say so at once"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use agora::boot::data::DataFolder;
use agora::delivery::checkpoints::{Checkpoints, vouch};
use agora::delivery::record::{Derived, Record, Seen};
use agora::delivery::tree::LogTree;
use agora::persona::keys::Keys;
use agora::persona::secret::Secret;
use agora_log::{Class, Embedded, Log, Options, Seq};
use agora_realm::{
    Body, Entry, Epoch, Genesis, KeyBody, KeySubject, NoteBody, PersonaName, REALM_FORMAT, RealmId,
    Sealed, merkle,
};
use futures::StreamExt;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(3);
const AT_ONCE: usize = 64;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, agora: f64, floor: f64) {
    println!("{name}\t{agora:.3}\t{floor:.3}\t{:.3}", agora / floor);
}

fn sealed(keys: &Keys, realm: Option<RealmId>, time_ms: i64, body: Body) -> Sealed {
    let entry = Entry {
        realm,
        host: keys.host_id(),
        author: None,
        signer: keys.host().public(),
        epoch: Epoch(1),
        time_ms,
        grant: None,
        body,
    };
    keys.seal(entry, &keys.host()).unwrap()
}

/// Publishes for a round, with checkpoints or without. Answers microseconds an entry, and what the log then holds.
async fn publish(with_checkpoints: bool) -> (f64, Vec<bytes::Bytes>) {
    let dir = tempfile::tempdir().unwrap();
    let folder = DataFolder::open(dir.path()).unwrap();
    let keys = Arc::new(Keys::new(
        Secret::open_or_make(&folder.join("secret")).unwrap(),
    ));
    let (log, _) = Embedded::open(&folder.folder("log").unwrap(), Options::default()).unwrap();
    let log: Arc<dyn Log> = Arc::new(log);
    let derived = Derived {
        index: folder.folder("index").unwrap(),
        snapshot: folder.join("state"),
        tree: folder.join("tree"),
        pruned: folder.join("pruned"),
    };
    let seen = Seen {
        tip: None,
        accepts_loss: false,
        host: keys.host_id(),
    };
    let record = Record::open(log.clone(), derived, seen, false, |_, _| {});
    let record = record.await.unwrap();
    let vouched = vouch(&folder, &record, false).await.unwrap();
    let following = tokio::spawn(record.clone().follow());
    let genesis = Body::Key(KeyBody {
        subject: KeySubject::Host(keys.host_id()),
        public_key: keys.host().public(),
        component: None,
        started: false,
        genesis: Some(Genesis {
            format: REALM_FORMAT,
            nonce: [7; 32],
            fencers: Vec::new(),
        }),
        origin: None,
    });
    let first = sealed(&keys, None, 0, genesis);
    let realm = RealmId::from(first.id());
    record.commit(first, Class::Ordinary).await.unwrap();
    let checkpoints = Checkpoints::open(vouched, record.clone(), keys.clone(), realm).unwrap();
    let making = with_checkpoints.then(|| tokio::spawn(checkpoints.clone().make_regularly()));
    let began = Instant::now();
    let entries = futures::stream::iter(1..).take_while(|_| async { began.elapsed() < ROUND });
    let count = entries
        .map(|n| {
            let (keys, record) = (keys.clone(), record.clone());
            tokio::spawn(async move {
                let note = Body::Note(NoteBody::Incident {
                    persona: PersonaName::new("bencher").unwrap(),
                    reason: "x".repeat(256),
                    count: 1,
                });
                let sealed = sealed(&keys, Some(realm), n, note);
                let committed = record.commit(sealed, Class::Ordinary).await.unwrap();
                committed.settled.judged.verdict.unwrap();
            })
        })
        .buffer_unordered(AT_ONCE)
        .count()
        .await;
    let each = began.elapsed().as_secs_f64() * 1e6 / count as f64;
    assert_eq!(checkpoints.newest().is_some(), with_checkpoints);
    if let Some(making) = making {
        making.abort();
    }
    let stored = log.read(Seq(1), 4096, 16 << 20).await.unwrap();
    log.close().await.unwrap();
    following.await.unwrap();
    (each, stored.into_iter().map(|(_, bytes)| bytes).collect())
}

/// Hashes the same entries into a tree of their own. Answers microseconds an entry.
async fn hash(stored: &[bytes::Bytes]) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("log")).unwrap();
    let (log, _) = Embedded::open(&dir.path().join("log"), Options::default()).unwrap();
    let tree = LogTree::open(dir.path().join("tree"), Arc::new(log), 0, |_, _| {});
    let tree = tree.await.unwrap();
    let began = Instant::now();
    for (at, stored) in stored.iter().enumerate() {
        tree.push(at as u64 + 1, merkle::leaf(stored));
    }
    tree.keep().unwrap();
    began.elapsed().as_secs_f64() * 1e6 / stored.len() as f64
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut with, mut without, mut hashed) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (each, stored) = publish(true).await;
            with.push(each);
            hashed.push(hash(&stored).await);
            without.push(publish(false).await.0);
        }
        let (with, without) = (median(with), median(without));
        row("publish, with checkpoints / without", with, without);
        row("an entry into the tree / publish", median(hashed), without);
    });
}
