//! The model: who may do what, said once more and from the schemas' words alone. It knows nothing of the host, and decides nothing by its
//! rules.
//!
//! In: steps. Out: for each facet that an agent ever held, what a call through it comes to.
//! Promise: it forgets nothing: grants, grafts and facets are numbered as they come to be, and what is over stays over.

/// An agent's number.
pub(crate) type AgentNo = usize;
/// A grant's number, in the order they came to be.
pub(crate) type GrantNo = usize;
/// A facet's number, in the order they were handed out.
pub(crate) type FacetNo = usize;

pub(crate) const READ: u8 = 1;
pub(crate) const WRITE: u8 = 2;
pub(crate) const INITIATE: u8 = 4;
pub(crate) const ATTENUATE: u8 = 8;

/// The deepest a grant may stand below the host's.
const DEPTH_MAX: usize = 16;

/// What a grant allows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    pub(crate) rights: u8,
    /// Bit n: the act of that number.
    pub(crate) acts: u8,
    pub(crate) count: u64,
}

impl Terms {
    pub(crate) const ALL: Terms = Terms {
        rights: READ | WRITE | INITIATE | ATTENUATE,
        acts: 0x3f,
        count: u64::MAX,
    };
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// An agent grafts.
    Graft(AgentNo),
    /// A facet's holder narrows it.
    Attenuate {
        facet: FacetNo,
        terms: Terms,
        lasting: bool,
    },
    /// A facet's holder passes it in a call to another agent.
    Lend { facet: FacetNo, to: AgentNo },
    /// Another agent calls a facet's holder, and has the facet in the answer.
    Fetch { facet: FacetNo, by: AgentNo },
    /// Whoever made a facet by narrowing cuts it.
    Cut(FacetNo),
    /// A facet's holder says something that answers nothing.
    Say { facet: FacetNo, act: u8 },
    /// The operator grants.
    Grant {
        to: AgentNo,
        channel: usize,
        terms: Terms,
    },
    /// The operator takes a grant back.
    Revoke(GrantNo),
    /// The operator kills.
    Kill(AgentNo),
    /// The operator starts.
    Start(AgentNo),
    /// An agent's function returns.
    End(AgentNo),
    /// The operator ends the epoch.
    Bump,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Running,
    Ended,
    Killed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    pub(crate) life: Life,
    /// Which of its lives this is.
    pub(crate) lives: u64,
    /// The graft that stands.
    pub(crate) graft: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    pub(crate) to: AgentNo,
    pub(crate) channel: usize,
    pub(crate) terms: Terms,
    pub(crate) parent: Option<GrantNo>,
    pub(crate) lasting: bool,
    /// Made by narrowing, in this graft.
    pub(crate) made_in: Option<usize>,
    /// How many messages counted under it.
    pub(crate) used: u64,
    /// It is off the books for good.
    pub(crate) gone: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Facet {
    pub(crate) holder: AgentNo,
    /// Which of its holder's lives and grafts it is of.
    pub(crate) life: u64,
    pub(crate) graft: usize,
    /// The epoch it was handed out in.
    pub(crate) epoch: u64,
    pub(crate) grant: GrantNo,
    /// What it was made or lent from.
    pub(crate) above: Option<FacetNo>,
    /// What is lent of it is lent for good.
    pub(crate) lasting: bool,
    /// Made by narrowing, so that it has a revoker.
    pub(crate) made: bool,
    /// It was never lent: its lender might not.
    pub(crate) empty: bool,
    pub(crate) dead: bool,
}

/// What was said: on which channel, by whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Said {
    pub(crate) channel: usize,
    pub(crate) by: AgentNo,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    pub(crate) agents: Vec<Agent>,
    pub(crate) grants: Vec<Grant>,
    pub(crate) facets: Vec<Facet>,
    pub(crate) said: Vec<Said>,
    pub(crate) epoch: u64,
    channels: usize,
    grafts: usize,
}

impl Model {
    /// Agents that run and have no graft yet, and channels that nobody is granted.
    pub(crate) fn new(agents: usize, channels: usize) -> Self {
        let agent = Agent {
            life: Life::Running,
            lives: 1,
            graft: None,
        };
        Self {
            agents: vec![agent; agents],
            grants: Vec::new(),
            facets: Vec::new(),
            said: Vec::new(),
            epoch: 1,
            channels,
            grafts: 0,
        }
    }

    /// Takes a step. Says whether it did what whoever took it wanted.
    pub(crate) fn apply(&mut self, step: &Step) -> bool {
        let done = self.act(step);
        self.bury();
        done
    }

    fn act(&mut self, step: &Step) -> bool {
        match *step {
            Step::Graft(agent) => self.graft(agent),
            Step::Attenuate {
                facet,
                terms,
                lasting,
            } => self.attenuate(facet, terms, lasting),
            Step::Lend { facet, to } => {
                self.may_call(self.facets[facet].holder, to) && self.lend(facet, to)
            }
            Step::Fetch { facet, by } => {
                self.may_call(by, self.facets[facet].holder) && self.lend(facet, by)
            }
            Step::Cut(facet) => {
                let cuts = self.facets[facet].made && self.is_of_standing_graft(facet);
                if cuts {
                    self.grants[self.facets[facet].grant].gone = true;
                }
                cuts
            }
            Step::Say { facet, act } => {
                let says = self.may_say(facet, act);
                if says {
                    let grant = self.facets[facet].grant;
                    for above in self.chain(grant) {
                        self.grants[above].used += 1;
                    }
                    self.said.push(Said {
                        channel: self.grants[grant].channel,
                        by: self.facets[facet].holder,
                    });
                }
                says
            }
            Step::Grant { to, channel, terms } => {
                self.grants.push(Grant {
                    to,
                    channel,
                    terms,
                    parent: None,
                    lasting: false,
                    made_in: None,
                    used: 0,
                    gone: false,
                });
                self.agents[to].graft = None;
                true
            }
            Step::Revoke(grant) => {
                self.fell(|no| no == grant);
                self.grants[grant].gone = true;
                true
            }
            Step::Kill(agent) => {
                self.kill(agent);
                true
            }
            Step::Start(agent) => {
                let agent = &mut self.agents[agent];
                let starts = agent.life != Life::Running;
                if starts {
                    agent.life = Life::Running;
                    agent.lives += 1;
                }
                starts
            }
            Step::End(agent) => {
                let agent = &mut self.agents[agent];
                let ends = agent.life == Life::Running;
                if ends {
                    agent.life = Life::Ended;
                    agent.graft = None;
                }
                ends
            }
            Step::Bump => {
                self.epoch += 1;
                for agent in &mut self.agents {
                    agent.graft = None;
                }
                for grant in &mut self.grants {
                    grant.gone |= grant.parent.is_some() && !grant.lasting;
                }
                true
            }
        }
    }

    /// What a graft holds: for each channel the host's newest grant, and the newest of what each other agent lent for good.
    fn graft(&mut self, agent: AgentNo) -> bool {
        if self.agents[agent].life != Life::Running {
            return false;
        }
        let graft = self.grafts;
        self.grafts += 1;
        self.agents[agent].graft = Some(graft);
        for channel in 0..self.channels {
            let lenders = (0..self.agents.len()).filter(|lender| *lender != agent);
            for lender in std::iter::once(None).chain(lenders.map(Some)) {
                let newest = (0..self.grants.len()).rev().find(|no| {
                    let grant = &self.grants[*no];
                    let from = grant.parent.map(|parent| self.grants[parent].to);
                    grant.to == agent
                        && grant.channel == channel
                        && from == lender
                        && (from.is_none() || grant.lasting)
                        && self.stands(*no)
                });
                if let Some(grant) = newest {
                    self.hand_out(agent, grant, None);
                }
            }
        }
        true
    }

    fn hand_out(&mut self, to: AgentNo, grant: GrantNo, above: Option<FacetNo>) {
        let graft = self.agents[to].graft;
        self.facets.push(Facet {
            holder: to,
            life: self.agents[to].lives,
            graft: graft.expect("who is handed something has a graft"),
            epoch: self.epoch,
            grant,
            above,
            lasting: false,
            made: false,
            empty: false,
            dead: false,
        });
    }

    fn attenuate(&mut self, facet: FacetNo, terms: Terms, lasting: bool) -> bool {
        if !self.may_pass_on(facet) {
            return false;
        }
        let above = &self.facets[facet];
        let (holder, parent, graft) = (above.holder, above.grant, above.graft);
        let lasting = lasting && self.lasts(parent);
        self.grants.push(Grant {
            to: holder,
            channel: self.grants[parent].channel,
            terms,
            parent: Some(parent),
            lasting,
            made_in: Some(graft),
            used: 0,
            gone: false,
        });
        self.hand_out(holder, self.grants.len() - 1, Some(facet));
        let made = self.facets.last_mut().expect("it was just handed out");
        made.lasting = lasting;
        made.made = true;
        true
    }

    /// Whether a grant is there in the next epoch too.
    fn lasts(&self, grant: GrantNo) -> bool {
        let mut chain = self.chain(grant);
        chain.all(|no| self.grants[no].parent.is_none() || self.grants[no].lasting)
    }

    /// Whether one agent reaches what the other serves.
    pub(crate) fn may_call(&self, caller: AgentNo, server: AgentNo) -> bool {
        caller != server
            && self.agents[caller].graft.is_some()
            && self.agents[server].graft.is_some()
    }

    /// The receiver has a facet of its own, under a grant below the lender's; or something in its hands that does nothing.
    fn lend(&mut self, facet: FacetNo, to: AgentNo) -> bool {
        let lends = self.may_pass_on(facet);
        let (parent, lasting) = (self.facets[facet].grant, self.facets[facet].lasting);
        let known = self.grants.iter().position(|grant| {
            grant.parent == Some(parent)
                && grant.to == to
                && grant.lasting == lasting
                && grant.made_in.is_none()
                && !grant.gone
        });
        let grant = match known {
            Some(known) => known,
            None if !lends => parent,
            None => {
                self.grants.push(Grant {
                    to,
                    channel: self.grants[parent].channel,
                    terms: Terms::ALL,
                    parent: Some(parent),
                    lasting,
                    made_in: None,
                    used: 0,
                    gone: false,
                });
                self.grants.len() - 1
            }
        };
        self.hand_out(to, grant, Some(facet));
        let lent = self.facets.last_mut().expect("it was just handed out");
        lent.empty = !lends;
        lent.dead = !lends;
        true
    }

    /// The grafts end that came with something under such a grant. What was lent in a call did not come with a graft.
    fn fell(&mut self, is_cut: impl Fn(GrantNo) -> bool) {
        for facet in self.facets.iter().filter(|facet| facet.above.is_none()) {
            let mut chain = self.chain(facet.grant);
            let stood = chain.all(|no| !self.grants[no].gone);
            let mut chain = self.chain(facet.grant);
            let stands = self.agents[facet.holder].graft == Some(facet.graft);
            if stands && stood && chain.any(&is_cut) {
                self.agents[facet.holder].graft = None;
            }
        }
    }

    fn kill(&mut self, agent: AgentNo) {
        let lent = |no: GrantNo| {
            let grant = &self.grants[no];
            let parent = grant.parent.map(|parent| self.grants[parent].to);
            parent == Some(agent) && grant.to != agent
        };
        let lent: Vec<_> = (0..self.grants.len()).map(lent).collect();
        self.fell(|no| lent[no]);
        self.agents[agent].life = Life::Killed;
        self.agents[agent].graft = None;
        for no in 0..self.grants.len() {
            let grant = &self.grants[no];
            let Some(parent) = grant.parent else {
                continue;
            };
            let passed = grant.to == agent || self.grants[parent].to == agent;
            self.grants[no].gone |= passed && !grant.lasting;
        }
    }

    /// What is over stays over, whatever comes back later.
    fn bury(&mut self) {
        for no in 0..self.facets.len() {
            let facet = &self.facets[no];
            let above_dead = facet.above.is_some_and(|above| self.facets[above].dead);
            let dead = above_dead || self.is_hopeless(no);
            self.facets[no].dead |= dead;
        }
    }

    /// A grant and those above it.
    pub(crate) fn chain(&self, grant: GrantNo) -> impl Iterator<Item = GrantNo> + use<> {
        let mut all = vec![grant];
        let mut at = grant;
        while let Some(parent) = self.grants[at].parent {
            all.push(parent);
            at = parent;
        }
        all.into_iter()
    }

    /// Neither it nor any above it is gone, and whoever it came through is not killed.
    pub(crate) fn stands(&self, grant: GrantNo) -> bool {
        let holds = |no: GrantNo| self.agents[self.grants[no].to].life != Life::Killed;
        let mut chain = self.chain(grant);
        chain.all(|no| !self.grants[no].gone && (no == grant || holds(no)))
    }

    fn is_of_standing_graft(&self, facet: FacetNo) -> bool {
        let facet = &self.facets[facet];
        self.agents[facet.holder].graft == Some(facet.graft)
    }

    /// Whether its own graft or grant is reason enough that it is dead.
    pub(crate) fn is_hopeless(&self, facet: FacetNo) -> bool {
        self.facets[facet].empty
            || !self.is_of_standing_graft(facet)
            || !self.stands(self.facets[facet].grant)
    }

    /// What a grant and all above it allow.
    pub(crate) fn effective(&self, grant: GrantNo) -> Terms {
        let chain = self.chain(grant).map(|no| self.grants[no].terms);
        chain.fold(Terms::ALL, |meet, terms| Terms {
            rights: meet.rights & terms.rights,
            acts: meet.acts & terms.acts,
            count: meet.count.min(terms.count),
        })
    }

    fn has(&self, facet: FacetNo, rights: u8) -> bool {
        let effective = self.effective(self.facets[facet].grant);
        !self.facets[facet].dead && effective.rights & rights == rights
    }

    pub(crate) fn may_read(&self, facet: FacetNo) -> bool {
        self.has(facet, READ)
    }

    /// Whether a message that answers nothing would count.
    pub(crate) fn may_say(&self, facet: FacetNo, act: u8) -> bool {
        let grant = self.facets[facet].grant;
        let left = |no: GrantNo| self.grants[no].used < self.grants[no].terms.count;
        self.has(facet, WRITE | INITIATE)
            && self.effective(grant).acts & (1 << act) != 0
            && self.chain(grant).all(left)
    }

    /// The right is needed here, or on what the same agent narrowed it from.
    pub(crate) fn may_pass_on(&self, facet: FacetNo) -> bool {
        let grant = self.facets[facet].grant;
        let holder = self.facets[facet].holder;
        let mut own = self
            .chain(grant)
            .take_while(|no| self.grants[*no].to == holder);
        !self.facets[facet].dead
            && self.chain(grant).count() < DEPTH_MAX
            && own.any(|no| self.effective(no).rights & ATTENUATE != 0)
    }

    /// Whether the operator can be sure to find it: what an agent narrowed is taken off the books when nobody holds it any more.
    pub(crate) fn is_on_the_books(&self, grant: GrantNo) -> bool {
        self.chain(grant).all(|no| {
            let grant = &self.grants[no];
            let held = |graft| self.agents[grant.to].graft == Some(graft);
            !grant.gone && (grant.lasting || grant.made_in.is_none_or(held))
        })
    }
}
