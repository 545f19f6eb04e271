//! The JetStream log on a real server: the shared suite, and what a stream must be.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

mod nats;

use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use agora_log::{
    Class, ConnectionState, JetStream, JetStreamOptions, Log, LogError,
    conformance::{self, Place},
    limits,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

struct Stream(JetStreamOptions);

impl Place for Stream {
    fn open(&self) -> BoxFuture<'static, Arc<dyn Log>> {
        let options = self.0.clone();
        async move {
            let log: Arc<dyn Log> = Arc::new(nats::open(&options).await);
            log
        }
        .boxed()
    }

    fn entry_bytes_max(&self) -> usize {
        limits::ENTRY_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_log_keeps_the_contract() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let streams = AtomicU64::new(0);
    conformance::all(|| {
        let number = streams.fetch_add(1, Ordering::Relaxed);
        Stream(nats::options(server.url(), number))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_log_keeps_the_contract_on_the_oldest_server() {
    let Some(program) = nats::oldest() else {
        return;
    };
    let server = nats::Server::start(&program);
    let streams = AtomicU64::new(0);
    conformance::all(|| {
        let number = streams.fetch_add(1, Ordering::Relaxed);
        Stream(nats::options(server.url(), number))
    })
    .await;
}

async fn ask(server: &nats::Server, subject: &str, payload: Value) -> Value {
    let client = async_nats::connect(server.url()).await.unwrap();
    let answer = client.request(subject.to_owned(), payload.to_string().into());
    let answer: Value = serde_json::from_slice(&answer.await.unwrap().payload).unwrap();
    assert!(answer.get("error").is_none(), "{subject}: {answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_is_safe_and_an_unsafe_one_is_refused() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let made = nats::options(server.url(), 0);
    nats::open(&made).await.close().await.unwrap();
    let info = ask(&server, "$JS.API.STREAM.INFO.realm-0", json!({})).await;
    let safe = info["config"].clone();
    assert_eq!(safe["deny_delete"], true);
    let day = 86_400_000_000_000_u64;
    let cases = [
        ("max_age", json!(day)),
        ("discard", json!("old")),
        ("storage", json!("memory")),
        ("retention", json!("interest")),
        ("no_ack", json!(true)),
        ("max_msgs", json!(1_000_000)),
        ("max_msgs_per_subject", json!(1_000_000)),
        ("max_bytes", json!(-1)),
        ("max_bytes", json!(1 << 20)),
        ("max_msg_size", json!(1000)),
        ("duplicate_window", json!(1_000_000_000)),
        ("allow_msg_ttl", json!(true)),
        ("allow_rollup_hdrs", json!(true)),
        ("allow_direct", json!(false)),
        ("persist_mode", json!("async")),
        ("sources", json!([{"name": "realm-0"}])),
        (
            "subject_transform",
            json!({"src": ">", "dest": "elsewhere.>"}),
        ),
    ];
    for (number, (key, value)) in (1..).zip(cases) {
        let options = nats::options(server.url(), number);
        let mut config = safe.clone();
        config["name"] = json!(options.stream);
        config["subjects"] = json!([format!("{}.>", options.subject_prefix)]);
        config[key] = value;
        let subject = format!("$JS.API.STREAM.CREATE.{}", options.stream);
        ask(&server, &subject, config).await;
        match JetStream::open(options).await.map(drop) {
            Err(LogError::Unsafe { found, .. }) => assert_eq!(found.len(), 1, "{key}: {found:?}"),
            other => panic!("{key}: {other:?}"),
        }
    }
    for other in [
        JetStreamOptions {
            replicas: 3,
            ..made.clone()
        },
        JetStreamOptions {
            subject_prefix: "elsewhere".into(),
            ..made.clone()
        },
    ] {
        let refused = JetStream::open(other).await.map(drop);
        assert!(
            matches!(refused, Err(LogError::Unsafe { .. })),
            "{refused:?}"
        );
    }
    nats::open(&made).await.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_are_noticed() {
    let Some(program) = nats::program() else {
        return;
    };
    let server = nats::Server::start(&program);
    let options = nats::options(server.url(), 0);
    let log = nats::open(&options).await;
    for number in 0..10_u8 {
        let appending = log.append([number; 32], Bytes::from(vec![number]), Class::Ordinary);
        appending.await.unwrap();
    }
    // One at a time can't be: the stream denies it.
    let client = async_nats::connect(server.url()).await.unwrap();
    let delete = client.request("$JS.API.STREAM.MSG.DELETE.realm-0", r#"{"seq":5}"#.into());
    let answer: Value = serde_json::from_slice(&delete.await.unwrap().payload).unwrap();
    assert!(answer.get("error").is_some(), "{answer}");
    ask(&server, "$JS.API.STREAM.PURGE.realm-0", json!({"seq": 4})).await;
    let mut states = log.state();
    states
        .wait_for(|state| matches!(state, ConnectionState::Diverged { .. }))
        .await
        .unwrap();
    let refused = JetStream::open(options).await.map(drop);
    assert!(
        matches!(refused, Err(LogError::Diverged { .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_reached_is_refused_without_its_password() {
    let url = format!("nats://user:secret-word@127.0.0.1:{}", nats::free_port());
    let refused = JetStream::open(nats::options(url, 0)).await.map(drop);
    let Err(error @ LogError::Unreachable { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(!error.to_string().contains("secret-word"), "{error}");
    let Some(program) = nats::program() else {
        return;
    };
    // A server without JetStream.
    let server = nats::Server::start_with(&program, "enabled: false");
    let refused = JetStream::open(nats::options(server.url(), 0))
        .await
        .map(drop);
    assert!(
        matches!(refused, Err(LogError::Unreachable { .. })),
        "{refused:?}"
    );
}
