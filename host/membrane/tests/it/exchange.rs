//! Policies that give something else instead of what would cross.

use crate::crossings::assert_stale;
use crate::node::{Node, PLACES, Place, begin, client, echo, give, ping, take, turns, within};
use crate::node_capnp::node;
use crate::worlds::connect;
use agora_membrane::{CallInfo, Exchange, Membrane, Policy, Revoker, Side, Verdict};
use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use std::future::Future;
use std::rc::Rc;

/// Gives `instead` wherever `secret`, which lives on side `lives`, would cross.
struct Instead {
    secret: node::Client,
    lives: Side,
    instead: node::Client,
    /// It takes a while to say.
    later: bool,
}

impl Policy for Instead {
    fn check(&self, _call: &CallInfo) -> Verdict {
        Verdict::Allow
    }

    fn exchanges(&self) -> bool {
        true
    }

    fn exchange(&self, capability: &dyn ClientHook, lives: Side) -> Exchange {
        assert!(
            capability.when_more_resolved().is_none(),
            "it was asked about a promise"
        );
        let secret = self.secret.as_client_hook();
        let is_secret = (capability.get_brand(), capability.get_ptr())
            == (secret.get_brand(), secret.get_ptr());
        let exchanged = match is_secret && lives == self.lives {
            true => Exchange::Give(self.instead.as_client_hook().add_ref()),
            false => Exchange::Wrap,
        };
        if !self.later {
            return exchanged;
        }
        Exchange::Later(Box::pin(async move {
            turns(3).await;
            let later = async move { Ok(exchanged) };
            Ok(Exchange::Later(Box::pin(later)))
        }))
    }
}

struct Scene {
    secret: Rc<Node>,
    naked_secret: node::Client,
    stand_in: Rc<Node>,
    inside: Rc<Node>,
    to_inside: node::Client,
    revoker: Revoker,
    membrane: Membrane,
    connections: Vec<tokio::task::JoinHandle<Result<(), capnp::Error>>>,
}

impl Scene {
    /// With the inside beyond a connection, at the membrane's other side.
    async fn client_side(later: bool) -> Scene {
        let mut scene = Scene::new(Side::Outside, false, later);
        let lobby = Node::new(&Rc::default());
        lobby.kept.replace(vec![client(&scene.inside)]);
        // What a connection begins with is a promise that nobody is told of; what is taken from there is none.
        let lobby = connect(client(&lobby), &mut scene.connections);
        let remote = within(take(&lobby)).await.unwrap().remove(0);
        scene.to_inside = scene.membrane.export(remote);
        scene
    }

    fn new(lives: Side, remote: bool, later: bool) -> Scene {
        let node = || Node::new(&Rc::default());
        let (secret, stand_in, inside) = (node(), node(), node());
        let naked_secret = client(&secret);
        let (membrane, revoker) = Membrane::new(Instead {
            secret: naked_secret.clone(),
            lives,
            instead: client(&stand_in),
            later,
        });
        let mut connections = Vec::new();
        let to_inside = membrane.export(client(&inside));
        let to_inside = match remote {
            true => connect(to_inside, &mut connections),
            false => to_inside,
        };
        Scene {
            secret,
            naked_secret,
            stand_in,
            inside,
            to_inside,
            revoker,
            membrane,
            connections,
        }
    }

    fn assert_only_the_stand_in_was_reached(&self, times: u64) {
        assert_eq!(self.secret.pings.get(), 0, "the secret was reached");
        assert_eq!(self.stand_in.pings.get(), times);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.abort();
        }
    }
}

fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn in_every_place_of_params_and_results_the_other_side_gets_the_stand_in() {
    play(async {
        for (place, later) in PLACES.iter().flat_map(|p| [(*p, false), (*p, true)]) {
            let scene = Scene::new(Side::Outside, false, later);
            let given = [scene.naked_secret.clone()];
            within(give(&scene.to_inside, place, &given)).await.unwrap();
            let got = scene.inside.kept.take().remove(0);
            assert_eq!(within(ping(&got, 1)).await.unwrap(), 2);
            scene.assert_only_the_stand_in_was_reached(1);
            // It is the inside's own from here on: the wall's fall does not cut it.
            scene.revoker.revoke("over");
            assert_eq!(within(ping(&got, 1)).await.unwrap(), 2);

            for remote in [false, true] {
                let scene = Scene::new(Side::Inside, remote, later);
                scene.inside.place.set(Some(place));
                scene.inside.kept.replace(vec![scene.naked_secret.clone()]);
                let got = within(take(&scene.to_inside)).await.unwrap().remove(0);
                assert_eq!(within(ping(&got, 1)).await.unwrap(), 2);
                scene.assert_only_the_stand_in_was_reached(1);
            }
        }
    });
}

#[test]
fn calls_on_a_promise_wait_until_it_is_known_what_they_go_to() {
    play(async {
        for (remote, later) in [(false, false), (true, false), (false, true), (true, true)] {
            // Out: a promise among the results, and calls pipelined on the answer before it has come.
            let scene = Scene::new(Side::Inside, remote, later);
            scene.inside.kept.replace(vec![scene.naked_secret.clone()]);
            let mut request = scene.to_inside.late_request();
            request.get().set_after(5);
            let early = request.send().pipeline.get_node();
            assert_eq!(within(ping(&early, 1)).await.unwrap(), 2);
            scene.assert_only_the_stand_in_was_reached(1);
            let mut request = scene.to_inside.slow_request();
            request.get().set_after(5);
            let early = request.send().pipeline.get_node();
            assert_eq!(within(ping(&early, 1)).await.unwrap(), 2);
            scene.assert_only_the_stand_in_was_reached(2);
            // What was offered before the call is answered.
            let early = scene.to_inside.early_request().send().pipeline.get_node();
            let early = ping(&early, 1);
            if !remote {
                assert_eq!(within(early).await.unwrap(), 2);
                scene.assert_only_the_stand_in_was_reached(3);
            }
        }
        // In: a promise among the params.
        let scene = Scene::new(Side::Outside, false, false);
        let secret = scene.naked_secret.clone();
        let promise: node::Client = capnp_rpc::new_future_client(async move {
            turns(5).await;
            Ok(secret)
        });
        let given = [promise];
        let giving = give(&scene.to_inside, Place::Plain, &given);
        within(giving).await.unwrap();
        drop(given);
        let got = scene.inside.kept.take().remove(0);
        assert_eq!(within(ping(&got, 1)).await.unwrap(), 2);
        scene.assert_only_the_stand_in_was_reached(1);
    });
}

#[test]
fn what_is_pipelined_on_an_answer_over_a_connection_waits_for_the_answer() {
    play(async {
        for later in [false, true] {
            let scene = Scene::client_side(later).await;
            // There and back again: the secret is given away over the connection, and asked for.
            let given = [scene.naked_secret.clone()];
            within(give(&scene.to_inside, Place::Plain, &given))
                .await
                .unwrap();
            let early = scene.to_inside.next_request().send().pipeline.get_node();
            assert_eq!(within(ping(&early, 1)).await.unwrap(), 2);
            scene.assert_only_the_stand_in_was_reached(1);
            let mut request = scene.to_inside.slow_request();
            request.get().set_after(5);
            let early = request.send().pipeline.get_node();
            assert_eq!(within(ping(&early, 1)).await.unwrap(), 2);
            scene.assert_only_the_stand_in_was_reached(2);
        }
    });
}

#[test]
fn a_promise_that_has_not_settled_is_cut_with_the_wall() {
    play(async {
        let scene = Scene::new(Side::Outside, false, false);
        let held = Rc::new(());
        let (holding, secret) = (held.clone(), scene.naked_secret.clone());
        let promise: node::Client = capnp_rpc::new_future_client(async move {
            std::future::pending::<()>().await;
            drop(holding);
            Ok(secret)
        });
        let given = [promise];
        let giving = give(&scene.to_inside, Place::Plain, &given);
        within(giving).await.unwrap();
        drop(given);
        let got = scene.inside.kept.take().remove(0);
        let waiting = tokio::task::spawn_local(async move { ping(&got, 1).await });
        turns(5).await;
        assert!(!waiting.is_finished());
        scene.revoker.revoke("over");
        assert_stale(within(waiting).await.unwrap().map(drop), "over");
        assert_eq!(Rc::strong_count(&held), 1, "the promise is dropped");
        scene.assert_only_the_stand_in_was_reached(0);
        assert!(scene.membrane.is_revoked());
    });
}

#[test]
fn what_is_still_to_be_exchanged_is_cut_with_the_wall() {
    play(async {
        let scene = Scene::new(Side::Outside, false, true);
        let given = [scene.naked_secret.clone()];
        let giving = give(&scene.to_inside, Place::Plain, &given);
        within(giving).await.unwrap();
        let got = scene.inside.kept.take().remove(0);
        let waiting = begin(async move { ping(&got, 1).await }).await;
        scene.revoker.revoke("over");
        assert_stale(within(waiting).await.unwrap().map(drop), "over");
        scene.assert_only_the_stand_in_was_reached(0);
    });
}

#[test]
fn what_is_not_exchanged_is_wrapped_and_what_comes_home_is_not_asked_about() {
    play(async {
        let scene = Scene::new(Side::Outside, false, false);
        let other = Node::new(&Rc::default());
        let naked = client(&other);
        // There and back: the outside's own comes home as it went.
        let back = within(echo(
            &scene.to_inside,
            Place::Plain,
            std::slice::from_ref(&naked),
        ))
        .await;
        let back = back.unwrap().remove(0);
        assert_eq!(
            back.as_client_hook().get_ptr(),
            naked.as_client_hook().get_ptr()
        );
        within(give(&scene.to_inside, Place::Plain, &[naked]))
            .await
            .unwrap();
        let wrapped = scene.inside.kept.take().remove(0);
        assert_eq!(within(ping(&wrapped, 1)).await.unwrap(), 2);
        scene.revoker.revoke("over");
        assert_stale(within(ping(&wrapped, 1)).await.map(drop), "over");
    });
}
