"""Numbers, times, ids and actions in the words of the page.

Belongs here: turning one value into the text people read. Does not belong here: markup.
"""

from __future__ import annotations

import datetime as dt
import math

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

#: Shown where a value was not measured or is not there.
NOTHING = "–"  # noqa: RUF001

ARM_LABELS = {
    "grown": "this run",
    "no-growth": "same host, no growth",
    "from-scratch": "same final architecture",
}

ARM_PHRASES = {
    "no-growth": "the same host without growth",
    "from-scratch": "the same final architecture trained from scratch",
}


def integer(value: int | None) -> str:
    """Write a count with thousands apart, e.g. ``12,345``."""
    return NOTHING if value is None else f"{value:,}"


def si(value: float | None, unit: str = "") -> str:
    """Write a magnitude with three digits and a prefix, e.g. ``1.23 GFLOP``."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    for size, prefix in _PREFIXES:
        # Rounding to three digits may reach the next prefix: 999,700 is 1.00 M.
        if abs(value) >= size * 0.9995:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share as per cent."""
    if value is None:
        return NOTHING
    return f"{value * 100:.{digits}f} %" if math.isfinite(value) else "not finite"


def points(difference: float) -> str:
    """Write the difference of two shares in percentage points, signed."""
    return f"{signed(difference * 100, 1)} points"


def signed(value: float, digits: int) -> str:
    """Write a number with its sign (a true minus)."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return f"{'+' if value > 0 else '−'}{text}"  # noqa: RUF001


def number(value: float | None, digits: int = 4) -> str:
    """Write a measured number with some significant digits."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}g}" if math.isfinite(value) else "not finite"


def ratio(value: float | None, base: float | None) -> str:
    """Write a value as a multiple of another, with a times sign."""
    return "" if value is None or not base else f"{_three(value / base)}×"  # noqa: RUF001


def duration(seconds: float | None) -> str:
    """Write a length of time, e.g. ``2 min 05 s``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def utc(micros: int) -> str:
    """Write microseconds since the Unix epoch as a date and time with its zone."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def short_id(text: str, digits: int = 12) -> str:
    """Write an id or digest shortened: a run keeps its prefix and its end, since ids of one day begin alike."""
    head, dash, rest = text.partition("-")
    if dash and len(rest) > digits:
        return f"{head}-…{rest[-8:]}"
    return text if len(text) <= digits else f"{text[:digits]}…"


def state(name: str) -> str:
    """Write a life state, e.g. ``fine tuning``."""
    return name.replace("_", " ")


def action(kind: str, site: str | None, blueprint: str | None, seed_id: str | None) -> str:
    """Write an action as a short clause, e.g. ``germinate conv_bottleneck at body.2``."""
    if kind == "noop":
        return "wait"
    subject = blueprint if kind == "germinate" else seed_id
    return " ".join(part for part in (kind, subject, f"at {site}" if site else "") if part)


def _three(value: float) -> str:
    """Write three significant digits without an exponent for what a prefix leaves over."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995 or size == 0:
        return f"{value:.2f}".rstrip("0").rstrip(".") if value == int(value) else f"{value:.2f}"
    return f"{value:.3g}"
