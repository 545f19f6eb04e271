#![no_main]
//! Bytes of a log that anybody may have written there.

use agora_realm::{Sealed, State, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // By far most have no good signature; what they say is read all the same.
    if let Ok(sealed) = Sealed::reread(bytes.to_vec().into()) {
        assert_eq!(sealed.stored(), bytes);
        let mut state = State::new();
        judge(&mut state, 1, Ok(&sealed));
    }
    let opened = Sealed::open(bytes.to_vec().into());
    judge(&mut State::new(), 1, opened.as_ref());
});
