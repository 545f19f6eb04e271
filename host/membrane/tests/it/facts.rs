//! Single promises, each by itself.

use crate::crossings::assert_stale;
use crate::node::{
    Node, Place, begin, client, echo, eventually, fresh, give, identity, ping, settled, take,
    turns, within,
};
use crate::node_capnp::node;
use crate::worlds::{TOPOLOGIES, Topology, World, connect};
use agora_membrane::error::{self, Kind, classify};
use agora_membrane::{CallInfo, Membrane, Policy, Side, Verdict};
use capnp::any_pointer;
use capnp::capability::FromClientHook;
use capnp::capability::Promise;
use capnp::private::capability::{ClientHook, ParamsHook, PipelineHook, RequestHook, ResultsHook};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn allow(_: &CallInfo) -> Verdict {
    Verdict::Allow
}

fn node() -> (Rc<Node>, node::Client) {
    let node = Node::new(&Rc::default());
    let client = client(&node);
    (node, client)
}

const PING: (u64, u16) = (<node::Client as capnp::traits::HasTypeId>::TYPE_ID, 0);
const POKE: (u64, u16) = (PING.0, 3);

#[test]
fn the_policy_is_asked_once_about_each_crossing_call_in_either_direction() {
    play(async {
        let asked: Rc<RefCell<Vec<CallInfo>>> = Rc::default();
        let log = asked.clone();
        let (membrane, _revoker) = Membrane::new(move |call: &CallInfo| {
            log.borrow_mut().push(*call);
            Verdict::Allow
        });
        let (inside, naked) = node();
        let to_inside = membrane.export(naked);
        let (_, outside) = node();
        inside.kept.replace(vec![membrane.import(outside)]);
        let mut request = to_inside.poke_request();
        request.get().set_n(4);
        assert!(asked.borrow().is_empty(), "an unsent request is no call");
        let response = request.send().promise.await.unwrap();
        assert_eq!(response.get().unwrap().get_n(), 5);
        let inward = CallInfo::new(Side::Inside, POKE.0, POKE.1);
        let outward = CallInfo::new(Side::Outside, PING.0, PING.1);
        assert_eq!(*asked.borrow(), [inward, outward]);
    });
}

#[test]
fn a_denied_call_answers_the_policys_error_and_never_reaches_its_callee() {
    play(async {
        for topology in [Topology::Local, Topology::ServerSide] {
            let (membrane, _revoker) =
                Membrane::new(|_: &CallInfo| Verdict::Deny(error::denied("not you")));
            let (inside, naked) = node();
            let mut connections = Vec::new();
            let to_inside = match topology {
                Topology::Local => membrane.export(naked),
                _ => connect(
                    connect(membrane.export(naked), &mut connections),
                    &mut connections,
                ),
            };
            let refused = within(ping(&to_inside, 1)).await.expect_err("it is denied");
            assert_eq!(classify(&refused), Kind::Denied);
            assert_eq!(error::reason(&refused), "not you");
            let pipelined = to_inside.next_request().send().pipeline.get_node();
            let refused = within(ping(&pipelined, 1)).await.expect_err("it is denied");
            assert_eq!(classify(&refused), Kind::Denied);
            // A connection lets a stream's caller go on before its callee has answered.
            let streamed = within(to_inside.write_request().send()).await;
            assert!(
                streamed.is_err_and(|refused| classify(&refused) == Kind::Denied)
                    || topology.is_remote()
            );
            assert_eq!(inside.pings.get(), 0);
            assert_eq!(membrane.calls_in_flight(), 0);
            connections.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

#[test]
fn a_flag_set_by_another_thread_stops_the_next_call() {
    play(async {
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = stopped.clone();
        let (membrane, _revoker) = Membrane::new(move |_: &CallInfo| {
            if flag.load(Ordering::Relaxed) {
                Verdict::Deny(error::stale("the epoch ended"))
            } else {
                Verdict::Allow
            }
        });
        let (inside, naked) = node();
        let to_inside = membrane.export(naked);
        assert_eq!(ping(&to_inside, 1).await.unwrap(), 2);
        std::thread::spawn(move || stopped.store(true, Ordering::Relaxed))
            .join()
            .unwrap();
        assert_stale(ping(&to_inside, 1).await.map(drop), "the epoch ended");
        assert_eq!(inside.pings.get(), 1);
    });
}

#[test]
fn a_redirected_call_crosses_to_where_the_policy_says() {
    play(async {
        for remote in [false, true] {
            let (instead, instead_client) = node();
            let mut connections = Vec::new();
            let there = if remote {
                connect(instead_client, &mut connections)
            } else {
                instead_client
            };
            let (membrane, revoker) = Membrane::new(move |_: &CallInfo| {
                Verdict::Redirect(there.as_client_hook().add_ref())
            });
            let (inside, naked) = node();
            let to_inside = membrane.export(naked);
            assert_eq!(within(ping(&to_inside, 1)).await.unwrap(), 2);
            assert_eq!((inside.pings.get(), instead.pings.get()), (0, 1));
            let alive = Rc::default();
            let given = fresh(&alive);
            within(give(&to_inside, Place::Plain, &[given]))
                .await
                .unwrap();
            let hanging = begin(to_inside.hang_request().send().promise).await;
            assert_eq!(membrane.calls_in_flight(), 1);
            revoker.revoke("no more");
            assert_stale(within(hanging).await.unwrap().map(drop), "no more");
            assert!(
                eventually(|| alive.get() == 0).await,
                "what went with the call was not wrapped"
            );
            connections.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

#[test]
fn a_callee_may_revoke_from_within_its_own_call() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            let (membrane, revoker) = world.membranes[0].clone();
            world
                .inside
                .on_revoke
                .replace(Some(Box::new(move || revoker.revoke("from within"))));
            let outcome = within(world.to_inside.revoke_request().send().promise).await;
            assert_stale(outcome.map(drop), "from within");
            assert_eq!(membrane.calls_in_flight(), 0, "{topology:?}");
        }
    });
}

#[test]
fn a_policy_may_revoke_and_then_the_call_is_stale_whatever_it_answers() {
    play(async {
        let revoker: Rc<RefCell<Option<agora_membrane::Revoker>>> = Rc::default();
        let its = revoker.clone();
        let (membrane, the_revoker) = Membrane::new(move |_: &CallInfo| {
            its.borrow()
                .as_ref()
                .expect("it is set before any call")
                .revoke("by policy");
            Verdict::Allow
        });
        revoker.replace(Some(the_revoker));
        let (inside, naked) = node();
        let to_inside = membrane.export(naked);
        assert_stale(ping(&to_inside, 1).await.map(drop), "by policy");
        assert_eq!(inside.pings.get(), 0);
    });
}

#[test]
fn the_first_reason_stays() {
    play(async {
        let (membrane, revoker) = Membrane::new(allow);
        let (_, naked) = node();
        let to_inside = membrane.export(naked);
        revoker.revoke("first");
        revoker.clone().revoke("second");
        let error = ping(&to_inside, 1).await.expect_err("it is revoked");
        assert_eq!(error::reason(&error), "first");
        let (_, another) = node();
        assert_stale(
            ping(&membrane.export(another.clone()), 1).await.map(drop),
            "first",
        );
        assert_stale(ping(&membrane.import(another), 1).await.map(drop), "first");
    });
}

#[test]
fn a_capability_has_one_wrapper_as_long_as_it_is_held() {
    play(async {
        let (membrane, _revoker) = Membrane::new(allow);
        let (_, naked) = node();
        let once = membrane.export(naked.clone());
        let again = membrane.export(naked.clone());
        assert_eq!(identity(&once).await, identity(&again).await);
        let exported_twice = membrane.export(once.clone());
        assert_eq!(identity(&once).await, identity(&exported_twice).await);
        let home = membrane.import(once.clone());
        assert_eq!(identity(&home).await, identity(&naked).await);
        let promised: node::Client = capnp_rpc::new_future_client(std::future::ready(Ok(naked)));
        promised.client.when_resolved().await.unwrap();
        assert_eq!(
            identity(&membrane.export(promised)).await,
            identity(&once).await
        );
    });
}

#[test]
fn the_two_sides_of_one_capability_are_two_wrappers() {
    play(async {
        let sides: Rc<RefCell<Vec<Side>>> = Rc::default();
        let log = sides.clone();
        let (membrane, _revoker) = Membrane::new(move |call: &CallInfo| {
            log.borrow_mut().push(call.callee);
            Verdict::Allow
        });
        let (_, naked) = node();
        let out = membrane.export(naked.clone());
        let into = membrane.import(naked);
        ping(&out, 1).await.unwrap();
        ping(&into, 1).await.unwrap();
        assert_eq!(*sides.borrow(), [Side::Inside, Side::Outside]);
    });
}

#[test]
fn a_wrapper_nobody_holds_lets_go_of_its_capability() {
    play(async {
        let alive = Rc::new(Cell::new(0));
        let (membrane, _revoker) = Membrane::new(allow);
        for _ in 0..10 {
            let wrapped = membrane.export(fresh(&alive));
            assert_eq!(alive.get(), 1);
            ping(&wrapped, 1).await.unwrap();
        }
        assert_eq!(alive.get(), 0);
    });
}

#[test]
fn what_came_home_outlives_the_revocation() {
    play(async {
        let world = World::new(Topology::Local).await;
        let mine = fresh(&world.outside_alive);
        let back = echo(&world.to_inside, Place::List, std::slice::from_ref(&mine))
            .await
            .unwrap();
        world.membranes[0].1.revoke("over");
        assert_eq!(identity(&back[0]).await, identity(&mine).await);
        assert_eq!(ping(&back[0], 1).await.unwrap(), 2);
    });
}

#[test]
fn a_wrapper_that_comes_home_too_late_is_stale() {
    play(async {
        let (membrane, revoker) = Membrane::new(allow);
        let (_, naked) = node();
        let out = membrane.export(naked);
        revoker.revoke("over");
        assert_stale(ping(&membrane.import(out), 1).await.map(drop), "over");
    });
}

#[test]
fn an_unsent_request_keeps_nothing_alive() {
    play(async {
        let alive = Rc::new(Cell::new(0));
        let (membrane, revoker) = Membrane::new(allow);
        let request = membrane.export(fresh(&alive)).ping_request();
        assert_eq!(alive.get(), 1);
        revoker.revoke("over");
        assert_eq!(alive.get(), 0);
        assert_stale(request.send().promise.await.map(drop), "over");
    });
}

#[test]
fn a_response_and_its_pipeline_keep_nothing_alive() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            world.inside.kept.replace(vec![fresh(&world.inside_alive)]);
            let sent = world.to_inside.next_request().send();
            let pipelined = sent.pipeline.get_node();
            let response = within(sent.promise).await.unwrap();
            assert_eq!(within(ping(&pipelined, 1)).await.unwrap(), 2);
            world.membranes[0].1.revoke("over");
            world.inside.kept.take();
            assert!(
                eventually(|| world.inside_alive.get() == 1).await,
                "{topology:?}"
            );
            let kept = response.get().unwrap().get_node().unwrap();
            assert_stale(within(ping(&kept, 1)).await.map(drop), "over");
            assert_stale(within(ping(&pipelined, 1)).await.map(drop), "over");
        }
    });
}

#[test]
fn calls_in_flight_are_counted_exactly_in_both_directions() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            let (membrane, revoker) = &world.membranes[0];
            let mut inward = Vec::new();
            let mut outward = Vec::new();
            for at in 0..5 {
                inward.push(begin(world.to_inside.hang_request().send().promise).await);
                outward.push(begin(world.to_outside.hang_request().send().promise).await);
                assert!(
                    eventually(|| membrane.calls_in_flight() == 2 * (at + 1)).await,
                    "{topology:?}"
                );
            }
            within(ping(&world.to_inside, 1)).await.unwrap();
            assert_eq!(membrane.calls_in_flight(), 10);
            inward.pop().expect("five were begun").abort();
            assert!(
                eventually(|| membrane.calls_in_flight() == 9).await,
                "{topology:?}"
            );
            outward.pop().expect("five were begun").abort();
            assert!(
                eventually(|| membrane.calls_in_flight() == 8).await,
                "{topology:?}"
            );
            revoker.revoke("counted");
            assert_eq!(membrane.calls_in_flight(), 0);
            for call in inward.into_iter().chain(outward) {
                assert_stale(within(call).await.unwrap().map(drop), "counted");
            }
        }
    });
}

#[test]
fn a_pipeline_without_its_promise_counts_only_where_it_keeps_the_call_going() {
    play(async {
        for (topology, counted) in [(Topology::Local, 1), (Topology::ClientSide, 0)] {
            let world = World::new(topology).await;
            let (membrane, revoker) = &world.membranes[0];
            let sent = world.to_inside.hang_request().send();
            let pipelined = sent.pipeline.get_node();
            let waiting = begin(sent.promise).await;
            assert_eq!(membrane.calls_in_flight(), 1);
            waiting.abort();
            turns(2).await;
            assert_eq!(membrane.calls_in_flight(), counted, "{topology:?}");
            revoker.revoke("over");
            assert_stale(within(ping(&pipelined, 1)).await.map(drop), "over");
        }
    });
}

#[test]
fn revocation_drops_a_call_at_its_callee() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            let inward = begin(world.to_inside.hang_request().send().promise).await;
            let outward = begin(world.to_outside.hang_request().send().promise).await;
            let hanging = || world.inside.hanging.get() + world.outside.hanging.get();
            assert!(eventually(|| hanging() == 2).await, "{topology:?}");
            world.membranes[0].1.revoke("over");
            if topology.is_remote() {
                assert!(eventually(|| hanging() == 0).await, "{topology:?}");
            }
            assert_eq!(hanging(), 0, "{topology:?}");
            drop((inward, outward));
        }
    });
}

#[test]
fn a_promise_sent_back_before_it_resolves_comes_home_when_it_does() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            world.inside.kept.replace(vec![fresh(&world.inside_alive)]);
            let mut request = world.to_inside.slow_request();
            request.get().set_after(10);
            let sent = request.send();
            let pipelined = sent.pipeline.get_node();
            let answering = begin(sent.promise).await;
            let kept = world.inside.kept.borrow()[0].clone();
            world.inside.gives_beside.set(true);
            let to_inside = world.to_inside.clone();
            let back =
                begin(async move { give(&to_inside, Place::Plain, &[pipelined]).await }).await;
            within(back).await.unwrap().unwrap();
            within(answering).await.unwrap().unwrap();
            let home = world.inside.kept.borrow()[1].clone();
            assert_eq!(within(ping(&home, 1)).await.unwrap(), 2);
            let home = within(settled(home)).await.unwrap();
            assert_eq!(identity(&home).await, identity(&kept).await, "{topology:?}");
            world.membranes[0].1.revoke("over");
            assert_eq!(within(ping(&home, 1)).await.unwrap(), 2);
        }
    });
}

#[test]
fn a_promise_that_resolves_to_itself_harms_nobody() {
    play(async {
        for topology in [Topology::Local, Topology::BehindPromise, Topology::Nested] {
            let world = World::new(topology).await;
            let mut request = world.to_inside.slow_request();
            request.get().set_after(10);
            let sent = request.send();
            let pipelined = sent.pipeline.get_node();
            let answering = begin(sent.promise).await;
            // What the call will answer becomes what it answers.
            give(
                &world.to_inside,
                Place::Plain,
                std::slice::from_ref(&pipelined),
            )
            .await
            .unwrap();
            let answer = within(answering).await.unwrap().unwrap();
            let itself = answer.get().unwrap().get_node().unwrap();
            for node in [&itself, &pipelined] {
                let error = within(ping(node, 1))
                    .await
                    .expect_err("there is nobody to answer");
                assert_eq!(classify(&error), Kind::Failed, "{topology:?}");
            }
        }
    });
}

#[test]
fn a_promise_that_resolves_to_its_own_wrapper_harms_nobody() {
    play(async {
        let (membrane, revoker) = Membrane::new(allow);
        let (resolve, resolution) = futures::channel::oneshot::channel::<node::Client>();
        let promise: node::Client = capnp_rpc::new_future_client(async move {
            resolution
                .await
                .map_err(|_| capnp::Error::failed("never resolved".into()))
        });
        let wrapped = membrane.export(promise);
        let queued = begin(wrapped.ping_request().send().promise).await;
        assert!(resolve.send(wrapped.clone()).is_ok());
        let error = within(queued)
            .await
            .unwrap()
            .map(drop)
            .expect_err("there is nobody to answer");
        assert_eq!(classify(&error), Kind::Failed);
        let error = within(ping(&wrapped, 1))
            .await
            .expect_err("there is nobody to answer");
        assert_eq!(classify(&error), Kind::Failed);
        assert!(wrapped.as_client_hook().get_resolved().is_some());
        assert_eq!(membrane.calls_in_flight(), 0);
        revoker.revoke("over");
        assert_stale(within(ping(&wrapped, 1)).await.map(drop), "over");
    });
}

#[test]
fn a_call_nobody_waits_for_is_dropped_at_its_callee() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            let before = world.outside_alive.get();
            let mut request = world.to_inside.hang_request();
            request.get().set_node(fresh(&world.outside_alive));
            let hanging = begin(request.send().promise).await;
            assert!(eventually(|| world.membranes[0].0.calls_in_flight() == 1).await);
            assert_eq!(world.outside_alive.get(), before + 1);
            hanging.abort();
            assert!(
                eventually(|| world.outside_alive.get() == before).await,
                "{topology:?}"
            );
        }
    });
}

struct Dropping(Rc<Cell<bool>>);

impl Policy for Dropping {
    fn check(&self, _: &CallInfo) -> Verdict {
        Verdict::Allow
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn revocation_drops_the_policy() {
    let dropped = Rc::new(Cell::new(false));
    let (_membrane, revoker) = Membrane::new(Dropping(dropped.clone()));
    assert!(!dropped.get());
    revoker.revoke("over");
    assert!(dropped.get());
}

#[test]
fn streamed_calls_arrive_in_order_and_before_what_follows() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            let mut writes = Vec::new();
            for n in 0..20 {
                let mut request = world.to_inside.write_request();
                request.get().set_n(n);
                writes.push(begin(request.send()).await);
            }
            let written = within(world.to_inside.written_request().send().promise)
                .await
                .unwrap();
            let numbers: Vec<u64> = written
                .get()
                .unwrap()
                .get_numbers()
                .unwrap()
                .iter()
                .collect();
            assert_eq!(numbers, (0..20).collect::<Vec<u64>>(), "{topology:?}");
            for write in writes {
                within(write).await.unwrap().unwrap();
            }
            assert!(
                eventually(|| world.membranes[0].0.calls_in_flight() == 0).await,
                "{topology:?}"
            );
        }
    });
}

#[test]
fn calls_queued_behind_a_stream_do_not_begin_because_it_is_cut() {
    play(async {
        for topology in [
            Topology::Local,
            Topology::BehindPromise,
            Topology::Nested,
            Topology::ServerSide,
        ] {
            let world = World::new(topology).await;
            let clogged = begin(world.to_inside.clog_request().send()).await;
            let mut queued = Vec::new();
            for n in 0..5 {
                let mut request = world.to_inside.ping_request();
                request.get().set_n(n);
                queued.push(begin(request.send().promise).await);
            }
            let (membrane, revoker) = &world.membranes[0];
            // On a connection the caller of a stream need not wait for it.
            assert!(
                eventually(|| membrane.calls_in_flight() == 6).await,
                "{topology:?}"
            );
            turns(5).await;
            revoker.revoke("cut");
            for call in queued {
                assert_stale(within(call).await.unwrap().map(drop), "cut");
            }
            let clogged = within(clogged).await.unwrap();
            assert!(clogged.is_err() || topology == Topology::ServerSide);
            turns(20).await;
            assert_eq!(world.inside.pings.get(), 0, "{topology:?}");
        }
    });
}

#[test]
fn an_early_pipeline_is_wrapped_and_revoked() {
    play(async {
        // Through a proxy between connections, capnp-rpc lets pipelined calls wait for the answer.
        for topology in TOPOLOGIES
            .into_iter()
            .filter(|topology| *topology != Topology::Proxy)
        {
            let world = World::new(topology).await;
            world.inside.kept.replace(vec![fresh(&world.inside_alive)]);
            let sent = world.to_inside.early_request().send();
            let pipelined = sent.pipeline.get_node();
            let hanging = begin(sent.promise).await;
            let checks = world.checks.get();
            assert_eq!(
                within(ping(&pipelined, 1)).await.unwrap(),
                2,
                "{topology:?}"
            );
            assert!(world.checks.get() > checks);
            world.membranes[0].1.revoke("over");
            assert_stale(within(hanging).await.unwrap().map(drop), "over");
            assert_stale(within(ping(&pipelined, 1)).await.map(drop), "over");
            world.inside.kept.take();
            assert!(
                eventually(|| world.inside_alive.get() == 1).await,
                "{topology:?}"
            );
        }
    });
}

#[test]
fn a_callee_that_never_lets_go_of_its_results_cannot_hold_up_a_revocation() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            world.inside.hoards_results.set(true);
            let call = begin(world.to_inside.hang_request().send().promise).await;
            assert!(
                eventually(|| world.inside.hoarded.borrow().is_some()).await,
                "{topology:?}"
            );
            turns(20).await;
            assert!(!call.is_finished());
            // The caller's side cannot let go of what its own callee hoards beyond a connection.
            world.membranes[0].1.revoke("over");
            assert_stale(within(call).await.unwrap().map(drop), "over");
            assert_eq!(world.membranes[0].0.calls_in_flight(), 0);
        }
    });
}

#[test]
fn results_let_go_of_later_are_delivered_then() {
    play(async {
        for topology in TOPOLOGIES {
            let world = World::new(topology).await;
            world.inside.hoards_results.set(true);
            let call = begin(world.to_inside.hang_request().send().promise).await;
            assert!(eventually(|| world.inside.hoarded.borrow().is_some()).await);
            turns(20).await;
            let mut results = world.inside.hoarded.take().expect("it is hoarded");
            results.get().set_node(fresh(&world.inside_alive));
            drop(results);
            let answered = within(call).await.unwrap().unwrap();
            let node = answered.get().unwrap().get_node().unwrap();
            assert_eq!(within(ping(&node, 1)).await.unwrap(), 2, "{topology:?}");
        }
    });
}

#[test]
fn whoever_is_left_waiting_still_drives_the_call() {
    play(async {
        for topology in TOPOLOGIES {
            for leaves_first in [true, false] {
                let world = World::new(topology).await;
                world.inside.kept.replace(vec![fresh(&world.inside_alive)]);
                let mut request = world.to_inside.slow_request();
                request.get().set_after(10);
                let sent = request.send();
                let pipelined = sent.pipeline.get_node();
                let mut request = pipelined.ping_request();
                request.get().set_n(1);
                let pinging = request.send().promise;
                let (leaver, stayer) = if leaves_first {
                    let leaver = begin(sent.promise).await;
                    (leaver, begin(pinging).await)
                } else {
                    let stayer = begin(pinging).await;
                    (begin(sent.promise).await, stayer)
                };
                leaver.abort();
                let response = within(stayer).await.unwrap().unwrap();
                assert_eq!(response.get().unwrap().get_n(), 2, "{topology:?}");
                within(settled(pipelined)).await.unwrap();
            }
        }
    });
}

#[test]
fn whoever_is_left_waiting_for_hoarded_results_gets_them() {
    play(async {
        let world = World::new(Topology::Local).await;
        world.inside.hoards_results.set(true);
        let sent = world.to_inside.hang_request().send();
        let pipelined = sent.pipeline.get_node();
        let first = begin(sent.promise).await;
        let mut results = world.inside.hoarded.take().expect("it has returned");
        let second = begin(pipelined.ping_request().send().promise).await;
        first.abort();
        turns(3).await;
        results.get().set_node(fresh(&world.inside_alive));
        drop(results);
        within(second).await.unwrap().unwrap();
    });
}

/// Params and results of a call nobody polls.
struct Unpolled {
    _held: Rc<()>,
}

impl ParamsHook for Unpolled {
    fn get(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        panic!("the call never began")
    }
}

impl ResultsHook for Unpolled {
    fn get(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        panic!("the call never began")
    }

    fn set_pipeline(&mut self) -> capnp::Result<()> {
        panic!("the call never began")
    }

    fn allow_cancellation(&self) {}

    fn tail_call(self: Box<Self>, _: Box<dyn RequestHook>) -> Promise<(), capnp::Error> {
        panic!("the call never began")
    }

    fn direct_tail_call(
        self: Box<Self>,
        _: Box<dyn RequestHook>,
    ) -> (Promise<(), capnp::Error>, Box<dyn PipelineHook>) {
        panic!("the call never began")
    }
}

#[test]
fn revocation_lets_go_of_a_call_nobody_has_polled() {
    play(async {
        let (membrane, revoker) = Membrane::new(allow);
        let (_, naked) = node();
        let wrapped = membrane.export(naked);
        let held = Rc::new(());
        let (params, results) = (
            Unpolled {
                _held: held.clone(),
            },
            Unpolled {
                _held: held.clone(),
            },
        );
        let promise =
            wrapped
                .as_client_hook()
                .call(PING.0, PING.1, Box::new(params), Box::new(results));
        assert_eq!(membrane.calls_in_flight(), 0, "it has not begun");
        revoker.revoke("over");
        assert_eq!(Rc::strong_count(&held), 1);
        assert_stale(promise.await, "over");
    });
}

#[test]
fn waiting_for_a_promise_to_resolve_ends_when_it_is_revoked() {
    play(async {
        let (membrane, revoker) = Membrane::new(allow);
        let never: node::Client = capnp_rpc::new_future_client(std::future::pending());
        let wrapped = membrane.export(never);
        let resolution = begin(wrapped.client.when_resolved()).await;
        assert_eq!(membrane.calls_in_flight(), 0, "waiting is no call");
        revoker.revoke("over");
        assert_stale(within(resolution).await.unwrap(), "over");
    });
}

#[test]
fn either_of_two_nested_membranes_cuts_alone() {
    play(async {
        for which in 0..2 {
            let world = World::new(Topology::Nested).await;
            world.inside.kept.replace(vec![fresh(&world.inside_alive)]);
            let taken = take(&world.to_inside).await.unwrap();
            let hanging = begin(world.to_inside.hang_request().send().promise).await;
            for (membrane, _) in &world.membranes {
                assert_eq!(membrane.calls_in_flight(), 1);
            }
            world.membranes[which].1.revoke("one of two");
            for (membrane, _) in &world.membranes {
                assert_eq!(membrane.calls_in_flight(), 0, "{which}");
            }
            assert!(!world.membranes[1 - which].0.is_revoked());
            assert_stale(within(hanging).await.unwrap().map(drop), "one of two");
            assert_stale(ping(&taken[0], 1).await.map(drop), "one of two");
            world.inside.kept.take();
            assert_eq!(world.inside_alive.get(), 1, "{which}");
        }
    });
}

#[test]
fn many_membranes_around_one_wrapper_have_one_wrapper_each() {
    play(async {
        let alive = Rc::new(Cell::new(0));
        let (inner, _inner_revoker) = Membrane::new(allow);
        let shared = inner.export(fresh(&alive));
        let outer: Vec<_> = (0..4).map(|_| Membrane::new(allow)).collect();
        let wrap = || -> Vec<node::Client> {
            let each = outer.iter().flat_map(|(membrane, _)| {
                [
                    membrane.export(shared.clone()),
                    membrane.import(shared.clone()),
                ]
            });
            each.collect()
        };
        let mut held = wrap();
        let mut known = Vec::new();
        for wrapped in &held {
            known.push(identity(wrapped).await);
        }
        for (at, this) in known.iter().enumerate() {
            assert!(!known[..at].contains(this));
        }
        // Each in turn is dropped, and comes back beside the others.
        for at in 0..held.len() {
            drop(held.remove(at));
            let again = wrap();
            held.insert(at, again[at].clone());
            for (kept, again) in held.iter().zip(&again) {
                assert_eq!(identity(kept).await, identity(again).await);
                assert_eq!(
                    ping(again, 1).await.unwrap(),
                    ping(&shared, 1).await.unwrap()
                );
            }
        }
        // Each wall reaches its own, and only those.
        for (at, (membrane, revoker)) in outer.iter().enumerate() {
            revoker.revoke("one of many");
            for (of, wrapped) in held.iter().enumerate() {
                let outcome = ping(wrapped, 1).await;
                if of / 2 <= at {
                    assert_stale(outcome.map(drop), "one of many");
                } else {
                    outcome.unwrap();
                }
            }
            let late = membrane.export(shared.clone());
            assert_stale(ping(&late, 1).await.map(drop), "one of many");
            // A membrane that comes after may stand where this one stood.
            let (next, _next_revoker) = Membrane::new(allow);
            let fresh = next.export(shared.clone());
            ping(&fresh, 1).await.unwrap();
            assert_eq!(
                identity(&fresh).await,
                identity(&next.export(shared.clone())).await
            );
        }
        ping(&shared, 1).await.unwrap();
        drop(shared);
        assert_eq!(alive.get(), 0, "what is revoked holds nothing");
    });
}

#[test]
fn revoking_from_a_destructor_that_a_revocation_runs_is_harmless() {
    struct Last(Option<agora_membrane::Revoker>);
    impl node::Server for Last {}
    impl Drop for Last {
        fn drop(&mut self) {
            self.0
                .take()
                .expect("it is dropped once")
                .revoke("by the last one");
        }
    }
    play(async {
        let (first, first_revoker) = Membrane::new(allow);
        let (second, second_revoker) = Membrane::new(allow);
        let (_, naked) = node();
        let beyond = second.export(naked);
        let last: node::Client = capnp_rpc::new_client(Last(Some(second_revoker)));
        let wrapped = first.export(last);
        first_revoker.revoke("the first");
        assert!(second.is_revoked());
        assert_stale(ping(&wrapped, 1).await.map(drop), "the first");
        assert_stale(ping(&beyond, 1).await.map(drop), "by the last one");
    });
}

#[test]
fn a_wrapper_never_passes_for_what_it_wraps() {
    let (membrane, _revoker) = Membrane::new(allow);
    let (_, naked) = node();
    let wrapped = membrane.export(naked.clone());
    let (outer, inner): (&dyn ClientHook, &dyn ClientHook) =
        (wrapped.as_client_hook(), naked.as_client_hook());
    assert_ne!(outer.get_ptr(), inner.get_ptr());
    assert_ne!(outer.get_brand(), inner.get_brand());
    assert!(outer.get_resolved().is_none());
}

#[test]
fn what_is_too_large_for_one_of_the_walls_fails_in_either_direction() {
    struct Narrow(u64);
    impl Policy for Narrow {
        fn check(&self, _call: &CallInfo) -> Verdict {
            Verdict::Allow
        }
        fn words_max(&self) -> u64 {
            self.0
        }
    }
    async fn sent(to: &node::Client, bytes: usize) -> Result<usize, capnp::Error> {
        let mut request = to.echo_request();
        request.get().init_payload().set_data(&vec![7; bytes]);
        let answer = within(request.send().promise).await?;
        Ok(answer.get()?.get_payload()?.get_data()?.len())
    }
    async fn answered(
        by: &Rc<Node>,
        to: &node::Client,
        nodes: usize,
    ) -> Result<usize, capnp::Error> {
        let kept = (0..nodes).map(|_| fresh(&Rc::default())).collect();
        by.kept.replace(kept);
        by.place.set(Some(Place::List));
        within(take(to)).await.map(|nodes| nodes.len())
    }
    play(async {
        for topology in TOPOLOGIES {
            let (inside, naked) = node();
            let mut connections = Vec::new();
            let (narrow, _narrow) = Membrane::new(Narrow(64));
            let (wide, _wide) = Membrane::new(allow);
            let to_inside = match topology {
                Topology::Local | Topology::BehindPromise => narrow.export(naked),
                Topology::Nested => wide.export(narrow.export(naked)),
                Topology::ServerSide => connect(narrow.export(naked), &mut connections),
                Topology::ClientSide => narrow.export(connect(naked, &mut connections)),
                Topology::Proxy => {
                    let proxied = narrow.export(connect(naked, &mut connections));
                    connect(proxied, &mut connections)
                }
            };
            assert_eq!(sent(&to_inside, 100).await.unwrap(), 100, "{topology:?}");
            let refused = sent(&to_inside, 1000).await.unwrap_err();
            assert_eq!(classify(&refused), Kind::Denied, "{topology:?}");
            assert!(refused.extra.contains("over the bound of 64"), "{refused}");
            assert_eq!(answered(&inside, &to_inside, 8).await.unwrap(), 8);
            let refused = answered(&inside, &to_inside, 200).await.unwrap_err();
            assert_eq!(classify(&refused), Kind::Denied, "{topology:?}");
            assert_eq!(ping(&to_inside, 1).await.unwrap(), 2, "{topology:?}");
            assert_eq!(narrow.calls_in_flight(), 0);
            connections.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

#[test]
fn a_policy_may_keep_answers_back_and_say_what_errors_are_told_as() {
    #[derive(Clone, Default)]
    struct Answers {
        full: Rc<Cell<bool>>,
        asked: Rc<Cell<usize>>,
    }
    impl Policy for Answers {
        fn check(&self, _call: &CallInfo) -> Verdict {
            Verdict::Allow
        }
        fn answers(&self) -> bool {
            true
        }
        fn results(&self, callee: Side) -> Result<(), capnp::Error> {
            assert_eq!(callee, Side::Inside);
            self.asked.set(self.asked.get() + 1);
            match self.full.get() {
                true => Err(error::busy("no room")),
                false => Ok(()),
            }
        }
        fn error(&self, _callee: Side, error: capnp::Error) -> capnp::Error {
            error::failed(&format!("told as: {}", error.extra))
        }
    }
    play(async {
        for topology in TOPOLOGIES {
            let (inside, naked) = node();
            let mut connections = Vec::new();
            let policy = Answers::default();
            let (told, told_revoker) = Membrane::new(policy.clone());
            let (within_it, within_revoker) = Membrane::new(allow);
            let to_inside = match topology {
                Topology::Local | Topology::BehindPromise => told.export(naked),
                Topology::Nested => told.export(within_it.export(naked)),
                Topology::ServerSide => connect(told.export(naked), &mut connections),
                Topology::ClientSide => told.export(connect(naked, &mut connections)),
                Topology::Proxy => {
                    let proxied = told.export(connect(naked, &mut connections));
                    connect(proxied, &mut connections)
                }
            };
            assert_eq!(
                within(ping(&to_inside, 1)).await.unwrap(),
                2,
                "{topology:?}"
            );
            assert_eq!(policy.asked.get(), 1, "{topology:?}");
            policy.full.set(true);
            let kept = within(ping(&to_inside, 1)).await.unwrap_err();
            assert_eq!(classify(&kept), Kind::Busy, "{topology:?}");
            assert_eq!(inside.pings.get(), 2, "it was done all the same");
            policy.full.set(false);
            // The callee's own error, and what is pipelined on it.
            let next = to_inside.next_request().send();
            let refused = within(ping(&next.pipeline.get_node(), 1))
                .await
                .unwrap_err();
            assert!(
                refused.extra.contains("nothing kept"),
                "{topology:?}: {refused}"
            );
            let refused = within(next.promise).await.map(drop).unwrap_err();
            assert!(
                refused.extra.contains("told as: "),
                "{topology:?}: {refused}"
            );
            if topology == Topology::Nested {
                // Another wall's revocation is told; its own is not.
                let hanging = begin(to_inside.hang_request().send().promise).await;
                within_revoker.revoke("the inner");
                let cut = within(hanging).await.unwrap().map(drop).unwrap_err();
                assert_eq!(classify(&cut), Kind::Stale, "its text still says so: {cut}");
                assert!(cut.extra.starts_with("told as: "), "{cut}");
                let later = within(ping(&to_inside, 1)).await.unwrap_err();
                assert!(later.extra.starts_with("told as: "), "{later}");
            }
            told_revoker.revoke("the outer");
            assert_stale(within(ping(&to_inside, 1)).await.map(drop), "the outer");
            connections.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}
