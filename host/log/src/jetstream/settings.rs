//! What the stream must be for the log's promises to hold.
//!
//! Promise: nothing that stands in the stream is ever dropped by it, and a full one refuses.
//! Failure: an existing stream with other settings is refused, each named with its mend; none is changed from here.

use std::time::Duration;

use serde_json::{Value, json};

use super::{api::StreamInfo, options::JetStreamOptions};
use crate::{LogError, limits};

/// A new stream. Deleting single entries is denied for good, since a hole that nobody vouches for is damage. Purging is not, since
/// pruning must stay possible: what it took is for whoever pruned to vouch for.
pub(super) fn new_stream(options: &JetStreamOptions) -> Value {
    json!({
        "name": options.stream,
        "description": "agora: one realm's log. Do not edit: entries must stay in their places.",
        "subjects": [options.subjects()],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_bytes": options.stream_bytes_max,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_consumers": -1,
        "num_replicas": options.replicas,
        "duplicate_window": nanos(limits::DUPLICATE_WINDOW_MS),
        "compression": "none",
        "sealed": false,
        "deny_delete": true,
        "deny_purge": false,
        "allow_rollup_hdrs": false,
        "allow_direct": true,
        "no_ack": false,
    })
}

fn nanos(ms: u64) -> u64 {
    u64::try_from(Duration::from_millis(ms).as_nanos()).unwrap_or(u64::MAX)
}

/// Refuses a stream that could lose, move or change entries, or that has.
pub(super) fn check(info: &StreamInfo, options: &JetStreamOptions) -> Result<(), LogError> {
    let config = &info.config;
    let number = |key: &str| config[key].as_i64().unwrap_or(0);
    let is = |key: &str| config[key].as_bool().unwrap_or(false);
    let text =
        |key: &str, default: &'static str| config[key].as_str().unwrap_or(default).to_owned();
    let set = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
    let mut found = Vec::new();
    let mut unsafe_if = |holds: bool, what: String| {
        if holds {
            found.push(what);
        }
    };

    let storage = text("storage", "file");
    unsafe_if(
        storage != "file",
        format!(
            "its storage is {storage}: a restart would empty it (make a new stream with file storage)"
        ),
    );
    let retention = text("retention", "limits");
    unsafe_if(
        retention != "limits",
        format!(
            "its retention is {retention}: entries go once they are read (make a new stream with retention limits)"
        ),
    );
    let discard = text("discard", "old");
    unsafe_if(
        discard != "new",
        format!("it discards {discard} entries when full (set discard to new)"),
    );
    let age = Duration::from_nanos(number("max_age").unsigned_abs());
    unsafe_if(
        number("max_age") != 0,
        format!("entries older than {age:?} are dropped (set max_age to 0)"),
    );
    for (key, what) in [
        ("max_msgs", "it is limited by a count of entries"),
        (
            "max_msgs_per_subject",
            "each subject is limited by a count of entries",
        ),
    ] {
        unsafe_if(number(key) > 0, format!("{what} (set {key} to -1)"));
    }
    let room = number("max_bytes");
    let least = options.reserve_bytes.saturating_mul(2);
    unsafe_if(
        u64::try_from(room).unwrap_or(0) < least,
        match room {
            ..=0 => format!(
                "it has no byte limit, so that no room can be kept for stops (set max_bytes to at least {least})"
            ),
            _ => format!("its byte limit is {room} (set max_bytes to at least {least})"),
        },
    );
    let largest = number("max_msg_size");
    let needed = options.entry_bytes_max + limits::MESSAGE_OVERHEAD_BYTES;
    unsafe_if(
        largest > 0 && u64::try_from(largest).unwrap_or(0) < needed as u64,
        format!(
            "messages are limited to {largest} bytes (set max_msg_size to -1, or to at least {needed})"
        ),
    );
    let replicas = usize::try_from(number("num_replicas").max(1)).unwrap_or(1);
    let asked = options.replicas;
    unsafe_if(
        replicas < asked,
        format!(
            "it has {replicas} replicas, and {asked} are asked for (set replicas to {asked}, or ask for fewer)"
        ),
    );
    let window = Duration::from_nanos(number("duplicate_window").unsigned_abs());
    let needed = Duration::from_millis(limits::DUPLICATE_WINDOW_MS);
    unsafe_if(
        window < needed,
        format!(
            "repeated entries are known for {window:?} only (set duplicate_window to at least {needed:?})"
        ),
    );
    let subjects: Vec<_> = config["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    unsafe_if(
        subjects != [options.subjects()],
        format!(
            "its subjects are {} (set them to {} alone)",
            subjects.join(", "),
            options.subjects()
        ),
    );
    for (holds, what) in [
        (
            is("no_ack"),
            "it does not acknowledge (set no_ack to false)",
        ),
        (is("sealed"), "it is sealed (make a new stream)"),
        (
            is("allow_rollup_hdrs"),
            "a message may roll up those before it (set allow_rollup_hdrs to false)",
        ),
        (
            is("allow_msg_ttl"),
            "a message may carry an age limit (make a new stream without allow_msg_ttl)",
        ),
        (
            is("allow_msg_counter"),
            "it counts instead of keeping (make a new stream without allow_msg_counter)",
        ),
        (
            !is("allow_direct"),
            "it can't be read directly (set allow_direct to true)",
        ),
        (
            text("persist_mode", "default") == "async",
            "it acknowledges before it writes (make a new stream without persist_mode async)",
        ),
        (
            set("mirror")
                || config["sources"]
                    .as_array()
                    .is_some_and(|all| !all.is_empty()),
            "it copies another stream (make one that has entries of its own only)",
        ),
        (
            set("subject_transform"),
            "it changes subjects (remove subject_transform)",
        ),
    ] {
        unsafe_if(holds, what.into());
    }
    if !found.is_empty() {
        return Err(LogError::Unsafe {
            place: options.place(),
            found,
        });
    }
    check_begins(info, options)
}

/// Places count from 1, and the first was not taken out, nor all.
fn check_begins(info: &StreamInfo, options: &JetStreamOptions) -> Result<(), LogError> {
    let state = &info.state;
    let begins = match state.messages {
        0 => state.last_seq == 0,
        _ => state.first_seq == 1,
    };
    if begins {
        return Ok(());
    }
    Err(LogError::Diverged {
        place: options.place(),
        why: format!(
            "entries were deleted: {} of {} are left, the first at {}",
            state.messages, state.last_seq, state.first_seq
        ),
        mend: "restore the stream from a copy that has them all".into(),
    })
}
