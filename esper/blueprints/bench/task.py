"""What a task of the workbench is. Belongs here: its form. Does not belong here: the table of them (``tasks``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Task(NamedTuple):
    """One thing the child can do."""

    run: Callable[[bytes], bytes]
    #: Whether it may start programs: only a compiler's user may.
    may_start_processes: bool = False
