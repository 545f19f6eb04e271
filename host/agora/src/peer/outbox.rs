//! Forwards what this realm's personas say for one of a peer's channels.
//!
//! In: the outbox's counting messages, in order, from the record. Out: `speak` calls at the peer; what became of each, to its [`Remote`].
//! Promise: a persona's messages go in their order, each under its place in the outbox as its key, so that the peer counts it once however
//! often it is sent. One is sent only in the epochs, ours and the peer's, in which it was said; what the peer can't take now is sent again,
//! later and later, and holds back only what its own persona said after it.
//! Failure: when the graft is over, so is this; the next one goes on from what is not settled. A persona that the peer has cut off alone is
//! told so, and holds up nobody else.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agora_capnp::channel_capnp::channel;
use agora_capnp::peer_capnp::peer_channel;
use agora_membrane::error::{self, Kind};
use agora_realm::{
    Body, Epoch, Ordinal, Origin, PersonaId, PersonaName, Refusal, introduction_digest,
};
use capnp::Error;
use capnp::capability::FromClientHook;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use super::remote::{Fate, Flight, Remote, speaks_as};
use super::told::Known;
use crate::delivery::record::{Kept, Record};
use crate::door::control::Control;
use crate::limits;

/// As whom it is said there; none: as this host itself.
type As = Option<PersonaName>;

/// Who forwards, in one graft.
pub(super) struct Forwarder {
    pub(super) control: Arc<Control>,
    pub(super) remote: Arc<Remote>,
    /// None: the peer grants nothing on it.
    pub(super) channel: Option<peer_channel::Client>,
    /// The peer's, of the graft.
    pub(super) epoch: Epoch,
    pub(super) known: Known,
    pub(super) speakers: RefCell<HashMap<PersonaName, channel::Client>>,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Kept>,
    is_sending: bool,
    wait: Option<Duration>,
    /// How often in a row the peer said that what it speaks through is of another time.
    stale: u32,
}

/// What was read and is not settled.
#[derive(Default)]
struct Held {
    count: usize,
    bytes: usize,
}

impl Held {
    fn take(&mut self, kept: &Kept) {
        self.count += 1;
        self.bytes += kept.message().payload.len();
    }

    fn let_go(&mut self, kept: &Kept) {
        self.count -= 1;
        self.bytes -= kept.message().payload.len();
    }

    fn is_full(&self) -> bool {
        self.count >= limits::OUTBOX_AHEAD_MAX || self.bytes >= limits::OUTBOX_AHEAD_BYTES_MAX
    }
}

struct Sent {
    by: As,
    items: Vec<Kept>,
    /// None: it was not tried.
    fates: Option<Result<Vec<Fate>, Error>>,
    /// Kept until the fates are noted.
    flight: Flight,
}

enum Now {
    Send,
    Wait,
    Never(Fate),
}

impl Forwarder {
    fn record(&self) -> &Arc<Record> {
        self.control.record()
    }

    /// Forwards until the graft is over.
    pub(super) async fn run(self: Rc<Self>) -> Error {
        let name = self.remote.name().clone();
        let mut latest = self.record().latest(&name);
        let mut next = self.remote.unsettled();
        let mut lanes: BTreeMap<As, Lane> = BTreeMap::new();
        let mut flights: FuturesUnordered<LocalBoxFuture<'static, Sent>> = FuturesUnordered::new();
        let mut held = Held::default();
        loop {
            let end = *latest.borrow_and_update();
            while next <= end && !held.is_full() {
                let pruned = self
                    .record()
                    .state()
                    .channel(&name)
                    .map_or(0, |c| c.pruned.0);
                if next <= pruned {
                    self.pruned(next, pruned);
                    next = pruned + 1;
                    continue;
                }
                let room = limits::OUTBOX_AHEAD_MAX - held.count;
                let (from, bytes) = (Ordinal(next), limits::BATCH_BYTES_MAX);
                let batch = match self.record().messages(&name, from, room, bytes).await {
                    Ok(batch) => batch,
                    Err(error) => {
                        tracing::warn!("'{name}' can't be read to be forwarded: {error}");
                        tokio::time::sleep(limits::READ_AGAIN).await;
                        continue;
                    }
                };
                if batch.is_empty() {
                    // The tail is about to tell.
                    tokio::task::yield_now().await;
                }
                for kept in batch {
                    let before = kept.ordinal.0.saturating_sub(1);
                    self.pruned(next, before);
                    next = kept.ordinal.0 + 1;
                    self.read(kept, &mut lanes, &mut held);
                }
            }
            for (by, lane) in &mut lanes {
                if !lane.is_sending
                    && let Some(flight) = self.clone().start(by.clone(), lane, &mut held)
                {
                    lane.is_sending = true;
                    flights.push(flight);
                }
            }
            lanes.retain(|_, lane| lane.is_sending || !lane.queue.is_empty());
            tokio::select! {
                biased;
                Some(sent) = flights.next(), if !flights.is_empty() => {
                    let lane = lanes.entry(sent.by.clone()).or_default();
                    lane.is_sending = false;
                    self.sent(sent, lane, &mut held);
                }
                changed = latest.changed(), if !held.is_full() => {
                    if changed.is_err() {
                        return error::failed("the host is ending");
                    }
                }
            }
        }
    }

    /// These were pruned: nobody can say them any more.
    fn pruned(&self, from: u64, through: u64) {
        for ordinal in from..=through {
            let text = "it was pruned before it was sent, and never will be";
            let fate = Fate::refused(Refusal::KeyExpired, text);
            self.remote.settled(ordinal, Some(fate));
        }
    }

    /// Puts a message in its author's lane, unless it is settled already, or not to be sent.
    fn read(&self, kept: Kept, lanes: &mut BTreeMap<As, Lane>, held: &mut Held) {
        let ordinal = kept.ordinal.0;
        if self.remote.is_settled(ordinal) {
            return;
        }
        let entry = kept.sealed.entry();
        let author = entry
            .author
            .as_ref()
            .filter(|_| entry.host == self.control.host_id());
        let Some(author) = author else {
            // Another host of this realm says it.
            self.remote.settled(ordinal, None);
            return;
        };
        if let Now::Never(fate) = self.now(&kept) {
            self.remote.settled(ordinal, Some(fate));
            return;
        }
        let by = speaks_as(author).cloned();
        held.take(&kept);
        lanes.entry(by).or_default().queue.push_back(kept);
    }

    /// Whether a message may be sent now.
    fn now(&self, kept: &Kept) -> Now {
        let entry = kept.sealed.entry();
        let Body::Turn(turn) = &entry.body else {
            return Now::Never(Fate::refused(Refusal::Malformed, "it is no message"));
        };
        if self.channel.is_none() {
            let text = self.remote.not_granted_text();
            return Now::Never(Fate::refused(Refusal::NoRight, &text));
        }
        if turn.peer_epoch != self.epoch {
            return Now::Never(Fate::refused(
                Refusal::StaleEpoch,
                "the peer's epoch ended before this was sent, and it never will be; say it anew",
            ));
        }
        let withheld = self.control.withheld(entry);
        let epoch = self.record().state().epoch();
        if entry.epoch != epoch {
            return Now::Never(Fate::refused(
                Refusal::StaleEpoch,
                "the epoch ended before this was sent, and it never will be; say it anew",
            ));
        }
        if let Some(why) = withheld {
            return Now::Never(self.remote.withdrawn(kept.ordinal.0, why));
        }
        if self.remote.is_settled(kept.ordinal.0) {
            // It was withheld meanwhile, and stays so, also when its author is started again. What was told of it stands.
            return Now::Never(Fate::refused(Refusal::Revoked, "it is settled"));
        }
        match self.control.gate().is_open(entry.epoch) && !self.remote.is_away() {
            true => Now::Send,
            // A fence is pending; or this host does not hear its log, or the peer: what is sent then can't be taken back when either ends its
            // epoch before they are heard again.
            false => Now::Wait,
        }
    }

    /// Sends what is first in a lane.
    fn start(
        self: Rc<Self>,
        by: As,
        lane: &mut Lane,
        held: &mut Held,
    ) -> Option<LocalBoxFuture<'static, Sent>> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut waits = lane.wait;
        while let Some(kept) = lane.queue.front() {
            match self.now(kept) {
                Now::Never(fate) => {
                    self.remote.settled(kept.ordinal.0, Some(fate));
                    held.let_go(kept);
                    lane.queue.pop_front();
                    continue;
                }
                Now::Wait => {
                    waits = Some(waits.unwrap_or(limits::OUTBOX_AGAIN_MIN));
                }
                Now::Send => {}
            }
            bytes += kept.message().payload.len() + limits::MESSAGE_FRAME_BYTES;
            if !items.is_empty()
                && (bytes > limits::FOLD_BYTES_MAX || items.len() >= limits::DRAFTS_PER_CALL_MAX)
            {
                break;
            }
            items.extend(lane.queue.pop_front());
        }
        if items.is_empty() {
            return None;
        }
        Some(Box::pin(async move {
            if let Some(wait) = waits {
                tokio::time::sleep(wait).await;
            }
            // Whoever withholds it from here on leaves it to the peer's answer.
            let flight = self
                .remote
                .fly(items.iter().map(|kept| kept.ordinal.0).collect());
            // While it waited the epoch may have ended.
            let fates = match self.are_due(&items) {
                true => self.send(&by, &items).await.transpose(),
                false => None,
            };
            Sent {
                by,
                items,
                fates,
                flight,
            }
        }))
    }

    /// What became of a call.
    fn sent(&self, sent: Sent, lane: &mut Lane, held: &mut Held) {
        let Sent {
            by,
            items,
            fates,
            flight,
        } = sent;
        let mut again = Vec::new();
        match fates {
            None => again = items,
            Some(Ok(fates)) => {
                lane.stale = 0;
                let mut fates = fates.into_iter();
                for kept in items {
                    match fates.next() {
                        Some(fate) if !is_for_later(&fate) => {
                            self.remote.settled(kept.ordinal.0, Some(fate));
                            held.let_go(&kept);
                        }
                        _ => again.push(kept),
                    }
                }
                lane.wait = match again.is_empty() {
                    true => None,
                    false => Some(longer(lane.wait)),
                };
            }
            Some(Err(error)) => {
                if let Some(by) = &by {
                    // What it speaks through may be what fails.
                    self.speakers.borrow_mut().remove(by);
                }
                let kind = error::classify(&error);
                if kind == Kind::Stale {
                    lane.stale += 1;
                }
                let refusal = match kind {
                    Kind::Busy => None,
                    // Where the graft is over, this ends before it comes to that.
                    Kind::Stale if lane.stale <= limits::OUTBOX_STALE_MAX => None,
                    Kind::Stale => Some(Refusal::Revoked),
                    _ => Some(Refusal::NotAuthorised),
                };
                match refusal {
                    None => {
                        lane.wait = Some(longer(lane.wait));
                        again = items;
                    }
                    Some(refusal) => {
                        lane.stale = 0;
                        lane.wait = None;
                        let fate = Fate::refused(refusal, error::reason(&error));
                        for kept in items {
                            self.remote.settled(kept.ordinal.0, Some(fate.clone()));
                            held.let_go(&kept);
                        }
                    }
                }
            }
        }
        drop(flight);
        for kept in again.into_iter().rev() {
            lane.queue.push_front(kept);
        }
    }

    /// Says these there. None: while the peer was asked for what its author speaks through, they came not to be sent, or not now.
    async fn send(&self, by: &As, items: &[Kept]) -> Result<Option<Vec<Fate>>, Error> {
        let speaker = match by {
            Some(name) => self.speaker(name).await?,
            None => self.itself()?,
        };
        if !self.are_due(items) {
            return Ok(None);
        }
        let again: Vec<_> = items
            .iter()
            .map(|kept| self.remote.sends(kept.ordinal.0))
            .collect();
        let mut request = speaker.speak_request();
        let mut drafts = request.get().init_drafts(items.len() as u32);
        for (i, kept) in items.iter().enumerate() {
            let message = kept.message();
            let mut draft = drafts.reborrow().get(i as u32);
            draft.set_act(message.act.into());
            if let Some(parent) = &message.parent {
                draft.set_parent(&parent.0);
            }
            draft.set_content_type(message.content_type.as_str());
            draft.set_payload(&message.payload);
            draft.set_key(kept.ordinal.0);
            draft.set_hops_max(message.hops);
        }
        let answer = request.send().promise.await?;
        let outcomes = answer.get()?.get_outcomes()?;
        let fates = outcomes.iter().zip(again).map(|(outcome, again)| {
            Ok(match Fate::read(outcome)? {
                // What it has under this key is another message, of which this host's log knows nothing any more.
                Fate::Counts { repeated: true, .. } if !again => Fate::refused(
                    Refusal::KeyExpired,
                    "the peer had another message under its key, so this host's log lost its end; say it anew",
                ),
                fate => fate,
            })
        });
        fates.collect::<Result<_, Error>>().map(Some)
    }

    fn are_due(&self, items: &[Kept]) -> bool {
        items.iter().all(|kept| matches!(self.now(kept), Now::Send))
    }

    fn itself(&self) -> Result<channel::Client, Error> {
        let channel = self.channel.clone();
        let channel = channel.ok_or_else(|| error::denied(&self.remote.not_granted_text()))?;
        Ok(channel::Client::new(channel.into_client_hook()))
    }

    /// What a persona of ours speaks through there.
    async fn speaker(&self, name: &PersonaName) -> Result<channel::Client, Error> {
        if let Some(known) = self.speakers.borrow().get(name) {
            return Ok(known.clone());
        }
        let channel = self.channel.clone();
        let channel = channel.ok_or_else(|| error::denied(&self.remote.not_granted_text()))?;
        let (key, component) = {
            let state = self.record().state();
            let id = PersonaId::new(self.control.host_id(), name.clone());
            let persona = state.persona(&id);
            (persona.map(|p| p.key), persona.and_then(|p| p.component))
        };
        let origin = Origin {
            peer: Vec::new(),
            host: None,
            realm: None,
            persona: Some(name.clone()),
            public_key: key,
            component,
            signature: None,
        };
        let there = PersonaName::guest(&self.known.calls_us, name.as_str());
        let there = there.map_err(|error| error::denied(&error.to_string()))?;
        let there = PersonaId::new(self.known.host, there);
        let digest = introduction_digest(&self.known.realm, &there, &origin);
        let signed = self.control.sign_as_host(&digest);
        let (signature, _) = signed.map_err(|error| error::busy(&error))?;
        let mut request = channel.speaker_request();
        let mut introduction = request.get().init_introduction();
        introduction.set_persona(name.as_str());
        introduction.set_public_key(key.as_ref().map_or(&[][..], |key| &key.0));
        introduction.set_component(component.as_ref().map_or(&[][..], |hash| &hash.0));
        introduction.set_signature(&signature);
        let answer = request.send().promise.await?;
        let speaker = answer.get()?.get_channel()?;
        let mut speakers = self.speakers.borrow_mut();
        Ok(speakers.entry(name.clone()).or_insert(speaker).clone())
    }
}

/// The peer can't take it now.
fn is_for_later(fate: &Fate) -> bool {
    matches!(
        fate.refusal(),
        Some(
            Refusal::RateLimited
                | Refusal::LogUnavailable
                | Refusal::Overloaded
                // It is in the peer's own outbox, and repeating it asks what became of it.
                | Refusal::PeerAway
        )
    )
}

fn longer(wait: Option<Duration>) -> Duration {
    wait.map_or(limits::OUTBOX_AGAIN_MIN, |wait| {
        (wait * 2).min(limits::OUTBOX_AGAIN_MAX)
    })
}
