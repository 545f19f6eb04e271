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
