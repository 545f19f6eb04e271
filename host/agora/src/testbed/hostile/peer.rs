//! A peer that means harm: what it asks at a host's door, and what it answers to a host that uses what it lends.
//!
//! In: bytes, and who it is. Out: a [`Guest`] whose calls are those of `peer.capnp`, with arguments that are near enough to get
//! somewhere and at times absurd; and whose answers, where it is asked, are of the right shape more often than not.

use std::rc::Rc;

use agora_capnp::act_capnp;
use agora_capnp::channel_capnp::{channel, message as said, sink};
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::peer_capnp::{
    following, hello, link, login_signer, peer_channel, place, terminal,
};
use agora_dial::PeerId;
use agora_realm::checkpoint::{Checkpoint, Signed};
use agora_realm::merkle::{self, Tree};
use agora_realm::{
    Act, Body, Challenge, ChannelName, Entry, Epoch, HostId, Message, Ordinal, PersonaName,
    RealmId, SigningKey, TurnBody, hello_digest,
};
use bytes::Bytes;
use capnp::any_pointer;
use capnp::capability::FromClientHook;
use capnp::message::{Builder, HeapAllocator};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, message, payload, return_};

use super::{Caps, Guest, INTERFACES, frame};

/// Entries of the log that it shows.
const ENTRIES: u64 = 64;
/// The epoch that it says it is in, when it is not lying.
const EPOCH: u64 = 3;
/// Capabilities of its own that it answers with are numbered from here.
const OWN: u32 = 1 << 10;

/// Who a hostile peer is.
pub struct Who {
    seed: u8,
    key: SigningKey,
    realm: RealmId,
    /// Its own libp2p id, and that of the host that it deals with.
    own: PeerId,
    host: PeerId,
    stored: Vec<Bytes>,
    tree: Tree,
}

impl Who {
    /// One with the key of a seed. It has a log in which somebody speaks on `square`, which it can prove.
    ///
    /// # Panics
    /// The seed is no key.
    pub fn new(seed: u8, own: PeerId, host: PeerId) -> Rc<Self> {
        let key = key(seed);
        let realm = RealmId([seed; 32]);
        let (mut stored, mut tree) = (Vec::new(), Tree::new());
        for n in 1..=ENTRIES {
            let message = Message {
                act: Act::Inform,
                parent: None,
                hops: 4,
                key: n,
                content_type: String::new(),
                payload: format!("number {n}").into(),
                time_ms: 1,
                owner: None,
                deadline_ms: 0,
            };
            let entry = Entry {
                realm: Some(realm),
                host: HostId::from(key.public()),
                author: PersonaName::new("worker").ok(),
                signer: key.public(),
                epoch: Epoch(EPOCH),
                time_ms: 1,
                grant: None,
                body: Body::Turn(TurnBody {
                    channel: ChannelName::new("square").expect("it is a name"),
                    through: Ordinal(0),
                    origin: None,
                    messages: vec![message],
                    peer_epoch: Epoch(0),
                }),
            };
            let sealed = entry.seal(&key, &[0; 32]).expect("it is within bounds");
            tree.push(merkle::leaf(sealed.stored()));
            stored.push(sealed.stored().clone());
        }
        Rc::new(Self {
            seed,
            key,
            realm,
            own,
            host,
            stored,
            tree,
        })
    }

    /// The same, under another id, and with no log to show.
    pub fn known_as(&self, own: PeerId) -> Rc<Self> {
        Rc::new(Self {
            seed: self.seed,
            key: key(self.seed),
            realm: self.realm,
            own,
            host: self.host,
            stored: Vec::new(),
            tree: Tree::new(),
        })
    }
}

/// The host key of a seed.
pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes([seed; 32]).expect("it is a key")
}

/// What a hostile one is to the host, and on which lane.
#[derive(Clone, Default)]
pub enum Role {
    /// An agent of the host's.
    #[default]
    Guest,
    /// A known peer, at the door.
    Vat(Rc<Who>),
    /// The same, on the control lane.
    Control(Rc<Who>),
    /// Somebody who isn't known, at the terminal.
    Stranger(Rc<Who>),
    /// A peer whose door the host uses.
    LenderVat(Rc<Who>),
    /// The same, on the control lane.
    LenderControl(Rc<Who>),
}

const AT_THE_DOOR: &[u64] = &[
    membrane::Client::TYPE_ID,
    session::Client::TYPE_ID,
    peer_channel::Client::TYPE_ID,
    peer_channel::Client::TYPE_ID,
    channel::Client::TYPE_ID,
    following::Client::TYPE_ID,
    sink::Client::TYPE_ID,
];
const ON_CONTROL: &[u64] = &[link::Client::TYPE_ID];
const AT_THE_TERMINAL: &[u64] = &[
    terminal::Client::TYPE_ID,
    terminal::Client::TYPE_ID,
    membrane::Client::TYPE_ID,
    peer_channel::Client::TYPE_ID,
    login_signer::Client::TYPE_ID,
];
const LENDING: &[u64] = &[sink::Client::TYPE_ID];

impl Role {
    pub(super) fn is_guest(&self) -> bool {
        matches!(self, Self::Guest)
    }

    /// Whether the host asks it, and it answers what it was asked.
    pub(super) fn answers(&self) -> bool {
        matches!(
            self,
            Self::Stranger(_) | Self::LenderVat(_) | Self::LenderControl(_)
        )
    }

    /// What it finds first.
    pub(super) fn bootstrap(&self) -> u64 {
        match self {
            Self::Control(_) | Self::LenderControl(_) => link::Client::TYPE_ID,
            Self::Stranger(_) => terminal::Client::TYPE_ID,
            _ => membrane::Client::TYPE_ID,
        }
    }

    pub(super) fn interfaces(&self) -> &'static [u64] {
        match self {
            Self::Guest => INTERFACES,
            Self::Vat(_) => AT_THE_DOOR,
            Self::Control(_) => ON_CONTROL,
            Self::Stranger(_) => AT_THE_TERMINAL,
            Self::LenderVat(_) | Self::LenderControl(_) => LENDING,
        }
    }

    /// Whether it knows what this takes.
    pub(super) fn has(&self, interface: u64, method: u16) -> bool {
        let most = match interface {
            peer_channel::Client::TYPE_ID | sink::Client::TYPE_ID => 3,
            link::Client::TYPE_ID => 5,
            terminal::Client::TYPE_ID => 1,
            _ => 0,
        };
        !self.is_guest() && method < most
    }

    /// What the host hands over in this call.
    pub(super) fn handed_over(&self, call: call::Reader<'_>) -> &'static [u64] {
        match (call.get_interface_id(), call.get_method_id()) {
            (peer_channel::Client::TYPE_ID, 1) if !self.is_guest() => LENDING,
            _ => &[],
        }
    }

    fn who(&self) -> Option<Rc<Who>> {
        match self {
            Self::Guest => None,
            Self::Vat(who)
            | Self::Control(who)
            | Self::Stranger(who)
            | Self::LenderVat(who)
            | Self::LenderControl(who) => Some(who.clone()),
        }
    }
}

/// A question of the host's.
#[derive(Debug, Clone, Default)]
pub(super) struct Due {
    id: u32,
    interface: u64,
    method: u16,
    /// What it is about: an ordinal, or a size; and one more.
    from: u64,
    size: u64,
    drafts: u32,
    digest: [u8; 32],
}

impl Due {
    /// An honest one does not answer it while nothing changes.
    fn waits(&self) -> bool {
        let asked = (self.interface, self.method);
        asked == (link::Client::TYPE_ID, 2) || asked == (session::Client::TYPE_ID, 0)
    }
}

/// One after the other, all its own.
fn own(from: &mut u32, count: usize, payload: payload::Builder<'_>) {
    let mut table = payload.init_cap_table(count as u32);
    for i in 0..count as u32 {
        *from += 1;
        table.reborrow().get(i).set_sender_hosted(OWN + *from);
    }
}

impl<'a> Guest<'a> {
    /// A peer that goes by these bytes.
    pub fn peer(bytes: &'a [u8], role: Role) -> Self {
        Self::of(bytes, role)
    }

    /// Whether the host asks, and it is to answer.
    pub fn is_asked(&self) -> bool {
        self.role.answers()
    }

    /// What is said for once.
    fn lies(&mut self) -> bool {
        self.dice.one_in(12)
    }

    pub(super) fn peer_opening(&mut self) -> Vec<Vec<u8>> {
        if self.role.answers() && !matches!(self.role, Role::Stranger(_)) || self.dice.one_in(16) {
            return Vec::new();
        }
        let door_is = self.role.bootstrap();
        let door = self.ask(door_is, u16::MAX);
        let first = self.ask(door_is, 0);
        let bootstrap = frame(|m| m.init_bootstrap().set_question_id(door));
        let mut built = Builder::new(HeapAllocator::new());
        let mut call: call::Builder<'_> = built.init_root::<message::Builder<'_>>().init_call();
        call.set_question_id(first);
        call.set_interface_id(door_is);
        let target = call.reborrow().init_target();
        target.init_promised_answer().set_question_id(door);
        let mut payload = call.init_params();
        let mut caps = Caps::new();
        if door_is != membrane::Client::TYPE_ID {
            let mut content = payload.reborrow().get_content();
            content.imbue_mut(&mut caps);
            self.peer_params(door_is, 0, content);
        }
        own(&mut self.handed_over, caps.len(), payload);
        vec![capnp::serialize::write_message_to_words(&built), bootstrap]
    }

    /// A peer's channel is a channel, too.
    pub(super) fn as_extended(&mut self, interface: u64) -> u64 {
        match interface == peer_channel::Client::TYPE_ID && self.dice.one_in(2) {
            true => channel::Client::TYPE_ID,
            false => interface,
        }
    }

    // -- What it asks

    pub(super) fn peer_params(
        &mut self,
        interface: u64,
        method: u16,
        content: any_pointer::Builder<'_>,
    ) {
        let deaf = self.deaf.clone();
        match (interface, method) {
            (peer_channel::Client::TYPE_ID, 0) => {
                let params = content.init_as::<peer_channel::speaker_params::Builder<'_>>();
                let mut to = params.init_introduction();
                let long = "x".repeat(self.dice.of(300));
                let absurd = [
                    "",
                    "x/y",
                    "a/b/c/d/e",
                    "peer:alpha",
                    "operator:0",
                    "../..",
                    "\u{0}",
                    "keeper@",
                    long.as_str(),
                ];
                to.set_persona(match self.lies() {
                    true => absurd[self.dice.of(absurd.len())],
                    false => ["synth", "planner", "x/y"][self.dice.of(3)],
                });
                // One introduction mostly: each other one is an entry more.
                match self.dice.one_in(24) {
                    true => to.set_public_key(&self.dice.bytes(70)),
                    false => to.set_public_key(&[7; 32]),
                }
                if self.dice.one_in(24) {
                    to.set_component(&self.dice.bytes(70));
                }
                match self.dice.of(12) {
                    0 => to.set_signature(&self.dice.bytes(130)),
                    1..=3 => to.set_signature(&[self.dice.byte(); 64]),
                    _ => {}
                }
            }
            (peer_channel::Client::TYPE_ID, 1) => {
                let mut params = content.init_as::<peer_channel::follow_params::Builder<'_>>();
                params.set_from(self.dice.number());
                if !self.dice.one_in(8) {
                    params.set_sink(FromClientHook::new(deaf));
                }
            }
            (peer_channel::Client::TYPE_ID, 2) => {
                let mut params = content.init_as::<peer_channel::entries_params::Builder<'_>>();
                params.set_from(self.dice.number());
                params.set_count(self.dice.number() as u32);
                params.set_size(self.dice.number());
            }
            (link::Client::TYPE_ID, 0) => {
                let params = content.init_as::<link::hello_params::Builder<'_>>();
                self.hello(params.init_hello());
            }
            (link::Client::TYPE_ID, 2) => {
                let mut params = content.init_as::<link::changed_params::Builder<'_>>();
                params.set_epoch(self.dice.number());
                params.set_revision(self.dice.number());
            }
            (link::Client::TYPE_ID, 3) => {
                let mut params = content.init_as::<link::checkpoint_params::Builder<'_>>();
                params.set_since(self.dice.number());
            }
            (link::Client::TYPE_ID, 4) => {
                let mut params = content.init_as::<link::witnessed_params::Builder<'_>>();
                let known = self.texts.last().and_then(|text| {
                    let text = std::str::from_utf8(text).ok()?;
                    text.parse::<Signed>().ok()
                });
                match (known, self.role.who()) {
                    (Some(mut signed), Some(who)) if !self.lies() => {
                        if let Some(host) = signed.hosts().first() {
                            let _ = signed.cosign(host, &who.key, self.dice.number(), &[0; 32]);
                        }
                        params.set_cosigned(signed.to_string().as_bytes());
                    }
                    _ => params.set_cosigned(&self.dice.bytes(300)),
                }
            }
            (terminal::Client::TYPE_ID, 0) => {
                let mut params = content.init_as::<terminal::login_params::Builder<'_>>();
                if !self.dice.one_in(16) {
                    params.set_signer(FromClientHook::new(deaf));
                }
            }
            (sink::Client::TYPE_ID, 0) if self.dice.one_in(6) => {
                // Drafts for messages: what they hold stands where a message has something else.
                self.params(channel::Client::TYPE_ID, 1, content);
            }
            (sink::Client::TYPE_ID, 0) => {
                let params = content.init_as::<sink::deliver_params::Builder<'_>>();
                let (count, from) = (self.many(), self.dice.number());
                self.messages(from, params.init_messages(count));
            }
            (sink::Client::TYPE_ID, 1) => {
                let mut params = content.init_as::<sink::ended_params::Builder<'_>>();
                params.set_reason("a hostile end");
            }
            (sink::Client::TYPE_ID, 2) => {
                let mut params = content.init_as::<sink::skipped_params::Builder<'_>>();
                params.set_from(self.dice.number());
                params.set_through(self.dice.number());
            }
            _ => {}
        }
    }

    /// A few, mostly.
    fn many(&mut self) -> u32 {
        match self.lies() {
            true => self.dice.of(3000) as u32,
            false => self.dice.of(5) as u32,
        }
    }

    fn messages(&mut self, from: u64, mut list: capnp::struct_list::Builder<'_, said::Owned>) {
        let mut next = from;
        for i in 0..list.len() {
            let mut to = list.reborrow().get(i);
            to.set_ordinal(match self.dice.of(12) {
                0 => self.dice.number(),
                1 => next.wrapping_sub(1),
                _ => next,
            });
            next = next.wrapping_add(1);
            to.set_id(&self.dice.bytes(40));
            to.set_thread(&self.dice.bytes(40));
            let authors = ["worker@01020304", "here/keeper@14141414", "@", "", "x/y/z"];
            to.set_author(authors[self.dice.of(authors.len())]);
            to.set_hops(self.dice.number() as u16);
            to.set_epoch(self.dice.number());
            let payload = self.dice.bytes(24);
            match self.dice.one_in(24) {
                true => to.set_payload(&payload.repeat(1 << 10)),
                false => to.set_payload(&payload),
            }
        }
    }

    fn hello(&mut self, mut to: hello::Builder<'_>) {
        let Some(who) = self.role.who() else {
            return;
        };
        let host = HostId::from(who.key.public());
        let digest = hello_digest(&who.realm, &host, &who.own.to_bytes());
        to.set_version(1);
        to.set_realm(&who.realm.0);
        to.set_host(&host.0);
        to.set_public_key(&who.key.public().0);
        to.set_signature(&who.key.sign(&digest, &[0; 32]));
        to.set_epoch(EPOCH);
        to.set_name("here");
        if self.lies() {
            match self.dice.of(7) {
                0 => to.set_version(self.dice.number() as u16),
                1 => to.set_realm(&self.dice.bytes(40)),
                2 => to.set_host(&self.dice.bytes(40)),
                3 => to.set_public_key(&self.dice.bytes(40)),
                4 => to.set_signature(&self.dice.bytes(80)),
                5 => to.set_realm(&[self.dice.byte(); 32]),
                _ => to.set_name("a name \u{0} that is no name".repeat(9).as_str()),
            }
        }
    }

    // -- What it is asked

    pub(super) fn learn_bootstrap(&mut self, id: u32) {
        if self.role.answers() {
            self.due.push_back(Due {
                id,
                method: u16::MAX,
                ..Due::default()
            });
        }
    }

    pub(super) fn learn_call(&mut self, call: call::Reader<'_>) -> capnp::Result<()> {
        if !self.role.answers() {
            return Ok(());
        }
        let mut due = Due {
            id: call.get_question_id(),
            interface: call.get_interface_id(),
            method: call.get_method_id(),
            ..Due::default()
        };
        let content = call.get_params()?.get_content();
        match (due.interface, due.method) {
            (link::Client::TYPE_ID, 3) => {
                let params: link::checkpoint_params::Reader<'_> = content.get_as()?;
                due.from = params.get_since();
            }
            (peer_channel::Client::TYPE_ID, 2) => {
                let params: peer_channel::entries_params::Reader<'_> = content.get_as()?;
                (due.from, due.size) = (params.get_from(), params.get_size());
            }
            (channel::Client::TYPE_ID, 1) => {
                let params: channel::speak_params::Reader<'_> = content.get_as()?;
                due.drafts = params.get_drafts()?.len();
            }
            (channel::Client::TYPE_ID, 3) => {
                let params: channel::history_params::Reader<'_> = content.get_as()?;
                due.from = params.get_from();
            }
            (login_signer::Client::TYPE_ID, 0) => {
                let params: login_signer::sign_params::Reader<'_> = content.get_as()?;
                due.digest = self.digest(params.get_challenge()?)?;
            }
            _ => {}
        }
        self.due.push_back(due);
        Ok(())
    }

    fn digest(
        &self,
        challenge: agora_capnp::peer_capnp::challenge::Reader<'_>,
    ) -> capnp::Result<[u8; 32]> {
        let bytes = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).unwrap_or_default();
        let Some(who) = self.role.who() else {
            return Ok([0; 32]);
        };
        let challenge = Challenge {
            nonce: &bytes(challenge.get_nonce()?),
            realm: &RealmId(bytes(challenge.get_realm()?)),
            host: &HostId(bytes(challenge.get_host()?)),
            epoch: Epoch(challenge.get_epoch()),
            challenger: &who.host.to_bytes(),
            caller: &who.own.to_bytes(),
        };
        Ok(challenge.digest())
    }

    /// Whether it has been given nothing yet that it could call, and waits for questions; now and then it calls all the same.
    pub(super) fn has_nothing(&mut self) -> bool {
        self.role.answers() && self.exports.is_empty() && !self.errs()
    }

    /// Its next answer, unless it does something else first.
    pub(super) fn answers_due(&mut self) -> Option<Vec<u8>> {
        if self.due.is_empty() || self.dice.one_in(6) {
            return None;
        }
        let due = self.due.pop_front()?;
        if due.waits() && !self.dice.one_in(8) {
            return None;
        }
        let mut built = Builder::new(HeapAllocator::new());
        let root = built.init_root::<message::Builder<'_>>();
        let mut answer: return_::Builder<'_> = root.init_return();
        answer.set_answer_id(due.id);
        answer.set_release_param_caps(false);
        if due.waits() || self.lies() {
            self.exception(answer.init_exception());
            return Some(capnp::serialize::write_message_to_words(&built));
        }
        let mut payload = answer.init_results();
        let mut caps = Caps::new();
        let mut content = payload.reborrow().get_content();
        content.imbue_mut(&mut caps);
        self.results(&due, content);
        match self.lies() {
            true => self.descriptors(caps.len(), payload),
            false => own(&mut self.handed_over, caps.len(), payload),
        }
        Some(capnp::serialize::write_message_to_words(&built))
    }

    fn results(&mut self, due: &Due, mut content: any_pointer::Builder<'_>) {
        let deaf = self.deaf.clone();
        match (due.interface, due.method) {
            (0, u16::MAX) => content.set_as_capability(deaf),
            (link::Client::TYPE_ID, 0) => {
                let results = content.init_as::<link::hello_results::Builder<'_>>();
                self.hello(results.init_hello());
            }
            (link::Client::TYPE_ID, 1) => {
                let mut results = content.init_as::<link::ping_results::Builder<'_>>();
                results.set_epoch(EPOCH);
                if self.lies() {
                    results.set_epoch(self.dice.number());
                    results.set_revision(self.dice.number());
                }
            }
            (link::Client::TYPE_ID, 3) => {
                let results = content.init_as::<link::checkpoint_results::Builder<'_>>();
                self.checkpoint(due.from, results);
            }
            (membrane::Client::TYPE_ID, 0) => {
                let mut results = content.init_as::<membrane::graft_results::Builder<'_>>();
                results.set_epoch(match self.lies() {
                    true => self.dice.number(),
                    false => EPOCH,
                });
                results.set_persona("peer:here");
                results.set_session(FromClientHook::new(deaf.clone()));
                let count = match self.lies() {
                    true => self.dice.of(600) as u32,
                    false => 1 + self.dice.of(3) as u32,
                };
                let mut grants = results.init_grants(count);
                for i in 0..count {
                    let mut grant = grants.reborrow().get(i);
                    let absurd = [
                        "square",
                        "",
                        "../..",
                        "peer:q",
                        "x/y/z/a/b",
                        "\u{0}",
                        "timer",
                    ];
                    grant.set_name(match self.lies() {
                        true => absurd[self.dice.of(absurd.len())],
                        false => ["square", "news", "x/y"][i as usize % 3],
                    });
                    grant.set_interface_id(peer_channel::Client::TYPE_ID);
                    if self.dice.one_in(6) {
                        self.terms(grant.reborrow().init_terms());
                    }
                    grant.init_capability().set_as_capability(deaf.clone());
                }
            }
            (channel::Client::TYPE_ID, 0) => {
                let results = content.init_as::<channel::info_results::Builder<'_>>();
                self.info(results.init_info());
            }
            (channel::Client::TYPE_ID, 1) => {
                let results = content.init_as::<channel::speak_results::Builder<'_>>();
                let count = match self.lies() {
                    true => self.dice.of(6) as u32,
                    false => due.drafts,
                };
                let mut outcomes = results.init_outcomes(count);
                for i in 0..count {
                    let outcome = outcomes.reborrow().get(i);
                    if self.dice.one_in(3) {
                        let mut refused = outcome.init_refused();
                        let reason = self.dice.number() as u16;
                        if let Ok(reason) = act_capnp::Refusal::try_from(reason) {
                            refused.set_reason(reason);
                        }
                        let long = "why not? ".repeat(self.dice.of(200));
                        refused.set_text(long.as_str());
                        continue;
                    }
                    let mut receipt = outcome.init_receipt();
                    match self.lies() {
                        true => receipt.set_id(&self.dice.bytes(40)),
                        false => receipt.set_id(&[self.dice.byte(); 32]),
                    }
                    receipt.set_ordinal(self.dice.number());
                    receipt.set_epoch(self.dice.number());
                    receipt.set_hops(self.dice.number() as u16);
                    receipt.set_repeated(self.dice.one_in(4));
                }
            }
            (channel::Client::TYPE_ID, 3) if self.dice.one_in(6) => {
                // As in `peer_params`.
                self.params(channel::Client::TYPE_ID, 1, content);
            }
            (channel::Client::TYPE_ID, 3) => {
                let mut results = content.init_as::<channel::history_results::Builder<'_>>();
                results.set_next(match self.lies() {
                    true => self.dice.number(),
                    false => due.from,
                });
                results.set_pruned(match self.lies() {
                    true => self.dice.number(),
                    false => 0,
                });
                let count = self.many();
                self.messages(due.from, results.init_messages(count));
            }
            (peer_channel::Client::TYPE_ID, 0) => {
                let mut results = content.init_as::<peer_channel::speaker_results::Builder<'_>>();
                results.set_channel(FromClientHook::new(deaf));
            }
            (peer_channel::Client::TYPE_ID, 1) => {
                let mut results = content.init_as::<peer_channel::follow_results::Builder<'_>>();
                results.set_following(FromClientHook::new(deaf));
                results.set_floor(self.dice.number());
                self.info(results.init_info());
            }
            (peer_channel::Client::TYPE_ID, 2) => {
                let results = content.init_as::<peer_channel::entries_results::Builder<'_>>();
                self.entries(due, results);
            }
            (login_signer::Client::TYPE_ID, 0) => {
                let mut results = content.init_as::<login_signer::sign_results::Builder<'_>>();
                let Some(who) = self.role.who() else {
                    return;
                };
                results.set_public_key(&who.key.public().0);
                match self.dice.of(4) {
                    0 => results.set_signature(&self.dice.bytes(80)),
                    1 => results.set_signature(&[self.dice.byte(); 64]),
                    _ => results.set_signature(&who.key.sign(&due.digest, &[0; 32])),
                }
            }
            _ => {}
        }
    }

    fn info(&mut self, mut to: channel::info::Builder<'_>) {
        to.set_name("square");
        to.set_hops(self.dice.number() as u16);
        to.set_reactions(self.dice.number() as u32);
        to.set_carry(self.dice.one_in(4));
        to.set_latest(self.dice.number());
        to.set_cursor(self.dice.number());
        to.set_next_key(self.dice.number());
        if self.dice.one_in(6) {
            self.terms(to.init_terms());
        }
    }

    fn checkpoint(&mut self, since: u64, mut to: link::checkpoint_results::Builder<'_>) {
        let Some(who) = self.role.who() else {
            return;
        };
        let size = (since + self.dice.of(6) as u64).clamp(1, ENTRIES);
        let size = match self.lies() {
            true => self.dice.number(),
            false => size,
        };
        let root = match who.tree.root(size) {
            Some(root) if !self.lies() => root,
            _ => [self.dice.byte(); 32],
        };
        let realm = who.realm;
        let text = match self.dice.of(24) {
            0 => self.dice.bytes(200),
            1 => self.dice.bytes(200).repeat(500),
            _ => {
                let signed = Checkpoint { realm, size, root }.sign(&who.key, &[0; 32]);
                signed.to_string().into_bytes()
            }
        };
        to.set_checkpoint(&text);
        let mut proof = who.tree.consistency(since, size).unwrap_or_default();
        if self.lies() {
            proof.resize(self.dice.of(100), [self.dice.byte(); 32]);
        }
        let mut list = to.init_proof(proof.len() as u32);
        for (i, hash) in proof.iter().enumerate() {
            match self.dice.one_in(48) {
                true => list.set(i as u32, &self.dice.bytes(40)),
                false => list.set(i as u32, hash),
            }
        }
    }

    fn entries(&mut self, due: &Due, mut to: peer_channel::entries_results::Builder<'_>) {
        let Some(who) = self.role.who() else {
            return;
        };
        let size = due.size.min(ENTRIES);
        let first = due.from.max(1);
        let count = (size + 1).saturating_sub(first).min(4);
        to.set_next(match self.lies() {
            true => self.dice.number(),
            false => first + count,
        });
        if self.lies() {
            let count = self.many();
            let mut places = to.init_places(count);
            for i in 0..count {
                self.noise(places.reborrow().get(i));
            }
            return;
        }
        let mut places = to.init_places(count as u32);
        for i in 0..count {
            let seq = first + i;
            let mut to = places.reborrow().get(i as u32);
            to.set_ordinal(seq);
            to.set_seq(seq);
            to.set_thread(&[9; 32]);
            to.set_stored(&who.stored[(seq - 1) as usize]);
            let proof = who.tree.inclusion(seq - 1, size).unwrap_or_default();
            let mut list = to.reborrow().init_proof(proof.len() as u32);
            for (i, hash) in proof.iter().enumerate() {
                list.set(i as u32, hash);
            }
            if self.lies() {
                match self.dice.of(7) {
                    0 => to.set_ordinal(self.dice.number()),
                    1 => to.set_seq(self.dice.number()),
                    2 => to.set_index(self.dice.number() as u16),
                    3 => to.set_thread(&self.dice.bytes(40)),
                    4 => to.set_stored(&[]),
                    5 => to.set_stored(&who.stored[self.dice.of(ENTRIES as usize)]),
                    _ => drop(to.init_proof(self.dice.of(80) as u32)),
                }
            }
        }
    }

    fn noise(&mut self, mut to: place::Builder<'_>) {
        to.set_ordinal(self.dice.number());
        to.set_seq(self.dice.number());
        to.set_index(self.dice.number() as u16);
        to.set_thread(&[self.dice.byte(); 32]);
        to.set_stored(&self.dice.bytes(200));
    }

    pub(super) fn learn_peer_results(
        &mut self,
        id: u32,
        asked: (u64, u16),
        payload: payload::Reader<'_>,
    ) -> capnp::Result<()> {
        match asked {
            (peer_channel::Client::TYPE_ID, 0) => {
                self.take(payload, Some(id), &[channel::Client::TYPE_ID])
            }
            (peer_channel::Client::TYPE_ID, 1) => {
                self.take(payload, Some(id), &[following::Client::TYPE_ID])
            }
            (terminal::Client::TYPE_ID, 0) => {
                self.take(payload, Some(id), &[membrane::Client::TYPE_ID])
            }
            (link::Client::TYPE_ID, 3) => {
                let content = payload.get_content();
                let results: link::checkpoint_results::Reader<'_> = content.get_as()?;
                self.texts.push(results.get_checkpoint()?.to_vec());
                Ok(())
            }
            _ => self.take(payload, Some(id), &[]),
        }
    }
}
