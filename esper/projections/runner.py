"""Following the log: a batch of facts, their rows and the checkpoint in one transaction.

Belongs here: reading on, folding, the guarded checkpoint and what stops it. Does not belong here: what facts mean
(``folds``) or building tables anew (``rebuild``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import DBAPIError

from esper.errors import LogRegressed, PoisonEvent, ProjectionError, SchemaError
from esper.events.codec import decode_payload
from esper.events.envelope import Recorded
from esper.oona.port import EventLog
from esper.projections.folds import handlers
from esper.projections.folds.poison import contradiction
from esper.projections.open import MAIN, for_writing
from esper.projections.staging import Staging
from esper.projections.tables import PROJECTED, projection_checkpoints

#: Facts per transaction: large enough that its cost vanishes, small enough that memory stays flat.
BATCH = 5000

#: Called with (facts done, facts to do) after each batch.
Progress = Callable[[int, int], None]


class Checkpoint(msgspec.Struct, frozen=True):
    """How far the tables follow the log."""

    #: Position of the last fact folded; 0 before the first.
    position: int
    #: The log's chain value there; zeros at 0.
    chain: bytes


class CaughtUp(msgspec.Struct, frozen=True):
    """What a catch-up came to."""

    #: Facts this projector folded; another one may have folded more.
    events: int
    checkpoint: Checkpoint


class TableStatus(msgspec.Struct, frozen=True):
    """Where one table stands against the log."""

    table: str
    rows: int
    position: int
    head: int
    #: Facts of the log that the table does not know yet.
    lag: int


class Projector:
    """Keeps the tables of one log in step with it; any number may run at once."""

    def __init__(self, log: EventLog, engine: Engine, *, batch: int = BATCH) -> None:
        """Follow a log.

        Args:
            log: The log.
            engine: The tables, from ``open_tables``.
            batch: Facts per transaction.
        """
        self._log = log
        self._reading = engine
        self._writing = for_writing(engine)
        self._batch = batch
        self._driver: Any = engine.dialect.loaded_dbapi
        self._staging = Staging(engine.dialect)
        self._handlers = handlers(self._staging)

    def checkpoint(self) -> Checkpoint:
        """Return how far the tables follow the log."""
        with self._reading.connect() as connection:
            return read_checkpoint(connection)

    def catch_up(self, progress: Progress | None = None, *, until: int | None = None) -> CaughtUp:
        """Fold every fact up to where the log ends now.

        Args:
            progress: Called after each batch.
            until: Last position to fold; None for the end of the log.

        Raises:
            LogRegressed: The log is not the one the tables were built from; nothing was written.
            PoisonEvent: A fact cannot be folded; the tables stand at the fact before it.
        """
        checkpoint, folded = self.checkpoint(), 0
        self._check(checkpoint)
        # What was remembered belongs to where this projector left off, and others may have gone on since.
        self._staging.forget()
        first = checkpoint.position
        with self._writing.connect() as connection:
            while envelopes := self._log.read_recorded(checkpoint.position, self._batch, until=until):
                following = self._fold(connection, checkpoint, envelopes)
                if following is None:
                    # Another projector was faster: go on from where it stands.
                    self._staging.forget()
                    checkpoint = self.checkpoint()
                    self._check(checkpoint)
                    continue
                folded += len(envelopes)
                checkpoint = following
                if progress is not None:
                    end = self._log.head().position if until is None else until
                    progress(checkpoint.position - first, end - first)
        return CaughtUp(folded, checkpoint)

    def status(self) -> list[TableStatus]:
        """Return rows, position, head and lag of each table.

        Raises:
            LogRegressed: The log is not the one the tables were built from.
        """
        head = self._log.head().position
        with self._reading.connect() as connection:
            checkpoint = read_checkpoint(connection)
            counted = count_rows(connection)
        self._check(checkpoint)
        lag = max(head - checkpoint.position, 0)
        return [TableStatus(name, rows, checkpoint.position, head, lag) for name, rows in counted.items()]

    def _check(self, checkpoint: Checkpoint) -> None:
        check_chain(self._log, checkpoint)

    def _fold(self, connection: Connection, previous: Checkpoint, envelopes: Sequence[Recorded]) -> Checkpoint | None:
        """Fold one batch and commit it; return None if another projector was faster.

        Raises:
            LogRegressed: The batch does not follow from the checkpoint.
            PoisonEvent: A fact cannot be folded; those before it were committed.
        """
        # Asked after the batch was read: the log may have been replaced while this projector was running.
        self._check(previous)
        last = envelopes[-1].position
        chain = self._log.chain_at(last)
        if chain is None or envelopes[0].position != previous.position + 1:
            raise _regressed(previous, "the log lost facts while it was read")
        following = Checkpoint(last, chain)
        try:
            with connection.begin():
                if not _advance(connection, previous, following):
                    return None
                self._staging.bind(connection)
                self._apply(envelopes)
                self._staging.flush()
        except PoisonEvent as error:
            self._staging.forget()
            sound = [envelope for envelope in envelopes if envelope.position < error.attributes["position"]]
            if sound:
                self._fold(connection, previous, sound)
            raise
        except self._driver.IntegrityError as error:
            self._staging.forget()
            if len(envelopes) == 1:
                raise contradiction(
                    envelopes[0], f"its row is there already or breaks a rule of its table: {error}"
                ) from error
            return self._one_by_one(connection, previous, envelopes)
        except (self._driver.Error, DBAPIError) as error:
            self._staging.forget()
            raise ProjectionError(
                f"the tables cannot be written past main:{previous.position}: {error}",
                hint="free the disk or the lock and catch up again; `esper projections rebuild` mends a damaged file",
            ) from error
        except BaseException:
            self._staging.forget()
            raise
        return following

    def _one_by_one(
        self, connection: Connection, previous: Checkpoint, envelopes: Sequence[Recorded]
    ) -> Checkpoint | None:
        """Fold facts each by itself, to learn which one the tables refuse."""
        for envelope in envelopes:
            following = self._fold(connection, previous, [envelope])
            if following is None:
                return None
            previous = following
        return previous

    def _apply(self, envelopes: Sequence[Recorded]) -> None:
        known = self._handlers
        for envelope in envelopes:
            name = envelope.type
            try:
                fact = decode_payload(name, envelope.schema, envelope.payload)
            except SchemaError as error:
                raise contradiction(envelope, error.message, error.hint) from error
            known[name](envelope, fact)


def read_checkpoint(connection: Connection) -> Checkpoint:
    """Return how far the tables of a connection follow the log."""
    table = projection_checkpoints
    row = connection.execute(select(table.c.position, table.c.chain).where(table.c.log == MAIN)).one()
    return Checkpoint(row.position, bytes(row.chain))


def check_chain(log: EventLog, checkpoint: Checkpoint) -> None:
    """See that a log still holds what tables were built from.

    Raises:
        LogRegressed: It ends before the checkpoint or has another history there.
    """
    found = log.chain_at(checkpoint.position)
    if found is None:
        raise _regressed(checkpoint, f"the log ends at {log.head().position}")
    if found != checkpoint.chain:
        raise _regressed(checkpoint, "the log has another history up to there")


def count_rows(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table."""
    return {
        name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for name, table in PROJECTED.items()
    }


def _advance(connection: Connection, previous: Checkpoint, following: Checkpoint) -> bool:
    """Move the checkpoint on if it still stands where this batch begins; first, so that it also locks it."""
    table = projection_checkpoints
    moved: Any = connection.execute(
        update(table)
        .where(table.c.log == MAIN, table.c.position == previous.position, table.c.chain == previous.chain)
        .values(position=following.position, chain=following.chain)
    )
    return bool(moved.rowcount == 1)


def _regressed(checkpoint: Checkpoint, cause: str) -> LogRegressed:
    return LogRegressed(
        f"the tables were built from a log up to {MAIN}:{checkpoint.position}, but {cause}",
        position=checkpoint.position,
        cause=cause,
    )
