"""A process that appends to a log until it is killed, and notes each receipt once it has it.

Arguments: the database file, the file for receipts, a name for this writer, how many batches to write (0: no end),
and options: ``unsynced`` (synchronous=OFF) and ``early`` (acknowledge before the append), which break durability on
purpose, and ``checkpoints`` (move the write-ahead log into the database often).
"""

from __future__ import annotations

import os
import random
import sys

from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona import SqliteLog


def main(path: str, acks: str, writer: str, batches: int, options: set[str]) -> None:
    """Append batches of one to twenty notes to the writer's own stream."""
    log = SqliteLog(path)
    if "unsynced" in options:
        log._writer.execute("PRAGMA synchronous=OFF")
    if "checkpoints" in options:
        log._writer.execute("PRAGMA wal_autocheckpoint=20")
    fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    stream = f"operator/{writer}"
    version = log.stream_version(stream)
    draw = random.Random(f"{writer} {version}")
    done = 0
    while not batches or done < batches:
        size = draw.randint(1, 20)
        facts = [
            NoteAdded(run_id=writer, actor="ada", text=f"{version} {place} {size} {'x' * draw.randrange(300)}")
            for place in range(size)
        ]
        events = [
            Event(
                fact=fact,
                event_id=derived_id(writer, version + place),
                sender_id=writer,
                trace_id="0" * 32,
            )
            for place, fact in enumerate(facts)
        ]
        line = f"{writer} {version + size}\n".encode()
        if "early" in options:
            os.write(fd, line)
        version = log.append(events, stream=stream, expected=version).version
        if "early" not in options:
            os.write(fd, line)
        done += 1
    log.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), set(sys.argv[5:]))
