"""The workbench: work on blueprints and kernels, done in a child process that is killed when it breaks a limit.

Belongs here: keeping a child warm, handing it one job at a time, and what came of each. Does not belong here: the child
(``bench``), what a result means (``forge``), or which facts are written.

A blueprint of a stranger can ask for hours of work or all of the memory. In the process that trains, that would be the
end of the run; here it is the end of a child.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from esper.blueprints.bench.process import Process
from esper.blueprints.bench.spawn import forget_spawner
from esper.blueprints.bench.wire import Failure, Request
from esper.errors import BlueprintError, BlueprintInvalid, KernelRefused, WorkFailed

#: The tasks there are.
TASKS = "esper.blueprints.bench.tasks"
_TURN_S = 0.05


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may take."""

    #: From the request to the answer; starting a child is not counted. The child computes on one thread, so that
    #: this bounds processor time as well.
    wall_s: float = 120.0
    #: Memory above what the idle child holds.
    memory_bytes: int = 4 << 30


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job."""

    result: bytes
    wall_s: float
    cpu_s: float
    #: Most memory held above what the idle child holds; 0 where the system does not tell.
    peak_memory_bytes: int


class Workbench:
    """One child process for work on blueprints and kernels; threads take turns."""

    def __init__(self, limits: Limits | None = None, *, tasks: str = TASKS) -> None:
        """Make a bench; its child starts with the first job.

        Args:
            limits: Of every job that does not bring its own.
            tasks: Name of the module whose ``TASKS`` the child serves. The shipped table is closed; another one is for
                tests of the limits, with tasks that break them.
        """
        self.limits = limits or Limits()
        self._tasks = tasks
        self._turn = threading.Lock()
        self._child: Process | None = None
        self._closed = False
        atexit.register(self.close)

    def run(
        self,
        task: str,
        payload: bytes,
        *,
        limits: Limits | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Done:
        """Do a job in the child, and wait for it.

        Args:
            task: Its name in the table of tasks.
            payload: What it works on.
            limits: Of this job.
            stop: Asked all the while whether the job should end early.

        Raises:
            WorkFailed: ``reason`` says why: error, time_limit, memory_limit, died, forked or stopped.
            BlueprintInvalid: The task refused a blueprint.
            KernelRefused: The task refused a kernel.
            DependencyUnavailable: No child can be started.
        """
        limits = limits or self.limits
        stopping = self._stopping(stop)
        with self._my_turn(stopping):
            child = self._ready_child(stopping)
            request = Request(task=task, payload=payload, cpu_s=limits.wall_s, memory_bytes=limits.memory_bytes)
            began_s = time.perf_counter()
            answer, seen_bytes = child.ask(
                request, wall_s=limits.wall_s, memory_bytes=limits.memory_bytes, stop=stopping
            )
            wall_s = time.perf_counter() - began_s
        if answer.failure is not None or answer.result is None:
            raise _error(answer.failure, task)
        peaks = [peak for peak in (seen_bytes, answer.peak_memory_bytes) if peak is not None]
        return Done(result=answer.result, wall_s=wall_s, cpu_s=answer.cpu_s, peak_memory_bytes=max(peaks, default=0))

    def warm_up(self) -> None:
        """Start the child without waiting for it, so that the first job finds it ready."""
        with self._turn:
            if not self._closed:
                self._live_child()

    def close(self) -> None:
        """End the child, and with it a job that is being done; the bench cannot be used afterwards."""
        self._closed = True
        atexit.unregister(self.close)
        with self._turn:
            if self._child is not None and self._child.owner == os.getpid():
                self._child.close()
            self._child = None

    def begin_anew(self) -> None:
        """Leave the child to the process we were forked from; the next job here starts another one."""
        if self._child is not None:
            self._child.forget()
        self._child, self._turn = None, threading.Lock()

    def _stopping(self, stop: Callable[[], bool] | None) -> Callable[[], bool]:
        return lambda: self._closed or (stop is not None and stop())

    @contextlib.contextmanager
    def _my_turn(self, stopping: Callable[[], bool]) -> Iterator[None]:
        while not self._turn.acquire(timeout=_TURN_S):
            if stopping():
                raise WorkFailed("the work was stopped before it began", reason="stopped")
        try:
            yield
        finally:
            self._turn.release()

    def _ready_child(self, stopping: Callable[[], bool]) -> Process:
        if self._closed:
            raise WorkFailed("the workbench is closed", reason="stopped")
        child = self._live_child()
        child.wait_until_ready(stopping)
        return child

    def _live_child(self) -> Process:
        """Return the child, or a new one where it died, was killed, or is that of the process we were forked from."""
        if self._child is not None and self._child.owner != os.getpid():
            self._child.forget()
            self._child = None
        if self._child is not None and not self._child.alive():
            self._child.kill()
            self._child = None
        if self._child is None:
            self._child = Process(self._tasks)
        return self._child


def _error(failure: Failure | None, task: str) -> BlueprintError:
    """Return the error that a job ended with."""
    if failure is None:
        return WorkFailed(f"{task} gave no result", reason="error")
    if failure.kind == "BlueprintInvalid":
        return BlueprintInvalid(failure.message, hint=failure.hint, **failure.attributes)
    if failure.kind == "KernelRefused":
        return KernelRefused(failure.message, hint=failure.hint, **failure.attributes)
    return WorkFailed(f"{task}: {failure.message}", reason=failure.kind)


_shared: Workbench | None = None
_sharing = threading.Lock()


def shared_bench() -> Workbench:
    """Return the one bench of this process; it is closed when the process ends."""
    global _shared  # noqa: PLW0603 - one child for the process, that is the point
    with _sharing:
        if _shared is None:
            _shared = Workbench()
        return _shared


def _begin_anew() -> None:
    """See that a forked process shares neither child nor locks, one of which a thread may hold that it has not."""
    global _sharing  # noqa: PLW0603 - a lock that is held at the fork can never be released here
    _sharing = threading.Lock()
    forget_spawner()
    if _shared is not None:
        _shared.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
