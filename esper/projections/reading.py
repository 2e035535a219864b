"""What every query shares: the state of a table at a position, rows as plain data, ids by unique prefix.

Belongs here: filters and conversions that hold for any table. Does not belong here: a question about one thing
(``queries``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, or_, select, true

from esper.errors import NotFound
from esper.projections.values import reader

#: A row as plain data: JSON decoded, digests as hexadecimal text.
Row = dict[str, Any]

_SHOWN_MATCHES = 5


def true_at(table: Table, at: int | None) -> ColumnElement[bool]:
    """Return the condition for rows that were there at a position.

    Args:
        table: Any table but the checkpoint's.
        at: Position in the log; None for now.
    """
    columns = table.c
    if "valid_from" in columns:
        if at is None:
            return columns.valid_to.is_(None)
        return and_(columns.valid_from <= at, or_(columns.valid_to.is_(None), columns.valid_to > at))
    if at is None:
        return true()
    return (columns.position if "position" in columns else columns.requested_position) <= at


def effective_at(table: Table, at: int | None) -> ColumnElement[bool]:
    """Return the condition for rows that no resumption or rollback up to a position took back."""
    if at is None:
        return table.c.superseded_at.is_(None)
    return or_(table.c.superseded_at.is_(None), table.c.superseded_at > at)


def rows(connection: Connection, query: Select[Any], at: int | None = None) -> list[Row]:
    """Run a query over one table's columns and return plain rows.

    A row that can be taken back gets ``effective``: whether that had not happened at the position.
    """
    result = connection.execute(query)
    columns = list(query.selected_columns)
    names = [str(column.key) for column in columns]
    readers = [(name, found) for name, column in zip(names, columns, strict=True) if (found := reader(column))]
    plain = [dict(zip(names, row, strict=True)) for row in result]
    for row in plain:
        for name, read in readers:
            row[name] = read(row[name])
        if "superseded_at" in row:
            later = row["superseded_at"]
            if at is not None and later is not None and later > at:
                row["superseded_at"] = None
            row["effective"] = row["superseded_at"] is None
    return plain


def one(connection: Connection, query: Select[Any], missing: Callable[[], NotFound], at: int | None = None) -> Row:
    """Return the single row of a query.

    Raises:
        NotFound: There is none.
    """
    found = rows(connection, query, at)
    if not found:
        raise missing()
    return found[0]


def full_id(connection: Connection, column: ColumnElement[str], text: str, noun: str, hint: str) -> str:
    """Return the id that a text stands for: itself, or the only one that begins with it.

    Args:
        connection: The tables.
        column: Column of ids.
        text: What a person gave.
        noun: What it names, for the error.
        hint: Command that lists them.

    Raises:
        NotFound: No id begins with it, or more than one does.
    """
    if not text:
        raise NotFound(f"no {noun} was named", hint=hint)
    begins = and_(column >= text, column < text + "\U0010ffff")
    query = select(column).where(begins).distinct().order_by(column).limit(_SHOWN_MATCHES + 1)
    found: list[str] = list(connection.execute(query).scalars())
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    if not found:
        raise NotFound(f"there is no {noun} {text!r}", hint=hint)
    raise NotFound(f"{text!r} begins more than one {noun}: {shown(found)}", hint="give more of its digits")


def shown(names: Iterable[str]) -> str:
    """Return the first few names for a message."""
    listed = list(names)
    text = ", ".join(listed[:_SHOWN_MATCHES])
    return f"{text} and more" if len(listed) > _SHOWN_MATCHES else text
