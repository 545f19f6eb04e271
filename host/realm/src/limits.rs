//! Every bound of the realm, beside the relation it must keep to the others.
//!
//! All of them are part of what `judge` means: hosts that disagree on one would disagree on what counts. Changing
//! one is a change of the realm's format.

/// Stored bytes of one entry, signature included. Below what a log server takes as one message (1 MiB by default),
/// and above two of the largest payloads, so that a turn need not be split for its size alone.
pub const ENTRY_BYTES_MAX: usize = 768 * 1024;
/// Payload bytes of one message. A third of an entry, less than the envelope leaves.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// Messages in one turn entry.
pub const TURN_MESSAGES_MAX: usize = 256;
/// How deep pointers may nest in an entry; the schema needs 5.
pub(crate) const NESTING_MAX: i32 = 16;

/// Bytes of a persona's, channel's or service's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Plain names in the name of a guest or of a remote channel, the peer's own included: so many realms it may come through.
pub const NAME_SEGMENTS_MAX: usize = 4;
/// Bytes of such a name, with what stands between. A name of a file may take 255.
pub const PATH_BYTES_MAX: usize = 3 * NAME_BYTES_MAX;
const _: () = assert!(PATH_BYTES_MAX > NAME_BYTES_MAX && PATH_BYTES_MAX <= 240);
/// Bytes of a libp2p peer id.
pub const PEER_ID_BYTES_MAX: usize = 64;
/// Bytes of a content type.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// Bytes of the reason that a revocation, gap or incident gives.
pub const REASON_BYTES_MAX: usize = 1024;
/// Bytes of a revocation's `by`.
pub const BY_BYTES_MAX: usize = 128;

/// Hosts that a realm ever had, revoked ones included. Also bounds the genesis' list of fencers.
pub const HOSTS_MAX: usize = 1024;
/// Personas that a realm ever had, killed ones included.
pub const PERSONAS_MAX: usize = 16_384;
/// Guests that one peer ever brought, killed ones included.
pub const GUESTS_PER_PEER_MAX: u32 = 1024;
const _: () = assert!((GUESTS_PER_PEER_MAX as usize) < PERSONAS_MAX);
/// Channels of a realm.
pub const CHANNELS_MAX: usize = 1024;
/// Live grants of one persona.
pub const PERSONA_GRANTS_MAX: usize = 1024;
/// Those of them that only the host may issue, without a parent: what others lend must not keep a host from granting.
pub const PERSONA_GRANTS_RESERVED: usize = 256;
/// Grants that one persona may have lent another at a time.
pub const LENT_TO_ONE_MAX: usize = 256;
const _: () = assert!(PERSONA_GRANTS_RESERVED + LENT_TO_ONE_MAX < PERSONA_GRANTS_MAX);
/// Objects that one persona was ever granted by its host: every channel of a realm, and as many services.
pub const PERSONA_OBJECTS_MAX: usize = 2 * CHANNELS_MAX;
/// Grants in one chain, the root of it included. Each message draws on every grant of its chain.
pub const GRANT_DEPTH_MAX: u8 = 16;
/// Cut grants that are still called revoked; of older ones nothing is known any more.
pub const CUT_GRANTS_REMEMBERED: usize = 65_536;
/// Keys, channels, grants and stops that are heard once in one epoch, of all hosts together. Their ids are kept until
/// the fence, so that none takes effect twice. Past the bound what confers something is void as overloaded; stops
/// never are.
pub const AUTHORITY_ENTRIES_PER_EPOCH_MAX: usize = 1 << 20;
/// How many of them there may be when a lent grant is still taken: agents lend, and must not use up what operators need.
pub const AUTHORITY_ENTRIES_LENT_MAX: usize = AUTHORITY_ENTRIES_PER_EPOCH_MAX / 4 * 3;
/// Grants that may be issued under those of one persona in one epoch.
pub const LENT_PER_EPOCH_MAX: u32 = 65_536;
const _: () = assert!((LENT_PER_EPOCH_MAX as usize) < AUTHORITY_ENTRIES_LENT_MAX);
/// The same, under those of a peer, whose every guest speaks under grants of its own.
pub const PEER_LENT_PER_EPOCH_MAX: u32 = GUESTS_PER_PEER_MAX * LENT_TO_ONE_MAX as u32;
const _: () = assert!((PEER_LENT_PER_EPOCH_MAX as usize) < AUTHORITY_ENTRIES_LENT_MAX);

/// The latest messages of a channel: those that may be answered.
pub const WINDOW: u64 = 65_536;
/// Undecided threads with an owner, per channel.
pub const OPEN_DECISIONS_MAX: usize = 1024;
/// Keys whose first receipt is remembered, per persona and channel.
pub const KEYS_REMEMBERED: usize = 4096;
/// Answering turns whose outcome is remembered, per persona, channel and origin channel.
pub const TURNS_REMEMBERED: usize = 4096;
/// Outcomes of messages that these turns may hold together; at least [`TURN_MESSAGES_MAX`], so that the latest turn
/// is always remembered.
pub const TURN_OUTCOMES_REMEMBERED: usize = 4096;
const _: () = assert!(TURN_OUTCOMES_REMEMBERED >= TURN_MESSAGES_MAX);
const _: () = assert!(2 * PAYLOAD_BYTES_MAX < ENTRY_BYTES_MAX);

/// Reactions of a thread for which the manifest says nothing.
pub const REACTIONS_DEFAULT: u32 = 256;

/// Keys that one [`Verifier`](crate::Verifier) keeps read; not part of what `judge` means.
pub const VERIFIER_KEYS_MAX: usize = 4096;
/// Findings of one audit that are told; more are counted.
pub const FINDINGS_MAX: usize = 100;
/// Entries of one proof: what its entry rests on, and a fence for each epoch before it.
pub const PROOF_ENTRIES_MAX: usize = 1 << 16;
