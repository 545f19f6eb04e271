//! Bytes both ways between two ends on one thread, in place of a stream to a peer.
//!
//! In: bytes. Out: the same, in order, at the other end. Promise: what is written as a stream is bounded, as a network's buffers are; what is
//! [pushed](Pipe::push) is not. Failure: once either end is cut or dropped, nothing more comes, and nothing more is taken.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures::{AsyncRead, AsyncWrite};

use crate::peer::vat::Road;

/// Bytes that may wait in one direction.
const WAITING_MAX: usize = 256 << 10;

#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct Shared {
    /// By the end that writes.
    ways: [Way; 2],
    is_cut: bool,
}

impl Shared {
    fn cut(&mut self) -> Vec<Waker> {
        self.is_cut = true;
        let ways = self.ways.iter_mut();
        ways.flat_map(|way| {
            way.bytes = VecDeque::new();
            [way.reader.take(), way.writer.take()]
        })
        .flatten()
        .collect()
    }
}

/// One end.
pub struct Pipe {
    shared: Rc<RefCell<Shared>>,
    end: usize,
}

/// Two ends.
pub fn pipe() -> (Pipe, Pipe) {
    let shared = Rc::<RefCell<Shared>>::default();
    let end = |end| Pipe {
        shared: shared.clone(),
        end,
    };
    (end(0), end(1))
}

impl Pipe {
    /// Hands bytes over, however many wait. Says whether the other end is there.
    pub fn push(&self, bytes: &[u8]) -> bool {
        let mut shared = self.shared.borrow_mut();
        if shared.is_cut {
            return false;
        }
        let way = &mut shared.ways[self.end];
        way.bytes.extend(bytes);
        let reader = way.reader.take();
        drop(shared);
        reader.into_iter().for_each(Waker::wake);
        true
    }

    /// What has come.
    pub fn take(&self) -> Vec<u8> {
        let mut shared = self.shared.borrow_mut();
        let way = &mut shared.ways[1 - self.end];
        let bytes = way.bytes.drain(..).collect();
        let writer = way.writer.take();
        drop(shared);
        writer.into_iter().for_each(Waker::wake);
        bytes
    }

    /// Answers once something has come, or nothing more will.
    pub async fn until_some(&self) {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            if shared.is_cut || !shared.ways[1 - self.end].bytes.is_empty() {
                return Poll::Ready(());
            }
            shared.ways[1 - self.end].reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// How many bytes the other end has not taken.
    pub fn untaken(&self) -> usize {
        self.shared.borrow().ways[self.end].bytes.len()
    }

    /// Whether either end was cut.
    pub fn is_cut(&self) -> bool {
        self.shared.borrow().is_cut
    }
}

fn cut(shared: &RefCell<Shared>) {
    let wakers = shared.borrow_mut().cut();
    wakers.into_iter().for_each(Waker::wake);
}

impl Drop for Pipe {
    fn drop(&mut self) {
        cut(&self.shared);
    }
}

impl Road for Pipe {
    fn hang_up(&self) -> Rc<dyn Fn()> {
        let shared = Rc::downgrade(&self.shared);
        Rc::new(move || {
            if let Some(shared) = shared.upgrade() {
                cut(&shared);
            }
        })
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_cut {
            return Poll::Ready(Ok(0));
        }
        let way = &mut shared.ways[1 - self.end];
        let count = way.bytes.len().min(to.len());
        if count == 0 {
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for (to, byte) in to.iter_mut().zip(way.bytes.drain(..count)) {
            *to = byte;
        }
        let writer = way.writer.take();
        drop(shared);
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let way = &mut shared.ways[self.end];
        let count = WAITING_MAX.saturating_sub(way.bytes.len()).min(from.len());
        if count == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        way.bytes.extend(&from[..count]);
        let reader = way.reader.take();
        drop(shared);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        cut(&self.shared);
        Poll::Ready(Ok(()))
    }
}
