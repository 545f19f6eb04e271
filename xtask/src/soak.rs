//! `cargo xtask soak`: the long form of what `test` runs a bounded, seeded sample of.

use anyhow::Result;

use crate::{build_agents, cargo, step};

/// Runs the campaigns, one after the other; stops at the first that fails.
pub(crate) fn run(kills: u32, cases: u32) -> Result<()> {
    build_agents()?;
    step(
        &format!("the host, killed {kills} times under load"),
        cargo()
            .args(["test", "--package", "agora", "--test", "journeys", "crash"])
            .env("AGORA_KILLS", kills.to_string()),
    )?;
    step(
        &format!("the embedded log, killed {kills} times"),
        cargo()
            .args(["test", "--package", "agora-log", "--all-features"])
            .env("AGORA_KILLS", kills.to_string())
            .env("AGORA_CASES", cases.to_string()),
    )?;
    step(
        &format!("judge against its model, {cases} cases a property"),
        cargo()
            .args(["test", "--release", "--package", "agora-realm"])
            .env("PROPTEST_CASES", cases.to_string()),
    )
}
