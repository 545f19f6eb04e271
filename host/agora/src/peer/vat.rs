//! One Cap'n Proto connection over a stream to a peer.
//!
//! In: a stream; what is offered on it, or nothing. Out: calls, both ways.
//! Promise: what the peer sends is bounded as what an agent sends is (`agora_guest::wire`): frames, questions, capabilities, bytes that wait.
//! What it does not take waits up to a bound, past which the connection ends. Dropping a [`Vat`] hangs up and lets go of all that either held.
//! Failure: whatever ends it fails calls in flight as disconnected; [`Vat::ended`] says why.

use std::convert::Infallible;
use std::rc::Rc;

use agora_dial::Stream;
use agora_guest::wire::{self, FRAME_BYTES_MAX, Limits};
use capnp::capability::{Client, FromClientHook};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits;

/// What a connection goes over: a stream to a peer, or what a test has in its place.
pub trait Road: AsyncRead + AsyncWrite + Unpin + 'static {
    /// What ends it from elsewhere.
    fn hang_up(&self) -> Rc<dyn Fn()>;
}

impl Road for Stream {
    fn hang_up(&self) -> Rc<dyn Fn()> {
        let hang_up = Stream::hang_up(self);
        Rc::new(move || hang_up.cut())
    }
}

/// A connection. Lives on the thread it was made on.
pub struct Vat {
    task: tokio::task::JoinHandle<()>,
    over: watch::Receiver<Option<Rc<str>>>,
    hang_up: Rc<dyn Fn()>,
    end: wire::End,
}

impl Drop for Vat {
    fn drop(&mut self) {
        (self.hang_up)();
        self.end.close();
        self.task.abort();
    }
}

impl Vat {
    /// Offers a capability on a stream that the peer opened. The wire's end is known to `offer` beforehand, to see how much waits on it.
    pub fn serve(
        stream: impl Road,
        limits: Limits,
        offer: impl FnOnce(wire::End) -> Client,
    ) -> Self {
        let (near, far) = wire::pair(limits);
        let bootstrap = offer(near.clone());
        let system = wire::Rpc::new(wire::Network::new(near.clone()), Some(bootstrap));
        // Whoever doesn't take its answers is asked for no more questions. Only on this side: were both to wait, both might wait for ever.
        Self::live(stream, system, near, far, limits::PEER_UNTAKEN_BYTES_MAX)
    }

    /// Uses what the peer offers on a stream that we opened.
    pub fn connect<C: FromClientHook>(stream: impl Road, limits: Limits) -> (C, Self) {
        let (near, far) = wire::pair(limits);
        let mut system = wire::Rpc::new(wire::Network::new(near.clone()), None);
        let bootstrap = system.bootstrap();
        let untaken = usize::MAX;
        (bootstrap, Self::live(stream, system, near, far, untaken))
    }

    fn live(
        stream: impl Road,
        system: wire::Rpc,
        near: wire::End,
        far: wire::End,
        untaken: usize,
    ) -> Self {
        let hang_up = stream.hang_up();
        let (tell, over) = watch::channel(None);
        let (end, cut) = (near.clone(), hang_up.clone());
        let task = tokio::task::spawn_local(async move {
            let mut system = system;
            let why = tokio::select! {
                biased;
                why = carry(stream, far, &end, untaken) => end.breached().unwrap_or(why),
                ended = &mut system => end.breached().unwrap_or_else(|| match ended {
                    Ok(()) => "it closed the connection".to_owned(),
                    Err(error) => format!("it broke the protocol ({})", error.extra),
                }),
            };
            end.close();
            cut();
            // Those who wait are told by the RPC system, once it sees that the wire is closed.
            let _ = timeout(limits::PEER_ENDING_MAX, &mut system).await;
            tell.send_replace(Some(why.into()));
        });
        Self {
            task,
            over,
            hang_up,
            end: near,
        }
    }

    /// Its wire, as this side sees it.
    pub fn wire(&self) -> &wire::End {
        &self.end
    }

    /// Answers once it has ended, with the reason.
    pub async fn ended(&self) -> Rc<str> {
        let mut over = self.over.clone();
        match over.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(|| "".into()),
            Err(_) => "its side of this host ended".into(),
        }
    }
}

/// Carries frames both ways until it can't, and says why. While more than `untaken` bytes wait to be sent, nothing is read.
async fn carry(stream: impl Road, far: wire::End, near: &wire::End, untaken: usize) -> String {
    let (mut from, mut to) = stream.split();
    let receive = async {
        let closed = |wire::Closed| "the connection was closed here".to_owned();
        let mut frames = Frames::default();
        loop {
            near.relieved(usize::MAX, untaken).await.map_err(closed)?;
            let frame = frames.next(&mut from).await?;
            far.send(frame).map_err(closed)?;
            // What the RPC system has not taken is not read ahead of.
            far.relieved(limits::PEER_FRAMES_AHEAD_MAX, limits::PEER_BYTES_AHEAD_MAX)
                .await
                .map_err(closed)?;
        }
    };
    let send = async {
        let mut small = Vec::new();
        loop {
            let batch = far.receive_batch().await;
            let batch =
                batch.map_err(|wire::Closed| "the connection was closed here".to_owned())?;
            for frame in &batch {
                if small.len() + frame.len() <= limits::PEER_GATHERED_BYTES_MAX {
                    small.extend_from_slice(frame);
                    continue;
                }
                write(&mut to, &small).await?;
                small.clear();
                match frame.len() <= limits::PEER_GATHERED_BYTES_MAX {
                    true => small.extend_from_slice(frame),
                    false => write(&mut to, frame).await?,
                }
            }
            write(&mut to, &small).await?;
            small.clear();
            to.flush().await.map_err(lost)?;
        }
    };
    let ended: Result<Infallible, String> = tokio::select! {
        ended = receive => ended,
        ended = send => ended,
    };
    match ended {
        Err(why) => why,
        Ok(never) => match never {},
    }
}

/// Writes all of it, as fast as the peer takes it.
async fn write(to: &mut (impl AsyncWrite + Unpin), mut rest: &[u8]) -> Result<(), String> {
    while !rest.is_empty() {
        let wrote = timeout(limits::PEER_STALL_MAX, to.write(rest)).await;
        let stalled = |_| format!("it took nothing for {:?}", limits::PEER_STALL_MAX);
        match wrote.map_err(stalled)?.map_err(lost)? {
            0 => return Err("it takes nothing any more".to_owned()),
            wrote => rest = &rest[wrote..],
        }
    }
    Ok(())
}

fn lost(error: std::io::Error) -> String {
    format!("the connection is lost ({error})")
}

/// Whole frames, from bytes.
#[derive(Default)]
struct Frames {
    /// Room for what is read; it grows with the frames, and what was read is moved to its front where there is no more room behind it.
    bytes: Vec<u8>,
    /// What was read and not taken begins here,
    at: usize,
    /// and ends here.
    end: usize,
}

impl Frames {
    async fn next(
        &mut self,
        from: &mut (impl futures::AsyncRead + Unpin),
    ) -> Result<Vec<u8>, String> {
        self.read(8, from).await?;
        let segments = self.word(0) as usize + 1;
        if segments > limits::PEER_SEGMENTS_MAX {
            return Err(format!(
                "it sent a message of {segments} segments, over the bound of {}",
                limits::PEER_SEGMENTS_MAX
            ));
        }
        let header = (4 * (segments + 1)).next_multiple_of(8);
        self.read(header, from).await?;
        let body: u64 = (1..=segments)
            .map(|i| u64::from(self.word(4 * i)) * 8)
            .sum();
        let total = body + header as u64;
        if total > FRAME_BYTES_MAX as u64 {
            return Err(format!(
                "it sent a message of {total} bytes, over the bound of {FRAME_BYTES_MAX}"
            ));
        }
        let total = total as usize;
        self.read(total, from).await?;
        let frame = self.bytes[self.at..self.at + total].to_vec();
        self.at += total;
        Ok(frame)
    }

    fn word(&self, at: usize) -> u32 {
        let at = self.at + at;
        let bytes = self.bytes[at..at + 4].try_into();
        u32::from_le_bytes(bytes.expect("four bytes are four"))
    }

    /// Reads until so many bytes of the next frame are there. What a byte costs doesn't depend on how many come with it.
    async fn read(
        &mut self,
        bytes: usize,
        from: &mut (impl futures::AsyncRead + Unpin),
    ) -> Result<(), String> {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
            // One large frame does not make the connection keep room for another.
            if self.bytes.len() > limits::PEER_READ_BYTES {
                self.bytes = Vec::new();
            }
        }
        if self.end - self.at >= bytes {
            return Ok(());
        }
        if self.at + bytes > self.bytes.len() {
            self.bytes.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
            let room = limits::PEER_READ_BYTES.max(bytes);
            if self.bytes.len() < room {
                self.bytes.resize(room, 0);
            }
        }
        while self.end - self.at < bytes {
            let read = from.read(&mut self.bytes[self.end..]).await;
            match read.map_err(lost)? {
                0 if self.at == self.end => return Err("it closed the connection".into()),
                0 => return Err("it closed the connection in the middle of a message".into()),
                read => self.end += read,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at a time.
    struct Drops(Vec<u8>, usize);

    impl futures::AsyncRead for Drops {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            to: &mut [u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            let many = self.1.min(to.len()).min(self.0.len());
            to[..many].copy_from_slice(&self.0[..many]);
            self.0.drain(..many);
            std::task::Poll::Ready(Ok(many))
        }
    }

    fn frame(words: u32, fill: u8) -> Vec<u8> {
        let head = [0, words].map(u32::to_le_bytes).concat();
        [head, vec![fill; words as usize * 8]].concat()
    }

    #[tokio::test]
    async fn frames_come_whole_however_they_were_cut() {
        let sizes = [1, 0, 9000, 3, 131_000, 8191, 1, 40_000];
        let frames: Vec<_> = (1_u8..).zip(sizes).map(|(i, n)| frame(n, i)).collect();
        for cut in [1, 7, 8, 4096, 65_536, 10_000_000] {
            let mut drops = Drops(frames.concat(), cut);
            if cut == 1 {
                drops.0.truncate(frames[..3].concat().len());
            }
            let mut whole = Frames::default();
            for expected in frames.iter().take(if cut == 1 { 3 } else { frames.len() }) {
                assert!(whole.next(&mut drops).await.unwrap() == *expected, "{cut}");
            }
            let ended = whole.next(&mut drops).await;
            assert_eq!(ended.unwrap_err(), "it closed the connection");
        }
    }

    #[tokio::test]
    async fn what_claims_too_much_is_refused_before_there_is_room_for_it() {
        for claims in [
            [0_u32, u32::MAX],
            [u32::MAX - 1, 1],
            [0, FRAME_BYTES_MAX as u32 / 8],
        ] {
            let mut drops = Drops(claims.map(u32::to_le_bytes).concat(), 8);
            let mut frames = Frames::default();
            frames.next(&mut drops).await.unwrap_err();
            assert!(frames.bytes.len() <= limits::PEER_READ_BYTES);
        }
        let mut frames = Frames::default();
        let cut = frames.next(&mut Drops(frame(4, 1)[..20].to_vec(), 8)).await;
        let middle = "it closed the connection in the middle of a message";
        assert_eq!(cut.unwrap_err(), middle);
    }
}
