"""Read a JSON document from an unknown hand, bounded in time and memory.

Belongs here: size, nesting, number and key checks that hold for any document. Does not belong here: what the keys
mean (``ir``).
"""

from __future__ import annotations

import json
from typing import Any

from esper.blueprints.rules import invalid

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12
MAX_DIGITS = 18
MAX_FLOAT_CHARACTERS = 32


def read_document(data: bytes | str) -> dict[str, Any]:
    """Return the JSON object in data.

    Args:
        data: UTF-8 text, at most ``MAX_BYTES``.

    Raises:
        BlueprintInvalid: The text is too large, not JSON, nested too deep, has a key twice, a number too long, or
            is no object.
    """
    # A text is measured before it is encoded: a huge one is not copied first.
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) and len(data) <= MAX_BYTES else data
    if len(raw) > MAX_BYTES or isinstance(raw, str):
        raise invalid("size", "", f"the document has {len(raw)} bytes, {MAX_BYTES} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid("json", "", f"the document is not UTF-8: byte {error.start}") from error
    _check_depth(text)
    try:
        found = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise invalid("json", "", f"the document is not JSON: {error.msg} at character {error.pos}") from error
    _check_surrogates(found)
    if not isinstance(found, dict):
        raise invalid("type", "", "the document is not a JSON object")
    return found


def _check_depth(text: str) -> None:
    """Count brackets outside strings before the parser recurses into them."""
    depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise invalid("depth", "", f"the document is nested deeper than {MAX_DEPTH}")
        elif character in "]}":
            depth -= 1


def _check_surrogates(found: Any) -> None:
    """Refuse half a pair written as an escape: JSON allows it, UTF-8 cannot hold it, and facts are UTF-8."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid("json", "", "a text holds half of a surrogate pair") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise invalid("duplicate_key", "", f"the key {key[:40]!a} stands twice in one object")
        found[key] = value
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise invalid("number", "", f"a number has {len(text)} characters, {MAX_DIGITS} are allowed")
    return int(text)


def _real(text: str) -> float:
    if len(text) > MAX_FLOAT_CHARACTERS:
        raise invalid("number", "", f"a number has {len(text)} characters, {MAX_FLOAT_CHARACTERS} are allowed")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise invalid("number", "", f"the number {text} is too large")
    return value


def _constant(text: str) -> float:
    raise invalid("number", "", f"{text} is not a number a blueprint can hold")
