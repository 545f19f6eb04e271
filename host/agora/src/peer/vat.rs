//! One Cap'n Proto connection over a stream to a peer.
//!
//! In: a stream; what is offered on it, or nothing. Out: calls, both ways.
//! Promise: what the peer sends is bounded as what an agent sends is (`agora_guest::wire`): frames, questions, capabilities, bytes that wait.
//! What it does not take waits up to a bound, past which the connection ends. Dropping a [`Vat`] hangs up and lets go of all that either held.
//! Failure: whatever ends it fails calls in flight as disconnected; [`Vat::ended`] says why.

use std::convert::Infallible;
use std::rc::Rc;

use agora_dial::{HangUp, Stream};
use agora_guest::wire::{self, FRAME_BYTES_MAX, Limits};
use capnp::capability::{Client, FromClientHook};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits;

/// A connection. Lives on the thread it was made on.
pub struct Vat {
    task: tokio::task::JoinHandle<()>,
    over: watch::Receiver<Option<Rc<str>>>,
    hang_up: HangUp,
    end: wire::End,
}

impl Drop for Vat {
    fn drop(&mut self) {
        self.hang_up.cut();
        self.end.close();
        self.task.abort();
    }
}

impl Vat {
    /// Offers a capability on a stream that the peer opened. The wire's end is known to `offer` beforehand, to see how much waits on it.
    pub fn serve(stream: Stream, limits: Limits, offer: impl FnOnce(wire::End) -> Client) -> Self {
        let (near, far) = wire::pair(limits);
        let bootstrap = offer(near.clone());
        let system = wire::Rpc::new(wire::Network::new(near.clone()), Some(bootstrap));
        Self::live(stream, system, near, far)
    }

    /// Uses what the peer offers on a stream that we opened.
    pub fn connect<C: FromClientHook>(stream: Stream, limits: Limits) -> (C, Self) {
        let (near, far) = wire::pair(limits);
        let mut system = wire::Rpc::new(wire::Network::new(near.clone()), None);
        let bootstrap = system.bootstrap();
        (bootstrap, Self::live(stream, system, near, far))
    }

    fn live(stream: Stream, system: wire::Rpc, near: wire::End, far: wire::End) -> Self {
        let hang_up = stream.hang_up();
        let (tell, over) = watch::channel(None);
        let (end, cut) = (near.clone(), hang_up.clone());
        let task = tokio::task::spawn_local(async move {
            let mut system = system;
            let why = tokio::select! {
                biased;
                why = carry(stream, far) => end.breached().unwrap_or(why),
                ended = &mut system => end.breached().unwrap_or_else(|| match ended {
                    Ok(()) => "it closed the connection".to_owned(),
                    Err(error) => format!("it broke the protocol ({})", error.extra),
                }),
            };
            end.close();
            cut.cut();
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

/// Carries frames both ways until it can't, and says why.
async fn carry(stream: Stream, far: wire::End) -> String {
    let (mut from, mut to) = stream.split();
    let receive = async {
        let closed = |wire::Closed| "the connection was closed here".to_owned();
        let mut frames = Frames::default();
        loop {
            let frame = frames.next(&mut from).await?;
            far.send(frame).map_err(closed)?;
            // What the RPC system has not taken is not read ahead of.
            far.relieved(limits::PEER_FRAMES_AHEAD_MAX, limits::PEER_BYTES_AHEAD_MAX)
                .await
                .map_err(closed)?;
        }
    };
    let send = async {
        let mut bytes = Vec::new();
        loop {
            let batch = far.receive_batch().await;
            let batch =
                batch.map_err(|wire::Closed| "the connection was closed here".to_owned())?;
            let (mut rest, single);
            match &batch[..] {
                [one] => {
                    single = one;
                    rest = &single[..];
                }
                many => {
                    bytes.clear();
                    many.iter().for_each(|frame| bytes.extend_from_slice(frame));
                    rest = &bytes[..];
                }
            }
            while !rest.is_empty() {
                let wrote = timeout(limits::PEER_STALL_MAX, to.write(rest)).await;
                let stalled = |_| format!("it took nothing for {:?}", limits::PEER_STALL_MAX);
                match wrote.map_err(stalled)?.map_err(lost)? {
                    0 => return Err("it takes nothing any more".to_owned()),
                    wrote => rest = &rest[wrote..],
                }
            }
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

fn lost(error: std::io::Error) -> String {
    format!("the connection is lost ({error})")
}

/// Whole frames, from bytes.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    at: usize,
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
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
        }
        Ok(frame)
    }

    fn word(&self, at: usize) -> u32 {
        let at = self.at + at;
        let bytes = self.bytes[at..at + 4].try_into();
        u32::from_le_bytes(bytes.expect("four bytes are four"))
    }

    /// Reads until so many bytes of the next frame are there.
    async fn read(
        &mut self,
        bytes: usize,
        from: &mut (impl futures::AsyncRead + Unpin),
    ) -> Result<(), String> {
        while self.bytes.len() - self.at < bytes {
            self.bytes.drain(..self.at);
            self.at = 0;
            let had = self.bytes.len();
            let room = limits::PEER_READ_BYTES.max(bytes - had);
            self.bytes.resize(had + room, 0);
            let read = from.read(&mut self.bytes[had..]).await;
            self.bytes.truncate(had + *read.as_ref().unwrap_or(&0));
            match read.map_err(lost)? {
                0 if had == 0 => return Err("it closed the connection".into()),
                0 => return Err("it closed the connection in the middle of a message".into()),
                _ => {}
            }
        }
        Ok(())
    }
}
