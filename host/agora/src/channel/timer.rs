//! Time, for whom it was granted.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agora_capnp::timer_capnp::timer;
use agora_membrane::error;
use capnp::Error;

use crate::channel::speak::Counted;
use crate::door::control::Control;
use crate::limits;

/// One agent's timer.
pub struct Timer {
    control: Arc<Control>,
    sleeping: Rc<Cell<usize>>,
}

impl Timer {
    /// A timer with nothing pending.
    pub fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            sleeping: Rc::default(),
        }
    }
}

struct Sleeping(
    Rc<Cell<usize>>,
    #[expect(dead_code, reason = "counts while it lives")] Counted,
);

impl Drop for Sleeping {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl timer::Server for Timer {
    async fn now(
        self: Rc<Self>,
        _params: timer::NowParams,
        mut results: timer::NowResults,
    ) -> Result<(), Error> {
        results.get().set_unix_ms(crate::now_ms());
        Ok(())
    }

    async fn sleep(
        self: Rc<Self>,
        params: timer::SleepParams,
        _results: timer::SleepResults,
    ) -> Result<(), Error> {
        let duration = Duration::from_millis(params.get()?.get_ms());
        if duration > limits::SLEEP_MAX {
            return Err(error::denied("a sleep of over a day"));
        }
        if self.sleeping.get() >= limits::SLEEPS_MAX {
            return Err(error::busy(&format!(
                "{} sleeps are pending; that is all an agent may have",
                limits::SLEEPS_MAX
            )));
        }
        self.sleeping.set(self.sleeping.get() + 1);
        let _sleeping = Sleeping(self.sleeping.clone(), self.control.busy());
        tokio::time::sleep(duration).await;
        Ok(())
    }
}
