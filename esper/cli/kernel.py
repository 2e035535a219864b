"""``esper kernel``: blueprints compiled for a site, and what was measured; work on them is in ``kernel_work``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from esper.cli import kernel_forms, kernel_work, output
from esper.cli.options import At, Json, group
from esper.cli.session import session_of
from esper.cli.tables import for_site, position_of

_LISTED = ("kernel_id", "name", "status", "for_site", "parameters", "flops", "latency_p50_s", "tags")
_CHECKS = ("check", "passed", "number")
_TAGS = ("tag", "carried", "threshold")
_FORMS = (
    "pipeline",
    "status",
    "chosen",
    "toolchain",
    "eager_step_s",
    "form_step_s",
    "value_difference",
    "gradient_difference",
    "reason",
)
_SITES = ("linear", "conv1d", "conv2d", "attention", "norm", "block", "pair")

app = group("List, show, measure, compile and verify kernels: blueprints compiled for a site.")


@app.command("list")
def list_(
    ctx: typer.Context,
    blueprint: Annotated[
        str | None,
        typer.Option(metavar="BLUEPRINT", help="Only those of this blueprint, by name or id.", show_default=False),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="Only those that are pending_benchmarking, validated or rejected.",
            show_default=False,
        ),
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only for this kind of site, e.g. conv2d.", show_default=False)
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Only those with this tag; again for more.", show_default=False),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List kernels in the order they were compiled."""
    from esper.names import KernelStatus
    from esper.projections.queries import list_kernels

    _check_word("status", status, list(KernelStatus))
    _check_word("kind of site", site, _SITES)
    session = session_of(ctx)
    with session.tables.connect() as connection:
        rows = list_kernels(
            connection, blueprint=blueprint, status=status, site=site, tags=tags or (), at=position_of(session, at)
        )
    rows = [{**row, "for_site": for_site(row["signature"])} for row in rows]
    empty = "no kernels; a run compiles those it may graft"
    if not as_json:
        rows = [{**row, "tags": ", ".join(row["tags"] or ()) or None} for row in rows]
    output.print_rows(rows, _LISTED, as_json=as_json, empty=empty)


@app.command("show")
def show(
    ctx: typer.Context,
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="Its id, or the beginning.", show_default=False)],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show a kernel: its site and costs, every check with the number behind it, its tags, and its compiled forms."""
    from esper.projections.queries import get_kernel

    session = session_of(ctx)
    with session.tables.connect() as connection:
        found = get_kernel(connection, kernel, at=position_of(session, at))
    if as_json:
        output.print_json(found)
        return
    parts = {name: found.pop(name) for name in ("checks", "numbers", "tags", "tag_thresholds", "forms")}
    output.print_record({**found, "tags": ", ".join(parts["tags"] or ()) or None}, as_json=False)
    for rows, columns in (
        (_checks(parts["checks"] or {}, parts["numbers"] or {}), _CHECKS),
        (_tags(parts["tags"] or (), parts["tag_thresholds"] or {}), _TAGS),
        (parts["forms"] or [], _FORMS),
    ):
        if rows:
            output.print_line("")
            output.print_rows(rows, columns, as_json=False)


app.command("measure")(kernel_work.measure)
app.command("compile")(kernel_forms.compile_)
app.command("verify")(kernel_work.verify)


def _checks(checks: Mapping[str, bool], numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each check with its number, then for each number that is behind no single check."""
    rows = [{"check": name, "passed": passed, "number": numbers.get(name)} for name, passed in sorted(checks.items())]
    rest = ({"check": name, "number": number} for name, number in sorted(numbers.items()) if name not in checks)
    return [*rows, *rest]


def _tags(tags: Sequence[str], thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    names = sorted({*tags, *thresholds})
    return [{"tag": name, "carried": name in tags, "threshold": thresholds.get(name)} for name in names]


def _check_word(what: str, given: str | None, known: Sequence[str]) -> None:
    if given is not None and given not in known:
        raise typer.BadParameter(f"there is no {what} {given!r}; one of {', '.join(known)}")
