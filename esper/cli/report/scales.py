"""Scales: from values to places on an axis, with ticks at round numbers.

Belongs here: arithmetic of axes. Does not belong here: drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """A linear or logarithmic map from a domain to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: tuple[float, ...] = ()

    def __call__(self, value: float) -> float:
        """Return the pixel of a value, kept inside the axis."""
        return self.start + self._share(value) * (self.end - self.start)

    def _share(self, value: float) -> float:
        if self.log:
            value = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            value = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, value))


def linear(low: float, high: float, start: float, end: float, *, spacing: float, grow: bool = True) -> Scale:
    """Build a linear scale.

    Args:
        low: Smallest value.
        high: Largest value.
        start: Pixel of the smallest.
        end: Pixel of the largest.
        spacing: Pixels that ticks should be apart.
        grow: Widen the domain to the outer ticks; off, it ends exactly at ``low`` and ``high``.
    """
    if not high > low:
        # A flat line still needs a domain to stand in the middle of.
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _nice_step((high - low) / max(2.0, abs(end - start) / spacing))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if grow:
        low, high = first * step, last * step
    ticks = tuple(
        place * step for place in range(first, last + 1) if low - step * 1e-6 <= place * step <= high + step * 1e-6
    )
    return Scale(low=low, high=high, start=start, end=end, ticks=ticks)


def logarithmic(low: float, high: float, start: float, end: float, *, spacing: float) -> Scale:
    """Build a logarithmic scale with ticks at 1, 2 and 5, at 1 and 3, or at decades, as there is room."""
    if not high > low:
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    room = max(2.0, abs(end - start) / spacing)

    def fine(mantissas: tuple[int, ...]) -> list[float]:
        return [mantissa * 10.0**power for power in decades for mantissa in mantissas]

    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        inner = [tick for tick in fine(mantissas) if low * 0.999 <= tick <= high * 1.001]
        if len(inner) <= room * 1.5:
            break
    else:
        stride = math.ceil(len(inner) / room)
        inner = inner[::stride]
    return Scale(low=low, high=high, start=start, end=end, log=True, ticks=tuple(inner))


def fitting(values: Iterable[float], start: float, end: float, *, spacing: float, zero: bool, may_log: bool) -> Scale:
    """Build the scale that suits values: logarithmic where they are positive and span more than a factor of 20.

    Args:
        values: What will be drawn; values that are not finite are passed over.
        start: Pixel of the smallest.
        end: Pixel of the largest.
        spacing: Pixels that ticks should be apart.
        zero: Let a linear scale begin at zero.
        may_log: Whether a logarithmic scale is allowed.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return linear(0.0, 1.0, start, end, spacing=spacing)
    low, high = min(finite), max(finite)
    if may_log and low > 0 and high / low > 20:
        return logarithmic(low, high, start, end, spacing=spacing)
    return linear(min(0.0, low) if zero else low, high, start, end, spacing=spacing)


def tick_text(scale: Scale, value: float) -> str:
    """Write a tick of a scale with just the digits that its neighbours need."""
    if value == 0:
        return "0"
    if scale.log:
        plain = min(scale.ticks) >= 1e-3 and max(scale.ticks) < 1e4
        power = f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e")  # noqa: RUF001
        return f"{value:g}" if plain else power
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else abs(value) or 1.0
    largest = max((abs(tick) for tick in scale.ticks), default=1.0)
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= size * (1 if size > 1e3 else 10):
            return _plain(value / size, step / size) + f" {suffix}"
    return _plain(value, step)


def _plain(value: float, step: float) -> str:
    digits = 0
    while digits < 8 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    text = f"{abs(value):,.{digits}f}"
    return f"−{text}" if value < 0 and float(text.replace(",", "")) else text  # noqa: RUF001


def _nice_step(raw: float) -> float:
    """Return the smallest of 1, 2, 2.5 or 5 times a power of ten that is at least raw."""
    size = 10.0 ** math.floor(math.log10(raw))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * (1 - 1e-9))
