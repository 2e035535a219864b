"""``esper seed``: what was grafted into hosts, and what became of it."""

from __future__ import annotations

from typing import Annotated

import typer

from esper.cli import output
from esper.cli.options import At, Json, Limit, OfRun, group
from esper.cli.session import session_of
from esper.cli.tables import LATEST, position_of, run_id_of, told

_LISTED = ("run_id", "seed_id", "site", "state", "germinated_step", "alpha", "gain", "gain_stderr", "parameters")
_MOVES = ("step", "source", "target", "trigger", "reason")

app = group("List and show seeds: what was grafted, and what became of it.")


@app.command("list")
def list_(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="Only this run's; `latest` for the newest.", show_default=False),
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Only seeds in this state, e.g. fossilized.", show_default=False)
    ] = None,
    limit: Limit = 100,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List seeds, those of the newest run first."""
    from esper.events.lifecycle import SeedState
    from esper.projections.queries import list_seeds

    if state is not None and state not in list(SeedState):
        raise typer.BadParameter(f"there is no state {state!r}; one of {', '.join(SeedState)}")
    session = session_of(ctx)
    run_id = None if run is None else run_id_of(session, run)
    with session.tables.connect() as connection:
        rows = list_seeds(connection, run=run_id, state=state, at=position_of(session, at), limit=limit)
    output.print_rows(rows, _LISTED, as_json=as_json, empty="no seeds")


@app.command("show")
def show(
    ctx: typer.Context,
    seed: Annotated[str, typer.Argument(metavar="SEED", help="Its id within the run.", show_default=False)],
    run: OfRun = LATEST,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a seed: where it stands, every move of its life, and what it was worth."""
    from esper.projections.queries import get_seed

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    with session.tables.connect() as connection:
        found = get_seed(connection, run_id, seed, at=position_of(session, at))
    moves = [told(row) for row in found.pop("transitions")]
    reports = [told(row) for row in found.pop("field_reports")]
    if as_json:
        output.print_json({**found, "transitions": moves, "field_reports": reports})
        return
    output.print_record(found, as_json=False)
    output.print_line("")
    output.print_rows(moves, _MOVES, as_json=False)
