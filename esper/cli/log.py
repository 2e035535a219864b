"""``esper log``: read, measure and salvage the log of facts; sealing and proofs are in ``log_seal``."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli import log_promote, log_seal, output
from esper.cli.options import Json, group
from esper.cli.progress import progress
from esper.cli.session import Session, session_of
from esper.errors import ConfigError

if TYPE_CHECKING:
    from esper.events import Envelope
    from esper.oona.port import EventLog

_PAGE = 2000

TypeFilter = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Only this event type.", show_default=False)
]
StreamFilter = Annotated[
    str | None,
    typer.Option("--stream", metavar="STREAM", help="Only this stream, e.g. run/run-0192.", show_default=False),
]
TopicFilter = Annotated[
    str | None, typer.Option("--topic", metavar="TOPIC", help="Only this topic.", show_default=False)
]

app = group("Read, verify, seal, prove and salvage the log of facts.")


@app.command("read")
def read(
    ctx: typer.Context,
    after: Annotated[int, typer.Option(min=0, help="Go on after this position.")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many events.")] = 100,
    type_name: TypeFilter = None,
    stream: StreamFilter = None,
    topic: TopicFilter = None,
    as_json: Json = False,
) -> None:
    """Print events in the order of the log, oldest first. With --json one object a line."""
    chosen = _Filter(type_name, stream, topic)
    log = session_of(ctx).log
    for envelope in islice(chosen.forward(log, after), limit):
        _print(envelope, as_json=as_json)


@app.command("tail")
def tail(
    ctx: typer.Context,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many events from the end.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is appended.")] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="URL",
            help="Another log to print with it, of another namespace; positions then read namespace:position. "
            "Can be given several times.",
        ),
    ] = None,
    type_name: TypeFilter = None,
    stream: StreamFilter = None,
    topic: TopicFilter = None,
    as_json: Json = False,
) -> None:
    """Print the last events, oldest first, and with --follow what comes after. With --json one object a line."""
    from esper.oona.follow import follow as follow_all

    chosen = _Filter(type_name, stream, topic)
    logs = _logs(session_of(ctx), also or [])
    ends = {name: log.end() for name, log in logs.items()}
    for name, log in logs.items():
        for envelope in chosen.last(log, ends[name], count):
            _print(envelope, as_json=as_json, namespace=name if also else None)
    sys.stdout.flush()
    if follow:
        for name, envelope in follow_all(logs, ends, keep=chosen):
            _print(envelope, as_json=as_json, namespace=name if also else None)
            sys.stdout.flush()


def _logs(session: Session, also: list[str]) -> dict[str, EventLog]:
    """Return the log and the others that are named, by namespace."""
    from esper.redact import mask_text

    logs = {session.log.namespace: session.log}
    for url in also:
        log = session.open_also(url)
        if log.namespace in logs:
            raise ConfigError(
                f"two logs are called {log.namespace}, one of them {mask_text(url)}",
                hint="a position would not say which is meant; name logs of different namespaces",
            )
        logs[log.namespace] = log
    return logs


@app.command("stats")
def stats(ctx: typer.Context, as_json: Json = False) -> None:
    """Count events by type, topic and kind of stream, and measure them."""
    from esper.oona.port import iterate

    session = session_of(ctx)
    log = session.log
    types: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    head = log.head()
    with progress("reading the log") as advance:
        for envelope in iterate(log, until=head.position):
            types[envelope.type] += 1
            topics[envelope.topic] += 1
            kinds[envelope.stream.partition("/")[0]] += 1
            sizes[envelope.type] += len(envelope.payload)
            if advance is not None and envelope.position % _PAGE == 0:
                advance(envelope.position, head.position)
    payload_bytes = sizes.total()
    disk_bytes = _disk_bytes(session.settings.log)
    summary = {
        "events": types.total(),
        "streams": len(log.streams()),
        "head": head.chain,
        "payload_bytes": payload_bytes,
        "payload_bytes_per_event": payload_bytes / types.total() if types else None,
        "disk_bytes": disk_bytes,
        "disk_bytes_per_event": disk_bytes / types.total() if types and disk_bytes is not None else None,
    }
    if as_json:
        output.print_json({**summary, "by_type": types, "by_topic": topics, "by_stream_kind": kinds})
        return
    output.print_record(summary, as_json=False)
    rows = [
        {"by": by, "name": name, "events": count, "payload_bytes": sizes[name] if by == "type" else None}
        for by, counter in (("type", types), ("topic", topics), ("stream kind", kinds))
        for name, count in counter.most_common()
    ]
    output.print_line("")
    output.print_rows(rows, ("by", "name", "events", "payload_bytes"), as_json=False, empty="the log is empty")


app.command("verify")(log_seal.verify)


@app.command("salvage")
def salvage(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL or file of the new log.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write the longest verified prefix of a damaged log to a new log; nothing is repaired in place."""
    from esper.oona import salvage as rescue

    source = _file_of(session_of(ctx).settings.log)
    if source is None:
        raise ConfigError(
            "only a log in a file can be salvaged", hint="name one: `esper --log sqlite:///FILE log salvage`"
        )
    url = target if "://" in target else f"sqlite:///{Path(target).resolve()}"
    with progress("salvaging the log") as advance:
        report = rescue(source, url, advance)
    output.print_record({"target": url, **output.plain(report)}, as_json=as_json)


@app.command("deliver")
def deliver(
    ctx: typer.Context,
    any_log: Annotated[
        bool, typer.Option("--any-log", help="Also what was spooled for a log at another address.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Deliver the facts that earlier processes left in the spool while the log was away."""
    from esper.oona.recording.delivery import Spool, target_of

    session = session_of(ctx)
    settings = session.settings
    spool = Spool(settings.spool, target_of(settings.log), limit_bytes=settings.spool_bytes)
    rows = [one._asdict() for one in spool.deliver(session.new_log, any_log=any_log)] if spool.waiting() else []
    output.print_rows(
        rows, ("path", "outcome", "facts", "bytes", "target"), as_json=as_json, empty=f"nothing waits in {spool.folder}"
    )


app.command("seal")(log_seal.seal)
app.command("prove")(log_seal.prove)
app.command("check-proof")(log_seal.check_proof)
app.command("restore")(log_seal.restore)
app.command("promote")(log_promote.promote)


class _Filter:
    """Which events of the log are shown."""

    def __init__(self, type_name: str | None, stream: str | None, topic: str | None) -> None:
        """Check the names and keep them."""
        from esper.events import FACT_TYPES
        from esper.names import TopicNames

        if type_name is not None:
            _require(type_name, FACT_TYPES, "event type")
        if topic is not None:
            _require(topic, [str(name) for name in TopicNames], "topic")
        elif type_name is not None and (only := FACT_TYPES[type_name].info.topic) is not None:
            topic = str(only)
        self._type = type_name
        self._stream = stream
        self._topics = None if topic is None else {topic}

    def __call__(self, envelope: Envelope) -> bool:
        """Tell whether an event is shown."""
        return (
            (self._type is None or envelope.type == self._type)
            and (self._stream is None or envelope.stream == self._stream)
            and (self._topics is None or envelope.topic in self._topics)
        )

    def forward(self, log: EventLog, after: int) -> Iterator[Envelope]:
        """Yield the events past a position, oldest first."""
        from esper.oona.port import iterate

        stream = self._stream
        events = iterate(log, after, topics=self._topics) if stream is None else _one_stream(log, stream)
        return (envelope for envelope in events if envelope.position > after and self(envelope))

    def last(self, log: EventLog, end: int, count: int) -> list[Envelope]:
        """Return the last events up to a position, oldest first, reading the log from its end."""
        found: list[Envelope] = []
        while end > 0 and len(found) < count:
            start = max(0, end - _PAGE)
            page = log.read(start, _PAGE, topics=self._topics, until=end)
            found = [envelope for envelope in page if self(envelope)] + found
            end = start
        return found[-count:] if count else []


def _one_stream(log: EventLog, stream: str) -> Iterator[Envelope]:
    """Yield a stream's events, oldest first."""
    from esper.errors import NotFound
    from esper.oona.port import iterate_stream

    if log.stream_version(stream) == 0:
        raise NotFound(f"the log has no stream {stream!r}", hint="`esper log read` shows the stream of each event")
    yield from iterate_stream(log, stream)


def _require(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(sorted(known))}"
        raise typer.BadParameter(f"there is no {what} {name!r}{advice}")


def _print(envelope: Envelope, *, as_json: bool, namespace: str | None = None) -> None:
    from esper.cli.event_view import event_data, event_line

    if as_json:
        output.print_json_line(event_data(envelope, namespace))
    else:
        output.print_line(event_line(envelope, namespace))


def _file_of(url: str) -> Path | None:
    """Return the file of a log, or None where it is in no file."""
    scheme, _, path = url.partition(":///")
    return Path(path) if scheme == "sqlite" else None


def _disk_bytes(url: str) -> int | None:
    """Return the bytes that a log's files take, or None where it is in no file."""
    path = _file_of(url)
    return None if path is None else sum(part.stat().st_size for part in path.parent.glob(path.name + "*"))
