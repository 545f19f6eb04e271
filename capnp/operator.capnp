# The operator's door: a unix socket in the data folder whose bootstrap is Operator. Holding the socket is the
# authority, so the folder is the operator's alone. Agents never see it. Stops (kill, revoke, bump) act here and
# now and never wait for the log; what they answer says what is durable.

@0xc1375f8714ef7c37;

using Act = import "act.capnp".Act;
using Terms = import "terms.capnp".Terms;
using Channel = import "channel.capnp";

interface Operator {
  status @0 () -> (status :Status);
  # The host at a glance: its identity, epoch, log, agents and grants.

  watch @1 (feed :Feed, channel :Text, from :UInt64 = 0) -> (watching :Watching);
  # Every record from log place `from` on (0: from now), then live. Empty channel: all. An unknown channel fails with the valid names.

  say @2 (channel :Text, act :Act, text :Text, parent :Data, owner :Text, deadlineMs :Int64) -> (outcome :Channel.Outcome);
  # Speaks as operator:<uid of the caller>. Answers when durable and judged.

  grant @3 (agent :Text, channel :Text, terms :Terms, service :Text, timer :Bool, signer :Text) -> (outcome :Decided);
  # A new grant for an agent of this host, of a channel under terms, or of a service, or of the timer, or of a signer for a domain. The
  # agent has it from its next graft; its wall falls so that it grafts now. A peer, as peer:NAME, may be granted channels.

  revoke @4 (grant :Text, reason :Text) -> (outcome :Decided);
  # Takes one grant back, with all below it; by its number (as g7) or its id in hex. A peer, as peer:NAME: the same as `kill`.

  kill @5 (agent :Text, reason :Text) -> (outcome :Decided);
  # Ends the agent; it stays ended, also across restarts, until `start`. Answers with the agent gone. A peer, as peer:NAME: from here on
  # nobody lets it in, all that it and its guests have falls, and its connections end, until `start`. A guest, as PEER/NAME: it alone.

  start @6 (agent :Text) -> (outcome :Decided);
  # Runs a killed or ended agent again, under a new key. Running already: says so.

  bump @7 (reason :Text, hold :Bool, wait :Bool) -> (outcome :Decided, epoch :UInt64);
  # Ends the epoch: every capability of every agent falls. With `hold`, nothing is granted until the next bump. Answers which other hosts
  # of the realm have said that they did the same, after a second at most; with `wait`, once all have, or the lease of each that has not
  # must have run out.

  stop @8 () -> ();
  # Drains, flushes and ends the host.

  invite @9 (key :Text) -> (outcome :Decided);
  # Lets another host into the realm, by the hexadecimal of its public key. It must reach the same log.

  revokeHost @10 (host :Text, reason :Text) -> (outcome :Decided);
  # Takes another host's place in the realm back, for good: nothing that it or its personas say counts from there on, and what
  # they were granted is cut. By its id, or the first 8 digits of it.

  prune @11 (channel :Text, keep :Keep, dryRun :Bool, forcePastCursors :Bool) -> (outcome :Pruned);
  # Takes what a channel's oldest messages said out of the log; that they were said stays, and so do their hashes. A cursor that it
  # would pass is a refusal that names it, unless that is forced. With `dryRun` it only says what it would do.

  rotate @12 (agent :Text, host :Bool) -> (outcome :Decided);
  # Gives a persona of this host its next key, or, with `host`, the host itself. It is on the record, what was signed before stays
  # verifiable, and nothing that is said meanwhile is lost. Fails when the agent is killed: `start` gives it a new key. An operator's
  # persona goes by its name, as operator:1000.

  peers @13 () -> (peers :List(PeerStatus), id :Text, listening :List(Text));
  # The hosts of other realms, as the manifest names them: how they are connected, and what each grants the other. With this host's own
  # peer id, and where it listens, each address with the id behind it.

  ping @14 (peer :Text) -> (microseconds :UInt64);
  # The round trip to a peer, by its name, on the connection that stops go over. Fails with why when it is not connected.

  dial @15 (peer :Text, addresses :List(Text)) -> (outcome :Dialed);
  # Dials a peer now, by its name: at these addresses, and at all that are known. They are kept, also for the next start. Answers once it is
  # connected, a dial has come to nothing, or half a minute is over. A peer that is connected and answers is not dialed. Fails, with
  # nothing changed, where an address is none of this peer's, or there are too many.

  forgetAddresses @16 (peer :Text, addresses :List(Text)) -> (left :List(Text));
  # Takes addresses back that `dial` was given. What is connected stays so. Answers those that are left of what it was given.
}

struct Dialed {
  # How a dial went.
  connected @0 :Bool;
  address @1 :Text;        # Where it is connected.
  roundTripUs @2 :UInt64;  # To it and back, in microseconds; 0: the ping wasn't answered.
  already @3 :Bool;        # It was connected before, and answers: nothing was dialed.
  why @4 :Text;            # Why it is not connected, for people.
  note @5 :Text;           # For people, when there is more to say.
}

struct PeerAddress {
  # Where a peer may be.
  address @0 :Text;
  from @1 :Text;           # Who says so: dial, command line, manifest, identify, mDNS, Kademlia
}

struct Keep {
  # How much of a channel stays.
  union {
    count @0 :UInt64;  # The newest messages, so many.
    ageMs @1 :UInt64;  # What was said in the last milliseconds, so many.
    bytes @2 :UInt64;  # The newest messages, of so many bytes of payload together.
  }
}

struct Pruned {
  through @0 :UInt64;     # The last message that goes, by its ordinal; 0: none does.
  messages @1 :UInt64;    # How many go.
  bytes @2 :UInt64;       # Bytes of payload they have together.
  freed @3 :UInt64;       # Bytes that the log let go of; 0 in a dry run.
  passed @4 :List(Text);  # Whose cursors are passed, and where they stand.
  pending @5 :Text;       # What is not done yet, and when it will be; empty: all is done.
}

struct Decided {
  entry @0 :Data;      # The id of the entry that says it.
  number @1 :UInt64;   # Of a grant: its number, as in g7.
  durable @2 :Bool;    # In the log and judged. False: in effect here, kept in the data folder, and first in line for the log.
  pending @3 :Text;    # When not durable: why.
  note @4 :Text;       # For people, when there is more to say.
  void @5 :Text;       # It is in the log, and does not count there: why. In effect here all the same.
  confirmed @6 :List(Data);
  # Of a bump: the other hosts of the realm that have said, in the new epoch, that what ended has fallen with them too.
  unconfirmed @7 :List(Data);
  # Those that have not yet: out of reach, not running, or slower than was waited.
  outlasted @8 :Bool;  # Waited for longer than the lease, so those that have not confirmed admit nothing, or have heard of it by now.
}

interface Feed {
  # What `watch` tells its caller.
  records @0 (records :List(Record)) -> stream;
  caughtUp @1 () -> ();
  # Everything up to the log's end when watching began has been told.
}

interface Watching {
  # Dropping it ends the feed.
}

struct Record {
  # One counting message, or one entry that changed what counts.
  kind @0 :Text;       # "message", or the entry's: key, channel, grant, revoke, fence, lapse, note ...
  seq @1 :UInt64;      # Place in the log. Operators may know; agents never do.
  epoch @2 :UInt64;
  timeMs @3 :Int64;
  author @4 :Text;
  host @5 :Data;
  body @6 :Text;       # What happened, for people. For messages see `message`.
  channel @7 :Text;
  message @8 :Channel.Message;
}

struct Status {
  realm @0 :Data;
  host @1 :Data;
  epoch @2 :UInt64;
  held @3 :Bool;
  log @4 :Text;        # As "embedded" or the server's address, with its state.
  logEnd @5 :UInt64;
  pendingStops @6 :UInt32;
  agents @7 :List(Agent);
  channels @8 :List(ChannelStatus);
  image @9 :Text;
  startedMs @10 :Int64;
  hosts @11 :List(HostStatus);
  logState @12 :Text;  # connected, unreachable, lapsed, diverged
  behind @13 :UInt64;  # Entries that are known to stand in the log and have not been judged here.
  lapsedMs @14 :Int64; # Since when nothing is admitted, in milliseconds since 1970-01-01 UTC. 0: the host is fresh, or needs no lease.
  diverged @15 :Text;  # What of the log is not as it was.
  tally @16 :Tally;
  foreign @17 :List(Agent);
  # The personas of peers (peer:NAME), and those of their guests (PEER/NAME) that hold a grant or are killed. Their `state` is
  # connected, away, revoked, or guest; memory, restarts and component are none of this host's.
}

struct Tally {
  # Of the entries that were judged.
  void @0 :UInt64;     # Those that don't count, junk included.
  junk @1 :UInt64;     # Those that are no entries at all.
}

struct HostStatus {
  # One host of the realm.
  id @0 :Data;
  revoked @1 :Bool;
  personas @2 :UInt32;
}

struct Agent {
  name @0 :Text;
  state @1 :Text;      # starting, running, waiting, backoff, ended, killed
  detail @2 :Text;     # Why it ended, or when it starts again.
  component @3 :Data;
  key @4 :Data;
  restarts @5 :UInt32;
  memory @6 :UInt64;   # Bytes of linear memory now.
  grants @7 :List(GrantStatus);
}

struct GrantStatus {
  number @0 :UInt64;
  id @1 :Data;
  object @2 :Text;     # A channel's name, "timer", a service's name, or "signer:" and the domain.
  terms @3 :Terms;     # Effective.
  used @4 :UInt64;     # Messages that counted under it.
  cursor @5 :UInt64;
  latest @6 :UInt64;
  parent @7 :UInt64;   # Number of the grant above; 0 for the host's own.
  lent @8 :Text;       # The agent that it was lent by; empty when it was not.
  lasting @9 :Bool;    # It outlives the fence although it was lent.
  suspended @10 :Bool; # A lender above is killed: nothing counts under it until that one is started.
}

struct PeerStatus {
  # One host of another realm.
  name @0 :Text;
  id @1 :Text;           # Its libp2p id; empty while it is known by its key only.
  state @2 :Text;        # connected, partly, guest, dialing, backoff, refused, waiting, lapsed, revoked, offline
  detail @3 :Text;       # Why, and until when, for people.
  address @4 :Text;      # Where it is connected, or the first address that it is dialed at.
  roundTripUs @5 :UInt64;# Of the last ping on the control lane, in microseconds; 0: none yet.
  bytesIn @6 :UInt64;    # Over both lanes, since the host started.
  bytesOut @7 :UInt64;
  realm @8 :Data;        # As it has proved; empty: not yet.
  host @9 :Data;
  key @10 :Data;
  callsUs @11 :Text;     # What this host is called there.
  epoch @12 :UInt64;     # The epoch of its realm, as last heard; 0: not yet.
  lends @13 :List(Lent); # What it grants us.
  granted @14 :List(GrantStatus);  # What we grant it.
  held @15 :UInt64;      # Places of its log that the newest checkpoint covers that is held of it; 0: none.
  alarm @16 :Text;       # What speaks against it, for people: its log is not what it was. Until an operator accepts it.
  mirrors @17 :List(Mirrored);     # Its channels of which a copy is kept.
  addresses @18 :List(PeerAddress);  # Where it may be, in the order in which that is tried.
}

struct Mirrored {
  channel @0 :Text;      # As it is called there.
  first @1 :UInt64;      # The ordinals of what the copy has; 0: nothing yet.
  last @2 :UInt64;
}

struct Lent {
  channel @0 :Text;      # As agents here are granted it: NAME/CHANNEL.
  terms @1 :Terms;
}

struct ChannelStatus {
  name @0 :Text;
  latest @1 :UInt64;
  hops @2 :UInt16;
  readers @3 :UInt32;
  writers @4 :UInt32;
}
