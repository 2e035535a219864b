"""What commands that train show while they do: one line an epoch, on stderr, or a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esper.cli.progress import progress

if TYPE_CHECKING:
    from esper.tolaria.session import Session


@contextmanager
def training_progress(what: str) -> Iterator[Callable[[Session], None] | None]:
    """Show a bar of steps while the block runs; yields what to call after each epoch."""
    with progress(what, unit="steps") as advance:
        if advance is None:
            yield None
            return
        yield lambda session: advance(session.step_count, session.config.total_steps)
