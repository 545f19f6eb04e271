# How hosts of different realms deal with each other. Each opens, to the other, one connection for control and one for all else; the
# one that opened it calls. On the control lane the bootstrap is Link. On the vat lane it is the Membrane of membrane.capnp, as for an agent:
# its graft holds what the peer was granted, each channel as a PeerChannel. A caller that isn't known by its id finds a Terminal, and no more.

@0xa0d1f3b2c94e7756;

using Channel = import "channel.capnp".Channel;
using Sink = import "channel.capnp".Sink;
using Membrane = import "membrane.capnp".Membrane;

interface Terminal {
  login @0 (signer :LoginSigner) -> (outcome :Outcome);
  # Lets a peer in that proves the host key it is known by here. The host calls the signer once, within 10 seconds. A guest has
  # one connection, one login at a time, and few of them; who fails waits longer each time.

  struct Outcome {
    union {
      granted @0 :Membrane;    # Goes with the connection.
      denied @1 :Text;         # That key is not let in. Doesn't tell why: not known, revoked, or the signature is wrong.
      stale @2 :Text;          # The epoch has ended meanwhile; log in again.
      overloaded @3 :Text;     # Too many log in; try later.
      timedOut @4 :Text;       # The signer didn't answer in time.
    }
  }
}

interface LoginSigner {
  sign @0 (challenge :Challenge) -> (publicKey :Data, signature :Data);
  # Signs with the host's key: 64 bytes of BIP-340 over the tagged hash ("agora/login") of nonce, realm, host, epoch (8 bytes, big-endian), and of
  # the peer ids of who challenges and of who logs in, as each side's own connection has proved them, each behind its length. So a signature
  # that is passed on says nothing: it names other ends.
}

struct Challenge {
  nonce @0 :Data;            # 32 random bytes, used once.
  realm @1 :Data;            # Of who challenges.
  host @2 :Data;
  epoch @3 :UInt64;          # The one that is; a login that takes longer is stale.
}

interface Link {
  # The control lane. Small messages only, and none waits behind what is said elsewhere.

  hello @0 (hello :Hello) -> (hello :Hello);
  # First of all, once. Who each is, in which realm, and under which name it knows the other.

  ping @1 () -> (epoch :UInt64, revision :UInt64);
  # Answered at once. Both numbers as in `changed`.

  changed @2 (epoch :UInt64, revision :UInt64) -> (epoch :UInt64, revision :UInt64, reason :Text);
  # Answers once the epoch is another than this, or what the caller is granted was changed so often that it is another. Whatever it
  # had of the old is gone: graft again. `reason` is for people and agents.

  checkpoint @3 (since :UInt64) -> (checkpoint :Data, proof :List(Data));
  # The latest checkpoint of the callee's log, as `agora checkpoint` writes it, and the proof (RFC 6962) that it extends the log of
  # `since` places; empty for 0, and where there is no such proof: then the log is not what it was. Whoever keeps it can tell later that
  # the log was changed. Busy where it is asked more often than every second, and where there is none yet.

  witnessed @4 (cosigned :Data) -> ();
  # One that the callee gave, with the caller's signature as a witness, by the key of its hello. The callee keeps it. It can be shown to
  # others: somebody else holds what this host signed.
}

struct Hello {
  version @0 :UInt16;        # 1.
  realm @1 :Data;            # 32 bytes.
  host @2 :Data;             # 32 bytes: the host's id.
  publicKey @3 :Data;        # 32 bytes: its key now.
  signature @4 :Data;
  # By that key, over the tagged hash ("agora/hello") of realm, host and the peer id of its connection, each behind its length.
  epoch @5 :UInt64;
  name @6 :Text;             # What the other is called here; what it is granted is granted to the persona peer:NAME.
}

interface PeerChannel extends(Channel) {
  # A channel that was granted to a peer host. The methods of Channel speak and hear as the peer itself.

  speaker @0 (introduction :Introduction) -> (channel :Channel);
  # A facet of one of the peer's own personas, which speaks here as NAME/PERSONA. Under a grant below the peer's: budgets are the
  # peer's in all, and what takes the peer's grant back takes this back.

  follow @1 (from :UInt64, sink :Sink) -> (following :Following, info :import "channel.capnp".Channel.Info, floor :UInt64);
  # Delivers every counting message from ordinal `from` on, whoever wrote it, and moves no cursor. `floor`: what stands up to there is
  # history, from before the grant or the fence.

  entries @2 (from :UInt64, count :UInt32, size :UInt64) -> (places :List(Place), next :UInt64);
  # What stands in the log where counting messages stand, from ordinal `from` on, each with the proof that it is in the tree of the first
  # `size` places: for a copy that shows later what was said. What `history` would read, as far as it stands within `size`, and fewer
  # than `count` where they are many or large; none: there are no more yet. `next`: go on from here; what lies between was pruned, or
  # is beyond the grant's reach. Denied unless the manifest lets this peer mirror: places tell how much else the log holds, and
  # entries what stood in the same turn, also what of it doesn't count.
}

struct Place {
  ordinal @0 :UInt64;
  seq @1 :UInt64;            # Its place in the log.
  index @2 :UInt16;          # Which message of the entry.
  thread @3 :Data;           # The root of its thread, on the callee's word. 32 bytes.
  stored @4 :Data;           # The entry as it stands in the log, its signature first. Empty: the same as the one before.
  proof @5 :List(Data);      # The way up to the root (RFC 6962). Empty with `stored`.
}

interface Following {
  # Dropping it ends the deliveries.
}

struct Introduction {
  persona @0 :Text;          # Its name at its own host; its parts behind a slash each if it is itself a peer's.
  publicKey @1 :Data;        # 32 bytes: its key there.
  component @2 :Data;        # 32 bytes, or empty.
  signature @3 :Data;
  # By its host's key, over the digest that Origin in entry.capnp describes. Empty: the host's word on this connection is all there is.
}
