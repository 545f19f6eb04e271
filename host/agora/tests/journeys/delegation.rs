//! Agents that serve each other, and what they try with what they are lent.

use super::harness::{Host, Journey, agent, messages, text};

const EVERYTHING: &str = "[\"read\", \"write\", \"initiate\", \"attenuate\"]";

/// Two that obey orders, and a deputy that both know. `first` may do this on the vault; the deputy may do everything.
fn manifest(first: &str) -> String {
    let mut manifest = "[channels.orders]\n[channels.vault]\n".to_owned();
    manifest.push_str(&agent("deputy", "deputy", "vault", EVERYTHING));
    for name in ["first", "second"] {
        manifest.push_str(&agent(name, "launderer", "orders", "[\"read\", \"write\"]"));
        manifest.push_str(&format!("[[agents.{name}.grants]]\nservice = \"deputy\"\n"));
    }
    manifest.push_str(&format!(
        "[[agents.first.grants]]\nchannel = \"vault\"\nrights = {first}\n"
    ));
    manifest
}

/// Gives an order; answers what came of it.
#[track_caller]
pub(super) fn order(journey: &Journey, host: &Host, order: &str) -> String {
    let given = journey.say("orders", order);
    let answer = host.until(&format!("the answer to '{order}'"), |lines| {
        messages(lines)
            .iter()
            .find(|m| text(m, "parent") == given)
            .map(|m| text(m, "body").to_owned())
    });
    let (_, came) = answer
        .split_once(": ")
        .expect("an order, and what came of it");
    came.to_owned()
}

/// Who said what in the vault.
fn vault(journey: &Journey) -> Vec<(String, String)> {
    let said = messages(&journey.log()).into_iter();
    said.filter(|m| text(m, "channel") == "vault")
        .map(|m| (text(&m, "author").to_owned(), text(&m, "body").to_owned()))
        .collect()
}

fn said(author: &str, body: &str) -> (String, String) {
    (author.to_owned(), body.to_owned())
}

#[test]
fn a_confused_deputy_does_no_more_for_its_caller_than_the_caller_may() {
    let journey = Journey::new(&manifest("[\"read\", \"attenuate\"]"));
    let host = journey.start(&[]);
    let ordered = |text: &str| order(&journey, &host, text);
    // The deputy does what it likes under its own grant, and answers for it by name.
    assert_eq!(ordered("first: ask vault its own"), "done");
    // What it is handed is its caller's, who may only read, however much the deputy may do there itself.
    assert_eq!(ordered("first: hand vault mine"), "done");
    let refused = ordered("first: ask mine through the caller's");
    assert!(refused.starts_with("NoRight"), "{refused}");
    // Nor does a detour make it more.
    let refused = ordered("first: fetch mine there and back");
    assert!(refused.starts_with("NoRight"), "{refused}");
    assert_eq!(vault(&journey), [said("deputy", "its own")]);
    let listed = journey.cli(&["ps", "--grants"]).exits(0).stdout;
    assert!(listed.contains("lent by first@"), "{listed}");
    host.stop();
}

#[test]
fn what_a_launderer_passed_on_dies_with_it() {
    for how in ["kill", "revoke", "bump"] {
        let journey = Journey::new(&manifest(EVERYTHING));
        let host = journey.start(&[]);
        let ordered = |text: &str| order(&journey, &host, text);
        for hide in ["hand", "narrow"] {
            assert_eq!(ordered(&format!("first: {hide} vault {hide}")), "done");
            let asked = ordered(&format!("second: ask {hide} {hide} before"));
            assert_eq!(asked, "done");
        }
        match how {
            "kill" => drop(journey.cli(&["kill", "first"]).exits(0)),
            "revoke" => {
                let grant = super::grants::grant_of(&journey, "first", "vault");
                journey.cli(&["revoke", &grant]).exits(0);
            }
            _ => drop(
                journey
                    .cli(&["epoch", "bump", "--reason", "a test"])
                    .exits(0),
            ),
        }
        for hide in ["hand", "narrow"] {
            let refused = ordered(&format!("second: ask {hide} {hide} after"));
            let dead = match how {
                // The deputy has grafted anew, and kept nothing.
                "bump" => refused.contains("no grant for"),
                _ => refused.starts_with("Stale"),
            };
            assert!(dead, "{how}: {refused}");
        }
        assert_eq!(ordered("second: ask vault still here"), "done", "{how}");
        let before = [
            said("deputy", "hand before"),
            said("deputy", "narrow before"),
        ];
        let now = [&before[..], &[said("deputy", "still here")]].concat();
        assert_eq!(vault(&journey), now, "{how}");
        host.stop();
    }
}

#[test]
fn what_was_lent_for_good_comes_back_after_a_bump_and_a_restart_until_its_lender_loses_it() {
    let journey = Journey::new(&manifest(EVERYTHING).replace(
        &agent("deputy", "deputy", "vault", EVERYTHING),
        &agent("deputy", "deputy", "orders", "[\"read\"]"),
    ));
    let host = journey.start(&[]);
    assert_eq!(order(&journey, &host, "first: lend vault lent"), "done");
    assert_eq!(order(&journey, &host, "second: ask lent one"), "done");
    journey
        .cli(&["epoch", "bump", "--reason", "a test"])
        .exits(0);
    assert_eq!(order(&journey, &host, "second: ask vault two"), "done");
    host.stop();
    let host = journey.start(&[]);
    assert_eq!(order(&journey, &host, "second: ask vault three"), "done");
    journey.cli(&["kill", "first"]).exits(0);
    let refused = order(&journey, &host, "second: ask vault four");
    assert!(
        refused.starts_with("Stale") || refused.contains("no grant for"),
        "{refused}"
    );
    let listed = journey.cli(&["ps", "--grants"]).exits(0).stdout;
    assert!(
        listed.contains("lasting, suspended: a lender is killed"),
        "{listed}"
    );
    let heard = ["one", "two", "three"].map(|word| said("deputy", word));
    assert_eq!(vault(&journey), heard);
    host.stop();
}

#[test]
fn nothing_that_was_hoarded_works_in_a_later_epoch() {
    let mut manifest = "[channels.square]\n[channels.vault]\n".to_owned();
    manifest.push_str(&agent("deputy", "deputy", "vault", EVERYTHING));
    manifest.push_str(&agent("hoarder", "hoarder", "square", EVERYTHING));
    manifest.push_str("[[agents.hoarder.grants]]\nservice = \"deputy\"\n");
    let journey = Journey::new(&manifest);
    let host = journey.start(&[]);
    host.until_message("hoarder: epoch=1 kept=0 stale=0 worked=0 late=0");
    for epoch in 2..=4 {
        let bump = ["epoch", "bump", "--reason", "a test"];
        journey.cli(&bump).exits(0);
        // Four facets three ways, and two revokers, of each epoch before.
        let kept = (epoch - 1) * 14;
        host.until_message(&format!(
            "hoarder: epoch={epoch} kept={kept} stale={kept} worked=0 late=0"
        ));
    }
    let hoarded = messages(&journey.log())
        .iter()
        .any(|m| text(m, "body").contains("must not count"));
    assert!(!hoarded);
    host.stop();
}
