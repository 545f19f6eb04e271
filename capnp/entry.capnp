# What stands in the log. A host writes entries; every host of the realm, and an auditor offline, reads them.
# Agents never see this file: they see the messages that count, by channel and ordinal.
#
# Stored bytes of one entry: a 64-byte BIP-340 signature, then the canonical single-segment encoding of Entry,
# carried verbatim from then on. The signature is over the entry's id, the tagged hash ("agora/entry") of those
# canonical bytes. The id of message i is the tagged hash ("agora/message") of the entry's id and i as 4 bytes,
# big-endian. A tagged hash is SHA-256(SHA-256(tag) || SHA-256(tag) || data), as in BIP-340.

@0xa7196e97d86642da;

using Act = import "act.capnp".Act;
using Terms = import "terms.capnp".Terms;

struct Entry {
  format @0 :UInt16;
  # Of this schema: 1. A reader refuses a format that it does not know.

  realm @1 :Data;
  # 32 bytes: the genesis entry's id. Empty in the genesis itself.

  host @2 :Data;
  # 32 bytes: who wrote the entry. A host's id is the first public key it ever had.

  author @3 :Text;
  # The persona's name at that host; empty when the host itself speaks. A plain name; or operator:UID; or peer:NAME, a host
  # of another realm as it speaks here; or NAME/REST, a guest: what the peer NAME calls REST.

  signer @4 :Data;
  # 32 bytes, x-only: the public key the signature verifies with. judge checks that it is the author's.

  epoch @5 :UInt64;
  # An entry that stands after the fence of its epoch is void.

  timeMs @6 :Int64;
  # The host's clock when it stamped the entry, milliseconds since 1970-01-01 UTC. For people; order decides.

  grant @7 :Data;
  # 32 bytes: the id of the grant a turn is spoken under. Empty for an operator's turn and all other kinds.

  union {
    key @8 :Key;
    channel @9 :Channel;
    grantIssued @10 :Grant;
    revoke @11 :Revoke;
    turn @12 :Turn;
    lapse @13 :Lapse;
    note @14 :Note;
  }
}

struct PersonaId {
  host @0 :Data;
  name @1 :Text;
}

struct Key {
  # Introduces or renews a key. The first entry of a realm is the key of its first host, with genesis set.

  union {
    host @0 :Data;       # The id of the host whose key this is.
    persona @1 :Text;    # A persona of the host that writes the entry. A guest is keyed after its peer.
  }
  publicKey @2 :Data;    # 32 bytes, x-only.
  component @3 :Data;    # 32 bytes: SHA-256 of the persona's component. Empty for hosts and operators.
  started @4 :Bool;      # The operator started a killed persona again; without it, a killed one stays so.
  genesis @5 :Genesis;
  origin @6 :Origin;     # Of peers and guests, and of nobody else: who they are where they come from.
}

struct Origin {
  # Who a peer or a guest is at its own host, as this host was told. Nothing in this realm is judged by it, but that a
  # peer's names no persona and a guest's does.

  peer @0 :Data;         # The libp2p peer id that it came from, at most 64 bytes.
  host @1 :Data;         # 32 bytes: the host's id there. Empty: not known.
  realm @2 :Data;        # 32 bytes: the realm there. Empty: not known.
  persona @3 :Text;      # The persona's name there. Empty: the host itself.
  publicKey @4 :Data;    # 32 bytes, x-only: the persona's key there. Empty: not known.
  component @5 :Data;    # 32 bytes: SHA-256 of the persona's component there. Empty: none, or not known.
  signature @6 :Data;
  # 64 bytes, or empty: BIP-340, by that host's key, over the tagged hash ("agora/introduction") of the realm of this log,
  # the id of the host that writes the entry, the name in `Key.persona`, and this struct's persona, publicKey and
  # component; each behind its length as 8 bytes, big-endian.
}

struct Genesis {
  format @0 :UInt16;     # Of the realm's data; the same number stands in every data folder.
  nonce @1 :Data;        # 32 random bytes: no two realms are alike.
  fencers @2 :List(Data);# Hosts that may end an epoch. Empty: every host of the realm may.
}

struct Channel {
  # Declares a channel, or changes its settings from here on.

  name @0 :Text;
  # A plain name; or PEER/REST, a remote channel: what this realm's personas say for the channel REST of that peer's realm.
  hops @1 :UInt16;        # What a root message carries; an answer has one less than its parent.
  reactions @2 :UInt32;   # How many messages besides the root a thread may have before its breaker opens.
  carry @3 :Bool;         # Messages from before a fence are still delivered, and may be answered, after it.
}

struct Grant {
  persona @0 :PersonaId;
  object :union {
    channel @1 :Text;
    timer @2 :Void;
    service @3 :Text;
    signer @7 :Text;      # Signatures in this domain, under the persona's key. Has no parent: the host alone grants it.
  }
  terms @4 :Terms;
  parent @5 :Data;        # 32 bytes: the grant this one narrows and dies with. Empty for the host's own.
  lasting @6 :Bool;       # A grant with a parent dies at the fence unless lasting.
}

struct Revoke {
  union {
    grant @0 :Data;       # One grant, and all below it.
    persona @1 :PersonaId;# A kill: the persona's key is void from here, and its turns with it.
    host @2 :Data;
    fence @3 :Fence;      # Everything of one epoch.
  }
  reason @4 :Text;
  by @5 :Text;            # For people: who asked, as in operator:1000.
}

struct Fence {
  ends @0 :UInt64;        # The epoch that ends. The first valid fence of an epoch wins.
  hold @1 :Bool;          # Nothing is granted in the next epoch until it ends too.
}

struct Turn {
  # What one persona says on one channel.

  channel @0 :Text;
  through @1 :UInt64;
  # When it answers: the ordinal it answers through. Zero when it answers nothing.
  origin @2 :Text;
  # The channel that `through` is an ordinal of; empty for this turn's own channel, whose cursor it then moves.
  messages @3 :List(Message);
  peerEpoch @4 :UInt64;
  # On a remote channel, and nowhere else: the epoch of the peer's realm that it is said in. Parents there are ids of the peer's
  # messages, and `through` is an ordinal of the peer's channel: neither is judged here, nor are hops but by the terms.
}

struct Message {
  act @0 :Act;
  parent @1 :Data;        # 32 bytes: the id of the message this answers. Empty: a root, the start of a thread.
  hops @2 :UInt16;
  key @3 :UInt64;         # The author's number for it, rising per channel; zero inside an answering turn.
  contentType @4 :Text;   # A media type; empty means text/plain; charset=utf-8.
  payload @5 :Data;
  timeMs @6 :Int64;       # When the host admitted it.
  owner @7 :PersonaId;    # Root requests only: who decides.
  deadlineMs @8 :Int64;   # Root requests only: when the thread lapses undecided. Zero: never.
}

struct Lapse {
  # Closes an undecided thread after its deadline. Only the host that admitted the root writes it.
  channel @0 :Text;
  thread @1 :Data;        # The root's id.
}

struct Note {
  union {
    tree @4 :Tree;
    stubs @5 :Stubs;
    prune @0 :Prune;
    gap @1 :Gap;
    incident @2 :Incident;
    marker @3 :Marker;
  }
}

struct Tree {
  # What the log was to the host that says so. To another host of the realm that reads it, it must have been the same.
  size @0 :UInt64;        # How many places it covers; less than where this stands.
  root @1 :Data;          # 32 bytes: the root over them, as in RFC 6962.
}

struct Prune {
  # Messages of a channel up to an ordinal may be purged; the leaf hashes stay.
  channel @0 :Text;
  through @1 :UInt64;
}

struct Stubs {
  # What is kept of turns that are about to be taken out of a log on servers, so that every host can go on judging it. Changes nothing.
  channel @0 :Text;
  stubs @1 :List(Stub);   # Their places rise, and stand before this.
}

struct Stub {
  seq @0 :UInt64;
  leaf @1 :Data;          # 32 bytes: the leaf hash of what stands there.
  stub @2 :Data;
}

struct Gap {
  # The operator accepts that the log lost what the host had seen.
  firstSeq @0 :UInt64;
  lastSeq @1 :UInt64;
  leaf @2 :Data;          # The leaf hash the host kept for lastSeq; zeros: it kept a checkpoint alone.
  reason @3 :Text;
}

struct Incident {
  # An agent was ended, and why. A reason that repeats is coalesced: `count` such ends since the last note.
  persona @0 :Text;
  reason @1 :Text;
  count @2 :UInt32;
}

struct Marker {
  # The host hears the log: it waits for this to come back to it. Changes nothing. In the entry's epoch its agents' walls of all earlier
  # epochs have fallen.
  judged @0 :UInt64;      # The place that the host had judged when it said so.
}
