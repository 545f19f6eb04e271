# What a facet of a channel allows. Terms are data: the same struct stands in the manifest (as keys), in a grant
# entry (signed) and in what Channel.info tells. They only ever narrow: the effective terms of a facet are the
# meet of its own and those of every grant above it.

@0xc29ee4b59d614281;

struct Terms {
  # A default-constructed Terms allows everything, so that narrowing is written by naming only what is narrowed.

  rights @0 :UInt16 = 0xffff;
  # Bits: 1 read, 2 write, 4 initiate (a message without a parent), 8 attenuate. Unknown bits are ignored.

  acts @1 :UInt16 = 0xffff;
  # Bit n set: the act with value n may be spoken.

  hops @2 :UInt16 = 0xffff;
  # The most hops a message under these terms may carry.

  bytesMax @3 :UInt32 = 0xffffffff;
  # The largest payload, in bytes.

  count @4 :UInt64 = 0xffffffffffffffff;
  # How many messages may count in all. Drawn together with every grant above: a tree can't exceed its root.

  rate @5 :Rate;
  # How fast. Checked where the message is admitted, not judged again.

  untilMs @6 :Int64 = 0x7fffffffffffffff;
  # Not after this moment: milliseconds since 1970-01-01 UTC. Checked where the message is admitted.

  history @7 :UInt64 = 0xffffffffffffffff;
  # How many messages from before the grant may be read.
}

struct Rate {
  # A token bucket: `messages` per `perMs`, refilled evenly, holding at most `messages`. Zero means no limit.

  messages @0 :UInt32;
  perMs @1 :UInt32;
}
