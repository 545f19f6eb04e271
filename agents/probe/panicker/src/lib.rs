//! Panics, once after its turn and as often as it is told before it.
//!
//! Tries: to lose or to repeat an answer by dying beside it. On the first message it ever hears it answers, and panics when the
//! answer is on the record. On the payload `again` it panics before it answers; so the message comes again after
//! each restart, for ever. Anything else it acknowledges. What it is, it knows by its own words in the history, so it needs the
//! rights to read and to write.
//! What must stop it: the trap ends this agent alone, and its panic's message stands in the host's log. It is started again, later
//! each time. The answer given before the first panic is neither lost nor repeated.

use agora_guest::prelude::*;

#[agora_guest::main]
async fn panicker(graft: Graft) -> Result<(), Error> {
    let Some(channel) = graft.channels().next() else {
        panic!("panicker: nothing was granted");
    };
    let mut seasoned = has_spoken(&channel).await?;
    let mut heard = channel.subscribe().await?;
    while let Some(message) = heard.next().await? {
        match reaction(&message.text(), seasoned) {
            Reaction::Panic => panic!("panicker: told to, by message {}", message.ordinal),
            Reaction::AnswerThenPanic => {
                let outcome = channel.reply(&message, Draft::inform("panicking")).await?;
                panic!(
                    "panicker: its first message was {}; {outcome:?}",
                    message.ordinal
                );
            }
            Reaction::Answer => {
                let answer = format!("still here: {}", message.text());
                if let Err(refused) = channel.reply(&message, Draft::inform(answer)).await? {
                    agora_guest::info!("panicker: not acknowledged: {refused}");
                }
                seasoned = true;
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    Panic,
    AnswerThenPanic,
    Answer,
}

fn reaction(text: &str, seasoned: bool) -> Reaction {
    match (text.trim(), seasoned) {
        ("again", _) => Reaction::Panic,
        (_, false) => Reaction::AnswerThenPanic,
        (_, true) => Reaction::Answer,
    }
}

async fn has_spoken(channel: &Channel) -> Result<bool, Error> {
    let mut from = 1;
    loop {
        let (page, next) = channel.history(from, u32::MAX).await?;
        if page.iter().any(|message| message.mine) {
            return Ok(true);
        }
        if next <= from {
            return Ok(false);
        }
        from = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_panics_once_of_itself_and_whenever_it_is_told() {
        assert_eq!(reaction("hello", false), Reaction::AnswerThenPanic);
        assert_eq!(reaction("hello", true), Reaction::Answer);
        assert_eq!(reaction("again", false), Reaction::Panic);
        assert_eq!(reaction("again\n", true), Reaction::Panic);
    }
}
