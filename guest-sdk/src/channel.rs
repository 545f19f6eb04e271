//! Speaking and listening.
//!
//! In: drafts; messages delivered by the host. Out: outcomes; [`Heard`].
//! Promise: calls are sent when made, not when awaited, and keep their order. A turn takes effect exactly once.
//! Failure: stale once the epoch has ended or the grant was revoked; the outcome of a call cut in flight is unknown, and
//! repeating it with the same key, or for the same message, is safe.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::task::{Poll, Waker};

use agora_capnp::channel_capnp::{channel, revoker, sink, subscription};
use futures::FutureExt;

use crate::error::Error;
use crate::message::{Draft, Message, Outcome, Terms, read_outcome};

/// The most payload bytes that fit one call, with room for what stands around them.
const CALL_BYTES_MAX: usize = crate::wire::FRAME_BYTES_MAX - 64 * 1024;

/// One facet of a channel. Clones are the same facet.
#[derive(Clone)]
pub struct Channel {
    name: Rc<str>,
    client: channel::Client,
}

/// What a facet is and allows, now.
#[derive(Clone, Debug)]
pub struct Info {
    /// The channel's name.
    pub name: String,
    /// What a message without a parent carries here.
    pub hops: u16,
    /// How many messages besides its root a thread may have.
    pub reactions: u32,
    /// Whether messages outlive an epoch.
    pub carry: bool,
    /// Effective: this facet's and those of all above it.
    pub terms: Terms,
    /// Ordinal of the newest message; 0 when there is none.
    pub latest: u64,
    /// The persona's place.
    pub cursor: u64,
    /// The lowest key that a new message may carry.
    pub next_key: u64,
}

impl Channel {
    /// A facet received by any other way than a graft, under a name of one's own; [`adopt`](Channel::adopt) asks for its name.
    pub fn from_client(name: &str, client: channel::Client) -> Self {
        Self {
            name: name.into(),
            client,
        }
    }

    /// A facet that another agent passed in a call or an answer: lent, so what is said through it is said by this agent. Asks the host
    /// which channel it is.
    ///
    /// # Errors
    /// Denied when it could not be lent; stale once the lender's facet, graft or life is over.
    pub async fn adopt(client: channel::Client) -> Result<Self, Error> {
        let facet = Self::from_client("", client);
        let name = facet.info().await?.name;
        Ok(Self::from_client(&name, facet.client))
    }

    /// The capability itself, for passing on in a call of one's own: to another agent it arrives lent, as that agent's own.
    pub fn client(&self) -> channel::Client {
        self.client.clone()
    }

    /// The channel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What this facet is and allows.
    ///
    /// # Errors
    /// Stale.
    pub async fn info(&self) -> Result<Info, Error> {
        let response = self.client.info_request().send().promise.await?;
        let info = response.get()?.get_info()?;
        Ok(Info {
            name: info.get_name()?.to_str()?.to_owned(),
            hops: info.get_hops(),
            reactions: info.get_reactions(),
            carry: info.get_carry(),
            terms: Terms::read(info.get_terms()?)?,
            latest: info.get_latest(),
            cursor: info.get_cursor(),
            next_key: info.get_next_key(),
        })
    }

    /// Publishes drafts that answer no delivery, each for itself. Sent at once; the future waits for the outcomes.
    pub fn speak(
        &self,
        drafts: Vec<Draft>,
    ) -> impl Future<Output = Result<Vec<Outcome>, Error>> + use<> {
        self.send(drafts.into_iter().map(|draft| (draft, None)).collect(), 0)
    }

    /// Publishes one draft. The inner result says whether it counts.
    ///
    /// # Errors
    /// Stale, busy (the log is full or away), or too large.
    pub fn say(&self, draft: Draft) -> impl Future<Output = Result<Outcome, Error>> + use<> {
        self.speak(vec![draft]).map(|outcomes| only(outcomes?))
    }

    /// Answers a message: sets the draft's parent, and moves the cursor past the message. Exactly once, however often it is repeated.
    ///
    /// The inner result says whether the answer counts; the cursor moves either way. An answer over its grant's rate waits for it, up to a
    /// minute.
    ///
    /// # Errors
    /// Stale, busy, or too large. The cursor stands then, and the answer is to be taken again.
    pub fn reply(
        &self,
        to: &Message,
        draft: Draft,
    ) -> impl Future<Output = Result<Outcome, Error>> + use<> {
        self.turn(to)
            .reply(draft)
            .take()
            .map(|outcomes| only(outcomes?))
    }

    /// Says nothing to a message, and moves the cursor past it.
    ///
    /// # Errors
    /// Stale.
    pub fn pass(&self, message: &Message) -> impl Future<Output = Result<(), Error>> + use<> {
        self.turn(message).take().map(|outcomes| outcomes.map(drop))
    }

    /// A turn that answers everything up to and including `message`; add drafts, then [`Turn::take`] it.
    pub fn turn(&self, message: &Message) -> Turn {
        Turn {
            channel: self.clone(),
            message: message.clone(),
            drafts: Vec::new(),
        }
    }

    fn send(
        &self,
        drafts: Vec<(Draft, Option<Channel>)>,
        through: u64,
    ) -> impl Future<Output = Result<Vec<Outcome>, Error>> + use<> {
        let mut request = self.client.speak_request();
        request.get().set_through(through);
        let mut list = request.get().init_drafts(drafts.len() as u32);
        for (i, (draft, to)) in drafts.iter().enumerate() {
            draft.write(to.as_ref(), list.reborrow().get(i as u32));
        }
        let bytes = request
            .get()
            .into_reader()
            .total_size()
            .map_or(usize::MAX, |size| size.word_count as usize * 8);
        let sent = (bytes <= CALL_BYTES_MAX).then(|| request.send().promise);
        async move {
            let Some(promise) = sent else {
                return Err(Error::denied(format!(
                    "{bytes} bytes of drafts are over the {CALL_BYTES_MAX} that fit one call"
                )));
            };
            let response = promise.await?;
            response
                .get()?
                .get_outcomes()?
                .iter()
                .map(read_outcome)
                .collect()
        }
    }

    /// Everything after the persona's cursor, in order, except its own; then what comes. A new subscription replaces the old one.
    ///
    /// # Errors
    /// Stale; denied without the read right.
    pub async fn subscribe(&self) -> Result<Heard, Error> {
        self.subscribe_with_window(0).await
    }

    /// [`Channel::subscribe`] with at most `window` messages delivered and not answered (0: the host's default).
    ///
    /// # Errors
    /// As [`Channel::subscribe`].
    pub async fn subscribe_with_window(&self, window: u32) -> Result<Heard, Error> {
        let inbox = Rc::new(RefCell::new(Inbox::default()));
        let mut request = self.client.subscribe_request();
        request.get().set_window(window);
        request
            .get()
            .set_sink(capnp_rpc::new_client(Ear(inbox.clone())));
        let response = request.send().promise.await?;
        let subscription = response.get()?.get_subscription()?;
        Ok(Heard {
            inbox,
            _subscription: subscription,
        })
    }

    /// Messages from ordinal `from` on (1 is the first), at most `count`, and where to go on. What the operator pruned is passed over: the
    /// first may have a later ordinal than `from`.
    ///
    /// # Errors
    /// Stale; denied without the read right.
    pub async fn history(&self, from: u64, count: u32) -> Result<(Vec<Message>, u64), Error> {
        let mut request = self.client.history_request();
        request.get().set_from(from);
        request.get().set_count(count);
        let response = request.send().promise.await?;
        let results = response.get()?;
        let messages = results
            .get_messages()?
            .iter()
            .map(Message::read)
            .collect::<Result<_, _>>()?;
        Ok((messages, results.get_next()))
    }

    /// A narrower facet, for passing on, and what cuts it.
    ///
    /// # Errors
    /// Stale; denied without the attenuate right; busy over the bound on live facets.
    pub async fn attenuate(&self, terms: &Terms) -> Result<(Channel, Revoker), Error> {
        self.narrow(terms, false).await
    }

    /// A narrower facet to be lent for good: whoever it is passed to has it again in their next graft (see
    /// [`Graft::lent`](crate::Graft::lent)), in later epochs too, for as long as this agent's own grant stands. The facet and its
    /// revoker themselves go with this graft; later the operator can take the grant back.
    ///
    /// # Errors
    /// As [`attenuate`](Channel::attenuate).
    pub async fn attenuate_lasting(&self, terms: &Terms) -> Result<(Channel, Revoker), Error> {
        self.narrow(terms, true).await
    }

    async fn narrow(&self, terms: &Terms, lasting: bool) -> Result<(Channel, Revoker), Error> {
        let mut request = self.client.attenuate_request();
        terms.write(request.get().init_terms());
        request.get().set_lasting(lasting);
        let response = request.send().promise.await?;
        let results = response.get()?;
        let facet = Channel::from_client(&self.name, results.get_channel()?);
        Ok((facet, Revoker(results.get_revoker()?)))
    }
}

fn only(outcomes: Vec<Outcome>) -> Result<Outcome, Error> {
    outcomes
        .into_iter()
        .next()
        .ok_or_else(|| Error::failed("the host answered one draft with no outcome"))
}

/// An answer in the making: exactly once, whatever happens between.
#[must_use = "a turn does nothing until it is taken"]
pub struct Turn {
    channel: Channel,
    message: Message,
    drafts: Vec<(Draft, Option<Channel>)>,
}

impl Turn {
    /// Adds an answer to the message.
    pub fn reply(mut self, draft: Draft) -> Self {
        self.drafts.push((draft.answering(self.message.id), None));
        self
    }

    /// Adds a draft as it is, on the same channel.
    pub fn say(mut self, draft: Draft) -> Self {
        self.drafts.push((draft, None));
        self
    }

    /// Adds a draft for another channel.
    pub fn say_on(mut self, channel: &Channel, draft: Draft) -> Self {
        self.drafts.push((draft, Some(channel.clone())));
        self
    }

    /// Takes the turn. Sent at once; the future waits for the outcomes, in the order of the drafts.
    pub fn take(self) -> impl Future<Output = Result<Vec<Outcome>, Error>> + use<> {
        self.channel.send(self.drafts, self.message.ordinal)
    }
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Message>,
    ended: Option<String>,
    skipped: Option<(u64, u64)>,
    waker: Option<Waker>,
}

/// What a subscription delivers. Dropping it ends the deliveries.
pub struct Heard {
    inbox: Rc<RefCell<Inbox>>,
    _subscription: subscription::Client,
}

impl Heard {
    /// The next message, waiting for one. `None` once the deliveries ended although the epoch goes on: a newer
    /// subscription replaced this one, or the facet was cut.
    ///
    /// # Errors
    /// None today; the epoch's end drops whoever waits here.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        Ok(std::future::poll_fn(|cx| self.poll_heard(cx)).await)
    }

    fn poll_heard(&self, cx: &mut std::task::Context<'_>) -> Poll<Option<Message>> {
        let mut inbox = self.inbox.borrow_mut();
        if let Some(message) = inbox.messages.pop_front() {
            return Poll::Ready(Some(message));
        }
        if inbox.ended.is_some() {
            return Poll::Ready(None);
        }
        inbox.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The ordinals, first and last, of messages that the operator pruned before they were delivered, if that happened since this was
    /// last asked.
    pub fn take_skipped(&mut self) -> Option<(u64, u64)> {
        self.inbox.borrow_mut().skipped.take()
    }

    /// What has been delivered already, without waiting.
    pub fn try_next(&mut self) -> Option<Message> {
        self.inbox.borrow_mut().messages.pop_front()
    }
}

/// The same as a stream, for combining with others. It ends where [`Heard::next`] answers `None`.
impl futures::Stream for Heard {
    type Item = Message;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Message>> {
        self.poll_heard(cx)
    }
}

struct Ear(Rc<RefCell<Inbox>>);

impl Ear {
    fn wake(&self) {
        let waker = self.0.borrow_mut().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl sink::Server for Ear {
    async fn deliver(self: Rc<Self>, params: sink::DeliverParams) -> Result<(), capnp::Error> {
        let messages = params.get()?.get_messages()?;
        for message in messages.iter() {
            let message =
                Message::read(message).map_err(|e| capnp::Error::failed(e.to_string()))?;
            self.0.borrow_mut().messages.push_back(message);
        }
        self.wake();
        Ok(())
    }

    async fn ended(
        self: Rc<Self>,
        params: sink::EndedParams,
        _results: sink::EndedResults,
    ) -> Result<(), capnp::Error> {
        let reason = params.get()?.get_reason()?.to_string()?;
        self.0.borrow_mut().ended = Some(reason);
        self.wake();
        Ok(())
    }

    async fn skipped(
        self: Rc<Self>,
        params: sink::SkippedParams,
        _results: sink::SkippedResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (from, through) = (params.get_from(), params.get_through());
        let skipped = &mut self.0.borrow_mut().skipped;
        let first = skipped.map_or(from, |(first, _)| first);
        *skipped = Some((first, through));
        Ok(())
    }
}

/// Cuts a facet, and everything made from it. Dropping it cuts nothing.
pub struct Revoker(revoker::Client);

impl Revoker {
    /// Cuts. The facet fails from now on; answers when the cut is on the record.
    ///
    /// # Errors
    /// Stale.
    pub async fn revoke(&self, reason: &str) -> Result<(), Error> {
        let mut request = self.0.revoke_request();
        request.get().set_reason(reason);
        request.send().promise.await?;
        Ok(())
    }
}
