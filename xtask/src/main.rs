//! agora's development tasks: `cargo xtask codegen`.

mod codegen;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "agora's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes the Rust for the schemas in capnp/ anew (needs Debian's capnproto and libcapnp-dev).
    Codegen,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Codegen => codegen::write(),
    }
}

/// The checkout this xtask was built from.
fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the checkout")
        .to_path_buf()
}
