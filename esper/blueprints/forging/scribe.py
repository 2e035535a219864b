"""Writing facts whose ids follow from what happened, each once whoever says it first.

Belongs here: the append, and what it means that somebody was first. Does not belong here: which facts (``forge``,
``examiner``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.errors import EventIdReused
from esper.events import Event, Fact
from esper.oona.port import ANY, EventLog


class Scribe:
    """Appends facts in one name."""

    def __init__(
        self, log: EventLog, *, sender_id: str, trace_id: str, guard: Callable[[], None] | None = None
    ) -> None:
        """Write to a log.

        Args:
            log: The log.
            sender_id: Who the facts are from.
            trace_id: 32 hexadecimal digits.
            guard: Called before every append; what it raises keeps the facts out of the log.
        """
        self.sender_id = sender_id
        self._log = log
        self._trace_id = trace_id
        self._guard = guard

    def append(self, facts: Sequence[tuple[Fact, bytes]], cause: bytes | None) -> bool:
        """Append facts of one stream, all or none; tell whether ours are in the log.

        Somebody else may have said the same before with other numbers: the first fact wins and ours are dropped.

        Args:
            facts: Facts with their event ids.
            cause: Event id of what they follow from.
        """
        if self._guard is not None:
            self._guard()
        batch = [
            Event(
                fact=fact,
                event_id=event_id,
                sender_id=self.sender_id,
                trace_id=self._trace_id,
                causation_id=cause,
            )
            for fact, event_id in facts
        ]
        try:
            self._log.append(batch, stream=batch[0].fact.stream, expected=ANY)
        except EventIdReused:
            return False
        return True
