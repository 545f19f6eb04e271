//! A guest that means harm, from a string of bytes; and, in [`peer`], a peer.
//!
//! In: bytes, as a fuzzer or a seed gives them. Out: the same [`Move`]s for the same bytes and the same answers of the host: frames that
//! are noise, frames that are valid Cap'n Proto RPC in what they say, do and refer to, and everything between.
//! Promise: bytes that are spent end it; whatever the host answers, it is learned from, so that later frames meet live capabilities,
//! questions and messages.

pub mod peer;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use agora_capnp::act_capnp::Act;
use agora_capnp::channel_capnp::{channel, revoker, sink, subscription};
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::terms_capnp::terms;
use agora_capnp::timer_capnp::timer;
use capnp::capability::FromClientHook;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::private::capability::ClientHook;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, exception, message, message_target, payload, return_,
};

use self::peer::{Due, Role};

/// What a guest does next.
#[derive(Debug)]
pub enum Move {
    /// Hands this to the host.
    Send(Vec<u8>),
    /// Lets the host work for so many turns.
    Yield(u32),
    /// Takes what the host has sent, when there is something.
    Read,
    /// Waits a little for something to read.
    Wait,
    /// Not the guest: an operator fells the wall of its graft.
    Fall,
}

/// Bytes to draw from. What is drawn past the end is zero.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// Below `n`.
    fn of(&mut self, n: usize) -> usize {
        match n {
            0..=1 => 0,
            2..=256 => usize::from(self.byte()) % n,
            _ => (usize::from(self.byte()) << 8 | usize::from(self.byte())) % n,
        }
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.of(n) == n - 1
    }

    /// Small mostly, and at times any.
    fn number(&mut self) -> u64 {
        match self.byte() {
            n @ 0..=199 => u64::from(n) % 20,
            200..=219 => u64::MAX - u64::from(self.byte()),
            220..=239 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.of(most + 1).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken.to_vec()
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.of(of.len())])
    }
}

/// Something of the host's that the guest was given.
#[derive(Debug, Clone, Copy)]
struct Export {
    id: u32,
    interface: u64,
    /// The question whose answer brought it, if one did.
    by: Option<u32>,
}

/// Learns, and moves.
pub struct Guest<'a> {
    dice: Dice<'a>,
    opening: Vec<Vec<u8>>,
    exports: Vec<Export>,
    /// What was asked, by question: the interface and the method.
    asked: HashMap<u32, (u64, u16)>,
    questions: Vec<u32>,
    /// Questions of the host's.
    calls: Vec<u32>,
    messages: Vec<Vec<u8>>,
    embargoes: Vec<u32>,
    /// Promises it handed over and has not resolved.
    promises: Vec<u32>,
    next_question: u32,
    handed_over: u32,
    /// Of so many things that could break the protocol one does; 0: none.
    reckless: usize,
    deaf: Box<dyn ClientHook>,
    role: Role,
    /// What is asked of it and it has not answered, where its role is to answer.
    due: VecDeque<Due>,
    /// Texts that the host gave.
    texts: Vec<Vec<u8>>,
}

struct Deaf;

impl sink::Server for Deaf {}

const INTERFACES: &[u64] = &[
    membrane::Client::TYPE_ID,
    session::Client::TYPE_ID,
    channel::Client::TYPE_ID,
    sink::Client::TYPE_ID,
    subscription::Client::TYPE_ID,
    revoker::Client::TYPE_ID,
    timer::Client::TYPE_ID,
];

type Caps = Vec<Option<Box<dyn ClientHook>>>;

fn frame(build: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut built = Builder::new(HeapAllocator::new());
    build(built.init_root());
    capnp::serialize::write_message_to_words(&built)
}

impl<'a> Guest<'a> {
    /// One that goes by these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::of(bytes, Role::Guest)
    }

    fn of(bytes: &'a [u8], role: Role) -> Self {
        let deaf: sink::Client = capnp_rpc::new_client_from_rc(Rc::new(Deaf));
        let mut guest = Self {
            dice: Dice(bytes),
            opening: Vec::new(),
            exports: Vec::new(),
            asked: HashMap::new(),
            questions: Vec::new(),
            calls: Vec::new(),
            messages: Vec::new(),
            embargoes: Vec::new(),
            promises: Vec::new(),
            next_question: 0,
            handed_over: 0,
            reckless: 0,
            deaf: deaf.into_client_hook(),
            role,
            due: VecDeque::new(),
            texts: Vec::new(),
        };
        // One that breaks the protocol is soon over, so half never do; most arrive as they should, or few would get anywhere.
        guest.reckless = [0, 0, 200, 24][guest.dice.of(4)];
        if !guest.role.is_guest() {
            guest.opening = guest.peer_opening();
        } else if !guest.dice.one_in(8) {
            let door = guest.ask(membrane::Client::TYPE_ID, u16::MAX);
            let graft = guest.ask(membrane::Client::TYPE_ID, 0);
            let bootstrap = frame(|m| m.init_bootstrap().set_question_id(door));
            let graft = frame(|m| {
                let mut call = m.init_call();
                call.set_question_id(graft);
                call.set_interface_id(membrane::Client::TYPE_ID);
                let mut target = call.reborrow().init_target();
                target
                    .reborrow()
                    .init_promised_answer()
                    .set_question_id(door);
                call.init_params();
            });
            guest.opening = vec![graft, bootstrap];
        }
        guest
    }

    fn ask(&mut self, interface: u64, method: u16) -> u32 {
        let id = self.next_question;
        self.next_question += 1;
        self.asked.insert(id, (interface, method));
        self.questions.push(id);
        id
    }

    /// Whether it breaks the protocol, here and now.
    fn errs(&mut self) -> bool {
        self.reckless > 0 && self.dice.one_in(self.reckless)
    }

    /// What it does next; none: its bytes are spent.
    pub fn next_move(&mut self) -> Option<Move> {
        if let Some(frame) = self.opening.pop() {
            return Some(Move::Send(frame));
        }
        if self.dice.0.is_empty() {
            return None;
        }
        if let Some(frame) = self.answers_due() {
            return Some(Move::Send(frame));
        }
        if self.has_nothing() {
            return Some(match self.dice.of(32) {
                0 => Move::Wait,
                _ => Move::Yield(8),
            });
        }
        Some(match self.dice.of(64) {
            0 if self.errs() => Move::Send(self.dice.bytes(600)),
            1..=8 if self.errs() => Move::Send(self.spoilt()),
            9 if self.dice.one_in(6) => Move::Fall,
            0..=6 => Move::Yield(1 + self.dice.of(64) as u32),
            12..=19 => Move::Read,
            20..=24 => Move::Wait,
            _ => Move::Send(self.message()),
        })
    }

    /// A frame that was valid before some of its bytes changed.
    fn spoilt(&mut self) -> Vec<u8> {
        let mut frame = self.message();
        for _ in 0..=self.dice.of(4) {
            let at = self.dice.of(frame.len().max(1));
            if let Some(byte) = frame.get_mut(at) {
                *byte = self.dice.byte();
            }
        }
        if self.dice.one_in(4) {
            frame.truncate(self.dice.of(frame.len() + 1));
        }
        frame
    }

    fn message(&mut self) -> Vec<u8> {
        match self.dice.of(32) {
            0 => {
                let question = self.ask(self.role.bootstrap(), u16::MAX);
                frame(|m| m.init_bootstrap().set_question_id(question))
            }
            1..=14 => self.call(),
            15..=18 => self.answer(),
            19..=22 => self.finish(),
            23..=24 => self.release(),
            25..=26 => self.resolve(),
            27 if !self.embargoes.is_empty() || self.errs() => self.disembargo(),
            28 => self.third_party(),
            29 if self.errs() => self.disembargo(),
            30 if self.errs() => frame(|m| {
                let mut exception = m.init_abort();
                self.exception(exception.reborrow());
            }),
            31 if self.errs() => self.unimplemented(),
            _ => self.call(),
        }
    }

    fn question(&mut self) -> u32 {
        match self.errs() {
            true => self.dice.number() as u32,
            false => self.dice.pick(&self.questions).unwrap_or(0),
        }
    }

    fn export(&mut self) -> Export {
        // The newest are the ones that are not stale yet.
        let recent = match self.dice.one_in(4) {
            true => &self.exports[..],
            false => &self.exports[self.exports.len().saturating_sub(8)..],
        };
        match self.dice.pick(recent) {
            Some(export) if !self.errs() => export,
            _ => Export {
                id: self.dice.number() as u32,
                interface: self.interface(),
                by: None,
            },
        }
    }

    fn target(&mut self, target: message_target::Builder<'_>) -> u64 {
        let held = !self.exports.is_empty() || self.questions.is_empty();
        if held && self.dice.of(4) < 3 {
            let export = self.export();
            let mut target = target;
            target.set_imported_cap(export.id);
            return export.interface;
        }
        let question = self.question();
        let mut answer = target.init_promised_answer();
        answer.set_question_id(question);
        let count = self.dice.of(4) as u32;
        let mut path = answer.init_transform(count);
        for i in 0..count {
            match self.dice.one_in(8) {
                true => path.reborrow().get(i).set_noop(()),
                false => {
                    let field = self.dice.of(4) as u16;
                    path.reborrow().get(i).set_get_pointer_field(field);
                }
            }
        }
        match self.asked.get(&question) {
            Some((interface, u16::MAX)) => *interface,
            _ => self.interface(),
        }
    }

    fn interface(&mut self) -> u64 {
        let all = self.role.interfaces();
        all[self.dice.of(all.len())]
    }

    fn call(&mut self) -> Vec<u8> {
        let mut built = Builder::new(HeapAllocator::new());
        let mut call: call::Builder<'_> = built.init_root::<message::Builder<'_>>().init_call();
        let mut interface = self.target(call.reborrow().init_target());
        // What it serves itself may be called by any interface.
        if interface == 0 || self.dice.one_in(16) {
            interface = match self.dice.one_in(4) {
                true => self.dice.number(),
                false => self.interface(),
            };
        }
        interface = self.as_extended(interface);
        let method = match self.dice.one_in(32) {
            true => self.dice.number() as u16,
            false if interface == channel::Client::TYPE_ID => {
                [0, 1, 1, 1, 1, 2, 2, 3, 4, 5][self.dice.of(10)]
            }
            false if interface == sink::Client::TYPE_ID => [0, 0, 0, 0, 1, 2][self.dice.of(6)],
            false => self.dice.of(6) as u16,
        };
        call.set_interface_id(interface);
        call.set_method_id(method);
        let question = match self.errs() {
            true => self.question(),
            false => self.ask(interface, method),
        };
        call.set_question_id(question);
        match self.dice.of(24) {
            22 => call.reborrow().init_send_results_to().set_yourself(()),
            23 if self.errs() => drop(call.reborrow().init_send_results_to().init_third_party()),
            _ => {}
        }
        let mut payload = call.init_params();
        let mut caps = Caps::new();
        if !self.dice.one_in(16) {
            let mut content = payload.reborrow().get_content();
            content.imbue_mut(&mut caps);
            self.params(interface, method, content);
        }
        self.descriptors(caps.len(), payload);
        capnp::serialize::write_message_to_words(&built)
    }

    fn params(&mut self, interface: u64, method: u16, content: capnp::any_pointer::Builder<'_>) {
        let deaf = self.deaf.clone();
        match (interface, method) {
            (channel::Client::TYPE_ID, 1) => {
                let mut params = content.init_as::<channel::speak_params::Builder<'_>>();
                if self.dice.one_in(3) {
                    params.set_through(self.dice.number());
                }
                let count = self.dice.of(5) as u32;
                let mut drafts = params.init_drafts(count);
                for i in 0..count {
                    let mut draft = drafts.reborrow().get(i);
                    let acts = [
                        Act::Inform,
                        Act::Request,
                        Act::Propose,
                        Act::Agree,
                        Act::Decide,
                    ];
                    draft.set_act(acts[self.dice.of(acts.len())]);
                    if self.dice.one_in(2) {
                        let parent = match self.messages.is_empty() || self.dice.one_in(8) {
                            true => self.dice.bytes(40),
                            false => self.messages[self.dice.of(self.messages.len())].clone(),
                        };
                        draft.set_parent(&parent);
                    }
                    let payload = self.dice.bytes(48);
                    match self.dice.one_in(16) {
                        // About as much as the terms allow, or just over it.
                        true => draft.set_payload(&payload.repeat(128)),
                        false => draft.set_payload(&payload),
                    }
                    if self.dice.one_in(4) {
                        draft.set_key(self.dice.number());
                    }
                    if self.dice.one_in(4) {
                        draft.set_hops_max(self.dice.number() as u16);
                    }
                    if self.dice.one_in(8) {
                        let owner = ["hostile", "keeper", "nobody", "\u{7f}@"];
                        draft.set_owner(owner[self.dice.of(owner.len())]);
                        draft.set_deadline_ms(self.dice.number() as i64);
                    }
                    if self.dice.one_in(8) {
                        draft.set_to(FromClientHook::new(deaf.clone()));
                    }
                }
            }
            (channel::Client::TYPE_ID, 2) => {
                let mut params = content.init_as::<channel::subscribe_params::Builder<'_>>();
                params.set_window(self.dice.number() as u32);
                if !self.dice.one_in(8) {
                    params.set_sink(FromClientHook::new(deaf));
                }
            }
            (channel::Client::TYPE_ID, 3) => {
                let mut params = content.init_as::<channel::history_params::Builder<'_>>();
                params.set_from(self.dice.number());
                params.set_count(self.dice.number() as u32);
            }
            (channel::Client::TYPE_ID, 4) => {
                let params = content.init_as::<channel::attenuate_params::Builder<'_>>();
                self.terms(params.init_terms());
            }
            (timer::Client::TYPE_ID, 1) => {
                let mut params = content.init_as::<timer::sleep_params::Builder<'_>>();
                params.set_ms(self.dice.number());
            }
            (session::Client::TYPE_ID, 1) => {
                let params = content.init_as::<session::serve_params::Builder<'_>>();
                params.init_service().set_as_capability(deaf);
            }
            (revoker::Client::TYPE_ID, 0) => {
                let mut params = content.init_as::<revoker::revoke_params::Builder<'_>>();
                params.set_reason("a hostile reason");
            }
            _ if self.role.has(interface, method) => self.peer_params(interface, method, content),
            _ if self.dice.one_in(4) => {
                let bytes = self.dice.bytes(64);
                let mut content = content;
                // Of the wrong shape for whoever reads it.
                let _ = content.set_as::<capnp::data::Owned>(&bytes[..]);
            }
            _ => {}
        }
    }

    fn terms(&mut self, mut terms: terms::Builder<'_>) {
        if self.dice.one_in(2) {
            terms.set_rights(self.dice.number() as u16);
        }
        if self.dice.one_in(4) {
            terms.set_acts(self.dice.number() as u16);
            terms.set_hops(self.dice.number() as u16);
            terms.set_bytes_max(self.dice.number() as u32);
        }
        if self.dice.one_in(4) {
            terms.set_count(self.dice.number());
            terms.set_history(self.dice.number());
            terms.set_until_ms(self.dice.number() as i64);
        }
        if self.dice.one_in(4) {
            let mut rate = terms.init_rate();
            rate.set_messages(self.dice.number() as u32);
            rate.set_per_ms(self.dice.number() as u32);
        }
    }

    /// As many as the content refers to, or a few more or less.
    fn descriptors(&mut self, used: usize, payload: payload::Builder<'_>) {
        let count = match self.dice.of(16) {
            14 => used.saturating_sub(1),
            15 if self.errs() => used + self.dice.of(70),
            15 => used + self.dice.of(60),
            _ => used,
        };
        let mut table = payload.init_cap_table(count as u32);
        for i in 0..count {
            self.descriptor(table.reborrow().get(i as u32));
        }
    }

    fn descriptor(&mut self, mut descriptor: cap_descriptor::Builder<'_>) {
        match self.dice.of(12) {
            0 => descriptor.set_none(()),
            1..=3 => descriptor.set_sender_hosted(self.dice.of(8) as u32),
            4..=5 => {
                let promise = match self.errs() {
                    true => self.dice.number() as u32,
                    false => {
                        self.handed_over += 1;
                        7 + self.handed_over
                    }
                };
                self.promises.push(promise);
                descriptor.set_sender_promise(promise);
            }
            6..=8 if !self.exports.is_empty() || self.errs() => {
                descriptor.set_receiver_hosted(self.export().id);
            }
            9..=10 if !self.questions.is_empty() || self.errs() => {
                let question = self.question();
                let mut answer = descriptor.init_receiver_answer();
                answer.set_question_id(question);
                let field = self.dice.of(4) as u16;
                let mut path = answer.init_transform(1);
                path.reborrow().get(0).set_get_pointer_field(field);
            }
            _ if !self.errs() => descriptor.set_sender_hosted(7),
            _ => {
                let mut third = descriptor.init_third_party_hosted();
                third.set_vine_id(self.dice.number() as u32);
            }
        }
    }

    fn exception(&mut self, mut exception: exception::Builder<'_>) {
        let reasons = ["no", "stale: the epoch has ended", "busy: wait", "\u{0}"];
        exception.set_reason(reasons[self.dice.of(reasons.len())]);
        use exception::Type;
        let types = [
            Type::Failed,
            Type::Overloaded,
            Type::Disconnected,
            Type::Unimplemented,
        ];
        exception.set_type(types[self.dice.of(types.len())]);
    }

    fn answer(&mut self) -> Vec<u8> {
        let known = self.dice.pick(&self.calls);
        let errs = self.errs();
        let id = match known.filter(|_| !errs) {
            Some(id) => id,
            None if errs => self.dice.number() as u32,
            None => return self.call(),
        };
        // Answered once, mostly.
        if !self.errs() {
            self.calls.retain(|call| *call != id);
        }
        frame(|m| {
            let mut answer: return_::Builder<'_> = m.init_return();
            answer.set_answer_id(id);
            answer.set_release_param_caps(self.dice.one_in(2));
            answer.set_no_finish_needed(self.dice.one_in(8));
            match self.dice.of(12) {
                0..=5 => {
                    let caps = self.dice.of(3);
                    self.descriptors(caps, answer.init_results());
                }
                6..=7 => self.exception(answer.init_exception()),
                8 => answer.set_canceled(()),
                9 => answer.set_results_sent_elsewhere(()),
                10 if errs => answer.set_take_from_other_question(self.question()),
                11 if errs => drop(answer.init_accept_from_third_party()),
                _ => self.descriptors(1, answer.init_results()),
            }
        })
    }

    fn finish(&mut self) -> Vec<u8> {
        if self.questions.len() < 2 && !self.errs() {
            return self.call();
        }
        let question = self.question();
        if !self.errs() {
            self.questions.retain(|asked| *asked != question);
        }
        let release = self.dice.one_in(2);
        if release {
            self.exports.retain(|export| export.by != Some(question));
            self.asked.remove(&question);
        }
        frame(|m| {
            let mut finish = m.init_finish();
            finish.set_question_id(question);
            finish.set_release_result_caps(release);
        })
    }

    fn release(&mut self) -> Vec<u8> {
        if self.exports.is_empty() && !self.errs() {
            return self.call();
        }
        let export = self.export().id;
        let count = match self.errs() {
            true => self.dice.number() as u32,
            false => {
                // Handed over once for each time that it is here.
                let at = self.exports.iter().position(|e| e.id == export);
                at.map(|at| self.exports.swap_remove(at));
                1
            }
        };
        frame(|m| {
            let mut release = m.init_release();
            release.set_id(export);
            release.set_reference_count(count);
        })
    }

    fn resolve(&mut self) -> Vec<u8> {
        let promise = match (self.dice.pick(&self.promises), self.errs()) {
            (Some(promise), false) => promise,
            (None, false) => return self.call(),
            _ => self.dice.number() as u32,
        };
        if !self.errs() {
            self.promises.retain(|p| *p != promise);
        }
        frame(|m| {
            let mut resolve = m.init_resolve();
            resolve.set_promise_id(promise);
            match self.dice.of(4) {
                0 => self.exception(resolve.init_exception()),
                1 if self.errs() => self.descriptor(resolve.init_cap()),
                2 if !self.exports.is_empty() => {
                    let export = self.export().id;
                    resolve.init_cap().set_receiver_hosted(export);
                }
                3 if !self.questions.is_empty() => {
                    let question = self.question();
                    let mut answer = resolve.init_cap().init_receiver_answer();
                    answer.set_question_id(question);
                }
                _ => resolve.init_cap().set_sender_hosted(self.dice.of(8) as u32),
            }
        })
    }

    fn disembargo(&mut self) -> Vec<u8> {
        let embargo = match self.dice.pick(&self.embargoes) {
            Some(embargo) if !self.errs() => {
                self.embargoes.retain(|e| *e != embargo);
                return frame(|m| {
                    let mut disembargo = m.init_disembargo();
                    self.target(disembargo.reborrow().init_target());
                    disembargo.init_context().set_receiver_loopback(embargo);
                });
            }
            _ => self.dice.number() as u32,
        };
        frame(|m| {
            let mut disembargo = m.init_disembargo();
            self.target(disembargo.reborrow().init_target());
            let mut context = disembargo.init_context();
            match self.dice.of(4) {
                0 => context.set_sender_loopback(embargo),
                1 => context.set_receiver_loopback(embargo),
                2 => context.set_accept(()),
                _ => context.set_provide(embargo),
            }
        })
    }

    fn third_party(&mut self) -> Vec<u8> {
        let question = self.ask(0, 0);
        frame(|m| match self.dice.of(5) {
            0 => {
                let mut provide = m.init_provide();
                provide.set_question_id(question);
                self.target(provide.init_target());
            }
            1 => {
                let mut accept = m.init_accept();
                accept.set_question_id(question);
            }
            2 => {
                let mut join = m.init_join();
                join.set_question_id(question);
                self.target(join.init_target());
            }
            3 => drop(m.init_obsolete_save()),
            _ => drop(m.init_obsolete_delete()),
        })
    }

    fn unimplemented(&mut self) -> Vec<u8> {
        let inner = match self.dice.of(4) {
            0 => self.resolve(),
            1 => self.call(),
            2 => self.answer(),
            _ => self.disembargo(),
        };
        let reader = capnp::serialize::read_message(&mut &inner[..], ReaderOptions::new());
        frame(|mut m| {
            if let Ok(Ok(inner)) = reader.as_ref().map(|r| r.get_root::<message::Reader<'_>>()) {
                let _ = m.set_unimplemented(inner);
            }
        })
    }

    // -- What the host answers

    /// Learns from a frame of the host's. Says whether it could be read at all.
    pub fn learn(&mut self, frame: &[u8]) -> bool {
        let read = capnp::serialize::read_message(&mut &frame[..], ReaderOptions::new());
        let Ok(message) = read else {
            return false;
        };
        // What it says may be the guest's own words, come back.
        let _ = self.learn_from(&message);
        message.get_root::<message::Reader<'_>>().is_ok()
    }

    fn learn_from<S: capnp::message::ReaderSegments>(
        &mut self,
        read: &capnp::message::Reader<S>,
    ) -> Result<(), capnp::Error> {
        let message: message::Reader<'_> = read.get_root()?;
        match message.which()? {
            message::Return(answer) => {
                let answer = answer?;
                if let return_::Results(payload) = answer.which()? {
                    let id = answer.get_answer_id();
                    // What was finished with is released already.
                    if let Some(asked) = self.asked.get(&id).copied() {
                        self.learn_results(id, asked, payload?)?;
                    }
                }
            }
            message::Call(call) => {
                let call = call?;
                if !self.role.answers() {
                    self.calls.push(call.get_question_id());
                }
                let params = call.get_params()?;
                self.learn_call(call)?;
                self.take(params, None, self.role.handed_over(call))?;
                let deliver = (sink::Client::TYPE_ID, 0);
                if (call.get_interface_id(), call.get_method_id()) == deliver {
                    let delivered: sink::deliver_params::Reader<'_> =
                        params.get_content().get_as()?;
                    for message in delivered.get_messages()?.iter() {
                        self.messages.push(message.get_id()?.to_vec());
                    }
                }
            }
            message::Bootstrap(asked) => self.learn_bootstrap(asked?.get_question_id()),
            message::Disembargo(disembargo) => {
                use capnp_rpc::rpc_capnp::disembargo::context::Which;
                if let Which::SenderLoopback(id) = disembargo?.get_context().which()? {
                    self.embargoes.push(id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take(
        &mut self,
        payload: payload::Reader<'_>,
        by: Option<u32>,
        kinds: &[u64],
    ) -> Result<(), capnp::Error> {
        for (i, descriptor) in payload.get_cap_table()?.iter().enumerate() {
            if let cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) =
                descriptor.which()?
            {
                let interface = kinds.get(i).copied().unwrap_or_default();
                self.exports.push(Export { id, interface, by });
            }
        }
        Ok(())
    }

    fn learn_results(
        &mut self,
        id: u32,
        asked: (u64, u16),
        payload: payload::Reader<'_>,
    ) -> Result<(), capnp::Error> {
        let content = payload.get_content();
        match asked {
            (interface, u16::MAX) => self.take(payload, Some(id), &[interface]),
            (membrane::Client::TYPE_ID, 0) => {
                let results: membrane::graft_results::Reader<'_> = content.get_as()?;
                // They stand in the table in the order in which the host put them in.
                let grants = results.get_grants()?;
                let mut kinds: Vec<_> = grants.iter().map(|g| g.get_interface_id()).collect();
                kinds.push(session::Client::TYPE_ID);
                self.take(payload, Some(id), &kinds)
            }
            (channel::Client::TYPE_ID, 1) => {
                let results: channel::speak_results::Reader<'_> = content.get_as()?;
                for outcome in results.get_outcomes()?.iter() {
                    use agora_capnp::channel_capnp::outcome::Which;
                    if let Which::Receipt(receipt) = outcome.which()? {
                        self.messages.push(receipt?.get_id()?.to_vec());
                    }
                }
                Ok(())
            }
            (channel::Client::TYPE_ID, 2) => {
                self.take(payload, Some(id), &[subscription::Client::TYPE_ID])
            }
            (channel::Client::TYPE_ID, 4) => self.take(
                payload,
                Some(id),
                &[channel::Client::TYPE_ID, revoker::Client::TYPE_ID],
            ),
            _ => self.learn_peer_results(id, asked, payload),
        }
    }

    /// How many capabilities of the host's it has seen.
    pub fn exports_seen(&self) -> usize {
        self.exports.len()
    }
}
