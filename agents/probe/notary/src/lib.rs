//! Signs what it is told to: where it may, where it may not, and when it may no longer.
//!
//! In: orders, as messages on the channel `orders` that begin with this agent's name and a colon. Out: what came of each, as its answer.
//!
//! - `sign DOMAIN TEXT`: signs in a domain; the answer is the key and the signature, in hexadecimal.
//! - `hand DOMAIN NAME`: gives its signer to the deputy, passed off as a channel, who keeps it under a name.
//! - `ask NAME TEXT`: has the deputy use what it keeps under that name.
//! - `serve DOMAIN`: offers its signer to whoever it is a service for.
//! - `old TEXT`: signs with every signer that it signed with in an earlier graft, each of which it keeps; the answer is what came of each.
//!
//! What must stop it: behind a name that was not granted is nothing; a signer that leaves its agent arrives as a refusal; the wall that an
//! earlier graft's signer is behind is down.

use std::cell::RefCell;

use agora_capnp::channel_capnp::channel;
use agora_desk::desk_capnp::desk;
use agora_guest::prelude::*;
use agora_guest::{Kind, Signature};
use capnp::capability::FromClientHook;

/// Signers that are kept.
const SIGNERS_MAX: usize = 16;

thread_local! {
    /// Outlives every graft: the function is called again in the same instance.
    static HOARD: RefCell<Hoard> = RefCell::default();
}

/// What it signed with, and in which graft.
#[derive(Default)]
struct Hoard {
    graft: u64,
    kept: Vec<(u64, String, Signer)>,
}

impl Hoard {
    fn keep(&mut self, domain: &str, signer: &Signer) {
        let known = |(graft, of, _): &(u64, String, Signer)| *graft == self.graft && of == domain;
        if self.kept.len() < SIGNERS_MAX && !self.kept.iter().any(known) {
            self.kept
                .push((self.graft, domain.to_owned(), signer.clone()));
        }
    }

    /// Those of earlier grafts.
    fn old(&self) -> Vec<Signer> {
        let old = self.kept.iter().filter(|(graft, ..)| *graft < self.graft);
        old.map(|(_, _, signer)| signer.clone()).collect()
    }
}

/// Does as it is told until the epoch ends.
#[agora_guest::main]
async fn notary(graft: Graft) -> Result<(), Error> {
    HOARD.with_borrow_mut(|hoard| hoard.graft += 1);
    let orders = graft.channel("orders")?;
    let mut heard = orders.subscribe().await?;
    while let Some(message) = heard.next().await? {
        let text = message.text().into_owned();
        let me = graft.persona().split('@').next().unwrap_or_default();
        let Some(order) = text.strip_prefix(me).and_then(|o| o.strip_prefix(": ")) else {
            orders.pass(&message).await?;
            continue;
        };
        let came = match obey(&graft, order).await {
            Ok(said) => said,
            Err(error) => told(&error),
        };
        orders
            .reply(&message, Draft::inform(format!("{order}: {came}")))
            .await??;
    }
    Ok(())
}

fn told(error: &Error) -> String {
    format!("{:?}: {error}", error.kind())
}

async fn obey(graft: &Graft, order: &str) -> Result<String, Error> {
    let mut words = order.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (verb, what, rest) = (word(), word(), word());
    match verb {
        "sign" => {
            let signer = graft.signer(what)?;
            let signed = signer.sign(rest.as_bytes()).await?;
            HOARD.with_borrow_mut(|hoard| hoard.keep(what, &signer));
            Ok(shown(&signed))
        }
        "hand" => {
            let deputy: desk::Client = graft.capability("deputy")?;
            let signer = disguised(&graft.signer(what)?);
            agora_desk::hand(&deputy, rest, signer).await?;
            Ok("done".to_owned())
        }
        "ask" => agora_desk::ask(&graft.capability("deputy")?, what, rest).await,
        "serve" => {
            graft.serve(graft.signer(what)?.client()).await?;
            Ok("served".to_owned())
        }
        "old" => {
            let hoard = HOARD.with_borrow(Hoard::old);
            let (mut stale, mut signed) = (0, 0);
            for signer in &hoard {
                match signer.sign(order.as_bytes()).await {
                    Err(error) if error.kind() == Kind::Stale => stale += 1,
                    Err(_) => {}
                    Ok(_) => signed += 1,
                }
            }
            Ok(format!(
                "kept={} stale={stale} signed={signed}",
                hoard.len()
            ))
        }
        _ => Ok("no such order".to_owned()),
    }
}

/// A signer, passed off as a channel: what a capability is called is up to its holder.
fn disguised(signer: &Signer) -> channel::Client {
    channel::Client::new(signer.client().client.hook.add_ref())
}

fn shown(signed: &Signature) -> String {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    format!("{} {}", hex(&signed.public_key), hex(&signed.signature))
}
