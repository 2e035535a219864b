"""Altering a log file behind its back, for tests of what notices. Never part of the product."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from esper.events import Fact
from esper.events.codec import digest_of, encode_fact, fact_of, record_of
from esper.events.envelope import Envelope
from esper.events.run import TrainingStepCompleted
from esper.oona import SqliteLog
from esper.oona.chain import GENESIS, link
from esper.oona.numbered import Row, envelope_of
from esper.oona.port import Head
from esper.oona.sqlite.headfile import HeadFile
from esper.oona.sqlite.walk import ENVELOPE_COLUMNS

F = TypeVar("F", bound=Fact)


def flip_byte_of_loss(path: Path, run_id: str, step: int) -> int:
    """Flip the lowest bit of a recorded loss, change nothing else, and return the fact's position.

    Args:
        path: The log's database file; no process may have it open.
        run_id: The run.
        step: The step whose loss is altered, in the last attempt that took it.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        step_taken = _step_fact(connection, run_id, step)
        payload = _flipped(step_taken)
        connection.execute("UPDATE events SET payload = ? WHERE position = ?", (payload, step_taken.position))
    return step_taken.position


def flip_loss_and_rechain(path: Path, run_id: str, step: int) -> int:
    """Flip the lowest bit of a recorded loss, make digests, chain and head file agree, and return the position.

    Arguments are those of ``flip_byte_of_loss``.
    """
    with closing(sqlite3.connect(path)) as connection:
        step_taken = _step_fact(connection, run_id, step)
    replace_and_rechain(path, step_taken.position, _flipped(step_taken))
    return step_taken.position


def alter_and_rechain(path: Path, run_id: str, cls: type[F], change: Callable[[F], F], *, which: int = 0) -> int:
    """Alter one fact of a run, make digests, chain and head file agree, and return its position.

    Args:
        path: The log's database file; no process may have it open.
        run_id: The run.
        cls: Type of the fact.
        change: Gives the altered fact.
        which: Index among the run's facts of this type.
    """
    with closing(sqlite3.connect(path)) as connection:
        rows = _rows(connection, "type = ? AND stream LIKE ? ORDER BY position", cls.info.name, f"%/{run_id}")
    envelope = envelope_of(rows[which])
    fact = fact_of(envelope)
    assert isinstance(fact, cls)
    replace_and_rechain(path, envelope.position, encode_fact(change(fact)))
    return envelope.position


def replace_and_rechain(path: Path, position: int, payload: bytes) -> None:
    """Put another payload at a position and make digests, chain and head file agree."""
    with closing(sqlite3.connect(path)) as connection, connection:
        chain = _chain_at(connection, position - 1)
        later = _rows(connection, "position >= ? ORDER BY position", position)
        for row in later:
            envelope = envelope_of(row)
            if envelope.position == position:
                envelope = msgspec.structs.replace(envelope, payload=payload)
            record = record_of(envelope)
            chain = link(chain, record)
            connection.execute(
                "UPDATE events SET payload = ?, digest = ?, chain = ? WHERE position = ?",
                (envelope.payload, digest_of(record), chain, envelope.position),
            )
    note_head(path, Head(later[-1][0], chain))


def note_head(path: Path, head: Head) -> None:
    """Replace the head file of a log by one that notes this head alone."""
    place = path.with_name(path.name + ".head")
    place.unlink(missing_ok=True)
    head_file = HeadFile(place)
    head_file.note(head)
    head_file.close()


def _step_fact(connection: sqlite3.Connection, run_id: str, step: int) -> Envelope:
    rows = _rows(connection, "type = 'TrainingStepCompleted' AND stream = ? ORDER BY position", f"run/{run_id}")
    found = [one for one in map(envelope_of, rows) if _step_of(one) == step]
    return found[-1]


def _step_of(envelope: Envelope) -> int:
    fact = fact_of(envelope)
    assert isinstance(fact, TrainingStepCompleted)
    return fact.step


def _flipped(envelope: Envelope) -> bytes:
    fact = fact_of(envelope)
    assert isinstance(fact, TrainingStepCompleted)
    (bits,) = struct.unpack("<Q", struct.pack("<d", fact.loss))
    (loss,) = struct.unpack("<d", struct.pack("<Q", bits ^ 1))
    return encode_fact(msgspec.structs.replace(fact, loss=loss))


def _chain_at(connection: sqlite3.Connection, position: int) -> bytes:
    row = connection.execute("SELECT chain FROM events WHERE position = ?", (position,)).fetchone()
    return GENESIS if row is None else row[0]


def _rows(connection: sqlite3.Connection, where: str, *values: object) -> list[Row]:
    query = f"SELECT {ENVELOPE_COLUMNS}, chain FROM events WHERE {where}"
    return connection.execute(query, values).fetchall()


def rewrite(path: Path, change: Callable[[list[Envelope]], list[Envelope]]) -> None:
    """Write a log's history anew: positions, versions, digests, chain and head file agree with what is left.

    Args:
        path: The log's database file; no process may have it open.
        change: Gives the records in their new order, those left out that are to go.
    """
    with SqliteLog(path, create=False) as log:
        records = log.read(0, log.end())
    for file in path.parent.glob(path.name + "*"):
        file.unlink()
    versions: dict[str, int] = {}
    numbered = []
    for position, envelope in enumerate(change(records), 1):
        version = versions[envelope.stream] = versions.get(envelope.stream, 0) + 1
        moved = msgspec.structs.replace(envelope, position=position, version=version)
        numbered.append(msgspec.structs.replace(moved, digest=digest_of(record_of(moved))))
    with SqliteLog(path) as log:
        log.restore(numbered)
