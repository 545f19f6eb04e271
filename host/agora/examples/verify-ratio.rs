//! What `agora verify` adds to verifying signatures: Run by `cargo xtask bench`.
//!
//! The floor verifies the same signatures by the same keys on as many threads, and does nothing else: what k256 does, times cores. Beside it,
//! reading the log's folder whole, parsing, hashing the tree, and judging. Rounds take turns.

#![allow(clippy::unwrap_used, reason = "an example that fails says so at once")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use agora::delivery::auditing;
use agora_log::{Class, Embedded, Log, Options, Whole};
use agora_realm::*;
use bytes::Bytes;

const ENTRIES: usize = 20_000;
const PERSONAS: u8 = 8;
const ROUNDS: usize = 11;

fn main() {
    let entries = record();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &entries);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let floor = floor(&entries, threads.get());
            let began = Instant::now();
            let whole = Whole::open(folder.path()).unwrap();
            let audited = auditing::audit(
                auditing::InFolder::new(whole, None),
                Audit::new(),
                threads,
                |_, _| {},
            );
            let report = audited.audit.end();
            assert!(report.is_well() && report.totals.entries == entries.len() as u64);
            floor / began.elapsed().as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "agora verify of {} entries / bare k256 times {threads} cores: agora / floor = {:.2} (middle half {:.2} to {:.2})",
        entries.len(),
        ratios[ROUNDS / 2],
        ratios[ROUNDS / 4],
        ratios[ROUNDS * 3 / 4],
    );
}

/// Seconds that the signatures alone take.
fn floor(entries: &[Bytes], threads: usize) -> f64 {
    let parsed: Vec<_> = entries
        .iter()
        .map(|stored| Sealed::reread(stored.clone()).unwrap())
        .collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in parsed.chunks(parsed.len().div_ceil(threads)) {
            scope.spawn(move || {
                let mut verifier = Verifier::new();
                for sealed in part {
                    let signature = sealed.stored().first_chunk().unwrap();
                    let signer = sealed.entry().signer;
                    assert!(verifier.verifies(&signer, &sealed.id().0, signature));
                }
            });
        }
    });
    began.elapsed().as_secs_f64()
}

/// Personas of one host say something each in turn, 256 bytes an entry.
fn record() -> Vec<Bytes> {
    let host = SigningKey::from_bytes([1; 32]).unwrap();
    let id = HostId::from(host.public());
    let channel = ChannelName::new("square").unwrap();
    let mut entries = Vec::new();
    let mut realm = None;
    let mut by_host = |realm, body| {
        let entry = Entry {
            realm,
            host: id,
            author: None,
            signer: host.public(),
            epoch: Epoch(1),
            time_ms: 0,
            grant: None,
            body,
        };
        let sealed = entry.seal(&host, &[0; 32]).unwrap();
        entries.push(sealed.stored().clone());
        sealed.id()
    };
    let key = |subject, public_key, genesis| {
        Body::Key(KeyBody {
            subject,
            public_key,
            component: None,
            started: false,
            genesis,
            origin: None,
        })
    };
    let genesis = Genesis {
        format: REALM_FORMAT,
        nonce: [2; 32],
        fencers: Vec::new(),
    };
    let first = by_host(
        realm,
        key(KeySubject::Host(id), host.public(), Some(genesis)),
    );
    realm = Some(RealmId::from(first));
    by_host(
        realm,
        Body::Channel(ChannelBody {
            name: channel.clone(),
            hops: 3,
            reactions: 256,
            carry: false,
        }),
    );
    let mut speakers = Vec::new();
    for n in 0..PERSONAS {
        let name = PersonaName::new(&format!("agent-{n}")).unwrap();
        let own = SigningKey::from_bytes([100 + n; 32]).unwrap();
        by_host(
            realm,
            key(KeySubject::Persona(name.clone()), own.public(), None),
        );
        let grant = by_host(
            realm,
            Body::Grant(GrantBody {
                persona: PersonaId::new(id, name.clone()),
                object: Object::Channel(channel.clone()),
                terms: Terms::ALL,
                parent: None,
                lasting: false,
            }),
        );
        speakers.push((name, own, GrantId::from(grant)));
    }
    for n in 0..ENTRIES {
        let (name, own, grant) = &speakers[n % speakers.len()];
        let message = Message {
            act: Act::Inform,
            parent: None,
            hops: 3,
            key: n as u64 + 1,
            content_type: String::new(),
            payload: vec![n as u8; 256].into(),
            time_ms: 0,
            owner: None,
            deadline_ms: 0,
        };
        let entry = Entry {
            realm,
            host: id,
            author: Some(name.clone()),
            signer: own.public(),
            epoch: Epoch(1),
            time_ms: 0,
            grant: Some(*grant),
            body: Body::Turn(TurnBody {
                channel: channel.clone(),
                through: Ordinal(0),
                origin: None,
                messages: vec![message],
                peer_epoch: Epoch(0),
            }),
        };
        entries.push(entry.seal(own, &[0; 32]).unwrap().stored().clone());
    }
    entries
}

fn write(folder: &Path, entries: &[Bytes]) {
    let (log, _) = Embedded::open(folder, Options::default()).unwrap();
    futures::executor::block_on(async {
        let appending = entries
            .iter()
            .map(|stored| log.append([0; 32], stored.clone(), Class::Ordinary));
        for appended in futures::future::join_all(appending).await {
            appended.unwrap();
        }
        log.close().await.unwrap();
    });
}
