#![no_main]
//! Text that is said to be a checkpoint.

use agora_realm::checkpoint::Signed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(signed) = text.parse::<Signed>() {
        assert_eq!(signed.to_string(), text);
        let _ = (signed.hosts(), signed.witnesses());
    }
});
