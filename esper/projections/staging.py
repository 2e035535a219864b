"""Rows on their way into the tables: gathered over a batch of facts, then written in bulk.

Belongs here: the three ways a fold writes (append a row, change a version, fill in a keyed row) and the bulk
statements. Does not belong here: what facts mean (``folds``) or when a batch ends (``runner``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Table, bindparam, update
from sqlalchemy.engine.interfaces import DBAPICursor

from esper.projections.tables import (
    PROJECTED,
    SUPERSEDED_BY_STEP,
    adaptations,
    blueprints,
    compile_jobs,
    compiled_kernels,
    decisions,
    parked_events,
    run_events,
    runs,
    seeds,
)

Key = tuple[Any, ...]

#: Rows kept from one batch to the next, per table, so that memory stays flat however long the log is.
_KEPT_ROWS = 4096

#: Rows of one statement; times the columns of the widest table, well below what databases take as parameters.
_ROWS_A_STATEMENT = 64


class StoredRow:
    """One row in memory: its values, and whether the table has it and has it like this."""

    __slots__ = ("dirty", "stored", "values")

    def __init__(self, values: dict[str, Any], *, stored: bool) -> None:
        """Hold a row that came from the table, or a new one."""
        self.values = values
        self.stored = stored
        self.dirty = False


class _RowTable:
    """Rows of one table that are read, changed and written back by key."""

    def __init__(self, staging: Staging, table: Table, key: tuple[str, ...], current: str = "") -> None:
        self._staging = staging
        self._names = [column.name for column in table.columns]
        primary = [column.name for column in table.primary_key.columns]
        self._insert = _insert_sql(table, staging.dialect)
        rest = [name for name in self._names if name not in primary]
        condition = [table.c[name] == bindparam(f"old_{name}") for name in primary]
        changed = update(table).where(*condition).values({name: bindparam(name) for name in rest})
        self._update = str(changed.compile(dialect=staging.dialect))
        self._inserted: Callable[[dict[str, Any]], Any] = itemgetter(*self._names)
        self._updated: Callable[[dict[str, Any]], Any] = itemgetter(*rest, *primary)
        wanted = table.select().where(*(table.c[name] == bindparam(name) for name in key))
        if current:
            wanted = wanted.where(table.c[current].is_(None))
        self._select = str(wanted.compile(dialect=staging.dialect))
        self._rows: dict[Key, StoredRow | None] = {}
        self._touched: list[StoredRow] = []

    def find(self, key: Key) -> StoredRow | None:
        """Return the row of a key, from memory or from the table."""
        try:
            return self._rows[key]
        except KeyError:
            found = self._staging.cursor.execute(self._select, key).fetchone()
            row = None if found is None else StoredRow(dict(zip(self._names, found, strict=True)), stored=True)
            self._rows[key] = row
            return row

    def touch(self, row: StoredRow) -> None:
        """Note that a row must be written."""
        if not row.dirty:
            row.dirty = True
            self._touched.append(row)

    def flush(self) -> None:
        """Write what was touched."""
        if self._touched:
            fresh = [self._inserted(row.values) for row in self._touched if not row.stored]
            changed = [self._updated(row.values) for row in self._touched if row.stored]
            self._staging.write(self._update, changed)
            self._staging.write(self._insert, fresh)
            for row in self._touched:
                row.stored, row.dirty = True, False
            self._touched = []
        if len(self._rows) > _KEPT_ROWS:
            self._rows.clear()

    def forget(self) -> None:
        """Drop all rows held in memory."""
        self._rows.clear()
        self._touched = []


class KeyedRows(_RowTable):
    """A table with one row per key, filled in by several facts."""

    def __init__(self, staging: Staging, table: Table) -> None:
        """Follow a table by its primary key."""
        super().__init__(staging, table, tuple(column.name for column in table.primary_key.columns))
        self._empty = dict.fromkeys(self._names)

    def fill(self, key: Key, names: tuple[str, ...], values: dict[str, Any]) -> None:
        """Set columns of a key's row, which is made if there is none.

        Args:
            key: Values of the primary key.
            names: Names of the primary key's columns.
            values: Columns to set.
        """
        row = self.find(key)
        if row is None:
            row = StoredRow({**self._empty, **dict(zip(names, key, strict=True))}, stored=False)
            self._rows[key] = row
        row.values.update(values)
        self.touch(row)


class VersionedRows(_RowTable):
    """A table with one row per version of a thing, at most one of them without an end."""

    def __init__(self, staging: Staging, table: Table) -> None:
        """Follow a table by its primary key less ``valid_from``."""
        self.key = tuple(column.name for column in table.primary_key.columns)[:-1]
        super().__init__(staging, table, self.key, current="valid_to")
        self._empty = dict.fromkeys(self._names)

    def current(self, key: Key) -> dict[str, Any] | None:
        """Return the version of a thing that is true now, or None where there is no such thing."""
        row = self.find(key)
        return None if row is None else row.values

    def start(self, key: Key, position: int, values: dict[str, Any]) -> None:
        """Begin a version that takes over nothing from the one before it."""
        self._open(key, position, {**self._empty, **dict(zip(self.key, key, strict=True)), **values})

    def change(self, key: Key, position: int, values: dict[str, Any]) -> None:
        """Begin a version that differs from the present one in some columns.

        Raises:
            KeyError: There is no present version.
        """
        row = self.find(key)
        if row is None:
            raise KeyError(key)
        self._open(key, position, {**row.values, **values})

    def end(self, key: Key, position: int) -> None:
        """End the present version without a new one."""
        row = self.find(key)
        if row is not None:
            row.values["valid_to"] = position
            self.touch(row)
            self._rows[key] = None

    def refresh(self, key: Key, values: dict[str, Any]) -> None:
        """Set columns of the present version, if there is one, without a new version."""
        row = self.find(key)
        if row is not None:
            row.values.update(values)
            self.touch(row)

    def _open(self, key: Key, position: int, values: dict[str, Any]) -> None:
        before = self.find(key)
        values["valid_from"], values["valid_to"] = position, None
        if before is not None and before.values["valid_from"] == position:
            before.values.update(values)
            self.touch(before)
            return
        if before is not None:
            before.values["valid_to"] = position
            self.touch(before)
        row = StoredRow(values, stored=False)
        self._rows[key] = row
        self.touch(row)


class _Append:
    """Appends rows with statements of many rows each, which cost a third less than one statement per row."""

    def __init__(self, insert: str) -> None:
        """Widen a one-row insert."""
        head, values = insert.split(" VALUES ")
        self._one = insert
        self._many = f"{head} VALUES {', '.join([values] * _ROWS_A_STATEMENT)}"

    def run(self, cursor: DBAPICursor, rows: list[tuple[Any, ...]]) -> None:
        """Write rows in their order."""
        whole = len(rows) - len(rows) % _ROWS_A_STATEMENT
        if whole:
            starts = range(0, whole, _ROWS_A_STATEMENT)
            cursor.executemany(
                self._many, [tuple(chain.from_iterable(rows[at : at + _ROWS_A_STATEMENT])) for at in starts]
            )
        if whole < len(rows):
            cursor.executemany(self._one, rows[whole:])


class Staging:
    """Everything a batch of facts gives, before it is written.

    Attributes:
        connection: Connection of the running transaction.
        cursor: The driver's own cursor on it, for compiled statements: one statement per row or ten thousand rows per
            statement, neither bears the cost of result objects.
        rows: Rows to append, by table name; folds keep the lists' ``append``.
    """

    connection: Connection
    cursor: DBAPICursor

    def __init__(self, dialect: Dialect) -> None:
        """Compile every statement once for a database."""
        self.dialect = dialect
        self.runs = VersionedRows(self, runs)
        self.seeds = VersionedRows(self, seeds)
        self.blueprints = VersionedRows(self, blueprints)
        self.kernels = VersionedRows(self, compiled_kernels)
        self.jobs = VersionedRows(self, compile_jobs)
        self.parked = VersionedRows(self, parked_events)
        self.decisions = KeyedRows(self, decisions)
        self.adaptations = KeyedRows(self, adaptations)
        self._by_key: tuple[_RowTable, ...] = (
            self.runs, self.seeds, self.blueprints, self.kernels, self.jobs, self.parked, self.decisions,
            self.adaptations,
        )  # fmt: skip
        by_key = {
            table.name
            for table in (
                runs, seeds, blueprints, compiled_kernels, compile_jobs, parked_events, decisions, adaptations,
            )
        }  # fmt: skip
        appended = {name: table for name, table in PROJECTED.items() if name not in by_key}
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in appended}
        self._append = {name: _Append(_insert_sql(table, dialect)) for name, table in appended.items()}
        self._supersede = [_supersede_sql(table, dialect) for table in SUPERSEDED_BY_STEP]
        #: Last step of each run that took one in this batch.
        self.last_step: dict[str, int] = {}

    def bind(self, connection: Connection) -> None:
        """Write through a connection's running transaction from now on."""
        self.connection = connection
        self.cursor = connection.connection.cursor()

    def supersede(self, run_id: str, bound: int, attempt: int, position: int) -> None:
        """Take back what earlier attempts of a run did after a step.

        Args:
            run_id: The run.
            bound: Last step that stands.
            attempt: The attempt that goes on from there.
            position: Where the log says so.
        """
        self.flush()
        for statement in self._supersede:
            self.write(statement, [(position, run_id, bound, attempt)])
        self.decisions.forget()
        self.adaptations.forget()

    def flush(self) -> None:
        """Write everything gathered so far."""
        for run_id, step in self.last_step.items():
            self.runs.refresh((run_id,), {"steps_done": step})
        self.last_step.clear()
        for name, rows in self.rows.items():
            if rows:
                self._append[name].run(self.cursor, rows)
                rows.clear()
        for table in self._by_key:
            table.flush()

    def forget(self) -> None:
        """Drop everything gathered and everything remembered, after a rollback."""
        self.last_step.clear()
        for rows in self.rows.values():
            rows.clear()
        for table in self._by_key:
            table.forget()

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Run a compiled statement for many rows at once."""
        if rows:
            self.cursor.executemany(statement, rows)


def _insert_sql(table: Table, dialect: Dialect) -> str:
    return str(table.insert().compile(dialect=dialect))


def _supersede_sql(table: Table, dialect: Dialect) -> str:
    statement = update(table).where(
        table.c.run_id == bindparam("run"),
        table.c.step > bindparam("bound"),
        table.c.attempt < bindparam("before"),
        table.c.superseded_at.is_(None),
    )
    if table is run_events:
        # Seeds go back with the model; starts, pauses, trips and failures of the process stay true.
        statement = statement.where(table.c.site.is_not(None))
    return str(statement.values(superseded_at=bindparam("at")).compile(dialect=dialect))
