//! Checkpoints: a host's signed word of what the log was up to a place, in the form of C2SP's tlog-checkpoint.
//!
//! In: the size and root of the tree, and a key; or text. Out: text that is also a signed note, to be kept elsewhere; whose signatures
//! are good; whether a witness may sign it too.
//! Promise: reading is strict, bounded and total, and what was read is written again to the byte. Who signed is a question of keys
//! here; whether that key is of a host of the realm is the record's to say.
//! Failure: [`NotACheckpoint`], [`Unwitnessed`].
//!
//! ```text
//! agora/<realm, 64 hexadecimal digits>
//! <leaves, decimal>
//! <root, base64>
//!
//! — agora-host/<key, 64 hexadecimal digits> <base64: key id, signature>
//! — agora-witness/<key, 64 hexadecimal digits> <base64: key id, time, signature>
//! ```
//!
//! A host signs the tagged hash ("agora/checkpoint") of the first three lines, newlines included, with BIP-340. A witness signs the
//! tagged hash ("agora/cosignature") of the time, as 8 bytes big-endian of seconds since 1970-01-01 UTC, the key of the host whose
//! checkpoint it signs, 32 bytes, and these lines. A key id is the first four bytes of SHA-256 over the name, a newline, the byte 0xff, the
//! tag, and the key. Signatures of other forms are kept and not looked at.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::base64;
use crate::ids::{PublicKey, RealmId};
use crate::key::{SigningKey, tagged_hash};
use crate::merkle::{self, BadProof, Hash, PROOF_HASHES_MAX};

/// Bytes of a checkpoint's text, all signatures included.
pub const CHECKPOINT_BYTES_MAX: usize = 64 * 1024;
/// Signatures on one checkpoint.
pub const SIGNATURES_MAX: usize = 64;
/// Bytes of one signature's line.
const LINE_BYTES_MAX: usize = 8192;

const ORIGIN: &str = "agora/";
const HOST: &str = "agora-host/";
const WITNESS: &str = "agora-witness/";
const HOST_TAG: &str = "agora/checkpoint";
const WITNESS_TAG: &str = "agora/cosignature";

/// Text that is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotACheckpoint {
    /// Larger than any that is written here.
    #[error("{0} bytes; a checkpoint takes at most {CHECKPOINT_BYTES_MAX}")]
    TooLarge(usize),
    /// A line is not what should stand there.
    #[error("line {line} of the checkpoint is not {expected}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What belongs there.
        expected: &'static str,
    },
    /// Another one's signatures.
    #[error("it is a checkpoint of something else")]
    Other,
    /// It isn't a checkpoint of the host that a witness would name.
    #[error("the host that a witness would name did not sign the checkpoint")]
    Unsigned,
}

/// What the log was: the root over its first `size` places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of which realm.
    pub realm: RealmId,
    /// How many places it covers; the last one's seq.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

impl Checkpoint {
    /// What is signed: the first three lines.
    pub fn body(&self) -> String {
        let root = base64::encode(&self.root);
        format!("{ORIGIN}{}\n{}\n{root}\n", self.realm, self.size)
    }

    /// Signs it as a host. `aux` should be fresh randomness.
    pub fn sign(self, host: &SigningKey, aux: &[u8; 32]) -> Signed {
        let digest = tagged_hash(HOST_TAG, &[self.body().as_bytes()]);
        let name = format!("{HOST}{}", host.public());
        let bytes = [
            &key_id(&name, HOST_TAG, &host.public())[..],
            &host.sign(&digest, aux),
        ]
        .concat();
        Signed {
            checkpoint: self,
            lines: vec![Line { name, bytes }],
        }
    }
}

fn key_id(name: &str, tag: &str, key: &PublicKey) -> [u8; 4] {
    let hash: [u8; 32] = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', 0xff])
        .chain_update(tag)
        .chain_update(key.0)
        .finalize()
        .into();
    *hash.first_chunk().expect("4 of 32 bytes")
}

/// What a witness signs.
fn witnessed(time: &[u8; 8], host: &PublicKey, body: &str) -> [u8; 32] {
    tagged_hash(WITNESS_TAG, &[time, &host.0, body.as_bytes()])
}

/// One signature's line: a name, and bytes of which the first four are the key's id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    bytes: Vec<u8>,
}

impl Line {
    /// The key of a line of ours, and what follows the key's id.
    fn ours(&self, prefix: &str, tag: &str) -> Option<(PublicKey, &[u8])> {
        let hex = self.name.strip_prefix(prefix)?;
        let key: PublicKey = hex.parse().ok()?;
        let (id, rest) = self.bytes.split_first_chunk()?;
        (key.to_string() == hex && *id == key_id(&self.name, tag, &key)).then_some((key, rest))
    }
}

/// A checkpoint with signatures; nothing is said of whether they are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    checkpoint: Checkpoint,
    lines: Vec<Line>,
}

/// A witness's signature that is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cosignature {
    /// Whose.
    pub witness: PublicKey,
    /// Whose checkpoint it saw: the key that signed it as a host.
    pub host: PublicKey,
    /// When, by the witness's clock: seconds since 1970-01-01 UTC.
    pub time_s: u64,
}

impl Signed {
    /// What is signed.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The keys that signed it as hosts: those whose signature is good.
    pub fn hosts(&self) -> Vec<PublicKey> {
        let digest = tagged_hash(HOST_TAG, &[self.checkpoint.body().as_bytes()]);
        let ours = self.lines.iter().filter_map(|l| l.ours(HOST, HOST_TAG));
        ours.filter(|(key, signature)| {
            <&[u8; 64]>::try_from(*signature).is_ok_and(|s| key.verifies(&digest, s))
        })
        .map(|(key, _)| key)
        .collect()
    }

    /// Whether this key signed it as a host.
    pub fn is_signed_by(&self, host: &PublicKey) -> bool {
        self.hosts().contains(host)
    }

    /// The good signatures of witnesses, one of each.
    pub fn witnesses(&self) -> Vec<Cosignature> {
        let mut each = Vec::<Cosignature>::new();
        for good in self.cosignatures() {
            if !each.iter().any(|known| known.witness == good.witness) {
                each.push(good);
            }
        }
        each
    }

    /// The witnesses whose signature is of the form that was before, which names no host and counts for none; for what is told of them.
    pub fn outdated(&self) -> Vec<PublicKey> {
        let body = self.checkpoint.body();
        let ours = self.lines.iter().filter_map(|line| {
            let (witness, rest) = line.ours(WITNESS, WITNESS_TAG)?;
            let (time, signature) = rest.split_first_chunk::<8>()?;
            let digest = tagged_hash(WITNESS_TAG, &[time, body.as_bytes()]);
            let good = witness.verifies(&digest, signature.try_into().ok()?);
            good.then_some(witness)
        });
        ours.collect()
    }

    fn cosignatures(&self) -> Vec<Cosignature> {
        let (body, hosts) = (self.checkpoint.body(), self.hosts());
        let ours = self.lines.iter();
        ours.filter_map(|line| {
            let (witness, rest) = line.ours(WITNESS, WITNESS_TAG)?;
            let (time, signature) = rest.split_first_chunk::<8>()?;
            let signature = signature.try_into().ok()?;
            let host = hosts
                .iter()
                .find(|host| witness.verifies(&witnessed(time, host, &body), signature))?;
            Some(Cosignature {
                witness,
                host: *host,
                time_s: u64::from_be_bytes(*time),
            })
        })
        .collect()
    }

    /// Adds a witness's signature, in place of one that this witness gave before; it names this host, whose checkpoint the witness takes it
    /// for ([`Extension::witnessable`] says which). `aux` should be fresh randomness.
    ///
    /// # Errors
    /// That host did not sign it, or there are [`SIGNATURES_MAX`] signatures already.
    pub fn cosign(
        &mut self,
        host: &PublicKey,
        witness: &SigningKey,
        time_s: u64,
        aux: &[u8; 32],
    ) -> Result<(), NotACheckpoint> {
        let name = format!("{WITNESS}{}", witness.public());
        if !self.is_signed_by(host) {
            return Err(NotACheckpoint::Unsigned);
        }
        let time = time_s.to_be_bytes();
        let digest = witnessed(&time, host, &self.checkpoint.body());
        let bytes = [
            &key_id(&name, WITNESS_TAG, &witness.public())[..],
            &time,
            &witness.sign(&digest, aux),
        ]
        .concat();
        self.put(Line { name, bytes })
    }

    /// Takes over the good signatures of witnesses from another copy of the same checkpoint, as far as they are of a host that signed this
    /// copy. Answers how many are new.
    ///
    /// # Errors
    /// It is a checkpoint of something else, or there would be too many signatures.
    pub fn adopt(&mut self, other: &Self) -> Result<usize, NotACheckpoint> {
        if other.checkpoint != self.checkpoint {
            return Err(NotACheckpoint::Other);
        }
        let (known, hosts) = (self.witnesses(), self.hosts());
        let mut new = 0;
        let theirs = other.witnesses();
        for good in theirs
            .iter()
            .filter(|w| hosts.contains(&w.host) && !known.contains(w))
        {
            let line = other.lines.iter().find(|line| {
                line.ours(WITNESS, WITNESS_TAG).is_some_and(|(key, rest)| {
                    key == good.witness && rest.starts_with(&good.time_s.to_be_bytes())
                })
            });
            self.put(line.ok_or(NotACheckpoint::Other)?.clone())?;
            new += 1;
        }
        Ok(new)
    }

    fn put(&mut self, line: Line) -> Result<(), NotACheckpoint> {
        let prior = self.lines.iter().position(|l| {
            l.name == line.name && l.bytes.first_chunk::<4>() == line.bytes.first_chunk()
        });
        match prior {
            Some(at) => self.lines[at] = line,
            None if self.lines.len() >= SIGNATURES_MAX => {
                return Err(NotACheckpoint::TooLarge(self.to_string().len()));
            }
            None => self.lines.push(line),
        }
        Ok(())
    }
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.checkpoint.body())?;
        f.write_str("\n")?;
        self.lines
            .iter()
            .try_for_each(|line| writeln!(f, "— {} {}", line.name, base64::encode(&line.bytes)))
    }
}

impl FromStr for Signed {
    type Err = NotACheckpoint;

    fn from_str(text: &str) -> Result<Self, NotACheckpoint> {
        if text.len() > CHECKPOINT_BYTES_MAX {
            return Err(NotACheckpoint::TooLarge(text.len()));
        }
        let (lines, read) = lines(text, 0)?;
        let mut lines = lines.into_iter().enumerate();
        let mut next = |expected| {
            let missing = NotACheckpoint::Line {
                line: read + 1,
                expected,
            };
            lines.next().ok_or(missing)
        };
        let wrong = |at: usize, expected| NotACheckpoint::Line {
            line: at + 1,
            expected,
        };
        let expected = "'agora/' and a realm";
        let (at, line) = next(expected)?;
        let realm = line
            .strip_prefix(ORIGIN)
            .and_then(|hex| hex.parse::<RealmId>().ok().filter(|r| r.to_string() == hex))
            .ok_or(wrong(at, expected))?;
        let expected = "a number of places";
        let (at, line) = next(expected)?;
        let size = decimal(line).ok_or(wrong(at, expected))?;
        let expected = "a root: 32 bytes in base64";
        let (at, line) = next(expected)?;
        let root = hash(line).ok_or(wrong(at, expected))?;
        let expected = "empty, with signatures below it";
        let (at, line) = next(expected)?;
        if !line.is_empty() {
            return Err(wrong(at, expected));
        }
        let expected = "a signature";
        let mut signatures = Vec::new();
        for (at, line) in lines {
            let read = read_signature(line).ok_or(wrong(at, expected))?;
            signatures.push(read);
            if signatures.len() > SIGNATURES_MAX {
                return Err(wrong(at, "there: too many signatures"));
            }
        }
        if signatures.is_empty() {
            return Err(wrong(read, expected));
        }
        Ok(Self {
            checkpoint: Checkpoint { realm, size, root },
            lines: signatures,
        })
    }
}

/// The lines of a text that ends with a newline, and how many there are.
fn lines(text: &str, before: usize) -> Result<(Vec<&str>, usize), NotACheckpoint> {
    let lines: Vec<_> = text.split('\n').collect();
    let count = lines.len() - 1;
    match lines.split_last() {
        Some((&"", whole)) => Ok((whole.to_vec(), count)),
        _ => Err(NotACheckpoint::Line {
            line: before + count + 1,
            expected: "ended with a newline",
        }),
    }
}

fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn hash(text: &str) -> Option<Hash> {
    base64::decode(text)?.try_into().ok()
}

fn read_signature(line: &str) -> Option<Line> {
    if line.len() > LINE_BYTES_MAX {
        return None;
    }
    let (name, bytes) = line.strip_prefix("— ")?.split_once(' ')?;
    let named = !name.is_empty()
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '+');
    let bytes = base64::decode(bytes)?;
    (named && bytes.len() > 4).then(|| Line {
        name: name.to_owned(),
        bytes,
    })
}

/// A checkpoint with the proof that it extends an older one, in the form that C2SP's tlog-witness takes:
///
/// ```text
/// old <leaves, decimal>
/// <base64>, a line for each hash of the proof
///
/// <the checkpoint>
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The size of the older one; 0 for none.
    pub old: u64,
    /// The proof between the two; without hashes where `old` is 0 or there is nothing new.
    pub proof: Vec<Hash>,
    /// The newer one.
    pub signed: Signed,
}

impl fmt::Display for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        for hash in &self.proof {
            writeln!(f, "{}", base64::encode(hash))?;
        }
        write!(f, "\n{}", self.signed)
    }
}

impl FromStr for Extension {
    type Err = NotACheckpoint;

    fn from_str(text: &str) -> Result<Self, NotACheckpoint> {
        let wrong = |line, expected| NotACheckpoint::Line { line, expected };
        let (head, signed) = text.split_once("\n\n").ok_or(wrong(
            1,
            "followed by a proof, an empty line and a checkpoint",
        ))?;
        let mut lines = head.split('\n').enumerate();
        let old = lines
            .next()
            .and_then(|(_, line)| decimal(line.strip_prefix("old ")?))
            .ok_or(wrong(1, "'old' and a number of places"))?;
        let mut proof = Vec::new();
        for (at, line) in lines {
            if at > PROOF_HASHES_MAX {
                return Err(wrong(at + 1, "empty: no proof is longer"));
            }
            proof.push(hash(line).ok_or(wrong(at + 1, "a hash in base64"))?);
        }
        Ok(Self {
            old,
            proof,
            signed: signed.parse()?,
        })
    }
}

/// Why a witness does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwitnessed {
    /// It is of another realm than the witness follows.
    #[error("the checkpoint is of realm {found}, and this witness follows realm {held}")]
    OtherRealm {
        /// What it is of.
        found: RealmId,
        /// What was followed so far.
        held: RealmId,
    },
    /// No host that the witness knows signed it.
    #[error("no host that this witness knows signed the checkpoint")]
    UnknownHost,
    /// It covers less than what was signed already.
    #[error(
        "the checkpoint covers {size} places, and {held} are witnessed already: the log went back, or this is an old one"
    )]
    Older {
        /// What it covers.
        size: u64,
        /// What is witnessed.
        held: u64,
    },
    /// The proof is from another size.
    #[error(
        "the proof begins at {old}, and {held} places are witnessed: ask for one from there (--for-witness {held})"
    )]
    OtherStart {
        /// Where it begins.
        old: u64,
        /// What is witnessed.
        held: u64,
    },
    /// Two histories of the same length, both signed by hosts.
    #[error(
        "TWO HISTORIES: hosts of realm {realm} signed two different logs of {size} places; keep both checkpoints"
    )]
    Forked {
        /// Of which realm.
        realm: RealmId,
        /// How long both are.
        size: u64,
    },
    /// It doesn't follow that the new history begins with the old one.
    #[error(
        "NOT AN EXTENSION: it isn't shown that the log of {size} places begins with the {held} that are witnessed, so these are \
         two histories or the proof is wrong: {why}"
    )]
    NotAnExtension {
        /// What is witnessed.
        held: u64,
        /// What the checkpoint covers.
        size: u64,
        /// What is wrong with the proof.
        why: BadProof,
    },
    /// It can't take one more signature.
    #[error(transparent)]
    Full(#[from] NotACheckpoint),
}

impl Extension {
    /// What a witness does before it signs: that one of the hosts it knows signed the checkpoint, and that its history begins with
    /// the one that was witnessed before. Answers the key of that host, which its signature is to name.
    ///
    /// # Errors
    /// [`Unwitnessed`].
    pub fn witnessable(
        &self,
        hosts: &[PublicKey],
        held: Option<&Checkpoint>,
    ) -> Result<PublicKey, Unwitnessed> {
        let new = self.signed.checkpoint();
        if let Some(held) = held
            && held.realm != new.realm
        {
            return Err(Unwitnessed::OtherRealm {
                found: new.realm,
                held: held.realm,
            });
        }
        let mut signed = self.signed.hosts().into_iter();
        let known = signed
            .find(|key| hosts.contains(key))
            .ok_or(Unwitnessed::UnknownHost)?;
        let size = new.size;
        let Some(held) = held.filter(|held| held.size > 0) else {
            return match self.old {
                0 => Ok(known),
                old => Err(Unwitnessed::OtherStart { old, held: 0 }),
            };
        };
        if size < held.size {
            return Err(Unwitnessed::Older {
                size,
                held: held.size,
            });
        }
        if size == held.size && new.root != held.root {
            return Err(Unwitnessed::Forked {
                realm: new.realm,
                size,
            });
        }
        if self.old != held.size {
            return Err(Unwitnessed::OtherStart {
                old: self.old,
                held: held.size,
            });
        }
        merkle::check_consistency(held.size, &held.root, size, &new.root, &self.proof)
            .map(|()| known)
            .map_err(|why| Unwitnessed::NotAnExtension {
                held: held.size,
                size,
                why,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{Tree, leaf};
    use proptest::prelude::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes([n; 32]).unwrap()
    }

    fn tree(count: u64, salt: &str) -> Tree {
        let mut tree = Tree::new();
        (0..count).for_each(|n| tree.push(leaf(format!("{n}{salt}").as_bytes())));
        tree
    }

    fn checkpoint(tree: &Tree, size: u64) -> Checkpoint {
        Checkpoint {
            realm: RealmId([0xab; 32]),
            size,
            root: tree.root(size).unwrap(),
        }
    }

    fn extension(tree: &Tree, old: u64, size: u64, host: &SigningKey) -> Extension {
        Extension {
            old,
            proof: tree.consistency(old, size).unwrap(),
            signed: checkpoint(tree, size).sign(host, &[0; 32]),
        }
    }

    #[test]
    fn a_checkpoint_reads_as_it_is_written() {
        let mut signed = checkpoint(&tree(9, ""), 9).sign(&key(1), &[0; 32]);
        let host = key(1).public();
        signed
            .cosign(&host, &key(2), 1_800_000_000, &[0; 32])
            .unwrap();
        let text = signed.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("agora/{}", "ab".repeat(32)));
        assert_eq!((lines[1], lines[3], lines.len()), ("9", "", 6));
        assert!(lines[4].starts_with(&format!("— agora-host/{} ", key(1).public())));
        let read: Signed = text.parse().unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.to_string(), text);
        assert_eq!(read.hosts(), [key(1).public()]);
        assert!(read.is_signed_by(&key(1).public()) && !read.is_signed_by(&key(2).public()));
        let witnessed = Cosignature {
            witness: key(2).public(),
            host: key(1).public(),
            time_s: 1_800_000_000,
        };
        assert_eq!(read.witnesses(), [witnessed]);
    }

    #[test]
    fn a_witness_that_signed_twice_is_one_witness() {
        let signed = checkpoint(&tree(9, ""), 9).sign(&key(1), &[0; 32]);
        let [once, again] = [1, 2].map(|time_s| {
            let mut signed = signed.clone();
            signed
                .cosign(&key(1).public(), &key(2), time_s, &[0; 32])
                .unwrap();
            signed.to_string()
        });
        let more = again.lines().last().unwrap();
        let read: Signed = format!("{once}{more}\n").parse().unwrap();
        assert_eq!((read.cosignatures().len(), read.witnesses().len()), (2, 1));
    }

    #[test]
    fn signatures_of_other_forms_are_kept_and_prove_nothing() {
        let mut text = checkpoint(&tree(3, ""), 3)
            .sign(&key(1), &[0; 32])
            .to_string();
        text.push_str("— witness.example.org/w1 ");
        text.push_str(&base64::encode(&[9; 76]));
        text.push('\n');
        let read: Signed = text.parse().unwrap();
        assert_eq!(read.to_string(), text);
        assert_eq!((read.hosts().len(), read.witnesses().len()), (1, 0));
    }

    #[test]
    fn a_host_does_not_sign_as_a_witness_nor_the_other_way_round() {
        let checkpoint = checkpoint(&tree(3, ""), 3);
        let mut signed = checkpoint.sign(&key(1), &[0; 32]);
        signed
            .cosign(&key(1).public(), &key(2), 5, &[0; 32])
            .unwrap();
        let swapped = signed
            .to_string()
            .replace("agora-host/", "agora-x/")
            .replace("agora-witness/", "agora-host/")
            .replace("agora-x/", "agora-witness/");
        let swapped: Signed = swapped.parse().unwrap();
        assert!(swapped.hosts().is_empty() && swapped.witnesses().is_empty());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused_with_its_line() {
        let good = checkpoint(&tree(3, ""), 3)
            .sign(&key(1), &[0; 32])
            .to_string();
        let line = |text: &str| match text.parse::<Signed>() {
            Err(NotACheckpoint::Line { line, .. }) => line,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(line(""), 1);
        assert_eq!(line("\n"), 1);
        assert_eq!(line(&good.replace("agora/ab", "agora/AB")), 1);
        assert_eq!(line(&good.replace("agora/ab", "other/ab")), 1);
        assert_eq!(line(&good.replace("\n3\n", "\n03\n")), 2);
        assert_eq!(line(&good.replace("\n3\n", "\n+3\n")), 2);
        assert_eq!(line(&good.replace("\n3\n", "\n18446744073709551616\n")), 2);
        assert_eq!(line(&good.replace("\n3\n", "\n3\nAAAA\n")), 3);
        assert_eq!(line(&good.replace("\n\n", "\nmore\n\n")), 4);
        assert_eq!(line(&good.replace("— ", "- ")), 5);
        assert_eq!(line(&format!("{good}— a b\n")), 6);
        assert_eq!(line(&format!("{good}\n")), 6);
        assert_eq!(line(good.trim_end()), 5);
        let unsigned = good.split_inclusive('\n').take(4).collect::<String>();
        assert_eq!(line(&unsigned), 5);
        let many = (0..SIGNATURES_MAX).map(|n| format!("— w{n} AAAAAAA=\n"));
        assert!(
            format!("{good}{}", many.collect::<String>())
                .parse::<Signed>()
                .is_err()
        );
        assert!(matches!(
            "x".repeat(CHECKPOINT_BYTES_MAX + 1).parse::<Signed>(),
            Err(NotACheckpoint::TooLarge(_))
        ));
    }

    #[test]
    fn a_witnesss_signature_is_adopted_once_and_only_for_the_same_checkpoint() {
        let tree = tree(9, "");
        let mut kept = checkpoint(&tree, 9).sign(&key(1), &[0; 32]);
        let mut theirs = kept.clone();
        let host = key(1).public();
        theirs.cosign(&host, &key(2), 5, &[0; 32]).unwrap();
        assert_eq!(kept.adopt(&theirs), Ok(1));
        assert_eq!(kept.adopt(&theirs), Ok(0));
        assert_eq!(kept, theirs);
        let mut later = kept.clone();
        later.cosign(&host, &key(2), 6, &[0; 32]).unwrap();
        assert_eq!(kept.adopt(&later), Ok(1));
        assert_eq!(kept.witnesses().len(), 1);
        let mut other = checkpoint(&tree, 8).sign(&key(1), &[0; 32]);
        other.cosign(&host, &key(2), 5, &[0; 32]).unwrap();
        assert_eq!(kept.adopt(&other), Err(NotACheckpoint::Other));
    }

    #[test]
    fn a_witnesss_signature_is_of_one_realm_host_size_root_and_time() {
        let tree = tree(9, "");
        let of = |checkpoint: Checkpoint, host: u8| checkpoint.sign(&key(host), &[0; 32]);
        let mut signed = of(checkpoint(&tree, 9), 1);
        signed
            .cosign(&key(1).public(), &key(2), 5, &[0; 32])
            .unwrap();
        let cosignature = signed.lines.pop().unwrap();
        let carried = |mut signed: Signed, line: &Line| {
            signed.lines.push(line.clone());
            signed.witnesses().len()
        };
        assert_eq!(carried(signed.clone(), &cosignature), 1);
        let mut other = checkpoint(&tree, 9);
        other.realm = RealmId([1; 32]);
        assert_eq!(carried(of(other, 1), &cosignature), 0);
        assert_eq!(carried(of(checkpoint(&tree, 9), 3), &cosignature), 0);
        let mut other = checkpoint(&tree, 9);
        other.size = 10;
        assert_eq!(carried(of(other, 1), &cosignature), 0);
        let mut other = checkpoint(&tree, 9);
        other.root[31] ^= 1;
        assert_eq!(carried(of(other, 1), &cosignature), 0);
        let mut later = cosignature.clone();
        later.bytes[11] ^= 1;
        assert_eq!(carried(signed.clone(), &later), 0);
        // Another one's name on it, with the key id that belongs to the name.
        let mut renamed = cosignature.clone();
        renamed.name = format!("{WITNESS}{}", key(4).public());
        let id = key_id(&renamed.name, WITNESS_TAG, &key(4).public());
        renamed.bytes[..4].copy_from_slice(&id);
        assert_eq!(carried(signed.clone(), &renamed), 0);
        // Two hosts signed the same: it is of the one that the witness saw, and isn't taken over to the other's.
        let mut both = of(checkpoint(&tree, 9), 3);
        both.lines.extend(signed.lines.iter().cloned());
        both.lines.push(cosignature.clone());
        assert_eq!(both.witnesses()[0].host, key(1).public());
        let mut thirds = of(checkpoint(&tree, 9), 3);
        assert_eq!((thirds.adopt(&both), thirds.witnesses().len()), (Ok(0), 0));
        let mut unsigned = signed;
        unsigned.lines.clear();
        assert_eq!(
            unsigned.cosign(&key(1).public(), &key(2), 5, &[0; 32]),
            Err(NotACheckpoint::Unsigned)
        );
    }

    #[test]
    fn an_extension_reads_as_it_is_written() {
        let tree = tree(20, "");
        for (old, size) in [(0, 20), (7, 20), (8, 20), (20, 20)] {
            let extension = extension(&tree, old, size, &key(1));
            let text = extension.to_string();
            assert_eq!(text.parse(), Ok(extension));
            assert!(format!("x{text}").parse::<Extension>().is_err());
            assert!(
                text.replacen("\n\n", "\nAAAA\n\n", 1)
                    .parse::<Extension>()
                    .is_err()
            );
        }
    }

    #[test]
    fn a_witness_signs_what_extends_and_nothing_else() {
        let (tree, fork) = (tree(20, ""), tree(20, "other"));
        let (host, stranger) = (key(1), key(3));
        let hosts = [host.public()];
        let held = checkpoint(&tree, 7);
        let good = extension(&tree, 7, 20, &host);
        assert_eq!(good.witnessable(&hosts, Some(&held)), Ok(hosts[0]));
        assert_eq!(
            extension(&tree, 0, 7, &host).witnessable(&hosts, None),
            Ok(hosts[0])
        );
        assert_eq!(
            extension(&tree, 7, 7, &host).witnessable(&hosts, Some(&held)),
            Ok(hosts[0])
        );
        let refused =
            |extension: Extension| extension.witnessable(&hosts, Some(&held)).unwrap_err();
        assert_eq!(
            refused(extension(&tree, 7, 20, &stranger)),
            Unwitnessed::UnknownHost
        );
        assert_eq!(
            refused(extension(&tree, 5, 6, &host)),
            Unwitnessed::Older { size: 6, held: 7 }
        );
        assert_eq!(
            refused(extension(&tree, 8, 20, &host)),
            Unwitnessed::OtherStart { old: 8, held: 7 }
        );
        assert!(matches!(
            refused(extension(&fork, 7, 7, &host)),
            Unwitnessed::Forked { size: 7, .. }
        ));
        assert!(matches!(
            refused(extension(&fork, 7, 20, &host)),
            Unwitnessed::NotAnExtension {
                held: 7,
                size: 20,
                ..
            }
        ));
        let mut elsewhere = good.clone();
        elsewhere.signed.checkpoint.realm = RealmId([1; 32]);
        assert!(matches!(refused(elsewhere), Unwitnessed::OtherRealm { .. }));
        let mut forged = good;
        forged.signed.checkpoint.size = 21;
        assert_eq!(refused(forged), Unwitnessed::UnknownHost);
    }

    #[test]
    fn a_witness_names_the_host_that_it_knows_and_not_who_signed_first() {
        let tree = tree(9, "");
        let mut given = extension(&tree, 0, 9, &key(3));
        let known = checkpoint(&tree, 9).sign(&key(1), &[0; 32]);
        given.signed.lines.extend(known.lines.clone());
        let host = given.witnessable(&[key(1).public()], None).unwrap();
        assert_eq!(host, key(1).public());
        given.signed.cosign(&host, &key(2), 5, &[0; 32]).unwrap();
        assert_eq!(given.signed.witnesses()[0].host, host);
        // So that it counts for that host's own copy.
        let mut kept = known;
        assert_eq!(kept.adopt(&given.signed), Ok(1));
        let stranger = key(4).public();
        assert_eq!(
            kept.cosign(&stranger, &key(2), 5, &[0; 32]),
            Err(NotACheckpoint::Unsigned)
        );
    }

    #[test]
    fn a_signature_of_the_form_that_was_before_counts_for_nobody_and_is_known() {
        let mut signed = checkpoint(&tree(9, ""), 9).sign(&key(1), &[0; 32]);
        assert!(signed.outdated().is_empty());
        let name = format!("{WITNESS}{}", key(2).public());
        let time = 5_u64.to_be_bytes();
        let body = signed.checkpoint.body();
        let digest = tagged_hash(WITNESS_TAG, &[&time, body.as_bytes()]);
        let id = key_id(&name, WITNESS_TAG, &key(2).public());
        let bytes = [&id[..], &time, &key(2).sign(&digest, &[0; 32])].concat();
        signed.lines.push(Line { name, bytes });
        let host = key(1).public();
        signed.cosign(&host, &key(4), 5, &[0; 32]).unwrap();
        assert_eq!(signed.outdated(), [key(2).public()]);
        let good = signed.witnesses();
        assert_eq!((good.len(), good[0].witness), (1, key(4).public()));
    }

    proptest! {
        #[test]
        fn reading_is_total_and_exact(text in "(agora/[0-9a-f]{64}\n)?[0-9]{0,3}\n?[A-Za-z0-9+/=\n— -]{0,120}") {
            if let Ok(read) = text.parse::<Signed>() {
                prop_assert_eq!(read.to_string(), text.clone());
            }
            let _ = text.parse::<Extension>();
        }

        #[test]
        fn no_changed_checkpoint_counts_as_signed(at: usize, to in 32u8..127) {
            let tree = tree(9, "");
            let good = checkpoint(&tree, 9).sign(&key(1), &[0; 32]).to_string();
            let mut bytes = good.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(text) = String::from_utf8(bytes)
                && text != good
                && let Ok(read) = text.parse::<Signed>()
            {
                prop_assert!(read.hosts().is_empty());
            }
        }
    }
}
