//! One run: a realm, a broker, and chance.
//!
//! Each step does one thing, lets everything that follows from it at the hosts come to rest, and looks at what they say. Time passes
//! between steps only.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use agora::channel::speak::Draft;
use agora::delivery::record::{Record, RecordError, Seen};
use agora::delivery::tip::Tip;
use agora_realm::{
    Act, Body, GrantId, KeyBody, KeySubject, MessageVerdict, NoteBody, Ordinal, PersonaId, Placed,
    RevokeBody, Revoked, Sealed,
};
use bytes::Bytes;

use crate::bed::{Bed, agent, key_body, square};
use crate::chance::Chance;
use crate::network::Network;
use crate::site::{LEASE, Life, What, speech};
use crate::truth::Truth;

/// What happened in a run, to see that runs are worth something.
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) counting: usize,
    pub(crate) receipts: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
    pub(crate) fences: usize,
    pub(crate) crashes: usize,
    pub(crate) kept_stops: usize,
    pub(crate) copies: usize,
    pub(crate) cuts: usize,
    pub(crate) losses: usize,
    pub(crate) diverged: usize,
    pub(crate) went_back: usize,
    pub(crate) let_through: usize,
    pub(crate) lapsed: usize,
}

impl Report {
    fn all(&mut self) -> [&mut usize; 14] {
        [
            &mut self.counting,
            &mut self.receipts,
            &mut self.refused,
            &mut self.unknown,
            &mut self.fences,
            &mut self.crashes,
            &mut self.kept_stops,
            &mut self.copies,
            &mut self.cuts,
            &mut self.losses,
            &mut self.diverged,
            &mut self.went_back,
            &mut self.let_through,
            &mut self.lapsed,
        ]
    }

    /// Each of these happened.
    pub(crate) fn is_full(mut self) -> bool {
        self.all().iter().all(|count| **count > 0)
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, mut other: Self) {
        for (mine, others) in self.all().into_iter().zip(other.all()) {
            *mine += *others;
        }
    }
}

/// A receipt that was given.
struct Claim {
    host: usize,
    /// Which life of the host it was given in.
    life: u64,
    placed: Placed,
}

struct Site {
    life: Option<Life>,
    lives: u64,
    /// Stops that are not known to be in the log; kept over crashes.
    stops: Vec<(What, Sealed)>,
    /// The host says that the log lost what it had seen, and does not begin.
    refuses: bool,
    /// What it kept of how far it had seen the log.
    tip: Option<Tip>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Speak,
    Answer,
    Bump,
    Kill,
    Start,
    Grant,
    Revoke,
    RevokeHost,
    Carry,
    Double,
    Ghost,
    Copy,
    Acknowledge,
    LoseAcknowledgement,
    Overdue,
    GiveUp,
    Tell,
    TellAll,
    Cut,
    Heal,
    Crash,
    Restart,
    Keep,
    TryAgain,
    Lose,
}

/// How often each is tried in an ordinary run.
const OFTEN: [(Step, usize); 25] = [
    (Step::Speak, 12),
    (Step::Answer, 8),
    (Step::Bump, 3),
    (Step::Kill, 1),
    (Step::Start, 2),
    (Step::Grant, 2),
    (Step::Revoke, 2),
    (Step::RevokeHost, 0),
    (Step::Carry, 30),
    (Step::Double, 3),
    (Step::Ghost, 6),
    (Step::Copy, 1),
    (Step::Acknowledge, 24),
    (Step::LoseAcknowledgement, 3),
    (Step::Overdue, 1),
    (Step::GiveUp, 2),
    (Step::Tell, 20),
    (Step::TellAll, 6),
    (Step::Cut, 2),
    (Step::Heal, 4),
    (Step::Crash, 1),
    (Step::Restart, 3),
    (Step::Keep, 0),
    (Step::TryAgain, 4),
    (Step::Lose, 0),
];

/// Nothing that a run waits for takes this long.
const STUCK: Duration = Duration::from_secs(60);

struct World<'a> {
    bed: &'a Bed,
    chance: Chance,
    network: Arc<Network>,
    truth: Truth,
    sites: Vec<Site>,
    claims: Vec<Claim>,
    now_ms: u64,
    /// The most that passes between two steps.
    pace_ms: usize,
    stamps: i64,
    report: Report,
    verbose: bool,
}

/// Lets chance have its way, and checks what must hold. `verbose` tells each step.
pub(crate) fn run(bed: &Bed, seed: u64, verbose: bool) -> Report {
    let mut chance = Chance::new(seed);
    let hosts = 2 + [0, 0, 1, 1, 2][chance.below(5)];
    let beginning = bed.beginning(hosts);
    let network = Network::new(beginning.stands.clone(), hosts);
    let sites = (0..hosts).map(|host| {
        std::fs::write(bed.derived(host).snapshot, &beginning.snapshot).unwrap();
        // It is made again from the log.
        let _ = std::fs::remove_file(bed.derived(host).tree);
        Site {
            life: None,
            lives: 0,
            stops: Vec::new(),
            refuses: false,
            tip: None,
        }
    });
    let sites = sites.collect();
    let pace_ms = chance.of(&[2, 10, 40, 120, 500]);
    let mut world = World {
        bed,
        chance,
        network,
        truth: Truth::new(beginning.state.clone(), beginning.oracle.clone()),
        sites,
        claims: Vec::new(),
        now_ms: 0,
        pace_ms,
        stamps: 1000,
        report: Report::default(),
        verbose,
    };
    world.run();
    world.report
}

impl World<'_> {
    fn run(&mut self) {
        for host in 0..self.sites.len() {
            self.restart(host);
        }
        // Some kinds of events are rare in this run, or left out, and others frequent.
        let mut weights = OFTEN;
        let losing = self.chance.one_in(8);
        for (step, weight) in &mut weights {
            *weight *= self.chance.of(&[0, 1, 1, 2, 4]);
            match step {
                Step::Carry | Step::Acknowledge | Step::Tell => *weight += 8,
                Step::RevokeHost if self.chance.one_in(10) => *weight = 1,
                Step::Keep => *weight += if losing { 4 } else { 1 },
                Step::Crash if losing => *weight += 3,
                Step::Lose if losing => *weight = 2,
                _ => {}
            }
        }
        let sum: usize = weights.iter().map(|(_, weight)| weight).sum();
        let steps = 30 + self.chance.below(50);
        for _ in 0..steps {
            let mut at = self.chance.below(sum);
            let step = weights.iter().find(|(_, weight)| {
                let found = at < *weight;
                at = at.saturating_sub(*weight);
                found
            });
            let step = step.expect("it is below the sum").0;
            let host = self.chance.below(self.sites.len());
            if self.verbose {
                eprintln!("{:>6} ms: {step:?} at {host}", self.now_ms);
            }
            self.step(step, host);
            self.rest();
            self.pass_time();
        }
        self.finish();
    }

    fn pass_time(&mut self) {
        self.now_ms += self.chance.below(self.pace_ms) as u64;
        self.network.set_now(self.now_ms);
        let now = Duration::from_millis(self.now_ms);
        for host in 0..self.sites.len() {
            let Some(life) = &mut self.sites[host].life else {
                continue;
            };
            // A call of something outside the log, by what the agent holds.
            if life.passes() {
                match life.is_fresh(now) {
                    true => {
                        self.report.let_through += 1;
                        let grafted = life.grafted;
                        let mut fences = self.truth.fences.iter();
                        if let Some((_, at_ms)) = fences.find(|(ended, _)| *ended == grafted) {
                            let since = now.saturating_sub(Duration::from_millis(*at_ms));
                            assert!(
                                since <= LEASE,
                                "host {host} acts in epoch {grafted}, {since:?} after its fence"
                            );
                        }
                    }
                    false => self.report.lapsed += 1,
                }
            }
            if self.chance.one_in(3)
                && let Some(life) = &mut self.sites[host].life
            {
                life.graft();
            }
            self.mark(host, now);
        }
    }

    /// Sends a marker, if one is due.
    fn mark(&mut self, host: usize, now: Duration) {
        let Some(life) = &self.sites[host].life else {
            return;
        };
        if now < life.lease.marker_due()
            || life.committing() > 2
            || life.revoked
            || self.network.is_diverged(host)
        {
            return;
        }
        let judged = life.record.state().last_seq().unwrap_or(0);
        let marker = Body::Note(NoteBody::Marker { judged });
        self.commit(host, What::Other, marker);
        self.rest();
    }

    /// Lets what follows from a step come to rest, and looks at it.
    fn rest(&mut self) {
        self.bed.runtime.block_on(async {
            for _ in 0..24 {
                tokio::task::yield_now().await;
            }
        });
        self.truth.catch_up(&self.network);
        let now = Duration::from_millis(self.now_ms);
        for host in 0..self.sites.len() {
            let site = &mut self.sites[host];
            let Some(life) = &mut site.life else {
                continue;
            };
            let came = life.attend(&self.truth, now, &self.bed.runtime);
            self.report.refused += came.void;
            self.report.unknown += came.unknown;
            site.stops
                .retain(|(_, kept)| came.stopped.iter().all(|stop| stop.id() != kept.id()));
            for (placed, repeated) in came.receipts {
                self.claim(host, placed, repeated);
            }
        }
    }

    /// A receipt was given: what it says must stand, be told, and count.
    fn claim(&mut self, host: usize, placed: Placed, repeated: bool) {
        self.report.receipts += 1;
        let mut at = self.truth.at(placed.seq);
        let counts = at.any(|(_, judged)| {
            let mut messages = judged.messages.iter();
            messages.any(|verdict| *verdict == MessageVerdict::Counts(placed.clone()))
        });
        assert!(counts, "host {host} gives a receipt for a void message");
        let mut claims = self.claims.iter();
        let twice = claims.any(|claim| claim.host == host && claim.placed.id == placed.id);
        assert!(repeated || !twice, "two drafts have one message's receipt");
        let told = self.network.told(host);
        assert!(told >= placed.seq, "a receipt before the tail told of it");
        let life = self.sites[host].lives;
        self.claims.push(Claim { host, life, placed });
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.bed.runtime.handle().clone()
    }

    fn step(&mut self, step: Step, host: usize) {
        let class = self.chance.below(2);
        match step {
            Step::Speak | Step::Answer => self.speak(host, step == Step::Answer),
            Step::Bump => self.bump(host),
            Step::Kill => {
                let persona = self.bed.persona(host);
                self.stop(host, Revoked::Persona(persona));
            }
            Step::Start => self.start(host),
            Step::Grant => {
                let body = self.bed.grant(host);
                self.commit(host, What::Other, body);
            }
            Step::Revoke => {
                if let Some(grant) = self.some_grant(host) {
                    self.stop(host, Revoked::Grant(grant));
                }
            }
            Step::RevokeHost => {
                let other = self.chance.below(self.sites.len());
                if other != host {
                    self.stop(host, Revoked::Host(self.bed.id(other)));
                }
            }
            Step::Carry => {
                let _ = self.network.carry(host, class) || self.network.carry(host, 1 - class);
            }
            Step::Double => self.network.double(host, class),
            Step::Ghost => drop(self.network.carry_ghost(host)),
            Step::Copy => {
                let seq = 1 + self.chance.below(self.network.end() as usize) as u64;
                self.network.copy(seq, self.chance.one_in(3));
                self.report.copies += 1;
            }
            Step::Acknowledge => drop(self.network.acknowledge(host)),
            Step::LoseAcknowledgement => {
                self.network.lose_acknowledgement(host);
                self.network.send_again(host);
            }
            Step::Overdue => {
                self.network.overdue(host);
                self.network.send_again(host);
            }
            Step::GiveUp => self.network.give_up(host),
            Step::Tell => {
                let count = 1 + self.chance.below(3) as u64;
                self.tell(host, count);
            }
            Step::TellAll => self.tell(host, u64::MAX / 2),
            Step::Cut => {
                self.network.cut(host);
                self.report.cuts += 1;
            }
            Step::Heal => {
                if self.sites[host].life.is_some() {
                    self.network.heal(host);
                    self.network.send_again(host);
                }
            }
            Step::Crash => self.crash(host),
            Step::Restart => self.restart(host),
            Step::Keep => {
                let site = &mut self.sites[host];
                if let Some(life) = &site.life {
                    site.tip = life.record.tip();
                    if self.chance.one_in(4) {
                        life.record.keep_snapshot();
                    }
                }
            }
            Step::TryAgain => {
                let runtime = self.handle();
                if let Some(life) = &mut self.sites[host].life {
                    life.try_again(&runtime);
                }
            }
            Step::Lose => {
                let count = 1 + self.chance.below(5) as u64;
                if self.network.lose(count, self.truth.base_seq()) {
                    self.truth.lost(&self.network);
                    self.report.losses += 1;
                }
            }
        }
    }

    fn speak(&mut self, host: usize, answer: bool) {
        let persona = self.bed.persona(host);
        let late = self.chance.one_in(6);
        let (count, spread) = (1 + self.chance.below(2), self.chance.below(4));
        let runtime = self.handle();
        let Some(life) = &mut self.sites[host].life else {
            return;
        };
        // A turn waits for what was said before, which only a step can bring.
        let busy = if answer { 1 } else { 4 };
        if life.calling() >= busy {
            return;
        }
        if !late {
            life.graft();
        }
        let (mut parent, mut through) = (None, Ordinal(0));
        let grant;
        {
            let state = life.record.state();
            let mut grants = state.grants_of(&persona).map(|(id, _)| *id);
            let chosen = grants.nth(spread);
            let newest = || state.grants_of(&persona).map(|(id, _)| *id).last();
            grant = chosen.or_else(newest);
            if answer {
                let Some(latest) = state.channel(&square()).map(|c| c.latest) else {
                    return;
                };
                through = latest;
                let newest = state.message_at(&square(), latest);
                parent = newest.filter(|m| m.author != persona).map(|m| m.id);
                if parent.is_none() || state.cursor(&persona, &square()) >= latest {
                    return;
                }
            }
        }
        let draft = Draft {
            act: Act::Inform,
            parent,
            content_type: String::new(),
            payload: Bytes::from_static(b"said"),
            key: 0,
            hops_max: u16::MAX,
            owner: None,
            deadline_ms: 0,
        };
        let speech = speech(life.grafted, grant, vec![draft; count], through);
        let taken = self.network.taken();
        life.speak(&runtime, persona, speech);
        self.until(host, |network, life| {
            network.taken() > taken || life.is_answered()
        });
    }

    /// Waits for something that a thread beside this one has a part in, such as signing or verifying.
    fn until(&self, host: usize, done: impl Fn(&Network, &Life) -> bool) {
        let life = self.sites[host].life.as_ref().expect("it lives");
        let waiting = async {
            while !done(&self.network, life) {
                self.network.activity.notified().await;
            }
        };
        self.bed.runtime.block_on(async {
            tokio::time::timeout(STUCK, waiting).await.expect("stuck");
        });
    }

    fn seal(&mut self, host: usize, body: Body) -> Option<Sealed> {
        let life = self.sites[host].life.as_ref()?;
        self.stamps += 1;
        let (realm, epoch) = (life.record.state().realm(), life.record.state().epoch());
        Some(self.bed.entry(host, realm, epoch, self.stamps, body))
    }

    fn commit(&mut self, host: usize, what: What, body: Body) {
        let runtime = self.handle();
        if let Some(sealed) = self.seal(host, body)
            && let Some(life) = &mut self.sites[host].life
        {
            life.commit(&runtime, what, sealed);
        }
    }

    /// A stop: it is kept before it is put in the log.
    fn stop(&mut self, host: usize, what: Revoked) {
        let runtime = self.handle();
        let kind = match &what {
            Revoked::Fence { ends, .. } => What::Fence(*ends),
            _ => What::Stop,
        };
        let body = Body::Revoke(RevokeBody {
            what,
            reason: String::new(),
            by: String::new(),
        });
        if self.sites[host].stops.len() < 4
            && let Some(sealed) = self.seal(host, body)
        {
            let site = &mut self.sites[host];
            site.stops.push((kind, sealed.clone()));
            let life = site.life.as_mut().expect("it sealed something");
            life.commit(&runtime, kind, sealed);
        }
    }

    fn bump(&mut self, host: usize) {
        let Some(life) = &self.sites[host].life else {
            return;
        };
        if life.is_fencing() || self.sites[host].stops.len() >= 4 {
            return;
        }
        // Before anything else.
        life.gate.close();
        let ends = life.record.state().epoch();
        self.report.fences += 1;
        self.stop(host, Revoked::Fence { ends, hold: false });
    }

    fn start(&mut self, host: usize) {
        let persona = self.bed.persona(host);
        let Some(life) = &self.sites[host].life else {
            return;
        };
        let known = life.record.state().persona(&persona).cloned();
        if let Some(known) = known.filter(|known| known.killed) {
            let start = known.keys + 1;
            let key = self.bed.agent_key(host, start).public();
            let body = Body::Key(KeyBody {
                started: true,
                ..key_body(KeySubject::Persona(agent(host)), key)
            });
            self.commit(host, What::Other, body);
        }
    }

    fn some_grant(&mut self, host: usize) -> Option<GrantId> {
        let of: PersonaId = self.bed.persona(self.chance.below(self.sites.len()));
        let life = self.sites[host].life.as_ref()?;
        let state = life.record.state();
        state.grants_of(&of).map(|(id, _)| *id).last()
    }

    /// The host's tail goes on by so many entries, and all of them are judged there.
    fn tell(&mut self, host: usize, count: u64) {
        if self.sites[host].life.is_none() || !self.network.tell(host, count) {
            return;
        }
        let told = self.network.told(host);
        let life = self.sites[host].life.as_ref().expect("it lives");
        let record = life.record.clone();
        let mut news = record.news();
        let settling = async {
            while record.state().last_seq() < Some(told) {
                news.recv().await.expect("the record lives");
            }
        };
        self.bed.runtime.block_on(async {
            tokio::time::timeout(STUCK, settling).await.expect("stuck");
        });
    }

    fn crash(&mut self, host: usize) {
        let Some(life) = self.sites[host].life.take() else {
            return;
        };
        self.network.crash(host, self.chance.below(3));
        drop(life);
        self.report.crashes += 1;
    }

    fn restart(&mut self, host: usize) {
        if self.sites[host].life.is_some() || self.sites[host].refuses {
            return;
        }
        self.truth.catch_up(&self.network);
        self.sites[host].lives += 1;
        let log = self.network.connect(host);
        let seen = Seen {
            tip: self.sites[host].tip,
            accepts_loss: false,
            host: self.bed.id(host),
        };
        let opening = Record::open(log, self.bed.derived(host), seen, false, |_, _| ());
        let record = match self.bed.runtime.block_on(opening) {
            Ok(record) => record,
            Err(RecordError::Diverged { .. }) => {
                assert!(self.network.lost().is_some(), "nothing went back");
                self.report.went_back += 1;
                self.sites[host].refuses = true;
                self.network.crash(host, 0);
                return;
            }
            Err(error) => panic!("host {host} does not begin again: {error}"),
        };
        if let Some(tip) = self.sites[host].tip {
            let there = self.network.standing_from(tip.seq);
            let there = there.first().map(|standing| &standing.bytes);
            let same = there.is_some_and(|bytes| agora_realm::merkle::leaf(bytes) == tip.leaf);
            assert!(same, "host {host} begins on a log that lost its tip");
        }
        let seq = record.state().last_seq().unwrap_or(0);
        self.network.has_read(host, seq);
        assert_eq!(
            record.state().digest(),
            self.truth.digest_at(seq),
            "host {host}, begun again, judges otherwise"
        );
        let oracle = self.truth.oracle_at(seq);
        let keys = self.bed.keys[host].clone();
        let runtime = self.handle();
        let mut life = Life::begin(host, &self.network, record, keys, oracle, &runtime);
        self.report.kept_stops += self.sites[host].stops.len();
        for (what, sealed) in self.sites[host].stops.clone() {
            life.commit_kept(&runtime, what, sealed);
        }
        self.sites[host].life = Some(life);
    }

    /// Everything heals and arrives; then all must be as was promised.
    fn finish(&mut self) {
        let hosts = 0..self.sites.len();
        let mut quiet = 0;
        for round in 0.. {
            assert!(round < 400, "no rest: {}", self.unrest());
            for host in hosts.clone() {
                self.restart(host);
                if self.sites[host].life.is_some() {
                    self.network.heal(host);
                }
                while self.network.carry(host, 0) || self.network.carry(host, 1) {}
                while self.network.carry_ghost(0) {}
                self.network.overdue(host);
                self.network.send_again(host);
            }
            while self.network.carry_ghost(0) {}
            for host in hosts.clone() {
                while self.network.acknowledge(host) {}
                self.step(Step::TellAll, host);
                self.step(Step::TryAgain, host);
            }
            self.rest();
            let still = self.network.is_quiet() && self.is_at_rest();
            quiet = if still { quiet + 1 } else { 0 };
            self.pace_ms = 100;
            self.pass_time();
            if quiet > 2 {
                break;
            }
        }
        self.check();
    }

    /// What is left to do, for people.
    fn unrest(&self) -> String {
        let now = Duration::from_millis(self.now_ms);
        let of = |(host, site): (usize, &Site)| {
            let life = site.life.as_ref().map(|life| {
                let fresh = life.is_fresh(now);
                let judged = life.record.state().last_seq();
                (
                    life.calling(),
                    life.waiting_for(),
                    fresh,
                    judged,
                    life.revoked,
                )
            });
            let told = self.network.told(host);
            format!("host {host}: {life:?}, told {told}; ")
        };
        let sites: String = self.sites.iter().enumerate().map(of).collect();
        let (quiet, end) = (self.network.is_quiet(), self.network.end());
        format!("{sites}network quiet: {quiet}, end {end}")
    }

    /// Everything was answered, and every host has heard back.
    fn is_at_rest(&self) -> bool {
        let now = Duration::from_millis(self.now_ms);
        let mut lives = self.sites.iter().enumerate();
        lives.all(|(host, site)| match &site.life {
            Some(life) if !self.network.is_diverged(host) => {
                life.calling() == 0
                    && life.committing() == 0
                    && (life.revoked || life.is_fresh(now))
            }
            _ => true,
        })
    }

    fn check(&mut self) {
        let digest = self.truth.state().digest();
        let epoch = self.truth.state().epoch();
        let now = Duration::from_millis(self.now_ms);
        for (host, site) in self.sites.iter_mut().enumerate() {
            let Some(life) = &mut site.life else {
                continue;
            };
            let says = life.record.divergence().borrow().is_some();
            if self.network.is_diverged(host) {
                assert!(says, "host {host} lost entries and does not say so");
                self.report.diverged += 1;
                continue;
            }
            assert!(!says, "host {host} says that the log has diverged");
            assert!(life.record.failure().borrow().is_none(), "host {host}");
            assert_eq!(life.record.state().digest(), digest, "host {host}");
            assert!(site.stops.is_empty(), "a stop of host {host} never got in");
            if life.revoked {
                assert!(!life.passes(), "a revoked host lets something through");
                continue;
            }
            life.graft();
            assert_eq!(life.grafted, epoch, "host {host} is in another epoch");
            assert!(life.passes(), "the gate of host {host} stays closed");
            assert!(life.is_fresh(now), "host {host} is not fresh");
        }
        self.check_lost();
        self.check_claims();
        self.report.counting += self.truth.counting();
    }

    /// Whoever knew of an entry that the log lost says so.
    fn check_lost(&self) {
        let Some((from, entries)) = self.network.lost() else {
            return;
        };
        let now = self.network.standing_from(1);
        for (seq, entry) in (from..).zip(&entries) {
            let there = now.get(seq as usize - 1);
            if there.is_some_and(|standing| standing.id == entry.id) {
                continue;
            }
            for host in 0..self.sites.len() {
                // One that runs; of those that began again, its tip tells.
                assert!(
                    self.network.knows(host, seq) != Some(entry.id)
                        || self.network.is_diverged(host)
                        || self.sites[host].life.is_none(),
                    "host {host} was told of {seq}, which was lost, and does not say so"
                );
            }
        }
    }

    /// What was acknowledged is there, at every host, unless the log lost it.
    fn check_claims(&self) {
        for Claim { host, life, placed } in &self.claims {
            let counts = MessageVerdict::Counts(placed.clone());
            let judged = self.truth.judged(placed.seq);
            if !judged.is_some_and(|judged| judged.messages.contains(&counts)) {
                let lost = self
                    .network
                    .lost()
                    .is_some_and(|(from, _)| placed.seq >= from);
                assert!(lost, "host {host}'s receipt of {} is void", placed.seq);
                let site = &self.sites[*host];
                assert!(
                    site.lives != *life || site.life.is_none() || self.network.is_diverged(*host),
                    "host {host}'s receipt of {} is lost, and it does not say so",
                    placed.seq
                );
                continue;
            }
            for (other, site) in self.sites.iter().enumerate() {
                let Some(life) = site
                    .life
                    .as_ref()
                    .filter(|_| !self.network.is_diverged(other))
                else {
                    continue;
                };
                let reading = life
                    .record
                    .messages(&placed.channel, placed.ordinal, 1, 1 << 20);
                let kept = self.bed.runtime.block_on(reading).unwrap();
                let id = kept
                    .first()
                    .map(|kept| kept.sealed.message_id(kept.place.index.into()));
                assert_eq!(id, Some(placed.id), "host {other} has lost a message");
            }
        }
    }
}
