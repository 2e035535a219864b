"""Short real runs for tests: a log, a store and a run recorded in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from esper.artifacts import ArtifactStore, open_store
from esper.events import Fact, fact_of
from esper.events.decision import Schedule
from esper.oona import open_log
from esper.oona.port import EventLog, iterate
from esper.tolaria.config import RunConfig, check
from esper.tolaria.launch import Trained, resume, start
from esper.tolaria.orders import Workers

#: 24 decision points in 480 steps: enough for a seed to be grafted, measured and kept.
SHORT = RunConfig(
    total_steps=480,
    steps_per_epoch=20,
    batch_size=32,
    probe_every=20,
    graft=Schedule(ramp_steps=40, settle_steps=20, fade_steps=10, embargo_steps=40),
    blueprints=["conv_bottleneck", "pw_bottleneck"],
)


class Place(NamedTuple):
    """A log and a store."""

    log: EventLog
    store: ArtifactStore

    def facts(self) -> list[Fact]:
        """Return every fact of the log in order."""
        return [fact_of(envelope) for envelope in iterate(self.log)]

    def of(self, cls: type[Fact]) -> list[Any]:
        """Return the facts of one type in order."""
        return [fact for fact in self.facts() if isinstance(fact, cls)]


def place(folder: Path | None = None) -> Place:
    """Return a fresh log and store: on disk in a folder, else in memory."""
    if folder is None:
        return Place(open_log("memory://"), open_store("memory://"))
    return Place(open_log(f"sqlite:///{folder}/log.db"), open_store(f"file:///{folder}/artifacts"))


def record(where: Place, task: str = "digits", **changes: Any) -> Trained:
    """Record a short run; changes are fields of its configuration."""
    return start(task, check(msgspec.structs.replace(SHORT, **changes)), log=where.log, store=where.store)


def go_on(where: Place, run_id: str, workers: Workers | None = None) -> Trained:
    """Resume a run."""
    return resume(run_id, log=where.log, store=where.store, workers=workers)
