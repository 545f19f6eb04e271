//! The record on its way out of agora: as lines for people, as JSON lines, and as facts for other tools, in YAML and CSV.
//!
//! In: records, with the signatures of their entries. Out: text in one of the formats.
//! Promise: what an agent said can't be taken for anything but a value. YAML's scalars are all in double quotes, and valid JSON strings,
//! so that YAML 1.1, 1.2 and JSON read them alike; CSV's fields are all in quotes, and none begins as a formula does. What is no text is
//! base64, and marked so. Control and bidirectional characters reach a terminal in no format.
//! Failure: a writer that fails ends the export.

use std::fmt::Write as _;
use std::io::{Result, Write};

use agora_log::export::Place;
use clap::ValueEnum;

use super::show;
use crate::delivery::feed::{Told, ToldMessage};

/// How a record is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// JSON lines.
    Jsonl,
    /// What was said, as facts: an `artifacts` list.
    Yaml,
    /// What was said, as facts: a table.
    Csv,
}

/// The entry's signature in hexadecimal, of what stands in the log. Empty where the payloads were pruned: what is left is not what was
/// signed.
pub(super) fn signature_of(place: &Place) -> String {
    let stored = match place {
        Place::Entry(stored) => stored.get(..64),
        Place::Purged { .. } => None,
    };
    stored.map(crate::hex).unwrap_or_default()
}

/// Writes records in one format.
pub(super) struct Writer {
    format: Format,
    colour: bool,
    /// Messages that counted, shown or not: a fact has the same number in every export of a log.
    counted: u64,
    begun: bool,
    /// The realm has had several hosts by now.
    has_several_hosts: bool,
}

/// The fields of a fact, in the order of the table.
const COLUMNS: [&str; 18] = [
    "id",
    "type",
    "title",
    "sender",
    "host",
    "channel",
    "act",
    "sig",
    "payload",
    "payload_encoding",
    "content_type",
    "seq",
    "epoch",
    "hops",
    "ordinal",
    "time_ms",
    "parent",
    "message",
];

impl Writer {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            colour: show::is_terminal(&std::io::stdout()),
            counted: 0,
            begun: false,
            has_several_hosts: false,
        }
    }

    /// The realm has so many hosts from here on.
    pub(super) fn hosts(&mut self, count: usize) {
        self.has_several_hosts |= count > 1;
    }

    /// One more record of the log. To be told of all, in order, whether or not they are written.
    pub(super) fn count(&mut self, told: &Told) {
        self.counted += u64::from(told.message.is_some());
    }

    /// Writes the record that was counted last.
    pub(super) fn write(
        &mut self,
        out: &mut impl Write,
        told: &Told,
        signature: &str,
    ) -> Result<()> {
        match (self.format, &told.message) {
            (Format::Text, _) => {
                let line = show::record(told, self.colour, self.has_several_hosts);
                writeln!(out, "{line}")
            }
            (Format::Jsonl, _) => writeln!(out, "{}", harmless(&told.json().to_string())),
            (Format::Yaml, Some(message)) => self.yaml(out, told, message, signature),
            (Format::Csv, Some(message)) => self.csv(out, told, message, signature),
            (Format::Yaml | Format::Csv, None) => Ok(()),
        }
    }

    /// Writes what belongs behind the last record.
    pub(super) fn end(&mut self, out: &mut impl Write) -> Result<()> {
        match self.format {
            Format::Yaml if !self.begun => writeln!(out, "artifacts: []")?,
            Format::Csv => self.head(out)?,
            Format::Text | Format::Jsonl | Format::Yaml => {}
        }
        out.flush()
    }

    fn id(&self) -> String {
        format!("COORD-{:04}", self.counted)
    }

    fn yaml(
        &mut self,
        out: &mut impl Write,
        told: &Told,
        message: &ToldMessage,
        signature: &str,
    ) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            writeln!(out, "artifacts:")?;
        }
        let said = &message.message;
        let (payload, encoding) = match std::str::from_utf8(&said.payload) {
            Ok(text) => (text.to_owned(), "utf-8"),
            Err(_) => (base64(&said.payload), "base64"),
        };
        writeln!(out, "  - id: {}", quoted(&self.id()))?;
        writeln!(out, "    type: {}", quoted(TYPE))?;
        writeln!(out, "    title: {}", quoted(&title(told, message)))?;
        writeln!(out, "    fields:")?;
        let mut text = |name: &str, value: &str| writeln!(out, "      {name}: {}", quoted(value));
        text("sender", &sender(told))?;
        text("host", &told.host.to_string())?;
        text("channel", channel(told))?;
        text("act", said.act.as_str())?;
        text("sig", signature)?;
        text("payload", &payload)?;
        text("payload_encoding", encoding)?;
        text("content_type", &said.content_type)?;
        writeln!(out, "      seq: {}", told.seq)?;
        writeln!(out, "      epoch: {}", told.epoch)?;
        writeln!(out, "      hops: {}", said.hops)?;
        writeln!(out, "      ordinal: {}", message.ordinal)?;
        writeln!(out, "      time_ms: {}", said.time_ms)?;
        match &said.parent {
            Some(parent) => writeln!(out, "      parent: {}", quoted(&parent.to_string()))?,
            None => writeln!(out, "      parent: null")?,
        }
        writeln!(out, "      message: {}", quoted(&message.id.to_string()))
    }

    fn head(&mut self, out: &mut impl Write) -> Result<()> {
        match std::mem::replace(&mut self.begun, true) {
            true => Ok(()),
            false => row(out, &COLUMNS.map(str::to_owned)),
        }
    }

    fn csv(
        &mut self,
        out: &mut impl Write,
        told: &Told,
        message: &ToldMessage,
        signature: &str,
    ) -> Result<()> {
        self.head(out)?;
        let said = &message.message;
        // A table has no way to escape what must not be shown.
        let (payload, encoding) = match std::str::from_utf8(&said.payload) {
            Ok(text) if !text.chars().any(|c| show::is_harmful(c) && c != '\n') => {
                (text.to_owned(), "utf-8")
            }
            _ => (base64(&said.payload), "base64"),
        };
        let values: [String; COLUMNS.len()] = [
            self.id(),
            TYPE.to_owned(),
            title(told, message),
            sender(told),
            told.host.to_string(),
            channel(told).to_owned(),
            said.act.as_str().to_owned(),
            signature.to_owned(),
            payload,
            encoding.to_owned(),
            show::escape(&said.content_type),
            told.seq.to_string(),
            told.epoch.to_string(),
            said.hops.to_string(),
            message.ordinal.to_string(),
            said.time_ms.to_string(),
            said.parent.map_or(String::new(), |id| id.to_string()),
            message.id.to_string(),
        ];
        row(out, &values)
    }
}

const TYPE: &str = "coordination-fact";

fn sender(told: &Told) -> String {
    format!("{}@{}", told.author, told.host.short())
}

fn channel(told: &Told) -> &str {
    told.channel.as_ref().map_or("", |channel| channel.as_str())
}

/// Of names and acts alone: what was said is the payload's.
fn title(told: &Told, message: &ToldMessage) -> String {
    let act = message.message.act.as_str();
    format!("{act} by {} on {}", told.author, channel(told))
}

/// A text as a scalar: in double quotes, by JSON's rules, with nothing in it that YAML takes for the end of a line or doesn't take at all.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => push_harmless(&mut out, c),
        }
    }
    out.push('"');
    out
}

/// JSON text with the characters escaped that a terminal or a reader might act on. They stand nowhere but in its strings.
fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    json.chars().for_each(|c| push_harmless(&mut out, c));
    out
}

fn push_harmless(out: &mut String, c: char) {
    // Neither YAML nor JSON takes the two last ones of the plane; the rest is what people must not be shown.
    match c {
        '\u{fffe}' | '\u{ffff}' => {}
        c if show::is_harmful(c) => {}
        c => return out.push(c),
    }
    let mut units = [0; 2];
    for unit in c.encode_utf16(&mut units) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// A line of a table, as RFC 4180 has it. A field that a spreadsheet would compute gets an apostrophe in front; so does one that has one.
fn row(out: &mut impl Write, fields: &[String]) -> Result<()> {
    for (at, field) in fields.iter().enumerate() {
        let guard = match field.trim_start().chars().next() {
            Some('=' | '+' | '-' | '@' | '\'' | '＝' | '＋' | '－' | '＠') => "'",
            _ => match field.starts_with(['\t', '\r', '\n']) {
                true => "'",
                false => "",
            },
        };
        let comma = if at == 0 { "" } else { "," };
        write!(out, "{comma}\"{guard}{}\"", field.replace('"', "\"\""))?;
    }
    out.write_all(b"\r\n")
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            out.push(match i <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]),
                false => '=',
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_is_that_of_its_standard() {
        let published = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (text, encoded) in published {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }

    proptest! {
        #[test]
        fn a_scalar_reads_back_as_json_and_holds_nothing_that_ends_it(text in any::<String>()) {
            let scalar = quoted(&text);
            prop_assert_eq!(serde_json::from_str::<String>(&scalar).unwrap(), text);
            prop_assert!(!scalar.chars().any(show::is_harmful));
        }

        #[test]
        fn a_json_line_says_the_same_when_it_is_harmless(text in any::<String>()) {
            let line = harmless(&serde_json::json!({"a": text}).to_string());
            let back: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(back["a"].as_str(), Some(text.as_str()));
            prop_assert!(!line.chars().any(show::is_harmful));
        }
    }
}
