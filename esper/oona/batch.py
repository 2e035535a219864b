"""A batch before it has numbers: its checks, its encoding, and how it is told from a retry.

Belongs here: what every adapter does with a batch before it looks at the log, and how a batch compares with records
that have its ids. Does not belong here: numbering (``numbered``, the Redis Function) and storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from esper.errors import ConcurrencyConflict, EventIdReused, EventTooLarge, SchemaError
from esper.events.base import Fact
from esper.events.codec import decode_payload, encode_fact, same_fact
from esper.events.envelope import Envelope, Event
from esper.oona.port import MAX_PAYLOAD_BYTES, Receipt

#: Longest name of a topic.
MAX_TOPIC_LETTERS = 200


class Draft(NamedTuple):
    """A fact that passed the checks and is encoded, but has no number yet."""

    event: Event
    type: str
    schema: int
    topic: str
    payload: bytes


def draft(batch: Sequence[Event], stream: str) -> list[Draft]:
    """Check and encode a batch.

    Raises:
        SchemaError: The batch is empty, an id is not 16 bytes, a fact belongs to another stream, or its topic has no
            fit name.
        EventTooLarge: A payload is over the limit.
        EventIdReused: An id stands twice in the batch.
    """
    if not batch:
        raise SchemaError(f"an append to {stream} has no facts", hint="append one fact or more")
    drafts = []
    for event in batch:
        fact, cause = event.fact, event.causation_id
        info = fact.info
        payload = encode_fact(fact)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise EventTooLarge(
                f"{info.name} for {stream} has {len(payload)} bytes; the log takes {MAX_PAYLOAD_BYTES}",
                hint="put the bytes in the artifact store and name their digest in the fact",
            )
        # As ``fact.stream`` and ``fact.topic_name``, without the calls.
        if f"{info.stream}/{getattr(fact, info.key)}" != stream:
            raise SchemaError(f"{info.name} belongs to stream {fact.stream}, not {stream}")
        if len(event.event_id) != 16:
            raise SchemaError(f"the event_id of {info.name} has {len(event.event_id)} bytes, not 16")
        if cause is not None and len(cause) != 16:
            raise SchemaError(f"the causation_id of {info.name} has {len(cause)} bytes, not 16")
        topic = info.topic
        name = _own_topic(fact) if topic is None else topic._value_
        drafts.append(Draft(event, info.name, info.schema, name, payload))
    _check_distinct(drafts)
    return drafts


def _own_topic(fact: Fact) -> str:
    """Return the topic a fact names itself; every adapter must be able to name a stream by it."""
    name = fact.topic_name
    if not 0 < len(name) <= MAX_TOPIC_LETTERS or name[0] in "@{":
        raise SchemaError(
            f"{name[:50]!r} cannot be a topic",
            hint=f"a topic has 1 to {MAX_TOPIC_LETTERS} letters and does not begin with @ or {{",
        )
    return name


def _check_distinct(drafts: list[Draft]) -> None:
    seen = {item.event.event_id for item in drafts}
    if len(seen) == len(drafts):
        return
    for item in drafts:
        if item.event.event_id not in seen:
            name = item.event.event_id.hex()
            raise EventIdReused(f"event id {name} stands twice in one batch", event_id=name, position=0)
        seen.discard(item.event.event_id)


def conflict(stream: str, expected: int, current: int) -> ConcurrencyConflict:
    """Return the error of an append whose stream has another version."""
    return ConcurrencyConflict(
        f"stream {stream} has version {current}, not {expected}", stream=stream, expected=expected, current=current
    )


def receipt_of_retry(
    drafts: Sequence[Draft], found: Mapping[bytes, Envelope], *, fsynced: bool, replicas: int = 0
) -> Receipt | None:
    """Return the first receipt of a batch that is in the log, or None if nothing of it is.

    Args:
        drafts: The batch.
        found: Records that have ids of the batch, by id.
        fsynced: Whether they are on stable storage.
        replicas: How many other servers confirmed them.

    Raises:
        EventIdReused: Some ids are in the log and others not, or one stands for a different fact.
    """
    if not found:
        return None
    for item in drafts:
        stored = found.get(item.event.event_id)
        if stored is None:
            there = min(found.values(), key=lambda envelope: envelope.position)
            raise EventIdReused(
                f"{len(found)} of the {len(drafts)} ids of this batch are in the log already, "
                f"the first at position {there.position}",
                hint="retry a batch as it was; do not add facts to it",
                event_id=there.event_id.hex(),
                position=there.position,
            )
        if not _same(stored, item):
            raise EventIdReused(
                f"event id {stored.event_id.hex()} stands at position {stored.position} for a different {stored.type}",
                hint="derive ids from the cause, so that different facts have different ids",
                event_id=stored.event_id.hex(),
                position=stored.position,
            )
    last = max(found.values(), key=lambda envelope: envelope.position)
    first = min(envelope.position for envelope in found.values())
    return Receipt(first, last.position, last.version, fsynced, replicas)


def _same(stored: Envelope, item: Draft) -> bool:
    if stored.type != item.type:
        return False
    if stored.payload == item.payload:
        return True
    return same_fact(decode_payload(stored.type, stored.schema, stored.payload), item.event.fact)
