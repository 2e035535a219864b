"""Notes in a log, a stream each run, for tests of what reacts to events."""

from __future__ import annotations

from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona.port import ANY, EventLog

TOPIC = TopicNames.OPERATOR_ACTIONS


def add_notes(log: EventLog, *notes: tuple[str, str]) -> list[int]:
    """Append a note for each (run, text) and return their positions."""
    positions = []
    for run, text in notes:
        fact = NoteAdded(run_id=run, actor="ada", text=text)
        event = Event(fact=fact, event_id=derived_id("noting", run, text), sender_id="operator:ada", trace_id="ab" * 16)
        positions.append(log.append([event], stream=fact.stream, expected=ANY).first)
    return positions


def texts_of(log: EventLog, run: str) -> list[str]:
    """Return the texts of a run's notes, oldest first."""
    from esper.events import fact_of

    facts = [fact_of(envelope) for envelope in log.read_stream(f"operator/{run}")]
    return [fact.text for fact in facts if isinstance(fact, NoteAdded)]
