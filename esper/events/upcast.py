"""Upcasters: pure functions from a stored schema to the next one. The log itself is never rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.errors import UpcastMissing

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

#: (type name, stored schema) -> function giving the payload of schema + 1.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def upcast(name: str, payload: dict[str, Any], stored: int, current: int) -> dict[str, Any]:
    """Return the payload in the current schema.

    Args:
        name: Type name.
        payload: Decoded payload as stored.
        stored: Schema number it was written with.
        current: Schema number of the class.

    Raises:
        UpcastMissing: A step of the way is not registered, or the payload is newer than this Esper.
    """
    if stored > current:
        raise UpcastMissing(
            f"{name} schema {stored} is newer than this Esper, which knows up to {current}",
            hint="upgrade Esper to read this log",
        )
    for schema in range(stored, current):
        step = UPCASTERS.get((name, schema))
        if step is None:
            raise UpcastMissing(f"no upcaster leads from {name} schema {schema} to {schema + 1}")
        payload = step(payload)
    return payload
