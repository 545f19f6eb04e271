//! What a peer finds here: a graft behind a wall, and in it the channels that it was granted.
//!
//! In: calls of a peer that is known by its id. Out: a [`PeerFacet`] for each channel granted to `peer:NAME`.
//! Promise: as for an agent: nothing reaches the peer but through the wall of its graft, which falls with the epoch, with a grant of the peer's
//! that is revoked, and with the connection. What the peer's own personas say is said under a grant below the peer's.
//! Failure: more speakers or followings than a peer may have are refused, and the rest goes on.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use agora_capnp::channel_capnp::{channel, sink};
use agora_capnp::membrane_capnp::{membrane, session};
use agora_capnp::peer_capnp::{following, peer_channel};
use agora_guest::wire;
use agora_membrane::error;
use agora_realm::{
    ChannelName, ComponentHash, GrantId, Object, Origin, PersonaId, PersonaName, PublicKey,
};
use capnp::Error;
use capnp::traits::HasTypeId;

use super::outflow::Outflow;
use super::peers::Peer;
use crate::channel::facet::{Facet, Facets, Holder};
use crate::door::control::Control;
use crate::door::wall::{Arrival, Told, Wall};
use crate::limits;

/// A graft that stands.
struct Standing {
    wall: Wall,
    speaking: Rc<Speaking>,
    grants: Vec<GrantId>,
}

/// What a peer's own personas speak through, in one graft.
struct Speaking {
    control: Arc<Control>,
    peer: Arc<Peer>,
    facets: Rc<Facets>,
    wire: wire::End,
    /// The peer's own.
    holder: Rc<Holder>,
    /// By the persona's name here.
    speakers: RefCell<HashMap<PersonaName, Rc<Holder>>>,
    /// Held while one is put on the record.
    introducing: tokio::sync::Mutex<()>,
    outflow: Rc<Outflow>,
    /// By channel; each once.
    follows: Rc<RefCell<HashSet<ChannelName>>>,
}

impl Speaking {
    fn end(&self, reason: &str) {
        for speaker in self.speakers.borrow().values() {
            speaker.end(reason);
        }
        self.holder.end(reason);
    }
}

/// One connection of a peer, on the vat lane.
pub struct PeerDoor {
    control: Arc<Control>,
    peer: Arc<Peer>,
    facets: Rc<Facets>,
    wire: wire::End,
    outflow: Rc<Outflow>,
    standing: RefCell<Option<Standing>>,
    grafts: Cell<usize>,
}

impl PeerDoor {
    /// A door without a graft.
    pub fn new(
        control: Arc<Control>,
        peer: Arc<Peer>,
        facets: Rc<Facets>,
        wire: wire::End,
    ) -> Rc<Self> {
        Rc::new(Self {
            control,
            peer,
            facets,
            outflow: Rc::new(Outflow::new(wire.clone())),
            wire,
            standing: RefCell::default(),
            grafts: Cell::new(0),
        })
    }

    /// Whose it is.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether something that was granted on arrival is revoked by now.
    pub fn holds_revoked(&self) -> bool {
        let standing = self.standing.borrow();
        let mut grants = standing.iter().flat_map(|standing| &standing.grants);
        grants.any(|grant| self.control.is_cut(grant))
    }

    /// The wall falls: everything of the graft is revoked.
    pub fn fall(&self, reason: &str) {
        let standing = self.standing.borrow_mut().take();
        if let Some(standing) = standing {
            standing.wall.fall(reason);
            standing.speaking.end(reason);
        }
    }
}

impl membrane::Server for PeerDoor {
    async fn graft(
        self: Rc<Self>,
        _params: membrane::GraftParams,
        results: membrane::GraftResults,
    ) -> Result<(), Error> {
        if self.grafts.get() >= limits::GRAFTS_PER_LIFE_MAX {
            return Err(error::busy(&format!(
                "this connection has had {} grafts; connect anew",
                limits::GRAFTS_PER_LIFE_MAX
            )));
        }
        self.grafts.set(self.grafts.get() + 1);
        let epoch = self.control.gate().passage().await;
        if self.peer.is_refused() {
            return Err(error::denied("this host has revoked you"));
        }
        self.fall("a newer graft took its place");
        let wall = Wall::new(self.control.clone(), epoch);
        let persona = PersonaId::new(self.control.host_id(), self.peer.persona.clone());
        let holder = Holder::new(
            self.control.clone(),
            self.peer.shared.clone(),
            self.facets.clone(),
            self.wire.clone(),
            persona.clone(),
            epoch,
        );
        holder.draw_on(&self.peer.allowance);
        let speaking = Rc::new(Speaking {
            control: self.control.clone(),
            peer: self.peer.clone(),
            facets: self.facets.clone(),
            wire: self.wire.clone(),
            holder: holder.clone(),
            speakers: RefCell::default(),
            introducing: tokio::sync::Mutex::default(),
            outflow: self.outflow.clone(),
            follows: Rc::default(),
        });
        let granted: Vec<_> = self
            .control
            .grants_for(&persona)
            .into_iter()
            .filter_map(|granted| match &granted.object {
                Object::Channel(name) => Some((name.clone(), granted)),
                Object::Timer | Object::Service(_) | Object::Signer(_) => None,
            })
            .collect();
        let mut arrival = Arrival::new(results, granted.len());
        for (at, (name, granted)) in granted.iter().enumerate() {
            let facet = Rc::new(PeerFacet {
                facet: holder.own_facet(name.clone(), granted.id),
                speaking: speaking.clone(),
            });
            let facet: peer_channel::Client = capnp_rpc::new_client_from_rc(facet);
            let told = Told {
                name: name.as_str(),
                interface_id: peer_channel::Client::TYPE_ID,
                terms: &granted.terms,
                lent_by: None,
            };
            arrival.grant(at, &told, Some(wall.wrap(facet)))?;
        }
        let session: session::Client = capnp_rpc::new_client(Session);
        arrival.tell(epoch, &persona, wall.wrap(session));
        *self.standing.borrow_mut() = Some(Standing {
            wall,
            speaking,
            grants: granted.iter().map(|(_, granted)| granted.id).collect(),
        });
        self.peer.has_grafted(epoch);
        if !self.control.gate().is_open(epoch) || self.peer.is_refused() {
            // It ended meanwhile, and whoever ended it found no wall here to fell.
            self.fall("the epoch has ended; graft again");
        }
        Ok(())
    }
}

/// The life of a graft. A peer serves nothing.
struct Session;

impl session::Server for Session {
    async fn serve(
        self: Rc<Self>,
        _params: session::ServeParams,
        _results: session::ServeResults,
    ) -> Result<(), Error> {
        Err(error::denied(
            "a peer serves nothing to the agents of another host",
        ))
    }

    /// Answered by the wall's fall.
    async fn ended(
        self: Rc<Self>,
        _params: session::EndedParams,
        _results: session::EndedResults,
    ) -> Result<(), Error> {
        std::future::pending().await
    }
}

/// A channel, as it was granted to a peer.
struct PeerFacet {
    facet: Rc<Facet>,
    speaking: Rc<Speaking>,
}

impl channel::Server for PeerFacet {
    async fn info(
        self: Rc<Self>,
        params: channel::InfoParams,
        results: channel::InfoResults,
    ) -> Result<(), Error> {
        self.facet.clone().info(params, results).await
    }

    async fn speak(
        self: Rc<Self>,
        params: channel::SpeakParams,
        results: channel::SpeakResults,
    ) -> Result<(), Error> {
        self.facet.clone().speak(params, results).await
    }

    async fn subscribe(
        self: Rc<Self>,
        params: channel::SubscribeParams,
        results: channel::SubscribeResults,
    ) -> Result<(), Error> {
        self.facet.clone().subscribe(params, results).await
    }

    async fn history(
        self: Rc<Self>,
        params: channel::HistoryParams,
        results: channel::HistoryResults,
    ) -> Result<(), Error> {
        self.facet.clone().history(params, results).await
    }

    async fn attenuate(
        self: Rc<Self>,
        params: channel::AttenuateParams,
        results: channel::AttenuateResults,
    ) -> Result<(), Error> {
        self.facet.clone().attenuate(params, results).await
    }
}

impl peer_channel::Server for PeerFacet {
    async fn speaker(
        self: Rc<Self>,
        params: peer_channel::SpeakerParams,
        mut results: peer_channel::SpeakerResults,
    ) -> Result<(), Error> {
        let introduction = params.get()?.get_introduction()?;
        let speaker = self.speaking.speaker(introduction).await?;
        let facet = self.facet.clone().lent_to(speaker);
        results.get().set_channel(facet);
        Ok(())
    }

    async fn follow(
        self: Rc<Self>,
        params: peer_channel::FollowParams,
        mut results: peer_channel::FollowResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let place = FollowPlace::take(&self.speaking.follows, self.facet.channel())?;
        let from = params.get_from();
        let sink: sink::Client = params.get_sink()?;
        let floor = self.facet.follow_info(results.get().init_info())?;
        results.get().set_floor(floor);
        let (facet, outflow) = (self.facet.clone(), self.speaking.outflow.clone());
        let name = format!("{} on {}", self.speaking.peer.name, facet.channel());
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = facet.follow(from, &sink, &outflow).await {
                tracing::debug!("what {name} follows ended: {error}");
                let mut request = sink.ended_request();
                request.get().set_reason(error::reason(&error));
                // Nobody waits for the answer.
                let _ = tokio::time::timeout(limits::PEER_ENDING_MAX, request.send().promise).await;
            }
        });
        results
            .get()
            .set_following(capnp_rpc::new_client(Following {
                task,
                _place: place,
            }));
        Ok(())
    }

    async fn entries(
        self: Rc<Self>,
        params: peer_channel::EntriesParams,
        mut results: peer_channel::EntriesResults,
    ) -> Result<(), Error> {
        let peer = &self.speaking.peer;
        if !peer.spec.may_mirror || self.facet.channel().is_remote() {
            return Err(error::denied(&format!(
                "'{}' is not yours to mirror (the host that has it says may_mirror = true under [peers.{}])",
                self.facet.channel(),
                peer.name
            )));
        }
        let params = params.get()?;
        let (from, count, size) = (params.get_from(), params.get_count(), params.get_size());
        let (proved, next) = self.facet.proved(from, count as usize, size).await?;
        let mut answer = results.get();
        answer.set_next(next);
        let mut places = answer.init_places(proved.len() as u32);
        let mut last = 0;
        for (i, (kept, proof)) in proved.iter().enumerate() {
            let mut place = places.reborrow().get(i as u32);
            place.set_ordinal(kept.ordinal.0);
            place.set_seq(kept.place.seq);
            place.set_index(kept.place.index);
            place.set_thread(&kept.place.thread.0);
            if kept.place.seq != last {
                place.set_stored(kept.sealed.stored());
                let mut hashes = place.init_proof(proof.len() as u32);
                for (j, hash) in proof.iter().enumerate() {
                    hashes.set(j as u32, hash);
                }
                last = kept.place.seq;
            }
        }
        Ok(())
    }
}

impl Speaking {
    /// The holder that a persona of the peer's speaks as here. Its key is on the record, with who it is at home.
    async fn speaker(
        &self,
        introduction: agora_capnp::peer_capnp::introduction::Reader<'_>,
    ) -> Result<Rc<Holder>, Error> {
        let theirs = introduction.get_persona()?.to_str()?;
        let name = PersonaName::guest(&self.peer.name, theirs).map_err(|error| {
            error::denied(&format!("'{theirs}' is no name of a persona: {error}"))
        })?;
        // It is cut off here, and is told so rather than that what it had is of another time.
        let refuse_stopped = || {
            let id = PersonaId::new(self.control.host_id(), name.clone());
            let known = self.control.record().state().persona(&id).cloned();
            match self.peer.stops.has(&name) || known.is_some_and(|known| known.killed) {
                true => Err(error::denied(&format!("this host has stopped {name}"))),
                false => Ok(()),
            }
        };
        refuse_stopped()?;
        let known = || self.speakers.borrow().get(&name).cloned();
        if let Some(known) = known() {
            return Ok(known);
        }
        let _one = self.introducing.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        if self.speakers.borrow().len() >= limits::PEER_SPEAKERS_MAX {
            return Err(error::busy(&format!(
                "{} personas of this peer speak here already",
                limits::PEER_SPEAKERS_MAX
            )));
        }
        let at_home = PersonaName::new(theirs).map_err(|error| {
            error::denied(&format!("'{theirs}' is no name of a persona: {error}"))
        })?;
        let origin = self.origin(at_home, introduction)?;
        let _busy = self.control.busy();
        let keyed = self.control.key_guest(&name, origin, &self.peer.allowance);
        keyed.await?;
        refuse_stopped()?;
        let persona = PersonaId::new(self.control.host_id(), name.clone());
        let holder = Holder::new(
            self.control.clone(),
            Arc::default(),
            self.facets.clone(),
            self.wire.clone(),
            persona,
            self.holder.epoch,
        );
        holder.draw_on(&self.peer.allowance);
        let holders = &mut *self.speakers.borrow_mut();
        Ok(holders.entry(name).or_insert(holder).clone())
    }

    /// Who a persona of the peer's is at home, as far as the peer says so.
    fn origin(
        &self,
        at_home: PersonaName,
        introduction: agora_capnp::peer_capnp::introduction::Reader<'_>,
    ) -> Result<Origin, Error> {
        let malformed =
            |what: &str| error::denied(&format!("an introduction whose {what} is malformed"));
        let optional = |bytes: &[u8], what: &str| match bytes {
            [] => Ok(None),
            bytes => <[u8; 32]>::try_from(bytes)
                .map(Some)
                .map_err(|_| malformed(what)),
        };
        let signature = match introduction.get_signature()? {
            [] => None,
            bytes => Some(<[u8; 64]>::try_from(bytes).map_err(|_| malformed("signature"))?),
        };
        let known = self.peer.known();
        Ok(Origin {
            peer: self.peer.id().map(|id| id.to_bytes()).unwrap_or_default(),
            host: known.as_ref().map(|known| known.host),
            realm: known.as_ref().map(|known| known.realm),
            persona: Some(at_home),
            public_key: optional(introduction.get_public_key()?, "key")?.map(PublicKey),
            component: optional(introduction.get_component()?, "component")?.map(ComponentHash),
            signature,
        })
    }
}

/// Deliveries to a peer that go on until it is dropped.
struct Following {
    task: tokio::task::JoinHandle<()>,
    _place: FollowPlace,
}

impl following::Server for Following {}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One channel that is followed in a graft.
struct FollowPlace(Rc<RefCell<HashSet<ChannelName>>>, ChannelName);

impl FollowPlace {
    fn take(
        live: &Rc<RefCell<HashSet<ChannelName>>>,
        channel: &ChannelName,
    ) -> Result<Self, Error> {
        let mut followed = live.borrow_mut();
        if followed.contains(channel) {
            return Err(error::busy(&format!(
                "this graft follows '{channel}' already; let go of that first"
            )));
        }
        if followed.len() >= limits::PEER_FOLLOWS_MAX {
            return Err(error::busy(&format!(
                "this graft follows {} channels; let go of one first",
                limits::PEER_FOLLOWS_MAX
            )));
        }
        followed.insert(channel.clone());
        Ok(Self(live.clone(), channel.clone()))
    }
}

impl Drop for FollowPlace {
    fn drop(&mut self) {
        self.0.borrow_mut().remove(&self.1);
    }
}
