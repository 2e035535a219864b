"""Karn: new blueprints from validated ones.

Belongs here: mutations, and how far a graph is from those that are known. Does not belong here: submitting what came
of it (``forging``).
"""
