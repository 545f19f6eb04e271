//! agora's development tasks: `cargo xtask test|bench|soak|codegen`.

mod bench;
mod codegen;
mod nats;
mod python;
mod soak;
mod suites;
mod test;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "agora's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs everything that must be green: formatting, lints, schemas, agents, all suites. Installs what tests need.
    Test,
    /// Measures agora beside its floors, in one run, and prints "agora / floor = ratio"; JSON goes to target/bench.json.
    Bench {
        /// How many bumps the latency of revoking is measured over.
        #[arg(long, default_value_t = 50)]
        bumps: u32,
    },
    /// Runs the long campaigns that `test` runs a sample of: hosts and logs killed under load, peers over bad networks, properties in
    /// many cases, hostile guests and peers (those need cargo-fuzz and a nightly toolchain).
    Soak {
        /// How often each is killed.
        #[arg(long, default_value_t = 50)]
        kills: u32,
        /// Cases of each property.
        #[arg(long, default_value_t = 5000)]
        cases: u32,
        /// How many bad networks peers are put on, for each transport.
        #[arg(long, default_value_t = 100)]
        seeds: u32,
        /// For how many seconds hostile guests are let in, and then hostile peers.
        #[arg(long, default_value_t = 600)]
        fuzz_s: u32,
    },
    /// Writes the Rust for the schemas in capnp/ anew (needs Debian's capnproto and libcapnp-dev).
    Codegen,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Test => test::run(),
        Task::Bench { bumps } => bench::run(bumps),
        Task::Soak {
            kills,
            cases,
            seeds,
            fuzz_s,
        } => soak::run(kills, cases, seeds, fuzz_s),
        Task::Codegen => codegen::write(),
    }
}

/// The checkout this xtask was built from.
fn root() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the checkout")
        .to_path_buf()
}

/// Cargo, in the checkout.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a step, telling which.
fn step(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("\n== {what}");
    let status = command
        .status()
        .with_context(|| format!("{what}: can't be run"))?;
    if !status.success() {
        bail!("{what}: failed ({status})");
    }
    Ok(())
}

/// Where cargo puts what it builds.
fn target_dir() -> Result<PathBuf> {
    let out = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()?;
    let text = String::from_utf8(out.stdout)?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(dir.into())
}

/// Makes sure that agents can be built.
fn ensure_wasm_target() -> Result<()> {
    const TARGET: &str = "wasm32-wasip2";
    let libdir = Command::new("rustc")
        .current_dir(root())
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .context("rustc can't be run")?;
    let dir = String::from_utf8_lossy(&libdir.stdout).trim().to_owned();
    if libdir.status.success() && std::path::Path::new(&dir).is_dir() {
        return Ok(());
    }
    step(
        "installing the wasm32-wasip2 target",
        Command::new("rustup")
            .current_dir(root())
            .args(["target", "add", TARGET]),
    )
}

/// The packages of all agents: what lies there and makes a component.
fn agents() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("agents")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if !path.is_dir() {
                continue;
            }
            let Ok(manifest) = std::fs::read_to_string(path.join("Cargo.toml")) else {
                folders.push(path);
                continue;
            };
            if manifest.contains("cdylib") {
                let name = path.file_name().and_then(|name| name.to_str());
                found.push(
                    name.context("an agent's folder has a plain name")?
                        .to_owned(),
                );
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Builds all agents as components.
fn build_agents() -> Result<()> {
    ensure_wasm_target()?;
    let mut command = cargo();
    command.args(["build", "--release", "--target", "wasm32-wasip2"]);
    for agent in agents()? {
        command.args(["--package", &agent]);
    }
    step("agents", &mut command)
}
