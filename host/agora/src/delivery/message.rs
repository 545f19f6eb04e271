//! Messages and receipts as their readers see them.

use agora_capnp::channel_capnp;
use agora_log::Durability;
use agora_realm::{ChannelName, PersonaId};

use super::record::Kept;
use crate::channel::speak::Outcome;

/// Writes a message for a reader; `reader` is whose own messages are marked.
pub fn write_message(
    kept: &Kept,
    channel: &ChannelName,
    reader: Option<&PersonaId>,
    mut to: channel_capnp::message::Builder<'_>,
) {
    debug_assert!(
        matches!(&kept.sealed.entry().body, agora_realm::Body::Turn(t) if t.channel == *channel)
    );
    let entry = kept.sealed.entry();
    let message = kept.message();
    to.set_ordinal(kept.ordinal.0);
    to.set_id(&kept.sealed.message_id(usize::from(kept.place.index)).0);
    if let Some(parent) = &message.parent {
        to.set_parent(&parent.0);
    }
    to.set_thread(&kept.place.thread.0);
    if let Some(author) = &entry.author {
        let author = PersonaId::new(entry.host, author.clone());
        to.set_author(author.to_string().as_str());
        to.set_mine(reader == Some(&author));
    }
    to.set_act(message.act.into());
    to.set_hops(message.hops);
    to.set_content_type(message.content_type.as_str());
    to.set_payload(&message.payload);
    to.set_time_ms(message.time_ms);
    to.set_epoch(entry.epoch.0);
    if let Some(owner) = &message.owner {
        to.set_owner(owner.to_string().as_str());
    }
    to.set_deadline_ms(message.deadline_ms);
}

/// Writes what became of a draft.
pub fn write_outcome(outcome: &Outcome, mut to: channel_capnp::outcome::Builder<'_>) {
    match outcome {
        Outcome::Receipt {
            placed,
            durability,
            repeated,
        } => {
            let mut receipt = to.init_receipt();
            receipt.set_id(&placed.id.0);
            receipt.set_channel(placed.channel.as_str());
            receipt.set_ordinal(placed.ordinal.0);
            receipt.set_epoch(placed.epoch.0);
            receipt.set_hops(placed.hops);
            receipt.set_durability(match durability {
                Durability::Fsync => channel_capnp::Durability::Fsync,
                Durability::Acknowledged => channel_capnp::Durability::Acknowledged,
                Durability::Asserted => channel_capnp::Durability::Asserted,
            });
            receipt.set_repeated(*repeated);
        }
        Outcome::Refused(reason, text) => {
            let mut refused = to.reborrow().init_refused();
            refused.set_reason((*reason).into());
            refused.set_text(text.as_str());
        }
    }
}
