"""Facts of handlers: what could not be handled, and what people decided about it."""

from __future__ import annotations

from esper.events.base import Fact, fact
from esper.names import TopicNames


@fact(TopicNames.OONA_DEAD, stream="handler", key="handler")
class EventParked(Fact, frozen=True, kw_only=True):
    """A handler gave up on an event; later events of the same stream wait until it is retried or skipped."""

    #: Name of the handler, which is the name of its group of consumers.
    handler: str
    #: Position of the event in the log.
    position: int
    event_id: bytes
    event_type: str
    #: Stream whose later events wait.
    event_stream: str
    event_version: int
    #: How often the event has been parked by this handler, from 1.
    parking: int
    #: How often it was tried since it was last released.
    attempts: int
    #: Member of the group that tried last.
    member: str
    #: Code and class of the error, e.g. ``E-SCH-001 SchemaError`` or ``ValueError``.
    cause: str
    message: str
    #: SHA-256 of the traceback's text, which is kept in the artifact store.
    traceback_digest: bytes | None


@fact(TopicNames.OONA_DEAD, stream="handler", key="handler")
class EventRetried(Fact, frozen=True, kw_only=True):
    """A person asked for a parked event to be handled again, and then the events that wait behind it."""

    handler: str
    position: int
    #: Which parking of the event is answered.
    parking: int
    actor: str
    reason: str


@fact(TopicNames.OONA_DEAD, stream="handler", key="handler")
class EventSkipped(Fact, frozen=True, kw_only=True):
    """A person decided that a parked event is never handled; the events behind it go on."""

    handler: str
    position: int
    #: Which parking of the event is answered.
    parking: int
    actor: str
    reason: str


@fact(TopicNames.OONA_DEAD, stream="handler", key="handler")
class BacklogHandled(Fact, frozen=True, kw_only=True):
    """A released event is dealt with, and so are the events of its stream that waited behind it."""

    handler: str
    #: Position of the event that was parked.
    position: int
    parking: int
    #: Last position up to which the stream's events were handled.
    through: int
