"""What a handler gave up on, folded from the facts of its stream ``handler/<name>``, and what people decide about it.

Belongs here: the fold and the acts of people (retry, skip). Does not belong here: who parks an event and how its
backlog is handled (``consumer``).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from esper.errors import ConcurrencyConflict, NotFound
from esper.events.base import Fact
from esper.events.codec import fact_of
from esper.events.envelope import Envelope, Event
from esper.events.handler import BacklogHandled, EventParked, EventRetried, EventSkipped
from esper.ids import derived_id
from esper.oona.port import EventLog, Receipt, iterate_stream

_PREFIX = "handler/"


class ParkedState(StrEnum):
    """What became of a parked event so far."""

    #: Nobody decided yet.
    PARKED = "parked"
    #: To be handled again, and then what waits behind it; the handler has not finished with that.
    RETRYING = "retrying"
    #: Never to be handled; the handler has not finished with what waits behind it.
    SKIPPED = "skipped"


class ParkedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a handler gave up on, until it and what waits behind it are dealt with."""

    handler: str
    #: Position of the event.
    position: int
    state: ParkedState
    event_id: bytes
    event_type: str
    stream: str
    version: int
    #: How often this handler parked it.
    parking: int
    attempts: int
    member: str
    cause: str
    message: str
    traceback_digest: bytes | None
    #: When it was parked, microseconds since the Unix epoch.
    parked_at: int


class Changes(NamedTuple):
    """What facts that were just folded changed."""

    #: Events whose backlog came to its end, and the position up to which it is dealt with.
    ended: list[tuple[ParkedEvent, int]]
    #: Streams that wait since.
    blocked: set[str]


class Parking:
    """The parked events of one handler.

    Attributes:
        handler: Name of the handler.
        version: Version of the handler's stream up to which facts are folded.
        blocked: The event at which each stream waits, by stream. Its events from that version on are held back.
        released: Those of these streams whose event was released, and whose backlog is not dealt with.
        skipped: Positions of events that are never to be handled.
    """

    def __init__(self, log: EventLog, handler: str) -> None:
        """Stand before the first fact of a handler; nothing is read yet."""
        self.handler = handler
        self.version = 0
        self.blocked: dict[str, ParkedEvent] = {}
        self.released: set[str] = set()
        self.skipped: set[int] = set()
        self._log = log
        #: Stream of each event that is in ``blocked``, by position.
        self._streams: dict[int, str] = {}
        self._parkings: dict[int, int] = {}
        #: What a refresh that failed half-way folded and did not tell.
        self._changes = Changes([], set())

    @property
    def stream(self) -> str:
        """Return the name of the handler's stream."""
        return f"{_PREFIX}{self.handler}"

    @property
    def parked(self) -> int:
        """Return how many events are parked and wait for a person's decision."""
        return len(self.blocked) - len(self.released)

    def parkings(self, position: int) -> int:
        """Return how often an event was parked so far."""
        return self._parkings.get(position, 0)

    def refresh(self) -> Changes:
        """Fold what was appended since the last time, and tell what changed by it."""
        changes = self._changes
        for envelope in iterate_stream(self._log, self.stream, self.version):
            fact = fact_of(envelope)
            if isinstance(fact, EventParked):
                self._park(envelope, fact)
                changes.blocked.add(fact.event_stream)
            elif isinstance(fact, EventRetried):
                self._release(fact, ParkedState.RETRYING)
            elif isinstance(fact, EventSkipped):
                self._release(fact, ParkedState.SKIPPED)
                self.skipped.add(fact.position)
            elif isinstance(fact, BacklogHandled) and (gone := self._find(fact)) is not None:
                self._forget(gone)
                changes.ended.append((gone, fact.through))
            self.version = envelope.version
        self._changes = Changes([], set())
        return changes

    def append(self, facts: Sequence[Fact], *, sender_id: str, trace_id: str, causation_id: bytes) -> Receipt:
        """Append facts that follow from all that is folded; their ids derive from what they are about.

        Raises:
            ConcurrencyConflict: There are facts that are not folded yet.
            EventIdReused: Another member was first with a fact of the same id.
        """
        batch = [
            Event(fact=fact, event_id=_id_of(fact), sender_id=sender_id, trace_id=trace_id, causation_id=causation_id)
            for fact in facts
        ]
        return self._log.append(batch, stream=self.stream, expected=self.version)

    def at(self, position: int) -> ParkedEvent:
        """Return the parked event at a position.

        Raises:
            NotFound: The event there is not parked now.
        """
        stream = self._streams.get(position)
        if stream is not None:
            return self.blocked[stream]
        raise NotFound(
            f"{self.handler} has no parked event at position {position}",
            hint=f"`esper handler parked list --handler {self.handler}` shows those it has",
        )

    def _find(self, fact: EventRetried | EventSkipped | BacklogHandled) -> ParkedEvent | None:
        """Return the event that a fact is about, if it is still blocked by the parking that the fact answers."""
        one = self.blocked.get(self._streams.get(fact.position, ""))
        return one if one is not None and one.parking == fact.parking else None

    def _park(self, envelope: Envelope, fact: EventParked) -> None:
        self._parkings[fact.position] = max(self.parkings(fact.position), fact.parking)
        there = self.blocked.get(fact.event_stream)
        if there is not None:
            if there.state is ParkedState.PARKED and there.version < fact.event_version:
                return  # it waits behind another one already, whoever parked it
            self._forget(there)
        self.blocked[fact.event_stream] = _parked(envelope, fact)
        self._streams[fact.position] = fact.event_stream

    def _release(self, fact: EventRetried | EventSkipped, state: ParkedState) -> None:
        one = self._find(fact)
        if one is not None:
            self.blocked[one.stream] = msgspec.structs.replace(one, state=state)
            self.released.add(one.stream)

    def _forget(self, one: ParkedEvent) -> None:
        del self.blocked[one.stream]
        del self._streams[one.position]
        self.released.discard(one.stream)


def retry(log: EventLog, handler: str, position: int, *, actor: str, reason: str, trace_id: str) -> ParkedEvent:
    """Ask for a parked event to be handled again, and then for the events that wait behind it.

    Args:
        log: The log.
        handler: Name of the handler.
        position: Position of the event.
        actor: Who asks.
        reason: Why.
        trace_id: Trace of the act.

    Returns:
        The event as it is now.

    Raises:
        NotFound: The event is not parked by that handler now.
    """
    return _decide(EventRetried, log, handler, position, actor, reason, trace_id)


def skip(log: EventLog, handler: str, position: int, *, actor: str, reason: str, trace_id: str) -> ParkedEvent:
    """Decide that a parked event is never handled; see ``retry`` for arguments and errors."""
    return _decide(EventSkipped, log, handler, position, actor, reason, trace_id)


def _decide(
    kind: type[EventRetried | EventSkipped],
    log: EventLog,
    handler: str,
    position: int,
    actor: str,
    reason: str,
    trace_id: str,
) -> ParkedEvent:
    state = ParkedState.SKIPPED if kind is EventSkipped else ParkedState.RETRYING
    parking = Parking(log, handler)
    while True:
        parking.refresh()
        parked = parking.at(position)
        if parked.state is not ParkedState.PARKED:
            raise NotFound(
                f"the event at position {position} is not parked by {handler} now: it is {parked.state} already",
                hint=f"the handler takes it up when it runs: `esper handler start {handler}`",
            )
        fact = kind(handler=handler, position=position, parking=parked.parking, actor=actor, reason=reason)
        try:
            parking.append([fact], sender_id=f"operator:{actor}", trace_id=trace_id, causation_id=parked.event_id)
        except ConcurrencyConflict:
            # The handler or another person was faster: look again whether the event is still parked.
            continue
        return msgspec.structs.replace(parked, state=state)


def handlers_with_facts(log: EventLog) -> list[str]:
    """Return the names of all handlers that ever parked an event, sorted."""
    return [stream.removeprefix(_PREFIX) for stream in log.streams(_PREFIX)]


def parked_events(log: EventLog, handler: str | None = None) -> list[ParkedEvent]:
    """Return the events that are parked or not dealt with since, by handler and position.

    Args:
        log: The log.
        handler: Only this handler's; None for all.
    """
    found = []
    for name in handlers_with_facts(log) if handler is None else [handler]:
        parking = Parking(log, name)
        parking.refresh()
        found += sorted(parking.blocked.values(), key=lambda one: one.position)
    return found


def _id_of(fact: Fact) -> bytes:
    """Return the id of a handler's fact: one release, parking and end for each parking of an event."""
    if isinstance(fact, EventParked):
        return derived_id("handler", fact.handler, "parked", fact.position, fact.parking)
    if isinstance(fact, BacklogHandled):
        return derived_id("handler", fact.handler, "handled", fact.position, fact.parking)
    if isinstance(fact, EventRetried | EventSkipped):
        return derived_id("handler", fact.handler, "released", fact.position, fact.parking)
    raise TypeError(f"{type(fact).__name__} is no fact of a handler")


def _parked(envelope: Envelope, fact: EventParked) -> ParkedEvent:
    return ParkedEvent(
        handler=fact.handler,
        position=fact.position,
        state=ParkedState.PARKED,
        event_id=fact.event_id,
        event_type=fact.event_type,
        stream=fact.event_stream,
        version=fact.event_version,
        parking=fact.parking,
        attempts=fact.attempts,
        member=fact.member,
        cause=fact.cause,
        message=fact.message,
        traceback_digest=fact.traceback_digest,
        parked_at=envelope.recorded_at,
    )
