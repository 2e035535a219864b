"""Write the golden file of every (type, schema) that has none yet. A file that exists is never touched.

A golden file keeps what a version of Esper wrote, so that every later one is held to reading it. Run it after adding
a type or raising a schema: ``python tests/golden/make_events.py``.
"""

from __future__ import annotations

import json
import math
import types
import typing
import zlib
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from esper.events import FACT_TYPES, Envelope, Fact, encode_fact
from esper.events.codec import digest_of, record_of
from esper.ids import derived_id

FOLDER = Path(__file__).parent / "events"
RECORDED_AT = 1_700_000_000_000_000


def example(cls: type[msgspec.Struct], *, sparse: bool) -> Any:
    """Build an instance whose values follow from its field names; sparse leaves out all that may be None or empty."""
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], name, sparse=sparse) for name in cls.__struct_fields__})


def _value(hint: Any, name: str, *, sparse: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    number = zlib.crc32(name.encode()) % 1000
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if sparse else _value(inner[0], name, sparse=sparse)
    if origin in (list, tuple):
        return [] if sparse else [_value(arguments[0], f"{name}{place}", sparse=place == 1) for place in range(2)]
    if origin is dict:
        return {} if sparse else {f"{name}_{key}": _value(arguments[1], f"{name}{key}", sparse=False) for key in "ab"}
    if origin is typing.Literal:
        return arguments[0 if sparse else -1]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return example(hint, sparse=sparse)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(iter(hint))
    plain: dict[Any, Any] = {
        str: f"{name} é {number}",
        int: number,
        # A number that no short decimal writes exactly.
        float: -0.0 if sparse else number / 7,
        bool: number % 2 == 0,
        bytes: name.encode()[:16].ljust(16, b"\xff"),
        Any: {"list": [number, None, True], "number": number / 3, "text": name},
    }
    return plain[hint]


def readable(value: Any) -> Any:
    """Turn plain data into JSON that keeps every bit: bytes and non-finite numbers become tagged objects."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, float) and (not math.isfinite(value) or value == 0):
        return {"float": value.hex() if math.isfinite(value) else repr(value)}
    if isinstance(value, dict):
        return {str(key): readable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [readable(part) for part in value]
    return value


def fields(fact: Fact) -> Any:
    """Return a fact's fields as readable JSON data."""
    return readable(msgspec.to_builtins(fact, builtin_types=(bytes,)))


def envelope(fact: Fact, payload: bytes) -> Envelope:
    """Put a payload into the same envelope every time."""
    return Envelope(
        position=7,
        event_id=derived_id("golden", fact.info.name),
        type=fact.info.name,
        schema=fact.info.schema,
        topic=fact.topic_name,
        stream=fact.stream,
        version=3,
        sender_id="golden",
        trace_id="0123456789abcdef0123456789abcdef",
        causation_id=None,
        recorded_at=RECORDED_AT,
        payload=payload,
        digest=b"",
    )


def golden(cls: type[Fact]) -> dict[str, Any]:
    """Return the contents of a type's golden file: one full and one sparse example."""
    examples = {}
    for name, sparse in (("full", False), ("sparse", True)):
        fact = example(cls, sparse=sparse)
        payload = encode_fact(fact)
        record = record_of(envelope(fact, payload))
        examples[name] = {
            "fields": fields(fact),
            "payload": payload.hex(),
            "record": record.hex(),
            "digest": digest_of(record).hex(),
        }
    return {"type": cls.info.name, "schema": cls.info.schema, "examples": examples}


def main() -> None:
    """Add what is missing and say what was added."""
    FOLDER.mkdir(exist_ok=True)
    for cls in FACT_TYPES.values():
        path = FOLDER / f"{cls.info.name}.v{cls.info.schema}.json"
        if not path.exists():
            path.write_text(json.dumps(golden(cls), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"added {path.name}")


if __name__ == "__main__":
    main()
