"""P3: full rebuild of all tables from the log on SQLite, against the `eventsourcing` library.

Ours reads the log of recorded runs (nine facts in ten are steps), folds every table and index, and switches the live
file. The library keeps one table of steps, its events all steps. First with its ProjectionRunner, one transaction per
event, which is how it follows an application; its SQLite recorder has no subscription, so it reads from memory, which
spares it the reading. Then the same library read from SQLite in batches: notifications mapped to typed events, rows
written in bulk with the tracking position, one transaction per batch.

Run with ``python -m benchmarks.p3_rebuild [EVENTS]``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteDatastore, SQLiteTrackingRecorder

from benchmarks.measure import REPEATS, interleave, report, scratch
from esper.oona import SqliteLog
from esper.projections.open import open_tables
from esper.projections.rebuild import rebuild

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from builders import append, history, library  # the tests' histories, for volume

EVENTS = 100_000
#: The library's runner commits every event by itself; fewer are enough to know its rate.
RUNNER_EVENTS = 1000
BATCH = 5000
#: Steps of one run and its share of the log: about 1.1 facts a step.
STEPS = 9000
STEP = "TrainingStepCompleted"
_INSERT = "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_CREATE = (
    "CREATE TABLE steps (run_id TEXT, step INTEGER, position INTEGER, attempt INTEGER, epoch INTEGER, loss REAL,"
    " learning_rate REAL, samples_digest TEXT, duration_s REAL, PRIMARY KEY (run_id, step, position)) WITHOUT ROWID"
)


class Run(Aggregate):
    """A run as an aggregate of the library."""

    @event(STEP)
    def step(
        self, attempt: int, epoch: int, step: int, loss: float, learning_rate: float, samples: str, duration_s: float
    ) -> None:
        """Note a step."""


class Training(Application[Any]):
    """The application whose events are followed."""

    snapshotting_intervals = None


class Steps(SQLiteTrackingRecorder):
    """The library's side of the table ``steps``."""

    def construct_create_table_statements(self) -> list[str]:
        """Return the statements that make the tables."""
        return [*super().construct_create_table_statements(), _CREATE]

    def add(self, rows: list[tuple[Any, ...]], tracking: Tracking) -> None:
        """Write rows and the position they reach in one transaction."""
        with self.datastore.transaction(commit=True) as cursor:
            cursor.executemany(_INSERT, rows)
            self._insert_tracking(cursor, tracking)


def row_of(domain_event: Any, position: int) -> tuple[Any, ...]:
    """Return a step event's row."""
    e = domain_event
    return (
        str(e.originator_id), e.step, position, e.attempt, e.epoch, e.loss, e.learning_rate, e.samples, e.duration_s
    )  # fmt: skip


class Follow(Projection[Steps]):
    """The projection the library's runner drives."""

    name = "follow"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Write one event's row."""
        rows = [row_of(domain_event, tracking.notification_id)] if type(domain_event).__name__ == STEP else []
        self.view.add(rows, tracking)


def made(events: int) -> list[Run]:
    """Return runs with so many step events in all, not saved yet."""
    runs = []
    for first in range(0, events, STEPS):
        run = Run()
        for number in range(1, min(events - first, STEPS) + 1):
            run.step(
                attempt=1,
                epoch=number // 100,
                step=number,
                loss=1 / number,
                learning_rate=0.1 / 3,
                samples="0123456789abcdef",
                duration_s=0.0021,
            )
        runs.append(run)
    return runs


class Ours:
    """A log of recorded runs, rebuilt again and again."""

    def __init__(self, folder: Path, events: int) -> None:
        """Write the log."""
        self.log = SqliteLog(folder / "ours.db")
        append(self.log, library())
        number = 0
        while self.log.head().position < events:
            steps = min(STEPS, max(events - self.log.head().position, 200))
            append(self.log, history(f"run-{number:026d}", steps=steps, per_epoch=100, probe_every=100, seed=number))
            number += 1
        self.tables = open_tables(f"sqlite:///{folder}/tables.db")

    def rebuild(self) -> float:
        """Return events per second of one rebuild, the switch included."""
        done = rebuild(self.log, self.tables)
        return done.events / done.seconds

    def steps_share(self) -> float:
        """Return the share of steps among the log's facts."""
        with self.tables.connect() as connection:
            steps = connection.exec_driver_sql("SELECT count(*) FROM steps").scalar_one()
        return float(round(steps / self.log.head().position, 3))


class Batched:
    """The library's events in SQLite, folded in batches."""

    def __init__(self, folder: Path, events: int) -> None:
        """Write the events."""
        self.folder = folder
        env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "theirs.db")}
        self.application = Training(env=env)
        self.application.save(*made(events))

    def rebuild(self) -> float:
        """Return events per second of one rebuild into a new file."""
        path = self.folder / f"steps-{uuid4()}.db"
        view = Steps(SQLiteDatastore(str(path)))
        view.create_table()
        position = 0
        start = time.perf_counter()
        while True:
            notifications = self.application.recorder.select_notifications(position + 1, BATCH)
            if not notifications:
                break
            position = notifications[-1].id
            found = [(self.application.mapper.to_domain_event(one), one.id) for one in notifications]
            rows = [row_of(typed, place) for typed, place in found if type(typed).__name__ == STEP]
            view.add(rows, Tracking("training", position))
        taken = time.perf_counter() - start
        view.datastore.close()
        path.unlink()
        return position / taken


class Runner:
    """The library's own runner over events in memory."""

    def __init__(self, folder: Path, events: int) -> None:
        """Remember where views go."""
        self.folder = folder
        self.events = events

    def rebuild(self) -> float:
        """Return events per second of following all events, its start left out."""
        path = self.folder / f"runner-{uuid4()}.db"
        env = {
            "PERSISTENCE_MODULE": "eventsourcing.popo",
            "FOLLOW_PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "FOLLOW_SQLITE_DBNAME": str(path),
        }
        with ProjectionRunner(application_class=Training, projection_class=Follow, view_class=Steps, env=env) as runner:
            runs = made(self.events)
            start = time.perf_counter()
            # In memory saving takes next to nothing, and following begins with it.
            runner.app.save(*runs)
            runner.wait(runner.app.recorder.max_notification_id(), timeout=600)
            taken = time.perf_counter() - start
        path.unlink()
        return self.events / taken


def main(events: int = EVENTS) -> None:
    """Measure and print."""
    with scratch() as folder:
        ours, batched, runner = Ours(folder, events), Batched(folder, events), Runner(folder, RUNNER_EVENTS)
        sides: list[Callable[[], float]] = [ours.rebuild, batched.rebuild, runner.rebuild]
        mine, folded, followed = interleave(sides, REPEATS)
        peer = f"eventsourcing {version('eventsourcing')}"
        details = {"events": ours.log.head().position, "steps_frac": ours.steps_share(), "tables": 17}
        what = "full rebuild of all tables and indices from the SQLite log"
        aim = [100_000.0] * len(mine)
        report("P3", what, mine, aim, unit="events/s", peer="the bar", at_least=1, **details)
        report(
            "P3",
            f"{what} / ProjectionRunner over events in memory, view on SQLite",
            mine,
            followed,
            unit="events/s",
            peer=peer,
            at_least=100,
            **details,
        )
        report(
            "P3",
            f"{what} / the same library folded in batches of {BATCH}, one table",
            mine,
            folded,
            unit="events/s",
            peer=peer,
            at_least=3,
            **details,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS)
