//! What probes and tests serve to each other: a clerk at a desk does with what it was granted and given whatever it is asked.
//!
//! In: a graft; calls of `desk.capnp`, which is the documentation. Out: what came of them.
//! Promise: it refuses nothing, so that whatever is refused, the host refused.

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::unimplemented,
    reason = "generated; the schema carries the documentation"
)]
#[rustfmt::skip]
pub mod desk_capnp;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use agora_capnp::channel_capnp::channel;
use agora_guest::{Channel, Draft, Error, Graft};
use desk_capnp::desk;

/// A clerk at its desk.
pub struct Clerk {
    graft: Graft,
    kept: RefCell<BTreeMap<String, channel::Client>>,
}

/// Serves a desk until the graft ends.
///
/// # Errors
/// Stale once it has.
pub async fn serve(graft: Graft) -> Result<(), Error> {
    let clerk = Clerk::new(&graft);
    let client: desk::Client = capnp_rpc::new_client_from_rc(clerk);
    graft.serve(client).await?;
    Err(graft.ended().await)
}

impl Clerk {
    /// One that keeps nothing yet.
    pub fn new(graft: &Graft) -> Rc<Self> {
        Rc::new(Self {
            graft: graft.clone(),
            kept: RefCell::default(),
        })
    }

    fn facet(&self, name: &str) -> Result<channel::Client, Error> {
        if let Some(kept) = self.kept.borrow().get(name) {
            return Ok(kept.clone());
        }
        let lent = self.graft.lent().iter();
        match lent.map(|lent| &lent.channel).find(|c| c.name() == name) {
            Some(lent) => Ok(lent.client()),
            None => Ok(self.graft.channel(name)?.client()),
        }
    }
}

/// Says one thing; empty when it counts.
pub async fn say(facet: channel::Client, text: &str) -> String {
    let facet = Channel::from_client("", facet);
    match facet.say(Draft::inform(text)).await {
        Ok(Ok(_)) => String::new(),
        Ok(Err(refused)) => format!("{:?}: {refused}", refused.reason.0),
        Err(error) => format!("{:?}: {error}", error.kind()),
    }
}

/// Asks a desk to say something; answers what it answered.
///
/// # Errors
/// The call itself failed.
pub async fn ask(desk: &desk::Client, name: &str, text: &str) -> Result<String, Error> {
    let mut request = desk.say_request();
    request.get().set_name(name);
    request.get().set_text(text);
    let response = request.send().promise.await?;
    Ok(response.get()?.get_error()?.to_str()?.to_owned())
}

/// Gives a desk a facet to keep.
///
/// # Errors
/// The call itself failed.
pub async fn hand(desk: &desk::Client, name: &str, facet: channel::Client) -> Result<(), Error> {
    let mut request = desk.keep_request();
    request.get().set_name(name);
    request.get().set_channel(facet);
    request.send().promise.await?;
    Ok(())
}

fn failed(error: Error) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}

impl desk::Server for Clerk {
    async fn keep(
        self: Rc<Self>,
        params: desk::KeepParams,
        _results: desk::KeepResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let name = params.get_name()?.to_string()?;
        let facet = params.get_channel()?;
        let old = self.kept.borrow_mut().insert(name, facet);
        drop(old);
        Ok(())
    }

    async fn fetch(
        self: Rc<Self>,
        params: desk::FetchParams,
        mut results: desk::FetchResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_name()?.to_string()?;
        results
            .get()
            .set_channel(self.facet(&name).map_err(failed)?);
        Ok(())
    }

    async fn say(
        self: Rc<Self>,
        params: desk::SayParams,
        mut results: desk::SayResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let facet = self.facet(params.get_name()?.to_str()?).map_err(failed)?;
        let error = say(facet, params.get_text()?.to_str()?).await;
        results.get().set_error(error.as_str());
        Ok(())
    }

    async fn pass(
        self: Rc<Self>,
        params: desk::PassParams,
        _results: desk::PassResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let facet = self.facet(params.get_name()?.to_str()?).map_err(failed)?;
        hand(&params.get_to()?, params.get_as()?.to_str()?, facet)
            .await
            .map_err(failed)
    }

    async fn relay(
        self: Rc<Self>,
        params: desk::RelayParams,
        mut results: desk::RelayResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let facet = self.facet(params.get_name()?.to_str()?).map_err(failed)?;
        let at: desk::Client = self
            .graft
            .capability(params.get_at()?.to_str()?)
            .map_err(failed)?;
        hand(&at, "relayed", facet).await.map_err(failed)?;
        let said = ask(&at, "relayed", params.get_text()?.to_str()?).await;
        results.get().set_error(said.map_err(failed)?.as_str());
        Ok(())
    }

    async fn hold(
        self: Rc<Self>,
        params: desk::HoldParams,
        _results: desk::HoldResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let _held = (params.get_channel(), params.get_desk());
        std::future::pending().await
    }

    async fn echo(
        self: Rc<Self>,
        params: desk::EchoParams,
        mut results: desk::EchoResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        results.get().set_desk(params.get_desk()?);
        results.get().set_text(params.get_text()?.to_str()?);
        Ok(())
    }
}
