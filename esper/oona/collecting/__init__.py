"""Garbage collection: which artifacts no fact names, and taking them away."""
