//! One connection: greets or is greeted, then opens and accepts the streams of its lane and no others.
//!
//! In: what [`crate::links`] decides, and streams that negotiated. Promise: no stream is handed out before the greeting is
//! done, and none of another lane. Failure: a stream too many is reset; a peer that goes on is reported.

use std::{
    array, collections::VecDeque, convert::Infallible, fmt, future::Ready, io, sync::Arc,
    sync::Weak, sync::atomic::AtomicUsize, sync::atomic::Ordering, task::Context, task::Poll,
    task::Waker, time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    PeerId, StreamProtocol,
    core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, ProtocolsChange},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Sleep,
};

use crate::{
    Incoming, Lane, OpenError, Standing, Stream, Why,
    bucket::Bucket,
    greeting::{self, Carries, Incarnation, Verdict},
    lane, limits,
    status::Meter,
    stream::{Line, Permit},
};

pub(crate) type OpenReply = oneshot::Sender<Result<Stream, OpenError>>;

/// What the links tell a connection.
pub(crate) enum Say {
    /// Answer the greeting. After a welcome the connection carries the lane.
    Answer(Verdict),
    /// Open a stream.
    Open { lane: Lane, reply: OpenReply },
}

impl fmt::Debug for Say {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Say::Answer(verdict) => write!(f, "Answer({verdict:?})"),
            Say::Open { lane, .. } => write!(f, "Open({lane:?})"),
        }
    }
}

/// What a connection tells the links.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The peer dialed, and says for what.
    Greeting { carries: Carries, from: Incarnation },
    /// We dialed, and this is what the peer makes of it.
    Verdict { verdict: Verdict, from: Incarnation },
    /// It can't go on.
    Failed(Why),
    /// What the peer says it speaks.
    Speaks(Vec<String>),
}

/// What a connection begins with.
pub(crate) struct Begin {
    pub(crate) peer: PeerId,
    pub(crate) standing: Standing,
    /// What we dialed it for; nothing if the peer dialed.
    pub(crate) dialed_for: Option<Carries>,
    pub(crate) own: Incarnation,
    /// How long the greeting may take.
    pub(crate) patience: Duration,
    pub(crate) inbound: mpsc::Sender<Incoming>,
    /// Of the control lane and of bulk.
    pub(crate) meters: [Arc<Meter>; 2],
}

/// What an inbound stream may be.
pub(crate) struct Accept;

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = array::IntoIter<StreamProtocol, 4>;

    fn protocol_info(&self) -> Self::InfoIter {
        [lane::GREETING, lane::CONTROL, lane::VAT, lane::LOGIN].into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Accept {
    type Output = (libp2p::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, name: StreamProtocol) -> Self::Future {
        std::future::ready(Ok((stream, name)))
    }
}

/// What an outbound stream is opened for.
pub(crate) enum Purpose {
    Greet(Carries),
    Open {
        lane: Lane,
        permit: Permit,
        reply: OpenReply,
    },
}

/// Where the greeting is.
enum Phase {
    /// We dialed: the greeting is to be sent, or was.
    Greeting,
    /// The peer dialed: its greeting is awaited.
    Awaiting,
    /// It came: the links decide.
    Deciding {
        stream: libp2p::Stream,
        carries: Carries,
    },
    /// The connection carries a lane. `guest` says who of the two may open no more than a login.
    Open { lane: Lane, guest_there: bool },
    /// It carries no lane: others have their streams on it, we have none.
    Errands,
    /// The answer was no.
    Closed,
}

enum Talk {
    Heard(io::Result<(libp2p::Stream, Carries, Incarnation)>),
    Verdict(Carries, io::Result<(Verdict, Incarnation)>),
    Answered,
}

type Event = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Purpose, Heard>;

pub(crate) struct Handler {
    begin: Begin,
    phase: Phase,
    talk: Option<BoxFuture<'static, Talk>>,
    events: VecDeque<Event>,
    /// Every stream that was handed out and isn't gone.
    lines: Vec<Weak<Line>>,
    streams_in: Arc<AtomicUsize>,
    streams_out: Arc<AtomicUsize>,
    bucket: Bucket,
    refused: u32,
    theirs: Option<Vec<String>>,
    /// Waits for identify to say what the peer speaks, once it is known not to speak our greeting.
    no_greeting: Option<std::pin::Pin<Box<Sleep>>>,
    waker: Option<Waker>,
}

impl Handler {
    pub(crate) fn new(begin: Begin) -> Self {
        let mut events = VecDeque::new();
        let phase = match begin.dialed_for {
            Some(carries) => {
                events.push_back(request(
                    lane::GREETING,
                    Purpose::Greet(carries),
                    begin.patience,
                ));
                Phase::Greeting
            }
            None => Phase::Awaiting,
        };
        Self {
            begin,
            phase,
            talk: None,
            events,
            lines: Vec::new(),
            streams_in: Arc::default(),
            streams_out: Arc::default(),
            bucket: Bucket::new(limits::STREAMS_BURST, limits::STREAMS_PER_S),
            refused: 0,
            theirs: None,
            no_greeting: None,
            waker: None,
        }
    }

    fn tell(&mut self, heard: Heard) {
        self.events
            .push_back(ConnectionHandlerEvent::NotifyBehaviour(heard));
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn meter(&self, lane: Lane) -> Arc<Meter> {
        self.begin.meters[usize::from(lane.carrier() == Lane::Vat)].clone()
    }

    fn hand_out(&mut self, bytes: libp2p::Stream, permit: Permit, lane: Lane) -> Stream {
        let stream = Stream::new(bytes, permit, self.meter(lane));
        self.lines.retain(|line| line.strong_count() > 0);
        self.lines.push(stream.line());
        stream
    }

    fn open(&mut self, lane: Lane, reply: OpenReply) {
        let peer = self.begin.peer;
        let refused = match self.phase {
            Phase::Open { lane: carried, .. } if lane.carrier() != carried => {
                Some(OpenError::NotConnected { peer, lane })
            }
            Phase::Open {
                guest_there: true, ..
            } if lane != Lane::Login => Some(OpenError::Guest { peer }),
            Phase::Open { .. } => None,
            _ => Some(OpenError::NotConnected { peer, lane }),
        };
        if let Some(refused) = refused {
            let _ = reply.send(Err(refused));
            return;
        }
        let max = limits::LANE_STREAMS_OUT_MAX;
        match Permit::take(&self.streams_out, max, &self.meter(lane), false) {
            Some(permit) => {
                let purpose = Purpose::Open {
                    lane,
                    permit,
                    reply,
                };
                self.events.push_back(request(
                    lane.name(),
                    purpose,
                    Duration::from_millis(limits::NEGOTIATION_PATIENCE_MS),
                ));
                self.wake();
            }
            None => {
                let open = self.streams_out.load(Ordering::Relaxed);
                let _ = reply.send(Err(OpenError::TooMany { peer, lane, open }));
            }
        }
    }

    fn refuse(&mut self) {
        let lane = match self.phase {
            Phase::Open { lane, .. } => lane,
            _ => Lane::Control,
        };
        self.meter(lane)
            .streams_refused
            .fetch_add(1, Ordering::Relaxed);
        self.refused += 1;
        if self.refused == limits::STREAMS_REFUSED_MAX {
            self.tell(Heard::Failed(Why::Flooded));
        }
    }

    /// A stream of the peer's has negotiated.
    fn accepted(&mut self, bytes: libp2p::Stream, name: &StreamProtocol) {
        if !self.bucket.take() {
            return self.refuse();
        }
        let Some(lane) = Lane::of(name) else {
            // One greeting, from the side that dialed.
            if matches!(self.phase, Phase::Awaiting) && self.talk.is_none() {
                self.talk = Some(
                    greeting::hear(bytes, self.begin.patience)
                        .map(Talk::Heard)
                        .boxed(),
                );
                self.wake();
            } else {
                self.refuse();
            }
            return;
        };
        let carried = match &self.phase {
            Phase::Open { lane, .. } => *lane,
            _ => return self.refuse(),
        };
        let max = match self.begin.standing {
            Standing::Known if lane.carrier() == carried => limits::LANE_STREAMS_IN_MAX,
            Standing::Guest if lane == Lane::Login && carried == Lane::Control => {
                limits::GUEST_STREAMS_IN_MAX
            }
            _ => return self.refuse(),
        };
        let Some(permit) = Permit::take(&self.streams_in, max, &self.meter(lane), true) else {
            return self.refuse();
        };
        let stream = self.hand_out(bytes, permit, lane);
        let Begin { peer, standing, .. } = self.begin;
        if self
            .begin
            .inbound
            .try_send(Incoming {
                peer,
                standing,
                lane,
                stream,
            })
            .is_err()
        {
            self.refuse();
        }
    }

    fn opened(&mut self, bytes: libp2p::Stream, purpose: Purpose) {
        match purpose {
            Purpose::Greet(carries) => {
                let Begin { own, patience, .. } = self.begin;
                let greeted = greeting::greet(bytes, carries, own, patience)
                    .map(move |done| Talk::Verdict(carries, done));
                self.talk = Some(greeted.boxed());
                self.wake();
            }
            Purpose::Open {
                lane,
                permit,
                reply,
            } => {
                let stream = self.hand_out(bytes, permit, lane);
                let _ = reply.send(Ok(stream));
            }
        }
    }

    fn not_opened(&mut self, purpose: Purpose, error: StreamUpgradeError<Infallible>) {
        let peer = self.begin.peer;
        match purpose {
            Purpose::Greet(_) => match error {
                StreamUpgradeError::NegotiationFailed => self.no_common_greeting(),
                StreamUpgradeError::Timeout => self.tell(Heard::Failed(Why::TimedOut)),
                StreamUpgradeError::Io(cause) => {
                    self.tell(Heard::Failed(Why::Lost(cause.to_string())))
                }
                StreamUpgradeError::Apply(never) => match never {},
            },
            Purpose::Open { lane, reply, .. } => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::NoCommonProtocol {
                        peer,
                        lane,
                        theirs: self.theirs.clone().unwrap_or_default(),
                    },
                    StreamUpgradeError::Timeout => OpenError::TimedOut { peer },
                    StreamUpgradeError::Io(_) => OpenError::Disconnected { peer },
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = reply.send(Err(error));
            }
        }
    }

    fn no_common_greeting(&mut self) {
        match self.theirs.clone() {
            Some(theirs) => self.tell(Heard::Failed(Why::NoCommonProtocol { theirs })),
            None => {
                let patience = Duration::from_millis(limits::IDENTIFY_PATIENCE_MS);
                self.no_greeting = Some(Box::pin(tokio::time::sleep(patience)));
                self.wake();
            }
        }
    }

    /// Identify has told what the peer speaks. It may lie: this names things for people, and decides only whether to go on.
    fn speaks<'a>(&mut self, names: impl Iterator<Item = &'a StreamProtocol>) {
        let mut greets = false;
        let mut theirs = Vec::new();
        for name in names {
            greets |= *name == lane::GREETING;
            if theirs.len() < limits::THEIR_PROTOCOLS_MAX {
                theirs.push(
                    name.as_ref()
                        .chars()
                        .take(limits::THEIR_PROTOCOL_BYTES_MAX / 4)
                        .collect(),
                );
            }
        }
        theirs.sort();
        self.theirs = Some(theirs.clone());
        self.tell(Heard::Speaks(theirs.clone()));
        let ungreeted = matches!(self.phase, Phase::Awaiting) && self.talk.is_none();
        if self.no_greeting.take().is_some() || (ungreeted && !greets) {
            self.tell(Heard::Failed(Why::NoCommonProtocol { theirs }));
        }
    }

    fn talked(&mut self, talk: Talk) {
        match talk {
            Talk::Heard(Ok((stream, carries, from))) => {
                self.phase = Phase::Deciding { stream, carries };
                self.tell(Heard::Greeting { carries, from });
            }
            Talk::Verdict(carries, Ok((verdict, from))) => {
                self.phase = match (verdict, carries) {
                    (Verdict::Refused | Verdict::Duplicate, _) => Phase::Closed,
                    (_, Carries::Errands) => Phase::Errands,
                    (_, Carries::Lane(lane)) => Phase::Open {
                        lane,
                        guest_there: verdict == Verdict::Guest,
                    },
                };
                self.tell(Heard::Verdict { verdict, from });
            }
            Talk::Heard(Err(cause)) | Talk::Verdict(_, Err(cause)) => {
                let why = match cause.kind() {
                    io::ErrorKind::TimedOut => Why::TimedOut,
                    io::ErrorKind::InvalidData => Why::Lost(cause.to_string()),
                    _ => Why::HungUp,
                };
                self.tell(Heard::Failed(why));
            }
            Talk::Answered => {}
        }
    }

    fn cut_all(&mut self) {
        for line in self.lines.drain(..) {
            if let Some(line) = line.upgrade() {
                line.cut();
            }
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.cut_all();
    }
}

fn request(name: StreamProtocol, purpose: Purpose, patience: Duration) -> Event {
    let protocol = SubstreamProtocol::new(ReadyUpgrade::new(name), purpose);
    ConnectionHandlerEvent::OutboundSubstreamRequest {
        protocol: protocol.with_timeout(patience),
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Say;
    type ToBehaviour = Heard;
    type InboundProtocol = Accept;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        SubstreamProtocol::new(Accept, ())
            .with_timeout(Duration::from_millis(limits::NEGOTIATION_PATIENCE_MS))
    }

    /// The links end connections; being idle doesn't.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, say: Say) {
        match say {
            Say::Open { lane, reply } => self.open(lane, reply),
            Say::Answer(verdict) => {
                let Phase::Deciding { stream, carries } =
                    std::mem::replace(&mut self.phase, Phase::Closed)
                else {
                    return;
                };
                if matches!(verdict, Verdict::Welcome | Verdict::Guest) {
                    self.phase = match carries {
                        Carries::Errands => Phase::Errands,
                        Carries::Lane(lane) => Phase::Open {
                            lane,
                            guest_there: false,
                        },
                    };
                }
                let answered =
                    greeting::answer(stream, verdict, self.begin.own, self.begin.patience);
                self.talk = Some(answered.map(|_| Talk::Answered).boxed());
                self.wake();
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Accept, ReadyUpgrade<StreamProtocol>, (), Purpose>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(stream) => {
                let (bytes, name) = stream.protocol;
                self.accepted(bytes, &name);
            }
            ConnectionEvent::FullyNegotiatedOutbound(stream) => {
                self.opened(stream.protocol, stream.info)
            }
            ConnectionEvent::DialUpgradeError(failed) => self.not_opened(failed.info, failed.error),
            ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Added(names)) => {
                self.speaks(names)
            }
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(talk) = &mut self.talk
            && let Poll::Ready(done) = talk.poll_unpin(cx)
        {
            self.talk = None;
            self.talked(done);
        }
        if let Some(patience) = &mut self.no_greeting
            && patience.poll_unpin(cx).is_ready()
        {
            self.no_greeting = None;
            self.tell(Heard::Failed(Why::NoCommonProtocol { theirs: Vec::new() }));
        }
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.cut_all();
        Poll::Ready(None)
    }
}
