//! Turns permitted drafts into durable records.
//!
//! In: drafts that crossed a wall, with the persona and the grant they crossed for. Out: an outcome for each.
//! Promise: a receipt exists only once the log has made the message durable and it was judged to count. Drafts of one persona on one
//! channel keep their order; those that wait are folded into one entry. A turn that speaks elsewhere too speaks there first.
//! Failure: retry with the same key, or the same turn; the record keeps one copy.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agora_log::{Class, Durability, LogError};
use agora_realm::{
    Act, Body, ChannelName, Entry, Epoch, GrantId, Message, MessageId, MessageVerdict, Ordinal,
    PersonaId, Placed, Refusal, Sealed, TurnBody,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use super::rates::Rates;
use crate::delivery::cursors::SilentCursors;
use crate::delivery::record::{Committed, Record};
use crate::door::gate::Gate;
use crate::limits;
use crate::persona::keys::{Keys, Passing};

/// One draft, read from the wire.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What is meant.
    pub act: Act,
    /// What it answers.
    pub parent: Option<MessageId>,
    /// A media type.
    pub content_type: String,
    /// What is said.
    pub payload: Bytes,
    /// The author's number for it; 0: the host's to choose.
    pub key: u64,
    /// The author's wish for fewer hops.
    pub hops_max: u16,
    /// Who decides.
    pub owner: Option<PersonaId>,
    /// Milliseconds from now until the thread lapses; 0: never.
    pub deadline_ms: i64,
}

/// Where drafts are spoken, and under what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The channel.
    pub channel: ChannelName,
    /// The grant; none for an operator.
    pub grant: Option<GrantId>,
    /// The epoch of the facet.
    pub epoch: Epoch,
    /// Of a peer's channel: the peer's epoch that the facet is of. Zero on all others.
    pub peer_epoch: Epoch,
}

/// What became of one draft.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It counts.
    Receipt {
        /// Its place.
        placed: Placed,
        /// How it is kept.
        durability: Durability,
        /// It was in before.
        repeated: bool,
    },
    /// It does not count.
    Refused(Refusal, String),
}

impl Outcome {
    fn refused(refusal: Refusal) -> Self {
        Self::Refused(refusal, refusal.to_string())
    }
}

/// Why a whole call failed: the caller should repeat it as it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpeakError {
    /// The log can't take it now; nothing was published, and the cursor stands where it stood.
    #[error("logUnavailable: {0}")]
    LogUnavailable(String),
    /// Whether it was published is not known.
    #[error("whether it was published is not known: {0} (repeat it with the same keys)")]
    OutcomeUnknown(String),
    /// Too much waits already.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The epoch ended, or the host did.
    #[error("{0}")]
    Stale(String),
}

/// One call of `speak`.
pub struct Speech {
    /// Where the call was made.
    pub standing: Standing,
    /// The drafts for that channel, in order.
    pub drafts: Vec<Draft>,
    /// Drafts for other channels: they go first.
    pub elsewhere: Vec<(Standing, Vec<Draft>)>,
    /// The ordinal it answers through; 0: it answers nothing.
    pub through: Ordinal,
    /// Which graft made the call.
    pub graft: u64,
}

/// The outcomes of one call: of its own channel's drafts, and of those for others, in their order.
pub type Spoken = (Vec<Outcome>, Vec<Vec<Outcome>>);

type Answer = Result<Spoken, SpeakError>;

struct Job {
    speech: Speech,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// What speaking needs of the host.
#[derive(Clone)]
pub struct Stage {
    /// The record.
    pub record: Arc<Record>,
    /// The keys to sign with.
    pub keys: Arc<Keys>,
    /// Whether the epoch is open.
    pub gate: Arc<Gate>,
    /// The rates of grants.
    pub rates: Arc<Rates>,
    /// Silence's cursors.
    pub silent: Arc<SilentCursors>,
    /// The runtime that signs and waits for the log.
    pub runtime: tokio::runtime::Handle,
}

/// All speakers of a host: one queue for each persona on each channel.
pub struct Speakers {
    stage: Stage,
    queues: Mutex<HashMap<(PersonaId, ChannelName), Queue>>,
    waiting: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Queue {
    jobs: mpsc::Sender<Job>,
    bytes: Arc<AtomicUsize>,
}

impl Speakers {
    /// No speakers yet.
    pub fn new(stage: Stage) -> Self {
        Self {
            stage,
            queues: Mutex::default(),
            waiting: Arc::default(),
        }
    }

    /// What speaking needs of the host.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Calls that have not been answered.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn queue(&self, persona: &PersonaId, channel: &ChannelName) -> Queue {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (persona.clone(), channel.clone());
        queues
            .entry(key)
            .or_insert_with(|| {
                let (jobs, incoming) = mpsc::channel(limits::SPEAKS_WAITING_MAX);
                let queue = Queue {
                    jobs,
                    bytes: Arc::default(),
                };
                let speaker = Speaker {
                    stage: self.stage.clone(),
                    persona: persona.clone(),
                    channel: channel.clone(),
                    bytes: queue.bytes.clone(),
                    next_key: 1,
                    untaken: None,
                };
                self.stage.runtime.spawn(speaker.run(incoming));
                queue
            })
            .clone()
    }

    /// Publishes. Answers when all is durable and judged.
    ///
    /// # Errors
    /// See [`SpeakError`].
    pub async fn speak(&self, persona: &PersonaId, speech: Speech) -> Answer {
        let bytes = speech
            .drafts
            .iter()
            .chain(speech.elsewhere.iter().flat_map(|(_, drafts)| drafts))
            .map(|draft| draft.payload.len() + draft.content_type.len() + 256)
            .sum();
        let queue = self.queue(persona, &speech.standing.channel);
        if queue.bytes.load(Ordering::Relaxed) + bytes > limits::SPEAK_BYTES_WAITING_MAX {
            return Err(SpeakError::Overloaded(
                "too many bytes of this agent's drafts wait for the log (wait for outcomes)".into(),
            ));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job {
            speech,
            bytes,
            answer,
        };
        queue.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _waiting = Counted::new(&self.waiting);
        if queue.jobs.try_send(job).is_err() {
            queue.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SpeakError::Overloaded(
                "too many of this agent's calls wait for the log (wait for outcomes)".into(),
            ));
        }
        answered
            .await
            .unwrap_or_else(|_| Err(SpeakError::Stale("the host is ending".into())))
    }
}

/// One more, as long as it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts one more.
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Drafts on their way in one entry, and who waits for them.
struct Batch {
    /// For each draft of the batch: its refusal, or its place in the entry.
    fates: Vec<Fate>,
    /// For each job: how many drafts, what was said elsewhere, and where to answer.
    jobs: Vec<(usize, Vec<Vec<Outcome>>, oneshot::Sender<Answer>)>,
    /// For a turn: which graft took it, and the ordinal it answers through.
    turn: Option<(u64, Ordinal)>,
    /// The grant it draws on.
    grant: Option<GrantId>,
}

enum Fate {
    Settled(Outcome),
    InEntry(usize),
}

struct Speaker {
    stage: Stage,
    persona: PersonaId,
    channel: ChannelName,
    bytes: Arc<AtomicUsize>,
    next_key: u64,
    /// A turn that could not be taken: its graft, and the ordinal. Later turns of that graft, which may have been sent before it was
    /// told, would move the cursor past what was not answered.
    untaken: Option<(u64, Ordinal)>,
}

/// An entry on its way to be signed.
enum Begun<Sign> {
    Signed(Box<Result<Sealed, String>>, Passing),
    Signing(tokio::task::JoinHandle<Result<Sealed, String>>, Passing),
    /// The persona's key is being changed.
    Waiting(Sign),
}

type Signing = futures::future::BoxFuture<'static, (Batch, Result<(Sealed, Passing), String>)>;
type Committing = futures::future::BoxFuture<'static, (Batch, Result<Committed, LogError>)>;

#[derive(Default)]
struct InFlight {
    signing: FuturesOrdered<Signing>,
    committing: FuturesUnordered<Committing>,
}

impl InFlight {
    fn len(&self) -> usize {
        self.signing.len() + self.committing.len()
    }
}

impl Speaker {
    async fn run(mut self, mut incoming: mpsc::Receiver<Job>) {
        let mut flight = InFlight::default();
        let mut held: Option<Job> = None;
        loop {
            if let Some(job) = held.take() {
                if job.speech.through.0 > 0 || !job.speech.elsewhere.is_empty() {
                    // A turn moves the cursor, so whatever it would pass over must be in. What is said elsewhere is waited for, and what
                    // is in flight here must not have to wait for that.
                    while flight.len() > 0 {
                        self.advance(&mut flight).await;
                    }
                }
                let (batch, next) = self.batch(job, &mut incoming).await;
                held = next;
                if let Some(signing) = batch {
                    flight.signing.push_back(signing);
                    // Signing took this thread's time; and what comes meanwhile shares the next entry.
                    tokio::task::yield_now().await;
                }
                while flight.len() >= limits::ENTRIES_IN_FLIGHT_MAX {
                    self.advance(&mut flight).await;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.advance(&mut flight), if flight.len() > 0 => {}
                job = incoming.recv() => match job {
                    Some(job) => held = Some(self.taken(job)),
                    None => break,
                },
            }
        }
        while flight.len() > 0 {
            self.advance(&mut flight).await;
        }
    }

    fn taken(&self, job: Job) -> Job {
        self.bytes.fetch_sub(job.bytes, Ordering::Relaxed);
        job
    }

    /// Moves whatever is in flight one step on.
    async fn advance(&mut self, flight: &mut InFlight) {
        tokio::select! {
            biased;
            Some((batch, sealed)) = flight.signing.next(), if !flight.signing.is_empty() => {
                match sealed {
                    Ok((sealed, passing)) => {
                        let mut committing: Committing = {
                            let commit = self.stage.record.commit(sealed, Class::Ordinary);
                            Box::pin(async move {
                                let committed = commit.await;
                                drop(passing);
                                (batch, committed)
                            })
                        };
                        // The first poll puts it in the log's queue, so entries keep their order.
                        match futures::poll!(&mut committing) {
                            std::task::Poll::Ready((batch, result)) => self.finish(batch, result),
                            std::task::Poll::Pending => flight.committing.push(committing),
                        }
                    }
                    Err(error) => self.fail(batch, &SpeakError::Overloaded(error)),
                }
            }
            Some((batch, result)) = flight.committing.next(), if !flight.committing.is_empty() => {
                self.finish(batch, result);
            }
        }
    }

    /// Admits a job, and those after it that fit the same entry. Answers the entry on its way to be signed, and the job that did
    /// not fit.
    async fn batch(
        &mut self,
        job: Job,
        incoming: &mut mpsc::Receiver<Job>,
    ) -> (Option<Signing>, Option<Job>) {
        let Job { speech, answer, .. } = job;
        let Speech {
            standing,
            drafts,
            elsewhere,
            through,
            graft,
        } = speech;
        if !self.stage.gate.is_open(standing.epoch) {
            let error = match self.stage.gate.unheard() {
                Some(why) => SpeakError::LogUnavailable(why),
                None => SpeakError::Stale("the epoch has ended".into()),
            };
            let _ = answer.send(Err(error));
            return (None, None);
        }
        let turn = (through.0 > 0).then_some((graft, through));
        if let (Some((graft, through)), Some((failed, missed))) = (turn, self.untaken) {
            if graft == failed && through > missed {
                let _ = answer.send(Err(SpeakError::LogUnavailable(format!(
                    "the turn through {missed} was not taken; take that one first"
                ))));
                return (None, None);
            }
            self.untaken = None;
        }
        if through.0 > 0 {
            match self.answers(&standing, through) {
                Ok(None) => {}
                Ok(Some(outcomes)) => {
                    let said = self.repeated_elsewhere(&elsewhere, through);
                    let _ = answer.send(Ok((outcomes, said)));
                    return (None, None);
                }
                Err(refusal) => {
                    let refuse = |n: usize| vec![Outcome::refused(refusal); n];
                    let said = elsewhere.iter().map(|(_, d)| refuse(d.len())).collect();
                    let _ = answer.send(Ok((refuse(drafts.len()), said)));
                    return (None, None);
                }
            }
        }
        let mut said = Vec::new();
        for (standing, drafts) in elsewhere {
            match self.say_elsewhere(standing, drafts, through).await {
                Ok(outcomes) => said.push(outcomes),
                Err(error) => {
                    self.untaken = turn;
                    let _ = answer.send(Err(error));
                    return (None, None);
                }
            }
        }
        let is_turn = turn.is_some();
        let mut fates = Vec::new();
        let mut messages = Vec::new();
        match is_turn {
            false => self.admit(&standing, drafts, false, &mut fates, &mut messages),
            true => match self.admit_in_turn(&standing, drafts).await {
                Ok(admitted) => (fates, messages) = admitted,
                Err(error) => {
                    self.untaken = turn;
                    let _ = answer.send(Err(error));
                    return (None, None);
                }
            },
        }
        let mut bytes: usize = messages.iter().map(|m| m.payload.len()).sum();
        let mut jobs = vec![(fates.len(), said, answer)];
        let mut next = None;
        // Fold in what waits, where it would be an entry of the same kind.
        while !is_turn && next.is_none() && messages.len() < limits::DRAFTS_PER_CALL_MAX {
            let Ok(job) = incoming.try_recv() else {
                break;
            };
            let job = self.taken(job);
            let more: usize = job.speech.drafts.iter().map(|d| d.payload.len()).sum();
            let fits = job.speech.through.0 == 0
                && job.speech.standing == standing
                && bytes + more <= limits::FOLD_BYTES_MAX
                && messages.len() + job.speech.drafts.len() <= limits::DRAFTS_PER_CALL_MAX;
            if fits {
                let count = job.speech.drafts.len();
                self.admit(
                    &standing,
                    job.speech.drafts,
                    false,
                    &mut fates,
                    &mut messages,
                );
                bytes += more;
                jobs.push((count, Vec::new(), job.answer));
            } else {
                next = Some(job);
            }
        }
        let batch = Batch {
            fates,
            jobs,
            turn,
            grant: standing.grant,
        };
        if messages.is_empty() {
            if is_turn {
                // Silence, or nothing of the answer was admitted: the cursor moves all the same, as long as the turn itself still
                // stands: what was said elsewhere took its time.
                let stands = self.stage.gate.is_open(standing.epoch)
                    && self.stage.record.state().epoch() == standing.epoch
                    && self.answers(&standing, through).is_ok();
                if !stands {
                    self.fail(batch, &SpeakError::Stale("the epoch has ended".into()));
                    return (None, next);
                }
                self.stage
                    .silent
                    .advance(&self.persona, &self.channel, through);
            }
            answer_all(batch, &[], self.durability());
            return (None, next);
        }
        let turn = TurnBody {
            channel: standing.channel.clone(),
            through,
            origin: None,
            messages,
            peer_epoch: standing.peer_epoch,
        };
        let sealing = self.seal(&standing, turn);
        (Some(Box::pin(async move { (batch, sealing.await) })), next)
    }

    /// Whether a turn would stand. `Some` when it was taken before: its first outcomes.
    fn answers(
        &self,
        standing: &Standing,
        through: Ordinal,
    ) -> Result<Option<Vec<Outcome>>, Refusal> {
        let state = self.stage.record.state();
        let grant = standing.grant.as_ref();
        match state.admit_turn(&self.persona, grant, &standing.channel, None, through) {
            Ok(()) => {}
            Err(Refusal::Repeated) => {
                let first = state.turn_repeat(&self.persona, &standing.channel, None, through);
                return Ok(first.map(|verdicts| self.all_repeated(&verdicts)));
            }
            Err(refusal) => return Err(refusal),
        }
        if through <= self.stage.silent.get(&self.persona, &standing.channel) {
            return Err(Refusal::BehindCursor);
        }
        Ok(None)
    }

    fn durability(&self) -> Durability {
        self.stage.record.log().durability()
    }

    fn all_repeated(&self, verdicts: &[MessageVerdict]) -> Vec<Outcome> {
        let durability = self.durability();
        verdicts
            .iter()
            .map(|verdict| repeated(verdict, durability))
            .collect()
    }

    fn repeated_elsewhere(
        &self,
        elsewhere: &[(Standing, Vec<Draft>)],
        through: Ordinal,
    ) -> Vec<Vec<Outcome>> {
        let state = self.stage.record.state();
        let outcomes = |(standing, drafts): &(Standing, Vec<Draft>)| {
            let origin = Some(&self.channel);
            match state.turn_repeat(&self.persona, &standing.channel, origin, through) {
                Some(verdicts) => self.all_repeated(&verdicts),
                None => vec![Outcome::refused(Refusal::BehindCursor); drafts.len()],
            }
        };
        elsewhere.iter().map(outcomes).collect()
    }

    /// Says what a turn says on another channel, durably, before the turn itself.
    async fn say_elsewhere(
        &mut self,
        standing: Standing,
        drafts: Vec<Draft>,
        through: Ordinal,
    ) -> Result<Vec<Outcome>, SpeakError> {
        let origin = self.channel.clone();
        {
            let state = self.stage.record.state();
            let grant = standing.grant.as_ref();
            let channel = &standing.channel;
            match state.admit_turn(&self.persona, grant, channel, Some(&origin), through) {
                Ok(()) => {}
                Err(Refusal::Repeated) => {
                    let first = state.turn_repeat(&self.persona, channel, Some(&origin), through);
                    return Ok(self.all_repeated(&first.unwrap_or_default()));
                }
                Err(Refusal::StaleEpoch | Refusal::Revoked) => {
                    return Err(SpeakError::Stale("the grant is of another time".into()));
                }
                Err(refusal) => return Ok(vec![Outcome::refused(refusal); drafts.len()]),
            }
        }
        let channel = standing.channel.clone();
        let (fates, messages) = self.admit_in_turn(&standing, drafts).await?;
        if messages.is_empty() {
            return Ok(fates.into_iter().filter_map(Fate::settled).collect());
        }
        let turn = TurnBody {
            channel,
            through,
            origin: Some(origin),
            messages,
            peer_epoch: standing.peer_epoch,
        };
        let (sealed, _passing) = self
            .seal(&standing, turn)
            .await
            .map_err(SpeakError::Overloaded)?;
        let committed = self
            .stage
            .record
            .commit(sealed, Class::Ordinary)
            .await
            .map_err(|error| log_error(&error))?;
        if let Err(refusal @ (Refusal::StaleEpoch | Refusal::Revoked)) =
            committed.settled.judged.verdict
        {
            // Nothing of the turn was taken, so nothing of it may move the cursor.
            return Err(SpeakError::Stale(refusal.to_string()));
        }
        let verdicts = &committed.settled.judged.messages;
        Ok(fates
            .into_iter()
            .map(|fate| fate.outcome(verdicts, committed.durability))
            .collect())
    }

    /// Admits the drafts of a turn for one channel. What only time refuses (a rate, a bound of the host) must not be lost with the
    /// cursor that moves past it: a rate is waited for, and after that the turn is not taken at all.
    async fn admit_in_turn(
        &mut self,
        standing: &Standing,
        drafts: Vec<Draft>,
    ) -> Result<(Vec<Fate>, Vec<Message>), SpeakError> {
        let until = tokio::time::Instant::now() + limits::RATE_PATIENCE;
        loop {
            let (mut fates, mut messages) = (Vec::new(), Vec::new());
            self.admit(standing, drafts.clone(), true, &mut fates, &mut messages);
            let passing = fates.iter().find_map(|fate| match fate {
                Fate::Settled(Outcome::Refused(
                    refusal
                    @ (Refusal::RateLimited | Refusal::Overloaded | Refusal::LogUnavailable),
                    _,
                )) => Some(*refusal),
                _ => None,
            });
            let Some(refusal) = passing else {
                return Ok((fates, messages));
            };
            self.give_back(standing.grant.as_ref(), messages.len());
            if refusal != Refusal::RateLimited || tokio::time::Instant::now() >= until {
                return Err(SpeakError::Overloaded(refusal.to_string()));
            }
            tokio::time::sleep(limits::RATE_AGAIN).await;
            if !self.stage.gate.is_open(standing.epoch) {
                return Err(SpeakError::Stale("the epoch has ended".into()));
            }
        }
    }

    fn give_back(&self, grant: Option<&GrantId>, messages: usize) {
        if let (Some(grant), 1..) = (grant, messages) {
            let state = self.stage.record.state();
            self.stage.rates.give_back(&state, grant, messages);
        }
    }

    /// Checks drafts against the state as it is, and stamps those that would count.
    fn admit(
        &mut self,
        standing: &Standing,
        drafts: Vec<Draft>,
        in_turn: bool,
        fates: &mut Vec<Fate>,
        messages: &mut Vec<Message>,
    ) {
        let now = crate::now_ms();
        let channel = &standing.channel;
        let stage = self.stage.clone();
        let state = stage.record.state();
        self.next_key = self.next_key.max(state.next_key(&self.persona, channel));
        for draft in drafts {
            let key = match (in_turn, draft.key) {
                (true, _) => 0,
                (false, 0) => self.next_key,
                (false, key) => key,
            };
            let deadline_ms = match draft.deadline_ms {
                0 => 0,
                ms => now.saturating_add(ms),
            };
            let offer = agora_realm::Draft {
                act: draft.act,
                parent: draft.parent,
                hops_wish: draft.hops_max,
                bytes: draft.payload.len(),
                key,
                owner: draft.owner.clone(),
                deadline_ms,
                in_turn,
            };
            let admitted = state
                .admit(&self.persona, standing.grant.as_ref(), channel, &offer)
                .and_then(|admitted| {
                    if let Some(grant) = &standing.grant {
                        self.stage.rates.draw(&state, grant, now)?;
                    }
                    Ok(admitted)
                });
            match admitted {
                Ok(admitted) => {
                    if !in_turn {
                        self.next_key = self.next_key.max(key.saturating_add(1));
                    }
                    fates.push(Fate::InEntry(messages.len()));
                    messages.push(Message {
                        act: draft.act,
                        parent: draft.parent,
                        hops: admitted.hops,
                        key,
                        content_type: draft.content_type,
                        payload: draft.payload,
                        time_ms: now,
                        owner: draft.owner,
                        deadline_ms,
                    });
                }
                Err(Refusal::Repeated) => {
                    let first = state.key_repeat(&self.persona, channel, key);
                    fates.push(Fate::Settled(match first {
                        Some(placed) => {
                            repeated(&MessageVerdict::Repeat(placed), self.durability())
                        }
                        None => Outcome::refused(Refusal::KeyExpired),
                    }));
                }
                Err(refusal) => fates.push(Fate::Settled(Outcome::refused(refusal))),
            }
        }
    }

    /// Signs a turn, once it may pass: not while the persona's key is being changed.
    fn seal(
        &self,
        standing: &Standing,
        turn: TurnBody,
    ) -> impl Future<Output = Result<(Sealed, Passing), String>> + Send + use<> {
        let (keys, record) = (self.stage.keys.clone(), self.stage.record.clone());
        let persona = self.persona.clone();
        let (epoch, grant) = (standing.epoch, standing.grant);
        let runtime = self.stage.runtime.clone();
        let turnstile = keys.turnstile(&persona.name);
        let bytes: usize = turn.messages.iter().map(|m| m.payload.len()).sum();
        let sign = move || {
            let (realm, key) = {
                let state = record.state();
                (state.realm(), keys.persona_by(&state, &persona.name))
            };
            let key = key.ok_or_else(|| format!("{persona} has no key"))?;
            let entry = Entry {
                realm,
                host: persona.host,
                author: Some(persona.name.clone()),
                signer: key.public(),
                epoch,
                time_ms: crate::now_ms(),
                grant,
                body: Body::Turn(turn),
            };
            keys.seal(entry, &key)
        };
        // Where nothing stands in the way it begins at once, and not when it is first looked at.
        let begun = match turnstile.clone().try_read_owned() {
            Ok(passing) if bytes <= limits::SIGNED_BY_SPEAKER_BYTES_MAX => {
                Begun::Signed(Box::new(sign()), passing)
            }
            Ok(passing) => Begun::Signing(runtime.spawn_blocking(sign), passing),
            Err(_) => Begun::Waiting(sign),
        };
        async move {
            let (signing, passing) = match begun {
                Begun::Signed(sealed, passing) => return Ok(((*sealed)?, passing)),
                Begun::Signing(signing, passing) => (signing, passing),
                Begun::Waiting(sign) => {
                    let passing = turnstile.read_owned().await;
                    (runtime.spawn_blocking(sign), passing)
                }
            };
            let sealed = signing
                .await
                .unwrap_or_else(|_| Err("the host is ending".into()));
            Ok((sealed?, passing))
        }
    }
}

impl Fate {
    fn settled(self) -> Option<Outcome> {
        match self {
            Self::Settled(outcome) => Some(outcome),
            Self::InEntry(_) => None,
        }
    }

    fn outcome(self, verdicts: &[MessageVerdict], durability: Durability) -> Outcome {
        match self {
            Self::Settled(outcome) => outcome,
            Self::InEntry(at) => match verdicts.get(at) {
                Some(MessageVerdict::Counts(placed)) => Outcome::Receipt {
                    placed: placed.clone(),
                    durability,
                    repeated: false,
                },
                Some(verdict) => repeated(verdict, durability),
                None => Outcome::refused(Refusal::Malformed),
            },
        }
    }
}

/// What was published before is as durable as the log makes anything: it came through the tail, which only tells what is.
fn repeated(verdict: &MessageVerdict, durability: Durability) -> Outcome {
    match verdict {
        MessageVerdict::Counts(placed) | MessageVerdict::Repeat(placed) => Outcome::Receipt {
            placed: placed.clone(),
            durability,
            repeated: true,
        },
        MessageVerdict::Void(refusal) => Outcome::refused(*refusal),
    }
}

fn answer_all(batch: Batch, verdicts: &[MessageVerdict], durability: Durability) {
    let mut fates = batch.fates.into_iter();
    for (count, said, answer) in batch.jobs {
        let outcomes = fates
            .by_ref()
            .take(count)
            .map(|fate| fate.outcome(verdicts, durability))
            .collect();
        let _ = answer.send(Ok((outcomes, said)));
    }
}

fn log_error(error: &LogError) -> SpeakError {
    match error {
        LogError::Closed => SpeakError::Stale("the host is ending".into()),
        _ if !error.is_outcome_known() => SpeakError::OutcomeUnknown(error.to_string()),
        _ => SpeakError::LogUnavailable(error.to_string()),
    }
}

impl Speaker {
    fn fail(&mut self, batch: Batch, error: &SpeakError) {
        self.untaken = batch.turn.or(self.untaken);
        let drawn = batch
            .fates
            .iter()
            .filter(|fate| matches!(fate, Fate::InEntry(_)))
            .count();
        self.give_back(batch.grant.as_ref(), drawn);
        let mut fates = batch.fates.into_iter();
        for (count, said, answer) in batch.jobs {
            let fates: Vec<_> = fates.by_ref().take(count).collect();
            let answered = match error {
                // A turn that was not taken must be taken again, cursor and all; a lone draft is told its own fate.
                SpeakError::LogUnavailable(_) if batch.turn.is_none() => {
                    let outcomes = fates.into_iter().map(|fate| match fate {
                        Fate::Settled(outcome) => outcome,
                        Fate::InEntry(_) => {
                            Outcome::Refused(Refusal::LogUnavailable, error.to_string())
                        }
                    });
                    Ok((outcomes.collect(), said))
                }
                error => Err(error.clone()),
            };
            let _ = answer.send(answered);
        }
    }

    fn finish(&mut self, batch: Batch, result: Result<Committed, LogError>) {
        match result {
            Ok(committed) => answer_all(
                batch,
                &committed.settled.judged.messages,
                committed.durability,
            ),
            Err(error) => self.fail(batch, &log_error(&error)),
        }
    }
}
