//! Addresses that begin with a name (`/dns/...`, `/dns4/...`, `/dns6/...`): the system is asked at each dial, and what it says is
//! tried in turn. So an address that changes is followed.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    },
    multiaddr::Protocol,
};

use crate::limits;

type Inner = Boxed<(PeerId, StreamMuxerBox)>;

/// Resolves names before it dials.
pub(crate) struct Names {
    inner: Arc<Mutex<Inner>>,
}

impl Names {
    pub(crate) fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }
}

/// Nothing is left half done by a panic: it is only polled and asked.
fn held(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name that is to be resolved. A circuit's relay is connected by itself.
fn name(address: &Multiaddr) -> Option<(String, bool, bool)> {
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    match address.iter().next()? {
        Protocol::Dns(name) => Some((name.into_owned(), true, true)),
        Protocol::Dns4(name) => Some((name.into_owned(), true, false)),
        Protocol::Dns6(name) => Some((name.into_owned(), false, true)),
        _ => None,
    }
}

async fn resolve(address: &Multiaddr, name: (String, bool, bool)) -> io::Result<Vec<Multiaddr>> {
    let (name, v4, v6) = name;
    let patience = Duration::from_millis(limits::NAME_PATIENCE_MS);
    let asked = tokio::time::timeout(patience, tokio::net::lookup_host((name.as_str(), 0)));
    let answers = match asked.await {
        Ok(answers) => answers?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let mut found: Vec<Multiaddr> = Vec::new();
    for answer in answers {
        let ip = answer.ip();
        let wanted = if ip.is_ipv4() { v4 } else { v6 };
        let at: Multiaddr = std::iter::once(Protocol::from(ip))
            .chain(address.iter().skip(1))
            .collect();
        if wanted && !found.contains(&at) && found.len() < limits::NAME_ADDRESSES_MAX {
            found.push(at);
        }
    }
    if found.is_empty() {
        let why = format!("the name {name} has no address of that kind");
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    Ok(found)
}

impl Transport for Names {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <Inner as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        held(&self.inner).listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        held(&self.inner).remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(name) = name(&address) else {
            return Ok(held(&self.inner).dial(address, opts)?.boxed());
        };
        let inner = self.inner.clone();
        Ok(async move {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for at in resolve(&address, name).await? {
                let dial = held(&inner).dial(at, opts);
                let made = match dial {
                    Ok(dial) => dial.await,
                    Err(TransportError::Other(error)) => Err(error),
                    Err(unsupported) => Err(io::Error::other(unsupported.to_string())),
                };
                match made {
                    Ok(made) => return Ok(made),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut *held(&self.inner)).poll(cx)
    }
}
