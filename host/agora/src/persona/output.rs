//! What an agent writes to its standard output and error: lines in the host's log, under its name.
//!
//! Promise: writing never fails and never waits; long lines are cut, and lines beyond the rate are counted and dropped.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agora_realm::PersonaName;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};

use crate::limits;

/// The most bytes of one write; it is on the vat's thread that they become lines.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// The output of one agent. Clones are the same one.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Lines>>);

struct Lines {
    name: PersonaName,
    partial: [Vec<u8>; 2],
    window: Instant,
    kept: u32,
    dropped: u64,
    last_error: String,
}

/// 0: standard output; 1: standard error.
#[derive(Clone)]
struct Stream(Output, usize);

impl Output {
    /// Output of the agent of this name.
    pub fn new(name: PersonaName) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            name,
            partial: Default::default(),
            window: Instant::now(),
            kept: 0,
            dropped: 0,
            last_error: String::new(),
        })))
    }

    pub(super) fn stdout(&self) -> impl StdoutStream + 'static {
        Stream(self.clone(), 0)
    }

    pub(super) fn stderr(&self) -> impl StdoutStream + 'static {
        Stream(self.clone(), 1)
    }

    /// The last line written to standard error: what a panic said.
    pub fn last_error(&self) -> String {
        self.lines().last_error.clone()
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn write(&mut self, stream: usize, bytes: &[u8]) {
        for chunk in bytes.split_inclusive(|byte| *byte == b'\n') {
            let partial = &mut self.partial[stream];
            let room = limits::LINE_BYTES_MAX - partial.len();
            let (text, ends) = match chunk.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (chunk, false),
            };
            partial.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                let line = std::mem::take(partial);
                self.line(stream, &line);
            }
        }
    }

    fn line(&mut self, stream: usize, line: &[u8]) {
        let text = crate::cli::show::escape(&String::from_utf8_lossy(line));
        if stream == 1 && !text.trim().is_empty() && !text.starts_with("note: ") {
            self.last_error = text.clone();
        }
        if self.window.elapsed() >= Duration::from_secs(1) {
            if self.dropped > 0 {
                tracing::warn!(agent = %self.name, "{} lines of output dropped", self.dropped);
            }
            self.window = Instant::now();
            self.kept = 0;
            self.dropped = 0;
        }
        if self.kept == limits::LINES_PER_SECOND {
            self.dropped += 1;
            return;
        }
        self.kept += 1;
        match stream {
            0 => tracing::info!(target: "agora::agent", agent = %self.name, "{text}"),
            _ => tracing::warn!(target: "agora::agent", agent = %self.name, "{text}"),
        }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap(
                "more was written than check-write allows",
            ));
        }
        self.0.lines().write(self.1, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.lines().write(self.1, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
