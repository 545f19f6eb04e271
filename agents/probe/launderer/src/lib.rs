//! Passes what it has to others, so that it outlives it.
//!
//! In: orders, as messages on the channel `orders` that begin with this agent's name and a colon. Out: what came of each, as its answer.
//!
//! - `hand CHANNEL NAME`: gives its facet of a channel to the deputy, who keeps it under a name.
//! - `narrow CHANNEL NAME`: the same with a facet made for the purpose, which only reads and informs.
//! - `lend CHANNEL NAME`: the same with one that is lent for good.
//! - `ask NAME TEXT`: has the deputy say something through what it keeps under that name, or holds itself.
//! - `fetch NAME TEXT`: takes back what the deputy keeps, and says something through it itself.
//!
//! What must stop it: whatever was passed on hangs on the facet it was passed from. When this agent is killed, its grant
//! revoked, or the epoch over, the deputy is left with nothing of it.

use std::future::Future;
use std::rc::Rc;

use agora_desk::desk_capnp::desk;
use agora_guest::prelude::*;

/// Does as it is told until the epoch ends.
#[agora_guest::main]
async fn launderer(graft: Graft) -> Result<(), Error> {
    let orders = graft.channel("orders")?;
    let mut heard = orders.subscribe().await?;
    let mut kept = Vec::new();
    while let Some(message) = heard.next().await? {
        let text = message.text().into_owned();
        let me = graft.persona().split('@').next().unwrap_or_default();
        let Some(order) = text.strip_prefix(me).and_then(|o| o.strip_prefix(": ")) else {
            orders.pass(&message).await?;
            continue;
        };
        let done = match obey(&graft, order, &mut kept).await {
            Ok(said) if said.is_empty() => "done".to_owned(),
            Ok(said) => said,
            Err(error) => format!("{:?}: {error}", error.kind()),
        };
        orders
            .reply(&message, Draft::inform(format!("{order}: {done}")))
            .await??;
    }
    Ok(())
}

/// One that is made for the purpose lives as long as this graft.
type Kept = Vec<Rc<(Channel, agora_guest::Revoker)>>;

async fn obey(graft: &Graft, order: &str, kept: &mut Kept) -> Result<String, Error> {
    let deputy: desk::Client = graft.capability("deputy")?;
    let mut words = order.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (verb, what, rest) = (word(), word(), word());
    match verb {
        "hand" => {
            let facet = graft.channel(what)?;
            agora_desk::hand(&deputy, rest, facet.client()).await?;
            Ok(String::new())
        }
        "narrow" => {
            let terms = Terms {
                write: true,
                acts: Some(vec![Act::Inform]),
                initiate: true,
                ..Terms::read_only()
            };
            made(graft.channel(what)?.attenuate(&terms), &deputy, rest, kept).await
        }
        "lend" => {
            let facet = graft.channel(what)?;
            made(facet.attenuate_lasting(&Terms::all()), &deputy, rest, kept).await
        }
        "ask" => agora_desk::ask(&deputy, what, rest).await,
        "fetch" => {
            let mut request = deputy.fetch_request();
            request.get().set_name(what);
            let fetched = request.send().promise.await?;
            Ok(agora_desk::say(fetched.get()?.get_channel()?, rest).await)
        }
        _ => Ok("no such order".to_owned()),
    }
}

async fn made(
    making: impl Future<Output = Result<(Channel, agora_guest::Revoker), Error>>,
    deputy: &desk::Client,
    name: &str,
    kept: &mut Kept,
) -> Result<String, Error> {
    let made = Rc::new(making.await?);
    agora_desk::hand(deputy, name, made.0.client()).await?;
    kept.push(made);
    Ok(String::new())
}
