//! Answers questions about a folder that it was granted, by asking a service outside.
//!
//! In: requests on the channel `questions`, as `list PATH`, `read PATH` or `search TEXT`. Out: for each an `inform` with what the service
//! `folder` says, or a `refuse` with why it can't be said.
//! Promise: one answer to each question; nothing it can't answer keeps it from the next, and questions are asked side by side.
//! Failure: what the service can't answer, or not in time, is refused with the service's own words; an answer that the channel
//! refuses is logged.

mod folder;

use std::pin::pin;

use agora_guest::prelude::*;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;

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
    let mut asked = FuturesUnordered::new();
    loop {
        let next = {
            let hearing = pin!(async {
                match asked.len() < QUESTIONS_MAX {
                    true => heard.next().await,
                    false => std::future::pending().await,
                }
            });
            let answering = pin!(async {
                match asked.next().await {
                    Some(answered) => answered,
                    None => std::future::pending().await,
                }
            });
            match select(hearing, answering).await {
                Either::Left((message, _)) => Either::Left(message?),
                Either::Right((answered, _)) => Either::Right(answered),
            }
        };
        match next {
            Either::Left(None) => return Ok(()),
            Either::Left(Some(message)) if message.act != Act::Request => {
                channel.pass(&message).await?;
            }
            Either::Left(Some(message)) => asked.push(answer(&folder, message)),
            Either::Right((message, answer)) => {
                let draft = match answer {
                    Ok(text) => Draft::inform(text),
                    Err(error) => Draft::refuse(error.to_string()),
                };
                if let Err(refused) = channel.reply(&message, draft).await? {
                    agora_guest::info!("an answer was not taken: {refused}");
                }
            }
        }
    }
}

/// What the service says to a question.
async fn answer(folder: &Folder, message: Message) -> (Message, Result<String, Error>) {
    let answer = match Question::read(&message.text()) {
        Some(question) => folder.ask(question).await,
        None => Err(Error::denied(
            "ask `list PATH`, `read PATH` or `search TEXT`",
        )),
    };
    (message, answer)
}
