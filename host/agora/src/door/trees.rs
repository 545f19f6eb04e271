//! Tells the other hosts of the realm what the log was here, and compares what they tell.
//!
//! Promise: while entries arrive and the realm has several hosts, each says now and then, in the log, how many places it has judged and the
//! root over them; each that reads it compares. Notes of this kind don't count as something that arrives, so that hosts that have nothing
//! to tell are quiet.
//! Failure: a note that the log doesn't take now is made anew later.

use std::sync::Arc;
use std::time::Instant;

use agora_realm::{Body, NoteBody};

use super::control::Control;
use crate::delivery::forks::Forks;
use crate::limits;

impl Control {
    /// Tells and compares for as long as this host runs.
    pub async fn compare_trees(self: Arc<Self>, forks: Arc<Forks>) {
        let mut ticks = tokio::time::interval(limits::TREES_COMPARED_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut told_at, mut told) = (Instant::now(), 0);
        loop {
            ticks.tick().await;
            self.compare_told(&forks).await;
            let arrived = self.record().arrived();
            let is_due = arrived > told
                && (told_at.elapsed() >= limits::TREE_TOLD_EVERY
                    || arrived - told >= limits::TREE_TOLD_EVERY_ENTRIES);
            if !is_due || !self.has_company() {
                continue;
            }
            let (size, root) = self.record().tree().now();
            match self.decide(Body::Note(NoteBody::Tree { size, root })).await {
                Ok(_) => (told_at, told) = (Instant::now(), arrived),
                Err(error) => tracing::debug!("the others are not told what the log was: {error}"),
            }
        }
    }

    async fn compare_told(&self, forks: &Forks) {
        for (host, told) in self.record().trees_told() {
            if host == self.host_id() {
                continue;
            }
            match forks.compare(self.record().tree(), host, told).await {
                Ok(true) => tracing::debug!("host {} has the same log", host.short()),
                Ok(false) => {}
                Err(error) => tracing::error!(
                    "whether host {} has the same log can't be told: {error}",
                    host.short()
                ),
            }
        }
    }

    /// Whether this host and others are in the realm.
    fn has_company(&self) -> bool {
        let state = self.record().state();
        let standing = state.hosts().filter(|(_, host)| !host.revoked);
        let (mut others, mut me) = (0, false);
        for (id, _) in standing {
            match *id == self.host_id() {
                true => me = true,
                false => others += 1,
            }
        }
        me && others > 0
    }
}
