//! Does at its desk whatever it is asked, with all that it was granted: the confused deputy.
//!
//! In: calls of desk.capnp, from whoever was introduced to it. Out: what came of them.
//!
//! It may do more than its callers, checks nothing, and speaks through whatever facet it is handed. What must stop them
//! from using it to do more than they may: a facet that a caller hands it is the caller's authority, lent, whatever the
//! deputy may do on the same channel by its own grant. Only what they ask for by the deputy's own name for it is done
//! under the deputy's own grant, and with its name.

/// Serves until the epoch ends.
#[agora_guest::main]
async fn deputy(graft: agora_guest::Graft) -> Result<(), agora_guest::Error> {
    agora_desk::serve(graft).await
}
