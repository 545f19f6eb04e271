# Time, for an agent that was granted it. The host keeps it; each agent has its own.

@0xda6a6502489718ac;

interface Timer {
  now @0 () -> (unixMs :Int64);
  # The host's clock: milliseconds since 1970-01-01 UTC. May step when the host's clock is set.

  sleep @1 (ms :UInt64) -> ();
  # Answers after at least that long. At most a day; at most 64 at once. Drop the call to cancel.
}
