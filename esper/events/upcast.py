"""Upcasters: pure functions from a stored schema to the next one. The log itself is never rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.errors import UpcastMissing

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def _with(**values: Any) -> Upcaster:
    """Return an upcaster that adds fields nobody knew of before."""
    return lambda payload: {**payload, **values}


#: (type name, stored schema) -> function giving the payload of schema + 1.
UPCASTERS: dict[tuple[str, int], Upcaster] = {
    ("BlueprintSubmitted", 1): _with(parent=None, mutation=None, novelty=None),
    ("KernelCompiled", 1): _with(job_id=None, worker=None, peak_memory_bytes=None, hardware=None, signed_by=None),
    ("CompilationFailed", 1): _with(job_id=None, reason=None),
    ("KernelCharacterized", 1): _with(toolchain=None, hardware=None, peak_memory_bytes=None),
}


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
