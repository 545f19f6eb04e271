//! `agora witness`: remembers how far a realm's log was, and signs checkpoints that extend it. It needs no data folder and no network: what it
//! reads and writes may come and go by any way.
//!
//! Promise: of a realm that it follows it never signs two histories; what it signed last is kept before the signature is handed out.
//! Failure: what it can't sign is said, and its state stays as it was.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agora_realm::checkpoint::{Extension, Signed};
use agora_realm::{PublicKey, RealmId};

use super::args::WitnessArgs;
use super::show;
use crate::boot::data::replace;
use crate::delivery::checkpoints::parse_file;
use crate::persona::secret::{Secret, random_bytes};

/// What a witness remembers.
#[derive(serde::Serialize, serde::Deserialize)]
struct State {
    /// The realm that it follows.
    realm: String,
    /// The keys of the hosts whose checkpoints it takes.
    hosts: Vec<String>,
    /// The latest that it signed.
    checkpoint: String,
}

struct Remembered {
    hosts: Vec<PublicKey>,
    checkpoint: Signed,
}

fn remembered(path: &Path) -> anyhow::Result<Option<Remembered>> {
    let text = match std::fs::read(path) {
        Ok(text) if text.is_empty() => return Ok(None),
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => anyhow::bail!("{}: {error}", path.display()),
    };
    let damaged = || {
        anyhow::anyhow!(
            "{}: not what a witness wrote (restore it from a copy: without it, nobody can tell two histories apart)",
            path.display()
        )
    };
    let state: State = serde_json::from_slice(&text).map_err(|_| damaged())?;
    let checkpoint: Signed = state.checkpoint.parse().map_err(|_| damaged())?;
    let realm: RealmId = state.realm.parse().map_err(|_| damaged())?;
    let hosts = state.hosts.iter().map(|host| host.parse());
    let hosts = hosts.collect::<Result<_, _>>().map_err(|_| damaged())?;
    match checkpoint.checkpoint().realm == realm {
        true => Ok(Some(Remembered { hosts, checkpoint })),
        false => Err(damaged()),
    }
}

/// One witness at a time on a state.
fn lock(path: &Path) -> anyhow::Result<File> {
    let path = beside(path, "lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    file.lock()
        .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    Ok(file)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{what}"));
    PathBuf::from(name)
}

/// Reads a checkpoint with its proof from standard input, and writes it to standard output with this witness's signature.
pub(super) fn witness(args: &WitnessArgs) -> anyhow::Result<ExitCode> {
    let key_path = args
        .key
        .clone()
        .unwrap_or_else(|| beside(&args.state, "key"));
    if args.show_key {
        let key = Secret::open_or_make(&key_path)?.witness_key();
        show::print(&format!("{}\n", key.public()));
        return Ok(ExitCode::SUCCESS);
    }
    let _one = lock(&args.state)?;
    let before = remembered(&args.state)?;
    let mut extension: Extension = parse_file(&args.input)?;
    let mut hosts: Vec<PublicKey> = args.hosts.clone();
    match &before {
        Some(before) => hosts.extend(before.hosts.iter().filter(|key| !args.hosts.contains(key))),
        // Nothing is known of the realm yet, so whoever is first is believed to be of it; and is said.
        None if hosts.is_empty() => {
            hosts = extension.signed.hosts();
            if let [host, ..] = &hosts[..] {
                let realm = extension.signed.checkpoint().realm;
                eprintln!(
                    "agora: from here on, this witness follows realm {realm} by the key of the host that signed: {host}"
                );
            }
        }
        None => {}
    }
    let held = before.as_ref().map(|before| before.checkpoint.checkpoint());
    let host = extension.witnessable(&hosts, held).map_err(|refused| {
        use agora_realm::checkpoint::Unwitnessed;
        let is_evidence = matches!(
            refused,
            Unwitnessed::Forked { .. } | Unwitnessed::NotAnExtension { .. }
        );
        if let (Some(before), true) = (&before, is_evidence) {
            eprint!(
                "agora: what this witness signed before:\n{}agora: what it was given now:\n{}",
                before.checkpoint, extension.signed
            );
        }
        refused
    })?;
    let key = Secret::open_or_make(&key_path)?.witness_key();
    let now_s = u64::try_from(crate::now_ms() / 1000).unwrap_or(0);
    extension
        .signed
        .cosign(&host, &key, now_s, &random_bytes()?)?;
    let state = State {
        realm: extension.signed.checkpoint().realm.to_string(),
        hosts: hosts.iter().map(PublicKey::to_string).collect(),
        checkpoint: extension.signed.to_string(),
    };
    let text = serde_json::to_string_pretty(&state)? + "\n";
    // In a folder of its own name also where the path is a bare name.
    let path = match args.state.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new(".").join(&args.state),
        _ => args.state.clone(),
    };
    replace(&path, text.as_bytes())?;
    show::print(&extension.signed.to_string());
    Ok(ExitCode::SUCCESS)
}
