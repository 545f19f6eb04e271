//! Computes for ever, without a call, an allocation or a pause.
//!
//! Tries: to keep its thread for itself from the first message it hears on; at once, when it was granted nothing to hear.
//! What must stop it: nothing it notices. The host makes it yield at every tick, so that its neighbours on the thread go on; a kill
//! drops it where it stands, and a bump that it never learns of takes its capabilities all the same.

use agora_guest::prelude::*;
use agora_guest::reactor::react;

#[agora_guest::main]
async fn spinner(graft: Graft) -> Result<(), Error> {
    if graft.names().next().is_none() {
        spin();
    }
    react(graft, |_me, _channel, _message| async { spin() }).await
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}
