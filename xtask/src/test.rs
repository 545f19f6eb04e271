//! `cargo xtask test`: everything that must be green, complete by itself.

use anyhow::Result;

use crate::{build_agents, cargo, codegen, ensure_wasm_target, step};

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
    step(
        "suites",
        cargo().args(["test", "--workspace", "--all-features", "--no-fail-fast"]),
    )
}
