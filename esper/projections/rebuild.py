"""Building the tables anew from the log, beside the live ones, and switching in one transaction.

Belongs here: the build, the switch and what keeps two rebuilds apart. Does not belong here: the folding itself
(``runner``) or comparing tables (``verify``).

The switch copies the finished file over the live one with SQLite's backup, which is one transaction of the live file:
readers and other projectors see the old tables until it commits and the new ones afterwards, through the connections
they have. A rebuild that dies at any point leaves the live tables as they were.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from esper.errors import ProjectionError
from esper.oona.port import EventLog
from esper.projections.open import BUSY_TIMEOUT_S, create_tables, sqlite_path
from esper.projections.runner import BATCH, Checkpoint, Progress, Projector, count_rows

_SIDES = ("", "-journal", "-wal", "-shm")


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild came to."""

    events: int
    checkpoint: Checkpoint
    rows: dict[str, int]
    #: Wall-clock seconds from start to the end of the switch.
    seconds: float


def rebuild(log: EventLog, engine: Engine, progress: Progress | None = None, *, batch: int = BATCH) -> Rebuilt:
    """Build every table anew from the log and put them in the place of the live ones.

    Args:
        log: The log.
        engine: The live tables, from ``open_tables(..., check=False)``; they may be of another version.
        progress: Called with (facts done, facts to do).
        batch: Facts folded at once.

    Raises:
        PoisonEvent: A fact cannot be folded; the live tables stay.
        ProjectionError: Another rebuild of these tables is running.
    """
    began = time.perf_counter()
    with building(engine) as fresh:
        caught = Projector(log, fresh, batch=batch).catch_up(progress)
        with fresh.connect() as connection:
            rows = count_rows(connection)
        _switch(fresh, engine)
    return Rebuilt(events=caught.events, checkpoint=caught.checkpoint, rows=rows, seconds=time.perf_counter() - began)


@contextmanager
def building(engine: Engine) -> Iterator[Engine]:
    """Lend empty tables beside live ones; they are gone afterwards.

    Raises:
        ProjectionError: Another rebuild of these tables is running.
    """
    live = sqlite_path(engine)
    with engine.connect() as connection:
        # A file keeps its page size for life, and pages can only be copied over pages of their own size.
        page_bytes = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    if live is None:
        with _fresh(None, page_bytes) as fresh:
            yield fresh
        return
    with _alone(live.with_name(f"{live.name}.rebuild.lock")):
        path = live.with_name(f"{live.name}.rebuild")
        # What a rebuild that was killed left behind.
        _remove(path)
        try:
            with _fresh(path, page_bytes) as fresh:
                yield fresh
        finally:
            _remove(path)


@contextmanager
def _fresh(path: Path | None, page_bytes: int) -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://" if path is None else f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", lambda connection, _record: _careless(connection, page_bytes))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.begin() as connection:
            create_tables(connection)
        yield engine
    finally:
        engine.dispose()


def _careless(connection: Any, page_bytes: int) -> None:
    """Set up a file that is thrown away if the process dies: no journal on disk, no waiting for the disk."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA page_size={page_bytes}")
    for pragma in ("journal_mode=MEMORY", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}")


def _switch(fresh: Engine, live: Engine) -> None:
    source, target = fresh.raw_connection(), live.raw_connection()
    try:
        source.driver_connection.backup(target.driver_connection)  # type: ignore[union-attr]
        # Gives the journal's room back unless a reader still needs it; not worth waiting for.
        for pragma in ("busy_timeout=0", "wal_checkpoint(TRUNCATE)", f"busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}"):
            target.driver_connection.execute(f"PRAGMA {pragma}").fetchone()  # type: ignore[union-attr]
    finally:
        source.close()
        target.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProjectionError(
                "another rebuild of these tables is running", hint="wait for it; the live tables go on being served"
            ) from None
        yield


def _remove(path: Path) -> None:
    for side in _SIDES:
        path.with_name(path.name + side).unlink(missing_ok=True)
