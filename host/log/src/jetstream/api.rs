//! What is asked of JetStream: its API is JSON over requests.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{Seq, limits};

/// The header by which the server knows a repeated entry.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{description} ({err_code})")]
    Refused { err_code: u64, description: String },
    #[error("{0}")]
    NoAnswer(String),
}

/// The error numbers of the server that something depends on.
pub(super) mod code {
    pub(in crate::jetstream) const STREAM_NOT_FOUND: u64 = 10059;
    pub(in crate::jetstream) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(in crate::jetstream) const CLUSTER_NOT_AVAILABLE: u64 = 10008;
    pub(in crate::jetstream) const CLUSTER_NOT_LEADER: u64 = 10009;
    pub(in crate::jetstream) const NO_MESSAGE: u64 = 10037;
    pub(in crate::jetstream) const NOT_ENABLED: u64 = 10076;
    pub(in crate::jetstream) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(in crate::jetstream) const STORE_FAILED: u64 = 10077;
    pub(in crate::jetstream) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(in crate::jetstream) const INSUFFICIENT_STORAGE: u64 = 10047;
    pub(in crate::jetstream) const ACCOUNT_RESOURCES: u64 = 10002;
    pub(in crate::jetstream) const MESSAGE_TOO_LARGE: u64 = 10054;
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Value,
    pub(super) state: StreamState,
    #[serde(default)]
    pub(super) created: String,
    #[serde(default)]
    pub(super) cluster: Option<Cluster>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) replicas: Vec<Value>,
}

impl StreamInfo {
    /// Whether answers may come from a server that is behind others.
    pub(super) fn is_replicated(&self) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.replicas.is_empty())
    }
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Asks, and takes the answer for a `T` unless it is a refusal.
async fn ask<T: DeserializeOwned>(
    client: &Client,
    subject: String,
    payload: Value,
) -> Result<T, ApiError> {
    let payload = match payload {
        Value::Null => Bytes::new(),
        payload => payload.to_string().into(),
    };
    let patience = Duration::from_millis(limits::REQUEST_PATIENCE_MS);
    // Also bounded here: a client without a connection waits for one before it begins to count.
    let answer = timeout(patience, client.request(subject.clone(), payload)).await;
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                async_nats::client::RequestErrorKind::NoResponders => ApiError::Refused {
                    err_code: code::NOT_ENABLED,
                    description: "nothing answers JetStream requests".into(),
                },
                _ => ApiError::NoAnswer(format!("{subject}: {error}")),
            });
        }
        Err(_) => return Err(ApiError::NoAnswer(format!("{subject}: no answer in time"))),
    };
    let answer: Value = serde_json::from_slice(&answer.payload)
        .map_err(|error| ApiError::NoAnswer(format!("{subject}: {error}")))?;
    if let Some(error) = answer.get("error") {
        let refusal = Refusal::deserialize(error).unwrap_or(Refusal {
            err_code: 0,
            description: error.to_string(),
        });
        return Err(ApiError::Refused {
            err_code: refusal.err_code,
            description: refusal.description,
        });
    }
    serde_json::from_value(answer)
        .map_err(|error| ApiError::NoAnswer(format!("{subject}: {error}")))
}

pub(super) async fn stream_info(client: &Client, stream: &str) -> Result<StreamInfo, ApiError> {
    ask(client, format!("$JS.API.STREAM.INFO.{stream}"), Value::Null).await
}

pub(super) async fn create_stream(
    client: &Client,
    stream: &str,
    config: Value,
) -> Result<StreamInfo, ApiError> {
    ask(client, format!("$JS.API.STREAM.CREATE.{stream}"), config).await
}

/// Creates a consumer that gives every entry from `from` on, and is forgotten by the server when it is not used.
pub(super) async fn create_consumer(
    client: &Client,
    stream: &str,
    from: Seq,
) -> Result<String, ApiError> {
    #[derive(Deserialize)]
    struct Created {
        name: String,
    }
    let unused = Duration::from_millis(limits::CONSUMER_UNUSED_MS);
    let config = json!({
        "stream_name": stream,
        "config": {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": from.0.max(1),
            "ack_policy": "none",
            "replay_policy": "instant",
            "max_deliver": 1,
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": u64::try_from(unused.as_nanos()).unwrap_or(u64::MAX),
        },
    });
    let created: Created = ask(client, format!("$JS.API.CONSUMER.CREATE.{stream}"), config).await?;
    Ok(created.name)
}

/// Tells the server that a consumer is not needed any more; whether it hears so does not matter.
pub(super) async fn forget_consumer(client: &Client, stream: &str, consumer: &str) {
    let subject = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
    let _ = client.publish(subject, Bytes::new()).await;
}

/// What the stream's leader has at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtLeader {
    Nothing,
    /// An entry of no bytes.
    Empty,
    Some,
}

/// Asks the stream's leader what it has at a place.
pub(super) async fn at_leader(
    client: &Client,
    stream: &str,
    seq: Seq,
) -> Result<AtLeader, ApiError> {
    let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
    match ask::<Value>(client, subject, json!({"seq": seq.0})).await {
        Ok(found) => match found["message"]["data"].as_str() {
            None | Some("") => Ok(AtLeader::Empty),
            Some(_) => Ok(AtLeader::Some),
        },
        Err(ApiError::Refused { err_code, .. }) if err_code == code::NO_MESSAGE => {
            Ok(AtLeader::Nothing)
        }
        Err(error) => Err(error),
    }
}

/// Takes what stands under these subjects up to a place out of the stream.
pub(super) async fn purge(
    client: &Client,
    stream: &str,
    filter: &str,
    through: Seq,
) -> Result<(), ApiError> {
    // It names the first place that stays; below 2 the server takes it for none, and would purge all that is under the subjects.
    let stays = through.0.max(1).saturating_add(1);
    let request = json!({"filter": filter, "seq": stays});
    let subject = format!("$JS.API.STREAM.PURGE.{stream}");
    ask::<Value>(client, subject, request).await.map(drop)
}

/// One entry, as it stands in the stream.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) seq: Seq,
    pub(super) id: Option<String>,
    pub(super) bytes: Bytes,
}

fn header<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}

pub(super) fn message_id(message: &Message) -> Option<&str> {
    header(message.headers.as_ref(), MESSAGE_ID)
}

/// What one replica has from `from` on, in order: at most `entries`, and about `bytes` unless the first is larger. A
/// replica may be behind, so less than asked for is not the end.
pub(super) async fn get_batch(
    client: &Client,
    stream: &str,
    from: Seq,
    entries: usize,
    bytes: usize,
) -> Result<Vec<Stored>, ApiError> {
    get_batch_of(client, stream, ">", from, entries, bytes).await
}

/// The same, of what stands under these subjects.
pub(super) async fn get_batch_of(
    client: &Client,
    stream: &str,
    filter: &str,
    from: Seq,
    entries: usize,
    bytes: usize,
) -> Result<Vec<Stored>, ApiError> {
    let no_answer = |why: &dyn ToString| ApiError::NoAnswer(why.to_string());
    let inbox = client.new_inbox();
    let patience = Duration::from_millis(limits::REQUEST_PATIENCE_MS);
    let asking = async {
        let found = client.subscribe(inbox.clone()).await;
        let found = found.map_err(|error| no_answer(&error))?;
        let request = json!({
            "seq": from.0,
            "batch": entries,
            "max_bytes": bytes,
            "next_by_subj": filter,
        });
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        client
            .publish_with_reply(subject, inbox, request.to_string().into())
            .await
            .map_err(|error| no_answer(&error))?;
        Ok(found)
    };
    let mut found = timeout(patience, asking)
        .await
        .map_err(|_| no_answer(&"not connected"))??;
    let mut stored = Vec::new();
    loop {
        let message = match timeout(patience, found.next()).await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(no_answer(&"the connection was closed")),
            Err(_) => return Err(no_answer(&"a read was not answered in time")),
        };
        match message.status.map(|status| status.as_u16()) {
            None => {}
            // The end of the batch, and that there is nothing.
            Some(204 | 404) => return Ok(stored),
            Some(status) => {
                let why = message.description.unwrap_or_default();
                return Err(ApiError::NoAnswer(format!("a read: {status} {why}")));
            }
        }
        let seq =
            header(message.headers.as_ref(), "Nats-Sequence").and_then(|seq| seq.parse().ok());
        let Some(seq) = seq else {
            return Err(no_answer(&"a read: an entry came without its place"));
        };
        stored.push(Stored {
            seq: Seq(seq),
            id: message_id(&message).map(str::to_owned),
            bytes: message.payload,
        });
    }
}
