//! Every way a capability can cross, in every place a membrane can stand, revoked at every moment: generated.

use crate::node::{
    self, PLACES, Place, client, echo, eventually, fresh, give, identity, ping, settled, take,
    turns, within,
};
use crate::node_capnp::node::Client;
use crate::worlds::{TOPOLOGIES, Topology, World};
use agora_membrane::error::{Kind, classify};
use capnp::Error;
use std::cell::Cell;
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Params,
    Results,
    Pipeline,
    Resolution,
}

const POSITIONS: [Position; 4] = [
    Position::Params,
    Position::Results,
    Position::Pipeline,
    Position::Resolution,
];

/// Which way the capability goes first, and whether it then comes home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
    InAndHome,
    OutAndHome,
}

const WAYS: [Way; 4] = [Way::In, Way::Out, Way::InAndHome, Way::OutAndHome];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Never,
    Before,
    During,
    After,
}

const MOMENTS: [Moment; 4] = [Moment::Never, Moment::Before, Moment::During, Moment::After];

#[derive(Clone, Copy, Debug)]
struct Case {
    topology: Topology,
    position: Position,
    way: Way,
    place: Place,
    moment: Moment,
    /// How many capabilities cross.
    crowd: usize,
    /// How long the callee takes, and how long the revoker waits, in turns of the loop.
    after: u32,
    patience: u32,
    /// Which membrane is revoked, if there are two.
    which: usize,
}

/// One caller and one callee on opposite sides, whichever they are.
struct Play {
    callee: Rc<node::Node>,
    to_callee: Client,
    callee_alive: Rc<Cell<usize>>,
    caller_alive: Rc<Cell<usize>>,
}

impl Case {
    /// Whether the capability, when it crosses first, goes from the caller to the callee.
    fn first_to_callee(&self) -> bool {
        let homeward = matches!(self.way, Way::InAndHome | Way::OutAndHome);
        (self.position == Position::Params) != homeward
    }

    fn homeward(&self) -> bool {
        matches!(self.way, Way::InAndHome | Way::OutAndHome)
    }

    fn play(&self, world: &World) -> Play {
        let inward = matches!(self.way, Way::In | Way::InAndHome);
        // A capability that goes inward with the params, or comes outward with the results, has its caller outside.
        if inward == self.first_to_callee() {
            Play {
                callee: world.inside.clone(),
                to_callee: world.to_inside.clone(),
                callee_alive: world.inside_alive.clone(),
                caller_alive: world.outside_alive.clone(),
            }
        } else {
            Play {
                callee: world.outside.clone(),
                to_callee: world.to_outside.clone(),
                callee_alive: world.outside_alive.clone(),
                caller_alive: world.inside_alive.clone(),
            }
        }
    }

    async fn run(&self) {
        let world = World::new(self.topology).await;
        let (membrane, revoker) = &world.membranes[self.which % world.membranes.len()];
        let play = self.play(&world);
        let owner_alive = if self.first_to_callee() {
            &play.caller_alive
        } else {
            &play.callee_alive
        };
        let alive_before = owner_alive.get();

        // The capabilities, on the side they belong to.
        let own: Vec<Client> = (0..self.crowd).map(|_| fresh(owner_alive)).collect();
        let mut own_ids = Vec::new();
        for node in &own {
            own_ids.push(identity(node).await);
        }
        play.callee.place.set(Some(self.place));
        if !self.first_to_callee() {
            play.callee.kept.replace(own.clone());
        }

        let crossed: Result<Vec<Client>, Error> = match self.moment {
            Moment::Never | Moment::After => {
                let crossed = within(self.cross(&play, &own)).await;
                assert!(crossed.is_ok(), "{:?}", crossed.err());
                crossed
            }
            Moment::Before => {
                revoker.revoke("before");
                within(self.cross(&play, &own)).await
            }
            Moment::During => {
                // Something that cannot be over by then, beside what may or may not be.
                let hanging = {
                    let mut request = play.to_callee.hang_request();
                    request.get().set_node(fresh(&play.caller_alive));
                    node::begin(request.send().promise).await
                };
                let arrived = eventually(|| membrane.calls_in_flight() > 0).await;
                assert!(arrived, "the call never got to the membrane");
                let case = *self;
                let (to_callee, callee) = (play.to_callee.clone(), play.callee.clone());
                let crossing = tokio::task::spawn_local({
                    let play = Play {
                        callee,
                        to_callee,
                        callee_alive: play.callee_alive.clone(),
                        caller_alive: play.caller_alive.clone(),
                    };
                    let own = own.clone();
                    async move { case.cross(&play, &own).await }
                });
                turns(self.patience).await;
                revoker.revoke("during");
                assert_eq!(membrane.calls_in_flight(), 0);
                let hung = within(hanging).await.expect("the task ends by itself");
                assert_stale(hung.map(drop), "during");
                within(crossing).await.expect("the task ends by itself")
            }
        };
        if self.moment == Moment::After {
            revoker.revoke("after");
        }
        revoker.revoke("again");

        if self.moment == Moment::Never {
            unreachable!("cases that are never revoked end elsewhere");
        }
        assert!(membrane.is_revoked());
        assert_eq!(membrane.calls_in_flight(), 0);
        let reason = match self.moment {
            Moment::Before => "before",
            Moment::During => "during",
            _ => "after",
        };
        assert_stale(within(ping(&play.to_callee, 1)).await.map(drop), reason);
        match &crossed {
            Err(error) => {
                assert_ne!(self.moment, Moment::After);
                assert_stale(Err(error.clone()), reason);
            }
            Ok(crossed) => {
                assert_ne!(self.moment, Moment::Before);
                self.judge(crossed, &own_ids, reason).await;
            }
        }

        // What the other side still holds keeps nothing alive.
        let held = Some(crossed).filter(|_| !self.homeward());
        play.callee.kept.take();
        drop(own);
        let gone = eventually(|| owner_alive.get() <= alive_before).await;
        assert!(gone, "{} kept alive", owner_alive.get() - alive_before);
        drop(held);
    }

    /// As [`run`](Case::run), and nothing is revoked.
    async fn run_unrevoked(&self) {
        let world = World::new(self.topology).await;
        let play = self.play(&world);
        let owner_alive = if self.first_to_callee() {
            &play.caller_alive
        } else {
            &play.callee_alive
        };
        let own: Vec<Client> = (0..self.crowd).map(|_| fresh(owner_alive)).collect();
        play.callee.place.set(Some(self.place));
        if !self.first_to_callee() {
            play.callee.kept.replace(own.clone());
        }
        let checks = world.checks.get();
        let crossed = within(self.cross(&play, &own))
            .await
            .expect("nothing was revoked");
        assert!(world.checks.get() > checks, "the policy was not asked");
        for (at, node) in crossed.iter().enumerate() {
            let crossing = world.checks.get();
            assert_eq!(
                within(ping(node, at as u64))
                    .await
                    .expect("nothing was revoked"),
                at as u64 + 1
            );
            let asked = world.checks.get() - crossing;
            if self.homeward() {
                assert_eq!(asked, 0, "a capability came home wrapped");
            } else {
                assert_eq!(
                    asked,
                    world.membranes.len(),
                    "a capability crossed unwrapped, or was asked about twice"
                );
            }
        }
        assert!(
            eventually(|| world
                .membranes
                .iter()
                .all(|(membrane, _)| membrane.calls_in_flight() == 0))
            .await
        );
    }

    /// Lets the capabilities cross; returns them as the last holder has them.
    async fn cross(&self, play: &Play, own: &[Client]) -> Result<Vec<Client>, Error> {
        match (self.position, self.homeward()) {
            (Position::Params, false) => {
                give(&play.to_callee, self.place, own).await?;
                Ok(play.callee.kept.borrow().clone())
            }
            (Position::Params, true) => {
                let foreign = take(&play.to_callee).await?;
                play.callee.kept.take();
                give(&play.to_callee, self.place, &foreign).await?;
                Ok(play.callee.kept.borrow().clone())
            }
            (Position::Results, false) => take(&play.to_callee).await,
            (Position::Results, true) => echo(&play.to_callee, self.place, own).await,
            (Position::Pipeline, homeward) => {
                if homeward {
                    give(&play.to_callee, self.place, own).await?;
                }
                let mut request = play.to_callee.slow_request();
                request.get().set_after(self.after);
                let sent = request.send();
                let pipelined = sent.pipeline.get_node();
                let mut pings = Vec::new();
                for n in 0..3 {
                    let mut request = pipelined.ping_request();
                    request.get().set_n(n);
                    pings.push(request.send().promise);
                }
                for (n, promise) in pings.into_iter().enumerate() {
                    assert_eq!(promise.await?.get()?.get_n(), n as u64 + 1);
                }
                let answered = sent.promise.await?.get()?.get_node()?;
                Ok(vec![settled(pipelined).await?, answered])
            }
            (Position::Resolution, homeward) => {
                if homeward {
                    give(&play.to_callee, self.place, own).await?;
                }
                let mut request = play.to_callee.late_request();
                request.get().set_after(self.after);
                let promised = request.send().promise.await?.get()?.get_node()?;
                assert_eq!(ping(&promised, 4).await?, 5);
                Ok(vec![settled(promised).await?])
            }
        }
    }

    /// What crossed is dead; what came home lives, and is what it was.
    async fn judge(&self, crossed: &[Client], own: &[(usize, usize)], reason: &str) {
        assert!(!crossed.is_empty());
        for node in crossed {
            let pinged = within(ping(node, 1)).await;
            if self.homeward() {
                // A promise that had not resolved when it was cut never came home.
                let identity = identity(node).await;
                if self.moment == Moment::After || pinged.is_ok() {
                    assert_eq!(pinged.expect("it came home"), 2);
                    assert!(own.contains(&identity), "it came home as something else");
                } else {
                    assert_stale(pinged.map(drop), reason);
                }
            } else {
                assert_stale(pinged.map(drop), reason);
            }
        }
    }
}

pub(crate) fn assert_stale(outcome: Result<(), Error>, reason: &str) {
    let error = outcome.expect_err("it should be stale");
    assert_eq!(classify(&error), Kind::Stale, "{error}");
    assert!(
        error.extra.contains(reason),
        "{error} does not say {reason}"
    );
}

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, faces: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % faces
    }
}

/// The seed of this run: `MEMBRANE_SEED`, to repeat one, or else another each time.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("MEMBRANE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("the clock is past 1970").as_nanos() as u64 >> 10
    });
    println!("MEMBRANE_SEED={seed}");
    seed
}

const ROUNDS: usize = 6;

#[test]
fn whatever_crosses_is_wrapped_and_revoked_and_whatever_comes_home_is_neither() {
    let mut dice = Dice(seed());
    let mut cases = Vec::new();
    for _ in 0..ROUNDS {
        for topology in TOPOLOGIES {
            for position in POSITIONS {
                for way in WAYS {
                    for place in PLACES {
                        for moment in MOMENTS {
                            cases.push(Case {
                                topology,
                                position,
                                way,
                                place,
                                moment,
                                crowd: 1 + dice.roll(4) as usize,
                                after: dice.roll(12) as u32,
                                patience: dice.roll(24) as u32,
                                which: dice.roll(2) as usize,
                            });
                        }
                    }
                }
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for case in &cases {
        let run = || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                if case.moment == Moment::Never {
                    case.run_unrevoked().await;
                } else {
                    case.run().await;
                }
            });
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            println!("failed: {case:?}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{} cases", cases.len());
}

#[test]
fn a_wrapper_is_the_same_in_every_place_of_a_payload() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = World::new(Topology::Local).await;
        let one = fresh(&world.inside_alive);
        world.inside.kept.replace(vec![one.clone(), one]);
        world.inside.place.set(Some(Place::Everywhere));
        let taken = take(&world.to_inside).await.expect("nothing was revoked");
        assert_eq!(taken.len(), 6);
        let first = identity(&taken[0]).await;
        for node in &taken {
            assert_eq!(identity(node).await, first);
        }
        assert_ne!(first, identity(&client(&world.inside)).await);
    });
}
