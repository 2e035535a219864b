"""The process of a handler: it joins, works, tells how it is, drains and leaves.

Belongs here: the order of these, the beat, and the numbers refreshed with it. Does not belong here: the work itself
(``worker``, ``service``), or what the command line says about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from esper import __version__
from esper.handlers.runtime.health import TURN_S, Health, Pages
from esper.handlers.runtime.life import Life, end_now, passes, signals
from esper.handlers.runtime.members import Beat, Membership
from esper.logs import bound, get_logger
from esper.metrics import HANDLER_LAG_EVENTS, HANDLER_LAG_SECONDS, HANDLER_PARKED
from esper.oona.consuming.consumer import Lag

#: Threads for calls of the log and the consumer; handlers that are plain functions have their own.
_THREADS = 16


class Work(Protocol):
    """What a daemon does: a worker's or a service's loop."""

    name: str

    async def run(self, life: Life) -> bool:
        """Work until the process is to stop; tell whether everything ended."""
        ...

    async def lag(self) -> Lag:
        """Return how far the work is behind the log."""
        ...

    async def parked(self) -> int:
        """Return how many events are parked."""
        ...


class Daemon:
    """One process of one handler."""

    def __init__(
        self,
        make_work: Callable[[], Work],
        *,
        health: Health,
        pages: Pages,
        membership: Membership,
        refresh: Callable[[], None] = lambda: None,
        drain_s: float = 30.0,
        until_idle: bool = False,
        end: Callable[[int], None] = end_now,
    ) -> None:
        """Put the parts together; nothing runs yet.

        Args:
            make_work: Makes the work, in a thread, after this process has joined; it may take streams at once.
            health: What the pages tell.
            pages: The pages; closed at the end.
            membership: This process's place among the handler's.
            refresh: Sets the gauges that are nobody else's, e.g. the memory of the log's server; called in a thread.
            drain_s: How long what is in hand may take after the process was asked to stop.
            until_idle: Whether to end when nothing is left to do.
            end: Ends the process at once where a thread does not end.
        """
        self._make_work = make_work
        self._health = health
        self._pages = pages
        self._membership = membership
        self._refresh = refresh
        self._drain_s = drain_s
        self._until_idle = until_idle
        self._end = end
        self._started_at_us = time.time_ns() // 1000

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Run until the process is asked to stop.

        Args:
            ready: Called once the pages are served and work begins.

        Raises:
            HandlerError: Another process of this member's name lives.
            EsperError: As the work raises, where it is nothing that passes by itself.
        """
        asyncio.run(self._live(ready))

    async def _live(self, ready: Callable[[], None]) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="esper"))
        life = Life(self._health, drain_s=self._drain_s, until_idle=self._until_idle)
        turning = asyncio.create_task(self._turn())
        try:
            with signals(life):
                await asyncio.to_thread(self._pages.start)
                await asyncio.to_thread(self._membership.join)
                try:
                    await asyncio.to_thread(self._membership.beat, self._told(None, 0))
                    ended = await self._work(life, ready)
                finally:
                    await asyncio.to_thread(self._leave)
                if not ended:
                    # The loop would wait for the thread; nothing of its work counts any more.
                    self._end(0)
        finally:
            turning.cancel()
            await asyncio.to_thread(self._pages.close)

    async def _work(self, life: Life, ready: Callable[[], None]) -> bool:
        work = await asyncio.to_thread(self._make_work)
        with bound(handler=work.name, member=self._membership.member):
            get_logger("runtime").info("started", url=self._pages.url)
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

    async def _turn(self) -> None:
        while True:
            self._health.turn()
            await asyncio.sleep(TURN_S)

    async def _beat(self, work: Work, over: asyncio.Event) -> None:
        """Refresh the numbers and say that this process lives, again and again."""
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
            url=self._pages.url,
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
