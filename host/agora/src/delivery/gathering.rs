//! In which lane of a log on servers an entry goes, and the stubs that hosts leave there when they prune.
//!
//! In: the lanes of a log. Out: what was kept of the turns that were taken out of it.
//! Promise: every turn of a channel, and nothing else of this host's, goes in the channel's lane, so that a channel can be pruned without
//! touching what confers or takes back. A stub is taken from a note that counts: its host was of the realm when it stood there. Of two
//! stubs of one place with one leaf the first is taken, so that all hosts take the same.
//! Failure: the log's.

use std::collections::VecDeque;

use agora_log::{Lane, LogError, Seq};
use agora_realm::{Body, ChannelName, NoteBody, Sealed, State, StubBody, judge};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::pruned::{Pruned, Stub};

/// Where stubs go.
pub const STUBS: Lane = Lane::Of(*b"stubs\0\0\0");
/// Where hosts say what keeps them going.
const UPKEEP: Lane = Lane::Of(*b"upkeep\0\0");

/// A channel's lane: the beginning of a hash, since a name may hold what a subject may not. Should two channels share one, neither is
/// pruned behind the first entry of the other.
pub fn lane_of_channel(channel: &ChannelName) -> Lane {
    let hash = Sha256::new()
        .chain_update("agora channel ")
        .chain_update(channel.as_str())
        .finalize();
    let mut name = [0; 8];
    name.copy_from_slice(&hash[..8]);
    Lane::Of(name)
}

/// In which lane an entry belongs.
pub fn lane_of(body: &Body) -> Lane {
    match body {
        Body::Turn(turn) => lane_of_channel(&turn.channel),
        Body::Note(NoteBody::Stubs { .. }) => STUBS,
        Body::Note(NoteBody::Marker { .. } | NoteBody::Tree { .. }) => UPKEEP,
        _ => Lane::Main,
    }
}

/// What a note of stubs says is kept.
pub fn stubs_in(stubs: &[StubBody]) -> Vec<Stub> {
    let stub = |stub: &StubBody| Stub {
        seq: stub.seq,
        leaf: stub.leaf,
        stub: stub.stub.clone(),
    };
    stubs.iter().map(stub).collect()
}

/// What stands in one lane, in order.
struct Reading {
    lane: Lane,
    next: Seq,
    read: VecDeque<(Seq, Bytes)>,
    is_at_end: bool,
}

impl Reading {
    fn new(lane: Lane, from: Seq) -> Self {
        Self {
            lane,
            next: from,
            read: VecDeque::new(),
            is_at_end: false,
        }
    }

    /// The next entry, if it stands before `end`.
    async fn before<R>(
        &mut self,
        end: Seq,
        read: &impl Fn(Lane, Seq) -> R,
    ) -> Result<Option<(Seq, Bytes)>, LogError>
    where
        R: Future<Output = Result<Vec<(Seq, Bytes)>, LogError>>,
    {
        if self.read.is_empty() && !self.is_at_end && self.next < end {
            self.read = read(self.lane, self.next).await?.into();
            match self.read.back() {
                Some((last, _)) => self.next = last.next(),
                None => self.is_at_end = true,
            }
        }
        Ok(match self.read.front() {
            Some((seq, _)) if *seq < end => self.read.pop_front(),
            _ => None,
        })
    }
}

/// Takes in the stubs that stand behind what `state` has judged. `read` gives what a lane has from a place on. Only the lanes of stubs and
/// of what decides whose stubs count are read, so that nothing of what was pruned is needed for it.
///
/// # Errors
/// The log's.
pub async fn gather<R>(
    read: impl Fn(Lane, Seq) -> R,
    mut state: State,
    pruned: &Pruned,
) -> Result<(), LogError>
where
    R: Future<Output = Result<Vec<(Seq, Bytes)>, LogError>>,
{
    let from = Seq(state.last_seq().unwrap_or(0) + 1);
    let (mut notes, mut others) = (Reading::new(STUBS, from), Reading::new(Lane::Main, from));
    let everything = Seq(u64::MAX);
    let mut judged = 0_u32;
    while let Some((seq, stored)) = notes.before(everything, &read).await? {
        let Ok(sealed) = Sealed::open(stored) else {
            continue;
        };
        let Body::Note(NoteBody::Stubs { stubs, .. }) = &sealed.entry().body else {
            continue;
        };
        while let Some((at, stored)) = others.before(seq, &read).await? {
            judge(&mut state, at.0, Sealed::open(stored).as_ref());
            judged += 1;
            if judged.is_multiple_of(256) {
                tokio::task::yield_now().await;
            }
        }
        if judge(&mut state, seq.0, Ok(&sealed)).verdict.is_ok() {
            pruned.hold(stubs_in(stubs));
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_have_lanes_of_their_own_whatever_their_names_hold() {
        let lane = |name: &str| lane_of_channel(&ChannelName::new(name).unwrap());
        let lanes = ["square", "square.a", "square-a", "a.b.c"].map(lane);
        for (at, one) in lanes.iter().enumerate() {
            assert!(*one != STUBS && *one != UPKEEP && *one != Lane::Main);
            assert!(lanes[..at].iter().all(|other| other != one));
        }
    }
}
