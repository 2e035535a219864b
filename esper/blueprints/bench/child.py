"""The program of the workbench's child: ``python -m esper.blueprints.bench.child TASKS PARENT FOLDER``.

Belongs here: taking a job from the pipe, doing it within limits, answering. Does not belong here: the tasks themselves
(``tasks``), or starting, watching and killing this process (``process``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from esper.blueprints.bench import procfs
from esper.blueprints.bench.confinement import (
    Confinement,
    adopt_orphans,
    die_with_parent,
    limit_for_job,
    limit_for_life,
)
from esper.blueprints.bench.wire import HEADER_BYTES, MAX_MESSAGE_BYTES, Answer, Failure, Request, framed
from esper.errors import BlueprintInvalid, KernelRefused

if TYPE_CHECKING:
    from esper.blueprints.bench.task import Task

#: How torch says that the system gave it no memory; it raises a plain RuntimeError.
_NO_MEMORY = "can't allocate memory"
_READ_BYTES = 1 << 20


class Bench:
    """Does jobs one after another."""

    def __init__(self, tasks: dict[str, Task], folder: str) -> None:
        """Get ready; from here on the process is confined.

        Args:
            tasks: What can be asked for.
            folder: Where files may be written.
        """
        self._tasks = tasks
        # The peak is reset by writing here, which no task could do.
        self._reset = _open_for_writing("/proc/self/clear_refs")
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._confinement = Confinement(folder)
        self._threads = threading.active_count()
        # What is there now stays: collecting after a job then takes microseconds.
        gc.collect()
        gc.freeze()

    def do(self, request: Request) -> Answer:
        """Do one job and tell what became of it."""
        before_bytes = self._settle()
        before_s = time.process_time()
        result, failure = self._attempt(request)
        cpu_s = time.process_time() - before_s
        peak_bytes = procfs.status_bytes("VmHWM")
        return Answer(
            result=result,
            failure=failure,
            cpu_s=cpu_s,
            peak_memory_bytes=(
                None if peak_bytes is None or before_bytes is None else max(0, peak_bytes - before_bytes)
            ),
            spoiled=threading.active_count() > self._threads,
        )

    def _attempt(self, request: Request) -> tuple[bytes | None, Failure | None]:
        task = self._tasks.get(request.task)
        if task is None:
            return None, Failure(kind="error", message=f"no task is called {request.task[:80]!r}")
        result: bytes | None = None
        failure: Failure | None = None
        self._confinement.may_start_processes = task.may_start_processes
        try:
            limit_for_job(request.cpu_s, request.memory_bytes)
            given: object = task.run(request.payload)
        except BaseException as error:
            # SystemExit too: whatever a task raises is its answer, and the process lives on.
            failure = _failure(error)
        else:
            if isinstance(given, bytes):
                result = given
            else:
                failure = Failure(kind="error", message=f"the task gave no bytes but {type(given).__name__}")
        finally:
            self._confinement.may_start_processes = False
        if _left_children(finished_too=not task.may_start_processes):
            return None, Failure(kind="forked", message=f"{request.task} started processes of its own")
        return result, failure

    def _settle(self) -> int | None:
        """Give unused memory back, forget the peak, and return how much is held."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)
        if self._reset is not None:
            os.write(self._reset, b"5")
        return procfs.resident_bytes(os.getpid())


def _failure(error: BaseException) -> Failure:
    if isinstance(error, (BlueprintInvalid, KernelRefused)):
        told = {name: str(value) for name, value in error.attributes.items()}
        kind = "BlueprintInvalid" if isinstance(error, BlueprintInvalid) else "KernelRefused"
        return Failure(kind=kind, message=error.message, hint=error.hint, attributes=told)
    text = str(error).strip().split("\n")[0][:500]
    if isinstance(error, MemoryError) or _NO_MEMORY in text:
        return Failure(kind="memory_limit", message=text or "no memory was left")
    return Failure(kind="error", message=f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _left_children(*, finished_too: bool) -> bool:
    """Tell whether a job left processes; those that have ended are laid to rest."""
    ended = False
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended and finished_too
        if pid == 0:
            return True
        ended = True


def _open_for_writing(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_WRONLY)
    return None


def _read(source: int, count: int) -> bytes:
    """Return so many bytes; fewer only where the other side closed the pipe."""
    data = bytearray()
    while len(data) < count and (piece := os.read(source, min(count - len(data), _READ_BYTES))):
        data += piece
    return bytes(data)


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def main(tasks: str, parent: str, folder: str) -> None:
    """Serve jobs until the parent closes the pipe.

    Args:
        tasks: Name of the module with the table of tasks.
        parent: Process id of the parent.
        folder: Where files may be written.
    """
    # Nobody but this loop speaks on the pipes: what is printed goes where errors go.
    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    die_with_parent(int(parent))
    adopt_orphans()
    limit_for_life()
    bench = Bench(importlib.import_module(tasks).TASKS, folder)
    _write(target, framed(Answer()))
    while len(header := _read(source, HEADER_BYTES)) == HEADER_BYTES:
        length = int.from_bytes(header)
        if length > MAX_MESSAGE_BYTES or len(body := _read(source, length)) < length:
            break
        _write(target, framed(bench.do(msgspec.msgpack.decode(body, type=Request))))
    # Nothing here is worth tidying up, and tidying up torch takes long.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
