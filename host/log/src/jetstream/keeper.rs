//! Asks the stream now and then how far and how full it is, and whether it is still the same.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::shared::Shared;
use crate::{LogError, limits};

/// Runs until the log is closed, dropped or diverged.
pub(super) async fn keep(shared: Weak<Shared>) {
    let Some((mut readers, mut closed)) = shared
        .upgrade()
        .map(|shared| (shared.links.readers.subscribe(), shared.closed.subscribe()))
    else {
        return;
    };
    readers.mark_unchanged();
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let news = async {
                tokio::select! {
                    changed = readers.changed() => changed.is_ok(),
                    () = shared.budget.stale.notified() => true,
                    _ = closed.wait_for(|closed| *closed) => false,
                }
            };
            let every = Duration::from_millis(limits::INFO_EVERY_MS);
            if timeout(every, news).await == Ok(false) {
                return;
            }
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match verify(&shared).await {
            Ok(()) => {}
            Err(LogError::Diverged { .. }) => return,
            Err(error) => tracing::debug!("the stream can't be looked after now: {error}"),
        }
        drop(shared);
        sleep(Duration::from_millis(limits::INFO_PAUSE_MS)).await;
    }
}

async fn verify(shared: &Arc<Shared>) -> Result<(), LogError> {
    shared.verify(&shared.reader).await.map(drop)
}
