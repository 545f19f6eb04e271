//! Grants that are taken back at home, while what was said under them waits for the peer.

use agora::door::control::{Control, Grantable};
use agora::testbed::Puppet;
use agora_guest::{Draft, Refusal};
use agora_realm::{PersonaId, PersonaName, Terms};

use super::bed::{Bed, Pair, QUIC, Site, all, next_key, repeated, said, tried, until};

fn persona(control: &Control, name: &str) -> PersonaId {
    PersonaId::new(control.host_id(), PersonaName::new(name).unwrap())
}

/// Takes back all that an agent was granted.
async fn revoke(control: &std::sync::Arc<Control>, name: &str) {
    for grant in control.grants_for(&persona(control, name)) {
        let decided = control
            .revoke(&grant.id.to_string(), "a test", "test")
            .await
            .unwrap();
        assert_eq!((decided.pending, decided.void), (None, None));
    }
}

/// What counts there: of each author in its order, by the authors' names. Authors don't wait for each other.
async fn texts(bravo: &Site) -> Vec<String> {
    let mut said = all(bravo.host(), "release").await;
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    said.into_iter().map(|(_, text)| text).collect()
}

async fn until_all(bravo: &Site, expected: &[&str]) {
    until(&format!("{expected:?} counts there"), async || {
        (texts(bravo).await == expected).then_some(())
    })
    .await;
}

/// Says it while the peer is away.
async fn waits(puppet: &Puppet, facet: &str, draft: Draft) {
    let away = tried(puppet, facet, draft).await;
    assert_eq!(away.unwrap_err(), Refusal::PeerAway);
}

/// What a host goes through between the revocation and the peer's return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Restart,
    /// It had no time to keep what became of its outbox.
    Crash,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_under_a_revoked_grant_and_waits_is_never_said() {
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Restart, Meanwhile::Crash] {
        let Pair {
            mut alpha,
            mut bravo,
            synth,
            mate,
        } = Pair::new().await;
        said(&synth, "bravo/release", Draft::inform("before"))
            .await
            .unwrap();
        bravo.close().await;
        alpha.unlinked("bravo").await;
        let keys = [next_key(), next_key()];
        let never = keys.map(|key| Draft::inform(format!("never {key}")).key(key));
        waits(&synth, "bravo/release", never[0].clone()).await;
        waits(&mate, "bravo/release", Draft::inform("one")).await;
        waits(&synth, "bravo/release", never[1].clone()).await;
        waits(&mate, "bravo/release", Draft::inform("two")).await;

        let known = alpha.data().join("peers/bravo");
        let before = std::fs::read(&known).unwrap();
        revoke(&alpha.host().control.clone(), "synth").await;
        let mut lives = 1;
        if meanwhile != Meanwhile::Nothing {
            alpha.close().await;
            if meanwhile == Meanwhile::Crash {
                std::fs::write(&known, before).unwrap();
            }
            alpha.open().await;
            lives = 2;
        }
        // It is told, while the peer is away, to whoever has a grant again.
        let control = alpha.host().control.clone();
        let again = Grantable::Channel("bravo/release".into(), Terms::ALL);
        control.grant("synth", again).await.unwrap();
        synth.until_life(lives).await;
        until("it has its new grant", async || {
            synth.graft().await.unwrap().ok()?;
            synth.subscribe("bravo/release").await.unwrap().ok()
        })
        .await;
        let refused = tried(&synth, "bravo/release", never[0].clone()).await;
        assert_eq!(refused.unwrap_err(), Refusal::Revoked, "{meanwhile:?}");
        waits(&synth, "bravo/release", Draft::inform("anew")).await;
        bravo.open().await;
        alpha.linked("bravo").await;
        until_all(&bravo, &["one", "two", "before", "anew"]).await;
        for never in never {
            let refused = repeated(&synth, "bravo/release", never).await;
            assert_eq!(refused.unwrap_err(), Refusal::Revoked, "{meanwhile:?}");
        }
        said(&synth, "bravo/release", Draft::inform("after"))
            .await
            .unwrap();
        let all = ["one", "two", "before", "anew", "after"];
        assert_eq!(texts(&bravo).await, all, "{meanwhile:?}");
        drop(control);
        alpha.close().await;
        bravo.close().await;
    }
}

/// An agent that cuts a facet takes back what waits; one that only lets go of it doesn't.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_through_a_facet_that_is_let_go_of_is_said_and_through_one_that_is_cut_isnt()
{
    let mut bed = Bed::new(QUIC).await;
    for name in ["cut", "left"] {
        let made = bed
            .synth
            .attenuate("bravo/release", agora_guest::Terms::all(), name);
        made.await.unwrap().unwrap();
    }
    bed.bravo.close().await;
    bed.alpha.unlinked("bravo").await;
    let never = Draft::inform("never").key(next_key());
    waits(&bed.synth, "cut", never.clone()).await;
    waits(&bed.synth, "left", Draft::inform("still")).await;
    bed.synth.cut("cut", "a test").await.unwrap().unwrap();
    let refused = tried(&bed.synth, "bravo/release", never).await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
    // Its life ends, and nobody holds the other any more.
    bed.synth.end(agora::persona::instance::End::Done).await;
    let control = bed.alpha.host().control.clone();
    until("it has ended", async || {
        let agent = control.agent("synth").unwrap();
        matches!(agent.shared.phase(), agora::persona::agent::Phase::Ended(_)).then_some(())
    })
    .await;
    bed.bravo.open().await;
    bed.alpha.linked("bravo").await;
    until_all(&bed.bravo, &["still"]).await;
    let synth = persona(&control, "synth");
    until("its grant is off the books", async || {
        let state = control.record().state();
        (state.grants_of(&synth).count() == 1).then_some(())
    })
    .await;
    assert_eq!(texts(&bed.bravo).await, ["still"]);
    drop(control);
    bed.close().await;
}
