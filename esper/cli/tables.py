"""What commands need before they answer from the tables: the run that is meant, and tables that know all of the log."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from esper.cli.session import FIRST_STEP, Session
from esper.errors import NotFound

if TYPE_CHECKING:
    from esper.oona.port import EventLog

_RUN = "run/"
#: Stands for the run that began last, the controls of comparisons left out.
LATEST = "latest"
#: Columns that hold microseconds since the Unix epoch. ``superseded_at`` is none of them: it is a position.
_TIMES = ("recorded_at", "started_at", "ended_at")
#: How many candidates an ambiguous id is told with.
_SHOWN = 5


def run_id_of(session: Session, run: str) -> str:
    """Return the id of the run that is meant, from the log alone.

    Args:
        session: The program's session.
        run: A run id, the beginning of one, or ``latest``.

    Raises:
        NotFound: No run is meant by it.
        typer.BadParameter: Several are.
    """
    known = [stream.removeprefix(_RUN) for stream in session.log.streams(_RUN)]
    if run == LATEST:
        return _latest(session.log, known)
    if run in known:
        return run
    begun = [run_id for run_id in known if run_id.startswith(run)]
    if len(begun) > 1:
        shown = ", ".join(begun[:_SHOWN]) + (", ..." if len(begun) > _SHOWN else "")
        raise typer.BadParameter(f"{run!r} begins {len(begun)} run ids: {shown}")
    if begun:
        return begun[0]
    near = difflib.get_close_matches(run, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "`esper run list` shows every run"
    raise NotFound(f"there is no run {run!r}", hint=hint, run=run)


def position_of(session: Session, at: str | None) -> int | None:
    """Return the position that ``--at`` stands for; None for now.

    Raises:
        ConfigError: It is neither a position nor a time.
        NotFound: The log ends before it.
    """
    if at is None:
        return None
    from esper.projections.positions import resolve_at

    return resolve_at(at, session.log)


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table with its times as times."""
    return {
        name: dt.datetime.fromtimestamp(value / 1_000_000, tz=dt.UTC) if name in _TIMES and value is not None else value
        for name, value in row.items()
    }


def for_site(signature: Mapping[str, Any]) -> str:
    """Return a site signature in a few words: ``conv2d NCHW 16x8x8``."""
    sizes = "x".join(str(size) for size in (signature.get("channels"), *signature.get("positions", ())))
    words = [signature.get("kind"), signature.get("rank"), sizes, "causal" if signature.get("causal") else None]
    dtype = signature.get("dtype")
    return " ".join(str(word) for word in (*words, None if dtype == "float32" else dtype) if word)


def _latest(log: EventLog, known: list[str]) -> str:
    if not known:
        raise NotFound("the log holds no run yet", hint=FIRST_STEP)
    from esper.events import fact_of

    first = {run_id: log.read_stream(f"{_RUN}{run_id}", 0, 1)[0] for run_id in known}
    newest_first = sorted(known, key=lambda run_id: -first[run_id].position)
    # The controls of a comparison are recorded after the run they are for, which is the one that is meant.
    for run_id in newest_first:
        if not getattr(fact_of(first[run_id]), "config", {}).get("arm"):
            return run_id
    return newest_first[0]
