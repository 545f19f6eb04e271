//! The broker's log, judged by nobody's host: what all hosts are compared with.

use agora_realm::{Epoch, Judged, Junk, MessageVerdict, Sealed, State, judge};

use crate::network::{Network, Standing};
use crate::oracle::Oracle;

pub(crate) struct Truth {
    /// Through the last entry that every run begins with.
    base: (State, Oracle),
    now: (State, Oracle),
    /// What stands after those, and what is judged of it.
    judged: Vec<(Standing, Judged)>,
    /// The same as it was before the log lost its end.
    past: Vec<(Standing, Judged)>,
    /// The epochs that ended, and when the fence came to stand; those whose fence the log lost are gone.
    pub(crate) fences: Vec<(Epoch, u64)>,
}

/// Verifying is left to the hosts, where it is known to come out well.
fn read(standing: &Standing) -> Result<Sealed, Junk> {
    let bytes = standing.bytes.clone();
    match standing.is_sound() {
        true => Sealed::reread(bytes),
        false => Sealed::open(bytes),
    }
}

impl Truth {
    pub(crate) fn new(state: State, oracle: Oracle) -> Self {
        let base = (state, oracle);
        Self {
            now: base.clone(),
            base,
            judged: Vec::new(),
            past: Vec::new(),
            fences: Vec::new(),
        }
    }

    /// How many places every run begins with.
    pub(crate) fn base_seq(&self) -> u64 {
        self.base.0.last_seq().unwrap_or(0)
    }

    pub(crate) fn state(&self) -> &State {
        &self.now.0
    }

    /// The log lost its end.
    pub(crate) fn lost(&mut self, network: &Network) {
        self.past = std::mem::take(&mut self.judged);
        self.now = self.base.clone();
        self.fences.clear();
        self.catch_up(network);
    }

    /// Judges what is new.
    pub(crate) fn catch_up(&mut self, network: &Network) {
        let (state, oracle) = &mut self.now;
        let next = state.last_seq().unwrap_or(0) + 1;
        for (seq, standing) in (next..).zip(network.standing_from(next)) {
            let sealed = read(&standing);
            let judged = judge(state, seq, sealed.as_ref());
            if let Some(ended) = oracle.see(seq, sealed.as_ref(), &judged) {
                self.fences.push((ended, standing.at_ms));
            }
            self.judged.push((standing, judged));
        }
    }

    /// What stands at a place, or stood there before the log lost it, and what is judged of it.
    pub(crate) fn at(&self, seq: u64) -> impl Iterator<Item = &(Standing, Judged)> {
        // What every run begins with is told to nobody.
        let at = (seq - self.base_seq()) as usize - 1;
        self.judged.get(at).into_iter().chain(self.past.get(at))
    }

    /// What is judged of what stands at a place now.
    pub(crate) fn judged(&self, seq: u64) -> Option<&Judged> {
        let at = (seq - self.base_seq()) as usize - 1;
        self.judged.get(at).map(|(_, judged)| judged)
    }

    /// The state as it was after that place, in the log as it is.
    pub(crate) fn digest_at(&self, seq: u64) -> [u8; 32] {
        let mut state = self.base.0.clone();
        for (seq, (standing, _)) in (self.base_seq() + 1..=seq).zip(&self.judged) {
            judge(&mut state, seq, read(standing).as_ref());
        }
        state.digest()
    }

    /// What a reader knows who has come so far.
    pub(crate) fn oracle_at(&self, seq: u64) -> Oracle {
        let mut oracle = self.base.1.clone();
        for (seq, (standing, judged)) in (self.base_seq() + 1..=seq).zip(&self.judged) {
            oracle.see(seq, read(standing).as_ref(), judged);
        }
        oracle
    }

    /// How many messages count, for the report of a run.
    pub(crate) fn counting(&self) -> usize {
        let messages = self.judged.iter().flat_map(|(_, judged)| &judged.messages);
        messages
            .filter(|verdict| matches!(verdict, MessageVerdict::Counts(_)))
            .count()
    }
}
