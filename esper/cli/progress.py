"""A progress bar with rate and time left, on stderr, for work that can be long; without a terminal there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with how much is done and how much there is in all.
Advance = Callable[[int, int], None]


@contextmanager
def progress(what: str, unit: str = "events") -> Iterator[Advance | None]:
    """Show a bar while the ``with`` block runs.

    Args:
        what: What is being done, e.g. ``verifying the log``.
        unit: What is counted.

    Yields:
        The function to call with (done, total), or None where nobody would see the bar.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many units a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task_id = bar.add_task(what, total=0)
        yield lambda done, total: bar.update(task_id, completed=done, total=total)
