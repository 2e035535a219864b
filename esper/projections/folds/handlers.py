"""From handler facts to parked_events and operator_actions; published messages are data and give no rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.envelope import Recorded
from esper.events.handler import BacklogHandled, EventParked, EventRetried, EventSkipped
from esper.events.message import MessagePublished
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Staging


class HandlerFold:
    """Follows the events that handlers gave up on, and what people decided about them."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._parked = staging.parked
        self._actions = staging.rows["operator_actions"].append

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            EventParked: self.parked,
            EventRetried: self.retried,
            EventSkipped: self.skipped,
            BacklogHandled: self.handled,
            MessagePublished: self.published,
        }

    def parked(self, envelope: Recorded, fact: EventParked) -> None:
        """Show that an event waits for a person."""
        self._parked.start(
            (fact.handler, fact.position),
            envelope.position,
            {
                "state": "parked",
                "event_type": fact.event_type,
                "event_id": fact.event_id,
                "event_stream": fact.event_stream,
                "event_version": fact.event_version,
                "parking": fact.parking,
                "attempts": fact.attempts,
                "member": fact.member,
                "cause": fact.cause,
                "message": fact.message,
                "traceback_digest": fact.traceback_digest,
                "parked_at": envelope.recorded_at,
            },
        )

    def retried(self, envelope: Recorded, fact: EventRetried) -> None:
        """Show that a person asked for another try."""
        self._decided(envelope, fact, "retrying")

    def skipped(self, envelope: Recorded, fact: EventSkipped) -> None:
        """Show that a person gave an event up."""
        self._decided(envelope, fact, "skipped")

    def handled(self, envelope: Recorded, fact: BacklogHandled) -> None:
        """Show that what waited behind a released event is dealt with."""
        row = self._row(envelope, fact.handler, fact.position)
        state = "handled" if row["state"] == "retrying" else row["state"]
        key = (fact.handler, fact.position)
        self._parked.change(key, envelope.position, {"state": state, "through": fact.through})

    def published(self, envelope: Recorded, fact: MessagePublished) -> None:
        """Keep nothing: what was published is read from the log."""

    def _decided(self, envelope: Recorded, fact: EventRetried | EventSkipped, state: str) -> None:
        self._row(envelope, fact.handler, fact.position)
        key = (fact.handler, fact.position)
        self._parked.change(key, envelope.position, {"state": state, "actor": fact.actor, "reason": fact.reason})
        self._actions(
            (envelope.position, fact.stream, None, envelope.recorded_at, envelope.type, fact.actor, fact.reason)
        )

    def _row(self, envelope: Recorded, handler: str, position: int) -> dict[str, Any]:
        found = self._parked.current((handler, position))
        if found is None:
            raise contradiction(envelope, f"handler {handler} never parked the event at position {position}")
        return found
