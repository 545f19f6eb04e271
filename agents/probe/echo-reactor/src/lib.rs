//! A component of world `reactor`: one pure function, and no vat of its own.
//!
//! In: any message. Out: to an `inform`, an `inform` that echoes it; silence to everything else.
//! Promise: it depends on nothing but its arguments. It shows that an agent needs neither Rust's SDK nor Cap'n Proto.

// Elsewhere there is nothing: a native linker does not bear the exports' names.
#![cfg(any(target_family = "wasm", test))]

#[allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::all,
    reason = "generated from wit/agent"
)]
mod component {
    wit_bindgen::generate!({
        path: "../../../wit/agent",
        world: "reactor",
    });
}

use component::agora::agent::speech::{Act, Draft, Message};

struct Echo;

impl component::Guest for Echo {
    fn coordinate(_me: String, heard: Message) -> Vec<Draft> {
        answer(&heard).into_iter().collect()
    }
}

#[allow(unsafe_code, reason = "the component model's ABI")]
const _: () = {
    component::export!(Echo with_types_in component);
};

fn answer(heard: &Message) -> Option<Draft> {
    (heard.act == Act::Inform).then(|| Draft {
        act: Act::Inform,
        content_type: String::new(),
        payload: [b"echo: ", heard.payload.as_slice()].concat(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use component::Guest;

    fn heard(act: Act) -> Message {
        Message {
            ordinal: 1,
            id: vec![1; 32],
            sender: "someone@00000000".into(),
            channel: "build-coord".into(),
            act,
            content_type: String::new(),
            payload: b"hello".into(),
            hops: 3,
            time_ms: 0,
        }
    }

    #[test]
    fn it_echoes_statements_and_nothing_else() {
        let answers = Echo::coordinate("me".into(), heard(Act::Inform));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].payload, b"echo: hello");
        assert!(Echo::coordinate("me".into(), heard(Act::Request)).is_empty());
    }
}
