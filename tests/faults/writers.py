"""A process that appends batches to a log until it is told to stop, and notes each receipt before it counts it.

Arguments: the log's URL, the file for receipts, a name for this writer, how many batches to write (0: no end), and
options:

- ``shared``: race the other writers for one stream.
- ``together``: say by a file ``NAME.ready`` that one is there, and begin once a file ``go`` stands beside it.
- ``steady``: a hundred batches a second at most.
- ``large``: batches of about 50 KB. ``uneven``: now and then one of 200 KB, which a kill can tear.

Each line of the file of receipts is ``sequence size first last version expected``, and is forced to disk before the
next append. A log that is away or full is asked again with the same batch, as a producer does. SIGTERM stops after it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from esper.errors import ConcurrencyConflict, LogFull, LogUnavailable
from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona.open import open_log
from esper.oona.port import NO_STREAM, EventLog, Receipt

#: How long a batch is tried before this process gives up.
PATIENCE_S = 60.0
_REST_S = 0.02
_STEADY_S = 0.01


def stream_of(writer: str, options: set[str]) -> str:
    """Return the stream a writer appends to."""
    return "operator/shared" if "shared" in options else f"operator/{writer}"


def event_id(writer: str, sequence: int) -> bytes:
    """Return the id of a writer's nth fact."""
    return derived_id("fault", writer, sequence)


def batch_of(writer: str, sequence: int, options: set[str]) -> list[Event]:
    """Return the batch that begins with a writer's nth fact; the same one each time."""
    draw = random.Random(f"{writer} {sequence}")
    size = draw.randint(1, 20)
    fill = 5000 if "large" in options else draw.randrange(300)
    if "uneven" in options and draw.random() < 0.2:
        fill = 20_000
    run_id = stream_of(writer, options).partition("/")[2]
    return [
        Event(
            fact=NoteAdded(run_id=run_id, actor=writer, text=f"{sequence} {place} {size} {'x' * fill}"),
            event_id=event_id(writer, sequence + place),
            sender_id=writer,
            trace_id="0" * 32,
        )
        for place in range(size)
    ]


class Writer:
    """Appends batch after batch and survives a log that comes and goes."""

    def __init__(self, url: str, writer: str, options: set[str]) -> None:
        self._url = url
        self._writer = writer
        self._options = options
        self._stream = stream_of(writer, options)
        self._version = NO_STREAM
        #: Version of the stream that the last append asked for.
        self.expected = NO_STREAM
        self._log: EventLog | None = None

    def append(self, batch: list[Event]) -> Receipt:
        """Append a batch, as often as it takes."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self._log is None:
                    self._log = open_log(self._url)
                self.expected = self._version
                receipt = self._log.append(batch, stream=self._stream, expected=self.expected)
            except ConcurrencyConflict as conflict:
                if "shared" not in self._options:
                    raise
                self._version = conflict.current
            except (LogUnavailable, LogFull):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_REST_S)
            else:
                self._version = receipt.version
                return receipt

    def close(self) -> None:
        """Release the log."""
        if self._log is not None:
            self._log.close()


def main(url: str, receipts: str, name: str, batches: int, options: set[str]) -> None:
    """Append, and note each receipt."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    fd = os.open(receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    writer = Writer(url, name, options)
    if "together" in options:
        _await_the_others(Path(receipts))
    sequence = done = 0
    while not stopping and (not batches or done < batches):
        batch = batch_of(name, sequence, options)
        receipt = writer.append(batch)
        _note(fd, f"{sequence} {len(batch)} {receipt.first} {receipt.last} {receipt.version} {writer.expected}")
        sequence += len(batch)
        done += 1
        if "steady" in options:
            time.sleep(_STEADY_S)
    writer.close()
    os.close(fd)


def _await_the_others(receipts: Path) -> None:
    receipts.with_suffix(".ready").touch()
    deadline = time.monotonic() + PATIENCE_S
    while not receipts.with_name("go").exists() and time.monotonic() < deadline:
        time.sleep(0.001)


def _note(fd: int, line: str) -> None:
    os.write(fd, f"{line}\n".encode())
    os.fsync(fd)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), set(sys.argv[5:]))
