//! Counts what may come in a while.

use tokio::time::Instant;

/// So many at once, and so many per second in the long run.
#[derive(Debug)]
pub(crate) struct Bucket {
    burst: f64,
    per_s: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(burst: u32, per_s: u32) -> Self {
        Self {
            burst: f64::from(burst),
            per_s: f64::from(per_s),
            left: f64::from(burst),
            at: Instant::now(),
        }
    }

    /// Whether one more may come.
    pub(crate) fn take(&mut self) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * self.per_s;
        self.left = (self.left + earned).min(self.burst);
        self.at = now;
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }
}
