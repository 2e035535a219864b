"""Comparing what was recorded with what re-execution gave: by bits, or within a tolerance."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from esper.events import Fact

#: Fields that floating-point state goes into bit by bit; the digests of data, samples and policies are none of them.
_OF_FLOATS = frozenset(
    ("digest", "checkpoint_digest", "parameter_digest", "observation_digest", "traceback_digest", "size_bytes")
)


class Difference(NamedTuple):
    """The first thing two facts differ in."""

    #: Path of the field, e.g. ``TrainingStepCompleted.loss``.
    quantity: str
    expected: str
    got: str


class Comparison:
    """Compares facts field by field and keeps the largest deviation seen.

    By bits (``tolerance`` None) every deterministic field must be equal, NaN equal to NaN. Within a tolerance,
    floats may differ by ``tolerance * max(1, |expected|)`` and digests of floating-point state are left out, since
    they have no notion of near; names, counts, transitions and choices must be equal either way.
    """

    def __init__(self, tolerance: float | None = None) -> None:
        """Compare by bits, or within a tolerance."""
        self.tolerance = tolerance
        self.largest_deviation = 0.0
        self.compared = 0

    def difference(self, expected: Fact, got: Fact) -> Difference | None:
        """Return the first difference between two facts, or None."""
        self.compared += 1
        name = type(expected).__name__
        if type(expected) is not type(got):
            return Difference("fact type", name, type(got).__name__)
        skipped = {*expected.info.volatile, "attempt", "ordinal"}
        for field in expected.__struct_fields__:
            if field in skipped:
                continue
            found = self._values(f"{name}.{field}", getattr(expected, field), getattr(got, field))
            if found is not None:
                return found
        return None

    def _values(self, path: str, expected: Any, got: Any) -> Difference | None:
        if self.tolerance is None:
            if msgspec.msgpack.encode(expected) == msgspec.msgpack.encode(got):
                return None
            return self._innermost(path, expected, got)
        return self._near(path, _plain(expected), _plain(got), self.tolerance)

    def _innermost(self, path: str, expected: Any, got: Any) -> Difference:
        """Return the difference at the deepest place that shows it."""
        first, second = _plain(expected), _plain(got)
        if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
            for key in first:
                if msgspec.msgpack.encode(first[key]) != msgspec.msgpack.encode(second[key]):
                    return self._innermost(f"{path}.{key}", first[key], second[key])
        if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            for index, (a, b) in enumerate(zip(first, second, strict=True)):
                if msgspec.msgpack.encode(a) != msgspec.msgpack.encode(b):
                    return self._innermost(f"{path}[{index}]", a, b)
        return Difference(path, show(expected), show(got))

    def _near(self, path: str, expected: Any, got: Any, tolerance: float) -> Difference | None:  # noqa: PLR0911 - one return a kind of value
        if isinstance(expected, float) and isinstance(got, float):
            if math.isnan(expected) and math.isnan(got):
                return None
            deviation = abs(expected - got) / max(1.0, abs(expected)) if expected != got else 0.0
            if deviation <= tolerance:
                self.largest_deviation = max(self.largest_deviation, deviation)
                return None
            return Difference(path, show(expected), show(got))
        if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
            nested = ((f"{path}.{key}", expected[key], got[key]) for key in expected)
        elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
            nested = ((f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, got, strict=True)))
        elif path.rsplit(".", 1)[-1] in _OF_FLOATS and expected is not None and got is not None:
            return None
        else:
            return None if expected == got else Difference(path, show(expected), show(got))
        for place, a, b in nested:
            found = self._near(place, a, b, tolerance)
            if found is not None:
                return found
        return None


def _plain(value: Any) -> Any:
    """Return a value as the log gives it back: what was a tuple when it was told is a list there."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def show(value: Any) -> str:
    """Return a value for people: floats also as their exact bits, bytes as hexadecimal digits."""
    if isinstance(value, float):
        return f"{value!r} ({value.hex()})"
    if isinstance(value, bytes):
        return value.hex()
    return repr(value)
