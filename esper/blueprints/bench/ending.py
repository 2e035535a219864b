"""Ending a child of the workbench, with all that it started.

Belongs here: finding and killing. Does not belong here: when (``process``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from esper.blueprints.bench import procfs

#: Tries at stopping processes that go on starting others; each one stops all it finds.
_ROUNDS = 100
#: How long what was killed may take to be gone, and how often that is looked at.
_GONE_S, _LOOK_S = 2.0, 0.001


def end_all(popen: subprocess.Popen[bytes], mark: bytes) -> bool:
    """Kill a child and what came of it, and tell whether there was anything beside the child.

    All are stopped before the first is killed: a stopped process starts no other, and what is found cannot change.
    While the child lives it is the parent of all orphans below it. What it left behind when it died by itself is known
    by the mark in its environment.

    Args:
        popen: The child.
        mark: What stands in the environment of the child and of what it started.
    """
    found: set[int] = set()
    if popen.poll() is None:
        _signal(popen.pid, signal.SIGSTOP)
    for _ in range(_ROUNDS):
        below = procfs.descendants(popen.pid) if popen.returncode is None else set()
        new = (below | procfs.marked(mark)) - found - {popen.pid, os.getpid()}
        if not new:
            break
        found |= new
        for pid in new:
            _signal(pid, signal.SIGSTOP)
    for pid in found:
        _signal(pid, signal.SIGKILL)
    if popen.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(popen.pid, signal.SIGKILL)  # its session is its own; where there is no /proc this is all
        popen.kill()
        popen.wait()
    until_s = time.monotonic() + _GONE_S
    while any(map(procfs.lives, found)) and time.monotonic() < until_s:
        time.sleep(_LOOK_S)  # a kill is carried out a moment after it is sent
    return bool(found)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it ended meanwhile
        os.kill(pid, number)
