"""What the child of the workbench may not do, from inside: it gives up what its tasks never need.

Belongs here: the audit hook, resource limits, and dying with the parent. Does not belong here: the limits of wall time
and memory that the parent enforces (``process``).

The audit hook sees what Python code does, not what machine code does. That is enough for tasks that are ours on
documents that are not: nothing in a blueprint or a kernel is executed as code. It is no jail for hostile programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

from esper.blueprints.bench import procfs

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LARGEST_FILE_BYTES = 1 << 30
_STARTS_A_PROCESS = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen"}
)
#: Ending a compiler that takes too long belongs to running it.
_SIGNALS = frozenset({"os.kill", "os.killpg"})
#: Events that change files, and how many of their first arguments are paths.
_CHANGES = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "shutil.move": 2,
    "shutil.rmtree": 1,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class Confinement:
    """What is refused from now on in this process."""

    def __init__(self, folder: str) -> None:
        """Refuse sockets, other processes, and writing outside a folder; it cannot be taken back.

        Args:
            folder: The one folder in which files may be written.
        """
        #: Whether the task at work may start programs: a compiler.
        self.may_start_processes = False
        self._folder = os.path.realpath(folder)
        sys.addaudithook(self._judge)

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if _writes(mode, flags):
                self._require_inside(path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                self._require_inside(path)
        elif event in _STARTS_A_PROCESS or event in _SIGNALS:
            if not self.may_start_processes:
                raise PermissionError(f"work on a blueprint may not do this: {event}")
        elif event.startswith("socket.") and event != "socket.gethostname":
            raise PermissionError(f"work on a blueprint may not use the network: {event}")

    def _require_inside(self, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return  # an open file was judged when it was opened
        where = os.path.realpath(os.fsdecode(path))
        if where != os.devnull and os.path.commonpath([where, self._folder]) != self._folder:
            raise PermissionError(f"work on a blueprint may not write outside its folder: {where}")


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, however that ends.

    Args:
        parent: Process id of the parent as the parent knows it.
    """
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        if os.getppid() != parent:
            os._exit(1)  # it died before we could ask to be told
        return
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none gets out of sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit_for_life() -> None:
    """Set the limits that hold for all jobs: no core dumps, and no file beyond a GiB."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, _LARGEST_FILE_BYTES)


def limit_for_job(cpu_s: float, memory_bytes: int) -> None:
    """Set the limits of one job.

    The parent kills by resident memory. The limit here stops one great allocation at once, before it is filled.

    Args:
        cpu_s: Processor time from now on; the process is ended when it has passed.
        memory_bytes: Private memory above what the process has now; more is refused.
    """
    _lower(resource.RLIMIT_CPU, int(time.process_time() + cpu_s) + 1)
    held = procfs.status_bytes("VmData")
    if held is not None:
        _lower(resource.RLIMIT_DATA, held + memory_bytes)


def _lower(which: int, value: int) -> None:
    """Set a soft limit; the hard one stays, so that the next job can have another."""
    _, hard = resource.getrlimit(which)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(OSError, ValueError):  # a system that does not know the limit does without it
        resource.setrlimit(which, (soft, hard))


def _prctl(option: int, value: int) -> bool:
    """Set an option of the process on Linux; tell whether that worked."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None), "prctl", None)
    return call is not None and call(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3) == 0
