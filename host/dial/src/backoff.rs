//! How long to wait before the next dial: doubling, bounded, and never the same on two hosts.

use std::time::Duration;

/// A small generator for jitter; nothing secret comes from it.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The waits between one lane's dials.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min_ms: u64,
    max_ms: u64,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    pub(crate) fn new(min_ms: u64, max_ms: u64, jitter: Jitter) -> Self {
        let min_ms = min_ms.max(1);
        Self {
            min_ms,
            max_ms: max_ms.max(min_ms),
            failures: 0,
            jitter,
        }
    }

    /// The wait after one more failure: between half of the doubled time and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let doubled = self
            .min_ms
            .saturating_mul(1u64.checked_shl(self.failures.min(32)).unwrap_or(u64::MAX));
        let whole = doubled.min(self.max_ms);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        Duration::from_millis(half + self.jitter.next() % (whole - half + 1))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds_and_begin_anew() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(500, 60_000, Jitter::new(seed));
            let mut whole = 500;
            for _ in 0..100 {
                let wait = backoff.next().as_millis() as u64;
                assert!(wait >= whole / 2 && wait <= whole, "{wait} beside {whole}");
                whole = (whole * 2).min(60_000);
            }
            backoff.reset();
            assert!(backoff.next().as_millis() <= 500);
        }
    }

    #[test]
    fn a_seed_repeats_its_waits_and_two_seeds_differ() {
        let waits = |seed| {
            let mut backoff = Backoff::new(500, 60_000, Jitter::new(seed));
            (0..8).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }
}
