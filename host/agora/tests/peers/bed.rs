//! Two hosts, alpha and bravo. Bravo has the channel `release`, which it grants to alpha; alpha's agent `synth` is granted `bravo/release`,
//! and bravo's agent `keeper` reads and writes it at home.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agora::boot::data::DataFolder;
use agora::boot::host::Host;
use agora::boot::manifest::GrantSpec;
use agora::peer::borrowed::LinkState;
use agora::peer::spec::{PeerSpec, Peering};
use agora::persona::identity::Identity;
use agora::testbed::{Plan, Puppet, all_of, peer_id};
use agora_dial::{Multiaddr, PeerId};
use agora_guest::{Draft, Message, Receipt, Refusal};
use agora_realm::Terms;

pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";

/// Waits, with a bound far above what it takes.
#[track_caller]
pub(crate) fn within<T>(what: &str, work: impl Future<Output = T>) -> impl Future<Output = T> {
    let what = what.to_owned();
    async move {
        match tokio::time::timeout(Duration::from_secs(60), work).await {
            Ok(done) => done,
            Err(_) => panic!("it doesn't come to this: {what}"),
        }
    }
}

/// Asks again until it is so.
pub(crate) async fn until<T>(what: &str, mut is: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = is().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, asking).await
}

/// One host: its folder, what it runs, and whether it does.
pub(crate) struct Site {
    pub(crate) name: &'static str,
    folder: tempfile::TempDir,
    id: PeerId,
    listen: Vec<Multiaddr>,
    peers: BTreeMap<String, PeerSpec>,
    plan: Plan,
    pub(crate) host: Option<Host>,
}

impl Site {
    pub(crate) fn new(name: &'static str, plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        drop(DataFolder::open(&data).unwrap());
        Self {
            name,
            id: peer_id(&data),
            folder,
            listen: Vec::new(),
            peers: BTreeMap::new(),
            plan,
            host: None,
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn id(&self) -> PeerId {
        self.id
    }

    pub(crate) fn listens(mut self, at: &str) -> Self {
        self.listen.push(at.parse().unwrap());
        self
    }

    /// Knows another host, and grants it this.
    pub(crate) fn knows(&mut self, other: &Site, grants: Vec<GrantSpec>) {
        let running = other.host.as_ref().map(|host| host.control.peers());
        let dialer = running.and_then(|peers| peers.dialer());
        let spec = PeerSpec {
            id: Some(other.id()),
            addresses: dialer.map_or(Vec::new(), |dialer| dialer.listening().to_vec()),
            grants,
            ..PeerSpec::default()
        };
        self.peers.insert(other.name.to_owned(), spec);
    }

    /// Knows another host by its key alone, so that it must log in.
    pub(crate) fn knows_key_of(&mut self, other: &Site, grants: Vec<GrantSpec>) {
        let keys = Identity::in_folder().open_or_make(&other.data()).unwrap();
        let spec = PeerSpec {
            key: Some(keys.host().public()),
            grants,
            ..PeerSpec::default()
        };
        self.peers.insert(other.name.to_owned(), spec);
    }

    /// What it says of another host, to be changed before it is opened.
    pub(crate) fn spec(&mut self, other: &str) -> &mut PeerSpec {
        self.peers.get_mut(other).unwrap()
    }

    /// From its next start on it listens elsewhere, and nowhere else.
    pub(crate) fn moves(&mut self, to: &str) {
        self.listen = vec![to.parse().unwrap()];
    }

    pub(crate) async fn open(&mut self) {
        let peering = Peering {
            listen: self.listen.clone(),
            peers: self.peers.clone(),
            ..Peering::default()
        };
        let plan = self.plan.clone().peering(peering);
        let host = plan.open(&self.data()).await.unwrap();
        // A later start is found where this one was.
        if let Some(dialer) = host.control.peers().dialer() {
            self.listen = dialer
                .listening()
                .iter()
                .map(|at| {
                    let kept = at.iter().filter(|part| part.tag() != "p2p");
                    kept.collect()
                })
                .collect();
        }
        self.host = Some(host);
    }

    pub(crate) async fn close(&mut self) {
        if let Some(host) = self.host.take() {
            within("the host closes", host.close()).await;
        }
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    /// Waits until the link to a peer is up.
    pub(crate) async fn linked(&self, peer: &str) {
        let peer = self.host().control.peers().named(peer).unwrap().clone();
        let mut link = peer.link.subscribe();
        let up = link.wait_for(|link| matches!(link, LinkState::Up { .. }));
        within(&format!("the link to {} is up", peer.name), up)
            .await
            .unwrap();
    }

    /// Waits until it isn't.
    pub(crate) async fn unlinked(&self, peer: &str) {
        let peer = self.host().control.peers().named(peer).unwrap().clone();
        let mut link = peer.link.subscribe();
        let down = link.wait_for(|link| matches!(link, LinkState::Down { .. }));
        within(&format!("the link to {} is down", peer.name), down)
            .await
            .unwrap();
    }
}

pub(crate) struct Bed {
    pub(crate) alpha: Site,
    pub(crate) bravo: Site,
    pub(crate) synth: Puppet,
    pub(crate) keeper: Puppet,
}

impl Bed {
    pub(crate) async fn new(at: &str) -> Self {
        Self::under(at, Terms::ALL, Terms::ALL).await
    }

    /// Under what bravo grants alpha, and alpha its agent.
    pub(crate) async fn under(at: &str, theirs: Terms, ours: Terms) -> Self {
        let (synth, keeper) = (Puppet::new(), Puppet::new());
        let here = Plan::new().agent(
            "synth",
            synth.native(),
            vec![agora::testbed::under("bravo/release", ours)],
        );
        let there = Plan::new().channel("release").agent(
            "keeper",
            keeper.native(),
            vec![all_of("release")],
        );
        let mut bravo = Site::new("bravo", there).listens(at);
        let mut alpha = Site::new("alpha", here);
        bravo.knows(&alpha, vec![agora::testbed::under("release", theirs)]);
        bravo.open().await;
        alpha.knows(&bravo, vec![]);
        alpha.open().await;
        let bed = Self {
            alpha,
            bravo,
            synth,
            keeper,
        };
        bed.alpha.linked("bravo").await;
        bed.graft().await;
        bed
    }

    /// Both agents graft, and listen.
    pub(crate) async fn graft(&self) {
        for (puppet, channel) in [(&self.synth, "bravo/release"), (&self.keeper, "release")] {
            puppet.until_life(1).await;
            graft(puppet, channel).await;
        }
    }

    pub(crate) async fn close(mut self) {
        self.alpha.close().await;
        self.bravo.close().await;
    }
}

/// Alpha, with these, and bravo, which listens and grants it `release`.
pub(crate) async fn linked(here: Plan, at: &str) -> (Site, Site) {
    let mut bravo = Site::new("bravo", Plan::new().channel("release")).listens(at);
    let mut alpha = Site::new("alpha", here);
    bravo.knows(&alpha, vec![all_of("release")]);
    bravo.open().await;
    alpha.knows(&bravo, vec![]);
    alpha.open().await;
    alpha.linked("bravo").await;
    (alpha, bravo)
}

/// Alpha with two agents that are granted `bravo/release`, `synth` and `mate`, and bravo, whose `release` it grants to alpha.
pub(crate) struct Pair {
    pub(crate) alpha: Site,
    pub(crate) bravo: Site,
    pub(crate) synth: Puppet,
    pub(crate) mate: Puppet,
}

impl Pair {
    /// Both agents listen.
    pub(crate) async fn new() -> Self {
        let (synth, mate) = (Puppet::new(), Puppet::new());
        let here = Plan::new()
            .agent("mate", mate.native(), vec![all_of("bravo/release")])
            .agent("synth", synth.native(), vec![all_of("bravo/release")]);
        let (alpha, bravo) = linked(here, QUIC).await;
        for puppet in [&synth, &mate] {
            puppet.until_life(1).await;
            graft(puppet, "bravo/release").await;
        }
        Self {
            alpha,
            bravo,
            synth,
            mate,
        }
    }
}

/// Grafts until it can listen to this channel: where it is a peer's, it may have to be asked for first.
pub(crate) async fn graft(puppet: &Puppet, channel: &str) {
    until(&format!("'{channel}' is listened to"), async || {
        puppet.graft().await.unwrap().ok()?;
        puppet.info(channel).await.unwrap().ok()?;
        puppet.subscribe(channel).await.unwrap().ok()
    })
    .await;
}

/// A key that no draft had before.
pub(crate) fn next_key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1_000_000);
    // With room between for keys that a host chose.
    NEXT.fetch_add(10_000, Ordering::Relaxed)
}

/// Says it once, and answers what comes of that.
pub(crate) async fn tried(
    puppet: &Puppet,
    channel: &str,
    draft: Draft,
) -> Result<Receipt, Refusal> {
    let speaking = puppet.speak(channel, vec![draft]);
    let outcomes = within("it is answered", speaking).await.unwrap().unwrap();
    let [outcome] = outcomes.try_into().unwrap();
    outcome.map_err(|refused| refused.reason.0)
}

/// What only needs time: the peer is out of reach, or hasn't told its epoch yet.
fn is_early(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::PeerAway | Refusal::LogUnavailable)
}

/// Says it under a key of its own; again while the peer is out of reach, as it may be for a while on a busy machine.
pub(crate) async fn said(puppet: &Puppet, channel: &str, draft: Draft) -> Result<Receipt, Refusal> {
    repeated(puppet, channel, draft.key(next_key())).await
}

/// Says it as it is, and again while the peer is out of reach, or the graft is of an epoch that has ended somewhere on the way.
pub(crate) async fn repeated(
    puppet: &Puppet,
    channel: &str,
    draft: Draft,
) -> Result<Receipt, Refusal> {
    until("the peer is within reach", async || {
        let speaking = puppet.speak(channel, vec![draft.clone()]);
        let outcomes = match within("it is answered", speaking).await.unwrap() {
            Err(error) if error.is_stale() => {
                let _ = puppet.graft().await.unwrap();
                return None;
            }
            outcomes => outcomes.unwrap(),
        };
        let [outcome] = outcomes.try_into().unwrap();
        let outcome = outcome.map_err(|refused| refused.reason.0);
        (!outcome.as_ref().is_err_and(|refusal| is_early(*refusal))).then_some(outcome)
    })
    .await
}

/// Answers a message; again while the peer is out of reach.
pub(crate) async fn replied(puppet: &Puppet, channel: &str, to: &Message, text: &str) -> Receipt {
    until("the peer is within reach", async || {
        let turn = puppet.reply(channel, to.clone(), Draft::inform(text));
        let outcome = within("the turn is answered", turn).await.unwrap().unwrap();
        match outcome {
            Err(refused) if is_early(refused.reason.0) => None,
            outcome => Some(outcome.unwrap()),
        }
    })
    .await
}

pub(crate) async fn heard(puppet: &Puppet, channel: &str) -> Message {
    let hearing = within("it is heard", puppet.heard(channel));
    hearing.await.unwrap().unwrap().unwrap()
}

/// All that counts on one of a host's own channels: by whom, and what.
pub(crate) async fn all(host: &Host, channel: &str) -> Vec<(String, String)> {
    let name = agora_realm::ChannelName::new(channel).unwrap();
    let record = host.control.record();
    let (mut found, mut next) = (Vec::new(), 1);
    loop {
        let read = record.messages(&name, agora_realm::Ordinal(next), 100, 1 << 20);
        let batch = read.await.unwrap();
        if batch.is_empty() {
            return found;
        }
        for kept in batch {
            next = kept.ordinal.0 + 1;
            let author = kept.sealed.entry().author.clone().unwrap();
            let text = String::from_utf8(kept.message().payload.to_vec()).unwrap();
            found.push((author.as_str().to_owned(), text));
        }
    }
}
