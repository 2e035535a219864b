"""A process that records facts for a log that never answers, and notes how many are durable after each flush.

Arguments: the spool folder, the file for what was told durable, how many flushes, and options: ``unsynced`` (nothing is
forced) and ``early`` (told before the flush), which break durability on purpose.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from esper.errors import LogUnavailable
from esper.events import Event
from esper.events.operator import NoteAdded
from esper.oona import MemoryLog, Receipt, Recorder
from esper.oona.recording.delivery import Spool


class Away(MemoryLog):
    """A log that never answers."""

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        raise LogUnavailable("nobody answers")


def main(folder: str, acks: str, flushes: int, options: set[str]) -> None:
    """Record notes in groups of one to twenty."""
    if "unsynced" in options:
        os.fdatasync = os.fsync = lambda fd: None
    fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    draw = random.Random(5)
    recorder = Recorder(Away(), sender_id="test", trace_id="0" * 32, spool=Spool(Path(folder), "nowhere"))
    number = 0
    for _ in range(flushes):
        for _ in range(draw.randint(1, 20)):
            fact = NoteAdded(run_id=f"run-{number % 2}", actor="ada", text=f"{number} {'x' * draw.randrange(200)}")
            recorder.put(fact, ("note", number))
            number += 1
        if "early" in options:
            os.write(fd, f"{number}\n".encode())
        recorder.flush()
        if "early" not in options:
            os.write(fd, f"{number}\n".encode())
    with contextlib.suppress(LogUnavailable):
        recorder.close(outage_s=0.0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), set(sys.argv[4:]))
