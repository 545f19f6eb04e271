//! `agora checkpoint`: what this host signed of its log, and the proofs between; from the data folder alone, host running or not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use agora_realm::PublicKey;
use agora_realm::checkpoint::{Extension, Signed};

use super::args::CheckpointArgs;
use super::show;
use super::witnesses::Witnesses;
use crate::boot::data::check_format;
use crate::delivery::checkpoints::{Kept, parse_file};
use crate::delivery::forks;
use crate::delivery::tree::LogTree;
use crate::peer::past::Past;

/// Prints a checkpoint, or one with the proof that it extends an older one; or keeps what a witness signed.
pub(super) fn checkpoint(args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let asked = args.witnesses.asked()?;
    let data = args.data.data();
    check_format(&data)?;
    let kept = Kept::of(&data);
    if let Some(file) = &args.cosigned {
        return keep_cosigned(&kept, file);
    }
    let signed = match (args.at, asked) {
        (at, Some(asked)) => witnessed(&data, at, &asked)?,
        (None, None) => kept.newest()?.ok_or_else(|| {
            anyhow::anyhow!(
                "{}: there is no checkpoint yet (a host makes one each second while entries arrive)",
                data.display()
            )
        })?,
        (Some(seq), None) => kept.covering(seq)?.ok_or_else(|| {
            anyhow::anyhow!(
                "{}: no checkpoint covers entry {seq} yet",
                data.display()
            )
        })?,
    };
    match args.since.or(args.for_witness) {
        None => show::print(&signed.to_string()),
        Some(old) => show::print(&extension(&data, old, signed)?.to_string()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The newest that enough of these witnesses signed; or the first, of those that cover a place.
fn witnessed(data: &Path, at: Option<u64>, asked: &Witnesses) -> anyhow::Result<Signed> {
    let all = Kept::of(data).all_witnessed()?;
    // Its keys, as far as it signed checkpoints with them that are kept.
    let own: BTreeSet<PublicKey> = all.iter().flat_map(Signed::hosts).collect();
    let mut found = all
        .into_iter()
        .filter(|signed| signed.checkpoint().size >= at.unwrap_or(0) && asked.are_on(signed, &own));
    let found = match at {
        None => found.next_back(),
        Some(_) => found.next(),
    };
    found.ok_or_else(|| {
        let covering = at.map_or_else(String::new, |seq| format!(" and covers entry {seq}"));
        anyhow::anyhow!(
            "{}: no checkpoint that is kept here has good signatures of {} of the named witnesses{covering}{}",
            data.display(),
            asked.needed(),
            asked.hosts_among(&own)
        )
    })
}

/// A checkpoint with the proof that it extends the log of the first `old` places.
fn extension(data: &Path, old: u64, signed: Signed) -> anyhow::Result<Extension> {
    let size = signed.checkpoint().size;
    if old > size {
        anyhow::bail!("the checkpoint covers {size} places, so it extends no log of {old}");
    }
    let path = data.join("tree");
    let tree = LogTree::read_only(&path, size)?;
    if tree.now().1 != signed.checkpoint().root {
        anyhow::bail!(
            "{}: what it holds of the first {size} places is not what the checkpoint was made of, so nothing can be proved from it \
             (the file is derived: a host mends it from its log when it starts)",
            path.display()
        );
    }
    let proof = futures::executor::block_on(tree.consistency(old, size))?;
    Ok(Extension { old, proof, signed })
}

fn keep_cosigned(kept: &Kept, file: &Path) -> anyhow::Result<ExitCode> {
    let cosigned: Signed = parse_file(file)?;
    let size = cosigned.checkpoint().size;
    if cosigned.witnesses().is_empty() {
        anyhow::bail!(
            "{}: {} (`agora witness` writes what belongs here)",
            file.display(),
            match cosigned.outdated().is_empty() {
                true => "no witness signed it, or not this checkpoint",
                false => "it is signed in the old form, which names no host: have it signed anew",
            }
        );
    }
    match kept.keep_cosigned(&cosigned)? {
        None => anyhow::bail!(
            "{}: no checkpoint of {size} places with this root is kept here; this host did not make it, or it was thinned out",
            file.display()
        ),
        Some(taken) if taken.is_refused() => anyhow::bail!(
            "{}: nothing of it is kept: a witness signed this log of {size} places as another host signed it, and this host's word of it \
             is no other's (give the witness a checkpoint of this host: agora checkpoint --for-witness)",
            file.display()
        ),
        Some(taken) => {
            show::print(&format!(
                "the checkpoint of {size} places has the signatures of {} witnesses, {} of them new\n",
                taken.witnesses, taken.new
            ));
            if taken.foreign > 0 {
                eprintln!(
                    "agora: {} more are not kept: they are of this log as another host signed it",
                    taken.foreign
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the alarm that another host has another log.
pub(super) fn accept_fork(data: &Path, reason: &str) -> anyhow::Result<ExitCode> {
    check_format(data)?;
    if reason.trim().is_empty() {
        anyhow::bail!("--accept-fork takes the reason, which is kept beside what was known");
    }
    match forks::accept(data, reason)? {
        0 => show::print("no other host is known to have another log\n"),
        n => show::print(&format!(
            "{n} forks are accepted; what has not been mended will be told again\n"
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the alarm that a peer's log is another than it was.
pub(super) fn accept_peer(data: &Path, peer: &str, reason: &str) -> anyhow::Result<ExitCode> {
    check_format(data)?;
    if reason.trim().is_empty() {
        anyhow::bail!("--accept-peer takes the reason, which is kept beside what was known");
    }
    let known = Past::peers(data)?;
    if !known.iter().any(|known| known == peer) {
        anyhow::bail!(
            "nothing is held of a peer '{peer}' (there is: {})",
            match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            }
        );
    }
    match Past::of(data, peer).accept(reason)? {
        0 => show::print("nothing speaks against that peer\n"),
        n => show::print(&format!(
            "{n} pieces of evidence are put aside, with the copies of the peer's channels; its next checkpoint is taken as the first (a host \
             that runs begins new copies when it starts again)\n"
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is held of peers, and what speaks against them.
fn examine_peers(data: &Path, say: &mut impl FnMut(bool, String)) {
    let peers = match Past::peers(data) {
        Ok(peers) => peers,
        Err(error) => return say(false, error.to_string()),
    };
    for peer in peers {
        let past = Past::of(data, &peer);
        match past.evidence() {
            Err(error) => say(false, error.to_string()),
            Ok(evidence) => match evidence.first() {
                Some(first) => say(false, first.shown(&peer)),
                None => match past.checkpoint() {
                    Err(error) => say(false, error.to_string()),
                    Ok(None) => {}
                    Ok(Some(held)) => say(
                        true,
                        format!(
                            "of peer {peer} a checkpoint of {} entries is held",
                            held.checkpoint().size
                        ),
                    ),
                },
            },
        }
    }
}

/// Says what is wrong with the checkpoints of a data folder.
pub(super) fn examine(data: &Path, say: &mut impl FnMut(bool, String)) {
    examine_peers(data, say);
    for fork in forks::kept(data) {
        say(false, format!("FORKED: {}", fork.show()));
    }
    let kept = Kept::of(data);
    let newest = match kept.newest() {
        Ok(Some(newest)) => newest,
        Ok(None) => return say(true, "there is no checkpoint yet".into()),
        Err(error) => return say(false, error.to_string()),
    };
    let size = newest.checkpoint().size;
    if newest.hosts().is_empty() {
        return say(
            false,
            format!("nobody signed the newest checkpoint, of {size} entries"),
        );
    }
    let tree = LogTree::read_only(&data.join("tree"), size);
    match tree.map(|tree| tree.now().1) {
        Ok(root) if root == newest.checkpoint().root => say(
            true,
            format!(
                "the newest checkpoint covers {size} entries, and {} witnesses signed it",
                newest.witnesses().len()
            ),
        ),
        Ok(_) => say(
            false,
            format!(
                "the newest checkpoint, of {size} entries, is not of what the file `tree` holds (a host mends the file from its log \
                 when it starts; one that can't says why)"
            ),
        ),
        Err(error) => say(false, error.to_string()),
    }
}
