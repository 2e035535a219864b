"""``esper replay``: re-execute a run and compare, or tell its state at a point."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import Json, Run, group
from esper.cli.session import session_of
from esper.cli.tables import run_id_of
from esper.cli.training import training_progress

app = group("Re-execute a run and compare, or tell its state at a point.")


@app.command("verify")
def verify(
    ctx: typer.Context,
    run: Run,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Compare numbers within this relative tolerance instead of bit for bit."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Execute a run again from its facts and compare every fact; divergence is named and exits 3.

    A run driven by your own loop cannot be executed again: its facts are checked and the exit code is 6.
    """
    from replay.session import verify as verify_run

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    with training_progress(f"replaying {run_id}") as on_epoch:
        verdict = verify_run(session.log, session.store, run_id, tolerance=tolerance, on_epoch=on_epoch)
    compared = "bit for bit" if tolerance is None else f"within {tolerance:g}"
    output.print_record(
        {
            "verified": True,
            "run_id": verdict.run_id,
            "compared": compared,
            "facts": verdict.facts,
            "steps": verdict.steps,
            "attempts": verdict.attempts,
            "overlapping_facts": verdict.overlapping,
            "finished": verdict.finished,
            "largest_deviation": None if tolerance is None else verdict.largest_deviation,
        },
        as_json=as_json,
    )


@app.command("state")
def state(
    ctx: typer.Context,
    run: Run,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION|EPOCH|TIME",
            help="A log position (`1234` or `main:1234`), an epoch (`epoch:3`) or a time (ISO 8601); now unless given.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what was true of a run at one moment, from facts alone."""
    from replay.moment import moment
    from replay.state import state_at

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    when = moment(session.log, at)
    told: dict[str, Any] = state_at(session.log, run_id, position=when.position, epoch=when.epoch)
    output.print_record(told, as_json=as_json)
