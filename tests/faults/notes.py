"""Small batches of notes whose ids follow from their numbers, for tests that break a log and look at what is left."""

from __future__ import annotations

from msgspec.structs import astuple

from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona.port import ANY, EventLog, Receipt, iterate

STREAM = "operator/run-1"


def note(number: int, text: str = "seen", *, run_id: str = "run-1") -> Event:
    """Return a note whose id follows from its number."""
    fact = NoteAdded(run_id=run_id, actor="ada", text=f"{text} {number}")
    return Event(fact=fact, event_id=derived_id("note", run_id, number), sender_id="test", trace_id="0" * 32)


def batch(number: int, size: int, *, run_id: str = "run-1") -> list[Event]:
    """Return the nth batch of a size."""
    return [note(number * size + place, run_id=run_id) for place in range(size)]


def append_batches(log: EventLog, count: int, size: int, *, first: int = 0) -> list[Receipt]:
    """Append so many batches, the first of them with this number."""
    return [log.append(batch(number, size), stream=STREAM, expected=ANY) for number in range(first, first + count)]


def fingerprint(log: EventLog) -> list[tuple[object, ...]]:
    """Return every field of every record."""
    return [astuple(envelope) for envelope in iterate(log)]
