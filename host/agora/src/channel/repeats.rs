//! Compares what is repeated with what it repeats.
//!
//! In: drafts that a peer's personas said, and what became of them. Out: the same; but one whose key another message has is refused.
//! Promise: a peer whose log lost its end gives the places of its outbox, which are its keys here, to other messages. None of those is told
//! that it counts because another does.
//! Failure: what was pruned can't be compared, and gets the first receipt; what can't be read now is to be repeated.

use agora_realm::{ChannelName, Ordinal, Refusal};

use super::speak::{Draft, Outcome};
use crate::delivery::record::{Kept, Record};
use crate::limits;

/// What whoever said these drafts there is told.
pub(super) async fn compared(
    record: &Record,
    channel: &ChannelName,
    drafts: &[Draft],
    outcomes: Vec<Outcome>,
) -> Vec<Outcome> {
    let mut told = Vec::with_capacity(outcomes.len());
    for (at, outcome) in outcomes.into_iter().enumerate() {
        let first = match &outcome {
            Outcome::Receipt {
                placed,
                repeated: true,
                ..
            } => placed.ordinal,
            _ => {
                told.push(outcome);
                continue;
            }
        };
        let is_other = is_other(record, channel, first, drafts.get(at)).await;
        told.push(match is_other {
            Ok(false) => outcome,
            Ok(true) => Outcome::Refused(
                Refusal::KeyExpired,
                "another message was said under this key; say it anew".into(),
            ),
            Err(error) => Outcome::Refused(Refusal::LogUnavailable, error),
        });
    }
    told
}

async fn is_other(
    record: &Record,
    channel: &ChannelName,
    first: Ordinal,
    draft: Option<&Draft>,
) -> Result<bool, String> {
    let read = record.messages(channel, first, 1, limits::BATCH_BYTES_MAX);
    let read = read.await.map_err(|error| error.to_string())?;
    let (Some(kept), Some(draft)) = (read.first(), draft) else {
        return Ok(false);
    };
    // What stands behind it was found in the place of what was pruned.
    Ok(kept.ordinal == first && differs(kept, draft))
}

fn differs(kept: &Kept, draft: &Draft) -> bool {
    let message = kept.message();
    message.act != draft.act
        || message.parent != draft.parent
        || message.content_type != draft.content_type
        || message.payload != draft.payload
}
