"""The projector: a service that keeps Urza's tables in step with the log.

Belongs here: one projector at a time per set of tables, and stopping between two batches. Does not belong here:
folding, which ``esper.projections`` does.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from esper.errors import LeaseLost
from esper.handlers.runtime.service import Sole, lag_after
from esper.ids import sha256, short
from esper.metrics import HANDLER_EVENTS
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.lease import Lease
from esper.oona.port import EventLog
from esper.projections.open import open_tables
from esper.projections.runner import Projector

#: How long one wait for new facts lasts.
_WAIT_S = 0.5


class ProjectorService:
    """Folds every fact into the tables soon after it is appended."""

    name = "projector"

    def __init__(self, log: EventLog, db: str, *, member: str, ttl_s: float) -> None:
        """Open the tables, and make them where there are none.

        Args:
            log: The log to follow.
            db: URL of the tables.
            member: Name of this process.
            ttl_s: Seconds after which a silent projector of the same tables counts as dead.

        Raises:
            ConfigError: The URL cannot be used.
            ProjectionError: The tables cannot be read, or are those of another version.
        """
        self._log = log
        self._engine = open_tables(db)
        self._projector = Projector(log, self._engine)
        # Rows and checkpoint are guarded by each other: two projectors would do no harm, only the same work twice.
        self._sole = Sole(Lease(log.cells, f"projector/{_tables(self._engine)}", member, ttl_s=ttl_s))
        self._stopping: asyncio.Event | None = None

    async def step(self, stopping: asyncio.Event) -> Lag:
        """Fold what there is, or wait for it."""
        self._stopping = stopping
        position = (await asyncio.to_thread(self._projector.checkpoint)).position
        if not await asyncio.to_thread(self._log.wait, position, _WAIT_S):
            await self._sole.held()
        elif not await self._sole.held():
            await asyncio.sleep(_WAIT_S)
        else:
            async with self._sole.kept():
                await asyncio.to_thread(self._catch_up)
        return await asyncio.to_thread(self.lag)

    def lag(self) -> Lag:
        """Return what the tables do not know yet."""
        return lag_after(self._log, self._projector.checkpoint().position)

    def close(self) -> None:
        """Let another projector go on."""
        self._engine.dispose()
        self._sole.release()

    def _catch_up(self) -> None:
        before = 0

        def batch_done(done: int, _total: int) -> None:
            nonlocal before
            HANDLER_EVENTS.labels(self.name, "handled").inc(done - before)
            before = done
            if not self._sole.valid:
                raise LeaseLost(f"another {self.name} follows the log into these tables", name=self.name, owner="")
            if self._stopping is not None and self._stopping.is_set():
                raise _Stopped

        try:
            self._projector.catch_up(batch_done)
        except _Stopped:
            return


class _Stopped(Exception):
    """Leaves a catch-up between two batches; never leaves this module."""


def _tables(engine: Any) -> str:
    """Return a name of the tables that a second projector of the same ones comes to as well, without passwords."""
    place = engine.url.render_as_string(hide_password=True)
    if engine.url.host is None:
        # A file is one machine's.
        place = f"{socket.gethostname()} {place}"
    return short(sha256(place.encode()), 16)
