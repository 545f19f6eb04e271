//! `agora verify` and `agora prove`, as commands: on a data folder, on a log's folder, and on a proof that lies alone.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use agora_realm::{MessageVerdict, Sealed, State, judge};

use super::written::{Draw, Written, checkpoint, written};

/// Its exit code, and what it said.
pub(super) fn agora(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_agora"))
        .current_dir(folder)
        .env_remove("AGORA_LOG")
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    (output.status.code().unwrap(), text.concat())
}

/// The first host's data folder with the log in it, as a host of its own log has it.
pub(super) fn as_a_folder(written: &Written) {
    std::fs::rename(written.log(), written.data().join("log")).unwrap();
}

fn verdict(written: &Written, args: &[&str]) -> (i32, String) {
    let mut all = vec!["verify", "first"];
    all.extend(args);
    agora(written.folder.path(), &all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_folder_is_verified_and_a_flipped_bit_is_named() {
    let written = written(5, 30).await;
    let held = checkpoint(&written.entries, &written.host_key());
    std::fs::write(written.folder.path().join("held"), held.signed.to_string()).unwrap();
    // The log's folder by itself, then in the data folder.
    let (code, text) = agora(
        written.folder.path(),
        &["verify", "log", "--checkpoint", "held"],
    );
    assert_eq!(code, 0, "{text}");
    as_a_folder(&written);
    for args in [&[][..], &["--checkpoint", "held"], &["--json"]] {
        let (code, text) = verdict(&written, args);
        assert_eq!(code, 0, "{text}");
    }
    let (code, text) = verdict(&written, &["--realm", &"ab".repeat(32)]);
    assert_eq!((code, text.contains("not of abab")), (1, true), "{text}");
    // Bits of the log, as they are drawn.
    let log = written.data().join("log");
    let segment = log.join("0000000001.segment");
    let sound = std::fs::read(&segment).unwrap();
    let written_bytes = sound.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut draw = Draw(11);
    for _ in 0..24 {
        let (at, bit) = (draw.below(written_bytes), draw.below(8));
        let file = std::fs::File::options().write(true).open(&segment).unwrap();
        file.write_all_at(&[sound[at] ^ 1 << bit], at as u64)
            .unwrap();
        let (code, text) = verdict(&written, &["--checkpoint", "held"]);
        assert_eq!(code, 1, "byte {at} bit {bit}: {text}");
        assert!(
            text.contains("entry ") || text.contains("format"),
            "byte {at} bit {bit}: {text}"
        );
        file.write_all_at(&[sound[at]], at as u64).unwrap();
    }
    // A tail that is gone.
    let mut short = sound.clone();
    short[written_bytes - 200..].fill(0);
    std::fs::write(&segment, &short).unwrap();
    let (code, text) = verdict(&written, &["--checkpoint", "held"]);
    assert_eq!((code, text.contains("holds")), (1, true), "{text}");
    std::fs::write(&segment, &sound).unwrap();
    assert_eq!(verdict(&written, &[]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_holds_where_nothing_else_is() {
    let written = written(6, 30).await;
    let held = checkpoint(&written.entries, &written.host_key());
    as_a_folder(&written);
    let folder = written.folder.path();
    std::fs::write(folder.join("held"), held.signed.to_string()).unwrap();
    // A message that counts.
    let mut state = State::new();
    let mut counting = None;
    for (seq, stored) in (1..).zip(&written.entries) {
        let judged = judge(&mut state, seq, Ok(&Sealed::open(stored.clone()).unwrap()));
        counting = judged
            .messages
            .into_iter()
            .fold(counting, |found, verdict| match verdict {
                MessageVerdict::Counts(placed) => Some(placed),
                _ => found,
            });
    }
    let placed = counting.unwrap();
    let id = placed.id.to_string();
    let of = [
        "--data",
        "first",
        "--checkpoint",
        "held",
        "-o",
        "proof.json",
    ];
    let (code, text) = agora(folder, &[&["prove", &id][..], &of].concat());
    assert_eq!(code, 0, "{text}");
    // Asked for of another realm, there is none.
    let other = "cd".repeat(32);
    let of_other = ["--data", "first", "--checkpoint", "held", "--realm", &other];
    let of_other = [&["prove", &id, "-o", "other.json"][..], &of_other].concat();
    let (code, text) = agora(folder, &of_other);
    assert_eq!((code, text.contains("not of cdcd")), (1, true), "{text}");
    assert!(!folder.join("other.json").exists());
    // Where nothing is but the proof and the realm's id.
    let alone = tempfile::tempdir().unwrap();
    let proof = std::fs::read_to_string(folder.join("proof.json")).unwrap();
    std::fs::write(alone.path().join("proof.json"), &proof).unwrap();
    let realm = state.realm().unwrap().to_string();
    let (code, text) = agora(alone.path(), &["verify", "proof.json", "--realm", &realm]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains(&id) && text.contains(&placed.author.to_string()),
        "{text}"
    );
    assert!(text.contains("Not shown"), "{text}");
    let (code, text) = agora(alone.path(), &["verify", "proof.json", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &told["holds"], &told["seq"]),
        (0, &true.into(), &placed.seq.into())
    );
    // Of another realm, altered, and with another checkpoint held.
    assert_eq!(
        agora(alone.path(), &["verify", "proof.json", "--realm", &other]).0,
        1
    );
    let mut draw = Draw(3);
    for _ in 0..12 {
        let mut bytes = proof.clone().into_bytes();
        let at = loop {
            let at = draw.below(bytes.len());
            if bytes[at].is_ascii_hexdigit() {
                break at;
            }
        };
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        std::fs::write(alone.path().join("altered.json"), bytes).unwrap();
        let (code, text) = agora(alone.path(), &["verify", "altered.json", "--realm", &realm]);
        // Which of its messages is meant is no secret, and may be any.
        assert!(code == 1 || !text.contains(&id), "byte {at}: {text}");
    }
    let short = checkpoint(&written.entries[..3], &written.host_key());
    std::fs::write(alone.path().join("held"), short.signed.to_string()).unwrap();
    let (code, text) = agora(
        alone.path(),
        &["verify", "proof.json", "--checkpoint", "held"],
    );
    assert_eq!(code, 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_a_record_of_several_hosts_says_whose_it_is() {
    let written = written(15, 24).await;
    as_a_folder(&written);
    let folder = written.folder.path();
    let (code, lines) = agora(folder, &["log", "--data", "first", "--format", "jsonl"]);
    assert_eq!(code, 0, "{lines}");
    let (code, text) = agora(folder, &["log", "--data", "first"]);
    assert_eq!(code, 0, "{text}");
    let mut hosts = std::collections::BTreeSet::new();
    for (line, shown) in lines.lines().zip(text.lines()) {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let host = told["host"].as_str().unwrap();
        // Until there are two there is nobody to take it for.
        if hosts.insert(host.to_owned()) | (hosts.len() < 2) {
            continue;
        }
        let by = match told["kind"].as_str() {
            Some("message") => format!(" {}@{} ", told["author"].as_str().unwrap(), &host[..8]),
            _ => format!("[host {}]", &host[..8]),
        };
        assert!(shown.contains(&by), "{by}: {shown}");
    }
    assert_eq!(hosts.len(), 2);
}
