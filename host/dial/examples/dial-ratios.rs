//! What the lanes cost: bytes per second of a stream beside a bare libp2p stream, and a control round trip beside bulk.
//!
//! The floor is libp2p's own transport and muxer with their defaults, one stream, no negotiation, no swarm.

use std::time::{Duration, Instant};

use agora_dial::{
    Dialer, Inbound, KnownPeer, Lane, Multiaddr, Options, PeerId, PeerState, Standing, Stream,
};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::{
    Transport,
    core::{
        Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt},
        transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
        upgrade::Version,
    },
    identity::Keypair,
    noise, quic, tcp, yamux,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const TRANSPORTS: [(&str, &str); 2] = [
    ("tcp", "/ip4/127.0.0.1/tcp/0"),
    ("quic", "/ip4/127.0.0.1/udp/0/quic-v1"),
];
const CHUNK: usize = 64 << 10;
const BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;
const PINGS: usize = 2_000;

fn bare(seed: u8, name: &str) -> Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let keypair = Keypair::ed25519_from_bytes([seed; 32])?;
    Ok(match name {
        "tcp" => tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .upgrade(Version::V1)
            .authenticate(noise::Config::new(&keypair)?)
            .multiplex(yamux::Config::default())
            .boxed(),
        _ => quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed(),
    })
}

/// Keeps a bare connection going; the far side hands over its first stream.
fn drive(
    mut muxer: StreamMuxerBox,
    inbound: Option<tokio::sync::oneshot::Sender<libp2p::core::muxing::SubstreamBox>>,
) {
    tokio::spawn(async move {
        let mut inbound = inbound;
        std::future::poll_fn(move |cx| {
            loop {
                if inbound.is_some()
                    && let std::task::Poll::Ready(Ok(stream)) = muxer.poll_inbound_unpin(cx)
                {
                    let _ = inbound.take().map(|inbound| inbound.send(stream));
                    continue;
                }
                match muxer.poll_unpin(cx) {
                    std::task::Poll::Ready(Err(_)) => return std::task::Poll::Ready(()),
                    std::task::Poll::Ready(Ok(_)) => continue,
                    std::task::Poll::Pending => return std::task::Poll::Pending,
                }
            }
        })
        .await;
    });
}

/// Bytes per second of one bare stream.
async fn floor(name: &str, address: &str) -> Result<f64> {
    let (mut near, mut far) = (bare(1, name)?, bare(2, name)?);
    far.listen_on(ListenerId::next(), address.parse()?)?;
    let listening = loop {
        if let Some(TransportEvent::NewAddress { listen_addr, .. }) = far.next().await {
            break listen_addr;
        }
    };
    let (handed, stream) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut handed = Some(handed);
        while let Some(event) = far.next().await {
            if let TransportEvent::Incoming { upgrade, .. } = event
                && let Some(handed) = handed.take()
            {
                tokio::spawn(async move {
                    if let Ok((_, muxer)) = upgrade.await {
                        drive(muxer, Some(handed));
                    }
                });
            }
        }
    });
    let opts = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let dial = near.dial(listening, opts)?;
    let keep = tokio::spawn(async move { while near.next().await.is_some() {} });
    let (_, mut muxer) = dial.await?;
    let mut out = std::future::poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx)?;
        muxer.poll_outbound_unpin(cx)
    })
    .await?;
    drive(muxer, None);
    out.write_all(b"x").await?;
    out.flush().await?;
    let mut stream = stream.await?;
    stream.read_exact(&mut [0]).await?;
    let rate = throughput(out, stream).await?;
    keep.abort();
    Ok(rate)
}

async fn throughput(
    mut out: impl AsyncWrite + Unpin + Send + 'static,
    mut stream: impl AsyncRead + Unpin,
) -> Result<f64> {
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        let chunk = vec![7; CHUNK];
        for _ in 0..BYTES / CHUNK {
            out.write_all(&chunk).await?;
        }
        out.flush().await?;
        std::io::Result::Ok(out)
    });
    let (mut read, mut chunk) = (0, vec![0; CHUNK]);
    while read < BYTES {
        match stream.read(&mut chunk).await? {
            0 => return Err("the stream ended early".into()),
            count => read += count,
        }
    }
    let rate = BYTES as f64 / start.elapsed().as_secs_f64();
    let _held_until_read = writer.await??;
    Ok(rate)
}

async fn hosts(address: &str) -> Result<(Dialer, Dialer, Inbound)> {
    let known = |_: &PeerId| Standing::Known;
    let mut options = Options::new([2; 32], known);
    let peer = options.peer_id();
    options.listen.push(address.parse::<Multiaddr>()?);
    let (far, inbound) = Dialer::start(options).await?;
    let mut options = Options::new([1; 32], known);
    options.peers.push(KnownPeer {
        peer,
        addresses: far.listening().to_vec(),
    });
    let (near, _) = Dialer::start(options).await?;
    near.until(peer, |status| status.state == PeerState::Connected)
        .await?;
    Ok((near, far, inbound))
}

async fn streams(
    near: &Dialer,
    far: &Dialer,
    inbound: &mut Inbound,
    lane: Lane,
) -> Result<(Stream, Stream)> {
    let mut out = near.open(far.peer_id(), lane).await?;
    out.write_all(b"x").await?;
    out.flush().await?;
    let mut stream = inbound.next().await.ok_or("no stream")?.stream;
    stream.read_exact(&mut [0]).await?;
    Ok((out, stream))
}

async fn round_trips(control: &mut Stream) -> Result<Vec<Duration>> {
    let mut trips = Vec::with_capacity(PINGS);
    let mut word = [7; 64];
    for _ in 0..PINGS {
        let start = Instant::now();
        control.write_all(&word).await?;
        control.flush().await?;
        control.read_exact(&mut word).await?;
        trips.push(start.elapsed());
    }
    trips.sort();
    Ok(trips)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> Result<()> {
    for (name, address) in TRANSPORTS {
        let (mut floors, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floors.push(floor(name, address).await?);
            let (near, far, mut inbound) = hosts(address).await?;
            let (out, stream) = streams(&near, &far, &mut inbound, Lane::Vat).await?;
            ours.push(throughput(out, stream).await?);
            near.shutdown().await;
            far.shutdown().await;
        }
        let (ours, floor) = (median(ours), median(floors));
        let (mine, bare) = (ours / 1e6, floor / 1e6);
        println!(
            "{name} 64 KiB writes, MB/s\t{mine:.0}\t{bare:.0}\t{:.2}",
            mine / bare
        );

        let (near, far, mut inbound) = hosts(address).await?;
        let (mut control, there) = streams(&near, &far, &mut inbound, Lane::Control).await?;
        tokio::spawn(async move {
            let (reader, mut writer) = there.split();
            futures::io::copy(reader, &mut writer).await
        });
        let idle = round_trips(&mut control).await?;
        let (mut out, mut stream) = streams(&near, &far, &mut inbound, Lane::Vat).await?;
        let bulk = tokio::spawn(async move { while out.write_all(&[7; CHUNK]).await.is_ok() {} });
        let drain = tokio::spawn(async move {
            let mut chunk = vec![0; CHUNK];
            while let Ok(1..) = stream.read(&mut chunk).await {}
        });
        let busy = round_trips(&mut control).await?;
        bulk.abort();
        drain.abort();
        for (what, at) in [("p50", PINGS / 2), ("p99", PINGS * 99 / 100)] {
            let (busy, idle) = (busy[at].as_secs_f64() * 1e6, idle[at].as_secs_f64() * 1e6);
            println!(
                "{name} control round trip {what}, us: bulk saturated / idle\t{busy:.0}\t{idle:.0}\t{:.2}",
                busy / idle
            );
        }
        near.shutdown().await;
        far.shutdown().await;
    }
    Ok(())
}
