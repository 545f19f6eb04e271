//! Every bound of the host, each beside the relation it must keep to the others. What entries may hold is bounded in
//! `agora_realm::limits`, what a wire may carry in `agora_guest::wire`, and what the log takes in `agora_log`.

use std::time::Duration;

use agora_guest::wire::Limits;

// -- Channels

/// Hops of a channel that names none.
pub const HOPS_DEFAULT: u16 = 3;
/// The most hops a manifest may give a channel.
pub const HOPS_MAX: u16 = 64;
/// Reactions a thread may have, where the channel names none.
pub const REACTIONS_DEFAULT: u32 = 256;
/// The most reactions a manifest may give a channel.
pub const REACTIONS_MAX: u32 = 65_536;

// -- Speaking

/// Drafts in one `speak`; at most what a turn holds (`agora_realm::limits`).
pub const DRAFTS_PER_CALL_MAX: usize = 256;
/// `speak` calls of one persona on one channel that may wait for the log; past it `overloaded`.
pub const SPEAKS_WAITING_MAX: usize = 1024;
/// Bytes of drafts of one persona on one channel that may wait for the log; past it `overloaded`.
pub const SPEAK_BYTES_WAITING_MAX: usize = 4 << 20;
/// Entries of one persona on one channel that may be on their way through the log at once.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 16;
/// Payload bytes of an entry that its speaker signs itself, which takes less than handing it to another thread would; a larger one is
/// signed elsewhere.
pub const SIGNED_BY_SPEAKER_BYTES_MAX: usize = 64 << 10;
/// Payload bytes folded into one entry; with the rest of an entry it stays below `agora_realm::limits::ENTRY_BYTES_MAX`.
pub const FOLD_BYTES_MAX: usize = 512 << 10;
/// How long a turn waits for its grant's rate before it is not taken.
pub const RATE_PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks meanwhile.
pub const RATE_AGAIN: Duration = Duration::from_millis(50);
/// Live facets that one graft may have made by attenuating.
pub const FACETS_PER_GRAFT_MAX: usize = 256;
/// Subscriptions of one graft that its agent has not let go of; what each remembers is small, replaced or not.
pub const SUBSCRIPTIONS_PER_GRAFT_MAX: usize = 4096;
/// Grafts of one life. An agent need not let go of what an earlier graft gave it, and the host remembers it as long as the vat lives.
pub const GRAFTS_PER_LIFE_MAX: usize = 16_384;
// What a graft may hold is refused at its own bound, before the wire's ends the agent.
const _: () = assert!(
    SUBSCRIPTIONS_PER_GRAFT_MAX + FACETS_PER_GRAFT_MAX
        < agora_guest::wire::Limits::HOST.exports_max
);

// -- Delivery

/// Messages delivered and not yet answered, where the subscriber names no window.
pub const WINDOW_DEFAULT: u32 = 64;
/// The most a subscriber may ask for.
pub const WINDOW_MAX: u32 = 1024;
/// Messages in one `deliver` or one answer of `history`.
pub const BATCH_MESSAGES_MAX: usize = 64;
/// Payload bytes in one `deliver` or one answer of `history`; with one more payload of the largest size it fits a frame.
pub const BATCH_BYTES_MAX: usize = 256 << 10;
/// The wait before a subscription reads again what could not be read.
pub const READ_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of recent entries kept in memory for readers; older ones are read from the log.
pub const RECENT_BYTES_MAX: usize = 64 << 20;
/// Entries that wait for a slow watcher; what it missed it finds among the recent ones. Times the largest entry, they are not to
/// take much more memory than those.
pub const FEED_WAITING_MAX: usize = 128;
const _: () =
    assert!(FEED_WAITING_MAX * agora_realm::limits::ENTRY_BYTES_MAX <= 2 * RECENT_BYTES_MAX);

/// Entries that come by on the log's tail and are verified together, if they are there already.
pub const TAIL_LOT_ENTRIES: usize = 256;
/// The same in bytes, except for the last of them.
pub const TAIL_LOT_BYTES: usize = 1 << 20;
/// Lots that are verified while one before them is judged.
pub const TAIL_LOTS_AHEAD_MAX: usize = 4;
/// Fewer entries than this are not worth a thread of their own to verify.
pub const VERIFIED_BY_ONE_MIN: usize = 8;

// -- Pruning

/// Stubs that are written at a time; each time, the file of all of them is written anew.
pub const PRUNE_STUBS_MAX: usize = 65_536;
/// Their bytes.
pub const PRUNE_BYTES_MAX: usize = 64 << 20;
/// Bytes of stubs in one entry of a log on servers; with one more stub it is still well below what an entry may take.
pub const STUBS_NOTE_BYTES: usize = 192 << 10;
const _: () =
    assert!(STUBS_NOTE_BYTES + STUB_BYTES_MAX + (64 << 10) < agora_realm::limits::ENTRY_BYTES_MAX);
/// Of one stub that is kept so; a turn with a larger one stays in the log.
pub const STUB_BYTES_MAX: usize = 384 << 10;
/// Bytes of stubs that stand in the log before what they are of is taken out of it.
pub const PRUNE_STEP_BYTES: usize = 4 << 20;
/// Bytes of stubs that a host holds in memory before it keeps a snapshot, and with that them.
pub const HELD_STUBS_BYTES_MAX: usize = 16 << 20;
/// Entries after a snapshot before one is kept for that.
pub const SNAPSHOT_FOR_STUBS_EVERY: u64 = 64;
/// How often it is asked again what is kept of a place that has nothing any more, before it is said to be lost.
pub const STUB_TRIES: u32 = 10;
/// How long between two tries.
pub const STUB_AGAIN: Duration = Duration::from_millis(500);
/// How often it is compared how much is gone from a log on servers, and how much was pruned.
pub const MISSING_EVERY: Duration = Duration::from_secs(1);

// -- Moving a log

/// Entries of an import that may be on their way into the log at once.
pub const IMPORT_ENTRIES_WAITING_MAX: usize = 512;
/// Their bytes, except for a single entry larger than that; with what each counts for besides, less than a log's queue takes.
pub const IMPORT_BYTES_WAITING_MAX: usize = 4 << 20;

// -- Agents

/// Linear memory of an agent whose manifest names none, in bytes.
pub const MEMORY_DEFAULT: usize = 64 << 20;
/// The most linear memory a manifest may give an agent, in bytes.
pub const MEMORY_MAX: usize = 1 << 30;
/// Agents of one host; the pooling allocator has room for as many.
pub const AGENTS_MAX: u32 = 1000;
/// Elements in each of an agent's tables.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Wasm stack, in bytes.
pub const STACK_BYTES: usize = 512 << 10;
/// Agents that share a vat thread because they were introduced to each other, before the rest of them goes to other threads; more where
/// the threads have more anyway.
pub const INTRODUCED_TOGETHER_MIN: usize = 32;
/// A component's size, in bytes.
pub const COMPONENT_BYTES_MAX: u64 = 64 << 20;
/// How often a running agent is made to yield its thread.
pub const TICK: Duration = Duration::from_millis(1);
/// The wait before a failed agent is started again; doubles each time, up to `BACKOFF_MAX`.
pub const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest such wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// An agent that ran this long has its backoff forgotten.
pub const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(60);
/// Bytes of one line of an agent's output that are kept.
pub const LINE_BYTES_MAX: usize = 4096;
/// Lines of an agent's output kept per second; the rest are counted.
pub const LINES_PER_SECOND: u32 = 200;
/// Bytes of output that one write may carry.
pub const WRITE_BYTES_MAX: usize = 64 << 10;
/// Resources of the host's (streams and the like) that an instance may hold at once.
pub const RESOURCES_MAX: usize = 1024;
/// Stack of a vat thread. Calls that wait for each other are polled inside each other, so it must bear the deepest nest of them
/// that a wire allows (`agora_guest::wire`): a few KiB for each, and a frame of the engine's own.
pub const VAT_STACK_BYTES: usize = 16 << 20;
/// Bytes one component call may copy across the boundary (what `exchange` carries, with room).
pub const HOSTCALL_BYTES_MAX: usize = 16 << 20;

/// Lines for the host's own diary that may wait for standard error to take them; at most a few KiB each.
pub const DIARY_LINES_WAITING_MAX: usize = 1024;

// -- Services

// Agents that serve agents.

/// Calls in flight between an agent and one that it was introduced to, both directions together; what either got from the other
/// included.
pub const INTRODUCTION_CALLS_MAX: usize = 1024;
/// Bytes that may wait for an agent before other agents' calls to it are refused: far below what ends it.
pub const PEER_BYTES_WAITING_MAX: usize = 4 << 20;
/// Capabilities that an agent may hold before other agents' calls to it are refused: far below what ends it.
pub const PEER_CAPABILITIES_MAX: usize = 4096;
/// Calls that an agent may leave unanswered, wanted still or not, before other agents' calls to it are refused: far below what ends it.
pub const PEER_CALLS_UNANSWERED_MAX: usize = 8192;
/// Bytes that may wait for an agent before other agents' answers to it are lost: it gets an error instead.
pub const PEER_ANSWERS_WAITING_MAX: usize = 8 << 20;
/// Capabilities that an agent may hold before other agents' answers to it are lost.
pub const PEER_ANSWER_CAPABILITIES_MAX: usize = 6144;
/// Bytes of an error's text from another agent that are handed on; the rest is cut.
pub const PEER_ERROR_BYTES_MAX: usize = 4096;
const _: () = assert!(
    PEER_CALLS_UNANSWERED_MAX < Limits::HOST.asked_max
        && PEER_BYTES_WAITING_MAX <= PEER_ANSWERS_WAITING_MAX
        && PEER_ANSWERS_WAITING_MAX + agora_guest::wire::FRAME_BYTES_MAX
            < Limits::HOST.queue_bytes_max
        && PEER_CAPABILITIES_MAX <= PEER_ANSWER_CAPABILITIES_MAX
        && PEER_ANSWER_CAPABILITIES_MAX + Limits::HOST.caps_per_call_max < Limits::HOST.exports_max
);
const _: () = assert!(
    PEER_BYTES_WAITING_MAX + agora_guest::wire::FRAME_BYTES_MAX < Limits::HOST.queue_bytes_max
        && PEER_CAPABILITIES_MAX + Limits::HOST.caps_per_call_max < Limits::HOST.exports_max
);
/// Words of one message between agents, or from a service: it must fit a frame of its receiver's wire, with what stands around it,
/// also when its sender made it overlap itself.
pub const MESSAGE_WORDS_MAX: u64 = (agora_guest::wire::FRAME_BYTES_MAX as u64 - (64 << 10)) / 8;
/// What a bridge between two vat threads bears. What crosses it has been counted on the agents' own wires; past this the bridge ends.
pub const BRIDGE_WIRE: Limits = Limits {
    queue_bytes_max: 64 << 20,
    queue_frames_max: 64 * 1024,
    questions_max: 64 * 1024,
    exports_max: 64 * 1024,
    asked_max: 64 * 1024,
    ..Limits::GUEST
};
/// How long a call waits for the agent it goes to to serve.
pub const SERVE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks meanwhile whether that agent still runs.
pub const SERVE_AGAIN: Duration = Duration::from_millis(200);

// Outside processes.

/// Services of one host.
pub const SERVICES_MAX: usize = 64;
/// Connections to services at once: one for each agent that is using one. Each takes a file descriptor of the host's, of which many
/// systems give a process 1,024.
pub const SERVICE_CONNECTIONS_MAX: usize = 512;
/// What the kernel takes for the path of a socket, in bytes.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long a call to a service may take, where the manifest doesn't say.
pub const SERVICE_DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest that a manifest may allow.
pub const SERVICE_DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// Calls in flight between a service and one agent, in each direction, where the manifest doesn't say.
pub const SERVICE_CALLS_DEFAULT: usize = 64;
/// The most that a manifest may allow.
pub const SERVICE_CALLS_MAX: usize = 1024;
/// Bytes that may wait for a service to take them before more calls of that agent are refused.
pub const SERVICE_BYTES_WAITING_MAX: usize = 4 << 20;
/// Segments of a message from a service.
pub const SERVICE_SEGMENTS_MAX: usize = 512;
/// Bytes of an error's text from a service that are handed on; the rest is cut.
pub const SERVICE_ERROR_BYTES_MAX: usize = 4096;
/// Frames, and bytes, that may wait for an agent before nothing more is read from its services: far below what ends the agent, so
/// that a service's flood waits in the service's own socket.
pub const AGENT_FRAMES_WAITING_MAX: usize = 256;
/// See `AGENT_FRAMES_WAITING_MAX`.
pub const AGENT_BYTES_WAITING_MAX: usize = 1 << 20;
/// What a connection to a service bears; past it the connection ends.
pub const SERVICE_WIRE: Limits = Limits {
    queue_bytes_max: 16 << 20,
    queue_frames_max: 16 * 1024,
    questions_max: 2048,
    unanswered_bytes_max: 4 << 20,
    exports_max: 4096,
    asked_max: 4096,
    ..Limits::HOST
};
// An agent's flood is refused before it ends the connection, and what it has in flight fits.
const _: () = assert!(
    SERVICE_BYTES_WAITING_MAX + agora_guest::wire::FRAME_BYTES_MAX < SERVICE_WIRE.queue_bytes_max
        && SERVICE_CALLS_MAX < SERVICE_WIRE.asked_max
        && SERVICE_CALLS_MAX < SERVICE_WIRE.questions_max
        && AGENT_BYTES_WAITING_MAX + SERVICE_WIRE.unanswered_bytes_max
            < Limits::HOST.queue_bytes_max
        && AGENT_FRAMES_WAITING_MAX + SERVICE_WIRE.questions_max < Limits::HOST.queue_frames_max
);
/// How long the end of a connection to a service may take to tell those who wait.
pub const SERVICE_ENDING_MAX: Duration = Duration::from_secs(1);

// -- Timers

/// Sleeps of one agent at once.
pub const SLEEPS_MAX: usize = 64;
/// The longest sleep.
pub const SLEEP_MAX: Duration = Duration::from_secs(86_400);

// -- Signers

/// Bytes of one message that an agent may have signed.
pub const SIGN_BYTES_MAX: usize = 64 << 10;
/// Signatures of one agent that may be under way at once.
pub const SIGNS_IN_FLIGHT_MAX: usize = 16;
/// Signatures that one agent may ask for in a second.
pub const SIGNS_PER_SECOND_MAX: u32 = 256;

// -- The host

/// How long this host may act without hearing from a log that it shares with other hosts.
pub const LEASE: Duration = Duration::from_secs(2);
/// Markers that may be on their way through the log at once: when it is out of reach, they are not to pile up.
pub const MARKERS_IN_FLIGHT_MAX: usize = 4;
/// What is waited for beyond the lease before others' leases are taken to have run out: what a host takes to notice, and to cut what was
/// in flight.
pub const LEASE_MARGIN: Duration = Duration::from_millis(500);
/// How long what an operator says waits for this host to hear the log, before it is refused; as long as the log itself waits to be reached.
pub const HEARD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a bump's answer waits for other hosts to confirm it, unless it is to wait for all.
pub const CONFIRM_WAIT: Duration = Duration::from_secs(1);
/// Entries between two snapshots of the realm's state.
pub const SNAPSHOT_EVERY: u64 = 16_384;
/// Blocks of 256 leaves of the tree over the log that may wait to be written, 8 KiB each; the oldest are then read from the log again.
pub const TREE_BLOCKS_UNWRITTEN_MAX: usize = 1024;
/// How often a checkpoint is made while entries arrive.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Checkpoints in a data folder; past it every second one of the older half goes.
pub const CHECKPOINTS_KEPT_MAX: usize = 4096;
/// Checkpoints in a data folder with what witnesses signed; past it the oldest go.
pub const CHECKPOINTS_COSIGNED_MAX: usize = 1024;
/// How often this host compares what others told of the log with what it has.
pub const TREES_COMPARED_EVERY: Duration = Duration::from_secs(1);
/// How often a host tells the others what the log was, while entries arrive.
pub const TREE_TOLD_EVERY: Duration = Duration::from_secs(5);
/// After how many entries it tells them at once.
pub const TREE_TOLD_EVERY_ENTRIES: u64 = 4096;
/// Forks that are remembered: one for each other host of a realm.
pub const FORKS_KEPT_MAX: usize = agora_realm::limits::HOSTS_MAX;
/// Stops that may wait for the log; one slot each in the data folder, reserved on creation.
pub const STOPS_PENDING_MAX: usize = 64;
/// How long a stop's answer waits for the log, and for the vat threads, before it says that it is pending.
pub const STOP_WAIT: Duration = Duration::from_secs(3);
/// The wait before a stop that the log did not take is tried again; doubles each time, up to `STOP_AGAIN_MAX`.
pub const STOP_AGAIN_MIN: Duration = Duration::from_millis(50);
/// The longest such wait.
pub const STOP_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Bytes of one waiting stop.
pub const STOP_BYTES_MAX: usize = 1000;
/// How often the tip is written while it moves, and the log's end compared with it.
pub const TIP_EVERY: Duration = Duration::from_secs(1);
/// Own authority entries that are kept before those that mean nothing any more are dropped.
pub const OWN_ENTRIES_MAX: usize = 4096;
/// Revocations of this host's among them; of older ones a log that went back so far is not told again.
pub const OWN_STOPS_MAX: usize = 2048;
const _: () = assert!(OWN_STOPS_MAX < OWN_ENTRIES_MAX);
/// How long a change of an agent's key waits for what the agent said to be in the log, before it is not made.
pub const ROTATE_PATIENCE: Duration = Duration::from_secs(10);
/// How long another holder of a data folder's lock is waited for before it is refused.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(400);
/// How often silence's cursors are written.
pub const CURSORS_EVERY: Duration = Duration::from_secs(1);
/// How long a first Ctrl-C waits for what is in flight.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Nothing may happen for this long before the host calls itself quiet.
pub const QUIET_SETTLE: Duration = Duration::from_millis(60);
/// How long a host that is quiet otherwise waits for a peer to settle something of what was said for it.
pub const QUIET_OWED_MAX: Duration = Duration::from_secs(60);
/// After how long it says so.
pub const QUIET_OWED_TOLD: Duration = Duration::from_millis(500);
const _: () = assert!(QUIET_OWED_MAX.as_millis() > OUTBOX_PATIENCE.as_millis());
/// Operator connections at once.
pub const OPERATORS_MAX: usize = 64;
/// Commands that may wait for one vat thread; stops have their own way past them.
pub const COMMANDS_WAITING_MAX: usize = 256;
/// A reason given for a stop, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 256;

// -- Verifying a record

/// Entries that one thread takes in hand at once: a few milliseconds of work.
pub const AUDIT_LOT_ENTRIES: usize = 256;
/// The same in bytes, except for a single entry larger than that.
pub const AUDIT_LOT_BYTES: usize = 1 << 20;
/// Lots that wait, opened, for one before them; more than there are ever cores at work on them.
pub const AUDIT_LOTS_WAITING_MAX: usize = 256;
/// A checkpoint's file, in bytes.
pub const CHECKPOINT_FILE_BYTES_MAX: u64 = 1 << 20;
/// A proof's file, in bytes.
pub const PROOF_FILE_BYTES_MAX: usize = 64 << 20;

// -- Peers

/// Peers of one host; as many as its dialer has room for.
pub const PEERS_MAX: usize = agora_dial::limits::PEERS_MAX;
/// Addresses that a manifest, the command line and `agora dial` may give one peer, together.
pub const PEER_ADDRESSES_MAX: usize = agora_dial::limits::ADDRESSES_MAX;
/// Bytes of an address that `agora dial` takes.
pub const PEER_ADDRESS_BYTES_MAX: usize = 512;
/// How long `agora dial` waits for the connection: for a dial that is made and greeted at the very end of its time, and what follows.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(30);
const _: () = assert!(
    DIAL_PATIENCE.as_millis() as u64
        > agora_dial::limits::HANDSHAKE_PATIENCE_MS + agora_dial::limits::GREETING_PATIENCE_MS
);
/// Personas of one peer that may speak here in one graft.
pub const PEER_SPEAKERS_MAX: usize = 256;
/// Channels that one peer may follow at once in one graft; each once.
pub const PEER_FOLLOWS_MAX: usize = 256;
/// Keys of guests and grants below its own that one peer may have this host write at once, whatever the connection.
pub const PEER_ENTRIES_BURST: u32 = 2048;
/// The same for each second in the long run.
pub const PEER_ENTRIES_PER_S: u32 = 4;
/// Streams that a peer opened and that may wait for its thread; more are reset. As many as a peer may have open.
pub const PEER_STREAMS_WAITING_MAX: usize = 2 * agora_dial::limits::LANE_STREAMS_IN_MAX;
/// Frames of a peer that may wait for the RPC system before no more is read from it. They are taken in one turn of its thread, which its
/// other connections, and stops, wait for.
pub const PEER_FRAMES_AHEAD_MAX: usize = 16;
/// Their bytes.
pub const PEER_BYTES_AHEAD_MAX: usize = 2 << 20;
/// Bytes of answers and deliveries that may wait for a peer to take them before nothing more is read from it.
pub const PEER_UNTAKEN_BYTES_MAX: usize = 1 << 20;
/// What a message to or from a peer is taken to need beside its payload, in bytes.
pub const MESSAGE_FRAME_BYTES: usize = 512;
/// Bytes that may wait for a peer to take them before no more is delivered to it on the channels that it follows. With a batch more it is
/// still read from.
pub const FOLLOW_UNTAKEN_BYTES_MAX: usize = PEER_UNTAKEN_BYTES_MAX / 2;
const _: () = assert!(FOLLOW_UNTAKEN_BYTES_MAX + BATCH_BYTES_MAX < PEER_UNTAKEN_BYTES_MAX);
/// Batches of such channels that one connection has in memory before they are delivered, and as many again of a further peer's channels.
pub const FOLLOW_BATCHES_READ_MAX: usize = 4;
/// Bytes of deliveries that one connection's peer may leave unanswered before no more is delivered to it.
pub const FOLLOW_UNANSWERED_BYTES_MAX: usize = 4 << 20;
/// Deliveries of one channel that a peer may leave unanswered before no more of it is delivered.
pub const FOLLOW_UNANSWERED_MAX: usize = 4;
const _: () = assert!(PEER_FOLLOWS_MAX * FOLLOW_UNANSWERED_MAX <= PEER_WIRE.questions_max / 2);
/// Frames up to so many bytes together are written to a peer at once. One that is larger is written by itself, and not copied for that.
pub const PEER_GATHERED_BYTES_MAX: usize = 16 << 10;
/// What is read from a peer's stream at once, at least.
pub const PEER_READ_BYTES: usize = 64 << 10;
/// Segments of a message from a peer.
pub const PEER_SEGMENTS_MAX: usize = 512;
/// How long a peer may take nothing that waits for it.
pub const PEER_STALL_MAX: Duration = Duration::from_secs(20);
/// How long the end of a connection to a peer may take to tell those who wait.
pub const PEER_ENDING_MAX: Duration = Duration::from_secs(1);
/// What a connection on the vat lane bears.
pub const PEER_WIRE: Limits = Limits {
    queue_bytes_max: 16 << 20,
    queue_frames_max: 16 * 1024,
    questions_max: 2048,
    unanswered_bytes_max: 8 << 20,
    exports_max: 4096,
    asked_max: 4096,
    ..Limits::HOST
};
/// What a connection on the control lane, or of a login, bears.
pub const PEER_CONTROL_WIRE: Limits = Limits {
    queue_bytes_max: 2 << 20,
    queue_frames_max: 256,
    questions_max: 32,
    cancelled_max: 1024,
    unanswered_bytes_max: 256 << 10,
    exports_max: 16,
    caps_per_call_max: 4,
    caps_per_answer_max: 4,
    asked_max: 32,
    ..Limits::HOST
};
/// What a connection bears on which a peer lends: a graft brings all that it grants.
pub const LENDER_WIRE: Limits = Limits {
    caps_per_answer_max: agora_realm::limits::PERSONA_GRANTS_MAX + 1,
    ..PEER_WIRE
};
/// How long a peer isn't heard on the control lane before calls on what it lent fail.
pub const PEER_LEASE: Duration = Duration::from_secs(2);
/// How long a peer that has lapsed isn't heard before it is dialed beside the connection that there is; and how often then.
pub const PEER_SEEK_EVERY: Duration = Duration::from_secs(2);
/// How often it is pinged there.
pub const PEER_PING_EVERY: Duration = Duration::from_millis(500);
/// How often a peer is asked for its newest checkpoint, beside after each connection.
pub const PEER_EXCHANGE_EVERY: Duration = Duration::from_secs(10);
/// How long it may take to answer.
pub const PEER_EXCHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// Checkpoints that a peer may ask for, and signatures it may bring, at once; one more each second.
pub const PEER_CHECKPOINTS_LOT: u32 = 16;
/// Checkpoints in a row that are not a peer's own before that is an alarm: its key may have been changed meanwhile.
pub const PEER_FOREIGN_MAX: u32 = 3;
/// Pieces of evidence that are kept against a peer.
pub const PEER_EVIDENCE_MAX: usize = 8;
/// The file of them, at most: two checkpoints each.
pub const PEER_EVIDENCE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the copy of one channel of a peer's.
pub const MIRROR_BYTES_MAX: u64 = 64 << 20;
/// What is read of one of its two files, which may have ended a batch over half of that.
pub const MIRROR_FILE_BYTES_MAX: u64 = 48 << 20;
/// How often it is looked whether there is more to copy.
pub const MIRROR_EVERY: Duration = Duration::from_secs(1);
/// What is wrong with a copy, told one by one.
pub const MIRROR_FINDINGS_MAX: usize = 16;
/// How long an operator's ping of a peer waits for its answer.
pub const PEER_PING_PATIENCE: Duration = Duration::from_secs(5);
/// How long a login's signer may take.
pub const LOGIN_PATIENCE: Duration = Duration::from_secs(10);
/// Logins of guests at once, in all: more than one network address may have connections, so that none keeps all others out.
pub const LOGINS_AT_ONCE_MAX: usize = 12;
const _: () = assert!(LOGINS_AT_ONCE_MAX > agora_dial::limits::GUEST_ADDRESS_CONNECTIONS_MAX);
/// Ids whose failed logins are remembered.
pub const LOGINS_REMEMBERED_MAX: usize = 1024;
/// The wait after a first login that failed; doubles each time, up to `LOGIN_AGAIN_MAX`.
pub const LOGIN_AGAIN_MIN: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const LOGIN_AGAIN_MAX: Duration = Duration::from_secs(600);
/// Orders that may wait to be given to the threads of peers, and that may be given and not done.
pub const PEER_ORDERS_MAX: usize = 64;
/// Messages of one of a peer's channels that are kept in memory for those who listen here.
pub const REMOTE_RECENT_MAX: usize = 1024;
/// Their bytes. Older ones are asked for again.
pub const REMOTE_RECENT_BYTES_MAX: usize = 4 << 20;
/// Requests for a peer's history, on one channel, that may wait.
pub const REMOTE_REQUESTS_MAX: usize = 64;
/// Messages said for one of a peer's channels that the peer has not settled. Below the keys that the peer remembers of a persona, so that
/// whatever is sent again after a crash is known there.
pub const OUTBOX_WAITING_MAX: usize = 1024;
/// Their bytes, as far as this run knows of them.
pub const OUTBOX_WAITING_BYTES_MAX: usize = 16 << 20;
/// Messages behind the first that the peer has not settled which it has settled.
pub const OUTBOX_SETTLED_MAX: usize = 1 << 16;
/// Messages of an outbox that are read before the peer has settled those before them: all, so that those of one persona that must wait
/// hold up no others.
pub const OUTBOX_AHEAD_MAX: usize = OUTBOX_WAITING_MAX;
/// Their bytes.
pub const OUTBOX_AHEAD_BYTES_MAX: usize = OUTBOX_WAITING_BYTES_MAX;
/// What became of the latest messages of an outbox is remembered, for who asks again.
pub const OUTBOX_FATES_MAX: usize = 512;
/// The same, with those that stand behind one that is not settled.
pub const OUTBOX_FATES_AHEAD_MAX: usize = OUTBOX_FATES_MAX + OUTBOX_WAITING_MAX;
const _: () = assert!(OUTBOX_FATES_AHEAD_MAX < agora_realm::limits::KEYS_REMEMBERED);
/// How long a call waits for what a peer that is within reach says to it.
pub const OUTBOX_PATIENCE: Duration = Duration::from_secs(30);
/// How often a turn that must wait for a peer, or for room in its outbox, looks again.
pub const OUTBOX_ROOM_AGAIN: Duration = Duration::from_millis(200);
/// How long a peer's refusal text may be here.
pub const FATE_TEXT_BYTES_MAX: usize = 256;
/// The first wait before what a peer can't take now is sent again; it doubles.
pub const OUTBOX_AGAIN_MIN: Duration = Duration::from_millis(50);
/// The longest.
pub const OUTBOX_AGAIN_MAX: Duration = Duration::from_secs(2);
/// How often in a row a peer may say, in a graft that stands, that what a persona speaks through there is of another time, before what
/// that persona said is refused.
pub const OUTBOX_STALE_MAX: u32 = 6;
/// Requests for history that a peer is asked at once, on one channel.
pub const REMOTE_ASKED_MAX: usize = 16;
/// How long a peer may take to answer one.
pub const REMOTE_PATIENCE: Duration = Duration::from_secs(30);
/// How long what is asked of a peer waits for its answer, from when it got out of reach: each change of its epoch, or of what it grants, is
/// such a moment. Above the longest wait before grafting anew.
pub const REMOTE_BACK: Duration = Duration::from_secs(12);
const _: () = assert!(LINK_AGAIN_MAX.as_millis() < REMOTE_BACK.as_millis());
const _: () = assert!(REMOTE_BACK.as_millis() < REMOTE_PATIENCE.as_millis());
/// The pause before it is asked again.
pub const REMOTE_BACK_AGAIN: Duration = Duration::from_millis(10);
/// How often what is known of a peer is written to the data folder, when it changed.
pub const BORROWED_EVERY: Duration = Duration::from_secs(1);
/// How long the start of a host's agents waits for the links to peers whose channels they are granted.
pub const LINK_FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// The first wait before a link that failed is made again; it doubles.
pub const LINK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// The longest.
pub const LINK_AGAIN_MAX: Duration = Duration::from_secs(10);
/// What a peer grants has stood so long when its next change is no reason to wait: whoever holds it here grafts anew with each.
pub const LINK_STEADY: Duration = Duration::from_secs(60);
