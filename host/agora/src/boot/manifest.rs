//! Reads an image's manifest.
//!
//! In: the text of `agora.toml`. Out: a [`Manifest`], every name and unit in it checked.
//! Promise: whatever is wrong is reported with its line and, where a name is meant, the nearest valid one; nothing is guessed.
//! Failure: [`Fault`]s, all of them at once. docs/manifest.md describes the keys.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agora_dial::{Kademlia, Multiaddr, RelayBounds};
use agora_realm::{
    Act, ActSet, ChannelName, DomainName, PersonaName, Rate, Rights, ServiceName, Terms,
};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::address::{parse_dial, parse_host, parse_peer_id};
use crate::limits;
use crate::peer::spec::{PeerSpec, Peering};

/// What an image asks for. The log decides: what was revoked or killed there stays so.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// The channels, by name.
    pub channels: BTreeMap<ChannelName, ChannelSpec>,
    /// The services, by name.
    pub services: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    /// The agents, by name.
    pub agents: BTreeMap<PersonaName, AgentSpec>,
    /// Other realms' hosts.
    pub peering: Peering,
}

/// A channel's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSpec {
    /// What a root message carries.
    pub hops: u16,
    /// A thread's reaction budget.
    pub reactions: u32,
    /// Whether messages outlive a fence.
    pub carry: bool,
}

/// An outside process that serves agents, and what they may ask of it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ServiceName,
    /// The unix socket it listens at, resolved.
    pub socket: PathBuf,
    /// How long one call may take.
    pub deadline: Duration,
    /// Calls in flight between it and one agent, in each direction.
    pub calls: usize,
}

/// How one agent runs and what it is granted.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// The component, as a path relative to the manifest's folder, resolved.
    pub component: PathBuf,
    /// The crate it is built from, resolved.
    pub source: Option<PathBuf>,
    /// The most linear memory, in bytes.
    pub memory: usize,
    /// What happens when it fails.
    pub restart: Restart,
    /// What it is granted.
    pub grants: Vec<GrantSpec>,
}

/// What happens when an agent fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It stays ended.
    Never,
    /// It is started again, later each time.
    OnFailure,
}

/// One grant.
#[derive(Debug, Clone)]
pub enum GrantSpec {
    /// A channel, under terms.
    Channel(ChannelName, Box<Terms>),
    /// The timer.
    Timer,
    /// What another agent serves.
    Service(ServiceName),
    /// Signatures in a domain.
    Signer(DomainName),
}

/// Text that names no domain for signatures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a domain for signatures: it must be 1 to 64 of a-z, 0-9, '.', '_' and '-', start with a letter or digit, and not with 'agora'"
)]
pub struct NotADomain(pub String);

impl GrantSpec {
    /// What the agent finds it under.
    fn name(&self) -> &str {
        match self {
            Self::Channel(name, _) => name.as_str(),
            Self::Timer => "timer",
            Self::Service(name) => name.as_str(),
            Self::Signer(domain) => domain.as_str(),
        }
    }
}

/// Something wrong in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, with what, and what to do.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// The name among `valid` that `given` was probably meant to be.
pub fn nearest<'a>(given: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    valid
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len().max(given.len()) / 3))
        // People get the first letter right more often than any other.
        .min_by_key(|(distance, name)| (*distance, given.chars().next() != name.chars().next()))
        .map(|(_, name)| name)
}

/// `unknown WHAT 'given'`, with the nearest valid name or all of them.
pub fn unknown<'a>(
    what: &str,
    given: &str,
    valid: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    match nearest(given, valid.clone()) {
        Some(name) => format!("unknown {what} '{given}'; did you mean '{name}'?"),
        None => {
            let names: Vec<_> = valid.into_iter().collect();
            if names.is_empty() {
                format!("unknown {what} '{given}' (there are none)")
            } else {
                format!("unknown {what} '{given}' (valid: {})", names.join(", "))
            }
        }
    }
}

impl Manifest {
    /// Parses a manifest whose relative paths start at `folder`.
    ///
    /// # Errors
    /// Everything wrong in it, in the order of its lines.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader {
            text,
            folder,
            faults: Vec::new(),
            introduced: Vec::new(),
            peers: Vec::new(),
        };
        let manifest = reader.manifest();
        let mut faults = reader.faults;
        if faults.is_empty() {
            return Ok(manifest);
        }
        faults.sort_by_key(|fault| fault.line);
        Err(faults)
    }
}

struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    faults: Vec<Fault>,
    /// The services that were granted: where, to whom, and which.
    introduced: Vec<(Range<usize>, String, String)>,
    /// The names under `[peers]`.
    peers: Vec<String>,
}

/// Who is granted something.
#[derive(Clone, Copy)]
enum Grantee<'n> {
    Agent(&'n str),
    Peer(&'n str),
}

impl std::fmt::Display for Grantee<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(name) => write!(f, "agent '{name}'"),
            Self::Peer(name) => write!(f, "peer '{name}'"),
        }
    }
}

type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Reader<'a> {
    fn fault(&mut self, span: Range<usize>, text: impl Into<String>) {
        let upto = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = upto.iter().filter(|byte| **byte == b'\n').count() + 1;
        self.faults.push(Fault {
            line,
            text: text.into(),
        });
    }

    fn manifest(&mut self) -> Manifest {
        let mut manifest = Manifest::default();
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let message = error.message().to_owned();
            self.fault(error.span().unwrap_or(0..0), message);
        }
        if !self.faults.is_empty() {
            return manifest;
        }
        let table = table.into_inner();
        self.keys(
            &table,
            "",
            &["channels", "services", "agents", "peers", "peering"],
        );
        let peers = table.get("peers");
        if let Some(entries) = peers.and_then(|value| value.get_ref().as_table()) {
            self.peers = entries
                .keys()
                .map(|key| key.get_ref().to_string())
                .collect();
        }
        let channels = table.get("channels");
        if let Some(entries) = channels.and_then(|value| self.table(value, "channels")) {
            for (key, value) in entries.iter() {
                let spec = self.channel(key.get_ref(), value);
                match ChannelName::plain(key.get_ref()) {
                    Ok(name) => drop(manifest.channels.insert(name, spec)),
                    Err(error) => self.fault(key.span(), format!("channels: {error}")),
                }
            }
        }
        let agents = table.get("agents");
        let services = table.get("services");
        if let Some(entries) = services.and_then(|value| self.table(value, "services")) {
            let most = limits::SERVICES_MAX;
            if let Some((key, _)) = entries.iter().nth(most) {
                let text = format!("{} services; a host has at most {most}", entries.len());
                self.fault(key.span(), text);
            }
            let agents = agents.and_then(|value| value.get_ref().as_table());
            for (key, value) in entries.iter() {
                // A grant names its object by name alone, and so does what an agent finds in its graft.
                let name = key.get_ref().as_ref();
                let taken = match name {
                    "timer" => Some("the timer's"),
                    _ if manifest.channels.keys().any(|known| known.as_str() == name) => {
                        Some("a channel's")
                    }
                    _ if agents.is_some_and(|agents| agents.contains_key(name)) => {
                        Some("an agent's")
                    }
                    _ => None,
                };
                if let Some(whose) = taken {
                    let text = format!("services: '{name}' is {whose} name; choose another");
                    self.fault(key.span(), text);
                }
                match ServiceName::new(name) {
                    Ok(name) => {
                        if let Some(spec) = self.service(name.clone(), key.span(), value) {
                            manifest.services.insert(name, Arc::new(spec));
                        }
                    }
                    Err(error) => self.fault(key.span(), format!("services: {error}")),
                }
            }
        }
        if let Some(entries) = agents.and_then(|value| self.table(value, "agents")) {
            let most = limits::AGENTS_MAX as usize;
            if let Some((key, _)) = entries.iter().nth(most) {
                let text = format!("{} agents; a host runs at most {most}", entries.len());
                self.fault(key.span(), text);
            }
            for (key, value) in entries.iter() {
                let spec = self.agent(key.get_ref(), key.span(), value, &manifest.channels);
                let name = PersonaName::new(key.get_ref());
                match (name, spec) {
                    (Ok(name), _) if name.is_operator() => self.fault(
                        key.span(),
                        format!("agents: '{name}' is a name of operators; choose another"),
                    ),
                    (Ok(name), _) if !name.is_plain() => self.fault(
                        key.span(),
                        format!("agents: '{name}' is a name of another host's; choose another"),
                    ),
                    (Ok(name), Some(spec)) => drop(manifest.agents.insert(name, spec)),
                    (Ok(_), None) => {}
                    (Err(error), _) => self.fault(key.span(), format!("agents: {error}")),
                }
            }
        }
        if let Some(entries) = peers.and_then(|value| self.table(value, "peers")) {
            self.peers_of(entries, &mut manifest);
        }
        if let Some(value) = table.get("peering") {
            self.peering(value, &mut manifest.peering);
        }
        let names = |table: Option<&'_ Value<'a>>| {
            let keys = table.and_then(|value| value.get_ref().as_table());
            let keys = keys.into_iter().flat_map(DeTable::keys);
            keys.map(|key| key.get_ref().to_string())
                .collect::<Vec<_>>()
        };
        let serving = [names(agents), names(services)].concat();
        for (span, agent, service) in std::mem::take(&mut self.introduced) {
            if service == agent {
                self.fault(
                    span,
                    format!("agent '{agent}': grant: it can't be its own service"),
                );
            } else if !serving.contains(&service) {
                let text = unknown("service", &service, serving.iter().map(String::as_str));
                self.fault(
                    span,
                    format!("agent '{agent}': grant: {text} (a service is another agent, or is declared under [services.NAME])"),
                );
            }
        }
        manifest
    }

    fn table<'v>(&mut self, value: &'v Value<'a>, what: &str) -> Option<&'v DeTable<'a>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.fault(value.span(), format!("{what} must be a table"));
        }
        table
    }

    /// Reports every key of `table` that is not among `valid`.
    fn keys(&mut self, table: &DeTable<'_>, place: &str, valid: &[&str]) {
        for key in table.keys() {
            if !valid.contains(&key.get_ref().as_ref()) {
                let text = unknown("key", key.get_ref(), valid.iter().copied());
                let place = if place.is_empty() {
                    String::new()
                } else {
                    format!("{place}: ")
                };
                self.fault(key.span(), format!("{place}{text}"));
            }
        }
    }

    fn channel(&mut self, name: &str, value: &Value<'a>) -> ChannelSpec {
        let place = format!("channel '{name}'");
        let mut spec = ChannelSpec {
            hops: limits::HOPS_DEFAULT,
            reactions: limits::REACTIONS_DEFAULT,
            carry: false,
        };
        let Some(table) = self.table(value, &place) else {
            return spec;
        };
        self.keys(table, &place, &["hops", "reactions", "carry"]);
        if let Some(hops) = table.get("hops") {
            let max = u64::from(limits::HOPS_MAX);
            spec.hops = self.number(hops, &format!("{place}: hops"), max) as u16;
        }
        if let Some(reactions) = table.get("reactions") {
            let max = u64::from(limits::REACTIONS_MAX);
            spec.reactions = self.number(reactions, &format!("{place}: reactions"), max) as u32;
        }
        if let Some(carry) = table.get("carry") {
            spec.carry = self.boolean(carry, &format!("{place}: carry"));
        }
        spec
    }

    fn service(
        &mut self,
        name: ServiceName,
        span: Range<usize>,
        value: &Value<'a>,
    ) -> Option<ServiceSpec> {
        let place = format!("service '{name}'");
        let table = self.table(value, &place)?;
        self.keys(table, &place, &["socket", "deadline", "calls"]);
        let deadline = match table.get("deadline") {
            Some(value) => self.deadline(value, &format!("{place}: deadline")),
            None => limits::SERVICE_DEADLINE_DEFAULT,
        };
        let calls = match table.get("calls") {
            Some(value) => {
                let place = format!("{place}: calls");
                let calls = self.number(value, &place, limits::SERVICE_CALLS_MAX as u64);
                if calls == 0
                    && value
                        .get_ref()
                        .as_integer()
                        .is_some_and(|n| n.as_str() == "0")
                {
                    self.fault(value.span(), format!("{place}: with 0 it serves nobody"));
                }
                calls as usize
            }
            None => limits::SERVICE_CALLS_DEFAULT,
        };
        let Some(value) = table.get("socket") else {
            let text = format!("{place}: no socket (add socket = \"{name}.sock\")");
            self.fault(span, text);
            return None;
        };
        let socket = self
            .folder
            .join(self.string(value, &format!("{place}: socket"))?);
        let bytes = socket.as_os_str().len();
        if bytes > limits::SOCKET_PATH_BYTES_MAX {
            let most = limits::SOCKET_PATH_BYTES_MAX;
            let text = format!(
                "{place}: socket: {} has {bytes} bytes; a socket's path has at most {most}",
                socket.display()
            );
            self.fault(value.span(), text);
        }
        Some(ServiceSpec {
            name,
            socket,
            deadline,
            calls,
        })
    }

    fn deadline(&mut self, value: &Value<'a>, place: &str) -> Duration {
        let most = limits::SERVICE_DEADLINE_MAX;
        let Some(text) = self.string(value, place) else {
            return most;
        };
        let wrong = match parse_duration_ms(text) {
            Ok(0) => "0 leaves no time for an answer".to_owned(),
            Ok(ms) if Duration::from_millis(ms) <= most => return Duration::from_millis(ms),
            Ok(_) => format!("at most {} min", most.as_secs() / 60),
            Err(error) => error,
        };
        self.fault(value.span(), format!("{place}: {wrong}"));
        most
    }

    fn agent(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &Value<'a>,
        channels: &BTreeMap<ChannelName, ChannelSpec>,
    ) -> Option<AgentSpec> {
        let place = format!("agent '{name}'");
        let table = self.table(value, &place)?;
        self.keys(
            table,
            &place,
            &["component", "source", "memory", "restart", "grants"],
        );
        let component = match table.get("component") {
            Some(value) => self.string(value, &format!("{place}: component")),
            None => {
                self.fault(
                    span.clone(),
                    format!("{place}: no component (add component = \"{name}.wasm\")"),
                );
                None
            }
        };
        let source = match table.get("source") {
            Some(value) => self.string(value, &format!("{place}: source")),
            None => None,
        };
        let memory = match table.get("memory") {
            Some(value) => self.bytes(value, &format!("{place}: memory"), limits::MEMORY_MAX),
            None => limits::MEMORY_DEFAULT,
        };
        let restart = match table.get("restart") {
            Some(value) => match self.string(value, &format!("{place}: restart")) {
                Some("never") => Restart::Never,
                Some("on-failure") | None => Restart::OnFailure,
                Some(other) => {
                    let text = unknown("restart policy", other, ["never", "on-failure"]);
                    self.fault(value.span(), format!("{place}: {text}"));
                    Restart::Never
                }
            },
            None => Restart::OnFailure,
        };
        let grants = self.grants(Grantee::Agent(name), span, table, channels);
        Some(AgentSpec {
            component: self.folder.join(component?),
            source: source.map(|path| self.folder.join(path)),
            memory,
            restart,
            grants,
        })
    }

    /// All that somebody is granted; each object once, and no two by one name.
    fn grants(
        &mut self,
        whom: Grantee<'_>,
        span: Range<usize>,
        table: &DeTable<'a>,
        channels: &BTreeMap<ChannelName, ChannelSpec>,
    ) -> Vec<GrantSpec> {
        let mut grants = Vec::new();
        if let Some(list) = table.get("grants") {
            match list.get_ref().as_array() {
                Some(items) => {
                    for item in items.iter() {
                        grants.extend(self.grant(whom, item, channels));
                    }
                }
                None => {
                    let example = match whom {
                        Grantee::Agent(name) => format!("[[agents.{name}.grants]]"),
                        Grantee::Peer(name) => format!("[[peers.{name}.grants]]"),
                    };
                    let text = format!("{whom}: grants must be tables ({example})");
                    self.fault(list.span(), text);
                }
            }
        }
        for (i, grant) in grants.iter().enumerate() {
            let twin = |other: &GrantSpec| match (grant, other) {
                (GrantSpec::Channel(a, _), GrantSpec::Channel(b, _)) => a == b,
                (GrantSpec::Timer, GrantSpec::Timer) => true,
                (GrantSpec::Service(a), GrantSpec::Service(b)) => a == b,
                (GrantSpec::Signer(a), GrantSpec::Signer(b)) => a == b,
                _ => false,
            };
            let before = &grants[..i];
            if before
                .iter()
                .any(|other| !twin(other) && other.name() == grant.name())
            {
                let name = grant.name();
                let text = format!("{whom}: two of its grants would be called '{name}'");
                self.fault(span.clone(), text);
            }
            if before.iter().any(twin) {
                let what = match grant {
                    GrantSpec::Channel(channel, _) => format!("channel '{channel}'"),
                    GrantSpec::Timer => "the timer".into(),
                    GrantSpec::Service(service) => format!("service '{service}'"),
                    GrantSpec::Signer(domain) => format!("a signer for '{domain}'"),
                };
                self.fault(span.clone(), format!("{whom}: {what} is granted twice"));
            }
        }
        grants
    }

    fn grant(
        &mut self,
        whom: Grantee<'_>,
        value: &Value<'a>,
        channels: &BTreeMap<ChannelName, ChannelSpec>,
    ) -> Option<GrantSpec> {
        let place = format!("{whom}: grant");
        let table = self.table(value, &place)?;
        let Grantee::Agent(agent) = whom else {
            for (key, what) in [
                ("timer", "the timer"),
                ("service", "services"),
                ("signer", "signers"),
            ] {
                if let Some(value) = table.get(key) {
                    let text = format!(
                        "{place}: {what}: for agents of this host only; a peer is granted channels (channel = \"...\")"
                    );
                    self.fault(value.span(), text);
                    return None;
                }
            }
            return self.channel_grant(whom, value, channels);
        };
        if let Some(timer) = table.get("timer") {
            self.keys(table, &place, &["timer"]);
            return self
                .boolean(timer, &format!("{place}: timer"))
                .then_some(GrantSpec::Timer);
        }
        if let Some(signer) = table.get("signer") {
            self.keys(table, &place, &["signer"]);
            let domain = self.string(signer, &format!("{place}: signer"))?;
            return match DomainName::new(domain) {
                Ok(domain) => Some(GrantSpec::Signer(domain)),
                Err(_) => {
                    let error = NotADomain(domain.to_owned());
                    self.fault(signer.span(), format!("{place}: signer: {error}"));
                    None
                }
            };
        }
        if let Some(service) = table.get("service") {
            self.keys(table, &place, &["service"]);
            let name = self.string(service, &format!("{place}: service"))?;
            self.introduced
                .push((service.span(), agent.to_owned(), name.to_owned()));
            return match ServiceName::new(name) {
                Ok(name) => Some(GrantSpec::Service(name)),
                Err(error) => {
                    self.fault(service.span(), format!("{place}: service: {error}"));
                    None
                }
            };
        }
        self.channel_grant(whom, value, channels)
    }

    fn channel_grant(
        &mut self,
        whom: Grantee<'_>,
        value: &Value<'a>,
        channels: &BTreeMap<ChannelName, ChannelSpec>,
    ) -> Option<GrantSpec> {
        let place = format!("{whom}: grant");
        let table = self.table(value, &place)?;
        let others: &[_] = match whom {
            Grantee::Agent(_) => &["timer", "service", "signer"],
            Grantee::Peer(_) => &[],
        };
        let own = [
            "channel", "rights", "acts", "hops", "bytes", "count", "rate", "until", "history",
        ];
        self.keys(table, &place, &[&own, others].concat());
        let mut terms = Terms {
            history: 0,
            ..Terms::ALL
        };
        if let Some(rights) = table.get("rights") {
            terms.rights = self.rights(rights, &place);
        } else {
            terms.rights = Rights::READ | Rights::WRITE;
        }
        if let Some(acts) = table.get("acts") {
            terms.acts = self.acts(acts, &place);
        }
        if let Some(hops) = table.get("hops") {
            let max = u64::from(limits::HOPS_MAX);
            terms.hops = self.number(hops, &format!("{place}: hops"), max) as u16;
        }
        if let Some(bytes) = table.get("bytes") {
            let max = agora_realm::limits::PAYLOAD_BYTES_MAX;
            terms.bytes_max = self.bytes(bytes, &format!("{place}: bytes"), max) as u32;
        }
        if let Some(count) = table.get("count") {
            terms.count = self.number(count, &format!("{place}: count"), i64::MAX as u64);
        }
        if let Some(history) = table.get("history") {
            terms.history = self.number(history, &format!("{place}: history"), i64::MAX as u64);
        }
        if let Some(rate) = table.get("rate")
            && let Some(text) = self.string(rate, &format!("{place}: rate"))
        {
            match parse_rate(text) {
                Ok(rate) => terms.rate = Some(rate),
                Err(error) => self.fault(rate.span(), format!("{place}: rate: {error}")),
            }
        }
        if let Some(until) = table.get("until") {
            let text = match until.get_ref() {
                DeValue::Datetime(datetime) => Some(datetime.to_string()),
                _ => self
                    .string(until, &format!("{place}: until"))
                    .map(str::to_owned),
            };
            match text.map(|text| parse_until(&text)) {
                Some(Ok(ms)) => terms.until_ms = ms,
                Some(Err(error)) => {
                    self.fault(until.span(), format!("{place}: until: {error}"));
                }
                None => {}
            }
        }
        let Some(channel) = table.get("channel") else {
            let others = match whom {
                Grantee::Agent(_) => ", service = \"...\", signer = \"...\" or timer = true",
                Grantee::Peer(_) => "",
            };
            let text = format!("{place} names nothing (add channel = \"...\"{others})");
            self.fault(value.span(), text);
            return None;
        };
        let name = self.string(channel, &format!("{place}: channel"))?;
        let known = match name.split_once('/') {
            Some((peer, _)) => self.remote(whom, name, peer),
            None => {
                let known = channels.keys().find(|known| known.as_str() == name);
                known.cloned().ok_or_else(|| {
                    let names = channels.keys().map(ChannelName::as_str);
                    let text = unknown("channel", name, names);
                    format!("{text} (channels are declared under [channels.NAME])")
                })
            }
        };
        match known {
            Ok(known) => Some(GrantSpec::Channel(known, Box::new(terms))),
            Err(error) => {
                self.fault(channel.span(), format!("{place}: {error}"));
                None
            }
        }
    }

    /// A channel of a peer's, as `bravo/release`.
    fn remote(&self, whom: Grantee<'_>, name: &str, peer: &str) -> Result<ChannelName, String> {
        if !self.peers.iter().any(|known| known == peer) {
            let text = unknown("peer", peer, self.peers.iter().map(String::as_str));
            return Err(format!(
                "channel '{name}': {text} (peers are declared under [peers.NAME])"
            ));
        }
        match whom {
            Grantee::Peer(whose) if whose == peer => Err(format!(
                "channel '{name}' is that peer's own; it needs no grant of ours"
            )),
            _ => ChannelName::new(name).map_err(|error| error.to_string()),
        }
    }

    fn peering(&mut self, value: &Value<'a>, to: &mut Peering) {
        let Some(table) = self.table(value, "peering") else {
            return;
        };
        self.keys(table, "peering", &["mdns", "kademlia", "relay"]);
        if let Some(value) = table.get("mdns") {
            to.discovery.mdns = self.boolean(value, "peering: mdns");
        }
        if let Some(value) = table.get("kademlia")
            && let Some(table) = self.table(value, "peering: kademlia")
        {
            self.keys(table, "peering: kademlia", &["bootstrap", "serve"]);
            let bootstrap = match table.get("bootstrap") {
                Some(value) => self.hosts(value, "peering: kademlia: bootstrap"),
                None => Vec::new(),
            };
            let mut kademlia = Kademlia::new(bootstrap);
            if let Some(value) = table.get("serve") {
                kademlia.serve = self.boolean(value, "peering: kademlia: serve");
            }
            if kademlia.bootstrap.is_empty() && !kademlia.serve {
                let text = "peering: kademlia: it asks nobody and answers nobody (add bootstrap = [...], or serve = true)";
                self.fault(value.span(), text);
            }
            to.discovery.kademlia = Some(kademlia);
        }
        if let Some(value) = table.get("relay")
            && let Some(table) = self.table(value, "peering: relay")
        {
            self.keys(table, "peering: relay", &["serve", "via", "punch"]);
            if let Some(value) = table.get("serve") {
                let serve = self.boolean(value, "peering: relay: serve");
                to.relay.serve = serve.then(RelayBounds::default);
            }
            if let Some(value) = table.get("via") {
                to.relay.via = self.hosts(value, "peering: relay: via");
            }
            if let Some(value) = table.get("punch") {
                to.relay.punch = self.boolean(value, "peering: relay: punch");
            }
        }
    }

    /// Addresses of hosts that are asked for something, each with who is there.
    fn hosts(&mut self, value: &Value<'a>, place: &str) -> Vec<Multiaddr> {
        let found = self.strings(value, place, "addresses");
        let most = limits::PEER_ADDRESSES_MAX;
        if found.len() > most {
            self.fault(
                value.span(),
                format!("{place}: {}; at most {most}", found.len()),
            );
        }
        let mut hosts = Vec::new();
        for (text, span) in found {
            match parse_host(text) {
                Ok(host) => hosts.push(host),
                Err(error) => self.fault(span, format!("{place}: {error}")),
            }
        }
        hosts
    }

    fn peers_of(&mut self, entries: &DeTable<'a>, manifest: &mut Manifest) {
        let most = limits::PEERS_MAX;
        if let Some((key, _)) = entries.iter().nth(most) {
            let text = format!("{} peers; a host has at most {most}", entries.len());
            self.fault(key.span(), text);
        }
        for (key, value) in entries.iter() {
            let name = key.get_ref().as_ref();
            if let Err(error) = PersonaName::peer(name) {
                self.fault(key.span(), format!("peers: {error}"));
            }
            let Some(spec) = self.peer(name, key.span(), value, &manifest.channels) else {
                continue;
            };
            let twin = |other: &PeerSpec| {
                spec.id.is_some() && other.id == spec.id
                    || spec.key.is_some() && other.key == spec.key
            };
            if let Some((other, _)) = manifest.peering.peers.iter().find(|(_, other)| twin(other)) {
                let text = format!("peer '{name}': it is who '{other}' is; one name each");
                self.fault(key.span(), text);
            }
            manifest.peering.peers.insert(name.to_owned(), spec);
        }
    }

    fn peer(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &Value<'a>,
        channels: &BTreeMap<ChannelName, ChannelSpec>,
    ) -> Option<PeerSpec> {
        let place = format!("peer '{name}'");
        let table = self.table(value, &place)?;
        let keys = [
            "id",
            "key",
            "addresses",
            "grants",
            "mirror",
            "may_mirror",
            "witness",
        ];
        self.keys(table, &place, &keys);
        let mut spec = PeerSpec::default();
        if let Some(value) = table.get("id")
            && let Some(text) = self.string(value, &format!("{place}: id"))
        {
            match parse_peer_id(text) {
                Ok(id) => spec.id = Some(id),
                Err(error) => self.fault(value.span(), format!("{place}: id: {error}")),
            }
        }
        if let Some(value) = table.get("key")
            && let Some(text) = self.string(value, &format!("{place}: key"))
        {
            match text.parse() {
                Ok(key) => spec.key = Some(key),
                Err(_) => {
                    let text = format!(
                        "{place}: key: '{text}' is no host's key (it is the 64 hexadecimal digits that `agora id` prints behind `key`)"
                    );
                    self.fault(value.span(), text);
                }
            }
        }
        if let Some(value) = table.get("addresses") {
            let place = format!("{place}: addresses");
            let found = self.strings(value, &place, "addresses");
            if found.len() > limits::PEER_ADDRESSES_MAX {
                let (count, most) = (found.len(), limits::PEER_ADDRESSES_MAX);
                self.fault(value.span(), format!("{place}: {count}; at most {most}"));
            }
            for (text, span) in found {
                match parse_dial(text) {
                    Ok((_, Some(id))) if spec.id.is_some_and(|own| own != id) => self.fault(
                        span,
                        format!("{place}: '{text}' ends in another id than the peer's"),
                    ),
                    Ok((address, id)) => {
                        spec.id = spec.id.or(id);
                        spec.addresses.push(address);
                    }
                    Err(error) => self.fault(span, format!("{place}: {error}")),
                }
            }
        }
        if let Some(value) = table.get("mirror") {
            let place = format!("{place}: mirror");
            for (text, span) in self.strings(value, &place, "names") {
                match ChannelName::new(text) {
                    Ok(channel) => drop(spec.mirror.insert(channel)),
                    Err(error) => self.fault(span, format!("{place}: {error}")),
                }
            }
        }
        for (key, to) in [
            ("may_mirror", &mut spec.may_mirror),
            ("witness", &mut spec.witness),
        ] {
            if let Some(value) = table.get(key) {
                *to = self.boolean(value, &format!("{place}: {key}"));
            }
        }
        spec.grants = self.grants(Grantee::Peer(name), span, table, channels);
        Some(spec)
    }

    fn strings<'v>(
        &mut self,
        value: &'v Value<'a>,
        place: &str,
        of: &str,
    ) -> Vec<(&'v str, Range<usize>)> {
        match value.get_ref().as_array() {
            Some(items) => items
                .iter()
                .filter_map(|item| Some((self.string(item, place)?, item.span())))
                .collect(),
            None => {
                self.fault(value.span(), format!("{place} must be a list of {of}"));
                Vec::new()
            }
        }
    }

    fn rights(&mut self, value: &Value<'a>, place: &str) -> Rights {
        let mut rights = Rights::NONE;
        for (name, span) in self.strings(value, &format!("{place}: rights"), "names") {
            match crate::cli::right_named(name) {
                Some(right) => rights = rights | right,
                None => {
                    let text = unknown(
                        "right",
                        name,
                        crate::cli::show::RIGHTS.map(|(_, name)| name),
                    );
                    self.fault(span, format!("{place}: {text}"));
                }
            }
        }
        rights
    }

    fn acts(&mut self, value: &Value<'a>, place: &str) -> ActSet {
        let mut acts = Vec::new();
        for (name, span) in self.strings(value, &format!("{place}: acts"), "names") {
            match Act::EVERY.into_iter().find(|act| act.as_str() == name) {
                Some(act) => acts.push(act),
                None => {
                    let text = unknown("act", name, Act::EVERY.map(Act::as_str));
                    self.fault(span, format!("{place}: {text}"));
                }
            }
        }
        acts.into_iter().collect()
    }

    fn string<'v>(&mut self, value: &'v Value<'a>, place: &str) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.fault(value.span(), format!("{place} must be a string"));
        }
        text
    }

    fn boolean(&mut self, value: &Value<'a>, place: &str) -> bool {
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.fault(value.span(), format!("{place} must be true or false"));
            false
        })
    }

    fn number(&mut self, value: &Value<'a>, place: &str, max: u64) -> u64 {
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok())
            .filter(|number| *number <= max);
        number.unwrap_or_else(|| {
            self.fault(
                value.span(),
                format!("{place} must be a whole number from 0 to {max}"),
            );
            0
        })
    }

    fn bytes(&mut self, value: &Value<'a>, place: &str, max: usize) -> usize {
        let parsed = match value.get_ref() {
            DeValue::Integer(_) => return self.number(value, place, max as u64) as usize,
            DeValue::String(text) => parse_bytes(text),
            _ => Err("must be a size like \"64MiB\"".to_owned()),
        };
        match parsed {
            Ok(bytes) if bytes <= max as u64 => bytes as usize,
            Ok(_) => {
                self.fault(
                    value.span(),
                    format!("{place}: at most {}", display_bytes(max as u64)),
                );
                max
            }
            Err(error) => {
                self.fault(value.span(), format!("{place}: {error}"));
                max
            }
        }
    }
}

/// A size with its unit, as in `64MiB`.
///
/// # Errors
/// What is wrong with it, naming the units.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(unknown("unit", other, ["B", "KiB", "MiB", "GiB"])),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .ok_or_else(|| format!("'{text}' is not a size like \"64MiB\""))
}

/// A size for people.
pub fn display_bytes(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

/// A duration with its unit, as in `30s`, in milliseconds.
///
/// # Errors
/// What is wrong with it, naming the units.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let scale: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => return Err(unknown("unit", other, ["ms", "s", "min", "h", "d"])),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .ok_or_else(|| format!("'{text}' is not a duration like \"30s\""))
}

/// A rate, as in `20/s` or `5/min`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("'{text}' is not a rate like \"20/s\" or \"5/min\"");
    let (messages, unit) = text.split_once('/').ok_or_else(wrong)?;
    let messages: u32 = messages.trim().parse().map_err(|_| wrong())?;
    let unit = unit.trim();
    let per_ms = match unit.starts_with(|c: char| c.is_ascii_digit()) {
        true => parse_duration_ms(unit)?,
        false => parse_duration_ms(&format!("1{unit}"))?,
    };
    let per_ms = u32::try_from(per_ms).map_err(|_| wrong())?;
    Rate::new(messages, per_ms).ok_or_else(wrong)
}

/// A moment as RFC 3339 (`2030-01-31T18:00:00Z`) or a date, in milliseconds since 1970-01-01 UTC.
///
/// # Errors
/// What is wrong with it.
pub fn parse_until(text: &str) -> Result<i64, String> {
    let wrong = || format!("'{text}' is not a moment like \"2030-01-31T18:00:00Z\"");
    let datetime: toml::value::Datetime = text.parse().map_err(|_| wrong())?;
    let date = datetime.date.ok_or_else(wrong)?;
    let minutes = match (datetime.time, datetime.offset) {
        (_, Some(toml::value::Offset::Custom { minutes })) => i64::from(minutes),
        (None, None) | (_, Some(toml::value::Offset::Z)) => 0,
        (Some(_), None) => return Err(format!("'{text}' names no zone (add Z for UTC)")),
    };
    let seconds = datetime.time.map_or(0, |time| {
        i64::from(time.hour) * 3600
            + i64::from(time.minute) * 60
            + i64::from(time.second.unwrap_or(0))
    });
    let days = days_from_civil(
        i64::from(date.year),
        i64::from(date.month),
        i64::from(date.day),
    );
    Ok(((days * 86_400) + seconds - minutes * 60) * 1000)
}

/// Days since 1970-01-01 of a Gregorian date (Hinnant, chrono-compatible low-level date algorithms).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<Fault> {
        Manifest::parse(text, Path::new("/image")).expect_err("it must be refused")
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let text = r#"
            [channels.build-coord]
            hops = 3
            [channels.secret-ops]
            [agents.synth]
            component = "synth.wasm"
            source = "../agents/synth"
            memory = "64MiB"
            [[agents.synth.grants]]
            channel = "build-coord"
            rights = ["read", "write", "initiate"]
            acts = ["inform", "propose", "agree"]
            rate = "20/s"
            [[agents.synth.grants]]
            timer = true
        "#;
        let manifest = Manifest::parse(text, Path::new("/image")).expect("it is right");
        let synth = manifest.agents.values().next().expect("one agent");
        assert_eq!(synth.component, Path::new("/image/synth.wasm"));
        assert_eq!(synth.memory, 64 << 20);
        let [GrantSpec::Channel(name, terms), GrantSpec::Timer] = &synth.grants[..] else {
            panic!("{:?}", synth.grants);
        };
        assert_eq!(name.as_str(), "build-coord");
        assert_eq!(terms.rate, Rate::new(20, 1000));
        assert_eq!(
            terms.rights,
            Rights::READ | Rights::WRITE | Rights::INITIATE
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
        let found = faults("[channels.a]\nhopps = 3\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 2);
        assert!(found[0].text.contains("'hopps'") && found[0].text.contains("'hops'"));
    }

    #[test]
    fn no_agent_is_called_like_another_hosts_and_no_channel_of_a_peers_is_declared() {
        for name in ["peer:alpha", "alpha/x", "operator:0"] {
            let found = faults(&format!("[agents.'{name}']\ncomponent = 'a.wasm'\n"));
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert!(found[0].text.contains("choose another"), "{found:?}");
        }
        let found = faults("[channels.'bravo/release']\nhops = 1\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].text.contains("is not a name"), "{found:?}");
    }

    #[test]
    fn an_unknown_channel_or_act_is_named_with_the_nearest() {
        let found = faults(
            "[channels.release]\n[agents.a]\ncomponent = 'a.wasm'\n[[agents.a.grants]]\nchannel = 'relase'\n\
             acts = ['infrom']\n",
        );
        let all: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(
            all[0].contains("line 5") && all[0].contains("'release'"),
            "{all:?}"
        );
        assert!(
            all[1].contains("line 6") && all[1].contains("'inform'"),
            "{all:?}"
        );
    }

    #[test]
    fn a_bad_unit_a_duplicate_and_a_missing_component_are_faults() {
        let found = faults("[agents.a]\ncomponent = 'a.wasm'\nmemory = '64MB'\n");
        assert!(found[0].text.contains("MiB"), "{found:?}");
        let found = faults("[agents.a]\ncomponent = 'a.wasm'\n[agents.a]\ncomponent = 'b.wasm'\n");
        assert_eq!(found[0].line, 3, "{found:?}");
        let found = faults("[agents.a]\nmemory = '64MiB'\n");
        assert!(found[0].text.contains("component"), "{found:?}");
    }

    #[test]
    fn more_agents_than_a_host_runs_are_a_fault() {
        let agents = |n: u32| -> String {
            let one = |i| format!("[agents.a{i}]\ncomponent = 'a.wasm'\n");
            (0..n).map(one).collect()
        };
        let folder = Path::new("/image");
        assert!(Manifest::parse(&agents(limits::AGENTS_MAX), folder).is_ok());
        let found = faults(&agents(limits::AGENTS_MAX + 1));
        assert!(found[0].text.contains("at most"), "{found:?}");
    }

    #[test]
    fn a_service_has_a_socket_beside_the_manifest_a_deadline_and_a_bound() {
        let text = "[services.folder]\nsocket = 'run/folder.sock'\ndeadline = '500ms'\ncalls = 2\n\
                    [services.model]\nsocket = '/run/model'\n";
        let manifest = Manifest::parse(text, Path::new("/image")).expect("it is right");
        let [folder, model] = &manifest.services.values().collect::<Vec<_>>()[..] else {
            panic!("{:?}", manifest.services);
        };
        assert_eq!(folder.socket, Path::new("/image/run/folder.sock"));
        assert_eq!(folder.deadline, Duration::from_millis(500));
        assert_eq!(folder.calls, 2);
        assert_eq!(model.socket, Path::new("/run/model"));
        assert_eq!(model.deadline, limits::SERVICE_DEADLINE_DEFAULT);
        assert_eq!(model.calls, limits::SERVICE_CALLS_DEFAULT);
    }

    #[test]
    fn what_is_wrong_with_a_service_is_told_with_its_line() {
        for (text, line, told) in [
            (
                "[services.a]\nsocket = 's'\ndeadlin = '1s'\n",
                3,
                "'deadline'",
            ),
            ("[services.a]\ncalls = 1\n", 1, "socket"),
            (
                "[services.a]\nsocket = 's'\ndeadline = '0s'\n",
                3,
                "no time",
            ),
            (
                "[services.a]\nsocket = 's'\ndeadline = '2d'\n",
                3,
                "at most",
            ),
            (
                "[services.a]\nsocket = 's'\ndeadline = '3 sec'\n",
                3,
                "unit",
            ),
            ("[services.a]\nsocket = 's'\ncalls = 0\n", 3, "nobody"),
            (
                "[services.a]\nsocket = 's'\ncalls = 100000\n",
                3,
                "whole number",
            ),
            ("[services.'A b']\nsocket = 's'\n", 1, "not a name"),
            ("[services.timer]\nsocket = 's'\n", 1, "the timer's"),
            (
                "[services.a]\nsocket = 's'\n[channels.a]\n",
                1,
                "a channel's",
            ),
            (
                "[services.a]\nsocket = 's'\n[agents.a]\ncomponent = 'a.wasm'\n",
                1,
                "an agent's",
            ),
            ("[service.a]\nsocket = 's'\n", 1, "'services'"),
        ] {
            let found = faults(text);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].line, line, "{found:?}");
            assert!(found[0].text.contains(told), "{found:?}");
        }
        let long = format!("[services.a]\nsocket = '{}'\n", "s".repeat(200));
        assert!(faults(&long)[0].text.contains("at most 107"));
        let many: String = (0..=limits::SERVICES_MAX)
            .map(|i| format!("[services.a{i}]\nsocket = 's{i}'\n"))
            .collect();
        assert!(faults(&many)[0].text.contains("at most"));
    }

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn a_peer_has_an_id_addresses_and_channels_that_it_is_granted() {
        let key = "ab".repeat(32);
        let text = format!(
            "[channels.release]\n\
             [peers.bravo]\nid = '{ID}'\nkey = '{key}'\n\
             addresses = ['/ip4/127.0.0.1/udp/4101/quic-v1', '/ip4/127.0.0.1/tcp/4101/p2p/{ID}']\n\
             mirror = ['release', 'charlie/news']\n\
             may_mirror = true\n\
             witness = true\n\
             [[peers.bravo.grants]]\nchannel = 'release'\nrights = ['read', 'write', 'attenuate']\ncount = 5\n\
             [[peers.bravo.grants]]\nchannel = 'charlie/news'\n\
             [peers.charlie]\n\
             [agents.bravo]\ncomponent = 'a.wasm'\n\
             [[agents.bravo.grants]]\nchannel = 'bravo/release'\n\
             [[agents.bravo.grants]]\nchannel = 'release'\n"
        );
        let manifest = Manifest::parse(&text, Path::new("/image")).expect("it is right");
        let bravo = &manifest.peering.peers["bravo"];
        assert_eq!(bravo.id, ID.parse().ok());
        assert_eq!(bravo.key.map(|key| key.to_string()), Some(key));
        let addresses: Vec<_> = bravo.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses[1], "/ip4/127.0.0.1/tcp/4101", "the id is known");
        assert_eq!(bravo.mirror.len(), 2);
        assert!(bravo.may_mirror && bravo.witness);
        let [
            GrantSpec::Channel(own, terms),
            GrantSpec::Channel(chained, _),
        ] = &bravo.grants[..]
        else {
            panic!("{:?}", bravo.grants);
        };
        assert_eq!((own.as_str(), terms.count), ("release", 5));
        assert_eq!(chained.as_str(), "charlie/news");
        assert!(manifest.peering.peers["charlie"].id.is_none());
        let agent = manifest.agents.values().next().expect("one agent");
        let GrantSpec::Channel(remote, _) = &agent.grants[0] else {
            panic!("{:?}", agent.grants);
        };
        assert_eq!(
            (remote.peer(), remote.as_str()),
            (Some("bravo"), "bravo/release")
        );
    }

    #[test]
    fn an_id_behind_an_address_is_the_peers() {
        let text = format!("[peers.bravo]\naddresses = ['/ip4/127.0.0.1/tcp/4101/p2p/{ID}']\n");
        let manifest = Manifest::parse(&text, Path::new("/image")).expect("it is right");
        assert_eq!(manifest.peering.peers["bravo"].id, ID.parse().ok());
    }

    #[test]
    fn what_is_wrong_with_a_peer_is_told_with_its_line() {
        let other = "12D3KooWSnE1NXNQUVb6cN8Gpoid3mJfRcMK9tWEyvN2CyLZiQiH";
        let clash =
            format!("[peers.a]\nid = '{ID}'\naddresses = ['/ip4/127.0.0.1/tcp/1/p2p/{other}']\n");
        let twins = format!("[peers.a]\nid = '{ID}'\n[peers.b]\nid = '{ID}'\n");
        let agent = "[agents.x]\ncomponent = 'a.wasm'\n[[agents.x.grants]]\n";
        let granted =
            |what: &str| format!("[channels.news]\n[peers.a]\n[[peers.a.grants]]\n{what}\n");
        for (text, line, told) in [
            ("[peers.a]\nidd = 'x'\n".to_owned(), 2, "'id'"),
            ("[peers.a]\nid = 'bravo'\n".to_owned(), 2, "agora id"),
            ("[peers.a]\nkey = 'abcd'\n".to_owned(), 2, "agora id"),
            (
                "[peers.a]\naddresses = ['10.0.0.1:80']\n".to_owned(),
                2,
                "/ip4/10.0.0.1/udp/80/quic-v1",
            ),
            (
                "[peers.a]\naddresses = 'x'\n".to_owned(),
                2,
                "list of addresses",
            ),
            ("[peers.a]\nmirror = ['No']\n".to_owned(), 2, "not a name"),
            ("[peers.'a/b']\n".to_owned(), 1, "not a name"),
            (
                "[peers.a]\ngrants = 1\n".to_owned(),
                2,
                "[[peers.a.grants]]",
            ),
            ("[peer.a]\n".to_owned(), 1, "'peers'"),
            (clash, 3, "another id"),
            (twins, 3, "'a'"),
            (granted("channel = 'new'"), 4, "'news'"),
            (granted("timer = true"), 4, "granted channels"),
            (granted("service = 'x'"), 4, "granted channels"),
            (granted("signer = 'x'"), 4, "granted channels"),
            (
                granted("channel = 'news'\nservices = 'x'"),
                5,
                "valid: channel",
            ),
            (granted("channel = 'a/news'"), 4, "peer's own"),
            (
                format!("[peers.bravo]\n{agent}channel = 'brava/x'\n"),
                5,
                "'bravo'",
            ),
            (
                format!("[peers.bravo]\n{agent}channel = 'bravo/X'\n"),
                5,
                "not a name",
            ),
            (format!("{agent}channel = 'bravo/x'\n"), 4, "[peers.NAME]"),
        ] {
            let found = faults(&text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!(found[0].line, line, "{text}: {found:?}");
            assert!(found[0].text.contains(told), "{text}: {found:?}");
        }
        let many: String = (0..=limits::PEERS_MAX)
            .map(|i| format!("[peers.p{i}]\n"))
            .collect();
        assert!(faults(&many)[0].text.contains("at most"));
    }

    #[test]
    fn how_peers_are_found_and_relayed_is_off_unless_asked_for() {
        let read = |text: &str| {
            let manifest = Manifest::parse(text, Path::new("/image")).expect("it is right");
            manifest.peering
        };
        let none = read("");
        assert!(!none.discovery.mdns && none.discovery.kademlia.is_none());
        assert!(none.relay.serve.is_none() && none.relay.via.is_empty() && !none.is_on());
        let at = format!("/ip4/127.0.0.1/udp/4101/quic-v1/p2p/{ID}");
        let all = read(&format!(
            "[peering]\nmdns = true\n[peering.kademlia]\nbootstrap = ['{at}']\nserve = true\n\
             [peering.relay]\nserve = true\nvia = ['{at}']\npunch = false\n"
        ));
        let kademlia = all.discovery.kademlia.as_ref().expect("it was asked for");
        assert!(all.discovery.mdns && kademlia.serve && all.is_on());
        assert_eq!(kademlia.bootstrap[0].to_string(), at);
        assert!(all.relay.serve.is_some() && !all.relay.punch);
        assert_eq!(all.relay.via[0].to_string(), at);

        for (text, line, told) in [
            ("[peering]\nmdsn = true\n", 2, "'mdns'"),
            ("[peering.kademlia]\nserve = false\n", 1, "bootstrap"),
            (
                "[peering.relay]\nvia = ['/ip4/127.0.0.1/tcp/4101']\n",
                2,
                "/p2p/",
            ),
            ("[peering.relay]\nserve = 1\n", 2, "true or false"),
        ] {
            let found = faults(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!(found[0].line, line, "{text}: {found:?}");
            assert!(found[0].text.contains(told), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_moment_is_counted_from_1970() {
        assert_eq!(parse_until("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(parse_until("2000-03-01"), Ok(951_868_800_000));
        assert_eq!(
            parse_until("2000-03-01T01:00:00+01:00"),
            Ok(951_868_800_000)
        );
        assert!(parse_until("2000-03-01T01:00:00").is_err());
    }
}
