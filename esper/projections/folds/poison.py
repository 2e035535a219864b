"""The error of a fact that cannot be folded: unreadable, or in contradiction to the facts before it."""

from __future__ import annotations

from esper.errors import PoisonEvent
from esper.events.envelope import Recorded


def contradiction(envelope: Recorded, cause: str, hint: str = "") -> PoisonEvent:
    """Return the error for a fact that cannot be read or cannot follow from the log before it.

    Args:
        envelope: Where it stands.
        cause: What is missing or wrong.
        hint: What to do about it; where the tables stand when left out.
    """
    return PoisonEvent(
        f"{envelope.type} at position {envelope.position} cannot be folded: {cause}",
        hint=hint or "the tables stand at the fact before it; `esper log read` shows the fact",
        position=envelope.position,
        type=envelope.type,
        cause=cause,
    )
