//! Tells when a host has gone quiet.
//!
//! Quiet: all due messages handed over, every agent parked on its wire or ended, nothing in flight but `ended`, and no timer or
//! deadline pending; all of it for a moment on end, since what one thread sees another may just have changed.

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

/// Answers once it has been quiet for a while.
pub async fn until_quiet(control: Arc<Control>) {
    let mut since: Option<(Instant, u64)> = None;
    loop {
        let seq = control.record().last_said();
        since = match (is_quiet(&control), since) {
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
