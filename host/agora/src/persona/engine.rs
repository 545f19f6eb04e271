//! The one wasm engine of a host: how components are compiled, kept and linked.
//!
//! In: a component's bytes. Out: a [`Prepared`] component of a known world, ready to instantiate.
//! Promise: only what docs/abi.md names can be imported; running guests yield their thread every tick.
//! Failure: a component of no known world is refused with the imports or exports that are missing or forbidden.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agora_guest::wire;
use agora_realm::ComponentHash;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, Linker};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, StoreContextMut,
};

use super::instance::Inside;
use crate::limits;

/// What a component is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `agora:agent/agent@0.1.0`: a vat of its own.
    Agent,
    /// `agora:agent/reactor@0.1.0`: one pure function.
    Reactor,
    /// The unversioned `agora:agent/protocol`: one function over an inbox.
    Older,
}

/// A compiled component.
#[derive(Clone)]
pub struct Prepared {
    /// Its SHA-256.
    pub hash: ComponentHash,
    /// What it is built for.
    pub world: World,
    /// Compiled, with its imports linked.
    pub(super) pre: wasmtime::component::InstancePre<Inside>,
}

/// Why a component can't run.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The file can't be read.
    #[error("component {}: {source} (build it with `agora build`, or correct `component` in the manifest)", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than a host takes.
    #[error("component {}: over {} MiB", path.display(), limits::COMPONENT_BYTES_MAX >> 20)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It is no component, or one that can't be compiled.
    #[error("component {}: {text}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What the compiler says.
        text: String,
    },
    /// It is for another world.
    #[error("component {}: {text}", path.display())]
    NoKnownWorld {
        /// Which.
        path: PathBuf,
        /// What is missing or forbidden.
        text: String,
    },
}

const WIRE: &str = "agora:agent/wire@0.1.0";
const SPEECH: &str = "agora:agent/speech@0.1.0";
const OLDER: &str = "agora:agent/protocol";
const WASI: [&str; 14] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure-seed",
];

fn is_allowed(import: &str) -> bool {
    if import == WIRE || import == SPEECH {
        return true;
    }
    let (name, version) = import.split_once('@').unwrap_or((import, ""));
    WASI.contains(&name) && version.starts_with("0.2.")
}

/// Compiles and links components. Cloning shares the engine.
#[derive(Clone)]
pub struct Workshop {
    engine: Engine,
    linker: Arc<Linker<Inside>>,
    cache: Option<PathBuf>,
    /// Compiled and not kept yet, by the name to keep it under.
    fresh: Arc<Mutex<Vec<(String, Component)>>>,
    _ticker: Arc<Ticker>,
}

/// Ends the ticking thread when the last workshop is gone.
struct Ticker(Arc<AtomicBool>);

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Workshop {
    /// A workshop that takes compiled components from `cache`, a folder that nobody else may write. It writes nothing until
    /// [`Workshop::keep`] says where.
    ///
    /// # Errors
    /// The engine can't be set up on this machine.
    pub fn new(cache: Option<PathBuf>) -> wasmtime::Result<Self> {
        let engine = Self::engine(true).or_else(|error| {
            // Address space may be limited (ulimit -v, containers); instances are then allocated one by one.
            tracing::warn!("no pool for instances: {error}; allocating each on demand");
            Self::engine(false)
        })?;
        let mut linker = Linker::new(&engine);
        link_wasi(&mut linker)?;
        link_wire(&mut linker)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ticking, stopped) = (engine.clone(), stop.clone());
        std::thread::Builder::new()
            .name("agora-ticks".into())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(limits::TICK);
                    ticking.increment_epoch();
                }
            })?;
        Ok(Self {
            engine,
            linker: Arc::new(linker),
            cache,
            fresh: Arc::default(),
            _ticker: Arc::new(Ticker(stop)),
        })
    }

    fn engine(pooled: bool) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        config.concurrency_support(false);
        config.max_wasm_stack(limits::STACK_BYTES);
        config.async_stack_size(limits::STACK_BYTES * 2);
        if pooled {
            let mut pool = PoolingAllocationConfig::new();
            pool.total_component_instances(limits::AGENTS_MAX);
            pool.total_core_instances(limits::AGENTS_MAX * 4);
            pool.total_memories(limits::AGENTS_MAX);
            pool.total_tables(limits::AGENTS_MAX * 4);
            pool.total_stacks(limits::AGENTS_MAX);
            pool.table_elements(limits::TABLE_ELEMENTS_MAX);
            pool.max_core_instances_per_component(8);
            pool.max_memories_per_component(2);
            pool.max_tables_per_component(8);
            pool.max_memory_size(limits::MEMORY_MAX);
            config.memory_reservation(limits::MEMORY_MAX as u64);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        }
        Engine::new(&config)
    }

    /// The engine.
    pub fn engine_ref(&self) -> &Engine {
        &self.engine
    }

    /// Compiles the component at `path`, or takes it from the cache, and says what world it is for.
    ///
    /// # Errors
    /// See [`ComponentError`].
    pub fn prepare(&self, path: &Path) -> Result<Prepared, ComponentError> {
        let read = |source| ComponentError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(read)?.len() > limits::COMPONENT_BYTES_MAX {
            return Err(ComponentError::TooLarge {
                path: path.to_owned(),
            });
        }
        let bytes = std::fs::read(path).map_err(read)?;
        if let Some(text) = no_component(&bytes) {
            return Err(ComponentError::Invalid {
                path: path.to_owned(),
                text: text.into(),
            });
        }
        let hash = ComponentHash(Sha256::digest(&bytes).into());
        let invalid = |error: wasmtime::Error| ComponentError::Invalid {
            path: path.to_owned(),
            text: format!("{error:#}"),
        };
        let component = self.compile(&hash, &bytes).map_err(invalid)?;
        let world = self
            .world(&component)
            .map_err(|text| ComponentError::NoKnownWorld {
                path: path.to_owned(),
                text,
            })?;
        let pre = self.linker.instantiate_pre(&component).map_err(invalid)?;
        Ok(Prepared { hash, world, pre })
    }

    fn compile(&self, hash: &ComponentHash, bytes: &[u8]) -> wasmtime::Result<Component> {
        let mut engine = Fingerprint(Sha256::new());
        std::hash::Hash::hash(&self.engine.precompile_compatibility_hash(), &mut engine);
        let engine = crate::hex(&engine.0.finalize()[..8]);
        let name = format!("{hash}-{engine}.cwasm");
        let kept = self.cache.as_ref().map(|cache| cache.join(&name));
        if let Some(kept) = kept
            && let Ok(compiled) = std::fs::read(&kept)
        {
            // SAFETY: the bytes are a component that `keep` serialised: they lie in the data folder, which is the
            // operator's alone (0700), under a name bound to the component's hash and the engine's settings, and got
            // there by rename, so whole. Whoever can write there holds the root secret beside it anyway.
            #[expect(unsafe_code, reason = "wasmtime trusts compiled code; see above")]
            let component = unsafe { Component::deserialize(&self.engine, &compiled) };
            match component {
                Ok(component) => return Ok(component),
                Err(error) => tracing::warn!("compiling anew: {}: {error}", kept.display()),
            }
        }
        let component = Component::from_binary(&self.engine, bytes)?;
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.push((name, component.clone()));
        Ok(component)
    }

    /// Keeps what was compiled in a folder that nobody else may write, for the next run. What can't be kept is compiled again.
    pub fn keep(&self, cache: &Path) {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, component) in fresh {
            let kept = component.serialize().map_err(|error| error.to_string());
            let kept = kept.and_then(|compiled| {
                crate::boot::data::replace(&cache.join(name), &compiled)
                    .map_err(|error| error.to_string())
            });
            if let Err(error) = kept {
                tracing::warn!("a compiled component is not kept: {error}");
            }
        }
    }

    fn world(&self, component: &Component) -> Result<World, String> {
        let ty = component.component_type();
        let forbidden: Vec<_> = ty
            .imports(&self.engine)
            .map(|(name, _)| name.to_owned())
            .filter(|name| !is_allowed(name))
            .collect();
        if !forbidden.is_empty() {
            return Err(format!(
                "it imports {}, which no agent is given (an agent has no files, sockets, clocks or randomness of its own; \
                 ask for a grant instead)",
                forbidden.join(", ")
            ));
        }
        let exports: Vec<_> = ty
            .exports(&self.engine)
            .map(|(name, _)| name.to_owned())
            .collect();
        let has = |name: &str| exports.iter().any(|export| export == name);
        if has("run") {
            match ty.imports(&self.engine).any(|(name, _)| name == WIRE) {
                true => Ok(World::Agent),
                false => Err(format!("it exports `run` but does not import {WIRE}")),
            }
        } else if has("coordinate") {
            Ok(World::Reactor)
        } else if has(OLDER) {
            Ok(World::Older)
        } else {
            Err(format!(
                "it exports none of `run` (world agent), `coordinate` (world reactor), {OLDER} (the older world); it exports {}",
                match exports.is_empty() {
                    true => "nothing".to_owned(),
                    false => exports.join(", "),
                }
            ))
        }
    }
}

/// What bytes are that are not even the beginning of a component.
fn no_component(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => None,
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            Some("it is a core WebAssembly module and no component (build it for wasm32-wasip2)")
        }
        _ => Some("it is no WebAssembly component (build its source for wasm32-wasip2)"),
    }
}

/// Feeds whatever is hashed into SHA-256, so that the name of a kept component does not depend on a hasher's version.
struct Fingerprint(Sha256);

impl std::hash::Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn link_wasi(linker: &mut Linker<Inside>) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::{WasiCli, WasiCliCtxView};
    use wasmtime_wasi::p2::bindings::{cli, random};
    use wasmtime_wasi::random::WasiRandom;
    use wasmtime_wasi_io::bindings::wasi::io;

    fn stdio(inside: &mut Inside) -> WasiCliCtxView<'_> {
        wasmtime_wasi::cli::WasiCliView::cli(inside)
    }
    let l = linker;
    cli::environment::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::exit::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::stdin::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::stdout::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::stderr::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::terminal_input::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::terminal_output::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::terminal_stdin::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::terminal_stdout::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    cli::terminal_stderr::add_to_linker::<Inside, WasiCli>(l, stdio)?;
    random::insecure_seed::add_to_linker::<Inside, WasiRandom>(l, |inside| inside.random())?;
    io::error::add_to_linker::<Inside, Table>(l, |inside| &mut inside.table)?;
    io::poll::add_to_linker::<Inside, Table>(l, |inside| &mut inside.table)?;
    io::streams::add_to_linker::<Inside, Table>(l, |inside| &mut inside.table)?;
    Ok(())
}

struct Table;

impl wasmtime::component::HasData for Table {
    type Data<'a> = &'a mut wasmtime::component::ResourceTable;
}

/// The `closed` of wit/agent.
#[derive(
    Clone,
    Copy,
    wasmtime::component::ComponentType,
    wasmtime::component::Lower,
    wasmtime::component::Lift,
)]
#[component(enum)]
#[repr(u8)]
enum Closed {
    #[component(name = "ended")]
    Ended,
}

type Frames = Vec<Vec<u8>>;

fn link_wire(linker: &mut Linker<Inside>) -> wasmtime::Result<()> {
    let mut wire = linker.instance(WIRE)?;
    wire.func_wrap_async(
        "exchange",
        |mut store: StoreContextMut<'_, Inside>, (outgoing,): (Frames,)| {
            // Handles are cloned out before the wait, so that nothing borrows the store across it.
            let entered = store.data_mut().enter(&outgoing);
            let parked = store.data().parked.clone();
            Box::new(async move {
                let end = entered?;
                let sent = send_all(&end, outgoing).await;
                if sent.is_err() {
                    return Ok((Err::<Frames, Closed>(Closed::Ended),));
                }
                let _parked = parked.park();
                Ok((end.receive_batch().await.map_err(|_| Closed::Ended),))
            })
        },
    )?;
    wire.func_wrap_async(
        "offer",
        |mut store: StoreContextMut<'_, Inside>, (outgoing,): (Frames,)| {
            let entered = store.data_mut().enter(&outgoing);
            Box::new(async move {
                let end = entered?;
                Ok((send_all(&end, outgoing).await.map_err(|_| Closed::Ended),))
            })
        },
    )?;
    Ok(())
}

/// Hands frames over and waits until the host's vat has taken them, so that an agent can't outrun its host.
async fn send_all(end: &wire::End, frames: Frames) -> Result<(), wire::Closed> {
    for frame in frames {
        end.send(frame)?;
    }
    end.drained().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_imports_are_allowed() {
        assert!(is_allowed("wasi:io/streams@0.2.6"));
        assert!(is_allowed(WIRE));
        for forbidden in [
            "wasi:filesystem/types@0.2.6",
            "wasi:sockets/tcp@0.2.6",
            "wasi:clocks/monotonic-clock@0.2.6",
            "wasi:random/random@0.2.6",
            "wasi:io/streams@0.3.0",
            "agora:agent/wire@0.2.0",
            "host:magic/wand",
        ] {
            assert!(!is_allowed(forbidden), "{forbidden}");
        }
    }
}
