//! What an operator decides about personas of other realms: peers, and the guests that they bring.
//!
//! In: an operator's verbs, by name: `peer:alpha`, or `alpha/synth` for a guest of its. Out: what they have here cut, then on the record.
//! Promise: as for an agent: a stop takes effect here first and waits for nothing, and lasts until a start. A peer that is stopped is let in
//! by nobody, and its guests with it; a guest that is stopped leaves its peer alone. A stop is of the whole realm: whoever has that name at
//! another host of it is stopped there, too. A start is of the host that it is given at.
//! Failure: names those there are.

use std::sync::Arc;

use agora_realm::{Body, GrantId, PersonaId, PersonaName, Refusal, RevokeBody, Revoked};
use futures::future::join_all;

use super::control::{Control, Decided, Grantable, cut_soon};
use crate::boot::manifest::unknown;
use crate::limits;
use crate::peer::peers::{Peer, Stops};

/// A persona of another realm, at this host.
pub(super) struct Foreign {
    /// What it speaks as here.
    pub(super) persona: PersonaId,
    /// The peer that it is, as far as the manifest still has it. None for a guest.
    peer: Option<Arc<Peer>>,
    /// Those of the peer, or of the one that brought the guest.
    stops: Arc<Stops>,
    /// The log has it.
    is_known: bool,
}

impl Foreign {
    /// Whether it may be granted this at all.
    ///
    /// # Errors
    /// It may not; says what may be.
    pub(super) fn may_be_granted(&self, what: &Grantable) -> Result<(), String> {
        let name = &self.persona.name;
        if let Some(peer) = name.brought_by() {
            return Err(format!(
                "'{name}' is a guest, who has what its peer hands on; grant it to {peer}"
            ));
        }
        if !self.is_known {
            return Err(format!(
                "{name} isn't on the record yet: it is known by its key only, and hasn't logged in"
            ));
        }
        match what {
            Grantable::Channel(..) => Ok(()),
            Grantable::Service(_) | Grantable::Timer | Grantable::Signer(_) => Err(format!(
                "{name} can be granted channels only; services, timers and signers are for agents of this host"
            )),
        }
    }
}

impl Control {
    /// The peer or guest of this host that is meant by a name; none: it is the name of neither.
    ///
    /// # Errors
    /// There is no such peer or guest; names those there are.
    pub(super) fn foreign(&self, text: &str) -> Result<Option<Foreign>, String> {
        let is_one = text.starts_with("peer:") || text.contains('/');
        if !is_one {
            return Ok(None);
        }
        let state = self.record().state();
        if let Ok(name) = PersonaName::new(text) {
            let peer = name.peer_name().and_then(|peer| self.peers().named(peer));
            let peer = peer.cloned();
            let persona = PersonaId::new(self.host_id(), name);
            let is_known = state.persona(&persona).is_some();
            let stops = self.stops_of(&persona.name);
            if is_known || peer.is_some() {
                return Ok(Some(Foreign {
                    persona,
                    peer,
                    stops,
                    is_known,
                }));
            }
        }
        if let Some(other) = self.elsewhere(text).first() {
            return Err(format!(
                "{text} is known at host {}, and not at this one; do it there (a stop can be given here, too)",
                other.host.short()
            ));
        }
        let own = state.personas().map(|(id, _)| id);
        let own = own
            .filter(|id| id.host == self.host_id())
            .map(|id| &id.name);
        let (what, names): (_, Vec<_>) = match text.contains('/') {
            true => (
                "guest",
                own.filter(|name| name.is_guest()).cloned().collect(),
            ),
            false => (
                "peer",
                self.peers()
                    .all()
                    .map(|peer| peer.persona.clone())
                    .collect(),
            ),
        };
        Err(unknown(what, text, names.iter().map(PersonaName::as_str)))
    }

    /// Those of this name at other hosts of the realm.
    fn elsewhere(&self, text: &str) -> Vec<PersonaId> {
        let state = self.record().state();
        let others = state.personas().map(|(id, _)| id).filter(|id| {
            let is_foreign = id.name.is_peer() || id.name.is_guest();
            is_foreign && id.host != self.host_id() && id.name.as_str() == text
        });
        others
            .filter(|id| state.host(&id.host).is_some_and(|host| !host.revoked))
            .cloned()
            .collect()
    }

    /// Takes the peer, or the guest, of this name back, at every host of the realm that has one. None: it is the name of neither.
    ///
    /// # Errors
    /// There is no such peer or guest; names those there are.
    pub(super) async fn kill_everywhere(
        self: &Arc<Self>,
        text: &str,
        reason: &str,
        by: &str,
    ) -> Result<Option<Decided>, String> {
        let elsewhere = self.elsewhere(text);
        let own = match self.foreign(text) {
            Ok(None) => return Ok(None),
            Ok(Some(own)) => Some(own),
            Err(_) if !elsewhere.is_empty() => None,
            Err(unknown) => return Err(unknown),
        };
        let own = async {
            match own {
                Some(own) => Some(self.kill_foreign(own, reason, by).await),
                None => None,
            }
        };
        let others = elsewhere.into_iter().map(async |persona| {
            let host = persona.host.short();
            let decided = self.revoke_persona(persona, reason, by, None).await;
            (host, decided)
        });
        let (own, others) = futures::join!(own, join_all(others));
        let mut notes = match &own {
            Some(own) if others.is_empty() || !own.note.is_empty() => vec![own.note.clone()],
            Some(_) => vec![format!("{text} is revoked")],
            None => Vec::new(),
        };
        let mut all = own.unwrap_or_default();
        for (host, decided) in others {
            let place = format!("{text} of host {host}");
            notes.push(match decided.void {
                Some(Refusal::Repeated) => format!("{place} was revoked before"),
                _ => format!("{place} is revoked, until `agora start {text}` there"),
            });
            all.entry = all.entry.or(decided.entry);
            all.pending = all.pending.or(decided.pending);
            all.void = all
                .void
                .or(decided.void.filter(|void| *void != Refusal::Repeated));
        }
        all.note = notes.join("; ");
        Ok(Some(all))
    }

    async fn revoke_persona(
        self: &Arc<Self>,
        persona: PersonaId,
        reason: &str,
        by: &str,
        behind: Option<Arc<tokio::sync::Mutex<()>>>,
    ) -> Decided {
        let body = Body::Revoke(RevokeBody {
            what: Revoked::Persona(persona),
            reason: crate::cut_text(reason, limits::REASON_BYTES_MAX),
            by: by.to_owned(),
        });
        self.make_durable(body, behind).await
    }

    /// Takes a peer, or a guest, of this host back with all that it has here.
    async fn kill_foreign(self: &Arc<Self>, foreign: Foreign, reason: &str, by: &str) -> Decided {
        foreign.stops.stopped(&foreign.persona.name);
        let name = foreign.persona.name.clone();
        let cut = self.grants_of_guest(&foreign.persona);
        self.cut_here(&cut);
        let felled = cut_soon(self.cut_foreign(foreign.peer.as_ref()));
        if !foreign.is_known {
            let felled = felled.await;
            return Decided {
                note: format!(
                    "{name} is let in by nobody; it isn't on the record yet, so that ends with this run{felled}"
                ),
                ..Decided::default()
            };
        }
        // A start that was on its way may yet put a new key on the record; this goes behind it.
        let behind = Some(foreign.stops.verbs.clone());
        let durable = self.revoke_persona(foreign.persona, reason, by, behind);
        let (felled, mut decided) = tokio::join!(felled, durable);
        if decided.void == Some(Refusal::Repeated) {
            decided.void = None;
            decided.note =
                format!("{name} was revoked before; it stays so until `agora start {name}`");
        }
        decided.note.push_str(felled);
        decided
    }

    /// Lets a peer, or a guest, in again, under a new key.
    ///
    /// # Errors
    /// Its stop waits for the log; it was stopped meanwhile; or the log can't take the key now.
    pub(super) async fn start_foreign(
        self: &Arc<Self>,
        foreign: Foreign,
    ) -> Result<Decided, String> {
        let _one = foreign.stops.verbs.lock().await;
        let stops = foreign.stops.count();
        let name = &foreign.persona.name;
        let (is_killed, is_known) = {
            let state = self.record().state();
            let known = state.persona(&foreign.persona);
            (known.is_some_and(|known| known.killed), known.is_some())
        };
        let is_refused =
            foreign.stops.has(name) || foreign.peer.as_ref().is_some_and(|peer| peer.is_refused());
        if !is_killed && is_known && is_refused {
            return Err(format!(
                "the revocation of {name} waits for the log; start it when that is in"
            ));
        }
        if !is_killed && !is_refused {
            return Ok(Decided {
                note: format!("{name} is not revoked"),
                ..Decided::default()
            });
        }
        if name.is_peer() && foreign.peer.is_none() {
            return Err(format!(
                "{name} is not in the manifest any more (declare it, and start this host anew)"
            ));
        }
        self.peers().silence(self, &foreign.persona).await;
        if is_killed {
            match foreign.peer.as_ref().filter(|peer| peer.id().is_some()) {
                Some(peer) => self.key_peer(peer, true).await?,
                // Who it is elsewhere stays as it was told.
                None => self.key_persona(name, None, true).await?,
            }
        }
        // Here, or by another host of the realm, whose stop stands behind the key.
        let meanwhile =
            || foreign.stops.count() != stops || self.is_stopped_on_record(&foreign.persona);
        if meanwhile() {
            return Err(format!(
                "{name}, or another, was revoked meanwhile; try again"
            ));
        }
        foreign.stops.started(name);
        self.cut_no_more(&self.grants_of_guest(&foreign.persona));
        if let Some(peer) = &foreign.peer {
            let epoch = self.gate().shown().epoch;
            let why = "it is let in again; graft again";
            self.peers().refuse(peer, false, epoch, why).await;
            if meanwhile() {
                // Whoever stopped it was faster than this, and must not be undone.
                self.cut_foreign(Some(peer)).await;
                return Err(format!(
                    "{name}, or another, was revoked meanwhile; try again"
                ));
            }
        }
        Ok(Decided {
            note: format!("{name} is let in again"),
            ..Decided::default()
        })
    }

    /// Another host of the realm took a peer or a guest of this one's back.
    pub(super) async fn heed_foreign_kill(self: &Arc<Self>, persona: &PersonaId) {
        // Where it was started since, the start has done all there is to do.
        if persona.host != self.host_id() || !self.is_stopped_on_record(persona) {
            return;
        }
        if persona.name.is_guest() {
            self.cut_here(&self.grants_of_guest(persona));
            return;
        }
        let peer = persona
            .name
            .peer_name()
            .and_then(|peer| self.peers().named(peer));
        if let Some(peer) = peer.filter(|peer| !peer.is_refused()) {
            self.cut_foreign(Some(peer)).await;
        }
    }

    fn is_stopped_on_record(&self, persona: &PersonaId) -> bool {
        let state = self.record().state();
        state.persona(persona).is_some_and(|known| known.killed)
    }

    /// The stops that this persona's are among.
    fn stops_of(&self, name: &PersonaName) -> Arc<Stops> {
        let peer = name.brought_by().unwrap_or_else(|| name.clone());
        let peer = peer.peer_name().and_then(|peer| self.peers().named(peer));
        peer.map_or_else(|| self.foreign_stops.clone(), |peer| peer.stops.clone())
    }

    /// Cuts, at every door and on every vat thread, what a peer has here, or what hangs on grants that are cut.
    async fn cut_foreign(&self, peer: Option<&Arc<Peer>>) {
        if let Some(peer) = peer {
            let epoch = self.gate().shown().epoch;
            let why = "this host has revoked you";
            self.peers().refuse(peer, true, epoch, why).await;
        }
        self.cut_revoked("who had this is revoked").await;
    }

    /// What a guest has. A peer's stand, since nobody lets it in.
    fn grants_of_guest(&self, persona: &PersonaId) -> Vec<GrantId> {
        if !persona.name.is_guest() {
            return Vec::new();
        }
        let state = self.record().state();
        state.grants_of(persona).map(|(id, _)| *id).collect()
    }
}
