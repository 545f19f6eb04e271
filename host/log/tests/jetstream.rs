//! The JetStream log on a real server: the shared suite, and what a stream must be.
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

mod nats;

use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use agora_log::{
    JetStreamOptions, Log,
    conformance::{self, Place},
    limits,
};
use futures::{FutureExt, future::BoxFuture};

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
