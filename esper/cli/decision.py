"""``esper decision``: what policies could do, how likely each choice was, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import At, Json, OfRun, group
from esper.cli.session import session_of
from esper.cli.tables import LATEST, position_of, run_id_of, told

_LISTED = ("decision", "step", "policy_id", "action_kind", "probability", "executed", "executed_reason")
_OPTIONS = ("chosen", "probability", "kind", "site", "seed_id", "kernel_id")
#: Shown as tables, not as fields.
_LARGE = ("observation", "legal", "masked", "probabilities", "action", "adaptation", "random")

app = group("List and show what policies decided, with every probability.")


@app.command("list")
def list_(
    ctx: typer.Context,
    run: OfRun = LATEST,
    attempts: Annotated[bool, typer.Option("--attempts", help="Also decisions that were taken back.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List a run's decisions in order."""
    from esper.projections.queries import run_decisions

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    with session.tables.connect() as connection:
        rows = run_decisions(connection, run_id, at=position_of(session, at), attempts=attempts)
    output.print_rows([told(row) for row in rows], _LISTED, as_json=as_json, empty=f"run {run_id} has no decisions")


@app.command("show")
def show(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Its number.", show_default=False)],
    run: OfRun = LATEST,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a decision: what was seen, every legal action with its probability, what was masked and why."""
    from esper.projections.queries import get_decision

    session = session_of(ctx)
    run_id = run_id_of(session, run)
    with session.tables.connect() as connection:
        found = told(get_decision(connection, run_id, number, at=position_of(session, at)))
    if as_json:
        output.print_json(found)
        return
    output.print_record({name: value for name, value in found.items() if name not in _LARGE}, as_json=False)
    output.print_line("")
    output.print_rows(_options(found), _OPTIONS, as_json=False, empty="the policy has not answered yet")
    if found["masked"]:
        output.print_line("")
        output.print_rows(found["masked"], ("kind", "site", "seed_id", "reason"), as_json=False)


def _options(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the legal actions with their probabilities, the likeliest first."""
    legal, probabilities = found["legal"] or [], found["probabilities"] or []
    rows = [
        {"chosen": "*" if place == found["chosen"] else "", "probability": chance, **action}
        for place, (action, chance) in enumerate(zip(legal, probabilities, strict=True))
    ]
    return sorted(rows, key=lambda row: -row["probability"])
