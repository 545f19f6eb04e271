//! Random walks: two sides pass each other whatever they hold, by any method, and at a random moment it all ends.

use crate::crossings::{Dice, seed};
use crate::node::{
    Node, PLACES, client, echo, eventually, give, ping, settled, take, turns, within,
};
use crate::node_capnp::node::Client;
use crate::worlds::{TOPOLOGIES, Topology, World};
use agora_membrane::error::{Kind, classify};
use capnp::Error;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// One side: what it holds of either side, and what it can call across.
struct Walker {
    holds: Rc<RefCell<Vec<Client>>>,
    across: Client,
    alive: Rc<Cell<usize>>,
    own: Rc<Node>,
    remote: bool,
}

impl Walker {
    fn pick(&self, dice: &mut Dice) -> Vec<Client> {
        let holds = self.holds.borrow();
        (0..1 + dice.roll(3))
            .filter_map(|_| {
                holds
                    .get(dice.roll(holds.len().max(1) as u64) as usize)
                    .cloned()
            })
            .collect()
    }

    async fn step(&self, dice: &mut Dice) -> Result<(), Error> {
        let place = PLACES[dice.roll(PLACES.len() as u64) as usize];
        let mut some = self.pick(dice);
        if some.is_empty() {
            some.push(client(&Node::new(&self.alive)));
        }
        let gained = match dice.roll(9) {
            0 => vec![client(&Node::new(&self.alive))],
            1 => {
                give(&self.across, place, &some).await?;
                Vec::new()
            }
            2 => take(&self.across).await?,
            3 => echo(&self.across, place, &some).await?,
            4 => {
                ping(&some[0], 3).await?;
                Vec::new()
            }
            5 => {
                give(&self.across, place, &some).await?;
                let sent = self.across.next_request().send();
                ping(&sent.pipeline.get_node(), 8).await?;
                vec![sent.promise.await?.get()?.get_node()?]
            }
            6 => {
                give(&self.across, place, &some).await?;
                let mut request = self.across.late_request();
                request.get().set_after(dice.roll(6) as u32);
                let promised = request.send().promise.await?.get()?.get_node()?;
                if self.remote {
                    // capnp-rpc ends the connection over a promise sent again while its release is on the way.
                    vec![settled(promised).await?]
                } else {
                    vec![promised]
                }
            }
            7 => {
                // One of one's own, kept where the other side can take it.
                self.own.kept.replace(some);
                Vec::new()
            }
            _ => {
                let mut request = self.across.hang_request();
                request.get().set_node(some[0].clone());
                let hanging = tokio::task::spawn_local(request.send().promise);
                turns(dice.roll(5) as u32).await;
                hanging.abort();
                Vec::new()
            }
        };
        let mut holds = self.holds.borrow_mut();
        holds.extend(gained);
        let excess = holds.len().saturating_sub(12);
        let forgotten: Vec<Client> = holds.drain(..excess).collect();
        drop(holds);
        drop(forgotten);
        Ok(())
    }
}

async fn walk(topology: Topology, seed: u64) {
    let mut dice = Dice(seed);
    let world = World::new(topology).await;
    let walkers = [
        Rc::new(Walker {
            holds: Rc::default(),
            across: world.to_inside.clone(),
            alive: world.outside_alive.clone(),
            own: world.outside.clone(),
            remote: topology.is_remote(),
        }),
        Rc::new(Walker {
            holds: Rc::default(),
            across: world.to_outside.clone(),
            alive: world.inside_alive.clone(),
            own: world.inside.clone(),
            remote: topology.is_remote(),
        }),
    ];
    let mut tasks = Vec::new();
    for walker in &walkers {
        for _ in 0..2 {
            let walker = walker.clone();
            let mut dice = Dice(dice.roll(u64::MAX));
            tasks.push(tokio::task::spawn_local(async move {
                loop {
                    if let Err(error) = walker.step(&mut dice).await
                        && classify(&error) == Kind::Stale
                    {
                        return error;
                    }
                    turns(1).await;
                }
            }));
        }
    }
    turns(dice.roll(300) as u32).await;
    let at = dice.roll(world.membranes.len() as u64) as usize;
    let (membrane, revoker) = &world.membranes[at];
    revoker.revoke("the walk is over");
    assert_eq!(membrane.calls_in_flight(), 0);
    for task in tasks {
        let error = within(task).await.expect("a walker ends by itself");
        assert!(error.extra.contains("the walk is over"), "{error}");
    }
    assert!(
        eventually(|| world
            .membranes
            .iter()
            .all(|(membrane, _)| membrane.calls_in_flight() == 0))
        .await,
        "a call is still counted"
    );
    // Each side lets go of what is its own to hold: nothing may be left but the two objects of the world.
    let (inside_alive, outside_alive) = (world.inside_alive.clone(), world.outside_alive.clone());
    world.inside.kept.take();
    world.outside.kept.take();
    for walker in &walkers {
        walker.holds.take();
    }
    drop(walkers);
    assert!(
        eventually(|| inside_alive.get() == 1 && outside_alive.get() == 1).await,
        "{} inside and {} outside are still alive",
        inside_alive.get(),
        outside_alive.get()
    );
}

const WALKS: usize = 150;

#[test]
fn a_random_walk_ends_everywhere_when_it_is_revoked() {
    let mut dice = Dice(seed());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for _ in 0..WALKS {
        for topology in TOPOLOGIES {
            let seed = dice.roll(u64::MAX);
            let run = || tokio::task::LocalSet::new().block_on(&runtime, walk(topology, seed));
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                println!("failed: {topology:?}, seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
