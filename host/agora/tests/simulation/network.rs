//! A broker, and the links of hosts to it, as far as the contract of [`Log`] shows them. Nothing moves by itself: the world says when
//! an entry arrives at the broker, when an acknowledgement or the tail arrives at a host, and what is lost or doubled on the way.
//!
//! What a link promises is what `agora_log::JetStream` does: entries of one class stand in the order in which they were taken, control
//! entries may overtake; an entry that is sent again under the same id stands once; an entry of which nothing is heard has an unknown
//! outcome, and may turn up at any time; a log that no longer holds what the link was told is diverged, from then on and for all.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use agora_log::{Appended, Class, Durability, Log, LogError, Seq};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::{Notify, oneshot, watch};

pub(crate) type Id = [u8; 32];

/// An entry in its place.
#[derive(Clone)]
pub(crate) struct Standing {
    pub(crate) id: Id,
    pub(crate) bytes: Bytes,
    /// When it came to stand there.
    pub(crate) at_ms: u64,
    altered: bool,
}

impl Standing {
    pub(crate) fn new(id: Id, bytes: Bytes, at_ms: u64) -> Self {
        let altered = false;
        Self {
            id,
            bytes,
            at_ms,
            altered,
        }
    }

    /// These are the bytes that its author signed.
    pub(crate) fn is_sound(&self) -> bool {
        !self.altered
    }
}

#[derive(Clone)]
struct Packet {
    host: usize,
    life: u64,
    id: Id,
    bytes: Bytes,
}

struct Awaited {
    packet: Packet,
    answer: oneshot::Sender<Result<Appended, LogError>>,
    /// Nothing of it has left the host.
    unsent: bool,
}

#[derive(Default)]
struct Link {
    up: bool,
    life: u64,
    /// Control entries and ordinary ones on their way to the broker.
    queues: [VecDeque<Packet>; 2],
    /// Those whose outcome is awaited, in the order in which they were taken.
    awaited: BTreeMap<u64, Awaited>,
    /// Acknowledgements on their way back.
    acks: VecDeque<(Id, u64)>,
    /// Entries whose acknowledgement was lost: sent again when the link is up.
    again: VecDeque<Packet>,
    /// How far the tail has come.
    told: u64,
    /// What it knows to stand where.
    knows: BTreeMap<u64, Id>,
    diverged: bool,
    /// What this life handed over, in order, and was not asked for yet.
    handed: Vec<(Id, Class)>,
}

/// A suffix that the broker lost.
pub(crate) struct Lost {
    /// The first place that was lost.
    pub(crate) from: u64,
    /// What stood there and after.
    pub(crate) entries: Vec<Standing>,
}

struct Inner {
    stands: Vec<Standing>,
    places: HashMap<Id, u64>,
    lost: Option<Lost>,
    links: Vec<Link>,
    /// Doubles, and what crashed hosts had sent: each in its order.
    ghosts: Vec<VecDeque<Packet>>,
    taken: u64,
    now_ms: u64,
}

pub(crate) struct Network {
    inner: Mutex<Inner>,
    /// Told of whatever a link's own side sees.
    wake: watch::Sender<u64>,
    /// Told when an entry was taken, or something was answered.
    pub(crate) activity: Notify,
}

fn failure(why: &str) -> (String, String, String) {
    ("the simulated broker".into(), why.into(), "none".into())
}

fn unknown() -> LogError {
    let (place, why, mend) = failure("nothing was heard of it");
    LogError::Unknown { place, why, mend }
}

fn unavailable() -> LogError {
    let (place, why, mend) = failure("the link is cut");
    LogError::Unavailable { place, why, mend }
}

fn diverged() -> LogError {
    let (place, why, mend) = failure("it does not hold what it held");
    LogError::Diverged { place, why, mend }
}

impl Network {
    /// A broker that holds these entries already, and so many links.
    pub(crate) fn new(stands: Vec<Standing>, links: usize) -> Arc<Self> {
        let numbered = stands.iter().zip(1..);
        let places = numbered.map(|(entry, seq)| (entry.id, seq)).collect();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                stands,
                places,
                lost: None,
                links: (0..links).map(|_| Link::default()).collect(),
                ghosts: Vec::new(),
                taken: 0,
                now_ms: 0,
            }),
            wake: watch::channel(0).0,
            activity: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    fn woken(&self) {
        self.wake.send_modify(|times| *times += 1);
    }

    /// The log as a host sees it that begins now.
    pub(crate) fn connect(self: &Arc<Self>, host: usize) -> Arc<dyn Log> {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        let life = link.life + 1;
        *link = Link {
            up: true,
            life,
            ..Link::default()
        };
        drop(inner);
        Arc::new(Handle {
            network: self.clone(),
            host,
            life,
        })
    }

    /// The host has read the log so far.
    pub(crate) fn has_read(&self, host: usize, through: u64) {
        let mut inner = self.inner();
        let known: BTreeMap<u64, Id> = (1..=through)
            .map(|seq| (seq, inner.stands[seq as usize - 1].id))
            .collect();
        let link = &mut inner.links[host];
        link.told = through;
        link.knows.extend(known);
    }

    pub(crate) fn set_now(&self, now_ms: u64) {
        self.inner().now_ms = now_ms;
    }

    /// What stands from a place on.
    pub(crate) fn standing_from(&self, seq: u64) -> Vec<Standing> {
        self.inner().stands[seq as usize - 1..].to_vec()
    }

    pub(crate) fn end(&self) -> u64 {
        self.inner().stands.len() as u64
    }

    /// How many entries were taken from a host, or refused.
    pub(crate) fn taken(&self) -> u64 {
        self.inner().taken
    }

    pub(crate) fn is_diverged(&self, host: usize) -> bool {
        self.inner().links[host].diverged
    }

    pub(crate) fn told(&self, host: usize) -> u64 {
        self.inner().links[host].told
    }

    /// Whether the host was told, by its tail or an acknowledgement, that this stands there.
    pub(crate) fn knows(&self, host: usize, seq: u64) -> Option<Id> {
        self.inner().links[host].knows.get(&seq).copied()
    }

    /// What the host handed over since this was asked last.
    pub(crate) fn handed(&self, host: usize) -> Vec<(Id, Class)> {
        std::mem::take(&mut self.inner().links[host].handed)
    }

    /// What was lost; none: nothing.
    pub(crate) fn lost(&self) -> Option<(u64, Vec<Standing>)> {
        let inner = self.inner();
        let lost = inner.lost.as_ref()?;
        Some((lost.from, lost.entries.clone()))
    }

    // -- What the world may do

    /// The next entry of a class arrives at the broker.
    pub(crate) fn carry(&self, host: usize, class: usize) -> bool {
        let mut inner = self.inner();
        if !inner.links[host].up || inner.has_parted(host) {
            drop(inner);
            self.woken();
            return false;
        }
        let Some(packet) = inner.links[host].queues[class].pop_front() else {
            return false;
        };
        inner.stand(packet);
        true
    }

    /// The next entry of a class is doubled on its way.
    pub(crate) fn double(&self, host: usize, class: usize) {
        let mut inner = self.inner();
        if let Some(packet) = inner.links[host].queues[class].front().cloned() {
            inner.sent(host, &packet.id);
            inner.ghosts.push([packet].into());
        }
    }

    /// The next of the `at`th line of doubles arrives.
    pub(crate) fn carry_ghost(&self, at: usize) -> bool {
        let mut inner = self.inner();
        if inner.ghosts.is_empty() {
            return false;
        }
        let at = at % inner.ghosts.len();
        let packet = inner.ghosts[at].pop_front();
        if inner.ghosts[at].is_empty() {
            inner.ghosts.swap_remove(at);
        }
        if let Some(packet) = packet {
            inner.stand(packet);
        }
        true
    }

    /// Somebody puts what stands somewhere into the log once more, or the same with a bit changed.
    pub(crate) fn copy(&self, seq: u64, altered: bool) {
        let mut inner = self.inner();
        let mut entry = inner.stands[seq as usize - 1].clone();
        if altered {
            let mut bytes = entry.bytes.to_vec();
            bytes[7] ^= 1;
            entry.bytes = bytes.into();
            entry.altered = true;
        }
        entry.at_ms = inner.now_ms;
        inner.stands.push(entry);
    }

    /// The next acknowledgement arrives.
    pub(crate) fn acknowledge(&self, host: usize) -> bool {
        let mut inner = self.inner();
        if !inner.links[host].up || inner.has_parted(host) {
            drop(inner);
            self.woken();
            return false;
        }
        let link = &mut inner.links[host];
        let Some((id, seq)) = link.acks.pop_front() else {
            return false;
        };
        let of = link.awaited.iter().find(|(_, a)| a.packet.id == id);
        let Some(number) = of.map(|(number, _)| *number) else {
            return true;
        };
        let awaited = link.awaited.remove(&number).expect("it was just found");
        link.knows.insert(seq, id);
        let parted = inner.has_parted(host);
        let _ = awaited.answer.send(match parted {
            // It was there, and is not.
            true => Err(unknown()),
            false => Ok(Appended {
                seq: Seq(seq),
                durability: Durability::Acknowledged,
            }),
        });
        drop(inner);
        self.woken();
        true
    }

    /// The next acknowledgement is lost; its entry is sent again.
    pub(crate) fn lose_acknowledgement(&self, host: usize) {
        let mut inner = self.inner();
        inner.links[host].lose_ack();
    }

    /// What is to be sent again is.
    pub(crate) fn send_again(&self, host: usize) -> bool {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        if !link.up || link.again.is_empty() {
            return false;
        }
        let again = std::mem::take(&mut link.again);
        inner.ghosts.push(again);
        true
    }

    /// All acknowledgements are overdue: whatever waits for one is to be sent again, in order.
    pub(crate) fn overdue(&self, host: usize) {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        let waiting = link.awaited.values();
        let sent = waiting.filter(|awaited| {
            let mut queued = link.queues.iter().flatten();
            !queued.any(|packet| packet.id == awaited.packet.id)
        });
        link.again = sent.map(|awaited| awaited.packet.clone()).collect();
    }

    /// The patience for the oldest entry is over.
    pub(crate) fn give_up(&self, host: usize) {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        let Some((_, awaited)) = link.awaited.pop_first() else {
            return;
        };
        let id = awaited.packet.id;
        let error = match awaited.unsent {
            true => {
                link.queues
                    .iter_mut()
                    .for_each(|queue| queue.retain(|packet| packet.id != id));
                unavailable()
            }
            false => unknown(),
        };
        let _ = awaited.answer.send(Err(error));
    }

    /// The tail goes on by so many entries.
    pub(crate) fn tell(&self, host: usize, count: u64) -> bool {
        let mut inner = self.inner();
        if !inner.links[host].up || inner.has_parted(host) {
            drop(inner);
            self.woken();
            return false;
        }
        let end = inner.stands.len() as u64;
        let from = inner.links[host].told;
        let through = end.min(from + count);
        for seq in from + 1..=through {
            let id = inner.stands[seq as usize - 1].id;
            inner.links[host].knows.insert(seq, id);
        }
        inner.links[host].told = through;
        drop(inner);
        self.woken();
        through > from
    }

    pub(crate) fn cut(&self, host: usize) {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        link.up = false;
        while link.lose_ack() {}
    }

    pub(crate) fn heal(&self, host: usize) {
        self.inner().links[host].up = true;
    }

    /// The host is gone; of what it had sent, only so many entries of each class still arrive.
    pub(crate) fn crash(&self, host: usize, arriving: usize) {
        let mut inner = self.inner();
        let link = &mut inner.links[host];
        link.life += 1;
        link.up = false;
        link.awaited.clear();
        link.acks.clear();
        link.again.clear();
        let queues = std::mem::take(&mut link.queues);
        for mut queue in queues {
            queue.truncate(arriving);
            if !queue.is_empty() {
                inner.ghosts.push(queue);
            }
        }
        drop(inner);
        self.woken();
    }

    /// The broker loses its last entries, but none up to `keep`.
    pub(crate) fn lose(&self, count: u64, keep: u64) -> bool {
        let mut inner = self.inner();
        let end = inner.stands.len() as u64;
        let from = keep.max(end.saturating_sub(count)) + 1;
        if from > end || inner.lost.is_some() {
            return false;
        }
        let entries = inner.stands.split_off(from as usize - 1);
        inner.places.retain(|_, seq| *seq < from);
        inner.lost = Some(Lost { from, entries });
        true
    }

    /// Whether nothing is on its way any more, of links that are up.
    pub(crate) fn is_quiet(&self) -> bool {
        let inner = self.inner();
        let still = |link: &Link| {
            link.queues.iter().all(VecDeque::is_empty)
                && link.acks.is_empty()
                && link.again.is_empty()
                && link.told == inner.stands.len() as u64
        };
        let mut links = inner.links.iter().filter(|link| link.up && !link.diverged);
        inner.ghosts.is_empty() && links.all(still)
    }
}

impl Link {
    fn lose_ack(&mut self) -> bool {
        let Some((id, _)) = self.acks.pop_front() else {
            return false;
        };
        let awaited = self.awaited.values().find(|a| a.packet.id == id);
        if let Some(awaited) = awaited {
            self.again.push_back(awaited.packet.clone());
        }
        true
    }
}

impl Inner {
    fn sent(&mut self, host: usize, id: &Id) {
        let awaited = self.links[host].awaited.values_mut();
        for awaited in awaited.filter(|a| a.packet.id == *id) {
            awaited.unsent = false;
        }
    }

    /// Looks at the log as a link does that is up: whether what it knows stands.
    fn has_parted(&mut self, host: usize) -> bool {
        let link = &self.links[host];
        let stands = |(seq, id): (&u64, &Id)| {
            self.stands
                .get(*seq as usize - 1)
                .is_some_and(|standing| standing.id == *id)
        };
        let parted = self.lost.is_some() && !link.knows.iter().all(stands);
        let link = &mut self.links[host];
        if parted && !link.diverged {
            link.diverged = true;
            while let Some((_, awaited)) = link.awaited.pop_first() {
                // What it sent may turn up, and what was acknowledged is gone.
                let error = if awaited.unsent {
                    diverged()
                } else {
                    unknown()
                };
                let _ = awaited.answer.send(Err(error));
            }
            link.queues.iter_mut().for_each(VecDeque::clear);
            link.again.clear();
            link.acks.clear();
        }
        link.diverged
    }

    fn stand(&mut self, packet: Packet) {
        let Packet {
            host,
            life,
            id,
            bytes,
        } = packet;
        self.sent(host, &id);
        let seq = match self.places.get(&id) {
            Some(seq) => *seq,
            None => {
                let at_ms = self.now_ms;
                self.stands.push(Standing::new(id, bytes, at_ms));
                let seq = self.stands.len() as u64;
                self.places.insert(id, seq);
                seq
            }
        };
        let link = &mut self.links[host];
        if link.life == life && !link.diverged {
            link.acks.push_back((id, seq));
        }
    }
}

/// The log as one life of a host sees it.
struct Handle {
    network: Arc<Network>,
    host: usize,
    life: u64,
}

impl Handle {
    fn closed(&self, inner: &Inner) -> bool {
        inner.links[self.host].life != self.life
    }
}

impl Log for Handle {
    fn append(
        &self,
        id: Id,
        bytes: Bytes,
        class: Class,
    ) -> BoxFuture<'static, Result<Appended, LogError>> {
        let mut inner = self.network.inner();
        inner.taken += 1;
        let number = inner.taken;
        self.network.activity.notify_one();
        if self.closed(&inner) {
            return Box::pin(async { Err(LogError::Closed) });
        }
        let link = &mut inner.links[self.host];
        if link.diverged {
            return Box::pin(async { Err(diverged()) });
        }
        let packet = Packet {
            host: self.host,
            life: self.life,
            id,
            bytes,
        };
        let at = usize::from(class == Class::Ordinary);
        link.queues[at].push_back(packet.clone());
        link.handed.push((id, class));
        let (answer, answered) = oneshot::channel();
        let awaited = Awaited {
            packet,
            answer,
            unsent: true,
        };
        link.awaited.insert(number, awaited);
        Box::pin(async { answered.await.unwrap_or(Err(LogError::Closed)) })
    }

    fn read(
        &self,
        from: Seq,
        entries: usize,
        _bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Seq, Bytes)>, LogError>> {
        let inner = self.network.inner();
        let link = &inner.links[self.host];
        let found = match (self.closed(&inner), link.diverged, link.up) {
            (true, _, _) => Err(LogError::Closed),
            (_, true, _) => Err(diverged()),
            (_, _, false) => Err(unavailable()),
            _ => {
                let first = from.0.max(1);
                let numbered = (first..).zip(inner.stands.iter().skip(first as usize - 1));
                Ok(numbered
                    .take(entries)
                    .map(|(seq, entry)| (Seq(seq), entry.bytes.clone()))
                    .collect())
            }
        };
        Box::pin(async { found })
    }

    fn tail(&self, from: Seq) -> BoxStream<'static, Result<(Seq, Bytes), LogError>> {
        let network = self.network.clone();
        let (host, life) = (self.host, self.life);
        let woken = network.wake.subscribe();
        let begin = Some((network, woken, from.0.max(1)));
        let next = move |at: Option<(Arc<Network>, watch::Receiver<u64>, u64)>| async move {
            let (network, mut woken, next) = at?;
            loop {
                woken.borrow_and_update();
                let found = {
                    let inner = network.inner();
                    let link = &inner.links[host];
                    match () {
                        () if link.life != life => Some(None),
                        () if next <= link.told => {
                            let entry = inner.stands.get(next as usize - 1);
                            Some(entry.map(|entry| entry.bytes.clone()))
                        }
                        () if link.diverged => return Some((Err(diverged()), None)),
                        () => None,
                    }
                };
                match found {
                    Some(Some(bytes)) => {
                        return Some((Ok((Seq(next), bytes)), Some((network, woken, next + 1))));
                    }
                    Some(None) => return None,
                    None => woken.changed().await.ok()?,
                }
            }
        };
        Box::pin(futures::stream::unfold(begin, next))
    }

    fn end(&self) -> Seq {
        Seq(self.network.end())
    }

    fn durability(&self) -> Durability {
        Durability::Acknowledged
    }

    fn close(&self) -> BoxFuture<'static, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }
}
