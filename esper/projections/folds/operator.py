"""From operator facts to operator_actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.envelope import Recorded
from esper.events.operator import ArtifactsCollected, LogRestored, NoteAdded
from esper.projections.staging import Staging


class OperatorFold:
    """Keeps what people did."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._actions = staging.rows["operator_actions"].append

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {NoteAdded: self.noted, LogRestored: self.restored, ArtifactsCollected: self.collected}

    def noted(self, envelope: Recorded, fact: NoteAdded) -> None:
        """Append a note."""
        self._actions((*_act(envelope, fact), fact.actor, fact.text))

    def restored(self, envelope: Recorded, fact: LogRestored) -> None:
        """Append that somebody made this log from sealed history."""
        self._actions((*_act(envelope, fact), fact.actor, fact.reason))

    def collected(self, envelope: Recorded, fact: ArtifactsCollected) -> None:
        """Append that somebody removed artifacts that no fact names."""
        what = f"removed {fact.artifacts} artifacts of {fact.size_bytes} bytes that no fact up to {fact.through} names"
        self._actions((*_act(envelope, fact), fact.actor, what))


def _act(envelope: Recorded, fact: Fact) -> tuple[Any, ...]:
    run_id = getattr(fact, "run_id", None)
    return envelope.position, fact.stream, run_id, envelope.recorded_at, envelope.type
