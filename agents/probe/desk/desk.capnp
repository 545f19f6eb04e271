# What probes and tests serve to each other: everything that one agent may try with what another gave it.

@0xf3d1f2b1d1a95c0e;

using Channel = import "/channel.capnp".Channel;

interface Desk {
  keep @0 (name :Text, channel :Channel) -> ();
  # Takes a facet, under a name of the caller's.

  fetch @1 (name :Text) -> (channel :Channel);
  # Gives back one that it keeps, or one of its own.

  say @2 (name :Text, text :Text) -> (error :Text);
  # Speaks through one that it keeps, or one of its own. Empty: it counts.

  pass @3 (name :Text, to :Desk, as :Text) -> ();
  # Gives one that it keeps, or one of its own, to another desk.

  relay @4 (name :Text, at :Text, text :Text) -> (error :Text);
  # Has the service `at`, which it was granted itself, speak through the facet of that name.

  hold @5 (channel :Channel, desk :Desk) -> ();
  # Holds both, and never answers.

  echo @6 (desk :Desk, text :Text) -> (desk :Desk, text :Text);
}
