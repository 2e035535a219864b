"""``esper artifact gc``: removing what no fact names.

Belongs here: which logs are asked, what is shown and the words of refusals. Does not belong here: finding what nothing
names, or removing it (``esper.oona.collecting``).
"""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from esper.cli import output
from esper.cli.options import Json
from esper.cli.progress import Advance, progress
from esper.cli.session import Session, session_of

if TYPE_CHECKING:
    from esper.oona.collecting.collect import NamingLog, Plan

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(s|m|min|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LISTED = ("digest", "bytes", "stored_at")


def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; remove nothing.")] = False,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only what was stored so long ago, e.g. 90min, 12h, 1d; at least 2h.",
        ),
    ] = "1d",
    also_log: Annotated[
        list[str] | None,
        typer.Option(
            "--also-log",
            metavar="URL",
            help="Another log that uses this store: what it names stays. Can be given several times.",
        ),
    ] = None,
    forget_log: Annotated[
        list[str] | None,
        typer.Option(
            "--forget-log",
            metavar="ID",
            help="A log that is gone for good: what it alone names may go. Can be given several times.",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who removes; recorded.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove artifacts that no fact of the log names, and what writers left that were killed.

    The log is verified to its end and read to its end first, sealed history included. What was removed is kept as a
    list, and a fact says who removed it.
    """
    from esper.artifacts.users import forget_user
    from esper.oona.collecting.collect import collect, plan

    older_than_s = seconds_of(older_than)
    if not dry_run and not (by or "").strip():
        raise typer.BadParameter("say who removes with --by NAME, or look first with --dry-run")
    session = session_of(ctx)
    store, log = session.store, session.log
    _require_no_spool(session)
    logs = _logs(session, also_log or [])
    forgotten = set(forget_log or ())
    now = time.time()
    with _Stages() as stages:
        found = plan(store, logs, now=now, older_than_s=older_than_s, forgotten=forgotten, progress=stages.begin)
    kept = {"named": found.named, "young": found.young, "through": found.through, "logs": len(logs)}
    if dry_run:
        _show(found, kept, as_json=as_json)
        return
    for one in sorted(forgotten):
        forget_user(store.shelf, one)
    with progress("removing", "artifacts") as advance:
        done = collect(
            store,
            log,
            found,
            now=now,
            older_than_s=older_than_s,
            actor=by or "",
            trace_id=session.trace_id,
            progress=advance,
        )
    output.print_record(
        {
            "dry_run": False,
            "artifacts": done.artifacts,
            "bytes": done.size_bytes,
            "unfinished": done.unfinished,
            "spared": done.spared,
            **kept,
            "position": done.position,
            "list": done.list_digest,
        },
        as_json=as_json,
    )


def _show(found: Plan, kept: dict[str, Any], *, as_json: bool) -> None:
    rows = [
        {
            "digest": one.digest,
            "bytes": one.size_bytes,
            "stored_at": dt.datetime.fromtimestamp(one.stored_at, tz=dt.UTC),
        }
        for one in found.garbage
    ]
    summary = {
        "dry_run": True,
        "artifacts": len(rows),
        "bytes": found.garbage_bytes,
        "unfinished": len(found.unfinished),
        **kept,
    }
    if as_json:
        output.print_json({**summary, "garbage": rows})
        return
    output.print_rows(rows, _LISTED, as_json=False, empty="nothing would go: facts name every artifact that is old")
    output.print_record(summary, as_json=False)


def seconds_of(text: str) -> float:
    """Return the seconds of a time like ``90min``, ``12h`` or ``1d``.

    Raises:
        typer.BadParameter: It is no such time.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time like 90min, 12h or 1d", param_hint="--older-than")
    return float(found[1]) * _SECONDS[found[2]]


def _logs(session: Session, urls: list[str]) -> list[NamingLog]:
    """Return your log and the others, each with the archive it is sealed in as far as that is known."""
    from esper.oona.collecting.collect import NamingLog

    logs = [NamingLog(session.log, session.settings.log, session.archive)]
    for url in urls:
        log = session.open_also(url)
        # The archive's sealed history is told by the namespace: of another log with the same one it says nothing.
        archive = None if log.namespace == session.log.namespace else session.archive_of(url)
        logs.append(NamingLog(log, url, archive))
    return logs


def _require_no_spool(session: Session) -> None:
    from esper.errors import ConfigError
    from esper.oona.recording.delivery import Spool, target_of

    settings = session.settings
    spool = Spool(settings.spool, target_of(settings.log), limit_bytes=settings.spool_bytes)
    waiting = spool.waiting()
    if waiting:
        raise ConfigError(
            f"{len(waiting)} files wait in the spool {spool.folder}: their facts may name artifacts",
            hint="`esper log deliver` brings them into the log",
        )


class _Stages:
    """Shows one bar after another."""

    def __init__(self) -> None:
        """Show nothing yet."""
        from contextlib import ExitStack

        self._stack = ExitStack()

    def begin(self, what: str) -> Advance | None:
        """End the bar before and begin another."""
        self._stack.close()
        return self._stack.enter_context(progress(what))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
