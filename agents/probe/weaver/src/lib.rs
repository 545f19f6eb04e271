//! Weaves calls that its host would have to remember for ever, as raw frames of its own.
//!
//! In: one word on the one channel it may read. Tries, and what must stop it:
//! - `chain`: 2,000 calls, each on the answer of the one before, the first of which never comes. Too deep: it is ended;
//! - `params`: 200 calls of 1 MB that are never answered. Too many bytes: it is ended;
//! - `leak`: 20,000 grafts of which it keeps every capability. Too many references: it is ended.
//!
//! The host's stack, its memory and the neighbours bear all of it. Had it survived, it would say so.

use agora_capnp::membrane_capnp::{membrane, session};
use agora_guest::prelude::*;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;

#[cfg(target_family = "wasm")]
use agora_guest::vat::component::agora::agent::wire;

#[cfg(not(target_family = "wasm"))]
mod wire {
    //! Off wasm there is no wire.
    pub(crate) fn offer(_frames: &[Vec<u8>]) -> Result<(), ()> {
        Err(())
    }
}

/// Question ids far from those that the SDK uses.
const FIRST: u32 = 1_000_000;
/// Where the results of `graft` hold the session.
const SESSION: u16 = 2;

#[agora_guest::main]
async fn weaver(graft: Graft) -> Result<(), Error> {
    let Some(channel) = graft.channels().next() else {
        return Err(graft.ended().await);
    };
    let mut heard = channel.subscribe().await?;
    while let Some(message) = heard.next().await? {
        // Passed first, so that it is not told again after its end.
        channel.pass(&message).await?;
        match &*message.text() {
            "chain" => chain(2_000),
            "params" => params(200),
            "leak" => leak(20_000),
            _ => continue,
        }
        let survived = Draft::inform(format!("survived {}", message.text()));
        channel.say(survived).await?.ok();
    }
    Ok(())
}

fn frame(build: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    build(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// A call of the first method of an interface, on a pointer of an answer.
fn call(id: u32, interface: u64, on: u32, pointer: Option<u16>, params: u32) -> Vec<u8> {
    frame(|message| {
        let mut call = message.init_call();
        call.set_question_id(id);
        call.set_interface_id(interface);
        call.set_method_id(0);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(on);
        if let Some(pointer) = pointer {
            let mut transform = target.init_transform(1);
            transform.reborrow().get(0).set_get_pointer_field(pointer);
        }
        let content = call.init_params().get_content();
        content.initn_as::<capnp::data::Builder<'_>>(params);
    })
}

/// Bootstraps and grafts; the graft's answer is that of `FIRST + 1`.
fn arrive() {
    let _ = wire::offer(&[
        frame(|message| message.init_bootstrap().set_question_id(FIRST)),
        call(FIRST + 1, membrane::Client::TYPE_ID, FIRST, None, 0),
    ]);
}

fn chain(calls: u32) {
    arrive();
    for i in 0..calls {
        let pointer = if i == 0 { SESSION } else { 0 };
        let on = FIRST + 1 + i;
        let next = call(on + 1, session::Client::TYPE_ID, on, Some(pointer), 0);
        if wire::offer(&[next]).is_err() {
            return;
        }
    }
}

fn params(calls: u32) {
    arrive();
    for i in 0..calls {
        let id = FIRST + 2 + i;
        let big = call(
            id,
            session::Client::TYPE_ID,
            FIRST + 1,
            Some(SESSION),
            1_000_000,
        );
        if wire::offer(&[big]).is_err() {
            return;
        }
    }
}

fn leak(grafts: u32) {
    arrive();
    for i in 0..grafts {
        let id = FIRST + 2 + i;
        let again = call(id, membrane::Client::TYPE_ID, FIRST, None, 0);
        let keep = frame(|message| {
            let mut finish = message.init_finish();
            finish.set_question_id(id - 1);
            finish.set_release_result_caps(false);
        });
        if wire::offer(&[again, keep]).is_err() {
            return;
        }
    }
}
