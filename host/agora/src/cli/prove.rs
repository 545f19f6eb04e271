//! `agora prove`: a proof of one entry that stands by itself; and what `agora verify` says of one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agora_realm::checkpoint::Signed;
use agora_realm::evidence::{Gathering, NoProof, Shown, Wanted};
use agora_realm::{Audit, Body, Judged, Object, PersonaId, PublicKey, RealmId, Stored};
use anyhow::Context;
use serde_json::json;

use super::args::ProveArgs;
use super::show;
use super::verify::{on_servers_of, open_folder, read_checkpoint, run, word};
use super::witnesses::{Signatures, Witnessed, Witnesses};
use crate::boot::data::{check_format, pinned_realm};
use crate::delivery::auditing::{Broken, InFolder};
use crate::delivery::checkpoints::Kept;
use crate::delivery::proofs;
use crate::delivery::pruned::Pruned;
use crate::limits;

/// Writes a proof of what stands at a place, or of a message.
pub(super) fn prove(args: &ProveArgs) -> anyhow::Result<ExitCode> {
    let wanted = match (args.what.parse(), args.what.parse()) {
        (Ok(seq), _) => Wanted::Place(seq),
        (_, Ok(id)) => Wanted::Message(id),
        _ => anyhow::bail!(
            "'{}' is neither a place in the log nor a message's id (64 hexadecimal digits)",
            args.what
        ),
    };
    let data = args.data.data();
    let (on_servers, witnesses) = (!args.log.is_empty(), args.witnesses.asked()?);
    let has_folder = match check_format(&data) {
        Ok(()) => true,
        // All that a folder adds to a log on servers is which realm it is, and its checkpoints.
        Err(_) if on_servers && args.realm.is_some() && args.checkpoint.is_some() => false,
        Err(error) if on_servers => {
            return Err(anyhow::Error::from(error).context(
                "say --realm ID and --checkpoint FILE, or name a data folder of the realm",
            ));
        }
        Err(error) => return Err(error.into()),
    };
    // Before the log is opened, which may grow meanwhile.
    let given = args
        .checkpoint
        .as_deref()
        .map(read_checkpoint)
        .transpose()?;
    let kept = match has_folder && given.is_none() {
        true => Kept::of(&data).all_witnessed()?,
        false => Vec::new(),
    };
    let pinned = match has_folder {
        true => pinned_realm(&data)?,
        false => None,
    };
    let realm = args.realm.or(pinned);
    let mut gathering = Gathering::new(wanted);
    let watch = |stored: &Stored, judged: &Judged| gathering.take(stored, judged);
    let (told, place) = if on_servers {
        let servers = on_servers_of(&args.log, realm)?;
        let place = format!("the realm's stream at {}", args.log.servers.join(", "));
        (run(servers.source(), Audit::new(), watch), place)
    } else {
        let whole = match open_folder(&data.join("log"))? {
            Ok(whole) => whole,
            Err(broken) => anyhow::bail!(damaged(broken)?),
        };
        let source = InFolder::new(whole, Some(Pruned::open(data.join("pruned"))?));
        (run(source, Audit::new(), watch), data.display().to_string())
    };
    if let Some(broken) = told.audited.broken {
        anyhow::bail!(damaged(broken)?);
    }
    let own = told.audited.audit.host_keys();
    let checkpoint = match given {
        Some(held) => {
            let on = |asked: Witnesses| asked.on(&held.signed, held.whence.clone(), &own);
            if let Some(wrong) = witnesses.map(on).and_then(|found| found.wrong()) {
                anyhow::bail!(wrong);
            }
            held.signed
        }
        None => {
            let from = gathering.place().unwrap_or(1);
            let mut covering = kept
                .into_iter()
                .filter(|signed| signed.checkpoint().size >= from);
            let found = match &witnesses {
                None => covering.next(),
                Some(asked) => covering.find(|signed| asked.are_on(signed, &own)),
            };
            found.ok_or_else(|| {
                let by = witnesses.as_ref().map_or_else(String::new, |asked| {
                    let hosts = asked.hosts_among(&own);
                    format!(" with the signatures of {} of the named witnesses{hosts}", asked.needed())
                });
                anyhow::anyhow!(
                    "{}: no checkpoint{by} that is kept here covers it yet (a running host makes one each second while entries arrive)",
                    data.display()
                )
            })?
        }
    };
    let proof = gathering.prove(checkpoint).map_err(|error| match error {
        NoProof::NoSubject => anyhow::anyhow!(
            "the record in {place} holds no such entry or message (agora log shows what it holds)"
        ),
        other => anyhow::anyhow!(other),
    })?;
    // The record and its checkpoint may be another realm's than was asked for.
    proof.check(realm).with_context(|| place)?;
    let text = proofs::write(&proof) + "\n";
    match &args.output {
        Some(path) => {
            std::fs::write(path, text)
                .with_context(|| format!("{}: can't be written", path.display()))?;
            eprintln!(
                "proved: entry {}, by {} entries of {} (agora verify {})",
                proof.subject,
                proof.exhibits.len(),
                proof.checkpoint.checkpoint().size,
                path.display()
            );
        }
        None => show::print(&text),
    }
    Ok(ExitCode::SUCCESS)
}

fn damaged(broken: Broken) -> anyhow::Result<String> {
    match broken {
        Broken::At { seq, why, .. } => Ok(format!(
            "the record is damaged at entry {seq}: {why} (agora verify says more)"
        )),
        Broken::Unreadable(error) => Err(error),
    }
}

/// Says what a proof shows, and what it can't.
pub(super) fn check(
    path: &Path,
    realm: Option<RealmId>,
    held: &[PathBuf],
    witnesses: Option<Witnesses>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > limits::PROOF_FILE_BYTES_MAX as u64 {
        anyhow::bail!(proofs::NotAProof::TooLarge(bytes as usize));
    }
    let proof = proofs::read(&std::fs::read(path)?).with_context(|| path.display().to_string())?;
    let shown = proof.check(realm);
    let mut compared = Vec::new();
    for file in held {
        compared.push((file.display().to_string(), read_checkpoint(file)?.signed));
    }
    match shown {
        Err(refuted) => {
            match json {
                true => show::print(&format!(
                    "{}\n",
                    json!({"event": "proof", "holds": false, "why": refuted.to_string()})
                )),
                false => show::print(&format!("REFUSED     {refuted}\n")),
            }
            Ok(ExitCode::FAILURE)
        }
        Ok(shown) => {
            let witnessed = witnesses.map(|asked| {
                let hosts: Vec<PublicKey> = shown.hosts.iter().map(|(_, key)| *key).collect();
                let mut good = shown.witnesses.clone();
                // What is held of the same log may have more signatures than the proof came with.
                let same = compared
                    .iter()
                    .filter(|(_, held)| compare(&proof.checkpoint, held) == Compared::Same);
                good.extend(same.flat_map(|(_, held)| held.witnesses()));
                let signatures = Signatures {
                    good: &good,
                    hosts: &hosts,
                    own: &shown.host_keys,
                    outdated: &proof.checkpoint.outdated(),
                };
                asked.look(shown.size, "the checkpoint".into(), &signatures)
            });
            let told = Told {
                shown,
                witnessed,
                asked: realm.is_some(),
                held: compared
                    .iter()
                    .map(|(file, held)| (file.as_str(), compare(&proof.checkpoint, held)))
                    .collect(),
            };
            let holds = told.holds();
            match json {
                true => told.json(),
                false => told.text(),
            }
            Ok(match holds {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            })
        }
    }
}

/// How a checkpoint that is held compares with the proof's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// It is the same tree.
    Same,
    /// Of another size: nothing is said.
    OtherSize,
    /// The same size, and another tree; or another realm's.
    Differs,
}

fn compare(proof: &Signed, held: &Signed) -> Compared {
    let (proof, held) = (proof.checkpoint(), held.checkpoint());
    match (proof.realm == held.realm, proof.size == held.size) {
        (true, true) if proof.root == held.root => Compared::Same,
        (true, false) => Compared::OtherSize,
        _ => Compared::Differs,
    }
}

struct Told<'a> {
    shown: Shown,
    /// Which of the witnesses that are asked for signed the checkpoint.
    witnessed: Option<Witnessed>,
    asked: bool,
    held: Vec<(&'a str, Compared)>,
}

impl Told<'_> {
    fn holds(&self) -> bool {
        self.shown.verdict.is_ok()
            && self.witnessed.as_ref().is_none_or(Witnessed::is_enough)
            && self
                .held
                .iter()
                .all(|(_, compared)| *compared == Compared::Same)
    }

    fn author(&self) -> String {
        let entry = self.shown.sealed.entry();
        match &entry.author {
            Some(name) => PersonaId::new(entry.host, name.clone()).to_string(),
            None => format!("host {}", entry.host.short()),
        }
    }

    fn text(&self) {
        let shown = &self.shown;
        let entry = shown.sealed.entry();
        let mut text = String::new();
        let mut row = |name: &str, what: String| {
            text.push_str(&format!("{name:<12}{}\n", show::escape(&what)));
        };
        row(
            "realm",
            match self.asked {
                true => shown.realm.to_string(),
                false => format!("{} (compare it, or say --realm ID)", shown.realm),
            },
        );
        let hosts: Vec<_> = shown.hosts.iter().map(|(host, _)| host.short()).collect();
        row(
            "log",
            format!(
                "entry {} of the first {}, of which host {} signed a checkpoint{}",
                shown.seq,
                shown.size,
                hosts.join(", "),
                match shown.witnesses.len() {
                    0 => String::new(),
                    1 => ", and 1 witness".to_owned(),
                    n => format!(", and {n} witnesses"),
                }
            ),
        );
        let keyed = shown
            .keyed
            .map_or_else(String::new, |at| format!(", introduced in entry {at}"));
        row(
            "signed by",
            format!("{}, with key {}{keyed}", self.author(), entry.signer),
        );
        for (id, at, persona) in &shown.grants {
            row(
                "grant",
                format!("{} of entry {at}, to {persona}", id.short()),
            );
        }
        if let Some(terms) = &shown.terms {
            row("terms", show::terms(terms));
        }
        let ended = shown
            .ended
            .map_or_else(String::new, |at| format!(", ended by entry {at}"));
        let began = shown
            .began
            .map_or_else(String::new, |at| format!(", begun by entry {at}"));
        row("epoch", format!("{}{began}{ended}", entry.epoch));
        row("says", self.says());
        for (file, compared) in &self.held {
            row(
                "held",
                match compared {
                    Compared::Same => format!("{file}: it is the same log"),
                    Compared::OtherSize => format!(
                        "{file} is of another size, which says nothing of this proof (prove it with --checkpoint {file})"
                    ),
                    Compared::Differs => format!("{file}: it is ANOTHER LOG"),
                },
            );
        }
        for line in self.witnessed.iter().flat_map(Witnessed::lines) {
            row("witness", line);
        }
        let too_few = self.witnessed.as_ref().and_then(Witnessed::wrong);
        match (&shown.verdict, self.holds()) {
            (Err(refusal), _) => row(
                "VOID",
                format!("by what the proof shows: {} ({refusal})", word(*refusal)),
            ),
            (Ok(()), false) => row(
                "REFUSED",
                too_few.unwrap_or_else(|| "a checkpoint that is held is not the proof's".into()),
            ),
            (Ok(()), true) => row(
                "holds",
                "it was said, by this author, under these grants, in this epoch, and stands in this log. Not shown: that it counts, which \
                 something between that the proof leaves out may prevent (agora verify, of the record, says that)"
                    .into(),
            ),
        }
        show::print(&text);
    }

    fn says(&self) -> String {
        let entry = self.shown.sealed.entry();
        match &entry.body {
            Body::Turn(turn) => {
                let meant = |at: &usize| self.shown.message.is_none_or(|wanted| wanted == *at);
                let said = turn.messages.iter().enumerate();
                let said: Vec<_> = said
                    .filter(|(at, _)| meant(at))
                    .map(|(at, message)| {
                        format!(
                            "{} on {}: {} [message {}]",
                            message.act,
                            turn.channel,
                            String::from_utf8_lossy(&message.payload),
                            self.shown.sealed.message_id(at)
                        )
                    })
                    .collect();
                said.join("; ")
            }
            Body::Grant(grant) => match &grant.object {
                Object::Channel(name) => format!("grants {} the channel {name}", grant.persona),
                other => format!("grants {} {}", grant.persona, other.name()),
            },
            Body::Key(_) => "introduces a key".into(),
            Body::Channel(body) => format!("declares the channel {}", body.name),
            Body::Revoke(body) => format!("takes back: {:?}", body.what),
            Body::Lapse(_) => "closes an overdue thread".into(),
            Body::Note(_) => "a note".into(),
        }
    }

    fn json(&self) {
        let shown = &self.shown;
        let entry = shown.sealed.entry();
        let messages: Vec<_> = match &entry.body {
            Body::Turn(turn) => turn
                .messages
                .iter()
                .enumerate()
                .filter(|(at, _)| shown.message.is_none_or(|wanted| wanted == *at))
                .map(|(at, message)| {
                    json!({
                        "id": shown.sealed.message_id(at).to_string(),
                        "channel": turn.channel.as_str(),
                        "act": message.act.as_str(),
                        "hops": message.hops,
                        "parent": message.parent.map(|id| id.to_string()),
                        "body": String::from_utf8_lossy(&message.payload),
                    })
                })
                .collect(),
            _ => Vec::new(),
        };
        let held = |compared: &Compared| match compared {
            Compared::Same => "same",
            Compared::OtherSize => "other_size",
            Compared::Differs => "differs",
        };
        let value = json!({
            "event": "proof",
            "holds": self.holds(),
            "void": shown.verdict.err().map(word),
            "shows_that_it_counts": false,
            "realm": shown.realm.to_string(),
            "seq": shown.seq,
            "size": shown.size,
            "checkpoint_hosts": shown.hosts.iter().map(|(host, _)| host.to_string()).collect::<Vec<_>>(),
            "witnesses": shown.witnesses.len(),
            "witnessed": self.witnessed.as_ref().map(Witnessed::json),
            "author": self.author(),
            "host": entry.host.to_string(),
            "signer": entry.signer.to_string(),
            "keyed": shown.keyed,
            "grants": shown.grants.iter().map(|(id, at, persona)| json!({
                "id": id.to_string(), "seq": at, "persona": persona.to_string(),
            })).collect::<Vec<_>>(),
            "epoch": entry.epoch.0,
            "began": shown.began,
            "ended": shown.ended,
            "messages": messages,
            "held": self.held.iter().map(|(file, c)| json!({"file": file, "is": held(c)})).collect::<Vec<_>>(),
        });
        show::print(&format!("{value}\n"));
    }
}
