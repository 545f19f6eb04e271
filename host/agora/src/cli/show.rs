//! Text for people: aligned, and safe to show on a terminal.

use std::fmt::Write;
use std::io::IsTerminal;

use agora_realm::{Act, Rights, Terms};

use crate::boot::manifest::display_bytes;
use crate::delivery::feed::Told;

/// The rights and their names.
pub const RIGHTS: [(Rights, &str); 4] = [
    (Rights::READ, "read"),
    (Rights::WRITE, "write"),
    (Rights::INITIATE, "initiate"),
    (Rights::ATTENUATE, "attenuate"),
];

/// Whether colour and progress lines make sense there.
pub fn is_terminal(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Whether a terminal or a reader may be led astray by it.
pub(super) fn is_harmful(c: char) -> bool {
    // Control characters move cursors and set titles; bidirectional ones reorder what is read.
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Prints to standard output. Whoever reads it may have seen enough and gone; that ends the command, and is no failure.
pub fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// A text in one line, with control and bidirectional characters escaped.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_harmful(c) => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A text of several lines, each escaped.
pub fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

/// A time of day in UTC.
pub fn time(ms: i64) -> String {
    let seconds = ms.div_euclid(1000).rem_euclid(86_400);
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        ms.rem_euclid(1000)
    )
}

/// A day and a time in UTC, of seconds since 1970-01-01.
pub fn date_time(seconds: u64) -> String {
    // Days from a first of March on, in eras of 400 years, so that a leap day is the last of its year.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let second = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Terms in one line: what they narrow.
pub fn terms(terms: &Terms) -> String {
    let mut parts = Vec::new();
    let rights: Vec<_> = RIGHTS
        .iter()
        .filter(|(right, _)| terms.rights.has(*right))
        .map(|(_, name)| *name)
        .collect();
    parts.push(match rights.len() {
        0 => "no rights".to_owned(),
        4 => "all rights".to_owned(),
        _ => rights.join("+"),
    });
    let acts: Vec<_> = Act::EVERY
        .into_iter()
        .filter(|act| terms.acts.has(*act))
        .map(Act::as_str)
        .collect();
    if acts.len() < Act::EVERY.len() {
        parts.push(match acts.is_empty() {
            true => "no acts".to_owned(),
            false => format!("only {}", acts.join("+")),
        });
    }
    if terms.hops < u16::MAX {
        parts.push(format!("hops {}", terms.hops));
    }
    if terms.bytes_max < u32::MAX {
        parts.push(format!("at most {}", display_bytes(terms.bytes_max.into())));
    }
    if terms.count < u64::MAX {
        parts.push(format!("{} messages in all", terms.count));
    }
    if let Some(rate) = terms.rate {
        parts.push(match rate.per_ms() {
            1000 => format!("{}/s", rate.messages()),
            60_000 => format!("{}/min", rate.messages()),
            ms => format!("{}/{ms}ms", rate.messages()),
        });
    }
    if terms.until_ms < i64::MAX {
        parts.push(format!("until {} s since 1970", terms.until_ms / 1000));
    }
    match terms.history {
        0 | u64::MAX => {}
        n => parts.push(format!("{n} of history")),
    }
    parts.join(", ")
}

/// A record in one line; with the host that wrote it where its realm has several, since each may have an agent of the same name.
pub fn record(told: &Told, colour: bool, has_several_hosts: bool) -> String {
    let (dim, bold, reset) = match colour {
        true => ("\u{1b}[2m", "\u{1b}[1m", "\u{1b}[0m"),
        false => ("", "", ""),
    };
    let when = time(told.time_ms);
    let seq = told.seq;
    match &told.message {
        Some(message) => {
            let channel = told.channel.as_ref().map_or("", |c| c.as_str());
            let act = message.message.act.as_str();
            let hops = match message.message.hops {
                // On a peer's channel: what the peer leaves.
                u16::MAX => "any".to_owned(),
                hops => hops.to_string(),
            };
            let owner = match message.owner.split('@').next() {
                None | Some("") => String::new(),
                Some(owner) => format!(" {dim}(owner {}){reset}", escape(owner)),
            };
            let author = match has_several_hosts {
                true => format!(
                    "{:<21}",
                    format!("{}@{}", escape(&told.author), told.host.short())
                ),
                false => format!("{:<12}", escape(&told.author)),
            };
            format!(
                "{dim}{when} {seq:>5}{reset} {channel:<12} {bold}{author}{reset} {act:<8} {dim}hops {hops}{reset} {}{owner}",
                escape(&told.body)
            )
        }
        None => {
            let channel = match &told.channel {
                Some(channel) => format!("'{channel}' "),
                None => String::new(),
            };
            let by = match has_several_hosts {
                true => format!(" [host {}]", told.host.short()),
                false => String::new(),
            };
            format!(
                "{dim}{when} {seq:>5} {:<12} {channel}{}{by}{reset}",
                told.kind,
                escape(&told.body)
            )
        }
    }
}

/// Rows in aligned columns. The last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            match i + 1 == row.len() {
                true => line.push_str(cell),
                false => {
                    let _ = write!(line, "{cell:<width$}  ", width = widths[i]);
                }
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A line of progress on standard error: replaced by the next on a terminal, a line each elsewhere.
pub struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new() -> Self {
        Self {
            terminal: is_terminal(&std::io::stderr()),
            shown: false,
        }
    }

    /// Shows what goes on.
    pub fn show(&mut self, text: &str) {
        let text = escape(text);
        match self.terminal {
            true => {
                let short: String = text.chars().take(78).collect();
                eprint!("\r\u{1b}[2K{short}");
                self.shown = true;
            }
            false => eprintln!("{text}"),
        }
    }

    /// Takes the line away.
    pub fn done(&mut self) {
        if self.shown {
            eprint!("\r\u{1b}[2K");
            self.shown = false;
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidirectional_characters_are_escaped() {
        assert_eq!(
            escape("a\u{1b}[2Jb\u{202e}c\nd"),
            "a\\u{1b}[2Jb\\u{202e}c\\nd"
        );
        assert_eq!(escape("ünïcode ✓"), "ünïcode ✓");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_164_799, "2024-02-28 23:59:59 UTC"),
            (1_795_000_000, "2026-11-18 11:06:40 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ];
        for (seconds, day) in days {
            assert_eq!(date_time(seconds), day);
        }
        // A witness may say anything.
        date_time(u64::MAX);
    }

    #[test]
    fn terms_say_what_they_narrow() {
        assert_eq!(terms(&Terms::ALL), "all rights");
        let narrow = Terms {
            rights: Rights::READ | Rights::WRITE,
            acts: [Act::Inform, Act::Agree].into_iter().collect(),
            rate: agora_realm::Rate::new(5, 60_000),
            ..Terms::ALL
        };
        assert_eq!(terms(&narrow), "read+write, only inform+agree, 5/min");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".into(), "b".into()],
            vec!["long".into(), "c".into()],
        ];
        assert_eq!(table(&rows), "a     b\nlong  c\n");
    }
}
