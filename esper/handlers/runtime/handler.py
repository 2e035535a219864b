"""What a handler is, and what it is given with each event.

Belongs here: the protocols ``Handler`` and ``Service`` and the ``Context`` of one event. Does not belong here: when
events are handed over (``worker``), or the life of the process (``daemon``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol

from esper.artifacts.store import ArtifactStore
from esper.errors import EventIdReused, LeaseLost
from esper.events import Envelope, Event, Fact
from esper.ids import derived_id
from esper.oona.async_log import AsyncLog
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.lanes import Delivery
from esper.oona.port import ANY, EventLog


class Handler(Protocol):
    """Reacts to events, each at least once and those of one stream in order.

    What ``handle`` raises is tried again after growing delays, and parked after so many attempts; where the log or the
    store is away, the event waits for it and no try is counted. A handler that has a method ``close()`` is told so
    when the process ends.
    """

    #: Name of the handler and of the group of its members.
    name: str
    #: Topics whose events it is given.
    topics: Collection[str]

    def handle(self, envelope: Envelope, context: Context) -> Coroutine[Any, Any, None] | None:
        """React to one event; when this returns, the event counts as handled.

        A coroutine (``async def``) runs in the loop of the process and must not block it; a plain function is run in a
        thread.
        """
        ...


class Service(Protocol):
    """Does something again and again that is no reaction to single events."""

    name: str

    async def step(self, stopping: asyncio.Event) -> Lag:
        """Do what is due, or wait up to a second for it, and tell what is left.

        Args:
            stopping: Set when the process is asked to stop; return soon then.
        """
        ...

    def lag(self) -> Lag:
        """Return how far the service is behind the log; called in a thread."""
        ...

    def close(self) -> None:
        """Give up what is held; called in a thread, after the last step."""
        ...


class Context:
    """What a handler is given beside the event: the log, the store, and a way to say what came of it."""

    def __init__(
        self,
        handler: str,
        delivery: Delivery,
        *,
        log: EventLog,
        store: ArtifactStore,
        stopping: asyncio.Event,
        owned: Callable[[], bool],
    ) -> None:
        """Serve one attempt at one event.

        Args:
            handler: Name of the handler.
            delivery: The event.
            log: Where results go.
            store: Where bulk bytes go.
            stopping: Set when the process is asked to stop.
            owned: Tells whether this process still owns the event's stream.
        """
        #: The event's fact.
        self.fact: Fact = delivery.fact
        #: Which attempt at the event this is, from 1.
        self.attempt = delivery.attempt
        #: Fencing token of the stream's lease: the next owner of the stream has a greater one.
        self.token = delivery.token
        self.log = AsyncLog(log)
        self.store = store
        #: Set when the process is asked to stop; long work may end early by raising, and is then done again.
        self.stopping = stopping
        #: Tells whether this process still owns the event's stream; if not, another one does the same work now.
        self.still_owner = owned
        self._handler = handler
        self._envelope = delivery.envelope
        self._log = log
        self._emitted: Counter[tuple[str | int, ...]] = Counter()

    async def emit(self, fact: Fact, *cause: str | int) -> int:
        """Append a result fact; a plain function calls ``append``, which does the same.

        The fact's id is derived from the handler, the event and the place of this call among the calls with the same
        ``cause``, so that a retry of the event appends nothing twice. Where an earlier attempt said something else, the
        first fact stands and this one is dropped.

        Args:
            fact: What came of the event.
            cause: Tells results of one event apart that do not come in the same order each time.

        Returns:
            Position of the fact in the log, or of the first one.

        Raises:
            LeaseLost: Another process owns the event's stream now.
            LogError: As ``EventLog.append`` raises.
        """
        return await asyncio.to_thread(self._write, self._event(fact, cause))

    def append(self, fact: Fact, *cause: str | int) -> int:
        """Append a result fact from a plain function; see ``emit``."""
        return self._write(self._event(fact, cause))

    async def emit_as(self, event_id: bytes, fact: Fact, *, expected: int = ANY) -> int:
        """Append a fact under an id of its own, for what others say too, or what is said once whatever the cause.

        Args:
            event_id: 16 bytes that follow from what the fact is about; see ``esper.ids.derived_id``.
            fact: What is the case. Where a fact with that id stands already, this one is dropped.
            expected: Version that the fact's stream must have: whoever decided by what it read there is refused if
                somebody else appended since. ``ANY`` for whatever it has.

        Returns:
            Position of the fact in the log, or of the first one.

        Raises:
            LeaseLost: Another process owns the event's stream now.
            ConcurrencyConflict: The fact's stream has another version.
            LogError: As ``EventLog.append`` raises.
        """
        return await asyncio.to_thread(self.append_as, event_id, fact, expected=expected)

    def append_as(self, event_id: bytes, fact: Fact, *, expected: int = ANY) -> int:
        """Append a fact under an id of its own from a plain function; see ``emit_as``."""
        return self._write(self._caused(event_id, fact), expected)

    def _event(self, fact: Fact, cause: tuple[str | int, ...]) -> Event:
        number = self._emitted[cause]
        self._emitted[cause] += 1
        own = derived_id("handler", self._handler, self._envelope.event_id.hex(), *cause, number)
        return self._caused(own, fact)

    def _caused(self, event_id: bytes, fact: Fact) -> Event:
        return Event(
            fact=fact,
            event_id=event_id,
            sender_id=f"handler:{self._handler}",
            trace_id=self._envelope.trace_id,
            causation_id=self._envelope.event_id,
        )

    def _write(self, event: Event, expected: int = ANY) -> int:
        if not self.still_owner():
            stream = self._envelope.stream
            raise LeaseLost(f"{self._handler} no longer owns {stream}: nothing was appended", name=stream, owner="")
        try:
            return self._log.append([event], stream=event.fact.stream, expected=expected).first
        except EventIdReused as error:
            return error.position
