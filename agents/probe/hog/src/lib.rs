//! Takes all the memory there is, and writes to each page so that it is really taken.
//!
//! Tries: to make the host run out of memory, from its arrival on.
//! What must stop it: the memory that its manifest allows. Growing past it is refused, its allocator gives up, and the trap ends
//! this agent alone; the record says that it asked for more than it was allowed.

use agora_guest::prelude::*;

/// Allocated at a time.
const BLOCK_BYTES: usize = 1 << 20;

#[agora_guest::main]
async fn hog(_graft: Graft) -> Result<(), Error> {
    let mut taken = Vec::new();
    loop {
        // Not zeros: those would come untouched.
        taken.push(std::hint::black_box(vec![0xa5_u8; BLOCK_BYTES]));
    }
}
