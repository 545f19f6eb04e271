//! One agent's instance: its memory, its output, and the calls into it.
//!
//! In: a prepared component and one end of a wire. Out: how it ended.
//! Promise: the instance is bounded in memory, tables and what it copies out, yields its thread every tick, and is gone when
//! the future that runs it is dropped, wherever it was.
//! Failure: a trap, an exit or a passed bound ends this instance alone; [`End`] says which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use agora_guest::wire;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::engine::{Prepared, Workshop};
use super::output::Output;
use crate::limits;

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was done.
    Done,
    /// It failed, or was ended by a bound; the reason is for the record.
    Failed(String),
}

/// Whether an agent is waiting on its wire, for telling when all is quiet.
#[derive(Clone, Default)]
pub struct Parking(Arc<AtomicBool>);

/// While this lives, the agent waits.
pub struct Parked(Arc<AtomicBool>);

impl Parking {
    /// Marks the agent as waiting.
    pub fn park(&self) -> Parked {
        self.0.store(true, Ordering::SeqCst);
        Parked(self.0.clone())
    }

    /// Says whether it waits, for what is not a guest's own call.
    pub fn set(&self, parked: bool) {
        self.0.store(parked, Ordering::SeqCst);
    }

    /// Whether it waits.
    pub fn is_parked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// What the store of an instance holds.
pub struct Inside {
    wasi: WasiCtx,
    pub(super) table: ResourceTable,
    bounds: Bounds,
    end: Option<wire::End>,
    pub(super) parked: Parking,
}

impl Inside {
    /// Checks what an agent wants to hand over, and gives its end of the wire.
    pub(super) fn enter(&mut self, outgoing: &[Vec<u8>]) -> wasmtime::Result<wire::End> {
        let Some(end) = &self.end else {
            wasmtime::bail!("a reactor has no wire");
        };
        let bytes: usize = outgoing.iter().map(Vec::len).sum();
        if outgoing.len() > wire::BATCH_FRAMES_MAX || bytes > wire::BATCH_BYTES_MAX {
            end.breach(format!(
                "handed over {} frames ({bytes} bytes) at once; {} ({} bytes) are allowed",
                outgoing.len(),
                wire::BATCH_FRAMES_MAX,
                wire::BATCH_BYTES_MAX
            ));
        }
        Ok(end.clone())
    }

    pub(super) fn random(&mut self) -> &mut wasmtime_wasi::random::WasiRandomCtx {
        self.wasi.random()
    }
}

impl WasiView for Inside {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

struct Bounds {
    memory_max: usize,
    memory: Arc<AtomicUsize>,
    refused: bool,
}

impl ResourceLimiter for Bounds {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired <= self.memory_max;
        match allowed {
            true => self.memory.store(desired, Ordering::Relaxed),
            false => self.refused = true,
        }
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= limits::TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        16
    }

    fn tables(&self) -> usize {
        16
    }

    fn memories(&self) -> usize {
        1
    }
}

/// What an instance needs beside its component.
pub struct Fittings {
    /// The most linear memory, in bytes.
    pub memory_max: usize,
    /// Told how much it has now.
    pub memory: Arc<AtomicUsize>,
    /// What `wasi:random/insecure-seed` gives.
    pub seed: u128,
    /// Where its output goes.
    pub output: Output,
    /// Told when it waits.
    pub parked: Parking,
}

fn store(workshop: &Workshop, fittings: Fittings, end: Option<wire::End>) -> Store<Inside> {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(fittings.output.stdout())
        .stderr(fittings.output.stderr())
        .insecure_random_seed(fittings.seed);
    let mut table = ResourceTable::new();
    table.set_max_capacity(limits::RESOURCES_MAX);
    let mut store = Store::new(
        workshop.engine_ref(),
        Inside {
            wasi: wasi.build(),
            table,
            bounds: Bounds {
                memory_max: fittings.memory_max,
                memory: fittings.memory,
                refused: false,
            },
            end,
            parked: fittings.parked,
        },
    );
    store.limiter(|inside| &mut inside.bounds);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    store.set_epoch_deadline(1);
    // Not plain Yield: a guest that spins would starve the thread's timers.
    store.epoch_deadline_callback(|_| {
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(tokio::task::yield_now()),
        ))
    });
    store
}

fn failed(store: &Store<Inside>, error: &wasmtime::Error) -> End {
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return match exit.0 {
            0 => End::Done,
            code => End::Failed(format!("exited with status {code}")),
        };
    }
    let bounds = &store.data().bounds;
    let cause = error.root_cause();
    End::Failed(match bounds.refused {
        true => format!(
            "{cause}, after asking for more than its {} of memory",
            crate::boot::manifest::display_bytes(bounds.memory_max as u64)
        ),
        false => cause.to_string(),
    })
}

/// Runs a component of world `agent` until it ends.
pub async fn run_agent(
    workshop: &Workshop,
    prepared: &Prepared,
    fittings: Fittings,
    end: wire::End,
) -> End {
    let _closer = wire::Closer(end.clone());
    let mut store = store(workshop, fittings, Some(end));
    let ran = async {
        let instance = prepared.pre.instantiate_async(&mut store).await?;
        let run = instance.get_typed_func::<(), (Result<(), String>,)>(&mut store, "run")?;
        run.call_async(&mut store, ()).await
    }
    .await;
    match ran {
        Ok((Ok(()),)) => End::Done,
        Ok((Err(reason),)) => End::Failed(crate::cut_text(&reason, limits::REASON_BYTES_MAX)),
        Err(error) => failed(&store, &error),
    }
}

/// The calls into reactors, generated from the worlds.
mod worlds {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated from wit/"
    )]

    pub(super) mod reactor {
        wasmtime::component::bindgen!({
            path: "../../wit/agent",
            world: "reactor",
            exports: { default: async },
        });
    }

    pub(super) mod older {
        wasmtime::component::bindgen!({
            path: "../../wit/older",
            world: "agent",
            exports: { default: async },
        });
    }
}

/// A component of a reactor's world, with its memory between calls.
pub struct Reactor {
    store: Store<Inside>,
    exports: Exports,
}

enum Exports {
    Reactor(worlds::reactor::Reactor),
    Older(worlds::older::Agent),
}

impl Reactor {
    /// Instantiates it.
    ///
    /// # Errors
    /// How it ended at once.
    pub async fn new(
        workshop: &Workshop,
        prepared: &Prepared,
        fittings: Fittings,
    ) -> Result<Self, End> {
        let mut store = store(workshop, fittings, None);
        let exports = async {
            let instance = prepared.pre.instantiate_async(&mut store).await?;
            match prepared.world {
                super::engine::World::Older => {
                    worlds::older::Agent::new(&mut store, &instance).map(Exports::Older)
                }
                _ => worlds::reactor::Reactor::new(&mut store, &instance).map(Exports::Reactor),
            }
        }
        .await;
        match exports {
            Ok(exports) => Ok(Self { store, exports }),
            Err(error) => Err(failed(&store, &error)),
        }
    }

    /// Asks for its answers to one message.
    ///
    /// # Errors
    /// How it ended; it can't be called again.
    pub async fn coordinate(
        &mut self,
        me: &str,
        channel: &str,
        heard: &agora_guest::Message,
    ) -> Result<Vec<agora_guest::Draft>, End> {
        // Fuel is for one crossing, not for a life.
        self.store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
        let answered = match &self.exports {
            Exports::Reactor(exports) => {
                let heard = reactor_message(channel, heard);
                exports
                    .call_coordinate(&mut self.store, me, &heard)
                    .await
                    .map(|drafts| drafts.into_iter().map(reactor_draft).collect())
            }
            Exports::Older(exports) => {
                let heard = older_message(channel, heard);
                exports
                    .agora_agent_protocol()
                    .call_coordinate(&mut self.store, me, &[heard])
                    .await
                    .map(|answers| answers.into_iter().map(older_draft).collect())
            }
        };
        answered.map_err(|error| failed(&self.store, &error))
    }
}

use agora_guest::{Act, Draft, Message};

fn reactor_message(
    channel: &str,
    heard: &Message,
) -> worlds::reactor::agora::agent::speech::Message {
    use worlds::reactor::agora::agent::speech;
    speech::Message {
        ordinal: heard.ordinal,
        id: heard.id.0.to_vec(),
        sender: heard.author.clone(),
        channel: channel.to_owned(),
        act: match heard.act {
            Act::Inform => speech::Act::Inform,
            Act::Request => speech::Act::Request,
            Act::Propose => speech::Act::Propose,
            Act::Agree => speech::Act::Agree,
            Act::Refuse => speech::Act::Refuse,
            Act::Decide => speech::Act::Decide,
        },
        content_type: heard.content_type.clone(),
        payload: heard.payload.clone(),
        hops: heard.hops.into(),
        time_ms: heard.time_ms,
    }
}

fn reactor_draft(draft: worlds::reactor::agora::agent::speech::Draft) -> Draft {
    use worlds::reactor::agora::agent::speech;
    let act = match draft.act {
        speech::Act::Inform => Act::Inform,
        speech::Act::Request => Act::Request,
        speech::Act::Propose => Act::Propose,
        speech::Act::Agree => Act::Agree,
        speech::Act::Refuse => Act::Refuse,
        speech::Act::Decide => Act::Decide,
    };
    Draft::new(act, draft.payload).content_type(draft.content_type)
}

fn older_message(
    channel: &str,
    heard: &Message,
) -> worlds::older::exports::agora::agent::protocol::Message {
    use worlds::older::exports::agora::agent::protocol;
    protocol::Message {
        id: heard.ordinal,
        sender: heard.author_name().to_owned(),
        channel: channel.to_owned(),
        act: match heard.act {
            // The older world has no `decide`.
            Act::Inform | Act::Decide => protocol::Act::Inform,
            Act::Request => protocol::Act::Request,
            Act::Propose => protocol::Act::Propose,
            Act::Agree => protocol::Act::Agree,
            Act::Refuse => protocol::Act::Refuse,
        },
        payload: heard.text().into_owned(),
        sig: String::new(),
        hops: heard.hops.into(),
    }
}

fn older_draft(answer: worlds::older::exports::agora::agent::protocol::Message) -> Draft {
    use worlds::older::exports::agora::agent::protocol;
    // What it claims for id, sender, sig and hops is the host's to stamp.
    let act = match answer.act {
        protocol::Act::Inform => Act::Inform,
        protocol::Act::Request => Act::Request,
        protocol::Act::Propose => Act::Propose,
        protocol::Act::Agree => Act::Agree,
        protocol::Act::Refuse => Act::Refuse,
    };
    Draft::new(act, answer.payload)
}
