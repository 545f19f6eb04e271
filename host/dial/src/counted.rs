//! Counts the streams that a peer opens on a connection, before anything is negotiated on them: one that opens streams and
//! resets them, and does nothing else, loses its connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use libp2p::core::muxing::{
    StreamMuxer, StreamMuxerBox, StreamMuxerEvent, StreamMuxerExt, SubstreamBox,
};

use crate::{bucket::Bucket, limits};

/// Why such a connection ends.
pub(crate) fn flooded() -> io::Error {
    io::Error::other("it opened streams faster than any host does")
}

/// A connection over QUIC; one over TCP counts in its own muxer, which drops some of the streams itself.
pub(crate) struct Counted {
    inner: StreamMuxerBox,
    bucket: Bucket,
}

impl Counted {
    pub(crate) fn new(inner: StreamMuxerBox) -> Self {
        Self {
            inner,
            bucket: Bucket::new(limits::STREAMS_RAW_BURST, limits::STREAMS_RAW_PER_S),
        }
    }
}

impl StreamMuxer for Counted {
    type Substream = SubstreamBox;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<SubstreamBox>> {
        let stream = self.inner.poll_inbound_unpin(cx);
        if matches!(stream, Poll::Ready(Ok(_))) && !self.bucket.take() {
            return Poll::Ready(Err(flooded()));
        }
        stream
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<SubstreamBox>> {
        self.inner.poll_outbound_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_close_unpin(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.inner.poll_unpin(cx)
    }
}
