//! A host of the test's process, and what every test waits with.

use std::{sync::Arc, time::Duration};

use agora_dial::{
    Dialer, Inbound, Incoming, Kademlia, KnownPeer, Lane, LaneStatus, Multiaddr, Options, PeerId,
    PeerState, PeerStatus, Policy, RelayBounds, Snapshot, Standing, Stream, Timing,
};
use futures::{AsyncReadExt, AsyncWriteExt};

pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";

/// Far above what anything here takes.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it came within its bound")
}

pub(crate) fn id(seed: u8) -> PeerId {
    Options::new([seed; 32], |_: &PeerId| Standing::Known).peer_id()
}

pub(crate) struct Host {
    pub(crate) dialer: Dialer,
    pub(crate) inbound: Inbound,
}

pub(crate) struct Making {
    options: Options,
}

/// A host from a seed, that lets everyone in unless it is told otherwise.
pub(crate) fn host(seed: u8) -> Making {
    let mut options = Options::new([seed; 32], |_: &PeerId| Standing::Known);
    options.timing = Timing {
        backoff_min_ms: 50,
        backoff_max_ms: 400,
        ..Timing::default()
    };
    options.jitter_seed = Some(u64::from(seed));
    Making { options }
}

impl Making {
    pub(crate) fn listening(mut self, address: &str) -> Self {
        self.options
            .listen
            .push(address.parse().expect("an address"));
        self
    }

    pub(crate) fn dialing(mut self, peer: u8, addresses: &[Multiaddr]) -> Self {
        self.options.peers.push(KnownPeer {
            peer: id(peer),
            addresses: addresses.to_vec(),
        });
        self
    }

    pub(crate) fn policy(mut self, policy: impl Policy) -> Self {
        self.options.policy = Arc::new(policy);
        self
    }

    pub(crate) fn timing(mut self, change: impl FnOnce(&mut Timing)) -> Self {
        change(&mut self.options.timing);
        self
    }

    pub(crate) fn relaying(mut self, bounds: RelayBounds) -> Self {
        self.options.relay.serve = Some(bounds);
        self
    }

    pub(crate) fn via(mut self, relay: Multiaddr) -> Self {
        self.options.relay.via.push(relay);
        self
    }

    /// A relayed connection stays one.
    pub(crate) fn not_punching(mut self) -> Self {
        self.options.relay.punch = false;
        self
    }

    /// Finds its peers by Kademlia, asking often.
    pub(crate) fn asking(mut self, bootstrap: &[Multiaddr], serve: bool) -> Self {
        self.options.discovery.kademlia = Some(Kademlia {
            bootstrap: bootstrap.to_vec(),
            serve,
            ask_every_ms: 300,
        });
        self
    }

    /// Starts where another was a moment ago: a UDP port is free once QUIC has seen its connections off.
    pub(crate) async fn start_again(self) -> Host {
        within(async {
            loop {
                let Options { timing, policy, .. } = &self.options;
                let mut options = Options::new(*self.options.seed, |_: &PeerId| Standing::Known);
                (options.timing, options.policy) = (*timing, policy.clone());
                options.listen = self.options.listen.clone();
                if let Ok((dialer, inbound)) = Dialer::start(options).await {
                    return Host { dialer, inbound };
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    pub(crate) async fn start(self) -> Host {
        let (dialer, inbound) = within(Dialer::start(self.options))
            .await
            .expect("it starts");
        Host { dialer, inbound }
    }
}

impl Host {
    pub(crate) fn address(&self) -> Multiaddr {
        self.dialer.listening()[0].clone()
    }

    /// Its address, with its id.
    pub(crate) fn full_address(&self) -> Multiaddr {
        self.address()
            .with_p2p(self.dialer.peer_id())
            .expect("an address of this host")
    }

    pub(crate) async fn until_all(&self, wanted: impl FnMut(&Arc<Snapshot>) -> bool) {
        let mut watch = self.dialer.watch();
        within(watch.wait_for(wanted))
            .await
            .expect("the dialer runs");
    }

    pub(crate) async fn until(
        &self,
        peer: u8,
        wanted: impl FnMut(&PeerStatus) -> bool,
    ) -> PeerStatus {
        within(self.dialer.until(id(peer), wanted))
            .await
            .expect("the dialer runs")
    }

    /// Both lanes up, and no connection that is to go.
    pub(crate) async fn settled(&self, peer: u8) -> PeerStatus {
        self.until(peer, |status| {
            status.state == PeerState::Connected && status.connections == 2
        })
        .await
    }

    pub(crate) async fn open(&self, peer: u8, lane: Lane) -> Stream {
        within(self.dialer.open(id(peer), lane))
            .await
            .expect("it opens")
    }

    pub(crate) async fn next(&mut self) -> Incoming {
        within(self.inbound.next()).await.expect("the dialer runs")
    }

    /// Answers every stream with what comes in on it, from now on.
    pub(crate) fn echoing(self) -> Dialer {
        let Host {
            dialer,
            mut inbound,
        } = self;
        tokio::spawn(async move {
            while let Some(incoming) = inbound.next().await {
                tokio::spawn(async move {
                    let (reader, mut writer) = incoming.stream.split();
                    let _ = futures::io::copy(reader, &mut writer).await;
                    let _ = writer.close().await;
                });
            }
        });
        dialer
    }
}

/// What goes out comes back.
pub(crate) async fn echoes(stream: &mut Stream, text: &[u8]) {
    within(async {
        stream.write_all(text).await.expect("it is written");
        stream.flush().await.expect("it is sent");
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.expect("it comes back");
        assert_eq!(back, text);
    })
    .await;
}

pub(crate) fn lane(status: &PeerStatus, lane: Lane) -> LaneStatus {
    status.lane(lane).clone()
}

/// Two hosts that are connected: the first dialed.
pub(crate) async fn pair(transport: &str) -> (Host, Host) {
    let b = host(2).listening(transport).start().await;
    let a = host(1).dialing(2, &[b.address()]).start().await;
    a.settled(2).await;
    b.settled(1).await;
    (a, b)
}
