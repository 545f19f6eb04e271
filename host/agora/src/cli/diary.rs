//! The host's diary: lines to standard error that nobody waits for.
//!
//! Promise: whoever writes goes on at once, also while standard error is a terminal that was stopped or a pipe that nobody reads: agents'
//! threads write here, and a kill must not wait for them.
//! Failure: lines that find the queue full are dropped, and counted once there is room again.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::limits;

enum Item {
    Line(Vec<u8>),
    /// Everything before this is to be out; answered then.
    Flush(SyncSender<()>),
}

/// The diary. Clones write to the same one.
#[derive(Clone)]
pub(super) struct Diary {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

static DIARY: OnceLock<Diary> = OnceLock::new();

impl Diary {
    /// Opens the one diary of this process.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(super) fn open() -> std::io::Result<Self> {
        if let Some(diary) = DIARY.get() {
            return Ok(diary.clone());
        }
        let (items, written) = sync_channel(limits::DIARY_LINES_WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let missed = dropped.clone();
        std::thread::Builder::new()
            .name("agora-diary".into())
            .spawn(move || write_all(&written, &missed))?;
        let diary = Self { items, dropped };
        Ok(DIARY.get_or_init(|| diary).clone())
    }

    /// Writes a line.
    pub(super) fn line(text: &str) {
        if let Some(diary) = DIARY.get() {
            let _ = diary.clone().write(format!("{text}\n").as_bytes());
        }
    }

    /// Waits for what was written, but not for long.
    pub(super) fn flush() {
        let Some(diary) = DIARY.get() else {
            return;
        };
        let (done, flushed) = sync_channel(1);
        if diary.items.try_send(Item::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(Duration::from_millis(200));
        }
    }
}

fn write_all(items: &Receiver<Item>, dropped: &AtomicU64) {
    let mut err = std::io::stderr();
    while let Ok(item) = items.recv() {
        // Nobody may be reading; the host goes on.
        match item {
            Item::Line(line) => {
                let _ = err.write_all(&line);
            }
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            n => {
                let _ = writeln!(err, "({n} lines came faster than they could be written)");
            }
        }
    }
}

impl Write for Diary {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.items.try_send(Item::Line(bytes.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
