"""Working as a member of a handler: joining, telling again and again that one lives, leaving.

Belongs here: the order of these around the work, the beat, and the numbers refreshed with it. Does not belong here: the
work itself (``worker``, ``service``), or the process around it (``daemon``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

from esper import __version__
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life, passes
from esper.handlers.runtime.members import Beat, Membership
from esper.logs import bound, get_logger
from esper.metrics import HANDLER_LAG_EVENTS, HANDLER_LAG_SECONDS, HANDLER_PARKED
from esper.oona.consuming.consumer import Lag


class Work(Protocol):
    """What a member does: a worker's or a service's loop."""

    name: str

    async def run(self, life: Life) -> bool:
        """Work until the member is to stop; tell whether everything ended."""
        ...

    async def lag(self) -> Lag:
        """Return how far the work is behind the log."""
        ...

    async def parked(self) -> int:
        """Return how many events are parked."""
        ...


class Presence:
    """One member of one handler, while it works."""

    def __init__(
        self, membership: Membership, health: Health, *, url: str = "", refresh: Callable[[], None] = lambda: None
    ) -> None:
        """Put the parts together; nothing runs yet.

        Args:
            membership: This member's place among the handler's.
            health: What is told about it.
            url: Address of its pages; empty where it serves none.
            refresh: Sets the gauges that are nobody else's, e.g. the memory of the log's server; called in a thread.
        """
        self._membership = membership
        self._health = health
        self._url = url
        self._refresh = refresh
        self._started_at_us = time.time_ns() // 1000

    async def work(self, make_work: Callable[[], Work], life: Life, ready: Callable[[], None] = lambda: None) -> bool:
        """Join, work until the member is to stop, and leave.

        Args:
            make_work: Makes the work, in a thread, once this member has joined; it may take streams at once.
            life: When to stop.
            ready: Called when work begins.

        Returns:
            Whether everything ended; if not, a thread still runs and what it does is not committed.

        Raises:
            HandlerError: Another process of this member's name lives.
            EsperError: As the work raises, where it is nothing that passes by itself.
        """
        await asyncio.to_thread(self._membership.join)
        try:
            await asyncio.to_thread(self._membership.beat, self._told(None, 0))
            return await self._beside(await asyncio.to_thread(make_work), life, ready)
        finally:
            await asyncio.to_thread(self._leave)

    async def _beside(self, work: Work, life: Life, ready: Callable[[], None]) -> bool:
        with bound(handler=work.name, member=self._membership.member):
            get_logger("runtime").info("started", url=self._url)
            ready()
            over = asyncio.Event()
            beating = asyncio.create_task(self._beat(work, over))
            beating.add_done_callback(lambda _: life.stop("the beat ended"))
            try:
                return await work.run(life)
            finally:
                over.set()
                await beating
                get_logger("runtime").info("ended")

    async def _beat(self, work: Work, over: asyncio.Event) -> None:
        """Refresh the numbers and say that this member lives, again and again."""
        while not over.is_set():
            try:
                await asyncio.to_thread(self._refresh)
                lag, parked = await work.lag(), await work.parked()
                _show(work.name, lag.events, lag.seconds, parked)
                await asyncio.to_thread(self._membership.beat, self._told(lag, parked))
            except Exception as error:
                if not passes(error):
                    raise
                # The loop that works meets it too, and waits. What was measured before is no measurement any more.
                _show(work.name, math.nan, math.nan, math.nan)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), self._membership.every_s)

    def _told(self, lag: Lag | None, parked: int) -> Beat:
        return Beat(
            started_at=self._started_at_us,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            url=self._url,
            every_s=self._membership.every_s,
            lag_events=None if lag is None else lag.events,
            lag_seconds=None if lag is None else lag.seconds,
            parked=parked,
            trouble=self._health.trouble,
        )

    def _leave(self) -> None:
        try:
            self._membership.leave()
        except OSError as error:
            # The log is away; the cell stays and falls silent, which is what others look at.
            get_logger("runtime").warning("left without saying so", cause=str(error))


def _show(name: str, lag_events: float, lag_seconds: float, parked: float) -> None:
    HANDLER_LAG_EVENTS.labels(name).set(lag_events)
    HANDLER_LAG_SECONDS.labels(name).set(lag_seconds)
    HANDLER_PARKED.labels(name).set(parked)
