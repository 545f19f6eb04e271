//! `agora mirror`: what a copy of a peer's channel holds, and whether it is proved; from the data folder alone, host running or not.

use std::path::Path;
use std::process::ExitCode;

use agora_realm::{ChannelName, PersonaId};
use anyhow::Context;
use serde_json::json;

use super::args::MirrorArgs;
use super::show;
use crate::boot::data::check_format;
use crate::delivery::record::Kept;
use crate::peer::mirror::{channels, examine};
use crate::peer::past::Past;

/// Shows a copy, or which there are.
pub(super) fn mirror(args: &MirrorArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.data();
    check_format(&data)?;
    let Some(name) = &args.channel else {
        return list(&data, args.json);
    };
    let named = ChannelName::new(name).ok();
    let named = named.and_then(|name| Some((name.peer()?.to_owned(), name.at_peer()?)));
    let (peer, channel) =
        named.with_context(|| format!("'{name}' is not PEER/CHANNEL (as in bravo/release)"))?;
    let past = Past::of(&data, &peer);
    if !channels(past.folder())?.contains(&channel) {
        anyhow::bail!(
            "there is no copy of {name} here (mirror = ['{channel}'] under [peers.{peer}] keeps one, where {peer} allows it)"
        );
    }
    let keys = past.keys()?;
    let mut left = args.count;
    let copied = examine(past.folder(), &channel, &keys, |kept| {
        if !args.verify && kept.ordinal.0 >= args.from && left > 0 {
            left -= 1;
            tell(kept, args.json);
        }
    })?;
    let alarm = past.evidence()?.first().map(|first| first.shown(&peer));
    let well = copied.wrong.is_empty() && alarm.is_none();
    if args.verify {
        let (first, last) = copied.span.unwrap_or_default();
        match args.json {
            true => show::print(&format!(
                "{}\n",
                json!({
                    "event": "verdict",
                    "well": well,
                    "messages": copied.messages,
                    "first": first,
                    "last": last,
                    "size": copied.size,
                    "wrong": copied.wrong,
                    "alarm": alarm,
                })
            )),
            false => {
                for wrong in copied.wrong.iter().chain(&alarm) {
                    show::print(&format!("BAD         {}\n", show::escape(wrong)));
                }
                let verdict = match well {
                    true => format!(
                        "verified    {} messages of {name}, {first} to {last}: each is signed, and in the log of {} entries that {peer}'s host signed",
                        copied.messages, copied.size
                    ),
                    false => format!("REFUSED     the copy of {name} is not proved"),
                };
                show::print(&format!("{}\n", show::escape(&verdict)));
            }
        }
    } else if !well {
        eprintln!(
            "agora: this copy is not all proved, or {peer} changed its past (`agora mirror {name} --verify` says more)"
        );
    }
    Ok(match well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn list(data: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut found = 0;
    for peer in Past::peers(data)? {
        let past = Past::of(data, &peer);
        for channel in channels(past.folder())? {
            let copied = examine(past.folder(), &channel, &past.keys()?, |_| {})?;
            found += 1;
            let (first, last) = copied.span.unwrap_or_default();
            show::print(&match as_json {
                true => format!(
                    "{}\n",
                    json!({
                        "event": "mirror",
                        "peer": peer,
                        "channel": channel.as_str(),
                        "messages": copied.messages,
                        "first": first,
                        "last": last,
                    })
                ),
                false => format!(
                    "{}/{channel}  {} messages, {first} to {last}\n",
                    show::escape(&peer),
                    copied.messages
                ),
            });
        }
    }
    if found == 0 && !as_json {
        show::print(
            "no channel of a peer's is mirrored here (mirror = ['CHANNEL'] under [peers.NAME])\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(kept: &Kept, as_json: bool) {
    let entry = kept.sealed.entry();
    let message = kept.message();
    let author = match &entry.author {
        Some(name) => PersonaId::new(entry.host, name.clone()).to_string(),
        None => String::new(),
    };
    let text = String::from_utf8_lossy(&message.payload);
    show::print(&match as_json {
        true => format!(
            "{}\n",
            json!({
                "event": "message",
                "ordinal": kept.ordinal.0,
                "seq": kept.place.seq,
                "index": kept.place.index,
                "id": kept.sealed.message_id(usize::from(kept.place.index)).to_string(),
                "author": author,
                "act": message.act.as_str(),
                "time_ms": message.time_ms,
                "epoch": entry.epoch.0,
                "content_type": message.content_type,
                "payload": crate::hex(&message.payload),
                "text": std::str::from_utf8(&message.payload).ok(),
            })
        ),
        false => format!(
            "{} {:>5} {:<12} {:<8} {}\n",
            show::time(message.time_ms),
            kept.ordinal.0,
            show::escape(author.split('@').next().unwrap_or_default()),
            message.act.as_str(),
            show::escape(&text)
        ),
    });
}
