//! The verbs that need no running host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use agora_realm::{Junk, MessageVerdict};

use super::args::{BuildArgs, DoctorArgs, ImageArgs, LogArgs};
use super::source::{Pace, Source};
use super::{checkpoint, facts, show};
use crate::boot::build;
use crate::boot::data::{DataError, DataFolder, check_format, kept_tip};
use crate::boot::host::prepare_all;
use crate::boot::image::Image;
use crate::delivery::checkpoints::Kept;
use crate::delivery::pruned::open_places;
use crate::delivery::record::snapshot_place;
use crate::delivery::tip::{Tip, short};
use crate::door::operator::replay_one;
use crate::door::service::Services;
use crate::persona::engine::Workshop;

/// Says what is wrong with an image, without starting anything.
pub(super) fn check(args: &ImageArgs) -> anyhow::Result<ExitCode> {
    let image = Image::read(&args.image)?;
    let mut image_to_prepare = image.clone();
    let mut unbuilt = Vec::new();
    image_to_prepare.manifest.agents.retain(|name, spec| {
        let is_there = spec.component.is_file() || spec.source.is_none();
        if !is_there {
            unbuilt.push(name.to_string());
        }
        is_there
    });
    let workshop = Workshop::new(None).map_err(|error| anyhow::Error::msg(format!("{error:#}")))?;
    let mut progress = show::Progress::new();
    let prepared = prepare_all(&workshop, &image_to_prepare, &mut |text| {
        progress.show(text)
    });
    progress.done();
    prepared?;
    for notice in Services::new(image.manifest.services.clone()).notices() {
        eprintln!("note: {}", show::escape(&notice));
    }
    show::print(&format!(
        "{}: {} agents, {} channels{}: all well{}\n",
        args.image.display(),
        image.manifest.agents.len(),
        image.manifest.channels.len(),
        match &image.manifest.peering.peers {
            none if none.is_empty() => String::new(),
            peers => {
                let names: Vec<_> = peers.keys().map(String::as_str).collect();
                format!(", {} peers ({})", names.len(), names.join(", "))
            }
        },
        match unbuilt.is_empty() {
            true => String::new(),
            false => format!(" (not built yet: {})", unbuilt.join(", ")),
        }
    ));
    Ok(ExitCode::SUCCESS)
}

/// Builds what is missing or stale.
pub(super) fn build(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let image = Image::read(&args.image)?;
    let mut progress = show::Progress::new();
    let built = build::build(&image, args.trust_source, &mut |text| progress.show(text));
    progress.done();
    match built? {
        0 => show::print("nothing to do: every component is as its source says\n"),
        n => show::print(&format!("{n} components built\n")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the record, whether or not a host runs.
pub(super) fn log(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let mut source = Source::open(&args.data.data(), &args.log)?;
    let colour = show::is_terminal(&std::io::stdout());
    let mut facts = facts::Writer::new(args.format());
    let mut state = agora_realm::State::new();
    let mut pace = Pace::new();
    let (mut at, end) = (0, source.end().0);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        // Once there is something to see, that is progress enough.
        if at < args.from || !colour {
            pace.at(|| format!("reading {}: {at} of {end} entries", source.place));
        }
        let batch = source.next_batch()?;
        let Some((last, _)) = batch.last() else {
            break;
        };
        at = last.0;
        let signatures: Vec<_> = batch
            .iter()
            .map(|(_, place)| facts::signature_of(place))
            .collect();
        let places = batch.into_iter().map(|(seq, place)| (seq.0, place));
        let opened = open_places(places.collect());
        for ((seq, sealed), signature) in opened.into_iter().zip(signatures) {
            let all_told = replay_one(&mut state, seq, sealed);
            facts.hosts(state.hosts().count());
            for told in all_told {
                facts.count(&told);
                let on_channel = match (&args.channel, &told.channel) {
                    (None, _) => true,
                    (Some(wanted), Some(channel)) => wanted == channel.as_str(),
                    (Some(_), None) => false,
                };
                if told.seq < args.from || !on_channel {
                    continue;
                }
                pace.done();
                if facts.write(&mut out, &told, &signature).is_err() {
                    // Whoever reads us has seen enough.
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }
    if facts.end(&mut out).is_err() {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(wanted) = &args.channel {
        let known = state.channels().any(|(name, _)| name.as_str() == wanted);
        if !known {
            let names: Vec<_> = state.channels().map(|(name, _)| name.clone()).collect();
            anyhow::bail!(crate::boot::manifest::unknown(
                "channel",
                wanted,
                names.iter().map(agora_realm::ChannelName::as_str)
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps the operator's decision to accept what the log lost, for the next start.
pub(super) fn accept_loss(data: &Path, reason: &str) -> anyhow::Result<ExitCode> {
    check_format(data)?;
    if reason.trim().is_empty() {
        anyhow::bail!("--accept-loss takes the reason, which is signed and stays on the record");
    }
    let folder = DataFolder::open(data)?;
    let tip = folder.tip()?.map(|tip| (tip.seq, tip.to_string()));
    let signed = Kept::of(data).newest()?.map(|signed| {
        let size = signed.checkpoint().size;
        (size, format!("the {size} entries of its newest checkpoint"))
    });
    let judged = snapshot_place(&folder.join("state")).map(|(seq, leaf)| {
        let tip = Tip { seq, leaf };
        (seq, tip.to_string())
    });
    // A crash may have come before the tip was kept.
    let seen = [tip, judged, signed].into_iter().flatten();
    let Some((_, seen)) = seen.max_by_key(|(seq, _)| *seq) else {
        anyhow::bail!(
            "{}: no host has seen anything here yet, so nothing can be lost",
            data.display()
        );
    };
    folder.accept_loss(Some(reason))?;
    show::print(&format!(
        "the next start accepts that the log does not hold {seen}, or what was before it, and signs that\n"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Looks for what keeps a host from running well.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let data = &args.data.data();
    let identity = &args.identity.identity();
    if let Some(reason) = &args.accept_fork {
        return checkpoint::accept_fork(data, reason);
    }
    if let [peer, reason] = &args.accept_peer[..] {
        return checkpoint::accept_peer(data, peer, reason);
    }
    let mut ill = false;
    let mut say = |well: bool, text: String| {
        ill |= !well;
        show::print(&format!(
            "{} {}\n",
            if well { "ok  " } else { "BAD " },
            show::escape(&text)
        ));
    };
    match Workshop::new(None) {
        Ok(_) => say(true, "the wasm engine runs on this machine".into()),
        Err(error) => say(false, format!("the wasm engine can't be set up: {error:#}")),
    }
    let cargo = std::process::Command::new("cargo")
        .arg("--version")
        .output();
    match cargo {
        Ok(out) if out.status.success() => say(
            true,
            format!(
                "agents can be built ({})",
                String::from_utf8_lossy(&out.stdout).trim()
            ),
        ),
        _ => say(
            true,
            "there is no cargo: images run with the components they bring".into(),
        ),
    }
    match check_format(data) {
        Ok(()) => {}
        Err(DataError::Missing(_)) => {
            say(
                true,
                format!("there is no data folder at {} yet", data.display()),
            );
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            say(false, error.to_string());
            return Ok(ExitCode::FAILURE);
        }
    }
    if super::client::answers(data) {
        say(true, format!("a host runs on {}", data.display()));
    } else {
        match DataFolder::open(data) {
            Ok(folder) => {
                say(
                    true,
                    format!("{} is a data folder, not in use", data.display()),
                );
                match folder.stops().count() {
                    0 => {}
                    n => say(
                        true,
                        format!("{n} stops wait for the log; the next start puts them in first"),
                    ),
                }
            }
            Err(error) => say(false, error.to_string()),
        }
    }
    match identity.open(data) {
        Ok(_) => say(true, "the secret is the owner's alone".into()),
        Err(error) => say(false, error.to_string()),
    }
    // First: a host that runs may see more meanwhile.
    let seen = match kept_tip(data) {
        Ok(seen) => seen,
        Err(error) => {
            say(false, error.to_string());
            None
        }
    };
    match Source::open(data, &args.log) {
        Ok(source) => examine(source, seen, &mut say),
        Err(error) => say(false, format!("{error:#}")),
    }
    checkpoint::examine(data, &mut say);
    match rustix::fs::statvfs(data) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            say(
                free >= 64 << 20,
                format!("{} MiB free on the data folder's disk", free >> 20),
            );
        }
        Err(error) => say(false, format!("{}: {error}", data.display())),
    }
    Ok(if ill {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Reads a log whole, and says what it is worth.
fn examine(mut source: Source, seen: Option<Tip>, say: &mut dyn FnMut(bool, String)) {
    for found in &source.unsafe_settings {
        say(
            false,
            format!("{}: the stream is not safe: {found}", source.place),
        );
    }
    let mut state = agora_realm::State::new();
    let mut pace = Pace::new();
    let mut void: BTreeMap<String, u64> = BTreeMap::new();
    let mut messages: BTreeMap<String, u64> = BTreeMap::new();
    let mut at = 0;
    let mut found = None;
    loop {
        pace.at(|| format!("reading {}: {at} of {} entries", source.place, source.end()));
        let batch = match source.next_batch() {
            Ok(batch) => batch,
            Err(error) => return say(false, error.to_string()),
        };
        let Some((last, _)) = batch.last() else {
            break;
        };
        at = last.0;
        let places: Vec<_> = batch
            .into_iter()
            .map(|(seq, place)| (seq.0, place))
            .collect();
        if let Some(tip) = seen {
            let there = places.iter().find(|(seq, _)| *seq == tip.seq);
            found = there.map(|(_, place)| place.leaf()).or(found);
        }
        for (seq, sealed) in open_places(places) {
            let judged = agora_realm::judge(&mut state, seq, sealed.as_ref());
            match (&sealed, judged.verdict) {
                (Err(junk), _) => {
                    // Not in its own words, of which there may be any number.
                    let what = match junk {
                        Junk::TooLarge(_) => "junk: more bytes than an entry takes",
                        Junk::Malformed(_) => "junk: no entry",
                        Junk::UnknownFormat(_) => "junk: of a format not known here; upgrade",
                        Junk::BadSignature => "junk: the signature does not verify",
                    };
                    *void.entry(what.to_owned()).or_default() += 1;
                }
                (Ok(_), Err(refusal)) => *void.entry(refusal.to_string()).or_default() += 1,
                (Ok(_), Ok(())) => {
                    for verdict in &judged.messages {
                        if let MessageVerdict::Void(refusal) = verdict {
                            *messages.entry(refusal.to_string()).or_default() += 1;
                        }
                    }
                }
            }
        }
    }
    pace.done();
    match (source.realm, state.realm()) {
        (Some(pinned), Some(found)) if pinned != found => say(
            false,
            format!(
                "the log begins realm {}, but the data folder belongs to realm {} (restore the folder's own log)",
                found.short(),
                pinned.short()
            ),
        ),
        (Some(pinned), None) => say(
            false,
            format!(
                "{}: it is empty, but the data folder belongs to realm {} (if its log is on servers, say --log)",
                source.place,
                pinned.short()
            ),
        ),
        _ => {}
    }
    if let Some(tip) = seen
        && found != Some(tip.leaf)
    {
        let there = match found {
            None => format!("it ends at {at}"),
            Some(leaf) => format!("{} stands there", short(&leaf)),
        };
        say(
            false,
            format!(
                "{}: the log has diverged: this host has seen {tip}, but {there} (restore the log from a copy that has it; or accept the \
                 loss with --accept-loss REASON)",
                source.place
            ),
        );
    }
    let tally = state.tally();
    say(
        true,
        format!(
            "the log reads whole: {} entries, {} of them void; every signature of the others holds",
            tally.entries, tally.void
        ),
    );
    if source.pruned_count() > 0 {
        say(
            true,
            format!(
                "{} of them were pruned: what they said is gone, and their hashes and signatures are kept",
                source.pruned_count()
            ),
        );
    }
    for (reason, count) in &void {
        say(true, format!("void entries: {count}: {reason}"));
    }
    for (reason, count) in &messages {
        say(true, format!("void messages: {count}: {reason}"));
    }
    say(true, source.durability());
}
