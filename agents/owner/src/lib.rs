//! Decides what is released, before the deadline.
//!
//! In: the threads whose owner it is; agreements to plans offered in them; its timer. Out: one `decide` a thread.
//! Promise: a thread is decided by the first agreement to a plan that was offered in it, or, shortly before its deadline, as
//! "no release". What is released is the plan that the agreement answers, not what the agreement says of it. Who may agree
//! is not its business: the manifest grants the act.
//! Failure: a decision that is refused (someone was faster, the thread lapsed) is logged. After a restart it reads what
//! was said, and knows its open threads again.

mod docket;

use std::pin::pin;
use std::time::Duration;

use agora_guest::prelude::*;
use futures::future::{Either, select};
use release_plan::{draft, recent};

use docket::Docket;

/// The longest sleep that a host grants.
const SLEEP_MAX: Duration = Duration::from_secs(86_400);

#[agora_guest::main]
async fn owner(graft: Graft) -> Result<(), Error> {
    let channel = release_plan::channel(&graft)?;
    let timer = graft.timer()?;
    let carry = channel.info().await?.carry;
    let mut docket = Docket::new(graft.persona());
    for message in recent(&channel).await? {
        // What an earlier epoch left undecided went with it.
        if carry || message.epoch == graft.epoch() {
            // A decision that was due then is made when the agreement is delivered again.
            let _ = docket.hear(&message);
        }
    }
    let mut heard = channel.subscribe().await?;
    loop {
        let due = docket.next_due();
        let next = {
            let hearing = pin!(heard.next());
            let ringing = pin!(ring(&timer, due.map(|(at_ms, _)| at_ms)));
            match select(hearing, ringing).await {
                Either::Left((message, _)) => Either::Left(message?),
                Either::Right((rung, _)) => {
                    rung?;
                    Either::Right(due)
                }
            }
        };
        match next {
            Either::Left(None) => return Ok(()),
            Either::Left(Some(message)) => match docket.hear(&message) {
                Some(decision) => {
                    let outcome = channel
                        .reply(&message, draft(Act::Decide, &decision))
                        .await?;
                    match outcome {
                        Ok(_) => docket.close(message.thread),
                        Err(refused) => agora_guest::info!("the decision was not taken: {refused}"),
                    }
                }
                None => channel.pass(&message).await?,
            },
            Either::Right(None) => {}
            Either::Right(Some((_, request))) => {
                // No key: were it repeated, the thread would be closed already.
                let decision = draft(Act::Decide, &docket::no_release()).answering(request);
                if let Err(refused) = channel.say(decision).await? {
                    agora_guest::info!("too late to decide: {refused}");
                }
                docket.close(request);
            }
        }
    }
}

/// Answers at this moment; never without one.
async fn ring(timer: &Timer, at_ms: Option<i64>) -> Result<(), Error> {
    let Some(at_ms) = at_ms else {
        return std::future::pending().await;
    };
    loop {
        let left_ms = at_ms.saturating_sub(timer.now_ms().await?);
        match u64::try_from(left_ms) {
            Ok(left_ms @ 1..) => {
                timer
                    .sleep(Duration::from_millis(left_ms).min(SLEEP_MAX))
                    .await?;
            }
            _ => return Ok(()),
        }
    }
}
