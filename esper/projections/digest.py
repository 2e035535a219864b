"""One hash per table that depends on its rows alone, not on how they came there."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, Table, select

from esper.projections.tables import PROJECTED

_ROWS_AT_ONCE = 5000


def table_digest(connection: Connection, table: Table) -> str:
    """Return the SHA-256 of a table's rows in the order of its key, in hexadecimal.

    Rows are hashed as their exact values are written in Python: integers, floats that read back to the same bits,
    text, bytes and None.
    """
    rows = select(table).order_by(*table.primary_key.columns)
    running = hashlib.sha256(repr([column.name for column in table.columns]).encode())
    for part in connection.execution_options(stream_results=True).execute(rows).partitions(_ROWS_AT_ONCE):
        running.update("\n".join(map(repr, map(tuple, part))).encode())
        running.update(b"\n")
    return running.hexdigest()


def digests(connection: Connection) -> dict[str, str]:
    """Return the digest of each table."""
    return {name: table_digest(connection, table) for name, table in PROJECTED.items()}
