"""``esper blueprint``: what can be grafted, checked before it is ever built; mutations are in ``blueprint_mutate``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from esper.cli import blueprint_mutate, output
from esper.cli.documents import author_of, described, read
from esper.cli.options import At, Json, group
from esper.cli.session import Session, session_of
from esper.cli.tables import for_site, position_of
from esper.errors import BlueprintInvalid, NotFound

Documents = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Blueprints' JSON documents, `-` for stdin, or shipped ones' names.",
        show_default=False,
    ),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who does so; your login name unless given.", show_default=False),
]

_LISTED = ("name", "blueprint_id", "kind", "status", "kernels", "submitted_by")
#: Shown where some blueprint was made by a mutation.
_DESCENT = ("parent", "mutation", "novelty")
_SHIPPED = ("name", "blueprint_id", "kind", "ranks", "nodes")
_NODES = ("node", "op", "in", "attr", "init", "role")
_KERNELS = ("kernel_id", "status", "for_site", "parameters", "flops", "latency_p50_s")
_REPORTS = ("run_id", "seed_id", "site", "outcome", "steps", "gain", "gain_stderr")
_VERIFIED = ("document", "verified", "name", "blueprint_id", "kind", "ranks", "nodes")
_SUBMITTED = ("document", "submitted", "new", "name", "blueprint_id")

app = group("List, show, verify, submit, retire and mutate blueprints.")


@app.command("list")
def list_(
    ctx: typer.Context,
    shipped: Annotated[bool, typer.Option("--shipped", help="What ships with Esper instead; needs no log.")] = False,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS", help="Only those that are submitted, compiled, failed or retired.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only of this kind, e.g. residual.", show_default=False)
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="BLUEPRINT", help="Only mutations of this one, by name or id.", show_default=False),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List the blueprints that were submitted, by name."""
    from esper.blueprints.kinds import KINDS
    from esper.names import BlueprintStatus

    _check_word("kind", kind, list(KINDS))
    _check_word("status", status, list(BlueprintStatus))
    session = session_of(ctx)
    if shipped:
        from esper.blueprints.library import load_library

        if status or parent or at:
            raise typer.BadParameter(
                "what ships has no status, parent or past; leave out --shipped or the other option"
            )
        found = [described(one) for one in load_library().values() if kind in (None, one.kind)]
        output.print_rows(found, _SHIPPED, as_json=as_json)
        return
    from esper.projections.queries import list_blueprints

    with session.tables.connect() as connection:
        rows = list_blueprints(connection, at=position_of(session, at), status=status, kind=kind, parent=parent)
    empty = "none; `esper blueprint list --shipped` lists what ships, `esper blueprint submit` adds to it"
    output.print_rows(rows, (*_LISTED, *_descent(rows)), as_json=as_json, empty=empty)


@app.command("show")
def show(
    ctx: typer.Context,
    blueprint: Annotated[
        str,
        typer.Argument(
            metavar="BLUEPRINT", help="Its name, id, or the id's beginning; or a shipped one's.", show_default=False
        ),
    ],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a blueprint: what it is for, its graph, the kernels compiled from it, and how it did in runs."""
    session = session_of(ctx)
    try:
        found = _from_tables(session, blueprint, at)
    except NotFound:
        shipped = _from_library(blueprint)
        if shipped is None or at is not None:
            raise
        found = shipped
    if as_json:
        output.print_json(found)
        return
    kernels, reports = found.pop("compiled_kernels", []), found.pop("field_reports", [])
    kernels = [{**row, "for_site": for_site(row["signature"])} for row in kernels]
    nodes = _nodes(found["architecture_ir"])
    if nodes:
        del found["architecture_ir"]
    card = found.pop("card") or {}
    measured = card.pop("measured", [])
    known = {name: value for name, value in card.items() if name not in found and name != "symbols"}
    output.print_record({**found, **known, **card.get("symbols", {})}, as_json=False)
    measured_columns = list(dict.fromkeys(name for row in measured for name in row if name != "blueprint"))
    parts = ((nodes, _NODES), (measured, measured_columns), (kernels, _KERNELS), (reports, _REPORTS))
    for rows, columns in parts:
        if rows:
            output.print_line("")
            output.print_rows(rows, columns, as_json=False)


@app.command("verify")
def verify(ctx: typer.Context, documents: Documents, as_json: Json = False) -> None:
    """Check documents against every static rule; the broken rule and its place are named. Exits 1 for a refused one."""
    from esper.blueprints.ir import parse

    session_of(ctx)
    _each(documents, lambda data: {"verified": True, **described(parse(data))}, _VERIFIED, as_json=as_json)


@app.command("submit")
def submit(ctx: typer.Context, documents: Documents, by: By = None, as_json: Json = False) -> None:
    """Verify documents and record them, or record why they were refused; a retired blueprint comes back."""
    from esper.blueprints.forging.submission import submit as submit_one

    session = session_of(ctx)
    author = author_of(session, by)

    def submitted(data: bytes) -> dict[str, Any]:
        done = submit_one(session.new_log, data, author)
        return {
            "blueprint_id": done.blueprint_id,
            "name": done.name,
            "submitted": True,
            "new": done.new,
            "submitted_by": author.name,
        }

    _each(documents, submitted, _SUBMITTED, as_json=as_json)


@app.command("retire")
def retire(
    ctx: typer.Context,
    blueprint: Annotated[
        str, typer.Argument(metavar="BLUEPRINT", help="Its name, id, or the id's beginning.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why.", show_default=False)],
    by: By = None,
    as_json: Json = False,
) -> None:
    """Offer a blueprint no longer; runs that used it still replay, and submitting it again brings it back."""
    from esper.blueprints.forging.submission import retire as retire_one
    from esper.projections.queries import get_blueprint

    session = session_of(ctx)
    author = author_of(session, by)
    if not reason.strip():
        raise typer.BadParameter("--reason needs a text")
    try:
        with session.tables.connect() as connection:
            found = get_blueprint(connection, blueprint)
    except NotFound:
        if _from_library(blueprint) is None:
            raise
        raise NotFound(
            f"{blueprint} ships with Esper and was not submitted on this log",
            hint=f"`esper blueprint submit {blueprint}` first; then it can be retired here",
        ) from None
    retire_one(session.log, found["blueprint_id"], reason, author)
    row = {"blueprint_id": found["blueprint_id"], "name": found["name"], "retired_by": author.name, "reason": reason}
    output.print_record(row, as_json=as_json)


app.command("mutate")(blueprint_mutate.mutate)


def _each(
    documents: Sequence[str], act: Callable[[bytes], dict[str, Any]], columns: Sequence[str], *, as_json: bool
) -> None:
    """Do something with each document and tell what came of it; what is refused is named, the others go on.

    All are read first: where one cannot be found, nothing is done, and no empty log is left behind.

    Raises:
        NotFound: There is no such document.
        BlueprintInvalid: One or more were refused: the error of the first.
    """
    if len(documents) == 1:
        output.print_record(act(read(documents[0])), as_json=as_json)
        return
    loaded = [(document, _read(document)) for document in documents]
    rows: list[dict[str, Any]] = []
    refused: list[BlueprintInvalid] = []
    for document, data in loaded:
        try:
            if isinstance(data, BlueprintInvalid):
                raise data
            rows.append({"document": document, **act(data)})
        except BlueprintInvalid as error:
            output.message(f"{document}: {error.message}")
            refused.append(error)
            told = {"rule": error.rule, "path": error.path, "message": error.message, "hint": error.hint}
            rows.append({"document": document, columns[1]: False, **told})
    output.print_rows(rows, columns, as_json=as_json)
    if refused:
        first = refused[0]
        raise BlueprintInvalid(
            f"{len(refused)} of {len(documents)} documents are refused; the first: {first.message}",
            hint=first.hint,
            path=first.path,
            rule=first.rule,
        )


def _read(document: str) -> bytes | BlueprintInvalid:
    """Return a document's bytes, or the refusal of one that is too large."""
    try:
        return read(document)
    except BlueprintInvalid as error:
        return error


def _from_tables(session: Session, blueprint: str, at: str | None) -> dict[str, Any]:
    from esper.projections.queries import get_blueprint

    with session.tables.connect() as connection:
        found = get_blueprint(connection, blueprint, at=position_of(session, at))
    if found["architecture_ir"] is not None:
        with contextlib.suppress(ValueError):  # as text then: it is shown, whatever another program submitted
            found["architecture_ir"] = json.loads(found["architecture_ir"])
    return {**found, "card": _card(found["name"], found["blueprint_id"])}


def _from_library(blueprint: str) -> dict[str, Any] | None:
    """Return a shipped blueprint by its name or id, or None."""
    from esper.blueprints.canonical import blueprint_id, canonical_json
    from esper.blueprints.library import load_library

    for one in load_library().values():
        if blueprint in (one.id, blueprint_id(one)):
            ir = json.loads(canonical_json(one))
            row = {**described(one), "status": "shipped", "architecture_ir": ir}
            return {**row, "card": _card(one.id, row["blueprint_id"])}
    return None


def _card(name: str | None, identity: str) -> dict[str, Any] | None:
    """Return the card of a shipped blueprint; None for any other, though it bear the name."""
    from esper.blueprints.canonical import blueprint_id
    from esper.blueprints.library import card, load_library

    shipped = load_library().get(name or "")
    return card(shipped.id) if shipped is not None and blueprint_id(shipped) == identity else None


def _nodes(ir: Any) -> list[dict[str, Any]]:
    """Return a row for each node of a graph; none where the document is none, as another program may submit it."""
    from esper.blueprints.ir import parse

    try:
        nodes = parse(json.dumps(ir)).nodes
    except BlueprintInvalid:
        return []
    return [
        {
            "node": node.id,
            "op": node.op,
            "in": ", ".join(node.inputs),
            "attr": ", ".join(f"{name}={output.cell(value)}" for name, value in node.attr.items()) or None,
            "init": node.init,
            "role": node.role,
        }
        for node in nodes
    ]


def _descent(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return _DESCENT if any(row["parent"] for row in rows) else ()


def _check_word(what: str, given: str | None, known: Sequence[str]) -> None:
    if given is not None and given not in known:
        raise typer.BadParameter(f"there is no {what} {given!r}; one of {', '.join(known)}")
