@0xb4d7f1c0a2e95d13;
# One interface that can play every part in the membrane's tests: caller, callee, capability that crosses.

struct Payload {
  # Capabilities in every place a message can hold them.
  plain @0 :Node;
  list @1 :List(Node);
  nested @2 :Nested;
  any @3 :AnyPointer;
  data @4 :Data;
}

struct Nested {
  name @0 :Text;
  inner @1 :Inner;

  struct Inner {
    number @0 :UInt8;
    node @1 :Node;
    others @2 :List(Nested);
  }
}

interface Node {
  ping @0 (n :UInt64) -> (n :UInt64);
  # Answers n + 1.

  give @1 (payload :Payload) -> ();
  # Keeps the payload's capabilities until dropped.

  take @2 () -> (payload :Payload);
  # Returns what it keeps, in the shape it was given.

  poke @3 (n :UInt64) -> (n :UInt64);
  # Calls ping on a capability it keeps.

  echo @4 (payload :Payload) -> (payload :Payload);

  hang @5 (node :Node) -> (node :Node);
  # Never answers, and holds the node meanwhile.

  next @6 () -> (node :Node);
  # Returns a capability it keeps.

  late @7 (after :UInt32) -> (node :Node);
  # Returns at once a promise for a capability it keeps, which resolves after so many turns of the loop.

  slow @8 (after :UInt32) -> (node :Node);
  # As next, but answers only after so many turns of the loop.

  write @9 (n :UInt64) -> stream;
  # Takes one turn of the loop.

  written @10 () -> (numbers :List(UInt64));
  # What was written, in order.

  early @11 () -> (node :Node);
  # Offers a capability it keeps to pipelined calls, and never answers.

  revoke @12 () -> ();
  # Revokes the membrane it was told about, from within the call.

  clog @13 () -> stream;
  # Never takes what it was given.
}
