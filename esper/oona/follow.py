"""Following several logs at once.

Each log has an order of its own, and a position in each says how far one is; nothing orders one log against another.
Belongs here: reading along. Does not belong here: what is done with what is read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping

from esper.errors import EsperError
from esper.events.envelope import Envelope
from esper.oona.port import EventLog

_PAGE = 500
_WAIT_S = 0.5
#: Pages that wait to be taken, so that a slow reader holds back those that read for it.
_AHEAD = 4


def follow(
    logs: Mapping[str, EventLog],
    after: Mapping[str, int],
    *,
    keep: Callable[[Envelope], bool] | None = None,
) -> Iterator[tuple[str, Envelope]]:
    """Yield the records of several logs as they come, those of each log in its order; never ends by itself.

    Args:
        logs: Logs by namespace.
        after: Position to go on from in each; 0 for a log that is not named.
        keep: Tells which records to yield; all when left out.

    Raises:
        LogError: As one of the logs raises.
    """
    hall = _Hall()
    readers = [
        threading.Thread(target=hall.bring, args=(name, log, after.get(name, 0)), name=f"follow-{name}", daemon=True)
        for name, log in logs.items()
    ]
    for reader in readers:
        reader.start()
    try:
        while True:
            name, page = hall.pages.get()
            if isinstance(page, EsperError):
                raise page
            for envelope in page:
                if keep is None or keep(envelope):
                    yield name, envelope
    finally:
        hall.closed.set()
        for reader in readers:
            reader.join()


class _Hall:
    """Where the threads that read bring their pages."""

    def __init__(self) -> None:
        self.pages: queue.Queue[tuple[str, list[Envelope] | EsperError]] = queue.Queue(_AHEAD)
        self.closed = threading.Event()

    def bring(self, name: str, log: EventLog, position: int) -> None:
        """Read a log along until the hall is closed, or an error ends it."""
        try:
            while not self.closed.is_set():
                if log.wait(position, _WAIT_S) and (page := log.read(position, _PAGE)):
                    position = page[-1].position
                    self._hand_over(name, page)
        except EsperError as error:
            self._hand_over(name, error)

    def _hand_over(self, name: str, page: list[Envelope] | EsperError) -> None:
        while not self.closed.is_set():
            try:
                self.pages.put((name, page), timeout=_WAIT_S)
            except queue.Full:
                continue
            return
