"""A process that is one member of a group: it handles notes until SIGTERM, and notes what it does in a journal.

Arguments: URL of the log, name of the member, folder for the journal and effects, and options. The effect of a note is
a file that is named for its event, and then a fact whose id derives from it. ``stuck`` never returns from a note that
says ``wait`` until the file ``go`` is there, before the effect; ``stuck-after-effect`` waits after it.

A line of the journal: member, what (``begin``, ``end``, ``late``, ``lost``), stream, version, seconds of a clock that
all processes share.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona import ANY, EventLog, open_log
from esper.oona.consuming.consumer import Consumer, Delivery

GROUP = "workers"
#: Long enough that a busy machine does not make a living member look dead.
TTL_S = 2.0


class Worker:
    """Handles notes of a log."""

    def __init__(self, log: EventLog, member: str, folder: Path, options: set[str]) -> None:
        self.log, self.member, self.folder, self.options = log, member, folder, options
        self.stopping = False
        self.journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopping = True

    def write(self, what: str, delivery: Delivery) -> None:
        envelope = delivery.envelope
        line = f"{self.member} {what} {envelope.stream} {envelope.version} {time.monotonic():.6f}\n"
        os.write(self.journal, line.encode())

    def run(self) -> None:
        consumer = Consumer(
            self.log,
            group=GROUP,
            member=self.member,
            topics=[TopicNames.OPERATOR_ACTIONS],
            sender_id="handler:workers",
            trace_id="1" * 32,
            ttl_s=TTL_S,
            slots=6,
        )
        with consumer:
            while not self.stopping:
                for delivery in consumer.poll(4, 0.2):
                    if not consumer.holds(delivery):
                        self.write("lost", delivery)
                        continue
                    self.handle(delivery)
                    if consumer.done([delivery]):
                        self.write("late", delivery)

    def handle(self, delivery: Delivery) -> None:
        fact, envelope = delivery.fact, delivery.envelope
        if not isinstance(fact, NoteAdded) or fact.actor == "result":
            return
        self.write("begin", delivery)
        if fact.text == "wait" and "stuck" in self.options:
            self.wait()
        name = envelope.event_id.hex()
        with (self.folder / "effects" / name).open("a") as file:
            file.write(f"{self.member}\n")
        if fact.text == "wait" and "stuck-after-effect" in self.options:
            self.wait()
        result = NoteAdded(run_id=f"result-{fact.run_id}", actor="result", text=name)
        event = Event(
            fact=result,
            event_id=derived_id("result", name),
            sender_id="handler:workers",
            trace_id="1" * 32,
            causation_id=envelope.event_id,
        )
        self.log.append([event], stream=result.stream, expected=ANY)
        time.sleep(float(fact.text) if fact.text.startswith("0.") else 0.0)
        self.write("end", delivery)

    def wait(self) -> None:
        while not (self.folder / "go").exists():
            time.sleep(0.01)


def main(url: str, member: str, folder: Path, options: set[str]) -> None:
    """Work until SIGTERM."""
    with open_log(url) as log:
        Worker(log, member, folder, options).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), set(sys.argv[4:]))
