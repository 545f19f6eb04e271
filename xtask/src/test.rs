//! `cargo xtask test`: everything that must be green, complete by itself.

use anyhow::Result;

use crate::{build_agents, cargo, codegen, ensure_wasm_target, nats, python, step};

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
    let mut suites = cargo();
    suites.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
    if let Some(python) = python::with_pycapnp()? {
        suites.env("AGORA_PYTHON", python);
    }
    if let Some(server) = nats::server()? {
        suites.env(nats::VARIABLE, server);
    }
    if let Some(server) = nats::oldest()? {
        suites.env(nats::OLDEST_VARIABLE, server);
    }
    step("suites", &mut suites)
}
