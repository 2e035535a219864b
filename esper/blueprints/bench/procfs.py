"""What the system tells of other processes: memory and descendants, from /proc.

Belongs here: reading. Does not belong here: judging and killing (``process``). Where there is no /proc, as on macOS,
nothing is known: memory is None and no descendants are found.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int | None:
    """Return how much memory a process holds now; None where that is not known or it is gone."""
    try:
        fields = (_PROC / str(pid) / "statm").read_bytes().split()
    except OSError:
        return None
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 else None


def status_bytes(field: str, pid: int | str = "self") -> int | None:
    """Return a size of /proc/PID/status, e.g. ``VmHWM``; None where it is not told."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def has_children(pid: int) -> bool:
    """Tell whether a process has a child that lives."""
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
        return any((task / "children").read_bytes().strip() for task in tasks)
    except OSError:
        # The kernel keeps no such lists, or a thread just ended.
        return bool(descendants(pid))


def descendants(pid: int) -> set[int]:
    """Return the processes below one, zombies left out."""
    children: dict[int, list[int]] = defaultdict(list)
    for other in _pids():
        if (parent := _living_parent(other)) is not None:
            children[parent].append(other)
    found: set[int] = set()
    todo = [pid]
    while todo:
        new = [child for child in children[todo.pop()] if child not in found]
        found.update(new)
        todo += new
    return found


def lives(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    return _living_parent(pid) is not None


def marked(mark: bytes) -> set[int]:
    """Return the living processes that have a text in their environment, whoever their parent is now."""
    found = set()
    for pid in _pids():
        try:
            if mark in (_PROC / str(pid) / "environ").read_bytes():
                found.add(pid)
        except OSError:
            continue  # it ended, or is another user's and so not ours
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return []


def _living_parent(pid: int) -> int | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in brackets, and may hold anything.
    state, parent = stat.rpartition(b")")[2].split()[:2]
    return None if state in (b"Z", b"X") else int(parent)
