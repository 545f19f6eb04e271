//! `cargo xtask soak`: the long form of what `test` runs a bounded, seeded sample of.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{build_agents, cargo, nats, root, step};

/// Runs the campaigns, one after the other; stops at the first that fails.
pub(crate) fn run(kills: u32, cases: u32, seeds: u32, fuzz_s: u32) -> Result<()> {
    build_agents()?;
    step(
        &format!(
            "the host, and each of two and three that are peers, killed {kills} times under load"
        ),
        cargo()
            .args(["test", "--package", "agora", "--test", "journeys"])
            .args(["--", "crash", "peer_chain", "peer_loss"])
            .env("AGORA_KILLS", kills.to_string()),
    )?;
    step(
        &format!("peers over a bad network, {seeds} weathers for each transport"),
        cargo()
            .args(["test", "--release", "--package", "agora"])
            .args(["--features", "testbed", "--test", "peers", "weather"])
            .args(["--", "--nocapture"])
            .env("AGORA_SEEDS", seeds.to_string()),
    )?;
    let mut logs = cargo();
    logs.args(["test", "--package", "agora-log", "--all-features"])
        .env("AGORA_KILLS", kills.to_string())
        .env("AGORA_CASES", cases.to_string())
        // Each of them syncs hundreds of times.
        .env("AGORA_INTERLEAVINGS", cases.div_ceil(50).to_string());
    if let Some(server) = nats::server()? {
        logs.env(nats::VARIABLE, server);
    }
    step(
        &format!("both logs, the embedded one killed {kills} times"),
        &mut logs,
    )?;
    step(
        &format!("the host against the model of grants, {cases} sequences"),
        cargo()
            .args(["test", "--release", "--package", "agora"])
            .args(["--features", "testbed", "--test", "model"])
            .args(["--", "--nocapture", "--test-threads=1"])
            .env("AGORA_STEPS", "8")
            .env("AGORA_PATHS", cases.to_string())
            .env("PROPTEST_CASES", cases.to_string()),
    )?;
    step(
        &format!("judge against its model, {cases} cases a property"),
        cargo()
            .args(["test", "--release", "--package", "agora-realm"])
            .env("PROPTEST_CASES", cases.to_string()),
    )?;
    hostile_guests(fuzz_s)
}

/// Lets hostile guests in for so long.
fn hostile_guests(seconds: u32) -> Result<()> {
    // As a rustup toolchain of its own; the one of this checkout does not do.
    let fuzz = || {
        let mut command = Command::new("cargo");
        command
            .current_dir(root().join("fuzz"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
            .args(["+nightly", "fuzz"]);
        command
    };
    let found = fuzz()
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!(
            "\n== hostile guests: not run. This needs a nightly toolchain and cargo-fuzz \
             (rustup toolchain install nightly; cargo install cargo-fuzz --locked)"
        );
        return Ok(());
    }
    step(
        &format!("hostile guests, for {seconds} s"),
        // No sanitizer: the code is safe Rust, and what is not is the engine's, which never runs here.
        fuzz()
            .args(["run", "--sanitizer", "none", "hostile_guest", "--"])
            .args([
                &format!("-max_total_time={seconds}"),
                "-timeout=30",
                "-rss_limit_mb=2048",
                "-max_len=4096",
                "-len_control=0",
            ]),
    )
}
