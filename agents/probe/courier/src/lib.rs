//! Carries everything it hears on `in` to `out`, in the same turn.
//!
//! Tries nothing: it is for showing that a turn over two channels takes effect once on both, whenever its host is killed.

use agora_guest::prelude::*;

#[agora_guest::main]
async fn courier(graft: Graft) -> Result<(), Error> {
    let (from, to) = (graft.channel("in")?, graft.channel("out")?);
    let mut heard = from.subscribe().await?;
    while let Some(message) = heard.next().await? {
        let carried = Draft::inform(format!("carried {}", message.text()));
        let answer = Draft::inform("sent on");
        let turn = from.turn(&message).say_on(&to, carried).reply(answer);
        for refused in turn.take().await?.into_iter().filter_map(Result::err) {
            agora_guest::warn!("refused: {refused}");
        }
    }
    Ok(())
}
