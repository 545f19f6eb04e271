//! Taking what was pruned out of a log on servers, which other hosts judge too.
//!
//! In: a channel that a note on the record prunes. Out: stubs of its turns in the log, in entries of this host, then less in the channel's
//! lane.
//! Promise: nothing is taken out before what every host needs of it stands in the log, where a host that was away, or joins later,
//! finds it. Only turns of the channel are taken out, whatever stands in its lane.
//! Failure: what is done stays done, and the rest is done by this host's next start, or by the next prune of any host.

use std::collections::BTreeSet;
use std::sync::Arc;

use agora_log::{Class, Seq};
use agora_realm::{Body, ChannelName, NoteBody, Ordinal, Sealed, StubBody};
use bytes::Bytes;

use super::control::Control;
use crate::boot::data::replace;
use crate::delivery::gathering::{STUBS, lane_of_channel};
use crate::limits;

/// What of a channel is to be taken out, in parts.
#[derive(Default)]
struct Step {
    /// The last place that is in it.
    through: u64,
    /// What is not kept in the log yet.
    stubs: Vec<StubBody>,
    /// Bytes of those.
    stub_bytes: usize,
    /// Bytes of stubs that were put in the log since something was taken out.
    put: usize,
    /// Where the last of them stands.
    note: Option<u64>,
    /// Bytes of entries that go.
    bytes: u64,
}

impl Control {
    /// Whether this host's login may take entries out of the stream at all.
    pub(super) async fn may_purge(&self, channel: &ChannelName) -> Result<(), String> {
        // The first place is in no lane, so nothing goes.
        let purged = self
            .record()
            .log()
            .purge_lane(lane_of_channel(channel), Seq::FIRST);
        purged.await.map_err(|error| {
            format!("'{channel}' can't be pruned from this host: {error} (docs/realm.md names the permission; another host may have it)")
        })
    }

    /// The channels that this host has begun to prune, and has not been through with.
    pub(super) fn pruning_begun(&self) -> BTreeSet<ChannelName> {
        let read = std::fs::read(self.folder().join("pruning")).unwrap_or_default();
        postcard::from_bytes(&read).unwrap_or_default()
    }

    /// Keeps whether this host is pruning a channel.
    pub(super) fn set_pruning(&self, channel: &ChannelName, is_begun: bool) -> Result<(), String> {
        let mut begun = self.pruning_begun();
        let is_new = match is_begun {
            true => begun.insert(channel.clone()),
            false => begun.remove(channel),
        };
        if !is_new {
            return Ok(());
        }
        let bytes = postcard::to_stdvec(&begun).map_err(|error| error.to_string())?;
        replace(&self.folder().join("pruning"), &bytes).map_err(|error| error.to_string())
    }

    /// Does what the record says is pruned of a channel and is still in the log. Answers how many bytes of entries went, and what has to
    /// stay, for people.
    pub(super) async fn finish_shared(
        self: &Arc<Self>,
        channel: &ChannelName,
    ) -> Result<(u64, Option<String>), String> {
        let _one = self.pruning().lock().await;
        let Some(last) = self.last_that_goes(channel)? else {
            return Ok((0, None));
        };
        let (lane, log) = (lane_of_channel(channel), self.record().log().clone());
        let (mut next, mut freed) = (Seq::FIRST, 0);
        let (mut step, mut held) = (Step::default(), None);
        'reading: while next.0 <= last {
            let batch = log.read_lane(lane, next, 1024, 4 << 20).await;
            let batch = batch.map_err(|error| error.to_string())?;
            let Some((end, _)) = batch.last() else {
                break;
            };
            next = end.next();
            let stubs = self.stubs_of(channel, last, batch).await?;
            for (seq, bytes, stub) in stubs {
                let stub = match stub {
                    Ok(stub) => stub,
                    Err(why) => {
                        held = Some(format!(
                            "entry {seq}, and what stands behind it, stays in the log: {why}"
                        ));
                        break 'reading;
                    }
                };
                step.through = seq;
                step.bytes += bytes;
                if let Some(stub) = stub {
                    step.stub_bytes += stub.stub.len() + 64;
                    step.stubs.push(stub);
                }
                if step.stub_bytes >= limits::STUBS_NOTE_BYTES {
                    self.put_stubs(channel, &mut step).await?;
                }
                if step.put >= limits::PRUNE_STEP_BYTES {
                    freed += self.take_out(channel, &mut step).await?;
                }
            }
        }
        freed += self.take_out(channel, &mut step).await?;
        self.set_pruning(channel, false)?;
        Ok((freed, held.or_else(|| self.left_in(channel))))
    }

    /// The last place of which nothing of the channel is to stay.
    fn last_that_goes(&self, channel: &ChannelName) -> Result<Option<u64>, String> {
        let record = self.record();
        let view = record.state().channel(channel).map(|view| view.pruned);
        let through = match view {
            None | Some(Ordinal(0)) => return Ok(None),
            Some(through) => through,
        };
        let place = |ordinal| {
            let place = record.place_of(channel, ordinal);
            place.map_err(|error| error.to_string())
        };
        let Some(last) = place(through)?.map(|place| place.seq) else {
            return Err(format!("message {through} of '{channel}' has no place"));
        };
        Ok(match place(Ordinal(through.0 + 1))? {
            // The rest of it goes by a later note.
            Some(next) if next.seq == last => Some(last - 1),
            _ => Some(last),
        })
    }

    /// Of each entry up to a place: where it stands, its size, and what is to be kept of it, unless that is kept already; or why it must
    /// stay.
    async fn stubs_of(
        self: &Arc<Self>,
        channel: &ChannelName,
        last: u64,
        batch: Vec<(Seq, Bytes)>,
    ) -> Result<Vec<(u64, u64, Result<Option<StubBody>, String>)>, String> {
        let (record, channel) = (self.record().clone(), channel.clone());
        let made = self.runtime().spawn_blocking(move || {
            let batch = batch.into_iter().take_while(|(seq, _)| seq.0 <= last);
            let made = batch.map(|(seq, stored)| {
                let bytes = stored.len() as u64;
                let made = stub_of(&channel, seq.0, stored).and_then(|stub| {
                    match record.pruned().get(seq.0).ok().flatten() {
                        // The first of a place is the one that all take.
                        Some(kept) if kept.leaf == stub.leaf && kept.stub != stub.stub => Err(
                            "a host of the realm says in the log that it keeps something else of it than what it was".to_owned(),
                        ),
                        Some(kept) if kept.leaf == stub.leaf => Ok(None),
                        _ => Ok(Some(stub)),
                    }
                });
                (seq.0, bytes, made)
            });
            made.collect()
        });
        made.await.map_err(|_| "the host is ending".to_owned())
    }

    /// Puts the stubs that were made in the log.
    async fn put_stubs(
        self: &Arc<Self>,
        channel: &ChannelName,
        step: &mut Step,
    ) -> Result<(), String> {
        let stubs = std::mem::take(&mut step.stubs);
        if stubs.is_empty() {
            return Ok(());
        }
        let note = NoteBody::Stubs {
            channel: channel.clone(),
            stubs,
        };
        // A stream that is full is pruned for that.
        let committed = self.decide_as(Body::Note(note), Class::Control).await?;
        step.note = Some(committed.settled.seq);
        step.put += std::mem::take(&mut step.stub_bytes);
        Ok(())
    }

    /// Takes out of the log what is kept in it. Answers how many bytes of entries went.
    async fn take_out(
        self: &Arc<Self>,
        channel: &ChannelName,
        step: &mut Step,
    ) -> Result<u64, String> {
        self.put_stubs(channel, step).await?;
        let done = std::mem::take(step);
        if done.through == 0 {
            return Ok(0);
        }
        let log = self.record().log();
        if let Some(note) = done.note {
            // Whoever joins looks for it there.
            let found = log.read_lane(STUBS, Seq(note), 1, usize::MAX).await;
            let found = found.map_err(|error| error.to_string())?;
            if found.first().map(|(seq, _)| seq.0) != Some(note) {
                return Err(format!(
                    "what was kept of it, in entry {note}, is not found in its lane: this host's login may not append there, or a \
                     server is behind (docs/realm.md names the permissions)"
                ));
            }
        }
        let purged = log.purge_lane(lane_of_channel(channel), Seq(done.through));
        purged.await.map_err(|error| error.to_string())?;
        Ok(done.bytes)
    }

    /// What of the channel's pruned messages stands where it can't be taken out.
    fn left_in(&self, channel: &ChannelName) -> Option<String> {
        let record = self.record();
        let through = record.state().channel(channel)?.pruned;
        let (mut next, mut left) = (Ordinal(1), 0_u64);
        while next <= through {
            let places = record.places_of(channel, next, 4096).ok()?;
            let read = places.len() as u64;
            let of_these = places
                .into_iter()
                .take(usize::try_from(through.0 - next.0 + 1).unwrap_or(usize::MAX));
            left += of_these
                .filter(|place| !record.pruned().has(place.seq))
                .count() as u64;
            next = Ordinal(next.0 + read.max(1));
        }
        (left > 0).then(|| {
            format!(
                "{left} of the messages stay in the log: their entries stand in no lane of their channel, because an \
                 earlier version wrote them, or a host whose login may not append there (docs/realm.md names the permissions)"
            )
        })
    }
}

/// What is to be kept of a turn of this channel; or why what stands there must stay.
fn stub_of(channel: &ChannelName, seq: u64, stored: Bytes) -> Result<StubBody, String> {
    let sealed = Sealed::open(stored);
    let sealed = sealed.map_err(|junk| format!("it is no entry of a host's ({junk})"))?;
    let is_of_channel =
        matches!(&sealed.entry().body, Body::Turn(turn) if turn.channel == *channel);
    match sealed.stub() {
        Some(stub) if is_of_channel && stub.len() <= limits::STUB_BYTES_MAX => Ok(StubBody {
            seq,
            leaf: sealed.leaf(),
            stub,
        }),
        Some(_) if is_of_channel => Err("what would have to be kept of it is too large".to_owned()),
        _ => Err("it is no turn of this channel".to_owned()),
    }
}
