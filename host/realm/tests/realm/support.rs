//! A realm in the making: builds entries, judges each as it is put, and keeps the log.

use std::collections::BTreeMap;

use agora_realm::*;
use bytes::Bytes;

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) log: Vec<Bytes>,
    pub(crate) realm: Option<RealmId>,
    keys: BTreeMap<PublicKey, SigningKey>,
    spoken: u64,
}

pub(crate) fn secret(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// The host whose first key is `secret(n)`.
pub(crate) fn host(n: u8) -> HostId {
    secret(n).public().into()
}

pub(crate) fn message(act: Act) -> Message {
    Message {
        act,
        parent: None,
        hops: 0,
        key: 0,
        content_type: String::new(),
        payload: Bytes::new(),
        time_ms: 0,
        owner: None,
        deadline_ms: 0,
    }
}

pub(crate) fn key_body(subject: KeySubject, key: &SigningKey) -> KeyBody {
    KeyBody {
        subject,
        public_key: key.public(),
        component: None,
        started: false,
        genesis: None,
        origin: None,
    }
}

pub(crate) fn genesis_entry(key: &SigningKey, fencers: Vec<HostId>) -> Entry {
    let host = HostId::from(key.public());
    let genesis = Genesis {
        format: REALM_FORMAT,
        nonce: [9; 32],
        fencers,
    };
    Entry {
        realm: None,
        host,
        author: None,
        signer: key.public(),
        epoch: Epoch(1),
        time_ms: 0,
        grant: None,
        body: Body::Key(KeyBody {
            genesis: Some(genesis),
            ..key_body(KeySubject::Host(host), key)
        }),
    }
}

/// What a peer's or a guest's key has to say of where it comes from; None for all others.
pub(crate) fn origin_of(name: &PersonaName) -> Option<Box<Origin>> {
    (name.is_peer() || name.is_guest()).then(|| {
        Box::new(Origin {
            peer: vec![4; 38],
            host: Some(host(8)),
            realm: None,
            persona: name.at_peer(),
            public_key: None,
            component: None,
            signature: None,
        })
    })
}

/// The epoch of the peer that is spoken in on this channel: none on the realm's own.
pub(crate) fn peer_epoch(channel: &ChannelName) -> Epoch {
    Epoch(u64::from(channel.is_remote()) * 5)
}

impl World {
    /// A realm of host 1, with the channel `c` of 3 hops.
    pub(crate) fn new() -> World {
        let mut world = World::fenced_by(Vec::new());
        world.channel("c", 3, 256, false);
        world
    }

    pub(crate) fn fenced_by(fencers: Vec<HostId>) -> World {
        let mut world = World {
            state: State::new(),
            log: Vec::new(),
            realm: None,
            keys: BTreeMap::new(),
            spoken: 0,
        };
        world.know(secret(1));
        let judged = world.put(genesis_entry(&secret(1), fencers));
        assert_eq!(judged.verdict, Ok(()));
        world.realm = judged.id.map(RealmId::from);
        world
    }

    pub(crate) fn know(&mut self, key: SigningKey) -> PublicKey {
        let public = key.public();
        self.keys.insert(public, key);
        public
    }

    pub(crate) fn seal(&self, entry: Entry) -> Sealed {
        let key = &self.keys[&entry.signer];
        entry.seal(key, &[0; 32]).unwrap()
    }

    pub(crate) fn put(&mut self, entry: Entry) -> Judged {
        let sealed = self.seal(entry);
        self.put_sealed(&sealed)
    }

    pub(crate) fn put_sealed(&mut self, sealed: &Sealed) -> Judged {
        self.log.push(sealed.stored().clone());
        judge(&mut self.state, self.log.len() as u64, Ok(sealed))
    }

    /// An entry by host 1 itself.
    pub(crate) fn entry(&self, body: Body) -> Entry {
        self.entry_of(1, body)
    }

    pub(crate) fn entry_of(&self, n: u8, body: Body) -> Entry {
        Entry {
            realm: self.realm,
            host: host(n),
            author: None,
            signer: secret(n).public(),
            epoch: self.state.epoch(),
            time_ms: 0,
            grant: None,
            body,
        }
    }

    pub(crate) fn join(&mut self, n: u8) -> Judged {
        self.know(secret(n));
        let body = key_body(KeySubject::Host(host(n)), &secret(n));
        let mut entry = self.entry(Body::Key(body));
        entry.time_ms = self.log.len() as i64;
        self.put(entry)
    }

    pub(crate) fn channel(&mut self, name: &str, hops: u16, reactions: u32, carry: bool) {
        let body = ChannelBody {
            name: channel(name),
            hops,
            reactions,
            carry,
        };
        assert_eq!(self.put(self.entry(Body::Channel(body))).verdict, Ok(()));
    }

    /// A persona of host 1, whose key is made from its name.
    pub(crate) fn persona(&mut self, name: &str) -> PersonaId {
        self.persona_of(1, name)
    }

    pub(crate) fn persona_of(&mut self, n: u8, name: &str) -> PersonaId {
        let id = PersonaId::new(host(n), PersonaName::new(name).unwrap());
        assert_eq!(self.key(&id, false).verdict, Ok(()));
        id
    }

    pub(crate) fn persona_key(id: &PersonaId) -> SigningKey {
        SigningKey::from_bytes(tagged_hash(
            "test/persona",
            &[&id.host.0, id.name.as_str().as_bytes()],
        ))
        .unwrap()
    }

    pub(crate) fn key(&mut self, id: &PersonaId, started: bool) -> Judged {
        let n = (1..9).find(|n| host(*n) == id.host).unwrap();
        let key = World::persona_key(id);
        let body = KeyBody {
            started,
            origin: origin_of(&id.name),
            ..key_body(KeySubject::Persona(id.name.clone()), &key)
        };
        self.know(key);
        let mut entry = self.entry_of(n, Body::Key(body));
        entry.time_ms = self.log.len() as i64;
        self.put(entry)
    }

    pub(crate) fn grant_entry(
        &self,
        to: &PersonaId,
        name: &str,
        terms: Terms,
        parent: Option<GrantId>,
    ) -> Entry {
        let object = Object::Channel(channel(name));
        let body = GrantBody {
            persona: to.clone(),
            object,
            terms,
            parent,
            lasting: false,
        };
        let mut entry = self.entry(Body::Grant(body));
        entry.time_ms = self.log.len() as i64;
        entry
    }

    pub(crate) fn grant(&mut self, to: &PersonaId, name: &str, terms: Terms) -> GrantId {
        let judged = self.put(self.grant_entry(to, name, terms, None));
        assert_eq!(judged.verdict, Ok(()));
        judged.id.unwrap().into()
    }

    pub(crate) fn lend(
        &mut self,
        to: &PersonaId,
        name: &str,
        terms: Terms,
        parent: GrantId,
    ) -> GrantId {
        let judged = self.put(self.grant_entry(to, name, terms, Some(parent)));
        assert_eq!(judged.verdict, Ok(()));
        judged.id.unwrap().into()
    }

    pub(crate) fn revoke(&mut self, what: Revoked) -> Judged {
        self.put(self.revoke_entry(what))
    }

    pub(crate) fn revoke_entry(&self, what: Revoked) -> Entry {
        let mut entry = self.entry(Body::Revoke(RevokeBody {
            what,
            reason: String::new(),
            by: String::new(),
        }));
        entry.time_ms = self.log.len() as i64;
        entry
    }

    pub(crate) fn fence(&mut self) -> Judged {
        let ends = self.state.epoch();
        let judged = self.revoke(Revoked::Fence { ends, hold: false });
        assert_eq!(judged.verdict, Ok(()));
        judged
    }

    pub(crate) fn turn_entry(
        &self,
        by: &PersonaId,
        grant: Option<GrantId>,
        body: TurnBody,
    ) -> Entry {
        Entry {
            realm: self.realm,
            host: by.host,
            author: Some(by.name.clone()),
            signer: World::persona_key(by).public(),
            epoch: self.state.epoch(),
            time_ms: 0,
            grant,
            body: Body::Turn(body),
        }
    }

    /// Says one message under the next key.
    pub(crate) fn say(
        &mut self,
        by: &PersonaId,
        grant: GrantId,
        name: &str,
        mut said: Message,
    ) -> MessageVerdict {
        said.key = self.state.next_key(by, &channel(name));
        self.say_exactly(by, Some(grant), name, said)
    }

    pub(crate) fn say_exactly(
        &mut self,
        by: &PersonaId,
        grant: Option<GrantId>,
        name: &str,
        said: Message,
    ) -> MessageVerdict {
        let judged = self.speak(by, grant, name, vec![said]);
        judged.messages[0].clone()
    }

    pub(crate) fn speak(
        &mut self,
        by: &PersonaId,
        grant: Option<GrantId>,
        name: &str,
        messages: Vec<Message>,
    ) -> Judged {
        let body = TurnBody {
            channel: channel(name),
            through: Ordinal(0),
            origin: None,
            messages,
            peer_epoch: peer_epoch(&channel(name)),
        };
        self.put(self.turn_entry(by, grant, body))
    }

    pub(crate) fn answer(
        &mut self,
        by: &PersonaId,
        grant: GrantId,
        name: &str,
        through: u64,
        messages: Vec<Message>,
    ) -> Judged {
        let body = TurnBody {
            channel: channel(name),
            through: Ordinal(through),
            origin: None,
            messages,
            peer_epoch: peer_epoch(&channel(name)),
        };
        self.spoken += 1;
        let mut entry = self.turn_entry(by, Some(grant), body);
        entry.time_ms = self.spoken as i64;
        self.put(entry)
    }

    /// Says something that counts, with that many hops.
    pub(crate) fn root(&mut self, by: &PersonaId, grant: GrantId, name: &str, hops: u16) -> Placed {
        counted(self.say(
            by,
            grant,
            name,
            Message {
                hops,
                ..message(Act::Inform)
            },
        ))
    }
}

pub(crate) fn counted(verdict: MessageVerdict) -> Placed {
    match verdict {
        MessageVerdict::Counts(placed) => placed,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn reply(to: &Placed, act: Act) -> Message {
    Message {
        parent: Some(to.id),
        hops: to.hops.saturating_sub(1),
        ..message(act)
    }
}
