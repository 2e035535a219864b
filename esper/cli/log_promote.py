"""``esper log promote``: makes a replica the master of the log.

Belongs here: collecting what is known of the log's end. Does not belong here: the comparison (``esper.oona``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli import output
from esper.cli.options import Json
from esper.cli.session import Session, session_of
from esper.errors import NotFound
from esper.redact import mask_text

if TYPE_CHECKING:
    from esper.oona.redis.promote import Known


def promote(
    ctx: typer.Context,
    replica: Annotated[str, typer.Argument(metavar="REPLICA_URL", help="URL of the log on the replica.")],
    at_least: Annotated[
        int, typer.Option(min=0, help="A position that was acknowledged for certain, e.g. of the last receipt.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Make a replica the log's master, if it has all that checkpoint, tables and you know to be acknowledged."""
    from esper.oona.redis.promote import Known
    from esper.oona.redis.promote import promote as promote_replica
    from esper.oona.sealing.sealed import ArchiveHistory

    session = session_of(ctx)
    known = _known(session)
    if at_least:
        known.append(Known("--at-least", at_least, None))
    head = promote_replica(replica, known, sealed=ArchiveHistory(session.archive))
    output.print_record(
        {
            "promoted": mask_text(replica),
            "head_position": head.position,
            "head": head.chain,
            "compared": [f"{one.source}: {one.position}" for one in known],
        },
        as_json=as_json,
    )


def _known(session: Session) -> list[Known]:
    """Return what the archive and the tables know of the log's end."""
    from esper.oona.redis.promote import Known
    from esper.projections.open import open_tables
    from esper.projections.runner import read_checkpoint

    known = []
    checkpoint = session.archive.newest()
    if checkpoint is not None:
        known.append(Known("the newest checkpoint", checkpoint.size, checkpoint.chain))
    try:
        engine = open_tables(session.settings.db, create=False)
    except NotFound:
        return known
    try:
        with engine.connect() as connection:
            folded = read_checkpoint(connection)
    finally:
        engine.dispose()
    if folded.position:
        known.append(Known("the tables", folded.position, folded.chain))
    return known
