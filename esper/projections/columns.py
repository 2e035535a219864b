"""The building blocks of table definitions: columns by kind and the three shapes of table.

Belongs here: what every table of a shape has in common. Does not belong here: any one table (``tables``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Double, LargeBinary, MetaData, PrimaryKeyConstraint, Table, Text

metadata = MetaData()


def text(name: str, *, null: bool = False) -> Column[str]:
    """Define a text column."""
    return Column(name, Text, nullable=null)


def integer(name: str, *, null: bool = False) -> Column[int]:
    """Define a column of 64-bit integers."""
    return Column(name, BigInteger, nullable=null)


def real(name: str, *, null: bool = False) -> Column[float]:
    """Define a column of exact 64-bit floats."""
    return Column(name, Double, nullable=null)


def flag(name: str, *, null: bool = False) -> Column[bool]:
    """Define a column of truth values."""
    return Column(name, Boolean(create_constraint=False), nullable=null)


def raw(name: str, *, null: bool = False) -> Column[bytes]:
    """Define a column of bytes."""
    return Column(name, LargeBinary, nullable=null)


def json_text(name: str, *, null: bool = False) -> Column[str]:
    """Define a column of canonical JSON text."""
    return Column(name, Text, nullable=null, info={"json": True})


def table(name: str, key: str, *columns: Column[Any], compact: bool = False) -> Table:
    """Define a table.

    Args:
        name: Its name.
        key: Names of the primary key's columns.
        columns: Its columns, in the order rows are written.
        compact: Keep rows inside the key's tree (SQLite ``WITHOUT ROWID``), which suits many small rows.
    """
    return Table(name, metadata, *columns, PrimaryKeyConstraint(*key.split()), sqlite_with_rowid=not compact)


def versioned(name: str, key: str, *columns: Column[Any], numbers: Collection[str] = ()) -> Table:
    """Define a mutable table: one row per version of a thing; the key's columns are text but for ``numbers``."""
    names = key.split()
    keys = [integer(part) if part in numbers else text(part) for part in names]
    return table(name, f"{key} valid_from", *keys, integer("valid_from"), integer("valid_to", null=True), *columns)


def of_run(name: str, *columns: Column[Any], key: str = "run_id step position", compact: bool = False) -> Table:
    """Define an append-only table of facts that happened at a step of a run's attempt."""
    return table(
        name,
        key,
        text("run_id"),
        integer("step"),
        integer("position"),
        integer("attempt"),
        *columns,
        integer("superseded_at", null=True),
        compact=compact,
    )
