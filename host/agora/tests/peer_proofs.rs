//! What hosts hold of each other's logs: checkpoints that are exchanged over a real link, and what a peer that lies is found by.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agora::boot::host::Host;
use agora::boot::manifest::GrantSpec;
use agora::delivery::checkpoints::Kept;
use agora::limits;
use agora::peer::exchange::{Exchanged, exchange, witness};
use agora::peer::mirror::{Mirror, MirrorError, Mirrored, Said, examine};
use agora::peer::mirroring::pull;
use agora::peer::past::Past;
use agora::peer::peers::Peer;
use agora::peer::spec::{PeerSpec, Peering};
use agora::peer::told::{Known, read_hello, write_hello};
use agora::peer::vat::Vat;
use agora::testbed::{Plan, Puppet, all_of, peer_id, under};
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{link, peer_channel};
use agora_dial::{Dialer, Inbound, KnownPeer, Lane, Options, PeerId, PeerState, Standing};
use agora_guest::Draft;
use agora_realm::checkpoint::{Checkpoint, Extension, Signed};
use agora_realm::evidence::Exhibit;
use agora_realm::merkle::Tree;
use agora_realm::{ChannelName, HostId, Ordinal, PublicKey, RealmId, Rights, SigningKey, Terms};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: not within a minute"),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn agora(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
    command.args(args).env_remove("AGORA_LOG").output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn release() -> ChannelName {
    ChannelName::new("release").unwrap()
}

/// The host that asks: it knows a peer `bravo`, and keeps no connections of its own, so that a test decides who answers.
async fn alpha(data: &Path) -> Host {
    let mut peering = Peering {
        offline: true,
        ..Peering::default()
    };
    let spec = PeerSpec {
        mirror: [release()].into(),
        ..PeerSpec::default()
    };
    peering.peers.insert("bravo".into(), spec);
    let plan = Plan::new().channel("square").peering(peering);
    plan.open(data).await.unwrap()
}

fn bravo_of(alpha: &Host) -> Arc<Peer> {
    alpha.control.peers().named("bravo").unwrap().clone()
}

/// The host that is asked: it knows `alpha`, and somebody speaks there.
struct Bravo {
    data: PathBuf,
    host: Host,
    worker: Puppet,
}

impl Bravo {
    async fn open(data: &Path, alpha: PeerId) -> Self {
        Self::granting(data, alpha, all_of("release"), true).await
    }

    async fn granting(data: &Path, alpha: PeerId, grant: GrantSpec, may_mirror: bool) -> Self {
        let mut peering = Peering {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            ..Peering::default()
        };
        let spec = PeerSpec {
            id: Some(alpha),
            grants: vec![grant],
            may_mirror,
            ..PeerSpec::default()
        };
        peering.peers.insert("alpha".into(), spec);
        let worker = Puppet::new();
        let plan = Plan::new()
            .channel("release")
            .channel("other")
            .agent(
                "worker",
                worker.native(),
                vec![all_of("release"), all_of("other")],
            )
            .peering(peering);
        let host = plan.open(data).await.unwrap();
        worker.until_life(1).await;
        worker.graft().await.unwrap().unwrap();
        Self {
            data: data.to_owned(),
            host,
            worker,
        }
    }

    async fn say(&self, channel: &str, words: &str) {
        let drafts = vec![Draft::inform(words.to_owned())];
        let mut outcomes = self.worker.speak(channel, drafts).await.unwrap().unwrap();
        outcomes.remove(0).unwrap();
    }
}

/// A connection as alpha's to bravo, on the control lane, greeted.
struct Call {
    link: link::Client,
    known: Known,
    dialer: Dialer,
    bravo: PeerId,
    _vat: Vat,
    _inbound: Inbound,
}

impl Call {
    async fn open(alpha: &Host, bravo: &Bravo) -> Self {
        let seed = alpha.control.peer_seed();
        let options = Options::new(*seed, |_: &PeerId| Standing::Known);
        let (dialer, inbound) = Dialer::start(options).await.unwrap();
        let peer = peer_id(&bravo.data);
        let own = bravo.host.control.peers().dialer().unwrap();
        let addresses = own.listening().to_vec();
        assert!(dialer.set_peer(KnownPeer { peer, addresses }).await);
        let connected = dialer.until(peer, |now| matches!(now.state, PeerState::Connected));
        soon("a connection", connected).await.unwrap();
        let stream = dialer.open(peer, Lane::Control).await.unwrap();
        let (link, vat): (link::Client, Vat) = Vat::connect(stream, limits::PEER_CONTROL_WIRE);
        let mut request = link.hello_request();
        let hello = request.get().init_hello();
        write_hello(&alpha.control, &dialer.peer_id(), &bravo_of(alpha), hello).unwrap();
        let answer = soon("a greeting", request.send().promise).await.unwrap();
        let hello = answer.get().unwrap().get_hello().unwrap();
        let known = read_hello(&bravo_of(alpha), &peer, hello).unwrap();
        Self {
            link,
            known,
            dialer,
            bravo: peer,
            _vat: vat,
            _inbound: inbound,
        }
    }

    /// A channel that bravo granted, on the other lane.
    async fn channel(&self, name: &str) -> (peer_channel::Client, Vat) {
        let stream = self.dialer.open(self.bravo, Lane::Vat).await.unwrap();
        let (door, vat): (membrane::Client, Vat) = Vat::connect(stream, limits::LENDER_WIRE);
        let grafted = soon("a graft", door.graft_request().send().promise).await;
        let grafted = grafted.unwrap();
        let grants = grafted.get().unwrap().get_grants().unwrap();
        let granted = grants
            .iter()
            .find(|grant| grant.get_name().unwrap().to_str().unwrap() == name);
        let channel = granted
            .unwrap()
            .get_capability()
            .get_as_capability()
            .unwrap();
        (channel, vat)
    }

    /// Asks until the checkpoint that is held covers all of bravo's log.
    async fn until_covered(&self, alpha: &Host, bravo: &Bravo) -> Signed {
        let asking = async {
            loop {
                match exchange(&self.link, &bravo_of(alpha), &self.known, &alpha.control).await {
                    Ok(Exchanged::Held(signed)) => {
                        if signed.checkpoint().size == bravo.host.control.record().tree().size() {
                            return *signed;
                        }
                    }
                    Ok(other) => panic!("{other:?}"),
                    // Busy, since it was asked often, or there is none yet.
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        soon("a checkpoint of all", asking).await
    }
}

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

#[test]
fn a_peers_checkpoint_is_held_extends_the_last_and_is_signed_as_a_witness() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let alpha = alpha(&a).await;
        let bravo = Bravo::open(&b, peer_id(&a)).await;
        let call = Call::open(&alpha, &bravo).await;
        bravo.say("release", "one").await;
        let first = call.until_covered(&alpha, &bravo).await;
        for n in 0..40 {
            bravo.say("release", &format!("number {n}")).await;
        }
        let second = call.until_covered(&alpha, &bravo).await;
        assert!(second.checkpoint().size >= first.checkpoint().size + 40);
        assert!(second.is_signed_by(&call.known.key));
        let past = Past::of(&a, "bravo");
        assert_eq!(past.checkpoint().unwrap(), Some(second.clone()));
        assert!(past.evidence().unwrap().is_empty());
        let holding = bravo_of(&alpha).holding();
        assert_eq!(holding.size, second.checkpoint().size);
        assert_eq!(holding.alarm, None);

        // Bravo keeps what alpha signed of it, and nothing else.
        witness(
            &alpha.control,
            &call.link,
            second.clone(),
            &second.hosts()[0],
        )
        .await
        .unwrap();
        let cosigned = Kept::of(&b)
            .covering(second.checkpoint().size)
            .unwrap()
            .unwrap();
        let key = PublicKey(alpha.control.host_id().0);
        assert_eq!(cosigned.witnesses()[0].witness, key);
        let bring = async |signed: &Signed| {
            let mut request = call.link.witnessed_request();
            request.get().set_cosigned(signed.to_string().as_bytes());
            request.send().promise.await.map(drop)
        };
        bring(&second).await.unwrap_err();
        let mut foreign = second.clone();
        let host = foreign.hosts()[0];
        foreign.cosign(&host, &signing(9), 1, &[0; 32]).unwrap();
        bring(&foreign).await.unwrap_err();
        let other = Checkpoint {
            size: second.checkpoint().size + 1,
            ..*second.checkpoint()
        };
        let mut other = other.sign(&signing(9), &[0; 32]);
        let stranger = signing(9).public();
        alpha.control.cosign(&mut other, &stranger).unwrap();
        bring(&other).await.unwrap_err();
        let after = Kept::of(&b)
            .covering(second.checkpoint().size)
            .unwrap()
            .unwrap();
        assert_eq!(after.witnesses(), cosigned.witnesses());

        // Whoever asks on and on is told to wait.
        let mut refused = false;
        for _ in 0..=4 * limits::PEER_CHECKPOINTS_LOT {
            refused |= call.link.checkpoint_request().send().promise.await.is_err();
        }
        assert!(refused);

        // What is held elsewhere vouches for the record.
        assert_eq!(call.bravo, peer_id(&b));
        call.dialer.shutdown().await;
        bravo.host.close().await;
        alpha.close().await;
        let held = past.folder().join("checkpoint");
        let verified = agora(&[
            "verify",
            b.to_str().unwrap(),
            "--checkpoint",
            held.to_str().unwrap(),
        ]);
        assert!(verified.status.success(), "{}", text(&verified));
        assert!(
            text(&verified).contains("agrees; signed by"),
            "{}",
            text(&verified)
        );
    });
}

#[test]
fn a_host_that_goes_on_from_a_copy_of_its_folder_is_found_by_its_peer() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (
            dir.path().join("a"),
            dir.path().join("b"),
            dir.path().join("c"),
        );
        let alpha = alpha(&a).await;
        let bravo = Bravo::open(&b, peer_id(&a)).await;
        bravo.say("release", "common").await;
        bravo.host.close().await;
        copy(&b, &c);

        let bravo = Bravo::open(&b, peer_id(&a)).await;
        bravo.say("release", "said").await;
        let call = Call::open(&alpha, &bravo).await;
        let honest = call.until_covered(&alpha, &bravo).await;
        call.dialer.shutdown().await;
        bravo.host.close().await;

        // The copy says something else in the same place, and goes on.
        let bravo = Bravo::open(&c, peer_id(&a)).await;
        for n in 0..20 {
            bravo.say("release", &format!("never said {n}")).await;
        }
        let longer = async {
            let size = || Kept::of(&c).latest().unwrap().unwrap().checkpoint().size;
            while size() <= honest.checkpoint().size {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        soon("a longer checkpoint", longer).await;
        let call = Call::open(&alpha, &bravo).await;
        let asking = async {
            loop {
                match exchange(&call.link, &bravo_of(&alpha), &call.known, &alpha.control).await {
                    Ok(Exchanged::Changed) => return,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                }
            }
        };
        soon("an answer", asking).await;
        let past = Past::of(&a, "bravo");
        assert_eq!(past.checkpoint().unwrap(), Some(honest.clone()));
        let evidence = past.evidence().unwrap();
        assert_eq!(evidence.len(), 1);
        let both: Vec<_> = evidence[0].checkpoints().collect();
        assert_eq!(both[0], honest);
        assert!(
            both.iter()
                .all(|signed| signed.is_signed_by(&call.known.key))
        );
        call.dialer.shutdown().await;
        bravo.host.close().await;
        alpha.close().await;

        // An auditor of either record sees that it is not the only one.
        let file = past.folder().join("evidence");
        for data in [&b, &c] {
            let verified = agora(&[
                "verify",
                data.to_str().unwrap(),
                "--checkpoint",
                file.to_str().unwrap(),
            ]);
            assert_eq!(verified.status.code(), Some(1), "{}", text(&verified));
            assert!(text(&verified).contains("DISAGREES"), "{}", text(&verified));
        }
    });
}

// -- Peers that lie

fn signing(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

const REALM: RealmId = RealmId([7; 32]);

fn tree(size: u64, salt: &str) -> Tree {
    let mut tree = Tree::new();
    for n in 0..size {
        // The first three are the same in all.
        let salt = if n < 3 { "" } else { salt };
        tree.push(agora_realm::merkle::leaf(format!("{salt}{n}").as_bytes()));
    }
    tree
}

fn extension(tree: &Tree, old: u64, size: u64, key: &SigningKey) -> Extension {
    let root = tree.root(size).unwrap();
    let realm = REALM;
    Extension {
        old,
        proof: tree.consistency(old, size).unwrap_or_default(),
        signed: Checkpoint { realm, size, root }.sign(key, &[0; 32]),
    }
}

/// A checkpoint's text, and the hashes of a proof.
type Answer = (Vec<u8>, Vec<Vec<u8>>);

/// Answers whatever a test says.
#[derive(Clone, Default)]
struct Liar(Rc<RefCell<Option<Answer>>>);

impl Liar {
    fn says(&self, extension: &Extension) {
        let proof = extension.proof.iter().map(|hash| hash.to_vec()).collect();
        let checkpoint = extension.signed.to_string().into_bytes();
        *self.0.borrow_mut() = Some((checkpoint, proof));
    }
}

impl link::Server for Liar {
    async fn checkpoint(
        self: Rc<Self>,
        _params: link::CheckpointParams,
        mut results: link::CheckpointResults,
    ) -> Result<(), capnp::Error> {
        let (checkpoint, proof) = self.0.borrow().clone().unwrap();
        results.get().set_checkpoint(&checkpoint);
        let mut list = results.get().init_proof(proof.len() as u32);
        for (i, hash) in proof.iter().enumerate() {
            list.set(i as u32, hash);
        }
        Ok(())
    }
}

/// Alpha, and a peer that says what a test wants.
struct Trial {
    data: PathBuf,
    alpha: Host,
    liar: Liar,
    link: link::Client,
    known: Known,
}

impl Trial {
    async fn open(data: &Path) -> Self {
        let liar = Liar::default();
        Self {
            data: data.to_owned(),
            alpha: alpha(data).await,
            link: capnp_rpc::new_client(liar.clone()),
            liar,
            known: Known {
                realm: REALM,
                host: HostId([1; 32]),
                key: signing(1).public(),
                calls_us: "alpha".into(),
            },
        }
    }

    async fn ask(&self, given: &Extension) -> Exchanged {
        self.liar.says(given);
        self.asked().await.unwrap()
    }

    async fn asked(&self) -> Result<Exchanged, capnp::Error> {
        let peer = bravo_of(&self.alpha);
        exchange(&self.link, &peer, &self.known, &self.alpha.control).await
    }

    fn past(&self) -> Past {
        Past::of(&self.data, "bravo")
    }

    fn alarm(&self) -> Option<Arc<str>> {
        bravo_of(&self.alpha).holding().alarm
    }
}

#[test]
fn a_peer_that_forks_goes_back_or_proves_nothing_is_found_and_the_evidence_stands_until_accepted() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a");
        let (truth, lie, key) = (tree(40, "true "), tree(60, "false "), signing(1));
        let trial = Trial::open(&data).await;
        let first = extension(&truth, 0, 10, &key);
        assert_eq!(
            trial.ask(&first).await,
            Exchanged::Held(Box::new(first.signed.clone()))
        );
        let held = extension(&truth, 10, 30, &key);
        assert_eq!(
            trial.ask(&held).await,
            Exchanged::Held(Box::new(held.signed.clone()))
        );
        assert_eq!(trial.alarm(), None);
        let lies = [
            // It went back.
            extension(&truth, 30, 29, &key),
            // Another log of the same length, and a longer one, whose own proof is sound.
            extension(&lie, 30, 30, &key),
            extension(&lie, 30, 50, &key),
            // What may be true, with no proof, or another one's.
            Extension {
                proof: Vec::new(),
                ..extension(&truth, 30, 40, &key)
            },
        ];
        for (n, given) in lies.iter().enumerate() {
            assert_eq!(trial.ask(given).await, Exchanged::Changed, "{n}");
            assert_eq!(trial.past().evidence().unwrap().len(), n + 1);
            // Again, it is nothing new.
            assert_eq!(trial.ask(given).await, Exchanged::Changed, "{n}");
            let evidence = trial.past().evidence().unwrap();
            assert_eq!(evidence.len(), n + 1);
            let both: Vec<_> = evidence[n].checkpoints().collect();
            assert_eq!(both, [held.signed.clone(), given.signed.clone()]);
            assert_eq!(
                trial.past().checkpoint().unwrap(),
                Some(held.signed.clone())
            );
            assert!(trial.alarm().unwrap().contains("bravo CHANGED ITS PAST"));
        }
        // A good one doesn't end the alarm, and what is held goes on.
        let good = extension(&truth, 30, 35, &key);
        assert_eq!(
            trial.ask(&good).await,
            Exchanged::Held(Box::new(good.signed.clone()))
        );
        assert!(trial.alarm().is_some());
        trial.alpha.close().await;

        // Nor does a restart.
        let doctor = agora(&["doctor", "--data", data.to_str().unwrap()]);
        assert!(!doctor.status.success());
        assert!(
            text(&doctor).contains("bravo CHANGED ITS PAST"),
            "{}",
            text(&doctor)
        );
        let trial = Trial::open(&data).await;
        assert!(trial.alarm().is_some());
        let accept = |peer: &str| {
            let data = data.to_str().unwrap();
            agora(&[
                "doctor",
                "--data",
                data,
                "--accept-peer",
                peer,
                "they restored a copy",
            ])
        };
        assert!(!accept("bravissimo").status.success());
        assert!(accept("bravo").status.success());
        let other = extension(&lie, 0, 50, &key);
        assert_eq!(
            trial.ask(&other).await,
            Exchanged::Held(Box::new(other.signed.clone()))
        );
        assert_eq!(trial.alarm(), None);
        let accepted = std::fs::read_to_string(trial.past().folder().join("accepted")).unwrap();
        assert!(accepted.contains("they restored a copy"));
        trial.alpha.close().await;
    });
}

#[test]
fn checkpoints_that_are_not_the_peers_own_are_never_held_and_in_the_end_an_alarm() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial::open(&dir.path().join("a")).await;
        let (truth, key) = (tree(40, ""), signing(1));
        let held = extension(&truth, 0, 10, &key);
        trial.ask(&held).await;
        // Another's key, once or twice: it may have been changed just now.
        let strange = extension(&truth, 10, 20, &signing(2));
        for _ in 1..limits::PEER_FOREIGN_MAX {
            assert_eq!(trial.ask(&strange).await, Exchanged::Foreign);
            assert_eq!(trial.alarm(), None);
        }
        let good = extension(&truth, 10, 15, &key);
        assert!(matches!(trial.ask(&good).await, Exchanged::Held(_)));
        // Another realm's log.
        let mut elsewhere = extension(&truth, 15, 20, &key);
        let checkpoint = Checkpoint {
            realm: RealmId([8; 32]),
            ..*elsewhere.signed.checkpoint()
        };
        elsewhere.signed = checkpoint.sign(&key, &[0; 32]);
        for n in 1..=limits::PEER_FOREIGN_MAX {
            assert_eq!(trial.ask(&elsewhere).await, Exchanged::Foreign);
            assert_eq!(trial.alarm().is_some(), n == limits::PEER_FOREIGN_MAX);
        }
        assert_eq!(trial.past().checkpoint().unwrap(), Some(good.signed));
        assert!(trial.alarm().unwrap().contains("NOT ITS OWN"));
        trial.alpha.close().await;
    });
}

#[test]
fn what_is_no_checkpoint_is_refused_and_says_nothing_against_anybody() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial::open(&dir.path().join("a")).await;
        let (truth, key) = (tree(40, ""), signing(1));
        let held = extension(&truth, 0, 10, &key);
        trial.ask(&held).await;
        let good = extension(&truth, 10, 20, &key);
        let whole = good.signed.to_string().into_bytes();
        let proof: Vec<_> = good.proof.iter().map(|hash| hash.to_vec()).collect();
        let mut hostile = vec![
            (Vec::new(), proof.clone()),
            (vec![0xff; 100], proof.clone()),
            (vec![b'a'; 1 << 20], proof.clone()),
            (whole.clone(), vec![vec![0; 31]]),
            (whole.clone(), vec![Vec::new(); 1000]),
        ];
        hostile.extend((0..whole.len()).map(|end| (whole[..end].to_vec(), proof.clone())));
        for given in hostile {
            *trial.liar.0.borrow_mut() = Some(given);
            trial.asked().await.unwrap_err();
        }
        assert_eq!(trial.past().checkpoint().unwrap(), Some(held.signed));
        assert_eq!(trial.alarm(), None);
        assert!(matches!(trial.ask(&good).await, Exchanged::Held(_)));

        // A file that is damaged is not taken for none.
        std::fs::write(trial.past().folder().join("checkpoint"), "agora/").unwrap();
        trial.asked().await.unwrap_err();
        trial.alpha.close().await;
    });
}

// -- Copies

fn texts(kept: &[agora::delivery::record::Kept]) -> Vec<String> {
    let text = |kept: &agora::delivery::record::Kept| {
        String::from_utf8(kept.message().payload.to_vec()).unwrap()
    };
    kept.iter().map(text).collect()
}

fn all_in(mirror: &Mirror) -> Vec<String> {
    texts(&mirror.read(1, usize::MAX, usize::MAX).unwrap())
}

#[test]
fn a_copy_of_a_channel_is_proved_and_read_while_the_peer_is_gone() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let asking = alpha(&a).await;
        let bravo = Bravo::open(&b, peer_id(&a)).await;
        let mut said = Vec::new();
        for n in 0..150 {
            let text = format!("number {n}");
            bravo.say("release", &text).await;
            bravo.say("other", "is nobody else's business").await;
            said.push(text);
        }
        let call = Call::open(&asking, &bravo).await;
        let (channel, _vat) = call.channel("release").await;
        let peer = bravo_of(&asking);
        let mirror = peer.mirror(&release()).unwrap().clone();
        // Without a checkpoint that is held nothing is proved, and nothing copied.
        assert_eq!(
            pull(&asking.control, &peer, &channel, &mirror)
                .await
                .unwrap(),
            0
        );
        call.until_covered(&asking, &bravo).await;
        assert_eq!(
            pull(&asking.control, &peer, &channel, &mirror)
                .await
                .unwrap(),
            150
        );
        assert_eq!(
            pull(&asking.control, &peer, &channel, &mirror)
                .await
                .unwrap(),
            0
        );
        bravo.say("release", "late").await;
        said.push("late".into());
        call.until_covered(&asking, &bravo).await;
        assert_eq!(
            pull(&asking.control, &peer, &channel, &mirror)
                .await
                .unwrap(),
            1
        );
        let there = bravo.host.control.record().clone();
        let there = there
            .messages(&release(), Ordinal(1), 500, 1 << 20)
            .await
            .unwrap();

        call.dialer.shutdown().await;
        bravo.host.close().await;
        assert_eq!(all_in(&mirror), said);
        assert_eq!(mirror.span(), Some((1, 151)));
        assert_eq!(
            texts(&mirror.read(140, 3, usize::MAX).unwrap()),
            said[139..142]
        );
        // As bravo had it, to the last detail.
        for (here, there) in mirror.read(1, 500, usize::MAX).unwrap().iter().zip(&there) {
            assert_eq!((here.ordinal, here.place), (there.ordinal, there.place));
            assert_eq!(here.sealed, there.sealed);
        }
        asking.close().await;

        let data = a.to_str().unwrap();
        let listed = agora(&["mirror", "--data", data]);
        assert!(text(&listed).contains("bravo/release  151 messages, 1 to 151"));
        let shown = agora(&["mirror", "bravo/release", "--from", "150", "--data", data]);
        assert!(shown.status.success(), "{}", text(&shown));
        assert_eq!(text(&shown).lines().count(), 2, "{}", text(&shown));
        assert!(text(&shown).contains("worker") && text(&shown).contains("late"));
        let verified = agora(&["mirror", "bravo/release", "--verify", "--data", data]);
        assert!(verified.status.success(), "{}", text(&verified));
        assert!(
            text(&verified).contains("verified    151 messages"),
            "{}",
            text(&verified)
        );
        assert!(
            !agora(&["mirror", "bravo/other", "--data", data])
                .status
                .success()
        );

        // The next start goes on from it.
        let asking = alpha(&a).await;
        assert_eq!(all_in(bravo_of(&asking).mirror(&release()).unwrap()), said);
        asking.close().await;
    });
}

#[test]
fn only_who_may_mirror_is_given_entries_and_only_within_its_reach() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a");
        let asking = alpha(&a).await;
        let id = peer_id(&a);
        let entries = async |bravo: &Bravo, size: u64| {
            let call = Call::open(&asking, bravo).await;
            let (channel, _vat) = call.channel("release").await;
            let mut request = channel.entries_request();
            request.get().set_from(1);
            request.get().set_count(1000);
            request.get().set_size(size);
            let answer = soon("an answer", request.send().promise).await;
            let ordinals = answer.map(|answer| {
                let places = answer.get().unwrap().get_places().unwrap();
                places
                    .iter()
                    .map(|place| place.get_ordinal())
                    .collect::<Vec<_>>()
            });
            call.dialer.shutdown().await;
            ordinals
        };
        let size = |bravo: &Bravo| bravo.host.control.record().tree().size();

        let bravo = Bravo::granting(&dir.path().join("b"), id, all_of("release"), false).await;
        bravo.say("release", "one").await;
        entries(&bravo, size(&bravo)).await.unwrap_err();
        bravo.host.close().await;

        let write = Terms {
            rights: Rights::WRITE,
            ..Terms::ALL
        };
        let grant = under("release", write);
        let bravo = Bravo::granting(&dir.path().join("c"), id, grant, true).await;
        bravo.say("release", "one").await;
        entries(&bravo, size(&bravo)).await.unwrap_err();
        bravo.host.close().await;

        // What was said before the grant is beyond its reach.
        let data = dir.path().join("d");
        let bravo = Bravo::granting(&data, id, all_of("other"), true).await;
        bravo.say("release", "before").await;
        bravo.say("release", "before").await;
        bravo.host.close().await;
        let late = Terms {
            history: 0,
            ..Terms::ALL
        };
        let bravo = Bravo::granting(&data, id, under("release", late), true).await;
        bravo.say("release", "after").await;
        assert_eq!(entries(&bravo, size(&bravo)).await.unwrap(), [3]);
        // As far as the asked size covers it, and no log is longer than it is.
        assert_eq!(entries(&bravo, 1).await.unwrap(), [0; 0]);
        entries(&bravo, size(&bravo) + 1).await.unwrap_err();
        bravo.host.close().await;
        asking.close().await;
    });
}

/// What a host says, as a peer would be given it, proved by a checkpoint that a test signs.
async fn given(bravo: &Bravo) -> (Signed, Vec<Mirrored>) {
    let record = bravo.host.control.record();
    let (size, root) = record.tree().now();
    let realm = record.state().realm().unwrap();
    let signed = Checkpoint { realm, size, root }.sign(&signing(1), &[0; 32]);
    let mut all = Vec::<Mirrored>::new();
    for kept in record
        .messages(&release(), Ordinal(1), 1000, 1 << 20)
        .await
        .unwrap()
    {
        let said = Said {
            ordinal: kept.ordinal.0,
            index: kept.place.index,
            thread: kept.place.thread,
        };
        let seq = kept.place.seq;
        match all.last_mut() {
            Some(last) if last.exhibit.seq == seq => last.messages.push(said),
            _ => all.push(Mirrored {
                exhibit: Exhibit {
                    seq,
                    stored: kept.sealed.stored().clone(),
                    path: record.tree().inclusion(seq, size).await.unwrap(),
                },
                messages: vec![said],
            }),
        }
    }
    (signed, all)
}

#[test]
fn a_copy_takes_nothing_that_is_not_proved_survives_a_crash_anywhere_and_drops_its_oldest() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let asking = alpha(&dir.path().join("a")).await;
        let bravo = Bravo::open(&dir.path().join("b"), peer_id(&dir.path().join("a"))).await;
        for n in 0..20 {
            let drafts = (0..3).map(|i| Draft::inform(format!("{n}.{i}")));
            let spoken = bravo.worker.speak("release", drafts.collect()).await;
            spoken
                .unwrap()
                .unwrap()
                .into_iter()
                .for_each(|one| drop(one.unwrap()));
            bravo.say("other", "elsewhere").await;
        }
        let (signed, all) = given(&bravo).await;
        let words = |given: &[Mirrored]| given.iter().map(|one| one.messages.len()).sum::<usize>();
        assert_eq!(words(&all), 60);
        let held = dir.path().join("held");
        let keys = [signing(1).public()];

        // Lies.
        let mirror = Mirror::open(&held, release()).unwrap();
        let lie = |change: &dyn Fn(&mut Vec<Mirrored>)| {
            let mut given = all.clone();
            change(&mut given);
            let refused = mirror.take(&signed, &given);
            assert!(
                matches!(refused, Err(MirrorError::NotProved { .. })),
                "{refused:?}"
            );
            assert_eq!(mirror.next(), 1);
        };
        lie(&|given| {
            let mut stored = given[5].exhibit.stored.to_vec();
            *stored.last_mut().unwrap() ^= 1;
            given[5].exhibit.stored = stored.into();
        });
        lie(&|given| given[5].exhibit.path[0][0] ^= 1);
        lie(&|given| given[5].exhibit.path.truncate(1));
        lie(&|given| given[5].exhibit.seq += 1);
        lie(&|given| given[0].exhibit.seq = 0);
        lie(&|given| given[5].messages[0].index = 60);
        lie(&|given| given.swap(5, 6));
        lie(&|given| given[6] = given[5].clone());
        lie(&|given| given[5].messages.reverse());
        lie(&|given| given[5].messages[0].ordinal = 1);
        let elsewhere = Mirror::open(&held, ChannelName::new("other").unwrap()).unwrap();
        assert!(elsewhere.take(&signed, &all).is_err());
        let other = Checkpoint {
            realm: REALM,
            ..*signed.checkpoint()
        };
        assert!(
            mirror
                .take(&other.sign(&signing(1), &[0; 32]), &all)
                .is_err()
        );
        drop(mirror);

        // A crash at any byte leaves a beginning, that goes on.
        let file = held.join("channels/release/newer");
        let mirror = Mirror::open(&held, release()).unwrap();
        mirror.take(&signed, &all[..2]).unwrap();
        let before = std::fs::metadata(&file).unwrap().len();
        mirror.take(&signed, &all[2..4]).unwrap();
        let whole = std::fs::read(&file).unwrap();
        drop(mirror);
        for length in (0..whole.len())
            .step_by(7)
            .chain([before as usize - 1, whole.len()])
        {
            std::fs::write(&file, &whole[..length]).unwrap();
            let mirror = Mirror::open(&held, release()).unwrap();
            let next = mirror.next();
            assert_eq!(all_in(&mirror).len() as u64, next - 1);
            let rest: Vec<_> = all
                .iter()
                .map(|one| {
                    let mut one = one.clone();
                    one.messages.retain(|said| said.ordinal >= next);
                    one
                })
                .filter(|one| !one.messages.is_empty())
                .collect();
            mirror.take(&signed, &rest).unwrap();
            assert_eq!(all_in(&mirror).len(), 60);
            let copied = examine(&held, &release(), &keys, |_| {}).unwrap();
            assert_eq!((copied.messages, &copied.wrong[..]), (60, &[][..]));
        }
        // What others wrote over is found by whoever verifies.
        let strange = examine(&held, &release(), &[signing(2).public()], |_| {}).unwrap();
        assert_eq!(strange.wrong.len(), 1, "{:?}", strange.wrong);

        // A small copy has the newest, proved as before.
        let held = dir.path().join("small");
        let mirror = Mirror::open_with(&held, release(), 6 << 10).unwrap();
        for one in all.chunks(1) {
            mirror.take(&signed, one).unwrap();
        }
        let (first, last) = mirror.span().unwrap();
        assert!(first > 1 && first < 50 && last == 60, "{first} {last}");
        let newest = all_in(&mirror);
        assert_eq!(newest.len() as u64, last - first + 1);
        assert_eq!(newest.last().unwrap(), "19.2");
        drop(mirror);
        let mirror = Mirror::open_with(&held, release(), 6 << 10).unwrap();
        assert_eq!(
            (mirror.span(), all_in(&mirror)),
            (Some((first, last)), newest)
        );
        let copied = examine(&held, &release(), &keys, |_| {}).unwrap();
        assert_eq!(
            (copied.span, &copied.wrong[..]),
            (Some((first, last)), &[][..])
        );
        let folder = held.join("channels/release");
        let bytes: u64 = ["older", "newer"]
            .map(|name| std::fs::metadata(folder.join(name)).unwrap().len())
            .iter()
            .sum();
        assert!(bytes < 9 << 10, "{bytes}");
        bravo.host.close().await;
        asking.close().await;
    });
}
