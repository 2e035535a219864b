"""Services: one process does the work, the others stand by; a step stops between two batches; errors that pass do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from noting import add_notes

from esper.artifacts.signing import SigningKey
from esper.errors import LogUnavailable, NotFound, PoisonEvent
from esper.handlers.projector import ProjectorService
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.service import ServiceLoop, Sole, lag_after
from esper.handlers.sealer import SealerService
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.lease import Lease
from esper.oona.memory import MemoryLog
from esper.oona.sealing.archive import Archive
from esper.projections.open import open_tables
from esper.projections.runner import Projector
from esper.settings import Settings, load_settings


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as log:
        yield log


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tables.db"


def step(service: ProjectorService | SealerService) -> Lag:
    return asyncio.run(service.step(asyncio.Event()))


def position_of(log: MemoryLog, db: str) -> int:
    engine = open_tables(db)
    try:
        return Projector(log, engine).checkpoint().position
    finally:
        engine.dispose()


# --- the loop


class Steps:
    """A service whose steps come out as told: an error, or how many events are left."""

    name = "steps"

    def __init__(self, *outcomes: Exception | int) -> None:
        self.outcomes = list(outcomes)
        self.troubles: list[str | None] = []
        self.closed = False
        self.health = Health("steps", "a")

    async def step(self, stopping: asyncio.Event) -> Lag:
        self.troubles.append(self.health.trouble)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return Lag(outcome, 0.0)

    def lag(self) -> Lag:
        return Lag(0, 0.0)

    def close(self) -> None:
        self.closed = True


def drive(service: Steps) -> bool:
    async def live() -> bool:
        return await ServiceLoop(service).run(Life(service.health, drain_s=1.0, until_idle=True))

    return asyncio.run(live())


def test_service_rides_out_what_passes_and_says_so_meanwhile() -> None:
    service = Steps(3, LogUnavailable("redis://:secret@here is away"), LogUnavailable("still away"), 3, 0)
    assert drive(service)
    assert service.troubles == [
        "starting",
        None,
        "[E-LOG-005] redis://:***@here is away",
        "[E-LOG-005] still away",
        None,
    ]
    assert service.closed


def test_service_ends_with_what_does_not_pass() -> None:
    service = Steps(PoisonEvent("told", position=3), 0)
    with pytest.raises(PoisonEvent):
        drive(service)
    assert service.closed


def test_step_that_outlives_the_drain_is_abandoned(log: MemoryLog) -> None:
    class Stuck(Steps):
        async def step(self, stopping: asyncio.Event) -> Lag:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    begun = asyncio.Event()

    async def live() -> bool:
        life = Life(Health("steps", "a"), drain_s=0.05)
        running = asyncio.create_task(ServiceLoop(Stuck()).run(life))
        await begun.wait()
        life.stop("test")
        return await running

    assert asyncio.run(live()) is False


def test_lag_counts_events_and_their_age(log: MemoryLog) -> None:
    assert lag_after(log, 0) == Lag(0, 0.0)
    add_notes(log, ("run-1", "a"), ("run-1", "b"))
    lag = lag_after(log, 0)
    assert lag.events == 2
    assert 0 <= lag.seconds < 60
    assert lag_after(log, 2) == Lag(0, 0.0)


def test_only_one_of_two_holds_and_the_other_takes_over(log: MemoryLog) -> None:
    first, second = (Sole(Lease(log.cells, "sole", name, ttl_s=60)) for name in ("a", "b"))
    assert asyncio.run(first.held())
    assert not asyncio.run(second.held())
    first.release()
    third = Sole(Lease(log.cells, "sole", "c", ttl_s=60))
    assert asyncio.run(third.held())
    assert third.valid


def test_lease_is_renewed_while_a_step_goes_on(log: MemoryLog) -> None:
    async def live() -> bool:
        sole = Sole(Lease(log.cells, "sole", "a", ttl_s=0.2))
        assert await sole.held()
        async with sole.kept():
            await asyncio.sleep(0.5)
            return sole.valid

    assert asyncio.run(live())


# --- the projector


def test_projector_folds_what_is_there_and_tells_what_is_left(log: MemoryLog, db: str) -> None:
    add_notes(log, ("run-1", "a"), ("run-2", "b"))
    service = ProjectorService(log, db, member="a", ttl_s=60)
    assert service.lag().events == 2
    assert step(service).events == 0
    service.close()
    assert position_of(log, db) == 2


def test_second_projector_of_the_same_tables_stands_by(log: MemoryLog, db: str, tmp_path: Path) -> None:
    first = ProjectorService(log, db, member="a", ttl_s=60)
    step(first)
    add_notes(log, ("run-1", "a"))
    second = ProjectorService(log, db, member="b", ttl_s=60)
    other = ProjectorService(log, f"sqlite:///{tmp_path}/other.db", member="c", ttl_s=60)
    assert step(second).events == 1
    assert step(other).events == 0
    assert step(first).events == 0
    for service in (first, second, other):
        service.close()


def test_projector_that_lost_its_lease_stops_between_two_batches(log: MemoryLog, db: str) -> None:
    service = ProjectorService(log, db, member="a", ttl_s=60)
    service._projector._batch = 10
    add_notes(log, *[("run-1", str(number)) for number in range(100)])

    async def live() -> None:
        assert await service._sole.held()
        service._sole._lease.abandon()  # as after a pause for longer than the lease lasts
        with pytest.raises(Exception, match="another projector"):
            await asyncio.to_thread(service._catch_up)

    asyncio.run(live())
    service.close()
    assert position_of(log, db) == 10


def test_projector_that_is_asked_to_stop_stops_between_two_batches(log: MemoryLog, db: str) -> None:
    service = ProjectorService(log, db, member="a", ttl_s=60)
    service._projector._batch = 10
    add_notes(log, *[("run-1", str(number)) for number in range(100)])

    async def live() -> Lag:
        stopping = asyncio.Event()
        stopping.set()
        return await service.step(stopping)

    assert asyncio.run(live()).events == 90
    service.close()


# --- the sealer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"home": tmp_path / "home", "seal_events": 5, "seal_seconds": 3600.0})


def sealed(settings: Settings) -> int:
    key = SigningKey.load(settings.signing_key)
    with Archive(settings.archive, [key.public]) as archive:
        newest = archive.newest()
    return 0 if newest is None else newest.size


def test_sealer_without_a_key_is_refused(log: MemoryLog, settings: Settings) -> None:
    with pytest.raises(NotFound, match="key"):
        SealerService(log, settings, member="a", ttl_s=60)


def test_sealer_seals_once_enough_is_unsealed(log: MemoryLog, settings: Settings) -> None:
    SigningKey.create(settings.signing_key)
    service = SealerService(log, settings, member="a", ttl_s=60)
    add_notes(log, *[("run-1", str(number)) for number in range(4)])
    assert step(service).events == 4
    assert sealed(settings) == 0
    add_notes(log, ("run-1", "4"), ("run-1", "5"))
    assert step(service).events == 0
    assert sealed(settings) == 6
    service.close()


def test_sealer_seals_what_is_old_enough(log: MemoryLog, settings: Settings) -> None:
    SigningKey.create(settings.signing_key)
    soon = settings.model_copy(update={"seal_seconds": 1e-6})
    service = SealerService(log, soon, member="a", ttl_s=60)
    assert step(service).events == 0
    add_notes(log, ("run-1", "a"))
    assert step(service).events == 0
    service.close()
    assert sealed(settings) == 1


def test_second_sealer_of_an_archive_stands_by(log: MemoryLog, settings: Settings) -> None:
    SigningKey.create(settings.signing_key)
    first, second = (SealerService(log, settings, member=name, ttl_s=60) for name in ("a", "b"))
    step(first)
    add_notes(log, *[("run-1", str(number)) for number in range(9)])
    assert step(second).events == 9
    assert step(first).events == 0
    for service in (first, second):
        service.close()
