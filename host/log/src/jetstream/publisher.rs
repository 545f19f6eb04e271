//! Sends entries and learns what became of them, on a thread and a runtime of its own.
//!
//! In: the queue. Promise: one class stands in the order in which it was taken; each entry is answered once, with its
//! place, or with an error that says whether it may still turn up.
//! Failure: a connection is used until its first doubt (lost, an acknowledgement overdue or out of order) and then
//! thrown away together with its runtime, so that nothing it still held can be sent later. The next one first looks in
//! the stream for what is not known, then sends the rest again, in order and under the same ids, before anything new.
//! So every connection carries the same sequence from its oldest unknown entry on, and however the server mixes what
//! comes over an old and a new one, of two entries the earlier is kept first. An entry that was overtaken nevertheless
//! (a cluster may drop one between two leaders) is not sent again: its outcome is unknown.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_nats::{Client, Event, HeaderMap, Message};
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{
    api::{self, code},
    queue::{Answer, Waiting},
    shared::{Link, Shared},
};
use crate::{Appended, Class, Lane, LogError, Seq, limits};

/// Starts the thread; it ends once the queue is closed and all is answered.
pub(super) fn start(shared: Arc<Shared>) -> Result<(), LogError> {
    let run = move || {
        let closing = CloseOnDrop(shared.clone());
        Publisher::new(shared).run();
        drop(closing);
    };
    thread::Builder::new()
        .name("agora-log-nats".into())
        .spawn(run)
        .map(drop)
        .map_err(LogError::io("start a thread for", "the log"))
}

/// Whatever ends the thread, nobody may wait for it any more.
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.queue.abandon();
        self.0.links.set(Link::Publisher, false);
        self.0.links.close();
        self.0.closed.send_replace(true);
    }
}

/// An entry whose outcome is not known yet.
struct Sent {
    entry: Waiting,
    /// What it takes of the stream, at most.
    cost: u64,
    /// Stands behind this place, if anywhere.
    after: Seq,
    first: Instant,
    latest: Instant,
    times: u32,
}

/// What one class has in flight.
#[derive(Default)]
struct InFlight {
    entries: usize,
    bytes: usize,
    /// The last of the class that is known to stand.
    stands: Option<u64>,
}

struct Publisher {
    shared: Arc<Shared>,
    /// By number, from `base` on; answered ones in between are empty.
    flight: VecDeque<Option<Sent>>,
    base: u64,
    classes: [InFlight; 2],
    /// When an entry was last answered, or there was none to answer.
    headway: Instant,
    /// The last number that this connection brought an acknowledgement for.
    acked: Option<u64>,
}

enum End {
    /// The queue is closed, and all is answered.
    Done,
    /// This connection is in doubt.
    Doubt { why: String, worked: bool },
}

#[derive(Deserialize)]
struct Ack<'a> {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow, default)]
    error: Option<AckError<'a>>,
}

#[derive(Deserialize)]
struct AckError<'a> {
    #[serde(default)]
    err_code: u64,
    #[serde(borrow, default)]
    description: std::borrow::Cow<'a, str>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn hex(id: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(64);
    for byte in id {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}

impl Publisher {
    fn new(shared: Arc<Shared>) -> Self {
        Publisher {
            shared,
            flight: VecDeque::new(),
            base: 0,
            classes: Default::default(),
            headway: Instant::now(),
            acked: None,
        }
    }

    fn run(mut self) {
        let mut pause = Duration::ZERO;
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    tracing::error!(log = %self.shared.place, "publishing can't begin: {error}");
                    thread::sleep(ms(limits::RECONNECT_PAUSE_MS_MAX));
                    if self.is_done() || !self.expire() {
                        return;
                    }
                    continue;
                }
            };
            let end = runtime.block_on(self.connection(pause));
            runtime.shutdown_background();
            self.shared.links.set(Link::Publisher, false);
            match end {
                End::Done => return,
                End::Doubt { why, worked } => {
                    tracing::warn!(log = %self.shared.place, unknown = self.in_flight(), "publishing begins anew: {why}");
                    pause = match worked {
                        true => ms(limits::RECONNECT_PAUSE_MS),
                        false => (pause * 2).clamp(
                            ms(limits::RECONNECT_PAUSE_MS),
                            ms(limits::RECONNECT_PAUSE_MS_MAX),
                        ),
                    };
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.classes.iter().map(|lane| lane.entries).sum()
    }

    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.shared.queue.is_empty()
    }

    fn is_done(&self) -> bool {
        self.shared.queue.is_closed() && self.is_idle()
    }

    /// One connection, from being made to its first doubt.
    async fn connection(&mut self, pause: Duration) -> End {
        self.acked = None;
        let doubt = |why: &dyn ToString| End::Doubt {
            why: why.to_string(),
            worked: false,
        };
        let (shared, oldest) = (self.shared.clone(), self.oldest_place());
        let lost = Arc::new(Notify::new());
        let setting_up = {
            let lost = lost.clone();
            async move {
                tokio::time::sleep(pause).await;
                let client = connect(&shared, lost).await?;
                let inbox = client.new_inbox();
                let acks = client.subscribe(format!("{inbox}.*")).await;
                let acks = acks.map_err(|error| error.to_string())?;
                let info = shared.verify(&client).await;
                let info = info.map_err(|error| error.to_string())?;
                let found = match oldest {
                    None => HashMap::new(),
                    Some(after) => look(&shared, &client, after, Seq(info.state.last_seq)).await?,
                };
                Ok::<_, String>((client, inbox, acks, found))
            }
        };
        let mut setting_up = std::pin::pin!(setting_up);
        let mut ticks = interval(ms(limits::EXPIRE_EVERY_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ready = loop {
            tokio::select! {
                ready = &mut setting_up => break ready,
                _ = ticks.tick() => {
                    if self.is_done() || !self.expire() {
                        return End::Done;
                    }
                }
            }
        };
        let (client, inbox, mut acks, found) = match ready {
            Ok(ready) => ready,
            Err(why) => {
                if !self.expire() {
                    return End::Done;
                }
                return doubt(&why);
            }
        };
        self.shared.links.set(Link::Publisher, true);
        if let Err(why) = self.resume(&client, &inbox, found).await {
            return doubt(&why);
        }
        loop {
            if let Err(why) = self.fill(&client, &inbox).await {
                return doubt(&why);
            }
            if self.is_done() {
                return End::Done;
            }
            let busy = !self.is_idle();
            let step = tokio::select! {
                biased;
                () = lost.notified() => Err("the connection was lost".to_owned()),
                ack = acks.next() => self.take_acks(ack, &mut acks),
                () = self.shared.queue.changed() => Ok(()),
                _ = ticks.tick(), if busy => self.tick(),
            };
            if let Err(why) = step {
                // What comes in spite of the doubt need not be looked for.
                while let Some(Some(ack)) = acks.next().now_or_never() {
                    let _ = self.settle(&ack);
                }
                return match self.expire() {
                    true => End::Doubt {
                        why,
                        worked: self.acked.is_some(),
                    },
                    false => End::Done,
                };
            }
        }
    }

    /// The place behind which everything unknown stands, if there is anything.
    fn oldest_place(&self) -> Option<Seq> {
        self.flight.iter().flatten().map(|sent| sent.after).min()
    }

    /// Answers what was found, gives up what was overtaken, and sends the rest again.
    async fn resume(
        &mut self,
        client: &Client,
        inbox: &str,
        found: HashMap<String, Seq>,
    ) -> Result<(), String> {
        for number in self.numbers() {
            if let Some(sent) = self.get(number)
                && let Some(&seq) = found.get(&hex(&sent.entry.id))
            {
                self.stands(number, seq, true);
            }
        }
        for number in self.numbers() {
            let Some(sent) = self.get(number) else {
                continue;
            };
            if self.classes[index_of(sent.entry.class)].stands > Some(number) {
                let why = "the servers dropped it and kept a later one";
                let answer = Err(self.shared.unknown(&why));
                self.answer(number, answer);
                continue;
            }
            let (id, bytes) = (sent.entry.id, sent.entry.bytes.clone());
            let subject = self.subject_of(&sent.entry);
            self.publish(client, inbox, number, subject, &id, bytes)
                .await?;
            let at = self.index(number);
            if let Some(sent) = at.and_then(|at| self.flight[at].as_mut()) {
                sent.latest = Instant::now();
                sent.times += 1;
            }
        }
        Ok(())
    }

    fn subject_of(&self, entry: &Waiting) -> String {
        let lane = match self.shared.has_no_lanes.load(Ordering::Acquire) {
            true => Lane::Main,
            false => entry.lane,
        };
        self.shared.options.subject_in(lane)
    }

    async fn publish(
        &self,
        client: &Client,
        inbox: &str,
        number: u64,
        subject: String,
        id: &[u8; 32],
        bytes: bytes::Bytes,
    ) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(api::MESSAGE_ID, hex(id));
        let reply = format!("{inbox}.{number}");
        client
            .publish_with_reply_and_headers(subject, reply, headers, bytes)
            .await
            .map_err(|error| error.to_string())
    }

    /// Sends what waits, as far as the window goes.
    async fn fill(&mut self, client: &Client, inbox: &str) -> Result<(), String> {
        loop {
            let [control, ordinary] = &self.classes;
            let fits = |class, bytes: usize| {
                let (lane, entries, most) = match class {
                    Class::Control => (
                        control,
                        limits::WINDOW_CONTROL_ENTRIES,
                        limits::WINDOW_CONTROL_BYTES,
                    ),
                    Class::Ordinary => (ordinary, limits::WINDOW_ENTRIES, limits::WINDOW_BYTES),
                };
                lane.entries == 0 || (lane.entries < entries && lane.bytes + bytes <= most)
            };
            let Some(entry) = self.shared.queue.next(fits) else {
                return Ok(());
            };
            let now = Instant::now();
            if self.in_flight() == 0 && self.headway < entry.since {
                self.headway = now;
            }
            let subject = self.subject_of(&entry);
            let cost = (entry.bytes.len() + subject.len() + limits::MESSAGE_OVERHEAD_BYTES) as u64;
            let refused = match entry.class {
                Class::Control => None,
                Class::Ordinary => self.shared.budget.refuses(cost),
            };
            if let Some(why) = refused {
                let _ = entry.answer.send(Err(self.full(why)));
                continue;
            }
            self.shared.budget.sent(cost);
            let number = self.base + self.flight.len() as u64;
            let (id, bytes) = (entry.id, entry.bytes.clone());
            let of_class = &mut self.classes[index_of(entry.class)];
            of_class.entries += 1;
            of_class.bytes += bytes.len();
            // In flight before it is sent: should sending fail, its outcome is in doubt.
            self.flight.push_back(Some(Sent {
                entry,
                cost,
                after: self.shared.end(),
                first: now,
                latest: now,
                times: 1,
            }));
            self.publish(client, inbox, number, subject, &id, bytes)
                .await?;
        }
    }

    fn full(&self, why: String) -> LogError {
        LogError::Unavailable {
            place: self.shared.place.clone(),
            why,
            mend: "raise the stream's max_bytes; what is refused now can be appended then".into(),
        }
    }

    /// One acknowledgement, and those that came with it.
    fn take_acks(
        &mut self,
        first: Option<Message>,
        acks: &mut async_nats::Subscriber,
    ) -> Result<(), String> {
        let mut next = first;
        loop {
            let Some(ack) = next else {
                return Err("the connection was closed".into());
            };
            self.settle(&ack)?;
            next = match acks.next().now_or_never() {
                None => return Ok(()),
                Some(next) => next,
            };
        }
    }

    fn settle(&mut self, ack: &Message) -> Result<(), String> {
        let number = ack.subject.rsplit('.').next();
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            return Ok(());
        };
        let Some(sent) = self.get(number) else {
            return Ok(());
        };
        if let Some(status) = ack.status {
            return Err(format!("the stream has no leader ({status})"));
        }
        let answer: Ack = match serde_json::from_slice(&ack.payload) {
            Ok(answer) => answer,
            Err(error) => return Err(format!("an acknowledgement can't be read: {error}")),
        };
        let Some(error) = answer.error else {
            let seq = Seq(answer.seq);
            if !answer.duplicate && seq <= sent.after {
                let why = format!(
                    "a new entry was given place {seq}, and {} was seen",
                    sent.after
                );
                return Err(self.shared.diverge(why).to_string());
            }
            // A first copy that is known already was appended by somebody else, or long ago.
            let is_own = !answer.duplicate || sent.times > 1;
            self.acked = self.acked.max(Some(number));
            self.stands(number, seq, is_own);
            return Ok(());
        };
        let why = format!("{} ({})", error.description, error.err_code);
        // Whether an earlier copy of it was kept is told by looking, not by this refusal.
        let once = sent.times == 1;
        let refusal = match error.err_code {
            code::STORE_FAILED
            | code::INSUFFICIENT_RESOURCES
            | code::INSUFFICIENT_STORAGE
            | code::ACCOUNT_RESOURCES
                if once =>
            {
                self.full(format!("the server refused it: {why}"))
            }
            code::MESSAGE_TOO_LARGE if once => LogError::TooLarge {
                bytes: sent.entry.bytes.len(),
                bytes_max: sent.entry.bytes.len().saturating_sub(1),
            },
            _ => return Err(format!("the server refused entries: {why}")),
        };
        self.answer(number, Err(refusal));
        Ok(())
    }

    /// It is known to stand there; `is_own`: as it was sent from here.
    fn stands(&mut self, number: u64, seq: Seq, is_own: bool) {
        let Some(sent) = self.get(number) else {
            return;
        };
        match is_own {
            true => {
                self.shared.saw(seq, &sent.entry.bytes);
                self.shared.budget.was_acked(sent.cost);
            }
            false => {
                self.shared.saw_end(seq);
                self.shared.budget.was_not_kept(sent.cost);
            }
        }
        let durability = self.shared.options.durability;
        let class = sent.entry.class;
        let class = &mut self.classes[index_of(class)];
        class.stands = class.stands.max(Some(number));
        self.answer(number, Ok(Appended { seq, durability }));
    }

    fn answer(&mut self, number: u64, answer: Answer) {
        let Some(sent) = self.index(number).and_then(|at| self.flight[at].take()) else {
            return;
        };
        if answer.is_err() {
            // If it does stand, the stream's own account says so.
            self.shared.budget.was_not_kept(sent.cost);
        }
        let class = &mut self.classes[index_of(sent.entry.class)];
        class.entries -= 1;
        class.bytes -= sent.entry.bytes.len();
        self.headway = Instant::now();
        let _ = sent.entry.answer.send(answer);
        drop(sent.entry.room);
        while let Some(None) = self.flight.front() {
            self.flight.pop_front();
            self.base += 1;
        }
    }

    fn numbers(&self) -> std::ops::Range<u64> {
        self.base..self.base + self.flight.len() as u64
    }

    fn index(&self, number: u64) -> Option<usize> {
        let at = usize::try_from(number.checked_sub(self.base)?).ok()?;
        (at < self.flight.len()).then_some(at)
    }

    fn get(&self, number: u64) -> Option<&Sent> {
        self.flight[self.index(number)?].as_ref()
    }

    /// Looks for what is overdue.
    fn tick(&mut self) -> Result<(), String> {
        if !self.expire() {
            return Err("the log has diverged".into());
        }
        let Some((at, oldest)) = self
            .flight
            .iter()
            .enumerate()
            .find_map(|(at, sent)| Some((at, sent.as_ref()?)))
        else {
            return Ok(());
        };
        let patience = ms(limits::ACK_PATIENCE_MS);
        let overtaken = self.acked > Some(self.base + at as u64);
        if oldest.latest.elapsed() >= patience && (overtaken || self.headway.elapsed() >= patience)
        {
            return Err("an acknowledgement is overdue".into());
        }
        Ok(())
    }

    /// Gives up what nobody is to wait for any longer. False: the log has diverged, and all was given up.
    fn expire(&mut self) -> bool {
        let now = Instant::now();
        let diverged = self.shared.check_diverged().err();
        if self.is_idle() {
            self.headway = now;
        }
        let options = &self.shared.options;
        let (waiting, sent_patience) = (options.waiting_patience, options.sent_patience);
        let stuck = self.headway.elapsed() >= waiting;
        let expired = match &diverged {
            Some(_) => self.shared.queue.expire(now),
            None if stuck => match now.checked_sub(waiting) {
                Some(before) => self.shared.queue.expire(before),
                None => Vec::new(),
            },
            None => Vec::new(),
        };
        for entry in expired {
            let why = &"the server does not take entries";
            let error = diverged.clone();
            let error = error.unwrap_or_else(|| self.shared.unavailable(why));
            let _ = entry.answer.send(Err(error));
        }
        for number in self.numbers() {
            let Some(sent) = self.get(number) else {
                continue;
            };
            let why = match &diverged {
                Some(error) => error.to_string(),
                None if sent.first.elapsed() >= sent_patience => {
                    "it was sent, and its acknowledgement did not come".into()
                }
                None => continue,
            };
            // Not headway.
            let headway = self.headway;
            self.answer(number, Err(self.shared.unknown(&why)));
            self.headway = headway;
        }
        diverged.is_none()
    }
}

fn index_of(class: Class) -> usize {
    match class {
        Class::Control => 0,
        Class::Ordinary => 1,
    }
}

/// Notices a login that may publish under the host's one subject and not in lanes, as servers that were set up for an earlier version
/// have it: all goes under the one from then on.
#[derive(Clone)]
struct Lanes {
    shared: std::sync::Weak<Shared>,
    /// How the subject of any lane begins, as the server quotes it.
    quoted: Arc<str>,
}

impl Lanes {
    fn of(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            quoted: format!("\"{}.", shared.options.full_subject())
                .to_lowercase()
                .into(),
        }
    }

    fn are_refused(&self, error: &str) -> bool {
        let error = error.to_lowercase();
        let refused =
            error.contains("permissions violation for publish to") && error.contains(&*self.quoted);
        let Some(shared) = self.shared.upgrade().filter(|_| refused) else {
            return false;
        };
        if !shared.has_no_lanes.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                log = %shared.place,
                "this login may publish under {0} and not under {0}.*, so that what is appended from here can't be pruned \
                 (docs/realm.md names the permissions)",
                shared.options.full_subject()
            );
        }
        true
    }
}

/// A connection that is never made again once it is lost, but tells so.
async fn connect(shared: &Arc<Shared>, lost: Arc<Notify>) -> Result<Client, String> {
    let options = shared.options.connect_options("appending").await;
    let stood = Arc::new(AtomicBool::new(false));
    let options = options
        .map_err(|error| error.to_string())?
        .client_capacity(2 * (limits::WINDOW_ENTRIES + limits::WINDOW_CONTROL_ENTRIES))
        .reconnect_delay_callback({
            let stood = stood.clone();
            // The runtime is thrown away long before.
            move |_| match stood.load(Ordering::Acquire) {
                true => Duration::from_secs(86_400),
                false => Duration::ZERO,
            }
        })
        .event_callback({
            let lanes = Lanes::of(shared);
            move |event| {
                let (lost, lanes) = (lost.clone(), lanes.clone());
                async move {
                    match event {
                        Event::Disconnected | Event::Closed => lost.notify_one(),
                        Event::ServerError(error) => {
                            tracing::warn!("nats: {error}");
                            if lanes.are_refused(&error.to_string()) {
                                lost.notify_one();
                            }
                        }
                        _ => {}
                    }
                }
            }
        });
    let client = options.connect(shared.options.servers.clone()).await;
    let client = client.map_err(|error| error.to_string())?;
    stood.store(true, Ordering::Release);
    Ok(client)
}

/// Which of the entries behind `after` stand where, by id.
async fn look(
    shared: &Shared,
    client: &Client,
    after: Seq,
    last: Seq,
) -> Result<HashMap<String, Seq>, String> {
    let mut found = HashMap::new();
    let mut next = after.next();
    while next <= last {
        let batch = api::get_batch(
            client,
            &shared.options.stream,
            next,
            limits::READ_ENTRIES_MAX,
            limits::READ_BYTES_MAX,
        );
        let batch = batch.await.map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Err(format!("entry {next} of {last} can't be read yet"));
        }
        for stored in batch {
            // What is not there any more was taken out.
            next = stored.seq.next();
            if let Some(id) = stored.id {
                found.entry(id).or_insert(stored.seq);
            }
        }
    }
    Ok(found)
}
