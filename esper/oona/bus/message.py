"""Messages of the bus: the seed's ``OonaMessage``, what it can carry, and how it becomes a fact and comes back.

Belongs here: the model and both directions of the translation. Does not belong here: publishing and consuming
(``client``), or what the log keeps (``esper.events.message``).
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from esper.errors import EventTooLarge, SchemaError
from esper.events.base import Fact
from esper.events.codec import encode_fact
from esper.events.envelope import Envelope, Event
from esper.events.message import MessagePublished
from esper.ids import derived_id, new_trace_id, sha256
from esper.names import TopicNames
from esper.oona.port import MAX_PAYLOAD_BYTES

#: ``type`` of what somebody published; any other fact of a topic has its own type.
PUBLISHED = MessagePublished.__name__
_TOPIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
_TRACE = re.compile(r"[0-9a-f]{32}\Z")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_DEEPEST = 64
_INTEGERS = range(-(1 << 63), 1 << 64)


class OonaMessage(BaseModel):
    """A message on the bus.

    Two messages with the same ``event_id`` are the same message: publishing it again changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Who says so, e.g. ``Tamiyo-Controller-1``.
    sender_id: str = Field(min_length=1, max_length=200)
    #: One of ``TopicNames``, or any other name of letters, digits, dots, dashes and underscores.
    topic: TopicNames | str = Field(union_mode="left_to_right")
    #: Plain data; see ``carried``.
    payload: dict[str, Any] = Field(default_factory=dict)
    #: Shared by everything that one command set off.
    trace_id: str = Field(default_factory=new_trace_id, min_length=1, max_length=200)
    event_id: str = Field(default_factory=lambda: str(uuid.uuid4()), min_length=1, max_length=200)
    #: The sender's own time; a time without a zone is refused, and nothing is ordered by it.
    timestamp: AwareDatetime = Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    #: Type of the fact the message came from.
    type: str = PUBLISHED


def event_of(message: OonaMessage) -> tuple[Event, int]:
    """Return the event that publishing a message appends, and the bytes of its payload.

    Its id derives from the message's own, so that the log keeps the message once.

    Raises:
        SchemaError: The topic or the payload cannot be carried.
        EventTooLarge: The payload is larger than the log takes.
    """
    topic = str(message.topic)
    if _TOPIC.match(topic) is None:
        raise SchemaError(
            f"{topic!r} is no name of a topic",
            hint="use up to 200 letters, digits, dots, dashes and underscores, a letter, digit or underscore first",
        )
    if message.type != PUBLISHED:
        raise SchemaError(
            f"message {message.event_id} is a {message.type} of the log; only its own handler writes those",
            hint="publish what you have to say about it as a message of your own",
        )
    fact = MessagePublished(
        topic=topic,
        message_id=message.event_id,
        trace=message.trace_id,
        published_at=(message.timestamp - _EPOCH) // _MICROSECOND,
        payload=carried(message.payload),
    )
    size = len(encode_fact(fact))
    if size > MAX_PAYLOAD_BYTES:
        raise EventTooLarge(
            f"message {message.event_id} to {topic} has {size} bytes; the log takes {MAX_PAYLOAD_BYTES}",
            hint="put the bytes in the artifact store and send their digest",
        )
    event = Event(
        fact=fact,
        event_id=derived_id("message", message.event_id),
        sender_id=message.sender_id,
        trace_id=_trace(message.trace_id),
    )
    return event, size


def message_of(envelope: Envelope, fact: Fact) -> OonaMessage:
    """Return a fact of the log as a message; what was published comes back as it was.

    Any other fact has its fields as payload, its record's id and time, and its type's name.

    Raises:
        ValueError: The fact does not fit a message; what published it was no client of this kind.
    """
    if isinstance(fact, MessagePublished):
        return OonaMessage(
            sender_id=envelope.sender_id,
            topic=fact.topic,
            payload=fact.payload,
            trace_id=fact.trace,
            event_id=fact.message_id,
            timestamp=_time(fact.published_at),
        )
    return OonaMessage(
        sender_id=envelope.sender_id,
        topic=envelope.topic,
        payload=msgspec.to_builtins(fact, builtin_types=(bytes, dt.datetime)),
        trace_id=envelope.trace_id,
        event_id=str(uuid.UUID(bytes=envelope.event_id)),
        timestamp=envelope.recorded_datetime,
        type=envelope.type,
    )


def carried(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return a payload as it will arrive.

    Carried as they are: None, booleans, integers of 64 bits, floats with NaN and the infinities, text, bytes, times
    with a zone (they arrive in UTC), lists, and mappings whose keys are text. Tuples and sets arrive as lists, UUIDs
    as text, enumerations as their values. Everything else is refused, tensors and times without a zone among it:
    nothing is turned into text behind the sender's back.

    Raises:
        SchemaError: Names the first value that cannot be carried, and where it stands.
    """
    return {key: _carried(value, f"payload.{key}", 1) for key, value in _entries(payload, "payload")}


def _entries(mapping: Mapping[Any, Any], where: str) -> list[tuple[str, Any]]:
    for key in mapping:
        if not isinstance(key, str):
            raise SchemaError(f"a key of {where} is {key!r}, not text", hint="use text as keys")
    return [(str(key), value) for key, value in mapping.items()]


def _carried(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | float | bytes):
        return value
    for kind, convert in _SCALARS:
        if isinstance(value, kind):
            return convert(value, where)
    if depth > _DEEPEST:
        raise SchemaError(f"{where} is nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        return {key: _carried(inner, f"{where}.{key}", depth + 1) for key, inner in _entries(value, where)}
    if isinstance(value, AbstractSet | Sequence) and not isinstance(value, bytearray | memoryview):
        return [_carried(inner, f"{where}[{place}]", depth + 1) for place, inner in enumerate(value)]
    raise SchemaError(
        f"{where} is a {type(value).__name__}, which a message does not carry",
        hint="send numbers, text, bytes, lists and mappings; put arrays and weights in the artifact store",
    )


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"{where} is no text that can be encoded: {error.reason}") from error
    return str(value)


def _integer(value: int, where: str) -> int:
    if value not in _INTEGERS:
        raise SchemaError(f"{where} is an integer of {value.bit_length()} bits; 64 are carried", hint="send text")
    return int(value)


def _moment(value: dt.datetime, where: str) -> dt.datetime:
    if value.tzinfo is None:
        raise SchemaError(f"{where} is a time without a zone", hint="use datetime.now(UTC)")
    return value.astimezone(dt.UTC)


_SCALARS: tuple[tuple[type, Callable[[Any, str], Any]], ...] = (
    (str, _text),
    (int, _integer),
    (dt.datetime, _moment),
    (uuid.UUID, lambda value, _: str(value)),
)


def _time(published_at: int) -> dt.datetime:
    try:
        return _EPOCH + published_at * _MICROSECOND
    except OverflowError as error:
        raise ValueError(f"{published_at} microseconds is no time") from error


def _trace(trace_id: str) -> str:
    """Return the trace of the log's record: the message's own if it has the log's form, else one derived from it."""
    return trace_id if _TRACE.match(trace_id) else sha256(trace_id.encode()).hex()[:32]
