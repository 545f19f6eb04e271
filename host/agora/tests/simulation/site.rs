//! A host, as far as the simulation has one.
//!
//! Real: the record over the simulated log, judging, signatures, the speakers, the gate, the lease, the snapshot. Modelled after
//! `door::control`, which needs threads and the wall clock: the order of a stop (close the gate, keep the entry, put it in the log
//! until it is in, open the gate), heeding other hosts' stops, and when the lease is told what. The lease itself is the real one, by the
//! simulation's clock; the record's own, which goes by the machine's, is left unneeded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agora::channel::speak::{Outcome, SpeakError, Speakers, Speech, Spoken, Stage, Standing};
use agora::delivery::cursors::SilentCursors;
use agora::delivery::hearing::Hearing;
use agora::delivery::lease::{Freshness, Lease};
use agora::delivery::record::{Committed, Record, Settled};
use agora::door::gate::Gate;
use agora_log::{Class, LogError};
use agora_realm::{Change, Epoch, HostId, Placed, Refusal, Sealed};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::task::JoinHandle;

use crate::network::{Id, Network};
use crate::oracle::Oracle;
use crate::truth::Truth;

/// How long a host may act outside the log without hearing from it.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// What an entry of the host itself is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Ends this epoch.
    Fence(Epoch),
    /// Another stop.
    Stop,
    /// Anything else.
    Other,
}

impl What {
    fn is_stop(self) -> bool {
        matches!(self, What::Fence(_) | What::Stop)
    }
}

struct Commit {
    what: What,
    sealed: Sealed,
    /// None: it is to be tried again.
    waiting: Option<JoinHandle<Result<Committed, LogError>>>,
}

/// One life of a host.
pub(crate) struct Life {
    host: usize,
    id: HostId,
    network: Arc<Network>,
    pub(crate) record: Arc<Record>,
    following: JoinHandle<()>,
    pub(crate) gate: Arc<Gate>,
    speakers: Arc<Speakers>,
    news: broadcast::Receiver<Arc<Settled>>,
    pub(crate) lease: Lease,
    /// When entries of this life were handed to the log, stops aside.
    sent: HashMap<Id, Duration>,
    oracle: Oracle,
    /// The epoch of what its agent holds.
    pub(crate) grafted: Epoch,
    calls: Vec<JoinHandle<Result<Spoken, SpeakError>>>,
    commits: Vec<Commit>,
    pub(crate) revoked: bool,
}

/// What came of a step at one host.
#[derive(Default)]
pub(crate) struct Came {
    /// Receipts that were given, and whether for what was in before.
    pub(crate) receipts: Vec<(Placed, bool)>,
    /// Drafts that were put in the log and are void.
    pub(crate) void: usize,
    /// Calls with an unknown outcome.
    pub(crate) unknown: usize,
    /// Stops that are in the log.
    pub(crate) stopped: Vec<Sealed>,
}

impl Life {
    pub(crate) fn begin(
        host: usize,
        network: &Arc<Network>,
        record: Arc<Record>,
        keys: Arc<agora::persona::keys::Keys>,
        oracle: Oracle,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let news = record.news();
        let following = runtime.spawn(record.clone().follow());
        let (epoch, held) = (record.state().epoch(), record.state().held());
        let gate = Arc::new(Gate::new(epoch, held, Arc::new(Hearing::new(LEASE))));
        let id = keys.host_id();
        let revoked = record.state().host(&id).is_none_or(|host| host.revoked);
        if revoked {
            gate.close();
        }
        let stage = Stage {
            record: record.clone(),
            keys,
            gate: gate.clone(),
            rates: Arc::default(),
            silent: Arc::new(SilentCursors::new(Default::default())),
            runtime: runtime.clone(),
        };
        Self {
            host,
            id,
            network: network.clone(),
            record,
            following,
            gate,
            speakers: Arc::new(Speakers::new(stage)),
            news,
            lease: Lease::new(LEASE),
            sent: HashMap::new(),
            oracle,
            grafted: epoch,
            calls: Vec::new(),
            commits: Vec::new(),
            revoked,
        }
    }

    /// Calls of the agent that were not answered.
    pub(crate) fn calling(&self) -> usize {
        self.calls.len()
    }

    /// Entries of the host whose outcome is not known.
    pub(crate) fn committing(&self) -> usize {
        self.commits.len()
    }

    /// What these entries are for.
    pub(crate) fn waiting_for(&self) -> Vec<What> {
        self.commits.iter().map(|commit| commit.what).collect()
    }

    /// A fence of this host's is not in the log yet, as far as it knows.
    pub(crate) fn is_fencing(&self) -> bool {
        let mut commits = self.commits.iter();
        commits.any(|commit| matches!(commit.what, What::Fence(_)))
    }

    /// Whether the agent holds something that passes the gate.
    pub(crate) fn passes(&self) -> bool {
        self.gate.is_open(self.grafted)
    }

    pub(crate) fn is_fresh(&self, now: Duration) -> bool {
        matches!(self.lease.state(now), Freshness::Fresh { .. })
    }

    /// The agent grafts, where it can.
    pub(crate) fn graft(&mut self) {
        let shown = self.gate.shown();
        if shown.open && !shown.held {
            self.grafted = shown.epoch;
        }
    }

    pub(crate) fn speak(
        &mut self,
        runtime: &tokio::runtime::Handle,
        persona: agora_realm::PersonaId,
        speech: Speech,
    ) {
        let (speakers, network) = (self.speakers.clone(), self.network.clone());
        self.calls.push(runtime.spawn(async move {
            let spoken = speakers.speak(&persona, speech).await;
            network.activity.notify_one();
            spoken
        }));
    }

    /// Whether the agent's latest call was answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.calls.last().is_none_or(JoinHandle::is_finished)
    }

    /// Puts an entry in the log. A stop is tried until it is in.
    pub(crate) fn commit(&mut self, runtime: &tokio::runtime::Handle, what: What, sealed: Sealed) {
        let mut commit = Commit {
            what,
            sealed,
            waiting: None,
        };
        commit.again(&self.record, &self.network, runtime);
        self.commits.push(commit);
    }

    /// Puts a stop in the log that an earlier life kept.
    pub(crate) fn commit_kept(
        &mut self,
        runtime: &tokio::runtime::Handle,
        what: What,
        sealed: Sealed,
    ) {
        if let What::Fence(_) = what {
            self.gate.close();
        }
        self.commit(runtime, what, sealed);
    }

    /// Tries stops again that were not taken.
    pub(crate) fn try_again(&mut self, runtime: &tokio::runtime::Handle) {
        for commit in &mut self.commits {
            if commit.waiting.is_none() {
                commit.again(&self.record, &self.network, runtime);
            }
        }
    }

    /// Looks at all that happened since: what was judged, and what was answered.
    pub(crate) fn attend(
        &mut self,
        truth: &Truth,
        now: Duration,
        runtime: &tokio::runtime::Runtime,
    ) -> Came {
        for (id, class) in self.network.handed(self.host) {
            // As the record has it: a stop may have been handed over before.
            if class == Class::Ordinary {
                self.sent.insert(id, now);
                self.lease.sent(now);
            }
        }
        loop {
            match self.news.try_recv() {
                Ok(settled) => self.settled(truth, &settled),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(missed)) => panic!("{missed} news were missed"),
            }
        }
        let mut came = Came::default();
        let (done, waiting) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(JoinHandle::is_finished);
        self.calls = waiting;
        for call in done {
            match runtime.block_on(call).expect("speaking does not panic") {
                Ok((outcomes, _)) => {
                    for outcome in outcomes {
                        match outcome {
                            Outcome::Receipt {
                                placed, repeated, ..
                            } => came.receipts.push((placed, repeated)),
                            Outcome::Refused(..) => came.void += 1,
                        }
                    }
                }
                Err(SpeakError::OutcomeUnknown(_)) => came.unknown += 1,
                Err(_) => {}
            }
        }
        for commit in std::mem::take(&mut self.commits) {
            self.committed(commit, truth, runtime, &mut came);
        }
        came
    }

    fn settled(&mut self, truth: &Truth, settled: &Settled) {
        let (seq, sealed) = (settled.seq, settled.sealed.as_ref());
        let stood = truth.at(seq).any(|(standing, judged)| {
            let same = sealed.is_ok_and(|sealed| *sealed.stored() == standing.bytes);
            *judged == settled.judged && (same || sealed.is_err())
        });
        let host = self.host;
        assert!(stood, "host {host} judges {seq} otherwise: {settled:?}");
        self.oracle.see(seq, sealed, &settled.judged);
        let Ok(sealed) = sealed else {
            return;
        };
        let own = sealed.entry().host == self.id;
        if own && let Some(sent) = self.sent.get(&sealed.id().0) {
            self.lease.seen(*sent);
        }
        for change in &settled.judged.changes {
            match change {
                // What this host decided it has done already.
                Change::Fenced { .. } if !own => {
                    self.gate.close();
                    self.open_gate();
                }
                Change::HostRevoked { host } if *host == self.id => {
                    self.revoked = true;
                    self.gate.close();
                }
                _ => {}
            }
        }
    }

    fn open_gate(&self) {
        let state = self.record.state();
        self.gate.open(|| (state.epoch(), state.held()));
    }

    fn committed(
        &mut self,
        mut commit: Commit,
        truth: &Truth,
        runtime: &tokio::runtime::Runtime,
        came: &mut Came,
    ) {
        let Some(waiting) = commit.waiting.take_if(|waiting| waiting.is_finished()) else {
            self.commits.push(commit);
            return;
        };
        let stop = commit.what.is_stop();
        let settled = match runtime
            .block_on(waiting)
            .expect("committing does not panic")
        {
            Ok(committed) => committed.settled,
            Err(error) => {
                if stop && !matches!(error, LogError::Closed) {
                    self.commits.push(commit);
                }
                return;
            }
        };
        let id = commit.sealed.id();
        let mut at = truth.at(settled.seq);
        assert!(
            at.any(|(standing, judged)| standing.id == id.0
                && (*judged == settled.judged || settled.judged.verdict == Err(Refusal::Repeated))),
            "host {} is told of {settled:?}, which does not stand there",
            self.host
        );
        if let What::Fence(ends) = commit.what {
            let over = self.record.state().epoch() != ends;
            assert!(over || self.revoked, "a fence of {ends} ended nothing");
            if over {
                self.open_gate();
            }
        }
        if stop {
            came.stopped.push(commit.sealed);
        }
    }
}

impl Commit {
    fn again(
        &mut self,
        record: &Arc<Record>,
        network: &Arc<Network>,
        runtime: &tokio::runtime::Handle,
    ) {
        let class = match self.what.is_stop() {
            true => Class::Control,
            false => Class::Ordinary,
        };
        let committing = record.commit(self.sealed.clone(), class);
        let network = network.clone();
        self.waiting = Some(runtime.spawn(async move {
            let committed = committing.await;
            network.activity.notify_one();
            committed
        }));
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.following.abort();
        self.calls.iter().for_each(JoinHandle::abort);
        let waiting = self.commits.iter().filter_map(|c| c.waiting.as_ref());
        waiting.for_each(JoinHandle::abort);
    }
}

/// A call of the agent: drafts for the square, under a grant of an epoch.
pub(crate) fn speech(
    epoch: Epoch,
    grant: Option<agora_realm::GrantId>,
    drafts: Vec<agora::channel::speak::Draft>,
    through: agora_realm::Ordinal,
) -> Speech {
    Speech {
        standing: Standing {
            channel: crate::bed::square(),
            grant,
            epoch,
            peer_epoch: Epoch(0),
        },
        drafts,
        elsewhere: Vec::new(),
        through,
        graft: epoch.0,
    }
}
