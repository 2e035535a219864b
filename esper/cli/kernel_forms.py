"""``esper kernel compile``: a compiled form of a kernel is made, or taken from the store, and written to a file.

Belongs here: the command, and whether the forms that the tables name hold. Does not belong here: making forms
(``esper.blueprints.forging.forming``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from esper.cli import output
from esper.cli.documents import author_of
from esper.cli.options import Json
from esper.cli.session import Session, session_of

if TYPE_CHECKING:
    from esper.errors import EsperError


def compile_(
    ctx: typer.Context,
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="Its id, or the beginning.", show_default=False)],
    pipeline: Annotated[
        str, typer.Option("--pipeline", metavar="NAME", help="export or inductor.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the form to a file.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=4096,
            help="Samples it is made for and timed with; 16, or what there is, unless given.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="NAME", help="Who does so; your login name unless given.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile a kernel with a pipeline of torch, hold the form against the kernel, sign it and record it.

    A form that there is already for this toolchain and hardware is taken as it is. One that is refused exits 3.
    """
    from esper.blueprints.bench.workbench import shared_bench
    from esper.blueprints.forging.forming import PIPELINES, FormMaker, fetch_form
    from esper.blueprints.forging.scribe import Scribe
    from esper.errors import KernelRefused
    from esper.events.kernel import KernelFormRefused

    if pipeline not in PIPELINES:
        raise typer.BadParameter(f"there is no pipeline {pipeline!r}; one of {', '.join(PIPELINES)}")
    session = session_of(ctx)
    author = author_of(session, by)
    compiled = _compiled(session, kernel)
    scribe = Scribe(session.log, sender_id=author.sender_id, trace_id=session.trace_id)
    maker = FormMaker(session.log, session.store, session.shelf, shared_bench(), scribe)
    output.message(f"compiling kernel {compiled.kernel_id[:12]} with {pipeline}")
    form = maker.make(compiled, pipeline, batch=batch)
    if isinstance(form, KernelFormRefused):
        raise KernelRefused(
            f"no form of kernel {compiled.kernel_id[:12]} by {pipeline}: {form.reason}: {form.message}",
            hint="the kernel itself is not touched by this",
            reason=form.reason,
        )
    if out is not None:
        out.write_bytes(fetch_form(session.store, form, session.trusted))
    told = {**msgspec.structs.asdict(form), "form_digest": form.form_digest.hex()}
    output.print_record({**told, "out": None if out is None else str(out)}, as_json=as_json)


def faults_of_forms(session: Session, row: dict[str, Any]) -> list[EsperError]:
    """Return what does not hold of a kernel's compiled forms: bytes, digest and signature.

    Args:
        session: The store and the keys that are trusted.
        row: The kernel, as the tables have it.
    """
    from esper.artifacts.signatures import verify_signed
    from esper.errors import ArtifactDamaged, ArtifactMissing, SignatureInvalid

    found: list[EsperError] = []
    for form in row["forms"] or ():
        if form["status"] != "compiled":
            continue
        try:
            verify_signed(session.store, bytes.fromhex(form["form_digest"]), session.trusted)
        except (ArtifactDamaged, ArtifactMissing, SignatureInvalid) as error:
            found.append(error)
    return found


def _compiled(session: Session, kernel: str) -> Any:
    """Return the fact that a kernel was compiled.

    Raises:
        NotFound: There is no such kernel.
    """
    from esper.blueprints.forging.history import history_of
    from esper.projections.queries import get_kernel

    with session.tables.connect() as connection:
        row = get_kernel(connection, kernel)
    return history_of(session.log, row["blueprint_id"]).kernels[row["kernel_id"]].compiled
