# What meets an agent on arrival. The host offers Membrane as the bootstrap of the agent's wire; nobody else sees it.

@0xb925d6f3da580b86;

using Terms = import "terms.capnp".Terms;

interface Membrane {
  # Stands outside the wall: it outlives epochs, and goes with the wire.

  graft @0 () -> (epoch :UInt64, persona :Text, grants :List(Grant), session :Session);
  # Everything the agent was granted, as capabilities of the epoch that is now, behind a new wall; the wall of an
  # earlier graft falls. Waits while a fence is pending or the epoch is on hold. Fails when the agent was killed.
}

interface Session {
  # The life of one graft.

  ended @0 () -> ();
  # Never answers. When the wall falls it fails as stale with the reason, so that an idle agent learns at once;
  # graft again then.

  serve @1 (service :AnyPointer) -> ();
  # Offers a capability, of any interface, to every agent that was granted this agent as a service; in place of what was
  # offered before. Null offers nothing any more. What is offered goes with the graft: offer it again in the next.
}

struct Grant {
  name @0 :Text;
  # A channel's name, "timer", or the service's. What was lent has the name of its channel, and may stand beside the agent's own.
  capability @1 :AnyPointer;
  interfaceId @2 :UInt64;
  # Of the interface the capability is used by, as in its schema. 0: the host doesn't know (services).
  terms @3 :Terms;
  # Effective when grafted.
  lent @4 :Text;
  # Who lent it, as planner@1a2b3c4d; empty for the host's own grant.
}

