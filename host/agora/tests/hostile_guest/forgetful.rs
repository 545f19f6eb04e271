//! Guests that keep the protocol, and never do their part of it: what that leaves behind on the host's side has a bound.

use agora::testbed::ground::Ground;
use agora_capnp::channel_capnp::{channel, sink};
use agora_capnp::membrane_capnp::{membrane, session};
use agora_guest::wire::{End, Limits, Watch};
use capnp::message::{Builder, ReaderOptions};
use capnp::private::capability::ClientHook;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, return_};

use super::meter;

fn frame(build: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut built = Builder::new_default();
    build(built.init_root());
    capnp::serialize::write_message_to_words(&built)
}

fn call(question: u32, target: u32, interface: u64, method: u16) -> Vec<u8> {
    call_with(question, target, interface, method, |_| {})
}

fn call_with(
    question: u32,
    target: u32,
    interface: u64,
    method: u16,
    fill: impl FnOnce(&mut call::Builder<'_>),
) -> Vec<u8> {
    frame(|m| {
        let mut call = m.init_call();
        call.set_question_id(question);
        call.set_interface_id(interface);
        call.set_method_id(method);
        let mut to = call.reborrow().init_target();
        to.set_imported_cap(target);
        call.reborrow().init_params();
        fill(&mut call);
    })
}

fn finish(question: u32) -> Vec<u8> {
    frame(|m| {
        let mut finish = m.init_finish();
        finish.set_question_id(question);
        finish.set_release_result_caps(true);
    })
}

/// The capabilities that the answer to a question brings, in the order of their table.
async fn answer(end: &End, question: u32) -> Vec<u32> {
    while let Some(frame) = end.receive().await {
        let read = capnp::serialize::read_message(&mut &frame[..], ReaderOptions::new()).unwrap();
        let root: message::Reader<'_> = read.get_root().unwrap();
        let message::Return(answer) = root.which().unwrap() else {
            continue;
        };
        let answer = answer.unwrap();
        if answer.get_answer_id() != question {
            continue;
        }
        let return_::Results(results) = answer.which().unwrap() else {
            panic!("refused");
        };
        let table = results.unwrap().get_cap_table().unwrap();
        let ids = table.iter().map(|cap| match cap.which().unwrap() {
            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => id,
            _ => panic!("not the host's own"),
        });
        return ids.collect();
    }
    panic!("the wire is closed");
}

/// The square and the session. Questions from 2 on are free.
async fn graft(end: &End) -> (u32, u32) {
    end.send(frame(|m| m.init_bootstrap().set_question_id(0)))
        .unwrap();
    let door = answer(end, 0).await[0];
    end.send(call(1, door, membrane::Client::TYPE_ID, 0))
        .unwrap();
    let caps = answer(end, 1).await;
    // By name: notices, square; then the timer, and last the session.
    (caps[1], *caps.last().unwrap())
}

async fn turns(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn ground() -> (Ground, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    (Ground::open(data.path(), meter::live), data)
}

/// Repeats a step until the wire is closed, `most` times at most. Answers how often, and the live bytes each time has left on average.
async fn repeat(end: &End, most: u32, step: impl AsyncFn(u32)) -> (u32, f64) {
    turns(16).await;
    let before = meter::live();
    let mut left = 0.0f64;
    for n in 0..most {
        if end.is_closed() {
            return (n, left);
        }
        step(n).await;
        if n == most / 16 {
            left = (meter::live() - before) as f64 / f64::from(n + 1);
        }
    }
    (most, left)
}

#[test]
fn calls_cancelled_without_end_end_the_one_who_cancels() {
    let _alone = super::alone();
    let (ground, _data) = ground();
    let most = Limits::HOST.cancelled_max as u32 + 64;
    let (times, left, cancelled) = ground.let_in(async |end: &End, watch: &Watch| {
        let (_, session) = graft(end).await;
        let (times, left) = repeat(end, most, async |n| {
            let _ = end.send(call(2 + n, session, session::Client::TYPE_ID, 0));
            turns(2).await;
            let _ = end.send(finish(2 + n));
            turns(2).await;
        })
        .await;
        (times, left, watch.held().cancelled)
    });
    println!("{times} calls, {cancelled} kept, {left:.0} bytes each");
    assert!(times < most, "nobody ends it");
    assert!(left < 1024.0, "{left} bytes each");
}

/// Asks for a subscription, with a capability of its own as the sink.
fn subscribe(question: u32, square: u32, sink: u32) -> Vec<u8> {
    call_with(question, square, channel::Client::TYPE_ID, 2, |call| {
        let mut params = call.reborrow().get_params().unwrap();
        let mut caps: Vec<Option<Box<dyn ClientHook>>> = Vec::new();
        let mut content = params.reborrow().get_content();
        content.imbue_mut(&mut caps);
        let mut subscribe = content.init_as::<channel::subscribe_params::Builder<'_>>();
        subscribe.set_sink(capnp_rpc::new_client(Deaf));
        params.init_cap_table(1).get(0).set_sender_hosted(sink);
    })
}

struct Deaf;

impl sink::Server for Deaf {}

#[test]
fn calls_never_answered_end_the_one_who_does_not_answer() {
    let _alone = super::alone();
    let (ground, _data) = ground();
    let most = 50_000;
    let (times, left, why) = ground.let_in(async |end: &End, _: &Watch| {
        let (square, _) = graft(end).await;
        let (times, left) = repeat(end, most, async |n| {
            let _ = end.send(subscribe(2 + n, square, n));
            turns(3).await;
            // The one before is let go of only now, so that its sink was told that it is over.
            if n > 0 {
                let _ = end.send(finish(1 + n));
                turns(3).await;
            }
            // It takes what is sent to it, so that the queue is no bound.
            end.take_batch();
        })
        .await;
        (times, left, end.breached())
    });
    println!("{times} subscriptions, {left:.0} bytes each, {why:?}");
    assert!(times < most, "nobody ends it");
    assert!(left < 8192.0, "{left} bytes each");
}

/// What a vat holds of its peer, and the peer of it, goes round in circles; an agent that has ended must not leave them behind.
#[test]
fn an_agent_that_ends_with_calls_in_flight_leaves_nothing() {
    let _alone = super::alone();
    let (ground, _data) = ground();
    let live = || {
        ground.let_in(async |end: &End, _: &Watch| {
            let (square, session) = graft(end).await;
            for n in 0..100 {
                let _ = end.send(subscribe(2 + 2 * n, square, n));
                let _ = end.send(call(3 + 2 * n, session, session::Client::TYPE_ID, 0));
                turns(4).await;
            }
            assert_eq!(end.breached(), None);
        });
    };
    // The first ones make room in tables.
    (0..8).for_each(|_| live());
    let before = meter::live();
    (0..32).for_each(|_| live());
    let left = (meter::live() - before) / 32;
    println!("{left} bytes stay behind each");
    assert!(left < 4096, "{left} bytes stay behind each");
}
