"""How one record of the log looks in an answer: as data, and as a line for people."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from esper.cli.output import plain
from esper.events import Envelope, fact_of

_AT = "%Y-%m-%d %H:%M:%S"


def event_data(envelope: Envelope, namespace: str | None = None) -> dict[str, Any]:
    """Return everything a record holds, the fact decoded, and which log it is of where there are several."""
    return {
        **({} if namespace is None else {"namespace": namespace}),
        "position": envelope.position,
        "type": envelope.type,
        "schema": envelope.schema,
        "topic": envelope.topic,
        "stream": envelope.stream,
        "version": envelope.version,
        "recorded_at": envelope.recorded_datetime,
        "sender_id": envelope.sender_id,
        "trace_id": envelope.trace_id,
        "event_id": envelope.event_id,
        "causation_id": envelope.causation_id,
        "digest": envelope.digest,
        "fact": plain(fact_of(envelope)),
    }


def event_line(envelope: Envelope, namespace: str | None = None) -> str:
    """Return a record as one line: position, time (UTC), type, stream and the fact's fields.

    Where there are several logs, the position reads ``namespace:position``. On a terminal the line is cut to its width;
    elsewhere it is whole.
    """
    kind, _, stream_key = envelope.stream.partition("/")
    fields = plain(fact_of(envelope))
    shown = " ".join(f"{name}={_short(value)}" for name, value in fields.items() if value != stream_key)
    place = envelope.position if namespace is None else f"{namespace}:{envelope.position}"
    line = (
        f"{place:>8}  {envelope.recorded_datetime:{_AT}}  {envelope.type:<22}  "
        f"{kind}/{_short(stream_key)}@{envelope.version}  {shown}"
    )
    line = line.replace("\n", " ").rstrip()
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        return line if len(line) <= width else line[: width - 1] + "…"
    return line


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return f"({len(value)})"
    text = str(value)
    # A digest is recognised by eye from its first digits.
    is_digest = len(text) in (32, 64) and all(digit in "0123456789abcdef" for digit in text)
    return text[:12] if is_digest else text
