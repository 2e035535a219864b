"""Cells in a SQLite file beside the log: ``log.db.cells`` for ``log.db``.

A file of its own, so that renewals neither wait for appends nor make them wait. Durable as the log is (write-ahead
log, synchronous=FULL). Losing the file loses nothing true: handlers begin again and their effects are idempotent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.errors import LogDamaged, LogUnavailable
from esper.oona.cells import Cell, check_value, lost, taken
from esper.oona.chain import damaged
from esper.oona.sqlite.file import connect, named_errors, require_durable, sync_directory

#: "ESPC", so that the file is never taken for a log.
APPLICATION_ID = 0x45535043
#: Number of the table layout below.
FORMAT = 1

_SCHEMA = """CREATE TABLE IF NOT EXISTS cells (
  name TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  token INTEGER NOT NULL,
  beat INTEGER NOT NULL,
  value BLOB NOT NULL
) WITHOUT ROWID"""
_LOOK = "SELECT name, owner, token, beat, value FROM cells WHERE name = ?"
_NAMES = "SELECT name FROM cells WHERE name >= ? ORDER BY name"
_PUT = "INSERT OR REPLACE INTO cells (name, owner, token, beat, value) VALUES (?, ?, ?, ?, ?)"


class SqliteCells:
    """Cells in one SQLite file, shared by threads and processes."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 30.0) -> None:
        """Open the file, creating it if it is not there.

        Args:
            path: The database file.
            busy_timeout_s: How long to wait for another process that writes.

        Raises:
            LogDamaged: The file is not one of cells, or its bytes are not what was written.
            DurabilityTooLow: SQLite cannot keep this file durable.
            LogUnavailable: The file cannot be opened or is locked.
        """
        self.path = path
        self._lock = threading.Lock()
        self._closed = False
        with self._named_errors():
            self._connection = connect(path, create=True, busy_timeout_s=busy_timeout_s)
            try:
                require_durable(self._connection, path)
                self._prepare()
                sync_directory(path.absolute().parent)
            except BaseException:
                self._connection.close()
                raise

    def look(self, name: str) -> Cell | None:
        """Return a cell, or None if it was never taken."""
        with self._using():
            return self._look(name)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all cells that begin with a prefix, sorted."""
        names: list[str] = []
        with self._using():
            for (name,) in self._connection.execute(_NAMES, (prefix,)):
                if not name.startswith(prefix):
                    break
                names.append(name)
        return names

    def take(self, name: str, owner: str, *, seen: Cell | None) -> Cell | None:
        """Become the owner of a cell that is still as it was seen; see ``Cells.take``."""
        with self._changing():
            if self._look(name) != seen:
                return None
            cell = taken(name, owner, seen)
            self._put(cell)
            return cell

    def write(self, cell: Cell, value: bytes) -> Cell:
        """Set the value of a cell one owns, and renew it; see ``Cells.write``."""
        check_value(cell, value)
        with self._changing():
            there = self._look(cell.name)
            if there is None or not _same_hold(there, cell):
                raise lost(cell, there)
            written = Cell(cell.name, cell.owner, cell.token, there.beat + 1, value)
            self._put(written)
            return written

    def free(self, cell: Cell) -> None:
        """Give a cell up, its value kept; nothing happens if another has taken it."""
        with self._changing():
            there = self._look(cell.name)
            if there is not None and _same_hold(there, cell):
                self._put(Cell(cell.name, "", there.token, there.beat, there.value))

    def drop(self, cell: Cell) -> None:
        """Forget a cell one owns or saw unowned; nothing happens if it changed since."""
        with self._changing():
            there = self._look(cell.name)
            if there is not None and _same_hold(there, cell):
                self._connection.execute("DELETE FROM cells WHERE name = ?", (cell.name,))

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _prepare(self) -> None:
        """Create the table of a new file, and see that an old one is a file of cells."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                self._connection.execute(_SCHEMA)
                self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version={FORMAT}")
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (layout,) = self._connection.execute("PRAGMA user_version").fetchone()
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        if (application, layout) != (APPLICATION_ID, FORMAT):
            reason = f"it is no file of cells of format {FORMAT}: application id {application:#x}, format {layout}"
            raise damaged(0, reason, where=str(self.path))

    def _look(self, name: str) -> Cell | None:
        row = self._connection.execute(_LOOK, (name,)).fetchone()
        return None if row is None else Cell(*row)

    def _put(self, cell: Cell) -> None:
        self._connection.execute(_PUT, (cell.name, cell.owner, cell.token, cell.beat, cell.value))

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock, self._named_errors():
            if self._closed:
                raise LogUnavailable(f"the cells in {self.path} are closed")
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Shut other processes out, and commit at the end; undo everything on an error."""
        with self._using():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            with named_errors(self.path):
                yield
        except LogDamaged as error:
            # The log itself is another file, and nothing true is lost with this one.
            error.hint = f"stop all handlers and delete {self.path}: they begin again, and their effects are idempotent"
            raise


def _same_hold(there: Cell, cell: Cell) -> bool:
    return (there.token, there.owner) == (cell.token, cell.owner)
