"""Several workbenches, and waiting for one of them without holding up an event loop.

Belongs here: who gets which bench, and giving work up that nobody waits for. Does not belong here: the bench
(``esper.blueprints.bench.workbench``) or the tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from esper.blueprints.bench.workbench import TASKS, Done, Limits, Workbench
from esper.errors import EsperError

T = TypeVar("T")


class Benches:
    """A fixed number of benches, each with a child process of its own that starts with its first job."""

    def __init__(self, count: int, limits: Limits | None = None, *, tasks: str = TASKS) -> None:
        """Make them; no child is started.

        Args:
            count: How many jobs can be done at the same time.
            limits: Of every job.
            tasks: As for ``Workbench``.
        """
        self._all = [Workbench(limits, tasks=tasks) for _ in range(count)]
        # The one that was used last goes first: its child is warm, and the others may never be needed.
        self._idle: queue.LifoQueue[Workbench] = queue.LifoQueue()
        for bench in self._all:
            self._idle.put(bench)
        # Threads of our own: those of the loop are for the log and the heartbeat.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="workbench")

    async def run(self, task: str, payload: bytes, *, stop: Callable[[], bool]) -> Done:
        """Do a job at the next free bench; when the caller is cancelled, the job is ended before it returns.

        Args:
            task: Its name in the table of tasks.
            payload: What it works on.
            stop: Asked all the while, on another thread, whether the job should end early.

        Raises:
            WorkFailed: As ``Workbench.run`` raises.
            BlueprintInvalid: The task refused a blueprint.
            KernelRefused: The task refused a kernel.
            DependencyUnavailable: No child can be started.
        """
        return await self.lend(lambda bench, stopping: bench.run(task, payload, stop=stopping), stop=stop)

    async def lend(self, work: Callable[[Workbench, Callable[[], bool]], T], *, stop: Callable[[], bool]) -> T:
        """Do several jobs at the next free bench, on a thread; cancelled as ``run`` is.

        Args:
            work: Is given the bench, and what to ask all the while whether to end early.
            stop: As for ``run``.
        """
        unwanted = threading.Event()
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._threads, self._lend, work, lambda: unwanted.is_set() or stop())
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            unwanted.set()
            with contextlib.suppress(EsperError):
                await job
            raise

    def close(self) -> None:
        """End the children, and with them what they do."""
        for bench in self._all:
            bench.close()
        self._threads.shutdown()

    def _lend(self, work: Callable[[Workbench, Callable[[], bool]], T], stop: Callable[[], bool]) -> T:
        bench = self._idle.get()
        try:
            return work(bench, stop)
        finally:
            self._idle.put(bench)
