#![no_main]
//! Text that is said to be a proof of an entry.

use agora::delivery::proofs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(proof) = proofs::read(bytes) {
        let again = proofs::read(proofs::write(&proof).as_bytes());
        assert_eq!(again.expect("what was written is read"), proof);
        let _ = proof.check(None);
    }
});
