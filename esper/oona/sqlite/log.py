"""The log in a SQLite file: the embedded default.

Durable (write-ahead log, synchronous=FULL), one writer at a time, any number of readers and processes. Numbering
happens inside the write transaction. Records are visible to readers only once they are on stable storage, whole
batches at a time. Beside ``log.db`` stands ``log.db.head`` (see ``headfile``).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from esper.clock import Clock, SystemClock
from esper.errors import LogDamaged, LogUnavailable, NotFound
from esper.events.envelope import Envelope, Recorded
from esper.oona.chain import GENESIS, ChainWalk, damaged
from esper.oona.numbered import NumberedLog, Row, Tail
from esper.oona.port import Head, LogReport, Progress
from esper.oona.sqlite.cells import SqliteCells
from esper.oona.sqlite.file import (
    COMMON_TOPIC,
    connect,
    create_tables,
    hold_much,
    make_directory,
    named_errors,
    require_durable,
    require_log,
    sync_directory,
    sync_wal,
)
from esper.oona.sqlite.headfile import HeadFile
from esper.oona.sqlite.walk import ENVELOPE_COLUMNS, check_structure, walk_records

_INSERT = f"INSERT INTO events ({ENVELOPE_COLUMNS}, chain) VALUES ({', '.join('?' * 14)})"  # noqa: S608 - constant names
_SELECT = f"SELECT {ENVELOPE_COLUMNS} FROM events"  # noqa: S608 - constant names
_READ = f"{_SELECT} WHERE position > ? AND position <= ? ORDER BY position LIMIT ?"
_READ_RECORDED = (
    "SELECT position, type, schema, sender_id, trace_id, recorded_at, payload FROM events "
    "WHERE position > ? AND position <= ? ORDER BY position LIMIT ?"
)
_READ_STREAM = f"{_SELECT} WHERE stream = ? AND version > ? ORDER BY version LIMIT ?"
_TAIL = "SELECT position, chain, recorded_at FROM events ORDER BY position DESC LIMIT 1"
_VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?"
_ONE_TOPIC = (
    "SELECT * FROM (SELECT position FROM events INDEXED BY events_by_topic "  # noqa: S608 - constant names
    f"WHERE topic = ? AND topic <> '{COMMON_TOPIC}' AND position > ? AND position <= ? ORDER BY position LIMIT ?)"
)
_BETWEEN = "AND position > ? AND position <= ? ORDER BY position LIMIT ?"
_NO_BOUND = (1 << 63) - 1
_FIND_AT_ONCE = 500
_HEAD_SYNC_US = 1_000_000
_POLL_S = 0.02


class SqliteLog(NumberedLog):
    """A log in one SQLite file, shared by threads and processes."""

    fsynced = True
    adapter = "sqlite"

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        clock: Clock | None = None,
        busy_timeout_s: float = 30.0,
    ) -> None:
        """Open a log.

        Args:
            path: The database file.
            create: Create the file (and its directory) if it is not there.
            clock: Gives recorded_at; the machine's clock when left out.
            busy_timeout_s: How long to wait for another process that writes.

        Raises:
            NotFound: The file is not there and ``create`` is false.
            LogDamaged: The file is not a log, or ends before what was acknowledged.
            DurabilityTooLow: SQLite cannot keep this file durable.
            LogUnavailable: The file cannot be opened or is locked.
            LogFull: The disk is full.
        """
        super().__init__(clock or SystemClock())
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._grown = threading.Condition()
        self._idle_readers: list[sqlite3.Connection] = []
        self._head_synced_us = 0
        self._written: list[Row] = []
        self._cells: SqliteCells | None = None
        self._closed = False
        self._make_room(create)
        self._head_file = HeadFile(self.path.with_name(self.path.name + ".head"))
        try:
            with self._head_file.locked(), named_errors(self.path):
                self._writer = self._open_writer(create)
            # Also if the files were there: who made them may have been killed before their names were forced.
            sync_directory(self.path.parent)
        except BaseException:
            self._head_file.close()
            raise

    def _make_room(self, create: bool) -> None:
        if self.path.is_dir():
            raise LogUnavailable(f"{self.path} is a directory, not a log", hint="name the log's database file")
        if self.path.exists():
            return
        if not create:
            raise NotFound(f"there is no log at {self.path}", hint="check the path, or ESPER_LOG and ESPER_HOME")
        try:
            make_directory(self.path.parent)
        except OSError as error:
            raise LogUnavailable(f"directory {self.path.parent} cannot be made: {error.strerror}") from error

    def _open_writer(self, create: bool) -> sqlite3.Connection:
        noted = self._head_file.read()
        empty = not self.path.exists() or self.path.stat().st_size == 0
        if empty and noted is not None and noted.position:
            raise self._cut(Head(0, GENESIS), noted)
        connection = connect(self.path, create=create, busy_timeout_s=self._busy_timeout_s)
        try:
            require_durable(connection, self.path)
            hold_much(connection)
            if create:
                create_tables(connection)
            require_log(connection, self.path)
            tail = self._tail(connection)
            sync_wal(self.path)
            self._check_noted(connection, Head(tail.position, tail.chain), noted)
            if noted is None:
                self._head_file.note_locked(Head(tail.position, tail.chain))
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_noted(self, connection: sqlite3.Connection, head: Head, noted: Head | None) -> None:
        if noted is None or noted.position == 0:
            return
        if noted.position > head.position:
            raise self._cut(head, noted)
        if self._chain_at(connection, noted.position) != noted.chain:
            reason = "its chain value is not the one that was acknowledged: the log was rewritten or replaced"
            raise damaged(noted.position, reason, where=f"log {self.path}")

    def _cut(self, head: Head, noted: Head) -> LogDamaged:
        reason = f"the log ends at {head.position} but position {noted.position} was acknowledged"
        return damaged(head.position + 1, reason, where=f"log {self.path}")

    @contextmanager
    def _exclusive(self) -> Iterator[Tail]:
        with self._lock:
            self._require_open()
            with named_errors(self.path):
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    self._written = []
                    yield self._tail(self._writer)
                    if self._writer.in_transaction:
                        self._writer.execute("COMMIT")
                finally:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
            if self._written:
                self._acknowledge(self._written[-1])

    def _acknowledge(self, last: Row) -> None:
        recorded_at = last[10]
        self._head_file.note(Head(last[0], last[13]))
        if recorded_at - self._head_synced_us >= _HEAD_SYNC_US:
            self._head_file.sync()
            self._head_synced_us = recorded_at
        with self._grown:
            self._grown.notify_all()

    def _tail(self, connection: sqlite3.Connection) -> Tail:
        row = connection.execute(_TAIL).fetchone()
        return Tail(0, GENESIS, 0) if row is None else Tail(*row)

    def _version(self, stream: str) -> int:
        version: int = self._writer.execute(_VERSION, (stream,)).fetchone()[0]
        return version

    def _insert(self, rows: list[Row]) -> bool:
        try:
            self._writer.executemany(_INSERT, rows)
        except sqlite3.IntegrityError as error:
            self._writer.execute("ROLLBACK")
            if "events.event_id" in str(error):
                return False
            raise
        self._written = rows
        return True

    def _find(self, event_ids: Sequence[bytes]) -> dict[bytes, Envelope]:
        found: dict[bytes, Envelope] = {}
        for start in range(0, len(event_ids), _FIND_AT_ONCE):
            some = event_ids[start : start + _FIND_AT_ONCE]
            query = f"{_SELECT} WHERE event_id IN ({', '.join('?' * len(some))})"
            found |= {one.event_id: one for one in _envelopes(self._writer.execute(query, some))}
        return found

    def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``; see ``EventLog.read``."""
        last = _NO_BOUND if until is None else until
        limit = max(limit, 0)
        with self._reading(after + 1) as connection:
            if topics is None:
                return _envelopes(connection.execute(_READ, (after, last, limit)))
            wanted = sorted({str(topic) for topic in topics})
            if not wanted:
                return []
            if COMMON_TOPIC in wanted:
                query = f"{_SELECT} NOT INDEXED WHERE topic IN ({', '.join('?' * len(wanted))}) {_BETWEEN}"
                return _envelopes(connection.execute(query, (*wanted, after, last, limit)))
            # One bounded index range per topic, merged: a rare topic costs no scan.
            ranges = " UNION ALL ".join([_ONE_TOPIC] * len(wanted))
            query = f"{_SELECT} WHERE position IN ({ranges}) ORDER BY position LIMIT ?"
            bounds = [value for topic in wanted for value in (topic, after, last, limit)]
            return _envelopes(connection.execute(query, (*bounds, limit)))

    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records; see ``EventLog.read_recorded``."""
        last = _NO_BOUND if until is None else until
        with self._reading(after + 1) as connection:
            rows = connection.execute(_READ_RECORDED, (after, last, max(limit, 0))).fetchall()
        return [Recorded(*row) for row in rows]

    def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""
        with self._reading() as connection:
            return _envelopes(connection.execute(_READ_STREAM, (stream, after, max(limit, 0))))

    def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""
        with self._reading() as connection:
            version: int = connection.execute(_VERSION, (stream,)).fetchone()[0]
        return version

    def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""
        names: list[str] = []
        query = "SELECT stream FROM events WHERE stream >= ? ORDER BY stream LIMIT 1"
        following = "SELECT stream FROM events WHERE stream > ? ORDER BY stream LIMIT 1"
        with self._reading() as connection:
            row = connection.execute(query, (prefix,)).fetchone()
            while row is not None and row[0].startswith(prefix):
                names.append(row[0])
                row = connection.execute(following, (row[0],)).fetchone()
        return names

    def head(self) -> Head:
        """Return position and chain value of the last record."""
        with self._reading() as connection:
            tail = self._tail(connection)
        return Head(tail.position, tail.chain)

    def end(self) -> int:
        """Return the position of the last record."""
        with self._reading() as connection:
            return self._tail(connection).position

    @property
    def cells(self) -> SqliteCells:
        """Return the cells that handlers of this log coordinate with, in the file ``<log>.cells`` beside it."""
        with self._lock:
            self._require_open()
            if self._cells is None:
                path = self.path.with_name(self.path.name + ".cells")
                self._cells = SqliteCells(path, busy_timeout_s=self._busy_timeout_s)
            return self._cells

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""
        with self._reading(position) as connection:
            return self._chain_at(connection, position)

    def _chain_at(self, connection: sqlite3.Connection, position: int) -> bytes | None:
        if position == 0:
            return GENESIS
        row = connection.execute("SELECT chain FROM events WHERE position = ?", (position,)).fetchone()
        return None if row is None else row[0]

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has.

        Appends of this object wake it at once; those of other processes are seen within 20 ms.
        """
        deadline = time.monotonic() + timeout_s
        while self.end() <= after:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._grown:
                self._grown.wait(min(left, _POLL_S))
        return True

    def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check it; see ``EventLog.verify``."""
        noted = self._head_file.read()
        walk = ChainWalk()
        with self._reading() as connection:
            connection.execute("BEGIN")
            try:
                require_log(connection, self.path)
                total = self._tail(connection).position
                for envelope in walk_records(connection, self.path, walk):
                    if progress is not None and (envelope.position % 2000 == 0 or envelope.position == total):
                        progress(envelope.position, total)
                self._check_noted(connection, walk.head, noted)
                check_structure(connection, self.path, walk.head.position)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        return LogReport(
            events=walk.head.position,
            streams=len(walk.versions),
            head=walk.head,
            acknowledged=None if noted is None else noted.position,
        )

    @contextmanager
    def _reading(self, position: int = 0) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading; each is used by one thread at a time."""
        self._require_open()
        with named_errors(self.path, position):
            try:
                connection = self._idle_readers.pop()
            except IndexError:
                connection = connect(self.path, create=False, busy_timeout_s=self._busy_timeout_s)
                connection.execute("PRAGMA query_only=ON")
            try:
                yield connection
            finally:
                if self._closed:
                    connection.close()
                else:
                    self._idle_readers.append(connection)

    def _require_open(self) -> None:
        if self._closed:
            raise LogUnavailable(f"log {self.path} is closed")

    def close(self) -> None:
        """Release the log; closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._cells is not None:
                self._cells.close()
            while self._idle_readers:
                self._idle_readers.pop().close()
            with named_errors(self.path):
                self._writer.close()
            self._head_file.sync()
            self._head_file.close()


def _envelopes(cursor: sqlite3.Cursor) -> list[Envelope]:
    return [Envelope(*row) for row in cursor.fetchall()]
