//! `cargo xtask bench`: agora beside the raw libraries doing the same work.
//!
//! Each program below, and one measurement among the tests, prints rows of `name<TAB>agora<TAB>floor<TAB>ratio` from one run; only
//! the ratios mean anything.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{build_agents, cargo, nats, root, target_dir};

/// The packages that are measured, the example that does it, and the features that it needs.
const MEASURED: &[(&str, &str, &str)] = &[
    ("agora-membrane", "membrane-ratios", ""),
    ("agora-log", "log-ratios", ""),
    ("agora-log", "jetstream-ratios", ""),
    ("agora-dial", "dial-ratios", ""),
    ("agora", "host-ratios", ""),
    ("agora", "nats-ratios", "bench,testbed"),
    ("agora", "record-ratios", "bench,testbed"),
    ("agora", "checkpoint-ratios", ""),
    ("agora", "verify-ratio", ""),
    ("agora", "revocation-latency", "testbed"),
    ("agora", "peer-ratios", "testbed"),
];

/// Runs them all, prints one table and writes target/bench.json.
pub(crate) fn run(bumps: u32) -> Result<()> {
    build_agents()?;
    let mut rows = Vec::new();
    for (package, example, features) in MEASURED.iter().copied() {
        eprintln!("\n== {package}: {example}");
        let mut command = cargo();
        command.args(["run", "--release", "--package", package]);
        command.args(["--features", features, "--example", example]);
        if ["jetstream-ratios", "nats-ratios"].contains(&example)
            && let Some(server) = nats::server()?
        {
            command.env(nats::VARIABLE, server);
        }
        if example == "revocation-latency" {
            command.args(["--", "--bumps", &bumps.to_string()]);
        }
        rows.extend(measured(package, command)?);
    }
    eprintln!("\n== agora: peer_door, fairness");
    rows.extend(measured("agora", fairness()?)?);
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in &rows {
        println!(
            "{:<width$}  {:>12} / {:>12} = {:.2}",
            row.name, row.agora, row.floor, row.ratio
        );
    }
    let json: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({"name": row.name, "agora": row.agora, "floor": row.floor, "ratio": row.ratio})
        })
        .collect();
    let path = target_dir()?.join("bench.json");
    std::fs::write(&path, serde_json::to_string_pretty(&json)?)?;
    eprintln!("\nwritten to {}", path.display());
    Ok(())
}

/// The test that measures what peers wait because of another, to be run.
fn fairness() -> Result<Command> {
    let built = cargo()
        .args(["test", "--release", "--package", "agora"])
        .args(["--features", "testbed", "--test", "peer_door"])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be run")?;
    anyhow::ensure!(built.status.success(), "peer_door: {}", built.status);
    let told = String::from_utf8_lossy(&built.stdout);
    let program = told
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|told| told["target"]["name"] == "peer_door")
        .find_map(|told| Some(told["executable"].as_str()?.to_owned()))
        .context("cargo does not say where the test peer_door is")?;
    let mut command;
    if may_be_first() {
        // What the attacker's own work takes of the cores is not the host's doing: it has what the others leave.
        command = Command::new("chrt");
        command.args(["--rr", "2", &program]);
        command.env("AGORA_ATTACKER_BY", "chrt --rr 1");
    } else {
        eprintln!(
            "this user may start no real-time threads (chrt), so these rows say as much of the machine as of the host"
        );
        command = Command::new(&program);
    }
    command.current_dir(root().join("host/agora"));
    command.args(["--ignored", "--nocapture", "fairness"]);
    Ok(command)
}

/// Whether this user may start real-time threads.
fn may_be_first() -> bool {
    let tried = Command::new("chrt").args(["--rr", "2", "true"]).output();
    tried.is_ok_and(|tried| tried.status.success())
}

fn measured(package: &str, mut command: Command) -> Result<Vec<Row>> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{package}: can't be run"))?;
    anyhow::ensure!(out.status.success(), "{package}: {}", out.status);
    Ok(parse(package, &String::from_utf8_lossy(&out.stdout)))
}

struct Row {
    name: String,
    agora: String,
    floor: String,
    ratio: f64,
}

/// Rows end in three numbers, or read `NAME: agora / floor = RATIO`; whatever else is printed is for people.
fn parse(package: &str, out: &str) -> Vec<Row> {
    out.lines()
        .filter_map(|line| {
            if let Some((name, rest)) = line.split_once(": agora / floor = ") {
                return Some(Row {
                    name: format!("{package}: {name}"),
                    agora: String::new(),
                    floor: String::new(),
                    ratio: rest.split(' ').next()?.parse().ok()?,
                });
            }
            let mut cells = line.split_whitespace().rev();
            let ratio = cells.next()?.parse().ok()?;
            let floor = cells.next().filter(|cell| cell.parse::<f64>().is_ok())?;
            let agora = cells.next().filter(|cell| cell.parse::<f64>().is_ok())?;
            let mut name: Vec<_> = cells.collect();
            name.reverse();
            Some(Row {
                name: format!("{package}: {}", name.join(" ")),
                agora: agora.to_owned(),
                floor: floor.to_owned(),
                ratio,
            })
        })
        .collect()
}
