//! The small case, searched: three agents, three epochs, one channel on which one message may count.
//!
//! What is exhaustive, and of what. [`choices`] names the steps that are taken from a state, and whoever lost its graft and runs on grafts
//! at once after each. They leave out what would only do again what is so already (a second loan or narrowing like a living one), chains
//! of more than [`CHAIN_MAX`] grants, the operator's second grant, and agents that end by themselves. Two states are one when they have
//! the same agents, the same grants and the same living facets, whatever died on the way, and whoever of bob and cy is which.
//! - The model: every state up to so many steps, breadth-first; each transition is held against [`invariants`].
//! - Judge: every one of these transitions, each after the first path to its state; after each, every grant that ever was is tried.
//! - The host: of the paths that together make every transition, a sample; after each step, every facet that any agent has is tried.
//!
//! `AGORA_STEPS` says up to how many steps (else 6 for the model and the host's paths, 4 for judge), `AGORA_PATHS` how many paths the
//! host takes (0: all), `PROPTEST_RNG_SEED` which. Beyond so many steps nothing is searched: there is more.

use std::collections::{BTreeMap, HashMap, HashSet};

use agora_realm::{
    Act, Body, ChannelBody, ChannelName, Draft, Entry, Epoch, Genesis, GrantBody, GrantId, HostId,
    KeyBody, KeySubject, Message, MessageVerdict, Object, Ordinal, PersonaId, PersonaName,
    REALM_FORMAT, RealmId, Refusal, RevokeBody, Revoked, Rights, Sealed, SigningKey, State,
    TurnBody, judge, tagged_hash,
};

use crate::host::{AGENTS, Bed};
use crate::model::{AgentNo, GrantNo, INITIATE, Life, Model, READ, Step, Terms, WRITE};

/// The last epoch that steps are taken in.
const EPOCHS: u64 = 3;
/// Grants in one chain: lent to one, and by that one to the next; or narrowed on the way.
const CHAIN_MAX: usize = 3;
/// Paths that one host takes, one after the other.
const PATHS_PER_HOST: usize = 40;

/// Where the search begins: ann is granted the channel, and all have grafted.
const BEGINNING: [Step; 4] = [
    Step::Grant {
        to: 0,
        channel: 0,
        terms: Terms {
            count: 1,
            ..Terms::ALL
        },
    },
    Step::Graft(0),
    Step::Graft(1),
    Step::Graft(2),
];

/// How an agent narrows what it holds: for good and in full, or to one message that is not passed on.
const NARROWINGS: [(Terms, bool); 2] = [
    (Terms::ALL, true),
    (
        Terms {
            rights: READ | WRITE | INITIATE,
            acts: 0x3f,
            count: 1,
        },
        false,
    ),
];

fn beginning() -> Model {
    let mut model = Model::new(AGENTS.len(), 1);
    for step in BEGINNING {
        assert!(model.apply(&step));
    }
    model
}

/// The steps that are taken from a state.
fn choices(model: &Model) -> Vec<Step> {
    let mut steps = Vec::new();
    for (no, agent) in model.agents.iter().enumerate() {
        match agent.life {
            Life::Running => steps.extend([Step::Graft(no), Step::Kill(no)]),
            Life::Ended | Life::Killed => steps.push(Step::Start(no)),
        }
    }
    if model.epoch < EPOCHS {
        steps.push(Step::Bump);
    }
    let known = 0..model.grants.len();
    steps.extend(
        known
            .filter(|no| model.grants[*no].parent.is_none() && model.is_on_the_books(*no))
            .map(Step::Revoke),
    );
    for (facet, of) in model.facets.iter().enumerate() {
        if of.dead {
            continue;
        }
        let alike = |wanted: &dyn Fn(&crate::model::Facet) -> bool| {
            let mut living = model.facets.iter().filter(|other| !other.dead);
            living.any(wanted)
        };
        steps.push(Step::Say { facet, act: 0 });
        if of.made {
            steps.push(Step::Cut(facet));
        }
        if model.chain(of.grant).count() >= CHAIN_MAX {
            continue;
        }
        for to in (0..AGENTS.len()).filter(|to| model.may_call(of.holder, *to)) {
            if !alike(&|other| other.above == Some(facet) && other.holder == to) {
                steps.push(Step::Lend { facet, to });
                steps.push(Step::Fetch { facet, by: to });
            }
        }
        for (terms, lasting) in NARROWINGS {
            let has = alike(&|other| {
                let grant = &model.grants[other.grant];
                other.made && grant.parent == Some(of.grant) && grant.terms == terms
            });
            if !has && !of.made {
                steps.push(Step::Attenuate {
                    facet,
                    terms,
                    lasting,
                });
            }
        }
    }
    steps
}

/// Who grafts after a step, since its graft fell while it runs on.
fn arrivals(model: &Model) -> Vec<Step> {
    let all = model.agents.iter().enumerate();
    let idle = all.filter(|(_, agent)| agent.life == Life::Running && agent.graft.is_none());
    idle.map(|(no, _)| Step::Graft(no)).collect()
}

/// What tells one state from another, but for who of bob and cy is who.
fn key(model: &Model) -> Vec<u8> {
    let straight = key_as(model, [0, 1, 2]);
    let swapped = key_as(model, [0, 2, 1]);
    straight.min(swapped)
}

fn key_as(model: &Model, names: [u8; 3]) -> Vec<u8> {
    let mut key = vec![model.epoch as u8];
    let mut agents = [0; 3];
    for (no, agent) in model.agents.iter().enumerate() {
        agents[usize::from(names[no])] = agent.life as u8 * 2 + u8::from(agent.graft.is_some());
    }
    key.extend(agents);
    // What may still be handed out or draws on something that may: what stands or is suspended, and lasts or is held.
    let living: Vec<_> = (0..model.facets.len())
        .filter(|no| !model.facets[*no].dead)
        .collect();
    let mut matters: Vec<bool> = model
        .grants
        .iter()
        .map(|grant| grant.parent.is_none() || grant.lasting)
        .collect();
    for facet in &living {
        for no in model.chain(model.facets[*facet].grant) {
            matters[no] = true;
        }
    }
    let mut described: BTreeMap<GrantNo, Vec<u8>> = BTreeMap::new();
    let mut ranks: HashMap<(AgentNo, Option<AgentNo>), u8> = HashMap::new();
    for (no, grant) in model.grants.iter().enumerate() {
        if !matters[no] || model.chain(no).any(|above| model.grants[above].gone) {
            continue;
        }
        let parent = grant.parent.map(|parent| model.grants[parent].to);
        // Of those that last, the newest is handed out.
        let rank = ranks.entry((grant.to, parent)).or_default();
        if grant.lasting {
            *rank += 1;
        }
        let used = grant.used.min(u64::from(u8::MAX)) as u8;
        let mut words = vec![
            names[grant.to],
            grant.terms.rights,
            grant.terms.count.min(0xff) as u8,
            if grant.terms.count == u64::MAX {
                0
            } else {
                used
            },
            u8::from(grant.lasting),
            u8::from(grant.made_in.is_some()),
            if grant.lasting { *rank } else { 0 },
        ];
        if let Some(above) = grant.parent.and_then(|parent| described.get(&parent)) {
            words.extend(above);
        }
        described.insert(no, words);
    }
    let mut facets = HashMap::new();
    for no in living {
        let facet = &model.facets[no];
        let mut words = vec![0xfe, names[facet.holder], u8::from(facet.made)];
        words.extend(&described[&facet.grant]);
        if let Some(above) = facet.above.and_then(|above| facets.get(&above)) {
            let above: &Vec<u8> = above;
            words.extend(above);
        }
        facets.insert(no, words);
    }
    let mut all: Vec<_> = described
        .into_values()
        .chain(facets.into_values())
        .collect();
    all.sort_unstable();
    for words in all {
        key.push(0xff);
        key.extend(words);
    }
    key
}

/// What must hold after every transition, whatever the model is made of.
fn invariants(before: &Model, step: &Step, done: bool, after: &Model) {
    for (no, facet) in after.facets.iter().enumerate() {
        let was_dead = before.facets.get(no).is_some_and(|facet| facet.dead);
        assert!(!was_dead || facet.dead, "{step:?} revives {facet:?}");
        let calls = after.may_read(no) || after.may_say(no, 0) || after.may_pass_on(no);
        assert!(!calls || !facet.dead, "{step:?}: {facet:?} is dead");
        if facet.dead {
            continue;
        }
        let holder = &after.agents[facet.holder];
        assert_eq!(holder.life, Life::Running, "{step:?}: {facet:?}");
        assert_eq!(facet.life, holder.lives, "{step:?}: {facet:?}");
        assert_eq!(facet.epoch, after.epoch, "{step:?}: {facet:?}");
        let mut chain = after.chain(facet.grant);
        assert!(
            chain.all(|no| after.agents[after.grants[no].to].life != Life::Killed),
            "{step:?}: {facet:?} came through one who is killed"
        );
        if let Some(above) = facet.above {
            assert!(!after.facets[above].dead, "{step:?}: {facet:?}");
            assert!(!after.may_read(no) || after.may_read(above));
            assert!(!after.may_say(no, 0) || after.may_say(above, 0));
        }
    }
    for (no, grant) in after.grants.iter().enumerate() {
        assert!(grant.used <= grant.terms.count, "{step:?}: {grant:?}");
        let effective = after.effective(no);
        if let Some(parent) = grant.parent {
            let above = after.effective(parent);
            assert_eq!(effective.rights & !above.rights, 0);
            assert!(effective.count <= above.count);
            assert!(grant.used <= after.grants[parent].used);
        }
    }
    let said = after.said.len() - before.said.len();
    assert_eq!(said, usize::from(done && matches!(step, Step::Say { .. })));
}

/// A state: by which step from which other it was found.
struct Found {
    from: usize,
    step: Step,
    depth: usize,
    /// What is done from it, and whether that finds a state.
    steps: Vec<(Step, Option<usize>)>,
}

struct Search {
    found: Vec<Found>,
    transitions: usize,
    /// There is nothing beyond.
    closed: bool,
}

/// Every state up to so many steps from the beginning.
fn search(steps_max: usize) -> Search {
    let mut frontier = vec![(0, beginning())];
    let mut seen: HashSet<Vec<u8>> = frontier.iter().map(|(_, model)| key(model)).collect();
    let mut found = vec![Found {
        from: 0,
        step: BEGINNING[0],
        depth: 0,
        steps: Vec::new(),
    }];
    let mut transitions = 0;
    for depth in 1..=steps_max {
        let mut next = Vec::new();
        for (at, model) in std::mem::take(&mut frontier) {
            for step in choices(&model) {
                let mut after = model.clone();
                let done = after.apply(&step);
                invariants(&model, &step, done, &after);
                for arrival in arrivals(&after) {
                    let before = after.clone();
                    let done = after.apply(&arrival);
                    invariants(&before, &arrival, done, &after);
                }
                transitions += 1;
                let new = seen.insert(key(&after)).then_some(found.len());
                found[at].steps.push((step, new));
                if new.is_some() {
                    next.push((found.len(), after));
                    found.push(Found {
                        from: at,
                        step,
                        depth,
                        steps: Vec::new(),
                    });
                }
            }
        }
        frontier = next;
    }
    Search {
        closed: frontier.is_empty(),
        found,
        transitions,
    }
}

impl Search {
    fn path(&self, mut at: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        while at > 0 {
            steps.push(self.found[at].step);
            at = self.found[at].from;
        }
        steps.reverse();
        steps
    }

    /// Paths that together make every transition: those that end with one that finds nothing new, and those to where the search ends.
    fn paths(&self) -> Vec<(usize, Option<Step>)> {
        let mut paths = Vec::new();
        for (at, found) in self.found.iter().enumerate() {
            if found.steps.is_empty() {
                paths.push((at, None));
            }
            let again = found.steps.iter().filter(|(_, new)| new.is_none());
            paths.extend(again.map(|(step, _)| (at, Some(*step))));
        }
        paths
    }
}

// -- Judge

/// A realm of one host with the agents, and its log as judge has it.
#[derive(Clone)]
struct Court {
    state: State,
    seq: u64,
    realm: Option<RealmId>,
    /// By the model's number of a grant.
    grants: Vec<GrantId>,
}

fn secret(name: &str) -> SigningKey {
    SigningKey::from_bytes(tagged_hash("test/small", &[name.as_bytes()])).unwrap()
}

fn host() -> HostId {
    secret("host").public().into()
}

fn persona(agent: AgentNo) -> PersonaId {
    PersonaId::new(host(), PersonaName::new(AGENTS[agent]).unwrap())
}

fn square() -> ChannelName {
    ChannelName::new("square").unwrap()
}

fn operators(terms: Terms) -> agora_realm::Terms {
    agora_realm::Terms {
        rights: Rights(terms.rights.into()),
        count: terms.count,
        ..agora_realm::Terms::ALL
    }
}

impl Court {
    fn new() -> Self {
        let mut court = Self {
            state: State::new(),
            seq: 0,
            realm: None,
            grants: Vec::new(),
        };
        let genesis = Genesis {
            format: REALM_FORMAT,
            nonce: [7; 32],
            fencers: Vec::new(),
        };
        let body = Body::Key(KeyBody {
            subject: KeySubject::Host(host()),
            public_key: secret("host").public(),
            component: None,
            started: false,
            genesis: Some(genesis),
            origin: None,
        });
        let (verdict, id, _) = court.put(body, None, Epoch(1));
        assert_eq!(verdict, Ok(()));
        court.realm = Some(RealmId::from(id));
        court.decide(Body::Channel(ChannelBody {
            name: square(),
            hops: 3,
            reactions: 256,
            carry: false,
        }));
        for agent in 0..AGENTS.len() {
            court.key(agent, false);
        }
        for step in BEGINNING {
            court.step(&beginning(), &step, true);
        }
        court
    }

    /// Puts an entry in the log, of the host or of an agent that speaks.
    fn put(
        &mut self,
        body: Body,
        speaks: Option<(AgentNo, GrantId)>,
        epoch: Epoch,
    ) -> (
        Result<(), Refusal>,
        agora_realm::EntryId,
        Vec<MessageVerdict>,
    ) {
        let key = match speaks {
            Some((agent, _)) => secret(AGENTS[agent]),
            None => secret("host"),
        };
        self.seq += 1;
        let entry = Entry {
            realm: self.realm,
            host: host(),
            author: speaks.map(|(agent, _)| persona(agent).name),
            signer: key.public(),
            epoch,
            time_ms: self.seq as i64,
            grant: speaks.map(|(_, grant)| grant),
            body,
        };
        let sealed: Sealed = entry.seal(&key, &[0; 32]).unwrap();
        let judged = judge(&mut self.state, self.seq, Ok(&sealed));
        (judged.verdict, sealed.id(), judged.messages)
    }

    fn decide(&mut self, body: Body) -> agora_realm::EntryId {
        let (verdict, id, _) = self.put(body, None, self.state.epoch());
        assert_eq!(verdict, Ok(()));
        id
    }

    fn key(&mut self, agent: AgentNo, started: bool) {
        self.decide(Body::Key(KeyBody {
            subject: KeySubject::Persona(persona(agent).name),
            public_key: secret(AGENTS[agent]).public(),
            component: None,
            started,
            genesis: None,
            origin: None,
        }));
    }

    fn stop(&mut self, what: Revoked) -> Result<(), Refusal> {
        let body = Body::Revoke(RevokeBody {
            what,
            reason: String::new(),
            by: String::new(),
        });
        self.put(body, None, self.state.epoch()).0
    }

    /// Says one thing, in an epoch. Whether it counts.
    fn say(&mut self, agent: AgentNo, grant: GrantId, epoch: Epoch) -> bool {
        let key = self.state.next_key(&persona(agent), &square());
        let body = Body::Turn(TurnBody {
            channel: square(),
            through: Ordinal(0),
            origin: None,
            messages: vec![Message {
                act: Act::Inform,
                parent: None,
                hops: 0,
                key,
                content_type: String::new(),
                payload: bytes::Bytes::new(),
                time_ms: 0,
                owner: None,
                deadline_ms: 0,
            }],
            peer_epoch: Epoch(0),
        });
        let (_, _, verdicts) = self.put(body, Some((agent, grant)), epoch);
        matches!(verdicts[..], [MessageVerdict::Counts(_)])
    }

    /// What the host puts on the record of a step, if anything. `model` is as it is after it.
    fn step(&mut self, model: &Model, step: &Step, done: bool) {
        for grant in &model.grants[self.grants.len()..] {
            let body = GrantBody {
                persona: persona(grant.to),
                object: Object::Channel(square()),
                terms: operators(grant.terms),
                parent: grant.parent.map(|parent| self.grants[parent]),
                lasting: grant.lasting,
            };
            let id = self.decide(Body::Grant(body));
            self.grants.push(id.into());
        }
        match *step {
            Step::Cut(facet) if done => {
                let grant = self.grants[model.facets[facet].grant];
                assert_eq!(self.stop(Revoked::Grant(grant)), Ok(()));
            }
            Step::Revoke(grant) => {
                assert_eq!(self.stop(Revoked::Grant(self.grants[grant])), Ok(()));
            }
            Step::Kill(agent) => {
                assert_eq!(self.stop(Revoked::Persona(persona(agent))), Ok(()));
            }
            Step::Start(agent) => self.key(agent, true),
            Step::Bump => {
                let ends = self.state.epoch();
                let fence = Revoked::Fence { ends, hold: false };
                assert_eq!(self.stop(fence), Ok(()));
                // Nothing said in the epoch that ended counts any more, under whatever grant.
                for (no, grant) in model.grants.iter().enumerate() {
                    assert!(!self.say(grant.to, self.grants[no], ends));
                }
            }
            Step::Say { facet, .. } => {
                let facet = &model.facets[facet];
                let counts = self.say(facet.holder, self.grants[facet.grant], self.state.epoch());
                assert_eq!(counts, done, "{step:?}");
            }
            _ => {}
        }
    }

    /// Tries every grant that ever was. Judge knows grants, and not which facets of them a graft has: so it allows what the model allows
    /// of a grant that is in its holder's hands.
    fn look(&self, model: &Model, step: &Step) {
        for (no, grant) in model.grants.iter().enumerate() {
            let draft = Draft {
                act: Act::Inform,
                parent: None,
                hops_wish: u16::MAX,
                bytes: 0,
                key: self.state.next_key(&persona(grant.to), &square()),
                owner: None,
                deadline_ms: 0,
                in_turn: false,
            };
            let id = self.grants[no];
            let admitted = self
                .state
                .admit(&persona(grant.to), Some(&id), &square(), &draft);
            let stands = model.agents[grant.to].life != Life::Killed && model.stands(no);
            let left = |no: GrantNo| model.grants[no].used < model.grants[no].terms.count;
            let allows = stands
                && model.effective(no).rights & (WRITE | INITIATE) == WRITE | INITIATE
                && model.chain(no).all(left);
            assert_eq!(
                admitted.is_ok(),
                allows,
                "{admitted:?} of {grant:?} after {step:?} in {model:?}"
            );
            for other in (0..AGENTS.len()).filter(|other| *other != grant.to) {
                let stranger = persona(other);
                let admitted = self.state.admit(&stranger, Some(&id), &square(), &draft);
                assert!(admitted.is_err(), "a grant is nobody else's");
            }
        }
    }
}

/// Takes judge along every transition, by the tree of first paths.
fn hold_court(search: &Search, at: usize, model: &Model, court: &Court) -> usize {
    let mut taken = 0;
    for (step, new) in &search.found[at].steps {
        let (mut model, mut court) = (model.clone(), court.clone());
        let done = model.apply(step);
        court.step(&model, step, done);
        court.look(&model, step);
        for arrival in arrivals(&model) {
            model.apply(&arrival);
        }
        taken += 1;
        if let Some(new) = new {
            taken += hold_court(search, *new, &model, &court);
        }
    }
    taken
}

// -- The host

/// A path's step, on a host that took other paths before.
fn shifted(step: Step, facets: usize, grants: usize) -> Step {
    match step {
        Step::Attenuate {
            facet,
            terms,
            lasting,
        } => Step::Attenuate {
            facet: facet + facets,
            terms,
            lasting,
        },
        Step::Lend { facet, to } => Step::Lend {
            facet: facet + facets,
            to,
        },
        Step::Fetch { facet, by } => Step::Fetch {
            facet: facet + facets,
            by,
        },
        Step::Cut(facet) => Step::Cut(facet + facets),
        Step::Say { facet, act } => Step::Say {
            facet: facet + facets,
            act,
        },
        Step::Revoke(grant) => Step::Revoke(grant + grants),
        other => other,
    }
}

/// Everything that was granted is taken back, and everyone has a new life.
async fn start_over(bed: &mut Bed) {
    for grant in bed.on_the_books() {
        if bed.model.grants[grant].parent.is_none() {
            bed.step(Step::Revoke(grant)).await;
        }
    }
    for agent in 0..AGENTS.len() {
        bed.step(Step::Kill(agent)).await;
        bed.step(Step::Start(agent)).await;
    }
}

async fn travel(workers: usize, paths: &[Vec<Step>]) {
    let mut bed = Bed::open(workers).await;
    for path in paths {
        let (facets, grants) = (bed.model.facets.len(), bed.model.grants.len());
        for step in BEGINNING {
            bed.step(step).await;
        }
        for step in path {
            bed.step(shifted(*step, facets, grants)).await;
            for arrival in arrivals(&bed.model) {
                bed.step(arrival).await;
            }
        }
        start_over(&mut bed).await;
    }
    bed.compare_record().await;
    bed.close().await;
}

fn asked(name: &str, sample: usize) -> usize {
    let asked = std::env::var(name).ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(sample)
}

#[test]
fn in_the_small_case_the_model_keeps_its_promises() {
    let steps = asked("AGORA_STEPS", 6);
    let search = search(steps);
    let mut by_depth = vec![0; steps + 1];
    for found in &search.found {
        by_depth[found.depth] += 1;
    }
    println!(
        "{steps} steps: {} transitions between {} states{}; states by steps: {by_depth:?}",
        search.transitions,
        search.found.len(),
        if search.closed { ", and no more" } else { "" },
    );
}

#[test]
fn in_the_small_case_judge_allows_what_the_model_allows() {
    let steps = asked("AGORA_STEPS", 4);
    let search = search(steps);
    let taken = hold_court(&search, 0, &beginning(), &Court::new());
    assert_eq!(taken, search.transitions);
    println!("{steps} steps: judge was taken along {taken} transitions");
}

#[test]
fn in_the_small_case_the_host_allows_what_the_model_allows() {
    let steps = asked("AGORA_STEPS", 6);
    let search = search(steps);
    let all = search.paths();
    let sample = match asked("AGORA_PATHS", 120) {
        0 => all.len(),
        sample => sample.min(all.len()),
    };
    let seed = crate::seed();
    println!(
        "{steps} steps, PROPTEST_RNG_SEED={seed}: {sample} of {} paths",
        all.len()
    );
    // Evenly among all, from somewhere.
    let from = seed as usize % all.len();
    let paths: Vec<_> = (0..sample)
        .map(|no| all[(from + no * all.len() / sample) % all.len()])
        .map(|(at, last)| {
            let mut path = search.path(at);
            path.extend(last);
            path
        })
        .collect();
    let runtime = crate::runtime();
    for (no, paths) in paths.chunks(PATHS_PER_HOST).enumerate() {
        let workers = [1, 3][no % 2];
        runtime.block_on(travel(workers, paths));
    }
}
