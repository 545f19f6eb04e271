//! Keeps the copies of a peer's channels up to what is held of its log.
//!
//! In: the channels that the peer lent us, in one graft. Out: what they say, in each [`Mirror`]; and pages of it for who can't ask the peer now. Promise: whenever a newer checkpoint of
//! the peer is held, what it covers is asked for, in order, and kept as far as it is proved.
//! Failure: what can't be had now is asked for again; what is not proved is said in the host's log, and nothing of it is kept.

use std::convert::Infallible;
use std::sync::Arc;

use agora_capnp::peer_capnp::{peer_channel, place};
use agora_membrane::error;
use agora_realm::evidence::Exhibit;
use agora_realm::merkle::{Hash, PROOF_HASHES_MAX};
use agora_realm::{ChannelName, MessageId};
use capnp::Error;

use super::exchange::aside;
use super::mirror::{Mirror, Mirrored, Said};
use super::past::Past;
use super::peers::Peer;
use super::remote::{Page, RemoteMessage};
use crate::delivery::message::write_message;
use crate::door::control::Control;
use crate::limits;

/// Asks for what the copy has not got yet, as far as the checkpoint that is held covers it. Answers how many messages that were.
///
/// # Errors
/// The peer doesn't give it, or not what is proved; or the files.
pub async fn pull(
    control: &Arc<Control>,
    peer: &Peer,
    channel: &peer_channel::Client,
    mirror: &Arc<Mirror>,
) -> Result<usize, Error> {
    let past = Past::of(&control.folder().join(""), &peer.name);
    let held = aside(control, move || past.checkpoint()).await?;
    let Some(held) = held.map_err(|error| error::failed(&error.to_string()))? else {
        return Ok(0);
    };
    let held = Arc::new(held);
    let mut pulled = 0;
    loop {
        let mut request = channel.entries_request();
        request.get().set_from(mirror.next());
        request.get().set_count(limits::BATCH_MESSAGES_MAX as u32);
        request.get().set_size(held.checkpoint().size);
        let answer =
            tokio::time::timeout(limits::PEER_EXCHANGE_PATIENCE, request.send().promise).await;
        let answer = answer.map_err(|_| error::failed("it gives no entries"))??;
        let given = read_places(answer.get()?.get_places()?)?;
        if given.is_empty() {
            return Ok(pulled);
        }
        pulled += given.iter().map(|one| one.messages.len()).sum::<usize>();
        let (mirror, held) = (mirror.clone(), held.clone());
        let taken = aside(control, move || mirror.take(&held, &given)).await?;
        taken.map_err(|error| error::failed(&error.to_string()))?;
    }
}

fn read_places(
    places: capnp::struct_list::Reader<'_, place::Owned>,
) -> Result<Vec<Mirrored>, Error> {
    let malformed = || error::failed("what it sent are no places of a log");
    if places.len() as usize > limits::BATCH_MESSAGES_MAX {
        return Err(malformed());
    }
    let mut all = Vec::<Mirrored>::new();
    for place in places {
        let said = Said {
            ordinal: place.get_ordinal(),
            index: place.get_index(),
            thread: MessageId(place.get_thread()?.try_into().map_err(|_| malformed())?),
        };
        let stored = place.get_stored()?;
        match all.last_mut() {
            Some(last) if stored.is_empty() && last.exhibit.seq == place.get_seq() => {
                last.messages.push(said);
            }
            _ => {
                let hashes = place.get_proof()?;
                if hashes.len() as usize > PROOF_HASHES_MAX {
                    return Err(malformed());
                }
                let hash =
                    |bytes: capnp::Result<&[u8]>| Hash::try_from(bytes?).map_err(|_| malformed());
                let path = hashes.iter().map(hash).collect::<Result<_, Error>>()?;
                all.push(Mirrored {
                    exhibit: Exhibit {
                        seq: place.get_seq(),
                        stored: stored.to_vec().into(),
                        path,
                    },
                    messages: vec![said],
                });
            }
        }
    }
    Ok(all)
}

/// Keeps the copies of these channels up to date, for as long as the graft they are of stands.
pub async fn keep(
    control: Arc<Control>,
    peer: Arc<Peer>,
    channels: Vec<(Arc<Mirror>, peer_channel::Client)>,
) -> Infallible {
    if channels.is_empty() {
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(limits::MIRROR_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut through, mut failed) = (0, None);
    loop {
        ticks.tick().await;
        let size = peer.holding().size;
        if size == through {
            continue;
        }
        let mut is_whole = true;
        for (mirror, channel) in &channels {
            if let Err(error) = pull(&control, &peer, channel, mirror).await {
                is_whole = false;
                let why = format!("{}/{}: {error}", peer.name, mirror.channel());
                if failed.as_ref() != Some(&why) {
                    tracing::warn!("no copy is kept of {why}");
                    failed = Some(why);
                }
            }
        }
        if is_whole {
            (through, failed) = (size, None);
        }
    }
}

/// What the copy of a channel has from an ordinal on, for who can't ask the peer now. None: no copy is kept.
///
/// # Errors
/// The copy can't be read.
pub async fn page(
    control: &Control,
    channel: &ChannelName,
    from: u64,
    count: u32,
) -> Result<Option<Page>, Error> {
    let peer = channel.peer().and_then(|name| control.peers().named(name));
    let mirror = peer.zip(channel.at_peer());
    let mirror = mirror.and_then(|(peer, there)| peer.mirror(&there).cloned());
    let Some(mirror) = mirror else {
        return Ok(None);
    };
    let reading = aside(control, move || {
        let read = mirror.read(from, count as usize, limits::BATCH_BYTES_MAX);
        let kept = read.map_err(|error| error::failed(&error.to_string()))?;
        let mut page = Page {
            next: from,
            ..Page::default()
        };
        for kept in &kept {
            let mut built = capnp::message::Builder::new_default();
            write_message(kept, mirror.channel(), None, built.init_root());
            page.messages
                .push(RemoteMessage::copy(built.get_root_as_reader()?)?);
            page.next = kept.ordinal.0 + 1;
        }
        Ok(page)
    });
    reading.await?.map(Some)
}
