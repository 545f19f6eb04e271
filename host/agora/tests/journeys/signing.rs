//! An agent that was granted a signer: what it signs verifies as its own, in its domain, and nobody else gets hold of the signer.

use agora_realm::{DomainName, PersonaId, PublicKey, RealmId, signer_digest};

use super::delegation::order;
use super::grants::grant_of;
use super::harness::{Journey, agent, text};

/// A notary that may sign releases, and a deputy that it knows.
fn manifest() -> String {
    let mut manifest = "[channels.orders]\n[channels.vault]\n".to_owned();
    manifest.push_str(&agent("deputy", "deputy", "vault", "[\"read\", \"write\"]"));
    manifest.push_str(&agent(
        "notary",
        "notary",
        "orders",
        "[\"read\", \"write\"]",
    ));
    manifest.push_str("[[agents.notary.grants]]\nservice = \"deputy\"\n");
    manifest.push_str("[[agents.notary.grants]]\nsigner = \"release\"\n");
    manifest
}

/// Who signs, as anybody knows who has the public side.
struct Notary {
    realm: RealmId,
    persona: PersonaId,
    key: PublicKey,
}

impl Notary {
    fn of(journey: &Journey) -> Self {
        let told = journey.cli(&["id", "--json"]).exits(0).stdout;
        let told: serde_json::Value = serde_json::from_str(&told).expect("it is JSON");
        let personas = told["personas"].as_array().expect("they are listed");
        let own = personas.iter().find(|one| one["name"] == "notary");
        let host = text(&told, "host").parse().expect("a host's id");
        let name = "notary".parse().expect("a name");
        Self {
            realm: text(&told, "realm").parse().expect("a realm's id"),
            persona: PersonaId::new(host, name),
            key: text(own.expect("it has a key"), "key")
                .parse()
                .expect("a key"),
        }
    }

    /// Whether this is its signature, as the order's answer shows it.
    fn signed(&self, answer: &str, domain: &str, message: &str) -> bool {
        let Some((key, signature)) = answer.split_once(' ') else {
            panic!("no key and signature: {answer}");
        };
        let domain = DomainName::new(domain).expect("a domain");
        let digest = signer_digest(&self.realm, &self.persona, &domain, message.as_bytes());
        let bytes: Vec<u8> = (0..signature.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&signature[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        let signature = bytes.first_chunk().expect("64 bytes");
        key.parse() == Ok(self.key) && self.key.verifies(&digest, signature)
    }
}

#[test]
fn a_component_signs_in_its_domain_and_keeps_its_signer_to_itself_until_its_epoch_ends() {
    let journey = Journey::new(&manifest());
    let host = journey.start(&[]);
    let ordered = |text: &str| order(&journey, &host, text);
    let signed = ordered("notary: sign release v1.0");
    let notary = Notary::of(&journey);
    assert!(notary.signed(&signed, "release", "v1.0"), "{signed}");
    // For nothing else, and in no other domain.
    assert!(!notary.signed(&signed, "release", "v1.1"));
    assert!(!notary.signed(&signed, "audit", "v1.0"));
    for domain in ["audit", "agora", "agora-entry", "orders"] {
        let refused = ordered(&format!("notary: sign {domain} v1.0"));
        assert!(refused.starts_with("Denied"), "{domain}: {refused}");
    }
    // Nobody else gets it: what the deputy keeps is a refusal, and nothing of it is served.
    assert_eq!(ordered("notary: hand release mine"), "done");
    let refused = ordered("notary: ask mine hello");
    assert!(refused.contains("can't be passed on"), "{refused}");
    let refused = ordered("notary: serve release");
    assert!(refused.starts_with("Denied"), "{refused}");
    // None of that took it from its agent.
    let again = ordered("notary: sign release v1.0");
    assert!(notary.signed(&again, "release", "v1.0"), "{again}");
    assert_eq!(ordered("notary: old now"), "kept=0 stale=0 signed=0");

    // The epoch ends, and so does the signer; the next epoch's is another.
    journey
        .cli(&["epoch", "bump", "--reason", "a test"])
        .exits(0);
    assert_eq!(ordered("notary: old late"), "kept=1 stale=1 signed=0");
    let after = ordered("notary: sign release v2.0");
    assert!(notary.signed(&after, "release", "v2.0"), "{after}");
    // Its grant is revoked: no graft has one any more.
    let grant = grant_of(&journey, "notary", "signer:release");
    journey.cli(&["revoke", &grant]).exits(0);
    assert_eq!(ordered("notary: old later"), "kept=2 stale=2 signed=0");
    let refused = ordered("notary: sign release v3.0");
    assert!(refused.starts_with("Denied"), "{refused}");
    host.stop();
}
