//! What is said: messages heard, drafts offered, receipts and refusals in return.

use agora_capnp::act_capnp;
use agora_capnp::channel_capnp;
use agora_capnp::terms_capnp::terms;

use crate::channel::Channel;
use crate::error::Error;

/// Names a message: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub [u8; 32]);

impl std::fmt::Debug for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl MessageId {
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        Some(Self(data.try_into().ok()?))
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The speech act: what is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// States something.
    Inform,
    /// Asks for something.
    Request,
    /// Offers something for others to agree to or refuse.
    Propose,
    /// Agrees.
    Agree,
    /// Declines.
    Refuse,
    /// Settles a thread.
    Decide,
}

impl Act {
    fn read(act: Result<act_capnp::Act, capnp::NotInSchema>) -> Self {
        match act {
            // An act that a newer host knows and this agent does not, is heard as a statement.
            Ok(act_capnp::Act::Inform) | Err(_) => Self::Inform,
            Ok(act_capnp::Act::Request) => Self::Request,
            Ok(act_capnp::Act::Propose) => Self::Propose,
            Ok(act_capnp::Act::Agree) => Self::Agree,
            Ok(act_capnp::Act::Refuse) => Self::Refuse,
            Ok(act_capnp::Act::Decide) => Self::Decide,
        }
    }

    fn wire(self) -> act_capnp::Act {
        match self {
            Self::Inform => act_capnp::Act::Inform,
            Self::Request => act_capnp::Act::Request,
            Self::Propose => act_capnp::Act::Propose,
            Self::Agree => act_capnp::Act::Agree,
            Self::Refuse => act_capnp::Act::Refuse,
            Self::Decide => act_capnp::Act::Decide,
        }
    }
}

/// A message that counts, as delivered or read.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its place among the channel's counting messages, from 1.
    pub ordinal: u64,
    /// Its name; what an answer names as its parent.
    pub id: MessageId,
    /// What it answers; `None` for the root of a thread.
    pub parent: Option<MessageId>,
    /// The root of its thread.
    pub thread: MessageId,
    /// Who said it, as `planner@1a2b3c4d`.
    pub author: String,
    /// What is meant.
    pub act: Act,
    /// How often it can still be answered down the chain; at 0 an answer is refused.
    pub hops: u16,
    /// A media type; empty means `text/plain; charset=utf-8`.
    pub content_type: String,
    /// What is said.
    pub payload: Vec<u8>,
    /// When the host admitted it: milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
    /// The epoch it was said in.
    pub epoch: u64,
    /// Who decides its thread, when it roots one that has an owner.
    pub owner: Option<String>,
    /// When that thread lapses undecided: milliseconds since 1970-01-01 UTC.
    pub deadline_ms: Option<i64>,
    /// In history: the reader's own persona said it.
    pub mine: bool,
}

impl Message {
    pub(crate) fn read(reader: channel_capnp::message::Reader<'_>) -> Result<Self, Error> {
        let text =
            |t: capnp::Result<capnp::text::Reader<'_>>| Ok::<_, Error>(t?.to_str()?.to_owned());
        let id = MessageId::read(reader.get_id()?)
            .ok_or_else(|| Error::failed("a message without an id"))?;
        let owner = text(reader.get_owner())?;
        Ok(Self {
            ordinal: reader.get_ordinal(),
            id,
            parent: MessageId::read(reader.get_parent()?),
            thread: MessageId::read(reader.get_thread()?).unwrap_or(id),
            author: text(reader.get_author())?,
            act: Act::read(reader.get_act()),
            hops: reader.get_hops(),
            content_type: text(reader.get_content_type())?,
            payload: reader.get_payload()?.to_vec(),
            time_ms: reader.get_time_ms(),
            epoch: reader.get_epoch(),
            owner: (!owner.is_empty()).then_some(owner),
            deadline_ms: Some(reader.get_deadline_ms()).filter(|ms| *ms != 0),
            mine: reader.get_mine(),
        })
    }

    /// The payload as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.payload)
    }

    /// The author's name without the host's part.
    pub fn author_name(&self) -> &str {
        self.author.split('@').next().unwrap_or(&self.author)
    }
}

/// What an agent offers to say. Author, epoch, time, hops and signature are the host's to stamp.
#[derive(Clone, Debug)]
pub struct Draft {
    act: Act,
    payload: Vec<u8>,
    content_type: String,
    parent: Option<MessageId>,
    key: u64,
    hops_max: u16,
    owner: String,
    deadline_ms: i64,
}

impl Draft {
    /// A draft with this act and payload. Without [`Draft::answering`] it starts a thread.
    pub fn new(act: Act, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            act,
            payload: payload.into(),
            content_type: String::new(),
            parent: None,
            key: 0,
            hops_max: u16::MAX,
            owner: String::new(),
            deadline_ms: 0,
        }
    }

    /// Answers this message.
    pub fn answering(mut self, parent: MessageId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The payload's media type, at most 128 bytes.
    pub fn content_type(mut self, media_type: impl Into<String>) -> Self {
        self.content_type = media_type.into();
        self
    }

    /// The author's number for this message, above all it used before on the channel: repeating it gives the first receipt
    /// again. Outside a turn only; see [`crate::channel::Info::next_key`].
    pub fn key(mut self, key: u64) -> Self {
        self.key = key;
        self
    }

    /// A wish for fewer hops than the host would stamp. It can't give more.
    pub fn hops_max(mut self, hops: u16) -> Self {
        self.hops_max = hops;
        self
    }

    /// For a request that starts a thread: who decides it, as `name` or `name@host`.
    pub fn owner(mut self, persona: impl Into<String>) -> Self {
        self.owner = persona.into();
        self
    }

    /// For a request with an owner: the thread lapses when it is undecided after this long.
    pub fn deadline(mut self, after: std::time::Duration) -> Self {
        self.deadline_ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        self
    }

    pub(crate) fn write(
        &self,
        to: Option<&Channel>,
        mut builder: channel_capnp::draft::Builder<'_>,
    ) {
        builder.set_act(self.act.wire());
        if let Some(parent) = &self.parent {
            builder.set_parent(&parent.0);
        }
        builder.set_content_type(self.content_type.as_str());
        builder.set_payload(&self.payload);
        builder.set_key(self.key);
        builder.set_hops_max(self.hops_max);
        builder.set_owner(self.owner.as_str());
        builder.set_deadline_ms(self.deadline_ms);
        if let Some(to) = to {
            builder.set_to(to.client());
        }
    }
}

macro_rules! drafts {
    ($($name:ident $act:ident $what:literal)*) => {
        impl Draft {
            $(#[doc = concat!("A draft that ", $what, ".")]
            pub fn $name(payload: impl Into<Vec<u8>>) -> Self {
                Self::new(Act::$act, payload)
            })*
        }
    };
}

drafts! {
    inform Inform "states something"
    request Request "asks for something"
    propose Propose "offers something"
    agree Agree "agrees"
    refuse Refuse "declines; say why"
    decide Decide "settles its thread"
}

/// Proof of a place in the log: the message is durable, and judged to count.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The message's name.
    pub id: MessageId,
    /// The channel it stands on.
    pub channel: String,
    /// Its place there.
    pub ordinal: u64,
    /// The epoch it was said in.
    pub epoch: u64,
    /// The hops the host stamped.
    pub hops: u16,
    /// The same key or turn was already in; this is the first receipt.
    pub repeated: bool,
}

/// Why something was refused; see capnp/act.capnp for what each means.
pub use act_capnp::Refusal;

/// What to do about a [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalClass {
    /// Repeating can't succeed.
    Stop,
    /// The same may succeed later.
    Wait,
    /// The capability or the turn is of another time.
    Regraft,
}

/// A refusal, with the host's explanation.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// For people.
    pub text: String,
}

/// A [`Refusal`], or one that only a newer host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub Refusal);

impl Reason {
    /// What to do about it.
    pub fn class(self) -> RefusalClass {
        match self.0 {
            Refusal::RateLimited
            | Refusal::LogUnavailable
            | Refusal::Overloaded
            | Refusal::PeerAway => RefusalClass::Wait,
            Refusal::StaleEpoch | Refusal::Revoked => RefusalClass::Regraft,
            _ => RefusalClass::Stop,
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What became of one draft.
pub type Outcome = Result<Receipt, Refused>;

pub(crate) fn read_outcome(reader: channel_capnp::outcome::Reader<'_>) -> Result<Outcome, Error> {
    use channel_capnp::outcome::Which;
    Ok(match reader.which()? {
        Which::Receipt(receipt) => {
            let receipt = receipt?;
            Ok(Receipt {
                id: MessageId::read(receipt.get_id()?)
                    .ok_or_else(|| Error::failed("a receipt without an id"))?,
                channel: receipt.get_channel()?.to_str()?.to_owned(),
                ordinal: receipt.get_ordinal(),
                epoch: receipt.get_epoch(),
                hops: receipt.get_hops(),
                repeated: receipt.get_repeated(),
            })
        }
        Which::Refused(refused) => Err(Refused {
            reason: Reason(refused.get_reason().unwrap_or(Refusal::Unknown)),
            text: refused.get_text()?.to_str()?.to_owned(),
        }),
    })
}

/// What a facet allows. Start from [`Terms::all`] and narrow; what is asked for beyond a facet's own terms is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// May receive and read.
    pub read: bool,
    /// May speak.
    pub write: bool,
    /// May start threads.
    pub initiate: bool,
    /// May make narrower facets.
    pub attenuate: bool,
    /// The acts that may be spoken; `None`: all.
    pub acts: Option<Vec<Act>>,
    /// The most hops a message may carry.
    pub hops: u16,
    /// The largest payload, in bytes.
    pub bytes_max: u32,
    /// How many messages may count in all.
    pub count: u64,
    /// At most so many messages per so many milliseconds.
    pub rate: Option<(u32, u32)>,
    /// Not after: milliseconds since 1970-01-01 UTC.
    pub until_ms: i64,
    /// How many messages from before the grant may be read.
    pub history: u64,
}

const ACTS: [Act; 6] = [
    Act::Inform,
    Act::Request,
    Act::Propose,
    Act::Agree,
    Act::Refuse,
    Act::Decide,
];

impl Terms {
    /// Everything.
    pub fn all() -> Self {
        Self {
            read: true,
            write: true,
            initiate: true,
            attenuate: true,
            acts: None,
            hops: u16::MAX,
            bytes_max: u32::MAX,
            count: u64::MAX,
            rate: None,
            until_ms: i64::MAX,
            history: u64::MAX,
        }
    }

    /// Reading alone.
    pub fn read_only() -> Self {
        Self {
            write: false,
            initiate: false,
            attenuate: false,
            ..Self::all()
        }
    }

    pub(crate) fn read(reader: terms::Reader<'_>) -> Result<Self, Error> {
        let rights = reader.get_rights();
        let bits = reader.get_acts();
        let rate = reader.get_rate()?;
        Ok(Self {
            read: rights & 1 != 0,
            write: rights & 2 != 0,
            initiate: rights & 4 != 0,
            attenuate: rights & 8 != 0,
            acts: (bits & 0x3f != 0x3f).then(|| {
                ACTS.into_iter()
                    .filter(|act| bits & (1 << act.wire() as u16) != 0)
                    .collect()
            }),
            hops: reader.get_hops(),
            bytes_max: reader.get_bytes_max(),
            count: reader.get_count(),
            rate: (rate.get_per_ms() != 0).then(|| (rate.get_messages(), rate.get_per_ms())),
            until_ms: reader.get_until_ms(),
            history: reader.get_history(),
        })
    }

    pub(crate) fn write(&self, mut builder: terms::Builder<'_>) {
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        builder.set_rights(
            bit(self.read, 1) | bit(self.write, 2) | bit(self.initiate, 4) | bit(self.attenuate, 8),
        );
        if let Some(acts) = &self.acts {
            builder.set_acts(
                acts.iter()
                    .fold(0, |bits, act| bits | 1 << act.wire() as u16),
            );
        }
        builder.set_hops(self.hops);
        builder.set_bytes_max(self.bytes_max);
        builder.set_count(self.count);
        if let Some((messages, per_ms)) = self.rate {
            let mut rate = builder.reborrow().init_rate();
            rate.set_messages(messages);
            rate.set_per_ms(per_ms);
        }
        builder.set_until_ms(self.until_ms);
        builder.set_history(self.history);
    }
}
