//! The real thing: a host, agents that do each step, and after each step the question what every facet ever handed out still does.
//!
//! In: steps. Promise: what the model denies the host denied, at once and every time it was tried; what the model allows the host allowed;
//! and the record says the same as the model of who said what, under which terms, and how often.
//! Failure: a panic that tells the steps up to here.

use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use agora::boot::host::Host;
use agora::door::control::Grantable;
use agora::persona::agent::Phase;
use agora::persona::instance::End;
use agora::testbed::{Plan, Puppet, Stage};
use agora_capnp::channel_capnp::channel;
use agora_desk::desk_capnp::desk;
use agora_guest::{Act, Channel, Draft, Error, Graft};
use agora_realm::{Ordinal, Refusal, Rights};

use crate::model::{
    ATTENUATE, AgentNo, FacetNo, GrantNo, INITIATE, Life, Model, READ, Step, Terms, WRITE,
};

pub(crate) const AGENTS: [&str; 3] = ["ann", "bob", "cy"];
pub(crate) const CHANNELS: [&str; 2] = ["square", "own"];
/// The acts that are tried.
pub(crate) const ACTS: [u8; 2] = [0, 2];

/// How long what must answer, or what a crash must cut, may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn act_of(act: u8) -> Act {
    match act {
        0 => Act::Inform,
        _ => Act::Propose,
    }
}

fn name(facet: FacetNo) -> String {
    format!("f{facet}")
}

fn guests(terms: Terms) -> agora_guest::Terms {
    let acts = ACTS.iter().filter(|act| terms.acts & (1 << **act) != 0);
    agora_guest::Terms {
        read: terms.rights & READ != 0,
        write: terms.rights & WRITE != 0,
        initiate: terms.rights & INITIATE != 0,
        attenuate: terms.rights & ATTENUATE != 0,
        acts: Some(acts.map(|act| act_of(*act)).collect()),
        count: terms.count,
        ..agora_guest::Terms::all()
    }
}

fn operators(terms: Terms) -> agora_realm::Terms {
    agora_realm::Terms {
        rights: Rights(terms.rights.into()),
        acts: agora_realm::ActSet(terms.acts.into()),
        count: terms.count,
        ..agora_realm::Terms::ALL
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.expect("it answers in time")
}

/// What an agent serves: it keeps what it is given, and gives what it has.
struct Keeper(Weak<Stage>);

impl Keeper {
    fn stage(&self) -> Result<Rc<Stage>, capnp::Error> {
        let stage = self.0.upgrade();
        stage.ok_or_else(|| capnp::Error::failed("the agent is over".into()))
    }
}

impl desk::Server for Keeper {
    async fn keep(
        self: Rc<Self>,
        params: desk::KeepParams,
        _results: desk::KeepResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let name = params.get_name()?.to_string()?;
        let facet = Channel::from_client(&name, params.get_channel()?);
        self.stage()?.facets.borrow_mut().insert(name, facet);
        Ok(())
    }

    async fn fetch(
        self: Rc<Self>,
        params: desk::FetchParams,
        mut results: desk::FetchResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_name()?.to_string()?;
        let facet = self.stage()?.facet(&name);
        let facet = facet.map_err(|error| capnp::Error::failed(error.to_string()))?;
        results.get().set_channel(facet.client());
        Ok(())
    }
}

/// What is tried through a facet.
#[derive(Clone)]
enum Try {
    Info(FacetNo),
    Read(FacetNo),
    Say(FacetNo, u8, String),
}

impl Try {
    /// Does it. None: it went through.
    async fn go(self, stage: &Stage) -> Option<String> {
        let done = match self {
            Self::Info(facet) => match stage.facet(&name(facet)) {
                Ok(facet) => facet.info().await.map(drop),
                Err(absent) => Err(absent),
            },
            Self::Read(facet) => match stage.facet(&name(facet)) {
                Ok(facet) => facet.history(1, 1).await.map(drop),
                Err(absent) => Err(absent),
            },
            Self::Say(facet, act, text) => match stage.facet(&name(facet)) {
                Ok(facet) => match facet.say(Draft::new(act_of(act), text)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(refused)) => return Some(format!("{:?}: {refused}", refused.reason.0)),
                    Err(error) => Err(error),
                },
                Err(absent) => Err(absent),
            },
        };
        done.err()
            .map(|error| format!("{:?}: {error}", error.kind()))
    }
}

/// A host under test, beside its model.
pub(crate) struct Bed {
    pub(crate) model: Model,
    host: Host,
    puppets: Vec<Puppet>,
    /// By the model's number of a grant: the record's.
    numbers: Vec<u64>,
    /// Facets whose end had to be waited for, and came.
    faded: BTreeSet<FacetNo>,
    workers: usize,
    trace: Vec<Step>,
    _data: tempfile::TempDir,
}

impl Bed {
    /// Three agents that know each other, and are granted nothing else.
    pub(crate) async fn open(workers: usize) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut plan = Plan::new().workers(workers);
        for channel in CHANNELS {
            plan = plan.channel(channel);
        }
        let puppets: Vec<_> = AGENTS.iter().map(|_| Puppet::new()).collect();
        for (name, puppet) in AGENTS.iter().zip(&puppets) {
            plan = plan.agent(name, puppet.native(), Vec::new());
        }
        let host = plan.open(data.path()).await.unwrap();
        // Introduced by the operator, so that they stay on the threads they were dealt to.
        for caller in AGENTS {
            for server in AGENTS.iter().filter(|server| **server != caller) {
                let service = Grantable::Service((*server).into());
                host.control.grant(caller, service).await.unwrap();
            }
        }
        let threads: BTreeSet<_> = host.control.agents().iter().map(|a| a.worker).collect();
        assert_eq!(threads.len(), workers);
        for puppet in &puppets {
            within(puppet.until_life(1)).await;
        }
        Self {
            model: Model::new(AGENTS.len(), CHANNELS.len()),
            host,
            puppets,
            numbers: Vec::new(),
            faded: BTreeSet::new(),
            workers,
            trace: Vec::new(),
            _data: data,
        }
    }

    /// Takes a step in both, and looks at everything after it.
    pub(crate) async fn step(&mut self, step: Step) {
        self.take(step).await;
        self.look().await;
    }

    /// Takes a step in both.
    async fn take(&mut self, step: Step) {
        self.trace.push(step);
        let before = self.model.clone();
        let allowed = self.model.apply(&step);
        let new = before.facets.len();
        match step {
            Step::Graft(agent) => {
                let done = self.graft(agent, new).await;
                self.agree(allowed, done);
            }
            Step::Attenuate {
                facet,
                terms,
                lasting,
            } => {
                let made = self.attenuate(&before, facet, new, terms, lasting).await;
                self.agree(allowed, made);
            }
            Step::Lend { facet, to } => {
                let from = before.facets[facet].holder;
                if let Some(passed) = self.pass(&before, from, to, facet, new, false).await {
                    // What was passed may have been nothing, and the call have failed for it.
                    assert!(allowed || passed.is_some(), "{}", self.told());
                }
                self.settle(new).await;
            }
            Step::Fetch { facet, by } => {
                let from = before.facets[facet].holder;
                if let Some(passed) = self.pass(&before, by, from, facet, new, true).await {
                    assert!(allowed || passed.is_some(), "{}", self.told());
                }
                self.settle(new).await;
            }
            Step::Cut(facet) => {
                let holder = &self.puppets[before.facets[facet].holder];
                let cut = within(holder.cut(&name(facet), "a test")).await;
                let refused = match cut {
                    Ok(cut) => cut.err().map(|error| error.to_string()),
                    Err(gone) => Some(gone.to_string()),
                };
                self.agree(allowed, refused);
            }
            Step::Say { facet, act } => {
                let text = format!("n{}", before.said.len());
                let holder = before.facets[facet].holder;
                let tried = self
                    .try_all(holder, vec![Try::Say(facet, act, text)])
                    .await
                    .remove(0);
                self.agree(allowed, tried);
            }
            Step::Grant { to, channel, terms } => {
                let what = Grantable::Channel(CHANNELS[channel].into(), operators(terms));
                let granted = within(self.host.control.grant(AGENTS[to], what)).await;
                self.numbers.push(granted.unwrap().number);
            }
            Step::Revoke(grant) => {
                let number = format!("g{}", self.numbers[grant]);
                let revoking = self.host.control.revoke(&number, "a test", "test");
                let decided = within(revoking).await;
                let decided = decided.unwrap_or_else(|error| panic!("{error}\n{}", self.told()));
                // Nobody could reach it any more once the wall had fallen, so it may have been taken off the books first.
                let twice = decided.void.is_none_or(|why| why == Refusal::Repeated);
                assert!(decided.pending.is_none() && twice, "{}", self.told());
            }
            Step::Kill(agent) => {
                let killing = self.host.control.kill(AGENTS[agent], "a test", "test");
                assert!(within(killing).await.unwrap().pending.is_none());
            }
            Step::Start(agent) => {
                within(self.host.control.start(AGENTS[agent]))
                    .await
                    .unwrap();
                let lives = self.model.agents[agent].lives;
                within(self.puppets[agent].until_life(lives)).await;
                assert_eq!(self.puppets[agent].lives(), lives);
            }
            Step::End(agent) => {
                within(self.puppets[agent].end(End::Done)).await;
                if allowed {
                    let agent = self.host.control.agent(AGENTS[agent]).unwrap();
                    self.eventually("the agent's end", async || {
                        matches!(agent.shared.phase(), Phase::Ended(_))
                    })
                    .await;
                }
            }
            Step::Bump => {
                let bumping = self.host.control.bump("a test", false, "test");
                let (decided, epoch) = within(bumping).await;
                assert!(decided.pending.is_none(), "{}", self.told());
                assert_eq!(epoch.0, self.model.epoch);
            }
        }
        self.number_grants();
    }

    /// What the model says of a step is what came of it. `refused`: why not.
    fn agree(&self, allowed: bool, refused: Option<String>) {
        match (allowed, refused) {
            (true, None) | (false, Some(_)) => {}
            (false, None) => panic!(
                "the model denies what the host allowed, at the last of\n{}",
                self.told()
            ),
            (true, Some(why)) => panic!(
                "the model allows what the host refused ({why}), at the last of\n{}",
                self.told()
            ),
        }
    }

    /// The steps up to here.
    fn told(&self) -> String {
        let lines = self.trace.iter().map(|step| format!("    Step::{step:?},"));
        format!(
            "on {} threads:\n{}",
            self.workers,
            lines.collect::<Vec<_>>().join("\n")
        )
    }

    async fn graft(&self, agent: AgentNo, new: FacetNo) -> Option<String> {
        let handed = &self.model.facets[new..];
        let expected: Vec<_> = handed
            .iter()
            .enumerate()
            .map(|(at, facet)| {
                let grant = &self.model.grants[facet.grant];
                let lender = grant.parent.map(|parent| self.model.grants[parent].to);
                let lender = lender.map_or("", |lender| AGENTS[lender]);
                let channel = CHANNELS[grant.channel];
                ((channel.to_owned(), lender.to_owned()), name(new + at))
            })
            .collect();
        let grafting = self.puppets[agent].run(|stage| async move {
            let graft = Graft::arrive(&stage.door).await?;
            let own = graft
                .channels()
                .map(|c| ((c.name().to_owned(), String::new()), c));
            let lent = graft.lent().iter().map(|lent| {
                let lender = lent.lender.split('@').next().unwrap_or_default();
                let key = (lent.channel.name().to_owned(), lender.to_owned());
                (key, lent.channel.clone())
            });
            let mut unexpected = Vec::new();
            for (key, channel) in own.chain(lent) {
                match expected.iter().find(|(known, _)| *known == key) {
                    Some((_, name)) => {
                        drop(stage.facets.borrow_mut().insert(name.clone(), channel));
                    }
                    None => unexpected.push(key),
                }
            }
            let keeper: desk::Client = capnp_rpc::new_client(Keeper(Rc::downgrade(&stage)));
            graft.serve(keeper).await?;
            *stage.graft.borrow_mut() = Some(graft);
            Ok::<_, Error>(unexpected)
        });
        match within(grafting).await {
            Ok(Ok(unexpected)) => {
                assert_eq!(unexpected, [], "granted beyond the model\n{}", self.told());
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(gone) => Some(gone.to_string()),
        }
    }

    async fn attenuate(
        &self,
        before: &Model,
        facet: FacetNo,
        new: FacetNo,
        terms: Terms,
        lasting: bool,
    ) -> Option<String> {
        let making = self.puppets[before.facets[facet].holder].run(move |stage| async move {
            let facet = stage.facet(&name(facet))?;
            let (made, revoker) = match lasting {
                true => facet.attenuate_lasting(&guests(terms)).await?,
                false => facet.attenuate(&guests(terms)).await?,
            };
            stage.facets.borrow_mut().insert(name(new), made);
            stage
                .revokers
                .borrow_mut()
                .insert(name(new), Rc::new(revoker));
            Ok::<_, Error>(())
        });
        match within(making).await {
            Ok(made) => made.err().map(|error| error.to_string()),
            Err(gone) => Some(gone.to_string()),
        }
    }

    /// One agent calls another, with a facet or for one. None: the call was not made, since a server that does not serve keeps its
    /// callers waiting. Else: why it failed, if it did.
    async fn pass(
        &self,
        before: &Model,
        caller: AgentNo,
        server: AgentNo,
        facet: FacetNo,
        new: FacetNo,
        fetches: bool,
    ) -> Option<Option<String>> {
        let server_idles = before.agents[server].life == Life::Running
            && before.agents[server].graft.is_none()
            && before.agents[caller].graft.is_some();
        if caller == server || server_idles {
            return None;
        }
        let server = AGENTS[server];
        let calling = self.puppets[caller].run(move |stage| async move {
            let graft = stage.graft.borrow().clone();
            let graft = graft.ok_or_else(|| Error::failed("there is no graft"))?;
            let server: desk::Client = graft.capability(server)?;
            match fetches {
                false => {
                    let mut request = server.keep_request();
                    request.get().set_name(name(new));
                    let facet: channel::Client = stage.facet(&name(facet))?.client();
                    request.get().set_channel(facet);
                    request.send().promise.await?;
                }
                true => {
                    let mut request = server.fetch_request();
                    request.get().set_name(name(facet));
                    let response = request.send().promise.await?;
                    let facet = response.get()?.get_channel()?;
                    let facet = Channel::from_client(&name(new), facet);
                    stage.facets.borrow_mut().insert(name(new), facet);
                }
            }
            Ok::<_, Error>(())
        });
        Some(match within(calling).await {
            Ok(called) => called.err().map(|error| error.to_string()),
            Err(gone) => Some(gone.to_string()),
        })
    }

    /// Waits until what was passed has become a facet, or nothing.
    async fn settle(&self, new: FacetNo) {
        if let Some(facet) = self.model.facets.get(new) {
            self.try_all(facet.holder, vec![Try::Info(new)]).await;
        }
    }

    /// Notes the record's numbers of the grants that have come to be, and that they stand there as in the model.
    fn number_grants(&mut self) {
        let state = self.host.control.record().state();
        for no in self.numbers.len()..self.model.grants.len() {
            let grant = &self.model.grants[no];
            let above = grant.parent.map(|parent| self.numbers[parent]);
            let found = state.grants().filter(|(_, real)| {
                let parent = real.parent.and_then(|parent| state.grant(&parent));
                parent.map(|parent| parent.number) == above
                    && real.persona.name.as_str() == AGENTS[grant.to]
                    && !self.numbers.contains(&real.number)
            });
            let newest = found.max_by_key(|(_, real)| real.number);
            let Some((_, real)) = newest else {
                panic!(
                    "{grant:?} is not on the record, after the last of\n{}",
                    self.told()
                );
            };
            let effective = self.model.effective(no);
            let real_effective = (
                real.effective.rights.0 & 15,
                real.effective.count,
                real.lasting,
            );
            assert_eq!(
                real_effective,
                (effective.rights.into(), effective.count, grant.lasting),
                "{}",
                self.told()
            );
            self.numbers.push(real.number);
        }
    }

    /// Has an agent try these. For each: why it was refused, if it was.
    async fn try_all(&self, agent: AgentNo, tries: Vec<Try>) -> Vec<Option<String>> {
        let count = tries.len();
        let trying = self.puppets[agent].run(|stage| async move {
            let (stage, mut come) = (&stage, Vec::new());
            // What is said is said in order.
            let reads = tries.iter().cloned().map(|one| async move {
                match one {
                    Try::Say(..) => None,
                    one => one.go(stage).await,
                }
            });
            let reads = futures::future::join_all(reads).await;
            for (one, read) in tries.into_iter().zip(reads) {
                come.push(match one {
                    Try::Say(..) => one.go(stage).await,
                    _ => read,
                });
            }
            come
        });
        match within(trying).await {
            Ok(come) => come,
            Err(gone) => vec![Some(gone.to_string()); count],
        }
    }

    async fn eventually(&self, what: &str, is: impl AsyncFn() -> bool) {
        let waiting = async {
            while !is().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(
            came.is_ok(),
            "{what} did not come to be, after the last of\n{}",
            self.told()
        );
    }

    /// Tries every facet that any agent holds: reads through each, and says through each what the model denies.
    pub(crate) async fn look(&mut self) {
        self.wait_for_the_far_side().await;
        for agent in 0..AGENTS.len() {
            let mut tries = Vec::new();
            for no in self.held_by(agent) {
                tries.push((Try::Read(no), self.model.may_read(no)));
                for act in ACTS {
                    if !self.model.may_say(no, act) {
                        tries.push((Try::Say(no, act, "never".into()), false));
                    }
                }
            }
            self.expect(agent, tries).await;
        }
    }

    async fn expect(&self, agent: AgentNo, tries: Vec<(Try, bool)>) {
        let (tries, allowed): (Vec<_>, Vec<_>) = tries.into_iter().unzip();
        let come = self.try_all(agent, tries.clone()).await;
        for ((one, allowed), refused) in tries.iter().zip(allowed).zip(come) {
            let (what, no) = match one {
                Try::Info(no) => ("info", no),
                Try::Read(no) => ("read", no),
                Try::Say(no, ..) => ("say", no),
            };
            if allowed != refused.is_none() {
                panic!(
                    "{} through f{no} ({:?}): the model {}, the host says {refused:?}, after the last of\n{}",
                    what,
                    self.model.facets[*no],
                    if allowed { "allows" } else { "denies" },
                    self.told()
                );
            }
        }
    }

    /// The facets that an agent has in its hands in this life, alive or not.
    fn held_by(&self, agent: AgentNo) -> Vec<FacetNo> {
        let of = &self.model.agents[agent];
        let holds = |no: &FacetNo| {
            let facet = &self.model.facets[*no];
            facet.holder == agent && facet.life == of.lives && of.life == Life::Running
        };
        (0..self.model.facets.len()).filter(holds).collect()
    }

    /// What was lent over a bridge, in a graft that is over by no stop, is cut a moment later. On one thread nothing is later.
    async fn wait_for_the_far_side(&mut self) {
        if self.workers == 1 {
            return;
        }
        for no in 0..self.model.facets.len() {
            let facet = &self.model.facets[no];
            if !facet.dead || self.model.is_hopeless(no) || self.faded.contains(&no) {
                continue;
            }
            let holder = facet.holder;
            self.eventually("the end of what was lent over a bridge", async || {
                let mut come = self.try_all(holder, vec![Try::Info(no)]).await;
                come.remove(0).is_some()
            })
            .await;
            self.faded.insert(no);
        }
    }

    /// Says something through every facet that any agent holds, in every act.
    pub(crate) async fn say_all(&mut self) {
        for no in 0..self.model.facets.len() {
            let facet = &self.model.facets[no];
            let holder = &self.model.agents[facet.holder];
            if holder.life == Life::Running && facet.life == holder.lives {
                for act in ACTS {
                    self.take(Step::Say { facet: no, act }).await;
                }
            }
        }
    }

    /// Compares the record with the model: who said what, in order, and how often under which grant.
    pub(crate) async fn compare_record(&self) {
        let control = &self.host.control;
        for (at, channel) in CHANNELS.iter().enumerate() {
            let channel = control.channel_named(channel).unwrap();
            let record = control.record();
            let kept = record.messages(&channel, Ordinal(1), usize::MAX, usize::MAX);
            let kept = kept.await.unwrap().into_iter().map(|kept| {
                let author = kept.sealed.entry().author.clone().unwrap();
                let text = kept.message().payload.to_vec();
                (author.to_string(), String::from_utf8(text).unwrap())
            });
            let said = self.model.said.iter().enumerate();
            let said = said
                .filter(|(_, said)| said.channel == at)
                .map(|(no, said)| (AGENTS[said.by].to_owned(), format!("n{no}")));
            assert_eq!(
                kept.collect::<Vec<_>>(),
                said.collect::<Vec<_>>(),
                "{}",
                self.told()
            );
        }
        let state = control.record().state();
        for (no, grant) in self.model.grants.iter().enumerate() {
            let real = state
                .grants()
                .find(|(_, real)| real.number == self.numbers[no]);
            match real {
                Some((_, real)) => {
                    assert!(!grant.gone, "{grant:?} stands\n{}", self.told());
                    assert_eq!(real.used, grant.used, "{grant:?}\n{}", self.told());
                    assert!(real.used <= real.effective.count, "{}", self.told());
                }
                None => assert!(
                    !self.model.is_on_the_books(no),
                    "{grant:?} is off the books\n{}",
                    self.told()
                ),
            }
        }
    }

    /// Which grants the operator can name.
    pub(crate) fn on_the_books(&self) -> Vec<GrantNo> {
        let all = 0..self.model.grants.len();
        all.filter(|no| self.model.is_on_the_books(*no)).collect()
    }

    pub(crate) async fn close(self) {
        self.host.close().await;
    }
}
