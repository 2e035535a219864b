"""``esper log verify | seal | prove | check-proof | restore``: the log's history, sealed and proven.

Belongs here: what these commands ask for and print. Does not belong here: any of the checks (``esper.oona``).
"""

from __future__ import annotations

import datetime as dt
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import Json
from esper.cli.progress import progress
from esper.cli.session import session_of

if TYPE_CHECKING:
    from esper.oona.port import EventLog
    from esper.oona.sealing.checkpoint import Checkpoint
    from esper.oona.sealing.sealed import ArchiveHistory

_POSITION = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*:)?([0-9]{1,16})")
_MOST_SEGMENT_EVENTS = 1 << 20


def verify(ctx: typer.Context, as_json: Json = False) -> None:
    """Check every record of the log and of sealed history, and every checkpoint. Damage is named and exits 3."""
    from esper.oona.sealing.sealcheck import check_agreement, check_sealed
    from esper.oona.sealing.sealed import ArchiveHistory

    session = session_of(ctx)
    log = session.log
    with progress("verifying the log") as advance:
        report = log.verify(advance)
    with progress("verifying sealed history") as advance:
        sealed = check_sealed(session.archive, advance)
    if sealed.checkpoint is not None:
        check_agreement(log, ArchiveHistory(session.archive))
    output.print_record(
        {
            "verified": True,
            "positions": report.events,
            "streams": report.streams,
            "head_position": report.head.position,
            "head": report.head.chain,
            "acknowledged": report.acknowledged,
            **_sealed_row(sealed.checkpoint),
            "checkpoints": sealed.checkpoints,
            "segments": sealed.segments,
            "segment_bytes": sealed.segment_bytes,
            "leftovers": sealed.leftovers,
            **_lag(log, sealed.through),
        },
        as_json=as_json,
    )


def seal(
    ctx: typer.Context,
    trim: Annotated[
        bool, typer.Option("--trim", help="Then let a log on a server forget what is sealed; reading goes on.")
    ] = False,
    segment_events: Annotated[
        int, typer.Option(min=1, max=_MOST_SEGMENT_EVENTS, help="At most so many events in a segment.")
    ] = 65_536,
    as_json: Json = False,
) -> None:
    """Seal what the log has grown by: write segments to the archive, read them back, sign a checkpoint."""
    from esper.oona.sealing.checkpoint import note_key
    from esper.oona.sealing.sealer import require_trimmable
    from esper.oona.sealing.sealer import seal as seal_log
    from esper.oona.sealing.sealer import trim as trim_log

    session = session_of(ctx)
    # Before the log is opened: it reads its own sealed history and must trust a key that is new.
    key = session.signing_key
    log = session.log
    if trim:
        require_trimmable(log)
    with progress("sealing") as advance:
        report = seal_log(log, session.archive, key, segment_events=segment_events, progress=advance)
    trimmed = trim_log(log, session.archive) if trim and report.checkpoint is not None else None
    output.print_record(
        {
            "sealed": report.events,
            **_sealed_row(report.checkpoint),
            "segments": report.segments,
            "segment_bytes": report.segment_bytes,
            "archive": _masked(session.settings.archive),
            "key_id": key.public.key_id,
            "note_key": note_key(session.archive.namespace, key.public),
            **_lag(log, report.events + report.sealed_before),
            "trimmed": trimmed,
        },
        as_json=as_json,
    )


def prove(
    ctx: typer.Context,
    event: Annotated[
        str | None,
        typer.Argument(metavar="POSITION|EVENT_ID", help="The event, by position or id.", show_default=False),
    ] = None,
    consistency: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="OLD NEW", help="Prove instead that the log had only grown between two checkpoints, by their sizes."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the proof to a file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a proof that an event stands in the sealed log, which anyone can check with your public key alone."""
    from esper.oona.sealing.prove import dump_proof, prove_consistency, prove_inclusion
    from esper.oona.sealing.sealed import ArchiveHistory

    if (event is None) == (consistency is None):
        raise typer.BadParameter("name one event, or two checkpoints with --consistency OLD NEW")
    history = ArchiveHistory(session_of(ctx).archive)
    if consistency is not None:
        proof = dump_proof(prove_consistency(history, *consistency))
        row: dict[str, Any] = {"proves": "consistency", "old": consistency[0], "new": consistency[1]}
    else:
        position = _sealed_position(history, event or "")
        proof = dump_proof(prove_inclusion(history, position))
        row = {"proves": "inclusion", "position": position, "size": history.through}
    if out is None:
        output.print_line(proof.decode().rstrip("\n"))
        return
    out.write_bytes(proof)
    output.print_record({**row, "bytes": len(proof), "file": out}, as_json=as_json)


def check_proof(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The proof.", show_default=False)],
    key: Annotated[
        str,
        typer.Option(metavar="PUB", help="File of the public key you trust, or its text.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Check a proof with a public key and nothing else: no log, no archive, no network."""
    from esper.artifacts.signing import VerifyKey
    from esper.cli.event_view import event_data
    from esper.oona.sealing.prove import check_proof as check
    from esper.oona.sealing.prove import load_proof

    public = VerifyKey.from_text(key) if key.startswith("ed25519:") else VerifyKey.load(key)
    proven = check(load_proof(file.read_bytes(), str(file)), [public])
    old, checkpoint = proven.old, proven.checkpoint
    row: dict[str, Any] = {"verified": True, "proves": "inclusion" if old is None else "consistency"}
    if old is not None:
        row |= {"old_size": old.size, "old_root": old.root, "old_signed_at": _time(old)}
    row |= {
        "log": checkpoint.namespace,
        "size": checkpoint.size,
        "root": checkpoint.root,
        "generation": checkpoint.generation,
        "signed_at": _time(checkpoint),
        "key_id": public.key_id,
    }
    if proven.record is not None:
        row |= event_data(proven.record)
    output.print_record(row, as_json=as_json)


def restore(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL or file of the new log.", show_default=False)],
    actor: Annotated[str, typer.Option("--actor", metavar="NAME", help="Who restores it.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why.", show_default=False)],
    through: Annotated[
        int | None,
        typer.Option(min=1, metavar="POSITION", help="Last event to bring back; all unless given.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new log of sealed history alone, after checking all of it; its next event says who did so and why."""
    from esper.oona import open_log
    from esper.oona.sealing.restore import restore as restore_log

    if not actor.strip() or not reason.strip():
        raise typer.BadParameter("a restoration needs an actor and a reason")
    session = session_of(ctx)
    url = target if "://" in target else f"sqlite:///{Path(target).resolve()}"
    with open_log(url) as log, progress("restoring the log") as advance:
        report = restore_log(
            session.archive,
            log,
            actor=actor,
            reason=reason,
            trace_id=session.trace_id,
            through=through,
            progress=advance,
        )
    output.print_record(
        {
            "target": _masked(url),
            "restored": report.head.position,
            "head": report.head.chain,
            "left_out": report.left_out,
            "generation": report.generation,
            "position": report.position,
            "actor": actor,
            "reason": reason,
        },
        as_json=as_json,
    )


def _sealed_position(history: ArchiveHistory, event: str) -> int:
    """Return the position that is meant.

    Raises:
        NotFound: No sealed event has this id.
    """
    from esper.errors import NotFound

    plain = event.replace("-", "").lower()
    if len(plain) == 32 and not plain.strip("0123456789abcdef"):
        position = history.find(bytes.fromhex(plain))
        if position is None:
            raise NotFound(
                f"no sealed event has id {plain}; history is sealed through {history.through}",
                hint="`esper log seal` seals what the log holds",
            )
        return position
    found = _POSITION.fullmatch(event)
    if found is None:
        raise typer.BadParameter(f"{event!r} is neither a position nor an event id of 32 hexadecimal digits")
    return int(found[1])


def _sealed_row(checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {"sealed_through": 0, "root": None, "generation": None, "signed_at": None}
    return {
        "sealed_through": checkpoint.size,
        "root": checkpoint.root,
        "generation": checkpoint.generation,
        "signed_at": _time(checkpoint),
    }


def _lag(log: EventLog, through: int) -> dict[str, Any]:
    """Return how many events are not sealed, and how old the oldest of them is."""
    unsealed = log.end() - through
    if unsealed <= 0:
        return {"unsealed": 0, "unsealed_s": None}
    (oldest,) = log.read(through, 1)
    return {"unsealed": unsealed, "unsealed_s": max(0.0, time.time() - oldest.recorded_at / 1e6)}


def _time(checkpoint: Checkpoint) -> dt.datetime:
    return dt.datetime.fromtimestamp(checkpoint.signed_at / 1e6, tz=dt.UTC)


def _masked(url: str) -> str:
    from esper.redact import mask_text

    return mask_text(url)
