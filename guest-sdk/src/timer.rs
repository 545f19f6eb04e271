//! Time, for an agent that was granted it.

use std::time::Duration;

use agora_capnp::timer_capnp::timer;

use crate::error::Error;

/// The host's clock and alarm.
#[derive(Clone)]
pub struct Timer {
    pub(crate) client: timer::Client,
}

impl Timer {
    /// The host's clock, in milliseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// Stale after the epoch's end.
    pub async fn now_ms(&self) -> Result<i64, Error> {
        let response = self.client.now_request().send().promise.await?;
        Ok(response.get()?.get_unix_ms())
    }

    /// Answers after at least `duration` (at most a day). Dropping the future cancels it.
    ///
    /// # Errors
    /// Stale after the epoch's end; busy when 64 are pending; denied over a day.
    pub async fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let mut request = self.client.sleep_request();
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        request.get().set_ms(ms);
        request.send().promise.await?;
        Ok(())
    }
}
