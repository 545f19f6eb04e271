//! Bytes both ways, counted; and the end of them from elsewhere.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;

use crate::{Lane, Standing, status::Meter};

/// A stream that the peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// Who opened it, as proved by its connection.
    pub peer: PeerId,
    /// What the peer is here.
    pub standing: Standing,
    /// For what.
    pub lane: Lane,
    /// The stream.
    pub stream: Stream,
}

/// A place among the streams that may be open; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    count: Arc<AtomicUsize>,
    meter: Arc<Meter>,
    inbound: bool,
}

impl Permit {
    /// A place, unless `max` are taken.
    pub(crate) fn take(
        count: &Arc<AtomicUsize>,
        max: usize,
        meter: &Arc<Meter>,
        inbound: bool,
    ) -> Option<Permit> {
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < max).then_some(taken + 1)
            })
            .ok()?;
        let gauge = if inbound {
            &meter.streams_in
        } else {
            &meter.streams_out
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        Some(Permit {
            count: count.clone(),
            meter: meter.clone(),
            inbound,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        let gauge = if self.inbound {
            &self.meter.streams_in
        } else {
            &self.meter.streams_out
        };
        gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Live {
    bytes: libp2p::Stream,
    _permit: Permit,
    waiting: Waiting,
}

#[derive(Debug)]
pub(crate) struct Line {
    live: Mutex<Option<Live>>,
    meter: Arc<Meter>,
}

impl Line {
    /// A panic while it was held leaves nothing half done: what is inside is only polled.
    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cut(&self) {
        let gone = self.live().take();
        if let Some(Live { waiting, bytes, .. }) = gone {
            drop(bytes);
            waiting
                .reader
                .into_iter()
                .chain(waiting.writer)
                .for_each(Waker::wake);
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the stream was hung up, or its connection ended",
    )
}

/// Bytes both ways with a peer. Dropping it resets it. An end of what can be read says only that nothing more comes: over
/// TCP, a peer's reset and a lost connection may look like that. So what is carried must say by itself when it is complete.
#[derive(Debug)]
pub struct Stream {
    line: Arc<Line>,
}

impl Stream {
    pub(crate) fn new(bytes: libp2p::Stream, permit: Permit, meter: Arc<Meter>) -> Self {
        let live = Live {
            bytes,
            _permit: permit,
            waiting: Waiting::default(),
        };
        Self {
            line: Arc::new(Line {
                live: Mutex::new(Some(live)),
                meter,
            }),
        }
    }

    pub(crate) fn line(&self) -> Weak<Line> {
        Arc::downgrade(&self.line)
    }

    /// What ends this stream from elsewhere.
    pub fn hang_up(&self) -> HangUp {
        HangUp {
            line: Arc::downgrade(&self.line),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.line.cut();
    }
}

/// Ends a stream from elsewhere. Holds nothing open.
#[derive(Debug, Clone)]
pub struct HangUp {
    line: Weak<Line>,
}

impl HangUp {
    /// Ends it now: its buffers are dropped, and reads and writes under way fail as aborted.
    pub fn cut(&self) {
        if let Some(line) = self.line.upgrade() {
            line.cut();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut live = self.line.live();
        let Some(open) = live.as_mut() else {
            return Poll::Ready(Err(cut()));
        };
        let read = Pin::new(&mut open.bytes).poll_read(cx, buf);
        match &read {
            Poll::Pending => open.waiting.reader = Some(cx.waker().clone()),
            Poll::Ready(Ok(count)) => {
                self.line
                    .meter
                    .bytes_in
                    .fetch_add(*count as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
        }
        read
    }
}

impl Stream {
    fn write_side<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut libp2p::Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut live = self.line.live();
        let Some(open) = live.as_mut() else {
            return Poll::Ready(Err(cut()));
        };
        let done = poll(Pin::new(&mut open.bytes), cx);
        if done.is_pending() {
            open.waiting.writer = Some(cx.waker().clone());
        }
        done
    }

    fn written(&self, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = done {
            self.line
                .meter
                .bytes_out
                .fetch_add(count as u64, Ordering::Relaxed);
        }
        done
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written(self.write_side(cx, |bytes, cx| bytes.poll_write(cx, buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written(self.write_side(cx, |bytes, cx| bytes.poll_write_vectored(cx, bufs)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_side(cx, |bytes, cx| bytes.poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_side(cx, |bytes, cx| bytes.poll_close(cx))
    }
}
