//! What other hosts of the realm decide, done here.
//!
//! In: the record's news. Out: walls felled, agents ended, the gate set to the epoch that is.
//! Promise: a fence, a kill or a revocation that any host put in the log acts on this host's agents as its own would. What passes the walls
//! meanwhile is judged void, since it stands behind; this cuts what acts outside the log.
//! Failure: news that were missed are made up for by comparing with the state.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use agora_realm::{Body, Change, PersonaId};
use tokio::sync::broadcast::error::RecvError;

use super::control::Control;
use crate::delivery::record::Settled;
use crate::persona::agent::Phase;

impl Control {
    /// Heeds the other hosts for as long as this one runs.
    pub async fn heed_others(self: Arc<Self>) {
        let mut news = self.record().news();
        // What came by before anybody listened.
        self.heed_all().await;
        loop {
            match news.recv().await {
                Ok(settled) => {
                    self.heed(&settled).await;
                    let kept = self.kept_through();
                    // Behind something that was missed, this one is looked at again.
                    let next = settled.seq.saturating_sub(1);
                    let _ = kept.compare_exchange(
                        next,
                        settled.seq,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
                Err(RecvError::Lagged(_)) => self.heed_all().await,
                Err(RecvError::Closed) => return,
            }
            self.hear_again();
        }
    }

    async fn heed(self: &Arc<Self>, settled: &Settled) {
        let Ok(sealed) = &settled.sealed else {
            return;
        };
        let by = sealed.entry().host;
        // What this host decided it has done already.
        if by == self.host_id() || settled.judged.verdict.is_err() {
            return;
        }
        let (mut cut, mut killed) = (false, false);
        for change in &settled.judged.changes {
            match change {
                Change::Fenced { .. } => self.heed_fence().await,
                Change::PersonaKilled { persona } => {
                    let why = format!("by host {}", by.short());
                    self.heed_kill(persona, &why).await;
                    killed = true;
                }
                Change::GrantRevoked { .. } => cut = true,
                Change::HostRevoked { host } if *host == self.host_id() => {
                    self.heed_revocation().await;
                }
                _ => {}
            }
        }
        if cut {
            self.cut_revoked("a grant was revoked by another host")
                .await;
        }
        if cut || killed {
            self.withhold_soon();
        }
        if let Body::Revoke(_) = &sealed.entry().body {
            self.keep_own(sealed).await;
        }
    }

    async fn heed_all(self: &Arc<Self>) {
        let (epoch, revoked, killed) = {
            let state = self.record().state();
            let personas = state.personas().filter(|(_, persona)| persona.killed);
            let killed: Vec<_> = personas.map(|(id, _)| id.clone()).collect();
            let me = state.host(&self.host_id());
            (state.epoch(), me.is_some_and(|host| host.revoked), killed)
        };
        if self.gate().shown().epoch != epoch {
            self.heed_fence().await;
        }
        for persona in &killed {
            self.heed_kill(persona, "by another host").await;
        }
        if revoked {
            self.heed_revocation().await;
        }
        self.cut_revoked("a grant was revoked by another host")
            .await;
        self.withhold_soon();
        self.keep_missed().await;
    }

    async fn heed_fence(self: &Arc<Self>) {
        self.gate().close();
        self.fell_walls("the epoch has ended by another host; graft again")
            .await;
        self.open_gate();
        // Whoever ended the epoch may wait to hear that it has ended here.
        self.send_marker();
    }

    async fn heed_kill(self: &Arc<Self>, persona: &PersonaId, why: &str) {
        if persona.host == self.host_id()
            && let Ok(agent) = self.agent(persona.name.as_str())
            && !matches!(agent.shared.phase(), Phase::Killed(_))
        {
            self.end_agent(&agent, Phase::Killed(why.to_owned())).await;
        }
        self.heed_foreign_kill(persona).await;
        // What it lent here is suspended or cut.
        self.cut_revoked("the agent that lent this was killed")
            .await;
    }

    /// Nothing that this host says counts any more.
    async fn heed_revocation(self: &Arc<Self>) {
        tracing::error!(
            "this host was revoked from its realm; its agents are cut off and nothing it says counts"
        );
        self.gate().close();
        self.fell_walls("this host was revoked from its realm")
            .await;
    }
}
