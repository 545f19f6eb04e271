//! Answers questions about a folder that it was granted, by asking a service outside.
//!
//! In: requests on the channel `questions`, as `list PATH`, `read PATH` or `search TEXT`. Out: for each an `inform` with what the service
//! `folder` says, or a `refuse` with why it can't be said.
//! Promise: the service is asked side by side, and what it says is passed on in the order of the questions: an answer moves the
//! agent's cursor, so that after a restart it hears again exactly what it has not answered.
//! Failure: what the service can't answer, or not in time, is refused with the service's own words; an answer that the channel
//! refuses is logged.

mod folder;

use agora_guest::prelude::*;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt, select_biased};

use folder::{Folder, Question};

/// Where it is asked.
const CHANNEL: &str = "questions";
/// What it asks.
const SERVICE: &str = "folder";
/// Questions that it has before the service at once.
const QUESTIONS_MAX: usize = 16;

#[agora_guest::main]
async fn librarian(graft: Graft) -> Result<(), Error> {
    let channel = graft.channel(CHANNEL)?;
    let folder = Folder::new(graft.capability(SERVICE)?);
    let mut heard = channel.subscribe().await?;
    let mut asked = FuturesOrdered::new();
    loop {
        let has_room = asked.len() < QUESTIONS_MAX;
        let mut hearing = Box::pin(
            async {
                match has_room {
                    true => heard.next().await,
                    false => std::future::pending().await,
                }
            }
            .fuse(),
        );
        select_biased! {
            answered = asked.select_next_some() => {
                drop(hearing);
                match answered {
                    (message, Some(draft)) => {
                        if let Err(refused) = channel.reply(&message, draft).await? {
                            agora_guest::info!("an answer was not taken: {refused}");
                        }
                    }
                    (message, None) => channel.pass(&message).await?,
                }
            }
            message = hearing => match message? {
                Some(message) => {
                    drop(hearing);
                    asked.push_back(answer(&folder, message));
                }
                None => return Ok(()),
            },
        }
    }
}

/// What to say to a message; `None` is silence.
async fn answer(folder: &Folder, message: Message) -> (Message, Option<Draft>) {
    if message.act != Act::Request {
        return (message, None);
    }
    let answer = match Question::read(&message.text()) {
        Some(question) => folder.ask(question).await,
        None => {
            let usage = "ask `list PATH`, `read PATH` or `search TEXT`";
            return (message, Some(Draft::refuse(usage)));
        }
    };
    let draft = match answer {
        Ok(text) => Draft::inform(text),
        Err(error) => Draft::refuse(error.to_string()),
    };
    (message, Some(draft))
}
