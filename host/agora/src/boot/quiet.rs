//! Tells when a host has gone quiet.
//!
//! Quiet: all due messages handed over, every agent parked on its wire or ended, nothing in flight but `ended`, and no timer or
//! deadline pending; all of it for a moment on end, since what one thread sees another may just have changed. And what was said for peers is
//! settled there, or nothing of it was for a while: a peer may be away for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agora_realm::{ChannelName, PersonaId};

use crate::delivery::subscription::Progress;
use crate::door::control::Control;
use crate::limits;

/// Whether nothing is going on right now.
pub fn is_quiet(control: &Control) -> bool {
    let shown = control.gate().shown();
    if !shown.open || control.is_busy() || !control.deadlines().is_empty() {
        return false;
    }
    let state = control.record().state();
    let host = control.host_id();
    control.agents().iter().all(|agent| {
        let persona = PersonaId::new(host, agent.name.clone());
        let idle = |channel: &ChannelName, progress: &Progress| {
            let (latest, cursor) = control.place_on(&state, &persona, channel);
            progress.is_idle(latest, cursor)
        };
        agent.shared.is_quiet(shown.epoch, idle) || (shown.held && agent.shared.parked.is_parked())
    })
}

/// What waits in outboxes, and since when nothing of it was settled.
#[derive(Default)]
struct Owed {
    waiting: Vec<(ChannelName, u64)>,
    since: Option<Instant>,
    told: bool,
}

impl Owed {
    /// Whether to go on waiting for what peers have not settled. Says once what for, and once that it is given up.
    fn is_due(&mut self, control: &Control, tell: &impl Fn(&str)) -> bool {
        let waiting = control.peers().owed();
        if waiting != self.waiting {
            self.since = None;
            self.waiting = waiting;
        }
        if self.waiting.is_empty() {
            return false;
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited >= limits::QUIET_OWED_MAX {
            tell(&format!(
                "{} in {:?}: it stays in the outbox, for a later run",
                self.what("was not taken"),
                limits::QUIET_OWED_MAX
            ));
            return false;
        }
        if waited >= limits::QUIET_OWED_TOLD && !std::mem::replace(&mut self.told, true) {
            let most = limits::QUIET_OWED_MAX;
            let what = self.what("is not said there yet");
            tell(&format!(
                "all is quiet, but {what}; waiting, at most {most:?} for each step"
            ));
        }
        true
    }

    fn what(&self, how: &str) -> String {
        let waiting = self.waiting.iter();
        let each: Vec<_> = waiting
            .map(|(channel, count)| format!("{count} for '{channel}'"))
            .collect();
        format!("what was said for peers ({}) {how}", each.join(", "))
    }
}

/// Answers once it has been quiet for a while; `tell` is for people.
pub async fn until_quiet(control: Arc<Control>, tell: impl Fn(&str)) {
    let mut since: Option<(Instant, u64)> = None;
    let mut owed = Owed::default();
    loop {
        let seq = control.record().last_said();
        let quiet = match is_quiet(&control) {
            true => !owed.is_due(&control, &tell),
            false => {
                owed.since = None;
                false
            }
        };
        since = match (quiet, since) {
            (false, _) => None,
            (true, Some((began, at))) if at == seq => Some((began, at)),
            (true, _) => Some((Instant::now(), seq)),
        };
        if since.is_some_and(|(began, _)| began.elapsed() >= limits::QUIET_SETTLE) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
