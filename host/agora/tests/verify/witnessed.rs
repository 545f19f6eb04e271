//! Witnesses that an auditor names: only what they signed themselves, of this checkpoint of a host of this realm, counts for them.

use std::path::Path;

use agora_realm::SigningKey;
use agora_realm::checkpoint::{Checkpoint, Signed};

use super::command::{agora, as_a_folder};
use super::written::{Written, checkpoint, written};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes([n; 32]).unwrap()
}

fn cosigned(signed: &Signed, witnesses: &[&SigningKey]) -> Signed {
    let mut signed = signed.clone();
    for witness in witnesses {
        let host = signed.hosts()[0];
        signed
            .cosign(&host, witness, 1_795_000_000, &[4; 32])
            .unwrap();
    }
    signed
}

/// The lines of signatures, from the one at `from` on, put below another checkpoint.
fn carried(to: &Signed, of: &Signed, from: usize) -> String {
    let of = of.to_string();
    let lines: Vec<_> = of.lines().skip(4 + from).collect();
    format!("{to}{}\n", lines.join("\n"))
}

fn named(name: &str, key: &SigningKey) -> String {
    format!("{name}={}", key.public())
}

/// A record, and how its checkpoints are verified.
struct Bed {
    written: Written,
    alice: SigningKey,
    bob: SigningKey,
    /// Of all of the record, by its host.
    whole: Signed,
}

impl Bed {
    async fn new(seed: u64) -> Self {
        let written = written(seed, 20).await;
        as_a_folder(&written);
        let whole = checkpoint(&written.entries, &written.host_key()).signed;
        Self {
            whole,
            written,
            alice: key(21),
            bob: key(22),
        }
    }

    fn folder(&self) -> &Path {
        self.written.folder.path()
    }

    fn keep(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).unwrap();
    }

    /// A command of which both witnesses are asked for.
    fn asks(&self, args: &[&str]) -> (i32, String) {
        let (alice, bob) = (named("alice", &self.alice), named("bob", &self.bob));
        let both = ["--witness", &alice, "--witness", &bob];
        agora(self.folder(), &[args, &both].concat())
    }

    /// What is said of the record with this checkpoint of it.
    fn verdict(&self, checkpoint: &str, more: &[&str]) -> (i32, String) {
        self.keep("held", checkpoint);
        self.asks(&[&["verify", "first", "--checkpoint", "held"], more].concat())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_named_witness_signed_of_this_checkpoint_counts_for_it() {
    let bed = Bed::new(8).await;
    let (alice, bob, mallory) = (&bed.alice, &bed.bob, &key(66));
    let by = |witnesses: &[&SigningKey]| cosigned(&bed.whole, witnesses).to_string();
    // Both; and one of the two, where one is enough and where it isn't.
    let (code, text) = bed.verdict(&by(&[alice, bob]), &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("alice signed") && text.contains("bob signed"));
    let (code, text) = bed.verdict(&by(&[alice]), &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("alice signed") && text.contains("bob did NOT sign"));
    let (code, text) = bed.verdict(&by(&[alice]), &["--witnesses", "1"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = bed.verdict(&by(&[]), &["--witnesses", "1"]);
    assert_eq!(code, 1, "{text}");
    // Another's key, which the auditor doesn't know.
    let (code, text) = bed.verdict(&by(&[alice, mallory]), &[]);
    assert_eq!(code, 1, "{text}");
    // A signature that is altered: its last digits.
    let sound = by(&[alice, bob]);
    let digit = sound.trim_end_matches(['=', '\n']).len() - 2;
    let mut forged = sound.clone().into_bytes();
    forged[digit] = if forged[digit] == b'A' { b'B' } else { b'A' };
    let (code, text) = bed.verdict(&String::from_utf8(forged).unwrap(), &[]);
    assert_eq!((code, text.contains("bob did NOT")), (1, true), "{text}");
    // Bob's, of another checkpoint of the same log; and of the same log as another host signed it.
    let short = checkpoint(
        &bed.written.entries[..bed.written.entries.len() - 1],
        &bed.written.host_key(),
    );
    let other_host = bed.written.secret("second").host_key(1);
    let others = checkpoint(&bed.written.entries, &other_host).signed;
    for other in [&short.signed, &others] {
        let forged = carried(&cosigned(&bed.whole, &[alice]), &cosigned(other, &[bob]), 1);
        assert_eq!(forged.lines().count(), 7);
        let (code, text) = bed.verdict(&forged, &[]);
        assert_eq!((code, text.contains("bob did NOT")), (1, true), "{text}");
    }
    // Bob's, of a checkpoint that nobody of the realm signed, put with that signature below one that its host did sign.
    let strangers = (*bed.whole.checkpoint()).sign(&key(77), &[0; 32]);
    let forged = carried(
        &cosigned(&bed.whole, &[alice]),
        &cosigned(&strangers, &[bob]),
        0,
    );
    let (code, text) = bed.verdict(&forged, &[]);
    assert_eq!((code, text.contains("bob did NOT")), (1, true), "{text}");
    // Of a log that isn't this one, whoever signed.
    let mut elsewhere = *bed.whole.checkpoint();
    elsewhere.root[0] ^= 1;
    let elsewhere: Checkpoint = elsewhere;
    let elsewhere = elsewhere.sign(&bed.written.host_key(), &[0; 32]);
    let (code, text) = bed.verdict(&cosigned(&elsewhere, &[alice, bob]).to_string(), &[]);
    assert_eq!((code, text.contains("bob did NOT")), (1, true), "{text}");
    // Of two that are held, the newest is asked for.
    bed.keep("older", &cosigned(&short.signed, &[alice, bob]).to_string());
    let (code, text) = bed.verdict(&by(&[]), &["--checkpoint", "older"]);
    assert_eq!((code, text.contains("bob did NOT")), (1, true), "{text}");
    bed.keep("older", &short.signed.to_string());
    let (code, text) = bed.verdict(&by(&[alice, bob]), &["--checkpoint", "older"]);
    assert_eq!(code, 0, "{text}");
    // For programs.
    let (code, text) = bed.verdict(&by(&[bob]), &["--witnesses", "1", "--json"]);
    let told = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|told| told["event"] == "witnesses")
        .unwrap();
    assert_eq!((code, &told["enough"]), (0, &true.into()));
    assert_eq!(told["signed"][0]["name"], "bob");
    assert_eq!(told["signed"][0]["key"], bob.public().to_string());
    assert_eq!(told["missing"][0]["name"], "alice");
    // What makes no sense is refused.
    for (more, wrong) in [
        (vec!["--witnesses".to_owned(), "3".into()], "no more than 2"),
        (vec!["--witness".into(), named("carol", bob)], "one key"),
        (vec!["--witness".into(), named("bob", mallory)], "two keys"),
        (vec!["--witnesses".into(), "0".into()], "0"),
        (vec!["--witness".into(), "carol=12".into()], "64"),
    ] {
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        let (code, text) = bed.verdict(&by(&[alice, bob]), &more);
        assert!(code == 2 && text.contains(wrong), "{more:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_no_witness_of_its_own_realm() {
    let bed = Bed::new(10).await;
    // The key that signed the checkpoint, that host's later one, and another host's of the realm.
    for (host, n) in [("first", 1), ("first", 2), ("second", 1)] {
        let key = bed.written.secret(host).host_key(n);
        let signed = cosigned(&bed.whole, &[&bed.alice, &key]).to_string();
        bed.keep("held", &signed);
        let host = named("host", &key);
        let verify = ["verify", "first", "--checkpoint", "held"];
        let (code, text) = agora(bed.folder(), &[&verify[..], &["--witness", &host]].concat());
        assert_eq!((code, text.contains("NO witness")), (1, true), "{text}");
        let prove = ["prove", "1", "--data", "first", "--checkpoint", "held"];
        let prove = [&prove[..], &["-o", "proof.json"]].concat();
        let (code, text) = agora(bed.folder(), &[&prove[..], &["--witness", &host]].concat());
        assert_eq!((code, text.contains("no witness")), (1, true), "{text}");
    }
    // In a proof, by what the proof shows; and among what a folder keeps.
    let own = bed.written.host_key();
    let host = named("host", &own);
    bed.keep("held", &cosigned(&bed.whole, &[&own]).to_string());
    let prove = ["prove", "1", "--data", "first", "--checkpoint", "held"];
    let (code, text) = agora(bed.folder(), &[&prove[..], &["-o", "proof.json"]].concat());
    assert_eq!(code, 0, "{text}");
    let (code, text) = agora(bed.folder(), &["verify", "proof.json", "--witness", &host]);
    assert_eq!((code, text.contains("NO witness")), (1, true), "{text}");
    let (_, newest) = agora(bed.folder(), &["checkpoint", "--data", "first"]);
    let newest: Signed = newest.parse().unwrap();
    let secret = bed.written.secret("first");
    let own = (1..4)
        .map(|n| secret.host_key(n))
        .find(|key| newest.is_signed_by(&key.public()))
        .unwrap();
    bed.keep("signed", &cosigned(&newest, &[&own]).to_string());
    let args = ["checkpoint", "--cosigned", "signed", "--data", "first"];
    assert_eq!(agora(bed.folder(), &args).0, 0);
    let host = named("host", &own);
    let args = ["checkpoint", "--data", "first", "--witness", &host];
    let (code, text) = agora(bed.folder(), &args);
    assert_eq!((code, text.contains("no witness")), (1, true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_a_checkpoint_and_a_proof_are_asked_for_their_witnesses_too() {
    let bed = Bed::new(9).await;
    let (alice, bob) = (&bed.alice, &bed.bob);
    // Nobody signed what the folder keeps; then both sign the newest.
    let (code, text) = bed.asks(&["verify", "first"]);
    assert_eq!((code, text.contains("did NOT sign")), (1, true), "{text}");
    assert_eq!(bed.asks(&["checkpoint", "--data", "first"]).0, 1);
    let (_, newest) = agora(bed.folder(), &["checkpoint", "--data", "first"]);
    let newest: Signed = newest.parse().unwrap();
    // What a witness signed as another host's is not kept, and that is said.
    let others = (*newest.checkpoint()).sign(&key(77), &[0; 32]);
    bed.keep("signed", &cosigned(&others, &[alice]).to_string());
    let args = ["checkpoint", "--cosigned", "signed", "--data", "first"];
    let (code, text) = agora(bed.folder(), &args);
    assert_eq!((code, text.contains("another host")), (1, true), "{text}");
    for (witness, enough) in [(alice, 1), (bob, 0)] {
        bed.keep("signed", &cosigned(&newest, &[witness]).to_string());
        let args = ["checkpoint", "--cosigned", "signed", "--data", "first"];
        let (code, text) = agora(bed.folder(), &args);
        assert_eq!(code, 0, "{text}");
        let (code, text) = bed.asks(&["verify", "first"]);
        assert_eq!(code, enough, "{text}");
        let (code, text) = bed.asks(&["verify", "first", "--witnesses", "1"]);
        assert_eq!(code, 0, "{text}");
        let (code, text) = bed.asks(&["checkpoint", "--data", "first"]);
        assert_eq!(code, enough, "{text}");
    }
    let (_, text) = bed.asks(&["checkpoint", "--data", "first"]);
    let shown: Signed = text.parse().unwrap();
    assert_eq!(shown.witnesses().len(), 2);

    // A proof in that log; and one in a log that only alice signed, which is enough with what the auditor holds of bob's.
    let prove = ["prove", "1", "--data", "first", "-o", "proof.json"];
    let (code, text) = bed.asks(&prove);
    assert_eq!(code, 0, "{text}");
    let (code, text) = bed.asks(&["verify", "proof.json"]);
    assert_eq!((code, text.contains("bob signed")), (0, true), "{text}");
    bed.keep("alices", &cosigned(&bed.whole, &[alice]).to_string());
    bed.keep("bobs", &cosigned(&bed.whole, &[bob]).to_string());
    let by_alice = [&prove[..], &["--checkpoint", "alices"]].concat();
    assert_eq!(bed.asks(&by_alice).0, 1);
    let (code, text) = agora(bed.folder(), &by_alice);
    assert_eq!(code, 0, "{text}");
    let (code, text) = bed.asks(&["verify", "proof.json"]);
    assert_eq!(
        (code, text.contains("bob did NOT sign")),
        (1, true),
        "{text}"
    );
    let (code, text) = bed.asks(&["verify", "proof.json", "--witnesses", "1", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &told["witnessed"]["missing"][0]["name"]),
        (0, &"bob".into())
    );
    let (code, text) = bed.asks(&["verify", "proof.json", "--checkpoint", "bobs"]);
    assert_eq!(code, 0, "{text}");
}
