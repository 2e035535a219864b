"""The process of a handler: it serves its pages, works as a member, drains on a signal and ends.

Belongs here: the order of these in a process of their own. Does not belong here: membership and the beat
(``presence``), the work itself (``worker``, ``service``), or what the command line says about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from esper.handlers.runtime.health import TURN_S, Health, Pages
from esper.handlers.runtime.life import Life, end_now, signals
from esper.handlers.runtime.members import Membership
from esper.handlers.runtime.presence import Presence, Work

#: Threads for calls of the log and the consumer; handlers that are plain functions have their own.
_THREADS = 16


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
        self._presence = Presence(membership, health, url=pages.url, refresh=refresh)
        self._drain_s = drain_s
        self._until_idle = until_idle
        self._end = end

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
                if not await self._presence.work(self._make_work, life, ready):
                    # The loop would wait for the thread; nothing of its work counts any more.
                    self._end(0)
        finally:
            turning.cancel()
            await asyncio.to_thread(self._pages.close)

    async def _turn(self) -> None:
        while True:
            self._health.turn()
            await asyncio.sleep(TURN_S)
