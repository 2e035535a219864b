"""The codec over random facts and random bytes."""

from __future__ import annotations

import struct
import types
import typing
from enum import Enum
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import SchemaError
from esper.events import FACT_TYPES, Envelope, Fact, decode_payload, encode_fact
from esper.events.codec import digest_of, record_of, same_fact
from esper.events.decision import Schedule

INTEGERS = st.integers(min_value=-(2**63), max_value=2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field of this type may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(argument) for argument in arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*(values(argument) for argument in arguments if argument is not Ellipsis))
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return structs(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    known: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        int: INTEGERS,
        float: st.floats(),
        bool: st.booleans(),
        bytes: st.binary(max_size=40),
        type(None): st.none(),
        Any: PLAIN,
    }
    return known[hint]


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    fields = {name: values(hints[name]) for name in cls.__struct_fields__}
    if cls is Schedule:  # refuses negative lengths
        fields |= {name: st.integers(0, 10**6) for name in fields if name.endswith("_steps")}
    return st.builds(cls, **fields)


def bits(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return value


FACTS = st.sampled_from(sorted(FACT_TYPES)).flatmap(lambda name: structs(FACT_TYPES[name]))


@given(FACTS)
@settings(max_examples=150, deadline=None)
def test_any_fact_comes_back_bit_for_bit(fact: Fact) -> None:
    payload = encode_fact(fact)
    again = decode_payload(fact.info.name, fact.info.schema, payload)
    assert encode_fact(again) == payload
    assert same_fact(again, fact)
    before, after = (msgspec.to_builtins(each, builtin_types=(bytes,)) for each in (fact, again))
    assert bits(after) == bits(before)


@given(st.sampled_from(sorted(FACT_TYPES)), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_a_fact_or_a_schema_error_and_nothing_else(name: str, data: bytes) -> None:
    fact = fact_or_refusal(name, FACT_TYPES[name].info.schema, data)
    assert isinstance(fact, FACT_TYPES[name]) or name in str(fact)


@given(FACTS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_changes_the_record_digest_and_never_escapes_as_another_error(
    fact: Fact, data: st.DataObject
) -> None:
    payload = bytearray(encode_fact(fact))
    place = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[place // 8] ^= 1 << place % 8
    assert record_digest(fact, bytes(payload)) != record_digest(fact, encode_fact(fact))
    again = fact_or_refusal(fact.info.name, fact.info.schema, bytes(payload))
    assert isinstance(again, type(fact)) or fact.info.name in str(again)


def fact_or_refusal(name: str, schema: int, payload: bytes) -> Fact | SchemaError:
    """Decode; any error but a SchemaError fails the test."""
    try:
        return decode_payload(name, schema, payload)
    except SchemaError as error:
        return error


def record_digest(fact: Fact, payload: bytes) -> bytes:
    return digest_of(
        record_of(
            Envelope(
                position=1,
                event_id=b"\x00" * 16,
                type=fact.info.name,
                schema=fact.info.schema,
                topic=fact.topic_name,
                stream=fact.stream,
                version=1,
                sender_id="s",
                trace_id="0" * 32,
                causation_id=None,
                recorded_at=0,
                payload=payload,
                digest=b"",
            )
        )
    )
