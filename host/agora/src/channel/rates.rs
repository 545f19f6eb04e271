//! How fast grants are used: token buckets, and the clock's part of the terms.
//!
//! Promise: one message draws a token of its grant and of every grant above it, or of none; so a tree of delegates is no faster than
//! its root. Rates are admission at the author's host and are not judged again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use agora_realm::{GrantId, Rate, Refusal, State};

struct Bucket {
    /// In tokens times the rate's period, so that nothing is rounded away.
    level: u64,
    filled_ms: i64,
}

impl Bucket {
    fn refill(&mut self, rate: &Rate, now: i64) {
        let full = u64::from(rate.messages()) * u64::from(rate.per_ms());
        // A clock set back refills nothing, and one set forward no more than a full bucket.
        let passed = now.saturating_sub(self.filled_ms).max(0) as u64;
        self.level = full.min(
            self.level
                .saturating_add(passed.saturating_mul(u64::from(rate.messages()))),
        );
        self.filled_ms = now;
    }
}

/// The buckets of all grants that have a rate.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<GrantId, Bucket>>);

impl Rates {
    /// Draws one message under a grant, at a time in milliseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`Refusal::Expired`] past the terms' until; [`Refusal::RateLimited`] over a rate.
    pub fn draw(&self, state: &State, grant: &GrantId, now: i64) -> Result<(), Refusal> {
        let mut limited = Vec::new();
        let mut next = Some(*grant);
        while let Some(id) = next {
            let grant = state.grant(&id).ok_or(Refusal::Revoked)?;
            if now > grant.terms.until_ms {
                return Err(Refusal::Expired);
            }
            if let Some(rate) = grant.terms.rate {
                limited.push((id, rate));
            }
            next = grant.parent;
        }
        if limited.is_empty() {
            return Ok(());
        }
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > agora_realm::limits::PERSONAS_MAX {
            buckets.retain(|id, _| state.grant(id).is_some());
        }
        for (id, rate) in &limited {
            let bucket = buckets.entry(*id).or_insert(Bucket {
                level: u64::from(rate.messages()) * u64::from(rate.per_ms()),
                filled_ms: now,
            });
            bucket.refill(rate, now);
            if bucket.level < u64::from(rate.per_ms()) {
                return Err(Refusal::RateLimited);
            }
        }
        for (id, rate) in &limited {
            if let Some(bucket) = buckets.get_mut(id) {
                bucket.level -= u64::from(rate.per_ms());
            }
        }
        Ok(())
    }
}

impl Rates {
    /// Gives back what was drawn for messages that did not come to be.
    pub fn give_back(&self, state: &State, grant: &GrantId, messages: usize) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Some(*grant);
        while let Some(id) = next {
            let Some(grant) = state.grant(&id) else {
                return;
            };
            if let (Some(rate), Some(bucket)) = (grant.terms.rate, buckets.get_mut(&id)) {
                let full = u64::from(rate.messages()) * u64::from(rate.per_ms());
                let back = u64::from(rate.per_ms()).saturating_mul(messages as u64);
                bucket.level = full.min(bucket.level.saturating_add(back));
            }
            next = grant.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_one_period_and_refills_evenly() {
        let rate = Rate::new(5, 1000).unwrap();
        let mut bucket = Bucket {
            level: 0,
            filled_ms: 0,
        };
        bucket.refill(&rate, 200);
        assert_eq!(bucket.level, 1000, "one token after a fifth of the period");
        bucket.refill(&rate, 100);
        assert_eq!(bucket.level, 1000, "a clock set back refills nothing");
        bucket.refill(&rate, 1_000_000);
        assert_eq!(bucket.level, 5000, "no more than full");
    }
}
