//! How a JetStream log is reached and what its stream must be.

use std::{path::PathBuf, time::Duration};

use crate::{Durability, Lane, LogError, limits};

/// The JetStream log's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JetStreamOptions {
    /// `nats://` or `tls://` URLs of servers of one cluster, tried in any order. The first that names a user and a password, as in
    /// `nats://user:password@host`, says so for all.
    pub servers: Vec<String>,
    /// A file with a JWT and its seed, as `nsc` writes it.
    pub credentials: Option<PathBuf>,
    /// PEM certificates to trust besides the system's.
    pub tls_roots: Option<PathBuf>,
    /// This host's TLS certificate and key, as PEM files.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// What the server shows of this connection.
    pub name: String,
    /// Where answers are sent, for an account that may subscribe to nothing else.
    pub inbox_prefix: String,
    /// The stream, one per realm.
    pub stream: String,
    /// The stream holds `PREFIX.>`.
    pub subject_prefix: String,
    /// What stands behind the prefix in the subject of this host's entries.
    pub subject: String,
    /// Whether a missing stream is created.
    pub create: bool,
    /// The servers that keep a copy: as many when the stream is created, at least as many when it exists.
    pub replicas: usize,
    /// The size that a new stream is limited to.
    pub stream_bytes_max: u64,
    /// Room below the stream's limit that only control entries may use; at most half of the limit.
    pub reserve_bytes: u64,
    /// Largest entry; a server that takes less bounds it further.
    pub entry_bytes_max: usize,
    /// What receipts claim. Say `Asserted` only of servers that sync before they acknowledge (`sync_interval: always`).
    pub durability: Durability,
    /// How long an entry waits to be sent while the log makes no headway; then it is refused.
    pub waiting_patience: Duration,
    /// How long a sent entry's acknowledgement is sought; then its outcome is unknown. Less than the stream's duplicate
    /// window.
    pub sent_patience: Duration,
}

impl Default for JetStreamOptions {
    fn default() -> Self {
        JetStreamOptions {
            servers: vec!["nats://127.0.0.1:4222".into()],
            credentials: None,
            tls_roots: None,
            tls_identity: None,
            name: "agora".into(),
            inbox_prefix: "_INBOX".into(),
            stream: "agora".into(),
            subject_prefix: "agora".into(),
            subject: "host".into(),
            create: true,
            replicas: 1,
            stream_bytes_max: limits::STREAM_BYTES_MAX,
            reserve_bytes: limits::STREAM_RESERVE_BYTES,
            entry_bytes_max: limits::ENTRY_BYTES_MAX,
            durability: Durability::Acknowledged,
            waiting_patience: Duration::from_millis(limits::WAITING_PATIENCE_MS),
            sent_patience: Duration::from_millis(limits::SENT_PATIENCE_MS),
        }
    }
}

impl JetStreamOptions {
    pub(super) fn check(&self) -> Result<(), LogError> {
        let name = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // A lane's name stands behind it.
        let single = name;
        let dotted = |subject: &str| subject.split('.').all(name);
        let relations = [
            (!self.servers.is_empty(), "servers must name at least one"),
            (
                name(&self.stream),
                "stream must be of letters, digits, - and _",
            ),
            (
                dotted(&self.subject_prefix) && single(&self.subject) && dotted(&self.inbox_prefix),
                "subject_prefix and inbox_prefix must be of letters, digits, -, _ and single dots, subject the same without dots",
            ),
            (
                (1..=5).contains(&self.replicas),
                "replicas must be from 1 to 5",
            ),
            (
                (1..=limits::STREAM_ENTRY_BYTES_LIMIT).contains(&self.entry_bytes_max),
                "entry_bytes_max must be from 1 byte to 8 MiB",
            ),
            (
                self.reserve_bytes >= self.entry_bytes_max as u64 + 4096,
                "reserve_bytes must hold one entry and 4 KiB",
            ),
            (
                self.stream_bytes_max / 2 >= self.reserve_bytes
                    && i64::try_from(self.stream_bytes_max).is_ok(),
                "stream_bytes_max must be at least twice reserve_bytes",
            ),
            (
                self.sent_patience <= Duration::from_millis(limits::DUPLICATE_WINDOW_MS) / 2,
                "sent_patience must be at most half of the duplicate window (1 min)",
            ),
        ];
        match relations.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, why)) => Err(LogError::Options { why: why.into() }),
        }
    }

    /// The subject of this host's entries.
    pub(super) fn full_subject(&self) -> String {
        format!("{}.{}", self.subject_prefix, self.subject)
    }

    /// The subject of this host's entries in a lane. Where its login may not publish there, all go under the one subject.
    pub(super) fn subject_in(&self, lane: Lane) -> String {
        match lane {
            Lane::Main => self.full_subject(),
            Lane::Of(name) => format!("{}.{}", self.full_subject(), token(name)),
        }
    }

    /// The subjects of all hosts' entries in a lane.
    pub(super) fn filter(&self, lane: Lane) -> String {
        match lane {
            Lane::Main => format!("{}.*", self.subject_prefix),
            Lane::Of(name) => format!("{}.*.{}", self.subject_prefix, token(name)),
        }
    }

    /// What the stream holds.
    pub(super) fn subjects(&self) -> String {
        format!("{}.>", self.subject_prefix)
    }

    /// The servers and the stream, for people, with what a URL may carry of passwords left out.
    pub fn place(&self) -> String {
        let bare = |url: &String| match url.split_once("://") {
            Some((scheme, rest)) => {
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                format!("{scheme}://{host}")
            }
            None => url
                .rsplit_once('@')
                .map_or(url.as_str(), |(_, host)| host)
                .to_owned(),
        };
        let servers: Vec<_> = self.servers.iter().map(bare).collect();
        format!("{} (stream {})", servers.join(","), self.stream)
    }

    /// Whom the URLs name: the first that names anybody. (The library leaves that out.)
    fn user_and_password(&self) -> Option<(String, String)> {
        self.servers.iter().find_map(|url| {
            let (_, rest) = url.split_once("://")?;
            let (who, _) = rest
                .split_once('/')
                .unwrap_or((rest, ""))
                .0
                .rsplit_once('@')?;
            let (user, password) = who.split_once(':').unwrap_or((who, ""));
            Some((unescape(user), unescape(password)))
        })
    }

    /// How each connection is made; what becomes of a lost one is its user's business.
    pub(super) async fn connect_options(
        &self,
        part: &str,
    ) -> Result<async_nats::ConnectOptions, LogError> {
        super::tls::settle();
        let mut options = async_nats::ConnectOptions::new()
            .name(format!("{} {part}", self.name))
            .custom_inbox_prefix(&self.inbox_prefix)
            .connection_timeout(Duration::from_millis(limits::CONNECT_PATIENCE_MS))
            .request_timeout(Some(Duration::from_millis(limits::REQUEST_PATIENCE_MS)))
            .ping_interval(Duration::from_millis(limits::PING_EVERY_MS));
        if let Some((user, password)) = self.user_and_password() {
            options = options.user_and_password(user, password);
        }
        if let Some(path) = &self.credentials {
            options = options
                .credentials_file(path)
                .await
                .map_err(LogError::io("read the credentials in", path))?;
        }
        if let Some(path) = &self.tls_roots {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.tls_identity {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

/// A lane's name as one token of a subject.
fn token(name: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(name))
}

/// Of a part of a URL: `%40` is `@`, and so on.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, left)) = rest.split_first() {
        let hex = left.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &left[2..];
            }
            _ => {
                bytes.push(*first);
                rest = left;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_passwords_in_urls_are_taken_and_not_shown() {
        let options = |servers: &[&str]| JetStreamOptions {
            servers: servers.iter().map(|url| (*url).to_owned()).collect(),
            ..JetStreamOptions::default()
        };
        let named = options(&["nats://a:4222", "nats://us%40er:p%3Ass@b:4222/"]);
        let found = named.user_and_password();
        assert_eq!(found, Some(("us@er".into(), "p:ss".into())));
        assert!(!named.place().contains("p%3Ass") && !named.place().contains("er:"));
        let none = options(&["nats://a:4222", "b:4222"]).user_and_password();
        assert_eq!(none, None);
    }
}
