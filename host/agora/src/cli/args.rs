//! What the command line takes.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use super::facts::Format;
use super::show;
use super::witnesses::WitnessesArgs;
use crate::boot::address::{parse_dial, parse_host, parse_listen, parse_peer_id};
use crate::boot::host::LogChoice;
use crate::boot::manifest::{parse_bytes, parse_duration_ms, parse_rate, parse_until, unknown};
use crate::peer::spec::Peering;
use crate::persona::identity::Identity;
use agora_dial::{Kademlia, Multiaddr, PeerId};
use agora_log::JetStreamOptions;
use agora_realm::{Act, ActSet, Rights, Terms};

/// A host for untrusted wasm agents that coordinate on durable, signed channels.
#[derive(Parser)]
#[command(
    name = "agora",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(super) struct Cli {
    /// Say more (-v, -vv); AGORA_LOG takes a filter of its own, as in AGORA_LOG=agora=debug.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run an image: build its agents, start them, and show what counts.
    Run(RunArgs),
    /// Say what is wrong with an image, without starting anything.
    Check(ImageArgs),
    /// Build the agents of an image that are missing or stale.
    Build(BuildArgs),
    /// Scaffold an agent: a crate of its own and an image that runs it.
    New(NewArgs),
    /// Look for what keeps a host from running well.
    Doctor(DoctorArgs),
    /// Show who this host is: the public side of its keys, and where its secret lies.
    Id(IdArgs),
    /// Show the running host's agents, what they were granted and how far they are.
    Ps(PsArgs),
    /// Show the hosts of other realms that this one deals with: how they are connected, and what each grants the other.
    Peers(PeersArgs),
    /// Dial a peer now, also at addresses that nobody knew; they are kept. Exits with 1 when it can't be connected.
    Dial(DialArgs),
    /// Measure the round trip to a peer, on the connection that stops go over.
    Ping(PingArgs),
    /// Follow what counts, as it comes.
    Watch(WatchArgs),
    /// Show what the record holds, or write all of it into a file; works without a running host.
    Log(LogArgs),
    /// Say whether a record is what correct hosts wrote; offline, and without a running host.
    Verify(VerifyArgs),
    /// Write a proof of one entry that stands by itself; `agora verify` checks it.
    Prove(ProveArgs),
    /// Show what this host signed of its log, to be kept elsewhere; works without a running host.
    Checkpoint(CheckpointArgs),
    /// Sign a checkpoint that extends what was signed before, as somebody who keeps watch on a realm's log.
    Witness(WitnessArgs),
    /// Show the copy that is kept of a peer's channel, or all there are, and whether it is proved; works without a running host.
    Mirror(MirrorArgs),
    /// Take what a channel's oldest messages said out of the log; that they were said, and their hashes, stay.
    Prune(PruneArgs),
    /// Put a log that `agora log --export` wrote into an empty log: a new data folder's, or one on servers.
    Import(ImportArgs),
    /// Say something on a channel, as the operator.
    Say(SayArgs),
    /// Grant an agent, or a peer, a channel; it has it at once.
    Grant(GrantArgs),
    /// Take a grant back, with everything made from it; or all that a peer has, as peer:NAME.
    Revoke(RevokeArgs),
    /// End an agent, wherever it is; it stays ended until `agora start`.
    Kill(KillArgs),
    /// Start a killed or ended agent again, under a new key; or let a revoked peer in again, as peer:NAME.
    Start(StartArgs),
    /// Give an agent, or the host, its next key; what the last one signed stays verifiable.
    Rotate(RotateArgs),
    /// Show the epoch, or end it: that takes every capability of every agent back.
    Epoch(EpochArgs),
    /// Show the hosts that share the realm's log, let another one in, or take its place back.
    Realm(RealmArgs),
}

#[derive(Args, Clone)]
pub(super) struct DataArgs {
    /// The data folder of the host [default: .agora here, or beside the image that lies here].
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) data: Option<PathBuf>,
}

impl DataArgs {
    pub(super) fn data(&self) -> PathBuf {
        let here = PathBuf::from(".agora");
        let beside = PathBuf::from("../.agora");
        match &self.data {
            Some(data) => data.clone(),
            // `agora run .` keeps its data beside the image's folder.
            None if !here.exists() && beside.is_dir() && PathBuf::from("agora.toml").is_file() => {
                beside
            }
            None => here,
        }
    }
}

/// Where the host's secret is.
#[derive(Args, Clone)]
pub(super) struct IdentityArgs {
    /// The file with the host's secret, of 0600 and ours [default: AGORA_IDENTITY, else `secret` in the data folder].
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

impl IdentityArgs {
    /// The file that is named, here or in the environment.
    pub(super) fn identity(&self) -> Identity {
        let set = std::env::var_os("AGORA_IDENTITY").filter(|file| !file.is_empty());
        match self.identity.clone().or(set.map(PathBuf::from)) {
            Some(file) => Identity::at(file),
            None => Identity::in_folder(),
        }
    }
}

#[derive(Args)]
pub(super) struct IdArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    /// Make the data folder and the secret where there are none, so that others can be told who this host will be.
    #[arg(long)]
    pub(super) make: bool,
    /// Print the peer id, by which hosts of other realms know this one, and nothing else.
    #[arg(long)]
    pub(super) peer: bool,
    /// Print JSON instead of text.
    #[arg(long, conflicts_with = "peer")]
    pub(super) json: bool,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["agent", "host"])))]
pub(super) struct RotateArgs {
    /// The agent; or an operator, as operator:1000.
    pub(super) agent: Option<String>,
    /// Not an agent, but the host itself. Its id stays.
    #[arg(long)]
    pub(super) host: bool,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
    /// Accept that the log lost what this host has seen. The host must not run; its next start signs that, with this reason, and says
    /// again what the host itself had decided.
    #[arg(long, value_name = "REASON", conflicts_with = "accept_fork")]
    pub(super) accept_loss: Option<String>,
    /// End the alarm that another host of the realm has another log, after that was mended. One that was not is told again.
    #[arg(long, value_name = "REASON")]
    pub(super) accept_fork: Option<String>,
    /// End the alarm that a peer changed its past: what was held of its log is put aside, with the reason, and its next checkpoint is
    /// taken as the first.
    #[arg(long, num_args = 2, value_names = ["PEER", "REASON"], conflicts_with_all = ["accept_fork", "accept_loss"])]
    pub(super) accept_peer: Vec<String>,
}

#[derive(Args)]
pub(super) struct ImageArgs {
    /// The image: a folder with an agora.toml.
    pub(super) image: PathBuf,
}

#[derive(Args)]
pub(super) struct BuildArgs {
    /// The image: a folder with an agora.toml.
    pub(super) image: PathBuf,
    /// Also build sources outside the workspace that this runs in. Building runs their code.
    #[arg(long)]
    pub(super) trust_source: bool,
}

#[derive(Args)]
pub(super) struct RunArgs {
    /// The image: a folder with an agora.toml.
    pub(super) image: PathBuf,
    /// Where the host keeps its log, its keys and all else [default: .agora beside the image].
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    /// Say this once the agents run. May be given again.
    #[arg(long, value_name = "CHANNEL=TEXT", value_parser = parse_say)]
    pub(super) say: Vec<(String, String)>,
    /// End when all is quiet: everything handed over, every agent waiting, no timer or deadline pending. What was said for peers is waited for
    /// as long as they take some of it each minute.
    #[arg(long)]
    pub(super) until_quiet: bool,
    /// Print JSON lines instead of text.
    #[arg(long)]
    pub(super) json: bool,
    /// Build sources outside the workspace that this runs in too. Building runs their code.
    #[arg(long)]
    pub(super) trust_source: bool,
    /// Build nothing; run the components as they are.
    #[arg(long, conflicts_with = "trust_source")]
    pub(super) no_build: bool,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
    #[command(flatten)]
    pub(super) peering: PeeringArgs,
    /// Vat threads; each agent lives on one [default: one less than there are cores, at least one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) workers: Option<u16>,
}

/// How hosts of other realms are reached.
#[derive(Args, Clone)]
pub(super) struct PeeringArgs {
    /// Listen for peers here, as in /ip4/0.0.0.0/udp/4101/quic-v1 or /ip4/0.0.0.0/tcp/4101; port 0 takes a free one. May be given again.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    pub(super) listen: Vec<Multiaddr>,
    /// Dial a peer of the manifest here too: an address that ends in /p2p/ and its id. May be given again.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_dialed)]
    pub(super) dial: Vec<(Multiaddr, PeerId)>,
    /// Who a peer of the manifest is, and where: its id, or an address that ends in /p2p/ and its id. May be given again.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = parse_peer)]
    pub(super) peer: Vec<(String, Option<Multiaddr>, PeerId)>,
    /// Look for peers on the networks that this machine is on, whatever the manifest says (`mdns` of [peering]); --mdns=false: don't.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) mdns: Option<bool>,
    /// Look for peers by asking this host first: an address that ends in /p2p/ and its id. May be given again; in the place of `bootstrap` of
    /// [peering.kademlia].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host)]
    pub(super) kademlia: Vec<Multiaddr>,
    /// Answer others who look for hosts (`serve` of [peering.kademlia]); only hosts that do can be found.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) kademlia_serve: Option<bool>,
    /// Listen through this relay too: an address that ends in /p2p/ and its id. May be given again; in the place of `via` of [peering.relay].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host)]
    pub(super) relay: Vec<Multiaddr>,
    /// Be a relay for the declared peers (`serve` of [peering.relay]).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) relay_serve: Option<bool>,
    /// Try to get a direct connection where there is a relayed one (`punch` of [peering.relay]) [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) relay_punch: Option<bool>,
    /// Keep no connections to peers.
    #[arg(long, conflicts_with_all = [
        "listen", "dial", "peer", "mdns", "kademlia", "kademlia_serve", "relay", "relay_serve", "relay_punch",
    ])]
    pub(super) offline: bool,
}

impl PeeringArgs {
    /// How peers are found and reached: what is said here wins.
    fn find(&self, peering: &mut Peering) {
        let (discovery, relay) = (&mut peering.discovery, &mut peering.relay);
        discovery.mdns = self.mdns.unwrap_or(discovery.mdns);
        let mut kademlia = discovery
            .kademlia
            .take()
            .unwrap_or_else(|| Kademlia::new(Vec::new()));
        if !self.kademlia.is_empty() {
            kademlia.bootstrap.clone_from(&self.kademlia);
        }
        kademlia.serve = self.kademlia_serve.unwrap_or(kademlia.serve);
        // Who asks nobody and answers nobody has none.
        let is_on = kademlia.serve || !kademlia.bootstrap.is_empty();
        discovery.kademlia = is_on.then_some(kademlia);
        if !self.relay.is_empty() {
            relay.via.clone_from(&self.relay);
        }
        match self.relay_serve {
            Some(true) => drop(relay.serve.get_or_insert_default()),
            Some(false) => relay.serve = None,
            None => {}
        }
        relay.punch = self.relay_punch.unwrap_or(relay.punch);
    }

    /// How peers are dealt with: as the manifest says, and this beside it.
    pub(super) fn add_to(&self, peering: &mut Peering, manifest: &Path) -> anyhow::Result<()> {
        peering.listen.extend(self.listen.iter().cloned());
        peering.offline |= self.offline;
        self.find(peering);
        for (name, address, id) in &self.peer {
            let names: Vec<_> = peering.peers.keys().cloned().collect();
            let Some(peer) = peering.peers.get_mut(name) else {
                anyhow::bail!(
                    "--peer: {} (peers are declared under [peers.NAME] in {})",
                    unknown("peer", name, names.iter().map(String::as_str)),
                    manifest.display()
                );
            };
            if let Some(own) = peer.id.filter(|own| own != id) {
                anyhow::bail!(
                    "--peer: {} says that '{name}' is {own}, and not {id} (if it has a new secret, change `id` there)",
                    manifest.display()
                );
            }
            peer.id = Some(*id);
            peer.given.extend(address.iter().cloned());
            let twins = peering
                .peers
                .iter()
                .filter(|(_, peer)| peer.id == Some(*id));
            let twins: Vec<_> = twins.map(|(name, _)| name.as_str()).collect();
            if let [one, other, ..] = twins[..] {
                anyhow::bail!("--peer: '{one}' and '{other}' have one id, {id}; one name each");
            }
        }
        for (address, id) in &self.dial {
            let known = peering.peers.values_mut().find(|peer| peer.id == Some(*id));
            let Some(peer) = known else {
                anyhow::bail!(
                    "--dial: no peer has the id {id}; declare it in {}:\n[peers.NAME]\nid = \"{id}\"",
                    manifest.display()
                );
            };
            peer.given.push(address.clone());
        }
        for (name, peer) in &peering.peers {
            let most = crate::limits::PEER_ADDRESSES_MAX;
            let count = peer.addresses.len() + peer.given.len();
            if count > most {
                anyhow::bail!("peer '{name}': {count} addresses; at most {most}");
            }
        }
        Ok(())
    }
}

/// As it was written, if it can be dialed: the host reads it again.
fn parse_address(text: &str) -> Result<String, String> {
    parse_dial(text).map(|_| text.to_owned())
}

fn parse_dialed(text: &str) -> Result<(Multiaddr, PeerId), String> {
    match parse_dial(text)? {
        (address, Some(id)) => Ok((address, id)),
        (_, None) => Err(format!(
            "'{text}' doesn't say who is there: it must end in /p2p/ID, where ID is what `agora id` prints behind `peer` at the other host"
        )),
    }
}

fn parse_peer(text: &str) -> Result<(String, Option<Multiaddr>, PeerId), String> {
    let wrong = "it takes NAME=ID or NAME=ADDRESS/p2p/ID, as in --peer bravo=/ip4/203.0.113.7/udp/4101/quic-v1/p2p/12D3KooW...";
    let (name, who) = text.split_once('=').ok_or(wrong)?;
    if name.is_empty() || who.is_empty() {
        return Err(wrong.to_owned());
    }
    match who.starts_with('/') {
        false => Ok((name.to_owned(), None, parse_peer_id(who)?)),
        true => {
            let (address, id) = parse_dialed(who)?;
            Ok((name.to_owned(), Some(address), id))
        }
    }
}

/// A log on servers.
#[derive(Args, Clone)]
pub(super) struct LogServerArgs {
    /// Run on a log on NATS servers with JetStream instead of the one in the data folder. Several servers of one cluster are separated
    /// by commas.
    #[arg(long = "log", value_name = "nats://HOST:PORT", value_delimiter = ',')]
    pub(super) servers: Vec<String>,
    /// The credentials for them: a file with a JWT and its seed.
    #[arg(long = "log-credentials", value_name = "FILE", requires = "servers")]
    credentials: Option<PathBuf>,
    /// Certificates to trust besides the system's, as PEM.
    #[arg(long = "log-ca", value_name = "FILE", requires = "servers")]
    ca: Option<PathBuf>,
    /// This host's TLS certificate, as PEM.
    #[arg(long = "log-cert", value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key, as PEM.
    #[arg(long = "log-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// How many servers keep a copy; a stream with fewer is refused.
    #[arg(long = "log-replicas", value_name = "N", requires = "servers", value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: Option<u8>,
    /// The size that a new stream is limited to, as in 8GiB.
    #[arg(long = "log-bytes", value_name = "SIZE", requires = "servers", value_parser = parse_bytes)]
    bytes: Option<u64>,
    /// Assert that the servers sync before they acknowledge (sync_interval: always); receipts then say so.
    #[arg(long = "log-synced", requires = "servers")]
    synced: bool,
}

impl LogServerArgs {
    /// Whether they name none.
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The log that they name.
    pub(super) fn choice(&self) -> LogChoice {
        if self.servers.is_empty() {
            return LogChoice::Own;
        }
        let mut options = JetStreamOptions {
            servers: self.servers.clone(),
            credentials: self.credentials.clone(),
            tls_roots: self.ca.clone(),
            tls_identity: self.certificate.clone().zip(self.key.clone()),
            ..JetStreamOptions::default()
        };
        if let Some(replicas) = self.replicas {
            options.replicas = usize::from(replicas);
        }
        if let Some(bytes) = self.bytes {
            options.stream_bytes_max = bytes;
        }
        if self.synced {
            options.durability = agora_log::Durability::Asserted;
        }
        LogChoice::JetStream(Box::new(options))
    }
}

fn parse_say(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((channel, text)) if !channel.is_empty() => Ok((channel.to_owned(), text.to_owned())),
        _ => Err("it takes CHANNEL=TEXT, as in --say build-coord='ship it?'".into()),
    }
}

#[derive(Args)]
pub(super) struct NewArgs {
    /// The agent's name: the folder to make, and the crate in it.
    pub(super) name: String,
    /// The guest SDK to depend on [default: the one this agora was built with].
    #[arg(long, value_name = "DIR")]
    pub(super) sdk: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Show every grant with its effective terms.
    #[arg(long)]
    pub(super) grants: bool,
}

#[derive(Args)]
pub(super) struct PeersArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Print JSON lines instead of text.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args)]
pub(super) struct DialArgs {
    /// The peer, by its name in the manifest.
    pub(super) peer: String,
    /// Where it may be, too, as in /ip4/203.0.113.7/udp/4101/quic-v1; with /p2p/ and its id behind it, or without [default: what is known].
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    pub(super) addresses: Vec<String>,
    /// Dial nothing, and take an address back that was given so. May be given again.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address, conflicts_with = "addresses")]
    pub(super) forget: Vec<String>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args)]
pub(super) struct PingArgs {
    /// The peer, by its name in the manifest.
    pub(super) peer: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// How often.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) count: u32,
}

#[derive(Args)]
pub(super) struct WatchArgs {
    /// Only this channel.
    pub(super) channel: Option<String>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// From this place of the log on [default: from now].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) from: u64,
    /// Print JSON lines instead of text.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args)]
pub(super) struct LogArgs {
    /// Only this channel.
    pub(super) channel: Option<String>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// From this place of the log on.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) from: u64,
    /// How: as text for people, as JSON lines, or what was said, as facts in YAML or CSV.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
    /// The same as --format jsonl.
    #[arg(long, conflicts_with = "format")]
    pub(super) json: bool,
    /// Show nothing, and write the whole log into a file (`-`: standard output), to keep or to move it. The secret is not in it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["channel", "from", "json", "format"])]
    pub(super) export: Option<PathBuf>,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("keep").required(true).args(["keep_count", "older_than", "keep_bytes"])))]
pub(super) struct PruneArgs {
    /// The channel.
    pub(super) channel: String,
    /// Keep the newest messages, so many.
    #[arg(long, value_name = "N")]
    pub(super) keep_count: Option<u64>,
    /// Prune what was said longer ago than this, as in 30d or 12h.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    pub(super) older_than: Option<u64>,
    /// Keep the newest messages, of so much payload together, as in 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) keep_bytes: Option<u64>,
    /// Only say what that would do.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Prune also what readers have not read yet; they are told that they missed it.
    #[arg(long)]
    pub(super) force_past_cursors: bool,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct ImportArgs {
    /// The file that `agora log --export` wrote.
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// A checkpoint that was kept elsewhere: up to it, nothing may be missing, moved or changed. May be given again.
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Vec<PathBuf>,
    /// Import it although not all in it is what correct hosts wrote (agora verify FILE says what isn't): as what hosts passed over already.
    #[arg(long)]
    pub(super) accept_findings: bool,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
}

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// A data folder, the folder of a log by itself, an export, or a proof [default: the data folder].
    pub(super) path: Option<PathBuf>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// The realm that the record must be of.
    #[arg(long, value_name = "ID")]
    pub(super) realm: Option<agora_realm::RealmId>,
    /// A checkpoint that was kept elsewhere: up to it, nothing may be missing, moved or changed. May be given again.
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) witnesses: WitnessesArgs,
    /// Print JSON lines instead of text.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
}

#[derive(Args)]
pub(super) struct ProveArgs {
    /// A place in the log, or a message's id.
    pub(super) what: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// The realm that the record must be of [default: the data folder's]; of a log on servers, where there is no data folder of it here, say
    /// it (and --checkpoint, too).
    #[arg(long, value_name = "ID")]
    pub(super) realm: Option<agora_realm::RealmId>,
    /// The checkpoint in whose log it is proved: best one that whoever the proof is for holds already [default: the first that is kept of
    /// those that cover it].
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(super) witnesses: WitnessesArgs,
    /// Where to write the proof [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) log: LogServerArgs,
}

impl LogArgs {
    /// How it is to be shown.
    pub(super) fn format(&self) -> Format {
        match self.json {
            true => Format::Jsonl,
            false => self.format,
        }
    }
}

#[derive(Args)]
pub(super) struct CheckpointArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// The first one that is kept of those that cover this place of the log [default: the newest].
    #[arg(long, value_name = "N")]
    pub(super) at: Option<u64>,
    /// With the proof that its log begins with the first N entries of which somebody holds a checkpoint.
    #[arg(long, value_name = "N")]
    pub(super) since: Option<u64>,
    /// The same, as what `agora witness` reads: N is what the witness signed last, 0 at first.
    #[arg(long, value_name = "N", conflicts_with = "since")]
    pub(super) for_witness: Option<u64>,
    #[command(flatten)]
    pub(super) witnesses: WitnessesArgs,
    /// Show nothing, and keep what witnesses signed of a checkpoint of this host (`-`: from standard input).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["at", "since", "for_witness", "witness"])]
    pub(super) cosigned: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct MirrorArgs {
    /// Which: PEER/CHANNEL [default: what copies there are].
    pub(super) channel: Option<String>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// From this message of the channel on.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) from: u64,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    pub(super) count: u64,
    /// Show no messages, and check that all of them are in the log of which the peer's host signed a checkpoint.
    #[arg(long, requires = "channel")]
    pub(super) verify: bool,
    /// As JSON lines.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args)]
pub(super) struct WitnessArgs {
    /// What `agora checkpoint --for-witness` wrote [default: standard input].
    #[arg(default_value = "-", hide_default_value = true)]
    pub(super) input: PathBuf,
    /// What this witness remembers; made when there is none. Without it nobody can tell two histories apart.
    #[arg(long, value_name = "FILE")]
    pub(super) state: PathBuf,
    /// This witness's secret; made when there is none [default: beside the state].
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// The public key of a host whose checkpoints it takes; may be given again [default: of the one that signed the first].
    #[arg(long = "host", value_name = "KEY", value_parser = parse_key)]
    pub(super) hosts: Vec<agora_realm::PublicKey>,
    /// Print this witness's public key, and nothing else.
    #[arg(long)]
    pub(super) show_key: bool,
}

fn parse_key(text: &str) -> Result<agora_realm::PublicKey, String> {
    text.parse()
        .map_err(|_| "it takes the 64 hexadecimal digits of a public key".to_owned())
}

#[derive(Args)]
pub(super) struct SayArgs {
    /// Where to say it.
    pub(super) channel: String,
    /// What to say.
    pub(super) text: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// What is meant: inform, request, propose, agree, refuse or decide.
    #[arg(long, default_value = "request", value_parser = parse_act)]
    pub(super) act: Act,
    /// The message it answers, by its id in hex.
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(super) parent: Option<[u8; 32]>,
    /// For a request: who decides it.
    #[arg(long, value_name = "PERSONA")]
    pub(super) owner: Option<String>,
    /// For a request with an owner: it lapses undecided after this long, as in 30s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms, requires = "owner")]
    pub(super) deadline: Option<u64>,
}

/// An act by its name.
pub(super) fn parse_act(text: &str) -> Result<Act, String> {
    Act::EVERY
        .into_iter()
        .find(|act| act.as_str() == text)
        .ok_or_else(|| unknown("act", text, Act::EVERY.map(Act::as_str)))
}

fn parse_id(text: &str) -> Result<[u8; 32], String> {
    let id: agora_realm::MessageId = text
        .parse()
        .map_err(|_| "it takes the 64 hexadecimal digits of a message's id".to_owned())?;
    Ok(id.0)
}

/// The flags of [`TermsArgs`], which only channels have.
const TERMS: [&str; 8] = [
    "rights", "acts", "hops", "bytes", "count", "rate", "until", "history",
];

#[derive(Args)]
pub(super) struct TermsArgs {
    /// What the agent may do: read, write, initiate, attenuate.
    #[arg(long, value_delimiter = ',', default_value = "read,write")]
    rights: Vec<String>,
    /// The acts it may speak [default: all].
    #[arg(long, value_delimiter = ',', value_parser = parse_act)]
    acts: Vec<Act>,
    /// The most hops a message may carry.
    #[arg(long)]
    hops: Option<u16>,
    /// The largest payload, as in 64KiB.
    #[arg(long, value_parser = parse_bytes)]
    bytes: Option<u64>,
    /// How many messages in all.
    #[arg(long)]
    count: Option<u64>,
    /// How fast, as in 20/s or 5/min.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<agora_realm::Rate>,
    /// Not after, as in 2030-01-31T18:00:00Z.
    #[arg(long, value_parser = parse_until)]
    until: Option<i64>,
    /// How many messages from before the grant may be read.
    #[arg(long, default_value_t = 0)]
    history: u64,
}

/// A right by its name.
pub(crate) fn right_named(name: &str) -> Option<Rights> {
    show::RIGHTS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(right, _)| *right)
}

impl TermsArgs {
    /// The terms they say.
    pub(super) fn terms(&self) -> Result<Terms, String> {
        let mut rights = Rights::NONE;
        for name in &self.rights {
            rights = rights
                | right_named(name)
                    .ok_or_else(|| unknown("right", name, show::RIGHTS.map(|(_, name)| name)))?;
        }
        let acts = match self.acts.is_empty() {
            true => ActSet::ALL,
            false => self.acts.iter().copied().collect(),
        };
        Ok(Terms {
            rights,
            acts,
            hops: self.hops.unwrap_or(u16::MAX),
            bytes_max: self
                .bytes
                .map_or(u32::MAX, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
            count: self.count.unwrap_or(u64::MAX),
            rate: self.rate,
            until_ms: self.until.unwrap_or(i64::MAX),
            history: self.history,
        })
    }
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["channel", "service", "timer", "signer"])))]
pub(super) struct GrantArgs {
    /// The agent; or a peer, as peer:NAME, which takes a channel only.
    pub(super) agent: String,
    /// A channel.
    pub(super) channel: Option<String>,
    /// Not a channel, but what another agent serves.
    #[arg(long, value_name = "NAME", conflicts_with_all = TERMS)]
    pub(super) service: Option<String>,
    /// Not a channel, but the timer.
    #[arg(long, conflicts_with_all = TERMS)]
    pub(super) timer: bool,
    /// Not a channel, but signatures in this domain, with the agent's key.
    #[arg(long, value_name = "DOMAIN", conflicts_with_all = TERMS)]
    pub(super) signer: Option<String>,
    #[command(flatten)]
    pub(super) terms: TermsArgs,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct RevokeArgs {
    /// The grant: its number (as g7; see `agora ps --grants`) or its id. Or a peer, as peer:NAME: nobody lets it in until `agora start`.
    pub(super) grant: String,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct KillArgs {
    /// The agent; or a peer, as peer:NAME, or a guest, as PEER/NAME.
    pub(super) agent: String,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct StartArgs {
    /// The agent; or a peer, as peer:NAME, or a guest, as PEER/NAME.
    pub(super) agent: String,
    #[command(flatten)]
    pub(super) data: DataArgs,
}

#[derive(Args)]
pub(super) struct EpochArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(subcommand)]
    pub(super) command: Option<EpochCommand>,
}

#[derive(Args)]
pub(super) struct RealmArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(subcommand)]
    pub(super) command: Option<RealmCommand>,
}

#[derive(Subcommand)]
pub(super) enum RealmCommand {
    /// Show the realm and its hosts.
    Show,
    /// Let another host in, at a host that runs. `agora realm join` prints the key, at the other host.
    Invite {
        /// The other host's public key, 64 hexadecimal digits.
        key: String,
    },
    /// Make a data folder for a host that is to join a realm, and print its key.
    Join {
        /// The realm's id, 64 hexadecimal digits, as `agora realm show` prints it.
        realm: String,
        #[command(flatten)]
        identity: IdentityArgs,
    },
    /// Take a host's place back, for good: nothing that it or its agents say counts any more.
    Revoke {
        /// The host's id, or the first 8 digits of it.
        host: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Subcommand)]
pub(super) enum EpochCommand {
    /// Show the epoch.
    Show,
    /// End the epoch. Exits with 0 when that is in the log, with 1 when it is in effect here and waits for the log.
    Bump {
        /// Grant nothing in the next epoch until it is ended too.
        #[arg(long)]
        hold: bool,
        /// Why, for the record and for the agents.
        #[arg(long)]
        reason: String,
        /// Wait until every other host of the realm has confirmed it, or can't be acting on what ended any more.
        #[arg(long)]
        wait: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn run(args: &[&str]) -> Result<PeeringArgs, String> {
        let all = ["agora", "run", "image"].iter().chain(args);
        match Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(Command::Run(run)) => Ok(run.peering),
            Ok(_) => Err("it is another command".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_command_line_says_where_to_listen_and_who_peers_are() {
        let at = "/ip4/127.0.0.1/udp/4101/quic-v1";
        let peering = run(&[
            "--listen",
            at,
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--dial",
            &format!("{at}/p2p/{ID}"),
            "--peer",
            &format!("bravo={at}/p2p/{ID}"),
            "--peer",
            &format!("charlie={ID}"),
        ]);
        let peering = peering.expect("it is right");
        assert_eq!(peering.listen.len(), 2);
        assert_eq!(peering.dial[0].1, ID.parse().unwrap());
        let (name, address, _) = &peering.peer[0];
        assert_eq!((name.as_str(), address.is_some()), ("bravo", true));
        let (name, address, _) = &peering.peer[1];
        assert_eq!((name.as_str(), address.is_some()), ("charlie", false));
    }

    #[test]
    fn what_the_command_line_says_is_added_to_the_manifests_peers() {
        let other = "12D3KooWSnE1NXNQUVb6cN8Gpoid3mJfRcMK9tWEyvN2CyLZiQiH";
        let at = "/ip4/127.0.0.1/udp/4101/quic-v1";
        let manifest = Path::new("boot/agora.toml");
        let declared = |id: Option<&str>| {
            let spec = crate::peer::spec::PeerSpec {
                id: id.and_then(|id| id.parse().ok()),
                ..Default::default()
            };
            Peering {
                peers: [("bravo".to_owned(), spec)].into(),
                ..Peering::default()
            }
        };
        let added = |args: &[&str], mut peering: Peering| {
            run(args)
                .expect("it is right")
                .add_to(&mut peering, manifest)
                .map(|()| peering)
                .map_err(|error| error.to_string())
        };
        let dial = format!("{at}/p2p/{ID}");
        let named = format!("bravo={at}/p2p/{ID}");
        let peering = added(&["--peer", &named, "--dial", &dial], declared(None));
        let bravo = &peering.expect("both are the one").peers["bravo"];
        assert_eq!((bravo.id, bravo.given.len()), (ID.parse().ok(), 2));

        let refused = |args: &[&str], id| added(args, declared(id)).expect_err("it is wrong");
        let told = refused(&["--dial", &dial], None);
        assert!(told.contains(&format!("id = \"{ID}\"")), "{told}");
        assert!(told.contains("boot/agora.toml"), "{told}");
        let told = refused(&["--peer", &format!("brava={ID}")], None);
        assert!(told.contains("did you mean 'bravo'"), "{told}");
        let told = refused(&["--peer", &named], Some(other));
        assert!(told.contains("change `id`"), "{told}");
    }

    #[test]
    fn how_peers_are_found_is_said_by_the_manifest_unless_the_command_line_says_otherwise() {
        let (one, other) = (
            format!("/ip4/127.0.0.1/udp/4101/quic-v1/p2p/{ID}"),
            format!("/ip4/127.0.0.1/tcp/4102/p2p/{ID}"),
        );
        let added = |args: &[&str], mut peering: Peering| {
            let args = run(args).expect("it is right");
            let added = args.add_to(&mut peering, Path::new("agora.toml"));
            added.expect("nothing speaks against it");
            peering
        };
        let none = added(&[], Peering::default());
        assert!(!none.discovery.mdns && none.discovery.kademlia.is_none());
        assert!(none.relay.via.is_empty() && none.relay.serve.is_none() && none.relay.punch);
        let all = [
            "--mdns",
            "--kademlia",
            &one,
            "--kademlia-serve",
            "--relay",
            &other,
            "--relay-serve",
            "--relay-punch=false",
        ];
        let declared = added(&all, none);
        let kademlia = declared.discovery.kademlia.clone().expect("it is on");
        assert!(declared.discovery.mdns && kademlia.serve);
        assert_eq!(kademlia.bootstrap[0].to_string(), one);
        assert_eq!(declared.relay.via[0].to_string(), other);
        assert!(declared.relay.serve.is_some() && !declared.relay.punch);

        // What is said of nothing stands; what is said wins.
        let same = added(&[], declared.clone());
        assert_eq!(same.discovery, declared.discovery);
        assert_eq!(same.relay, declared.relay);
        let args = [
            "--mdns=false",
            "--kademlia",
            &other,
            "--relay",
            &one,
            "--relay-serve=false",
        ];
        let changed = added(&args, declared);
        let kademlia = changed.discovery.kademlia.expect("it is on");
        assert!(!changed.discovery.mdns && kademlia.serve && changed.relay.serve.is_none());
        assert_eq!(kademlia.bootstrap.len(), 1);
        assert_eq!(kademlia.bootstrap[0].to_string(), other);
        assert_eq!((changed.relay.via.len(), changed.relay.punch), (1, false));

        for (args, told) in [
            (&["--relay", "/ip4/127.0.0.1/tcp/4102"][..], "/p2p/"),
            (&["--kademlia", "charlie"], "/quic-v1"),
            (&["--mdns=perhaps"], "true"),
            (&["--mdns", "--offline"], "--offline"),
        ] {
            let error = run(args).err().unwrap_or_else(|| panic!("{args:?}"));
            assert!(error.contains(told), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_wrong_address_is_told_with_what_would_be_right() {
        for (args, told) in [
            (
                ["--listen", "0.0.0.0:4101"],
                "/ip4/0.0.0.0/udp/4101/quic-v1",
            ),
            (["--listen", "/ip4/0.0.0.0/udp/4101"], "quic-v1"),
            (["--dial", "/ip4/127.0.0.1/tcp/4101"], "/p2p/ID"),
            (["--dial", "bravo"], "/quic-v1"),
            (["--peer", "bravo"], "NAME=ID"),
            (["--peer", "bravo=/ip4/127.0.0.1/tcp/4101"], "/p2p/ID"),
            (["--peer", "bravo=charlie"], "agora id"),
        ] {
            let error = run(&args).err().unwrap_or_else(|| panic!("{args:?}"));
            assert!(error.contains(told), "{args:?}: {error}");
        }
    }
}
