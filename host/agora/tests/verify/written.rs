//! A record that two real hosts wrote together, from a seed: grants, attenuated ones, messages, answers, revocations, kills, starts,
//! new keys and fences, some of them at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agora::boot::host::Host;
use agora::door::control::Grantable;
use agora::persona::secret::Secret;
use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Draft, Terms};
use agora_log::{Embedded, Log, Options, Seq};
use agora_realm::checkpoint::Checkpoint;
use agora_realm::merkle::{self, Frontier};
use agora_realm::{Held, RealmId, Sealed, SigningKey};
use bytes::Bytes;

/// The next of a row of numbers that a seed gives.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// What two hosts wrote.
pub(crate) struct Written {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) entries: Vec<Bytes>,
}

impl Written {
    /// The data folder of the host that began the realm.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("first")
    }

    /// The folder of the log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn secret(&self, host: &str) -> Secret {
        Secret::open(&self.folder.path().join(host).join("secret")).unwrap()
    }

    /// The key of the host that began the realm.
    pub(crate) fn host_key(&self) -> SigningKey {
        self.secret("first").host_key(1)
    }
}

/// A checkpoint of the first places of a record.
pub(crate) fn checkpoint(entries: &[Bytes], key: &SigningKey) -> Held {
    let mut tree = Frontier::new();
    entries
        .iter()
        .for_each(|stored| tree.push(merkle::leaf(stored)));
    let realm = RealmId::from(Sealed::open(entries[0].clone()).unwrap().id());
    let (size, root) = (tree.size(), tree.root());
    Held {
        signed: Checkpoint { realm, size, root }.sign(key, &[3; 32]),
        whence: "a test's checkpoint".into(),
        elsewhere: true,
    }
}

/// What anything may take, on a busy machine too.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it comes in time")
}

/// All entries of a log.
pub(crate) async fn read_all(log: &Arc<dyn Log>) -> Vec<Bytes> {
    let mut entries = Vec::new();
    loop {
        let next = Seq(entries.len() as u64 + 1);
        let lot = log.read(next, 1024, 1 << 20).await.unwrap();
        if lot.is_empty() {
            return entries;
        }
        entries.extend(lot.into_iter().map(|(_, stored)| stored));
    }
}

pub(crate) struct Running {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) hosts: [Host; 2],
    pub(crate) agents: Vec<(usize, &'static str, Puppet)>,
}

/// Two hosts that share a log: ann and bob live on the first, far on the second.
pub(crate) async fn running() -> Running {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("log")).unwrap();
    let (log, _) = Embedded::open(&folder.path().join("log"), Options::default()).unwrap();
    let log: Arc<dyn Log> = Arc::new(log);
    let agents: Vec<_> = [(0, "ann"), (0, "bob"), (1, "far")]
        .into_iter()
        .map(|(host, name)| (host, name, Puppet::new()))
        .collect();
    let plan = |host: usize| {
        let mine = agents.iter().filter(|(at, ..)| *at == host);
        let plan = Plan::new().channel("square").channel("yard");
        mine.fold(plan, |plan, (_, name, puppet)| {
            plan.agent(
                name,
                puppet.native(),
                vec![all_of("square"), all_of("yard")],
            )
        })
    };
    let data = |host: &str| folder.path().join(host);
    let first = plan(0).open_shared(&data("first"), &log).await.unwrap();
    let Err(refused) = plan(1).open_shared(&data("second"), &log).await else {
        panic!("a stranger is refused");
    };
    let text = refused.to_string();
    let (_, key) = text.split_once("agora realm invite ").unwrap();
    first
        .control
        .invite(key.trim_end_matches(')'))
        .await
        .unwrap();
    let second = plan(1).open_shared(&data("second"), &log).await.unwrap();
    for (_, _, puppet) in &agents {
        within(puppet.until_life(1)).await;
    }
    Running {
        log,
        folder,
        hosts: [first, second],
        agents,
    }
}

/// So many steps of both hosts and their agents, as the seed draws them; then all is closed.
pub(crate) async fn written(seed: u64, steps: usize) -> Written {
    let Running {
        log,
        folder,
        hosts,
        agents,
    } = running().await;
    let mut draw = Draw(seed);
    let mut lives = [1; 3];
    let mut grafted = [false; 3];
    for step in 0..steps {
        let who = draw.below(agents.len());
        let (at, name, puppet) = &agents[who];
        let control = &hosts[*at].control;
        if !std::mem::replace(&mut grafted[who], true) {
            let _ = within(puppet.graft()).await;
            let _ = within(puppet.subscribe("square")).await;
        }
        let channel = ["square", "yard"][draw.below(2)];
        if step == steps / 2 {
            // From here on all is signed with other keys, some of it while something is on its way.
            let speaking = puppet.speak(channel, vec![Draft::inform("meanwhile")]);
            let rotating = async {
                // What has said nothing has no key to rotate.
                let _ = control.rotate(name).await;
                for host in &hosts {
                    host.control.rotate_host().await.unwrap();
                }
            };
            within(futures::future::join(speaking, rotating)).await.1
        }
        match draw.below(16) {
            0..=6 => {
                let drafts = (0..=draw.below(3)).map(|n| Draft::inform(format!("{step} {n}")));
                let _ = within(puppet.speak(channel, drafts.collect())).await;
            }
            7 | 8 => {
                // Of what was said by another, if anything was.
                let heard = within(puppet.history("square", 1, 64)).await;
                if let Ok(Ok((messages, _))) = heard
                    && let Some(message) = messages.last()
                {
                    let draft = Draft::inform(format!("{step} answered"));
                    let _ = within(puppet.reply("square", message.clone(), draft)).await;
                }
            }
            9 => {
                let made = format!("narrow-{step}");
                if let Ok(Ok(())) = within(puppet.attenuate(channel, Terms::all(), &made)).await {
                    let drafts = vec![Draft::inform("narrowly")];
                    let _ = within(puppet.speak(&made, drafts)).await;
                    if draw.below(2) == 0 {
                        let _ = within(puppet.cut(&made, "enough")).await;
                    }
                }
            }
            10 => {
                let persona = control.persona_named(name).unwrap();
                if let Some(grant) = control.grants_for(&persona).first() {
                    let grant = grant.id.to_string();
                    within(control.revoke(&grant, "a test", "test"))
                        .await
                        .unwrap();
                    grafted[who] = false;
                }
            }
            11 => {
                let what = Grantable::Channel(channel.into(), agora_realm::Terms::ALL);
                let _ = within(control.grant(name, what)).await;
                grafted[who] = false;
            }
            12 => {
                within(control.kill(name, "a test", "test")).await.unwrap();
                within(control.start(name)).await.unwrap();
                lives[who] += 1;
                within(puppet.until_life(lives[who])).await;
                grafted[who] = false;
            }
            13 => {
                within(control.bump("a test", false, "test")).await;
                grafted = [false; 3];
            }
            _ => {
                // Somebody speaks while the epoch ends, at the other host if it can be.
                let drafts = (0..8).map(|n| vec![Draft::inform(format!("{step} late {n}"))]);
                let speaking: Vec<_> = drafts.map(|draft| puppet.speak(channel, draft)).collect();
                let other = &hosts[1 - at].control;
                let bumping = other.bump("at once", false, "test");
                let speaking = futures::future::join_all(speaking);
                within(futures::future::join(bumping, speaking)).await;
                grafted = [false; 3];
            }
        }
    }
    for host in hosts {
        host.close().await;
    }
    let entries = read_all(&log).await;
    log.close().await.unwrap();
    Written { folder, entries }
}
