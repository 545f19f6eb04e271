//! The places in which a membrane may stand between an inside and an outside.

use crate::node::{Node, Place, client, give, within};
use crate::node_capnp::node;
use agora_membrane::{CallInfo, Membrane, Revoker, Verdict};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use std::cell::Cell;
use std::rc::Rc;
use tokio::task::JoinHandle;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    Local,
    BehindPromise,
    Nested,
    ServerSide,
    ClientSide,
    Proxy,
}

pub(crate) const TOPOLOGIES: [Topology; 6] = [
    Topology::Local,
    Topology::BehindPromise,
    Topology::Nested,
    Topology::ServerSide,
    Topology::ClientSide,
    Topology::Proxy,
];

impl Topology {
    /// Whether there is a connection between the two.
    pub(crate) fn is_remote(self) -> bool {
        matches!(
            self,
            Topology::ServerSide | Topology::ClientSide | Topology::Proxy
        )
    }
}

pub(crate) struct World {
    /// The object inside, and how the outside reaches it.
    pub(crate) inside: Rc<Node>,
    pub(crate) to_inside: node::Client,
    /// The object outside, and how the inside reaches it.
    pub(crate) outside: Rc<Node>,
    pub(crate) to_outside: node::Client,
    pub(crate) inside_alive: Rc<Cell<usize>>,
    pub(crate) outside_alive: Rc<Cell<usize>>,
    pub(crate) membranes: Vec<(Membrane, Revoker)>,
    pub(crate) checks: Rc<Cell<usize>>,
    connections: Vec<JoinHandle<Result<(), capnp::Error>>>,
}

impl World {
    pub(crate) async fn new(topology: Topology) -> World {
        let inside_alive = Rc::new(Cell::new(0));
        let outside_alive = Rc::new(Cell::new(0));
        let inside = Node::new(&inside_alive);
        let outside = Node::new(&outside_alive);
        let checks = Rc::new(Cell::new(0));
        let mut connections = Vec::new();
        let count = if topology == Topology::Nested { 2 } else { 1 };
        let membranes: Vec<_> = (0..count)
            .map(|_| {
                let checks = checks.clone();
                Membrane::new(move |_: &CallInfo| {
                    checks.set(checks.get() + 1);
                    Verdict::Allow
                })
            })
            .collect();
        let (membrane, _) = &membranes[0];
        let naked = client(&inside);
        let to_inside = match topology {
            Topology::Local => membrane.export(naked),
            Topology::BehindPromise => membrane.export(capnp_rpc::new_future_client(async move {
                tokio::task::yield_now().await;
                Ok(naked)
            })),
            Topology::Nested => membranes[1].0.export(membrane.export(naked)),
            Topology::ServerSide => connect(membrane.export(naked), &mut connections),
            Topology::ClientSide => membrane.export(connect(naked, &mut connections)),
            Topology::Proxy => {
                let proxied = membrane.export(connect(naked, &mut connections));
                connect(proxied, &mut connections)
            }
        };
        within(give(&to_inside, Place::Plain, &[client(&outside)]))
            .await
            .expect("nothing is revoked yet");
        let to_outside = inside.kept.take().remove(0);
        World {
            inside,
            to_inside,
            outside,
            to_outside,
            inside_alive,
            outside_alive,
            membranes,
            checks,
            connections,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.abort();
        }
    }
}

/// Serves `bootstrap` over a connection and returns it as the other end sees it.
pub(crate) fn connect(
    bootstrap: node::Client,
    connections: &mut Vec<JoinHandle<Result<(), capnp::Error>>>,
) -> node::Client {
    let (here, there) = tokio::io::duplex(1 << 16);
    let end = |stream: tokio::io::DuplexStream, side| {
        let (read, write) = tokio::io::split(stream);
        Box::new(twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            side,
            Default::default(),
        ))
    };
    let server = RpcSystem::new(
        end(here, rpc_twoparty_capnp::Side::Server),
        Some(bootstrap.client),
    );
    let mut dialler = RpcSystem::new(end(there, rpc_twoparty_capnp::Side::Client), None);
    let remote = dialler.bootstrap(rpc_twoparty_capnp::Side::Server);
    connections.push(tokio::task::spawn_local(server));
    connections.push(tokio::task::spawn_local(dialler));
    remote
}
