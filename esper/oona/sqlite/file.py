"""The SQLite file behind a log: its tables, how it is opened durably, and what its errors mean.

Belongs here: everything that is about SQLite and not about a log. Does not belong here: appending and reading
(``log``), walking and checking records (``walk``).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.errors import DurabilityTooLow, LogError, LogFull, LogUnavailable
from esper.oona.chain import damaged

#: "ESPR", so that `file` and other tools tell a log from any other database.
APPLICATION_ID = 0x45535052
#: Number of the table layout below.
FORMAT = 1

#: The topic of nine records in ten. It is found by walking the log; an index of it would cost every append.
COMMON_TOPIC = "training.steps"

#: What the file holds. Every text here is compared with the file's own at verification.
SCHEMA = {
    "events": """CREATE TABLE events (
  position INTEGER PRIMARY KEY,
  event_id BLOB NOT NULL,
  type TEXT NOT NULL,
  schema INTEGER NOT NULL,
  topic TEXT NOT NULL,
  stream TEXT NOT NULL,
  version INTEGER NOT NULL,
  sender_id TEXT NOT NULL,
  trace_id TEXT NOT NULL,
  causation_id BLOB,
  recorded_at INTEGER NOT NULL,
  payload BLOB NOT NULL,
  digest BLOB NOT NULL,
  chain BLOB NOT NULL
)""",
    "events_by_id": "CREATE UNIQUE INDEX events_by_id ON events (event_id)",
    "events_by_stream": "CREATE UNIQUE INDEX events_by_stream ON events (stream, version)",
    "events_by_topic": f"CREATE INDEX events_by_topic ON events (topic) WHERE topic <> '{COMMON_TOPIC}'",
}

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}
_OUT_OF_REACH = {
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


def connect(path: Path, *, create: bool, busy_timeout_s: float) -> sqlite3.Connection:
    """Open a connection that may move between threads; transactions are begun by hand."""
    mode = "rwc" if create else "rw"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )


def require_durable(connection: sqlite3.Connection, path: Path) -> None:
    """Set write-ahead log and full synchronisation, and see that they hold.

    Raises:
        DurabilityTooLow: SQLite does not keep to them for this file.
    """
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")
    (level,) = connection.execute("PRAGMA synchronous").fetchone()
    if mode != "wal" or level != 2:
        raise DurabilityTooLow(
            f"{path} cannot be kept durable: journal_mode is {mode}, synchronous is {level}; wal and 2 are needed",
            hint="put the log on a local file system",
        )


def hold_much(connection: sqlite3.Connection) -> None:
    """Let a writer keep its pages in memory and move them into the database less often.

    Ids that are hashes (decisions, say) stand all over their index, so a large batch of them touches most of its
    pages: with SQLite's 2 MB of cache it would write and read them back in the middle of a transaction.
    """
    connection.execute("PRAGMA cache_size=-65536")
    connection.execute("PRAGMA wal_autocheckpoint=4000")


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of a file that has none, new or left by a process that was killed creating it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            for statement in SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def require_log(connection: sqlite3.Connection, path: Path) -> None:
    """See that a database is a log with the tables it should have.

    Raises:
        LogDamaged: It is some other database, or its tables were changed.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or layout != FORMAT:
        raise damaged(
            0,
            f"it is not an Esper log of format {FORMAT}: application id {application:#x}, format {layout}",
            where=str(path),
        )
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    if found != SCHEMA:
        odd = sorted(name for name in SCHEMA.keys() | found.keys() if SCHEMA.get(name) != found.get(name))
        raise damaged(0, f"its tables are not those of a log: {', '.join(map(str, odd))}", where=str(path))


def sync_wal(path: Path) -> None:
    """Force a recovered write-ahead log to stable storage.

    A writer that was killed between writing and forcing leaves a commit that SQLite recovers and readers see; from
    then on it counts, so it must not be lost to a power cut.
    """
    try:
        fd = os.open(f"{path}-wal", os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, names forced to stable storage."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Force the names in a directory to stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def named_errors(path: Path, position: int = 0) -> Iterator[None]:
    """Turn SQLite's errors into the log's.

    Args:
        path: The log's file, for the message.
        position: First position that cannot be trusted if this turns out to be damage; 0 if not known.

    Raises:
        LogDamaged: The file's bytes are not what was written.
        LogFull: The disk is full.
        LogUnavailable: The file is locked or cannot be reached.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _named(error, path, position) from error
    except UnicodeDecodeError as error:
        # The driver fails so where SQLite's message quotes a damaged table definition.
        reason = f"SQLite's own words hold bytes that are not text: {error.object!r}"
        raise damaged(position, reason, where=f"log {path}") from error


def _named(error: sqlite3.Error, path: Path, position: int) -> LogError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in _BUSY:
        return LogUnavailable(
            f"log {path} is locked by another process: {error}",
            hint="see which process holds it, or raise the busy timeout",
        )
    if primary in _FULL or code in _FULL:
        return LogFull(f"log {path} cannot grow: {error}; nothing of this append was written")
    if primary in _OUT_OF_REACH and code != sqlite3.SQLITE_IOERR_SHORT_READ:
        return LogUnavailable(
            f"log {path} cannot be used: {error}", hint="check the path, its permissions and the device"
        )
    return damaged(position, f"SQLite says: {error}", where=f"log {path}")
