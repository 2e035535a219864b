"""Opening the tables: engine, pragmas, creation and the check that they have this version's form.

Belongs here: what must hold before anything reads or writes. Does not belong here: following the log (``runner``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import StaticPool

from esper.errors import ConfigError, NotFound, ProjectionError
from esper.projections.columns import metadata
from esper.projections.tables import projection_checkpoints, tables_format

#: Name under which an embedded log is followed; positions print as ``main:123``.
MAIN = "main"
#: How long to wait for another process that writes.
BUSY_TIMEOUT_S = 60.0
#: Page size of new files.
PAGE_BYTES = 16384
_REBUILD_HINT = "`esper projections rebuild` builds the tables anew from the log; nothing is lost"


def open_tables(url: str, *, create: bool = True, check: bool = True) -> Engine:
    """Open the tables and return their engine.

    Args:
        url: ``sqlite:///path``, or ``sqlite://`` for tables in memory.
        create: Make the file and the tables where there are none.
        check: Refuse tables made by another version of Esper; a rebuild leaves this out.

    Raises:
        ConfigError: The URL cannot be used.
        NotFound: There are no tables and ``create`` is off.
        ProjectionError: The file is not a database, or its tables have another version's form.
    """
    parsed = _parse(url)
    path = _path(parsed)
    if path is not None and not path.exists():
        if not create:
            raise NotFound(f"there are no tables at {path}", hint="`esper projections rebuild` builds them")
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(parsed, in_memory=path is None)
    try:
        _prepare(engine, create=create, check=check)
    except DatabaseError as error:
        engine.dispose()
        raise ProjectionError(f"the tables at {url} cannot be read: {error.orig}", hint=_REBUILD_HINT) from error
    return engine


def sqlite_path(engine: Engine) -> Path | None:
    """Return the file of an engine's tables; None for tables in memory."""
    return _path(engine.url)


def for_writing(engine: Engine) -> Engine:
    """Return the engine with transactions that take the write lock at their beginning.

    A transaction that reads first and writes later can fail on SQLite if another one wrote in between.
    """
    return engine.execution_options(sqlite_begin="IMMEDIATE")


def create_tables(connection: Connection) -> None:
    """Make all tables and put the checkpoint before the first fact."""
    metadata.create_all(connection)
    connection.execute(
        insert(projection_checkpoints).values(log=MAIN, position=0, chain=bytes(32), format=tables_format())
    )


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(f"{url!r} is not the URL of tables", hint="write sqlite:///path/to/tables.db") from error
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(
            f"tables cannot be kept in {parsed.get_backend_name()}", hint="write sqlite:///path/to/tables.db"
        )
    return parsed


def _path(url: URL) -> Path | None:
    return None if url.database in (None, "", ":memory:") else Path(str(url.database))


def _engine(url: URL, *, in_memory: bool) -> Engine:
    arguments = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    if in_memory:
        engine = create_engine(url, connect_args=arguments, poolclass=StaticPool)
    else:
        engine = create_engine(url, connect_args=arguments)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _record: Any) -> None:
    # Transactions begin where we say so, not where the driver guesses.
    connection.isolation_level = None
    # Counts for a new file only; large pages take many small rows with less work.
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    # The tables can be rebuilt: after a power cut the newest commits may be missing, rows and checkpoint alike.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-32768"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _prepare(engine: Engine, *, create: bool, check: bool) -> None:
    with engine.connect() as connection:
        ready = inspect(connection).has_table(projection_checkpoints.name)
    if not ready:
        if not create:
            raise NotFound(f"there are no tables in {engine.url.database}", hint=_REBUILD_HINT)
        with for_writing(engine).begin() as connection:
            # Another process may have made them while this one waited for the lock.
            if not inspect(connection).has_table(projection_checkpoints.name):
                create_tables(connection)
    if check:
        with engine.connect() as connection:
            found = connection.execute(select(projection_checkpoints.c.format)).scalar_one()
        if found != tables_format():
            engine.dispose()
            raise ProjectionError(
                f"the tables in {engine.url.database} have the form {found}, this Esper makes {tables_format()}",
                hint=_REBUILD_HINT,
            )
