//! `cargo xtask bench`: agora beside the raw libraries doing the same work.
//!
//! Each program below prints rows of `name<TAB>agora<TAB>floor<TAB>ratio` from one run; only the ratios mean anything.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::{build_agents, cargo, target_dir};

/// The programs that measure, by package.
const PROGRAMS: [(&str, &str); 1] = [("agora", "ratios")];

/// Runs them all, prints one table and writes target/bench.json.
pub(crate) fn run() -> Result<()> {
    build_agents()?;
    let mut rows = Vec::new();
    for (package, example) in PROGRAMS {
        eprintln!("\n== {package}");
        let out = cargo()
            .args([
                "run",
                "--release",
                "--package",
                package,
                "--example",
                example,
            ])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("{package}: can't be run"))?;
        anyhow::ensure!(out.status.success(), "{package}: {}", out.status);
        rows.extend(parse(package, &String::from_utf8_lossy(&out.stdout)));
    }
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

struct Row {
    name: String,
    agora: String,
    floor: String,
    ratio: f64,
}

fn parse(package: &str, out: &str) -> Vec<Row> {
    out.lines()
        .filter_map(|line| {
            let mut cells = line.split('\t').map(str::trim);
            Some(Row {
                name: format!("{package}: {}", cells.next()?),
                agora: cells.next()?.to_owned(),
                floor: cells.next()?.to_owned(),
                ratio: cells.next()?.parse().ok()?,
            })
        })
        .collect()
}
