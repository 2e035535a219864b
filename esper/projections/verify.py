"""Checking the tables against the log: what stands there is what the log gives."""

from __future__ import annotations

import msgspec
from sqlalchemy import Engine

from esper.errors import ProjectionDiverged
from esper.oona.port import EventLog
from esper.projections.digest import digests
from esper.projections.rebuild import building
from esper.projections.runner import Checkpoint, Progress, Projector, check_chain, read_checkpoint


class TableCheck(msgspec.Struct, frozen=True):
    """One table against the log."""

    table: str
    #: Digest of the rows that stand there.
    live: str
    #: Digest of the rows that the log gives at the same position.
    rebuilt: str

    @property
    def agrees(self) -> bool:
        """Tell whether both are the same."""
        return self.live == self.rebuilt


class TablesReport(msgspec.Struct, frozen=True):
    """What a verification found."""

    checkpoint: Checkpoint
    tables: list[TableCheck]


def verify(log: EventLog, engine: Engine, progress: Progress | None = None) -> TablesReport:
    """Build every table anew up to the checkpoint and compare digests; the live tables are only read.

    Args:
        log: The log.
        engine: The live tables.
        progress: Called with (facts done, facts to do).

    Raises:
        LogRegressed: The log is not the one the tables were built from.
        ProjectionDiverged: A table does not have the rows that the log gives it.
        PoisonEvent: A fact cannot be folded.
        ProjectionError: A rebuild of these tables is running.
    """
    with engine.connect() as connection:
        # One transaction, so that digests and checkpoint belong together while others go on writing.
        checkpoint = read_checkpoint(connection)
        check_chain(log, checkpoint)
        live = digests(connection)
    with building(engine) as fresh:
        Projector(log, fresh).catch_up(progress, until=checkpoint.position)
        with fresh.connect() as connection:
            rebuilt = digests(connection)
    report = TablesReport(checkpoint, [TableCheck(name, live[name], rebuilt[name]) for name in live])
    wrong = [check.table for check in report.tables if not check.agrees]
    if wrong:
        raise ProjectionDiverged(
            f"{len(wrong)} of {len(live)} tables do not hold what the log gives them at main:{checkpoint.position}: "
            + ", ".join(wrong),
            tables=wrong,
            report=report,
        )
    return report
