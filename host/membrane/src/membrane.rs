//! The two ends that an integrator holds: the membrane, and the right to revoke it.

use crate::policy::{Policy, Side};
use crate::wall::Wall;
use capnp::capability::FromClientHook;
use std::rc::Rc;

/// A wall between two groups of objects, which wraps every capability that crosses it, either way.
///
/// Clones are the same membrane. Dropping them revokes nothing: the wrappers keep the wall standing.
///
/// What grows, and with what: one wrapper, and one entry in a table, per distinct capability held across the wall, gone
/// when its last holder drops it; one registration per call in flight; one waiting call per call pipelined on an answer
/// that has not come. The membrane bounds none of these. Whoever lets a stranger cause them must bound the stranger.
#[derive(Clone)]
pub struct Membrane {
    wall: Rc<Wall>,
}

impl Membrane {
    /// A membrane that asks `policy` about every call across it, and the only right to revoke it.
    pub fn new(policy: impl Policy) -> (Membrane, Revoker) {
        let wall = Wall::new(Rc::new(policy));
        (Membrane { wall: wall.clone() }, Revoker { wall })
    }

    /// A capability of the inside, as the outside may hold it.
    ///
    /// The same capability gives the same wrapper as long as anyone holds it. An outside capability that comes home
    /// this way is unwrapped. What is exported already stays as it is. A promise that has resolved is looked through.
    /// After revocation, the result fails everything as stale.
    ///
    /// Two capabilities are the same if their hooks report the same brand and pointer, as everywhere in capnp-rpc: an
    /// object served under two interfaces by two clients made of one `Rc` counts as one, namely the first exported.
    pub fn export<C: FromClientHook>(&self, inside: C) -> C {
        C::new(self.wall.cross(inside.into_client_hook(), Side::Inside))
    }

    /// A capability of the outside, as the inside may hold it. The mirror image of [`export`](Membrane::export).
    pub fn import<C: FromClientHook>(&self, outside: C) -> C {
        C::new(self.wall.cross(outside.into_client_hook(), Side::Outside))
    }

    /// How many calls, in both directions, have begun and have neither been answered nor cut.
    ///
    /// A call made by a request begins when it is sent; one that a connection delivers, when it is handed to the callee,
    /// once the policy has let it pass. It ends when the caller has been told, or has dropped its promise. A streaming
    /// call over a connection ends when flow control lets the caller go on.
    #[must_use]
    pub fn calls_in_flight(&self) -> usize {
        self.wall.calls_in_flight()
    }

    /// Whether it has been revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.wall.stale().is_some()
    }
}

/// The right to revoke a [`Membrane`]. Dropping it revokes nothing.
#[derive(Clone)]
pub struct Revoker {
    wall: Rc<Wall>,
}

impl Revoker {
    /// Ends the membrane, at once and for good.
    ///
    /// When this returns, every call in flight across it, in both directions, has been dropped at its callee and will
    /// answer its caller with a [stale](crate::error::Kind::Stale) error that carries `reason`; every wrapper has let go
    /// of what it wrapped and fails with the same error; and the policy is dropped. It may be called from within a
    /// callee, a policy or a destructor. Repeating it changes nothing: the first reason stays.
    ///
    /// A capability that has come home was unwrapped, is no longer behind the membrane, and keeps working.
    pub fn revoke(&self, reason: &str) {
        self.wall.revoke(reason);
    }
}
