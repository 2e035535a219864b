"""``esper handler``: the processes that react to facts, what each does and how it does."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.handler_parked import app as parked
from esper.cli.options import Json, group
from esper.cli.session import session_of

if TYPE_CHECKING:
    from esper.artifacts.content import ContentStore

_LISTED = ("name", "kind", "what")
_STATUS = ("handler", "alive", "silent", "lag_events", "lag_seconds", "parked")
_MEMBERS = ("member", "state", "host", "pid", "url", "started_at", "lag_events", "trouble")

app = group("Run handlers, show how they do, and decide about events they gave up on.")
app.add_typer(parked, name="parked")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A shipped handler, or your own: package.module:attribute.", show_default=False
    ),
]


@app.command("start")
def start(
    ctx: typer.Context,
    name: Name,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Streams whose events are handled at the same time.")
    ] = 4,
    host: Annotated[str, typer.Option(help="Where /livez, /readyz and /metrics are served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Their port; 0 takes one that is free.")] = 0,
    attempts: Annotated[int, typer.Option(min=1, help="How often an event is tried before it is parked.")] = 5,
    from_end: Annotated[
        bool, typer.Option("--from-end/--from-beginning", help="Where a handler begins that never ran before.")
    ] = False,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    drain_s: Annotated[
        float, typer.Option("--drain-seconds", min=0.0, help="How long what is in hand may take after SIGTERM.")
    ] = 30.0,
    ttl_s: Annotated[
        float, typer.Option("--ttl-seconds", min=0.2, help="After how much silence a process counts as dead.")
    ] = 10.0,
    member: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of this process; one of its own unless given.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a handler until SIGTERM or SIGINT, which finish what is in hand; a second one ends at once."""
    from esper.handlers.runtime.members import default_member
    from esper.handlers.start import Options, prepare

    session = session_of(ctx)

    def open_store() -> ContentStore:
        session.claim_store()
        return session.store

    options = Options(
        member=member or default_member(),
        host=host,
        port=port,
        concurrency=concurrency,
        attempts=attempts,
        from_end=from_end,
        until_idle=until_idle,
        drain_s=drain_s,
        ttl_s=ttl_s,
    )
    prepared = prepare(
        name,
        options,
        settings=session.settings,
        open_log=lambda: session.new_log,
        open_store=open_store,
        trace_id=session.trace_id,
    )

    def told() -> None:
        facts = {"handler": prepared.handler, "member": prepared.member, "url": prepared.url}
        if as_json:
            output.print_json_line(facts)
        else:
            output.print_line(f"{prepared.handler}, member {prepared.member}: {prepared.url}")
        # Whoever started this process waits for the line.
        sys.stdout.flush()

    prepared.daemon.run(told)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """List the handlers that ship with Esper; your own is started by `package.module:attribute`."""
    from esper.handlers.catalog import SHIPPED

    session_of(ctx)
    rows = [{"name": one.name, "kind": one.kind, "what": one.what} for one in SHIPPED.values()]
    output.print_rows(rows, _LISTED, as_json=as_json)


@app.command("status")
def status(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this handler, with its members.", show_default=False)
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Wait for a beat of each member, to tell whether it lives.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show who runs which handler, how far each is behind the log, and how many events are parked."""
    from esper.errors import NotFound
    from esper.handlers.overview import overview

    rows: list[dict[str, Any]] = output.plain(overview(session_of(ctx).log, name, watch=watch))
    for member in (member for row in rows for member in row["members"]):
        member["started_at"] = dt.datetime.fromtimestamp(member["started_at"] / 1e6, tz=dt.UTC)
    if name is None:
        output.print_rows(rows, _STATUS, as_json=as_json, empty="no handler is at work on this log")
        return
    if not rows:
        raise NotFound(
            f"no handler {name!r} is at work on this log, and none has left a position",
            hint="`esper handler start NAME` starts one; `esper handler list` lists what ships",
        )
    if as_json:
        output.print_json(rows[0])
        return
    members = rows[0].pop("members")
    output.print_record(rows[0], as_json=False)
    if members:
        output.print_line("")
        output.print_rows(members, _MEMBERS, as_json=False)
