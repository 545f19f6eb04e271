# What a message means, and why one was refused: the vocabulary that the record, the channels and the
# operator's door share. Data only; nobody calls anything here.

@0xc453ba9778cd9480;

enum Act {
  # The speech act: what is meant by a message. Values are part of signed bytes and are never reused.

  inform @0;
  # States something. Also what an older agent hears for an act it does not know.

  request @1;
  # Asks for something. As the root of a thread it may name an owner and a deadline.

  propose @2;
  # Offers something for others to agree to or refuse.

  agree @3;

  refuse @4;
  # Declines. By convention the payload says why.

  decide @5;
  # Settles a thread. Closes it when the thread's owner says it.
}

enum Refusal {
  # Why a draft was refused at the door or a message in the log does not count. Each tells the author what to
  # do next; the grouping is for readers, the values are never reused.

  unknown @0;
  # A newer host's reason that this reader does not know.

  # -- Stop: this can't succeed by being repeated.
  noRight @1;          # The terms lack the right (write, initiate ...).
  actNotAllowed @2;    # The terms do not allow this act.
  hopsSpent @3;        # The parent has no hops left: nobody may answer it.
  breakerOpen @4;      # The thread has had all its reactions.
  threadClosed @5;     # The thread was decided, or lapsed.
  parentUnknown @6;    # No such parent that counts, is readable under this grant, and is recent enough.
  parentOwn @7;        # A message can't answer its own author.
  parentFenced @8;     # The parent is from before the fence, and the channel does not carry.
  tooLarge @9;         # Payload over the terms' bytes or the host's bound.
  countSpent @10;      # The grant, or one above it, has spent its count.
  expired @11;         # The terms' until has passed.
  keyExpired @12;      # The key is not above the highest, and its first receipt is no longer remembered.
  malformed @13;       # The draft or the entry breaks the format.
  notOwner @14;        # Only the thread's owner may decide it.

  # -- Wait: the same may succeed later.
  rateLimited @15;     # Over the terms' rate.
  logUnavailable @16;  # The log can't take it now (disk full, server away).
  overloaded @17;      # A bound of the host was met.

  # -- Re-graft: the capability is of another time.
  staleEpoch @18;      # The entry stands after the fence of its epoch.
  revoked @19;         # The grant, the key, the agent or the host was revoked.
  behindCursor @20;    # The turn answers what was answered, or passed by, before.

  # -- The record's own reasons: an honest host never earns these.
  badSignature @21;
  wrongKey @22;        # Signed by a key that is not its persona's.
  unknownChannel @23;
  unknownGrant @24;    # No such grant, or not this persona's, or for another channel.
  unknownPersona @25;
  wrongRealm @26;
  notAuthorised @27;   # This host or persona may not write such an entry.
  repeated @28;        # The same entry, or the same decision, stands earlier in the log.
  badHops @29;         # Hops above what the parent and the channel leave.
  notDue @30;          # A lapse without an open, overdue thread of that host.

  # -- Wait: on a channel of a peer's.
  peerAway @31;
  # The peer is out of reach. What was said is in this host's outbox, and will be said there once, when it is back; repeat it (same key,
  # or same turn) for what became of it. After a fence of either host, what still waits is never said.
}
