//! How the log stands with this host, for people.

use agora_log::ConnectionState;

use super::control::Control;
use crate::boot::host::LogPlace;
use crate::delivery::lease::Freshness;

/// How the log stands with this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `connected`, `unreachable`, `lapsed` or `diverged`.
    pub state: &'static str,
    /// Entries that are known to stand in the log and have not been judged here.
    pub behind: u64,
    /// Since when nothing is admitted, in milliseconds since 1970-01-01 UTC; 0: the host is fresh, or needs no lease.
    pub lapsed_ms: i64,
    /// What of the log is not as it was.
    pub diverged: Option<String>,
    /// All of it, with where the log is, in one line.
    pub text: String,
}

impl Control {
    /// How the log stands with this host.
    pub fn condition(&self) -> Condition {
        let (place, record) = (self.log_place(), self.record());
        let end = record.log().end().0;
        let behind = end.saturating_sub(record.state().last_seq().unwrap_or(0));
        let connection = match place {
            LogPlace::JetStream(_, state) => state.borrow().clone(),
            _ => ConnectionState::Connected,
        };
        let diverged = match (record.divergence().borrow().clone(), &connection) {
            (None, ConnectionState::Diverged { why }) => Some(why.clone()),
            (found, _) => found,
        };
        let lapsed_ms = self.lapsed_ms();
        let state = match (&diverged, lapsed_ms, &connection) {
            (Some(_), ..) => "diverged",
            (_, 1.., _) => "lapsed",
            (_, _, ConnectionState::Reconnecting { .. }) => "unreachable",
            _ => "connected",
        };
        let mut text = place.show();
        if let (Some(why), false) = (&diverged, text.contains("DIVERGED")) {
            text = format!("{text}, DIVERGED: {why}");
        }
        if let Some(failure) = &*record.failure().borrow() {
            text = format!("{text}, failed: {failure}");
        }
        if place.is_shared() && behind > 0 {
            text = format!("{text}, {behind} behind");
        }
        if lapsed_ms > 0 {
            let seconds = (crate::now_ms() - lapsed_ms).max(0) / 1000;
            text = format!("{text}, LAPSED {seconds} s ago: nothing is admitted");
        }
        Condition {
            state,
            behind,
            lapsed_ms,
            diverged,
            text,
        }
    }

    fn lapsed_ms(&self) -> i64 {
        let hearing = self.record().hearing();
        if !hearing.is_needed() || (hearing.is_fresh() && !self.gate().shown().lapsed) {
            return 0;
        }
        let ago = match hearing.state() {
            Freshness::Lapsed { since: Some(since) } => crate::monotonic().saturating_sub(since),
            // Nothing has come back since the start, or it has just now.
            _ => std::time::Duration::ZERO,
        };
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        (crate::now_ms() - ago).max(1)
    }
}
