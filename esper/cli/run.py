"""``esper run``: training runs, compared, reported and annotated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esper.cli import output
from esper.cli.options import At, Json, Limit, Run, group
from esper.cli.session import FIRST_STEP, session_of
from esper.cli.tables import position_of, run_id_of, told

_LISTED = (
    "run_id",
    "task",
    "policy",
    "arm",
    "status",
    "steps_done",
    "test_accuracy",
    "parameters",
)
_SHOWN = (
    *("run_id", "task", "entry_point", "host", "policy", "status", "attempt", "steps_done", "total_steps"),
    *("started_at", "ended_at", "ended_why", "train_loss", "validation_loss", "validation_accuracy", "test_loss"),
    *("test_accuracy", "parameters", "folded_parameters", "training_flops", "inference_flops", "parent_run_id"),
)
_EPOCHS = ("epoch", "step", "train_loss", "validation_loss", "validation_accuracy", "parameters")
_GRAFTED = ("seed_id", "site", "state", "state_step", "alpha", "gain", "gain_stderr", "parameters", "blueprint_id")
#: Epochs that people are shown; ``--json`` has all.
_LAST_EPOCHS = 5

app = group("List, show, compare and annotate training runs.")


@app.command("list")
def list_(
    ctx: typer.Context,
    status: Annotated[
        str | None, typer.Option(help="Only running, paused, finished or failed ones.", show_default=False)
    ] = None,
    limit: Limit = 50,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from esper.names import RunStatus
    from esper.projections.queries import list_runs

    if status is not None and status not in list(RunStatus):
        raise typer.BadParameter(f"there is no status {status!r}; one of {', '.join(RunStatus)}")
    session = session_of(ctx)
    with session.tables.connect() as connection:
        rows = list_runs(connection, at=position_of(session, at), status=status, limit=limit)
    output.print_rows([told(row) for row in rows], _LISTED, as_json=as_json, empty=f"no runs; {FIRST_STEP}")


@app.command("show")
def show(ctx: typer.Context, run: Run, at: At = None, as_json: Json = False) -> None:
    """Show a run: where it stands, what it began with, its epochs and the seeds that were grafted."""
    from esper.projections.queries import get_run, run_epochs, run_seeds

    session = session_of(ctx)
    run_id, position = run_id_of(session, run), position_of(session, at)
    with session.tables.connect() as connection:
        found = told(get_run(connection, run_id, at=position))
        epochs = [told(row) for row in run_epochs(connection, run_id, at=position)]
        grafted = run_seeds(connection, run_id, at=position)
    if as_json:
        output.print_json({**found, "epochs": epochs, "grafted": grafted})
        return
    output.print_record({name: found[name] for name in _SHOWN}, as_json=False)
    for rows, columns in ((epochs[-_LAST_EPOCHS:], _EPOCHS), (grafted, _GRAFTED)):
        if rows:
            output.print_line("")
            output.print_rows(rows, columns, as_json=False)


@app.command("compare")
def compare(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(metavar="RUN", help="One run.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="The other run.", show_default=False)],
    everything: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: settings, environment and outcome. Only what differs is shown."""
    from esper.projections.compare import compare_runs

    session = session_of(ctx)
    a, b = run_id_of(session, first), run_id_of(session, second)
    with session.tables.connect() as connection:
        found = compare_runs(connection, a, b, at=position_of(session, at), everything=everything)
    if as_json:
        output.print_json(found)
        return
    rows = [
        {"about": about, "name": name, a: pair[0], b: pair[1]}
        for about, pairs in found.items()
        if about != "runs"
        for name, pair in pairs.items()
    ]
    # Compared with itself a run has one column.
    output.print_rows(rows, list(dict.fromkeys(("about", "name", a, b))), as_json=False, empty="nothing differs")


@app.command("report")
def report(
    ctx: typer.Context,
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; <home>/reports/RUN.html unless given.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run and print its path."""
    from esper.cli.report import write_report

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    path = write_report(session.log, run_id, out or session.settings.home / "reports" / f"{run_id}.html")
    if as_json:
        output.print_json({"run_id": run_id, "report": path.resolve()})
    else:
        output.print_line(str(path.resolve()))


@app.command("note")
def note(
    ctx: typer.Context,
    run: Run,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to note.", show_default=False)],
    actor: Annotated[str, typer.Option("--actor", metavar="NAME", help="Who notes it.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write something down about a run, as a fact with its author."""
    from esper.events import Event
    from esper.events.operator import NoteAdded
    from esper.ids import new_event_id
    from esper.oona import ANY

    if not text.strip() or not actor.strip():
        raise typer.BadParameter("a note needs a text and an author")
    session = session_of(ctx)
    fact = NoteAdded(run_id=run_id_of(session, run), actor=actor, text=text)
    event = Event(fact=fact, event_id=new_event_id(), sender_id=f"operator:{actor}", trace_id=session.trace_id)
    receipt = session.log.append([event], stream=fact.stream, expected=ANY)
    output.print_record(
        {"run_id": fact.run_id, "position": receipt.last, "actor": actor, "text": text}, as_json=as_json
    )
