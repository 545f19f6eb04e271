//! An agent that is one pure function from a message to answers.
//!
//! In: every message on every channel that it may read. Out: its answers, as turns.
//! Promise: the function is called for one message at a time, in each channel's order, and its answer is taken exactly once.
//! Failure: an answer that is refused is dropped; the cursor moves on.
//!
//! The host drives reactor components with this, compiled natively, so that they have no second path; a Rust agent may use
//! it too.

use std::future::Future;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::channel::{Channel, Heard};
use crate::error::Error;
use crate::graft::Graft;
use crate::message::{Draft, Message, Refusal, Refused};

/// Answers everything that is heard until the epoch ends. Refused answers are logged, but for want of hops: that is how chains end.
///
/// # Errors
/// What `coordinate` returned, or why the deliveries ended.
pub async fn react<F, Fut>(graft: Graft, coordinate: F) -> Result<(), Error>
where
    F: FnMut(String, Channel, Message) -> Fut,
    Fut: Future<Output = Result<Vec<Draft>, Error>>,
{
    react_telling(graft, coordinate, |channel, refused| {
        if refused.reason.0 != Refusal::HopsSpent {
            crate::warn!("{}: an answer was refused: {refused}", channel.name());
        }
    })
    .await
}

/// [`react`], telling what was refused.
///
/// # Errors
/// As [`react`].
pub async fn react_telling<F, Fut>(
    graft: Graft,
    mut coordinate: F,
    mut told: impl FnMut(&Channel, &Refused),
) -> Result<(), Error>
where
    F: FnMut(String, Channel, Message) -> Fut,
    Fut: Future<Output = Result<Vec<Draft>, Error>>,
{
    let mut listening = FuturesUnordered::new();
    for channel in graft.channels() {
        if graft.terms(channel.name()).is_some_and(|terms| terms.read) {
            let heard = channel.subscribe().await?;
            listening.push(listen(channel, heard));
        }
    }
    while let Some(next) = listening.next().await {
        let Some((channel, heard, message)) = next? else {
            continue;
        };
        let drafts =
            coordinate(graft.persona().to_owned(), channel.clone(), message.clone()).await?;
        let turn = drafts
            .into_iter()
            .fold(channel.turn(&message), |turn, draft| turn.reply(draft));
        for refused in turn.take().await?.into_iter().filter_map(Result::err) {
            told(&channel, &refused);
        }
        listening.push(listen(channel, heard));
    }
    // Nothing to hear is no reason to end: what is granted next comes with a new graft.
    Err(graft.ended().await)
}

async fn listen(
    channel: Channel,
    mut heard: Heard,
) -> Result<Option<(Channel, Heard, Message)>, Error> {
    Ok(heard.next().await?.map(|message| (channel, heard, message)))
}
