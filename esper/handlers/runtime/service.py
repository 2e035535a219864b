"""The loop of a service, and the lease that lets one process at a time do its work.

Belongs here: steps one after another, and holding the lease while they go on. Does not belong here: what a step does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from esper.clock import Clock, SystemClock
from esper.errors import LeaseLost
from esper.handlers.runtime.handler import Service
from esper.handlers.runtime.life import Life, passes
from esper.logs import get_logger
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.lease import Lease
from esper.oona.port import EventLog

#: Renewals in the time after which a silent owner counts as dead.
_RENEWALS_IN_TTL = 4


class ServiceLoop:
    """Drives one service."""

    def __init__(self, service: Service) -> None:
        """Drive a service."""
        self.name = service.name
        self._service = service

    async def run(self, life: Life) -> bool:
        """Do step after step until the process is to stop; tell whether the last one ended in time."""
        try:
            while not life.stopping.is_set():
                if not await self._step(life):
                    get_logger("runtime").warning("a step was abandoned; what it did not commit will be done again")
                    return False
        except BaseException:
            # What went wrong first is what is told.
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self._service.close)
            raise
        await asyncio.to_thread(self._service.close)
        return True

    async def lag(self) -> Lag:
        """Return how far the service is behind the log."""
        return await asyncio.to_thread(self._service.lag)

    async def parked(self) -> int:
        """Return 0: a service stops at what it cannot do."""
        return 0

    async def _step(self, life: Life) -> bool:
        """Do one step; tell whether it ended, which it must soon after the process was asked to stop."""
        step = asyncio.create_task(self._service.step(life.stopping))
        stop = asyncio.create_task(life.stopping.wait())
        await asyncio.wait({step, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not step.done():
            await asyncio.wait({step}, timeout=life.drain_s)
        if step.done():
            await self._judge(step, life)
        return step.done()

    async def _judge(self, step: asyncio.Task[Lag], life: Life) -> None:
        try:
            lag = step.result()
        except LeaseLost as error:
            get_logger("runtime").warning("another member does the work now", cause=error.message)
        except Exception as error:
            if not passes(error):
                raise
            await life.ride_out(error)
        else:
            life.well()
            if life.until_idle and lag.events == 0:
                life.stop("idle")


class Sole:
    """Lets one process at a time do something; the others stand by and take over when it dies or leaves."""

    def __init__(self, lease: Lease) -> None:
        """Compete for a lease of this process's own."""
        self._lease = lease
        self._every_s = lease.ttl_s / _RENEWALS_IN_TTL
        self._next_s = 0.0

    @property
    def valid(self) -> bool:
        """Whether no other process can hold the lease now."""
        return self._lease.valid

    async def held(self) -> bool:
        """Take or renew the lease if that is due; tell whether it is held.

        Raises:
            LeaseLost: Another process took it.
        """
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._every_s
            await asyncio.to_thread(self._lease.renew if self._lease.valid else self._lease.acquire)
        return self._lease.valid

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew the lease in the background while the block goes on."""
        over = asyncio.Event()
        keeping = asyncio.create_task(self._keep(over))
        try:
            yield
        finally:
            over.set()
            await keeping

    def release(self) -> None:
        """Give the lease up, if it is held."""
        self._lease.release()

    async def _keep(self, over: asyncio.Event) -> None:
        # A renewal that fails shows in `valid`, which whoever works under the lease asks before it commits.
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), self._every_s)
            with contextlib.suppress(LeaseLost, OSError):
                await asyncio.to_thread(self._lease.renew)


def lag_after(log: EventLog, position: int, *, clock: Clock | None = None) -> Lag:
    """Return how far a position is behind the end of a log.

    Args:
        log: The log.
        position: Last position that is dealt with.
        clock: Tells the age of what is not; the machine's clock when left out.
    """
    behind = log.end() - position
    waiting = log.read(position, 1) if behind > 0 else []
    if not waiting:
        return Lag(max(behind, 0), 0.0)
    age_us = (clock or SystemClock()).now_us() - waiting[0].recorded_at
    return Lag(behind, max(age_us, 0) / 1_000_000)
