"""``esper audit``: what happened in a run, told in the order of the log."""

from __future__ import annotations

from typing import Annotated

import typer

from esper.cli import output
from esper.cli.options import At, Json, Run, group
from esper.cli.session import session_of
from esper.cli.tables import position_of, run_id_of, told

app = group("Tell what happened, and what caused it.")


@app.command("trail")
def trail(
    ctx: typer.Context,
    run: Run,
    effective: Annotated[bool, typer.Option("--effective", help="Leave out what a rollback took back.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Tell a run's story, one fact a line: decisions, seeds, gates, people. With --json one object a line."""
    from esper.projections.trail import audit_trail

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    with session.tables.connect() as connection:
        entries = audit_trail(connection, run_id, at=position_of(session, at))
    for entry in entries:
        if effective and not entry.effective:
            continue
        row = told({name: getattr(entry, name) for name in entry.__struct_fields__})
        if as_json:
            output.print_json_line(row)
        else:
            when = output.cell(row["recorded_at"]) if row["recorded_at"] is not None else " " * 19
            taken_back = "" if entry.effective else "  [taken back]"
            output.print_line(f"{entry.position:>8}  {when}  {entry.sentence}{taken_back}".replace("\n", " "))
