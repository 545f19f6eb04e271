//! What an agent writes to its standard output and error: lines in the host's log, under its name.
//!
//! Promise: writing never fails and never waits; long lines are cut, and lines beyond the rate are counted and dropped, unread.
//! Failure: a write of more than was offered traps.

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
    fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        self.begin_window();
        while !bytes.is_empty() {
            if self.kept == limits::LINES_PER_SECOND {
                return self.drop_lines(stream, bytes);
            }
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.extend_partial(stream, &bytes[..end]);
                    let line = std::mem::take(&mut self.partial[stream]);
                    self.line(stream, &line);
                    bytes = &bytes[end + 1..];
                }
                None => return self.extend_partial(stream, bytes),
            }
        }
    }

    fn extend_partial(&mut self, stream: usize, text: &[u8]) {
        let partial = &mut self.partial[stream];
        let room = limits::LINE_BYTES_MAX - partial.len();
        partial.extend_from_slice(&text[..text.len().min(room)]);
    }

    fn begin_window(&mut self) {
        if self.window.elapsed() < Duration::from_secs(1) {
            return;
        }
        if self.dropped > 0 {
            tracing::warn!(agent = %self.name, "{} lines of output dropped", self.dropped);
        }
        self.window = Instant::now();
        self.kept = 0;
        self.dropped = 0;
    }

    /// Counts lines over the rate without reading them; only what may be a panic's last line is kept.
    fn drop_lines(&mut self, stream: usize, bytes: &[u8]) {
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            return self.extend_partial(stream, bytes);
        };
        let (lines, rest) = (&bytes[..end], &bytes[end + 1..]);
        let breaks = lines.iter().filter(|byte| **byte == b'\n').count();
        self.dropped += breaks as u64 + 1;
        if stream == 1 {
            let first = lines.iter().position(|byte| *byte == b'\n');
            let (first, later) = lines.split_at(first.unwrap_or(lines.len()));
            self.extend_partial(stream, first);
            let begun = std::mem::take(&mut self.partial[stream]);
            let telling = later.rsplit(|byte| *byte == b'\n').find(|line| tells(line));
            match telling {
                Some(line) => self.last_error = decode(line),
                None if tells(&begun) => self.last_error = decode(&begun),
                None => {}
            }
        }
        self.partial[stream].clear();
        self.extend_partial(stream, rest);
    }

    fn line(&mut self, stream: usize, line: &[u8]) {
        let text = decode(line);
        if stream == 1 && tells(line) {
            self.last_error = text.clone();
        }
        self.kept += 1;
        match stream {
            0 => tracing::info!(target: "agora::agent", agent = %self.name, "{text}"),
            _ => tracing::warn!(target: "agora::agent", agent = %self.name, "{text}"),
        }
    }
}

/// Whether a line of standard error may say why an agent ended.
fn tells(line: &[u8]) -> bool {
    !line.trim_ascii().is_empty() && !line.starts_with(b"note: ")
}

fn decode(line: &[u8]) -> String {
    let kept = &line[..line.len().min(limits::LINE_BYTES_MAX)];
    crate::cli::show::escape(&String::from_utf8_lossy(kept))
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
        if bytes.len() > limits::WRITE_BYTES_MAX {
            return Err(StreamError::trap(&format!(
                "wrote {} bytes of output at once; {} are allowed",
                bytes.len(),
                limits::WRITE_BYTES_MAX
            )));
        }
        self.0.lines().write(self.1, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(limits::WRITE_BYTES_MAX)
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
        let taken = bytes.len().min(limits::WRITE_BYTES_MAX);
        self.0.lines().write(self.1, &bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> Output {
        Output::new("a".parse().expect("a name"))
    }

    #[test]
    fn over_the_rate_lines_are_counted_and_the_last_error_is_still_known() {
        let output = output();
        let mut lines = output.lines();
        lines.window = Instant::now() + Duration::from_secs(3600);
        lines.write(0, &b"x\n".repeat(1000));
        assert_eq!((lines.kept, lines.dropped), (200, 800));
        lines.write(1, b"pani");
        lines.write(1, b"cked\nnote: run\n\nrest");
        assert_eq!(lines.dropped, 803);
        assert_eq!(lines.last_error, "panicked");
        assert_eq!(lines.partial[1], b"rest");
        lines.write(1, b" of it\nlater\n");
        assert_eq!(lines.last_error, "later");
        lines.write(1, &[b'y'; 10_000]);
        lines.write(1, b"\n");
        assert_eq!(lines.last_error.len(), limits::LINE_BYTES_MAX);
    }

    #[test]
    fn a_write_past_what_was_offered_traps() {
        let mut stream = Stream(output(), 0);
        let most = stream.check_write().expect("output is always taken");
        assert!(OutputStream::write(&mut stream, vec![b'x'; most].into()).is_ok());
        let over = OutputStream::write(&mut stream, vec![b'x'; most + 1].into());
        assert!(matches!(over, Err(StreamError::Trap(_))));
    }
}
