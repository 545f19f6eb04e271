# What one vat thread of a host tells another about a facet that crosses between agents of the two. Agents never see it: the
# membranes at both ends of the bridge let no call of this interface pass.

@0xe0a1f6a4c6c2f1d3;

interface Loan {
  # Stands for a facet that its holder passes to an agent on the other thread.

  claim @0 () -> (grant :Data);
  # The grant by which the facet is lent: the other thread makes a facet of its own under it. Every other capability fails this as
  # unimplemented, which is how the two are told apart.

  ended @1 () -> ();
  # Never answers. Fails as stale once the lender's facet is cut.
}
