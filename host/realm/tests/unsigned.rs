//! The switch of measurements: off only by call, and back on.
#![cfg(feature = "bench")]
#![allow(clippy::unwrap_used, reason = "all of this file is tests")]

use agora_realm::{SigningKey, Verifier, unsigned};

// One test: the switch is the process's.
#[test]
fn signatures_are_made_and_checked_unless_a_measurement_turns_them_off() {
    let key = SigningKey::from_bytes([7; 32]).unwrap();
    let (digest, none) = ([1; 32], [0; 64]);
    let verifies = |signature: [u8; 64]| {
        let plain = key.public().verifies(&digest, &signature);
        let remembered = Verifier::new().verifies(&key.public(), &digest, &signature);
        assert_eq!(plain, remembered);
        plain
    };
    assert!(verifies(key.sign(&digest, &[0; 32])));
    assert!(!verifies(none));

    unsigned::set_signing_off(true);
    assert_eq!(key.sign(&digest, &[0; 32]), none);
    assert!(!verifies(none), "signing and verifying are two switches");
    unsigned::set_verifying_off(true);
    assert!(verifies(none));

    unsigned::set_signing_off(false);
    unsigned::set_verifying_off(false);
    assert!(verifies(key.sign(&digest, &[0; 32])));
    assert!(!verifies(none));
}
