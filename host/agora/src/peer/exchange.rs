//! Checkpoints of hosts that know each other: each asks the other what its log was, and holds it.
//!
//! In: a link that was greeted. Out: [`Past`] in the data folder, an alarm in [`Peer`], and our signature as a witness where the manifest says so;
//! and, the other way, what a peer that asks is given.
//! Promise: every [`PEER_EXCHANGE_EVERY`](limits::PEER_EXCHANGE_EVERY), and after each connection, a peer's newest checkpoint is compared with
//! the one that is held; one that doesn't extend it is an alarm that stands until an operator accepts it. Nothing here blocks the
//! peer's thread. Failure: what can't be asked now is asked later; calls over the peer's lot are busy.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agora_capnp::peer_capnp::link;
use agora_membrane::error;
use agora_realm::PublicKey;
use agora_realm::checkpoint::{CHECKPOINT_BYTES_MAX, Extension, Signed};
use agora_realm::merkle::{Hash, PROOF_HASHES_MAX};
use capnp::Error;

use super::past::{Past, PastError, Taken};
use super::peers::Peer;
use super::told::Known;
use crate::delivery::checkpoints::Kept;
use crate::door::control::Control;
use crate::limits;

/// What is held of a peer, as the rest of the host knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// How many places its newest checkpoint covers; 0: none is held.
    pub size: u64,
    /// What speaks against it, for people.
    pub alarm: Option<Arc<str>>,
    /// Checkpoints in a row that were not its own.
    foreign: u32,
}

impl Holding {
    /// What the data folder holds of a peer, which is said in the host's log if anything speaks against it.
    pub(super) fn read(past: &Past, peer: &str) -> Self {
        let mut holding = Self::default();
        match past.checkpoint() {
            Ok(held) => holding.size = held.map_or(0, |held| held.checkpoint().size),
            Err(error) => tracing::error!("{peer}: {error}"),
        }
        match past.evidence() {
            Ok(evidence) => holding.alarm = evidence.first().map(|first| first.shown(peer).into()),
            Err(error) => tracing::error!("{peer}: {error}"),
        }
        if let Some(alarm) = &holding.alarm {
            tracing::error!("{alarm}");
        }
        holding
    }
}

/// What came of asking a peer once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchanged {
    /// Its newest checkpoint is held.
    Held(Box<Signed>),
    /// It gave one that isn't its own: it has another key by now, maybe. Greet it again.
    Foreign,
    /// Its log is not what it was.
    Changed,
    /// Ask again.
    Outdated,
}

/// What only the data folder's files are asked, off the peer's thread.
pub(super) async fn aside<T: Send + 'static>(
    control: &Control,
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let done = control.runtime().spawn_blocking(what).await;
    done.map_err(|_| error::failed("the host is ending"))
}

/// Asks a peer for its newest checkpoint, once, and judges it by what is held.
///
/// # Errors
/// It didn't answer, or with what is no checkpoint; or the files can't be read or written.
pub async fn exchange(
    link: &link::Client,
    peer: &Arc<Peer>,
    known: &Known,
    control: &Arc<Control>,
) -> Result<Exchanged, Error> {
    let past = Past::of(&control.folder().join(""), &peer.name);
    let held = {
        let past = past.clone();
        aside(control, move || past.checkpoint()).await?
    };
    let held = held.map_err(|error| error::failed(&error.to_string()))?;
    let asked = held.map_or(0, |held| held.checkpoint().size);
    let mut request = link.checkpoint_request();
    request.get().set_since(asked);
    let answer = tokio::time::timeout(limits::PEER_EXCHANGE_PATIENCE, request.send().promise).await;
    let answer = answer.map_err(|_| error::failed("it doesn't tell its checkpoint"))??;
    let given = read_extension(asked, answer.get()?)?;
    let (peer, known) = (peer.clone(), known.clone());
    let judged = aside(control, move || judge(&peer, &past, &known, asked, given)).await?;
    judged.map_err(|error| error::failed(&error.to_string()))
}

fn read_extension(
    old: u64,
    results: link::checkpoint_results::Reader<'_>,
) -> Result<Extension, Error> {
    let malformed = || error::failed("what it sent is no checkpoint");
    let text = results.get_checkpoint()?;
    if text.len() > CHECKPOINT_BYTES_MAX {
        return Err(malformed());
    }
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let signed: Signed = text.parse().map_err(|_| malformed())?;
    let hashes = results.get_proof()?;
    if hashes.len() as usize > PROOF_HASHES_MAX {
        return Err(malformed());
    }
    let hash = |bytes: capnp::Result<&[u8]>| Hash::try_from(bytes?).map_err(|_| malformed());
    let proof = hashes.iter().map(hash).collect::<Result<_, Error>>()?;
    Ok(Extension { old, proof, signed })
}

fn judge(
    peer: &Peer,
    past: &Past,
    known: &Known,
    asked: u64,
    given: Extension,
) -> Result<Exchanged, PastError> {
    // One at a time: what is held is read, and replaced.
    let _one = peer.judging();
    let mut holding = peer.holding();
    let (size, now_ms) = (given.signed.checkpoint().size, crate::now_ms());
    let exchanged = match past.take(known, asked, given.clone(), now_ms)? {
        Taken::Held(signed) => {
            (holding.size, holding.foreign) = (size, 0);
            Exchanged::Held(signed)
        }
        Taken::Changed(_) => Exchanged::Changed,
        Taken::Outdated => Exchanged::Outdated,
        Taken::Foreign(why) => {
            holding.foreign = holding.foreign.saturating_add(1);
            if holding.foreign >= limits::PEER_FOREIGN_MAX {
                past.keep_foreign(&why, &given, now_ms)?;
            }
            tracing::warn!("{}: {why}", peer.name);
            Exchanged::Foreign
        }
    };
    // By the file, which an operator may have put away.
    let alarm = past
        .evidence()?
        .first()
        .map(|first| first.shown(&peer.name));
    if alarm.as_deref() != holding.alarm.as_deref() {
        if let Some(alarm) = &alarm {
            tracing::error!("{alarm}");
        }
        holding.alarm = alarm.map(Into::into);
    }
    peer.holds(holding);
    Ok(exchanged)
}

/// Asks a peer for as long as its link stands. Answers when the peer must be greeted anew, since it has another key than it proved.
pub async fn keep(control: Arc<Control>, peer: Arc<Peer>, link: link::Client, known: Known) {
    let mut ticks = tokio::time::interval(limits::PEER_EXCHANGE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut witnessed = None;
    let mut is_fresh = true;
    loop {
        ticks.tick().await;
        match exchange(&link, &peer, &known, &control).await {
            Ok(Exchanged::Held(signed)) => {
                let size = signed.checkpoint().size;
                if peer.spec.witness && witnessed != Some(size) {
                    match witness(&control, &link, *signed, &known.key).await {
                        Ok(()) => witnessed = Some(size),
                        Err(error) => {
                            tracing::debug!("{}: it takes no signature: {error}", peer.name)
                        }
                    }
                }
            }
            // Its greeting may have come just before its key was changed, or just after.
            Ok(Exchanged::Foreign) if !is_fresh => return,
            Ok(_) => {}
            Err(error) => tracing::debug!("{}: no checkpoint: {error}", peer.name),
        }
        is_fresh = false;
    }
}

/// Signs what is held of a peer, by its host's key, as a witness, and tells the peer.
///
/// # Errors
/// There is no key, or the peer doesn't take it.
pub async fn witness(
    control: &Control,
    link: &link::Client,
    mut signed: Signed,
    host: &PublicKey,
) -> Result<(), Error> {
    let cosigned = control.cosign(&mut signed, host);
    cosigned.map_err(|error| error::failed(&error))?;
    let mut request = link.witnessed_request();
    request.get().set_cosigned(signed.to_string().as_bytes());
    let told = tokio::time::timeout(limits::PEER_EXCHANGE_PATIENCE, request.send().promise).await;
    told.map_err(|_| error::failed("it doesn't answer"))??;
    Ok(())
}

// -- The other way

/// How often a peer may ask: a lot that fills again, one a second.
pub struct Lot {
    left: Cell<u32>,
    filled: Cell<Instant>,
}

impl Default for Lot {
    fn default() -> Self {
        Self {
            left: Cell::new(limits::PEER_CHECKPOINTS_LOT),
            filled: Cell::new(Instant::now()),
        }
    }
}

impl Lot {
    /// Takes one.
    ///
    /// # Errors
    /// Busy: there is none left.
    pub fn draw(&self) -> Result<(), Error> {
        let passed = self.filled.get().elapsed().as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(u32::MAX);
            let full = limits::PEER_CHECKPOINTS_LOT;
            self.left
                .set(self.left.get().saturating_add(more).min(full));
            self.filled
                .set(self.filled.get() + Duration::from_secs(passed));
        }
        match self.left.get() {
            0 => Err(error::busy("ask for checkpoints once a second at most")),
            left => {
                self.left.set(left - 1);
                Ok(())
            }
        }
    }
}

/// This host's newest checkpoint, and the proof that it extends the log of `since` places, as far as there is one.
///
/// # Errors
/// Busy: there is none yet, or it can't be read or proved now.
pub async fn newest(control: &Arc<Control>, since: u64) -> Result<Extension, Error> {
    let own = control.clone();
    let made = control.runtime().spawn(async move {
        let kept = Kept::of(&own.folder().join(""));
        let read = tokio::task::spawn_blocking(move || kept.latest()).await;
        let read = read.map_err(|_| error::failed("the host is ending"))?;
        let signed = read.map_err(|error| error::busy(&error.to_string()))?;
        let signed = signed.ok_or_else(|| error::busy("there is no checkpoint yet"))?;
        let size = signed.checkpoint().size;
        let proof = match since {
            // Without a proof, who asks sees that this log is another than it was; and is right to.
            since if since == 0 || since >= size => Vec::new(),
            since => {
                let proof = own.record().tree().consistency(since, size).await;
                proof.map_err(|error| error::busy(&error.to_string()))?
            }
        };
        Ok(Extension {
            old: since,
            proof,
            signed,
        })
    });
    made.await
        .map_err(|_| error::failed("the host is ending"))?
}

/// Keeps what a peer signed as a witness of a checkpoint of this host's.
///
/// # Errors
/// Denied: it is none of this host's, or something else than this peer's signature is on it.
pub async fn keep_cosigned(
    control: &Arc<Control>,
    known: &Known,
    text: &[u8],
) -> Result<(), Error> {
    let malformed = || error::denied("this is no checkpoint with your signature as a witness");
    if text.len() > CHECKPOINT_BYTES_MAX {
        return Err(malformed());
    }
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let signed: Signed = text.parse().map_err(|_| malformed())?;
    let key = known.key;
    let folder = control.folder().clone();
    let kept = aside(control, move || {
        // Others' signatures are theirs to bring.
        match &signed.witnesses()[..] {
            [one] if one.witness == key => Some(Kept::of(&folder.join("")).keep_cosigned(&signed)),
            _ => None,
        }
    })
    .await?;
    match kept.ok_or_else(malformed)? {
        Ok(Some(kept)) if kept.is_refused() => Err(malformed()),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(error::denied("no such checkpoint is kept here")),
        Err(error) => Err(error::busy(&error.to_string())),
    }
}
