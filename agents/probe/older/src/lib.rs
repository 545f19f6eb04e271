//! A component of the older, unversioned world (wit/older), as one was written for the PulseEngine spike.
//!
//! Tries: what such components do in good faith, and more: it acknowledges everything in its inbox, and claims an id, a
//! sender, a signature and hops of its own.
//! What must stop it: the host ignores all four claims. The answer's parent, author, hops and signature are what the host
//! stamps, and the hops come to an end.

// Elsewhere there is nothing: a native linker does not bear the exports' names.
#![cfg(any(target_family = "wasm", test))]

#[allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::all,
    reason = "generated from wit/older"
)]
mod component {
    wit_bindgen::generate!({
        path: "../../../wit/older",
        world: "agent",
    });
}

use component::exports::agora::agent::protocol::{Act, Guest, Message};

struct Older;

impl Guest for Older {
    fn coordinate(_me: String, inbox: Vec<Message>) -> Vec<Message> {
        inbox.iter().map(acknowledgement).collect()
    }
}

#[allow(unsafe_code, reason = "the component model's ABI")]
const _: () = {
    component::export!(Older with_types_in component);
};

fn acknowledgement(heard: &Message) -> Message {
    Message {
        id: u64::MAX,
        sender: "operator:0".into(),
        channel: heard.channel.clone(),
        act: Act::Inform,
        payload: format!("ack: {}", heard.payload),
        sig: "forged".into(),
        hops: u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_acknowledges_each_message_and_claims_what_it_likes() {
        let heard = Message {
            id: 7,
            sender: "someone@00000000".into(),
            channel: "build-coord".into(),
            act: Act::Request,
            payload: "build it".into(),
            sig: String::new(),
            hops: 3,
        };
        let answers = Older::coordinate("me".into(), vec![heard.clone(), heard]);
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0].payload, "ack: build it");
        assert_eq!(answers[0].hops, u32::MAX);
    }
}
