//! What a host does that a test starts: says how it is connected, one line each, and does what it is told.

use std::{
    io::BufRead,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use agora_dial::{
    Dialer, KnownPeer, Lane, Multiaddr, Options, PeerId, PeerState, RelayBounds, Standing, Stream,
};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Where a host is told what it is.
pub(crate) const WORDS: &str = "AGORA_DIAL_NETNS";

pub(crate) fn id(seed: u8) -> PeerId {
    Options::new([seed; 32], |_: &PeerId| Standing::Known).peer_id()
}

fn say(line: &str) {
    println!("net: {line}");
}

/// Is the host that the environment names, until its input ends.
pub(crate) fn play() {
    let Ok(words) = std::env::var(WORDS) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(host(&words));
}

async fn host(words: &str) {
    let word = |name: &str| {
        words
            .split(' ')
            .find_map(|word| word.strip_prefix(&format!("{name}=")).map(str::to_string))
    };
    let seed = |name: &str| word(name).and_then(|text| text.parse::<u8>().ok());
    let address =
        |name: &str| word(name).map(|text| text.parse::<Multiaddr>().expect("an address"));
    let mut options = Options::new([seed("seed").expect("a seed"); 32], |_: &PeerId| {
        Standing::Known
    });
    options.timing.backoff_min_ms = 100;
    options.timing.backoff_max_ms = 1_000;
    options.timing.ping_every_ms = 500;
    options.timing.ping_patience_ms = 3_000;
    options.listen.extend(address("listen"));
    options.relay.via.extend(address("via"));
    options.relay.serve = word("relay").map(|_| RelayBounds::default());
    options.discovery.mdns = word("mdns").is_some();
    let peer = seed("peer").map(id);
    if let Some(peer) = peer {
        options.peers.push(KnownPeer {
            peer,
            addresses: address("at").into_iter().collect(),
        });
    }
    let (dialer, mut inbound) = Dialer::start(options).await.expect("it starts");
    tokio::spawn(async move {
        while let Some(incoming) = inbound.next().await {
            tokio::spawn(async move {
                let (reader, mut writer) = incoming.stream.split();
                let _ = futures::io::copy(reader, &mut writer).await;
            });
        }
    });
    say("started");
    tokio::spawn(watch(dialer.clone(), peer));
    let (tell, mut orders) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    while let Some(order) = orders.recv().await {
        match (order.as_str(), peer) {
            ("echo", Some(peer)) => {
                for lane in [Lane::Control, Lane::Vat] {
                    let mut stream = dialer.open(peer, lane).await.expect("it opens");
                    echo(&mut stream, &[7; 20_000]).await;
                }
                say("echoed");
            }
            ("measure", Some(peer)) => measure(&dialer, peer).await,
            ("peers", _) => say(&format!("peers {}", dialer.peers().peers.len())),
            _ => panic!("what is '{order}'?"),
        }
    }
}

/// Says when both lanes are up, when they no longer are, and when a relay has a place for this host.
async fn watch(dialer: Dialer, peer: Option<PeerId>) {
    let mut watch = dialer.watch();
    let (mut connected, mut placed) = (false, false);
    loop {
        let now = watch.borrow_and_update().clone();
        if let Some(status) = peer.and_then(|peer| now.peers.get(&peer)) {
            let is = status.state == PeerState::Connected;
            if is != connected {
                connected = is;
                let relayed = status.lane(Lane::Vat).is_relayed();
                match is {
                    true => say(&format!("connected relayed={relayed}")),
                    false => say("apart"),
                }
            }
        }
        let has_place = |waypoint: &agora_dial::WaypointStatus| !waypoint.listening.is_empty();
        if !placed && now.waypoints.values().any(has_place) {
            placed = true;
            say("placed");
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

async fn echo(stream: &mut Stream, text: &[u8]) {
    stream.write_all(text).await.expect("written");
    stream.flush().await.expect("sent");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.expect("it comes back");
    assert_eq!(back, text);
}

/// The 99th of a hundred round trips, in microseconds.
async fn p99(control: &mut Stream) -> u128 {
    let mut took = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        echo(control, b"a fence").await;
        took.push(begun.elapsed().as_micros());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort();
    took[98]
}

/// Control round trips while nothing else is sent, then while bulk is written as fast as it goes.
async fn measure(dialer: &Dialer, peer: PeerId) {
    let mut control = dialer.open(peer, Lane::Control).await.expect("it opens");
    let idle = p99(&mut control).await;
    let bulk = dialer.open(peer, Lane::Vat).await.expect("it opens");
    let (mut reader, mut writer) = bulk.split();
    let (sent, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let counted = (sent.clone(), stop.clone());
    tokio::spawn(async move {
        let bytes = vec![7; 64 << 10];
        while !counted.1.load(Ordering::SeqCst) && writer.write_all(&bytes).await.is_ok() {
            counted.0.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
    });
    tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(1..) = reader.read(&mut bytes).await {}
    });
    while sent.load(Ordering::SeqCst) < 1 << 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let busy = p99(&mut control).await;
    stop.store(true, Ordering::SeqCst);
    let sent = sent.load(Ordering::SeqCst);
    say(&format!(
        "measured idle_p99={idle} busy_p99={busy} sent={sent}"
    ));
}
