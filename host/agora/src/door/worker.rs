//! Vat threads: agents live on them, each pinned to one.
//!
//! In: agents to start; stops. Promise: a stop overtakes everything else that waits for the thread, and is answered when it is done;
//! running guests yield every tick, so that takes a tick or so for each that spins. A start that was asked for before a stop begins nothing
//! after it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use agora_realm::PersonaName;
use tokio::sync::{mpsc, oneshot};

use super::bridge::Landing;
use super::control::Control;
use super::graft::Door;
use super::introduction::Thread;
use crate::limits;
use crate::persona::agent::{self, Agent};

/// A stop, for whom it is meant.
pub struct Stop {
    /// What is to be done.
    what: What,
    /// For the agent and the record.
    reason: String,
    /// Told when it is done.
    done: oneshot::Sender<()>,
}

/// What a stop does.
enum What {
    /// Fells the wall of this agent, or of all, and ends it besides.
    Agents {
        only: Option<PersonaName>,
        end: bool,
    },
    /// Cuts what hangs on grants that are cut: facets, whoever holds them, and the walls of those who were granted one.
    Revoked,
}

/// A start.
struct Start {
    agent: Arc<Agent>,
    /// How often the agent had been stopped when this was asked for.
    stops: u64,
}

/// What a thread is asked for that can wait.
enum Command {
    Start(Start),
    /// Keep the server's end of a bridge.
    Land(Landing),
}

/// A vat thread.
pub struct Worker {
    commands: mpsc::Sender<Command>,
    stops: mpsc::Sender<Stop>,
}

/// What lives on a thread, by agent.
#[derive(Clone)]
struct Residents {
    agents: Rc<RefCell<HashMap<PersonaName, Resident>>>,
    thread: Rc<Thread>,
}

struct Resident {
    life: tokio::task::JoinHandle<()>,
    door: Rc<RefCell<Option<Rc<Door>>>>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.life.abort();
    }
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// The operating system gives none.
    pub fn start(place: usize, control: Arc<Control>) -> std::io::Result<Self> {
        let name = format!("agora-vat-{place}");
        let (commands, mut commanded) = mpsc::channel::<Command>(limits::COMMANDS_WAITING_MAX);
        let (stops, mut stopping) = mpsc::channel::<Stop>(limits::COMMANDS_WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(limits::VAT_STACK_BYTES);
        thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a thread can have a runtime");
            let local = tokio::task::LocalSet::new();
            let residents = Residents {
                agents: Rc::default(),
                thread: Thread::new(place),
            };
            local.block_on(&runtime, async {
                loop {
                    tokio::select! {
                        biased;
                        stop = stopping.recv() => match stop {
                            Some(stop) => residents.stop(stop).await,
                            None => break,
                        },
                        command = commanded.recv() => match command {
                            Some(Command::Start(start)) => residents.start(start, &control),
                            Some(Command::Land(landing)) => {
                                let keeping = landing.keep(control.clone(), residents.thread.clone());
                                tokio::task::spawn_local(keeping);
                            }
                            None => break,
                        },
                    }
                }
            });
        })?;
        Ok(Self { commands, stops })
    }

    /// Starts an agent, unless it was stopped more often than this by the time that the thread comes to it.
    pub async fn begin(&self, agent: Arc<Agent>, stops: u64) {
        // The thread ends only with the host.
        let start = Command::Start(Start { agent, stops });
        let _ = self.commands.send(start).await;
    }

    /// Lands a bridge. Says whether the thread is there to keep it.
    pub async fn land(&self, landing: Landing) -> bool {
        self.commands.send(Command::Land(landing)).await.is_ok()
    }

    /// Stops, and answers when that is done.
    pub async fn stop(&self, agent: Option<PersonaName>, end: bool, reason: &str) {
        self.act(What::Agents { only: agent, end }, reason).await;
    }

    /// Cuts what hangs on grants that are cut, and answers when that is done.
    pub async fn cut_revoked(&self, reason: &str) {
        self.act(What::Revoked, reason).await;
    }

    async fn act(&self, what: What, reason: &str) {
        let (done, finished) = oneshot::channel();
        let stop = Stop {
            what,
            reason: reason.to_owned(),
            done,
        };
        if self.stops.send(stop).await.is_ok() {
            let _ = finished.await;
        }
    }
}

impl Residents {
    fn start(&self, Start { agent, stops }: Start, control: &Arc<Control>) {
        if agent.shared.stops() != stops {
            return;
        }
        let door = Rc::new(RefCell::new(None));
        let name = agent.name.clone();
        let life = agent::live(agent, control.clone(), self.thread.clone(), door.clone());
        let life = tokio::task::spawn_local(life);
        // An earlier life of the same agent is aborted here.
        self.agents
            .borrow_mut()
            .insert(name, Resident { life, door });
    }

    async fn stop(&self, stop: Stop) {
        match stop.what {
            What::Agents { only, end } => self.stop_agents(only, end, &stop.reason).await,
            What::Revoked => self.cut_revoked(&stop.reason),
        }
        let _ = stop.done.send(());
    }

    fn cut_revoked(&self, reason: &str) {
        let doors: Vec<_> = {
            let residents = self.agents.borrow();
            let doors = residents
                .values()
                .map(|resident| resident.door.borrow().clone());
            doors.flatten().collect()
        };
        for door in doors {
            if door.holds_revoked() {
                door.fall(&format!("{reason}; graft again"));
            }
        }
        self.thread.facets.cut_revoked(reason);
    }

    async fn stop_agents(&self, only: Option<PersonaName>, end: bool, reason: &str) {
        let meant: Vec<_> = {
            let residents = self.agents.borrow();
            residents
                .iter()
                .filter(|(name, _)| only.as_ref().is_none_or(|agent| agent == *name))
                .map(|(name, resident)| (name.clone(), resident.door.borrow().clone()))
                .collect()
        };
        for (name, door) in meant {
            if let Some(door) = door {
                door.fall(reason);
            }
            if end {
                let resident = self.agents.borrow_mut().remove(&name);
                if let Some(mut resident) = resident {
                    resident.life.abort();
                    // Gone, memory and all, before anybody is told so.
                    let _ = (&mut resident.life).await;
                }
            }
        }
    }
}
