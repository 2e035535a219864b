"""Walking a log file record by record, trusting nothing in it.

Belongs here: the walk that verification and salvage share. Rows are read by position from the table itself, never
through an index, so that a damaged index hides nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from esper.errors import LogDamaged
from esper.events.envelope import Envelope
from esper.oona.chain import ChainWalk, damaged
from esper.oona.numbered import Row, envelope_of
from esper.oona.sqlite.file import named_errors

ENVELOPE_COLUMNS = (
    "position, event_id, type, schema, topic, stream, version, sender_id, trace_id, causation_id, recorded_at, "
    "payload, digest"
)
_PAGE = (
    f"SELECT {ENVELOPE_COLUMNS}, chain FROM events NOT INDEXED "  # noqa: S608 - constant names
    "WHERE position > ? ORDER BY position LIMIT ?"
)
_PAGE_ROWS = 2000
_LOWEST = -(1 << 63)


def walk_records(connection: sqlite3.Connection, path: Path, walk: ChainWalk) -> Iterator[Envelope]:
    """Yield every record that is found sound, in order.

    Args:
        connection: Connection to the file; inside a read transaction for one moment's view of it.
        path: The file, for messages.
        walk: Keeps what was found so far; its head is the last sound record.

    Raises:
        LogDamaged: At the first record that is not sound, after all before it were yielded.
    """
    # A row before position 1 would be as wrong as any other: the first page begins where integers do.
    while rows := _page(connection, path, walk.head.position or _LOWEST):
        for row in rows:
            yield _sound(row, walk, path)


def _page(connection: sqlite3.Connection, path: Path, after: int) -> list[Row]:
    position = max(after, 0) + 1
    try:
        with named_errors(path, position):
            return connection.execute(_PAGE, (after, _PAGE_ROWS)).fetchall()
    except LogDamaged:
        # A bad page hides the good rows before it: go on one by one, and fail at the very row.
        with named_errors(path, position):
            return connection.execute(_PAGE, (after, 1)).fetchall()


def _sound(row: Row, walk: ChainWalk, path: Path) -> Envelope:
    position = walk.head.position + 1
    envelope = envelope_of(row)
    try:
        walk.step(envelope, row[13])
    except LogDamaged as error:
        raise damaged(position, error.reason, where=f"log {path}") from None
    return envelope


def check_structure(connection: sqlite3.Connection, path: Path, end: int) -> None:
    """Let SQLite check its own pages and indexes.

    Args:
        connection: Connection to the file.
        path: The file, for messages.
        end: Last position; every record up to it was found sound.

    Raises:
        LogDamaged: Pages or indexes are damaged, though every record is sound.
    """
    with named_errors(path, end + 1):
        findings = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    if findings != ["ok"]:
        reason = "every record is sound, but SQLite's own structure is not: " + "; ".join(findings)
        raise damaged(end + 1, reason, where=f"log {path}")
