//! A log that lost something: noticed, told, and mended by the operator's decision.
//!
//! In: the record's divergence; what this host keeps of the log and of its own decisions. Out: the gate shut for good; or, at a start whose
//! operator accepts the loss, a signed entry that says so, and this host's own decisions said again.
//! Promise: a host whose log is not what it was admits nothing and starts nothing. What it says again is what the log does not hold and
//! what still means something: a stop as the same bytes, all else as new entries, in the order in which it was decided.
//! Failure: a decision that can't be said again is told; a start that is interrupted, or finds no room in the log, goes on where it was
//! when it is tried again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agora_log::Class;
use agora_realm::{
    Body, ChannelName, EntryId, GrantBody, GrantId, KeyBody, KeySubject, NoteBody, PersonaId,
    Refusal, RevokeBody, Revoked, Sealed, State,
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

    /// Keeps what came by and was not looked at one by one: while this host was down, or in the moment before it was killed, or when its
    /// news came faster than they were heeded. No more than is still in memory.
    pub async fn keep_missed(self: &Arc<Self>) {
        let from = self.kept_through().load(Ordering::Relaxed) + 1;
        let missed = self.record().recent_from(from);
        let Some(last) = missed.last().map(|settled| settled.seq) else {
            return;
        };
        let me = self.host_id();
        let mut stops = 0;
        let mut wanted: Vec<_> = missed
            .iter()
            .rev()
            .filter(|settled| settled.judged.verdict.is_ok())
            .filter_map(|settled| settled.sealed.as_ref().ok())
            .filter(|sealed| {
                let entry = sealed.entry();
                let is_stop = matches!(entry.body, Body::Revoke(_));
                stops += usize::from(is_stop);
                let is_meant = is_stop && stops <= limits::OWN_STOPS_MAX || entry.host == me;
                is_meant && entry.realm.is_some() && is_worth_keeping(sealed)
            })
            .map(|sealed| sealed.stored().clone())
            .collect();
        wanted.reverse();
        // Of all that comes by in a flood, this is the rare part.
        if wanted.is_empty() {
            self.kept_through().fetch_max(last, Ordering::Relaxed);
            return;
        }
        let control = self.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            let own = control.folder().own();
            let kept: HashSet<Bytes> = own.all()?.into_iter().collect();
            wanted.retain(|stored| !kept.contains(stored));
            let is_shared = control.record().is_shared();
            let last = wanted.len().saturating_sub(1);
            wanted
                .iter()
                .enumerate()
                .try_for_each(|(at, stored)| own.keep(stored, is_shared && at == last))
        });
        if let Ok(Err(error)) = keeping.await {
            tracing::warn!("decisions could not be said again if the log lost them: {error}");
        }
        self.kept_through().fetch_max(last, Ordering::Relaxed);
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
            match self.say_again(sealed, &cut, &last, &mut renamed).await? {
                Again::Said => said += 1,
                Again::Moot => {}
                Again::Refused(why) => {
                    notices.push(format!("{} is not said again: {why}", sealed.id().short()))
                }
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
        Ok(notices)
    }

    /// Says one decision again, if it still means something.
    ///
    /// # Errors
    /// For people: the log can't take it now.
    async fn say_again(
        self: &Arc<Self>,
        sealed: &Sealed,
        cut: &HashSet<GrantId>,
        last: &HashMap<ChannelName, EntryId>,
        renamed: &mut HashMap<GrantId, GrantId>,
    ) -> Result<Again, String> {
        let again = match &sealed.entry().body {
            Body::Revoke(revoke) => return self.stop_again(sealed, revoke).await,
            Body::Key(key) => self.key_again(key).map(Body::Key),
            Body::Channel(channel) => {
                let is_last = last.get(&channel.name) == Some(&sealed.id());
                is_last.then(|| sealed.entry().body.clone())
            }
            Body::Grant(_) if cut.contains(&GrantId::from(sealed.id())) => None,
            Body::Grant(grant) => match granted_again(&self.record().state(), grant, renamed) {
                None => None,
                Some(Ok(body)) => Some(Body::Grant(body)),
                Some(Err(twin)) => {
                    // What was lent under it hangs on that one.
                    renamed.insert(GrantId::from(sealed.id()), twin);
                    None
                }
            },
            _ => None,
        };
        let Some(body) = again else {
            return Ok(Again::Moot);
        };
        match self.decide(body).await {
            Ok(committed) => {
                if let (Body::Grant(_), Some(id)) =
                    (&sealed.entry().body, committed.settled.judged.id)
                {
                    renamed.insert(GrantId::from(sealed.id()), GrantId::from(id));
                }
                Ok(Again::Said)
            }
            // It is kept, and the next start goes on here.
            Err(error) if error.starts_with("logUnavailable") => Err(error),
            Err(error) => Ok(Again::Refused(error)),
        }
    }

    /// A stop is said as the same bytes: it was signed once, is what was answered, and stands in whatever epoch. Where the log lost also
    /// what made its signer one of the realm, which may not be this host's to say, this host stops it in its own name.
    async fn stop_again(
        self: &Arc<Self>,
        sealed: &Sealed,
        revoke: &RevokeBody,
    ) -> Result<Again, String> {
        let means_something = {
            let state = self.record().state();
            match &revoke.what {
                Revoked::Grant(grant) => state.grant(grant).is_some(),
                Revoked::Persona(persona) => state.persona(persona).is_some_and(|p| !p.killed),
                Revoked::Host(host) => state.host(host).is_some_and(|h| !h.revoked),
                Revoked::Fence { ends, .. } => state.epoch() == *ends,
            }
        };
        if !means_something {
            return Ok(Again::Moot);
        }
        let committed = self.record().commit(sealed.clone(), Class::Control).await;
        let committed = committed.map_err(|error| error.to_string())?;
        match committed.settled.judged.verdict {
            Ok(()) => Ok(Again::Said),
            Err(Refusal::WrongKey | Refusal::NotAuthorised | Refusal::Revoked) => {
                let body = sealed.entry().body.clone();
                let decided = self.make_durable(body, None).await;
                match (decided.pending, decided.void) {
                    (Some(pending), _) => Err(pending),
                    (None, Some(refusal)) => Ok(Again::Refused(refusal.to_string())),
                    (None, None) => Ok(Again::Said),
                }
            }
            Err(refusal) => Ok(Again::Refused(refusal.to_string())),
        }
    }

    /// A lost key as it is to be said now; none when the log has had it. An own one is the next that the secret gives after those that
    /// the log has had, since by their number it is found from then on.
    fn key_again(&self, key: &KeyBody) -> Option<KeyBody> {
        let id = self.host_id();
        let (had, current) = {
            let state = self.record().state();
            match &key.subject {
                KeySubject::Host(host) => {
                    let known = state.host(host);
                    if *host != id {
                        return known.is_none().then(|| key.clone());
                    }
                    known.map_or((0, None), |known| (known.keys, Some(known.key)))
                }
                KeySubject::Persona(name) => {
                    let known = state.persona(&PersonaId::new(id, name.clone()));
                    known.map_or((0, None), |known| (known.keys, Some(known.key)))
                }
            }
        };
        let secret = self.keys().secret();
        let given = |generation| match &key.subject {
            KeySubject::Host(_) => secret.host_key(generation).public(),
            KeySubject::Persona(name) => secret
                .persona_key(name, key.component.as_ref(), generation)
                .public(),
        };
        let was_said = current == Some(key.public_key)
            || (1..=had).any(|generation| given(generation) == key.public_key);
        (!was_said).then(|| KeyBody {
            public_key: given(had + 1),
            ..key.clone()
        })
    }
}

/// What became of a decision that the log lost.
enum Again {
    /// It stands again.
    Said,
    /// It means nothing any more.
    Moot,
    /// It can't be said again, for this reason.
    Refused(String),
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

/// A lost grant as it can be issued now, or the one that stands in its place already; none when it can't.
fn granted_again(
    state: &State,
    grant: &GrantBody,
    renamed: &HashMap<GrantId, GrantId>,
) -> Option<Result<GrantBody, GrantId>> {
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
    Some(match twins.next() {
        Some((twin, _)) => Err(*twin),
        None => Ok(GrantBody {
            parent,
            ..grant.clone()
        }),
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
