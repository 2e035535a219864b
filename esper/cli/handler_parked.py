"""``esper handler parked``: events that handlers gave up on, and what people decide about them."""

from __future__ import annotations

import datetime as dt
import getpass
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import Json, group
from esper.cli.session import Session, session_of

if TYPE_CHECKING:
    from esper.events import Envelope
    from esper.oona.consuming.parking import ParkedEvent

_LISTED = ("handler", "position", "state", "event_type", "stream", "parked_at", "cause", "message")

app = group("Show events that handlers gave up on; have them handled again, or skip them.")

Handler = Annotated[str, typer.Argument(metavar="HANDLER", help="Name of the handler.", show_default=False)]
Position = Annotated[
    int, typer.Argument(metavar="POSITION", min=1, help="Position of the event in the log.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the act.")]
Actor = Annotated[
    str | None,
    typer.Option("--actor", metavar="NAME", help="Who decides; your login name unless given.", show_default=False),
]


@app.command("list")
def list_(
    ctx: typer.Context,
    handler: Annotated[
        str | None, typer.Option("--handler", metavar="NAME", help="Only this handler's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List parked events by handler and position; behind each of them its stream waits."""
    from esper.oona.consuming.parking import parked_events

    rows = [_told(one) for one in parked_events(session_of(ctx).log, handler)]
    output.print_rows(rows, _LISTED, as_json=as_json, empty="no event is parked")


@app.command("show")
def show(ctx: typer.Context, handler: Handler, position: Position, as_json: Json = False) -> None:
    """Show a parked event: why it is parked, the traceback, what it says, and how much of its stream waits."""
    from esper.oona.consuming.parking import Parking

    session = session_of(ctx)
    parking = Parking(session.log, handler)
    parking.refresh()
    parked = parking.at(position)
    (envelope,) = session.log.read(position - 1, 1)
    traceback = _traceback(session, parked)
    found = {
        **_told(parked),
        # Of all topics: only the handler knows which of them it takes.
        "later_events_of_stream": session.log.stream_version(parked.stream) - parked.version,
    }
    if as_json:
        output.print_json({**found, "traceback": traceback, "event": _event(envelope)})
        return
    output.print_record(found, as_json=False)
    output.print_line("")
    output.print_record(_event(envelope), as_json=False)
    if traceback is not None:
        output.print_line("")
        output.print_line(traceback.rstrip())


@app.command("retry")
def retry(
    ctx: typer.Context, handler: Handler, position: Position, reason: Reason, actor: Actor = None, as_json: Json = False
) -> None:
    """Have a parked event handled again, and then what waits behind it; for when the cause is mended."""
    from esper.oona.consuming import parking

    _decide(ctx, parking.retry, handler, position, reason, actor, as_json=as_json)


@app.command("skip")
def skip(
    ctx: typer.Context, handler: Handler, position: Position, reason: Reason, actor: Actor = None, as_json: Json = False
) -> None:
    """Decide that a parked event is never handled; what waits behind it goes on. It cannot be taken back."""
    from esper.oona.consuming import parking

    _decide(ctx, parking.skip, handler, position, reason, actor, as_json=as_json)


def _decide(
    ctx: typer.Context,
    act: Callable[..., ParkedEvent],
    handler: str,
    position: int,
    reason: str,
    actor: str | None,
    *,
    as_json: bool,
) -> None:
    actor = getpass.getuser() if actor is None else actor
    if not reason.strip() or not actor.strip():
        raise typer.BadParameter("a decision needs a reason and an author")
    session = session_of(ctx)
    parked = act(session.log, handler, position, actor=actor, reason=reason, trace_id=session.trace_id)
    output.print_record({**_told(parked), "actor": actor, "reason": reason}, as_json=as_json)


def _told(parked: ParkedEvent) -> dict[str, Any]:
    row: dict[str, Any] = output.plain(parked)
    row["parked_at"] = dt.datetime.fromtimestamp(parked.parked_at / 1e6, tz=dt.UTC)
    return row


def _event(envelope: Envelope) -> dict[str, Any]:
    """Return the event as it is in the log, its payload as bytes if this version of Esper cannot read it."""
    from esper.cli.event_view import event_data
    from esper.errors import SchemaError

    try:
        return event_data(envelope)
    except SchemaError:
        return dict(output.plain(envelope))


def _traceback(session: Session, parked: ParkedEvent) -> str | None:
    """Return the text of the traceback, or None where none was kept in this store."""
    from esper.errors import ArtifactMissing

    if parked.traceback_digest is None:
        return None
    try:
        return session.store.get(parked.traceback_digest).decode("utf-8", "replace")
    except ArtifactMissing:
        return None
