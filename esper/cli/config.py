"""``esper config``: the settings and where each comes from."""

from __future__ import annotations

import typer

from esper.cli import output
from esper.cli.options import Json, group
from esper.cli.session import session_of

app = group("Show the settings and where each comes from.")


@app.command("show")
def show(ctx: typer.Context, as_json: Json = False) -> None:
    """Show every setting, its value and whether a flag, the environment, the file or a default gave it."""
    rows = [
        {"name": value.name, "value": value.value, "origin": value.origin, "description": value.description}
        for value in session_of(ctx).settings.explain()
    ]
    output.print_rows(rows, ("name", "value", "origin"), as_json=as_json)
