"""``esper kernel measure`` and ``verify``: a kernel is measured again, or held against what the log says of it.

Belongs here: which kernels are meant, progress, and what is told. Does not belong here: measuring (``forge``) or the
checks (``kernel_audit``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.documents import author_of
from esper.cli.kernel_forms import faults_of_forms
from esper.cli.options import Json
from esper.cli.progress import progress
from esper.cli.session import Session, session_of

if TYPE_CHECKING:
    from esper.blueprints.forging.forge import Forge
    from esper.errors import EsperError

Kernels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KERNEL]...", help="Ids, or their beginnings; all unless given.", show_default=False),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who does so; your login name unless given.", show_default=False),
]

_MEASURED = ("kernel_id", "name", "status", "noted", "latency_p50_s", "latency_p99_s", "measured_seconds", "failed")
_REQUESTED = ("kernel_id", "name", "status", "measured_toolchain", "reason", "new")


def measure(
    ctx: typer.Context,
    kernels: Kernels = None,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only those that were not yet measured with the toolchain that is installed."),
    ] = False,
    request: Annotated[
        bool, typer.Option("--request/--here", help="Ask a worker to measure them, or do so in this process's child.")
    ] = False,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Measure kernels with the toolchain that is installed, each in a child process, and record what was found."""
    from esper.blueprints.forging.jobs import toolchain

    session = session_of(ctx)
    author = author_of(session, by)
    if not kernels and not stale:
        raise typer.BadParameter("name the kernels, or give --stale for all that need it")
    rows = _meant(session, kernels)
    tool = toolchain()
    if stale:
        rows = [row for row in rows if _why(row, tool) is not None]
    empty = f"every kernel was measured with {tool}"
    if request:
        told = [_request(session, row, _why(row, tool) or "asked for", tool, author.name) for row in rows]
        output.print_rows(told, _REQUESTED, as_json=as_json, empty=empty)
        return
    told = list(_measure(session, rows, author.sender_id))
    errors = [row["error"] for row in told if "error" in row]
    plain = [{**row, "error": _bad(row["error"])} if "error" in row else row for row in told]
    output.print_rows(plain, _MEASURED, as_json=as_json, empty=empty)
    if any(row.get("noted") is False for row in told):
        output.message(
            f"the first verdict with {tool} stands: where `noted` is no, another measurement changes nothing"
        )
    if errors:
        raise type(errors[0])(
            f"{len(errors)} of {len(told)} kernels could not be measured; the first: {errors[0].message}",
            hint=errors[0].hint,
        )


def verify(
    ctx: typer.Context,
    kernels: Kernels = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Refuse what no trusted key has signed; otherwise only bad signatures.")
    ] = False,
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="Take what does not hold out of the offer, and record it as a fact."),
    ] = False,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Hold kernels against what the log says: bytes, signature, site, measurements behind each verdict, compiled forms.

    What does not hold is named and exits 3.
    """
    from esper.blueprints.forging.kernel_audit import audit
    from esper.blueprints.kernels.shelf import KernelShelf
    from esper.errors import ArtifactDamaged

    session = session_of(ctx)
    author = author_of(session, by) if quarantine else None
    rows = _meant(session, kernels)
    shelf = KernelShelf(session.store, trusted=session.trusted if signed else None)
    failed: dict[str, list[EsperError]] = {}
    formless: dict[str, list[EsperError]] = {}
    with progress("verifying kernels", "kernels") as advance:
        for number, row in enumerate(rows, 1):
            faults = audit(_claimed(row), shelf, session.store, trusted=session.trusted)
            if faults:
                failed[row["kernel_id"]] = faults
            # A form that does not hold says nothing against its kernel, which is not quarantined for it.
            if bad_forms := faults_of_forms(session, row):
                formless[row["kernel_id"]] = bad_forms
            for fault in (*faults, *bad_forms):
                output.message(f"{row['kernel_id'][:12]} {row['name']}: {fault.message}")
            if advance is not None:
                advance(number, len(rows))
    taken = [] if author is None else _quarantine(session, failed, author.sender_id)
    if failed:
        first = next(iter(failed.values()))[0]
        raise ArtifactDamaged(
            f"{len(failed)} of {len(rows)} kernels do not hold; the first: {first.message}",
            hint=f"{len(taken)} were quarantined; the next run makes them again" if quarantine else first.hint,
            kernels=list(failed),
            quarantined=taken,
        )
    if formless:
        first = next(iter(formless.values()))[0]
        raise ArtifactDamaged(
            f"forms of {len(formless)} of {len(rows)} kernels do not hold; the first: {first.message}",
            hint="they are not loaded; `esper kernel compile` makes them again",
            kernels=list(formless),
        )
    counts = {
        status: sum(row["status"] == status for row in rows) for status in sorted({row["status"] for row in rows})
    }
    output.print_record({"verified": True, "kernels": len(rows), **counts}, as_json=as_json)


def _meant(session: Session, kernels: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the rows of the kernels that are named, or of all.

    Raises:
        NotFound: One is not there.
    """
    from esper.projections.queries import get_kernel, list_kernels

    with session.tables.connect() as connection:
        if not kernels:
            return list_kernels(connection)
        found = {row["kernel_id"]: row for row in (get_kernel(connection, kernel) for kernel in kernels)}
        return list(found.values())


def _why(row: dict[str, Any], toolchain: str) -> str | None:
    """Return why a kernel is to be measured, or None where it need not be."""
    if row["measurement_wanted"]:
        return str(row["measurement_wanted"])
    if row["quarantined"]:
        return "it was quarantined"
    if row["checks"] is None:
        return "it was never measured"
    return None if row["measured_toolchain"] == toolchain else "another toolchain"


def _forge(session: Session, sender_id: str) -> Forge:
    from esper.blueprints.forging.forge import Forge

    return Forge(session.log, session.store, sender_id=sender_id, trace_id=session.trace_id, shelf=session.shelf)


def _measure(session: Session, rows: Sequence[dict[str, Any]], sender_id: str) -> Iterator[dict[str, Any]]:
    """Measure kernels one by one, and yield what came of each; one that is bad does not keep the others waiting."""
    from esper.errors import ArtifactError, BlueprintError

    forge = _forge(session, sender_id)
    with progress("measuring kernels", "kernels") as advance:
        for number, row in enumerate(rows, 1):
            told = {"kernel_id": row["kernel_id"], "blueprint_id": row["blueprint_id"], "name": row["name"]}
            try:
                judged = forge.measure(row["kernel_id"])
            except (ArtifactError, BlueprintError) as error:
                if isinstance(error, ConnectionError):
                    raise
                output.message(f"{row['kernel_id'][:12]} {row['name']}: {error.message}")
                yield {**told, "status": "unmeasured", "error": error}
            else:
                yield {
                    **told,
                    "status": "validated" if judged.validated else "rejected",
                    "noted": judged.noted,
                    "failed": judged.measurements.failed,
                    "latency_p50_s": judged.measurements.latency_p50_s,
                    "latency_p99_s": judged.measurements.latency_p99_s,
                    "peak_memory_bytes": judged.measurements.peak_memory_bytes,
                    "toolchain": judged.measurements.toolchain,
                    "hardware": judged.measurements.hardware,
                    "measurements_digest": judged.measurements_digest,
                    "measured_seconds": judged.measured_seconds,
                }
            if advance is not None:
                advance(number, len(rows))


def _bad(error: EsperError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _request(session: Session, row: dict[str, Any], reason: str, tool: str, by: str) -> dict[str, Any]:
    """Ask for a measurement, unless it was asked for already."""
    from esper.blueprints.forging.history import history_of
    from esper.blueprints.forging.jobs import measurement_event_id
    from esper.blueprints.forging.scribe import Scribe
    from esper.events.kernel import MeasurementRequested

    kernel = history_of(session.log, row["blueprint_id"]).kernels[row["kernel_id"]]
    if kernel.wanted:
        return {**row, "reason": row["measurement_wanted"], "new": False}
    fact = MeasurementRequested(
        blueprint_id=row["blueprint_id"], kernel_id=row["kernel_id"], reason=reason, toolchain=tool, requested_by=by
    )
    event_id = measurement_event_id(row["kernel_id"], tool, kernel.rounds)
    scribe = Scribe(session.log, sender_id=f"operator:{by}", trace_id=session.trace_id)
    return {**row, "reason": reason, "new": scribe.append([(fact, event_id)], None)}


def _claimed(row: dict[str, Any]) -> Any:
    from esper.blueprints.forging.kernel_audit import Claimed

    return Claimed(**{name: row[name] for name in Claimed.__struct_fields__})


def _quarantine(session: Session, failed: dict[str, list[Any]], sender_id: str) -> list[str]:
    """Quarantine kernels that are themselves to blame, and return their ids."""
    from esper.blueprints.kernels.shelf import quarantine_reason

    forge = _forge(session, sender_id)
    taken = []
    for kernel_id, faults in failed.items():
        blamed = next((fault for fault in faults if quarantine_reason(fault) is not None), None)
        if blamed is not None and forge.quarantine(kernel_id, blamed):
            taken.append(kernel_id)
    return taken
