"""P2: durable batched append to the SQLite log, against the `eventsourcing` library on SQLite.

Both sides take 1,000 typed events that are already made, encode them, and return when they are on disk
(synchronous=FULL on both). Ours also checks ids and versions, numbers the log, hashes and chains every record. A
second line gives the library's recorder alone, with events encoded beforehand: less than either side's append does.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import DatetimeAsISO, EventStore, JSONTranscoder, Mapper, StoredEvent, UUIDAsHex
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

from benchmarks.measure import interleave, report, scratch
from esper.events import Event, encode_fact
from esper.events.run import TrainingStepCompleted
from esper.ids import derived_id
from esper.oona import SqliteLog

BATCH = 1000
BATCHES = 5
RUN_ID = "run-0192f0c1d2e3f4a5b6c7d8e9f0"
STREAM = f"run/{RUN_ID}"


def step(ordinal: int) -> TrainingStepCompleted:
    """Return a step fact."""
    return TrainingStepCompleted(
        run_id=RUN_ID,
        attempt=1,
        ordinal=ordinal,
        epoch=ordinal // 100,
        step=ordinal,
        loss=1.0 / (1 + ordinal),
        learning_rate=0.001,
        samples_digest=b"0123456789abcdef",
        duration_s=0.0123,
    )


def events(first: int) -> list[Event]:
    """Return a batch of events, the first with this ordinal."""
    return [
        Event(
            fact=step(ordinal),
            event_id=derived_id("run", RUN_ID, 1, ordinal),
            sender_id="tolaria",
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )
        for ordinal in range(first, first + BATCH)
    ]


class Run(Aggregate):
    """The same facts as an aggregate of the library."""

    @event("TrainingStepCompleted")
    def step(
        self,
        attempt: int,
        ordinal: int,
        epoch: int,
        step: int,
        loss: float,
        learning_rate: float,
        samples_digest: str,
        duration_s: float,
    ) -> None:
        """Note a step."""


class Ours:
    """Appends batches to a log that grows from repeat to repeat."""

    def __init__(self, folder: Path) -> None:
        """Create the log."""
        self.log = SqliteLog(folder / "ours.db")
        self.version = 0

    def append(self) -> float:
        """Return events per second of a few batches."""
        taken = 0.0
        for _ in range(BATCHES):
            batch = events(self.version + 1)
            start = time.perf_counter()
            self.version = self.log.append(batch, stream=STREAM, expected=self.version).version
            taken += time.perf_counter() - start
        return BATCH * BATCHES / taken


class Theirs:
    """Puts batches into a store of the library."""

    def __init__(self, folder: Path) -> None:
        """Create the store with the library's defaults."""
        datastore = SQLiteDatastore(str(folder / "theirs.db"))
        self.recorder = SQLiteApplicationRecorder(datastore)
        self.recorder.create_table()
        with datastore.transaction(commit=False) as cursor:
            cursor.execute("PRAGMA synchronous")
            level = cursor.fetchone()[0]
            cursor.execute("PRAGMA journal_mode")
            mode = cursor.fetchone()[0]
        assert (level, mode) == (2, "wal"), "the two sides would not be alike"
        transcoder = JSONTranscoder()
        transcoder.register(UUIDAsHex())
        transcoder.register(DatetimeAsISO())
        self.store = EventStore(Mapper(transcoder), self.recorder)
        self.run = Run()
        self.ordinal = 0

    def put(self) -> float:
        """Return events per second of a few batches of typed events."""
        taken = 0.0
        for _ in range(BATCHES):
            for _ in range(BATCH):
                self.ordinal += 1
                fact = step(self.ordinal)
                self.run.step(
                    attempt=fact.attempt,
                    ordinal=fact.ordinal,
                    epoch=fact.epoch,
                    step=fact.step,
                    loss=fact.loss,
                    learning_rate=fact.learning_rate,
                    samples_digest="0123456789abcdef",
                    duration_s=fact.duration_s,
                )
            batch = list(self.run.collect_events())[-BATCH:]
            start = time.perf_counter()
            self.store.put(batch)
            taken += time.perf_counter() - start
        return BATCH * BATCHES / taken

    def insert(self) -> float:
        """Return events per second of a few batches of events that are already encoded."""
        taken = 0.0
        originator = uuid4()
        for part in range(BATCHES):
            first = part * BATCH
            batch = [
                StoredEvent(originator, ordinal, "benchmarks:TrainingStepCompleted", encode_fact(step(ordinal)))
                for ordinal in range(first, first + BATCH)
            ]
            start = time.perf_counter()
            self.recorder.insert_events(batch)
            taken += time.perf_counter() - start
        return BATCH * BATCHES / taken


def main() -> None:
    """Measure and print."""
    library = f"eventsourcing {version('eventsourcing')}"
    with scratch() as folder:
        ours, theirs = Ours(folder), Theirs(folder)
        (folder / "encoded").mkdir()
        encoded = Theirs(folder / "encoded")
        appended, put, inserted = interleave([ours.append, theirs.put, encoded.insert])
        ours.log.close()
    what = f"durable append of typed events, batch {BATCH}, synchronous=FULL"
    report("P2", what, appended, put, unit="events/s", peer=f"{library}, EventStore.put", at_least=3.0)
    what += "; theirs without encoding"
    report("P2-raw", what, appended, inserted, unit="events/s", peer=f"{library}, recorder.insert_events")


if __name__ == "__main__":
    main()
