"""The closed set of fact types, by name."""

from __future__ import annotations

from types import ModuleType

from esper.errors import UnknownEventType
from esper.events import blueprint, decision, handler, kernel, message, operator, run, seed
from esper.events.base import Fact, FactInfo

FAMILIES: tuple[ModuleType, ...] = (run, seed, blueprint, kernel, decision, operator, handler, message)


def _collect() -> dict[str, type[Fact]]:
    found: dict[str, type[Fact]] = {}
    for module in FAMILIES:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Fact) and "info" in vars(value):
                found[value.info.name] = value
    return found


FACT_TYPES: dict[str, type[Fact]] = _collect()


def fact_type(name: str) -> type[Fact]:
    """Return the class of a type name.

    Raises:
        UnknownEventType: No such type is registered.
    """
    try:
        return FACT_TYPES[name]
    except KeyError:
        raise UnknownEventType(
            f"event type {name!r} is not registered",
            hint="this log was written by another version of Esper, or its bytes are damaged",
        ) from None


def infos() -> list[FactInfo]:
    """Return what is known of every type, by family and name."""
    return sorted((cls.info for cls in FACT_TYPES.values()), key=lambda info: (info.family, info.name))
