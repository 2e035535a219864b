"""A log in memory: the real thing without durability, for tests and short experiments."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from esper.clock import Clock, SystemClock
from esper.errors import LogUnavailable
from esper.events.envelope import Envelope, Recorded
from esper.oona.cells import MemoryCells
from esper.oona.chain import GENESIS, ChainWalk
from esper.oona.numbered import NumberedLog, Row, Tail, envelope_of
from esper.oona.port import Head, LogReport, Progress


class MemoryLog(NumberedLog):
    """Keeps records in lists; gone when the process ends."""

    adapter = "memory"

    def __init__(self, clock: Clock | None = None) -> None:
        """Start empty.

        Args:
            clock: Gives recorded_at; the machine's clock when left out.
        """
        super().__init__(clock or SystemClock())
        self._lock = threading.Condition(threading.RLock())
        self._records: list[Envelope] = []
        self._chain: list[bytes] = []
        self._by_id: dict[bytes, Envelope] = {}
        self._by_stream: dict[str, list[Envelope]] = {}
        self._cells = MemoryCells()
        self._closed = False

    @contextmanager
    def _exclusive(self) -> Iterator[Tail]:
        with self._lock:
            if self._closed:
                raise LogUnavailable("the log in memory is closed")
            last = self._records[-1].recorded_at if self._records else 0
            yield Tail(len(self._records), self._chain[-1] if self._chain else GENESIS, last)

    def _version(self, stream: str) -> int:
        return len(self._by_stream.get(stream, ()))

    def _insert(self, rows: list[Row]) -> bool:
        if any(row[1] in self._by_id for row in rows):
            return False
        for row in rows:
            envelope = envelope_of(row)
            self._records.append(envelope)
            self._chain.append(row[13])
            self._by_id[envelope.event_id] = envelope
            self._by_stream.setdefault(envelope.stream, []).append(envelope)
        self._lock.notify_all()
        return True

    def _find(self, event_ids: Sequence[bytes]) -> dict[bytes, Envelope]:
        return {key: self._by_id[key] for key in event_ids if key in self._by_id}

    def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``; see ``EventLog.read``."""
        first, limit = max(after, 0), max(limit, 0)
        with self._lock:
            end = len(self._records) if until is None else max(until, 0)
            if topics is None:
                return self._records[first : min(end, first + limit)]
            wanted = set(topics)
            return [envelope for envelope in self._records[first:end] if envelope.topic in wanted][:limit]

    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records; see ``EventLog.read_recorded``."""
        return [
            Recorded(one.position, one.type, one.schema, one.sender_id, one.trace_id, one.recorded_at, one.payload)
            for one in self.read(after, limit, until=until)
        ]

    def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""
        first = max(after, 0)
        with self._lock:
            return self._by_stream.get(stream, [])[first : first + max(limit, 0)]

    def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""
        with self._lock:
            return self._version(stream)

    def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""
        with self._lock:
            return sorted(name for name in self._by_stream if name.startswith(prefix))

    def head(self) -> Head:
        """Return position and chain value of the last record."""
        with self._lock:
            return Head(len(self._records), self._chain[-1] if self._chain else GENESIS)

    def end(self) -> int:
        """Return the position of the last record."""
        with self._lock:
            return len(self._records)

    @property
    def cells(self) -> MemoryCells:
        """Return the cells that handlers of this log coordinate with."""
        return self._cells

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""
        if position == 0:
            return GENESIS
        with self._lock:
            return self._chain[position - 1] if 0 < position <= len(self._chain) else None

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self._records) > after, timeout_s)

    def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check it; see ``EventLog.verify``."""
        with self._lock:
            records, chain = list(self._records), list(self._chain)
        walk = ChainWalk()
        for envelope, value in zip(records, chain, strict=True):
            walk.step(envelope, value)
            if progress is not None and (envelope.position % 2000 == 0 or envelope.position == len(records)):
                progress(envelope.position, len(records))
        return LogReport(events=walk.head.position, streams=len(walk.versions), head=walk.head, acknowledged=None)

    def close(self) -> None:
        """Refuse further appends; what was read stays readable."""
        with self._lock:
            self._closed = True
