//! A log that lost something: noticed, told, and mended by the operator's decision.
//!
//! In: the record's divergence; what this host keeps of the log and of its own decisions. Out: the gate shut for good; or, at a start whose
//! operator accepts the loss, a signed entry that says so, and this host's own decisions said again.
//! Promise: a host whose log is not what it was admits nothing and starts nothing. What it says again is what the log does not hold and
//! what still means something: a stop as the same bytes, all else as new entries, in the order in which it was decided.
//! Failure: a decision that can't be said again is told; a start that is interrupted goes on where it was.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use agora_log::Class;
use agora_realm::{
    Body, ChannelName, EntryId, GrantBody, GrantId, KeySubject, NoteBody, Revoked, Sealed, State,
};
use bytes::Bytes;

use super::control::Control;
use crate::delivery::record::Loss;
use crate::limits;

impl Control {
    /// Shuts the gate when the log turns out not to be what it was.
    pub async fn heed_divergence(self: Arc<Self>) {
        let mut diverged = self.record().divergence();
        let why = match diverged.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => return,
        };
        self.gate().shut(&format!("the log has diverged: {why}"));
        tracing::error!(
            "THE LOG HAS DIVERGED: {why}. Nothing is admitted any more, and what agents held is cut. Stop the host; restore the log from a \
             copy that has what it had, or accept the loss with `agora doctor --accept-loss REASON`"
        );
        self.fell_walls("the log has diverged").await;
    }

    /// Keeps the tip while it moves, and looks whether the log still reaches it.
    pub async fn keep_tip_regularly(self: Arc<Self>) {
        let mut kept = 0;
        loop {
            tokio::time::sleep(limits::TIP_EVERY).await;
            let Some(tip) = self.record().tip() else {
                continue;
            };
            let end = self.record().log().end().0;
            if end < tip.seq {
                self.record()
                    .diverge(format!("it ends at {end}, and {} was seen", tip.seq));
                return;
            }
            if tip.seq == kept {
                continue;
            }
            let control = self.clone();
            match tokio::task::spawn_blocking(move || control.keep_tip()).await {
                Ok(()) => kept = tip.seq,
                Err(_) => return,
            }
        }
    }

    /// Keeps the tip. Blocks.
    pub(crate) fn keep_tip(&self) {
        if self.record().divergence().borrow().is_some() {
            return;
        }
        let kept = self.record().tip().map(|tip| self.folder().keep_tip(&tip));
        if let Some(Err(error)) = kept {
            tracing::warn!("how far the log was seen is not kept: {error}");
        }
    }

    // -- Own decisions

    /// Keeps a decision that stands, so that it can be said again, if it would have to be.
    pub(super) async fn keep_own(self: &Arc<Self>, sealed: &Sealed) {
        if is_worth_keeping(sealed) {
            self.keep_for_again(sealed).await;
        }
    }

    /// The same of one that would have to be.
    pub(super) async fn keep_for_again(self: &Arc<Self>, sealed: &Sealed) {
        let (control, stored) = (self.clone(), sealed.stored().clone());
        let keeping = tokio::task::spawn_blocking(move || {
            let own = control.folder().own();
            own.keep(&stored, control.record().is_shared())?;
            match own.is_crowded() {
                true => own.shorten(|all| still_means_something(&control.record().state(), all)),
                false => Ok(()),
            }
        });
        if let Ok(Err(error)) = keeping.await {
            tracing::warn!("a decision could not be said again if the log lost it: {error}");
        }
    }

    /// Signs that the operator accepts what the log lost, and says again what this host had decided. Answers what the operator should
    /// know.
    ///
    /// # Errors
    /// For people: the log can't take it now. The next start goes on.
    pub async fn accept_loss(
        self: &Arc<Self>,
        loss: Loss,
        reason: &str,
    ) -> Result<Vec<String>, String> {
        let gap = Body::Note(NoteBody::Gap {
            first_seq: loss.first_seq,
            last_seq: loss.tip.seq,
            leaf: loss.tip.leaf,
            reason: crate::cut_text(reason, limits::REASON_BYTES_MAX),
        });
        self.decide(gap).await?;
        let kept = self.folder().own().all().map_err(|e| e.to_string())?;
        let kept: Vec<_> = kept
            .into_iter()
            .filter_map(|stored| Sealed::open(stored).ok())
            .collect();
        let waiting = self.folder().stops().waiting().map_err(|e| e.to_string())?;
        let waiting = waiting.into_iter();
        let waiting: Vec<_> = waiting
            .filter_map(|(_, stop)| Sealed::open(stop).ok())
            .collect();
        let cut: HashSet<GrantId> = kept.iter().chain(&waiting).filter_map(cuts).collect();
        let mut notices = vec![format!(
            "the loss of entries {} to {} is accepted, and signed",
            loss.first_seq, loss.tip.seq
        )];
        let mut last: HashMap<ChannelName, EntryId> = HashMap::new();
        for sealed in &kept {
            if let Body::Channel(channel) = &sealed.entry().body {
                last.insert(channel.name.clone(), sealed.id());
            }
        }
        let mut renamed = HashMap::new();
        let mut said = 0;
        let lost: Vec<_> = kept
            .iter()
            .filter(|sealed| !loss.stood.contains(&sealed.id()))
            .collect();
        for sealed in &lost {
            match self.say_again(sealed, &cut, &last, &mut renamed).await {
                Ok(is_said) => said += usize::from(is_said),
                Err(error) => notices.push(format!(
                    "{} is not said again: {error}",
                    sealed.id().short()
                )),
            }
        }
        if said > 0 {
            notices.push(format!("{said} decisions that it lost are said again"));
        }
        // What was said again is kept under its new id.
        let gone: HashSet<Bytes> = lost
            .iter()
            .filter(|sealed| !matches!(sealed.entry().body, Body::Revoke(_)))
            .map(|sealed| sealed.stored().clone())
            .collect();
        let shortened = self.folder().own().shorten(|mut all| {
            all.retain(|stored| !gone.contains(stored));
            all
        });
        shortened.map_err(|error| error.to_string())?;
        if let Some(tip) = self.record().tip() {
            self.folder().keep_tip(&tip).map_err(|e| e.to_string())?;
        }
        self.folder().accept_loss(None).map_err(|e| e.to_string())?;
        Ok(notices)
    }

    /// Says one decision again, if it still means something. Says whether it did.
    async fn say_again(
        self: &Arc<Self>,
        sealed: &Sealed,
        cut: &HashSet<GrantId>,
        last: &HashMap<ChannelName, EntryId>,
        renamed: &mut HashMap<GrantId, GrantId>,
    ) -> Result<bool, String> {
        let again = {
            let state = self.record().state();
            match &sealed.entry().body {
                Body::Revoke(revoke) => match &revoke.what {
                    Revoked::Grant(grant) => state.grant(grant).is_some(),
                    Revoked::Persona(persona) => state.persona(persona).is_some_and(|p| !p.killed),
                    Revoked::Host(host) => state.host(host).is_some_and(|h| !h.revoked),
                    Revoked::Fence { ends, .. } => state.epoch() == *ends,
                }
                .then(|| sealed.entry().body.clone()),
                Body::Key(key) => {
                    let is_lost = match &key.subject {
                        KeySubject::Host(host) => state.host(host).is_none(),
                        KeySubject::Persona(name) => {
                            let id = agora_realm::PersonaId::new(self.host_id(), name.clone());
                            let known = state.persona(&id);
                            known.is_none_or(|p| p.key != key.public_key || p.killed)
                        }
                    };
                    is_lost.then(|| sealed.entry().body.clone())
                }
                Body::Channel(channel) => {
                    let is_last = last.get(&channel.name) == Some(&sealed.id());
                    is_last.then(|| sealed.entry().body.clone())
                }
                Body::Grant(grant) => {
                    let is_cut = cut.contains(&GrantId::from(sealed.id()));
                    let again = (!is_cut).then(|| granted_again(&state, grant, renamed));
                    again.flatten().map(Body::Grant)
                }
                _ => None,
            }
        };
        match again {
            None => Ok(false),
            Some(Body::Revoke(_)) => {
                // It was signed once, and is what was answered; a stop stands in whatever epoch.
                let committed = self.record().commit(sealed.clone(), Class::Control).await;
                let committed = committed.map_err(|error| error.to_string())?;
                let verdict = committed.settled.judged.verdict;
                verdict
                    .map(|()| true)
                    .map_err(|refusal| refusal.to_string())
            }
            Some(body) => {
                let committed = self.decide(body).await?;
                if let (Body::Grant(_), Some(id)) =
                    (&sealed.entry().body, committed.settled.judged.id)
                {
                    renamed.insert(GrantId::from(sealed.id()), GrantId::from(id));
                }
                Ok(true)
            }
        }
    }
}

/// The grant that an entry cuts.
fn cuts(sealed: &Sealed) -> Option<GrantId> {
    match &sealed.entry().body {
        Body::Revoke(revoke) => match &revoke.what {
            Revoked::Grant(grant) => Some(*grant),
            _ => None,
        },
        _ => None,
    }
}

/// A lost grant as it can be issued now; none when it can't, or stands already.
fn granted_again(
    state: &State,
    grant: &GrantBody,
    renamed: &HashMap<GrantId, GrantId>,
) -> Option<GrantBody> {
    state.persona(&grant.persona)?;
    let parent = match grant.parent {
        None => None,
        Some(parent) => {
            let parent = renamed.get(&parent).copied().unwrap_or(parent);
            state.grant(&parent)?;
            Some(parent)
        }
    };
    let mut twins = state.grants_of(&grant.persona).filter(|(_, known)| {
        known.object == grant.object
            && known.terms == grant.terms
            && known.parent == parent
            && known.lasting == grant.lasting
    });
    twins.next().is_none().then(|| GrantBody {
        parent,
        ..grant.clone()
    })
}

/// Whether a decision would have to be said again. What agents lend each other for an epoch is gone with their grafts anyway.
fn is_worth_keeping(sealed: &Sealed) -> bool {
    match &sealed.entry().body {
        Body::Key(_) | Body::Channel(_) => true,
        Body::Grant(grant) => grant.parent.is_none() || grant.lasting,
        // Agents cut what they made themselves: nobody is named.
        Body::Revoke(revoke) => !(revoke.by.is_empty() && matches!(revoke.what, Revoked::Grant(_))),
        _ => false,
    }
}

/// What of the kept decisions a log that lost them would have to be told: every key, since the next follows from how many there were; the
/// latest settings of each channel; grants that stand; and the newest stops.
fn still_means_something(state: &State, all: Vec<Bytes>) -> Vec<Bytes> {
    let (mut channels, mut stops) = (HashSet::new(), 0);
    let mut left: Vec<_> = all
        .into_iter()
        .rev()
        .filter(|stored| {
            let Ok(sealed) = Sealed::reread(stored.clone()) else {
                return false;
            };
            match &sealed.entry().body {
                Body::Key(_) => true,
                Body::Channel(channel) => channels.insert(channel.name.clone()),
                Body::Grant(_) => state.grant(&GrantId::from(sealed.id())).is_some(),
                Body::Revoke(_) => {
                    stops += 1;
                    stops <= limits::OWN_STOPS_MAX
                }
                _ => false,
            }
        })
        .collect();
    left.reverse();
    left
}
