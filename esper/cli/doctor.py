"""``esper doctor``: is everything in order, and if not, what mends it."""

from __future__ import annotations

import typer

from esper.cli import output
from esper.cli.failures import EXIT_ERROR
from esper.cli.options import Json, single
from esper.cli.session import session_of

app = single("Check this installation, its log, tables and artifacts.")


@app.command()
def doctor(ctx: typer.Context, as_json: Json = False) -> None:
    """Check this installation, its log, tables and artifacts.

    Nothing is changed. Exits 1 when something fails; a warning does not.
    """
    from esper.cli.checkups import FAIL, checkups

    found = checkups(session_of(ctx))
    rows = [{"check": one.name, "status": one.status, "found": one.found, "mend": one.mend} for one in found]
    output.print_rows(rows, ("check", "status", "found", "mend"), as_json=as_json)
    if any(one.status == FAIL for one in found):
        raise typer.Exit(EXIT_ERROR)
