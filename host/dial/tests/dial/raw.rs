//! Peers that are no host: bytes by hand, below every library that would hold them back.

use std::{net::SocketAddr, str::FromStr, task::Poll};

use agora_dial::Multiaddr;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, io::WriteHalf};
use libp2p::{
    Transport,
    core::{
        Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{DialOpts, PortUse},
        upgrade::OutboundConnectionUpgrade,
    },
    identity::Keypair,
    multiaddr::Protocol,
    noise, quic,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

fn prefixed(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len() + 1).expect("a short name")];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// What a dialer says to choose a protocol, without waiting for an answer.
pub(crate) fn choose(protocol: &str) -> Vec<u8> {
    [prefixed("/multistream/1.0.0"), prefixed(protocol)].concat()
}

async fn negotiate(io: &mut (impl AsyncRead + AsyncWrite + Unpin), protocol: &str) {
    let words = choose(protocol);
    io.write_all(&words).await.expect("written");
    io.flush().await.expect("sent");
    let mut back = vec![0; words.len()];
    io.read_exact(&mut back).await.expect("answered");
    assert_eq!(back, words);
}

/// Where an address with TCP is.
pub(crate) fn socket(address: &Multiaddr) -> SocketAddr {
    let mut parts = address.iter();
    match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => SocketAddr::from((ip, port)),
        _ => panic!("no TCP address: {address}"),
    }
}

/// Connects from another address of this machine.
pub(crate) async fn connect(from: &str, to: &Multiaddr) -> TcpStream {
    let from = SocketAddr::from_str(&format!("{from}:0")).expect("an address");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(from).expect("a port");
    socket.connect(self::socket(to)).await.expect("it connects")
}

/// A secured connection whose yamux frames are written by hand.
pub(crate) struct Frames {
    writer: WriteHalf<noise::Output<Compat<TcpStream>>>,
    next: u32,
}

impl Frames {
    /// Connects as the peer of a seed, and reads without heed whatever comes.
    pub(crate) async fn connect(seed: u8, from: &str, to: &Multiaddr) -> Frames {
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).expect("a seed");
        let mut tcp = connect(from, to).await.compat();
        negotiate(&mut tcp, "/noise").await;
        let noise = noise::Config::new(&keypair).expect("noise");
        let (_, mut secured) = noise
            .upgrade_outbound(tcp, "/noise")
            .await
            .expect("it is secured");
        negotiate(&mut secured, "/yamux/1.0.0").await;
        let (mut reader, writer) = secured.split();
        tokio::spawn(async move {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(1..) = reader.read(&mut bytes).await {}
        });
        Frames { writer, next: 1 }
    }

    /// Opens a stream that begins with these bytes; whether the connection still takes it.
    pub(crate) async fn open(&mut self, bytes: &[u8]) -> bool {
        let mut frame = vec![0, 0, 0, 1];
        frame.extend_from_slice(&self.next.to_be_bytes());
        frame.extend_from_slice(&u32::try_from(bytes.len()).expect("short").to_be_bytes());
        frame.extend_from_slice(bytes);
        self.next += 2;
        self.writer.write_all(&frame).await.is_ok() && self.writer.flush().await.is_ok()
    }
}

/// A QUIC connection that opens streams as fast as it is let.
pub(crate) struct Quic {
    muxer: StreamMuxerBox,
    open: Vec<SubstreamBox>,
    held: Vec<SubstreamBox>,
}

impl Quic {
    pub(crate) async fn connect(seed: u8, to: &Multiaddr) -> Quic {
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).expect("a seed");
        let mut transport = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(_, muxer), _| StreamMuxerBox::new(muxer))
            .boxed();
        let opts = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let muxer = transport
            .dial(to.clone(), opts)
            .expect("an address")
            .await
            .expect("it connects");
        tokio::spawn(async move { while transport.next().await.is_some() {} });
        Quic {
            muxer,
            open: Vec::new(),
            held: Vec::new(),
        }
    }

    async fn open(&mut self, bytes: &[u8]) -> bool {
        let (muxer, held) = (&mut self.muxer, &mut self.held);
        let opened = std::future::poll_fn(|cx| {
            loop {
                match muxer.poll_inbound_unpin(cx) {
                    // Held, since a ping that is reset counts as one that failed.
                    Poll::Ready(Ok(stream)) => held.push(stream),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            if let Poll::Ready(Err(error)) = muxer.poll_unpin(cx) {
                return Poll::Ready(Err(error));
            }
            muxer.poll_outbound_unpin(cx)
        });
        let Ok(mut stream) = opened.await else {
            return false;
        };
        let written = stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok();
        self.open.push(stream);
        // Those that came too many are let go again: only so many may be open at once, refused or not.
        if self.open.len() > 17 {
            self.open.remove(17);
        }
        written
    }
}

/// Either.
pub(crate) enum Hostile {
    Tcp(Frames),
    Quic(Quic),
}

impl Hostile {
    /// Connects as the peer of a seed, by what the address is of.
    pub(crate) async fn connect(seed: u8, to: &Multiaddr) -> Hostile {
        match to.iter().any(|part| matches!(part, Protocol::QuicV1)) {
            true => Hostile::Quic(Quic::connect(seed, to).await),
            false => Hostile::Tcp(Frames::connect(seed, "127.0.0.2", to).await),
        }
    }

    pub(crate) async fn open(&mut self, bytes: &[u8]) -> bool {
        match self {
            Hostile::Tcp(frames) => frames.open(bytes).await,
            Hostile::Quic(quic) => quic.open(bytes).await,
        }
    }

    /// Greets for a lane (1 is control, 2 bulk), as a start of its own; whether the connection still takes it.
    pub(crate) async fn greet(&mut self, lane: u8) -> bool {
        self.open(&[choose("/agora/greeting/1"), vec![lane; 9]].concat())
            .await
    }
}
