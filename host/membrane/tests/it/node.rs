//! An object that keeps, returns, calls and counts capabilities, and counts how many of its kind are alive.

use crate::node_capnp::{nested, node, payload};
use capnp::Error;
use capnp::capability::FromClientHook;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// Where in a payload capabilities stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Plain,
    List,
    Nested,
    Any,
    Everywhere,
}

pub(crate) const PLACES: [Place; 5] = [
    Place::Plain,
    Place::List,
    Place::Nested,
    Place::Any,
    Place::Everywhere,
];

pub(crate) fn pack(place: Place, nodes: &[node::Client], mut payload: payload::Builder<'_>) {
    let Some(first) = nodes.first() else { return };
    payload.set_data(b"beside the capabilities");
    if matches!(place, Place::Plain | Place::Everywhere) {
        payload.set_plain(first.clone());
    }
    if matches!(place, Place::List | Place::Everywhere) {
        let mut list = payload.reborrow().init_list(nodes.len() as u32);
        for (at, node) in nodes.iter().enumerate() {
            list.set(at as u32, node.client.hook.clone());
        }
    }
    if matches!(place, Place::Nested | Place::Everywhere) {
        pack_nested(nodes, payload.reborrow().init_nested());
    }
    if matches!(place, Place::Any | Place::Everywhere) {
        payload
            .init_any()
            .set_as_capability(first.client.hook.clone());
    }
}

fn pack_nested(nodes: &[node::Client], mut nested: nested::Builder<'_>) {
    nested.set_name("nested");
    let mut inner = nested.init_inner();
    inner.set_node(nodes[0].clone());
    inner.set_number(7);
    let mut others = inner.init_others(nodes.len() as u32 - 1);
    for (at, node) in nodes[1..].iter().enumerate() {
        others
            .reborrow()
            .get(at as u32)
            .init_inner()
            .set_node(node.clone());
    }
}

/// All capabilities of a payload, wherever they stand.
pub(crate) fn unpack(payload: payload::Reader<'_>) -> capnp::Result<Vec<node::Client>> {
    let mut nodes = Vec::new();
    if payload.has_plain() {
        nodes.push(payload.get_plain()?);
    }
    for node in payload.get_list()? {
        nodes.push(node?);
    }
    if payload.has_nested() {
        let inner = payload.get_nested()?.get_inner()?;
        assert_eq!(inner.get_number(), 7);
        nodes.push(inner.get_node()?);
        for other in inner.get_others()? {
            nodes.push(other.get_inner()?.get_node()?);
        }
    }
    if payload.has_any() {
        nodes.push(payload.get_any().get_as_capability()?);
    }
    if !nodes.is_empty() {
        assert_eq!(payload.get_data()?, b"beside the capabilities");
    }
    Ok(nodes)
}

#[derive(Default)]
pub(crate) struct Node {
    /// What it was given, or is to return, and in which shape.
    pub(crate) kept: RefCell<Vec<node::Client>>,
    pub(crate) place: Cell<Option<Place>>,
    pub(crate) written: RefCell<Vec<u64>>,
    pub(crate) pings: Cell<u64>,
    pub(crate) on_revoke: RefCell<Option<Box<dyn Fn()>>>,
    /// Whether `hang` returns, but keeps its results.
    pub(crate) hoards_results: Cell<bool>,
    pub(crate) hoarded: RefCell<Option<node::HangResults>>,
    /// Whether `give` adds to what is kept.
    pub(crate) gives_beside: Cell<bool>,
    /// How many calls of `hang` there are.
    pub(crate) hanging: Rc<Cell<usize>>,
    alive: Option<Rc<Cell<usize>>>,
}

struct Hanging(Rc<Cell<usize>>);

impl Hanging {
    fn new(count: &Rc<Cell<usize>>) -> Hanging {
        count.set(count.get() + 1);
        Hanging(count.clone())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Node {
    pub(crate) fn new(alive: &Rc<Cell<usize>>) -> Rc<Node> {
        alive.set(alive.get() + 1);
        let mut node = Node::default();
        node.alive = Some(alive.clone());
        Rc::new(node)
    }

    fn first(&self) -> Result<node::Client, Error> {
        self.kept
            .borrow()
            .first()
            .cloned()
            .ok_or_else(|| Error::failed("nothing kept".into()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(alive) = &self.alive {
            alive.set(alive.get() - 1);
        }
    }
}

pub(crate) fn client(node: &Rc<Node>) -> node::Client {
    capnp_rpc::new_client_from_rc(node.clone())
}

pub(crate) fn fresh(alive: &Rc<Cell<usize>>) -> node::Client {
    client(&Node::new(alive))
}

pub(crate) async fn turns(n: u32) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

impl node::Server for Node {
    /// Counts when it is dispatched, not when it is first polled.
    fn ping(
        self: Rc<Self>,
        params: node::PingParams,
        mut results: node::PingResults,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        self.pings.set(self.pings.get() + 1);
        async move {
            results.get().set_n(params.get()?.get_n() + 1);
            Ok(())
        }
    }

    async fn give(
        self: Rc<Self>,
        params: node::GiveParams,
        _: node::GiveResults,
    ) -> Result<(), Error> {
        let nodes = unpack(params.get()?.get_payload()?)?;
        if self.gives_beside.get() {
            self.kept.borrow_mut().extend(nodes);
            return Ok(());
        }
        let before = self.kept.replace(nodes);
        drop(before);
        Ok(())
    }

    async fn take(
        self: Rc<Self>,
        _: node::TakeParams,
        mut results: node::TakeResults,
    ) -> Result<(), Error> {
        let place = self.place.get().unwrap_or(Place::Everywhere);
        pack(place, &self.kept.borrow(), results.get().init_payload());
        Ok(())
    }

    async fn poke(
        self: Rc<Self>,
        params: node::PokeParams,
        mut results: node::PokeResults,
    ) -> Result<(), Error> {
        let n = ping(&self.first()?, params.get()?.get_n()).await?;
        results.get().set_n(n);
        Ok(())
    }

    async fn echo(
        self: Rc<Self>,
        params: node::EchoParams,
        mut results: node::EchoResults,
    ) -> Result<(), Error> {
        results.get().set_payload(params.get()?.get_payload()?)
    }

    async fn hang(
        self: Rc<Self>,
        _params: node::HangParams,
        results: node::HangResults,
    ) -> Result<(), Error> {
        if self.hoards_results.get() {
            self.hoarded.replace(Some(results));
            return Ok(());
        }
        let _hanging = Hanging::new(&self.hanging);
        std::future::pending().await
    }

    async fn next(
        self: Rc<Self>,
        _: node::NextParams,
        mut results: node::NextResults,
    ) -> Result<(), Error> {
        results.get().set_node(self.first()?);
        Ok(())
    }

    async fn late(
        self: Rc<Self>,
        params: node::LateParams,
        mut results: node::LateResults,
    ) -> Result<(), Error> {
        let after = params.get()?.get_after();
        let first = self.first()?;
        results
            .get()
            .set_node(capnp_rpc::new_future_client(async move {
                turns(after).await;
                Ok(first)
            }));
        Ok(())
    }

    async fn slow(
        self: Rc<Self>,
        params: node::SlowParams,
        mut results: node::SlowResults,
    ) -> Result<(), Error> {
        turns(params.get()?.get_after()).await;
        results.get().set_node(self.first()?);
        Ok(())
    }

    async fn write(self: Rc<Self>, params: node::WriteParams) -> Result<(), Error> {
        let n = params.get()?.get_n();
        turns(1).await;
        self.written.borrow_mut().push(n);
        Ok(())
    }

    async fn written(
        self: Rc<Self>,
        _: node::WrittenParams,
        mut results: node::WrittenResults,
    ) -> Result<(), Error> {
        let written = self.written.borrow();
        results.get().set_numbers(&written[..])
    }

    async fn early(
        self: Rc<Self>,
        _: node::EarlyParams,
        mut results: node::EarlyResults,
    ) -> Result<(), Error> {
        results.get().set_node(self.first()?);
        results.set_pipeline()?;
        std::future::pending().await
    }

    async fn revoke(
        self: Rc<Self>,
        _: node::RevokeParams,
        _: node::RevokeResults,
    ) -> Result<(), Error> {
        if let Some(revoke) = &*self.on_revoke.borrow() {
            revoke();
        }
        Ok(())
    }

    async fn clog(self: Rc<Self>, _: node::ClogParams) -> Result<(), Error> {
        std::future::pending().await
    }
}

pub(crate) async fn ping(node: &node::Client, n: u64) -> Result<u64, Error> {
    let mut request = node.ping_request();
    request.get().set_n(n);
    Ok(request.send().promise.await?.get()?.get_n())
}

pub(crate) async fn give(
    to: &node::Client,
    place: Place,
    nodes: &[node::Client],
) -> Result<(), Error> {
    let mut request = to.give_request();
    pack(place, nodes, request.get().init_payload());
    request.send().promise.await.map(drop)
}

pub(crate) async fn take(from: &node::Client) -> Result<Vec<node::Client>, Error> {
    unpack(
        from.take_request()
            .send()
            .promise
            .await?
            .get()?
            .get_payload()?,
    )
}

pub(crate) async fn echo(
    by: &node::Client,
    place: Place,
    nodes: &[node::Client],
) -> Result<Vec<node::Client>, Error> {
    let mut request = by.echo_request();
    pack(place, nodes, request.get().init_payload());
    unpack(request.send().promise.await?.get()?.get_payload()?)
}

/// What a promised capability turned out to be. (`get_resolved_cap` waits for ever for a promise client of a connection
/// that has resolved already.)
pub(crate) async fn settled(node: node::Client) -> Result<node::Client, Error> {
    let mut hook = node.into_client_hook();
    loop {
        if let Some(resolved) = hook.get_resolved() {
            hook = resolved;
        } else if let Some(next) = hook.when_more_resolved() {
            hook = next.await?;
        } else {
            return Ok(node::Client::new(hook));
        }
    }
}

/// Tells capabilities apart.
pub(crate) async fn identity(node: &node::Client) -> (usize, usize) {
    let resolved = settled(node.clone())
        .await
        .expect("only what has resolved is asked");
    let hook = resolved.as_client_hook();
    (hook.get_brand(), hook.get_ptr())
}

/// Fails, rather than hangs, if `future` is not done after very many turns of the loop.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..20_000 {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(value) = polled {
            return value;
        }
        turns(1).await;
    }
    panic!("still waiting after 20,000 turns");
}

/// Waits for `fact` to become true, not for ever.
pub(crate) async fn eventually(fact: impl Fn() -> bool) -> bool {
    for _ in 0..2_000 {
        if fact() {
            return true;
        }
        turns(1).await;
    }
    fact()
}

/// Polls `promise` until it waits for others.
pub(crate) async fn begin<T: 'static>(
    promise: impl Future<Output = Result<T, Error>> + 'static,
) -> tokio::task::JoinHandle<Result<T, Error>> {
    let task = tokio::task::spawn_local(promise);
    turns(1).await;
    task
}
