"""What the parts of one process share: whether to stop, and whether work can be done.

Belongs here: stopping on signals and riding out what passes by itself. Does not belong here: the work (``worker``) or
what is served about it (``health``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

from esper.errors import ArtifactError, EsperError, ProjectionError
from esper.handlers.runtime.health import Health
from esper.logs import get_logger
from esper.redact import mask_text

_FIRST_DELAY_S = 0.1
_MOST_DELAY_S = 5.0


class Life:
    """The life of one process, from start to drain."""

    def __init__(self, health: Health, *, drain_s: float, until_idle: bool = False) -> None:
        """Begin; to be made inside the loop.

        Args:
            health: What is told to those who watch.
            drain_s: How long what is in hand may take after the process was asked to stop.
            until_idle: Whether to end when nothing is left to do.
        """
        self.drain_s = drain_s
        self.until_idle = until_idle
        #: Set when the process is asked to stop.
        self.stopping = asyncio.Event()
        self._health = health
        self._delay_s = 0.0

    def stop(self, why: str) -> None:
        """Ask for the end: nothing new is begun, what is in hand is finished."""
        if not self.stopping.is_set():
            get_logger("runtime").info("draining", why=why)
            self._health.trouble = f"draining: {why}"
            self.stopping.set()

    def well(self) -> None:
        """Note that work is done."""
        if self._delay_s:
            get_logger("runtime").warning("going on")
        self._delay_s = 0.0
        if not self.stopping.is_set():
            self._health.trouble = None

    async def ride_out(self, error: Exception) -> None:
        """Wait longer each time until something that passes by itself has passed, or the process is to stop."""
        told = (
            f"[{error.code}] {error.message}" if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
        )
        told = mask_text(told)
        if not self._delay_s:
            get_logger("runtime").warning("no work can be done; trying again", cause=told)
        if not self.stopping.is_set():
            self._health.trouble = told
        self._delay_s = min(max(2 * self._delay_s, _FIRST_DELAY_S), _MOST_DELAY_S)
        await self.pause(self._delay_s)

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the process is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)


def passes(error: Exception) -> bool:
    """Tell whether an error may pass by itself: a server that is away, a disk that is full, a lock that is held."""
    return isinstance(error, OSError) or type(error) in (ArtifactError, ProjectionError)


@contextlib.contextmanager
def signals(life: Life) -> Iterator[None]:
    """Drain on the first SIGTERM or SIGINT, and end at once on the second, whatever the loop is doing then."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = False

    def note(number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            end_now(128 + number)
        asked = True
        # The loop may be asleep, and events are not for signal handlers to touch.
        loop.call_soon_threadsafe(life.stop, signal.Signals(number).name)

    # What whoever started the process chose to ignore stays ignored.
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def end_now(code: int) -> None:
    """End the process without waiting for anything; nothing is committed on the way."""
    os._exit(code)
