//! Keeps the checked-in Rust of the schemas equal to what the schema compiler makes of them.
//!
//! In: the schemas beside the manifests of these crates. Out: `src/*_capnp.rs` there. Needs the `capnp` binary (Debian's capnproto and
//! libcapnp-dev); users of agora do not.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The crates that have schemas. The first provides what the others import of it.
const CRATES: [&str; 3] = ["capnp", "agents/probe/desk", "services/folder"];

/// A crate's schemas, sorted by name.
fn schemas(of: &str) -> Result<Vec<PathBuf>> {
    let dir = crate::root().join(of);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "capnp"))
        .collect();
    files.sort();
    Ok(files)
}

/// The number after the `@` that names a schema.
fn id_of(schema: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(schema)?;
    let line = text.lines().find_map(|line| line.strip_prefix("@0x"));
    let digits = line.and_then(|line| line.strip_suffix(';'));
    let digits = digits.with_context(|| format!("{} has no id", schema.display()))?;
    Ok(u64::from_str_radix(digits, 16)?)
}

fn generate_into(of: &str, out: &Path) -> Result<()> {
    let mut command = capnpc::CompilerCommand::new();
    command
        .src_prefix(crate::root().join(of))
        .import_path("/usr/include")
        .output_path(out);
    if of != CRATES[0] {
        let provided: Result<Vec<_>> = schemas(CRATES[0])?.iter().map(|s| id_of(s)).collect();
        command
            .import_path(crate::root().join(CRATES[0]))
            .crate_provides("agora_capnp", provided?);
    }
    for file in schemas(of)? {
        command.file(file);
    }
    command
        .run()
        .context("the schema compiler failed (apt-get install capnproto libcapnp-dev)")
}

/// Writes the generated code into each crate's `src`.
pub(crate) fn write() -> Result<()> {
    CRATES
        .iter()
        .try_for_each(|of| generate_into(of, &crate::root().join(of).join("src")))
}

/// Compares what is checked in with what the schema compiler makes now. Without one, or with another version than wrote it, says so and
/// leaves it at that.
pub(crate) fn check() -> Result<()> {
    let version = std::process::Command::new("capnp")
        .arg("--version")
        .output();
    if !version.is_ok_and(|out| out.status.success()) {
        eprintln!("\n== schemas: not compared, since there is no `capnp` here");
        return Ok(());
    }
    eprintln!("\n== schemas");
    for of in CRATES {
        let made = tempfile::tempdir()?;
        generate_into(of, made.path())?;
        for schema in schemas(of)? {
            let stem = schema.file_stem().and_then(|stem| stem.to_str());
            let name = format!("{}_capnp.rs", stem.context("a schema has a plain name")?);
            let path = crate::root().join(of).join("src").join(&name);
            let checked_in = std::fs::read_to_string(path)?;
            let now = std::fs::read_to_string(made.path().join(&name))?;
            anyhow::ensure!(
                checked_in == now,
                "{of}/src/{name} is not what the schema says (run `cargo xtask codegen`)"
            );
        }
    }
    Ok(())
}
