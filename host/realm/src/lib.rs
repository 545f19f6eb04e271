//! The realm: what stands in the log, and what of it counts. Pure: no I/O, no clock, no randomness; times and
//! randomness are arguments.
//!
//! The flow, in order:
//!
//! | module | from | to |
//! |---|---|---|
//! | `ids`, `act`, `terms` | | what things are called, what is meant, what is allowed |
//! | `entry`, `codec`, `key` | an [`Entry`] and a [`SigningKey`], or bytes | a [`Sealed`] entry, or [`Junk`] |
//! | `judge` | a [`State`] and what stands at the next seq | [`Judged`]: what counts, and the [`Change`]s to act on |
//! | `signer` | what an agent has its host sign, or an introduction | the digest that is signed, apart from every other |
//! | `rules` | a [`State`] and a [`Draft`] | whether it would count: what admission asks before it signs |
//! | `audit`, `causes` | what stands at each place, and checkpoints | a [`Report`]: whether it is what correct hosts wrote |
//! | [`evidence`] | a record, and a checkpoint of it | a proof of one entry that stands by itself; from that, what it shows |
//! | `state`, `channel` | | what the fold remembers, and what may be asked of it |
//! | [`merkle`] | what is stored at each place | the root over all of it, and proofs |
//! | [`checkpoint`] | a root and a key, or text | a host's signed word of what the log was, which others may keep and cosign |
//! | [`limits`] | | every bound |

mod act;
mod audit;
mod base64;
mod causes;
mod channel;
pub mod checkpoint;
mod codec;
mod entry;
pub mod evidence;
mod greeting;
mod ids;
mod judge;
mod key;
pub mod limits;
pub mod merkle;
mod rules;
mod signer;
mod state;
mod terms;
#[cfg(feature = "bench")]
pub mod unsigned;

pub use act::{Act, Refusal};
pub use audit::{Audit, Compared, Finding, Held, Report, Stored, Totals, Wrong};
pub use causes::{CAUSES, Cause, cause};
pub use channel::Settings;
pub use entry::{
    Body, ChannelBody, ENTRY_FORMAT, Entry, Genesis, GrantBody, Junk, KeyBody, KeySubject,
    LapseBody, Malformed, Message, NoteBody, Object, Origin, REALM_FORMAT, RevokeBody, Revoked,
    Sealed, StubBody, TurnBody, message_id,
};
pub use greeting::{Challenge, hello_digest};
pub use ids::{
    ChannelName, ComponentHash, DomainName, EntryId, Epoch, GrantId, HostId, MessageId, NotAName,
    NotAnId, Ordinal, PersonaId, PersonaName, PublicKey, RealmId, ServiceName,
};
pub use judge::{Change, Judged, MessageVerdict, Placed, judge};
pub use key::{NotAKey, SigningKey, Verifier, tagged_hash};
pub use rules::{Admitted, Draft};
pub use signer::{introduction_digest, signer_digest};
pub use state::{ChannelView, Grant, Host, Persona, State, Tally, ThreadView};
pub use terms::{ActSet, Rate, Rights, Terms};
