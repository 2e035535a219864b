"""The envelope: what the log keeps around each fact."""

from __future__ import annotations

import datetime as dt

import msgspec

from esper.events.base import Fact


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact on its way into the log."""

    fact: Fact
    #: 16 bytes; a retry carries the same id.
    event_id: bytes
    #: Who says so, e.g. ``tolaria`` or ``operator:ada``.
    sender_id: str
    #: 32 hexadecimal digits shared by everything one command set off.
    trace_id: str
    #: Id of the event that led to this one.
    causation_id: bytes | None = None


class Recorded(msgspec.Struct, frozen=True):
    """What a projection needs of a record; the fields stand for the same as in ``Envelope``."""

    position: int
    type: str
    schema: int
    sender_id: str
    trace_id: str
    recorded_at: int
    payload: bytes


class Envelope(msgspec.Struct, frozen=True):
    """One record of the log. Order comes from position and version alone, never from recorded_at.

    Logs make envelopes of their rows by position: the order of the fields is the order of the columns.
    """

    #: Place in the log, gapless from 1.
    position: int
    event_id: bytes
    #: Type name of the fact.
    type: str
    #: Schema number the payload was written with.
    schema: int
    topic: str
    stream: str
    #: Place in the stream, gapless from 1.
    version: int
    sender_id: str
    trace_id: str
    causation_id: bytes | None
    #: Microseconds since the Unix epoch, UTC; never before the previous record's.
    recorded_at: int
    #: The fact as msgpack map.
    payload: bytes
    #: SHA-256 of the record's bytes (``esper.events.codec.record_bytes``).
    digest: bytes

    @property
    def recorded_datetime(self) -> dt.datetime:
        """Return recorded_at as an aware datetime in UTC."""
        return dt.datetime.fromtimestamp(self.recorded_at / 1_000_000, tz=dt.UTC)
