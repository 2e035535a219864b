"""Time as an argument: the only module that asks the machine for it."""

from __future__ import annotations

import time
from typing import Protocol

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What tells the time."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        return time.time_ns() // 1000


def steady_s() -> float:
    """Return seconds on a clock that never goes back and counts while the machine is suspended.

    Leases run on it. ``time.monotonic`` stands still during a suspension, so that whoever wakes from one would not
    notice that its lease is over.
    """
    return time.clock_gettime(_STEADY)


class ManualClock:
    """A clock that moves when told; for tests and for jumps in either direction."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        """Start at a time in microseconds since the Unix epoch."""
        self.value_us = now_us

    def now_us(self) -> int:
        """Return the time last set."""
        return self.value_us

    def advance(self, delta_us: int) -> None:
        """Move by delta microseconds; negative moves back."""
        self.value_us += delta_us
