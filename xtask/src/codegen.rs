//! Keeps the checked-in Rust of the schemas equal to what the schema compiler makes of them.
//!
//! In: capnp/*.capnp. Out: capnp/src/*_capnp.rs. Needs the `capnp` binary (Debian's capnproto and libcapnp-dev); users of
//! agora do not.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Schemas, sorted by name.
fn schemas() -> Result<Vec<PathBuf>> {
    let dir = crate::root().join("capnp");
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "capnp"))
        .collect();
    files.sort();
    Ok(files)
}

fn generate_into(out: &Path) -> Result<()> {
    let mut command = capnpc::CompilerCommand::new();
    command
        .src_prefix(crate::root().join("capnp"))
        .import_path("/usr/include")
        .output_path(out);
    for file in schemas()? {
        command.file(file);
    }
    command
        .run()
        .context("the schema compiler failed (apt-get install capnproto libcapnp-dev)")
}

/// Writes the generated code into capnp/src.
pub(crate) fn write() -> Result<()> {
    generate_into(&crate::root().join("capnp/src"))
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
    let made = tempfile::tempdir()?;
    generate_into(made.path())?;
    for schema in schemas()? {
        let stem = schema.file_stem().and_then(|stem| stem.to_str());
        let name = format!("{}_capnp.rs", stem.context("a schema has a plain name")?);
        let checked_in = std::fs::read_to_string(crate::root().join("capnp/src").join(&name))?;
        let now = std::fs::read_to_string(made.path().join(&name))?;
        anyhow::ensure!(
            checked_in == now,
            "capnp/src/{name} is not what the schema says (run `cargo xtask codegen`)"
        );
    }
    Ok(())
}
