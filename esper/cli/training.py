"""What commands that train show while they do: a bar on a terminal, and how far workers are that are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esper.cli import output
from esper.cli.progress import progress

if TYPE_CHECKING:
    from esper.settings import Settings
    from esper.tolaria.orders import Workers
    from esper.tolaria.session import Session

#: Seconds between two lines about workers that are waited for.
_SAY_EVERY_S = 5.0


def workers_of(settings: Settings) -> Workers | None:
    """Return how a run waits for workers, telling how far they are; None where it makes its kernels itself."""
    if settings.forge == "here":
        return None
    from esper.tolaria.orders import Workers

    next_s = 0.0

    def told(done: int, total: int) -> None:
        nonlocal next_s
        if done == total or time.monotonic() >= next_s:
            next_s = time.monotonic() + _SAY_EVERY_S
            output.message(f"kernels from workers: {done} of {total} have a verdict")

    return Workers(wait_s=settings.forge_wait_s, progress=told)


@contextmanager
def training_progress(what: str) -> Iterator[Callable[[Session], None] | None]:
    """Show a bar of steps while the block runs; yields what to call after each epoch."""
    with progress(what, unit="steps") as advance:
        if advance is None:
            yield None
            return
        yield lambda session: advance(session.step_count, session.config.total_steps)
