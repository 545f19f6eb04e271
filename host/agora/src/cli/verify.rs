//! `agora verify`: an auditor's verdict on a record, offline.
//!
//! In: a data folder, a log's folder by itself, an export, or a log on servers; checkpoints that were kept elsewhere. Out: what the record comes
//! to, and whether it is what correct hosts wrote. Promise: nothing is locked or changed; a host may be running.
//! Failure: the first bad entry is named, with its place, and where it lies.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agora_log::{LogError, Whole};
use agora_realm::checkpoint::Signed;
use agora_realm::{Audit, Finding, Held, Judged, RealmId, Refusal, Report, Stored};
use anyhow::Context;
use serde_json::json;

use super::args::{LogServerArgs, VerifyArgs};
use super::show;
use super::witnesses::{Witnessed, Witnesses};
use crate::boot::data::check_format;
use crate::boot::host::{LogChoice, stream_of};
use crate::delivery::auditing::{self, Audited, Broken, Exported, InFolder, Lies, Shared, Source};
use crate::delivery::checkpoints::Kept;
use crate::delivery::pruned::Pruned;
use crate::delivery::record::snapshot_place;
use crate::delivery::{forks, tree};
use crate::limits;
use crate::peer::past::{Evidence, parse_evidence};

/// What a path is of.
enum What {
    /// A data folder.
    Data,
    /// A log's folder by itself.
    Log,
    /// A log in one file.
    Export,
    /// A proof of one entry.
    Proof,
}

fn what(path: &Path) -> anyhow::Result<What> {
    let mut head = Vec::new();
    let named = match path.is_dir() {
        true => path.join("format"),
        false => path.to_owned(),
    };
    match std::fs::File::open(&named) {
        Ok(file) => {
            let read = file.take(16).read_to_end(&mut head);
            read.with_context(|| format!("{}: can't be read", named.display()))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => anyhow::bail!("{}: can't be read: {error}", named.display()),
    }
    if path.is_dir() {
        if head.starts_with(b"agora-log ") {
            return Ok(What::Log);
        }
        check_format(path)?;
        return Ok(What::Data);
    }
    match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(What::Proof),
        Some(_) => Ok(What::Export),
        None if path.exists() => anyhow::bail!("{}: the file is empty", path.display()),
        None => anyhow::bail!(
            "{}: there is nothing here (name a data folder, the folder of a log, an export or a proof)",
            path.display()
        ),
    }
}

/// Says what a record comes to.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => args.data.data(),
    };
    let witnesses = args.witnesses.asked()?;
    let mut audit = Audit::new();
    let on_servers = !args.log.servers.is_empty();
    let mut realm = args.realm;
    let mut seen = None;
    let place = match (on_servers, what(&path)) {
        // All that a folder adds to a log on servers is which realm it is, and what was seen of it.
        (true, Err(error)) if realm.is_none() => {
            return Err(error.context("which realm? say --realm ID, or name a data folder of it"));
        }
        (true, Err(_)) => What::Log,
        (_, found) => found?,
    };
    if matches!(place, What::Proof) {
        return super::prove::check(&path, realm, &args.checkpoint, witnesses, args.json);
    }
    let mut forks = Vec::new();
    if matches!(place, What::Data) {
        // Before the log is opened, which may grow meanwhile.
        for signed in Kept::of(&path).all_witnessed()? {
            audit.hold(Held {
                whence: format!(
                    "the checkpoint of {} entries, kept beside the record,",
                    signed.checkpoint().size
                ),
                signed,
                elsewhere: false,
            });
        }
        forks = forks::kept(&path).iter().map(|fork| fork.show()).collect();
        let pinned = std::fs::read_to_string(path.join("realm")).unwrap_or_default();
        let pinned: Option<RealmId> = pinned.trim().parse().ok();
        realm = realm.or(pinned);
        seen = snapshot_place(&path.join("state"));
    }
    if let Some(realm) = realm {
        audit.expect_realm(realm);
    }
    for file in &args.checkpoint {
        for held in read_checkpoints(file)? {
            audit.hold(held);
        }
    }
    if matches!(place, What::Data)
        && !args.checkpoint.is_empty()
        && let Ok(leaves) = tree::leaves(&path.join("tree"))
    {
        audit.hold_leaves(leaves);
    }
    if let Some((seq, leaf)) = seen {
        let whence = format!("the snapshot in {}", path.display());
        audit.hold_leaf(seq, leaf, whence);
    }
    let told = match place {
        _ if on_servers => {
            let servers = on_servers_of(&args.log, realm)?;
            run(servers.source(), audit, |_, _| {})
        }
        What::Export => {
            let file = std::fs::File::open(&path)?;
            let reader = agora_log::export::Reader::new(std::io::BufReader::new(file))
                .with_context(|| path.display().to_string())?;
            run(Exported::new(reader), audit, |_, _| {})
        }
        What::Data => {
            let pruned = Pruned::open(path.join("pruned"))?;
            in_folder(&path.join("log"), Some(pruned), audit)?
        }
        What::Log | What::Proof => in_folder(&path, None, audit)?,
    };
    let told = Told {
        forks,
        witnesses,
        ..told
    };
    told.say(args.json)
}

/// A log in a folder.
fn in_folder(folder: &Path, pruned: Option<Pruned>, audit: Audit) -> anyhow::Result<Told> {
    match open_folder(folder)? {
        Ok(whole) => {
            let torn = whole.torn().cloned();
            let told = run(InFolder::new(whole, pruned), audit, |_, _| {});
            Ok(Told { torn, ..told })
        }
        Err(broken) => Ok(Told {
            audited: Audited {
                audit,
                lies: Default::default(),
                broken: Some(broken),
            },
            torn: None,
            forks: Vec::new(),
            witnesses: None,
        }),
    }
}

/// Opens a log's folder, or says which place of it is damaged.
pub(super) fn open_folder(folder: &Path) -> anyhow::Result<Result<Whole, Broken>> {
    match Whole::open(folder) {
        Ok(whole) => Ok(Ok(whole)),
        Err(LogError::Missing { .. }) => anyhow::bail!(
            "there is no log in {} (of a realm on servers, say --log URL)",
            folder.display()
        ),
        Err(error) => match Broken::from(error) {
            Broken::Unreadable(error) => Err(error),
            broken => Ok(Err(broken)),
        },
    }
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|opened| {
            opened
                .take(limits::CHECKPOINT_FILE_BYTES_MAX)
                .read_to_string(&mut text)
        })
        .with_context(|| format!("{}: can't be read", file.display()))?;
    Ok(text)
}

/// The checkpoint in a file.
pub(super) fn read_checkpoint(file: &Path) -> anyhow::Result<Held> {
    let signed = read_text(file)?
        .parse()
        .with_context(|| format!("{}: this is no checkpoint", file.display()))?;
    Ok(Held {
        signed,
        whence: format!("the checkpoint {}", file.display()),
        elsewhere: true,
    })
}

/// The checkpoint in a file, or all of those that a host keeps as evidence against a peer.
pub(super) fn read_checkpoints(file: &Path) -> anyhow::Result<Vec<Held>> {
    let text = read_text(file)?;
    if !text.starts_with('{') {
        return Ok(vec![read_checkpoint(file)?]);
    }
    let evidence = parse_evidence(&text)
        .with_context(|| format!("{}: this is no evidence against a peer", file.display()))?;
    let mut all = Vec::<Signed>::new();
    for signed in evidence.iter().flat_map(Evidence::checkpoints) {
        if !all.contains(&signed) {
            all.push(signed);
        }
    }
    let held = |signed: Signed| Held {
        whence: format!(
            "the checkpoint of {} entries in {}",
            signed.checkpoint().size,
            file.display()
        ),
        signed,
        elsewhere: true,
    };
    Ok(all.into_iter().map(held).collect())
}

/// A realm's log on servers, open to be read.
pub(super) struct OnServers {
    log: std::sync::Arc<agora_log::JetStream>,
    runtime: tokio::runtime::Runtime,
}

impl OnServers {
    /// All that it holds now.
    pub(super) fn source(&self) -> Shared {
        Shared::new(self.log.clone(), self.runtime.handle().clone())
    }
}

/// Opens it; nothing is made or changed there.
pub(super) fn on_servers_of(
    servers: &LogServerArgs,
    realm: Option<RealmId>,
) -> anyhow::Result<OnServers> {
    let Some(realm) = realm else {
        anyhow::bail!("which realm? say --realm ID, or name a data folder of it");
    };
    let LogChoice::JetStream(options) = servers.choice() else {
        anyhow::bail!("no servers were named");
    };
    let options = stream_of(*options, realm, "audit");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let log = runtime.block_on(agora_log::JetStream::open(options))?;
    Ok(OnServers {
        log: std::sync::Arc::new(log),
        runtime,
    })
}

/// Feeds an audit on all cores, and says how far it is.
pub(super) fn run(
    source: impl Source,
    audit: Audit,
    mut watch: impl FnMut(&Stored, &Judged) + Send,
) -> Told {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let (end, mut progress) = (source.end(), show::Progress::new());
    let (mut told, mut at) = (Instant::now(), 0);
    let of = end.map_or_else(String::new, |end| format!(" of {end}"));
    let audited = auditing::audit(source, audit, threads, |stored, judged| {
        watch(stored, judged);
        at += 1;
        if at % 256 == 0 && told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            progress.show(&format!("verifying: {}{of} entries", stored.seq));
        }
    });
    progress.done();
    Told {
        audited,
        torn: None,
        forks: Vec::new(),
        witnesses: None,
    }
}

/// What is to be told of a record.
pub(super) struct Told {
    pub(super) audited: Audited,
    torn: Option<agora_log::TornTail>,
    /// Other hosts of the realm that have another log.
    forks: Vec<String>,
    /// Whose signatures on a checkpoint are asked for.
    witnesses: Option<Witnesses>,
}

/// A refusal in a word or two.
pub(super) fn word(refusal: Refusal) -> String {
    let mut word = String::new();
    for c in format!("{refusal:?}").chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn counted(n: u64, one: &str, more: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    }
}

impl Told {
    /// Says it, and how it ends.
    fn say(self, json: bool) -> anyhow::Result<ExitCode> {
        let (lies, broken, torn) = (self.audited.lies, self.audited.broken, self.torn);
        let damaged = match broken {
            Some(Broken::At { seq, lies, why }) => Some((seq, lies, why)),
            Some(Broken::Unreadable(error)) => return Err(error),
            None => None,
        };
        // Of a record that breaks off, nothing is to be said of how it ends.
        let report = match damaged.is_some() {
            true => self.audited.audit.broken_off(),
            false => self.audited.audit.end(),
        };
        let witnessed = self.witnesses.map(|asked| asked.over(&report));
        let too_few = witnessed.as_ref().and_then(Witnessed::wrong);
        let well =
            report.is_well() && damaged.is_none() && self.forks.is_empty() && too_few.is_none();
        let mut found: Vec<Bad> = report
            .findings
            .iter()
            .map(|finding| Bad::of(finding, lies.get(&finding.seq)))
            .collect();
        if let Some((seq, lies, why)) = damaged {
            found.push(Bad {
                seq,
                since: seq,
                lies,
                why: format!("damaged: {why}"),
            });
        }
        let more = report.found - report.findings.len() as u64;
        match json {
            true => tell_json(&report, &found, &self.forks, witnessed.as_ref(), well),
            false => {
                let forks = self
                    .forks
                    .iter()
                    .map(|fork| format!("another host has another log: {fork}"));
                let bad: Vec<_> = found
                    .iter()
                    .map(Bad::text)
                    .chain(forks)
                    .chain(too_few)
                    .collect();
                let told = Verdict {
                    found: &bad,
                    more,
                    witnessed: witnessed.as_ref(),
                    well,
                };
                tell(&report, torn.as_ref(), &told);
            }
        }
        Ok(match well {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

struct Bad {
    seq: u64,
    since: u64,
    lies: Option<Lies>,
    why: String,
}

impl Bad {
    fn of(finding: &Finding, lies: Option<&Lies>) -> Self {
        Self {
            seq: finding.seq,
            since: finding.since,
            lies: lies.cloned(),
            why: finding.wrong.to_string(),
        }
    }

    fn text(&self) -> String {
        let place = match self.seq == self.since {
            true => format!("entry {}", self.seq),
            false => format!("somewhere from entry {} to {}", self.since, self.seq),
        };
        match &self.lies {
            Some(Lies { file, offset }) if self.seq == self.since => {
                format!("{place} ({}, byte {offset}): {}", file.display(), self.why)
            }
            _ => format!("{place}: {}", self.why),
        }
    }
}

fn void(report: &Report) -> String {
    let reasons = |by: &std::collections::BTreeMap<Refusal, u64>| {
        let mut reasons: Vec<_> = by.iter().map(|(refusal, n)| (*n, word(*refusal))).collect();
        reasons.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let reasons: Vec<_> = reasons.iter().map(|(n, w)| format!("{w} {n}")).collect();
        reasons.join(", ")
    };
    let totals = &report.totals;
    let (entries, messages) = (
        totals.void_entries.values().sum(),
        totals.void_messages.values().sum(),
    );
    let mut parts = Vec::new();
    if entries > 0 {
        let text = counted(entries, "entry", "entries");
        parts.push(format!("{text} ({})", reasons(&totals.void_entries)));
    }
    if messages > 0 {
        let text = counted(messages, "message", "messages");
        parts.push(format!(
            "{text} of entries that stand ({})",
            reasons(&totals.void_messages)
        ));
    }
    match parts.is_empty() {
        true => "nothing".into(),
        false => parts.join("; "),
    }
}

/// What is to be said of it, besides what it is.
struct Verdict<'a> {
    /// What is wrong.
    found: &'a [String],
    more: u64,
    witnessed: Option<&'a Witnessed>,
    well: bool,
}

fn tell(report: &Report, torn: Option<&agora_log::TornTail>, verdict: &Verdict<'_>) {
    let Verdict {
        found, more, well, ..
    } = *verdict;
    let state = &report.state;
    let mut text = String::new();
    let mut row = |name: &str, what: String| {
        text.push_str(&format!("{name:<12}{}\n", show::escape(&what)));
    };
    row(
        "realm",
        match report.realm {
            Some(realm) => realm.to_string(),
            None => "none".into(),
        },
    );
    row(
        "record",
        format!(
            "{}, {} that count, {}",
            counted(report.totals.entries, "entry", "entries"),
            counted(report.totals.messages, "message", "messages"),
            counted(state.epoch().0, "epoch", "epochs"),
        ),
    );
    row(
        "who",
        format!(
            "{}, {} on {}",
            counted(state.hosts().count() as u64, "host", "hosts"),
            counted(state.personas().count() as u64, "persona", "personas"),
            counted(state.channels().count() as u64, "channel", "channels"),
        ),
    );
    row("void", void(report));
    if report.totals.gaps > 0 {
        let gaps = counted(report.totals.gaps, "loss was", "losses were");
        row("gaps", format!("{gaps} accepted by an operator"));
    }
    if report.totals.pruned > 0 {
        let turns = counted(report.totals.pruned, "turn was", "turns were");
        row(
            "pruned",
            format!(
                "{turns}: what was said is gone, and what is kept of it, by which it is judged, rests on the word of whoever kept it"
            ),
        );
    }
    if let Some(torn) = torn {
        row(
            "torn",
            format!(
                "{} bytes behind the end, at byte {} of {}: never acknowledged, as far as this folder shows",
                torn.bytes,
                torn.offset,
                torn.file.display()
            ),
        );
    }
    for held in &report.checkpoints {
        if held.elsewhere {
            let agrees = if held.agrees { "agrees" } else { "DISAGREES" };
            let hosts: Vec<_> = held.hosts.iter().map(|(host, _)| host.short()).collect();
            let by = match hosts.is_empty() {
                true => "nobody known".to_owned(),
                false => hosts.join(", "),
            };
            let witnesses = match held.witnesses.len() {
                0 => String::new(),
                n => format!(", and by {}", counted(n as u64, "witness", "witnesses")),
            };
            row(
                "checkpoint",
                format!(
                    "{} covers {} entries and {agrees}; signed by {by}{witnesses}",
                    held.whence, held.size
                ),
            );
        }
    }
    let kept: Vec<_> = report.checkpoints.iter().filter(|c| !c.elsewhere).collect();
    if let Some(newest) = kept.iter().filter(|c| c.agrees).map(|c| c.size).max() {
        let agreeing = kept.iter().filter(|c| c.agrees).count() as u64;
        let others = kept.len() as u64 - agreeing;
        row(
            "kept",
            format!(
                "{} beside the record, the newest at {newest}{}",
                counted(agreeing, "checkpoint agrees", "checkpoints agree"),
                match others {
                    0 => String::new(),
                    n => format!("; {n} of later ones DON'T"),
                }
            ),
        );
    }
    for line in verdict.witnessed.iter().flat_map(|w| w.lines()) {
        row("witness", line);
    }
    for bad in found {
        row("BAD", bad.clone());
    }
    if more > 0 {
        row("BAD", format!("and {more} more"));
    }
    let elsewhere = report.checkpoints.iter().any(|c| c.elsewhere);
    row(
        match well {
            true => "verified",
            false => "REFUSED",
        },
        match (well, elsewhere) {
            (true, _) if verdict.witnessed.is_some_and(|w| w.size > 0) => {
                let (count, size) = verdict.witnessed.map_or((0, 0), |w| (w.count(), w.size));
                format!(
                    "every entry is as its author's host signed it, and up to entry {size}, of which {} of the named witnesses signed the \
                     checkpoint, none is missing or moved",
                    count
                )
            }
            (true, true) => "every entry is as its author's host signed it, and up to the checkpoint none is missing or moved".into(),
            (true, false) => {
                "every entry is as its author's host signed it; against the host itself only a checkpoint held elsewhere speaks \
                 (--checkpoint FILE)"
                    .into()
            }
            (false, _) => match found.first() {
                Some(first) => format!("first bad: {first}"),
                None => "the record is not what correct hosts wrote".to_owned(),
            },
        },
    );
    show::print(&text);
}

fn tell_json(
    report: &Report,
    found: &[Bad],
    forks: &[String],
    witnessed: Option<&Witnessed>,
    well: bool,
) {
    let mut text = String::new();
    let mut line = |value: serde_json::Value| {
        text.push_str(&value.to_string());
        text.push('\n');
    };
    for held in &report.checkpoints {
        line(json!({
            "event": "checkpoint",
            "size": held.size,
            "from": held.whence,
            "elsewhere": held.elsewhere,
            "agrees": held.agrees,
            "hosts": held.hosts.iter().map(|(host, _)| host.to_string()).collect::<Vec<_>>(),
            "witnesses": held.witnesses.len(),
        }));
    }
    for bad in found {
        line(json!({
            "event": "finding",
            "seq": bad.seq,
            "since": bad.since,
            "file": bad.lies.as_ref().map(|lies| lies.file.display().to_string()),
            "offset": bad.lies.as_ref().map(|lies| lies.offset),
            "why": bad.why,
        }));
    }
    if let Some(witnessed) = witnessed {
        line(witnessed.json());
    }
    for fork in forks {
        line(json!({"event": "fork", "why": fork}));
    }
    let by = |counts: &std::collections::BTreeMap<Refusal, u64>| {
        let counts = counts.iter().map(|(refusal, n)| (word(*refusal), json!(n)));
        serde_json::Value::Object(counts.collect())
    };
    line(json!({
        "event": "verdict",
        "well": well,
        "realm": report.realm.map(|realm| realm.to_string()),
        "entries": report.totals.entries,
        "messages": report.totals.messages,
        "epoch": report.state.epoch().0,
        "hosts": report.state.hosts().count(),
        "personas": report.state.personas().count(),
        "channels": report.state.channels().count(),
        "root": crate::hex(&report.root),
        "pruned": report.totals.pruned,
        "void_entries": by(&report.totals.void_entries),
        "void_messages": by(&report.totals.void_messages),
        "findings": report.found.max(found.len() as u64),
    }));
    show::print(&text);
}
