# Signatures, for an agent that was granted a signer for a domain. The host keeps the key; the agent never sees it. Each agent has its own
# signer, which can't be lent or passed on.

@0xb3b8d79073de126f;

interface Signer {
  sign @0 (message :Data) -> (signature :Data, publicKey :Data);
  # Signs up to 64 KiB as the agent, in the domain of the grant, under the key that the agent's persona has now. `signature` is the 64 bytes
  # of BIP-340 over the tagged hash ("agora/signer") of realm, host, persona, domain and message, each behind its length; `publicKey` is
  # the 32 bytes it verifies with. Repeating it gives another signature of the same. Denied when the message is too long; busy when too
  # many are under way, or were asked for in this second; stale after the epoch, as every capability is.
}
