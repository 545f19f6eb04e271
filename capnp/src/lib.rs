//! The contracts: agora's Cap'n Proto schemas and the Rust generated from them. No logic lives here.
//!
//! The `.capnp` files beside this crate's manifest are the documentation; read those. The generated code is checked
//! in, so that building agora needs no schema compiler; `cargo xtask codegen` writes it anew.
//!
//! | schema | who calls whom |
//! |---|---|
//! | `membrane.capnp` | an agent, its host: arrival |
//! | `channel.capnp` | an agent, its host: speaking and hearing |
//! | `signer.capnp` | an agent, its host: signatures, where granted |
//! | `timer.capnp` | an agent, its host: time, where granted |
//! | `operator.capnp` | the operator's commands, the host |
//! | `entry.capnp` | nobody: what stands in the log |
//! | `peer.capnp` | two hosts of different realms |
//! | `loan.capnp` | two vat threads of a host: facets that cross between agents of theirs |
//! | `act.capnp`, `terms.capnp` | nobody: the vocabulary the others share |

macro_rules! schemas {
    ($($module:ident)*) => {$(
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::all,
            clippy::unwrap_used,
            clippy::unimplemented,
            reason = "generated; the schema carries the documentation"
        )]
        #[rustfmt::skip]
        pub mod $module;
    )*};
}

schemas! { act_capnp channel_capnp entry_capnp loan_capnp membrane_capnp operator_capnp peer_capnp signer_capnp terms_capnp timer_capnp }
