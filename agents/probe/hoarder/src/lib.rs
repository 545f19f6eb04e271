//! Keeps everything it ever had, and what others lent it, and tries it again.
//!
//! In: a channel `square` with all rights, and a deputy who lends it `vault`. Out: a report on `square` in each graft.
//!
//! In every graft it makes facets of its own, has the deputy lend it more, listens through each, and lets go of nothing:
//! not the facets, nor their revokers, nor its subscriptions, nor the deputy. In the next graft it calls all of them.
//! What must stop it: the walls of earlier grafts are down, so every one of those calls fails as stale, and nothing is
//! delivered any more.
//!
//! The report reads `hoarder: epoch=2 kept=9 stale=9 worked=0 late=0`. The last two must be 0.

use std::cell::RefCell;

use agora_capnp::channel_capnp::channel;
use agora_desk::desk_capnp::desk;
use agora_guest::prelude::*;
use agora_guest::{Heard, Revoker};

/// Grafts in which it keeps what it gets.
const GRAFTS_MAX: usize = 16;

thread_local! {
    /// Outlives every graft: the function is called again in the same instance.
    static HOARD: RefCell<Vec<Kept>> = RefCell::default();
}

/// What one graft gave.
struct Kept {
    facets: Vec<Channel>,
    revokers: Vec<Revoker>,
    heard: Vec<Heard>,
    deputy: desk::Client,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    kept: usize,
    stale: usize,
    worked: usize,
    late: usize,
}

impl Tally {
    fn count<T>(&mut self, tried: Result<T, Error>) {
        self.kept += 1;
        match tried {
            Err(error) if error.is_stale() => self.stale += 1,
            _ => self.worked += 1,
        }
    }

    fn report(&self, epoch: u64) -> String {
        format!(
            "hoarder: epoch={epoch} kept={} stale={} worked={} late={}",
            self.kept, self.stale, self.worked, self.late
        )
    }
}

/// Tries what it kept, keeps more, and waits for the end.
#[agora_guest::main]
async fn hoarder(graft: Graft) -> Result<(), Error> {
    let square = graft.channel("square")?;
    // Taken out while it is tried: nothing else looks meanwhile.
    let mut hoard = HOARD.take();
    let mut tally = Tally::default();
    for kept in &mut hoard {
        tally = kept.try_all(tally).await;
    }
    let gathered = Kept::gather(&graft, &square).await;
    hoard.truncate(GRAFTS_MAX - 1);
    hoard.extend(gathered);
    HOARD.set(hoard);
    let report = Draft::inform(tally.report(graft.epoch()));
    square.say(report).await??;
    Err(graft.ended().await)
}

impl Kept {
    async fn gather(graft: &Graft, square: &Channel) -> Result<Self, Error> {
        let deputy: desk::Client = graft.capability("deputy")?;
        let mut facets = vec![square.clone()];
        let mut revokers = Vec::new();
        for _ in 0..2 {
            let (facet, revoker) = square.attenuate(&Terms::all()).await?;
            facets.push(facet);
            revokers.push(revoker);
        }
        let mut request = deputy.fetch_request();
        request.get().set_name("vault");
        let fetched = request.send().promise.await?;
        facets.push(Channel::adopt(fetched.get()?.get_channel()?).await?);
        let mut heard = Vec::new();
        for facet in [&facets[0], &facets[3]] {
            heard.push(facet.subscribe().await?);
        }
        Ok(Self {
            facets,
            revokers,
            heard,
            deputy,
        })
    }

    async fn try_all(&mut self, mut tally: Tally) -> Tally {
        // What was delivered while its graft stood is no news.
        for heard in &mut self.heard {
            while heard.try_next().is_some() {}
        }
        for facet in &self.facets {
            tally.count(facet.say(Draft::inform("hoarder: must not count")).await);
            tally.count(facet.history(1, 1).await);
            let kept: channel::Client = facet.client();
            tally.count(agora_desk::hand(&self.deputy, "hoarded", kept).await);
        }
        for revoker in &self.revokers {
            tally.count(revoker.revoke("from the past").await);
        }
        for heard in &mut self.heard {
            tally.late += usize::from(heard.try_next().is_some());
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stale_calls_count_as_stopped() {
        let mut tally = Tally::default();
        tally.count(Ok(()));
        tally.count::<()>(Err(Error::failed("no")));
        assert_eq!(
            tally.report(3),
            "hoarder: epoch=3 kept=2 stale=0 worked=2 late=0"
        );
    }
}
