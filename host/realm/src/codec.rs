//! Entries to and from the canonical bytes of `entry.capnp`.
//!
//! Promise: `decode` takes any bytes without panic and in time and memory in proportion to them, takes none that are not
//! canonical (so that nothing stands in them twice, or out of reach), and `decode(encode(e)) == e`. Fields that this
//! schema does not know are passed over; one that matters to what counts needs a new format.

use agora_capnp::entry_capnp::{self as schema, entry, grant, key, note, origin, revoke};
use bytes::Bytes;
use capnp::Word;
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions, SegmentArray};

use crate::entry::{
    Body, ChannelBody, ENTRY_FORMAT, Entry, Genesis, GrantBody, Junk, KeyBody, KeySubject,
    LapseBody, Message, NoteBody, Object, Origin, RevokeBody, Revoked, StubBody, TurnBody,
};
use crate::ids::{
    ChannelName, DomainName, Epoch, HostId, NotAName, Ordinal, PersonaId, PersonaName, ServiceName,
};
use crate::limits::{HOSTS_MAX, NESTING_MAX, PEER_ID_BYTES_MAX, TURN_MESSAGES_MAX};
use crate::terms::Terms;

const WORD: usize = 8;

// -- Writing

pub(crate) fn encode(entry: &Entry) -> capnp::Result<Vec<u8>> {
    // As much as it takes, about; the default is zeroed each time, and larger than most entries.
    let segment = HeapAllocator::new().first_segment_words(words_about(entry));
    let mut message = Builder::new(segment);
    write(entry, message.init_root());
    let words = message.into_reader().canonicalize()?;
    Ok(Word::words_to_bytes(&words).to_vec())
}

fn words_about(entry: &Entry) -> u32 {
    const FIXED: usize = 128;
    const A_MESSAGE: usize = 32;
    let messages = match &entry.body {
        Body::Turn(turn) => turn.messages.as_slice(),
        _ => &[],
    };
    let words = |message: &Message| {
        A_MESSAGE + (message.payload.len() + message.content_type.len()).div_ceil(WORD)
    };
    let words = FIXED + messages.iter().map(words).sum::<usize>();
    u32::try_from(words).unwrap_or(u32::MAX)
}

fn write(from: &Entry, mut to: entry::Builder<'_>) {
    to.set_format(ENTRY_FORMAT);
    if let Some(realm) = &from.realm {
        to.set_realm(&realm.0);
    }
    to.set_host(&from.host.0);
    if let Some(author) = &from.author {
        to.set_author(author.as_str());
    }
    to.set_signer(&from.signer.0);
    to.set_epoch(from.epoch.0);
    to.set_time_ms(from.time_ms);
    if let Some(grant) = &from.grant {
        to.set_grant(&grant.0);
    }
    match &from.body {
        Body::Key(body) => write_key(body, to.init_key()),
        Body::Channel(body) => {
            let mut to = to.init_channel();
            to.set_name(body.name.as_str());
            to.set_hops(body.hops);
            to.set_reactions(body.reactions);
            to.set_carry(body.carry);
        }
        Body::Grant(body) => write_grant(body, to.init_grant_issued()),
        Body::Revoke(body) => write_revoke(body, to.init_revoke()),
        Body::Turn(body) => write_turn(body, to.init_turn()),
        Body::Lapse(body) => {
            let mut to = to.init_lapse();
            to.set_channel(body.channel.as_str());
            to.set_thread(&body.thread.0);
        }
        Body::Note(body) => write_note(body, to.init_note()),
    }
}

fn write_key(from: &KeyBody, mut to: key::Builder<'_>) {
    match &from.subject {
        KeySubject::Host(host) => to.set_host(&host.0),
        KeySubject::Persona(name) => to.set_persona(name.as_str()),
    }
    to.set_public_key(&from.public_key.0);
    if let Some(component) = &from.component {
        to.set_component(&component.0);
    }
    to.set_started(from.started);
    if let Some(origin) = &from.origin {
        write_origin(origin, to.reborrow().init_origin());
    }
    if let Some(genesis) = &from.genesis {
        let mut to = to.init_genesis();
        to.set_format(genesis.format);
        to.set_nonce(&genesis.nonce);
        let mut fencers = to.init_fencers(length(genesis.fencers.len()));
        for (i, fencer) in genesis.fencers.iter().enumerate() {
            fencers.set(length(i), &fencer.0);
        }
    }
}

fn write_origin(from: &Origin, mut to: origin::Builder<'_>) {
    to.set_peer(&from.peer);
    if let Some(host) = &from.host {
        to.set_host(&host.0);
    }
    if let Some(realm) = &from.realm {
        to.set_realm(&realm.0);
    }
    if let Some(persona) = &from.persona {
        to.set_persona(persona.as_str());
    }
    if let Some(key) = &from.public_key {
        to.set_public_key(&key.0);
    }
    if let Some(component) = &from.component {
        to.set_component(&component.0);
    }
    if let Some(signature) = &from.signature {
        to.set_signature(signature);
    }
}

fn write_persona(from: &PersonaId, mut to: schema::persona_id::Builder<'_>) {
    to.set_host(&from.host.0);
    to.set_name(from.name.as_str());
}

fn write_grant(from: &GrantBody, mut to: grant::Builder<'_>) {
    write_persona(&from.persona, to.reborrow().init_persona());
    let mut object = to.reborrow().init_object();
    match &from.object {
        Object::Channel(name) => object.set_channel(name.as_str()),
        Object::Timer => object.set_timer(()),
        Object::Service(name) => object.set_service(name.as_str()),
        Object::Signer(domain) => object.set_signer(domain.as_str()),
    }
    from.terms.write(to.reborrow().init_terms());
    if let Some(parent) = &from.parent {
        to.set_parent(&parent.0);
    }
    to.set_lasting(from.lasting);
}

fn write_revoke(from: &RevokeBody, mut to: revoke::Builder<'_>) {
    match &from.what {
        Revoked::Grant(grant) => to.set_grant(&grant.0),
        Revoked::Persona(persona) => write_persona(persona, to.reborrow().init_persona()),
        Revoked::Host(host) => to.set_host(&host.0),
        Revoked::Fence { ends, hold } => {
            let mut to = to.reborrow().init_fence();
            to.set_ends(ends.0);
            to.set_hold(*hold);
        }
    }
    to.set_reason(&from.reason);
    to.set_by(&from.by);
}

fn write_turn(from: &TurnBody, mut to: schema::turn::Builder<'_>) {
    to.set_channel(from.channel.as_str());
    to.set_through(from.through.0);
    if let Some(origin) = &from.origin {
        to.set_origin(origin.as_str());
    }
    to.set_peer_epoch(from.peer_epoch.0);
    let mut messages = to.init_messages(length(from.messages.len()));
    for (i, message) in from.messages.iter().enumerate() {
        let mut to = messages.reborrow().get(length(i));
        to.set_act(message.act.into());
        if let Some(parent) = &message.parent {
            to.set_parent(&parent.0);
        }
        to.set_hops(message.hops);
        to.set_key(message.key);
        to.set_content_type(&message.content_type);
        to.set_payload(&message.payload);
        to.set_time_ms(message.time_ms);
        if let Some(owner) = &message.owner {
            write_persona(owner, to.reborrow().init_owner());
        }
        to.set_deadline_ms(message.deadline_ms);
    }
}

fn write_note(from: &NoteBody, to: note::Builder<'_>) {
    match from {
        NoteBody::Tree { size, root } => {
            let mut to = to.init_tree();
            to.set_size(*size);
            to.set_root(root);
        }
        NoteBody::Prune { channel, through } => {
            let mut to = to.init_prune();
            to.set_channel(channel.as_str());
            to.set_through(through.0);
        }
        NoteBody::Gap {
            first_seq,
            last_seq,
            leaf,
            reason,
        } => {
            let mut to = to.init_gap();
            to.set_first_seq(*first_seq);
            to.set_last_seq(*last_seq);
            to.set_leaf(leaf);
            to.set_reason(reason);
        }
        NoteBody::Incident {
            persona,
            reason,
            count,
        } => {
            let mut to = to.init_incident();
            to.set_persona(persona.as_str());
            to.set_reason(reason);
            to.set_count(*count);
        }
        NoteBody::Stubs { channel, stubs } => {
            let mut to = to.init_stubs();
            to.set_channel(channel.as_str());
            let mut to = to.init_stubs(length(stubs.len()));
            for (at, stub) in stubs.iter().enumerate() {
                let mut to = to.reborrow().get(length(at));
                to.set_seq(stub.seq);
                to.set_leaf(&stub.leaf);
                to.set_stub(&stub.stub);
            }
        }
        NoteBody::Marker { judged } => to.init_marker().set_judged(*judged),
    }
}

/// Lists are bounded far below 32 bits before anything is written.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

// -- Reading

impl From<capnp::Error> for Junk {
    fn from(error: capnp::Error) -> Self {
        Junk::Malformed(error.to_string())
    }
}

impl From<capnp::NotInSchema> for Junk {
    fn from(error: capnp::NotInSchema) -> Self {
        Junk::Malformed(error.to_string())
    }
}

impl From<NotAName> for Junk {
    fn from(error: NotAName) -> Self {
        Junk::Malformed(error.to_string())
    }
}

impl From<std::str::Utf8Error> for Junk {
    fn from(error: std::str::Utf8Error) -> Self {
        Junk::Malformed(error.to_string())
    }
}

/// Where a segment's bytes stand in the stored buffer, so that payloads are slices of it and not copies.
struct Place<'a> {
    stored: &'a Bytes,
    offset: usize,
    segment: &'a [u8],
}

impl Place<'_> {
    fn slice(&self, part: &[u8]) -> Bytes {
        if part.is_empty() {
            return Bytes::new();
        }
        let start = self.offset + (part.as_ptr() as usize - self.segment.as_ptr() as usize);
        self.stored.slice(start..start + part.len())
    }
}

/// Reads the entry that stands in `stored` from `offset` on.
pub(crate) fn decode(stored: &Bytes, offset: usize) -> Result<Entry, Junk> {
    let bytes = &stored[offset..];
    if bytes.is_empty() || !bytes.len().is_multiple_of(WORD) {
        return Err(Junk::Malformed("not a whole number of words".into()));
    }
    // Readers want words where words may be; a buffer cut out of a socket's may be anywhere.
    let mut aligned = Vec::new();
    let segment: &[u8] = if bytes.as_ptr().align_offset(WORD) == 0 {
        bytes
    } else {
        aligned.resize(bytes.len() / WORD, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
        Word::words_to_bytes_mut(&mut aligned).copy_from_slice(bytes);
        Word::words_to_bytes(&aligned)
    };
    let mut options = ReaderOptions::new();
    // Canonical bytes hold nothing twice, and nothing is read here more than a few times.
    options
        .traversal_limit_in_words(Some(bytes.len() / WORD * 8))
        .nesting_limit(NESTING_MAX);
    let segments = [segment];
    let reader = Reader::new(SegmentArray::new(&segments), options);
    if !reader.is_canonical()? {
        return Err(Junk::Malformed("not canonical".into()));
    }
    read(
        reader.get_root()?,
        &Place {
            stored,
            offset,
            segment,
        },
    )
}

fn read(from: entry::Reader<'_>, place: &Place<'_>) -> Result<Entry, Junk> {
    if from.get_format() != ENTRY_FORMAT {
        return Err(Junk::UnknownFormat(from.get_format()));
    }
    let author = text(from.get_author()?)?;
    Ok(Entry {
        realm: some_id(from.get_realm()?)?,
        host: id(from.get_host()?)?,
        author: if author.is_empty() {
            None
        } else {
            Some(PersonaName::new(author)?)
        },
        signer: id(from.get_signer()?)?,
        epoch: Epoch(from.get_epoch()),
        time_ms: from.get_time_ms(),
        grant: some_id(from.get_grant()?)?,
        body: match from.which()? {
            entry::Key(body) => Body::Key(read_key(body?)?),
            entry::Channel(body) => {
                let body = body?;
                Body::Channel(ChannelBody {
                    name: channel(body.get_name()?)?,
                    hops: body.get_hops(),
                    reactions: body.get_reactions(),
                    carry: body.get_carry(),
                })
            }
            entry::GrantIssued(body) => Body::Grant(read_grant(body?)?),
            entry::Revoke(body) => Body::Revoke(read_revoke(body?)?),
            entry::Turn(body) => Body::Turn(read_turn(body?, place)?),
            entry::Lapse(body) => {
                let body = body?;
                Body::Lapse(LapseBody {
                    channel: channel(body.get_channel()?)?,
                    thread: id(body.get_thread()?)?,
                })
            }
            entry::Note(body) => Body::Note(read_note(body?)?),
        },
    })
}

fn read_key(from: key::Reader<'_>) -> Result<KeyBody, Junk> {
    Ok(KeyBody {
        subject: match from.which()? {
            key::Host(host) => KeySubject::Host(id(host?)?),
            key::Persona(name) => KeySubject::Persona(PersonaName::new(text(name?)?)?),
        },
        public_key: id(from.get_public_key()?)?,
        component: some_id(from.get_component()?)?,
        started: from.get_started(),
        genesis: if from.has_genesis() {
            Some(read_genesis(from.get_genesis()?)?)
        } else {
            None
        },
        origin: if from.has_origin() {
            Some(Box::new(read_origin(from.get_origin()?)?))
        } else {
            None
        },
    })
}

fn read_origin(from: origin::Reader<'_>) -> Result<Origin, Junk> {
    let peer = from.get_peer()?;
    if !(1..=PEER_ID_BYTES_MAX).contains(&peer.len()) {
        return Err(Junk::Malformed(format!(
            "a peer id of {} bytes",
            peer.len()
        )));
    }
    let signature = from.get_signature()?;
    Ok(Origin {
        peer: peer.to_vec(),
        host: some_id(from.get_host()?)?,
        realm: some_id(from.get_realm()?)?,
        persona: match text(from.get_persona()?)? {
            "" => None,
            persona => Some(PersonaName::new(persona)?),
        },
        public_key: some_id(from.get_public_key()?)?,
        component: some_id(from.get_component()?)?,
        signature: match signature.len() {
            0 => None,
            bytes => Some(signature.try_into().map_err(|_| {
                Junk::Malformed(format!("{bytes} bytes where a signature of 64 belongs"))
            })?),
        },
    })
}

fn read_genesis(from: schema::genesis::Reader<'_>) -> Result<Genesis, Junk> {
    let fencers = from.get_fencers()?;
    if fencers.len() as usize > HOSTS_MAX {
        return Err(Junk::Malformed(format!("{} fencers", fencers.len())));
    }
    Ok(Genesis {
        format: from.get_format(),
        nonce: bytes32(from.get_nonce()?)?,
        fencers: fencers
            .iter()
            .map(|fencer| id::<HostId>(fencer?))
            .collect::<Result<_, _>>()?,
    })
}

fn read_persona(from: schema::persona_id::Reader<'_>) -> Result<PersonaId, Junk> {
    Ok(PersonaId {
        host: id(from.get_host()?)?,
        name: PersonaName::new(text(from.get_name()?)?)?,
    })
}

fn read_grant(from: grant::Reader<'_>) -> Result<GrantBody, Junk> {
    Ok(GrantBody {
        persona: read_persona(from.get_persona()?)?,
        object: match from.get_object().which()? {
            grant::object::Channel(name) => Object::Channel(channel(name?)?),
            grant::object::Timer(()) => Object::Timer,
            grant::object::Service(name) => Object::Service(ServiceName::new(text(name?)?)?),
            grant::object::Signer(domain) => Object::Signer(DomainName::new(text(domain?)?)?),
        },
        terms: Terms::read(from.get_terms()?)?,
        parent: some_id(from.get_parent()?)?,
        lasting: from.get_lasting(),
    })
}

fn read_revoke(from: revoke::Reader<'_>) -> Result<RevokeBody, Junk> {
    Ok(RevokeBody {
        what: match from.which()? {
            revoke::Grant(grant) => Revoked::Grant(id(grant?)?),
            revoke::Persona(persona) => Revoked::Persona(read_persona(persona?)?),
            revoke::Host(host) => Revoked::Host(id(host?)?),
            revoke::Fence(fence) => {
                let fence = fence?;
                Revoked::Fence {
                    ends: Epoch(fence.get_ends()),
                    hold: fence.get_hold(),
                }
            }
        },
        reason: text(from.get_reason()?)?.to_owned(),
        by: text(from.get_by()?)?.to_owned(),
    })
}

fn read_turn(from: schema::turn::Reader<'_>, place: &Place<'_>) -> Result<TurnBody, Junk> {
    let messages = from.get_messages()?;
    if messages.len() as usize > TURN_MESSAGES_MAX {
        return Err(Junk::Malformed(format!(
            "{} messages in a turn",
            messages.len()
        )));
    }
    Ok(TurnBody {
        channel: channel(from.get_channel()?)?,
        through: Ordinal(from.get_through()),
        origin: match text(from.get_origin()?)? {
            "" => None,
            origin => Some(ChannelName::new(origin)?),
        },
        peer_epoch: Epoch(from.get_peer_epoch()),
        messages: messages
            .iter()
            .map(|message| read_message(message, place))
            .collect::<Result<_, _>>()?,
    })
}

fn read_message(from: schema::message::Reader<'_>, place: &Place<'_>) -> Result<Message, Junk> {
    Ok(Message {
        act: from.get_act()?.into(),
        parent: some_id(from.get_parent()?)?,
        hops: from.get_hops(),
        key: from.get_key(),
        content_type: text(from.get_content_type()?)?.to_owned(),
        payload: place.slice(from.get_payload()?),
        time_ms: from.get_time_ms(),
        owner: if from.has_owner() {
            Some(read_persona(from.get_owner()?)?)
        } else {
            None
        },
        deadline_ms: from.get_deadline_ms(),
    })
}

fn read_note(from: note::Reader<'_>) -> Result<NoteBody, Junk> {
    Ok(match from.which()? {
        note::Tree(tree) => {
            let tree = tree?;
            NoteBody::Tree {
                size: tree.get_size(),
                root: bytes32(tree.get_root()?)?,
            }
        }
        note::Prune(prune) => {
            let prune = prune?;
            NoteBody::Prune {
                channel: channel(prune.get_channel()?)?,
                through: Ordinal(prune.get_through()),
            }
        }
        note::Gap(gap) => {
            let gap = gap?;
            NoteBody::Gap {
                first_seq: gap.get_first_seq(),
                last_seq: gap.get_last_seq(),
                leaf: bytes32(gap.get_leaf()?)?,
                reason: text(gap.get_reason()?)?.to_owned(),
            }
        }
        note::Incident(incident) => {
            let incident = incident?;
            NoteBody::Incident {
                persona: PersonaName::new(text(incident.get_persona()?)?)?,
                reason: text(incident.get_reason()?)?.to_owned(),
                count: incident.get_count(),
            }
        }
        note::Stubs(stubs) => {
            let from = stubs?;
            let mut stubs = Vec::new();
            for stub in from.get_stubs()? {
                stubs.push(StubBody {
                    seq: stub.get_seq(),
                    leaf: bytes32(stub.get_leaf()?)?,
                    stub: Bytes::copy_from_slice(stub.get_stub()?),
                });
            }
            NoteBody::Stubs {
                channel: channel(from.get_channel()?)?,
                stubs,
            }
        }
        note::Marker(marker) => NoteBody::Marker {
            judged: marker?.get_judged(),
        },
    })
}

fn bytes32(data: &[u8]) -> Result<[u8; 32], Junk> {
    data.try_into()
        .map_err(|_| Junk::Malformed(format!("{} bytes where 32 belong", data.len())))
}

fn id<T: From<[u8; 32]>>(data: &[u8]) -> Result<T, Junk> {
    bytes32(data).map(T::from)
}

fn some_id<T: From<[u8; 32]>>(data: &[u8]) -> Result<Option<T>, Junk> {
    if data.is_empty() {
        Ok(None)
    } else {
        id(data).map(Some)
    }
}

fn text(text: capnp::text::Reader<'_>) -> Result<&str, Junk> {
    Ok(text.to_str()?)
}

fn channel(name: capnp::text::Reader<'_>) -> Result<ChannelName, Junk> {
    Ok(ChannelName::new(text(name)?)?)
}
