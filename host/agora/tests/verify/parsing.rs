//! Entries, checkpoints and proofs as nobody wrote them: a seeded sample of what the targets in `fuzz/` run on and on.

use agora::delivery::proofs;
use agora_realm::checkpoint::Signed;
use agora_realm::evidence::{Gathering, Wanted};
use agora_realm::{Audit, Sealed, State, Stored, Verifier, judge};

use super::written::{Draw, checkpoint, written};

/// Bytes with some of them changed, gone, doubled, or taken from elsewhere in them.
fn spoilt(bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=draw.below(3) {
        if bytes.is_empty() {
            break;
        }
        let (one, two) = (draw.below(bytes.len()), draw.below(bytes.len()));
        match draw.below(6) {
            0 => bytes[one] ^= 1 << draw.below(8),
            1 => bytes[one] = bytes[two],
            2 => bytes.truncate(one),
            3 => drop(bytes.remove(one)),
            4 => bytes.insert(one, draw.below(256) as u8),
            _ => {
                let part = bytes[one.min(two)..one.max(two)].to_vec();
                let part: Vec<_> = part.into_iter().take(64).collect();
                bytes.splice(one..one, part);
            }
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_read_does_no_harm_and_is_written_again_as_it_was() {
    let written = written(9, 20).await;
    let held = checkpoint(&written.entries, &written.host_key());
    let mut draw = Draw(42);
    for _ in 0..3000 {
        let entry = &written.entries[draw.below(written.entries.len())];
        let bytes = spoilt(entry, &mut draw);
        let is_whole = bytes == *entry;
        if let Ok(sealed) = Sealed::reread(bytes.clone().into()) {
            assert_eq!(sealed.stored(), &bytes);
            judge(&mut State::new(), 1, Ok(&sealed));
        }
        assert_eq!(Sealed::open(bytes.into()).is_ok(), is_whole);
    }
    let text = held.signed.to_string();
    for _ in 0..3000 {
        let spoilt = spoilt(text.as_bytes(), &mut draw);
        let Ok(spoilt) = String::from_utf8(spoilt) else {
            continue;
        };
        if let Ok(signed) = spoilt.parse::<Signed>() {
            assert_eq!(signed.to_string(), spoilt);
            assert!(
                spoilt == text
                    || signed.hosts().is_empty()
                    || signed.checkpoint() == held.signed.checkpoint()
            );
        }
    }
    let place = written.entries.len() as u64 - 1;
    let (mut audit, mut verifier) = (Audit::new(), Verifier::new());
    let mut gathering = Gathering::new(Wanted::Place(place));
    for (seq, stored) in (1..).zip(&written.entries) {
        let stored = Stored::open(seq, stored.clone(), &mut verifier);
        let judged = audit.take(&stored);
        gathering.take(&stored, &judged);
    }
    let proof = gathering.prove(held.signed).unwrap();
    let text = proofs::write(&proof);
    assert_eq!(proofs::read(text.as_bytes()).unwrap(), proof);
    for _ in 0..1500 {
        let Ok(read) = proofs::read(&spoilt(text.as_bytes(), &mut draw)) else {
            continue;
        };
        if read.check(None).is_ok() {
            // What holds is of the record, to the byte.
            for exhibit in &read.exhibits {
                assert_eq!(exhibit.stored, written.entries[exhibit.seq as usize - 1]);
            }
        }
    }
}
