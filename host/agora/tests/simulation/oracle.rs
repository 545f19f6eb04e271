//! What must hold of every verdict, said a second time and in few words: whoever reads the judged log entry by entry must never see a
//! message count that stands behind the end of what it hangs on.

use std::collections::{BTreeMap, BTreeSet};

use agora_realm::{
    Body, Epoch, GrantId, HostId, Judged, Junk, KeySubject, MessageId, MessageVerdict, PersonaId,
    Revoked, Sealed,
};

/// What ended so far, by one reader of the log.
#[derive(Clone, Default)]
pub(crate) struct Oracle {
    seq: u64,
    pub(crate) epoch: u64,
    killed: BTreeSet<PersonaId>,
    revoked: BTreeSet<HostId>,
    cut: BTreeSet<GrantId>,
    counted: BTreeSet<MessageId>,
    ordinals: BTreeMap<String, u64>,
}

impl Oracle {
    /// Looks at the next entry. Answers the epoch that it ended, if it is a fence that counts.
    pub(crate) fn see(
        &mut self,
        seq: u64,
        sealed: Result<&Sealed, &Junk>,
        judged: &Judged,
    ) -> Option<Epoch> {
        assert_eq!(seq, self.seq + 1, "a place was left out, or told twice");
        self.seq = seq;
        let counting = judged.messages.iter();
        let counting: Vec<_> = counting
            .filter_map(|verdict| match verdict {
                MessageVerdict::Counts(placed) => Some(placed),
                _ => None,
            })
            .collect();
        if judged.verdict.is_err() {
            assert!(counting.is_empty(), "a message of a void entry counts");
            return None;
        }
        let entry = sealed.expect("no junk stands").entry();
        assert!(
            !self.revoked.contains(&entry.host),
            "an entry of a revoked host stands at {seq}"
        );
        let stop = matches!(
            &entry.body,
            Body::Revoke(revoke) if !matches!(revoke.what, Revoked::Fence { .. })
        );
        if self.epoch > 0 && !stop {
            assert_eq!(
                entry.epoch.0, self.epoch,
                "what stands at {seq} is of another epoch than the log"
            );
        }
        for placed in counting {
            let grant = entry.grant.expect("agents speak under grants");
            assert!(!self.cut.contains(&grant), "a cut grant speaks at {seq}");
            assert!(
                !self.killed.contains(&placed.author),
                "{} was killed and speaks at {seq}",
                placed.author
            );
            assert_eq!((placed.epoch.0, placed.seq), (self.epoch, seq));
            assert!(self.counted.insert(placed.id), "a message counts twice");
            let ordinal = self.ordinals.entry(placed.channel.to_string()).or_default();
            *ordinal += 1;
            assert_eq!(placed.ordinal.0, *ordinal, "an ordinal is left out");
        }
        match &entry.body {
            Body::Key(key) if key.genesis.is_some() => self.epoch = 1,
            Body::Key(key) => {
                if let KeySubject::Persona(name) = &key.subject {
                    let persona = PersonaId::new(entry.host, name.clone());
                    let was = self.killed.remove(&persona);
                    assert!(!was || key.started, "a killed persona came back by itself");
                }
            }
            Body::Revoke(revoke) => match &revoke.what {
                Revoked::Grant(grant) => drop(self.cut.insert(*grant)),
                Revoked::Persona(persona) => drop(self.killed.insert(persona.clone())),
                Revoked::Host(host) => drop(self.revoked.insert(*host)),
                Revoked::Fence { ends, .. } => {
                    assert_eq!(ends.0, self.epoch, "two fences end one epoch");
                    self.epoch += 1;
                    return Some(*ends);
                }
            },
            _ => {}
        }
        None
    }
}
