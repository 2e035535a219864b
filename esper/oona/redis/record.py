"""The bytes of a record on Redis (docs/reference/redis-log.md): what the client writes and how it is read back.

An entry's one field is a msgpack array of thirteen: version, recorded_at and their sum with the position (these three
are written by the server, each nine bytes long), the SHA-256 of the rest, and the rest. Whatever single field is
changed, the hash or the sum no longer fits. Belongs here: bytes. Does not belong here: fetching them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from esper.events.codec import RecordFields, record_bytes
from esper.events.envelope import Envelope, Recorded
from esper.oona.batch import Draft
from esper.oona.chain import GENESIS, damaged

#: What the client writes of a record, in this order.
Content: TypeAlias = tuple[bytes, str, int, str, str, str, str, bytes | None, bytes]

_ARRAY_OF_9 = 1
#: Where the hashed part begins: array header, three numbers of nine bytes, 34 bytes of hash.
_CONTENT_AT = 1 + 3 * 9 + 34
_HASH_HEADER = b"\xc4\x20"
_CHECK_BYTES = 8

_encode = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.msgpack.Decoder(
    tuple[int, int, int, bytes, bytes, str, int, str, str, str, str, bytes | None, bytes]
).decode


def content_of(item: Draft, stream: str) -> bytes:
    """Return the client's part of a record: hash and content."""
    event = item.event
    return _content(
        (
            event.event_id,
            item.type,
            item.schema,
            item.topic,
            stream,
            event.sender_id,
            event.trace_id,
            event.causation_id,
            item.payload,
        )
    )


def content_of_record(one: Envelope) -> bytes:
    """Return the client's part of a record of another log."""
    return _content(
        (
            one.event_id,
            one.type,
            one.schema,
            one.topic,
            one.stream,
            one.sender_id,
            one.trace_id,
            one.causation_id,
            one.payload,
        )
    )


def _content(fields: Content) -> bytes:
    content = _encode(fields)[_ARRAY_OF_9:]
    return _HASH_HEADER + hashlib.sha256(content).digest() + content


def envelopes(body: bytes, positions: Sequence[int], where: str) -> list[Envelope]:
    """Return the envelopes of a page.

    Args:
        body: A msgpack array of records.
        positions: Where they stand.
        where: Which log, for messages.

    Raises:
        LogDamaged: A record's bytes are not what was written.
    """
    sha256, found = hashlib.sha256, []
    for position, raw in zip(positions, _records(body, positions, where), strict=True):
        (
            version,
            recorded_at,
            _,
            _,
            event_id,
            kind,
            schema,
            topic,
            stream,
            sender_id,
            trace_id,
            cause,
            payload,
        ) = _sound(raw, position, where)
        fields: RecordFields = (
            position,
            event_id,
            kind,
            schema,
            topic,
            stream,
            version,
            sender_id,
            trace_id,
            cause,
            recorded_at,
            payload,
        )
        found.append(Envelope(*fields, sha256(record_bytes(fields)).digest()))
    return found


def recorded(body: bytes, positions: Sequence[int], where: str) -> list[Recorded]:
    """Return what projections need of a page; arguments and errors as ``envelopes``."""
    found = []
    for position, raw in zip(positions, _records(body, positions, where), strict=True):
        one = _sound(raw, position, where)
        found.append(Recorded(position, one[5], one[6], one[9], one[10], one[1], one[12]))
    return found


def _records(body: bytes, positions: Sequence[int], where: str) -> Sequence[msgspec.Raw]:
    """Take a page apart; damage of one that has several records does not say which of them it is."""
    if not positions:
        return []
    reason, found = f"its {len(positions)} records have other lengths", list[msgspec.Raw]()
    try:
        found = _split(body)
    except msgspec.DecodeError as error:
        reason = f"the record cannot be read: {error}"
    if len(found) != len(positions):
        raise damaged(positions[0] if len(positions) == 1 else 0, reason, where)
    return found


def _sound(
    raw: msgspec.Raw, position: int, where: str
) -> tuple[int, int, int, bytes, bytes, str, int, str, str, str, str, bytes | None, bytes]:
    """Return the fields of a record whose sum and hash fit."""
    try:
        fields = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(position, f"the record cannot be read: {error}", where) from error
    if fields[0] + fields[1] + position != fields[2]:
        raise damaged(position, "position, version and time do not have the sum stored with them", where)
    if hashlib.sha256(memoryview(raw)[_CONTENT_AT:]).digest() != fields[3]:
        raise damaged(position, "the record's bytes do not have the digest stored with them", where)
    return fields


def seal_note(position: int, chain: bytes) -> bytes:
    """Return a chain value as it is noted."""
    return chain + hashlib.sha256(b"%d " % position + chain).digest()[:_CHECK_BYTES]


def open_note(position: int, note: bytes, where: str) -> bytes:
    """Return the chain value of a note.

    Raises:
        LogDamaged: The note was changed.
    """
    chain = note[:-_CHECK_BYTES]
    if len(chain) != len(GENESIS) or seal_note(position, chain) != note:
        raise damaged(position, "the chain value noted there was changed", where)
    return chain
