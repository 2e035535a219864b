"""The async face of a log: the same methods as coroutines, over the same core."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from esper.events.envelope import Envelope, Event, Recorded
from esper.oona.port import EventLog, Head, LogReport, Progress, Receipt


class AsyncLog:
    """Runs each call of a log in a worker thread; arguments, results and errors are those of ``EventLog``."""

    def __init__(self, log: EventLog) -> None:
        """Wrap a log; closing this closes it."""
        self._log = log

    async def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        """Append a batch of facts to one stream, all or none."""
        return await asyncio.to_thread(self._log.append, batch, stream=stream, expected=expected)

    async def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``, in order."""
        return await asyncio.to_thread(self._log.read, after, limit, topics=topics, until=until)

    async def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records with position > ``after``, in order."""
        return await asyncio.to_thread(self._log.read_recorded, after, limit, until=until)

    async def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""
        return await asyncio.to_thread(self._log.read_stream, stream, after, limit)

    async def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""
        return await asyncio.to_thread(self._log.stream_version, stream)

    async def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""
        return await asyncio.to_thread(self._log.streams, prefix)

    async def head(self) -> Head:
        """Return position and chain value of the last record."""
        return await asyncio.to_thread(self._log.head)

    async def end(self) -> int:
        """Return the position of the last record."""
        return await asyncio.to_thread(self._log.end)

    async def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""
        return await asyncio.to_thread(self._log.chain_at, position)

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has."""
        return await asyncio.to_thread(self._log.wait, after, timeout_s)

    async def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check it; progress is called from another thread."""
        return await asyncio.to_thread(self._log.verify, progress)

    async def close(self) -> None:
        """Release the log; closing twice is fine."""
        await asyncio.to_thread(self._log.close)
