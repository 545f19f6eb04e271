//! Dialing a peer because an operator says so, now.
//!
//! In: a peer's name, and addresses as people write them. Out: how it went.
//! Promise: it is dialed at once, whatever the wait was; the answer comes within a bounded time. What is taken is known at the next start,
//! unless the answer says why it isn't.
//! Failure: what is no address of this peer's is refused, and changes nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use agora_dial::{Dialer, KnownPeer, Lane, Multiaddr, PeerId, PeerState, PeerStatus, Why};
use tokio::time::{Instant, sleep_until, timeout};

use super::book::Pages;
use super::borrowed::LinkState;
use super::peers::{Peer, Peers};
use super::sighting::sighting;
use crate::boot::address::parse_dial;
use crate::boot::manifest::unknown;
use crate::limits;

/// How a dial went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialed {
    /// Where it is connected; or why it isn't, for people.
    pub outcome: Result<Connected, String>,
    /// For people, when there is more to say.
    pub note: String,
}

/// A peer that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Where.
    pub address: String,
    /// Of a ping on the control lane; none: that wasn't answered in time.
    pub round_trip: Option<Duration>,
    /// It was before, too, so nothing was dialed.
    pub already: bool,
}

impl Peers {
    /// The peer that an operator means, as NAME or peer:NAME.
    ///
    /// # Errors
    /// There is none; names those there are.
    pub fn meant(&self, text: &str) -> Result<Arc<Peer>, String> {
        let name = text.strip_prefix("peer:").unwrap_or(text);
        self.named(name).cloned().ok_or_else(|| {
            let names = self.all().map(|peer| peer.name.as_str());
            unknown("peer", name, names.collect::<Vec<_>>())
        })
    }

    /// Dials a peer now, at these addresses and all that are known, and says how that went. The addresses are kept.
    ///
    /// # Errors
    /// For people; nothing was changed.
    pub async fn dial(&self, name: &str, texts: &[String]) -> Result<Dialed, String> {
        let peer = self.meant(name)?;
        let id = dialable(&peer)?;
        let addresses = read(&peer, id, texts)?;
        let dialer = self.dialer().ok_or_else(|| self.why_offline())?;
        if let Some(own) = addresses.iter().find(|at| dialer.listening().contains(at)) {
            return Err(format!(
                "{own} is this host's own address: it listens there"
            ));
        }
        if peer.is_refused() {
            return Err(format!(
                "peer '{}' is revoked, and not dialed until `agora start {}`",
                peer.name, peer.persona
            ));
        }
        let note = {
            let _one = self.changing.lock().await;
            let note = self.learn(&peer, id, addresses).await?;
            self.redial(dialer, &peer, id).await?;
            note
        };
        let outcome = self.try_reach(dialer, &peer, id).await;
        Ok(Dialed { outcome, note })
    }

    /// Dials a peer no more at addresses that were given so; answers those that are left.
    ///
    /// # Errors
    /// For people; nothing was changed.
    pub async fn forget_addresses(
        &self,
        name: &str,
        texts: &[String],
    ) -> Result<Vec<Multiaddr>, String> {
        let peer = self.meant(name)?;
        let id = dialable(&peer)?;
        let _one = self.changing.lock().await;
        let mut left = peer.dialed();
        for text in texts {
            let (address, _) = parse_dial(text)?;
            if !left.contains(&address) {
                return Err(not_told(&peer, &address, &left));
            }
            left.retain(|known| *known != address);
        }
        self.keep_addresses(&peer, id, left.clone()).await?;
        peer.set_dialed(left.clone());
        if let Some(dialer) = self.dialer() {
            self.redial(dialer, &peer, id).await?;
        }
        Ok(left)
    }

    fn why_offline(&self) -> String {
        match self.peering().is_on() {
            true => "this host is only starting, and dials nobody yet; try again".into(),
            false => "this host keeps no connections to peers (it runs with --offline)".into(),
        }
    }

    /// Takes what is new among these addresses. Answers why they aren't kept, if they aren't.
    async fn learn(
        &self,
        peer: &Arc<Peer>,
        id: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<String, String> {
        let declared = || peer.spec.addresses.iter().chain(&peer.spec.given);
        let mut dialed = peer.dialed();
        // What is told again is the newest.
        dialed.retain(|known| !addresses.contains(known));
        for address in addresses.into_iter().rev() {
            if !declared().any(|known| *known == address) && !dialed.contains(&address) {
                dialed.insert(0, address);
            }
        }
        let most = limits::PEER_ADDRESSES_MAX;
        let known: HashSet<_> = declared().chain(&dialed).collect();
        if known.len() > most {
            return Err(format!(
                "peer '{}': {} addresses; at most {most} (`agora dial {0} --forget ADDRESS` takes one away; given so: {})",
                peer.name,
                known.len(),
                listed(&peer.dialed())
            ));
        }
        let kept = self.keep_addresses(peer, id, dialed.clone()).await;
        peer.set_dialed(dialed);
        Ok(match kept {
            Ok(()) => String::new(),
            Err(error) => format!("the next start won't know what was given here: {error}"),
        })
    }

    async fn keep_addresses(
        &self,
        peer: &Arc<Peer>,
        id: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<(), String> {
        let known: Vec<_> = self.all().cloned().collect();
        let (book, name) = (self.book().clone(), peer.name.clone());
        let is_of = move |name: &str, id: PeerId| {
            let mut known = known.iter();
            known.any(|peer| peer.name == name && peer.spec.id.is_none_or(|own| own == id))
        };
        let keeping = tokio::task::spawn_blocking(move || {
            book.change(|pages: &mut Pages| {
                // Those of others than who is known by that name now have been left out since the start.
                pages.addresses.retain(|name, (id, _)| is_of(name, *id));
                match addresses.is_empty() {
                    true => drop(pages.addresses.remove(&name)),
                    false => drop(pages.addresses.insert(name, (id, addresses))),
                }
            })
        });
        let kept = keeping.await.map_err(|error| error.to_string())?;
        kept.map_err(|error| error.to_string())
    }

    /// Has the dialer know all addresses, and dial at once unless it is connected.
    async fn redial(&self, dialer: &Dialer, peer: &Peer, id: PeerId) -> Result<(), String> {
        let known = KnownPeer {
            peer: id,
            addresses: peer.addresses(),
        };
        match dialer.set_peer(known).await {
            true => Ok(()),
            false => Err("this host is ending, and dials nobody any more".into()),
        }
    }

    async fn try_reach(
        &self,
        dialer: &Dialer,
        peer: &Arc<Peer>,
        id: PeerId,
    ) -> Result<Connected, String> {
        let status = self.connection(peer);
        let is_up =
            |status: &PeerStatus| matches!(status.state, PeerState::Connected | PeerState::Partly);
        if let Some(status) = &status
            && is_up(status)
        {
            let lapsed = matches!(&*peer.link.borrow(), LinkState::Lapsed { .. });
            if !lapsed && let Some(found) = self.answers(dialer, peer, id).await {
                return Ok(found);
            }
            // Whoever was there is there no more: it ended, or moved, and nobody has noticed yet.
            let _one = self.changing.lock().await;
            dialer.forget(id).await;
            self.redial(dialer, peer, id).await?;
        }
        let nowhere = |status: &PeerStatus| status.learned.is_empty() && status.found.is_empty();
        if peer.addresses().is_empty() && status.as_ref().is_none_or(|s| !is_up(s) && nowhere(s)) {
            return Err(format!(
                "no address of it is known (name one: agora dial {} ADDRESS)",
                peer.name
            ));
        }
        self.wait(dialer, peer, id).await
    }

    /// What is connected already, if it answers soon.
    async fn answers(&self, dialer: &Dialer, peer: &Arc<Peer>, id: PeerId) -> Option<Connected> {
        let asking = async {
            let mut watch = dialer.watch();
            let mut link = peer.link.subscribe();
            loop {
                let address = linked(&watch.borrow_and_update().clone(), &link, id);
                link.borrow_and_update();
                if let Some(address) = address {
                    let round_trip = self.ping(peer).await.ok()?;
                    return Some(Connected {
                        address,
                        round_trip: Some(round_trip),
                        already: true,
                    });
                }
                tokio::select! {
                    changed = watch.changed() => changed.ok()?,
                    changed = link.changed() => changed.ok()?,
                }
            }
        };
        timeout(limits::PEER_PING_PATIENCE, asking).await.ok()?
    }

    /// Waits until it is connected, or a dial has come to nothing, or for long enough.
    async fn wait(
        &self,
        dialer: &Dialer,
        peer: &Arc<Peer>,
        id: PeerId,
    ) -> Result<Connected, String> {
        let deadline = Instant::now() + limits::DIAL_PATIENCE;
        let mut watch = dialer.watch();
        let mut link = peer.link.subscribe();
        let mut before = None;
        let mut wrong = HashSet::new();
        loop {
            let now = watch.borrow_and_update().clone();
            let address = linked(&now, &link, id);
            link.borrow_and_update();
            if let Some(address) = address {
                return Ok(Connected {
                    address,
                    round_trip: self.ping(peer).await.ok(),
                    already: false,
                });
            }
            if peer.is_refused() {
                return Err(format!("it was revoked meanwhile ({})", peer.persona));
            }
            if let Some(status) = now.peers.get(&id) {
                let failed = status.lane(Lane::Control).dials_failed;
                // Begun anew where the dialer was told of it anew meanwhile.
                let first = before.get_or_insert(failed);
                *first = failed.min(*first);
                let failures = failed - *first;
                if let Some(why) = came_to_nothing(status)
                    && failures > 0
                    && is_final(why, peer, failures, &mut wrong)
                {
                    return Err(format!("{why}; it is dialed again by and by"));
                }
            }
            tokio::select! {
                changed = watch.changed() => {
                    changed.map_err(|_| "this host is ending".to_owned())?;
                }
                changed = link.changed() => {
                    changed.map_err(|_| "this host is ending".to_owned())?;
                }
                () = sleep_until(deadline) => {
                    let seen = sighting(self, peer);
                    let detail = match seen.detail.is_empty() {
                        true => String::new(),
                        false => format!(": {}", seen.detail),
                    };
                    let after = limits::DIAL_PATIENCE.as_secs();
                    return Err(format!("still {}{detail} after {after} s", seen.state));
                }
            }
        }
    }
}

/// The id that it is dialed by.
fn dialable(peer: &Peer) -> Result<PeerId, String> {
    let name = &peer.name;
    peer.spec.id.ok_or_else(|| match peer.spec.key {
        Some(_) => format!(
            "peer '{name}' is known by its key only, so it must come by itself (give its `id` too, under [peers.{name}] in the manifest, and it can be dialed)"
        ),
        None => format!(
            "peer '{name}' has no id, so it can't be dialed (add `id` to [peers.{name}] in the manifest; or run with --peer {name}=ID)"
        ),
    })
}

/// The addresses that are meant, each once.
fn read(peer: &Peer, id: PeerId, texts: &[String]) -> Result<Vec<Multiaddr>, String> {
    let mut addresses = Vec::new();
    for text in texts {
        let (address, found) = parse_dial(text)?;
        if let Some(other) = found.filter(|found| *found != id) {
            return Err(format!(
                "'{text}' is the address of {other}, and peer '{0}' is {id} (if it has a new secret, change `id` under [peers.{0}] in the manifest)",
                peer.name
            ));
        }
        let most = limits::PEER_ADDRESS_BYTES_MAX;
        if text.len() > most {
            return Err(format!(
                "an address of {} bytes; at most {most}",
                text.len()
            ));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn listed(addresses: &[Multiaddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    }
}

/// Why an address can't be taken back.
fn not_told(peer: &Peer, address: &Multiaddr, told: &[Multiaddr]) -> String {
    let name = &peer.name;
    if peer.spec.addresses.contains(address) {
        return format!("{address} is in the manifest (take it out under [peers.{name}] there)");
    }
    if peer.spec.given.contains(address) {
        return format!("{address} is on the command line of `agora run` (take it out there)");
    }
    let told = listed(told);
    format!("{address} was not given for '{name}' by `agora dial` (given: {told})")
}

/// Where the peer is connected, if it is, and what it lends can be used.
fn linked(
    now: &agora_dial::Snapshot,
    link: &tokio::sync::watch::Receiver<LinkState>,
    id: PeerId,
) -> Option<String> {
    let status = now.peers.get(&id)?;
    let is_up =
        status.state == PeerState::Connected && matches!(&*link.borrow(), LinkState::Up { .. });
    let address = status.lane(Lane::Control).address.as_ref();
    is_up.then(|| address.map(ToString::to_string).unwrap_or_default())
}

fn came_to_nothing(status: &PeerStatus) -> Option<&Why> {
    match &status.state {
        PeerState::BackingOff { why, .. } => why.as_ref(),
        PeerState::Refused { why, .. } => Some(why),
        _ => None,
    }
}

/// Whether a dial that came to nothing is all there is to say, after so many.
fn is_final(why: &Why, peer: &Peer, failures: u64, wrong: &mut HashSet<Multiaddr>) -> bool {
    let known = peer.addresses();
    match why {
        // The next dial leaves that address out.
        Why::WrongPeer { address, .. } | Why::Ourselves { address } => {
            wrong.insert(address.clone());
            known.iter().all(|known| wrong.contains(known))
        }
        // It was there, or is there otherwise.
        Why::Lost(_) | Why::Replaced | Why::Reconsidered | Why::Flooded | Why::GuestTimeOver => {
            false
        }
        _ => {
            // Relays are left for the second.
            let relayed = known
                .iter()
                .any(|at| at.to_string().contains("/p2p-circuit"));
            failures > u64::from(relayed)
        }
    }
}
