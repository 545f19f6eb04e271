//! Calls that a policy lets cross until something happens.

use crate::node::{Node, begin, client, eventually, fresh, ping, turns, within};
use crate::node_capnp::node;
use crate::worlds::{Topology, connect};
use agora_membrane::error::{self, Kind, classify};
use agora_membrane::{CallInfo, Expiry, Membrane, Revoker, Verdict};
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PLACES: [Topology; 5] = [
    Topology::Local,
    Topology::Nested,
    Topology::ServerSide,
    Topology::ClientSide,
    Topology::Proxy,
];

/// A node behind a membrane whose calls expire when they are told to.
struct Lent {
    inside: Rc<Node>,
    lent: node::Client,
    membrane: Membrane,
    revoker: Revoker,
    expire: watch::Sender<bool>,
    /// Expiries that have not been dropped.
    waiting: Rc<Cell<usize>>,
    connections: Vec<JoinHandle<Result<(), capnp::Error>>>,
}

struct Waiting(Rc<Cell<usize>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Lent {
    fn new(place: Topology) -> Lent {
        let (expire, told) = watch::channel(false);
        let waiting: Rc<Cell<usize>> = Rc::default();
        let count = waiting.clone();
        let (membrane, revoker) = Membrane::new(move |_: &CallInfo| {
            count.set(count.get() + 1);
            let waiting = Waiting(count.clone());
            let mut told = told.clone();
            let expiry: Expiry = Box::pin(async move {
                let _waiting = waiting;
                let _ = told.wait_for(|expired| *expired).await;
                error::busy("too late")
            });
            Verdict::AllowUntil(expiry)
        });
        let inside = Node::new(&Rc::default());
        let naked = client(&inside);
        let mut connections = Vec::new();
        let lent = match place {
            Topology::Nested => {
                let never: Rc<Cell<usize>> = Rc::default();
                let (outer, _) = Membrane::new(move |_: &CallInfo| {
                    let _ = &never;
                    Verdict::AllowUntil(Box::pin(std::future::pending()))
                });
                outer.export(membrane.export(naked))
            }
            Topology::ServerSide => connect(membrane.export(naked), &mut connections),
            Topology::ClientSide => membrane.export(connect(naked, &mut connections)),
            Topology::Proxy => {
                let proxied = membrane.export(connect(naked, &mut connections));
                connect(proxied, &mut connections)
            }
            _ => membrane.export(naked),
        };
        Lent {
            inside,
            lent,
            membrane,
            revoker,
            expire,
            waiting,
            connections,
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }
}

fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[track_caller]
fn assert_late<T>(outcome: Result<T, capnp::Error>, place: Topology) {
    let error = outcome.err().expect("it has expired");
    assert_eq!(classify(&error), Kind::Busy, "{place:?}: {error}");
    assert_eq!(error::reason(&error), "too late", "{place:?}");
}

#[test]
fn a_call_that_expires_is_dropped_at_its_callee_and_fails_with_the_policys_error() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            let sent = lent.lent.hang_request().send();
            let mut pinging = sent.pipeline.get_node().ping_request();
            pinging.get().set_n(1);
            let pipelined = begin(pinging.send().promise).await;
            let call = begin(sent.promise).await;
            assert!(eventually(|| lent.inside.hanging.get() == 1).await);
            lent.expire.send_replace(true);
            assert_late(within(call).await.unwrap(), place);
            assert_late(within(pipelined).await.unwrap(), place);
            assert!(
                eventually(|| lent.inside.hanging.get() == 0).await,
                "{place:?}"
            );
            assert_eq!(lent.membrane.calls_in_flight(), 0, "{place:?}");
            assert_eq!(lent.waiting.get(), 0, "{place:?}");
            // The membrane stands: what is called later goes through.
            lent.expire.send_replace(false);
            assert_eq!(within(ping(&lent.lent, 1)).await.unwrap(), 2, "{place:?}");
        }
    });
}

#[test]
fn what_was_pipelined_goes_with_it_even_if_nobody_calls_it() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            let sent = lent.lent.hang_request().send();
            let pipeline = sent.pipeline;
            let call = begin(sent.promise).await;
            assert!(eventually(|| lent.inside.hanging.get() == 1).await);
            lent.expire.send_replace(true);
            assert_late(within(call).await.unwrap(), place);
            assert!(
                eventually(|| lent.inside.hanging.get() == 0).await,
                "{place:?}"
            );
            assert_late(within(ping(&pipeline.get_node(), 1)).await, place);
        }
    });
}

#[test]
fn an_answer_in_time_ends_the_wait_for_what_cuts_it() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            lent.inside.kept.replace(vec![fresh(&Rc::default())]);
            assert_eq!(within(ping(&lent.lent, 1)).await.unwrap(), 2);
            let answer = within(lent.lent.next_request().send().promise)
                .await
                .unwrap();
            assert!(eventually(|| lent.waiting.get() == 0).await, "{place:?}");
            lent.expire.send_replace(true);
            turns(5).await;
            // What it answered is not cut by what came too late for the call.
            lent.expire.send_replace(false);
            let node = answer.get().unwrap().get_node().unwrap();
            assert_eq!(within(ping(&node, 1)).await.unwrap(), 2, "{place:?}");
        }
    });
}

#[test]
fn a_caller_that_goes_away_ends_the_wait_as_well() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            let call = begin(lent.lent.hang_request().send().promise).await;
            assert!(eventually(|| lent.inside.hanging.get() == 1).await);
            assert_eq!(lent.waiting.get(), 1);
            call.abort();
            assert!(eventually(|| lent.waiting.get() == 0).await, "{place:?}");
        }
    });
}

#[test]
fn a_callee_that_returns_but_hoards_its_results_is_not_waited_for() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            lent.inside.hoards_results.set(true);
            let call = begin(lent.lent.hang_request().send().promise).await;
            assert!(eventually(|| lent.inside.hoarded.borrow().is_some()).await);
            turns(20).await;
            lent.expire.send_replace(true);
            assert_late(within(call).await.unwrap().map(drop), place);
            assert_eq!(lent.membrane.calls_in_flight(), 0, "{place:?}");
        }
    });
}

#[test]
fn revocation_is_not_held_up_by_an_expiry_and_drops_it() {
    play(async {
        for place in PLACES {
            let lent = Lent::new(place);
            let call = begin(lent.lent.hang_request().send().promise).await;
            assert!(eventually(|| lent.inside.hanging.get() == 1).await);
            lent.revoker.revoke("over");
            assert_eq!(lent.waiting.get(), 0, "{place:?}");
            let error = within(call).await.unwrap().err().expect("it is cut");
            assert_eq!(classify(&error), Kind::Stale, "{place:?}");
        }
    });
}

#[test]
fn an_expiry_that_revokes_is_stale() {
    play(async {
        let slot: Rc<Cell<Option<Revoker>>> = Rc::default();
        let revokes = slot.clone();
        let (membrane, revoker) = Membrane::new(move |_: &CallInfo| {
            let revokes = revokes.clone();
            Verdict::AllowUntil(Box::pin(async move {
                turns(3).await;
                if let Some(revoker) = revokes.take() {
                    revoker.revoke("from within");
                }
                error::busy("too late")
            }))
        });
        slot.set(Some(revoker));
        let inside = Node::new(&Rc::default());
        let call = membrane.export(client(&inside)).hang_request().send();
        let error = within(call.promise).await.err().expect("it is cut");
        assert_eq!(classify(&error), Kind::Stale);
        assert_eq!(inside.hanging.get(), 0);
    });
}
