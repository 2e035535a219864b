"""``esper kernel``: blueprints compiled for a kind of site, and what was measured of them."""

from __future__ import annotations

from typing import Annotated

import typer

from esper.cli import output
from esper.cli.options import At, Json, group
from esper.cli.session import session_of
from esper.cli.tables import position_of

_LISTED = ("kernel_id", "name", "status", "signature", "parameters", "flops", "latency_p50_s")

app = group("List and show kernels: blueprints compiled for a site.")


@app.command("list")
def list_(
    ctx: typer.Context,
    blueprint: Annotated[
        str | None,
        typer.Option(metavar="BLUEPRINT", help="Only those of this blueprint, by name or id.", show_default=False),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List kernels in the order they were compiled."""
    from esper.projections.queries import list_kernels

    session = session_of(ctx)
    with session.tables.connect() as connection:
        rows = list_kernels(connection, blueprint=blueprint, at=position_of(session, at))
    output.print_rows(rows, _LISTED, as_json=as_json, empty="no kernels yet; a run compiles those it may graft")


@app.command("show")
def show(
    ctx: typer.Context,
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="Its id, or the beginning.", show_default=False)],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a kernel: its site, its costs, and every check with the number behind it."""
    from esper.projections.queries import get_kernel

    session = session_of(ctx)
    with session.tables.connect() as connection:
        found = get_kernel(connection, kernel, at=position_of(session, at))
    output.print_record(found, as_json=as_json)
