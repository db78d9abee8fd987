"""The chained history: changes, digests, signed checkpoints."""
