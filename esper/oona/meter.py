"""Counts and times appends, the same for every adapter. Names and units stand in ``esper.metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter

from esper.errors import EsperError
from esper.metrics import (
    APPEND_EVENTS,
    APPEND_FAILED,
    APPEND_FSYNCED,
    APPEND_SECONDS,
    LOG_MEMORY_BYTES,
    LOG_MEMORY_LIMIT_BYTES,
)

_MEMORY_EVERY_S = 5.0


class AppendMeter:
    """The metrics of one adapter's appends."""

    def __init__(self, adapter: str) -> None:
        """Name the adapter, e.g. ``redis.log``."""
        self._adapter = adapter
        self._seconds = APPEND_SECONDS.labels(adapter)
        self._events = APPEND_EVENTS.labels(adapter)
        self._fsynced = APPEND_FSYNCED.labels(adapter)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time one append, and count it if it is refused."""
        started = perf_counter()
        try:
            yield
        except EsperError as error:
            APPEND_FAILED.labels(self._adapter, error.code).inc()
            raise
        self._seconds.observe(perf_counter() - started)

    def appended(self, events: int, *, fsynced: bool) -> None:
        """Count an append that was acknowledged."""
        self._events.observe(events)
        if fsynced:
            self._fsynced.inc()


class MemoryMeter:
    """The metrics of the memory a log's server uses, taken now and then."""

    def __init__(self, adapter: str) -> None:
        """Name the adapter, e.g. ``redis.log``."""
        self._used = LOG_MEMORY_BYTES.labels(adapter)
        self._limit = LOG_MEMORY_LIMIT_BYTES.labels(adapter)
        self._next_s = 0.0

    def due(self) -> bool:
        """Tell whether it is time to ask the server again, at most once every five seconds."""
        now_s = monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + _MEMORY_EVERY_S
        return True

    def measured(self, used_bytes: int, limit_bytes: int) -> None:
        """Note what the server says."""
        self._used.set(used_bytes)
        self._limit.set(limit_bytes)
