//! Peers that are no host: bytes by hand, below every library that would hold them back.

use std::{net::SocketAddr, str::FromStr};

use agora_dial::Multiaddr;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, io::WriteHalf};
use libp2p::{
    core::upgrade::OutboundConnectionUpgrade, identity::Keypair, multiaddr::Protocol, noise,
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

    /// Greets for a lane (1 is control, 2 bulk), as a start of its own.
    pub(crate) async fn greet(&mut self, lane: u8) {
        let greeting = [choose("/agora/greeting/1"), vec![lane; 9]].concat();
        assert!(self.open(&greeting).await);
    }
}
