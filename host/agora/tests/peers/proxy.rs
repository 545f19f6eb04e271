//! A network between two hosts that can be cut: UDP over loopback, through a socket that drops everything while it is.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;
use std::time::Duration;

/// What goes to its port goes to the host behind it, and the answers back.
pub(crate) struct Proxy {
    port: u16,
    is_cut: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// Another one than the hosts listen at, since a host believes a peer what further addresses it says it has at the one it was found at, and
/// would go around.
const FRONT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A socket whose thread looks up now and then.
fn socket(at: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((at, 0)).expect("there is a port");
    let patience = Some(Duration::from_millis(100));
    socket.set_read_timeout(patience).expect("it is ours");
    socket
}

impl Proxy {
    /// In front of the host that listens at this address: `/ip4/127.0.0.1/udp/4101/quic-v1`, with or without an id.
    pub(crate) fn before(address: &str) -> Self {
        let parts: Vec<_> = address.split('/').collect();
        let ip: Ipv4Addr = parts[2].parse().expect("an address of IPv4");
        let host = SocketAddr::from((ip, parts[4].parse().expect("it names a port")));
        let front = Arc::new(socket(FRONT));
        let proxy = Self {
            port: front.local_addr().expect("it is bound").port(),
            is_cut: Arc::default(),
            is_over: Arc::default(),
        };
        let (is_cut, is_over) = (proxy.is_cut.clone(), proxy.is_over.clone());
        spawn(move || {
            let mut behind: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut datagram = vec![0; 1 << 16];
            while !is_over.load(Ordering::SeqCst) {
                let Ok((length, from)) = front.recv_from(&mut datagram) else {
                    continue;
                };
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let to = behind.entry(from).or_insert_with(|| {
                    let socket = Arc::new(socket(Ipv4Addr::LOCALHOST));
                    let (back, front) = (socket.clone(), front.clone());
                    let (is_cut, is_over) = (is_cut.clone(), is_over.clone());
                    spawn(move || {
                        let mut datagram = vec![0; 1 << 16];
                        while !is_over.load(Ordering::SeqCst) {
                            if let Ok((length, _)) = back.recv_from(&mut datagram)
                                && !is_cut.load(Ordering::SeqCst)
                            {
                                let _ = front.send_to(&datagram[..length], from);
                            }
                        }
                    });
                    socket
                });
                let _ = to.send_to(&datagram[..length], host);
            }
        });
        proxy
    }

    /// The address of the host behind it, as seen through it.
    pub(crate) fn address(&self, address: &str) -> String {
        let mut parts: Vec<_> = address.split('/').map(str::to_owned).collect();
        parts[2] = FRONT.to_string();
        parts[4] = self.port.to_string();
        parts.join("/")
    }

    /// From now on everything is lost, without a word.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    /// From now on nothing is.
    pub(crate) fn heal(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}
