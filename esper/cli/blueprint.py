"""``esper blueprint``: what can be grafted, checked before it is ever built."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import At, Json, group
from esper.cli.session import session_of
from esper.cli.tables import position_of
from esper.errors import NotFound

if TYPE_CHECKING:
    from esper.blueprints.ir import Blueprint

#: Stands for standard input.
_STDIN = "-"

Document = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A blueprint's JSON document, `-` for stdin, or a shipped one's name.", show_default=False
    ),
]

_LISTED = ("name", "blueprint_id", "kind", "status", "kernels", "submitted_by")
_SHIPPED = ("name", "blueprint_id", "kind", "ranks", "nodes")
_KERNELS = ("kernel_id", "status", "signature", "parameters", "flops")
_REPORTS = ("run_id", "seed_id", "site", "outcome", "steps", "gain", "gain_stderr")

app = group("List, show, verify and submit blueprints.")


@app.command("list")
def list_(
    ctx: typer.Context,
    shipped: Annotated[bool, typer.Option("--shipped", help="What ships with Esper instead; needs no log.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List the blueprints that were submitted, by name."""
    session = session_of(ctx)
    if shipped:
        from esper.blueprints.library import load_library

        rows = [_described(blueprint) for blueprint in load_library().values()]
        output.print_rows(rows, _SHIPPED, as_json=as_json)
        return
    from esper.projections.queries import list_blueprints

    with session.tables.connect() as connection:
        rows = list_blueprints(connection, at=position_of(session, at))
    empty = "none submitted yet; `esper blueprint list --shipped` lists what ships"
    output.print_rows(rows, _LISTED, as_json=as_json, empty=empty)


@app.command("show")
def show(
    ctx: typer.Context,
    blueprint: Annotated[
        str, typer.Argument(metavar="BLUEPRINT", help="Its name, id, or the id's beginning.", show_default=False)
    ],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a blueprint: its graph, the kernels compiled from it, and how it did in runs."""
    from esper.projections.queries import get_blueprint

    session = session_of(ctx)
    with session.tables.connect() as connection:
        found = get_blueprint(connection, blueprint, at=position_of(session, at))
    if found["architecture_ir"] is not None:
        found["architecture_ir"] = json.loads(found["architecture_ir"])
    if as_json:
        output.print_json(found)
        return
    kernels, reports = found.pop("compiled_kernels"), found.pop("field_reports")
    output.print_record(found, as_json=False)
    for rows, columns in ((kernels, _KERNELS), (reports, _REPORTS)):
        if rows:
            output.print_line("")
            output.print_rows(rows, columns, as_json=False)


@app.command("verify")
def verify(ctx: typer.Context, document: Document, as_json: Json = False) -> None:
    """Check a document against every static rule; the broken rule and its place are named."""
    from esper.blueprints.ir import parse

    session_of(ctx)
    output.print_record({"verified": True, **_described(parse(_read(document)))}, as_json=as_json)


@app.command("submit")
def submit(
    ctx: typer.Context,
    document: Document,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who submits it.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Verify a document and record it, or record why it was refused."""
    from esper.blueprints.forge import Forge

    session = session_of(ctx)
    forge = Forge(session.new_log, session.store, sender_id=f"operator:{by}", trace_id=session.trace_id)
    blueprint_id = forge.submit(_read(document), by)
    output.print_record({"blueprint_id": blueprint_id, "submitted_by": by}, as_json=as_json)


def _read(document: str) -> bytes:
    """Return the bytes of a document: of stdin, of a file, or of a shipped blueprint by its name."""
    if document == _STDIN:
        return sys.stdin.buffer.read()
    path = Path(document)
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise NotFound(f"{document} is a folder, not a document", hint="name the JSON file") from None
    except FileNotFoundError:
        from importlib.resources import files

        shipped = files("esper.blueprints.library").joinpath(f"{document}.json")
        if path.suffix or path.name != document or not shipped.is_file():
            raise NotFound(
                f"there is no document {document}", hint="`esper blueprint list --shipped` lists what ships"
            ) from None
        return shipped.read_bytes()


def _described(blueprint: Blueprint) -> dict[str, Any]:
    """Return what the verifier computes of a blueprint: its hash, and its costs as formulas of the site's sizes."""
    from esper.blueprints.canonical import blueprint_id
    from esper.blueprints.verify import verify as check

    flows = check(blueprint).flows
    return {
        "name": blueprint.id,
        "blueprint_id": blueprint_id(blueprint),
        "kind": blueprint.kind,
        "ranks": list(blueprint.site.rank),
        "causal": blueprint.site.causal,
        "nodes": len(blueprint.nodes),
        "parameters": {rank: str(flow.parameters) for rank, flow in flows.items()},
        "flops": {rank: str(flow.flops) for rank, flow in flows.items()},
    }
