//! A host that answers Kademlia's questions with thousands of false addresses.

use std::{
    collections::VecDeque,
    convert::Infallible,
    task::{Context, Poll},
};

use agora_dial::{Multiaddr, PeerId};
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt, future::BoxFuture};
use libp2p::{
    Swarm, SwarmBuilder,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    identify,
    kad::{self, Mode, store::MemoryStore},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, StreamProtocol, SubstreamProtocol, SwarmEvent, ToSwarm,
        handler::ConnectionEvent,
    },
};

use crate::hosts::TCP;

/// Welcomes whoever greets.
struct Welcoming {
    talk: Option<BoxFuture<'static, ()>>,
}

impl ConnectionHandler for Welcoming {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(
            ReadyUpgrade::new(StreamProtocol::new("/agora/greeting/1")),
            (),
        )
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Infallible>> {
        if let Some(talk) = &mut self.talk
            && talk.poll_unpin(cx).is_ready()
        {
            self.talk = None;
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, never: Infallible) {
        match never {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        if let ConnectionEvent::FullyNegotiatedInbound(made) = event {
            let mut stream = made.protocol;
            self.talk = Some(
                async move {
                    let mut frame = [0; 9];
                    let _ = stream.read_exact(&mut frame).await;
                    let _ = stream.write_all(&[1; 9]).await;
                    let _ = stream.close().await;
                }
                .boxed(),
            );
        }
    }
}

struct Welcomes(VecDeque<ToSwarm<Infallible, Infallible>>);

impl NetworkBehaviour for Welcomes {
    type ConnectionHandler = Welcoming;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Welcoming, ConnectionDenied> {
        Ok(Welcoming { talk: None })
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Welcoming, ConnectionDenied> {
        Ok(Welcoming { talk: None })
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: Infallible) {
        match never {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Infallible>> {
        self.0.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

#[derive(NetworkBehaviour)]
struct Liar {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    welcomes: Welcomes,
}

/// Starts one that knows so many addresses of a peer, all false, and puts them in a message of any size up to `most`.
pub(crate) async fn liar(about: PeerId, addresses: usize, most: usize) -> Multiaddr {
    let mut swarm: Swarm<Liar> = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            libp2p::tcp::Config::default(),
            libp2p::noise::Config::new,
            libp2p::yamux::Config::default,
        )
        .expect("a transport")
        .with_behaviour(|key| {
            let own = key.public().to_peer_id();
            let mut config = kad::Config::new(StreamProtocol::new("/agora/kad/1"));
            config.set_max_packet_size(most);
            let mut kad = kad::Behaviour::with_config(own, MemoryStore::new(own), config);
            kad.set_mode(Some(Mode::Server));
            for n in 0..addresses {
                let address = format!("/ip4/127.9.{}.{}/tcp/9", n / 250, n % 250 + 1);
                kad.add_address(&about, address.parse().expect("an address"));
            }
            let identify = identify::Config::new("/agora/1".into(), key.public());
            Liar {
                kad,
                identify: identify::Behaviour::new(identify),
                welcomes: Welcomes(VecDeque::new()),
            }
        })
        .expect("a behaviour")
        .build();
    let own = *swarm.local_peer_id();
    swarm
        .listen_on(TCP.parse().expect("an address"))
        .expect("it listens");
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    address.with_p2p(own).expect("its id")
}
