//! Calls, publishes and listens as fast as it can, to be measured by `cargo xtask bench`. What it does follows from what it was granted:
//! only a timer: it calls that, in batches that each begin with a sleep of zero; `work` to write: it publishes as many messages as
//! its first message there asks for, so many at once; `work` to read alone: it passes everything it hears.

use agora_guest::prelude::*;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Calls of `now` between two sleeps of zero.
const BATCH: u32 = 500;

#[agora_guest::main]
async fn bencher(graft: Graft) -> Result<(), Error> {
    let Ok(work) = graft.channel("work") else {
        return call(&graft.timer()?).await;
    };
    if graft.terms("work").is_some_and(|terms| terms.write) {
        return publish(&graft.channel("start")?, &work).await;
    }
    let mut heard = work.subscribe_with_window(1024).await?;
    while let Some(message) = heard.next().await? {
        // Silence is free, and its answer is not waited for.
        drop(work.pass(&message));
    }
    Ok(())
}

async fn call(timer: &Timer) -> Result<(), Error> {
    loop {
        timer.sleep(std::time::Duration::ZERO).await?;
        for _ in 0..BATCH {
            timer.now_ms().await?;
        }
    }
}

/// `COUNT WINDOW BYTES` on `start` begins a round.
async fn publish(start: &Channel, work: &Channel) -> Result<(), Error> {
    let mut heard = start.subscribe().await?;
    while let Some(message) = heard.next().await? {
        let text = message.text().into_owned();
        let mut numbers = text.split(' ').map(|n| n.parse().unwrap_or(1));
        let mut next = || numbers.next().unwrap_or(1);
        let (count, window, bytes): (usize, usize, usize) = (next(), next(), next());
        let mut waiting = FuturesUnordered::new();
        for _ in 0..count {
            if waiting.len() >= window {
                waiting.next().await.transpose()?;
            }
            waiting.push(work.say(Draft::inform(vec![b'x'; bytes])));
        }
        while waiting.next().await.transpose()?.is_some() {}
        start.pass(&message).await?;
    }
    Ok(())
}
