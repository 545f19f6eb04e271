//! QUIC, TCP with Noise and Yamux, and the same over a relay, as one transport, which resolves names and counts streams.

use std::time::Duration;

use libp2p::{
    PeerId, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    identity::Keypair,
    noise, quic, relay, tcp,
};

use crate::{StartError, counted::Counted, limits, muxer::Yamux, names::Names};

pub(crate) fn build(
    keypair: &Keypair,
    circuits: relay::client::Transport,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let patience = Duration::from_millis(limits::HANDSHAKE_PATIENCE_MS);
    let noise =
        noise::Config::new(keypair).map_err(|cause| StartError::Transport(cause.to_string()))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1)
        .authenticate(noise.clone())
        .multiplex(Yamux)
        .timeout(patience)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // The relay sees no more than what any network does.
    let circuits = circuits
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex(Yamux)
        .timeout(patience)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = patience;
    config.max_idle_timeout = limits::QUIC_IDLE_MS;
    config.keep_alive_interval = Duration::from_millis(limits::QUIC_KEEP_ALIVE_MS);
    config.max_concurrent_stream_limit = limits::QUIC_STREAMS_IN_MAX;
    config.max_stream_data = limits::QUIC_STREAM_WINDOW_BYTES;
    config.max_connection_data = limits::QUIC_CONNECTION_WINDOW_BYTES;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| {
        let counted = Counted::new(StreamMuxerBox::new(muxer));
        (peer, StreamMuxerBox::new(counted))
    });

    let direct = OrTransport::new(quic, tcp).map(|either, _| either.into_inner());
    let all = OrTransport::new(circuits, direct)
        .map(|either, _| either.into_inner())
        .boxed();
    Ok(Names::new(all).boxed())
}
