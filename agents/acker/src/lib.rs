//! Acknowledges everything it hears, on every channel it may read. Left alone with another of its kind it would go on
//! for ever; the channel's hops end it.

use agora_guest::prelude::*;
use agora_guest::reactor::react;

#[agora_guest::main]
async fn acker(graft: Graft) -> Result<(), Error> {
    react(graft, |_me, _channel, message: Message| async move {
        let name = message.author_name();
        Ok(vec![Draft::inform(format!(
            "ack {name}: {}",
            message.text()
        ))])
    })
    .await
}
