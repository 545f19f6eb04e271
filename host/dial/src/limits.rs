//! Every bound of the transport, beside the relations they must keep.
//!
//! What one peer can make this host hold follows from them: `PEER_CONNECTIONS_MAX` connections, each with at most
//! `RECEIVE_WINDOW_BYTES` of unread bytes.

/// Configured peers and other known ones, together.
pub const PEERS_MAX: usize = 64;
/// Connections with one known peer: two lanes, each with one that is replaced and one that replaces it.
pub const PEER_CONNECTIONS_MAX: usize = 6;
/// Connections from peers that aren't known, together.
pub const GUEST_CONNECTIONS_MAX: usize = 16;
/// Connections from one peer that isn't known.
pub const GUEST_PEER_CONNECTIONS_MAX: usize = 2;
/// Connections from one network address with peers that aren't known.
pub const GUEST_ADDRESS_CONNECTIONS_MAX: usize = 8;
/// Inbound connections whose peer hasn't proved who it is, together.
pub const PENDING_IN_MAX: usize = 64;
/// The same from addresses that aren't configured for any peer. Less than `PENDING_IN_MAX`, so that strangers who
/// connect and say nothing leave room for peers.
pub const PENDING_IN_STRANGERS_MAX: usize = 48;
/// The same from one such address.
pub const PENDING_IN_ADDRESS_MAX: usize = 16;
/// Dials under way, together.
pub const PENDING_OUT_MAX: usize = 32;

/// Streams that a known peer may have open with us on one lane.
pub const LANE_STREAMS_IN_MAX: usize = 2 * LANE_STREAMS_OUT_MAX;
/// Streams that we may have open with a peer on one lane. Half of what a peer of the same build takes, since a stream that ended
/// here may still count there.
pub const LANE_STREAMS_OUT_MAX: usize = 8;
/// Streams that a guest may have open with us: the login.
pub const GUEST_STREAMS_IN_MAX: usize = 1;
/// Inbound streams of one connection that are negotiating their protocol; others wait in the muxer.
pub const NEGOTIATING_IN_MAX: usize = 8;
/// Inbound streams of a TCP connection that wait to negotiate; those beyond are reset.
pub const MUXER_WAITING_IN_MAX: usize = 8;
/// Streams of one TCP connection, both ways. Ends the connection when it is passed, so it must hold what two honest
/// sides have: their streams on the lane, those negotiating and waiting, and ping, identify and greeting each way.
pub const MUXER_STREAMS_MAX: usize = 64;
/// Inbound streams of one QUIC connection; the peer waits beyond.
pub const QUIC_STREAMS_IN_MAX: u32 = 32;
/// Streams that a connection may open at once before `STREAMS_PER_S` counts.
pub const STREAMS_BURST: u32 = 64;
/// Streams per second that a connection may open in the long run; those beyond are reset.
pub const STREAMS_PER_S: u32 = 16;
/// Streams that a connection may open at once, whatever becomes of them, before `STREAMS_RAW_PER_S` counts.
pub const STREAMS_RAW_BURST: u32 = 1024;
/// Streams per second that a connection may open in the long run, whatever becomes of them; one more ends it. More than
/// `STREAMS_PER_S`, so that those that negotiate are refused first.
pub const STREAMS_RAW_PER_S: u32 = 64;
/// Streams that may be refused on one connection before it is ended.
pub const STREAMS_REFUSED_MAX: u32 = 256;
/// Streams that wait in the inbound queue. It can't be filled while every peer is within its own bounds.
pub const INBOUND_QUEUE: usize =
    PEERS_MAX * 2 * LANE_STREAMS_IN_MAX + GUEST_CONNECTIONS_MAX * GUEST_STREAMS_IN_MAX;
/// Commands to the driver that wait.
pub const COMMANDS_QUEUE: usize = 64;

/// Unread bytes of one connection, over all its streams. At least 256 KiB for each of `MUXER_STREAMS_MAX`.
pub const RECEIVE_WINDOW_BYTES: usize = 24 << 20;
/// Unread bytes of one QUIC stream.
pub const QUIC_STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Unread bytes of one QUIC connection.
pub const QUIC_CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Addresses that may be configured for one peer.
pub const ADDRESSES_MAX: usize = 16;
/// Addresses that a known peer may tell us by identify, beside the configured ones. Only such that lie at the network
/// address it is connected from are believed.
pub const LEARNED_ADDRESSES_MAX: usize = 4;
/// Names of protocols that are kept of what a peer says it speaks.
pub const THEIR_PROTOCOLS_MAX: usize = 16;
/// Bytes that are kept of each.
pub const THEIR_PROTOCOL_BYTES_MAX: usize = 64;
/// Refusals of peers without a link that are remembered.
pub const TURNED_AWAY_MAX: usize = 16;
/// Pings that the median is taken over.
pub const ROUND_TRIPS_KEPT: usize = 32;

/// Hosts that are kept connected for errands: relays, and those whom Kademlia asks first.
pub const WAYPOINTS_MAX: usize = 16;
/// Addresses of one of them.
pub const WAYPOINT_ADDRESSES_MAX: usize = 4;
/// Inbound connections for errands, together.
pub const ERRANDS_IN_MAX: usize = 64;
/// The same with one peer.
pub const ERRANDS_PEER_IN_MAX: usize = 2;
/// Connections that Kademlia's walk and hole punching have under way or made, together.
pub const WALKS_MAX: usize = 16;
/// How long a connection for an errand lasts with a host that isn't known here, or that Kademlia walked to, in milliseconds.
pub const ERRAND_MS: u64 = 60_000;
/// Events of a connection that are kept until it is known to be for errands.
pub const ERRAND_EVENTS_MAX: usize = 16;
/// Addresses that are tried of a host that Kademlia walks to, and that are kept of one that it knows.
pub const KAD_ADDRESSES_MAX: usize = 4;
/// Hosts in one bucket of Kademlia's table.
pub const KAD_BUCKET_MAX: usize = 8;
/// Bytes of one message of Kademlia.
pub const KAD_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Questions of Kademlia under way.
pub const KAD_QUESTIONS_MAX: usize = 8;
/// How long one may take, in milliseconds.
pub const KAD_QUESTION_MS: u64 = 20_000;
/// The shortest time between two rounds of questions, in milliseconds.
pub const KAD_ASK_MIN_MS: u64 = 200;
/// Addresses of one peer that were found by mDNS and Kademlia. The last ones found push out the first.
pub const FOUND_ADDRESSES_MAX: usize = 8;
/// How long an address that Kademlia found is believed, in milliseconds.
pub const FOUND_MS: u64 = 10 * 60_000;
/// Addresses that mDNS holds, of anyone on the network; beyond, it begins anew.
pub const MDNS_SEEN_MAX: usize = 256;
/// Peers that may listen through us.
pub const RELAY_RESERVATIONS_MAX: usize = PEERS_MAX;
/// How long they may without asking again, in milliseconds.
pub const RELAY_RESERVATION_MS: u64 = 60 * 60_000;
/// Connections that we relay, together.
pub const RELAY_CIRCUITS_MAX: usize = 64;
/// The same from one peer: two lanes, each with one that is lost and one that replaces it.
pub const RELAY_PEER_CIRCUITS_MAX: usize = 4;
/// Bytes of one of them.
pub const RELAY_CIRCUIT_BYTES_MAX: u64 = 1 << 30;
/// How long one may last, in milliseconds.
pub const RELAY_CIRCUIT_MS_MAX: u64 = 60 * 60_000;

/// Addresses that are tried of one name.
pub const NAME_ADDRESSES_MAX: usize = 4;
/// How long a name may take to be resolved, in milliseconds. Less than `HANDSHAKE_PATIENCE_MS`.
pub const NAME_PATIENCE_MS: u64 = 5_000;

/// How long a connection may take to be made and secured, in milliseconds.
pub const HANDSHAKE_PATIENCE_MS: u64 = 10_000;
/// How long the greeting may take by default, either side, in milliseconds.
pub const GREETING_PATIENCE_MS: u64 = 10_000;
/// How long a stream's negotiation may take, in milliseconds.
pub const NEGOTIATION_PATIENCE_MS: u64 = 10_000;
/// How long after a connection was made a crossing dial of the peer may still arrive, in milliseconds. As long as a
/// handshake and a greeting.
pub const CROSSING_MS: u64 = HANDSHAKE_PATIENCE_MS + GREETING_PATIENCE_MS;
/// How long identify is waited for to name what a peer speaks, in milliseconds.
pub const IDENTIFY_PATIENCE_MS: u64 = 3_000;
/// How long a refused peer may keep its connection to read the refusal, in milliseconds.
pub const LINGER_MS: u64 = 2_000;
/// How long closing a connection may take, in milliseconds.
pub const CLOSE_PATIENCE_MS: u64 = 2_000;
/// How long the end of all connections is waited for at shutdown, in milliseconds. More than `CLOSE_PATIENCE_MS`.
pub const SHUTDOWN_PATIENCE_MS: u64 = 4_000;
/// How long the listeners' addresses are waited for at the start, in milliseconds.
pub const LISTEN_PATIENCE_MS: u64 = 10_000;
/// How long a peer that dialed the control lane is given to dial the bulk lane, before we do; in milliseconds.
pub const LANE_GRACE_MS: u64 = 3_000;
/// How long a QUIC connection may be silent, in milliseconds. More than `QUIC_KEEP_ALIVE_MS`.
pub const QUIC_IDLE_MS: u32 = 30_000;
/// How often a silent QUIC connection says that it lives, in milliseconds.
pub const QUIC_KEEP_ALIVE_MS: u64 = 5_000;
/// How long a connection must have held before the next failure counts as the first, in milliseconds.
pub const SETTLED_MS: u64 = 30_000;

const _: () = assert!(RECEIVE_WINDOW_BYTES >= MUXER_STREAMS_MAX * (256 << 10));
const _: () = assert!(PENDING_IN_STRANGERS_MAX < PENDING_IN_MAX);
const _: () = assert!(STREAMS_RAW_PER_S > STREAMS_PER_S && STREAMS_RAW_BURST > STREAMS_REFUSED_MAX);
const _: () = assert!(NAME_PATIENCE_MS < HANDSHAKE_PATIENCE_MS);
const _: () = assert!(
    MUXER_STREAMS_MAX
        >= LANE_STREAMS_IN_MAX
            + LANE_STREAMS_OUT_MAX
            + NEGOTIATING_IN_MAX
            + MUXER_WAITING_IN_MAX
            + 8
);
const _: () =
    assert!(SHUTDOWN_PATIENCE_MS > CLOSE_PATIENCE_MS && QUIC_IDLE_MS as u64 > QUIC_KEEP_ALIVE_MS);
