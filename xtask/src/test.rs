//! `cargo xtask test`: everything that must be green, complete by itself.

use anyhow::Result;

use crate::{build_agents, cargo, codegen, ensure_wasm_target, nats, python, step, suites};

/// Runs it all; stops at the first step that fails.
pub(crate) fn run() -> Result<()> {
    ensure_wasm_target()?;
    step("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    codegen::check()?;
    build_agents()?;
    step(
        "lints",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    let python = python::with_pycapnp()?;
    let server = nats::server()?;
    let oldest = nats::oldest()?;
    suites::run(|| {
        let mut suites = cargo();
        if let Some(python) = &python {
            suites.env("AGORA_PYTHON", python);
        }
        if let Some(server) = &server {
            suites.env(nats::VARIABLE, server);
        }
        if let Some(server) = &oldest {
            suites.env(nats::OLDEST_VARIABLE, server);
        }
        suites
    })
}
