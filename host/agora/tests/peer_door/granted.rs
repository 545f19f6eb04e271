//! The honest ways: what a peer that is known by its id finds, and how it ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use agora::peer::vat::{Road, Vat};
use agora::testbed::{Plan, Puppet, all_of, under};
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::{link, peer_channel};
use agora_dial::{Lane, PeerState, Stream};
use agora_guest::wire::Limits;
use agora_guest::{Draft, Graft, Kind, Terms};
use agora_realm::{HostId, PublicKey, RealmId, SigningKey, Terms as Granted, hello_digest};
use futures::{AsyncRead, AsyncWrite};

use crate::bed::{Bed, Caller, Collected, KEY, id, known, on_bed, peering, within};
use crate::hostile::alone;

const ALPHA: u8 = 1;

/// A host with a channel, an agent on it, and a peer that was granted it under these terms.
fn plan(terms: Granted) -> (Plan, Puppet) {
    let keeper = Puppet::new();
    let alpha = known(ALPHA, vec![under("release", terms)]);
    let plan = Plan::new()
        .channel("release")
        .agent("keeper", keeper.native(), vec![all_of("release")])
        .peering(peering([("alpha", alpha)]));
    (plan, keeper)
}

async fn grafted(keeper: &Puppet) {
    keeper.until_life(1).await;
    within("a graft", keeper.graft()).await.unwrap().unwrap();
}

/// Says who one is on the control lane, as the host of this key.
pub(crate) async fn greet(
    link: &link::Client,
    key: &SigningKey,
    seed: u8,
    change: impl FnOnce(&mut agora_capnp::peer_capnp::hello::Builder<'_>),
) -> Result<(RealmId, PublicKey), String> {
    let (realm, host) = (RealmId([1; 32]), HostId::from(key.public()));
    let digest = hello_digest(&realm, &host, &id(seed).to_bytes());
    let mut request = link.hello_request();
    let mut hello = request.get().init_hello();
    hello.set_version(1);
    hello.set_realm(&realm.0);
    hello.set_host(&host.0);
    hello.set_public_key(&key.public().0);
    hello.set_signature(&key.sign(&digest, &[0; 32]));
    hello.set_epoch(1);
    hello.set_name("bravo");
    change(&mut hello);
    let answer = within("a hello", request.send().promise).await;
    let answer = answer.map_err(|error| error.extra)?;
    let hello = answer.get().unwrap().get_hello().unwrap();
    let bytes = |data: capnp::Result<&[u8]>| <[u8; 32]>::try_from(data.unwrap()).unwrap();
    let (realm, host) = (
        RealmId(bytes(hello.get_realm())),
        HostId(bytes(hello.get_host())),
    );
    let key = PublicKey(bytes(hello.get_public_key()));
    assert_eq!(HostId::from(key), host);
    Ok((realm, key))
}

/// The epoch and the revision that a ping answers.
pub(crate) async fn ping(link: &link::Client) -> (u64, u64) {
    let answer = within("a ping", link.ping_request().send().promise).await;
    let answer = answer.unwrap();
    let answer = answer.get().unwrap();
    (answer.get_epoch(), answer.get_revision())
}

/// Begins to wait for a change of what was there; answers the epoch then, and the reason.
fn change(
    link: &link::Client,
    (epoch, revision): (u64, u64),
) -> tokio::task::JoinHandle<(u64, String)> {
    let mut request = link.changed_request();
    request.get().set_epoch(epoch);
    request.get().set_revision(revision);
    let answer = request.send().promise;
    tokio::task::spawn_local(async move {
        let answer = within("a change", answer).await.unwrap();
        let answer = answer.get().unwrap();
        let reason = answer.get_reason().unwrap().to_str().unwrap().to_owned();
        (answer.get_epoch(), reason)
    })
}

#[test]
fn a_peer_hears_and_speaks_as_itself_and_as_its_own_personas() {
    let _beside = alone().read().unwrap();
    let (plan, keeper) = plan(Granted::ALL);
    on_bed(plan, async |bed: &Bed| {
        grafted(&keeper).await;
        let caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        assert!(alpha.graft.persona().starts_with("peer:alpha@"));
        assert_eq!(alpha.graft.names().collect::<Vec<_>>(), ["release"]);
        let own = alpha.own("release");
        let info = within("info", own.info()).await.unwrap();
        assert_eq!((info.name.as_str(), info.latest), ("release", 0));

        let follows = Collected::new();
        let mut request = alpha.peer_channel("release").follow_request();
        request.get().set_from(1);
        request.get().set_sink(follows.sink());
        let following = within("following", request.send().promise).await.unwrap();
        assert_eq!(following.get().unwrap().get_floor(), 0);

        let said = within("speech", own.say(Draft::inform("of the host"))).await;
        let said = said.unwrap().unwrap();
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let mut heard = within("subscribing", synth.subscribe()).await.unwrap();
        let asked = within("speech", synth.say(Draft::request("of an agent"))).await;
        let asked = asked.unwrap().unwrap();
        assert_eq!((said.ordinal, asked.ordinal), (1, 2));

        let (there, _) = within("history", keeper.history("release", 1, 10))
            .await
            .unwrap()
            .unwrap();
        let authors: Vec<_> = there.iter().map(|message| message.author_name()).collect();
        assert_eq!(authors, ["peer:alpha", "alpha/synth"]);
        assert_eq!(there[1].hops, asked.hops);

        // An answer reaches the persona, and what it said itself does not. Hops are judged here.
        let answer = keeper.reply("release", there[1].clone(), Draft::agree("gladly"));
        within("an answer", answer).await.unwrap().unwrap().unwrap();
        let answer = loop {
            let heard = within("a delivery", heard.next()).await.unwrap().unwrap();
            assert_ne!(heard.author_name(), "alpha/synth");
            if heard.author_name() == "keeper" {
                break heard;
            }
        };
        assert_eq!(answer.hops, asked.hops - 1);
        let last = within("a turn", synth.reply(&answer, Draft::inform("thanks"))).await;
        assert_eq!(last.unwrap().unwrap().hops, asked.hops - 2);

        // Who follows is told all of it, its own words too.
        follows.until(4).await;
        let expected = [
            (1, "peer:alpha", "of the host"),
            (2, "alpha/synth", "of an agent"),
            (3, "keeper", "gladly"),
            (4, "alpha/synth", "thanks"),
        ];
        let expected = expected.map(|(n, who, what)| (n, who.to_owned(), what.to_owned()));
        assert_eq!(*follows.messages.borrow(), expected);
        let (read, next) = within("history", own.history(2, 10)).await.unwrap();
        assert_eq!((read.len(), next), (3, 5));

        // What stands on the record of who said it.
        let persona = bed.persona("alpha/synth").unwrap();
        let origin = persona.origin.as_deref().unwrap();
        assert_eq!(origin.peer, id(ALPHA).to_bytes());
        assert_eq!(origin.persona.as_ref().unwrap().as_str(), "synth");
        assert_eq!(origin.public_key, Some(PublicKey(KEY)));
        let origin = bed.persona("peer:alpha").unwrap().origin.unwrap();
        assert_eq!(origin.peer, id(ALPHA).to_bytes());
        assert_eq!(origin.persona, None);

        // One message, and no more.
        let once = Terms {
            count: 1,
            ..Terms::all()
        };
        let (narrow, revoker) = within("attenuating", synth.attenuate(&once)).await.unwrap();
        let first = within("speech", narrow.say(Draft::inform("once"))).await;
        first.unwrap().unwrap();
        let second = within("speech", narrow.say(Draft::inform("twice"))).await;
        second.unwrap().unwrap_err();
        within("a cut", revoker.revoke("enough")).await.unwrap();
        let third = within("speech", narrow.say(Draft::inform("thrice"))).await;
        assert!(third.unwrap_err().is_stale());

        // After a restart the same keys go on.
        let before = ["peer:alpha", "alpha/synth"].map(|name| bed.persona(name).unwrap().key);
        drop((alpha, heard, following));
        caller.dialer.shutdown().await;
        bed.restart().await;
        let caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let said = within("speech", synth.say(Draft::inform("again"))).await;
        assert_eq!(said.unwrap().unwrap().ordinal, 6);
        let after = ["peer:alpha", "alpha/synth"].map(|name| bed.persona(name).unwrap().key);
        assert_eq!(after, before);
        let names = ["", "Synth", "a/../b", "peer:synth", "operator:0", "x@y"];
        for name in names.into_iter().chain([&*"long".repeat(60)]) {
            let refused = alpha.speaker("release", name).await;
            assert!(refused.is_err(), "'{name}' is no name");
        }
    });
}

#[test]
fn all_personas_of_a_peer_draw_on_its_budget() {
    let _beside = alone().read().unwrap();
    let terms = Granted {
        count: 3,
        ..Granted::ALL
    };
    let (plan, _) = plan(terms);
    on_bed(plan, async |bed: &Bed| {
        let caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        let (one, other) = (
            alpha.speaker("release", "one").await.unwrap(),
            alpha.speaker("release", "other").await.unwrap(),
        );
        for channel in [&one, &other, &alpha.own("release")] {
            let said = within("speech", channel.say(Draft::inform("one"))).await;
            said.unwrap().unwrap();
        }
        for channel in [&one, &other, &alpha.own("release")] {
            let said = within("speech", channel.say(Draft::inform("one more"))).await;
            said.unwrap().unwrap_err();
        }
    });
}

#[test]
fn what_is_revoked_falls_and_is_not_in_the_next_graft() {
    let _beside = alone().read().unwrap();
    let (plan, _) = plan(Granted::ALL);
    on_bed(plan, async |bed: &Bed| {
        let caller = bed.caller(ALPHA).await;
        let mut alpha = caller.graft().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let (link, _vat) = caller.control().await;
        let key = SigningKey::from_bytes([3; 32]).unwrap();
        let (realm, _) = greet(&link, &key, ALPHA, |_| {}).await.unwrap();
        assert_eq!(Some(realm), bed.control().record().state().realm());
        assert_eq!(bed.peer("alpha").known().unwrap().key, key.public());
        let changed = change(&link, ping(&link).await);
        let ended = alpha.graft.clone();
        let ended = tokio::task::spawn_local(async move { ended.ended().await });
        let (control, grant) = (bed.control(), bed.grant_of("peer:alpha"));
        let revoked = async move { control.revoke(&grant, "enough", "test").await };
        bed.on_pool(revoked).await.unwrap();
        assert!(within("the end", ended).await.unwrap().is_stale());
        let (_, reason) = within("a change", changed).await.unwrap();
        assert!(reason.contains("revoked"), "{reason}");
        for channel in [&synth, &alpha.own("release")] {
            let said = within("speech", channel.say(Draft::inform("still here"))).await;
            assert!(said.unwrap_err().is_stale());
        }
        alpha.again().await;
        assert_eq!(alpha.graft.names().count(), 0);
    });
}

#[test]
fn a_bump_ends_what_a_peer_has_and_the_next_graft_is_of_the_next_epoch() {
    let _beside = alone().read().unwrap();
    let (plan, _) = plan(Granted::ALL);
    on_bed(plan, async |bed: &Bed| {
        let caller = bed.caller(ALPHA).await;
        let mut alpha = caller.graft().await;
        let first = alpha.graft.epoch();
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let (link, _vat) = caller.control().await;
        let changed = change(&link, ping(&link).await);
        let ended = alpha.graft.clone();
        let ended = tokio::task::spawn_local(async move { ended.ended().await });
        let control = bed.control();
        let held = bed.on_pool(async move { control.bump("an exercise", true, "test").await });
        held.await;
        assert!(within("the end", ended).await.unwrap().is_stale());
        let (_, reason) = within("a change", changed).await.unwrap();
        assert!(reason.contains("an exercise"), "{reason}");
        let said = within("speech", synth.say(Draft::inform("still here"))).await;
        assert_eq!(said.unwrap_err().kind(), Kind::Stale);

        // While the epoch is held nothing is granted; with the next fence it is.
        let door = alpha.door.clone();
        let again = tokio::task::spawn_local(async move {
            agora_guest::Graft::arrive(&door).await.unwrap().epoch()
        });
        let _ = ping(&link).await;
        assert!(!again.is_finished());
        let control = bed.control();
        let bumped = bed.on_pool(async move { control.bump("", false, "test").await });
        let (_, epoch) = bumped.await;
        assert_eq!(within("a graft", again).await.unwrap(), epoch.0);
        assert!(epoch.0 > first);
        alpha.again().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let said = within("speech", synth.say(Draft::inform("anew"))).await;
        assert_eq!(said.unwrap().unwrap().epoch, epoch.0);
        assert_eq!(ping(&link).await.0, epoch.0);
    });
}

#[test]
fn a_peer_that_is_refused_loses_all_and_is_let_in_by_nobody_until_it_is_allowed_again() {
    let _beside = alone().read().unwrap();
    let (plan, _) = plan(Granted::ALL);
    on_bed(plan, async |bed: &Bed| {
        let caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let refuse = async |is_refused| {
            let (control, peer) = (bed.control(), bed.peer("alpha"));
            let epoch = control.gate().shown().epoch;
            bed.on_pool(async move {
                let peers = control.peers();
                peers.refuse(&peer, is_refused, epoch, "for now").await;
            })
            .await;
        };
        refuse(true).await;
        let said = within("speech", synth.say(Draft::inform("still here"))).await;
        said.unwrap_err();
        let until = caller.dialer.until(caller.host, |now| {
            matches!(now.state, PeerState::Refused { .. })
        });
        within("the refusal", until).await.unwrap();
        refuse(false).await;
        // One that was refused waits long before it asks again; a new start does not.
        caller.dialer.shutdown().await;
        let caller: Caller = bed.caller(ALPHA).await;
        let alpha = caller.graft().await;
        let synth = alpha.speaker("release", "synth").await.unwrap();
        let said = within("speech", synth.say(Draft::inform("back"))).await;
        said.unwrap().unwrap();
    });
}

/// A stream of which nothing is read for a while.
struct Deaf {
    stream: Stream,
    hears: Rc<Cell<bool>>,
    reader: Rc<RefCell<Option<Waker>>>,
}

impl Road for Deaf {
    fn hang_up(&self) -> Rc<dyn Fn()> {
        Road::hang_up(&self.stream)
    }
}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if !self.hears.get() {
            *self.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// Much is said on many channels while the peer reads nothing.
#[test]
fn what_waits_on_many_channels_that_are_followed_ends_no_connection() {
    const CHANNELS: usize = 60;
    const MESSAGES: usize = 12;
    let _beside = alone().read().unwrap();
    let names: Vec<_> = (0..CHANNELS).map(|i| format!("c{i}")).collect();
    let grants: Vec<_> = names.iter().map(|name| all_of(name)).collect();
    let keeper = Puppet::new();
    let plan = names
        .iter()
        .fold(Plan::new(), |plan, name| plan.channel(name))
        .agent("keeper", keeper.native(), grants.clone())
        .peering(peering([("alpha", known(ALPHA, grants))]));
    on_bed(plan, async |bed: &Bed| {
        grafted(&keeper).await;
        let caller = bed.caller(ALPHA).await;
        let deaf = Deaf {
            stream: caller.open(Lane::Vat).await,
            hears: Rc::new(Cell::new(true)),
            reader: Rc::default(),
        };
        let (hears, reader) = (deaf.hears.clone(), deaf.reader.clone());
        let (link, _control) = caller.control().await;
        let (door, _vat): (membrane::Client, Vat) = Vat::connect(deaf, Limits::GUEST);
        let graft = within("a graft", Graft::arrive(&door)).await.unwrap();
        let (mut sinks, mut follows) = (Vec::new(), Vec::new());
        for name in &names {
            let sink = Collected::new();
            let channel: peer_channel::Client = graft.capability(name).unwrap();
            let mut request = channel.follow_request();
            request.get().set_from(1);
            request.get().set_sink(sink.sink());
            follows.push(within("following", request.send().promise).await.unwrap());
            sinks.push(sink);
        }
        hears.set(false);
        for some in names.chunks(8) {
            let saying = some.iter().map(|name| {
                let drafts = vec![Draft::inform(vec![b'x'; 40 << 10]); MESSAGES];
                within("speech", keeper.speak(name, drafts))
            });
            for said in futures::future::join_all(saying).await {
                let said = said.unwrap().unwrap();
                assert!(said.iter().all(Result::is_ok), "{said:?}");
            }
        }
        // The thread that answers is the one that delivers: it has had its turns by then.
        for _ in 0..200 {
            ping(&link).await;
        }
        hears.set(true);
        if let Some(reader) = reader.take() {
            reader.wake();
        }
        for sink in &sinks {
            sink.until(MESSAGES).await;
            let ordinals: Vec<_> = sink.messages.borrow().iter().map(|m| m.0).collect();
            let all = ordinals.iter().copied().eq(1..=MESSAGES as u64);
            assert!(all, "{ordinals:?}");
        }
    });
}
