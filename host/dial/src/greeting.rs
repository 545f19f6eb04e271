//! The first words on a connection: the dialer says what it carries, the other side what it makes of that.
//!
//! `carries: u8, incarnation: [u8; 8]` one way, `verdict: u8, incarnation: [u8; 8]` the other. An incarnation is random for
//! each start of a dialer, so that a peer that was started anew is told from one whose dial crosses ours.

use std::{io, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::Lane;

/// Which start of a dialer this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incarnation(pub(crate) [u8; 8]);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// The streams of one lane.
    Lane(Lane),
    /// None of ours: asking Kademlia, and relaying.
    Errands,
}

/// What the side that was dialed says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The connection carries the lane.
    Welcome,
    /// It may carry a login.
    Guest,
    /// Policy says no.
    Refused,
    /// Another connection carries the lane, or is about to.
    Duplicate,
}

const CODES: [(u8, Carries); 3] = [
    (1, Carries::Lane(Lane::Control)),
    (2, Carries::Lane(Lane::Vat)),
    (3, Carries::Errands),
];
const VERDICTS: [(u8, Verdict); 4] = [
    (1, Verdict::Welcome),
    (2, Verdict::Guest),
    (3, Verdict::Refused),
    (4, Verdict::Duplicate),
];

fn unknown(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("an unknown {what} in a greeting"),
    )
}

async fn timed<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn pack(code: u8, own: Incarnation) -> [u8; 9] {
    let mut frame = [code; 9];
    frame[1..].copy_from_slice(&own.0);
    frame
}

fn unpack(frame: [u8; 9]) -> (u8, Incarnation) {
    let mut incarnation = [0; 8];
    incarnation.copy_from_slice(&frame[1..]);
    (frame[0], Incarnation(incarnation))
}

/// The dialer's side: greets, and waits for the verdict.
pub(crate) async fn greet(
    mut stream: libp2p::Stream,
    carries: Carries,
    own: Incarnation,
    patience: Duration,
) -> io::Result<(Verdict, Incarnation)> {
    timed(patience, async move {
        let code = CODES
            .iter()
            .find(|(_, of)| *of == carries)
            .map_or(0, |(code, _)| *code);
        stream.write_all(&pack(code, own)).await?;
        stream.flush().await?;
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await?;
        let (code, theirs) = unpack(frame);
        let verdict = VERDICTS
            .iter()
            .find(|(of, _)| *of == code)
            .ok_or_else(|| unknown("verdict"))?
            .1;
        Ok((verdict, theirs))
    })
    .await
}

/// The other side: hears the greeting.
pub(crate) async fn hear(
    mut stream: libp2p::Stream,
    patience: Duration,
) -> io::Result<(libp2p::Stream, Carries, Incarnation)> {
    timed(patience, async move {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await?;
        let (code, theirs) = unpack(frame);
        let carries = CODES
            .iter()
            .find(|(of, _)| *of == code)
            .ok_or_else(|| unknown("kind of connection"))?
            .1;
        Ok((stream, carries, theirs))
    })
    .await
}

/// The other side: answers it.
pub(crate) async fn answer(
    mut stream: libp2p::Stream,
    verdict: Verdict,
    own: Incarnation,
    patience: Duration,
) -> io::Result<()> {
    timed(patience, async move {
        let code = VERDICTS
            .iter()
            .find(|(_, of)| *of == verdict)
            .map_or(0, |(code, _)| *code);
        stream.write_all(&pack(code, own)).await?;
        stream.close().await
    })
    .await
}
