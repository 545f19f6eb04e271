//! Yamux over TCP, with bounds that libp2p's own adapter doesn't let be set: what may be unread, and how long closing takes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Ready,
    iter,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::{
    muxing::{StreamMuxer, StreamMuxerEvent},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};
use tokio::time::Sleep;
use yamux::{Connection, ConnectionError, Mode};

use crate::{bucket::Bucket, counted::flooded, limits};

/// The upgrade of a secured connection.
#[derive(Debug, Clone)]
pub(crate) struct Yamux;

impl Yamux {
    fn over<C: AsyncRead + AsyncWrite + Unpin>(self, io: C, mode: Mode) -> Muxer<C> {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(limits::MUXER_STREAMS_MAX);
        config.set_max_connection_receive_window(Some(limits::RECEIVE_WINDOW_BYTES));
        Muxer {
            connection: Connection::new(io, config, mode),
            waiting: VecDeque::new(),
            waker: None,
            bucket: Bucket::new(limits::STREAMS_RAW_BURST, limits::STREAMS_RAW_PER_S),
            closing: None,
        }
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        std::future::ready(Ok(self.over(io, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        std::future::ready(Ok(self.over(io, Mode::Client)))
    }
}

pub(crate) struct Muxer<C> {
    connection: Connection<C>,
    /// Streams that came while only existing ones were to make progress.
    waiting: VecDeque<yamux::Stream>,
    waker: Option<Waker>,
    /// Every stream of the peer, whatever becomes of it.
    bucket: Bucket,
    closing: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, ConnectionError>> {
        match self.connection.poll_next_inbound(cx) {
            Poll::Ready(Some(Ok(_))) if !self.bucket.take() => {
                Poll::Ready(Err(ConnectionError::Io(flooded())))
            }
            Poll::Ready(Some(stream)) => Poll::Ready(stream),
            Poll::Ready(None) => Poll::Ready(Err(ConnectionError::Closed)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        if let Some(stream) = self.waiting.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let next = self.next(cx);
        if next.is_pending() {
            self.waker = Some(cx.waker().clone());
        }
        next
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        self.connection.poll_new_outbound(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if let Poll::Ready(closed) = self.connection.poll_close(cx) {
            return Poll::Ready(closed);
        }
        // A peer that reads nothing would hold the connection, and all that is buffered for it, for as long as it liked.
        let patience = self.closing.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep(Duration::from_millis(
                limits::CLOSE_PATIENCE_MS,
            )))
        });
        patience.poll_unpin(cx).map(Ok)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let stream = match self.next(cx) {
            Poll::Ready(stream) => stream?,
            Poll::Pending => return Poll::Pending,
        };
        // Beyond its bound the stream is dropped here, which resets it.
        if self.waiting.len() < limits::MUXER_WAITING_IN_MAX {
            self.waiting.push_back(stream);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
