//! News for people: what was judged, as records.
//!
//! In: settled entries. Out: one [`Told`] for each counting message, and for each entry that changed what counts.
//! The operator's `watch` and `log`, the live feed of `run` and its JSON all show these.

use agora_capnp::operator_capnp;
use agora_dial::PeerId;
use agora_realm::{
    Body, ChannelName, Epoch, HostId, KeySubject, Message, MessageId, MessageVerdict, NoteBody,
    Object, Ordinal, Origin, Revoked, State,
};

use super::record::Settled;

/// One record.
#[derive(Debug, Clone)]
pub struct Told {
    /// `message`, or the entry's kind.
    pub kind: &'static str,
    /// Its place in the log.
    pub seq: u64,
    /// Its epoch.
    pub epoch: Epoch,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
    /// The persona's name; empty when the host itself speaks.
    pub author: String,
    /// The host that wrote it.
    pub host: HostId,
    /// The channel it is about, where it is about one.
    pub channel: Option<ChannelName>,
    /// What happened, for people; a message's text.
    pub body: String,
    /// For a message: what it is.
    pub message: Option<ToldMessage>,
}

/// The rest of a message.
#[derive(Debug, Clone)]
pub struct ToldMessage {
    /// Its id.
    pub id: MessageId,
    /// Its place on its channel.
    pub ordinal: Ordinal,
    /// Its thread's root.
    pub thread: MessageId,
    /// Who decides the thread that it roots; empty: nobody.
    pub owner: String,
    /// The message itself.
    pub message: Message,
}

/// A payload as text: as it is when it is UTF-8, in hex otherwise.
pub fn payload_text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("0x{}", crate::hex(payload)),
    }
}

/// Who a peer or a guest is where it comes from, as this host was told.
fn whence(origin: &Origin) -> String {
    let host = match &origin.host {
        Some(host) => format!("host {}", host.short()),
        None => match PeerId::from_bytes(&origin.peer) {
            Ok(id) => format!("peer {id}"),
            Err(_) => format!("peer 0x{}", crate::hex(&origin.peer)),
        },
    };
    match (&origin.persona, &origin.realm) {
        (Some(persona), _) => format!("{persona} of {host}"),
        (None, Some(realm)) => format!("{host} of realm {}", realm.short()),
        (None, None) => host,
    }
}

/// What there is to tell of a settled entry. Void entries and messages are not told.
pub fn tell(settled: &Settled) -> Vec<Told> {
    let Ok(sealed) = &settled.sealed else {
        return Vec::new();
    };
    let entry = sealed.entry();
    let told = |kind, channel: Option<&ChannelName>, body: String| Told {
        kind,
        seq: settled.seq,
        epoch: entry.epoch,
        time_ms: entry.time_ms,
        author: entry
            .author
            .as_ref()
            .map_or(String::new(), ToString::to_string),
        host: entry.host,
        channel: channel.cloned(),
        body,
        message: None,
    };
    // They come twice a second from every host, and tell people nothing.
    if matches!(entry.body, Body::Note(NoteBody::Marker { .. })) {
        return Vec::new();
    }
    if let Body::Turn(turn) = &entry.body {
        let counting = settled.judged.messages.iter().filter_map(|v| match v {
            MessageVerdict::Counts(placed) => Some(placed),
            _ => None,
        });
        return counting
            .map(|placed| {
                let message = turn.messages[usize::from(placed.index)].clone();
                Told {
                    message: Some(ToldMessage {
                        id: placed.id,
                        ordinal: placed.ordinal,
                        thread: placed.thread,
                        owner: message
                            .owner
                            .as_ref()
                            .map_or(String::new(), ToString::to_string),
                        message: message.clone(),
                    }),
                    ..told(
                        "message",
                        Some(&turn.channel),
                        match sealed.is_purged() {
                            true => format!(
                                "(pruned: {} bytes)",
                                sealed.payload_bytes(usize::from(placed.index))
                            ),
                            false => payload_text(&message.payload),
                        },
                    )
                }
            })
            .collect();
    }
    if settled.judged.verdict.is_err() {
        return Vec::new();
    }
    let number = settled
        .judged
        .changes
        .iter()
        .find_map(|change| match change {
            agora_realm::Change::Granted { number, .. } => Some(*number),
            _ => None,
        });
    let one = match &entry.body {
        Body::Turn(_) | Body::Note(NoteBody::Marker { .. }) => return Vec::new(),
        Body::Key(key) => {
            let mut changes = settled.judged.changes.iter();
            let renewed = changes.any(|change| {
                matches!(
                    change,
                    agora_realm::Change::HostKeyed { joined: false, .. }
                        | agora_realm::Change::PersonaKeyed { joined: false, .. }
                )
            });
            let a = if renewed { "a new" } else { "a" };
            let what = match (&key.subject, &key.genesis) {
                (_, Some(_)) => "the realm begins".to_owned(),
                (KeySubject::Host(host), None) => format!("host {} has {a} key", host.short()),
                (KeySubject::Persona(name), None) if key.started => {
                    format!("{name} is started, with a new key")
                }
                (KeySubject::Persona(name), None) => format!("{name} has {a} key"),
            };
            let what = match &key.origin {
                Some(origin) => format!("{what}; it is {}", whence(origin)),
                None => what,
            };
            let kind = if key.genesis.is_some() {
                "genesis"
            } else {
                "key"
            };
            told(kind, None, what)
        }
        Body::Channel(channel) => told(
            "channel",
            Some(&channel.name),
            format!(
                "hops {}, reactions {}{}",
                channel.hops,
                channel.reactions,
                if channel.carry {
                    ", carries over fences"
                } else {
                    ""
                }
            ),
        ),
        Body::Grant(grant) => {
            let (channel, what) = match &grant.object {
                Object::Channel(name) => (Some(name), format!("'{name}'")),
                Object::Timer => (None, "the timer".to_owned()),
                Object::Service(name) => (None, format!("service '{name}'")),
                Object::Signer(domain) => (None, format!("a signer for '{domain}'")),
            };
            let number = number.map_or(String::new(), |number| format!("g{number}: "));
            let terms = match channel {
                Some(_) => format!(" ({})", crate::cli::show::terms(&grant.terms)),
                None => String::new(),
            };
            told(
                "grant",
                channel,
                format!("{number}{} is granted {what}{terms}", grant.persona.name),
            )
        }
        Body::Revoke(revoke) => {
            let by = match revoke.by.is_empty() {
                true => String::new(),
                false => format!(" by {}", revoke.by),
            };
            let reason = match revoke.reason.is_empty() {
                true => String::new(),
                false => format!(": {}", revoke.reason),
            };
            match &revoke.what {
                Revoked::Grant(id) => told(
                    "revoke",
                    None,
                    format!("grant {} is revoked{by}{reason}", id.short()),
                ),
                Revoked::Persona(persona) => told(
                    "kill",
                    None,
                    format!("{} is killed{by}{reason}", persona.name),
                ),
                Revoked::Host(host) => told(
                    "revoke",
                    None,
                    format!("host {} is revoked{by}{reason}", host.short()),
                ),
                Revoked::Fence { ends, hold } => told(
                    "fence",
                    None,
                    format!(
                        "epoch {ends} has ended{by}{reason}{}",
                        if *hold { " (held)" } else { "" }
                    ),
                ),
            }
        }
        Body::Lapse(lapse) => told(
            "lapse",
            Some(&lapse.channel),
            format!("thread {} lapsed undecided", lapse.thread.short()),
        ),
        // Hosts tell each other; people are told when they disagree.
        Body::Note(NoteBody::Tree { .. }) => return Vec::new(),
        // The prune itself is told.
        Body::Note(NoteBody::Stubs { .. }) => return Vec::new(),
        Body::Note(NoteBody::Incident {
            persona,
            reason,
            count,
        }) => {
            let times = match count {
                1 => String::new(),
                n => format!(" ({n} times)"),
            };
            told(
                "incident",
                None,
                format!("{persona} ended{times}: {reason}"),
            )
        }
        Body::Note(NoteBody::Prune { channel, through }) => told(
            "prune",
            Some(channel),
            format!("messages up to {through} may be purged"),
        ),
        Body::Note(NoteBody::Gap {
            first_seq,
            last_seq,
            reason,
            ..
        }) => told(
            "gap",
            None,
            format!("the loss of {first_seq} to {last_seq} is accepted: {reason}"),
        ),
    };
    vec![one]
}

/// What else happened with it, that has no entry of its own: for people.
pub fn asides(settled: &Settled, state: &State) -> Vec<String> {
    let changes = settled.judged.changes.iter();
    changes
        .filter_map(|change| match change {
            agora_realm::Change::BreakerOpened { thread, channel } => {
                let reactions = state.channel(channel).map_or(0, |c| c.settings.reactions);
                Some(format!(
                    "breakerOpen: thread {} on '{channel}' has had its {reactions} reactions; no more of them count",
                    thread.short()
                ))
            }
            agora_realm::Change::Decided { root, channel, .. } => {
                Some(format!("thread {} on '{channel}' is decided", root.short()))
            }
            _ => None,
        })
        .collect()
}

impl Told {
    /// As a JSON line.
    pub fn json(&self) -> serde_json::Value {
        let mut line = serde_json::json!({
            "event": "record",
            "kind": self.kind,
            "seq": self.seq,
            "epoch": self.epoch.0,
            "time_ms": self.time_ms,
            "host": self.host.to_string(),
            "author": self.author,
            "channel": self.channel.as_ref().map(ChannelName::as_str),
            "act": null,
            "hops": null,
            "parent": null,
            "body": self.body,
        });
        if let Some(told) = &self.message {
            line["act"] = told.message.act.as_str().into();
            line["hops"] = told.message.hops.into();
            line["parent"] = told.message.parent.map(|id| id.to_string()).into();
            line["id"] = told.id.to_string().into();
            line["thread"] = told.thread.to_string().into();
            line["ordinal"] = told.ordinal.0.into();
            line["content_type"] = told.message.content_type.as_str().into();
            line["owner"] = told.owner.as_str().into();
        }
        line
    }

    /// Onto the operator's wire.
    pub fn write(&self, mut to: operator_capnp::record::Builder<'_>) {
        to.set_kind(self.kind);
        to.set_seq(self.seq);
        to.set_epoch(self.epoch.0);
        to.set_time_ms(self.time_ms);
        to.set_author(self.author.as_str());
        to.set_host(&self.host.0);
        to.set_body(self.body.as_str());
        if let Some(channel) = &self.channel {
            to.set_channel(channel.as_str());
        }
        if let Some(told) = &self.message {
            let mut message = to.init_message();
            message.set_ordinal(told.ordinal.0);
            message.set_id(&told.id.0);
            if let Some(parent) = &told.message.parent {
                message.set_parent(&parent.0);
            }
            message.set_thread(&told.thread.0);
            message.set_author(self.author.as_str());
            message.set_act(told.message.act.into());
            message.set_hops(told.message.hops);
            message.set_content_type(told.message.content_type.as_str());
            message.set_payload(&told.message.payload);
            message.set_time_ms(told.message.time_ms);
            message.set_epoch(self.epoch.0);
            message.set_owner(told.owner.as_str());
            message.set_deadline_ms(told.message.deadline_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agora_realm::{PersonaName, RealmId};

    #[test]
    fn where_a_guest_comes_from_is_told_as_far_as_it_is_known() {
        let mut origin = Origin {
            peer: vec![1],
            host: None,
            realm: None,
            persona: None,
            public_key: None,
            component: None,
            signature: None,
        };
        assert_eq!(whence(&origin), "peer 0x01");
        origin.host = Some(HostId([0x1a; 32]));
        origin.realm = Some(RealmId([0x2b; 32]));
        assert_eq!(whence(&origin), "host 1a1a1a1a of realm 2b2b2b2b");
        origin.persona = PersonaName::new("synth").ok();
        assert_eq!(whence(&origin), "synth of host 1a1a1a1a");
    }
}
