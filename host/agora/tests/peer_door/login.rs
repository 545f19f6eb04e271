//! Callers that aren't known by their id: what they may do with a key, and how little without it.

use std::cell::RefCell;
use std::rc::Rc;

use agora::testbed::{Plan, all_of};
use agora_capnp::membrane_capnp::membrane;
use agora_capnp::peer_capnp::terminal::outcome;
use agora_capnp::peer_capnp::{login_signer, terminal};
use agora_dial::{Lane, OpenError, PeerId, PeerState};
use agora_guest::Graft;
use agora_realm::{Challenge, Epoch, HostId, RealmId, SigningKey};

use crate::bed::{Bed, Caller, id, keyed, on_bed, peering, within};
use crate::hostile::alone;

/// The key that the manifest knows.
fn key() -> SigningKey {
    SigningKey::from_bytes([5; 32]).unwrap()
}

fn plan() -> Plan {
    let beta = keyed(key().public(), vec![all_of("release")]);
    Plan::new()
        .channel("release")
        .peering(peering([("beta", beta)]))
}

/// What a signer was asked to sign, and what it answered.
type Seen = Rc<RefCell<Vec<(Asked, [u8; 64])>>>;
/// Makes a key and a signature of what is asked.
type Forgery = fn(&Asked, &SigningKey) -> (Vec<u8>, Vec<u8>);

/// What a signer is asked to sign.
#[derive(Debug, Clone)]
struct Asked {
    nonce: [u8; 32],
    realm: RealmId,
    host: HostId,
    epoch: u64,
    challenger: PeerId,
    caller: PeerId,
}

impl Asked {
    fn signed(&self, key: &SigningKey) -> [u8; 64] {
        let challenge = Challenge {
            nonce: &self.nonce,
            realm: &self.realm,
            host: &self.host,
            epoch: Epoch(self.epoch),
            challenger: &self.challenger.to_bytes(),
            caller: &self.caller.to_bytes(),
        };
        key.sign(&challenge.digest(), &[0; 32])
    }
}

/// Says with what key, and what signature; or never.
type Signs = dyn AsyncSigner;

trait AsyncSigner {
    fn sign(
        &self,
        asked: Asked,
    ) -> futures::future::LocalBoxFuture<'static, Option<(Vec<u8>, Vec<u8>)>>;
}

impl<F, Fut> AsyncSigner for F
where
    F: Fn(Asked) -> Fut,
    Fut: Future<Output = Option<(Vec<u8>, Vec<u8>)>> + 'static,
{
    fn sign(
        &self,
        asked: Asked,
    ) -> futures::future::LocalBoxFuture<'static, Option<(Vec<u8>, Vec<u8>)>> {
        Box::pin(self(asked))
    }
}

struct Signer {
    challenger: PeerId,
    caller: PeerId,
    signs: Box<Signs>,
}

impl login_signer::Server for Signer {
    async fn sign(
        self: Rc<Self>,
        params: login_signer::SignParams,
        mut results: login_signer::SignResults,
    ) -> Result<(), capnp::Error> {
        let challenge = params.get()?.get_challenge()?;
        let bytes = |data: capnp::Result<&[u8]>| <[u8; 32]>::try_from(data.unwrap()).unwrap();
        let asked = Asked {
            nonce: bytes(challenge.get_nonce()),
            realm: RealmId(bytes(challenge.get_realm())),
            host: HostId(bytes(challenge.get_host())),
            epoch: challenge.get_epoch(),
            challenger: self.challenger,
            caller: self.caller,
        };
        let Some((key, signature)) = self.signs.sign(asked).await else {
            return std::future::pending().await;
        };
        results.get().set_public_key(&key);
        results.get().set_signature(&signature);
        Ok(())
    }
}

fn signer(caller: &Caller, signs: impl AsyncSigner + 'static) -> login_signer::Client {
    capnp_rpc::new_client(Signer {
        challenger: caller.host,
        caller: caller.dialer.peer_id(),
        signs: Box::new(signs),
    })
}

/// How a login came out.
enum Came {
    Granted(membrane::Client),
    Not(&'static str, String),
}

impl std::fmt::Debug for Came {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Granted(_) => f.write_str("granted"),
            Self::Not(how, why) => write!(f, "{how}: {why}"),
        }
    }
}

impl Came {
    #[track_caller]
    fn is(self, expected: &str) {
        match self {
            Self::Not(how, _) if how == expected => {}
            other => panic!("{expected} expected, {other:?}"),
        }
    }
}

async fn login(terminal: &terminal::Client, signer: login_signer::Client) -> Came {
    let mut request = terminal.login_request();
    request.get().set_signer(signer);
    let answer = match within("a login", request.send().promise).await {
        Ok(answer) => answer,
        Err(error) => return Came::Not("lost", error.extra),
    };
    let outcome = answer.get().unwrap().get_outcome().unwrap();
    let text =
        |text: capnp::Result<capnp::text::Reader<'_>>| text.unwrap().to_str().unwrap().to_owned();
    match outcome.which().unwrap() {
        outcome::Which::Granted(door) => Came::Granted(door.unwrap()),
        outcome::Which::Denied(why) => Came::Not("denied", text(why)),
        outcome::Which::Stale(why) => Came::Not("stale", text(why)),
        outcome::Which::Overloaded(why) => Came::Not("overloaded", text(why)),
        outcome::Which::TimedOut(why) => Came::Not("timedOut", text(why)),
    }
}

/// One login of one caller, by a signer; a connection of its own.
async fn attempt(caller: &Caller, signs: impl AsyncSigner + 'static) -> Came {
    let (terminal, _vat) = caller.terminal().await;
    login(&terminal, signer(caller, signs)).await
}

fn rightly(asked: &Asked) -> Option<(Vec<u8>, Vec<u8>)> {
    let signature = asked.signed(&key());
    Some((key().public().0.to_vec(), signature.to_vec()))
}

/// Nobody has got anything: not on the record, and not on the lanes.
async fn nothing_was_granted(bed: &Bed, caller: &Caller) {
    assert!(bed.persona("peer:beta").is_none());
    assert_eq!(bed.peer("beta").id(), None);
    for lane in [Lane::Vat, Lane::Control] {
        match caller.dialer.open(caller.host, lane).await {
            Err(OpenError::Guest { .. } | OpenError::NotConnected { .. }) => {}
            other => panic!("{lane:?}: {other:?}"),
        }
    }
}

#[test]
fn who_has_the_key_is_let_in_and_known_by_its_id_from_then_on() {
    let _beside = alone().read().unwrap();
    on_bed(plan(), async |bed: &Bed| {
        let caller = bed.caller(21).await;
        let (terminal, vat) = caller.terminal().await;
        let came = login(
            &terminal,
            signer(&caller, async |asked: Asked| rightly(&asked)),
        )
        .await;
        let Came::Granted(door) = came else {
            panic!("{came:?}");
        };
        let graft = within("a graft", Graft::arrive(&door)).await;
        // The guest's connection ends soon after; whether the graft came first is a race that may be lost.
        if let Ok(graft) = graft {
            assert!(graft.persona().starts_with("peer:beta@"));
        }
        drop((terminal, vat));
        caller.until(PeerState::Connected).await;
        let beta = caller.graft().await;
        assert_eq!(beta.graft.names().collect::<Vec<_>>(), ["release"]);
        let synth = beta.speaker("release", "synth").await.unwrap();
        let said = synth.say(agora_guest::Draft::inform("in"));
        within("speech", said).await.unwrap().unwrap();
        let origin = bed.persona("peer:beta").unwrap().origin.unwrap();
        assert_eq!(origin.peer, id(21).to_bytes());

        // From another machine, with the same key: that is beta now, and the first has nothing any more.
        let other = bed.caller(22).await;
        let came = attempt(&other, async |asked: Asked| rightly(&asked)).await;
        assert!(matches!(came, Came::Granted(_)), "{came:?}");
        within("the end", beta.graft.ended()).await;
        other.until(PeerState::Connected).await;
        let beta = other.graft().await;
        let synth = beta.speaker("release", "synth").await.unwrap();
        let said = synth.say(agora_guest::Draft::inform("moved"));
        within("speech", said).await.unwrap().unwrap();
        assert_eq!(bed.peer("beta").id(), Some(id(22)));
        let origin = bed.persona("peer:beta").unwrap().origin.unwrap();
        assert_eq!(origin.peer, id(22).to_bytes());
    });
}

#[test]
fn nobody_is_let_in_by_a_signature_that_says_anything_else() {
    let _beside = alone().read().unwrap();
    on_bed(plan(), async |bed: &Bed| {
        let seen: Seen = Rc::default();
        type Change = fn(&mut Asked);
        let changes: [(&str, Change); 6] = [
            ("nonce", |asked| asked.nonce[0] ^= 1),
            ("realm", |asked| asked.realm.0[0] ^= 1),
            ("host", |asked| asked.host.0[0] ^= 1),
            ("epoch", |asked| asked.epoch += 1),
            ("challenger", |asked| asked.challenger = id(99)),
            ("caller", |asked| asked.caller = id(99)),
        ];
        for (seed, (what, change)) in (30..).zip(changes) {
            let caller = bed.caller(seed).await;
            let seen = seen.clone();
            let came = attempt(&caller, move |mut asked: Asked| {
                seen.borrow_mut()
                    .push((asked.clone(), asked.signed(&key())));
                change(&mut asked);
                async move { rightly(&asked) }
            });
            println!("{what}");
            came.await.is("denied");
            nothing_was_granted(bed, &caller).await;
            caller.dialer.shutdown().await;
        }
        // One that was good once, for another.
        let (_, replayed) = seen.borrow()[0].clone();
        let caller = bed.caller(40).await;
        let came = attempt(&caller, move |_: Asked| async move {
            Some((key().public().0.to_vec(), replayed.to_vec()))
        });
        came.await.is("denied");
        nothing_was_granted(bed, &caller).await;
        caller.dialer.shutdown().await;

        // Keys and signatures of any other kind.
        let other = SigningKey::from_bytes([6; 32]).unwrap();
        let others: [Forgery; 5] = [
            |asked, other| (other.public().0.to_vec(), asked.signed(other).to_vec()),
            |asked, other| (key().public().0.to_vec(), asked.signed(other).to_vec()),
            |_, _| (key().public().0.to_vec(), vec![0; 64]),
            |_, _| (vec![], vec![]),
            |asked, _| (vec![9; 1000], asked.signed(&key()).to_vec()),
        ];
        for (seed, sign) in (41..).zip(others) {
            let caller = bed.caller(seed).await;
            let other = SigningKey::from_bytes([6; 32]).unwrap();
            let came = attempt(&caller, move |asked: Asked| {
                let signed = sign(&asked, &other);
                async move { Some(signed) }
            });
            came.await.is("denied");
            nothing_was_granted(bed, &caller).await;
            caller.dialer.shutdown().await;
        }
        drop(other);
    });
}

#[test]
fn a_signature_that_is_passed_on_says_nothing() {
    let _beside = alone().read().unwrap();
    on_bed(plan(), async |bed: &Bed| {
        // The victim logs in at the middleman's, who asks it what he is asked himself: it signs for the ends that it sees.
        let (middleman, victim) = (bed.caller(50).await, id(51));
        let between = middleman.dialer.peer_id();
        let came = attempt(&middleman, move |mut asked: Asked| {
            (asked.challenger, asked.caller) = (between, victim);
            async move { rightly(&asked) }
        });
        came.await.is("denied");
        nothing_was_granted(bed, &middleman).await;
    });
}

#[test]
fn a_login_that_takes_too_long_or_fails_gets_nothing_and_makes_one_wait() {
    let _beside = alone().read().unwrap();
    on_bed(plan(), async |bed: &Bed| {
        // The epoch ends while it is signed.
        let caller = bed.caller(60).await;
        let (control, first) = (bed.control(), bed.control().gate().shown().epoch);
        let came = attempt(&caller, move |asked: Asked| {
            let control = control.clone();
            async move {
                let handle = control.runtime().clone();
                let bumped = handle.spawn(async move { control.bump("", false, "test").await });
                bumped.await.unwrap();
                rightly(&asked)
            }
        });
        came.await.is("stale");
        assert!(bed.control().gate().shown().epoch > first);
        nothing_was_granted(bed, &caller).await;

        // A second one on the same connection; and one that is given up, after which its id waits.
        let caller = bed.caller(61).await;
        let (terminal, vat) = caller.terminal().await;
        let never = signer(&caller, async |_: Asked| None);
        let mut request = terminal.login_request();
        request.get().set_signer(never);
        let first = request.send().promise;
        let again = signer(&caller, async |asked: Asked| rightly(&asked));
        login(&terminal, again).await.is("overloaded");
        drop((first, terminal, vat));
        let waits = async {
            loop {
                let came = attempt(&caller, async |_: Asked| None);
                match came.await {
                    Came::Not("overloaded", why) if why.contains("failed before") => return,
                    Came::Not("overloaded" | "lost", _) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        within("the wait", waits).await;
        nothing_was_granted(bed, &caller).await;

        // Nobody answers.
        let caller = bed.caller(62).await;
        attempt(&caller, async |_: Asked| None).await.is("timedOut");
        let after = async {
            loop {
                match attempt(&caller, async |asked: Asked| rightly(&asked)).await {
                    // The connection of the one before was being let go of.
                    Came::Not("lost", _) => {}
                    came => return came,
                }
            }
        };
        within("the one after", after).await.is("overloaded");
        nothing_was_granted(bed, &caller).await;
    });
}
