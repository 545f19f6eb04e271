//! What is signed and stands in the log.
//!
//! In: an [`Entry`] and its author's key, or bytes from the log. Promise: a [`Sealed`] entry has a good signature by
//! the `signer` it names, over exactly the bytes it stores; whether that signer may speak is for
//! [`judge`](crate::judge()). Failure: [`Malformed`] for what must not be signed, [`Junk`] for bytes that are no entry.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::act::{Act, Refusal};
use crate::codec;
use crate::ids::{
    ChannelName, ComponentHash, DomainName, EntryId, Epoch, GrantId, HostId, MessageId, Ordinal,
    PersonaId, PersonaName, PublicKey, RealmId, ServiceName,
};
use crate::key::{SigningKey, Verifier, tagged_hash};
use crate::limits::{
    BY_BYTES_MAX, CONTENT_TYPE_BYTES_MAX, ENTRY_BYTES_MAX, HOSTS_MAX, PEER_ID_BYTES_MAX,
    REASON_BYTES_MAX, TURN_MESSAGES_MAX,
};
use crate::terms::Terms;

/// The format of entries that this crate writes, and the only one it reads.
pub const ENTRY_FORMAT: u16 = 1;
/// The format of a realm's data, as its genesis states it, and the only one this crate judges.
pub const REALM_FORMAT: u16 = 1;

const SIGNATURE_BYTES: usize = 64;
/// The format of stubs, and the only one that is read.
const STUB_FORMAT: u32 = 1;
/// What a stub has besides what is left of its entry: format, id, count, and a length for each message.
const STUB_BYTES_MORE: usize = 4 + 32 + 4 + 4 * TURN_MESSAGES_MAX;

/// One signed statement by a host, or by a persona through its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The realm it belongs to; None in the genesis alone.
    pub realm: Option<RealmId>,
    /// Who wrote it.
    pub host: HostId,
    /// The persona that speaks; None when the host itself does.
    pub author: Option<PersonaName>,
    /// The key that its signature verifies with.
    pub signer: PublicKey,
    /// The epoch it was stamped in.
    pub epoch: Epoch,
    /// The host's clock, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
    /// The grant that a turn is spoken under.
    pub grant: Option<GrantId>,
    /// What it says.
    pub body: Body,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Introduces or renews a key.
    Key(KeyBody),
    /// Declares a channel, or changes its settings.
    Channel(ChannelBody),
    /// Issues a grant.
    Grant(GrantBody),
    /// Takes something back.
    Revoke(RevokeBody),
    /// What one persona says on one channel.
    Turn(TurnBody),
    /// Closes an overdue thread.
    Lapse(LapseBody),
    /// Changes nothing that counts, but belongs on the record.
    Note(NoteBody),
}

/// Introduces or renews a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBody {
    /// Whose key it is.
    pub subject: KeySubject,
    /// The key.
    pub public_key: PublicKey,
    /// The persona's component; None for hosts and operators.
    pub component: Option<ComponentHash>,
    /// The operator started a killed persona again.
    pub started: bool,
    /// In the first entry of a realm.
    pub genesis: Option<Genesis>,
    /// Who a peer or a guest is where it comes from; None for all others.
    pub origin: Option<Box<Origin>>,
}

/// Who a peer or a guest is at its own host, as this host was told. Whether that host said so, [`Origin::introduced_by`] tells.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The libp2p peer id that it came from: 1 to [`PEER_ID_BYTES_MAX`] bytes.
    pub peer: Vec<u8>,
    /// The host's id there.
    pub host: Option<HostId>,
    /// The realm there.
    pub realm: Option<RealmId>,
    /// The persona's name there; None for the host itself.
    pub persona: Option<PersonaName>,
    /// The persona's key there.
    pub public_key: Option<PublicKey>,
    /// The persona's component there.
    pub component: Option<ComponentHash>,
    /// Over [`introduction_digest`](crate::introduction_digest), by that host's key.
    #[serde(with = "halves")]
    pub signature: Option<[u8; 64]>,
}

/// A signature, in a snapshot.
mod halves {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Halves = ([u8; 32], [u8; 32]);

    pub(super) fn serialize<S: Serializer>(
        signature: &Option<[u8; 64]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let halves: Option<Halves> = signature.map(|whole| {
            let half = |from: usize| std::array::from_fn(|at| whole[from + at]);
            (half(0), half(32))
        });
        halves.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<[u8; 64]>, D::Error> {
        let halves = Option::<Halves>::deserialize(from)?;
        Ok(halves.map(|(first, second)| {
            std::array::from_fn(|at| if at < 32 { first[at] } else { second[at - 32] })
        }))
    }
}

/// Whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySubject {
    /// A host's.
    Host(HostId),
    /// That of a persona of the writing host.
    Persona(PersonaName),
}

/// What makes a realm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// Of the realm's data: [`REALM_FORMAT`].
    pub format: u16,
    /// Random, so that no two realms are alike.
    pub nonce: [u8; 32],
    /// The hosts that may end an epoch. Empty: every host of the realm.
    pub fencers: Vec<HostId>,
}

/// Declares a channel, or changes its settings from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelBody {
    /// Which.
    pub name: ChannelName,
    /// What a message without parent may carry at most.
    pub hops: u16,
    /// How many messages besides the root a thread may have before its breaker opens.
    pub reactions: u32,
    /// Messages from before a fence stay to be delivered and answered.
    pub carry: bool,
}

/// Issues a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantBody {
    /// To whom.
    pub persona: PersonaId,
    /// To what.
    pub object: Object,
    /// Its own terms; the effective ones are their meet with the parent's.
    pub terms: Terms,
    /// The grant that this narrows and dies with.
    pub parent: Option<GrantId>,
    /// A grant with a parent dies at the fence unless lasting.
    pub lasting: bool,
}

/// What a grant gives access to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Object {
    /// A channel.
    Channel(ChannelName),
    /// Clocks and timers.
    Timer,
    /// What another agent, or a process beside the host, serves.
    Service(ServiceName),
    /// Signatures in a domain, under the persona's key.
    Signer(DomainName),
}

impl Object {
    /// What it is called where it is granted.
    pub fn name(&self) -> &str {
        match self {
            Self::Channel(name) => name.as_str(),
            Self::Timer => "timer",
            Self::Service(name) => name.as_str(),
            Self::Signer(domain) => domain.as_str(),
        }
    }
}

/// Takes something back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeBody {
    /// What.
    pub what: Revoked,
    /// Why, for people.
    pub reason: String,
    /// Who asked, for people.
    pub by: String,
}

/// What a revocation takes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// One grant, and all below it.
    Grant(GrantId),
    /// A kill: the persona's key.
    Persona(PersonaId),
    /// A host's key, for good.
    Host(HostId),
    /// Everything of one epoch.
    Fence {
        /// The epoch that ends.
        ends: Epoch,
        /// Nothing is granted in the next epoch until it ends too.
        hold: bool,
    },
}

/// What one persona says on one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnBody {
    /// Where it is said.
    pub channel: ChannelName,
    /// What it answers through; zero when it answers nothing.
    pub through: Ordinal,
    /// The channel that `through` is an ordinal of; None for `channel` itself, whose cursor it then moves.
    pub origin: Option<ChannelName>,
    /// What is said.
    pub messages: Vec<Message>,
    /// On a remote channel: the epoch of the peer's realm that it is said in. Zero on all others.
    pub peer_epoch: Epoch,
}

/// One speech act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What is meant.
    pub act: Act,
    /// The message it answers; None for a root.
    pub parent: Option<MessageId>,
    /// How many more times it may be answered in a chain.
    pub hops: u16,
    /// The author's number for it; zero in an answering turn and nowhere else.
    pub key: u64,
    /// A media type; empty for plain text.
    pub content_type: String,
    /// What is said: a slice of the stored bytes, when read from them.
    pub payload: Bytes,
    /// When the host admitted it, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
    /// In a root request: who decides.
    pub owner: Option<PersonaId>,
    /// In a root request with an owner: when the thread lapses, in milliseconds since 1970-01-01 UTC; 0: never.
    pub deadline_ms: i64,
}

/// Closes an overdue thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LapseBody {
    /// The thread's channel.
    pub channel: ChannelName,
    /// The thread's root.
    pub thread: MessageId,
}

/// What belongs on the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoteBody {
    /// What the log was to the host that says so.
    Tree {
        /// How many places it covers.
        size: u64,
        /// The root over them.
        root: [u8; 32],
    },
    /// Messages of a channel up to an ordinal may be purged.
    Prune {
        /// Which channel.
        channel: ChannelName,
        /// The last ordinal that may go.
        through: Ordinal,
    },
    /// The operator accepts that the log lost what the host had seen.
    Gap {
        /// First seq lost.
        first_seq: u64,
        /// Last seq lost.
        last_seq: u64,
        /// The leaf hash that the host kept for `last_seq`; zeros: it kept a checkpoint alone.
        leaf: [u8; 32],
        /// Why, for people.
        reason: String,
    },
    /// An agent was ended.
    Incident {
        /// Which persona of the writing host.
        persona: PersonaName,
        /// Why, for people.
        reason: String,
        /// How many such ends since the last note.
        count: u32,
    },
    /// What is kept of turns that are about to be taken out of a log on servers. Changes nothing.
    Stubs {
        /// Of which channel.
        channel: ChannelName,
        /// In the order of their places, which stand before this.
        stubs: Vec<StubBody>,
    },
    /// The host hears the log. Changes nothing.
    Marker {
        /// The place that the host had judged when it said so.
        judged: u64,
    },
}

/// What is kept of one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubBody {
    /// Where the turn stands, or stood.
    pub seq: u64,
    /// The leaf hash of what stands there.
    pub leaf: [u8; 32],
    /// What is kept, as [`Sealed::stub`] gives it.
    pub stub: Bytes,
}

/// Why an entry must not be signed: its writer's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The stored bytes would exceed the bound.
    #[error("the entry takes {bytes} bytes, {ENTRY_BYTES_MAX} are allowed; split the turn")]
    TooLarge {
        /// How many it takes.
        bytes: usize,
    },
    /// A turn with too many messages.
    #[error("the turn has {0} messages, {TURN_MESSAGES_MAX} are allowed; split it")]
    TooManyMessages(usize),
    /// A text is too long.
    #[error("{field} takes {bytes} bytes, {max} are allowed")]
    TextTooLong {
        /// Which text.
        field: &'static str,
        /// How many bytes it takes.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A genesis with too many fencers.
    #[error("the genesis names {0} fencers, {HOSTS_MAX} are allowed")]
    TooManyFencers(usize),
    /// An origin with no peer id, or one that is too long.
    #[error("the origin's peer id takes {0} bytes, 1 to {PEER_ID_BYTES_MAX} are allowed")]
    PeerId(usize),
    /// The key given is not the one that the entry names.
    #[error("the entry names another signer than the key it is sealed with")]
    OtherSigner,
    /// Something the bounds above rule out, kept as an error rather than a panic.
    #[error("the entry can't be encoded: {0}")]
    Encoding(String),
}

/// Why bytes of the log are no entry. They keep their place in the log and change nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Junk {
    /// More bytes than an entry may take.
    #[error("{0} bytes, an entry takes at most {ENTRY_BYTES_MAX}")]
    TooLarge(usize),
    /// Not the encoding of an entry.
    #[error("not an entry: {0}")]
    Malformed(String),
    /// A format that this crate does not know.
    #[error("entry format {0} is not known here; upgrade")]
    UnknownFormat(u16),
    /// The signature does not verify.
    #[error("the signature does not verify")]
    BadSignature,
}

impl Junk {
    /// What judge says of it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Junk::BadSignature => Refusal::BadSignature,
            Junk::TooLarge(_) | Junk::Malformed(_) | Junk::UnknownFormat(_) => Refusal::Malformed,
        }
    }
}

impl Entry {
    /// Encodes and signs. `aux` should be fresh randomness, see [`SigningKey::sign`].
    ///
    /// # Errors
    /// [`Malformed`] when a bound is passed or the key is not the `signer`'s. Nothing is signed then. Rules that need
    /// the realm's state are not checked here: [`State::admit`](crate::State::admit) does.
    pub fn seal(self, key: &SigningKey, aux: &[u8; 32]) -> Result<Sealed, Malformed> {
        if key.public() != self.signer {
            return Err(Malformed::OtherSigner);
        }
        self.bounded()?;
        let words = codec::encode(&self).map_err(|e| Malformed::Encoding(e.to_string()))?;
        let bytes = SIGNATURE_BYTES + words.len();
        if bytes > ENTRY_BYTES_MAX {
            return Err(Malformed::TooLarge { bytes });
        }
        let id = entry_id(&words);
        let mut stored = Vec::with_capacity(bytes);
        stored.extend_from_slice(&key.sign(&id.0, aux));
        stored.extend_from_slice(&words);
        Sealed::read(id, stored.into()).map_err(|junk| Malformed::Encoding(junk.to_string()))
    }

    /// The bounds that both writer and reader hold an entry to.
    pub(crate) fn bounded(&self) -> Result<(), Malformed> {
        let text = |field, text: &str, max| match text.len() {
            bytes if bytes > max => Err(Malformed::TextTooLong { field, bytes, max }),
            _ => Ok(()),
        };
        match &self.body {
            Body::Key(KeyBody {
                genesis: Some(genesis),
                ..
            }) if genesis.fencers.len() > HOSTS_MAX => {
                Err(Malformed::TooManyFencers(genesis.fencers.len()))
            }
            Body::Key(KeyBody {
                origin: Some(origin),
                ..
            }) if !(1..=PEER_ID_BYTES_MAX).contains(&origin.peer.len()) => {
                Err(Malformed::PeerId(origin.peer.len()))
            }
            Body::Revoke(revoke) => {
                text("reason", &revoke.reason, REASON_BYTES_MAX)?;
                text("by", &revoke.by, BY_BYTES_MAX)
            }
            Body::Turn(turn) if turn.messages.len() > TURN_MESSAGES_MAX => {
                Err(Malformed::TooManyMessages(turn.messages.len()))
            }
            Body::Turn(turn) => turn.messages.iter().try_for_each(|message| {
                text(
                    "content type",
                    &message.content_type,
                    CONTENT_TYPE_BYTES_MAX,
                )
            }),
            Body::Note(NoteBody::Gap { reason, .. } | NoteBody::Incident { reason, .. }) => {
                text("reason", reason, REASON_BYTES_MAX)
            }
            Body::Note(NoteBody::Tree { .. })
            | Body::Key(_)
            | Body::Channel(_)
            | Body::Grant(_)
            | Body::Lapse(_)
            | Body::Note(
                NoteBody::Prune { .. } | NoteBody::Stubs { .. } | NoteBody::Marker { .. },
            ) => Ok(()),
        }
    }
}

/// An entry whose signature is known to be good, because this process made it or verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    id: EntryId,
    stored: Bytes,
    /// Shared: whoever reads a turn's messages holds it once for each.
    entry: Arc<Entry>,
    /// What is kept of a turn whose payloads were purged.
    purged: Option<Arc<Purged>>,
}

/// What is kept of a purged turn besides its entry without payloads.
#[derive(Debug, PartialEq, Eq)]
struct Purged {
    leaf: [u8; 32],
    payload_bytes: Vec<u32>,
}

impl Sealed {
    /// Checks bounds, form and signature.
    ///
    /// # Errors
    /// [`Junk`], which judge takes in the entry's place.
    pub fn open(stored: Bytes) -> Result<Sealed, Junk> {
        let sealed = Sealed::reread(stored)?;
        let signature = sealed.stored.first_chunk().ok_or(Junk::BadSignature)?;
        if !sealed.entry.signer.verifies(&sealed.id.0, signature) {
            return Err(Junk::BadSignature);
        }
        Ok(sealed)
    }

    /// As [`Sealed::open`], with a verifier that remembers keys: for who opens many.
    ///
    /// # Errors
    /// [`Junk`], which judge takes in the entry's place.
    pub fn open_with(stored: Bytes, verifier: &mut Verifier) -> Result<Sealed, Junk> {
        let sealed = Sealed::reread(stored)?;
        let signature = sealed.stored.first_chunk().ok_or(Junk::BadSignature)?;
        if !verifier.verifies(&sealed.entry.signer, &sealed.id.0, signature) {
            return Err(Junk::BadSignature);
        }
        Ok(sealed)
    }

    /// Checks bounds and form and takes the signature on trust. Only for bytes that this host opened before and has
    /// kept where nobody else writes; bytes of a shared log, a peer or an auditor go through [`Sealed::open`].
    ///
    /// # Errors
    /// [`Junk`], but never [`Junk::BadSignature`].
    pub fn reread(stored: Bytes) -> Result<Sealed, Junk> {
        if stored.len() > ENTRY_BYTES_MAX {
            return Err(Junk::TooLarge(stored.len()));
        }
        let Some(words) = stored.get(SIGNATURE_BYTES..) else {
            return Err(Junk::Malformed("shorter than a signature".into()));
        };
        let id = entry_id(words);
        Sealed::read(id, stored)
    }

    /// Bytes that have this id.
    fn read(id: EntryId, stored: Bytes) -> Result<Sealed, Junk> {
        let entry = codec::decode(&stored, SIGNATURE_BYTES)?;
        entry
            .bounded()
            .map_err(|malformed| Junk::Malformed(malformed.to_string()))?;
        Ok(Sealed {
            id,
            stored,
            entry: Arc::new(entry),
            purged: None,
        })
    }

    /// The id that these bytes have if they are an entry, which is not looked at.
    pub fn id_of(stored: &[u8]) -> Option<EntryId> {
        stored.get(SIGNATURE_BYTES..).map(entry_id)
    }

    /// What may be kept in a turn's stead when what was said is to go: all that judge asks for, without payloads and content types.
    /// The signature stays, and is still one over the id; that the rest is of that id rests on the word of whoever keeps it.
    /// None: no turn; such entries stay.
    pub fn stub(&self) -> Option<Bytes> {
        if self.purged.is_some() {
            return Some(self.stored.clone());
        }
        let mut entry = Entry::clone(&self.entry);
        let Body::Turn(turn) = &mut entry.body else {
            return None;
        };
        let mut stub = Vec::new();
        stub.extend_from_slice(&STUB_FORMAT.to_le_bytes());
        stub.extend_from_slice(&self.id.0);
        stub.extend_from_slice(self.stored.get(..SIGNATURE_BYTES)?);
        stub.extend_from_slice(&u32::try_from(turn.messages.len()).ok()?.to_le_bytes());
        for message in &mut turn.messages {
            stub.extend_from_slice(&u32::try_from(message.payload.len()).ok()?.to_le_bytes());
            message.payload = Bytes::new();
            message.content_type.clear();
        }
        stub.extend_from_slice(&codec::encode(&entry).ok()?);
        Some(stub.into())
    }

    /// What a stub says of the entry whose leaf hash is `leaf`. The signature over its id is checked; see [`Sealed::stub`] for what
    /// that is worth.
    ///
    /// # Errors
    /// [`Junk`]: this is no stub.
    pub fn from_stub(leaf: [u8; 32], stub: Bytes) -> Result<Sealed, Junk> {
        let cut = |why: &str| Junk::Malformed(format!("a stub {why}"));
        if stub.len() > ENTRY_BYTES_MAX + STUB_BYTES_MORE {
            return Err(Junk::TooLarge(stub.len()));
        }
        let short = || cut("that is too short");
        let mut rest = &stub[..];
        let mut take = |bytes: usize| {
            let (part, left) = rest.split_at_checked(bytes).ok_or_else(short)?;
            rest = left;
            Ok::<_, Junk>(part)
        };
        let word = |part: &[u8]| {
            part.first_chunk()
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        if word(take(4)?) != STUB_FORMAT {
            return Err(cut("of a format that is not known here; upgrade"));
        }
        let id = EntryId(*take(32)?.first_chunk().ok_or_else(short)?);
        let signature = *take(SIGNATURE_BYTES)?.first_chunk().ok_or_else(short)?;
        let count = word(take(4)?) as usize;
        if count > TURN_MESSAGES_MAX {
            return Err(cut("of more messages than a turn has"));
        }
        let payload_bytes: Vec<u32> = take(4 * count)?.chunks_exact(4).map(word).collect();
        let offset = stub.len() - rest.len();
        let entry = codec::decode(&stub, offset)?;
        match &entry.body {
            Body::Turn(turn)
                if turn.messages.len() == count
                    && turn
                        .messages
                        .iter()
                        .all(|message| message.payload.is_empty()) => {}
            _ => return Err(cut("of something else than a turn without payloads")),
        }
        if !entry.signer.verifies(&id.0, &signature) {
            return Err(Junk::BadSignature);
        }
        let purged = Some(Arc::new(Purged {
            leaf,
            payload_bytes,
        }));
        Ok(Sealed {
            id,
            stored: stub,
            entry: Arc::new(entry),
            purged,
        })
    }

    /// Whether what was said was purged, so that its payloads are empty here.
    pub fn is_purged(&self) -> bool {
        self.purged.is_some()
    }

    /// How many bytes the payload of a turn's message has, or had.
    pub fn payload_bytes(&self, index: usize) -> usize {
        match (&self.purged, &self.entry.body) {
            (Some(purged), _) => purged
                .payload_bytes
                .get(index)
                .map_or(0, |bytes| *bytes as usize),
            (None, Body::Turn(turn)) => turn
                .messages
                .get(index)
                .map_or(0, |message| message.payload.len()),
            (None, _) => 0,
        }
    }

    /// The hash of what stands, or stood, in the log, as a leaf of its tree (RFC 6962).
    pub fn leaf(&self) -> [u8; 32] {
        match &self.purged {
            Some(purged) => purged.leaf,
            None => Sha256::new()
                .chain_update([0])
                .chain_update(&self.stored)
                .finalize()
                .into(),
        }
    }

    /// The entry's id: what is signed.
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// The signature and the canonical bytes, verbatim: what stands in the log. Of a purged one, its stub.
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }

    /// What it says.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The id of the message at `index` of a turn.
    pub fn message_id(&self, index: usize) -> MessageId {
        message_id(self.id, index)
    }
}

fn entry_id(words: &[u8]) -> EntryId {
    EntryId(tagged_hash("agora/entry", &[words]))
}

/// The id of the message at `index` of an entry.
pub fn message_id(entry: EntryId, index: usize) -> MessageId {
    // An index beyond 32 bits can't be in a turn of at most 256 messages; it would name no message.
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    MessageId(tagged_hash(
        "agora/message",
        &[&entry.0, &index.to_be_bytes()],
    ))
}
