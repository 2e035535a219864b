"""Sealed history: segments, signed checkpoints, proofs, and logs made of segments alone."""
