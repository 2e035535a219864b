"""Bytes of facts and records: msgpack, exact floats, canonical order of fields.

A payload is a msgpack map of the fact's fields in declared order. A record is the msgpack array that the digest
and the chain are computed over; its form never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from esper.errors import SchemaError
from esper.events.base import Fact
from esper.events.envelope import Envelope
from esper.events.registry import FACT_TYPES, fact_type
from esper.events.upcast import upcast

#: What digest and chain are computed over: the fields of ``Envelope`` in declared order, less the digest.
RecordFields: TypeAlias = tuple[int, bytes, str, int, str, str, int, str, str, bytes | None, int, bytes]

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[str, tuple[int, Callable[[bytes], Fact]]] = {
    name: (cls.info.schema, msgspec.msgpack.Decoder(cls).decode) for name, cls in FACT_TYPES.items()
}


def encode_fact(fact: Fact) -> bytes:
    """Return a fact's payload bytes."""
    return _encode(fact)


def decode_payload(name: str, schema: int, payload: bytes) -> Fact:
    """Return the fact of a stored payload in its current schema.

    Raises:
        UnknownEventType: The type is not registered.
        UpcastMissing: No way leads from the stored schema to the current one.
        SchemaError: The payload does not have the type's form.
    """
    known = _decoders.get(name)
    try:
        if known is not None and known[0] == schema:
            return known[1](payload)
        cls = fact_type(name)
        raw = upcast(name, msgspec.msgpack.decode(payload), schema, cls.info.schema)
        return msgspec.convert(raw, cls)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"payload of {name} schema {schema} cannot be read: {error}") from error


def fact_of(envelope: Envelope) -> Fact:
    """Return the fact in an envelope; raises as ``decode_payload`` does."""
    return decode_payload(envelope.type, envelope.schema, envelope.payload)


def record_bytes(fields: RecordFields) -> bytes:
    """Return the bytes of a record: a msgpack array of twelve fields in this order."""
    return _encode(fields)


def record_of(envelope: Envelope) -> bytes:
    """Return the record bytes of an envelope."""
    return record_bytes(
        (
            envelope.position,
            envelope.event_id,
            envelope.type,
            envelope.schema,
            envelope.topic,
            envelope.stream,
            envelope.version,
            envelope.sender_id,
            envelope.trace_id,
            envelope.causation_id,
            envelope.recorded_at,
            envelope.payload,
        )
    )


def digest_of(record: bytes) -> bytes:
    """Return the SHA-256 of a record."""
    return hashlib.sha256(record).digest()


def deterministic_fields(fact: Fact) -> dict[str, Any]:
    """Return the fields two facts are compared on: all that the type does not mark volatile."""
    volatile = fact.info.volatile
    return {name: getattr(fact, name) for name in fact.__struct_fields__ if name not in volatile}


def same_fact(first: Fact, second: Fact) -> bool:
    """Tell whether two facts agree on every deterministic field, NaN equal to NaN."""
    if type(first) is not type(second):
        return False
    return _encode(deterministic_fields(first)) == _encode(deterministic_fields(second))
