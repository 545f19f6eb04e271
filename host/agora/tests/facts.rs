//! The record as facts for other tools: what was said comes out as it was said, whatever it was.

#![allow(
    clippy::unwrap_used,
    reason = "a test that fails should say so at once"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use agora::testbed::{Plan, Puppet, all_of};
use agora_guest::{Act, Draft};
use agora_realm::Ordinal;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// What would break out of a careless export.
const HOSTILE: [&str; 40] = [
    "",
    " ",
    "plain",
    "\"",
    "\\",
    "\\\"",
    "\"\n  - id: \"COORD-6666\"",
    "x\n  - id: COORD-6666\n    type: coordination-fact",
    "artifacts:",
    "---",
    "...",
    "%YAML 1.1",
    "!!python/object/apply:os.system [\"true\"]",
    "&anchor *anchor",
    "{{ template }} ${HOME} $(id) `id`",
    "| block",
    "> folded",
    "# comment",
    ": ",
    "null",
    "true",
    "0x10",
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "  =1+1",
    "\t=1",
    "\r\n=1",
    "'quoted",
    "a,b;c\td",
    "a\r\nb\rc\nd",
    "\0\u{1}\u{7f}",
    "\u{1b}]0;title\u{7}\u{1b}[2J",
    "\u{9b}31m\u{85}\u{2028}\u{2029}",
    "\u{202e}reversed\u{2066}\u{200f}",
    "\u{feff}bom\u{fffe}\u{ffff}",
    "ünïcode ✓ 😀 ＝1",
    "</script><img src=x onerror=alert(1)>",
];

/// Everything that is said: hostile texts, texts of all characters, and bytes that are no text.
fn payloads() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = HOSTILE
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    let mut runner = TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 0..80);
    let texts = proptest::collection::vec(any::<char>(), 0..40);
    let nasty = proptest::string::string_regex("[\"'\\\\\\r\\n\\t:=+@,#{}&*!|>%-]{1,30}").unwrap();
    for _ in 0..80 {
        all.push(bytes.new_tree(&mut runner).unwrap().current());
        let text: String = texts
            .new_tree(&mut runner)
            .unwrap()
            .current()
            .iter()
            .collect();
        all.push(text.into_bytes());
        all.push(nasty.new_tree(&mut runner).unwrap().current().into_bytes());
    }
    all
}

/// What the record holds of one message.
struct Kept {
    payload: Vec<u8>,
    content_type: String,
    seq: u64,
    signature: String,
    id: String,
    parent: Option<String>,
    sender: String,
    act: &'static str,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record in which all of them were said on one channel, and a little on another.
async fn record(data: &Path) -> Vec<Kept> {
    let puppet = Puppet::new();
    let plan = Plan::new().channel("square").channel("other").agent(
        "ann",
        puppet.native(),
        vec![all_of("square"), all_of("other")],
    );
    let host = plan.open(data).await.unwrap();
    puppet.until_life(1).await;
    puppet.graft().await.unwrap().unwrap();
    let acts = [Act::Inform, Act::Propose, Act::Agree];
    let drafts: Vec<_> = payloads()
        .into_iter()
        .enumerate()
        .map(|(at, payload)| {
            let draft = Draft::new(acts[at % acts.len()], payload);
            match at % 5 {
                0 => draft.content_type("text/x; a=\"=1\",\u{202e}"),
                _ => draft,
            }
        })
        .collect();
    for (at, chunk) in drafts.chunks(64).enumerate() {
        let outcomes = puppet.speak("square", chunk.to_vec()).await;
        assert!(outcomes.unwrap().unwrap().iter().all(Result::is_ok));
        let other = Draft::inform(format!("other {at}"));
        puppet.speak("other", vec![other]).await.unwrap().unwrap();
    }
    let mut kept = Vec::new();
    for channel in ["square", "other"] {
        let channel = host.control.channel_named(channel).unwrap();
        let record = host.control.record();
        let messages = record.messages(&channel, Ordinal(1), 10_000, usize::MAX);
        kept.extend(messages.await.unwrap().into_iter().map(|kept| {
            let message = kept.message();
            let index = usize::from(kept.place.index);
            Kept {
                payload: message.payload.to_vec(),
                content_type: message.content_type.clone(),
                seq: kept.place.seq,
                signature: hex(&kept.sealed.stored()[..64]),
                id: kept.sealed.message_id(index).to_string(),
                parent: message.parent.map(|id| id.to_string()),
                sender: format!("ann@{}", host.control.host_id().short()),
                act: message.act.as_str(),
            }
        }));
    }
    host.close().await;
    kept
}

fn agora(data: &Path, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agora"));
    command.args(args).arg("--data").arg(data);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    ran.stdout
}

/// Reads exactly the YAML that is promised: a list of maps, each scalar on a line of its own, and a scalar of JSON.
fn read_yaml(text: &str) -> Vec<BTreeMap<String, Value>> {
    let breaks = |c: char| matches!(c, '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\t' | '\0');
    assert!(!text.contains(breaks), "a line ends by a newline alone");
    let mut lines = text.strip_suffix('\n').unwrap().split('\n');
    match lines.next() {
        Some("artifacts: []") => {
            assert_eq!(lines.next(), None);
            return Vec::new();
        }
        first => assert_eq!(first, Some("artifacts:")),
    }
    let mut facts: Vec<BTreeMap<String, Value>> = Vec::new();
    for line in lines {
        if line == "    fields:" {
            continue;
        }
        let (begins, rest) = match line.strip_prefix("  - id: ") {
            Some(_) => (true, &line[4..]),
            None => (false, line.trim_start_matches(' ')),
        };
        let indent = line.len() - line.trim_start_matches(' ').len();
        assert!(
            matches!((begins, indent), (true, 2) | (false, 4 | 6)),
            "{line}"
        );
        if begins {
            facts.push(BTreeMap::new());
        }
        let (name, value) = rest.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{line}"
        );
        let value = serde_json::from_str(value).unwrap_or_else(|_| panic!("{line}"));
        let before = facts.last_mut().unwrap().insert(name.to_owned(), value);
        assert_eq!(before, None, "{line}");
    }
    facts
}

/// Reads a table by RFC 4180, with all fields in quotes.
fn read_csv(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut chars = text.chars().peekable();
    while chars.peek().is_some() {
        let mut row = Vec::new();
        loop {
            assert_eq!(chars.next(), Some('"'));
            let mut field = String::new();
            loop {
                match chars.next().expect("a field ends") {
                    '"' if chars.peek() == Some(&'"') => field.extend(chars.next()),
                    '"' => break,
                    c => field.push(c),
                }
            }
            row.push(field);
            match chars.next() {
                Some(',') => {}
                Some('\r') => {
                    assert_eq!(chars.next(), Some('\n'));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        rows.push(row);
    }
    rows
}

fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert_eq!(text.len() % 4, 0);
    let digits = text.trim_end_matches('=').chars();
    let bits = digits.flat_map(|digit| {
        let value = DIGITS.find(digit).unwrap();
        (0..6).rev().map(move |i| (value >> i & 1) as u8)
    });
    let bits: Vec<u8> = bits.collect();
    let bytes = bits.chunks_exact(8);
    bytes
        .map(|byte| byte.iter().fold(0, |all, bit| all << 1 | bit))
        .collect()
}

fn payload(text: &str, encoding: &str) -> Vec<u8> {
    match encoding {
        "utf-8" => text.as_bytes().to_vec(),
        "base64" => unbase64(text),
        other => panic!("{other}"),
    }
}

fn is_harmful(c: char) -> bool {
    c.is_control() && c != '\n'
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_read_back_as_they_were_said() {
    let data = tempfile::tempdir().unwrap();
    let kept = record(data.path()).await;
    let by_id: BTreeMap<_, _> = kept.iter().map(|kept| (kept.id.as_str(), kept)).collect();

    let yaml = String::from_utf8(agora(data.path(), &["log", "--format", "yaml"])).unwrap();
    assert!(!yaml.contains(is_harmful));
    let facts = read_yaml(&yaml);
    assert_eq!(facts.len(), kept.len());
    let text = |fact: &BTreeMap<String, Value>, name: &str| fact[name].as_str().unwrap().to_owned();
    for (at, fact) in facts.iter().enumerate() {
        let kept = by_id[text(fact, "message").as_str()];
        assert_eq!(text(fact, "id"), format!("COORD-{:04}", at + 1));
        assert_eq!(text(fact, "type"), "coordination-fact");
        assert_eq!(text(fact, "sender"), kept.sender);
        assert_eq!(text(fact, "act"), kept.act);
        assert_eq!(text(fact, "sig"), kept.signature);
        assert_eq!(text(fact, "content_type"), kept.content_type);
        assert_eq!(fact["seq"], kept.seq);
        assert_eq!(fact["epoch"], 1);
        assert_eq!(fact["parent"].as_str(), kept.parent.as_deref());
        let said = payload(&text(fact, "payload"), &text(fact, "payload_encoding"));
        assert_eq!(said, kept.payload);
        let is_text = std::str::from_utf8(&kept.payload).is_ok();
        assert_eq!(text(fact, "payload_encoding") == "utf-8", is_text);
    }

    let csv = String::from_utf8(agora(data.path(), &["log", "--format", "csv"])).unwrap();
    let rows = read_csv(&csv);
    let (head, rows) = rows.split_first().unwrap();
    assert_eq!(rows.len(), kept.len());
    assert!(!csv.replace("\r\n", "").contains(is_harmful));
    for (fact, row) in facts.iter().zip(rows) {
        assert_eq!(row.len(), head.len());
        for field in row {
            let computed = field
                .trim_start()
                .starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
            assert!(
                !computed && !field.starts_with(['\t', '\r', '\n']),
                "{field:?}"
            );
        }
        let row: BTreeMap<_, _> = head.iter().map(String::as_str).zip(row).collect();
        let value = |name: &str| row[name].strip_prefix('\'').unwrap_or(row[name]);
        for name in [
            "id", "type", "title", "sender", "host", "channel", "act", "sig", "message",
        ] {
            assert_eq!(value(name), text(fact, name), "{name}");
        }
        for name in ["seq", "epoch", "hops", "ordinal", "time_ms"] {
            assert_eq!(value(name), fact[name].to_string(), "{name}");
        }
        let kept = by_id[value("message")];
        assert_eq!(
            payload(value("payload"), value("payload_encoding")),
            kept.payload
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_has_one_number_in_every_export_and_json_lines_are_safe_to_show() {
    let data = tempfile::tempdir().unwrap();
    let kept = record(data.path()).await;
    let export = |args: &[&str]| {
        let args = [&["log", "--format", "yaml"], args].concat();
        read_yaml(std::str::from_utf8(&agora(data.path(), &args)).unwrap())
    };
    let all = export(&[]);
    let other: Vec<_> = all
        .iter()
        .filter(|fact| fact["channel"] == "other")
        .cloned()
        .collect();
    assert!(other.len() > 1);
    assert_eq!(export(&["other"]), other);
    let from = other[1]["seq"].to_string();
    let later: Vec<_> = all
        .iter()
        .filter(|fact| fact["seq"].as_u64() >= other[1]["seq"].as_u64())
        .cloned()
        .collect();
    assert_eq!(export(&["--from", &from]), later);
    assert_eq!(export(&["--from", "1000000"]), []);

    let lines = agora(data.path(), &["log", "--format", "jsonl"]);
    assert_eq!(lines, agora(data.path(), &["log", "--json"]));
    let lines = String::from_utf8(lines).unwrap();
    assert!(!lines.contains(is_harmful));
    let messages: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["kind"] == "message")
        .collect();
    assert_eq!(messages.len(), kept.len());
    for message in messages {
        let kept = kept.iter().find(|kept| message["id"] == kept.id.as_str());
        if let Ok(text) = std::str::from_utf8(&kept.unwrap().payload) {
            assert_eq!(message["body"], text);
        }
    }
}
