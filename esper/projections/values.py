"""Exact values in columns: floats that are not numbers, and plain data as canonical JSON text.

Belongs here: the two-way conversion between values of facts and values of columns. Does not belong here: which column
gets what (``folds``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Double, LargeBinary
from sqlalchemy.sql.elements import ColumnElement

#: How a float that is not a number stands in a column.
NOT_A_NUMBER = "NaN"

_sorted_json = msgspec.json.Encoder(order="sorted").encode
#: Begin of a msgpack float64 whose exponent is all ones: an infinity or not a number.
_may_not_be_finite = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search


def real(value: float | None) -> Any:
    """Return a float as a column takes it: itself, None, or the text ``NaN``."""
    return value if value == value or value is None else NOT_A_NUMBER  # noqa: PLR0124 only NaN differs from itself


def canonical(value: Any, payload: bytes) -> str:
    """Return plain data or a struct as JSON text with sorted keys and exact floats.

    Infinities and not-a-numbers stand as ``Infinity``, ``-Infinity`` and ``NaN``, which Python's and SQLite's JSON
    readers take.

    Args:
        value: What to write.
        payload: Payload of the fact it comes from; tells quickly that there are no such floats.
    """
    if _may_not_be_finite(payload) is None:
        return _sorted_json(value).decode()
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _from_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)


def _from_bytes(value: bytes | None) -> str | None:
    return None if value is None else bytes(value).hex()


def _from_real(value: float | str | None) -> float | None:
    return float(value) if isinstance(value, str) else value


def reader(column: ColumnElement[Any]) -> Callable[[Any], Any] | None:
    """Return what turns a column's value into plain data, or None where it is plain already.

    JSON text becomes data, bytes become hexadecimal text, the text ``NaN`` becomes the float.
    """
    if getattr(column, "info", {}).get("json"):
        return _from_json
    if isinstance(column.type, LargeBinary):
        return _from_bytes
    if isinstance(column.type, Double):
        return _from_real
    return None
