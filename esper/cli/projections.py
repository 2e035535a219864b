"""``esper projections``: how far the tables are, building them anew, and checking them against the log."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from esper.cli import output
from esper.cli.options import Json, group
from esper.cli.progress import progress
from esper.cli.session import session_of

if TYPE_CHECKING:
    from esper.cli.session import Session

app = group("Show, rebuild and verify the tables.")


@app.command("status")
def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show rows of each table, how far it follows the log, and what it lacks."""
    from esper.projections.runner import Projector

    session = session_of(ctx)
    log = session.log
    with closing(_Tables(session, create=False)) as tables:
        rows = output.plain(Projector(log, tables.engine).status())
    output.print_rows(rows, ("table", "rows", "position", "head", "lag"), as_json=as_json)


@app.command("rebuild")
def rebuild(ctx: typer.Context, as_json: Json = False) -> None:
    """Build every table anew from the log, beside the live ones, and switch in one transaction."""
    from esper.projections.rebuild import rebuild as build_anew

    session = session_of(ctx)
    log = session.log
    with closing(_Tables(session, check=False)) as tables, progress("rebuilding the tables") as advance:
        built = build_anew(log, tables.engine, advance)
    if as_json:
        output.print_json(built)
        return
    rate = built.events / built.seconds if built.seconds else 0.0
    output.message(f"{built.events} events folded in {built.seconds:.1f} s ({rate:,.0f} events/s)")
    rows = [{"table": name, "rows": count} for name, count in built.rows.items()]
    output.print_rows(rows, ("table", "rows"), as_json=False)


@app.command("verify")
def verify(ctx: typer.Context, as_json: Json = False) -> None:
    """Build every table anew beside the live ones and compare digests. A difference is named and exits 3."""
    from esper.projections.verify import verify as compare

    session = session_of(ctx)
    log = session.log
    with closing(_Tables(session, create=False)) as tables, progress("verifying the tables") as advance:
        report = compare(log, tables.engine, advance)
    position = report.checkpoint.position
    checks = [
        {"table": check.table, "agrees": check.agrees, "live": check.live, "rebuilt": check.rebuilt}
        for check in report.tables
    ]
    if as_json:
        output.print_json({"verified": True, "position": position, "tables": checks})
        return
    output.message(f"{len(checks)} tables hold what the log gives them up to main:{position}")
    output.print_rows(checks, ("table", "agrees", "live"), as_json=False)


class _Tables:
    """The tables as they stand, not brought up to date first, because that is what is asked about."""

    def __init__(self, session: Session, *, create: bool = True, check: bool = True) -> None:
        from esper.projections.open import open_tables

        self.engine: Any = open_tables(session.settings.db, create=create, check=check)

    def close(self) -> None:
        """Release them."""
        self.engine.dispose()
