//! How many entries another host may make this one write, besides messages: keys of its guests, and grants below its own.
//!
//! Promise: however many connections, grafts and epochs it goes through, it causes no more than a burst and so many a second.
//! Failure: whoever is over it is told to wait; nothing is written.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agora_membrane::error;

/// A bucket of entries, full at first.
#[derive(Debug)]
pub struct Allowance {
    burst: u32,
    per_s: u32,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// In thousandths of an entry.
    level: u64,
    filled: Duration,
}

impl Allowance {
    /// So many at once, and so many a second in the long run.
    pub fn new(burst: u32, per_s: u32) -> Self {
        Self {
            burst,
            per_s,
            bucket: Mutex::new(Bucket {
                level: u64::from(burst) * 1000,
                filled: crate::monotonic(),
            }),
        }
    }

    /// Draws one entry.
    ///
    /// # Errors
    /// Busy, when there is none now.
    pub fn draw(&self) -> Result<(), capnp::Error> {
        match self.draw_at(crate::monotonic()) {
            true => Ok(()),
            false => Err(error::busy(&format!(
                "this peer has had this host write {} keys and grants at once, and may have {} more a second; wait",
                self.burst, self.per_s
            ))),
        }
    }

    fn draw_at(&self, now: Duration) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_sub(bucket.filled).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        if passed > 0 {
            // What is less than a millisecond counts the next time.
            bucket.filled += Duration::from_millis(passed);
            let more = passed.saturating_mul(u64::from(self.per_s));
            let full = u64::from(self.burst) * 1000;
            bucket.level = full.min(bucket.level.saturating_add(more));
        }
        let there_is_one = bucket.level >= 1000;
        if there_is_one {
            bucket.level -= 1000;
        }
        there_is_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let allowance = Allowance::new(3, 2);
        let began = crate::monotonic() + Duration::from_secs(1);
        let drawn = |at_ms: u64| {
            let at = began + Duration::from_millis(at_ms);
            (0..10).filter(|_| allowance.draw_at(at)).count()
        };
        assert_eq!(drawn(0), 3);
        assert_eq!(drawn(499), 0);
        assert_eq!(drawn(500), 1);
        assert_eq!(drawn(100), 0, "time that goes back gives nothing");
        assert_eq!(drawn(1_000_000), 3, "no more than full");
    }
}
