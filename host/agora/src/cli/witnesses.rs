//! Witnesses that an auditor names: which of them signed what, and whether they are enough.
//!
//! In: names and public keys, on the command line; checkpoints with witnesses' signatures. Out: [`Witnessed`].
//! Promise: a signature is a named witness's by its key alone, over the realm, the size, the root and the host's key of one checkpoint; each
//! witness is counted once, and never for a checkpoint that the record doesn't agree with, or that no host of the realm signed; a key
//! that is, or was, a host's of the realm is no witness's.
//! Failure: what is asked for makes no sense, which is said before anything is read, as wrong usage.

use std::collections::BTreeSet;

use agora_realm::checkpoint::{Cosignature, Signed};
use agora_realm::{Compared, PublicKey, Report};
use clap::Args;
use clap::error::ErrorKind;
use serde_json::json;

use super::show;

/// Which witnesses are asked for.
#[derive(Args)]
pub(super) struct WitnessesArgs {
    /// A witness whose signature is asked for: any name, and its public key (64 hexadecimal digits). May be given again.
    #[arg(long = "witness", id = "witness", value_name = "NAME=KEY", value_parser = parse_witness)]
    named: Vec<Named>,
    /// How many of them must have signed [default: all that are named].
    #[arg(
        long = "witnesses",
        id = "witnesses",
        value_name = "N",
        requires = "witness",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    needed: Option<u64>,
}

/// A witness as an auditor knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    name: String,
    key: PublicKey,
}

fn parse_witness(text: &str) -> Result<Named, String> {
    let wrong = || {
        "it takes a name, '=', and the 64 hexadecimal digits of a public key (agora witness --show-key, agora id)"
            .to_owned()
    };
    let (name, key) = text.split_once('=').ok_or_else(wrong)?;
    let key = key.parse().map_err(|_| wrong())?;
    match name.is_empty() {
        true => Err(wrong()),
        false => Ok(Named {
            name: name.to_owned(),
            key,
        }),
    }
}

impl WitnessesArgs {
    /// What is asked for, if anything is.
    ///
    /// # Errors
    /// It makes no sense.
    pub(super) fn asked(&self) -> Result<Option<Witnesses>, clap::Error> {
        let wrong = |why: String| {
            let why = format!("{}\n", show::escape(&why));
            Err(clap::Error::raw(ErrorKind::ValueValidation, why))
        };
        if self.named.is_empty() {
            return Ok(None);
        }
        for (at, one) in self.named.iter().enumerate() {
            for other in &self.named[..at] {
                if one.key == other.key {
                    return wrong(format!(
                        "--witness: '{}' and '{}' have one key, and would be counted as two; name each witness once",
                        other.name, one.name
                    ));
                }
                if one.name == other.name {
                    return wrong(format!(
                        "--witness: two keys are named '{}'; one name each",
                        one.name
                    ));
                }
            }
        }
        let count = self.named.len();
        let needed = match self.needed {
            None => count,
            Some(needed) => usize::try_from(needed).unwrap_or(usize::MAX),
        };
        if needed > count {
            return wrong(format!(
                "--witnesses {needed}: no more than {count} can sign, since that many are named (--witness NAME=KEY)"
            ));
        }
        Ok(Some(Witnesses {
            named: self.named.clone(),
            needed,
        }))
    }
}

/// The witnesses that are asked for.
pub(super) struct Witnesses {
    named: Vec<Named>,
    needed: usize,
}

/// Which of them signed a checkpoint.
pub(super) struct Witnessed {
    /// How many places it covers; 0: there is none.
    pub(super) size: u64,
    /// Which checkpoint, for people.
    whence: String,
    /// Those that did, and when by their clock.
    signed: Vec<(Named, u64)>,
    /// The others, and why they don't count.
    missing: Vec<(Named, Missing)>,
    needed: usize,
}

/// Why one that is named doesn't count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// There is no signature of it that is good.
    Unsigned,
    /// Its signature is of the form that was before.
    Outdated,
    /// Its key is a host's of the realm.
    IsHost,
}

/// The signatures on a checkpoint, and what is known of whose they are.
pub(super) struct Signatures<'a> {
    /// The good ones of witnesses.
    pub(super) good: &'a [Cosignature],
    /// The keys that hosts of the realm signed it with.
    pub(super) hosts: &'a [PublicKey],
    /// All keys that are, or were, a host's of the realm, as far as is known.
    pub(super) own: &'a BTreeSet<PublicKey>,
    /// Who signed it in the form that was before.
    pub(super) outdated: &'a [PublicKey],
}

impl Witnesses {
    /// Which of them signed a checkpoint of one of these hosts.
    pub(super) fn look(&self, size: u64, whence: String, on: &Signatures<'_>) -> Witnessed {
        let (mut signed, mut missing) = (Vec::new(), Vec::new());
        for named in &self.named {
            let key = &named.key;
            let mut good = on.good.iter();
            let good = good.find(|one| one.witness == *key && on.hosts.contains(&one.host));
            let why = match good {
                _ if on.own.contains(key) || on.hosts.contains(key) => Missing::IsHost,
                Some(good) => {
                    signed.push((named.clone(), good.time_s));
                    continue;
                }
                None if on.outdated.contains(key) => Missing::Outdated,
                None => Missing::Unsigned,
            };
            missing.push((named.clone(), why));
        }
        Witnessed {
            size,
            whence,
            signed,
            missing,
            needed: self.needed,
        }
    }

    /// Which of them signed a checkpoint, whichever host it is of.
    pub(super) fn on(
        &self,
        signed: &Signed,
        whence: String,
        own: &BTreeSet<PublicKey>,
    ) -> Witnessed {
        let signatures = Signatures {
            good: &signed.witnesses(),
            hosts: &signed.hosts(),
            own,
            outdated: &signed.outdated(),
        };
        self.look(signed.checkpoint().size, whence, &signatures)
    }

    /// Whether enough of them did.
    pub(super) fn are_on(&self, signed: &Signed, own: &BTreeSet<PublicKey>) -> bool {
        self.on(signed, String::new(), own).is_enough()
    }

    /// Which of them are no witnesses, to be put behind what is said.
    pub(super) fn hosts_among(&self, own: &BTreeSet<PublicKey>) -> String {
        are_hosts(self.named.iter().filter(|named| own.contains(&named.key)))
    }

    /// How many must have signed.
    pub(super) fn needed(&self) -> usize {
        self.needed
    }

    /// Which of them signed what an audit compared. Of checkpoints that were held elsewhere it is the newest that counts. Where there are
    /// none, it is the newest of those beside the record that enough of them signed: a host's last ones are nobody else's yet.
    pub(super) fn over(&self, report: &Report) -> Witnessed {
        let (compared, own) = (&report.checkpoints, &report.host_keys);
        let elsewhere: Vec<_> = compared.iter().filter(|c| c.elsewhere).collect();
        if let Some(newest) = elsewhere.iter().map(|c| c.size).max() {
            return self.of_size(&elsewhere, newest, own);
        }
        let kept: Vec<_> = compared.iter().collect();
        let mut sizes: Vec<_> = kept
            .iter()
            .filter(|c| c.agrees && !(c.witnesses.is_empty() && c.outdated.is_empty()))
            .map(|c| c.size)
            .collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        let mut best: Option<Witnessed> = None;
        for size in sizes {
            let found = self.of_size(&kept, size, own);
            if found.is_enough() {
                return found;
            }
            if best
                .as_ref()
                .is_none_or(|best| found.signed.len() > best.signed.len())
            {
                best = Some(found);
            }
        }
        let none = Signatures {
            good: &[],
            hosts: &[],
            own,
            outdated: &[],
        };
        best.unwrap_or_else(|| self.look(0, "any checkpoint".into(), &none))
    }

    fn of_size(&self, compared: &[&Compared], size: u64, own: &BTreeSet<PublicKey>) -> Witnessed {
        let same = compared.iter().filter(|c| c.size == size);
        let agreeing: Vec<_> = same.clone().filter(|c| c.agrees).collect();
        // Of the realm's hosts only, each by the keys that it signed these with.
        let hosts: Vec<_> = agreeing
            .iter()
            .flat_map(|c| c.hosts.iter().map(|(_, key)| *key))
            .collect();
        let good: Vec<_> = agreeing.iter().flat_map(|c| c.witnesses.clone()).collect();
        let outdated = agreeing.iter().flat_map(|c| c.outdated.clone());
        let signatures = Signatures {
            good: &good,
            hosts: &hosts,
            own,
            outdated: &outdated.collect::<Vec<_>>(),
        };
        let whence = same.map(|c| c.whence.clone()).next().unwrap_or_default();
        self.look(size, whence, &signatures)
    }
}

/// That these are hosts, to be put behind what is said.
fn are_hosts<'a>(named: impl Iterator<Item = &'a Named>) -> String {
    let names: Vec<_> = named.map(|named| named.name.as_str()).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(
            " (no witness: {}, by a key of a host of this realm)",
            names.join(", ")
        ),
    }
}

impl Witnessed {
    /// As many signed it as are asked for.
    pub(super) fn is_enough(&self) -> bool {
        self.signed.len() >= self.needed
    }

    /// How many of those named signed it.
    pub(super) fn count(&self) -> usize {
        self.signed.len()
    }

    /// Who signed it and who didn't, a line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let which = match self.size {
            0 => self.whence.clone(),
            size => format!("{} ({size} entries)", self.whence.trim_end_matches(',')),
        };
        let signed = self.signed.iter().map(|(named, time_s)| {
            format!(
                "{} signed {which} at {}, by its clock",
                named.name,
                show::date_time(*time_s)
            )
        });
        let missing = self.missing.iter().map(|(named, why)| match why {
            Missing::Unsigned => format!("{} did NOT sign {which}", named.name),
            Missing::Outdated => format!(
                "{} did NOT sign {which} as witnesses do now: signed in the old form, which names no host: have it signed anew",
                named.name
            ),
            Missing::IsHost => format!(
                "{} is NO witness: the key is a host's of this realm, which can't speak for itself",
                named.name
            ),
        });
        signed.chain(missing).collect()
    }

    /// What is wrong, where too few signed.
    pub(super) fn wrong(&self) -> Option<String> {
        let by = match self.signed.len() {
            0 => "none".to_owned(),
            n => format!("{n} only"),
        };
        let hosts = self
            .missing
            .iter()
            .filter(|(_, why)| *why == Missing::IsHost);
        let hosts = are_hosts(hosts.map(|(named, _)| named));
        (!self.is_enough()).then(|| {
            format!(
                "{} has good signatures of {by} of the {} named witnesses, and {} are asked for{hosts}",
                self.whence.trim_end_matches(','),
                self.signed.len() + self.missing.len(),
                self.needed
            )
        })
    }

    /// The same for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let signed = self.signed.iter().map(
            |(named, time_s)| json!({"name": named.name, "key": named.key.to_string(), "time_s": time_s}),
        );
        let missing = self.missing.iter().map(|(named, why)| {
            let why = match why {
                Missing::Unsigned => "unsigned",
                Missing::Outdated => "old_form",
                Missing::IsHost => "host",
            };
            json!({"name": named.name, "key": named.key.to_string(), "why": why})
        });
        json!({
            "event": "witnesses",
            "size": self.size,
            "from": self.whence,
            "needed": self.needed,
            "enough": self.is_enough(),
            "signed": signed.collect::<Vec<_>>(),
            "missing": missing.collect::<Vec<_>>(),
        })
    }
}
