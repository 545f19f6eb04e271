//! Imports what no agent is given: a clock and files.
//!
//! Tries: to be started with wasi:clocks and wasi:filesystem among its imports, by no more than using the standard library
//! for the time and for a file, as an unwary author would.
//! What must stop it: the host refuses the component before anything of it runs, naming those imports.

use agora_guest::prelude::*;

#[agora_guest::main]
async fn forbidden(graft: Graft) -> Result<(), Error> {
    let began = std::time::Instant::now();
    let read = std::fs::read("/etc/hostname");
    let took = began.elapsed();
    agora_guest::warn!(
        "forbidden: {} read a file in {took:?}: {read:?}",
        graft.persona()
    );
    Ok(())
}
