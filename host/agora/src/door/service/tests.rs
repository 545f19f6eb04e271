//! What stands between a graft and a service, with services of every sort.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agora_capnp::signer_capnp::signer;
use agora_membrane::error::{Kind, classify, reason};
use capnp::Error;
use capnp::capability::FromClientHook;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use folder_service::folder_capnp::{folder, found};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::*;

/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let local = tokio::task::LocalSet::new();
    let test = async { tokio::time::timeout(PATIENCE, test).await };
    let ended = local.block_on(&runtime.expect("a thread can have a runtime"), test);
    ended.expect("it hangs");
}

/// A host with one service, and an agent.
struct Place {
    folder: tempfile::TempDir,
    services: Services,
    /// The host's end of the agent's wire, and the agent's, which takes what it likes.
    agent: (wire::End, wire::End),
}

fn place(deadline: Duration, calls: usize) -> Place {
    let folder = tempfile::tempdir().expect("there is room");
    let name = ServiceName::new("folder").expect("it is a name");
    let spec = ServiceSpec {
        name: name.clone(),
        socket: folder.path().join("socket"),
        deadline,
        calls,
    };
    Place {
        folder,
        services: Services::new([(name, Arc::new(spec))].into()),
        agent: wire::pair(wire::Limits::HOST),
    }
}

impl Place {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.socket()).expect("the folder is ours")
    }

    fn lease(&self) -> (folder::Client, Lease) {
        self.lease_to(None)
    }

    /// To an agent whose signers are known there.
    fn lease_to(&self, signers: Option<Rc<Facets>>) -> (folder::Client, Lease) {
        let name = ServiceName::new("folder").expect("it is a name");
        let leased = self.services.lease(&name, self.agent.0.clone(), signers);
        let (client, lease) = leased.expect("it is declared");
        (folder::Client::new(client.hook), lease)
    }

    fn connections(&self) -> usize {
        self.services.connections.load(Ordering::SeqCst)
    }
}

/// How a service behaves, and what it saw.
#[derive(Default)]
struct Tale {
    /// `list` is answered; `read` never is.
    reads: Rc<Cell<usize>>,
    /// Whom `search` was told to call.
    found: RefCell<Vec<found::Client>>,
    /// What `list` fails with.
    error: RefCell<Option<Error>>,
}

impl folder::Server for Tale {
    async fn list(
        self: Rc<Self>,
        _: folder::ListParams,
        mut results: folder::ListResults,
    ) -> Result<(), Error> {
        if let Some(error) = &*self.error.borrow() {
            return Err(error.clone());
        }
        results.get().set_more(true);
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: folder::ReadParams,
        _: folder::ReadResults,
    ) -> Result<(), Error> {
        let _under = Under::begin(&self.reads);
        std::future::pending().await
    }

    async fn search(
        self: Rc<Self>,
        params: folder::SearchParams,
        _: folder::SearchResults,
    ) -> Result<(), Error> {
        self.found.borrow_mut().push(params.get()?.get_found()?);
        Ok(())
    }

    async fn sub(
        self: Rc<Self>,
        _: folder::SubParams,
        mut results: folder::SubResults,
    ) -> Result<(), Error> {
        results
            .get()
            .set_folder(capnp_rpc::new_client_from_rc(self));
        Ok(())
    }
}

/// Serves one connection; done when the host has hung up.
fn serve(stream: UnixStream, tale: &Rc<Tale>) -> tokio::task::JoinHandle<()> {
    let (read, write) = stream.into_split();
    let network = twoparty::VatNetwork::new(
        read.compat(),
        write.compat_write(),
        rpc_twoparty_capnp::Side::Server,
        Default::default(),
    );
    let folder: folder::Client = capnp_rpc::new_client_from_rc(tale.clone());
    let system = RpcSystem::new(Box::new(network), Some(folder.client));
    tokio::task::spawn_local(async move {
        let _ = system.await;
    })
}

/// A connection that is served.
struct Served(tokio::task::JoinHandle<()>);

async fn serve_next(listener: &UnixListener, tale: &Rc<Tale>) -> Served {
    let (stream, _) = listener.accept().await.expect("it connects");
    Served(serve(stream, tale))
}

/// Serves whoever connects.
fn serve_all(listener: UnixListener) -> Rc<Tale> {
    let tale = Rc::new(Tale::default());
    let told = tale.clone();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, &told);
        }
    });
    tale
}

async fn list(folder: &folder::Client) -> Result<bool, Error> {
    let answer = folder.list_request().send().promise.await?;
    Ok(answer.get()?.get_more())
}

async fn read(folder: &folder::Client) -> Result<(), Error> {
    folder.read_request().send().promise.await.map(drop)
}

fn reading(folder: &folder::Client) -> tokio::task::JoinHandle<Result<(), Error>> {
    let folder = folder.clone();
    tokio::task::spawn_local(async move { read(&folder).await })
}

async fn until(what: &str, fact: impl Fn() -> bool) {
    let began = Instant::now();
    while !fact() {
        assert!(began.elapsed() < PATIENCE / 2, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Asserts that an error is of this kind, names the service, and says this.
#[track_caller]
fn assert_told<T>(outcome: Result<T, Error>, kind: Kind, text: &str) {
    let error = outcome.err().expect("it must fail");
    assert_eq!(classify(&error), kind, "{error}");
    let told = reason(&error);
    assert!(told.contains("'folder'") && told.contains(text), "{told}");
}

#[test]
fn a_service_that_is_away_is_busy_and_works_once_it_is_there() {
    play(async {
        let place = place(PATIENCE, 8);
        assert_eq!(place.services.notices().len(), 1);
        let (folder, _lease) = place.lease();
        for _ in 0..3 {
            assert_told(list(&folder).await, Kind::Busy, "can't be reached");
        }
        std::fs::write(place.socket(), "").expect("the folder is ours");
        assert!(place.services.notices()[0].contains("no socket"));
        assert_told(list(&folder).await, Kind::Busy, "can't be reached");
        std::fs::remove_file(place.socket()).expect("it is there");
        let _tale = serve_all(place.listen());
        assert!(place.services.notices().is_empty());
        assert!(list(&folder).await.expect("it is there"));
        until("the failed connections end", || place.connections() == 1).await;
        assert!(!place.services.is_busy());
    });
}

#[test]
fn a_connection_that_is_lost_fails_what_was_in_flight_and_what_it_gave_and_the_next_call_makes_one_anew()
 {
    play(async {
        let place = place(PATIENCE, 8);
        let listener = place.listen();
        let (folder, _lease) = place.lease();
        let tale = Rc::new(Tale::default());
        let (first, accepted) = tokio::join!(list(&folder), serve_next(&listener, &tale));
        assert!(first.expect("it answers"));
        let sub = folder
            .sub_request()
            .send()
            .promise
            .await
            .expect("it answers");
        let sub = sub
            .get()
            .expect("it answers")
            .get_folder()
            .expect("a folder");
        assert!(list(&sub).await.expect("it answers"));
        let call = reading(&folder);
        until("the call has arrived", || tale.reads.get() == 1).await;
        assert!(place.services.is_busy());
        accepted.0.abort();
        assert_told(call.await.expect("it ends"), Kind::Failed, "unknown");
        assert_told(list(&sub).await, Kind::Failed, "closed the connection");
        assert!(!place.services.is_busy());
        let (again, _served) = tokio::join!(list(&folder), serve_next(&listener, &tale));
        assert!(again.expect("it answers"));
    });
}

#[test]
fn a_deadline_holds_for_the_service_and_for_what_it_gave() {
    play(async {
        let place = place(Duration::from_secs(2), 8);
        let tale = serve_all(place.listen());
        let (folder, _lease) = place.lease();
        let sub = folder
            .sub_request()
            .send()
            .promise
            .await
            .expect("it answers");
        let sub = sub
            .get()
            .expect("it answers")
            .get_folder()
            .expect("a folder");
        for stalled in [&folder, &sub] {
            assert_told(read(stalled).await, Kind::Failed, "no answer within 2s");
            until("the service is told to give up", || tale.reads.get() == 0).await;
        }
        assert!(list(&folder).await.expect("the connection stands"));
        assert_eq!(place.connections(), 1);
    });
}

#[test]
fn past_so_many_calls_an_agent_is_told_to_wait() {
    play(async {
        let place = place(PATIENCE, 2);
        let _tale = serve_all(place.listen());
        let (folder, _lease) = place.lease();
        let calls = [reading(&folder), reading(&folder)];
        tokio::task::yield_now().await;
        assert_told(list(&folder).await, Kind::Busy, "in flight");
        // Another agent's graft has its own.
        let (other, _other_lease) = place.lease();
        assert!(list(&other).await.expect("it answers"));
        calls[0].abort();
        until("there is room", || {
            place.services.calls.load(Ordering::SeqCst) == 1
        })
        .await;
        assert!(list(&folder).await.expect("it answers"));
    });
}

#[test]
fn a_fallen_lease_hangs_up_at_once_and_takes_everything_with_it() {
    play(async {
        let place = place(PATIENCE, 8);
        let listener = place.listen();
        let (folder, lease) = place.lease();
        let tale = Rc::new(Tale::default());
        let (_, mut served) = tokio::join!(list(&folder), serve_next(&listener, &tale));
        let sub = folder
            .sub_request()
            .send()
            .promise
            .await
            .expect("it answers");
        let sub = sub
            .get()
            .expect("it answers")
            .get_folder()
            .expect("a folder");
        let heard = Rc::new(Hits::default());
        let mut search = folder.search_request();
        search
            .get()
            .set_found(capnp_rpc::new_client_from_rc(heard.clone()));
        search.send().promise.await.expect("it answers");
        let found = tale.found.borrow()[0].clone();
        found
            .line_request()
            .send()
            .promise
            .await
            .expect("it may call back");
        assert_eq!(heard.lines.get(), 1);
        let call = reading(&folder);
        until("the call has arrived", || tale.reads.get() == 1).await;
        lease.fall("this agent was killed");
        for outcome in [
            call.await.expect("it ends"),
            read(&folder).await,
            read(&sub).await,
        ] {
            let error = outcome.expect_err("it is over");
            assert_eq!(classify(&error), Kind::Stale);
            assert_eq!(reason(&error), "this agent was killed");
        }
        (&mut served.0).await.expect("the service sees the end");
        assert!(found.line_request().send().promise.await.is_err());
        assert_eq!(heard.lines.get(), 1);
        until("nothing is left", || place.connections() == 0).await;
        assert_eq!(Rc::strong_count(&heard), 1, "the callback is let go of");
    });
}

/// A signer, as far as anyone here can tell.
struct Seal;

impl signer::Server for Seal {}

#[test]
fn a_signer_does_not_reach_a_service_at_once_or_as_a_promise_and_all_else_does() {
    play(async {
        let place = place(PATIENCE, 8);
        let tale = serve_all(place.listen());
        let facets = Rc::new(Facets::default());
        let (folder, _lease) = place.lease_to(Some(facets.clone()));
        let signer = facets.know_signer(&Rc::new(Seal)).client.hook;
        let promised = {
            let signer = signer.add_ref();
            let later = async { Ok(found::Client::new(signer)) };
            capnp_rpc::new_future_client(later)
        };
        let heard = Rc::new(Hits::default());
        let other: found::Client = capnp_rpc::new_client_from_rc(heard.clone());
        for found in [found::Client::new(signer), promised, other] {
            let mut search = folder.search_request();
            search.get().set_found(found);
            search.send().promise.await.expect("it answers");
        }
        let found = tale.found.borrow().clone();
        for (at, found) in found.iter().enumerate() {
            let called = found.line_request().send().promise.await.map(drop);
            match at {
                2 => called.expect("it is called"),
                _ => {
                    let error = called.expect_err("nothing is there");
                    assert_eq!(classify(&error), Kind::Denied, "{at}: {error}");
                }
            }
        }
        assert_eq!(heard.lines.get(), 1);
    });
}

#[derive(Default)]
struct Hits {
    lines: Cell<usize>,
    /// Calls that are never answered.
    hanging: Rc<Cell<usize>>,
    hangs: bool,
}

impl found::Server for Hits {
    async fn line(
        self: Rc<Self>,
        _: found::LineParams,
        _: found::LineResults,
    ) -> Result<(), Error> {
        self.lines.set(self.lines.get() + 1);
        if self.hangs {
            let _under = Under::begin(&self.hanging);
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[test]
fn a_service_that_calls_back_without_end_has_so_many_calls_in_flight() {
    play(async {
        let place = place(PATIENCE, 3);
        let tale = serve_all(place.listen());
        let (folder, _lease) = place.lease();
        let heard = Rc::new(Hits {
            hangs: true,
            ..Hits::default()
        });
        let mut search = folder.search_request();
        search
            .get()
            .set_found(capnp_rpc::new_client_from_rc(heard.clone()));
        search.send().promise.await.expect("it answers");
        let found = tale.found.borrow()[0].clone();
        let calls: Vec<_> = (0..100)
            .map(|_| found.line_request().send().promise)
            .collect();
        let mut refused = 0;
        for call in calls {
            if let Ok(outcome) = tokio::time::timeout(Duration::from_millis(20), call).await {
                assert_told(outcome, Kind::Busy, "in flight");
                refused += 1;
            }
        }
        assert_eq!((refused, heard.lines.get()), (97, 3));
        // Neither direction takes the other's room.
        assert!(list(&folder).await.expect("it answers"));
    });
}

#[test]
fn what_a_service_sends_waits_while_its_agent_takes_nothing() {
    play(async {
        let place = place(PATIENCE, 64);
        let tale = serve_all(place.listen());
        let (folder, _lease) = place.lease();
        assert!(list(&folder).await.expect("it answers"));
        // The agent's wire, full of what the agent has not taken.
        let frame = vec![0; 64 << 10];
        for _ in 0..17 {
            place.agent.0.send(frame.clone()).expect("there is room");
        }
        let mut call = reading(&folder);
        until("calls still go out", || tale.reads.get() == 1).await;
        let mut answer = Box::pin(list(&folder));
        let waiting = tokio::time::timeout(Duration::from_millis(100), &mut answer);
        assert!(waiting.await.is_err(), "nothing is read from the service");
        while place.agent.0.waiting() > limits::AGENT_BYTES_WAITING_MAX {
            place.agent.1.receive().await.expect("it is there");
        }
        assert!(answer.await.expect("it answers"));
        call.abort();
        let _ = (&mut call).await;
    });
}

#[test]
fn no_error_of_a_service_tells_an_agent_to_graft_anew() {
    play(async {
        let place = place(PATIENCE, 64);
        let tale = serve_all(place.listen());
        let (folder, _lease) = place.lease();
        for (error, kind) in [
            (
                Error::disconnected("my database went away".into()),
                Kind::Failed,
            ),
            (error::stale("graft again"), Kind::Failed),
            (
                Error::failed("remote exception: [stale] so there".into()),
                Kind::Failed,
            ),
            (error::busy("later"), Kind::Busy),
            (error::denied("not you"), Kind::Denied),
            (Error::overloaded("later".into()), Kind::Busy),
            (Error::failed("x".repeat(100_000)), Kind::Failed),
        ] {
            tale.error.replace(Some(error.clone()));
            let told = list(&folder).await.expect_err("it fails");
            assert_eq!(classify(&told), kind, "{error} became {told}");
            assert!(told.extra.len() < limits::SERVICE_ERROR_BYTES_MAX + 100);
        }
        tale.error.replace(None);
        assert!(list(&folder).await.expect("the connection stands"));
    });
}

/// A service that sends these bytes to whoever connects, and then waits for the end.
fn send_all(listener: UnixListener, bytes: Vec<u8>) -> Rc<Cell<usize>> {
    let ended: Rc<Cell<usize>> = Rc::default();
    let count = ended.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&bytes).await;
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            count.set(count.get() + 1);
        }
    });
    ended
}

fn message(fill: impl FnOnce(capnp_rpc::rpc_capnp::message::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

#[test]
fn what_is_no_protocol_ends_the_connection_alone() {
    let giant = [0u32, 1 << 20].map(u32::to_le_bytes).concat();
    let abort = message(|m| m.init_abort().set_reason("[stale] go away"));
    for (bytes, text) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "is it Cap'n Proto"),
        (giant, "over the bound"),
        (vec![0; 16], "malformed"),
        (vec![0xff; 64], "segments"),
        (abort, "ended the connection"),
        (message(|m| m.init_return().set_answer_id(77)), "protocol"),
        (message(|m| m.init_call().set_question_id(1)), "protocol"),
    ] {
        play(async {
            let place = place(PATIENCE, 64);
            let ended = send_all(place.listen(), bytes.clone());
            let (folder, _lease) = place.lease();
            let told = list(&folder).await.expect_err("it is no service");
            assert_eq!(classify(&told), Kind::Failed, "{text}: {told}");
            assert!(text == "protocol" || told.extra.contains(text), "{told}");
            until("the service sees the end", || ended.get() == 1).await;
            assert!(read(&folder).await.is_err(), "nor is it the second time");
            until("nothing is left", || place.connections() == 0).await;
            assert!(!place.agent.0.is_closed());
        });
    }
}

#[test]
fn random_bytes_harm_nobody() {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u32
    };
    for _ in 0..60 {
        // Whole frames of random words, so that they are looked at.
        let words = 1 + random() % 16;
        let mut bytes = [0, words].map(u32::to_le_bytes).concat();
        for _ in 0..2 * words {
            let word = match random() % 3 {
                0 => 0,
                1 => random() % 32,
                _ => random() << 1,
            };
            bytes.extend(word.to_le_bytes());
        }
        play(async {
            let place = place(Duration::from_millis(20), 64);
            let _ended = send_all(place.listen(), bytes.clone());
            let (folder, _lease) = place.lease();
            let told = list(&folder).await.expect_err("it is no service");
            assert_ne!(classify(&told), Kind::Stale, "{told}");
        });
    }
}

#[test]
fn a_service_that_takes_nothing_is_given_no_more_and_then_hung_up_on() {
    play(async {
        let place = place(Duration::from_secs(3), 64);
        let listener = place.listen();
        let (folder, _lease) = place.lease();
        let big = "x".repeat(900 << 10);
        let send = || {
            let mut request = folder.list_request();
            request.get().set_path(&big);
            request.send().promise
        };
        let mut calls = vec![send()];
        let (_stream, _) = listener.accept().await.expect("it connects");
        // It never reads. Some wait in the socket and with who writes there, the rest on the wire.
        let mut refused = None;
        for _ in 0..20 {
            let mut call = send();
            match tokio::time::timeout(Duration::from_millis(5), &mut call).await {
                Ok(outcome) => {
                    refused = outcome.err();
                    break;
                }
                Err(_) => calls.push(call),
            }
        }
        assert_told::<()>(
            Err(refused.expect("it is refused")),
            Kind::Busy,
            "does not take",
        );
        assert!(calls.len() < 12, "{}", calls.len());
        for call in calls {
            assert_told(call.await, Kind::Failed, "3s");
        }
        until("it is hung up on", || place.connections() == 0).await;
    });
}

#[test]
fn a_service_that_answers_nothing_is_not_asked_for_ever() {
    play(async {
        let place = place(PATIENCE, 64);
        let listener = place.listen();
        let (folder, _lease) = place.lease();
        let accepted: Rc<Cell<usize>> = Rc::default();
        let count = accepted.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.set(count.get() + 1);
                tokio::task::spawn_local(async move {
                    let mut bytes = vec![0; 1 << 16];
                    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
                });
            }
        });
        let ask = async |times: usize| {
            for _ in 0..times {
                // Each is given up at once, and yet remembered, since it is never answered.
                let mut call = folder.list_request().send().promise;
                let _ = futures::poll!(&mut call);
                drop(call);
                tokio::task::yield_now().await;
            }
        };
        ask(limits::SERVICE_WIRE.asked_max - 1).await;
        assert_eq!(accepted.get(), 1);
        ask(10).await;
        until("it is asked anew", || accepted.get() == 2).await;
        until("the first is over", || place.connections() == 1).await;
    });
}
