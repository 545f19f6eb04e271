# A channel, as whoever was granted it sees it: agents now, operators through their own door, peers later. The
# other side is always the host. Holding the capability is the permission; a channel's name grants nothing.

@0xdc3cd592ce84c308;

using Act = import "act.capnp".Act;
using Refusal = import "act.capnp".Refusal;
using Terms = import "terms.capnp".Terms;

interface Channel {
  # One facet of a channel: a channel seen through terms. All facets of a channel share one order of messages.
  # Every call fails as stale once the wall it crossed is revoked; graft again for a fresh facet.

  info @0 () -> (info :Info);
  # What this facet is and allows, now. Cheap.

  speak @1 (drafts :List(Draft), through :UInt64 = 0) -> (outcomes :List(Outcome));
  # The one way to publish. Without `through` each draft stands alone. With it this is a turn: the answer to all
  # deliveries up to that ordinal, and it takes effect exactly once, however often it is repeated. Drafts for
  # other channels go first. No drafts, with `through`, is silence: it only moves the cursor. Outcomes stand in the order of the drafts;
  # one draft's refusal holds back neither the others nor the cursor. Answers when all is durable and judged.
  # A call cut in flight has an unknown outcome: repeat it with the same keys or the same `through`.

  subscribe @2 (sink :Sink, window :UInt32 = 0) -> (subscription :Subscription, cursor :UInt64);
  # Delivers every counting message after the persona's cursor, in order, except its own. There is one cursor per persona and
  # channel; a new subscription replaces the old one. `window` is the most messages that may be delivered and not
  # yet answered (0: the host's default). Needs the read right.

  history @3 (from :UInt64, count :UInt32) -> (messages :List(Message), next :UInt64, pruned :UInt64);
  # Counting messages from ordinal `from` on, at most `count` and at most what fits one frame. `next` is where to go on; equal to
  # `from` when there is nothing more yet. Needs the read right; reaches back as far as the terms' history. Messages up to the ordinal
  # `pruned` (0: none) were pruned by the operator: they are passed over, also by `next`, and nobody can read them any more.

  attenuate @4 (terms :Terms, lasting :Bool = false) -> (channel :Channel, revoker :Revoker);
  # A narrower facet, for passing on, with its own cut-off. What is asked for beyond these terms is not granted.
  # Recorded as a grant under this one; dies with it, and at the fence. Needs the attenuate right, here or on the facet
  # that this one was narrowed from by the same agent.
  # With `lasting`, it is to be lent for good: whoever it is lent to has it again by name at their next graft, for as long as this
  # agent's own grant stands. The facet itself still goes with the graft. Of a facet that is itself held in passing nothing lasts.

  # Lending: a facet that an agent passes to another, in a call or in an answer, arrives as the other's own, under the
  # same terms. What is said through it is said by the borrower, and draws on the lender's budgets. Recorded as a grant; it
  # dies with the lender's facet, graft, or life.

  struct Info {
    name @0 :Text;
    hops @1 :UInt16;       # What a message without a parent carries here.
    reactions @2 :UInt32;  # A thread's reaction budget.
    carry @3 :Bool;        # Whether messages outlive a fence.
    terms @4 :Terms;       # Effective: this facet's and those of all above it.
    latest @5 :UInt64;     # Ordinal of the newest counting message; 0 when there is none.
    cursor @6 :UInt64;     # The persona's.
    nextKey @7 :UInt64;    # The lowest key a new message may carry.
  }
}

interface Sink {
  # What a subscriber passes in. Its messages come in one stream.

  deliver @0 (messages :List(Message)) -> stream;
  # Messages in order. Answering late slows only this subscription.

  ended @1 (reason :Text) -> ();
  # The subscription is over (replaced, or the grant is gone) although the wall stands.

  skipped @2 (from :UInt64, through :UInt64) -> ();
  # Messages from one ordinal through another were pruned by the operator before they were delivered, and never will be. What follows is
  # delivered. A sink that does not know this call misses them untold.
}

interface Subscription {
  # Dropping it ends the deliveries.
}

interface Revoker {
  # Cuts one facet and everything made from it. Dropping a revoker cuts nothing.

  revoke @0 (reason :Text) -> ();
  # Answers when the cut is on the record; the facet fails from the moment this is called. Repeating is harmless.
}

struct Draft {
  # What an agent offers. Author, epoch, time, hops and signature are the host's to stamp.

  act @0 :Act;
  parent @1 :Data;
  # Id of the message this answers. Empty: the start of a thread, which needs the initiate right.
  contentType @2 :Text;
  # A media type, at most 128 bytes; empty means text/plain; charset=utf-8.
  payload @3 :Data;
  key @4 :UInt64;
  # The author's number for this message, rising per channel. Repeating a key gives the first receipt again.
  # Zero: the host numbers it, and a repeat is another message. Ignored in a turn, which is its own key.
  hopsMax @5 :UInt16 = 0xffff;
  # The author's own wish for fewer hops. It can't give more.
  owner @6 :Text;
  # Root requests only: the persona that decides, as `name` or `name@host`.
  deadlineMs @7 :Int64;
  # Root requests only: milliseconds from now until the thread lapses undecided. Zero: never.
  to @8 :Channel;
  # In a turn: the facet to speak on, when it is not the one called.
}

struct Outcome {
  union {
    receipt @0 :Receipt;
    refused :group {
      reason @1 :Refusal;
      text @2 :Text;      # For people: what happened, and what to do.
    }
  }
}

struct Receipt {
  # Proof of a place: the message is durable, and judged to count.

  id @0 :Data;            # 32 bytes. What an answer names as its parent.
  channel @1 :Text;
  ordinal @2 :UInt64;     # Its place among the channel's counting messages, from 1.
  epoch @3 :UInt64;
  hops @4 :UInt16;
  durability @5 :Durability;
  repeated @6 :Bool;      # The same key or turn was already in: this is its first receipt.
}

enum Durability {
  unknown @0;
  fsync @1;               # On this host's disk, synced.
  acknowledged @2;        # A log server said so. What that is worth is the operator's to know.
  asserted @3;            # A log server said so, and the operator asserts that it syncs.
}

struct Message {
  # A message that counts, as a reader sees it.

  ordinal @0 :UInt64;
  id @1 :Data;
  parent @2 :Data;        # Empty for a root.
  thread @3 :Data;        # The root's id; a root's own.
  author @4 :Text;        # As planner@1a2b3c4d; the host's part is its id, shortened.
  act @5 :Act;
  hops @6 :UInt16;        # What is left. At 0 it can't be answered.
  contentType @7 :Text;
  payload @8 :Data;
  timeMs @9 :Int64;
  epoch @10 :UInt64;
  owner @11 :Text;        # Who decides the thread, when this roots one with an owner.
  deadlineMs @12 :Int64;  # When it lapses, milliseconds since 1970-01-01 UTC; 0: never.
  mine @13 :Bool;         # In history: the reader's own persona wrote it.
}
