"""How everything here is measured: both sides interleaved, medians with spread, one JSON line per measure.

Absolute figures mean little on a shared machine. A bar therefore stands on a ratio whose two sides are timed in turn
in one process, and counts only while the machine is itself: while a fixed calibration load takes what it took where
the bars were set, give or take a fifth.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

#: Median seconds of the calibration load on two virtual cores with nothing else to do.
REFERENCE_S = 0.063
#: How far from the reference a machine may be for a bar to count.
TOLERANCE_FRAC = 0.2
REPEATS = 7


class _Row(msgspec.Struct):
    number: int
    name: str
    value: float


def calibrate(repeats: int = 5) -> float:
    """Return the median seconds of a fixed load: msgspec, SQLite in memory and a matrix product."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Row).decode
    matrix = np.linspace(-1.0, 1.0, 512 * 512, dtype=np.float32).reshape(512, 512)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = [decode(encode(_Row(number, "calibration", number / 7))) for number in range(20_000)]
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, name TEXT, value REAL)")
            connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?)", [(row.number, row.name, row.value) for row in rows]
            )
            connection.execute("SELECT * FROM rows").fetchall()
        with threadpool_limits(limits=1):
            for _ in range(4):
                matrix @ matrix
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def interleave(sides: Sequence[Callable[[], float]], repeats: int = REPEATS) -> list[list[float]]:
    """Time several sides in turn, the order turned round each time.

    Args:
        sides: Each does its work once and returns what it measured (seconds, say); set-up is its own affair.
        repeats: How often, 5 at least.

    Returns:
        One list of measurements per side.
    """
    if repeats < 5:
        raise ValueError("a median of fewer than five repeats is no measure")
    for side in sides:
        side()  # once to warm up, not counted
    taken: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats):
        order = range(len(sides)) if repeat % 2 == 0 else reversed(range(len(sides)))
        for place in order:
            taken[place].append(sides[place]())
    return taken


def summary(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return median and spread of measurements, as plain data."""
    return {
        "median": _rounded(statistics.median(values)),
        "spread": [_rounded(min(values)), _rounded(max(values))],
        "unit": unit,
        "repeats": len(values),
    }


def report(
    measure: str,
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    unit: str,
    peer: str,
    at_least: float | None = None,
    at_most: float | None = None,
    **details: Any,
) -> None:
    """Print one measure as a JSON line; its ratio is the median of the repeats' own ratios, ours to theirs.

    Args:
        measure: Id of design/benchmarks, e.g. ``P2``.
        what: What was measured.
        ours: Our figure of each repeat.
        theirs: The peer's figure of the same repeats.
        unit: Unit of both.
        peer: What ours is measured against, with its version.
        at_least: Bar that the ratio must reach; None for none.
        at_most: Bar that the ratio must not pass; None for none.
        details: Anything else worth knowing.
    """
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    calibration_s = calibrate()
    line = {
        "measure": measure,
        "what": what,
        "ours": summary(ours, unit),
        "theirs": {"name": peer, **summary(theirs, unit)},
        "ratio": _rounded(ratio),
        "ratio_spread": [_rounded(min(ratios)), _rounded(max(ratios))],
        **_judged(ratio, at_least, at_most),
        **details,
        "calibration": {
            "seconds": _rounded(calibration_s),
            "reference_s": REFERENCE_S,
            "bar_counts": abs(calibration_s / REFERENCE_S - 1) <= TOLERANCE_FRAC,
        },
    }
    print(json.dumps(line), flush=True)


def _judged(ratio: float, at_least: float | None, at_most: float | None) -> dict[str, Any]:
    if at_least is not None:
        return {"bar": f">= {at_least:g}", "met": ratio >= at_least}
    if at_most is not None:
        return {"bar": f"<= {at_most:g}", "met": ratio <= at_most}
    return {"bar": None}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@contextmanager
def scratch() -> Iterator[Path]:
    """Lend a folder on the disk of the working directory, where forcing to disk costs what it costs."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield Path(folder)
