//! Pruning: what a channel's old messages said goes, and that they were said stays.
//!
//! In: a channel, and how much of it is to be kept. Out: a signed note on the record, then stubs in the data folder, then less in the log.
//! Where other hosts judge the log too, stubs go in the log: see `prune_shared.rs`.
//! Promise: entries that confer or take back stay, and so do the leaf hash of every place and all that judge asks for, so that the
//! log is judged after it as before, from its beginning too. Nobody's unread messages go unsaid: a cursor that stands below the place
//! is a refusal that names it, unless that is forced, and then the subscriber is told.
//! Failure: once the note is in the log the messages are history's no more; what the disk then refuses is done by the next start, or the
//! next prune.

use std::collections::BTreeMap;
use std::sync::Arc;

use agora_log::{Class, Seq};
use agora_realm::{Body, ChannelName, NoteBody, Object, Ordinal, Rights, Sealed};

use super::control::Control;
use crate::boot::data::{DataError, replace};
use crate::boot::host::LogPlace;
use crate::delivery::pruned::Stub;
use crate::limits;

/// How much of a channel is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The newest messages, so many.
    Count(u64),
    /// What was said in the last milliseconds, so many.
    Age(u64),
    /// The newest messages, of so many bytes of payload together.
    Bytes(u64),
}

/// What a prune does, or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneDone {
    /// The last message that goes, by its ordinal; 0 when none does.
    pub through: Ordinal,
    /// How many messages go.
    pub messages: u64,
    /// Bytes of payload they have together.
    pub bytes: u64,
    /// Bytes that the log let go of; 0 in a dry run.
    pub freed: u64,
    /// Whose cursors are passed, with where they stand.
    pub passed: Vec<String>,
    /// For people: what is not done yet, and when it will be.
    pub pending: Option<String>,
}

/// A counting message of a channel, in passing.
struct Passing {
    ordinal: u64,
    seq: u64,
    bytes: u64,
    time_ms: i64,
}

/// How far each channel's messages are gone from the log.
type Through = BTreeMap<ChannelName, Ordinal>;

impl Control {
    /// Prunes a channel, or says what that would do.
    ///
    /// # Errors
    /// For people: there is no such channel; this host may not take entries out of the servers' log; a cursor stands below and that is not forced; the log can't take the
    /// note now.
    pub async fn prune(
        self: &Arc<Self>,
        name: &str,
        keep: Keep,
        dry_run: bool,
        force_past_cursors: bool,
    ) -> Result<PruneDone, String> {
        let channel = self.channel_named(name)?;
        let is_shared = self.is_on_servers();
        let mut done = self.to_prune(&channel, keep).await?;
        if done.messages == 0 {
            if is_shared && !dry_run {
                // Another host may have left something to do.
                self.finish_and_say(&channel, &mut done).await;
            }
            return Ok(done);
        }
        done.passed = self.cursors_below(&channel, done.through);
        if dry_run {
            return Ok(done);
        }
        if !done.passed.is_empty() && !force_past_cursors {
            return Err(format!(
                "'{channel}': pruning through {} would pass the cursors of {} (wait until they have read that far, keep more, or say \
                 --force-past-cursors)",
                done.through,
                done.passed.join(", ")
            ));
        }
        let note = NoteBody::Prune {
            channel: channel.clone(),
            through: done.through,
        };
        if is_shared {
            self.may_purge(&channel).await?;
            self.set_pruning(&channel, true)?;
        }
        // A log that is full is pruned for that.
        self.decide_as(Body::Note(note), Class::Control).await?;
        self.finish_and_say(&channel, &mut done).await;
        Ok(done)
    }

    async fn finish_and_say(self: &Arc<Self>, channel: &ChannelName, done: &mut PruneDone) {
        let finished = match self.is_on_servers() {
            true => self.finish_shared(channel).await,
            false => {
                let freed = self.finish_prune(channel).await;
                freed.map(|freed| (freed, None))
            }
        };
        match finished {
            Ok((freed, stays)) => {
                done.freed = freed;
                done.pending = stays;
            }
            Err(error) => {
                done.pending = Some(format!(
                    "the messages are off the record, and still in the log: {error}; the next start, or the next prune, goes on"
                ));
            }
        }
    }

    fn is_on_servers(&self) -> bool {
        matches!(self.log_place(), LogPlace::JetStream(..))
    }

    /// Which messages go. Those of one entry go together.
    async fn to_prune(&self, channel: &ChannelName, keep: Keep) -> Result<PruneDone, String> {
        let now = crate::now_ms();
        let mut kept: Vec<Passing> = Vec::new();
        let mut next = match self.record().state().channel(channel) {
            Some(view) => Ordinal(view.pruned.0 + 1),
            None => return Ok(PruneDone::default()),
        };
        loop {
            let read = self.record().messages(channel, next, 1024, 4 << 20).await;
            let batch = read.map_err(|error| error.to_string())?;
            let Some(last) = batch.last() else {
                break;
            };
            next = Ordinal(last.ordinal.0 + 1);
            kept.extend(batch.iter().map(|message| Passing {
                ordinal: message.ordinal.0,
                seq: message.place.seq,
                bytes: message.message().payload.len() as u64,
                time_ms: message.message().time_ms,
            }));
        }
        let mut go = match keep {
            Keep::Count(count) => kept
                .len()
                .saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)),
            Keep::Age(ms) => {
                let oldest = now.saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX));
                kept.iter()
                    .take_while(|message| message.time_ms < oldest)
                    .count()
            }
            Keep::Bytes(bytes) => {
                let mut left = bytes;
                let fits = |message: &&Passing| {
                    let fits = message.bytes <= left;
                    left = left.saturating_sub(message.bytes);
                    fits
                };
                kept.len() - kept.iter().rev().take_while(fits).count()
            }
        };
        while go > 0
            && kept
                .get(go)
                .is_some_and(|next| next.seq == kept[go - 1].seq)
        {
            go -= 1;
        }
        Ok(PruneDone {
            through: Ordinal(go.checked_sub(1).map_or(0, |last| kept[last].ordinal)),
            messages: go as u64,
            bytes: kept[..go].iter().map(|message| message.bytes).sum(),
            ..PruneDone::default()
        })
    }

    /// Who may read the channel and has not read through there, as far as this host can tell.
    fn cursors_below(&self, channel: &ChannelName, through: Ordinal) -> Vec<String> {
        let state = self.record().state();
        let readers = state.grants().filter(|(_, grant)| {
            matches!(&grant.object, Object::Channel(name) if name == channel)
                && grant.effective.rights.has(Rights::READ)
        });
        let mut below: BTreeMap<String, Ordinal> = BTreeMap::new();
        for (_, grant) in readers {
            // Of another host's persona silence is not known here: it may be further than it seems.
            let cursor = self.silent().effective(&state, &grant.persona, channel);
            if cursor < through {
                below.insert(grant.persona.to_string(), cursor);
            }
        }
        below
            .into_iter()
            .map(|(persona, cursor)| format!("{persona} (at {cursor})"))
            .collect()
    }

    /// Lets the log go of what its notes say is pruned, and of what was never done of that before.
    ///
    /// # Errors
    /// For people.
    pub async fn finish_prunes(self: &Arc<Self>) -> Result<(), String> {
        if self.is_on_servers() {
            for channel in self.pruning_begun() {
                self.finish_shared(&channel).await?;
            }
            return Ok(());
        }
        let channels: Vec<_> = {
            let state = self.record().state();
            let pruned = state.channels().filter(|(_, view)| view.pruned.0 > 0);
            pruned.map(|(name, _)| name.clone()).collect()
        };
        for channel in channels {
            self.finish_prune(&channel).await?;
        }
        Ok(())
    }

    /// Forgets how far the log has let go of what was pruned: it went back, and may hold that again, or something else in its place.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn forget_purged(&self) -> Result<(), DataError> {
        let path = self.folder().join("purged");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(DataError::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    async fn finish_prune(self: &Arc<Self>, channel: &ChannelName) -> Result<u64, String> {
        // One at a time: each writes the same files.
        let _one = self.pruning().lock().await;
        let path = self.folder().join("purged");
        let mut gone: Through = match std::fs::read(&path) {
            Ok(bytes) => postcard::from_bytes(&bytes).unwrap_or_default(),
            Err(_) => Through::new(),
        };
        let before = gone.get(channel).copied().unwrap_or_default();
        let through = self
            .record()
            .state()
            .channel(channel)
            .map_or(Ordinal(0), |view| view.pruned);
        if through <= before {
            return Ok(0);
        }
        let io = |error: std::io::Error| error.to_string();
        let record = self.record().clone();
        let place = |ordinal| record.place_of(channel, ordinal).map_err(io);
        let first = match before {
            Ordinal(0) => 1,
            // That one too: a note that was written elsewhere may have ended within it.
            before => place(before)?.map_or(1, |place| place.seq),
        };
        let Some(last) = place(through)?.map(|place| place.seq) else {
            return Err(format!("message {through} of '{channel}' has no place"));
        };
        let last = match place(Ordinal(through.0 + 1))? {
            // The rest of it goes by a later note.
            Some(next) if next.seq == last => last - 1,
            _ => last,
        };
        let (mut next, mut freed) = (first, 0);
        while next <= last {
            let (mut stubs, mut bytes) = (Vec::new(), 0);
            // As much at a time as memory bears; the file of stubs is written anew each time.
            while next <= last
                && stubs.len() < limits::PRUNE_STUBS_MAX
                && bytes < limits::PRUNE_BYTES_MAX
            {
                let batch = record.log().read(Seq(next), 1024, 4 << 20).await;
                let batch = batch.map_err(|error| error.to_string())?;
                let Some((end, _)) = batch.last() else {
                    return Err(format!("entry {next} can't be read"));
                };
                next = end.0 + 1;
                for (seq, stored) in batch {
                    let meant = |sealed: &Sealed| matches!(&sealed.entry().body, Body::Turn(turn) if turn.channel == *channel);
                    if seq.0 > last {
                        break;
                    }
                    // What is no entry is nobody's message, and what is a stub already is one.
                    let Ok(sealed) = Sealed::reread(stored) else {
                        continue;
                    };
                    if let (true, Some(stub)) = (meant(&sealed), sealed.stub()) {
                        bytes += stub.len();
                        stubs.push(Stub {
                            seq: seq.0,
                            leaf: sealed.leaf(),
                            stub,
                        });
                    }
                }
                tokio::task::yield_now().await;
            }
            let pruned = record.pruned().clone();
            let places = stubs.iter().map(|stub| Seq(stub.seq)).collect();
            let kept = tokio::task::spawn_blocking(move || pruned.add(&stubs)).await;
            kept.map_err(|error| error.to_string())?.map_err(io)?;
            freed += record
                .log()
                .purge(places)
                .await
                .map_err(|error| error.to_string())?;
        }
        gone.insert(channel.clone(), through);
        let bytes = postcard::to_stdvec(&gone).map_err(|error| error.to_string())?;
        replace(&path, &bytes).map_err(|error| error.to_string())?;
        Ok(freed)
    }
}
