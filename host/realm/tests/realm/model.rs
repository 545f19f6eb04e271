//! Judge against a model that keeps everything and looks through all of it every time.
//!
//! The model knows no order among the rules: it collects every rule that a message breaks. Judge must let count exactly
//! what breaks none, and must name a rule that is broken where it does not.

use std::collections::BTreeSet;

use agora_realm::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::*;

const CHANNELS: [&str; 3] = ["plain", "carry", "bravo/plain"];
const REMOTE: usize = 2;
const PERSONAS: [&str; 6] = ["a", "b", "n", "operator:0", "peer:alpha", "alpha/x"];
const OPERATOR: usize = 3;
const PEER: usize = 4;
const GUEST: usize = 5;
const CHANNEL_HOPS: u16 = 3;
const REACTIONS: usize = 4;

#[derive(Debug, Clone)]
struct Said {
    act: usize,
    parent: Option<Index>,
    /// None: as many as there are.
    hops: Option<u16>,
    key_step: u64,
    elsewhere: bool,
    owner: Option<usize>,
    deadline: bool,
}

#[derive(Debug, Clone)]
enum Op {
    Grant {
        to: usize,
        channel: usize,
        rights: u16,
        hops: u16,
        count: u64,
        history: u64,
        parent: Option<Index>,
        lasting: bool,
    },
    Cut(Index),
    Kill(usize),
    Start(usize, bool),
    Fence {
        behind: u64,
    },
    Turn {
        by: usize,
        grant: Index,
        through: u64,
        origin: bool,
        stale: bool,
        said: Vec<Said>,
    },
    Lapse {
        root: Index,
        late: bool,
    },
    Again(Index),
    Junk,
}

fn said() -> impl Strategy<Value = Said> {
    let owner = prop_oneof![4 => Just(None), 1 => (0..3usize).prop_map(Some)];
    let parent = prop_oneof![1 => Just(None), 3 => any::<Index>().prop_map(Some)];
    let hops = prop_oneof![5 => Just(None), 1 => (0..5u16).prop_map(Some)];
    let elsewhere = prop::bool::weighted(0.05);
    (
        0..6usize,
        parent,
        hops,
        0..6u64,
        owner,
        any::<bool>(),
        elsewhere,
    )
        .prop_map(
            |(act, parent, hops, key_step, owner, deadline, elsewhere)| {
                let act = if owner.is_some() && parent.is_none() {
                    1
                } else {
                    act
                };
                Said {
                    act,
                    parent,
                    hops,
                    key_step,
                    elsewhere,
                    owner,
                    deadline,
                }
            },
        )
}

/// Whoever may be granted anything, killed and started.
fn whom() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..3usize, 1 => Just(PEER), 2 => Just(GUEST)]
}

fn op() -> impl Strategy<Value = Op> {
    let parent = prop_oneof![2 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let rights = prop_oneof![3 => Just(15u16), 1 => 0..16u16];
    let count = prop_oneof![3 => Just(u64::MAX), 1 => 0..4u64];
    let history = prop_oneof![2 => Just(u64::MAX), 1 => 0..3u64];
    let grant = (
        (whom(), 0..CHANNELS.len(), rights),
        (0..5u16, count, history),
        parent,
        any::<bool>(),
    )
        .prop_map(
            |((to, channel, rights), (hops, count, history), parent, lasting)| Op::Grant {
                to,
                channel,
                rights,
                hops,
                count,
                history,
                parent,
                lasting,
            },
        );
    let through = prop_oneof![2 => Just(0u64), 3 => 1..12u64];
    let turn = (
        0..PERSONAS.len(),
        any::<Index>(),
        through,
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.05),
        vec(said(), 0..4),
    )
        .prop_map(|(by, grant, through, origin, stale, said)| Op::Turn {
            by,
            grant,
            through,
            origin,
            stale,
            said,
        });
    prop_oneof![
        4 => grant,
        1 => any::<Index>().prop_map(Op::Cut),
        1 => whom().prop_map(Op::Kill),
        1 => (whom(), any::<bool>()).prop_map(|(who, started)| Op::Start(who, started)),
        1 => (0..2u64).prop_map(|behind| Op::Fence { behind }),
        16 => turn,
        1 => (any::<Index>(), any::<bool>()).prop_map(|(root, late)| Op::Lapse { root, late }),
        2 => any::<Index>().prop_map(Op::Again),
        1 => Just(Op::Junk),
    ]
}

struct MGrant {
    id: GrantId,
    to: usize,
    channel: usize,
    terms: Terms,
    parent: Option<usize>,
    lasting: bool,
    first: u64,
    epoch: u64,
    cut: bool,
}

struct MMessage {
    id: MessageId,
    channel: usize,
    ordinal: u64,
    author: usize,
    parent: Option<usize>,
    act: Act,
    hops: u16,
    key: u64,
    epoch: u64,
    grant: Option<usize>,
    owner: Option<usize>,
    deadline: i64,
    lapsed: bool,
}

struct MTurn {
    by: usize,
    channel: usize,
    origin: Option<usize>,
    through: u64,
    verdicts: Vec<MessageVerdict>,
}

/// All that ever stood.
#[derive(Default)]
struct Model {
    grants: Vec<MGrant>,
    messages: Vec<MMessage>,
    turns: Vec<MTurn>,
    killed: BTreeSet<usize>,
    epoch: u64,
}

impl Model {
    fn stands(&self, grant: usize) -> bool {
        let g = &self.grants[grant];
        let fenced = g.parent.is_some() && !g.lasting && g.epoch < self.epoch;
        !g.cut && !fenced && g.parent.is_none_or(|parent| self.stands(parent))
    }

    /// Somebody that it came through is killed.
    fn suspended(&self, grant: usize) -> bool {
        let above = &self.chain(grant)[1..];
        above.iter().any(|at| self.cut_off(self.grants[*at].to))
    }

    /// Where its holder has it from: from the host, or from somebody else.
    fn source(&self, grant: usize) -> usize {
        match self.grants[grant].parent {
            Some(parent) if self.grants[parent].to == self.grants[grant].to => self.source(parent),
            _ => grant,
        }
    }

    fn chain(&self, grant: usize) -> Vec<usize> {
        std::iter::successors(Some(grant), |at| self.grants[*at].parent).collect()
    }

    fn effective(&self, grant: usize) -> Terms {
        self.chain(grant)
            .iter()
            .fold(Terms::ALL, |met, at| met.meet(&self.grants[*at].terms))
    }

    fn used(&self, grant: usize) -> u64 {
        self.messages
            .iter()
            .filter(|m| m.grant.is_some_and(|g| self.chain(g).contains(&grant)))
            .count() as u64
    }

    fn latest(&self, channel: usize) -> u64 {
        self.messages
            .iter()
            .filter(|m| m.channel == channel)
            .count() as u64
    }

    fn root(&self, message: usize) -> usize {
        self.messages[message]
            .parent
            .map_or(message, |parent| self.root(parent))
    }

    fn fenced(&self, channel: usize) -> u64 {
        let past = |m: &&MMessage| m.channel == channel && channel == 0 && m.epoch < self.epoch;
        self.messages.iter().filter(past).count() as u64
    }

    fn readers(&self, who: usize, channel: usize) -> impl Iterator<Item = &MGrant> {
        (0..self.grants.len())
            .filter(move |at| {
                let g = &self.grants[*at];
                g.to == who
                    && g.channel == channel
                    && self.stands(*at)
                    && self.effective(*at).rights.has(Rights::READ)
            })
            .map(|at| &self.grants[at])
    }

    /// Killed, or a guest of a killed peer.
    fn cut_off(&self, who: usize) -> bool {
        self.killed.contains(&who) || (who == GUEST && self.killed.contains(&PEER))
    }

    fn cursor(&self, who: usize, channel: usize) -> u64 {
        let first = self
            .readers(who, channel)
            .map(|g| g.first)
            .min()
            .unwrap_or(0);
        let own = self
            .turns
            .iter()
            .filter(|t| t.by == who && t.channel == channel && t.origin.is_none());
        let own = own.map(|t| t.through).max().unwrap_or(0);
        if channel == REMOTE {
            return own;
        }
        own.max(first).max(self.fenced(channel))
    }

    fn highest_key(&self, who: usize, channel: usize) -> u64 {
        let own = self
            .messages
            .iter()
            .filter(|m| m.author == who && m.channel == channel);
        own.map(|m| m.key).max().unwrap_or(0)
    }

    fn closed(&self, root: usize) -> bool {
        let r = &self.messages[root];
        let decided = (0..self.messages.len()).any(|at| {
            let m = &self.messages[at];
            m.act == Act::Decide && at != root && self.root(at) == root && r.owner == Some(m.author)
        });
        r.owner.is_some() && (decided || r.lapsed || r.ordinal <= self.fenced(r.channel))
    }

    fn reactions(&self, root: usize) -> usize {
        (0..self.messages.len())
            .filter(|at| *at != root && self.root(*at) == root)
            .count()
    }

    /// Every rule that this message breaks.
    fn broken(
        &self,
        by: usize,
        grant: Option<usize>,
        channel: usize,
        m: &Message,
        in_turn: bool,
    ) -> BTreeSet<Refusal> {
        let mut broken = BTreeSet::new();
        let mut require = |holds: bool, refusal| {
            if !holds {
                broken.insert(refusal);
            }
        };
        let operator = by == OPERATOR;
        let remote = channel == REMOTE;
        let terms = grant.map_or(Terms::ALL, |g| self.effective(g));
        require(in_turn == (m.key == 0), Refusal::Malformed);
        let root_request = m.parent.is_none() && m.act == Act::Request;
        require(m.owner.is_none() || root_request, Refusal::Malformed);
        require(m.deadline_ms == 0 || m.owner.is_some(), Refusal::Malformed);
        require(
            in_turn || m.key > self.highest_key(by, channel),
            Refusal::KeyExpired,
        );
        require(terms.rights.has(Rights::WRITE), Refusal::NoRight);
        let spent = grant.is_some_and(|g| {
            self.chain(g)
                .iter()
                .any(|at| self.used(*at) >= self.grants[*at].terms.count)
        });
        require(!spent, Refusal::CountSpent);
        let most = if remote {
            terms.hops
        } else {
            CHANNEL_HOPS.min(terms.hops)
        };
        if remote {
            let lone = m.owner.is_none() && m.deadline_ms == 0;
            require(lone, Refusal::Malformed);
        }
        let Some(parent) = m.parent else {
            require(terms.rights.has(Rights::INITIATE), Refusal::NoRight);
            require(m.hops <= most, Refusal::BadHops);
            return broken;
        };
        require(terms.rights.has(Rights::READ), Refusal::NoRight);
        if remote {
            require(m.hops <= most, Refusal::BadHops);
            return broken;
        }
        let found = self
            .messages
            .iter()
            .position(|p| p.id == parent && p.channel == channel);
        let Some(found) = found else {
            require(false, Refusal::ParentUnknown);
            return broken;
        };
        let p = &self.messages[found];
        let reach = grant.map_or(0, |g| self.grants[g].first.saturating_sub(terms.history));
        let root = self.root(found);
        require(p.ordinal > reach, Refusal::ParentUnknown);
        require(p.author != by, Refusal::ParentOwn);
        require(p.ordinal > self.fenced(channel), Refusal::ParentFenced);
        require(p.hops > 0, Refusal::HopsSpent);
        require(
            p.hops == 0 || m.hops <= most.min(p.hops - 1),
            Refusal::BadHops,
        );
        require(!self.closed(root), Refusal::ThreadClosed);
        let owner = self.messages[root].owner;
        require(
            m.act != Act::Decide || owner.is_none() || owner == Some(by),
            Refusal::NotOwner,
        );
        require(
            operator || self.reactions(root) < REACTIONS,
            Refusal::BreakerOpen,
        );
        broken
    }
}

struct Ids {
    personas: Vec<PersonaId>,
    channels: Vec<ChannelName>,
}

impl Ids {
    fn no(&self, persona: &PersonaId) -> usize {
        self.personas.iter().position(|p| p == persona).unwrap()
    }
}

fn run(ops: Vec<Op>) -> World {
    let mut w = World::fenced_by(Vec::new());
    w.channel("plain", CHANNEL_HOPS, REACTIONS as u32, false);
    w.channel("carry", CHANNEL_HOPS, REACTIONS as u32, true);
    w.channel(CHANNELS[REMOTE], CHANNEL_HOPS, 0, false);
    let personas = PERSONAS.map(|name| w.persona(name)).to_vec();
    let ids = Ids {
        personas,
        channels: CHANNELS.map(channel).to_vec(),
    };
    let mut m = Model {
        epoch: 1,
        ..Model::default()
    };
    let mut sealed: Vec<Sealed> = Vec::new();
    let all = |n: usize| Op::Grant {
        to: [0, 1, 2, PEER][n / CHANNELS.len()],
        channel: n % CHANNELS.len(),
        rights: if n / CHANNELS.len() == 3 { 7 } else { 15 },
        hops: CHANNEL_HOPS,
        count: u64::MAX,
        history: u64::MAX,
        parent: None,
        lasting: false,
    };
    for op in (0..4 * CHANNELS.len()).map(all).chain(ops) {
        step(&mut w, &mut m, &ids, &mut sealed, op);
        for (who, id) in ids.personas.iter().enumerate() {
            for (at, name) in ids.channels.iter().enumerate() {
                assert_eq!(w.state.cursor(id, name).0, m.cursor(who, at));
                assert_eq!(w.state.next_key(id, name), m.highest_key(who, at) + 1);
            }
        }
        for (at, name) in ids.channels.iter().enumerate() {
            assert_eq!(w.state.channel(name).unwrap().latest.0, m.latest(at));
        }
        for (at, grant) in m.grants.iter().enumerate() {
            assert_eq!(w.state.grant(&grant.id).is_some(), m.stands(at));
            if let Some(known) = w.state.grant(&grant.id) {
                assert_eq!((known.used, known.effective), (m.used(at), m.effective(at)));
            }
        }
        let open = |at: &usize| m.messages[*at].owner.is_some() && !m.closed(*at);
        assert_eq!(
            w.state.open_threads().count(),
            (0..m.messages.len()).filter(open).count()
        );
        assert_eq!(w.state.epoch().0, m.epoch);
    }
    w
}

fn step(w: &mut World, m: &mut Model, ids: &Ids, sealed: &mut Vec<Sealed>, op: Op) {
    match op {
        Op::Grant {
            to,
            channel: at,
            rights,
            hops,
            count,
            history,
            parent,
            lasting,
        } => {
            // A guest is mostly lent what its peer holds.
            let choice: Vec<usize> = (0..m.grants.len())
                .filter(|g| to != GUEST || lasting || m.grants[*g].to == PEER)
                .collect();
            let parent = parent
                .filter(|_| !choice.is_empty())
                .map(|i| choice[i.index(choice.len())]);
            let at = parent
                .filter(|_| to == GUEST)
                .map_or(at, |parent| m.grants[parent].channel);
            let terms = Terms {
                rights: Rights(rights),
                hops,
                count,
                history,
                ..Terms::ALL
            };
            let mut entry = w.grant_entry(
                &ids.personas[to],
                CHANNELS[at],
                terms,
                parent.map(|p| m.grants[p].id),
            );
            let Body::Grant(body) = &mut entry.body else {
                unreachable!()
            };
            body.lasting = lasting;
            let admitted = w.state.admit_grant(&host(1), body).map(|_| ());
            let s = w.seal(entry);
            let judged = w.put_sealed(&s);
            let lendable = parent.is_none_or(|p| {
                m.stands(p)
                    && m.grants[p].channel == at
                    && !m.suspended(p)
                    && !m.cut_off(m.grants[p].to)
                    && ((to == GUEST && m.grants[p].to == PEER)
                        || m.effective(m.source(p)).rights.has(Rights::ATTENUATE))
                    && m.chain(p).len() < 16
            });
            assert_eq!(judged.verdict.is_ok(), lendable, "{:?}", judged.verdict);
            assert_eq!(judged.verdict, admitted);
            if lendable {
                let brought = parent.filter(|p| to == GUEST && m.grants[*p].to == PEER);
                let first = brought.map_or_else(|| m.latest(at), |p| m.grants[p].first);
                let epoch = m.epoch;
                let id = s.id().into();
                m.grants.push(MGrant {
                    id,
                    to,
                    channel: at,
                    terms,
                    parent,
                    lasting,
                    first,
                    epoch,
                    cut: false,
                });
            }
            sealed.push(s);
        }
        Op::Cut(which) => {
            if m.grants.is_empty() {
                return;
            }
            let which = which.index(m.grants.len());
            let stood = m.stands(which);
            let s = w.seal(w.revoke_entry(Revoked::Grant(m.grants[which].id)));
            assert_eq!(w.put_sealed(&s).verdict.is_ok(), stood);
            m.grants[which].cut = true;
            sealed.push(s);
        }
        Op::Kill(who) => {
            let s = w.seal(w.revoke_entry(Revoked::Persona(ids.personas[who].clone())));
            let newly = m.killed.insert(who);
            assert_eq!(w.put_sealed(&s).verdict.is_ok(), newly);
            for at in 0..m.grants.len() {
                let g = &m.grants[at];
                let passed = g.parent.filter(|_| newly && !g.lasting);
                let dies = |to: usize| to == who || (who == PEER && to == GUEST);
                let touched = passed.is_some_and(|p| dies(g.to) || dies(m.grants[p].to));
                m.grants[at].cut |= touched;
            }
            sealed.push(s);
        }
        Op::Start(who, started) => {
            let verdict = w.key(&ids.personas[who], started).verdict;
            let peerless = who == GUEST && m.killed.contains(&PEER);
            let stands = !peerless && (started || !m.killed.contains(&who));
            assert_eq!(verdict.is_ok(), stands);
            if started && stands {
                m.killed.remove(&who);
            }
            sealed.push(Sealed::open(w.log.last().unwrap().clone()).unwrap());
        }
        Op::Fence { behind } => {
            let s = w.seal(w.revoke_entry(Revoked::Fence {
                ends: Epoch(m.epoch - behind.min(m.epoch)),
                hold: false,
            }));
            assert_eq!(w.put_sealed(&s).verdict.is_ok(), behind == 0);
            m.epoch += u64::from(behind == 0);
            sealed.push(s);
        }
        Op::Turn {
            by,
            grant,
            through,
            origin,
            stale,
            said,
        } => {
            // Mostly one of its own that stands.
            let own = (0..m.grants.len()).filter(|g| m.grants[*g].to == by && m.stands(*g));
            let mut choice: Vec<usize> = own.collect();
            if choice.is_empty() || grant.index(12) == 0 {
                choice = (0..m.grants.len()).collect();
            }
            let grant =
                (by != OPERATOR && !choice.is_empty()).then(|| choice[grant.index(choice.len())]);
            let at = grant.map_or(said.len() % CHANNELS.len(), |g| m.grants[g].channel);
            let origin =
                (origin && through > 0).then_some((at + 1 + said.len() % 2) % CHANNELS.len());
            let mut key = m.highest_key(by, at).saturating_sub(1);
            let latest = m.latest(origin.unwrap_or(at));
            let through = if through > 9 {
                through - 8
            } else {
                through.min(1) * (latest + 1).saturating_sub(through).max(1)
            };
            let messages = said.iter().map(|s| {
                key += s.key_step.min(2);
                let near = |p: &usize| s.elsewhere || m.messages[*p].channel == at;
                let near: Vec<usize> = (0..m.messages.len()).filter(near).collect();
                // Mostly a recent one.
                let near = &near[near.len().saturating_sub(8)..];
                let parent = s
                    .parent
                    .filter(|_| !near.is_empty())
                    .map(|i| &m.messages[near[i.index(near.len())]]);
                let left = parent.map_or(CHANNEL_HOPS, |p| p.hops.saturating_sub(1));
                let most = grant.map_or(left, |g| left.min(m.effective(g).hops));
                Message {
                    key: if through > 0 { 0 } else { key },
                    parent: parent.map(|p| p.id),
                    hops: s.hops.unwrap_or(most),
                    owner: s.owner.map(|who| ids.personas[who].clone()),
                    deadline_ms: if s.deadline && s.owner.is_some() {
                        50
                    } else {
                        0
                    },
                    ..message(Act::EVERY[s.act])
                }
            });
            let messages: Vec<Message> = messages.collect();
            let body = TurnBody {
                channel: ids.channels[at].clone(),
                through: Ordinal(through),
                origin: origin.map(|o| ids.channels[o].clone()),
                messages,
                peer_epoch: peer_epoch(&ids.channels[at]),
            };
            let mut entry = w.turn_entry(&ids.personas[by], grant.map(|g| m.grants[g].id), body);
            if stale {
                entry.epoch = Epoch(m.epoch + 1);
            }
            let s = w.seal(entry);
            turn(w, m, ids, &s);
            sealed.push(s);
        }
        Op::Lapse { root, late } => {
            if m.messages.is_empty() {
                return;
            }
            let root = m.root(root.index(m.messages.len()));
            let thread = m.messages[root].id;
            let body = LapseBody {
                channel: ids.channels[m.messages[root].channel].clone(),
                thread,
            };
            let entry = Entry {
                time_ms: if late { 50 } else { 49 },
                ..w.entry(Body::Lapse(body))
            };
            let s = w.seal(entry);
            let due = late
                && m.messages[root].deadline > 0
                && m.messages[root].owner.is_some()
                && !m.closed(root);
            assert_eq!(
                w.put_sealed(&s).verdict,
                if due { Ok(()) } else { Err(Refusal::NotDue) }
            );
            m.messages[root].lapsed |= due;
        }
        Op::Again(which) => {
            if sealed.is_empty() {
                return;
            }
            // Whatever stood before: a turn is judged anew, by the same model; nothing else stands twice, in any epoch,
            // except a stop of an earlier one.
            let s = sealed[which.index(sealed.len())].clone();
            match &s.entry().body {
                Body::Turn(_) => turn(w, m, ids, &s),
                Body::Revoke(_) if s.entry().epoch.0 < m.epoch => {}
                _ => {
                    let before = w.state.clone();
                    let judged = w.put_sealed(&s);
                    assert!(judged.verdict.is_err(), "{judged:?}");
                    assert_eq!(w.state.grants().count(), before.grants().count());
                }
            }
        }
        Op::Junk => {
            let mut junk = w.log[0].to_vec();
            junk[0] ^= 1;
            let err = Sealed::open(junk.clone().into()).unwrap_err();
            w.log.push(junk.into());
            let seq = w.log.len() as u64;
            assert_eq!(
                judge(&mut w.state, seq, Err(&err)).verdict,
                Err(Refusal::BadSignature)
            );
        }
    }
}

/// Judges a turn and holds it against the model.
fn turn(w: &mut World, m: &mut Model, ids: &Ids, s: &Sealed) {
    let entry = s.entry().clone();
    let Body::Turn(body) = &entry.body else {
        unreachable!()
    };
    let by = ids.no(&PersonaId::new(entry.host, entry.author.clone().unwrap()));
    let at = ids
        .channels
        .iter()
        .position(|c| *c == body.channel)
        .unwrap();
    let origin = body
        .origin
        .as_ref()
        .map(|o| ids.channels.iter().position(|c| c == o).unwrap());
    let grant = entry
        .grant
        .map(|id| m.grants.iter().position(|g| g.id == id).unwrap());
    let (through, in_turn) = (body.through.0, body.through.0 > 0);

    let mut broken = BTreeSet::new();
    let mut require = |holds: bool, refusal| {
        if !holds {
            broken.insert(refusal);
        }
    };
    require(entry.epoch.0 == m.epoch, Refusal::StaleEpoch);
    require(!m.cut_off(by), Refusal::Revoked);
    require(grant.is_some() || by == OPERATOR, Refusal::UnknownGrant);
    if let Some(g) = grant {
        require(m.stands(g) && !m.suspended(g), Refusal::Revoked);
        require(
            m.grants[g].to == by && m.grants[g].channel == at,
            Refusal::UnknownGrant,
        );
    }
    require(in_turn || !body.messages.is_empty(), Refusal::Malformed);
    let same = |t: &&MTurn| t.by == by && t.channel == at && t.origin == origin;
    let repeats = if in_turn {
        m.turns.iter().filter(same).find(|t| t.through == through)
    } else {
        None
    };
    if in_turn {
        let answered = origin.unwrap_or(at);
        require(repeats.is_none(), Refusal::Repeated);
        let unread = if origin.is_none() {
            Refusal::NoRight
        } else {
            Refusal::UnknownGrant
        };
        require(
            by == OPERATOR || m.readers(by, answered).next().is_some(),
            unread,
        );
        require(
            answered == REMOTE || through <= m.latest(answered),
            Refusal::Malformed,
        );
        require(
            origin.is_some() || through > m.cursor(by, at),
            Refusal::BehindCursor,
        );
        let highest = m
            .turns
            .iter()
            .filter(same)
            .map(|t| t.through)
            .max()
            .unwrap_or(0);
        require(origin.is_none() || through > highest, Refusal::KeyExpired);
    }

    let (persona, name) = (&ids.personas[by], &body.channel);
    let stands = w.state.admit_turn(
        persona,
        entry.grant.as_ref(),
        name,
        body.origin.as_ref(),
        body.through,
    );
    let first = body.messages.first().map(|said| {
        let draft = Draft {
            act: said.act,
            parent: said.parent,
            hops_wish: u16::MAX,
            bytes: said.payload.len(),
            key: said.key,
            owner: said.owner.clone(),
            deadline_ms: said.deadline_ms,
            in_turn,
        };
        w.state.admit(persona, entry.grant.as_ref(), name, &draft)
    });
    let judged = w.put_sealed(s);
    assert_eq!(judged.messages.len(), body.messages.len());
    // Admission foresees what judge says.
    if judged.verdict != Err(Refusal::StaleEpoch) && (in_turn || !body.messages.is_empty()) {
        assert_eq!(stands, judged.verdict);
    }
    if let (Ok(()), Some(first)) = (judged.verdict, first) {
        match (&judged.messages[0], first) {
            (MessageVerdict::Counts(placed), admitted) => {
                assert!(admitted.is_ok_and(|a| a.hops >= placed.hops))
            }
            (MessageVerdict::Void(Refusal::BadHops), admitted) => {
                assert!(
                    admitted
                        != Ok(Admitted {
                            hops: body.messages[0].hops
                        })
                );
            }
            (MessageVerdict::Void(refusal), admitted) => assert_eq!(admitted, Err(*refusal)),
            (MessageVerdict::Repeat(_), admitted) => assert_eq!(admitted, Err(Refusal::Repeated)),
        }
    }
    if let Err(refusal) = judged.verdict {
        assert!(broken.contains(&refusal), "{refusal:?} of {broken:?}");
        for (i, verdict) in judged.messages.iter().enumerate() {
            match (refusal, repeats) {
                (Refusal::Repeated, Some(first)) => {
                    let expected = match first.verdicts.get(i) {
                        Some(MessageVerdict::Counts(placed)) => {
                            MessageVerdict::Repeat(placed.clone())
                        }
                        Some(other) => other.clone(),
                        None => MessageVerdict::Void(Refusal::Repeated),
                    };
                    assert_eq!(*verdict, expected);
                }
                _ => assert_eq!(*verdict, MessageVerdict::Void(refusal)),
            }
        }
        return;
    }
    assert_eq!(broken, BTreeSet::new(), "the turn stands");
    for (i, (said, verdict)) in body.messages.iter().zip(&judged.messages).enumerate() {
        let broken = m.broken(by, grant, at, said, in_turn);
        match verdict {
            MessageVerdict::Counts(placed) => {
                assert_eq!(broken, BTreeSet::new(), "{said:?} counts");
                let parent = said
                    .parent
                    .filter(|_| at != REMOTE)
                    .and_then(|id| m.messages.iter().position(|p| p.id == id));
                m.messages.push(MMessage {
                    id: s.message_id(i),
                    channel: at,
                    ordinal: m.latest(at) + 1,
                    author: by,
                    parent,
                    act: said.act,
                    hops: said.hops,
                    key: said.key,
                    epoch: m.epoch,
                    grant,
                    owner: said.owner.as_ref().map(|o| ids.no(o)),
                    deadline: said.deadline_ms,
                    lapsed: false,
                });
                let own = m.messages.len() - 1;
                assert_eq!(placed.ordinal.0, m.messages[own].ordinal);
                assert_eq!(placed.thread, m.messages[m.root(own)].id);
                assert_eq!(
                    (placed.hops, placed.epoch.0, usize::from(placed.index)),
                    (said.hops, m.epoch, i)
                );
            }
            MessageVerdict::Void(refusal) => {
                assert!(broken.contains(refusal), "{refusal:?} of {broken:?}")
            }
            MessageVerdict::Repeat(first) => {
                let of = m
                    .messages
                    .iter()
                    .find(|p| p.author == by && p.channel == at && p.key == said.key);
                assert_eq!(
                    of.map(|p| (p.id, p.ordinal)),
                    Some((first.id, first.ordinal.0))
                );
                assert!(!in_turn && said.key > 0);
            }
        }
    }
    if in_turn {
        m.turns.push(MTurn {
            by,
            channel: at,
            origin,
            through,
            verdicts: judged.messages,
        });
    }
}

fn fold(state: &mut State, log: &[bytes::Bytes], from: usize) {
    for (at, stored) in log.iter().enumerate().skip(from) {
        let sealed = Sealed::open(stored.clone());
        judge(state, at as u64 + 1, sealed.as_ref());
    }
}

/// A bounded sample, or as many as `PROPTEST_CASES` asks for.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(96)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn judge_agrees_with_the_model(ops in vec(op(), 1..120)) {
        run(ops);
    }

    #[test]
    fn a_log_whose_turns_are_stubs_is_judged_alike((ops, gone) in (vec(op(), 1..60), any::<u64>())) {
        let w = run(ops);
        let (mut whole, mut purged) = (State::new(), State::new());
        for (at, stored) in w.log.iter().enumerate() {
            let seq = at as u64 + 1;
            let sealed = Sealed::open(stored.clone());
            let kept = match &sealed {
                Ok(sealed) if gone >> (at % 64) & 1 == 1 => match sealed.stub() {
                    Some(stub) => {
                        let back = Sealed::from_stub(sealed.leaf(), stub.clone()).unwrap();
                        prop_assert!(back.is_purged() && back.id() == sealed.id() && back.leaf() == sealed.leaf());
                        prop_assert_eq!(back.stub(), Some(stub));
                        Ok(back)
                    }
                    None => Ok(sealed.clone()),
                },
                other => other.clone(),
            };
            let verdicts = judge(&mut whole, seq, sealed.as_ref());
            prop_assert_eq!(judge(&mut purged, seq, kept.as_ref()), verdicts);
        }
        prop_assert_eq!(purged.digest(), w.state.digest());
    }

    #[test]
    fn a_snapshot_folded_further_equals_a_straight_fold((ops, at) in (vec(op(), 1..40), any::<Index>())) {
        let w = run(ops);
        let mut straight = State::new();
        fold(&mut straight, &w.log, 0);
        prop_assert_eq!(straight.digest(), w.state.digest());
        let at = at.index(w.log.len());
        let mut resumed = State::new();
        fold(&mut resumed, &w.log[..at], 0);
        let mut resumed: State = postcard::from_bytes(&postcard::to_stdvec(&resumed).unwrap()).unwrap();
        fold(&mut resumed, &w.log, at);
        prop_assert_eq!(resumed.digest(), straight.digest());
    }
}
